//! Samples from a network in training: from seeds and labels to pictures.

use burn::tensor::{Device, Int, Tensor, TensorData};

use super::batches::labels_tensor;
use super::flow::{euler, multistep};
use super::unet::{UNet, to_host};
use crate::noise::{Noise, image_noise};
use crate::sampler::image::{Picture, grid};
use crate::spec::UNetSpec;

/// How a network is sampled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Solver {
    /// A teacher: Euler steps from noise to data.
    Euler,
    /// A student: jumps, with fresh noise between them.
    Jumps,
}

/// The noise and the labels of a series of images.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// `[N, C, H, W]`, flat.
    pub noise: Vec<f32>,
    /// One label an image; empty for a model without classes.
    pub labels: Vec<u32>,
    /// Seed of the noise that further jumps mix in.
    pub seed: u64,
}

impl Request {
    /// Images from the seeds `seed, seed + 1, ...`, and the label that each is to have.
    pub fn from_seeds(spec: &UNetSpec, seed: u64, labels: &[u32], count: usize) -> Self {
        let noise =
            (0..count as u64).flat_map(|i| image_noise(seed.wrapping_add(i), spec.image_len())).collect();
        let labels = if spec.num_classes.is_some() { labels.to_vec() } else { Vec::new() };
        Self { noise, labels, seed }
    }

    /// About `count` images to look at, and how many stand in a row: one row a class where there are classes.
    pub fn to_look_at(spec: &UNetSpec, count: usize) -> (Self, usize) {
        const ROWS: usize = 10;
        match spec.num_classes {
            Some(classes) => {
                let rows = classes.min(ROWS);
                let columns = (count / rows).max(1);
                let labels: Vec<u32> = (0..rows * columns).map(|i| (i / columns) as u32).collect();
                (Self::from_seeds(spec, 0, &labels, labels.len()), columns)
            }
            None => (Self::from_seeds(spec, 0, &[], count), (count as f64).sqrt().ceil() as usize),
        }
    }
}

/// Samples `[N, C, H, W]`, flat, with `steps` evaluations an image, at most `batch` images at a time.
pub fn sample(
    unet: &UNet,
    solver: Solver,
    request: &Request,
    steps: usize,
    batch: usize,
    device: &Device,
) -> Vec<f32> {
    let spec = unet.spec();
    let image = spec.image_len();
    let mut images = Vec::with_capacity(request.noise.len());
    for (part, noise) in request.noise.chunks(image * batch).enumerate() {
        let count = noise.len() / image;
        let shape = [count, spec.in_channels, spec.height, spec.width];
        let tensor = |values: Vec<f32>| Tensor::<4>::from_data(TensorData::new(values, shape), device);
        let labels = request.labels.get(part * batch..part * batch + count);
        let label: Option<Tensor<1, Int>> = labels.map(|labels| labels_tensor(labels, device));
        let x0 = tensor(noise.to_vec());
        let x1 = match solver {
            Solver::Euler => euler(unet, x0, label.as_ref(), steps),
            Solver::Jumps => multistep(unet, x0, label.as_ref(), steps, |step| {
                // Each image's own further noise, whatever the batch.
                let first = (part * batch) as u64;
                let each =
                    (0..count as u64).map(|i| Noise::new(request.seed.wrapping_add(first + i), step as u64));
                tensor(each.flat_map(|mut noise| noise.normals(image)).collect())
            }),
        };
        images.extend(to_host(x1));
    }
    images
}

/// Samples as a grid.
pub fn sample_grid(
    unet: &UNet,
    solver: Solver,
    (request, columns): &(Request, usize),
    steps: usize,
    device: &Device,
) -> Picture {
    const BATCH: usize = 64;
    let spec = unet.spec();
    let images = sample(unet, solver, request, steps, BATCH, device);
    grid(&images, [spec.in_channels, spec.height, spec.width], *columns)
}
