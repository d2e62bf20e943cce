//! One batch of training: noise and images, paired, with their times and labels.

use std::ops::Range;

use burn::tensor::{Int, Tensor};

/// Pairs of noise and images.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Noise, `[B, C, H, W]`.
    pub x0: Tensor<4>,
    /// Images in [-1, 1], `[B, C, H, W]`.
    pub x1: Tensor<4>,
    /// A uniform number in [0, 1) for every image.
    pub uniform: Vec<f32>,
    /// Labels, `[B]`, for a conditional model.
    pub label: Option<Tensor<1, Int>>,
    /// Seed of the random numbers that the device draws in this step: dropout.
    pub seed: u64,
}

impl Batch {
    /// Images in the batch.
    pub fn len(&self) -> usize {
        self.uniform.len()
    }

    /// Whether the batch has no images.
    pub fn is_empty(&self) -> bool {
        self.uniform.is_empty()
    }

    /// The images of `rows`.
    pub fn part(&self, rows: Range<usize>) -> Batch {
        Batch {
            x0: self.x0.clone().narrow(0, rows.start, rows.len()),
            x1: self.x1.clone().narrow(0, rows.start, rows.len()),
            uniform: self.uniform[rows.clone()].to_vec(),
            label: self.label.clone().map(|label| label.narrow(0, rows.start, rows.len())),
            seed: self.seed,
        }
    }
}
