//! `distill`: from images to a one-step generator. Every subcommand is a file; the work is the library's.

mod claims;
mod device;
mod eval;
mod export;
mod extractor;
mod features;
mod import;
mod inspect;
mod kdc;
mod progress;
mod run;
mod sample;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Allocations of training are large and short-lived; the system's allocator gives each back to the kernel.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What went wrong, in one line that names the file or flag at fault.
type Failure = Box<dyn std::error::Error>;

/// Train one-step image generators with the Curriculum Consistency Model.
///
/// Without a subcommand: the `shapes` preset from start to end, with no download and no GPU needed. It leaves a
/// folder `runs/shapes` with the models and a report to open in a browser.
#[derive(Parser)]
#[command(version, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

const EXAMPLES: &str = "\
Examples:
  distill                                             shapes, teacher to report, a few minutes on a CPU
  distill run --preset mnist --data mnist/            handwritten digits from the IDX files in a folder
  distill run --preset cifar10 --data photos.zip      your own pictures; class = name of the folder
  distill run --preset mnist --data mnist/ --resume   go on after Ctrl-C, a crash or a power cut
  distill sample runs/shapes/student.safetensors --count 64 --out grid.png
  distill export runs/shapes/student.safetensors --precision q8 --out small.safetensors
  distill features --data mnist/ --shape 1x28x28 --out digits.safetensors
  distill eval runs/mnist/student.safetensors --data mnist/ --features digits.safetensors
  distill claims runs/mnist --features digits.safetensors --out claims
  distill import unet.pt --preset cifar10 --out teacher.safetensors
  distill run --preset cifar10 --data cifar10.tgz --set teacher.model=teacher.safetensors";

#[derive(Subcommand)]
enum Command {
    /// Train a teacher on images and distil it into a one-step student
    Run(run::Arguments),
    /// Draw images from a model
    Sample(sample::Arguments),
    /// Turn a PyTorch checkpoint of torchcfm's U-Net into a model file
    Import(import::Arguments),
    /// Say what a model file holds
    Inspect(inspect::Arguments),
    /// Write a model file with weights in f32, f16 or bytes
    Export(export::Arguments),
    /// Train a classifier on images, for `eval` to see them with
    Features(features::Arguments),
    /// Measure how good a model's images are
    Eval(eval::Arguments),
    /// Compare the curriculum with fixed steps at equal cost
    Claims(claims::Arguments),
    /// Measure KDC and teacher steps against t for a run, as the report of a finished one shows them; writes RUN/kdc.json
    Kdc(kdc::Arguments),
}

/// Keeps memory that has been freed: the next step wants it again, and the kernel would clear it first.
fn keep_memory() {
    /// `mi_option_purge_delay`, which the bindings do not name.
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    // SAFETY: sets a number that the allocator reads; any value is valid, and -1 means never.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) };
}

fn main() -> ExitCode {
    keep_memory();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        // Help and the version, which were asked for.
        Err(asked) if !asked.use_stderr() => asked.exit(),
        Err(wrong) => {
            let text = wrong.to_string();
            // What is wrong, without the usage that follows it.
            let wrong = text.split_once("\n\n").map_or(text.as_str(), |(wrong, _)| wrong);
            eprintln!("{}", one_line(wrong));
            return ExitCode::FAILURE;
        }
    };
    let done = match arguments.command.unwrap_or_else(|| Command::Run(run::Arguments::default())) {
        Command::Run(arguments) => run::run(arguments),
        Command::Sample(arguments) => sample::run(arguments),
        Command::Import(arguments) => import::run(arguments),
        Command::Inspect(arguments) => inspect::run(arguments),
        Command::Export(arguments) => export::run(arguments),
        Command::Features(arguments) => features::run(arguments),
        Command::Eval(arguments) => eval::run(arguments),
        Command::Claims(arguments) => claims::run(arguments),
        Command::Kdc(arguments) => kdc::run(arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {}", one_line(&failure.to_string()));
            ExitCode::FAILURE
        }
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
