//! Fine-tunes a distilled student with the adversarial loss alone (PAPER.md §10).

use std::ops::Range;

use burn::tensor::Tensor;

use super::batches::Batches;
use super::state::{Learned, Scaling, Stage, StepReport, TrainState};
use super::workers::{Summand, Workers};
use crate::data::DataError;
use crate::method::adversary::Adversary;
use crate::method::batch::Batch;
use crate::method::discriminator::DiscriminatorGradients;
use crate::method::flow::jump;
use crate::nn::denoiser::Denoiser;
use crate::nn::ema::Ema;
use crate::nn::host::per_image;
use crate::nn::optimizer::Schedule;

/// A student in adversarial fine-tuning. It has one weight average, which is sampled.
pub struct Finish<'a> {
    /// The source of batches.
    pub batches: Batches<'a>,
    /// The optimiser's hyperparameters and learning-rate schedule.
    pub schedule: Schedule,
    /// The threads that share a batch.
    pub workers: Workers,
    /// The adversarial loss.
    pub adversary: Adversary,
    /// The student, with the discriminator.
    pub state: TrainState,
}

/// The one-step images of a student, from unit noise `x0`, `[B, C, H, W]`: a jump from the path's first time.
fn generate(student: &Denoiser, Batch { x0, condition, .. }: &Batch) -> Tensor<4> {
    let path = student.path();
    let first = path.first_time();
    let t = vec![first as f32; x0.dims()[0]];
    let x = (x0.clone() * path.start_scale(first) as f32).autodiff();
    let v = student.velocity(x.clone(), &t, condition.clone());
    jump(x, &per_image(&t, &x0.device()).autodiff(), v)
}

impl Summand for DiscriminatorGradients {
    fn join(self, other: Self) -> Self {
        Self::join(self, other)
    }

    fn figures(&self) -> Vec<f64> {
        Vec::new()
    }

    fn set_figures(&mut self, _: &[f64]) {}

    fn tensors(&mut self) -> Vec<&mut Tensor<1>> {
        Self::tensors(self).collect()
    }
}

impl Stage for Finish<'_> {
    /// # Panics
    /// If the state has no discriminator.
    #[expect(clippy::expect_used, reason = "a run gives the state a discriminator")]
    fn step(&mut self) -> Result<StepReport, DataError> {
        let Self { batches, schedule, workers, adversary, state } = self;
        let batch = batches.batch(state.step)?;
        let mut discriminator = state.discriminator.take().expect("a state with a discriminator");
        let encoder_passes = discriminator.encoder_passes();
        let loss = |student: &Denoiser, part: Batch, rows: Range<usize>| {
            let share = part.len() as f32 / batch.size as f32;
            let (loss, gradients) = adversary.alone(&discriminator, generate(student, &part), &part, rows);
            (loss, gradients.of_share(share))
        };
        let next = state.step + 1;
        let learn = || state.learn(schedule, &batch, workers, loss);
        let Learned { loss, gradient_norm, scaling, additional } = batches.while_preparing(next, learn);
        let discriminator_loss = match scaling {
            Some(Scaling { skipped: true, .. }) => None,
            _ => Some(discriminator.learn(&adversary.schedule(schedule), additional)),
        };
        state.discriminator = Some(discriminator);
        let step = state.step;
        Ok(StepReport {
            step,
            images: step * batch.size as u64,
            // The student, and passes through the encoder, which count half. The pass for the gradient penalty does not count.
            evaluations: ((2 + encoder_passes) * batch.size / 2) as u64,
            loss,
            gradient_norm,
            kdc: None,
            teacher_steps: None,
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
        &self.state.emas[0]
    }
}
