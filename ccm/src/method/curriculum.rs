//! The curriculum (PAPER.md §5): the teacher steps on until the target is far enough ahead of the student.

use std::iter::Sum;
use std::ops::Range;

use burn::tensor::{Device, Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::flow::{euler_step, jump};
use super::kdc::{kdc, mse};
use crate::nn::denoiser::Denoiser;
use crate::nn::host::per_image;

/// The direction of a step from `x_u`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Consistency distillation: the teacher's velocity.
    Cd,
    /// Consistency training: the direction from noise to image instead of a teacher. A run trains one all the
    /// same, for the student to start from.
    Ct,
    /// Consistency distillation with exactly one step, whatever the KDC: the baseline.
    Fixed,
}

/// What is compared with the threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// Each image's own KDC. Images that have reached their target leave the batch.
    Image,
    /// One KDC over the whole batch, ended by the first image's time, as in the published code. The target is then
    /// computed before the loss, from an estimate of its own without dropout.
    Batch,
}

/// How many steps ahead of the student the target is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Curriculum {
    /// The direction of a step from `x_u`.
    pub mode: Mode,
    /// What is compared with the threshold.
    pub scope: Scope,
    /// `T`, in dB.
    pub threshold: f64,
    /// `s`, the length of the teacher's Euler steps, in (0, 1].
    pub step_size: f32,
}

/// The student's estimates of a batch, and the points that they start from.
#[derive(Debug, Clone)]
pub struct Start {
    /// `f_theta(x_t, t)`, the student's estimate, without gradient. `[B, C, H, W]`
    pub estimate: Tensor<4>,
    /// `x_t`, `[B, C, H, W]`.
    pub x_t: Tensor<4>,
    /// `t` of every image.
    pub t: Vec<f32>,
    /// Labels, `[B]`.
    pub label: Option<Tensor<1, Int>>,
    /// `x1 - x0`, `[B, C, H, W]`; wanted by [`Mode::Ct`] alone.
    pub direction: Option<Tensor<4>>,
}

/// The targets of a batch.
#[derive(Debug, Clone)]
pub struct Goal {
    /// `f_theta-(x_u, u)`, `[B, C, H, W]`.
    pub target: Tensor<4>,
    /// `u` of every image.
    pub u: Vec<f32>,
    /// Teacher steps taken for every image.
    pub steps: Vec<usize>,
    /// Evaluations of the teacher and of the target network for every image.
    pub evaluations: Vec<usize>,
    /// KDC of every image's estimate and target, in dB.
    pub kdc: Vec<f64>,
}

impl Goal {
    /// The targets of `rows`.
    pub fn part(&self, rows: Range<usize>) -> Self {
        Self {
            target: self.target.clone().narrow(0, rows.start, rows.len()),
            u: self.u[rows.clone()].to_vec(),
            steps: self.steps[rows.clone()].to_vec(),
            evaluations: self.evaluations[rows.clone()].to_vec(),
            kdc: self.kdc[rows].to_vec(),
        }
    }

    /// Sums over the images.
    pub fn counts(&self) -> Counts {
        Counts {
            kdc: self.kdc.iter().sum(),
            steps: self.steps.iter().sum(),
            evaluations: self.evaluations.iter().sum(),
        }
    }
}

/// Sums over the images of a [`Goal`].
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Counts {
    /// KDC, in dB.
    pub kdc: f64,
    /// Teacher steps.
    pub steps: usize,
    /// Evaluations of teacher and target.
    pub evaluations: usize,
}

impl Sum for Counts {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |sum, part| Self {
            kdc: sum.kdc + part.kdc,
            steps: sum.steps + part.steps,
            evaluations: sum.evaluations + part.evaluations,
        })
    }
}

/// The images that have not reached their target yet.
struct Active {
    /// Their rows in the batch.
    rows: Vec<usize>,
    estimate: Tensor<4>,
    x_u: Tensor<4>,
    u: Vec<f32>,
    label: Option<Tensor<1, Int>>,
    direction: Option<Tensor<4>>,
}

impl Active {
    /// The images at the given places.
    fn select(self, places: &[usize]) -> Self {
        if places.len() == self.rows.len() {
            return self;
        }
        let index = indices(places, &self.x_u.device());
        Self {
            rows: places.iter().map(|&place| self.rows[place]).collect(),
            u: places.iter().map(|&place| self.u[place]).collect(),
            estimate: self.estimate.select(0, index.clone()),
            x_u: self.x_u.select(0, index.clone()),
            label: self.label.map(|label| label.select(0, index.clone())),
            direction: self.direction.map(|direction| direction.select(0, index)),
        }
    }

    /// `f_theta-(x_u, u)`. At `u = 1` that is `x_u` itself, without an evaluation.
    fn jump(&self, target: &Denoiser) -> Tensor<4> {
        let device = self.x_u.device();
        let (there, short): (Vec<usize>, Vec<usize>) =
            (0..self.u.len()).partition(|&place| self.u[place] >= 1.0);
        if short.is_empty() {
            return self.x_u.clone();
        }
        let rows = |tensor: &Tensor<4>, rows: &[usize]| tensor.clone().select(0, indices(rows, &device));
        let u: Vec<f32> = short.iter().map(|&place| self.u[place]).collect();
        let label = self.label.clone().map(|label| label.select(0, indices(&short, &device)));
        let x_u = rows(&self.x_u, &short);
        let v = target.velocity(x_u.clone(), &u, label);
        let reached = jump(x_u, &per_image(&u, &device), v);
        if there.is_empty() {
            return reached;
        }
        let mut places = vec![0; self.u.len()];
        for (row, place) in short.into_iter().chain(there.iter().copied()).enumerate() {
            places[place] = row;
        }
        rows(&Tensor::cat(vec![reached, rows(&self.x_u, &there)], 0), &places)
    }
}

impl Curriculum {
    /// Computes the target of every image. `teacher` and `target` must not record gradients; neither does the result.
    pub fn goal(&self, start: Start, teacher: &Denoiser, target: &Denoiser) -> Goal {
        let device = start.x_t.device();
        let batch = start.t.len();
        let mut goal = GoalRows::new(batch);
        let mut active = Active {
            rows: (0..batch).collect(),
            estimate: start.estimate,
            x_u: start.x_t,
            u: start.t,
            label: start.label,
            direction: start.direction,
        };
        for step in 1.. {
            self.advance(&mut active, teacher);
            let reached = active.jump(target);
            for (&row, &u) in active.rows.iter().zip(&active.u) {
                goal.evaluations[row] += usize::from(self.mode != Mode::Ct) + usize::from(u < 1.0);
            }
            let kdc = self.discrepancy(active.estimate.clone(), reached.clone());
            let far_enough = |place: usize| match (self.mode, self.scope) {
                (Mode::Fixed, _) => true,
                (_, Scope::Image) => kdc[place] >= self.threshold || active.u[place] >= 1.0,
                (_, Scope::Batch) => kdc[place] >= self.threshold || active.u[0] >= 1.0,
            };
            let (done, left): (Vec<usize>, Vec<usize>) =
                (0..active.rows.len()).partition(|&place| far_enough(place));
            goal.record(&active, &done, &reached, step, &kdc);
            if left.is_empty() {
                break;
            }
            active = active.select(&left);
        }
        goal.finish(&device)
    }

    /// `x_u = x_u + dt v(x_u, u); u = u + dt`, with `dt = min(s, 1 - u)`.
    fn advance(&self, active: &mut Active, teacher: &Denoiser) {
        /// A step that would leave less than this to go goes all the way.
        const ROUNDING: f32 = 1e-5;
        let device = active.x_u.device();
        let before = active.u.clone();
        let mut dt = Vec::with_capacity(active.u.len());
        for u in &mut active.u {
            let left = 1.0 - *u;
            let arrives = left <= self.step_size + ROUNDING;
            dt.push(if arrives { left } else { self.step_size });
            *u = if arrives { 1.0 } else { *u + self.step_size };
        }
        let v = match (self.mode, &active.direction) {
            (Mode::Ct, Some(direction)) => direction.clone(),
            _ => teacher.velocity(active.x_u.clone(), &before, active.label.clone()),
        };
        active.x_u = euler_step(active.x_u.clone(), &per_image(&dt, &device), v);
    }

    fn discrepancy(&self, estimate: Tensor<4>, reached: Tensor<4>) -> Vec<f64> {
        let mse = mse(estimate, reached);
        match self.scope {
            Scope::Image => mse.into_iter().map(kdc).collect(),
            Scope::Batch => vec![kdc(mse.iter().sum::<f64>() / mse.len() as f64); mse.len()],
        }
    }
}

/// A [`Goal`] under construction: targets in the order in which images reach them.
struct GoalRows {
    targets: Vec<Tensor<4>>,
    /// For each image its place in `targets`.
    places: Vec<usize>,
    arrived: usize,
    u: Vec<f32>,
    steps: Vec<usize>,
    evaluations: Vec<usize>,
    kdc: Vec<f64>,
}

impl GoalRows {
    fn new(batch: usize) -> Self {
        Self {
            targets: Vec::new(),
            places: vec![0; batch],
            arrived: 0,
            u: vec![0.0; batch],
            steps: vec![0; batch],
            evaluations: vec![0; batch],
            kdc: vec![0.0; batch],
        }
    }

    fn record(&mut self, active: &Active, done: &[usize], reached: &Tensor<4>, step: usize, kdc: &[f64]) {
        if done.is_empty() {
            return;
        }
        self.targets.push(match done.len() == active.rows.len() {
            true => reached.clone(),
            false => reached.clone().select(0, indices(done, &reached.device())),
        });
        for &place in done {
            let row = active.rows[place];
            self.places[row] = self.arrived;
            self.arrived += 1;
            self.u[row] = active.u[place];
            self.steps[row] = step;
            self.kdc[row] = kdc[place];
        }
    }

    fn finish(self, device: &Device) -> Goal {
        let target = Tensor::cat(self.targets, 0).select(0, indices(&self.places, device));
        Goal { target, u: self.u, steps: self.steps, evaluations: self.evaluations, kdc: self.kdc }
    }
}

fn indices(rows: &[usize], device: &Device) -> Tensor<1, Int> {
    let rows: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
    let count = rows.len();
    Tensor::from_data(TensorData::new(rows, [count]), device)
}
