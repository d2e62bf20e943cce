//! `distill features`: a classifier for `distill eval` to see with.

use std::path::PathBuf;

use burn::tensor::Device;
use ccm::data::{Dataset, ImageShape, Split};
use ccm::metrics::classifier::{Classifier, Training};
use ccm::train::disk;

use crate::Failure;
use crate::device::{self, Choice, Opened};
use crate::eval::can_be_written;
use crate::progress::counter;
use crate::run::load_split;

/// Shapes that a classifier of shapes learns from, and that a model of shapes is compared with.
pub(crate) const SHAPES: usize = 20_000;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Images with classes: as for `run`, or `shapes`
    #[arg(long, value_name = "PATH")]
    data: String,
    /// What images are brought to, such as 1x28x28 or 3x32x32: that of the models to be measured
    #[arg(long, value_name = "CHANNELSxHEIGHTxWIDTH", value_parser = shape)]
    shape: ImageShape,
    /// Passes through the data
    #[arg(long, default_value_t = 4)]
    epochs: usize,
    /// Mirror every second image
    #[arg(long)]
    horizontal_flip: bool,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[arg(long, value_name = "FILE.safetensors")]
    out: PathBuf,
    #[arg(long, default_value = "auto")]
    device: Choice,
}

/// `1x28x28`.
fn shape(text: &str) -> Result<ImageShape, String> {
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
    can_be_written("--out", &out)?;
    let load = |split| load_split(&source, shape, split, SHAPES, seed);
    let (data, held_out) = (load(Split::Train)?, load(Split::HeldOut)?);
    let Opened { device, name, .. } = device::open(device)?;
    println!("device: {name}");
    let training = Training { epochs, horizontal_flip, seed, ..Training::default() };
    let classifier = train(&data, &held_out, &source, &training, &device)?;
    disk::write(&out, &classifier.to_bytes())?;
    println!("{}", out.display());
    Ok(())
}

/// Trains a classifier, and says how good it is.
pub(crate) fn train(
    data: &Dataset,
    held_out: &Dataset,
    source: &str,
    training: &Training,
    device: &Device,
) -> Result<Classifier, Failure> {
    // The name of the data, not where they lie on this machine.
    let name = std::path::Path::new(source).file_stem().map_or(source.into(), |name| name.to_string_lossy());
    let bar = counter("classifier");
    let classifier = Classifier::train(data, held_out, &name, training, device, |done, steps, loss| {
        bar.set_length(steps as u64);
        bar.set_position(done as u64);
        bar.set_message(format!("loss {loss:.4}"));
    })?;
    bar.finish_and_clear();
    let card = classifier.card();
    println!("classifier: {:.2} % of {} held-out images right", 100.0 * card.accuracy, held_out.len());
    Ok(classifier)
}
