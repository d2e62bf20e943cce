//! `distill sample`: generates images with a model.

use std::path::{Path, PathBuf};
use std::time::Instant;

use ccm::disk::{self, read_model};
use ccm::import::text_to_image;
use ccm::model::prediction::Spacing;
use ccm::model::{NetworkSpec, Path as ModelPath, Role, TimeGrid};
use ccm::sampler::image::grid;
use ccm::sampler::schedule::{Request, Solver};
use ccm::sampler::{Api, Backend, Sampler};
use ccm::weights::{HostTensor, Precision, StoredTensor, TensorFile, serialize};
use sha2::{Digest, Sha256};

use crate::Failure;
use crate::device::Choice;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Model file, the folder of a Stable Diffusion pipeline in diffusers' layout, or a single file with such a pipeline's
    /// weights (--config)
    pub(crate) model: PathBuf,
    /// Configuration and tokenizers of a single file: a folder in diffusers' layout, which needs no weights
    #[arg(long, value_name = "DIR")]
    pub(crate) config: Option<PathBuf>,
    /// What a picture shows; may be given several times. For a pipeline with text
    #[arg(long, value_name = "TEXT")]
    pub(crate) prompt: Vec<String>,
    /// What guidance leads away from [default: the empty text, or the pipeline's zeros]
    #[arg(long, value_name = "TEXT")]
    pub(crate) negative: Option<String>,
    /// Guidance scale; 1 is no guidance [default: 5 for a pipeline with text]
    #[arg(long, value_name = "W")]
    pub(crate) guidance: Option<f32>,
    /// Model file of a denoiser in the place of the pipeline's own, such as the student of `distill run`
    #[arg(long, value_name = "MODEL")]
    pub(crate) denoiser: Option<PathBuf>,
    /// LoRA file for a pipeline with text, in the names of diffusers or of kohya's scripts, and its weight [default: 1]; may be
    /// given several times
    #[arg(long, value_name = "FILE[:WEIGHT]", value_parser = lora)]
    pub(crate) lora: Vec<(PathBuf, f32)>,
    /// Precision of the weights of a pipeline with text, unless they are stored in a smaller one: f32, f16, q8 or q4. A GPU
    /// computes in half precision if it is not f32
    /// [default: f32]
    #[arg(long, value_name = "PRECISION")]
    pub(crate) precision: Option<Precision>,
    /// Height and width of the pictures of a pipeline with text, in pixels, such as 768x512 [default: the pipeline's own]
    #[arg(long, value_name = "HEIGHTxWIDTH", value_parser = size)]
    pub(crate) size: Option<[usize; 2]>,
    /// Seed of the first image; each image has the next seed
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Seed from a text, such as a name, as in a web page: the first eight bytes of its SHA-256
    #[arg(long, value_name = "TEXT", conflicts_with = "seed")]
    seed_from: Option<String>,
    /// Number of images to generate, of each prompt if there are any
    #[arg(long, default_value_t = 1)]
    pub(crate) count: usize,
    /// Network evaluations per image, at most [default: 1 for a student, 50 for a teacher]
    #[arg(long)]
    pub(crate) steps: Option<usize>,
    /// Solver for a teacher: euler (DDIM for a diffusion model), heun, or dpm (DPM-Solver++ 2M)
    #[arg(long, value_parser = solver)]
    pub(crate) solver: Option<Solver>,
    /// Times of the evaluations: uniform, trailing, leading, linspace, rho[=7] or shifted[=3] [default: the model's own;
    /// `leading` keeps the model's offset]
    #[arg(long, value_parser = grid_of_times, value_name = "GRID")]
    pub(crate) times: Option<TimeGrid>,
    /// Class of the images, by number or name [default: cycle through the classes]
    #[arg(long)]
    pub(crate) label: Option<String>,
    /// Read the noise from tensor `x` (with text: `noise` if there is one), and labels from tensor `label`, of a safetensors file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["seed", "seed_from", "count", "label"])]
    pub(crate) noise: Option<PathBuf>,
    /// Output: an image grid (.png), or the tensors `images`, `label` (if the model has classes) and `seed` (unless the
    /// noise comes from a file) (.safetensors)
    #[arg(long, value_name = "FILE.png|FILE.safetensors")]
    pub(crate) out: PathBuf,
    /// Images per row of the grid [default: an approximately square grid]
    #[arg(long)]
    pub(crate) columns: Option<usize>,
    /// Device; `auto` is a hardware GPU if there is one, otherwise the CPU
    #[arg(long, default_value = "auto")]
    pub(crate) device: Choice,
}

fn solver(text: &str) -> Result<Solver, String> {
    match text {
        "euler" => Ok(Solver::Euler),
        "heun" => Ok(Solver::Heun),
        "dpm" => Ok(Solver::Dpm),
        other => Err(format!("expected euler, heun or dpm, found `{other}`")),
    }
}

pub(crate) fn lora(text: &str) -> Result<(PathBuf, f32), String> {
    // Without a number after it, a colon is part of the name.
    let weighted = text.rsplit_once(':').and_then(|(file, weight)| Some((file, weight.parse::<f32>().ok()?)));
    match weighted {
        Some((_, weight)) if !weight.is_finite() => {
            Err(format!("expected a number after `:`, found `{text}`"))
        }
        Some((file, weight)) => Ok((file.into(), weight)),
        None => Ok((text.into(), 1.0)),
    }
}

pub(crate) fn size(text: &str) -> Result<[usize; 2], String> {
    let sizes = text.split_once('x').map(|(height, width)| [height.parse().ok(), width.parse().ok()]);
    match sizes {
        Some([Some(height), Some(width)]) => Ok([height, width]),
        _ => Err(format!("expected a height and a width such as 768x512, found `{text}`")),
    }
}

/// The grid of `--times`; `leading` keeps the offset of the model's own.
pub(crate) fn times_for(given: Option<TimeGrid>, own: TimeGrid) -> TimeGrid {
    match (given, own) {
        (Some(TimeGrid::Steps(Spacing::Leading(_))), TimeGrid::Steps(Spacing::Leading(_))) => own,
        _ => given.unwrap_or(own),
    }
}

pub(crate) fn grid_of_times(text: &str) -> Result<TimeGrid, String> {
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

impl Arguments {
    /// The seed of the first image.
    pub(crate) fn seed(&self) -> u64 {
        self.seed_from.as_deref().map_or(self.seed, seed_from)
    }

    /// Whether the model is a pipeline with text.
    pub(crate) fn has_text(&self) -> bool {
        self.config.is_some() || text_to_image::is_text_to_image(&self.model)
    }

    /// Whether the output is a file of tensors, not a picture.
    pub(crate) fn as_tensor(&self) -> Result<bool, Failure> {
        match self.out.extension().and_then(|extension| extension.to_str()) {
            Some("png") => Ok(false),
            Some("safetensors") => Ok(true),
            _ => {
                let out = self.out.display();
                Err(format!("--out: {out}: expected a name in .png or .safetensors").into())
            }
        }
    }

    /// Checks the numbers of steps and images.
    pub(crate) fn check_counts(&self, steps: usize) -> Result<(), Failure> {
        check_count("--steps", steps, MOST_STEPS)?;
        check_count("--count", self.count, 100_000)
    }
}

/// Most network evaluations per image.
pub(crate) const MOST_STEPS: usize = 10_000;

/// Checks a number that a flag gives.
pub(crate) fn check_count(flag: &str, value: usize, most: usize) -> Result<(), Failure> {
    if (1..=most).contains(&value) {
        return Ok(());
    }
    Err(format!("{flag}: expected 1 to {most}, found {value}").into())
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let as_tensor = arguments.as_tensor()?;
    for (flag, given) in [
        ("--prompt", !arguments.prompt.is_empty()),
        ("--negative", arguments.negative.is_some()),
        ("--guidance", arguments.guidance.is_some()),
        ("--size", arguments.size.is_some()),
        ("--lora", !arguments.lora.is_empty()),
        ("--denoiser", arguments.denoiser.is_some()),
        ("--precision", arguments.precision.is_some()),
    ] {
        if given {
            return Err(format!("{flag}: {} is not a pipeline with text", arguments.model.display()).into());
        }
    }
    let model = read_model(&arguments.model)?;
    let spec = &model.spec;
    let steps = arguments.steps.unwrap_or(Solver::of(&model.card).usual_steps());
    arguments.check_counts(steps)?;
    let seed = arguments.seed();
    let request = match &arguments.noise {
        Some(file) => read_noise(file, spec, &["x"])?,
        None => {
            let labels = labels(&arguments, spec, &model.card.classes)?;
            Request::from_seeds(spec, seed, &labels, arguments.count)
        }
    };
    let spec = spec.clone();
    let first_time = ModelPath::new(&model.prediction).first_time();
    let at_fault = |error| format!("{}: {error}", arguments.model.display());
    let sampler = pollster::block_on(Sampler::new(model, backend(arguments.device)));
    let sampler = sampler.map_err(at_fault)?;
    if arguments.solver.is_some() && sampler.card().role == Role::Student {
        return Err(format!("--solver: {} is a student, which jumps", arguments.model.display()).into());
    }
    let times = times_for(arguments.times, sampler.times());
    if matches!(times, TimeGrid::Shifted(_)) && first_time > 0.0 {
        let reason = "expected another grid, as shifted times begin at 0";
        return Err(
            format!("--times: {reason}, found shifted for a path that begins at {first_time:.1e}").into()
        );
    }
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
pub(crate) fn counted(count: usize, what: &str) -> String {
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

/// Noise and labels from a file, checked against the network. The noise is in the first of the tensors `names` that the file
/// has.
pub(crate) fn read_noise(path: &Path, spec: &NetworkSpec, names: &[&str]) -> Result<Request, Failure> {
    let fail = |what: String| -> Failure { format!("{}: {what}", path.display()).into() };
    let mut file = TensorFile::from_bytes(&disk::read(path)?).map_err(|error| fail(error.to_string()))?;
    let found = names.iter().find(|name| file.tensors.contains_key(**name));
    let name = *found.or(names.last()).unwrap_or(&"x");
    let x = file.take(name).map_err(|error| fail(error.to_string()))?;
    let dims = spec.image();
    if x.shape.len() != 4 || x.shape[1..] != dims || x.shape[0] == 0 {
        return Err(fail(format!(
            "tensor `{name}`: expected shape [N, {}, {}, {}], found {:?}",
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
    Ok(Request { noise: x.values, labels, ..Request::default() })
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
