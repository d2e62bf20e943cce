//! The state of training: a network's weights, their averages and the optimiser's moments.

use std::ops::Range;

use burn::tensor::{Device, Tensor};

use super::exchange::all_reduce_meanwhile;
use super::loss_scale::LossScale;
use super::trainable::Trainable;
use super::workers::{Summand, Workers};
use crate::data::DataError;
use crate::method::batch::Batch;
use crate::method::discriminator::Discriminator;
use crate::nn::denoiser::Denoiser;
use crate::nn::ema::Ema;
use crate::nn::host::to_host;
use crate::nn::optimizer::{Optimizer, Schedule, norm};
use crate::weights::{HostTensor, Model};

/// The complete state of a training stage, which a checkpoint holds.
#[derive(Clone)]
pub struct TrainState {
    /// The network that is trained; it records gradients.
    pub denoiser: Denoiser,
    /// Averages of its weights.
    pub emas: Vec<Ema>,
    /// The optimiser.
    pub optimizer: Optimizer,
    /// The discriminator, if there is an adversarial loss.
    pub discriminator: Option<Discriminator>,
    /// The loss scale; only with mixed precision in f16.
    pub loss_scale: Option<LossScale>,
    /// Steps taken, including skipped ones.
    pub step: u64,
}

/// Metrics of one training step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Steps taken, including this one.
    pub step: u64,
    /// Images trained on, including this step's.
    pub images: u64,
    /// Forward evaluations of the student, the teacher and the target in this step, counted per image. Two passes
    /// through the teacher's encoder count as one. The LPIPS network does not count.
    pub evaluations: u64,
    /// Mean loss of the batch.
    pub loss: f64,
    /// Norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Mean KDC of the batch in dB; only in distillation.
    pub kdc: Option<f64>,
    /// Mean number of teacher steps per image of the batch; only in distillation.
    pub teacher_steps: Option<f64>,
    /// Mean loss of the discriminator; only with an adversarial loss. At chance 2 in distillation, and 1.39
    /// and the gradient penalty in fine-tuning.
    pub discriminator_loss: Option<f64>,
    /// Loss scaling; only with mixed precision in f16.
    pub scaling: Option<Scaling>,
}

/// Loss scaling in one training step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scaling {
    /// The scale of the next step's loss.
    pub next: LossScale,
    /// Whether this step was skipped because its gradient was not finite.
    pub skipped: bool,
    /// Steps of the stage that were skipped, including this one.
    pub skipped_steps: u64,
}

impl StepReport {
    /// The reason to stop training after this step, if there is one.
    pub fn fault(&self) -> Option<String> {
        let Self { loss, gradient_norm, .. } = self;
        match self.scaling {
            Some(Scaling { next, skipped: true, .. }) => {
                let what =
                    "the gradient is not finite in f16, although the loss scale is below 1; the loss is";
                next.is_exhausted().then(|| format!("{what} {loss}"))
            }
            _ if !(loss.is_finite() && gradient_norm.is_finite()) => {
                Some(format!("the loss is {loss}, the norm of its gradient {gradient_norm}"))
            }
            _ => {
                let loss = self.discriminator_loss.filter(|loss| !loss.is_finite())?;
                Some(format!("the discriminator's loss is {loss}"))
            }
        }
    }
}

/// The results of [`TrainState::learn`].
pub struct Learned<R> {
    /// The mean loss of the batch.
    pub loss: f64,
    /// The norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Loss scaling; only with mixed precision in f16.
    pub scaling: Option<Scaling>,
    /// The sum of the additional results of the loss.
    pub additional: R,
}

/// A stage of training, step by step.
pub trait Stage {
    /// Takes one step.
    ///
    /// # Errors
    /// Images that cannot be read.
    fn step(&mut self) -> Result<StepReport, DataError>;

    /// The network in training.
    fn state(&self) -> &TrainState;

    /// The average of the weights that is used for samples.
    fn sampled(&self) -> &Ema;

    /// The threads that share a batch.
    fn workers(&self) -> &Workers;
}

impl TrainState {
    /// A state whose network and averages start from a model.
    pub fn new(model: &Model, decays: &[f64], device: &Device) -> Self {
        Self::of(&Trainable::weights(model), &model.tensors, decays, device)
    }

    /// A state whose network and averages start from these values.
    ///
    /// # Panics
    /// If they are not those of [`Trainable::tensors`].
    pub fn of(trainable: &Trainable, tensors: &[HostTensor], decays: &[f64], device: &Device) -> Self {
        let plain = trainable.denoiser(tensors.to_vec(), &device.clone().without_autodiff());
        Self {
            denoiser: trainable.denoiser(tensors.to_vec(), &device.clone().autodiff()),
            emas: decays.iter().map(|&decay| Ema { decay, denoiser: plain.clone() }).collect(),
            optimizer: Optimizer::default(),
            discriminator: None,
            loss_scale: None,
            step: 0,
        }
    }

    /// Takes an optimiser step on the mean `loss` of a batch. `workers` splits the batch; `loss` gets the rows of its
    /// part.
    pub fn learn<R: Summand>(
        &mut self,
        schedule: &Schedule,
        batch: &Batch,
        workers: &Workers,
        loss: impl Fn(&Denoiser, Batch, Range<usize>) -> (Tensor<1>, R) + Sync,
    ) -> Learned<R> {
        // Dropout draws from the device's generator, whose state would otherwise depend on earlier steps.
        batch.x0.device().seed(batch.seed.wrapping_add(workers.group.rank() as u64));
        let part = |rows: Range<usize>| {
            // Each part has its own parameters, so that the autodiff graphs of two parts are separate.
            let student = self.denoiser.with_parameters(self.denoiser.parameters());
            let share = rows.len() as f32 / batch.size as f32;
            let (loss, said) = loss(&student, batch.part(rows.clone()), rows);
            let factor = self.loss_scale.map_or(1.0, |scale| scale.factor);
            (PartLoss { student, loss: loss * share, factor }, said)
        };
        let sum_of = |rows| BatchSum::of_part(part(rows));
        let sum = match workers.before_last(batch.size, sum_of) {
            None => workers.sum(batch.size, sum_of),
            Some((before, last)) => BatchSum::overlapping(workers, before, workers.busy(|| part(last))),
        };
        let loss = to_host(sum.loss).into_iter().map(f64::from).sum();
        let overflow = self.loss_scale.map(|_| norm(&sum.gradients)).filter(|norm| !norm.is_finite());
        let gradient_norm = if let Some(norm) = overflow {
            self.optimizer.skip();
            norm
        } else {
            let parameters = self.denoiser.parameters();
            let (parameters, norm) = self.optimizer.step(schedule, self.step, parameters, sum.gradients);
            self.denoiser = self.denoiser.with_parameters(parameters);
            for ema in &mut self.emas {
                ema.update(&self.denoiser);
            }
            norm
        };
        let scaling = self.loss_scale.as_mut().map(|scale| {
            let skipped = overflow.is_some();
            scale.update(!skipped);
            Scaling { next: *scale, skipped, skipped_steps: self.optimizer.skipped() }
        });
        self.step += 1;
        Learned { loss, gradient_norm, scaling, additional: sum.said }
    }
}

/// The loss of a part of a batch.
struct PartLoss {
    /// The network that it was computed with.
    student: Denoiser,
    /// Share of the mean loss, `[1]`.
    loss: Tensor<1>,
    /// The loss scale of the backward pass.
    factor: f32,
}

impl PartLoss {
    /// Calls `each` with the place of every parameter and its gradient.
    fn gradients_in_turn(&self, mut each: impl FnMut(usize, Tensor<1>)) {
        let scaled = |tensor: Tensor<1>, by: f32| if by == 1.0 { tensor } else { tensor * by };
        let loss = scaled(self.loss.clone(), self.factor);
        let unscaled = |gradient| scaled(gradient, self.factor.recip());
        self.student.gradients_in_turn(&loss, |place, gradient| each(place, unscaled(gradient)));
    }
}

/// Loss and gradients, summed over the parts of a batch.
struct BatchSum<R> {
    /// Share of the mean loss, `[1]`, without gradient.
    loss: Tensor<1>,
    /// Share of the gradient of each parameter, flat.
    gradients: Vec<Tensor<1>>,
    said: R,
}

impl<R: Summand> BatchSum<R> {
    fn of_part((part, said): (PartLoss, R)) -> Self {
        let mut gradients = part.student.parameters();
        part.gradients_in_turn(|place, gradient| gradients[place] = gradient);
        Self { loss: part.loss.inner(), gradients, said }
    }

    /// The sum over all parts and ranks. Gradients of this rank's last part are computed while earlier ones are exchanged.
    /// `before` is the sum of its other parts.
    fn overlapping(workers: &Workers, before: Option<Self>, (last, said): (PartLoss, R)) -> Self {
        let of_last = Self { loss: last.loss.clone().inner(), gradients: Vec::new(), said };
        let (mut sum, before) = match before {
            None => (of_last, Vec::new()),
            Some(mut before) => {
                let gradients = std::mem::take(&mut before.gradients);
                (before.join(of_last), gradients)
            }
        };
        let mut gradients = last.student.parameters();
        let values = gradients.iter().map(|gradient| gradient.dims()[0]).sum();
        let first: Vec<_> = sum.tensors().into_iter().map(|tensor| tensor.clone()).collect();
        let mut places = Vec::with_capacity(gradients.len());
        let backward = |send: &mut dyn FnMut(Tensor<1>)| {
            first.into_iter().for_each(&mut *send);
            last.gradients_in_turn(|place, gradient| {
                places.push(place);
                send(match before.get(place) {
                    Some(before) => before.clone() + gradient,
                    None => gradient,
                });
            });
        };
        let group = &*workers.group;
        let sums = all_reduce_meanwhile(group, values, |send| workers.busy(|| backward(send)));
        let mut sums = sums.into_iter();
        sum.tensors().into_iter().zip(&mut sums).for_each(|(tensor, of_ranks)| *tensor = of_ranks);
        places.into_iter().zip(sums).for_each(|(place, of_ranks)| gradients[place] = of_ranks);
        sum.all_reduce_figures(group);
        Self { gradients, ..sum }
    }
}

impl<R: Summand> Summand for BatchSum<R> {
    fn join(self, other: Self) -> Self {
        let gradients = self.gradients.into_iter().zip(other.gradients);
        Self {
            loss: self.loss + other.loss,
            gradients: gradients.map(|(sum, gradient)| sum + gradient).collect(),
            said: self.said.join(other.said),
        }
    }

    fn figures(&self) -> Vec<f64> {
        self.said.figures()
    }

    fn set_figures(&mut self, figures: &[f64]) {
        self.said.set_figures(figures);
    }

    fn tensors(&mut self) -> Vec<&mut Tensor<1>> {
        let own = std::iter::once(&mut self.loss).chain(&mut self.gradients);
        own.chain(self.said.tensors()).collect()
    }
}
