//! Distils a student. The code follows PAPER.md §5 step by step.

use std::ops::Range;

use burn::tensor::Tensor;

use super::batches::Batches;
use super::state::{Learned, Scaling, Stage, StepReport, TrainState};
use super::workers::{Summand, Workers};
use crate::data::DataError;
use crate::method::adversary::Adversary;
use crate::method::batch::Batch;
use crate::method::curriculum::{Counts, Curriculum, Goal, Mode, Scope, Start};
use crate::method::discriminator::DiscriminatorGradients;
use crate::method::distance::Distance;
use crate::method::flow::{jump, path};
use crate::method::guidance::Teacher;
use crate::nn::denoiser::Denoiser;
use crate::nn::ema::Ema;
use crate::nn::host::per_image;
use crate::nn::optimizer::Schedule;

/// Index of the target network in [`TrainState::emas`].
pub const TARGET: usize = 0;
/// Index of the sampled average in [`TrainState::emas`].
pub const SAMPLED: usize = 1;

/// A student in training. It has two weight averages: the target network and the sampled average.
pub struct Distillation<'a> {
    /// The source of batches.
    pub batches: Batches<'a>,
    /// The optimiser's hyperparameters and learning-rate schedule.
    pub schedule: Schedule,
    /// The threads that share a batch.
    pub workers: Workers,
    /// The curriculum, which sets the number of teacher steps between the student's point and the target's.
    pub curriculum: Curriculum,
    /// The distance that the student minimises.
    pub distance: Distance,
    /// The adversarial loss, if there is one; the state then has a discriminator.
    pub adversary: Option<Adversary>,
    /// `alpha` of `t = (U (1 - s))^alpha`.
    pub time_alpha: f32,
    /// The teacher; it records no gradients.
    pub teacher: Teacher,
    /// The student.
    pub state: TrainState,
}

/// `t = t0 + (1 - t0) (U (1 - s))^alpha`, with `t0` the first time of the teacher's path. With `alpha`
/// of 1 or more, every `t` leaves room for a teacher step of `(1 - t0) s`.
pub fn sample_times(uniform: &[f32], first_time: f64, step_size: f32, alpha: f32) -> Vec<f32> {
    let first = first_time as f32;
    uniform.iter().map(|u| first + (1.0 - first) * (u * (1.0 - step_size)).powf(alpha)).collect()
}

/// What a part of a batch contributes besides the student's gradient.
struct Contribution {
    counts: Counts,
    of_discriminator: Option<DiscriminatorGradients>,
}

impl Summand for Contribution {
    fn join(self, other: Self) -> Self {
        let of_both = self.of_discriminator.zip(other.of_discriminator);
        Self {
            counts: [self.counts, other.counts].into_iter().sum(),
            of_discriminator: of_both.map(|(sum, part)| sum.join(part)),
        }
    }

    fn figures(&self) -> Vec<f64> {
        let Counts { kdc, steps, evaluations } = self.counts;
        vec![kdc, steps as f64, evaluations as f64]
    }

    fn set_figures(&mut self, figures: &[f64]) {
        if let [kdc, steps, evaluations] = *figures {
            self.counts = Counts { kdc, steps: steps as usize, evaluations: evaluations as usize };
        }
    }

    fn tensors(&mut self) -> Vec<&mut Tensor<1>> {
        self.of_discriminator.iter_mut().flat_map(DiscriminatorGradients::tensors).collect()
    }
}

impl Stage for Distillation<'_> {
    fn step(&mut self) -> Result<StepReport, DataError> {
        let Self { batches, schedule, workers, curriculum, distance, adversary, time_alpha, teacher, state } =
            self;
        let target = state.emas[TARGET].denoiser.clone();
        let adversary = adversary.as_ref().filter(|adversary| state.step >= adversary.from);
        let adversarial = adversary.zip(state.discriminator.clone());

        // `x_t` and `t` of the paper.
        let begin = |Batch { x0, x1, uniform, .. }: &Batch| {
            let t = sample_times(
                uniform,
                teacher.denoiser.path().first_time(),
                curriculum.step_size,
                *time_alpha,
            );
            let times = per_image(&t, &x0.device());
            (path(x0, x1, &times), t, times)
        };
        let goal = |estimate: Tensor<4>, batch: Batch| -> Goal {
            let (x_t, t, _) = begin(&batch);
            let direction = (curriculum.mode == Mode::Ct).then(|| batch.x1 - batch.x0);
            curriculum.goal(
                Start { estimate, x_t, t, condition: batch.condition, direction },
                teacher,
                &target,
            )
        };

        let batch = batches.batch(state.step)?;
        // A KDC of the whole batch needs all its images at once, even if the backward pass is split.
        let together = (curriculum.scope == Scope::Batch).then(|| {
            let (x_t, t, times) = begin(&batch);
            let v = state.denoiser.without_gradients().velocity(x_t.clone(), &t, batch.condition.clone());
            goal(jump(x_t, &times, v), batch.clone())
        });
        let loss = |student: &Denoiser, part: Batch, rows: Range<usize>| {
            let (x_t, t, times) = begin(&part);
            let v = student.velocity(x_t.clone().autodiff(), &t, part.condition.clone());
            let estimate = jump(x_t.autodiff(), &times, v);
            let goal = match &together {
                Some(goal) => goal.part(rows.clone()),
                None => goal(estimate.clone().inner(), part.clone()),
            };
            let distance =
                |estimate| distance.mean(estimate, goal.target.clone().autodiff(), &part.condition);
            let (loss, of_discriminator) = match &adversarial {
                None => (distance(estimate), None),
                Some((adversary, discriminator)) => {
                    let share = part.len() as f32 / batch.size as f32;
                    let (loss, of_discriminator) =
                        adversary.join(discriminator, estimate, &part, rows, distance);
                    (loss, Some(of_discriminator.of_share(share)))
                }
            };
            (loss, Contribution { counts: goal.counts(), of_discriminator })
        };
        let next = state.step + 1;
        let learn = || state.learn(schedule, &batch, workers, loss);
        let Learned { loss, gradient_norm, scaling, additional: Contribution { counts, of_discriminator } } =
            batches.while_preparing(next, learn);
        let skipped = matches!(scaling, Some(Scaling { skipped: true, .. }));

        // Evaluations of the student (twice if the targets are computed first) and of encoders, which count half.
        let once = 1 + usize::from(together.is_some()) + distance.evaluations();
        let halves = adversarial.as_ref().map_or(0, |(_, discriminator)| discriminator.encoder_passes());
        let discriminator_loss = adversary
            .zip(state.discriminator.as_mut())
            .zip(of_discriminator.filter(|_| !skipped))
            .map(|((adversary, discriminator), gradients)| {
                discriminator.learn(&adversary.schedule(schedule), gradients)
            });

        let step = state.step;
        Ok(StepReport {
            step,
            images: step * batch.size as u64,
            evaluations: (once * batch.size + halves * batch.size / 2 + counts.evaluations) as u64,
            loss,
            gradient_norm,
            kdc: Some(counts.kdc / batch.size as f64),
            teacher_steps: Some(counts.steps as f64 / batch.size as f64),
            discriminator_loss,
            scaling,
        })
    }

    fn workers(&self) -> &Workers {
        &self.workers
    }

    fn state(&self) -> &TrainState {
        &self.state
    }

    fn sampled(&self) -> &Ema {
        &self.state.emas[SAMPLED]
    }
}
