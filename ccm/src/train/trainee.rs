//! A network in training: its weights, their averages and the optimiser's state.

use burn::tensor::{Device, Tensor};
use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

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

    /// Takes a step down the gradient of the mean `loss` of a batch, which `workers` share.
    ///
    /// Gives back the loss, the norm of the gradient, and what else the loss had to say of each part, in order.
    pub fn learn<R: Send>(
        &mut self,
        schedule: &Schedule,
        batch: &Batch,
        workers: &Workers,
        loss: impl Fn(&UNet, Batch) -> (Tensor<1>, R) + Sync,
    ) -> (f64, f64, Vec<R>) {
        // Dropout draws from the device's own generator.
        batch.x0.device().seed(self.step);
        let parts: Vec<Batch> = batch.parts(workers.part).collect();
        let student = &self.unet;
        let done = workers.each(parts, |part| {
            let share = part.len() as f32 / batch.len() as f32;
            // Parameters of its own, so that the graphs of two parts have nothing in common.
            let student = student.clone().zip_map(student.parameters(), |_, parameter| parameter);
            let (loss, said) = loss(&student, part);
            let loss = loss * share;
            let gradients = gradients(&student, &loss);
            (loss, gradients, said)
        });
        let mut total = 0.0;
        let mut sum: Vec<Tensor<1>> = Vec::new();
        let mut all_said = Vec::new();
        for (loss, gradients, said) in done {
            total += to_host(loss).into_iter().map(f64::from).sum::<f64>();
            sum = match sum.is_empty() {
                true => gradients,
                false => sum.into_iter().zip(gradients).map(|(sum, gradient)| sum + gradient).collect(),
            };
            all_said.push(said);
        }
        let (unet, norm) = self.optimizer.step(schedule, self.step, self.unet.clone(), sum);
        self.unet = unet;
        for ema in &mut self.emas {
            ema.update(&self.unet);
        }
        self.step += 1;
        (total, norm, all_said)
    }
}

/// Threads that share the images of a batch, and how many images one takes at a time.
///
/// On a CPU, threads that go through the whole network side by side, each with its own images, lose less than
/// threads that meet after every operation. A GPU wants one worker.
pub struct Workers {
    pools: Vec<ThreadPool>,
    part: usize,
}

impl Workers {
    /// So many threads for batches of `batch` images, at most `most` of them in a part.
    ///
    /// # Errors
    /// If the system gives no threads.
    pub fn new(threads: usize, batch: usize, most: usize) -> Result<Self, ThreadPoolBuildError> {
        let part = most.min(batch.div_ceil(threads)).max(1);
        let pool = || ThreadPoolBuilder::new().num_threads(1).build();
        let pools =
            if threads > 1 { (0..threads).map(|_| pool()).collect::<Result<_, _>>()? } else { Vec::new() };
        Ok(Self { pools, part })
    }

    /// Applies `f` to every part; part `i` goes to thread `i` modulo their number, so that the result does not
    /// depend on which is faster.
    fn each<T: Send, R: Send>(&self, parts: Vec<T>, f: impl Fn(T) -> R + Sync) -> Vec<R> {
        if self.pools.is_empty() {
            return parts.into_iter().map(f).collect();
        }
        let mut shares: Vec<Vec<T>> = self.pools.iter().map(|_| Vec::new()).collect();
        for (i, part) in parts.into_iter().enumerate() {
            shares[i % self.pools.len()].push(part);
        }
        let f = &f;
        let mut done: Vec<std::vec::IntoIter<R>> = std::thread::scope(|scope| {
            let mut threads = Vec::new();
            for (pool, share) in self.pools.iter().zip(shares) {
                let work = move || share.into_iter().map(f).collect::<Vec<R>>().into_iter();
                threads.push(scope.spawn(move || pool.install(work)));
            }
            let join = |thread: std::thread::ScopedJoinHandle<'_, _>| match thread.join() {
                Ok(done) => done,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            threads.into_iter().map(join).collect()
        });
        let threads = done.len();
        let mut results = Vec::new();
        while let Some(result) = done[results.len() % threads].next() {
            results.push(result);
        }
        results
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_parts_come_back_in_order_whatever_the_threads() {
        for threads in 1..5 {
            let workers = Workers::new(threads, 64, 3).unwrap();
            assert_eq!(
                workers.each((0..11).collect(), |i| i * i),
                (0..11).map(|i| i * i).collect::<Vec<_>>()
            );
        }
    }
}
