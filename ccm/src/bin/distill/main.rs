//! `distill`: the command line of the library. Each subcommand has its own file.

mod claims;
mod data;
mod device;
mod devices;
mod encode;
mod eval;
mod export;
mod extractor;
mod features;
mod generator;
mod import;
mod inspect;
mod kdc;
mod progress;
mod run;
mod sample;
mod shard;
mod text_to_image;
mod watch;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Training makes large, short-lived allocations. The system's allocator returns each to the kernel, which is slow.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// An error whose message is one line and names the file or flag at fault.
type Failure = Box<dyn std::error::Error>;

/// A failure that needs no message: this or another process has printed it.
#[derive(Debug, thiserror::Error)]
#[error("another process has printed the error")]
struct AlreadyReported;

/// Train one-step image generators with the Curriculum Consistency Model.
///
/// Without a subcommand, runs the `shapes` preset, which needs no data and no GPU. Writes models and an HTML report to
/// `runs/shapes`.
#[derive(Parser)]
#[command(version, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

const EXAMPLES: &str = "\
Examples:
  distill                                             generated shapes, a few minutes on a CPU
  distill run --preset mnist --data mnist/            handwritten digits from a folder of IDX files
  distill run --preset cifar10 --data photos.zip      your own images; class = name of the folder
  distill run --preset mnist --data mnist/ --resume   continue after Ctrl-C, a crash or a power cut
  distill sample runs/shapes/student.safetensors --count 64 --out grid.png
  distill export runs/shapes/student.safetensors --precision q8 --out small.safetensors
  distill features --data mnist/ --shape 1x28x28 --out digits.safetensors
  distill eval runs/mnist/student.safetensors --data mnist/ --features digits.safetensors
  distill claims runs/mnist --features digits.safetensors --out claims
  distill import unet.pt --preset cifar10 --out teacher.safetensors
  distill import stable-diffusion-v1-5 --precision q8 --out sd.safetensors
  distill run --preset cifar10 --data cifar10.tgz --set teacher.model=teacher.safetensors";

#[derive(Subcommand)]
enum Command {
    /// Train a teacher on images and distil it into a one-step student
    Run(run::Arguments),
    /// Generate images with a model
    Sample(sample::Arguments),
    /// Convert a checkpoint or a diffusers folder to a model file
    Import(import::Arguments),
    /// Encode captioned images with a text-to-image pipeline, for `run --data`
    Encode(encode::Arguments),
    /// Write images as .tar shards, for training from disk
    Shard(shard::Arguments),
    /// Print network, origin and size of a model file
    Inspect(inspect::Arguments),
    /// Convert a model file to f32, f16, q8 or q4 weights, or to a diffusers folder
    Export(export::Arguments),
    /// Train a classifier as the feature extractor of `eval`
    Features(features::Arguments),
    /// Measure the image quality of a model
    Eval(eval::Arguments),
    /// Compare the curriculum with fixed steps at equal cost
    Claims(claims::Arguments),
    /// Show where a run is: stages, curves, speed, time left
    Watch(watch::Arguments),
    /// Measure KDC and teacher steps against t for a run, as in its report; writes RUN/kdc.json
    Kdc(kdc::Arguments),
}

/// Keeps freed memory in the process for the next step. Memory from the kernel would have to be zeroed first.
fn keep_memory() {
    /// The value of `mi_option_purge_delay`, which the bindings do not define.
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    // SAFETY: sets an option of the allocator. Any value is valid; -1 disables purging.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) };
}

fn main() -> ExitCode {
    keep_memory();
    // The program ends without a message when the reader of its output does, as in `distill inspect FILE | head`.
    sigpipe::reset();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        // `--help` and `--version` are not errors.
        Err(asked) if !asked.use_stderr() => asked.exit(),
        Err(wrong) => {
            let text = wrong.to_string();
            // Drop the usage text after the message.
            let wrong = text.split_once("\n\n").map_or(text.as_str(), |(wrong, _)| wrong);
            eprintln!("{}", one_line(wrong));
            return ExitCode::FAILURE;
        }
    };
    let done = match arguments.command.unwrap_or_else(|| Command::Run(run::Arguments::default())) {
        Command::Run(arguments) => run::run(arguments),
        Command::Sample(arguments) if arguments.has_text() => text_to_image::run(&arguments),
        Command::Sample(arguments) => sample::run(arguments),
        Command::Import(arguments) => import::run(arguments),
        Command::Encode(arguments) => encode::run(&arguments),
        Command::Shard(arguments) => shard::run(&arguments),
        Command::Inspect(arguments) => inspect::run(arguments),
        Command::Export(arguments) => export::run(arguments),
        Command::Features(arguments) => features::run(arguments),
        Command::Eval(arguments) => eval::run(arguments),
        Command::Claims(arguments) => claims::run(arguments),
        Command::Watch(arguments) => watch::run(&arguments),
        Command::Kdc(arguments) => kdc::run(arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) if failure.is::<AlreadyReported>() => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("error: {}", one_line(&failure.to_string()));
            ExitCode::FAILURE
        }
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
