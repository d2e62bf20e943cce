//! Samples from a network in training: from seeds and labels to image grids.

use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::model::NetworkSpec;
use crate::nn::denoiser::Denoiser;
use crate::nn::host::{labels_tensor, to_host};
use crate::sampler::image::{Picture, grid};
use crate::sampler::schedule::{Combination, Request, Solver};

/// A grid of sample images: one row per class for a conditional model, otherwise about square.
pub struct SampleGrid {
    /// The images, row by row, with seeds from 0.
    pub request: Request,
    /// Images per row.
    pub columns: usize,
}

impl SampleGrid {
    /// A grid of about `count` images.
    pub fn new(spec: &NetworkSpec, count: usize) -> Self {
        const ROWS: usize = 10;
        match spec.num_classes() {
            Some(classes) => {
                let rows = classes.min(ROWS);
                let columns = (count / rows).max(1);
                let labels: Vec<u32> = (0..rows * columns).map(|i| (i / columns) as u32).collect();
                Self { request: Request::from_seeds(spec, 0, &labels, labels.len()), columns }
            }
            None => Self {
                request: Request::from_seeds(spec, 0, &[], count),
                columns: (count as f64).sqrt().ceil() as usize,
            },
        }
    }
}

/// Samples `[N, C, H, W]`, flat, with at most `steps` evaluations per image at the times of the model's own grid. At
/// most `batch` images are sampled at once.
///
/// # Errors
/// More steps than the model's schedule has.
pub fn sample(
    denoiser: &Denoiser,
    solver: Solver,
    request: &Request,
    steps: usize,
    batch: usize,
    device: &Device,
) -> Result<Vec<f32>, String> {
    let spec = denoiser.spec();
    let ([channels, height, width], image) = (spec.image(), spec.image_len());
    let steps = solver.steps(denoiser.path(), solver.grid(denoiser.path()), steps)?;
    let start = denoiser.path().start_scale(f64::from(steps[0].t)) as f32;
    let mut images = Vec::with_capacity(request.noise.len());
    for (part, noise) in request.noise.chunks(image * batch).enumerate() {
        let count = noise.len() / image;
        let shape = [count, channels, height, width];
        let tensor = |values: Vec<f32>| Tensor::<4>::from_data(TensorData::new(values, shape), device);
        let labels = request.labels.get(part * batch..part * batch + count);
        let label: Option<Tensor<1, Int>> = labels.map(|labels| labels_tensor(labels, device));
        let mut x = tensor(noise.to_vec()) * start;
        let mut memory = x.zeros_like();
        for (number, step) in steps.iter().enumerate() {
            let v = denoiser.velocity(x.clone(), &vec![step.t; count], label.clone());
            let combine = |of: Combination| x.clone() * of.x + v.clone() * of.v + memory.clone() * of.memory;
            let next = combine(step.x);
            memory = combine(step.memory);
            x = next;
            if step.fresh > 0.0 {
                let images = (part * batch) as u64..(part * batch + count) as u64;
                let fresh = images.flat_map(|i| request.fresh(i, number + 1, image)).collect();
                x = x + tensor(fresh) * step.fresh;
            }
        }
        images.extend(to_host(x));
    }
    Ok(images)
}

/// As [`sample`], returned as an image grid.
///
/// # Errors
/// As [`sample`].
pub fn sample_grid(
    denoiser: &Denoiser,
    solver: Solver,
    SampleGrid { request, columns }: &SampleGrid,
    steps: usize,
    device: &Device,
) -> Result<Picture, String> {
    const BATCH: usize = 64;
    let images = sample(denoiser, solver, request, steps, BATCH, device)?;
    Ok(grid(&images, denoiser.spec().image(), *columns))
}
