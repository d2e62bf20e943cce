//! Solvers: the updates of `x` between evaluations of the network, from noise to an image.
//!
//! All solvers work on the straight path, with velocities (PAPER.md §8). Each step is linear in `x`, the velocity and
//! the memory, a second image that the solver keeps.

use std::ops::Range;
use std::sync::Arc;

use super::Denoiser;
use super::plan::Map;
#[cfg(feature = "text")]
use crate::model::Text;
use crate::model::path::Coefficients;
use crate::model::prediction::Spacing;
use crate::model::{Condition, ModelCard, NetworkSpec, Path, Role, TimeGrid};
use crate::noise::{Noise, image_noise};

/// The method of sampling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Solver {
    /// Euler steps along the velocity. For a diffusion model this is DDIM (arXiv 2010.02502).
    Euler,
    /// Heun's method: averages the velocities at both ends of a step. Two evaluations per step, one in the last step.
    Heun,
    /// DPM-Solver++(2M) (arXiv 2211.01095): second order, using the previous evaluation; the last step is first order.
    Dpm,
    /// Consistency sampling for a student: jumps to data, with fresh noise between jumps (Song et al., arXiv
    /// 2303.01469, algorithm 1, on the straight path).
    Jumps,
}

/// A linear combination of `x`, the velocity at `x` and the memory.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Combination {
    /// Factor of `x`.
    pub x: f32,
    /// Factor of the velocity.
    pub v: f32,
    /// Factor of the memory.
    pub memory: f32,
}

/// One evaluation of the network, and the update after it. The memory is a second image that a solver keeps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Time of the evaluation, in [0, 1).
    pub t: f32,
    /// The new `x`, before fresh noise is added.
    pub x: Combination,
    /// The new memory, computed from the same old `x`, velocity and memory.
    pub memory: Combination,
    /// Factor of the fresh noise that is added to `x`; 0 in the last step.
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

    /// Default number of evaluations: one jump, or fifty Euler steps.
    pub fn usual_steps(self) -> usize {
        match self {
            Self::Jumps => 1,
            Self::Euler | Self::Heun | Self::Dpm => 50,
        }
    }

    /// The default time grid for a model on this path: the model's own. Jumps of a model with a schedule start at its
    /// last step, where a student is trained to start, even if its teacher leaves that step out.
    pub fn grid(self, path: &Path) -> TimeGrid {
        match (self, path.grid()) {
            (Self::Jumps, TimeGrid::Steps(_)) => TimeGrid::Steps(Spacing::Trailing),
            (_, grid) => grid,
        }
    }

    /// The steps of a sample at the times of `grid`, with at most `count` evaluations. `count` is at least 1.
    ///
    /// # Errors
    /// As [`TimeGrid::times`].
    pub fn steps(self, path: &Path, grid: TimeGrid, count: usize) -> Result<Vec<Step>, String> {
        let times = match (self, grid) {
            // The last time of this grid is so close to data that a jump changes nothing.
            (Self::Jumps, TimeGrid::Rho(_)) => {
                let mut times = grid.times(path, count + 1)?;
                times.remove(count);
                times
            }
            (Self::Heun, _) => grid.times(path, count.div_ceil(2))?,
            _ => grid.times(path, count)?,
        };
        let pairs = || times.iter().copied().zip(times.iter().copied().skip(1));
        Ok(match self {
            Self::Euler => pairs().map(|(t, next)| euler(t, next - t)).collect(),
            Self::Jumps => pairs().map(|(t, next)| jump(t, next)).collect(),
            Self::Heun => {
                let mut steps = Vec::new();
                pairs().for_each(|(t, next)| steps.extend(heun(t, next)));
                steps
            }
            Self::Dpm => {
                let before = std::iter::once(None).chain(times.iter().copied().map(Some));
                pairs().zip(before).map(|((t, next), before)| dpm(before, t, next)).collect()
            }
        })
    }
}

fn combination(x: f64, v: f64, memory: f64) -> Combination {
    Combination { x: x as f32, v: v as f32, memory: memory as f32 }
}

/// `x + dt v`.
fn euler(t: f64, dt: f64) -> Step {
    Step { t: t as f32, x: combination(1.0, dt, 0.0), memory: Combination::default(), fresh: 0.0 }
}

/// `next (x + (1 - t) v) + (1 - next) noise`.
fn jump(t: f64, next: f64) -> Step {
    let x = combination(next, next * (1.0 - t), 0.0);
    Step { t: t as f32, x, memory: Combination::default(), fresh: (1.0 - next) as f32 }
}

/// `x + dt (v + v') / 2`, where `v'` is the velocity after an Euler step; the memory is `x + dt v / 2`.
fn heun(t: f64, next: f64) -> Vec<Step> {
    let dt = next - t;
    if next >= 1.0 {
        return vec![euler(t, dt)];
    }
    let first = Step { memory: combination(1.0, dt / 2.0, 0.0), ..euler(t, dt) };
    vec![first, Step { x: combination(0.0, dt / 2.0, 1.0), ..euler(next, dt) }]
}

/// With the predicted data `D = x + (1 - t) v`, which the memory keeps, and `h` the step in `ln(t / (1 - t))`:
/// `x' = (1 - t') / (1 - t) x + (t' - (1 - t') t / (1 - t)) (D + h / (2 h_before) (D - D_before))`.
fn dpm(before: Option<f64>, t: f64, next: f64) -> Step {
    let log_ratio = |t: f64| libm::log(t / (1.0 - t));
    let keep = (1.0 - next) / (1.0 - t);
    let towards = next - keep * t;
    // First order if there is no previous evaluation, if it was at pure noise, or in the last step, where h is
    // infinite.
    let share = match before {
        Some(before) if next < 1.0 && before > 0.0 => {
            (log_ratio(next) - log_ratio(t)) / (2.0 * (log_ratio(t) - log_ratio(before)))
        }
        _ => 0.0,
    };
    let data = towards * (1.0 + share);
    Step {
        t: t as f32,
        x: combination(keep + data, data * (1.0 - t), -towards * share),
        memory: combination(1.0, 1.0 - t, 0.0),
        fresh: 0.0,
    }
}

/// The initial noise and the conditions of a batch of images.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Request {
    /// `[N, C, H, W]`, flat.
    pub noise: Vec<f32>,
    /// One label per image; empty for a model without classes.
    pub labels: Vec<u32>,
    /// One text per image; empty for a model without text.
    #[cfg(feature = "text")]
    pub texts: Vec<Arc<Text>>,
    /// Guidance, if any.
    #[cfg(feature = "text")]
    pub guidance: Option<super::guidance::Guidance>,
    /// Seed of the fresh noise of the first image; each further image has the next seed.
    pub seed: u64,
}

impl Request {
    /// Images with the seeds `seed, seed + 1, ...` and the given labels.
    pub fn from_seeds(spec: &NetworkSpec, seed: u64, labels: &[u32], count: usize) -> Self {
        let mut noise = Vec::new();
        for i in 0..count as u64 {
            noise.extend(image_noise(seed.wrapping_add(i), spec.image_len()));
        }
        let labels = if spec.num_classes().is_some() { labels.to_vec() } else { Vec::new() };
        Self { noise, labels, seed, ..Self::default() }
    }

    /// Images interpolated between two seeds, one for each weight in [0, 1]. The noise is interpolated along the great
    /// circle, so that it stays normally distributed.
    pub fn between(spec: &NetworkSpec, seeds: [u64; 2], label: Option<u32>, weights: &[f32]) -> Self {
        let [a, b] = seeds.map(|seed| image_noise(seed, spec.image_len()));
        let mut noise = Vec::new();
        for w in weights {
            let angle = f64::from(*w) * std::f64::consts::FRAC_PI_2;
            let (sin, cos) = (libm::sin(angle) as f32, libm::cos(angle) as f32);
            noise.extend(a.iter().zip(&b).map(|(a, b)| cos * a + sin * b));
        }
        let labels = vec![label.unwrap_or(0); weights.len()];
        Self { noise, labels, seed: seeds[0], ..Self::default() }
    }

    /// Number of images.
    pub fn images(&self, spec: &NetworkSpec) -> usize {
        self.noise.len() / spec.image_len()
    }

    /// The fresh noise added after step `step`, counted from 1. It depends on the image's seed, not on the batch.
    pub fn fresh(&self, image: u64, step: usize, len: usize) -> Vec<f32> {
        Noise::new(self.seed.wrapping_add(image), step as u64).normals(len)
    }
}

/// One step in terms of the network's output F, for an executor: `x = x.x x + x.v F + x.memory memory + fresh noise`.
/// The memory is updated in the same form.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Update {
    pub(super) x: Combination,
    pub(super) memory: Combination,
    pub(super) fresh: f32,
    /// Scales the new `x` to the network's next input.
    pub(super) c_in: f32,
}

/// A batch of images for an executor, in the layout of [`super::plan::Plan::x`].
pub(super) struct Work {
    /// The update after each evaluation. The first entry runs before any evaluation: it scales the initial noise to
    /// the standard deviation at the start of the path.
    pub(super) updates: Vec<Update>,
    /// The initial noise, then the noise that each update adds; empty if it adds none.
    pub(super) noise: Vec<Vec<f32>>,
    /// For each evaluation, the conditions of each image.
    pub(super) inputs: Vec<Vec<Inputs>>,
}

/// What an evaluation reads besides the image, for one image.
#[derive(Debug, Clone)]
pub(super) struct Inputs {
    /// The values that depend on time and condition.
    pub(super) row: Row,
    /// The text, for a network that reads one.
    #[cfg(feature = "text")]
    pub(super) text: Option<Arc<Text>>,
}

/// One evaluation of the network for every image.
pub(super) struct Evaluation {
    pub(super) step: Step,
    /// Number of the step, from 1.
    pub(super) number: usize,
    /// Whether the network reads the condition that guidance leads away from.
    pub(super) is_negative: bool,
}

/// The values that depend on time and condition, for one image.
pub(super) type Row = Arc<[f32]>;

impl Work {
    /// Prepares the images `images` of a request. There must be at least one step.
    ///
    /// # Errors
    /// If the steps do not allow the guidance of the request.
    pub(super) fn new(
        denoiser: &Denoiser,
        conditions: &mut Conditions,
        request: &Request,
        images: Range<usize>,
        steps: &[Step],
    ) -> Result<Self, String> {
        let len = denoiser.spec.image_len();
        let evaluations = request.evaluations(steps)?;
        let of_step = |evaluation: &Evaluation| denoiser.path.coefficients(f64::from(evaluation.step.t));
        let coefficients: Vec<Coefficients> = evaluations.iter().map(of_step).collect();
        let none = Combination::default();
        let first = Update {
            x: none,
            memory: none,
            fresh: denoiser.path.start_scale(f64::from(evaluations[0].step.t)) as f32,
            c_in: coefficients[0].c_in as f32,
        };
        let (mut updates, mut inputs) = (vec![first], Vec::new());
        let mut noise = vec![denoiser.to_blocks(&request.noise[images.start * len..images.end * len])];
        for (place, evaluation) in evaluations.iter().enumerate() {
            let (step, of_step) = (&evaluation.step, &coefficients[place]);
            let (mut fresh, mut of_images) = (Vec::new(), Vec::new());
            for image in images.clone() {
                if step.fresh > 0.0 {
                    fresh.extend(request.fresh(image as u64, evaluation.number, len));
                }
                let condition = request.condition(image, evaluation.is_negative);
                of_images.push(Inputs {
                    #[cfg(feature = "text")]
                    text: condition.text.clone(),
                    row: conditions.row(denoiser, of_step.tau as f32, condition),
                });
            }
            noise.push(denoiser.to_blocks(&fresh));
            inputs.push(of_images);
            updates.push(Update {
                x: step.x.of_output(of_step),
                memory: step.memory.of_output(of_step),
                fresh: step.fresh,
                c_in: coefficients.get(place + 1).map_or(1.0, |next| next.c_in as f32),
            });
        }
        Ok(Self { updates, noise, inputs })
    }

    /// Number of images.
    pub(super) fn images(&self) -> usize {
        self.inputs.first().map_or(0, Vec::len)
    }
}

#[cfg(not(feature = "text"))]
impl Request {
    fn condition(&self, image: usize, _: bool) -> Condition {
        Condition { label: self.labels.get(image).copied() }
    }

    fn evaluations(&self, steps: &[Step]) -> Result<Vec<Evaluation>, String> {
        Ok(plain_evaluations(steps))
    }
}

/// One evaluation for each step.
pub(super) fn plain_evaluations(steps: &[Step]) -> Vec<Evaluation> {
    let evaluation = |(place, &step)| Evaluation { step, number: place + 1, is_negative: false };
    steps.iter().enumerate().map(evaluation).collect()
}

impl Combination {
    /// Substitutes `v = a x + b F`: in the result, `v` is the factor of F.
    fn of_output(self, of: &Coefficients) -> Self {
        let v = f64::from(self.v);
        Self { x: (f64::from(self.x) + v * of.a) as f32, v: (v * of.b) as f32, memory: self.memory }
    }
}

/// A cache of rows of conditions. One-step sampling needs the same few rows in every call.
#[derive(Default)]
pub(super) struct Conditions(Vec<((u32, Condition), Row)>);

impl Conditions {
    /// Maximum number of cached rows.
    const MOST: usize = 1024;

    fn row(&mut self, denoiser: &Denoiser, tau: f32, condition: Condition) -> Row {
        let time = tau.to_bits();
        let is_key = |found: &(u32, Condition)| found.0 == time && found.1.is_same(&condition);
        if let Some((_, row)) = self.0.iter().find(|(found, _)| is_key(found)) {
            return Row::clone(row);
        }
        if self.0.len() == Self::MOST {
            self.0.clear();
        }
        let row = Row::from(denoiser.plan.conditioner.row(tau, &condition));
        self.0.push(((time, condition), Row::clone(&row)));
        row
    }
}

impl Denoiser {
    /// `[N, C, H, W]` to the layout of [`super::plan::Plan::x`], padded with zeros.
    fn to_blocks(&self, planes: &[f32]) -> Vec<f32> {
        let (places, len) = (self.places(), self.plan.x.len());
        let mut blocks = vec![0.0; planes.len() / places.len() * len];
        for (planes, blocks) in planes.chunks_exact(places.len()).zip(blocks.chunks_exact_mut(len)) {
            places.iter().zip(planes).for_each(|(&place, &value)| blocks[place] = value);
        }
        blocks
    }

    /// The layout of [`super::plan::Plan::x`] to `[N, C, H, W]`.
    pub(super) fn to_planes(&self, blocks: &[f32]) -> Vec<f32> {
        let places = self.places();
        let images = blocks.chunks_exact(self.plan.x.len());
        let mut planes = Vec::new();
        images.for_each(|blocks| planes.extend(places.iter().map(|&place| blocks[place])));
        planes
    }

    /// Where [`super::plan::Plan::x`] has the values of an image `[C, H, W]`.
    fn places(&self) -> Vec<usize> {
        places(self.spec.image(), self.spec.patch_size(), &self.plan.x)
    }
}

/// Where a map has the values of an image `[C, H, W]`, whose patches of `patch * patch` pixels are channels of the map.
pub(super) fn places([channels, height, width]: [usize; 3], patch: usize, map: &Map) -> Vec<usize> {
    let mut places = Vec::with_capacity(channels * height * width);
    for channel in 0..channels {
        for y in 0..height {
            for x in 0..width {
                let pixel = y / patch * map.width + x / patch;
                places.push(pixel * map.channels + (channel * patch + y % patch) * patch + x % patch);
            }
        }
    }
    places
}
