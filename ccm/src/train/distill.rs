//! Distils a student: one straight line, to be read beside PAPER.md §5.

use super::batches::{Batch, Batches};
use super::curriculum::{Curriculum, Goal, Mode, Start, times};
use super::distance::Distance;
use super::ema::Ema;
use super::flow::{jump, path};
use super::optimizer::Schedule;
use super::trainee::{Stage, StepReport, Trainee, Workers};
use super::unet::UNet;

/// Places of the averages in [`Trainee::emas`].
pub const TARGET: usize = 0;
/// The average that is sampled from.
pub const SAMPLED: usize = 2;

/// A student in training. Its averages are the target network, one in between, and the one that is sampled.
pub struct Distillation<'a> {
    /// Where images come from.
    pub batches: Batches<'a>,
    /// How a gradient becomes a step.
    pub schedule: Schedule,
    /// Who computes.
    pub workers: Workers,
    /// How far the teacher looks ahead.
    pub curriculum: Curriculum,
    /// What the student minimises.
    pub distance: Distance,
    /// `alpha` of `t = (U (1 - s))^alpha`.
    pub time_alpha: f32,
    /// The teacher; it records no gradients.
    pub teacher: UNet,
    /// The student.
    pub trainee: Trainee,
}

/// `t = (U (1 - s))^alpha`: at least one whole step is left for the teacher.
pub fn sample_times(uniform: &[f32], step_size: f32, alpha: f32) -> Vec<f32> {
    uniform.iter().map(|u| (u * (1.0 - step_size)).powf(alpha)).collect()
}

impl Stage for Distillation<'_> {
    fn step(&mut self) -> StepReport {
        let Self { batches, schedule, workers, curriculum, distance, time_alpha, teacher, trainee } = self;
        let target = trainee.emas[TARGET].unet.clone();

        let loss = |student: &UNet, Batch { x0, x1, uniform, label }: Batch| {
            let t = sample_times(&uniform, curriculum.step_size, *time_alpha);
            let times = times(&t, &x0.device());
            let x_t = path(&x0, &x1, &times);
            let v = student.forward(x_t.clone().autodiff(), times.clone(), label.clone());
            let estimate = jump(x_t.clone().autodiff(), &times, v);
            let direction = (curriculum.mode == Mode::Ct).then(|| x1 - x0);
            let start = Start { estimate: estimate.clone().inner(), x_t, t, label, direction };
            let goal: Goal = curriculum.goal(start, teacher, &target);
            let walked = (goal.kdc.iter().sum::<f64>(), goal.steps.iter().sum::<usize>() as f64);
            (distance.mean(estimate, goal.target.autodiff()), walked)
        };

        let batch = batches.batch(trainee.step);
        let (loss, gradient_norm, walked) = trainee.learn(schedule, &batch, workers, loss);
        let step = trainee.step;
        let mean = |sum: f64| Some(sum / batch.len() as f64);
        StepReport {
            step,
            images: step * batch.len() as u64,
            loss,
            gradient_norm,
            kdc: mean(walked.iter().map(|(kdc, _)| kdc).sum()),
            teacher_steps: mean(walked.iter().map(|(_, steps)| steps).sum()),
        }
    }

    fn trainee(&self) -> &Trainee {
        &self.trainee
    }

    fn sampled(&self) -> &Ema {
        &self.trainee.emas[SAMPLED]
    }
}
