//! Batches for training: images, the noise paired with them, labels and random times.
//!
//! Every random number of a step, including those of dropout, is a function of the run's seed, the stage and the step
//! number. A resumed run therefore gets the same batches as an uninterrupted run. One exception: several devices of one process
//! draw dropout's numbers from one generator, in an order that depends on timing. Processes with one device each do not.

mod plan;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::tensor::{Device, Tensor, TensorData};

use crate::data::{DataError, Examples, Read};
use crate::method::batch::Batch;
use crate::method::coupling::Coupling;
use crate::model::NetworkSpec;
use crate::model::networks::TextShape;
use crate::nn::conditions::Conditions;
use crate::noise::Noise;

/// A stage of training. Each stage has its own random streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StageKind {
    /// Training of the teacher.
    Teacher,
    /// Distillation.
    Distill,
    /// Adversarial fine-tuning.
    Finish,
}

impl StageKind {
    /// The stage's name in files and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Teacher => "teacher",
            Self::Distill => "distill",
            Self::Finish => "finish",
        }
    }

    /// The stage with this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        [Self::Teacher, Self::Distill, Self::Finish].into_iter().find(|kind| kind.name() == name)
    }

    /// Number of weight averages that the stage keeps: the sampled average and, in distillation, the target network.
    pub(crate) fn averages(self) -> usize {
        match self {
            Self::Teacher | Self::Finish => 1,
            Self::Distill => 2,
        }
    }
}

/// What batches are conditioned on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Conditioning {
    /// Nothing.
    None,
    /// The images' classes.
    Labels,
    /// The images' captions.
    Texts {
        /// What the network reads of a text.
        shape: TextShape,
        /// Share of the images, in [0, 1), whose caption is replaced by the negative text.
        dropout: f64,
        /// The range that each image's guidance scale is drawn from.
        guidance: Option<[f64; 2]>,
    },
}

impl Conditioning {
    /// Captions, if the network reads texts; otherwise classes, if it reads these.
    pub fn new(network: &NetworkSpec, dropout: f64, guidance: Option<[f64; 2]>) -> Self {
        match (network.text(), network.num_classes()) {
            (Some(shape), _) => Self::Texts { shape, dropout, guidance },
            (None, Some(_)) => Self::Labels,
            (None, None) => Self::None,
        }
    }
}

/// The source of a stage's batches.
#[derive(Debug)]
pub struct Batches<'a> {
    /// The images.
    pub data: &'a Examples,
    /// The stage, which selects the random streams.
    pub stage: StageKind,
    /// Seed of the run.
    pub seed: u64,
    /// Images per batch; at most the number of images in `data`.
    pub size: usize,
    /// How noise and images are paired.
    pub coupling: Coupling,
    /// Batches that one plan of the coupling pairs, at least 1.
    pub batches_per_plan: usize,
    /// Whether each image is mirrored with probability 1/2.
    pub horizontal_flip: bool,
    /// What batches are conditioned on.
    pub conditioning: Conditioning,
    /// The rows of a batch that are prepared and uploaded, ascending: all, or those that one of several ranks trains on.
    pub rows: Vec<usize>,
    /// Device of the tensors; they record no gradients.
    pub device: Device,
    /// Cache, and the batch prepared in advance.
    pub ahead: Ahead,
}

/// Caches the image orders of the last epochs, the plan of several batches and a batch prepared in advance. The cache does
/// not affect the contents of batches.
#[derive(Debug, Default)]
pub struct Ahead {
    orders: Mutex<Vec<(u64, Arc<[usize]>)>>,
    plan: Mutex<Option<(u64, Arc<[usize]>)>>,
    prepared: Mutex<Option<(u64, Result<HostBatch, DataError>)>>,
}

/// A batch before its upload.
#[derive(Debug)]
struct HostBatch {
    x0: Vec<f32>,
    x1: Vec<f32>,
    uniform: Vec<f32>,
    /// Classes, or numbers of captions.
    labels: Vec<u32>,
    /// Guidance scales; empty without guidance.
    guidance: Vec<f32>,
    seed: u64,
}

impl Batches<'_> {
    /// The same batches, of which only these rows are prepared.
    pub fn with_rows(self, rows: Vec<usize>) -> Self {
        Self { rows, ..self }
    }

    /// The rows of the batch of a step, counted from 0. An epoch contains every image once, in random order; images on disk that
    /// are too few for a batch are left out.
    ///
    /// # Errors
    /// Images that cannot be read.
    pub fn batch(&self, step: u64) -> Result<Batch, DataError> {
        let prepared = lock(&self.ahead.prepared).take().filter(|(of_step, _)| *of_step == step);
        let HostBatch { x0, x1, uniform, labels, guidance, seed } =
            prepared.map_or_else(|| self.prepare(step), |(_, batch)| batch)?;
        let [channels, height, width] = self.data.shape();
        let dims = [uniform.len(), channels, height, width];
        let images = |values: Vec<f32>| Tensor::from_data(TensorData::new(values, dims), &self.device);
        let condition = match (self.conditioning, self.data.texts()) {
            (Conditioning::Texts { shape, .. }, Some(texts)) => {
                let texts: Vec<_> = labels.iter().map(|&caption| texts.text(caption as usize)).collect();
                let condition = Conditions::of_texts(&texts, shape, &self.device);
                if guidance.is_empty() { condition } else { condition.with_guidance(guidance, &self.device) }
            }
            _ => Conditions::of_labels(&labels, &self.device),
        };
        let (rows, size) = (self.rows.clone(), self.size);
        Ok(Batch { x0: images(x0), x1: images(x1), uniform, condition, seed, rows, size })
    }

    /// Runs `work` while another thread prepares the batch of a step. [`Batches::batch`] uploads that batch later.
    pub fn while_preparing<R>(&self, step: u64, work: impl FnOnce() -> R) -> R {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let batch = self.prepare(step);
                *lock(&self.ahead.prepared) = Some((step, batch));
            });
            work()
        })
    }

    /// The random numbers of a row do not depend on the rows that are prepared.
    fn prepare(&self, step: u64) -> Result<HostBatch, DataError> {
        let len = self.data.shape().iter().product();
        let mut noise = Noise::new(self.seed, self.stream(Purpose::Step, step));
        let indices = self.indices(step);
        let flips = self.flips(&mut noise);
        let uniform: Vec<f32> = indices.iter().map(|_| below_one(noise.uniform())).collect();
        let (x0, Read { values: x1, mut labels }) = match (self.coupling, self.batches_per_plan) {
            (Coupling::Independent, _) => {
                let x0 = normals(&mut noise, &self.rows, self.size, len);
                (x0, self.read(&self.rows, &indices, &flips)?)
            }
            (Coupling::OptimalTransport, 1) => self.pair_batch(&mut noise, &indices, &flips)?,
            (Coupling::OptimalTransport, _) => {
                (self.planned_noise(step)?, self.read(&self.rows, &indices, &flips)?)
            }
        };
        let mut guidance = Vec::new();
        if let (Conditioning::Texts { dropout, guidance: range, .. }, Some(texts)) =
            (self.conditioning, self.data.texts())
        {
            let dropped: Vec<bool> = indices.iter().map(|_| noise.uniform() < dropout).collect();
            for (label, _) in labels.iter_mut().zip(&self.rows).filter(|(_, row)| dropped[**row]) {
                *label = texts.captions.len() as u32;
            }
            if let Some([low, high]) = range {
                let scales: Vec<f32> =
                    indices.iter().map(|_| (low + (high - low) * noise.uniform()) as f32).collect();
                guidance = self.rows.iter().map(|&row| scales[row]).collect();
            }
        }
        let uniform = self.rows.iter().map(|&row| uniform[row]).collect();
        let seed = Noise::new(self.seed, self.stream(Purpose::Device, step)).below(SEEDS) as u64;
        Ok(HostBatch { x0, x1, uniform, labels, guidance, seed })
    }

    /// Which images of a batch are mirrored; empty if none can be. `noise` is that of the step, at its beginning.
    fn flips(&self, noise: &mut Noise) -> Vec<bool> {
        let flips = if self.horizontal_flip { self.size } else { 0 };
        (0..flips).map(|_| noise.below(2) == 1).collect()
    }

    /// Reads rows of images, given by their `indices` and `flips`. Unconditional batches get no labels.
    fn read(&self, rows: &[usize], indices: &[usize], flips: &[bool]) -> Result<Read, DataError> {
        let indices: Vec<usize> = rows.iter().map(|&row| indices[row]).collect();
        let flips: Vec<bool> = rows.iter().filter_map(|&row| flips.get(row).copied()).collect();
        let mut images = self.data.batch(&indices, &flips)?;
        if self.conditioning == Conditioning::None {
            images.labels.clear();
        }
        Ok(images)
    }

    fn indices(&self, step: u64) -> Vec<usize> {
        let count = self.data.epoch(self.size);
        let first = step * self.size as u64;
        let mut indices = Vec::with_capacity(self.size);
        let mut epoch = first / count as u64;
        let mut place = (first % count as u64) as usize;
        while indices.len() < self.size {
            let order = self.order(epoch);
            let take = (self.size - indices.len()).min(count - place);
            indices.extend_from_slice(&order[place..place + take]);
            (epoch, place) = (epoch + 1, 0);
        }
        indices
    }

    /// The order of the images in an epoch, drawn once.
    fn order(&self, epoch: u64) -> Arc<[usize]> {
        /// A batch may span two epochs.
        const KEPT: usize = 2;
        let mut orders = lock(&self.ahead.orders);
        if let Some((_, order)) = orders.iter().find(|(of_epoch, _)| *of_epoch == epoch) {
            return Arc::clone(order);
        }
        let noise = &mut Noise::new(self.seed, self.stream(Purpose::Epoch, epoch));
        let order: Arc<[usize]> = self.data.order(noise, self.size).into();
        if orders.len() == KEPT {
            orders.remove(0);
        }
        orders.push((epoch, Arc::clone(&order)));
        order
    }

    fn stream(&self, purpose: Purpose, number: u64) -> u64 {
        (1 + self.stage as u64) << 56 | (purpose as u64) << 48 | number
    }
}

/// Normal values of these rows of `size`, `len` for each; those of the other rows are skipped.
fn normals(noise: &mut Noise, rows: &[usize], size: usize, len: usize) -> Vec<f32> {
    let mut values = Vec::with_capacity(rows.len() * len);
    let mut next = 0;
    for &row in rows {
        noise.skip_normals((row - next) * len);
        values.extend((0..len).map(|_| noise.normal()));
        next = row + 1;
    }
    noise.skip_normals((size - next) * len);
    values
}

/// A number in [0, 1) in single precision, where the nearest value could be 1.
fn below_one(number: f64) -> f32 {
    (number as f32).min(1_f32.next_down())
}

/// Locks a mutex and ignores poisoning: a panic cannot leave the data partially changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

enum Purpose {
    Step,
    Epoch,
    Device,
    Sample,
}

/// Number of different seeds for a device's random generator.
const SEEDS: usize = 1 << 31;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::data::{ImageShape, Split, shapes};
    use crate::nn::host::to_host;

    #[test]
    fn uniform_numbers_stay_below_one() {
        assert_eq!([0.0, 0.25].map(below_one), [0.0, 0.25]);
        assert!(below_one(1.0 - 1e-12) < 1.0);
    }

    fn examples() -> Examples {
        shapes(40, ImageShape { channels: 3, height: 6, width: 5 }, Split::Train, 1).unwrap().into()
    }

    #[test]
    fn a_plan_of_several_batches_uses_each_noise_sample_once_and_pairs_nearer_ones() {
        let data = examples();
        let batches = |batches_per_plan| Batches {
            data: &data,
            stage: StageKind::Teacher,
            seed: 3,
            size: 10,
            coupling: Coupling::OptimalTransport,
            batches_per_plan,
            horizontal_flip: true,
            conditioning: Conditioning::None,
            rows: (0..10).collect(),
            device: Device::flex(),
            ahead: Ahead::default(),
        };
        let noise_and_distance = |source: &Batches<'_>| -> (Vec<Vec<u32>>, f64) {
            let rows = (0..4).flat_map(|step| {
                let Batch { x0, x1, .. } = source.batch(step).unwrap();
                let [x0, x1] = [x0, x1].map(|images| to_host(images.flatten::<1>(0, 3)));
                let of_row = |(x0, x1): (&[f32], &[f32])| {
                    let squared: f64 = x0.iter().zip(x1).map(|(a, b)| f64::from(a - b).powi(2)).sum();
                    (x0.iter().map(|value| value.to_bits()).collect::<Vec<_>>(), squared)
                };
                x0.chunks(90).zip(x1.chunks(90)).map(of_row).collect::<Vec<_>>()
            });
            let (noise, distances): (Vec<_>, Vec<f64>) = rows.unzip();
            (noise, distances.iter().sum())
        };
        let four = batches(4);
        let (mut noise, of_four) = noise_and_distance(&four);
        let of_one = noise_and_distance(&batches(1)).1;
        assert!(of_four < 0.98 * of_one, "{of_four} and {of_one}");
        // A run that resumes within the plan gets the same rows.
        let resumed = batches(4).batch(2).unwrap().x0;
        let resumed: Vec<u32> =
            to_host(resumed.flatten::<1>(0, 3)).iter().map(|value| value.to_bits()).collect();
        assert_eq!(resumed, noise[20..30].concat());
        noise.sort();
        noise.dedup();
        assert_eq!(noise.len(), 40);
        // The next plan has other noise.
        let next = to_host(four.batch(4).unwrap().x0.flatten::<1>(0, 3));
        assert!(next.chunks(90).all(|row| noise.iter().all(|other| other[0] != row[0].to_bits())));
    }

    #[test]
    fn the_rows_of_a_rank_are_those_of_the_whole_batch() {
        let data = examples();
        use Coupling::{Independent, OptimalTransport};
        for (coupling, batches_per_plan) in [(Independent, 1), (OptimalTransport, 1), (OptimalTransport, 2)] {
            let batches = |rows: &[usize]| Batches {
                data: &data,
                stage: StageKind::Distill,
                seed: 3,
                size: 12,
                coupling,
                batches_per_plan,
                horizontal_flip: true,
                conditioning: Conditioning::Labels,
                rows: rows.to_vec(),
                device: Device::flex(),
                ahead: Ahead::default(),
            };
            let every: Vec<usize> = (0..12).collect();
            // The second batch spans two epochs.
            for step in [0, 3] {
                let whole = batches(&every).batch(step).unwrap();
                let mine = [1, 2, 3, 9, 10];
                let some = batches(&mine).batch(step).unwrap();
                assert_eq!((some.size, &some.rows, some.seed), (12, &mine.to_vec(), whole.seed));
                for rows in [1..4, 9..11] {
                    let [whole, some] = [&whole, &some].map(|batch| batch.part(rows.clone()));
                    assert_eq!(some.uniform, whole.uniform);
                    for images in [|batch: &Batch| batch.x0.clone(), |batch: &Batch| batch.x1.clone()] {
                        let [some, whole] =
                            [&some, &whole].map(|batch| to_host(images(batch).flatten::<1>(0, 3)));
                        assert_eq!(some, whole, "{coupling:?}");
                    }
                }
            }
        }
    }
}
