//! Feature extractors for `eval`, `features` and `claims`, read from a file or trained on the data.

use std::path::Path;

use burn::tensor::Device;
use ccm::data::{Dataset, ImageShape, Split};
use ccm::metrics::Extractor;
use ccm::metrics::classifier::{Classifier, Training};
use ccm::metrics::file::open;

use crate::Failure;
use crate::data::load_split;
use crate::progress::counter;

/// Smallest number of images per set for all metrics.
pub(crate) const LEAST_IMAGES: usize = 10;

/// Number of generated shapes if the data is `shapes`, for training a classifier and as reference images.
pub(crate) const SHAPES: usize = 20_000;

/// Opens the extractor in the file of `--features`, for images of this shape.
pub(crate) fn open_extractor(
    path: &Path,
    shape: ImageShape,
    device: &Device,
) -> Result<Box<dyn Extractor>, Failure> {
    let extractor = open(path, device).map_err(|error| format!("--features: {error}"))?;
    match extractor.shape().filter(|found| *found != shape) {
        Some(found) => {
            let path = path.display();
            Err(format!(
                "--features: {path}: expected images of {shape}, the shape of the model, found {found}"
            )
            .into())
        }
        None => Ok(extractor),
    }
}

/// Trains a classifier on the data as the extractor.
pub(crate) fn trained_extractor(
    source: &str,
    shape: ImageShape,
    device: &Device,
) -> Result<Box<dyn Extractor>, Failure> {
    println!("features: no --features; training a classifier on {source} (`distill features` saves one)");
    let load = |split| load_split(source, shape, split, SHAPES, 0);
    let (data, held_out) = (load(Split::Train)?, load(Split::HeldOut)?);
    let trained = train_classifier(&data, &held_out, source, &Training::default(), device);
    Ok(Box::new(trained.map_err(|error| format!("{error}; pass a feature extractor with --features"))?))
}

/// Trains a classifier and prints its accuracy on held-out images.
pub(crate) fn train_classifier(
    data: &Dataset,
    held_out: &Dataset,
    source: &str,
    training: &Training,
    device: &Device,
) -> Result<Classifier, Failure> {
    // The name of the data without its folder.
    let name = std::path::Path::new(source).file_stem().map_or(source.into(), |name| name.to_string_lossy());
    let bar = counter("classifier");
    let classifier = Classifier::train(data, held_out, &name, training, device, |done, steps, loss| {
        bar.set_length(steps as u64);
        bar.set_position(done as u64);
        bar.set_message(format!("loss {loss:.4}"));
    })?;
    bar.finish_and_clear();
    let card = classifier.card();
    println!("classifier: accuracy {:.2} % on {} held-out images", 100.0 * card.accuracy, held_out.len());
    Ok(classifier)
}
