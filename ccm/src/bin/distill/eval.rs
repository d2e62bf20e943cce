//! `distill eval`: measures the image quality of a model.

use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::tensor::Device;
use ccm::data::{ImageShape, Split};
use ccm::disk::{self, read_model};
use ccm::metrics::evaluation::{Generated, Kernel, Neighbours, Reference};
use ccm::metrics::kernel::Spread;
use ccm::metrics::statistics::Statistics;
use ccm::metrics::{Collection, Extractor, Figures, Gaussian};
use ccm::model::{Role, TimeGrid};
use ccm::sampler::schedule::Solver;
use serde::Serialize;

use crate::Failure;
use crate::data::load_split;
use crate::device::{self, Choice, Opened};
use crate::extractor::{LEAST_IMAGES, SHAPES, open_extractor, trained_extractor};
use crate::generator::{Autoguidance, Generator};
use crate::progress::counter;
use crate::sample::{backend, grid_of_times};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Model file
    model: PathBuf,
    /// Real images, as for `run`, or `shapes`
    #[arg(long, value_name = "PATH", required_unless_present = "reference")]
    data: Option<String>,
    /// Split of the real images
    #[arg(long, value_enum, default_value_t = Part::Train)]
    split: Part,
    /// Feature extractor: a classifier of `distill features`, or the FID's Inception-v3 (.pth or .safetensors). By
    /// default, a classifier is trained on the data first
    #[arg(long, value_name = "FILE", required_unless_present = "data")]
    features: Option<PathBuf>,
    /// Read mean and covariance of the real images' features from a NumPy .npz with arrays `mu` and `sigma`
    #[arg(long, value_name = "FILE.npz", conflicts_with = "save_reference")]
    reference: Option<PathBuf>,
    /// Write mean and covariance of the real images' features, for --reference
    #[arg(long, value_name = "FILE.npz")]
    save_reference: Option<PathBuf>,
    /// Number of images to generate, cycling through the classes
    #[arg(long, default_value_t = 10_000)]
    count: usize,
    /// Network evaluations per image [default: 1 for a student, 50 for a teacher]
    #[arg(long)]
    steps: Option<usize>,
    /// Times of the evaluations, as for `sample` [default: the model's own]
    #[arg(long, value_parser = grid_of_times, value_name = "GRID")]
    times: Option<TimeGrid>,
    #[command(flatten)]
    autoguidance: Autoguidance,
    /// Seed of the first image; each image has the next seed
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Write the results as JSON
    #[arg(long, value_name = "FILE.json")]
    out: Option<PathBuf>,
    /// Device; `auto` is a hardware GPU if there is one, otherwise the CPU
    #[arg(long, default_value = "auto")]
    device: Choice,
}

/// A split of the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Part {
    /// The training images
    Train,
    /// The held-out images
    HeldOut,
}

impl From<Part> for Split {
    fn from(part: Part) -> Self {
        match part {
            Part::Train => Self::Train,
            Part::HeldOut => Self::HeldOut,
        }
    }
}

/// The JSON of `--out`.
#[derive(Serialize)]
struct Report<'a> {
    model: String,
    role: Role,
    steps: usize,
    /// Scale of autoguidance and the time at which it ends, if there is any.
    #[serde(skip_serializing_if = "Option::is_none")]
    autoguidance: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    autoguidance_until: Option<f32>,
    seed: u64,
    reference: &'a str,
    /// Split of the reference images; `None` for a statistics file.
    split: Option<Part>,
    #[serde(flatten)]
    figures: &'a Figures,
}

impl Arguments {
    /// The value of `--data`.
    fn data(&self) -> Result<&str, Failure> {
        Ok(self.data.as_deref().ok_or("--data: expected real images, found none")?)
    }
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let model = read_model(&arguments.model)?;
    let spec = &model.spec;
    let shape = ImageShape::of(spec);
    let role = model.card.role;
    let steps = arguments.steps.unwrap_or(Solver::of(&model.card).usual_steps());
    for (flag, value, least, most) in
        [("--steps", steps, 1, 10_000), ("--count", arguments.count, LEAST_IMAGES, 1_000_000)]
    {
        if !(least..=most).contains(&value) {
            return Err(format!("{flag}: expected {least} to {most}, found {value}").into());
        }
    }
    let guidance = arguments.autoguidance.read(&model)?;
    for (flag, file) in [("--out", &arguments.out), ("--save-reference", &arguments.save_reference)] {
        if let Some(file) = file {
            disk::check_file(file).map_err(|error| format!("{flag}: {error}"))?;
        }
    }
    if let (Some(_), Some(source), Some(_)) = (&arguments.reference, &arguments.data, &arguments.features) {
        return Err(format!("--data: {source}: not used with both --features and --reference").into());
    }
    let statistics = arguments.reference.as_deref().map(read_statistics).transpose()?;
    let Opened { device, name, .. } = device::open(arguments.device)?;
    let extractor = match &arguments.features {
        Some(path) => open_extractor(path, shape, &device)?,
        None => trained_extractor(arguments.data()?, shape, &device)?,
    };
    let reference = match statistics {
        Some(statistics) => Reference::Statistics(of_extractor(statistics, &*extractor)?),
        None => Reference::Images(Box::new(features_of_data(&arguments, &*extractor, shape, &device)?)),
    };

    let at_fault = |error: &dyn std::fmt::Display| format!("{}: {error}", arguments.model.display());
    let (spec, classes) = (model.spec.clone(), model.card.classes.clone());
    let backend = backend(arguments.device);
    let generator = Generator::new(model, guidance, arguments.times, steps, (backend, &device));
    let mut generator = generator.map_err(|error| at_fault(&error))?;
    let begin = Instant::now();
    let bar = counter("images");
    bar.set_length(arguments.count as u64);
    let images = Generated { spec: &spec, classes: &classes, seed: arguments.seed, count: arguments.count };
    let generated = Collection::of_samples(
        &*extractor,
        images,
        &device,
        |request| generator.images(request),
        |done| bar.set_position(done as u64),
    )
    .map_err(|error| at_fault(&error))?;
    bar.finish_and_clear();
    let generated_in = begin.elapsed().as_secs_f64();
    let begin = Instant::now();
    let figures = Figures::of(&*extractor, &generated, &reference).map_err(|error| at_fault(&error))?;
    let source = match &arguments.reference {
        Some(file) => file.display().to_string(),
        None => arguments.data()?.to_owned(),
    };
    println!(
        "{}: {role}{}, {} images of {steps} evaluations, generated in {generated_in:.1} s on {}, features on {name}; compared in {:.1} s",
        arguments.model.display(),
        arguments.autoguidance,
        figures.images,
        generator.adapter(&name),
        begin.elapsed().as_secs_f64()
    );
    describe(&figures, &source, arguments.split.into(), extractor.is_of_fid());
    if let Some(out) = &arguments.out {
        let model = arguments.model.display().to_string();
        let report = Report {
            model,
            role,
            steps,
            autoguidance: arguments.autoguidance.scale,
            autoguidance_until: arguments.autoguidance.until(),
            seed: arguments.seed,
            reference: &source,
            split: arguments.reference.is_none().then_some(arguments.split),
            figures: &figures,
        };
        disk::write(out, serde_json::to_string_pretty(&report)?.as_bytes())?;
        println!("{}", out.display());
    }
    Ok(())
}

fn read_statistics(path: &Path) -> Result<Statistics, Failure> {
    let read = disk::read(path).map_err(|error| format!("--reference: {error}"))?;
    Ok(Statistics::from_bytes(&read).map_err(|error| format!("--reference: {}: {error}", path.display()))?)
}

/// Mean and covariance, if the statistics are of this extractor's features.
fn of_extractor(statistics: Statistics, extractor: &dyn Extractor) -> Result<Gaussian, Failure> {
    let Statistics { gaussian, features } = statistics;
    let (expected, width) = (extractor.name(), gaussian.mean.len());
    let fault = match features {
        Some(found) if found != expected => {
            format!("expected statistics of the {expected}, found those of the {found}")
        }
        _ if width != extractor.width() => format!("expected {} features, found {width}", extractor.width()),
        // Published statistics, such as pytorch-fid's, do not name their features. They are of the FID's network.
        None if !extractor.is_of_fid() => {
            format!("expected statistics of the {expected}, found a file that does not name its features")
        }
        _ => return Ok(gaussian),
    };
    Err(format!("--reference: {fault}").into())
}

/// Features of the real images, which `--save-reference` writes to a file.
fn features_of_data(
    arguments: &Arguments,
    extractor: &dyn Extractor,
    shape: ImageShape,
    device: &Device,
) -> Result<Collection, Failure> {
    let source = arguments.data()?;
    let data = load_split(source, shape, arguments.split.into(), SHAPES, 0)?;
    if data.len() < LEAST_IMAGES {
        let (split, found) = (Split::from(arguments.split), data.len());
        return Err(format!(
            "--data: {source}: expected at least {LEAST_IMAGES} {split} images, found {found}"
        )
        .into());
    }
    let bar = counter("reference");
    bar.set_length(data.len() as u64);
    let collection = Collection::of_data(extractor, &data, device, |done| bar.set_position(done as u64))
        .map_err(|error| format!("--data: {source}: {error}"))?;
    bar.finish_and_clear();
    if let Some(path) = &arguments.save_reference {
        let statistics = Statistics { gaussian: collection.gaussian()?, features: Some(extractor.name()) };
        disk::write(path, &statistics.to_bytes()?)?;
        println!("{}", path.display());
    }
    Ok(collection)
}

fn describe(figures: &Figures, source: &str, split: Split, fid: bool) {
    println!("features: {}", figures.features);
    match figures.reference_images {
        0 => println!("reference: statistics in {source}"),
        images => println!("reference: {images} {split} images of {source}"),
    }
    let [frechet, kernel] = if fid { ["FID", "KID"] } else { ["Fréchet distance", "kernel distance"] };
    println!("  {frechet:<21} {:.3}", figures.frechet);
    match &figures.kernel {
        None => {}
        Some(Kernel { distance, subsets: 1, images }) => {
            println!("  {kernel:<21} {:.5}   {images} images of each", distance.mean);
        }
        Some(Kernel { distance: Spread { mean, deviation }, subsets, images }) => {
            println!("  {kernel:<21} {mean:.5} ± {deviation:.5}   {subsets} subsets of {images}");
        }
    }
    if let Some(Neighbours { manifold, images }) = &figures.manifold {
        println!(
            "  precision, recall     {:.3}, {:.3}   {images} images of each",
            manifold.precision, manifold.recall
        );
        println!("  density, coverage     {:.3}, {:.3}", manifold.density, manifold.coverage);
    }
    if let Some(score) = &figures.score {
        println!(
            "  inception score       {:.2} ± {:.2}   over the classes of the extractor",
            score.mean, score.deviation
        );
    }
    if let Some(accuracy) = figures.accuracy {
        println!("  class accuracy        {:.2} %", 100.0 * accuracy);
    }
}
