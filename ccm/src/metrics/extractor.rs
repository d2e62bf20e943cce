//! Networks that see: from images to features.

use std::cmp::Ordering;

use burn::tensor::Tensor;

use crate::data::ImageShape;

/// A network whose features images are compared by.
pub trait Extractor {
    /// What it is, in a few words; every figure carries it.
    fn name(&self) -> String;

    /// Features of an image.
    fn width(&self) -> usize;

    /// Classes that it tells apart; 0 if it has no logits.
    fn classes(&self) -> usize;

    /// Their names, in the order of the logits; empty if it does not know them.
    fn class_names(&self) -> &[String] {
        &[]
    }

    /// Whether a Fréchet distance of its features is the FID.
    fn is_of_fid(&self) -> bool {
        false
    }

    /// The images that it takes; `None` if it takes them of any shape.
    fn shape(&self) -> Option<ImageShape>;

    /// What it makes of images `[B, C, H, W]` in [-1, 1].
    fn see(&self, images: Tensor<4>) -> Seen;
}

/// A few digits that tell weights from others: their CRC-32.
pub fn fingerprint(tensors: impl IntoIterator<Item = impl AsRef<[f32]>>) -> String {
    let mut hasher = crc32fast::Hasher::new();
    for tensor in tensors {
        tensor.as_ref().iter().for_each(|value| hasher.update(&value.to_le_bytes()));
    }
    format!("{:08x}", hasher.finalize())
}

/// What an extractor makes of a batch.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seen {
    /// `[B, width]`.
    pub features: Vec<f32>,
    /// `[B, classes]`; empty if the extractor has none.
    pub logits: Vec<f32>,
}

impl Seen {
    /// The class of the largest logit of every image; of equal ones the first.
    pub fn classes(&self, count: usize) -> impl Iterator<Item = usize> + '_ {
        self.logits.chunks_exact(count.max(1)).map(|logits| {
            (1..logits.len()).fold(0, |best, class| match logits[class].total_cmp(&logits[best]) {
                Ordering::Greater => class,
                _ => best,
            })
        })
    }
}
