//! `distill sample`: generates images with a model.

use std::path::{Path, PathBuf};
use std::time::Instant;

use ccm::disk::{self, read_model};
use ccm::model::prediction::Spacing;
use ccm::model::{NetworkSpec, Role, TimeGrid};
use ccm::sampler::image::grid;
use ccm::sampler::schedule::{Request, Solver};
use ccm::sampler::{Api, Backend, Sampler};
use ccm::weights::{HostTensor, StoredTensor, TensorFile, serialize};
use sha2::{Digest, Sha256};

use crate::Failure;
use crate::device::Choice;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Model file
    model: PathBuf,
    /// Seed of the first image; each image has the next seed
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Seed from a text, such as a name, as in a web page: the first eight bytes of its SHA-256
    #[arg(long, value_name = "TEXT", conflicts_with = "seed")]
    seed_from: Option<String>,
    /// Number of images to generate
    #[arg(long, default_value_t = 1)]
    count: usize,
    /// Network evaluations per image, at most [default: 1 for a student, 50 for a teacher]
    #[arg(long)]
    steps: Option<usize>,
    /// Solver for a teacher: euler (DDIM for a diffusion model), heun, or dpm (DPM-Solver++ 2M)
    #[arg(long, value_parser = solver)]
    solver: Option<Solver>,
    /// Times of the evaluations: uniform, trailing, leading, linspace, rho[=7] or shifted[=3] [default: the model's own;
    /// `leading` keeps the model's offset]
    #[arg(long, value_parser = grid_of_times, value_name = "GRID")]
    times: Option<TimeGrid>,
    /// Class of the images, by number or name [default: cycle through the classes]
    #[arg(long)]
    label: Option<String>,
    /// Read the noise from tensor `x`, and labels from tensor `label`, of a safetensors file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["seed", "seed_from", "count", "label"])]
    noise: Option<PathBuf>,
    /// Output: an image grid (.png), or the tensors `images`, `label` (if the model has classes) and `seed` (unless the
    /// noise comes from a file) (.safetensors)
    #[arg(long, value_name = "FILE.png|FILE.safetensors")]
    out: PathBuf,
    /// Images per row of the grid [default: an approximately square grid]
    #[arg(long)]
    columns: Option<usize>,
    /// Device; `auto` is a hardware GPU if there is one, otherwise the CPU
    #[arg(long, default_value = "auto")]
    device: Choice,
}

fn solver(text: &str) -> Result<Solver, String> {
    match text {
        "euler" => Ok(Solver::Euler),
        "heun" => Ok(Solver::Heun),
        "dpm" => Ok(Solver::Dpm),
        other => Err(format!("expected euler, heun or dpm, found `{other}`")),
    }
}

fn grid_of_times(text: &str) -> Result<TimeGrid, String> {
    let (name, number) = text.split_once('=').map_or((text, None), |(name, number)| (name, Some(number)));
    let number = |usual: f64| match number.map(str::parse) {
        None => Ok(usual),
        Some(Ok(number)) if number > 0.0 && f64::is_finite(number) => Ok(number),
        Some(_) => Err(format!("expected a number above 0 after `{name}=`, found `{text}`")),
    };
    match (name, text.contains('=')) {
        ("uniform", false) => Ok(TimeGrid::Uniform),
        ("trailing", false) => Ok(TimeGrid::Steps(Spacing::Trailing)),
        ("leading", false) => Ok(TimeGrid::Steps(Spacing::Leading(0))),
        ("linspace", false) => Ok(TimeGrid::Steps(Spacing::Linspace)),
        ("rho", _) => number(7.0).map(TimeGrid::Rho),
        ("shifted", _) => number(3.0).map(TimeGrid::Shifted),
        _ => Err(format!("expected uniform, trailing, leading, linspace, rho or shifted, found `{text}`")),
    }
}

/// The sampler's backend for a `--device`.
pub(crate) fn backend(choice: Choice) -> Backend {
    // If the user names an API, a software adapter is allowed.
    let gpu = |api| Backend::Gpu { api: Some(api), software: true };
    match choice {
        Choice::Auto => Backend::Auto,
        Choice::Cpu => Backend::Cpu,
        Choice::Vulkan => gpu(Api::Vulkan),
        Choice::Metal => gpu(Api::Metal),
        Choice::Dx12 => gpu(Api::Dx12),
    }
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let as_tensor = match arguments.out.extension().and_then(|extension| extension.to_str()) {
        Some("png") => false,
        Some("safetensors") => true,
        _ => {
            return Err(format!(
                "--out: {}: expected a name in .png or .safetensors",
                arguments.out.display()
            )
            .into());
        }
    };
    let model = read_model(&arguments.model)?;
    let spec = &model.spec;
    let steps = arguments.steps.unwrap_or(Solver::of(&model.card).usual_steps());
    for (flag, value, most) in [("--steps", steps, 10_000), ("--count", arguments.count, 100_000)] {
        if !(1..=most).contains(&value) {
            return Err(format!("{flag}: expected 1 to {most}, found {value}").into());
        }
    }
    let seed = arguments.seed_from.as_deref().map_or(arguments.seed, seed_from);
    let request = match &arguments.noise {
        Some(file) => read_noise(file, spec)?,
        None => {
            let labels = labels(&arguments, spec, &model.card.classes)?;
            Request::from_seeds(spec, seed, &labels, arguments.count)
        }
    };
    let spec = spec.clone();
    let at_fault = |error| format!("{}: {error}", arguments.model.display());
    let sampler = pollster::block_on(Sampler::new(model, backend(arguments.device)));
    let sampler = sampler.map_err(at_fault)?;
    if arguments.solver.is_some() && sampler.card().role == Role::Student {
        return Err(format!("--solver: {} is a student, which jumps", arguments.model.display()).into());
    }
    let times = match (arguments.times, sampler.times()) {
        (Some(TimeGrid::Steps(Spacing::Leading(_))), own @ TimeGrid::Steps(Spacing::Leading(_))) => own,
        (given, own) => given.unwrap_or(own),
    };
    let solver = arguments.solver.unwrap_or(sampler.solver());
    let mut sampler = sampler.with_solver(solver, times);
    sampler.evaluations(1).map_err(|error| format!("--times: {error}"))?;
    let evaluations = sampler.evaluations(steps).map_err(|error| format!("--steps: {error}"))?;
    let begin = Instant::now();
    let images = pollster::block_on(sampler.sample(&request, steps)).map_err(at_fault)?;
    let seconds = begin.elapsed().as_secs_f64();

    let count = images.len() / spec.image_len();
    let dims = spec.image();
    let file = if as_tensor {
        let images = HostTensor::new([count, dims[0], dims[1], dims[2]], images);
        let mut tensors = vec![StoredTensor::f32("images", &images)];
        if spec.num_classes().is_some() {
            let labels: Vec<i64> = request.labels.iter().map(|&label| label.into()).collect();
            tensors.push(StoredTensor::i64("label", &labels));
        }
        if arguments.noise.is_none() {
            let seeds: Vec<u64> = (0..count as u64).map(|i| seed.wrapping_add(i)).collect();
            tensors.push(StoredTensor::u64("seed", &seeds));
        }
        serialize(&tensors, "")
    } else {
        let columns = arguments.columns.unwrap_or((count as f64).sqrt().ceil() as usize);
        grid(&images, dims, columns).to_png()?
    };
    disk::write(&arguments.out, &file)?;
    let info = sampler.info();
    println!(
        "{}: {}, {} each, {:.1} ms an image on {} ({})",
        arguments.out.display(),
        counted(count, "image"),
        counted(evaluations, "evaluation"),
        seconds * 1e3 / count.max(1) as f64,
        info.adapter,
        info.backend
    );
    Ok(())
}

/// Formats a count, such as `1 image` or `2 images`.
fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// The seed of a text, as `seedFrom` of the npm package: the first eight bytes of the SHA-256 of its UTF-8 form, as a
/// big-endian number.
fn seed_from(text: &str) -> u64 {
    let hash: [u8; 32] = Sha256::digest(text.as_bytes()).into();
    hash[..8].iter().fold(0, |seed, &byte| seed << 8 | u64::from(byte))
}

fn labels(arguments: &Arguments, spec: &NetworkSpec, classes: &[String]) -> Result<Vec<u32>, Failure> {
    let Some(num_classes) = spec.num_classes() else {
        return match &arguments.label {
            Some(_) => Err(format!("--label: {} has no classes", arguments.model.display()).into()),
            None => Ok(Vec::new()),
        };
    };
    let Some(label) = &arguments.label else {
        return Ok((0..arguments.count).map(|i| (i % num_classes) as u32).collect());
    };
    let number = classes.iter().position(|class| class == label).or_else(|| label.parse().ok());
    match number.filter(|&number| number < num_classes) {
        Some(number) => Ok(vec![number as u32; arguments.count]),
        None if classes.is_empty() => {
            Err(format!("--label: expected 0 to {}, found `{label}`", num_classes - 1).into())
        }
        None => Err(format!(
            "--label: expected 0 to {} or one of {}, found `{label}`",
            num_classes - 1,
            classes.join(", ")
        )
        .into()),
    }
}

/// Noise and labels from a file, checked against the network.
fn read_noise(path: &Path, spec: &NetworkSpec) -> Result<Request, Failure> {
    let fail = |what: String| -> Failure { format!("{}: {what}", path.display()).into() };
    let mut file = TensorFile::from_bytes(&disk::read(path)?).map_err(|error| fail(error.to_string()))?;
    let x = file.take("x").map_err(|error| fail(error.to_string()))?;
    let dims = spec.image();
    if x.shape.len() != 4 || x.shape[1..] != dims || x.shape[0] == 0 {
        return Err(fail(format!(
            "tensor `x`: expected shape [N, {}, {}, {}], found {:?}",
            dims[0], dims[1], dims[2], x.shape
        )));
    }
    let labels = match (spec.num_classes(), file.take("label")) {
        (None, _) => Vec::new(),
        (Some(_), Err(error)) => return Err(fail(error.to_string())),
        (Some(classes), Ok(label)) => {
            if label.shape != [x.shape[0]] {
                return Err(fail(format!(
                    "tensor `label`: expected shape [{}], found {:?}",
                    x.shape[0], label.shape
                )));
            }
            if let Some(wrong) = label.values.iter().find(|value| !(0.0..classes as f32).contains(*value)) {
                return Err(fail(format!("tensor `label`: expected 0 to {}, found {wrong}", classes - 1)));
            }
            label.values.iter().map(|value| *value as u32).collect()
        }
    };
    Ok(Request { noise: x.values, labels, seed: 0 })
}

#[cfg(test)]
mod tests {
    use super::seed_from;

    #[test]
    fn a_seed_is_the_start_of_the_sha_256_of_a_text() {
        // FIPS 180-4: the hashes of "abc" and of the empty text.
        assert_eq!(seed_from("abc"), 0xba78_16bf_8f01_cfea);
        assert_eq!(seed_from(""), 0xe3b0_c442_98fc_1c14);
    }
}
