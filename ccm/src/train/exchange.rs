//! The exchange between ranks: sums over all of them, after the gradients have been computed or meanwhile.

use std::sync::mpsc::{Receiver, channel};

use burn::tensor::{Tensor, TensorData};

use super::group::Group;
use crate::nn::host::to_host;

/// Values that are exchanged together, 64 MiB at most: an exchange of many small tensors takes longer.
const BUCKET: usize = 1 << 24;
/// Values that are exchanged together while others are being computed, at least 1 MiB.
const SMALLEST_BUCKET: usize = 1 << 18;
/// Buckets that a gradient is divided into, while it is being computed.
const BUCKETS: usize = 8;

/// Replaces flat tensors by their sums over the ranks of a group, in buckets.
pub(super) fn all_reduce(group: &dyn Group, tensors: Vec<&mut Tensor<1>>) {
    let mut bucket = Bucket::of(BUCKET);
    let mut sums = Vec::with_capacity(tensors.len());
    for tensor in &tensors {
        sums.extend(bucket.add(group, (*tensor).clone()));
    }
    sums.extend(bucket.reduce(group));
    for (tensor, sum) in tensors.into_iter().zip(sums) {
        *tensor = sum;
    }
}

/// Computes flat tensors, and adds up each of them over the ranks of a group in another thread while the next ones are
/// computed. `compute` passes them to its argument, in the same order in every rank; `values` is about the number of all their
/// values. Returns the sums in this order. They are those of [`all_reduce`], to the bit.
pub(super) fn all_reduce_meanwhile(
    group: &dyn Group,
    values: usize,
    compute: impl FnOnce(&mut dyn FnMut(Tensor<1>)),
) -> Vec<Tensor<1>> {
    let (sender, tensors) = channel();
    let bucket = Bucket::of((values / BUCKETS).clamp(SMALLEST_BUCKET, BUCKET));
    std::thread::scope(|scope| {
        let exchange = scope.spawn(move || exchange(group, bucket, &tensors));
        // If the other thread has ended, its panic is passed on below.
        compute(&mut |tensor| drop(sender.send(tensor)));
        drop(sender);
        match exchange.join() {
            Ok(sums) => sums,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn exchange(group: &dyn Group, mut bucket: Bucket, tensors: &Receiver<Tensor<1>>) -> Vec<Tensor<1>> {
    let mut sums = Vec::new();
    for tensor in tensors {
        sums.extend(bucket.add(group, tensor));
    }
    sums.extend(bucket.reduce(group));
    sums
}

/// Flat tensors that are exchanged together.
struct Bucket {
    /// Most values.
    most: usize,
    tensors: Vec<Tensor<1>>,
    values: usize,
}

impl Bucket {
    fn of(most: usize) -> Self {
        Self { most, tensors: Vec::new(), values: 0 }
    }

    /// Adds a tensor. If there is no space, first returns the sums of what the bucket has.
    fn add(&mut self, group: &dyn Group, tensor: Tensor<1>) -> Vec<Tensor<1>> {
        let values = tensor.dims()[0];
        let sums = if self.values + values > self.most { self.reduce(group) } else { Vec::new() };
        self.values += values;
        self.tensors.push(tensor);
        sums
    }

    /// Empties the bucket, and returns the sums of its tensors over the ranks.
    fn reduce(&mut self, group: &dyn Group) -> Vec<Tensor<1>> {
        let tensors = std::mem::take(&mut self.tensors);
        self.values = 0;
        if tensors.is_empty() {
            return tensors;
        }
        let mut values = to_host(Tensor::cat(tensors.clone(), 0));
        group.all_reduce(&mut values);
        let mut sums = values.as_slice();
        let sum = |tensor: Tensor<1>| {
            let (sum, rest) = sums.split_at(tensor.dims()[0]);
            sums = rest;
            Tensor::from_data(TensorData::new(sum.to_vec(), [sum.len()]), &tensor.device())
        };
        tensors.into_iter().map(sum).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use burn::tensor::Device;

    use super::*;
    use crate::noise::Noise;
    use crate::train::group::Threads;

    /// Tensors of a rank, some of them larger than the smallest bucket.
    fn tensors(rank: usize) -> Vec<Tensor<1>> {
        let lengths = [1, 7, SMALLEST_BUCKET + 5, 3, SMALLEST_BUCKET / 2, SMALLEST_BUCKET / 2, 2];
        let tensor = |(i, length)| {
            let values = Noise::new(rank as u64, i as u64).normals(length);
            Tensor::from_data(TensorData::new(values, [length]), &Device::flex())
        };
        lengths.into_iter().enumerate().map(tensor).collect()
    }

    #[test]
    fn an_exchange_meanwhile_gives_the_same_bits() {
        for size in [1, 2, 3] {
            let sums: Vec<[Vec<Vec<f32>>; 2]> = std::thread::scope(|scope| {
                let start = |group: Threads| {
                    scope.spawn(move || {
                        let group: &dyn Group = &group;
                        let mut after = tensors(group.rank());
                        let meanwhile =
                            all_reduce_meanwhile(group, 4, |send| after.iter().cloned().for_each(send));
                        all_reduce(group, after.iter_mut().collect());
                        [after, meanwhile].map(|sums| sums.into_iter().map(to_host).collect())
                    })
                };
                let threads: Vec<_> = Threads::new(size).into_iter().map(start).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            for [after, meanwhile] in &sums {
                assert_eq!((after, after), (meanwhile, &sums[0][0]));
            }
            let expected: f32 = (0..size).map(|rank| to_host(tensors(rank).swap_remove(3))[1]).sum();
            assert!((sums[0][0][3][1] - expected).abs() < 1e-6);
        }
    }
}
