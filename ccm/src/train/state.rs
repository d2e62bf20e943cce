//! The state of training: a network's weights, their averages and the optimiser's moments.

use std::ops::Range;

use burn::tensor::{Device, Tensor};
use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

use super::trainable::Trainable;
use crate::method::batch::Batch;
use crate::method::discriminator::Discriminator;
use crate::nn::denoiser::Denoiser;
use crate::nn::ema::Ema;
use crate::nn::host::to_host;
use crate::nn::optimizer::{Optimizer, Schedule};
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
    /// Steps taken.
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
}

/// A stage of training, step by step.
pub trait Stage {
    /// Takes one step.
    fn step(&mut self) -> StepReport;

    /// The network in training.
    fn state(&self) -> &TrainState;

    /// The average of the weights that is used for samples.
    fn sampled(&self) -> &Ema;
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
            step: 0,
        }
    }

    /// Takes an optimiser step on the mean `loss` of a batch. `workers` splits the batch; `loss` gets the rows of its
    /// part.
    ///
    /// Returns the loss, the norm of the gradient, and the additional result of `loss` for each part.
    pub fn learn<R: Send>(
        &mut self,
        schedule: &Schedule,
        batch: &Batch,
        workers: &Workers,
        loss: impl Fn(&Denoiser, Batch, Range<usize>) -> (Tensor<1>, R) + Sync,
    ) -> (f64, f64, Vec<R>) {
        // Dropout draws from the device's generator, whose state would otherwise depend on earlier steps.
        batch.x0.device().seed(batch.seed);
        let student = &self.denoiser;
        let one = |rows: Range<usize>| {
            let share = rows.len() as f32 / batch.len() as f32;
            // Each part has its own parameters, so that the autodiff graphs of two parts are separate.
            let student = student.with_parameters(student.parameters());
            let (loss, said) = loss(&student, batch.part(rows.clone()), rows);
            let loss = loss * share;
            let gradients = student.gradients(&loss);
            Sum { loss: loss.inner(), gradients, said: vec![said] }
        };
        let rows = (0..batch.len()).step_by(workers.part);
        let parts = rows.map(|start| start..batch.len().min(start + workers.part)).collect();
        let Some(sum) = workers.fold(parts, one, Sum::join) else { return (0.0, 0.0, Vec::new()) };
        let loss = to_host(sum.loss).into_iter().map(f64::from).sum();
        let (parameters, norm) =
            self.optimizer.step(schedule, self.step, self.denoiser.parameters(), sum.gradients);
        self.denoiser = self.denoiser.with_parameters(parameters);
        for ema in &mut self.emas {
            ema.update(&self.denoiser);
        }
        self.step += 1;
        (loss, norm, sum.said)
    }
}

/// Loss and gradients, summed over the parts of a batch.
struct Sum<R> {
    /// Share of the mean loss, `[1]`, without gradient.
    loss: Tensor<1>,
    /// Share of the gradient of each parameter, flat.
    gradients: Vec<Tensor<1>>,
    said: Vec<R>,
}

impl<R> Sum<R> {
    fn join(mut self, other: Self) -> Self {
        let gradients = self.gradients.into_iter().zip(other.gradients);
        self.said.extend(other.said);
        Self {
            loss: self.loss + other.loss,
            gradients: gradients.map(|(sum, gradient)| sum + gradient).collect(),
            said: self.said,
        }
    }
}

/// Splits a batch over threads, with a limit on the images of one part.
///
/// On a CPU it is faster to run the whole network on separate images in each thread than to synchronise the threads
/// after every operation. A GPU needs one worker.
pub struct Workers {
    pools: Vec<ThreadPool>,
    part: usize,
}

impl Workers {
    /// Workers with `threads` threads for batches of `batch` images, with at most `most` images in a part.
    ///
    /// # Errors
    /// If the system cannot start threads.
    pub fn new(threads: usize, batch: usize, most: usize) -> Result<Self, ThreadPoolBuildError> {
        let part = most.min(batch.div_ceil(threads)).max(1);
        let pool = || ThreadPoolBuilder::new().num_threads(1).build();
        let pools =
            if threads > 1 { (0..threads).map(|_| pool()).collect::<Result<_, _>>()? } else { Vec::new() };
        Ok(Self { pools, part })
    }

    /// Applies `f` to every part and joins the results; `None` if there are no parts. A thread holds at most two
    /// results at a time. Thread `i mod threads` processes part `i` and joins its own results first; then the results
    /// of the threads are joined in order. Sums therefore depend on the number of threads, but not on their timing.
    fn fold<T: Send, R: Send>(
        &self,
        parts: Vec<T>,
        f: impl Fn(T) -> R + Sync,
        join: impl Fn(R, R) -> R + Sync,
    ) -> Option<R> {
        if self.pools.is_empty() {
            return parts.into_iter().map(f).reduce(join);
        }
        let mut shares: Vec<Vec<T>> = self.pools.iter().map(|_| Vec::new()).collect();
        for (i, part) in parts.into_iter().enumerate() {
            shares[i % self.pools.len()].push(part);
        }
        let (f, join) = (&f, &join);
        std::thread::scope(|scope| {
            let start = |(pool, share): (_, Vec<T>)| {
                let pool: &ThreadPool = pool;
                scope.spawn(move || pool.install(move || share.into_iter().map(f).reduce(join)))
            };
            let threads: Vec<_> = self.pools.iter().zip(shares).map(start).collect();
            let wait = |thread: std::thread::ScopedJoinHandle<'_, _>| match thread.join() {
                Ok(done) => done,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            threads.into_iter().filter_map(wait).reduce(join)
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn the_parts_are_joined_in_one_order_whatever_thread_is_faster() {
        for threads in 1..5 {
            let workers = Workers::new(threads, 64, 3).unwrap();
            let joined = workers.fold((0..11).collect(), |i| vec![i], |a, b| [a, b].concat()).unwrap();
            let expected: Vec<usize> =
                (0..threads).flat_map(|thread| (thread..11).step_by(threads)).collect();
            assert_eq!(joined, expected);
            assert!(workers.fold(Vec::<usize>::new(), |i| i, |a, b| a + b).is_none());
        }
    }

    #[test]
    fn no_more_results_are_held_than_two_a_thread() {
        /// Counts its live instances.
        struct Held(Arc<AtomicUsize>);
        impl Drop for Held {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::SeqCst);
            }
        }
        for threads in 1..4 {
            let (now, most) = (Arc::new(AtomicUsize::new(0)), AtomicUsize::new(0));
            let result = |_: usize| {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                Held(Arc::clone(&now))
            };
            let workers = Workers::new(threads, 64, 1).unwrap();
            workers.fold((0..64).collect(), result, |sum, _| sum);
            assert!(most.into_inner() <= 2 * threads, "{threads} threads");
        }
    }
}
