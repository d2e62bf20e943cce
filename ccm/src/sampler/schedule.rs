//! From noise to an image in one evaluation of the network or a few: what happens to `x` after each.

use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::plan::{BLOCK, Plan};
use crate::noise::{Noise, image_noise};
use crate::spec::{ModelCard, Role, UNetSpec};

/// How a network is sampled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Solver {
    /// A teacher: equal Euler steps from noise to data.
    Euler,
    /// A student: jumps to data, with fresh noise between them (Song et al., arXiv 2303.01469, algorithm 1, on
    /// the straight path).
    Jumps,
}

/// One evaluation of the network, and what it does: `x = keep (x + step v(x, t)) + fresh noise`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Time of the evaluation, in [0, 1).
    pub t: f32,
    /// How far the velocity is followed, in flow time.
    pub step: f32,
    /// Share of what is there that stays.
    pub keep: f32,
    /// Share of fresh noise that comes in; 0 in the last step.
    pub fresh: f32,
}

impl Solver {
    /// Jumps for a student, Euler steps for a teacher.
    pub fn of(card: &ModelCard) -> Self {
        match card.role {
            Role::Teacher => Self::Euler,
            Role::Student => Self::Jumps,
        }
    }

    /// Evaluations that give a good image: one jump, or fifty Euler steps.
    pub fn usual_steps(self) -> usize {
        match self {
            Self::Euler => 50,
            Self::Jumps => 1,
        }
    }

    /// The steps of a sample with `count` evaluations.
    pub fn steps(self, count: usize) -> Vec<Step> {
        let t = |i: usize| i as f32 / count as f32;
        match self {
            Self::Euler => (0..count).map(|i| Step { t: t(i), step: t(1), keep: 1.0, fresh: 0.0 }).collect(),
            Self::Jumps => (0..count)
                .map(|i| {
                    let keep = t(i + 1);
                    Step { t: t(i), step: 1.0 - t(i), keep, fresh: 1.0 - keep }
                })
                .collect(),
        }
    }
}

/// The noise and the labels of a series of images.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// `[N, C, H, W]`, flat.
    pub noise: Vec<f32>,
    /// One label an image; empty for a model without classes.
    pub labels: Vec<u32>,
    /// Seed of the noise that further jumps mix in; the next image has the next seed.
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

    /// Images between two seeds: the noise goes along the great circle from one to the other, so that it stays
    /// normal, for each weight in [0, 1].
    pub fn between(spec: &UNetSpec, seeds: [u64; 2], label: Option<u32>, weights: &[f32]) -> Self {
        let [a, b] = seeds.map(|seed| image_noise(seed, spec.image_len()));
        let noise = weights.iter().flat_map(|w| {
            let angle = f64::from(*w) * std::f64::consts::FRAC_PI_2;
            let (sin, cos) = (libm::sin(angle) as f32, libm::cos(angle) as f32);
            a.iter().zip(&b).map(move |(a, b)| cos * a + sin * b)
        });
        Self { noise: noise.collect(), labels: vec![label.unwrap_or(0); weights.len()], seed: seeds[0] }
    }

    /// Number of images.
    pub fn images(&self, spec: &UNetSpec) -> usize {
        self.noise.len() / spec.image_len()
    }

    /// The noise that is mixed in after step `step`, counted from 1: each image's own, whatever the batch.
    pub fn fresh(&self, image: u64, step: usize, len: usize) -> Vec<f32> {
        Noise::new(self.seed.wrapping_add(image), step as u64).normals(len)
    }
}

/// Images that an executor samples together, in its own layout `[height, width, 4]`.
pub(super) struct Work {
    /// The steps.
    pub(super) steps: Vec<Step>,
    /// `[N, height, width, 4]`: the noise at the start, then that of each further step that wants some.
    pub(super) noise: Vec<Vec<f32>>,
    /// For each step each image's row of conditions.
    pub(super) rows: Vec<Vec<Row>>,
}

/// What the kernels read of time and label, for one image.
pub(super) type Row = Arc<[f32]>;

impl Work {
    /// Images `images` of a request.
    pub(super) fn new(
        plan: &Plan,
        conditions: &mut Conditions,
        request: &Request,
        images: Range<usize>,
        steps: &[Step],
    ) -> Self {
        let len = plan.spec.image_len();
        let start = &request.noise[images.start * len..images.end * len];
        let fresh = steps.iter().enumerate().filter(|(_, step)| step.fresh > 0.0).map(|(i, _)| i + 1);
        let fresh = fresh.map(|step| {
            let noise = images.clone().flat_map(|image| request.fresh(image as u64, step, len));
            to_blocks(&noise.collect::<Vec<f32>>(), &plan.spec)
        });
        let rows = steps.iter().map(|step| {
            let label = |image: usize| request.labels.get(image).copied();
            images.clone().map(|image| conditions.row(plan, step.t, label(image))).collect()
        });
        Self {
            steps: steps.to_vec(),
            noise: std::iter::once(to_blocks(start, &plan.spec)).chain(fresh).collect(),
            rows: rows.collect(),
        }
    }

    /// Number of images.
    pub(super) fn images(&self) -> usize {
        self.rows.first().map_or(0, Vec::len)
    }
}

/// The rows of conditions that were asked for last; one step from noise always asks for the same.
#[derive(Default)]
pub(super) struct Conditions(Vec<((u32, Option<u32>), Row)>);

impl Conditions {
    /// Rows that are kept.
    const MOST: usize = 1024;

    fn row(&mut self, plan: &Plan, t: f32, label: Option<u32>) -> Row {
        let key = (t.to_bits(), label);
        if let Some((_, row)) = self.0.iter().find(|(found, _)| *found == key) {
            return Row::clone(row);
        }
        if self.0.len() == Self::MOST {
            self.0.clear();
        }
        let row = Row::from(plan.conditioner.row(t, label));
        self.0.push((key, Row::clone(&row)));
        row
    }
}

/// `[N, C, H, W]` to `[N, H, W, 4]`, filled up with zeros.
fn to_blocks(planes: &[f32], spec: &UNetSpec) -> Vec<f32> {
    let pixels = spec.height * spec.width;
    let mut blocks = vec![0.0; planes.len() / spec.in_channels * BLOCK];
    for (planes, blocks) in planes.chunks_exact(spec.image_len()).zip(blocks.chunks_exact_mut(pixels * BLOCK))
    {
        for (channel, plane) in planes.chunks_exact(pixels).enumerate() {
            for (block, value) in blocks.chunks_exact_mut(BLOCK).zip(plane) {
                block[channel] = *value;
            }
        }
    }
    blocks
}

/// `[N, H, W, 4]` to `[N, C, H, W]`.
pub(super) fn to_planes(blocks: &[f32], spec: &UNetSpec) -> Vec<f32> {
    let image = spec.height * spec.width * BLOCK;
    let mut planes = Vec::with_capacity(blocks.len() / BLOCK * spec.in_channels);
    for blocks in blocks.chunks_exact(image) {
        for channel in 0..spec.in_channels {
            planes.extend(blocks.iter().skip(channel).step_by(BLOCK));
        }
    }
    planes
}
