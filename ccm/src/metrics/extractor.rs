//! Feature extractors: from images to features.

use std::cmp::Ordering;

use burn::tensor::Tensor;

use crate::data::ImageShape;

/// A network that extracts features of images.
pub trait Extractor {
    /// Name of the extractor and fingerprint of its weights; every figure carries it.
    fn name(&self) -> String;

    /// Features of an image.
    fn width(&self) -> usize;

    /// Number of classes; 0 if it has no logits.
    fn classes(&self) -> usize;

    /// Names of the classes, in the order of the logits; empty if they have none.
    fn class_names(&self) -> &[String] {
        &[]
    }

    /// Whether a Fréchet distance of its features is the FID.
    fn is_of_fid(&self) -> bool {
        false
    }

    /// Shape of its input; `None` if images may have any shape.
    fn shape(&self) -> Option<ImageShape>;

    /// Features and logits of images `[B, C, H, W]` in [-1, 1].
    fn extract(&self, images: Tensor<4>) -> Features;
}

/// Fingerprint of weights: their CRC-32, in hexadecimal digits.
pub fn fingerprint(tensors: impl IntoIterator<Item = impl AsRef<[f32]>>) -> String {
    let mut hasher = crc32fast::Hasher::new();
    for tensor in tensors {
        tensor.as_ref().iter().for_each(|value| hasher.update(&value.to_le_bytes()));
    }
    format!("{:08x}", hasher.finalize())
}

/// Features and logits of a batch.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Features {
    /// `[B, width]`.
    pub features: Vec<f32>,
    /// `[B, classes]`; empty if the extractor has none.
    pub logits: Vec<f32>,
}

impl Features {
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
