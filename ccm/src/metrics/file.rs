//! Opens feature extractors from files.

use std::path::Path;

use burn::tensor::Device;

use super::MetricsError;
use super::classifier::Classifier;
use super::extractor::Extractor;
use super::inception::{self, Inception};
use crate::disk;
use crate::import::Checkpoint;

/// Opens the extractor in a file: a classifier of `distill features`, or the FID's Inception-v3 as a PyTorch checkpoint
/// (as published by pytorch-fid and torchmetrics) or as safetensors.
///
/// # Errors
/// [`MetricsError::File`], with the path, if the file cannot be read or holds neither network.
pub fn open(path: &Path, device: &Device) -> Result<Box<dyn Extractor>, MetricsError> {
    let unreadable = |error: &dyn std::fmt::Display| MetricsError::File(error.to_string());
    let fault = |error: MetricsError| MetricsError::File(format!("{}: {error}", path.display()));
    let checkpoint = Checkpoint::open(path).map_err(|error| unreadable(&error))?;
    if checkpoint.description.is_empty() {
        let found = checkpoint.select_part(&inception::tensors()).map_err(|error| unreadable(&error))?;
        return Ok(Box::new(Inception::new(found.tensors, device).map_err(fault)?));
    }
    let bytes = disk::read(path).map_err(|error| unreadable(&error))?;
    Ok(Box::new(Classifier::from_bytes(&bytes, device).map_err(fault)?))
}
