//! `distill export`: a model file with smaller weights.

use std::path::PathBuf;

use ccm::disk::{self, read_model};
use ccm::sampler::rounding::round;
use ccm::weights::Precision;

use crate::Failure;
use crate::device::Choice;
use crate::sample::backend;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The model file, in f32
    model: PathBuf,
    /// What to store weights as: f32, f16 (half the size), or q8 (a quarter: bytes with a scale for each output
    /// channel)
    #[arg(long, value_parser = precision)]
    precision: Precision,
    /// The file to write
    #[arg(long, value_name = "FILE.safetensors")]
    out: PathBuf,
    #[arg(long, default_value = "auto")]
    device: Choice,
}

fn precision(text: &str) -> Result<Precision, String> {
    match text {
        "f32" => Ok(Precision::F32),
        "f16" => Ok(Precision::F16),
        "q8" => Ok(Precision::Q8),
        other => Err(format!("expected f32, f16 or q8, found `{other}`")),
    }
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let model = read_model(&arguments.model)?;
    let rounded = pollster::block_on(round(model, arguments.precision, backend(arguments.device)))
        .map_err(|error| format!("{}: {error}", arguments.model.display()))?;
    let bytes = rounded.to_bytes();
    disk::write(&arguments.out, &bytes)?;
    let distance = rounded.card.rounding.map_or(String::new(), |rounding| format!(", {rounding}"));
    println!(
        "{}: {}, {:.2} MB{distance}",
        arguments.out.display(),
        rounded.precision,
        bytes.len() as f64 / 1e6
    );
    Ok(())
}
