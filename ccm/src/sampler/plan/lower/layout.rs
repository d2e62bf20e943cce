//! The layout of weights in a plan: the order of their channels, and blocks of outputs.

use crate::sampler::plan::{BLOCK, ConvWeight};
use crate::weights::{CompactTensor, HostTensor, Values};
#[cfg(feature = "text")]
use crate::weights::{GROUP, Precision};

/// The positions of a value's channels in a map.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Order {
    /// In order, padded with zeros at the end.
    Plain,
    /// `[parts, heads, head_channels]`, with each head padded to whole blocks. With `heads_first`, the value's own
    /// order is `[heads, parts, head_channels]`.
    Heads { parts: usize, heads: usize, head_channels: usize, heads_first: bool },
    /// `[channels, side, side]`; the value's own order is `[side, side, channels]`.
    #[cfg(feature = "text")]
    Patches { side: usize },
}

impl Order {
    /// The map channel of each of the value's `count` channels.
    #[inline(never)]
    pub(super) fn places(self, count: usize) -> Vec<usize> {
        match self {
            Self::Plain => (0..count).collect(),
            Self::Heads { parts, heads, head_channels: width, heads_first } => {
                let padded = width.next_multiple_of(BLOCK);
                let place = |channel: usize| {
                    let (part, head) = match heads_first {
                        true => (channel / width % parts, channel / width / parts),
                        false => (channel / width / heads, channel / width % heads),
                    };
                    (part * heads + head) * padded + channel % width
                };
                (0..count).map(place).collect()
            }
            #[cfg(feature = "text")]
            Self::Patches { side } => {
                let channels = count / side / side;
                let place = |channel: usize| channel % channels * side * side + channel / channels;
                (0..count).map(place).collect()
            }
        }
    }
}

/// Scatters values to the positions of an order.
pub(super) fn placed(values: &[f32], order: Order) -> Vec<f32> {
    let places = order.places(values.len());
    let mut placed = vec![0.0; width(&places)];
    for (value, place) in values.iter().zip(places) {
        placed[place] = *value;
    }
    placed
}

/// Number of channels of a map with these channel positions.
pub(super) fn width(places: &[usize]) -> usize {
    places.iter().max().map_or(0, |&last| (last + 1).next_multiple_of(BLOCK))
}

/// Packs weights `[outputs, inputs, ...]`, stacked along the outputs, into a [`ConvWeight`].
pub(super) fn packed(weights: Vec<CompactTensor>, kernel: usize, rows: Order, columns: Order) -> ConvWeight {
    let (shape, taps) = (&weights[0].shape, kernel * kernel);
    let inputs = shape[1..].iter().product::<usize>() / taps;
    let outputs = weights.iter().map(|weight| weight.shape[0]).sum();
    let (rows, columns) = (rows.places(outputs), columns.places(inputs));
    let (out_channels, in_channels) = (width(&rows), width(&columns));
    let layout = Layout { taps, rows, columns, in_channels, out_channels };
    ConvWeight { kernel, in_channels, out_channels, values: layout.place(weights) }
}

/// A weight with its channels in order.
#[cfg(test)]
pub(in crate::sampler) fn in_order(weight: CompactTensor, kernel: usize) -> ConvWeight {
    packed(vec![weight], kernel, Order::Plain, Order::Plain)
}

/// Where the values of a weight are in a [`ConvWeight`].
struct Layout {
    taps: usize,
    /// The place of each output channel.
    rows: Vec<usize>,
    /// The place of each input channel.
    columns: Vec<usize>,
    in_channels: usize,
    out_channels: usize,
}

impl Layout {
    /// Places the values of stacked weights.
    #[cfg(feature = "text")]
    fn place(&self, weights: Vec<CompactTensor>) -> Values {
        if let Some(values) = self.place_nibbles(&weights) {
            return values;
        }
        let (mut halves, mut bytes, mut all_scales) = (Vec::new(), Vec::new(), Vec::new());
        for weight in &weights {
            match &weight.values {
                Values::F16(values) => halves.push(values.as_slice()),
                Values::Q8 { bytes: values, scales } => {
                    bytes.push(values.as_slice());
                    all_scales.extend_from_slice(scales);
                }
                Values::F32(_) | Values::Q4 { .. } => {}
            }
        }
        if halves.len() == weights.len() {
            return Values::F16(self.scattered(&halves));
        }
        if bytes.len() == weights.len() {
            let mut scales = vec![0.0; self.out_channels];
            self.rows.iter().zip(all_scales).for_each(|(&row, scale)| scales[row] = scale);
            return Values::Q8 { bytes: self.scattered(&bytes), scales };
        }
        // In an order that four bits do not suit, bytes take their place.
        let is_small = weights.iter().any(|weight| matches!(weight.values, Values::Q4 { .. }));
        if is_small {
            let bytes = weights.into_iter().map(|weight| {
                let shape = weight.shape.clone();
                CompactTensor::from(HostTensor { shape, values: weight.into_f32() }).rounded(Precision::Q8)
            });
            return self.place(bytes.collect());
        }
        let values: Vec<Vec<f32>> = weights.into_iter().map(CompactTensor::into_f32).collect();
        Values::F32(self.scattered(&values))
    }

    /// Places the values of stacked weights in four bits. `None` if not all are, or if the input channels are not in order, so
    /// that they would not share scales as before.
    #[cfg(feature = "text")]
    fn place_nibbles(&self, weights: &[CompactTensor]) -> Option<Values> {
        let is_plain = self.columns.len() == self.in_channels
            && self.columns.iter().enumerate().all(|(index, &place)| index == place);
        let found: Option<Vec<_>> = weights.iter().map(CompactTensor::numbers).collect();
        let (numbers, scales): (Vec<_>, Vec<_>) = found.filter(|_| is_plain)?.into_iter().unzip();
        let in_groups = self.in_channels / GROUP;
        let groups = Self {
            rows: self.rows.clone(),
            columns: (0..in_groups).collect(),
            in_channels: in_groups,
            ..*self
        };
        let numbers: Vec<u8> = self.scattered(&numbers);
        let pairs = numbers.as_chunks::<2>().0.iter();
        let nibbles = pairs.map(|[even, odd]| even | odd << 4).collect();
        Some(Values::Q4 { nibbles, scales: groups.scattered(&scales) })
    }

    /// Places the values of stacked weights.
    #[cfg(not(feature = "text"))]
    fn place(&self, weights: Vec<CompactTensor>) -> Values {
        let weights = weights.into_iter().map(CompactTensor::into_f32);
        Values::F32(self.scattered(&weights.collect::<Vec<_>>()))
    }

    fn scattered<T: Copy + Default>(&self, weights: &[impl AsRef<[T]>]) -> Vec<T> {
        let Self { taps, rows, columns, in_channels, out_channels } = self;
        let mut placed = vec![T::default(); taps * in_channels * out_channels];
        let mut rows = rows.iter();
        for weight in weights {
            let values = weight.as_ref().chunks_exact(columns.len() * taps);
            for (values, row) in values.zip(&mut rows) {
                for (values, &column) in values.chunks_exact(*taps).zip(columns) {
                    for (tap, value) in values.iter().enumerate() {
                        placed[(tap * in_channels + column) * out_channels + row] = *value;
                    }
                }
            }
        }
        placed
    }
}

/// A 1x1 weight that multiplies the channels of a map by `factor`, in the given order.
pub(super) fn identity(channels: usize, factor: f32, order: Order) -> ConvWeight {
    let mut values = vec![0.0; channels * channels];
    values.iter_mut().step_by(channels + 1).for_each(|value| *value = factor);
    packed(vec![HostTensor::new([channels, channels], values).into()], 1, Order::Plain, order)
}
