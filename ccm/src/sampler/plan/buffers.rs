//! Assigns a buffer to each feature map of a plan.

#[cfg(feature = "text")]
use super::{Factor, Term};
use super::{Map, Op, Plan};

/// A buffer during the assignment.
struct Buffer {
    /// Number of values per image.
    size: usize,
    /// Index of the last operation that uses the current map of the buffer.
    busy_until: usize,
}

impl Plan {
    /// Lets maps share buffers. Each map, which has its own buffer before the call, gets the smallest buffer that is
    /// free while the map is in use.
    ///
    /// `sizes` holds the number of values per image of each map.
    ///
    /// # Panics
    /// If an operation reads a map that no operation before it writes, or writes a map that it reads, or if no operation
    /// writes the output.
    #[expect(clippy::expect_used, reason = "the assertion before it checks the maps that operations read")]
    pub(super) fn share_buffers(&mut self, sizes: &[usize]) {
        let mut last_use = vec![0; sizes.len()];
        for (time, op) in self.ops.iter().enumerate() {
            op.inputs().iter().for_each(|map| last_use[map.buffer] = time);
            last_use[op.y().buffer] = time;
        }
        // The inputs and outputs must survive the last operation.
        let (inputs, outputs) = (self.inputs(), self.outputs());
        for map in inputs.iter().chain(&outputs) {
            last_use[map.buffer] = usize::MAX;
        }

        let mut buffers: Vec<Buffer> = Vec::new();
        let mut places = vec![None; sizes.len()];
        for map in &inputs {
            places[map.buffer] = Some(buffers.len());
            buffers.push(Buffer { size: sizes[map.buffer], busy_until: usize::MAX });
        }
        for (time, op) in self.ops.iter().enumerate() {
            op.assert_writes_no_input();
            for map in op.inputs() {
                assert!(
                    places[map.buffer].is_some(),
                    "operation {time} reads a map that nothing writes before"
                );
            }
            let map = op.y().buffer;
            if places[map].is_none() {
                let place = place(&mut buffers, sizes[map], time);
                buffers[place].busy_until = last_use[map];
                places[map] = Some(place);
            }
        }
        let share = |map: &mut Map| {
            map.buffer =
                places[map.buffer].expect("some operation writes every map that is read, and the output");
        };
        for op in &mut self.ops {
            op.maps_mut().into_iter().for_each(share);
        }
        share(&mut self.x);
        share(&mut self.output);
        #[cfg(feature = "text")]
        self.text.iter_mut().chain(&mut self.pooled).for_each(share);
        self.buffers = buffers.into_iter().map(|buffer| buffer.size).collect();
    }
}

#[cfg(feature = "text")]
impl Plan {
    fn inputs(&self) -> Vec<Map> {
        [self.x].into_iter().chain(self.text).collect()
    }

    fn outputs(&self) -> Vec<Map> {
        [self.output].into_iter().chain(self.pooled).collect()
    }
}

#[cfg(not(feature = "text"))]
impl Plan {
    fn inputs(&self) -> [Map; 1] {
        [self.x]
    }

    fn outputs(&self) -> [Map; 1] {
        [self.output]
    }
}

/// Finds a free buffer for `size` values before operation `time`: the smallest one that is large enough, otherwise the
/// largest, which grows, otherwise a new one.
fn place(buffers: &mut Vec<Buffer>, size: usize, time: usize) -> usize {
    let free = (0..buffers.len()).filter(|&i| buffers[i].busy_until < time);
    let large_enough = free.clone().filter(|&i| buffers[i].size >= size).min_by_key(|&i| buffers[i].size);
    let place = large_enough.or(free.max_by_key(|&i| buffers[i].size));
    let place = place.unwrap_or_else(|| {
        buffers.push(Buffer { size, busy_until: time });
        buffers.len() - 1
    });
    buffers[place].size = buffers[place].size.max(size);
    place
}

impl Op {
    fn maps_mut(&mut self) -> Vec<&mut Map> {
        match self {
            Self::Conv(op) => {
                let residual = op.residual.as_mut().map(|residual| &mut residual.map);
                op.x.maps_mut().chain(residual).chain([&mut op.y]).collect()
            }
            Self::GroupNorm(op) => op.x.maps_mut().chain([&mut op.y]).collect(),
            Self::Attention(op) => vec![&mut op.q.map, &mut op.k.map, &mut op.v.map, &mut op.y],
            Self::Pool(op) => vec![&mut op.x, &mut op.y],
            #[cfg(feature = "text")]
            Self::LayerNorm(op) => vec![&mut op.x, &mut op.y],
            #[cfg(feature = "text")]
            Self::Pointwise(op) => {
                let mut maps = vec![&mut op.x.map, &mut op.y];
                if let Some(Factor::Map(channels)) = &mut op.factor {
                    maps.push(&mut channels.map);
                }
                if let Some(Term::Map(map)) = &mut op.term {
                    maps.push(map);
                }
                maps
            }
            #[cfg(feature = "text")]
            Self::Copy(op) => vec![&mut op.x, &mut op.y],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::plan::lower::tests::{specs, unshared};
    use crate::sampler::plan::{BLOCK, Pool};

    /// Tracks the map in each shared buffer and compares it with the map that the operation read before sharing.
    #[test]
    fn every_operation_reads_the_maps_that_it_read_before_buffers_were_shared() {
        for spec in specs() {
            let (before, sizes) = unshared(&spec);
            let mut plan = before.clone();
            plan.share_buffers(&sizes);
            assert!(
                plan.buffers.len() < sizes.len() / 2,
                "{} buffers of {}",
                plan.buffers.len(),
                sizes.len()
            );
            let mut holds = vec![None; plan.buffers.len()];
            holds[plan.x.buffer] = Some(before.x.buffer);
            for (time, (own, shared)) in before.ops.iter().zip(&plan.ops).enumerate() {
                for (own, shared) in own.inputs().iter().zip(shared.inputs()) {
                    assert_eq!(holds[shared.buffer], Some(own.buffer), "operation {time} of {spec:?}");
                    assert!(shared.len() <= plan.buffers[shared.buffer]);
                }
                let inputs: Vec<usize> = shared.inputs().iter().map(|map| map.buffer).collect();
                let y = shared.y();
                assert!(!inputs.contains(&y.buffer), "operation {time} of {spec:?} reads what it writes");
                assert!(y.len() <= plan.buffers[y.buffer]);
                holds[y.buffer] = Some(own.y().buffer);
            }
            assert_eq!(holds[plan.output.buffer], Some(before.output.buffer));
            assert_eq!(holds[plan.x.buffer], Some(before.x.buffer), "the image is still there");
        }
    }

    /// A plan of pooling operations. Each pair is the map that an operation reads and the map that it writes.
    fn pools(pairs: &[[usize; 2]], output: usize) -> Plan {
        let (mut plan, _) = unshared(&specs()[0]);
        let map = |buffer| Map { buffer, height: 2, width: 2, channels: BLOCK };
        plan.ops = pairs.iter().map(|&[x, y]| Op::Pool(Pool { x: map(x), y: map(y) })).collect();
        (plan.x, plan.output) = (map(0), map(output));
        plan
    }

    #[test]
    fn a_chain_of_maps_shares_two_buffers_besides_the_image() {
        let mut plan = pools(&[[0, 1], [1, 2], [2, 3], [3, 4]], 4);
        plan.share_buffers(&[16; 5]);
        assert_eq!(plan.buffers, [16; 3]);
    }

    #[test]
    #[should_panic(expected = "operation 1 reads a map that nothing writes before")]
    fn a_map_that_is_never_written_is_not_read_from_another_buffer() {
        pools(&[[0, 1], [2, 3]], 3).share_buffers(&[16; 4]);
    }

    #[test]
    #[should_panic(expected = "operation 0 reads a map that nothing writes before")]
    fn a_map_that_is_written_too_late_is_not_read_from_another_buffer() {
        pools(&[[1, 2], [0, 1]], 2).share_buffers(&[16; 3]);
    }

    #[test]
    #[should_panic(expected = "an operation writes what it reads")]
    fn a_map_is_not_written_while_it_is_read() {
        pools(&[[0, 1], [1, 1]], 1).share_buffers(&[16; 2]);
    }

    #[test]
    #[should_panic(expected = "and the output")]
    fn an_output_that_is_never_written_is_not_read_from_another_buffer() {
        pools(&[[0, 1]], 2).share_buffers(&[16; 3]);
    }
}
