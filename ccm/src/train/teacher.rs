//! Trains a teacher (PAPER.md §2 and §8).

use std::ops::Range;

use super::batches::Batches;
use super::state::{Learned, Stage, StepReport, TrainState};
use super::workers::Workers;
use crate::data::DataError;
use crate::method::batch::Batch;
use crate::method::teacher::{TimeDistribution, teacher_loss};
use crate::nn::denoiser::Denoiser;
use crate::nn::ema::Ema;
use crate::nn::optimizer::Schedule;

/// A teacher in training.
pub struct Teacher<'a> {
    /// The source of batches.
    pub batches: Batches<'a>,
    /// The optimiser's hyperparameters and learning-rate schedule.
    pub schedule: Schedule,
    /// The threads that share a batch.
    pub workers: Workers,
    /// The distribution of training times.
    pub times: TimeDistribution,
    /// The weights, their average and the optimiser.
    pub state: TrainState,
}

impl Stage for Teacher<'_> {
    fn step(&mut self) -> Result<StepReport, DataError> {
        let batch = self.batches.batch(self.state.step)?;
        let times = self.times;
        let loss =
            |denoiser: &Denoiser, part: Batch, _: Range<usize>| (teacher_loss(denoiser, times, part), ());
        let Self { batches, schedule, workers, state, .. } = self;
        let next = state.step + 1;
        let Learned { loss, gradient_norm, scaling, .. } =
            batches.while_preparing(next, || state.learn(schedule, &batch, workers, loss));
        let step = self.state.step;
        let images = step * batch.size as u64;
        Ok(StepReport {
            step,
            images,
            evaluations: batch.size as u64,
            loss,
            gradient_norm,
            kdc: None,
            teacher_steps: None,
            discriminator_loss: None,
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
