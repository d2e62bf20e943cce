//! `distill run`: trains a teacher on images, or takes one, and distils it into a one-step student.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::Device;
use ccm::config::{Config, PRESETS};
use ccm::train::folder::{files, read_config};
use ccm::train::given::given_network;
use ccm::train::group::{Alone, Group};
use ccm::train::memory::{Memory, reference_network};
use ccm::train::replicas;
use ccm::train::run::{Run, check, check_precision, suit};

use crate::data::{is_encoded, load_data};
use crate::device::Opened;
use crate::devices::Devices;
use crate::progress::{Progress, Silent};
use crate::sample::backend;
use crate::{AlreadyReported, Failure, one_line};

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
    /// Device: auto, vulkan, metal, dx12 or cpu; `auto` is a hardware GPU if there is one, otherwise the CPU. Several share
    /// each batch: vulkan:0,1 or vulkan:all, or `all` for all hardware GPUs
    #[arg(long, default_value = "auto")]
    device: Devices,
    /// Change a setting, such as distill.threshold=60; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print the resolved configuration and exit
    #[arg(long)]
    show_config: bool,
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let group = ranks();
    let folder = match group.size() {
        1 => folder(&arguments),
        // The others would not find the name free that the first rank has taken.
        _ => PathBuf::from(group.first(&folder(&arguments).to_string_lossy())),
    };
    if arguments.show_config {
        if group.is_first() {
            let config = configuration(&arguments, &folder)?;
            print!("{}", config.to_toml()?);
            show_memory(&config, arguments.preset.as_deref())?;
        }
        return Ok(());
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let cores = group.first(&cores.to_string()).parse().unwrap_or(cores);
    let prepared = prepare(&arguments, folder, cores, &group);
    let error = prepared.as_ref().err().map_or_else(String::new, ToString::to_string);
    let errors = group.all_gather(error.as_bytes());
    if let Some(rank) = errors.iter().position(|error| !error.is_empty()) {
        // Only the first rank prints the error, once for all ranks.
        return match (group.is_first(), prepared) {
            (true, Err(own)) => Err(own),
            (true, Ok(_)) => Err(format!("rank {rank}: {}", String::from_utf8_lossy(&errors[rank])).into()),
            (false, _) => Err(AlreadyReported.into()),
        };
    }
    let (run, devices) = prepared?;
    let done = match (group.is_first(), devices.len()) {
        (true, 1) => run.go(arguments.resume, &mut Progress::new()?),
        (true, _) => replicas::go(&run, devices, arguments.resume, &mut Progress::new()?),
        (false, _) => run.go(arguments.resume, &mut Silent(Progress::new()?)),
    };
    if let Err(error) = done {
        eprintln!("error: {}", one_line(&error.to_string()));
        // The other ranks may wait for this one.
        group.abort();
        return Err(AlreadyReported.into());
    }
    Ok(())
}

/// The ranks of the run: the processes that MPI has started together, if it has.
fn ranks() -> Arc<dyn Group> {
    #[cfg(feature = "mpi")]
    if let Some(processes) = ccm::train::mpi::Mpi::start() {
        return Arc::new(processes);
    }
    Arc::new(Alone)
}

/// Checks everything and reads all files, as one rank: it exchanges nothing with others, since it may fail. `cores` are those of
/// the first rank. Returns the run and its devices.
fn prepare(
    arguments: &Arguments,
    folder: PathBuf,
    cores: usize,
    group: &Arc<dyn Group>,
) -> Result<(Run, Vec<Device>), Failure> {
    let (leads, ranks) = (group.is_first(), group.size());
    let mut config = configuration(arguments, &folder)?;
    if leads && arguments.resume && arguments.out.is_none() {
        println!("--resume: {}, the newest run of its preset", folder.display());
    }
    let mut given = check(&config, &folder, arguments.resume)?;
    if leads {
        given.notes.iter().for_each(|note| println!("{note}"));
    }
    given.pipeline = given.pipeline.map(|pipeline| pipeline.with_backend(backend(arguments.device.choice)));
    let opened = match ranks {
        1 => arguments.device.open()?,
        _ => arguments.device.open_for(group.local_rank())?,
    };
    opened.iter().try_for_each(|opened| check_precision(&config, &opened.device))?;
    if ranks > 1
        && given.pipeline.is_some()
        && !config.data.source.as_deref().is_some_and(|source| is_encoded(Path::new(source)))
    {
        let expected = "expected images encoded before, by `distill encode`, as several processes read them";
        return Err(format!("data.source: {expected}").into());
    }
    let [data, held_out] = load_data(&config, &given, &folder, !leads)?;
    suit(&mut config, &given, &data)?;
    let threads = share(&mut config, &opened, cores, group, arguments.resume)?;
    if leads {
        let ranks = if ranks > 1 { format!("{ranks} processes with ") } else { String::new() };
        println!(
            "network: {:.2} M parameters; device: {ranks}{}; run: {}",
            given.spec(&config).parameters() as f64 / 1e6,
            names(&opened, threads),
            folder.display()
        );
    }
    let command =
        std::env::args().skip(1).fold("distill".to_owned(), |line, argument| line + " " + &argument);
    let devices: Vec<Device> = opened.into_iter().map(|opened| opened.device).collect();
    let run = Run {
        config,
        folder,
        device: devices[0].clone(),
        threads,
        group: Arc::clone(group),
        given: Arc::new(given),
        data: Arc::new(data),
        held_out: Arc::new(held_out),
        command,
    };
    Ok((run, devices))
}

/// The devices, for a message.
fn names(opened: &[Opened], threads: usize) -> String {
    let name = |opened: &Opened| match opened.threads {
        Some(_) => format!("CPU, {threads} thread{}", if threads == 1 { "" } else { "s" }),
        None => opened.name.clone(),
    };
    opened.iter().map(name).collect::<Vec<_>>().join(" + ")
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
    let threads = config.run.threads.unwrap_or(1);
    let most = config.distill.batch.div_ceil(threads);
    let images = config.distill.micro_batch.unwrap_or(most).min(most);
    let memory = Memory::of_distillation(&network, &config.distill, images, &config.run)?;
    let [_, height, width] = network.image();
    let [height, width] = config.data.image_size.unwrap_or([height, width]);
    let plural = |count: usize, of: &str| format!("{count} {of}{}", if count == 1 { "" } else { "s" });
    println!(
        "\n# Memory of a step of distillation, computed from the graph of {of}: {} of {height}x{width} in a backward pass, {}:",
        plural(images, "image"),
        plural(threads, "thread")
    );
    memory.to_string().lines().for_each(|line| println!("# {line}"));
    if config.data.captions && config.distill.distance.trunk().is_some() {
        println!("# Not counted: the decoder, after which LPIPS compares pictures, and LPIPS at their size.");
    }
    println!(
        "# On a CPU, a process takes about {:.2} GB and the images in memory.",
        memory.of_process() as f64 / 1e9
    );
    Ok(())
}

/// Number of threads of each rank. The threads of all ranks are the configuration's, otherwise those that the machines have. A
/// new run records them in its configuration, and a resumed run uses the recorded number on any machines.
fn share(
    config: &mut Config,
    opened: &[Opened],
    cores: usize,
    group: &Arc<dyn Group>,
    resume: bool,
) -> Result<usize, Failure> {
    if opened[0].threads.is_none() {
        return Ok(1);
    }
    let ranks = opened.len() * group.size();
    let own = (cores / opened.len()).max(1);
    let all = config.run.threads.unwrap_or(own * ranks);
    if !all.is_multiple_of(ranks) {
        return Err(format!("run.threads: expected a multiple of the {ranks} ranks, found {all}").into());
    }
    if !resume {
        config.run.threads = Some(all);
    } else if all != own * ranks && group.is_first() {
        println!(
            "--resume: {all} threads share a batch, as when the run began, so that its sums stay the same"
        );
    }
    Ok(all / ranks)
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
