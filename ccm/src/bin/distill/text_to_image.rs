//! `distill sample` with a text-to-image pipeline.

use std::time::Instant;

use ccm::disk;
use ccm::import::{ImportError, text_to_image};
use ccm::pipeline::{Pipeline, PipelineError, sample_times};
use ccm::sampler::image::grid;
use ccm::sampler::schedule::{Request, Solver};
use ccm::weights::{HostTensor, StoredTensor, serialize};

use crate::Failure;
use crate::sample::{Arguments, backend, counted, read_noise};

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let as_tensor = arguments.as_tensor()?;
    let shown = arguments.model.display();
    if arguments.prompt.is_empty() {
        return Err(format!("--prompt: {shown} is a pipeline with text, which needs one").into());
    }
    if arguments.label.is_some() {
        return Err(format!("--label: {shown} has no classes").into());
    }
    let mut folder = text_to_image::open_any(&arguments.model, arguments.config.as_deref())?;
    folder.notes.iter().for_each(|note| println!("{note}"));
    if let Some(size) = arguments.size {
        folder.spec = folder.spec.with_image_size(size).map_err(|error| format!("--size: {error}"))?;
    }
    let weights = folder.read_changes(arguments.denoiser.as_deref(), &arguments.lora)?;
    let spec = folder.spec.clone();
    let steps = arguments.steps.unwrap_or(Solver::of(&folder.card).usual_steps());
    arguments.check_counts(steps)?;
    let mut request = request(arguments, &spec.network)?;
    let images = request.images(&spec.network);
    let seed = arguments.seed();

    let pipeline = Pipeline::new(folder.spec, folder.tokenizers, weights, backend(arguments.device));
    let precision = arguments.precision.unwrap_or_default().max(folder.precision);
    let pipeline = pipeline.with_precision(precision).with_role(folder.card.role);
    let weight = arguments.guidance.or(pipeline.usual_guidance());
    let weight = weight.ok_or("--guidance: expected the scale, which this student reads")?;
    if !weight.is_finite() {
        return Err(format!("--guidance: expected a number, found {weight}").into());
    }
    if arguments.negative.is_some() && (weight == 1.0 || spec.network.reads_guidance()) {
        let found = if weight == 1.0 { "--guidance 1" } else { "a student with the scale as its input" };
        return Err(format!("--negative: expected guidance, which leads away from it, found {found}").into());
    }
    let at_fault = |error: PipelineError<ImportError>| match error {
        // It names its file.
        PipelineError::Weights(error) => error.to_string(),
        other => format!("{shown}: {other}"),
    };
    let begin = Instant::now();
    let of_image = |image: usize| arguments.prompt[image * arguments.prompt.len() / images].as_str();
    let prompts: Vec<&str> = (0..images).map(of_image).collect();
    let found = pipeline.conditions(&prompts, arguments.negative.as_deref(), weight);
    (request.texts, request.guidance) = pollster::block_on(found).map_err(at_fault)?;
    let is_guided = request.guidance.as_ref().is_some_and(|guidance| !guidance.negative.is_empty());

    let sampler = pollster::block_on(pipeline.denoiser()).map_err(at_fault)?;
    let times = sample_times(arguments.times, sampler.times());
    let solver = arguments.solver.unwrap_or(sampler.solver());
    let mut sampler = sampler.with_solver(solver, times);
    sampler.evaluations(1).map_err(|error| format!("--times: {error}"))?;
    let evaluations = sampler.evaluations(steps).map_err(|error| format!("--steps: {error}"))?;
    let latents =
        pollster::block_on(sampler.sample(&request, steps)).map_err(|error| at_fault(error.into()))?;
    let info = sampler.info();
    drop(sampler);
    let found = pollster::block_on(pipeline.decode(&latents)).map_err(at_fault)?;
    let seconds = begin.elapsed().as_secs_f64();

    let [height, width] = spec.image_size();
    let dims = [spec.image_channels(), height, width];
    let file = if as_tensor {
        let tensor = HostTensor::new([images, dims[0], height, width], found);
        let mut tensors = vec![StoredTensor::f32("images", &tensor)];
        if arguments.noise.is_none() {
            let seeds = (0..images as u64).map(|i| seed.wrapping_add(i % arguments.count as u64));
            tensors.push(StoredTensor::u64("seed", &seeds.collect::<Vec<u64>>()));
        }
        serialize(&tensors, "")
    } else {
        let columns = arguments.columns.unwrap_or((images as f64).sqrt().ceil() as usize);
        grid(&found, dims, columns).to_png()?
    };
    disk::write(&arguments.out, &file)?;
    println!(
        "{}: {}, {} each, {seconds:.1} s on {} ({})",
        arguments.out.display(),
        counted(images, "image"),
        counted(evaluations * if is_guided { 2 } else { 1 }, "evaluation"),
        info.adapter,
        info.backend
    );
    Ok(())
}

/// The noise: from a file, or of seeds, the same ones for every prompt.
fn request(arguments: &Arguments, network: &ccm::model::NetworkSpec) -> Result<Request, Failure> {
    let prompts = arguments.prompt.len();
    if let Some(file) = &arguments.noise {
        let request = read_noise(file, network, &["noise", "x"])?;
        let images = request.images(network);
        if !images.is_multiple_of(prompts) {
            let expected = format!("expected a multiple of {prompts} images, one prompt each");
            return Err(format!("--noise: {}: {expected}, found {images}", file.display()).into());
        }
        return Ok(request);
    }
    let mut request = Request::default();
    for _ in 0..prompts {
        let of_prompt = Request::from_seeds(network, arguments.seed(), &[], arguments.count);
        request.noise.extend(of_prompt.noise);
    }
    request.seed = arguments.seed();
    Ok(request)
}
