//! `distill features`: trains a classifier as the feature extractor of `distill eval`.

use std::path::PathBuf;

use ccm::data::{ImageShape, Split};
use ccm::disk;
use ccm::metrics::classifier::Training;

use crate::Failure;
use crate::data::load_split;
use crate::device::{self, Choice, Opened};
use crate::extractor::{SHAPES, train_classifier};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Images with classes, as for `run`, or `shapes`
    #[arg(long, value_name = "PATH")]
    data: String,
    /// Shape of the images, such as 1x28x28 or 3x32x32; must be the shape of the models to evaluate
    #[arg(long, value_name = "CHANNELSxHEIGHTxWIDTH", value_parser = shape)]
    shape: ImageShape,
    /// Number of epochs
    #[arg(long, default_value_t = 4)]
    epochs: usize,
    /// Mirror images horizontally with probability 1/2
    #[arg(long)]
    horizontal_flip: bool,
    /// Seed of the training, and of generated shapes
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Output file for the classifier
    #[arg(long, value_name = "FILE.safetensors")]
    out: PathBuf,
    /// Device; `auto` is a hardware GPU if there is one, otherwise the CPU
    #[arg(long, default_value = "auto")]
    device: Choice,
}

/// Parses `1x28x28`.
pub(crate) fn shape(text: &str) -> Result<ImageShape, String> {
    let sizes: Option<Vec<usize>> = text.split('x').map(|size| size.parse().ok()).collect();
    match sizes.as_deref() {
        Some(&[channels, height, width]) => Ok(ImageShape { channels, height, width }),
        _ => Err("expected three numbers, such as 3x32x32".into()),
    }
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments { data: source, shape, epochs, horizontal_flip, seed, out, device } = arguments;
    if !(1..=1000).contains(&epochs) {
        return Err(format!("--epochs: expected 1 to 1000, found {epochs}").into());
    }
    disk::check_file(&out).map_err(|error| format!("--out: {error}"))?;
    let load = |split| load_split(&source, shape, split, SHAPES, seed);
    let (data, held_out) = (load(Split::Train)?, load(Split::HeldOut)?);
    let Opened { device, name, .. } = device::open(device)?;
    println!("device: {name}");
    let training = Training { epochs, horizontal_flip, seed, ..Training::default() };
    let classifier = train_classifier(&data, &held_out, &source, &training, &device)?;
    disk::write(&out, &classifier.to_bytes())?;
    println!("{}", out.display());
    Ok(())
}
