//! Trains a teacher by conditional flow matching (PAPER.md §2).

use std::ops::Range;

use burn::tensor::Tensor;

use super::batches::Batches;
use super::state::{Stage, StepReport, TrainState, Workers};
use crate::method::batch::Batch;
use crate::method::curriculum::times;
use crate::method::distance::Distance;
use crate::method::flow::path;
use crate::nn::ema::Ema;
use crate::nn::optimizer::Schedule;
use crate::nn::unet::UNet;

/// A teacher in training.
pub struct Teacher<'a> {
    /// Where images come from.
    pub batches: Batches<'a>,
    /// How a gradient becomes a step.
    pub schedule: Schedule,
    /// The threads that share a batch.
    pub workers: Workers,
    /// The network.
    pub state: TrainState,
}

/// Regresses `v(x_t, t)` onto `x1 - x0`, with `t` uniform in [0, 1).
fn flow_matching(unet: &UNet, batch: Batch, _: Range<usize>) -> (Tensor<1>, ()) {
    let t = times(&batch.uniform, &batch.x0.device());
    let x_t = path(&batch.x0, &batch.x1, &t);
    let v = unet.forward(x_t.autodiff(), t, batch.label);
    (Distance::L2.mean(v, (batch.x1 - batch.x0).autodiff()), ())
}

impl Stage for Teacher<'_> {
    fn step(&mut self) -> StepReport {
        let batch = self.batches.batch(self.state.step);
        let (loss, gradient_norm, _) = self.state.learn(&self.schedule, &batch, &self.workers, flow_matching);
        let step = self.state.step;
        let images = step * batch.len() as u64;
        StepReport {
            step,
            images,
            evaluations: batch.len() as u64,
            loss,
            gradient_norm,
            kdc: None,
            teacher_steps: None,
            discriminator_loss: None,
        }
    }

    fn state(&self) -> &TrainState {
        &self.state
    }

    fn sampled(&self) -> &Ema {
        &self.state.emas[0]
    }
}
