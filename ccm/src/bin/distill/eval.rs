//! `distill eval`: how good a model's images are.

use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::tensor::Device;
use ccm::data::{ImageShape, Split};
use ccm::metrics::classifier::Training;
use ccm::metrics::evaluation::Reference;
use ccm::metrics::file::open;
use ccm::metrics::statistics::Statistics;
use ccm::metrics::{Collection, Extractor, Figures};
use ccm::sampler::Sampler;
use ccm::sampler::schedule::Solver;
use ccm::train::disk::{self, read_model};
use serde::Serialize;

use crate::Failure;
use crate::device::{self, Choice, Opened};
use crate::features::train;
use crate::progress::counter;
use crate::run::load_split;
use crate::sample::backend;

/// Shapes that are the reference of a model of shapes.
const SHAPES: usize = 20_000;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The model file
    model: PathBuf,
    /// Real images: as for `run`, or `shapes`
    #[arg(long, value_name = "PATH", required_unless_present = "reference")]
    data: Option<String>,
    /// Which of the real images are the reference
    #[arg(long, value_enum, default_value_t = Part::Train)]
    split: Part,
    /// What to see with: a classifier of `distill features`, or the Inception-v3 of the FID (.pth or .safetensors).
    /// Without it, a classifier is trained on the data first
    #[arg(long, value_name = "FILE", required_unless_present = "data")]
    features: Option<PathBuf>,
    /// Take mean and covariance of the real images' features from NumPy's .npz, tensors `mu` and `sigma`
    #[arg(long, value_name = "FILE.npz", conflicts_with = "save_reference")]
    reference: Option<PathBuf>,
    /// Write those of the real images, to be used with --reference
    #[arg(long, value_name = "FILE.npz")]
    save_reference: Option<PathBuf>,
    /// Images to make, every class in turn
    #[arg(long, default_value_t = 10_000)]
    count: usize,
    /// Network evaluations an image; by default 1 for a student and 50 for a teacher
    #[arg(long)]
    steps: Option<usize>,
    /// Seed of the first image; the next image has the next seed
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Write the figures as JSON
    #[arg(long, value_name = "FILE.json")]
    out: Option<PathBuf>,
    #[arg(long, default_value = "auto")]
    device: Choice,
}

/// A part of the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// The images to learn from
    Train,
    /// The images that training never sees
    HeldOut,
}

/// What is written.
#[derive(Serialize)]
struct Report<'a> {
    model: String,
    role: &'a str,
    steps: usize,
    seed: u64,
    reference: &'a str,
    #[serde(flatten)]
    figures: &'a Figures,
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let model = read_model(&arguments.model)?;
    let spec = &model.spec;
    let shape = ImageShape { channels: spec.in_channels, height: spec.height, width: spec.width };
    let (role, steps) =
        (model.card.role.clone(), arguments.steps.unwrap_or(Solver::of(&model.card).usual_steps()));
    for (flag, value, least, most) in
        [("--steps", steps, 1, 10_000), ("--count", arguments.count, 10, 1_000_000)]
    {
        if !(least..=most).contains(&value) {
            return Err(format!("{flag}: expected {least} to {most}, found {value}").into());
        }
    }
    let Opened { device, name, .. } = device::open(arguments.device)?;
    let extractor = extractor(&arguments, shape, &device)?;
    let reference = reference(&arguments, &*extractor, shape, &device)?;

    let at_fault = |error: &dyn std::fmt::Display| format!("{}: {error}", arguments.model.display());
    let sampler = pollster::block_on(Sampler::new(model, backend(arguments.device)));
    let mut sampler = sampler.map_err(|error| at_fault(&error))?;
    let begin = Instant::now();
    let bar = counter("images");
    bar.set_length(arguments.count as u64);
    let samples = Collection::of_samples(
        &*extractor,
        &mut sampler,
        (arguments.seed, arguments.count, steps),
        &device,
        |done| bar.set_position(done as u64),
    );
    let generated = pollster::block_on(samples).map_err(|error| at_fault(&error))?;
    bar.finish_and_clear();
    let made = begin.elapsed().as_secs_f64();
    let begin = Instant::now();
    let figures = Figures::of(&*extractor, &generated, &reference).map_err(|error| at_fault(&error))?;
    let source = match (&arguments.reference, &arguments.data) {
        (Some(file), _) => file.display().to_string(),
        (None, data) => data.clone().unwrap_or_default(),
    };
    println!(
        "{}: {role}, {} images of {steps} evaluations, made and seen in {made:.1} s on {} and {name}; compared in {:.1} s",
        arguments.model.display(),
        figures.images,
        sampler.info().adapter,
        begin.elapsed().as_secs_f64()
    );
    describe(&figures, &source, arguments.split);
    if let Some(out) = &arguments.out {
        let model = arguments.model.display().to_string();
        let report =
            Report { model, role: &role, steps, seed: arguments.seed, reference: &source, figures: &figures };
        disk::write(out, serde_json::to_string_pretty(&report)?.as_bytes())?;
        println!("{}", out.display());
    }
    Ok(())
}

/// What `--features` holds, or a classifier that is trained now.
fn extractor(
    arguments: &Arguments,
    shape: ImageShape,
    device: &Device,
) -> Result<Box<dyn Extractor>, Failure> {
    if let Some(path) = &arguments.features {
        let fault = |what: &dyn std::fmt::Display| format!("--features: {}: {what}", path.display());
        let extractor = open(path, device).map_err(|error| fault(&error))?;
        if let Some(found) = extractor.shape().filter(|found| *found != shape) {
            let sizes = |shape: ImageShape| format!("{}x{}x{}", shape.channels, shape.height, shape.width);
            let (expected, found) = (sizes(shape), sizes(found));
            return Err(
                fault(&format!("expected images of {expected}, as the model makes, found {found}")).into()
            );
        }
        return Ok(extractor);
    }
    let source = arguments.data.as_deref().unwrap_or_default();
    println!("features: none given; training a classifier on {source} (`distill features` keeps one)");
    let load = |split| load_split(source, shape, split, SHAPES, 0);
    let (data, held_out) = (load(Split::Train)?, load(Split::HeldOut)?);
    Ok(Box::new(train(&data, &held_out, source, &Training::default(), device)?))
}

/// The real images, or their statistics.
fn reference(
    arguments: &Arguments,
    extractor: &dyn Extractor,
    shape: ImageShape,
    device: &Device,
) -> Result<Reference, Failure> {
    if let Some(path) = &arguments.reference {
        let fault = |what: &dyn std::fmt::Display| format!("--reference: {}: {what}", path.display());
        let Statistics { gaussian, features } =
            Statistics::from_bytes(&disk::read(path)?).map_err(|error| fault(&error))?;
        if features.as_ref().is_some_and(|features| *features != extractor.name()) {
            let found = features.unwrap_or_default();
            return Err(fault(&format!(
                "expected statistics of the {}, found of the {found}",
                extractor.name()
            ))
            .into());
        }
        if gaussian.mean.len() != extractor.width() {
            let (expected, found) = (extractor.width(), gaussian.mean.len());
            return Err(fault(&format!("expected {expected} features, found {found}")).into());
        }
        return Ok(Reference::Statistics(gaussian));
    }
    let split = if arguments.split == Part::Train { Split::Train } else { Split::HeldOut };
    let data = load_split(arguments.data.as_deref().unwrap_or_default(), shape, split, SHAPES, 0)?;
    let bar = counter("reference");
    bar.set_length(data.len() as u64);
    let collection = Collection::of_data(extractor, &data, device, |done| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    if let Some(path) = &arguments.save_reference {
        let statistics = Statistics { gaussian: collection.gaussian()?, features: Some(extractor.name()) };
        disk::write(path, &statistics.to_bytes()?)?;
        println!("{}", Path::display(path));
    }
    Ok(Reference::Images(Box::new(collection)))
}

fn describe(figures: &Figures, source: &str, split: Part) {
    println!("features: {}", figures.features);
    match figures.reference_images {
        0 => println!("reference: statistics in {source}"),
        images => {
            let split = if split == Part::Train { Split::Train } else { Split::HeldOut };
            println!("reference: {images} {split} images of {source}");
        }
    }
    println!("  Fréchet distance      {:.3}", figures.frechet);
    if let Some((kernel, size)) = &figures.kernel {
        println!("  kernel distance       {:.5} ± {:.5}   subsets of {size}", kernel.mean, kernel.deviation);
    }
    if let Some((manifold, images)) = &figures.manifold {
        println!(
            "  precision, recall     {:.3}, {:.3}   {images} images of each",
            manifold.precision, manifold.recall
        );
        println!("  density, coverage     {:.3}, {:.3}", manifold.density, manifold.coverage);
    }
    if let Some(score) = &figures.score {
        println!(
            "  inception score       {:.2} ± {:.2}   of the features' own classes",
            score.mean, score.deviation
        );
    }
    if let Some(accuracy) = figures.accuracy {
        println!("  class accuracy        {:.2} %", 100.0 * accuracy);
    }
}
