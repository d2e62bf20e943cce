//! Samples from a network in training: from seeds and labels to pictures.

use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::method::batch::labels_tensor;
use crate::method::flow::{euler, multistep};
use crate::nn::unet::{UNet, to_host};
use crate::sampler::image::{Picture, grid};
use crate::sampler::schedule::{Request, Solver};
use crate::spec::UNetSpec;

/// A grid of sample images: one row a class where there are classes, otherwise about square.
pub struct SampleGrid {
    /// The images, row by row, from seed 0 on.
    pub request: Request,
    /// Images in a row.
    pub columns: usize,
}

impl SampleGrid {
    /// A grid of about `count` images.
    pub fn new(spec: &UNetSpec, count: usize) -> Self {
        const ROWS: usize = 10;
        match spec.num_classes {
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
                let images = (part * batch) as u64..(part * batch + count) as u64;
                tensor(images.flat_map(|i| request.fresh(i, step, image)).collect())
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
    SampleGrid { request, columns }: &SampleGrid,
    steps: usize,
    device: &Device,
) -> Picture {
    const BATCH: usize = 64;
    let spec = unet.spec();
    let images = sample(unet, solver, request, steps, BATCH, device);
    grid(&images, [spec.in_channels, spec.height, spec.width], *columns)
}
