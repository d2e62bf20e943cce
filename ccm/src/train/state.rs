//! The state of training: a network's weights, their averages and the optimiser's moments.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use burn::tensor::{Device, Tensor, TensorData};
use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

use super::group::{Alone, Group, fold};
use super::loss_scale::LossScale;
use super::trainable::Trainable;
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
        let student = &self.denoiser;
        let factor = self.loss_scale.map_or(1.0, |scale| scale.factor);
        let scaled = |tensor: Tensor<1>, by: f32| if by == 1.0 { tensor } else { tensor * by };
        let one = |rows: Range<usize>| {
            let share = rows.len() as f32 / batch.size as f32;
            // Each part has its own parameters, so that the autodiff graphs of two parts are separate.
            let student = student.with_parameters(student.parameters());
            let (loss, said) = loss(&student, batch.part(rows.clone()), rows);
            let loss = loss * share;
            let gradients = student.gradients(&scaled(loss.clone(), factor));
            let gradients = gradients.into_iter().map(|gradient| scaled(gradient, factor.recip())).collect();
            BatchSum { loss: loss.inner(), gradients, said }
        };
        let sum = workers.sum(batch.size, one);
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

/// What a part of a batch contributes to a sum over the parts, the threads and the ranks.
pub trait Summand: Send {
    /// The sum of two contributions.
    fn join(self, other: Self) -> Self;

    /// Its numbers.
    fn figures(&self) -> Vec<f64>;

    /// Replaces the numbers of [`Summand::figures`].
    fn set_figures(&mut self, figures: &[f64]);

    /// Its tensors.
    fn tensors(&mut self) -> Vec<&mut Tensor<1>>;
}

impl Summand for () {
    fn join(self, (): Self) -> Self {}

    fn figures(&self) -> Vec<f64> {
        Vec::new()
    }

    fn set_figures(&mut self, _: &[f64]) {}

    fn tensors(&mut self) -> Vec<&mut Tensor<1>> {
        Vec::new()
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

/// Adds up a contribution over the ranks of a group. Its tensors are exchanged in buckets, since an exchange of many small
/// tensors takes longer.
fn all_reduce<R: Summand>(group: &dyn Group, mut of_rank: R) -> R {
    /// Values of a bucket: 64 MiB.
    const BUCKET: usize = 1 << 24;
    if group.size() == 1 {
        return of_rank;
    }
    let figures = group.all_reduce_figures(&of_rank.figures());
    of_rank.set_figures(&figures);
    let mut tensors = of_rank.tensors();
    while !tensors.is_empty() {
        let ends = tensors.iter().scan(0, |end, tensor| {
            *end += tensor.dims()[0];
            Some(*end)
        });
        let count = ends.take_while(|&end| end <= BUCKET).count().max(1);
        let bucket: Vec<_> = tensors.drain(..count).collect();
        let mut values = to_host(Tensor::cat(bucket.iter().map(|tensor| (**tensor).clone()).collect(), 0));
        group.all_reduce(&mut values);
        let mut sums = values.as_slice();
        for tensor in bucket {
            let (sum, rest) = sums.split_at(tensor.dims()[0]);
            *tensor = Tensor::from_data(TensorData::new(sum.to_vec(), [sum.len()]), &tensor.device());
            sums = rest;
        }
    }
    of_rank
}

/// Splits a batch over the threads of all ranks, with a limit on the images of one part.
///
/// On a CPU it is faster to run the whole network on separate images in each thread than to synchronise the threads
/// after every operation. A GPU needs one worker.
pub struct Workers {
    pools: Vec<ThreadPool>,
    part: usize,
    group: Arc<dyn Group>,
    /// Seconds of computation since [`Workers::take_busy`], without the exchange with other ranks.
    busy: Mutex<f64>,
}

impl Workers {
    /// Workers with `threads` threads for batches of `batch` images, with at most `most` images in a part.
    ///
    /// # Errors
    /// If the system cannot start threads.
    pub fn new(threads: usize, batch: usize, most: usize) -> Result<Self, ThreadPoolBuildError> {
        Self::of_ranks(Arc::new(Alone), threads, batch, most)
    }

    /// As [`Workers::new`], for every rank of a group. A rank must have a part of each batch ([`Workers::parts`]).
    ///
    /// # Errors
    /// If the system cannot start threads.
    pub fn of_ranks(
        group: Arc<dyn Group>,
        threads: usize,
        batch: usize,
        most: usize,
    ) -> Result<Self, ThreadPoolBuildError> {
        let part = most.min(batch.div_ceil(threads * group.size())).max(1);
        let pool = || ThreadPoolBuilder::new().num_threads(1).build();
        let pools =
            if threads > 1 { (0..threads).map(|_| pool()).collect::<Result<_, _>>()? } else { Vec::new() };
        Ok(Self { pools, part, group, busy: Mutex::default() })
    }

    /// The rows of the parts of each thread of this rank, in a batch of `batch` images. Thread `i` of all ranks has the parts
    /// `i`, `i + threads`, and so on.
    pub fn parts(&self, batch: usize) -> Vec<Vec<Range<usize>>> {
        let threads = self.pools.len().max(1);
        let first = self.group.rank() * threads;
        let rows = |start: usize| start..batch.min(start + self.part);
        let of_thread = |thread: usize| {
            let step = self.part * threads * self.group.size();
            (thread * self.part..batch).step_by(step).map(rows).collect()
        };
        (first..first + threads).map(of_thread).collect()
    }

    /// The rows of all parts of this rank, ascending.
    pub fn rows(&self, batch: usize) -> Vec<usize> {
        let mut rows: Vec<usize> = self.parts(batch).into_iter().flatten().flatten().collect();
        rows.sort_unstable();
        rows
    }

    /// The sum of `f` over the parts of a batch. Each thread adds up its own parts; then the sums of the threads and of the
    /// ranks are added in the order of [`fold`]. A sum therefore depends on the number of threads of all ranks, but not on
    /// their timing. A thread holds at most two results at a time.
    ///
    /// # Panics
    /// If the batch has no part for this rank.
    #[expect(clippy::expect_used, reason = "a run checks its batches")]
    fn sum<R: Summand>(&self, batch: usize, f: impl Fn(Range<usize>) -> R + Sync) -> R {
        let begin = Instant::now();
        let of_rank = self.fold(self.parts(batch), f, R::join).expect("a part of the batch for every rank");
        *self.busy.lock().unwrap_or_else(PoisonError::into_inner) += begin.elapsed().as_secs_f64();
        all_reduce(&*self.group, of_rank)
    }

    /// Seconds of computation since the last call, without the exchange with other ranks.
    pub fn take_busy(&self) -> f64 {
        std::mem::take(&mut self.busy.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn fold<T: Send, R: Send>(
        &self,
        mut parts: Vec<Vec<T>>,
        f: impl Fn(T) -> R + Sync,
        join: impl Fn(R, R) -> R + Sync,
    ) -> Option<R> {
        if self.pools.is_empty() {
            return parts.pop()?.into_iter().map(f).reduce(join);
        }
        let (f, join) = (&f, &join);
        std::thread::scope(|scope| {
            let start = |(pool, share): (_, Vec<T>)| {
                let pool: &ThreadPool = pool;
                scope.spawn(move || pool.install(move || share.into_iter().map(f).reduce(join)))
            };
            let threads: Vec<_> = self.pools.iter().zip(parts).map(start).collect();
            let wait = |thread: std::thread::ScopedJoinHandle<'_, _>| match thread.join() {
                Ok(done) => done,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            fold(threads.into_iter().filter_map(wait).collect(), join)
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn every_row_is_in_one_part_of_one_thread() {
        for (threads, batch, most) in [(1, 11, 3), (2, 64, 64), (3, 7, 2), (4, 4, 1)] {
            let one = Workers::new(threads, batch, most).unwrap().parts(batch);
            assert_eq!(one.len(), threads);
            let mut rows: Vec<usize> = one.iter().flatten().cloned().flatten().collect();
            rows.sort_unstable();
            assert_eq!(rows, (0..batch).collect::<Vec<_>>());
            let ranks = crate::train::group::Threads::new(threads).into_iter();
            let of_rank = |rank| Workers::of_ranks(Arc::new(rank), 1, batch, most).unwrap().parts(batch);
            assert_eq!(ranks.flat_map(of_rank).collect::<Vec<_>>(), one);
        }
    }

    #[test]
    fn the_parts_are_joined_in_one_order_whatever_thread_is_faster() {
        for threads in 1..5 {
            let workers = Workers::new(threads, 11, 1).unwrap();
            let joined =
                workers.fold(workers.parts(11), |rows| vec![rows.start], |a, b| [a, b].concat()).unwrap();
            let expected: Vec<usize> =
                (0..threads).flat_map(|thread| (thread..11).step_by(threads)).collect();
            assert_eq!(joined, expected);
            assert!(workers.fold(Vec::<Vec<usize>>::new(), |i| i, |a, b| a + b).is_none());
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
            workers.fold(workers.parts(64), |rows| result(rows.start), |sum, _| sum);
            assert!(most.into_inner() <= 2 * threads, "{threads} threads");
        }
    }
}
