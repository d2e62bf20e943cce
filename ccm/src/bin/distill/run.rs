//! `distill run`: trains a teacher on images, or takes one, and distils it into a one-step student.

use std::path::{Path, PathBuf};

use ccm::config::{Config, PRESETS};
use ccm::train::folder::{files, read_config};
use ccm::train::given::given_network;
use ccm::train::memory::{Memory, reference_network};
use ccm::train::run::{Outcome, Run, check, suit};

use crate::Failure;
use crate::data::load_data;
use crate::device::{self, Choice, Opened};
use crate::progress::Progress;
use crate::sample::backend;

#[derive(clap::Args, Default)]
pub(crate) struct Arguments {
    /// Preset configuration: shapes, mnist, cifar10-small, avatars, emoji, cifar10, imagenet64, sd15, sd3 or sdxl [default:
    /// shapes; with --resume, the configuration of the run]
    #[arg(long)]
    preset: Option<String>,
    /// Images: MNIST's IDX files, CIFAR-10's binary batches, or a folder, .zip, .tar or .tgz of images. The class of an
    /// image is the first folder in which the paths differ. For emoji, sd15, sd3 and sdxl, captioned images (see `distill encode`)
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// Model file of a teacher to distil instead of training one, or a text-to-image pipeline: a folder in diffusers' layout,
    /// or a single file with teacher.config. The run uses its network and path
    #[arg(long, value_name = "MODEL")]
    teacher: Option<PathBuf>,
    /// Model file of a student to fine-tune (finish.kimg) instead of distilling one; with --teacher
    #[arg(long, value_name = "MODEL")]
    student: Option<PathBuf>,
    /// Folder of the run [default: runs/PRESET, with a number appended if it exists]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Continue a stopped run: the one in --out, otherwise the newest run of the preset
    #[arg(long)]
    resume: bool,
    /// Device; `auto` is a hardware GPU if there is one, otherwise the CPU
    #[arg(long, default_value = "auto")]
    device: Choice,
    /// Change a setting, such as distill.threshold=60; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print the resolved configuration and exit
    #[arg(long)]
    show_config: bool,
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let folder = folder(&arguments);
    let mut config = configuration(&arguments, &folder)?;
    if arguments.show_config {
        print!("{}", config.to_toml()?);
        return show_memory(&config, arguments.preset.as_deref());
    }
    if arguments.resume && arguments.out.is_none() {
        println!("--resume: {}, the newest run of its preset", folder.display());
    }
    let mut given = check(&config, &folder, arguments.resume)?;
    given.notes.iter().for_each(|note| println!("{note}"));
    given.pipeline = given.pipeline.map(|pipeline| pipeline.with_backend(backend(arguments.device)));
    let Opened { device, name, threads } = device::open(arguments.device)?;
    let [data, held_out] = load_data(&config, &given, &folder)?;
    suit(&mut config, &given, &data)?;
    let on_cpu = threads.is_some();
    let threads = share(&mut config, threads, arguments.resume);
    let name = if on_cpu { format!("CPU, {threads} threads") } else { name };
    println!(
        "network: {:.2} M parameters; device: {name}; run: {}",
        given.spec(&config).parameters() as f64 / 1e6,
        folder.display()
    );
    let command =
        std::env::args().skip(1).fold("distill".to_owned(), |line, argument| line + " " + &argument);
    let run = Run { config, folder, device, threads, given, data, held_out, command };
    match run.go(arguments.resume, &mut Progress::new()?)? {
        Outcome::Finished | Outcome::Interrupted => Ok(()),
    }
}

/// Prints what a training step of distillation needs of a device's memory, as comments of the configuration.
fn show_memory(config: &Config, preset: Option<&str>) -> Result<(), Failure> {
    let (network, of) =
        match (given_network(config)?, preset.and_then(|preset| reference_network(preset, config))) {
            (Some(network), _) => (network, "teacher.model"),
            (None, Some(network)) => (network, "the published model"),
            (None, None) if config.data.captions => return Ok(()),
            (None, None) => (config.spec(), "the network"),
        };
    let images = config.distill.micro_batch.unwrap_or(config.distill.batch);
    let checkpointing = config.run.gradient_checkpointing;
    let memory = Memory::of_distillation(&network, &config.distill, images, checkpointing)?;
    let [_, height, width] = network.image();
    let [height, width] = config.data.image_size.unwrap_or([height, width]);
    println!(
        "\n# Memory of a step of distillation with {images} images of {height}x{width} in a backward pass, for {of}, computed \
         from its graph:"
    );
    memory.to_string().lines().for_each(|line| println!("# {line}"));
    Ok(())
}

/// Number of threads over which a batch is split: the configuration's, otherwise the machine's, `own`. A new run
/// records it in its configuration, and a resumed run uses the recorded number on any machine.
fn share(config: &mut Config, own: Option<usize>, resume: bool) -> usize {
    let Some(own) = own else { return 1 };
    let threads = config.run.threads.unwrap_or(own);
    if !resume {
        config.run.threads = Some(threads);
    } else if threads != own {
        println!(
            "--resume: {threads} threads share a batch, as when the run began, so that its sums stay the same"
        );
    }
    threads
}

/// The folder of the run: `--out`, otherwise the newest folder of the preset to resume, or the next one for a new run.
fn folder(arguments: &Arguments) -> PathBuf {
    if let Some(out) = &arguments.out {
        return out.clone();
    }
    let preset = arguments.preset.as_deref().unwrap_or(PRESETS[0]);
    let of_number = |number| match number {
        1 => Path::new(RUNS).join(preset),
        _ => Path::new(RUNS).join(format!("{preset}-{number}")),
    };
    let numbers = numbers(preset);
    if arguments.resume {
        let is_run = |&number: &u64| of_number(number).join(files::CONFIG).exists();
        of_number(numbers.into_iter().filter(is_run).max().unwrap_or(1))
    } else {
        of_number(1 + numbers.into_iter().max().unwrap_or(0))
    }
}

/// Folder of runs without `--out`: `runs/PRESET`, `runs/PRESET-2`, and so on.
const RUNS: &str = "runs";

/// The numbers of the preset's existing folders.
fn numbers(preset: &str) -> Vec<u64> {
    let number = |name: &str| match name.strip_prefix(preset)? {
        "" => Some(1),
        rest => rest.strip_prefix('-')?.parse().ok(),
    };
    let entries = std::fs::read_dir(RUNS).into_iter().flatten().flatten();
    entries.filter_map(|entry| number(entry.file_name().to_str()?)).collect()
}

fn configuration(arguments: &Arguments, folder: &Path) -> Result<Config, Failure> {
    let mut config = match (&arguments.preset, arguments.resume) {
        (None, true) => before(folder)?,
        (preset, _) => {
            let preset = preset.as_deref().unwrap_or(PRESETS[0]);
            Config::preset(preset).map_err(|error| format!("--preset: {error}"))?
        }
    };
    let paths = [
        ("--data", &arguments.data, &mut config.data.source),
        ("--teacher", &arguments.teacher, &mut config.teacher.model),
        ("--student", &arguments.student, &mut config.distill.model),
    ];
    for (flag, path, setting) in paths {
        if let Some(path) = path {
            let name = path.to_str();
            let name = name.ok_or_else(|| format!("{flag}: {}: expected a name in UTF-8", path.display()))?;
            *setting = Some(name.to_owned());
        }
    }
    let mut config = config.with_overrides(&arguments.set).map_err(|error| format!("--set: {error}"))?;
    if arguments.resume && arguments.preset.is_some() {
        // Settings that the run took from the data and the machine when it started.
        let before = before(folder)?;
        config.network.num_classes = config.network.num_classes.or(before.network.num_classes);
        config.run.threads = config.run.threads.or(before.run.threads);
    }
    config.validate()?;
    Ok(config)
}

/// The configuration of the run to resume.
fn before(folder: &Path) -> Result<Config, Failure> {
    Ok(read_config(folder).map_err(|error| format!("--resume: {error}"))?)
}
