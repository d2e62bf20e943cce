//! The interface of feature extractors.

use std::cmp::Ordering;

use burn::tensor::Tensor;

use crate::data::ImageShape;

/// A network that extracts features of images.
pub trait Extractor {
    /// Name of the extractor with a fingerprint of its weights. It is part of every result.
    fn name(&self) -> String;

    /// Number of features per image.
    fn width(&self) -> usize;

    /// Number of classes; 0 if it has no logits.
    fn classes(&self) -> usize;

    /// Class names, in the order of the logits; empty if classes have no names.
    fn class_names(&self) -> &[String] {
        &[]
    }

    /// Whether the Fréchet distance of its features is the FID.
    fn is_of_fid(&self) -> bool {
        false
    }

    /// Shape of the input images; `None` if any shape is accepted.
    fn shape(&self) -> Option<ImageShape>;

    /// Features and logits of images `[B, C, H, W]` in [-1, 1].
    fn extract(&self, images: Tensor<4>) -> Features;
}

/// Fingerprint of weights: their CRC-32 in hexadecimal.
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
    /// Class of the largest logit of every image; the first one if several are equal.
    pub fn classes(&self, count: usize) -> impl Iterator<Item = usize> + '_ {
        self.logits.chunks_exact(count.max(1)).map(|logits| {
            (1..logits.len()).fold(0, |best, class| match logits[class].total_cmp(&logits[best]) {
                Ordering::Greater => class,
                _ => best,
            })
        })
    }
}
