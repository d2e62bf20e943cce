//! A training batch: pairs of noise and images, with conditions and random numbers for the times.

use std::ops::Range;

use burn::tensor::Tensor;

use crate::nn::conditions::Conditions;

/// Pairs of noise and images: row `i` of `x0` belongs to row `i` of `x1`. They are all rows of a batch, or those that one of
/// several ranks trains on.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Noise, `[B, C, H, W]`.
    pub x0: Tensor<4>,
    /// Images in [-1, 1], or latents, `[B, C, H, W]`.
    pub x1: Tensor<4>,
    /// One uniform random number in [0, 1) per image, from which its time is computed.
    pub uniform: Vec<f32>,
    /// What the images show: classes, texts or nothing.
    pub condition: Conditions,
    /// Seed of this step's other random numbers: dropout, and the discriminator's noise and times.
    pub seed: u64,
    /// The rows of the whole batch that are here, ascending.
    pub rows: Vec<usize>,
    /// Number of rows of the whole batch.
    pub size: usize,
}

impl Batch {
    /// Number of images.
    pub fn len(&self) -> usize {
        self.uniform.len()
    }

    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.uniform.is_empty()
    }

    /// The rows `rows` of the whole batch, which must be here.
    pub fn part(&self, rows: Range<usize>) -> Batch {
        let first = self.rows.partition_point(|&row| row < rows.start);
        let here = first..first + rows.len();
        Batch {
            x0: self.x0.clone().narrow(0, first, rows.len()),
            x1: self.x1.clone().narrow(0, first, rows.len()),
            uniform: self.uniform[here.clone()].to_vec(),
            condition: self.condition.clone().narrow(here),
            seed: self.seed,
            rows: rows.collect(),
            size: self.size,
        }
    }
}
