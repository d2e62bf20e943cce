//! A network in training: its weights, their averages and the optimiser's state.

use burn::tensor::{Device, Tensor};

use super::batches::Batch;
use super::ema::Ema;
use super::optimizer::{Optimizer, Schedule, gradients};
use super::unet::{UNet, to_host};
use crate::weights::Model;

/// What a stage of training changes, and a checkpoint holds.
#[derive(Clone)]
pub struct Trainee {
    /// The network that is trained; it records gradients.
    pub unet: UNet,
    /// Averages of its weights.
    pub emas: Vec<Ema>,
    /// The optimiser.
    pub optimizer: Optimizer,
    /// Steps taken.
    pub step: u64,
}

/// What a step of training has to say.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Steps taken, this one included.
    pub step: u64,
    /// Images seen, this step's included.
    pub images: u64,
    /// Mean loss of the batch.
    pub loss: f64,
    /// Norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Mean KDC of the batch in dB; in distillation.
    pub kdc: Option<f64>,
    /// Mean number of teacher steps of the batch; in distillation.
    pub teacher_steps: Option<f64>,
}

/// A stage of training, step by step.
pub trait Stage {
    /// Takes one step.
    fn step(&mut self) -> StepReport;

    /// The network in training.
    fn trainee(&self) -> &Trainee;

    /// The average of the weights that samples are drawn from.
    fn sampled(&self) -> &Ema;
}

impl Trainee {
    /// Starts from a model; so do the averages.
    pub fn new(model: &Model, decays: &[f64], device: &Device) -> Self {
        let plain = UNet::new(model, &device.clone().without_autodiff());
        Self {
            unet: UNet::new(model, &device.clone().autodiff()),
            emas: decays.iter().map(|&decay| Ema { decay, unet: plain.clone() }).collect(),
            optimizer: Optimizer::default(),
            step: 0,
        }
    }

    /// Takes a step down the gradient of the mean `loss` of a batch. The batch is cut into parts of `part`
    /// images, so that only one part's activations are held at a time; the gradients are summed.
    ///
    /// Gives back the loss and the norm of the gradient.
    pub fn learn(
        &mut self,
        schedule: &Schedule,
        batch: &Batch,
        part: usize,
        mut loss: impl FnMut(&UNet, Batch) -> Tensor<1>,
    ) -> (f64, f64) {
        // Dropout draws from the device's own generator.
        batch.x0.device().seed(self.step);
        let mut total = 0.0;
        let mut sum: Vec<Tensor<1>> = Vec::new();
        for part in batch.parts(part) {
            let share = part.len() as f32 / batch.len() as f32;
            let loss = loss(&self.unet, part) * share;
            let gradients = gradients(&self.unet, &loss);
            total += to_host(loss).into_iter().map(f64::from).sum::<f64>();
            sum = match sum.is_empty() {
                true => gradients,
                false => sum.into_iter().zip(gradients).map(|(sum, gradient)| sum + gradient).collect(),
            };
        }
        let (unet, norm) = self.optimizer.step(schedule, self.step, self.unet.clone(), sum);
        self.unet = unet;
        for ema in &mut self.emas {
            ema.update(&self.unet);
        }
        self.step += 1;
        (total, norm)
    }
}
