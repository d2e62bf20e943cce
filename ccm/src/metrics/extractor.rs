//! Networks that see: from images to features.

use std::path::Path;

use burn::tensor::{Device, Tensor};

use super::MetricsError;
use super::classifier::Classifier;
use super::inception::Inception;
use crate::data::ImageShape;
use crate::train::disk;
use crate::train::import::read_checkpoint;
use crate::weights::TensorFile;

/// A network whose features images are compared by.
pub trait Extractor {
    /// What it is, in a few words; every figure carries it.
    fn name(&self) -> String;

    /// Features of an image.
    fn width(&self) -> usize;

    /// Classes that it tells apart; 0 if it has no logits.
    fn classes(&self) -> usize;

    /// The images that it takes; `None` if it takes them of any shape.
    fn shape(&self) -> Option<ImageShape>;

    /// What it makes of images `[B, C, H, W]` in [-1, 1].
    fn see(&self, images: Tensor<4>) -> Seen;
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
    /// The class of the largest logit of every image.
    pub fn classes(&self, count: usize) -> impl Iterator<Item = usize> + '_ {
        self.logits.chunks_exact(count.max(1)).map(|logits| {
            let order = |a: &&f32, b: &&f32| a.total_cmp(b);
            let largest = logits.iter().max_by(order).copied().unwrap_or_default();
            logits.iter().position(|&logit| logit == largest).unwrap_or_default()
        })
    }
}

/// The extractor in a file: a classifier of `distill features`, or the network of the FID as `.safetensors` or as the
/// checkpoint of PyTorch that pytorch-fid and torchmetrics publish.
///
/// # Errors
/// A file that cannot be read, or holds neither.
pub fn open(path: &Path, device: &Device) -> Result<Box<dyn Extractor>, MetricsError> {
    let fault = |error: &dyn std::fmt::Display| MetricsError::File(error.to_string());
    if path.extension().is_none_or(|extension| extension != "safetensors") {
        let tensors = read_checkpoint(path, None).map_err(|error| fault(&error))?;
        return Ok(Box::new(Inception::new(tensors, device)?));
    }
    let bytes = disk::read(path).map_err(|error| fault(&error))?;
    let file = TensorFile::from_bytes(&bytes).map_err(|error| fault(&error))?;
    if file.description.is_empty() {
        Ok(Box::new(Inception::new(file.tensors, device)?))
    } else {
        Ok(Box::new(Classifier::from_file(file, device)?))
    }
}
