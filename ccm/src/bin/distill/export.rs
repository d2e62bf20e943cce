//! `distill export`: converts a model file to another precision, or to a folder for diffusers.

use std::fs;
use std::path::PathBuf;

use ccm::disk::{self, read_model};
use ccm::export;
use ccm::import::{pack, text_to_image};
use ccm::sampler::rounding::round;
use ccm::sampler::schedule::Solver;
use ccm::weights::{Model, Precision};

use crate::Failure;
use crate::device::Choice;
use crate::sample::{MOST_STEPS, backend, check_count};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Model file
    model: PathBuf,
    /// Format of the output: ccm (a model file) or diffusers (a folder)
    #[arg(long, value_parser = layout, default_value = "ccm")]
    layout: Layout,
    /// Precision of the weights in a model file: f32, f16 (half the size), q8 (a quarter of the size: bytes with one
    /// scale per output channel), or q4 (a seventh of the size: four bits, with one scale per 32 inputs;
    /// a web page reads it only in pipelines with text). The input must be f32;
    /// in a pipeline with text, weights that are stored in a smaller precision stay as they are
    #[arg(long, required_if_eq("layout", "ccm"))]
    precision: Option<Precision>,
    /// Network evaluations per image in the folder's sample.py [default: 1 for a student, 50 for a teacher]
    #[arg(long)]
    steps: Option<usize>,
    /// Output file or folder
    #[arg(long, value_name = "FILE.safetensors|FOLDER")]
    out: PathBuf,
    /// Device; `auto` is a hardware GPU if there is one, otherwise the CPU
    #[arg(long, default_value = "auto")]
    device: Choice,
}

#[derive(Clone, Copy, PartialEq)]
enum Layout {
    Ccm,
    Diffusers,
}

fn layout(text: &str) -> Result<Layout, String> {
    match text {
        "ccm" => Ok(Layout::Ccm),
        "diffusers" => Ok(Layout::Diffusers),
        other => Err(format!("expected ccm or diffusers, found `{other}`")),
    }
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    if arguments.steps.is_some() && arguments.layout != Layout::Diffusers {
        return Err("--steps: expected --layout diffusers, whose folder has a script; found ccm".into());
    }
    if arguments.model.is_file() && text_to_image::is_text_to_image(&arguments.model) {
        return pipeline(&arguments);
    }
    let model = read_model(&arguments.model)?;
    match (arguments.layout, arguments.precision) {
        (Layout::Diffusers, None | Some(Precision::F32)) => folder(&arguments, &model),
        (Layout::Diffusers, Some(other)) => {
            Err(format!("--precision: expected f32 with --layout diffusers, found {other}").into())
        }
        (Layout::Ccm, None) => Err(NO_PRECISION.into()),
        (Layout::Ccm, Some(precision)) => file(&arguments, model, precision),
    }
}

const NO_PRECISION: &str = "--precision: expected f32, f16, q8 or q4, found none";

/// Writes a pipeline with text in another precision.
fn pipeline(arguments: &Arguments) -> Result<(), Failure> {
    if arguments.layout != Layout::Ccm {
        let shown = arguments.model.display();
        return Err(
            format!("--layout: expected ccm, as {shown} is a pipeline with text, found diffusers").into()
        );
    }
    let folder = text_to_image::open_packed(&arguments.model)?;
    let precision = arguments.precision.ok_or(NO_PRECISION)?.max(folder.precision);
    disk::check_file(&arguments.out)?;
    let written = pack::pack(&folder, &folder.weights, precision, None, &arguments.out)?;
    println!("{}: {precision}, {written}", arguments.out.display());
    Ok(())
}

fn file(arguments: &Arguments, model: Model, precision: Precision) -> Result<(), Failure> {
    let rounded = pollster::block_on(round(model, precision, backend(arguments.device)))
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

/// Writes the folder under a temporary name and renames it when it is complete.
fn folder(arguments: &Arguments, model: &Model) -> Result<(), Failure> {
    let out = &arguments.out;
    let fault = |error: std::io::Error| -> Failure { format!("--out: {}: {error}", out.display()).into() };
    if out.exists() && (!out.is_dir() || fs::read_dir(out).map_err(fault)?.next().is_some()) {
        return Err(format!("--out: {}: expected a new or empty folder", out.display()).into());
    }
    let steps = arguments.steps.unwrap_or(Solver::of(&model.card).usual_steps());
    check_count("--steps", steps, MOST_STEPS)?;
    let files =
        export::diffusers(model, steps).map_err(|error| format!("{}: {error}", arguments.model.display()))?;
    let name =
        out.file_name().ok_or_else(|| format!("--out: {}: expected the name of a folder", out.display()))?;
    let part = out.with_file_name(format!(".{}.{}.part", name.to_string_lossy(), std::process::id()));
    let write = |(file, bytes): &(&str, Vec<u8>)| -> Result<(), Failure> {
        let path = part.join(file);
        path.parent().map_or(Ok(()), fs::create_dir_all).map_err(fault)?;
        Ok(disk::write(&path, bytes)?)
    };
    if let Err(error) = files.iter().try_for_each(write) {
        // The error to tell is that of the write.
        let _ = fs::remove_dir_all(&part);
        return Err(error);
    }
    if out.exists() {
        fs::remove_dir(out).map_err(fault)?;
    }
    fs::rename(&part, out).map_err(fault)?;
    let names: Vec<&str> = files.iter().map(|(file, _)| *file).collect();
    println!("{}: {}", out.display(), names.join(", "));
    Ok(())
}
