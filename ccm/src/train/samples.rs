//! Samples from a network in training: from seeds and classes or captions to image grids.

use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};

use crate::data::encoded::Texts;
use crate::method::guidance::Teacher;
use crate::model::NetworkSpec;
use crate::nn::conditions::Conditions;
use crate::nn::host::to_host;
use crate::sampler::guidance::Guidance;
use crate::sampler::schedule::{Combination, Request, Step};

/// Most rows of a grid.
const ROWS: usize = 10;

/// A grid of sample images: one row per class or caption for a conditional model, otherwise about square.
pub struct SampleGrid {
    /// The images, row by row, with seeds from 0.
    pub request: Request,
    /// Images per row.
    pub columns: usize,
}

impl SampleGrid {
    /// A grid of about `count` images.
    pub fn new(spec: &NetworkSpec, count: usize) -> Self {
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

    /// A grid of about `count` images with one row for each of the first captions, whose numbers are given.
    pub fn of_captions(
        spec: &NetworkSpec,
        texts: &Texts,
        captions: &[usize],
        count: usize,
        guidance: Option<f32>,
    ) -> Self {
        let rows = captions.len().min(ROWS).min(count).max(1);
        let columns = (count / rows).max(1);
        let mut request = Request::from_seeds(spec, 0, &[], rows * columns);
        for &caption in captions.iter().take(rows) {
            let text = texts.text(caption);
            request.texts.extend((0..columns).map(|_| Arc::clone(&text)));
        }
        request.guidance = guidance.map(|weight| Guidance { weight, negative: Vec::new() });
        Self { request, columns }
    }
}

/// Samples `[N, C, H, W]`, flat, with the steps of a solver; there is at least one. At most `batch` images are sampled at
/// once.
pub fn sample(
    network: &Teacher,
    request: &Request,
    steps: &[Step],
    batch: usize,
    device: &Device,
) -> Vec<f32> {
    let denoiser = &network.denoiser;
    let spec = denoiser.spec();
    let ([channels, height, width], image) = (spec.image(), spec.image_len());
    let start = denoiser.path().start_scale(f64::from(steps[0].t)) as f32;
    let mut images = Vec::with_capacity(request.noise.len());
    for (part, noise) in request.noise.chunks(image * batch).enumerate() {
        let count = noise.len() / image;
        let shape = [count, channels, height, width];
        let tensor = |values: Vec<f32>| Tensor::<4>::from_data(TensorData::new(values, shape), device);
        let rows = part * batch..part * batch + count;
        let mut condition = match (spec.text(), request.texts.get(rows.clone())) {
            (Some(shape), Some(texts)) => Conditions::of_texts(texts, shape, device),
            _ => Conditions::of_labels(request.labels.get(rows).unwrap_or(&[]), device),
        };
        if let Some(guidance) = &request.guidance {
            condition = condition.with_guidance(vec![guidance.weight; count], device);
        }
        let mut x = tensor(noise.to_vec()) * start;
        let mut memory = x.zeros_like();
        for (number, step) in steps.iter().enumerate() {
            let v = network.velocity(x.clone(), &vec![step.t; count], condition.clone());
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
    images
}
