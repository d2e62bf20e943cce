//! The curriculum (PAPER.md §5): the teacher takes steps until the KDC of the target reaches the threshold.

use std::iter::Sum;
use std::ops::Range;

use burn::tensor::{Device, Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::flow::{euler_step, jump};
use super::guidance::Teacher;
use super::kdc::{kdc, mse};
use crate::nn::conditions::Conditions;
use crate::nn::denoiser::Denoiser;
use crate::nn::host::per_image;

/// The direction of a step from `x_u`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Consistency distillation: the teacher's velocity.
    Cd,
    /// Consistency training: the direction `x1 - x0` instead of the teacher's velocity. A run still trains a teacher,
    /// because the student starts from its weights.
    Ct,
    /// Fixed-step distillation, the baseline: exactly one teacher step, whatever the KDC.
    Fixed,
}

/// What is compared with the threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// The KDC of each image. An image that reaches the threshold, or `u = 1`, leaves the batch.
    Image,
    /// One KDC over the whole batch; the loop also ends when the first image is at `u = 1`, as in the published code.
    /// Targets are then computed for the whole batch before the loss, from a separate estimate without dropout.
    Batch,
}

/// How the teacher takes a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepSolver {
    /// Euler: uses the velocity at the start of the step. For a diffusion model this is DDIM.
    #[default]
    Euler,
    /// Heun: uses the mean of the velocities at both ends, which takes two evaluations. A step to `u = 1` is an Euler step.
    Heun,
}

/// The curriculum's hyperparameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Curriculum {
    /// The direction of a step from `x_u`.
    pub mode: Mode,
    /// What is compared with the threshold.
    pub scope: Scope,
    /// `T`, in dB.
    pub threshold: f64,
    /// Largest difference between two values of an image, from which KDC is computed.
    pub peak: f64,
    /// `s`, the length of the teacher's steps, in (0, 1].
    pub step_size: f32,
    /// `k`, 1 or more: steps have the length `s` in the time `tau = k t / (1 + (k - 1) t)`. 1 gives equal steps of flow
    /// time; larger values give shorter steps near noise and longer ones near data, as the shift of arXiv 2403.03206 does.
    pub step_shift: f32,
    /// How the teacher takes a step.
    pub solver: StepSolver,
    /// The largest batch size, if batches are padded to one of [`BATCH_SIZES`] sizes. Fewer sizes save time on a GPU, which
    /// may tune and compile kernels for every new size. Padding repeats an image and discards the results.
    pub pad_to: Option<usize>,
}

/// Number of batch sizes that the teacher and the target network run on with [`Curriculum::pad_to`].
pub const BATCH_SIZES: usize = 4;

/// The student's estimates for a batch, and the points that they are computed from.
#[derive(Debug, Clone)]
pub struct Start {
    /// `f_theta(x_t, t)`, the student's estimate, without gradient. `[B, C, H, W]`
    pub estimate: Tensor<4>,
    /// `x_t`, `[B, C, H, W]`.
    pub x_t: Tensor<4>,
    /// `t` of every image.
    pub t: Vec<f32>,
    /// What the images show.
    pub condition: Conditions,
    /// `x1 - x0`, `[B, C, H, W]`; used by [`Mode::Ct`] only.
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
    /// Evaluations of the teacher plus evaluations of the target network for every image.
    pub evaluations: Vec<usize>,
    /// KDC between the estimate and the target of every image, in dB.
    pub kdc: Vec<f64>,
}

impl Goal {
    /// The rows `rows` of the targets.
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
    /// Evaluations of the teacher and of the target network.
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

/// The images whose teacher steps are not finished.
struct Active {
    /// Their rows in the batch.
    rows: Vec<usize>,
    estimate: Tensor<4>,
    x_u: Tensor<4>,
    u: Vec<f32>,
    condition: Conditions,
    direction: Option<Tensor<4>>,
}

/// The smallest of [`BATCH_SIZES`] sizes up to `most` that holds `count` images; `count` itself if it is larger.
fn padded(count: usize, most: usize) -> usize {
    let mut sizes = (1..=BATCH_SIZES).map(|part| (most * part).div_ceil(BATCH_SIZES));
    sizes.find(|&size| size >= count).unwrap_or(count)
}

/// Merges rows by position: row `places[i]` of the result is `changed[i]`; the rows `others` are those of `before`.
fn in_order(changed: Tensor<4>, places: &[usize], before: &Tensor<4>, others: &[usize]) -> Tensor<4> {
    if others.is_empty() {
        return changed;
    }
    let device = changed.device();
    let others_before = before.clone().select(0, indices(others, &device));
    let mut rows = vec![0; places.len() + others.len()];
    for (row, &place) in places.iter().chain(others).enumerate() {
        rows[place] = row;
    }
    Tensor::cat(vec![changed, others_before], 0).select(0, indices(&rows, &device))
}

impl Active {
    /// Positions of the images at `u = 1`, and positions of the others.
    fn arrived(&self) -> (Vec<usize>, Vec<usize>) {
        (0..self.u.len()).partition(|&place| self.u[place] >= 1.0)
    }

    /// Keeps the images at the given positions.
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
            condition: self.condition.select(&index),
            direction: self.direction.map(|direction| direction.select(0, index)),
        }
    }
}

impl Curriculum {
    /// Computes the target of every image. `teacher` and `target` must not record gradients; the result has none.
    pub fn goal(&self, start: Start, teacher: &Teacher, target: &Denoiser) -> Goal {
        let device = start.x_t.device();
        let batch = start.t.len();
        let mut goal = GoalRows::new(batch);
        let mut active = Active {
            rows: (0..batch).collect(),
            estimate: start.estimate,
            x_u: start.x_t,
            u: start.t,
            condition: start.condition,
            direction: start.direction,
        };
        for step in 1.. {
            let before = self.advance(&mut active, teacher);
            let reached = self.jump(&active, target);
            for ((&row, &u), &before) in active.rows.iter().zip(&active.u).zip(&before) {
                let of_teacher = match (self.mode, self.solver) {
                    (Mode::Ct, _) => 0,
                    (_, StepSolver::Heun) if u < 1.0 => teacher.evaluations(before) + teacher.evaluations(u),
                    _ => teacher.evaluations(before),
                };
                goal.evaluations[row] += of_teacher + usize::from(u < 1.0);
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

    /// The end of a step that starts at `u`: `min(u + s, 1)` for steps of equal length.
    fn step_end(&self, u: f32) -> f32 {
        /// A step that would end closer than this to `u = 1` ends at `u = 1`.
        const ROUNDING: f32 = 1e-5;
        let k = self.step_shift;
        let tau = k * u / (1.0 + (k - 1.0) * u) + self.step_size;
        if tau >= 1.0 - ROUNDING { 1.0 } else { tau / (1.0 + (k - 1.0) * (1.0 - tau)) }
    }

    /// `x_u = x_u + dt v(x_u, u); u = u + dt`, with `u + dt` from [`Curriculum::step_end`]. Returns the times before.
    fn advance(&self, active: &mut Active, teacher: &Teacher) -> Vec<f32> {
        let device = active.x_u.device();
        let before = active.u.clone();
        active.u.iter_mut().for_each(|u| *u = self.step_end(*u));
        // To the last bit, a whole step of flow time has the length `s`.
        let is_whole = |end: f32| self.step_shift == 1.0 && end < 1.0;
        let length = |(&end, &start): (&f32, &f32)| if is_whole(end) { self.step_size } else { end - start };
        let dt: Vec<f32> = active.u.iter().zip(&before).map(length).collect();
        let dt = per_image(&dt, &device);
        if let (Mode::Ct, Some(direction)) = (self.mode, &active.direction) {
            active.x_u = euler_step(active.x_u.clone(), &dt, direction.clone());
            return before;
        }
        let of_teacher = |x, t: &[f32], condition| teacher.velocity(x, t, condition);
        let v = self.velocity(of_teacher, active.x_u.clone(), &before, active.condition.clone());
        let there = euler_step(active.x_u.clone(), &dt, v.clone());
        let (arrived, short) = active.arrived();
        if self.solver == StepSolver::Euler || short.is_empty() {
            active.x_u = there;
            return before;
        }
        // `x + dt (v + v') / 2` is the Euler step `x + dt v`, corrected by `dt / 2 (v' - v)`.
        let rows = |tensor: &Tensor<4>| tensor.clone().select(0, indices(&short, &device));
        let u: Vec<f32> = short.iter().map(|&place| active.u[place]).collect();
        let condition = active.condition.clone().select(&indices(&short, &device));
        let after = self.velocity(of_teacher, rows(&there), &u, condition);
        let dt = dt.select(0, indices(&short, &device)) * 0.5;
        let corrected = euler_step(rows(&there), &dt, after - rows(&v));
        active.x_u = in_order(corrected, &short, &there, &arrived);
        before
    }

    /// `f_theta-(x_u, u)`. At `u = 1` it equals `x_u`, and the network is not evaluated.
    fn jump(&self, active: &Active, target: &Denoiser) -> Tensor<4> {
        let device = active.x_u.device();
        let (arrived, short) = active.arrived();
        if short.is_empty() {
            return active.x_u.clone();
        }
        let u: Vec<f32> = short.iter().map(|&place| active.u[place]).collect();
        let condition = active.condition.clone().select(&indices(&short, &device));
        let x_u = active.x_u.clone().select(0, indices(&short, &device));
        let of_target = |x, t: &[f32], condition| target.velocity(x, t, condition);
        let v = self.velocity(of_target, x_u.clone(), &u, condition);
        in_order(jump(x_u, &per_image(&u, &device), v), &short, &active.x_u, &arrived)
    }

    /// The velocity of a network, for a batch that is padded if [`Curriculum::pad_to`] is set.
    fn velocity(
        &self,
        velocity: impl Fn(Tensor<4>, &[f32], Conditions) -> Tensor<4>,
        x: Tensor<4>,
        t: &[f32],
        condition: Conditions,
    ) -> Tensor<4> {
        let count = t.len();
        let size = self.pad_to.map_or(count, |most| padded(count, most));
        if size == count {
            return velocity(x, t, condition);
        }
        let rows: Vec<usize> = (0..size).map(|row| if row < count { row } else { 0 }).collect();
        let index = indices(&rows, &x.device());
        let t: Vec<f32> = rows.iter().map(|&row| t[row]).collect();
        velocity(x.select(0, index.clone()), &t, condition.select(&index)).narrow(0, 0, count)
    }

    fn discrepancy(&self, estimate: Tensor<4>, reached: Tensor<4>) -> Vec<f64> {
        let mse = mse(estimate, reached);
        match self.scope {
            Scope::Image => mse.into_iter().map(|mse| kdc(mse, self.peak)).collect(),
            Scope::Batch => vec![kdc(mse.iter().sum::<f64>() / mse.len() as f64, self.peak); mse.len()],
        }
    }
}

/// A [`Goal`] under construction, with targets in the order in which the images finish.
struct GoalRows {
    targets: Vec<Tensor<4>>,
    /// The position of each image in `targets`.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::method::guidance::Guidance;
    use crate::model::{NetworkSpec, Prediction};
    use crate::nn::denoiser::random_model;

    /// The times after each step from `t` to the end.
    fn ends(step_size: f32, step_shift: f32, t: f32) -> Vec<f32> {
        let curriculum = Curriculum {
            mode: Mode::Cd,
            scope: Scope::Image,
            threshold: 60.0,
            peak: 2.0,
            step_size,
            step_shift,
            solver: StepSolver::Euler,
            pad_to: None,
        };
        let mut ends = vec![t];
        while ends.last().is_some_and(|&u| u < 1.0) {
            ends.push(curriculum.step_end(ends[ends.len() - 1]));
        }
        ends
    }

    #[test]
    fn steps_have_equal_lengths_in_shifted_time() {
        assert_eq!(ends(0.25, 1.0, 0.0), [0.0, 0.25, 0.5, 0.75, 1.0]);
        // With `1 - t = k s / (1 + (k - 1) s)` at s = 0.75, 0.5, 0.25 and k = 3: 1 - 9/10, 1 - 3/4, 1 - 1/2.
        let shifted = ends(0.25, 3.0, 0.0);
        assert_eq!(shifted.len(), 5);
        for (found, expected) in shifted.iter().zip([0.0, 0.1, 0.25, 0.5, 1.0]) {
            assert!((found - expected).abs() < 1e-6, "{found}, not {expected}");
        }
        // From another time, the last step is shorter.
        let later = ends(0.25, 3.0, 0.25);
        assert!(later.len() == 3 && (later[1] - 0.5).abs() < 1e-6, "{later:?}");
        let between = ends(0.25, 3.0, 0.4);
        assert!(between.len() == 3 && between[1] > 0.5 && between[2] == 1.0, "{between:?}");
    }

    #[test]
    fn guided_steps_count_twice() {
        let mut spec =
            Config::preset("shapes").map(|config| config.network).unwrap_or_else(|error| panic!("{error}"));
        (spec.height, spec.width, spec.num_classes) = (8, 8, Some(3));
        (spec.channel_mult, spec.attention_resolutions) = (vec![1.0, 2.0], vec![4]);
        let (spec, device) = (NetworkSpec::from(spec), Device::flex());
        let network =
            |seed| Denoiser::frozen(&random_model(spec.clone(), &Prediction::Velocity, seed), &device);
        let guidance = Guidance::Auto { weaker: network(2), scale: 2.0, until: 0.5 };
        let teacher = Teacher { denoiser: network(1), guidance };
        let evaluations = |solver| {
            // No KDC reaches the threshold, so the teacher's four steps go to the end.
            let curriculum = Curriculum {
                mode: Mode::Cd,
                scope: Scope::Image,
                threshold: f64::INFINITY,
                peak: 2.0,
                step_size: 0.25,
                step_shift: 1.0,
                solver,
                pad_to: None,
            };
            let start = Start {
                estimate: Tensor::ones([1, 3, 8, 8], &device),
                x_t: Tensor::zeros([1, 3, 8, 8], &device),
                t: vec![0.0],
                condition: Conditions::of_labels(&[0], &device),
                direction: None,
            };
            curriculum.goal(start, &teacher, &network(3)).evaluations
        };
        // Velocities of the teacher at 0, 0.25, 0.5 and 0.75, of which the first two are guided, and three of the target.
        assert_eq!(evaluations(StepSolver::Euler), [2 + 2 + 1 + 1 + 3]);
        // Heun's steps also evaluate the teacher at their end, except at the image.
        assert_eq!(evaluations(StepSolver::Heun), [(2 + 2) + (2 + 1) + (1 + 1) + 1 + 3]);
    }
}
