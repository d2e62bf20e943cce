//! Extractors in files.

use std::fmt::Display;
use std::path::Path;

use burn::tensor::Device;

use super::MetricsError;
use super::classifier::Classifier;
use super::extractor::Extractor;
use super::inception::Inception;
use crate::disk;
use crate::import::read_checkpoint;
use crate::weights::TensorFile;

/// The extractor in a file: a classifier of `distill features`, or the network of the FID as `.safetensors` or as the
/// checkpoint of PyTorch that pytorch-fid and torchmetrics publish.
///
/// # Errors
/// A file that cannot be read, or holds neither, by its name.
pub fn open(path: &Path, device: &Device) -> Result<Box<dyn Extractor>, MetricsError> {
    let unreadable = |error: &dyn Display| MetricsError::File(error.to_string());
    let fault = |error: &dyn Display| MetricsError::File(format!("{}: {error}", path.display()));
    let inception = |tensors| Inception::new(tensors, device).map_err(|error| fault(&error));
    if path.extension().is_none_or(|extension| extension != "safetensors") {
        let tensors = read_checkpoint(path, None).map_err(|error| unreadable(&error))?;
        return Ok(Box::new(inception(tensors)?));
    }
    let bytes = disk::read(path).map_err(|error| unreadable(&error))?;
    let file = TensorFile::from_bytes(&bytes).map_err(|error| fault(&error))?;
    if file.description.is_empty() {
        Ok(Box::new(inception(file.tensors)?))
    } else {
        Ok(Box::new(Classifier::from_file(file, device).map_err(|error| fault(&error))?))
    }
}
