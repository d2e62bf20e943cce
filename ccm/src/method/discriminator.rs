//! The adversarial loss of PAPER.md §6: a discriminator on the teacher's features.
//!
//! The published discriminator uses features of networks trained on ImageNet. This one uses the teacher's encoder, frozen,
//! which every run has. The encoder's input is a noised image `x_t` at a random time `t` in [0.5, 1). The features of a
//! diffusion model separate real from generated images (Sauer et al., arXiv 2403.12015; Yin et al., arXiv 2405.14867), and
//! the noise replaces augmentation. Each feature map has a small head with one logit per pixel: positive for real images,
//! negative for the student's images.

use std::ops::Range;
use std::sync::Arc;

use burn::module::Module;
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor, TensorData};

use super::batch::Batch;
use super::flow::path;
use crate::model::{NetworkSpec, TensorSpec};
use crate::nn::denoiser::Denoiser;
use crate::nn::host::{per_image, to_host};
use crate::nn::layers::{Convolution, Loader, gradients, parameters, with_parameters};
use crate::nn::ops::{Norm, group_norm};
use crate::nn::optimizer::{Optimizer, Schedule};
use crate::noise::Noise;
use crate::weights::HostTensor;

/// Hidden channels of a head.
const WIDTH: usize = 64;

/// Start of the range of times of the encoder's inputs, `[EARLIEST, 1)`.
const EARLIEST: f64 = 0.5;

/// The group norm of a head.
const NORM: Norm = Norm { groups: 32, epsilon: 1e-5, silu: true };

/// Range that [`Discriminator::balance`] is clamped to (PAPER.md §6).
const BALANCE: [f32; 2] = [0.01, 10.0];

/// A discriminator in training: the heads and their optimiser.
#[derive(Clone)]
pub struct Discriminator {
    /// The trainable part; it records gradients.
    pub heads: Heads,
    /// The optimiser of the heads.
    pub optimizer: Optimizer,
    /// Steps taken.
    pub step: u64,
    /// Norm of the distance's gradient divided by the norm of the adversarial loss's gradient, both with respect to the
    /// student's images, in the last step. 0 before the first step, because an untrained discriminator's gradient has no
    /// meaning.
    pub balance: f32,
}

/// The trainable part of a discriminator: one head per feature map of the encoder.
#[derive(Module, Debug)]
pub struct Heads {
    heads: Vec<Head>,
}

#[derive(Module, Debug)]
struct Head {
    features: Convolution,
    logits: Convolution,
}

impl Head {
    /// `[B, C, H, W] -> [B, 1, H, W]`.
    fn forward(&self, map: Tensor<4>) -> Tensor<4> {
        let x = self.features.forward(map, None, 1);
        let [batch, channels, ..] = x.dims();
        let ones = Tensor::ones([batch, channels], &x.device());
        let x = group_norm(x, ones.clone(), ones.zeros_like(), NORM);
        // A 1x1 convolution as product and sum: Burn 0.22.1's convolution gives wrong logits on a software wgpu adapter.
        let weighted = x * self.logits.weight.val();
        weighted.sum_dim(1) + self.logits.bias.val().reshape([1, 1, 1, 1])
    }
}

impl Heads {
    /// Names and shapes of the heads' tensors, for the encoder of a network.
    pub fn tensors(spec: &NetworkSpec) -> Vec<TensorSpec> {
        let graph = spec.graph();
        let mut tensors = Vec::new();
        for (i, &feature) in graph.features.iter().enumerate() {
            let channels = graph.shape(feature).channels();
            let layers = [("features", WIDTH, channels, 3), ("logits", 1, WIDTH, 1)];
            for (layer, outputs, inputs, kernel) in layers {
                let name = |kind| format!("heads.{i}.{layer}.{kind}");
                let shape = vec![outputs, inputs, kernel, kernel];
                tensors.push(TensorSpec { name: name("weight"), shape });
                tensors.push(TensorSpec { name: name("bias"), shape: vec![outputs] });
            }
        }
        tensors
    }

    /// Heads for the encoder of a network. `tensors` are the values of [`Heads::tensors`], in that order.
    ///
    /// # Panics
    /// If a tensor is missing or has the wrong shape.
    pub(crate) fn new(spec: &NetworkSpec, tensors: &[HostTensor], device: &Device) -> Self {
        let specs = Self::tensors(spec);
        let mut load = Loader::new(&specs, tensors, device);
        let heads = (0..spec.graph().features.len()).map(|i| Head {
            features: load.convolution(&format!("heads.{i}.features")),
            logits: load.convolution(&format!("heads.{i}.logits")),
        });
        let heads = Self { heads: heads.collect() };
        load.finish();
        heads
    }

    /// PyTorch's default initialisation: uniform in `±1 / sqrt(fan-in)`.
    fn random(spec: &NetworkSpec, seed: u64) -> Vec<HostTensor> {
        let mut bound = 1.0;
        let draw = |(i, tensor): (usize, TensorSpec)| {
            if tensor.shape.len() > 1 {
                bound = (tensor.shape[1..].iter().product::<usize>() as f64).sqrt().recip();
            }
            let count = tensor.shape.iter().product();
            let values = Noise::new(seed, i as u64).uniforms(count, bound);
            HostTensor { shape: tensor.shape, values }
        };
        Self::tensors(spec).into_iter().enumerate().map(draw).collect()
    }

    /// The parameters, flat, without gradients.
    pub fn parameters(&self) -> Vec<Tensor<1>> {
        parameters(self)
    }

    /// The mean of `f(logits)`: over images and pixels, then over heads. `[1]`
    fn mean(&self, maps: &[Tensor<4>], f: impl Fn(Tensor<4>) -> Tensor<4>) -> Tensor<1> {
        let of_maps = self.heads.iter().zip(maps).map(|(head, map)| f(head.forward(map.clone())).mean());
        Tensor::cat(of_maps.collect(), 0).mean()
    }
}

impl Discriminator {
    /// An untrained discriminator for the encoder of a network. The weights depend on `seed` only.
    pub fn new(spec: &NetworkSpec, seed: u64, device: &Device) -> Self {
        let heads = Heads::new(spec, &Heads::random(spec, seed), &device.clone().autodiff());
        Self { heads, optimizer: Optimizer::of_discriminator(), step: 0, balance: 0.0 }
    }

    /// A discriminator after `step` steps, from the values of [`Heads::tensors`] and the optimiser's moments.
    pub(crate) fn resumed(
        spec: &NetworkSpec,
        heads: &[HostTensor],
        moments: Vec<[Tensor<1>; 2]>,
        step: u64,
        balance: f32,
        device: &Device,
    ) -> Self {
        let heads = Heads::new(spec, heads, &device.clone().autodiff());
        Self { heads, optimizer: Optimizer::of_discriminator().from_moments(moments), step, balance }
    }

    /// The student's adversarial loss, `[1]`: the negative mean logit of its images.
    fn student_loss(&self, fake: &[Tensor<4>]) -> Tensor<1> {
        -self.heads.clone().no_grad().mean(fake, |logit| logit)
    }

    /// The discriminator's hinge loss, `[1]`, and its gradients.
    fn loss(&self, real: &[Tensor<4>], fake: &[Tensor<4>]) -> (Tensor<1>, Vec<Tensor<1>>) {
        // A copy of the parameters, so that the autodiff graphs of two micro-batches are separate.
        let heads = with_parameters(self.heads.clone(), self.heads.parameters());
        let fake: Vec<Tensor<4>> = fake.iter().map(|map| map.clone().inner().autodiff()).collect();
        let loss =
            heads.mean(real, |logit| relu(-logit + 1.0)) + heads.mean(&fake, |logit| relu(logit + 1.0));
        let gradients = gradients(&heads, &loss);
        (loss.inner(), gradients)
    }

    /// Takes an optimiser step with the gradients of all micro-batches, and returns the loss of the batch.
    pub fn learn(&mut self, schedule: &Schedule, parts: Vec<DiscriminatorGradients>) -> f64 {
        let images = parts.iter().map(|part| part.images).sum::<usize>() as f32;
        let weigh =
            |DiscriminatorGradients { images: of_part, loss, lengths, gradients }: DiscriminatorGradients| {
                let share = of_part as f32 / images;
                let figures = Tensor::cat(vec![loss * share, lengths * (share * share)], 0);
                (figures, gradients.into_iter().map(|gradient| gradient * share).collect::<Vec<_>>())
            };
        let sum = parts.into_iter().map(weigh).reduce(|(figures, sum), (others, gradients)| {
            (figures + others, sum.into_iter().zip(gradients).map(|(sum, gradient)| sum + gradient).collect())
        });
        let Some((figures, gradients)) = sum else { return 0.0 };
        let [loss, of_distance, of_adversary] = to_host(figures)[..] else { return 0.0 };
        self.balance =
            (of_distance / of_adversary.max(f32::MIN_POSITIVE)).sqrt().clamp(BALANCE[0], BALANCE[1]);
        let (parameters, _) = self.optimizer.step(schedule, self.step, self.heads.parameters(), gradients);
        self.heads = with_parameters(self.heads.clone(), parameters);
        self.step += 1;
        loss.into()
    }
}

/// The adversarial loss of a distillation, and its settings.
pub struct Adversary {
    /// The feature extractor: the teacher, [`Denoiser::frozen`].
    pub encoder: Arc<Denoiser>,
    /// Weight of the adversarial loss: the norm of its gradient with respect to the student's images, relative to the
    /// distance's gradient.
    pub weight: f64,
    /// The student's step at which the adversarial loss starts.
    pub from: u64,
    /// Discriminator steps over which the weight grows linearly from zero.
    pub warmup_steps: u64,
    /// Learning rate of the discriminator.
    pub learning_rate: f64,
}

/// Loss and gradients of the discriminator for one micro-batch.
pub struct DiscriminatorGradients {
    images: usize,
    /// Hinge loss, `[1]`: mean of `relu(1 - logit)` for real images plus mean of `relu(1 + logit)` for the student's.
    loss: Tensor<1>,
    /// Gradients of that loss with respect to the heads' parameters, flat.
    gradients: Vec<Tensor<1>>,
    /// Squared norms, `[2]`, of the distance's and the adversarial loss's gradient with respect to the student's images.
    lengths: Tensor<1>,
}

impl Adversary {
    /// The discriminator's schedule: the student's, with its own learning rate and without a warm-up.
    pub fn schedule(&self, student: &Schedule) -> Schedule {
        Schedule { learning_rate: self.learning_rate, warmup_steps: 0, ..*student }
    }

    /// The weight after `steps` discriminator steps.
    fn weight_after(&self, steps: u64) -> f64 {
        self.weight * ((steps + 1) as f64 / self.warmup_steps.max(1) as f64).min(1.0)
    }

    /// Adds the adversarial loss to the distance, for one micro-batch. Returns the student's loss, `[1]`, and the
    /// discriminator's loss and gradients.
    ///
    /// `estimate` is the student's images, `[B, C, H, W]`, `part` the micro-batch, `rows` its rows in the whole batch, and
    /// `distance` the distance of images from their targets.
    ///
    /// The value of the student's loss is the distance. Its gradient with respect to `estimate` is
    /// `g_distance + weight * balance * g_adversarial`. [`Discriminator::balance`] is the ratio of the norms of the two
    /// gradients, over the whole batch of the last step. The published code takes this ratio with respect to the weights
    /// of the last layer; with respect to the images it needs no second backward pass through the student.
    pub fn join(
        &self,
        discriminator: &Discriminator,
        estimate: Tensor<4>,
        part: &Batch,
        rows: Range<usize>,
        distance: impl FnOnce(Tensor<4>) -> Tensor<1>,
    ) -> (Tensor<1>, DiscriminatorGradients) {
        let images = estimate.clone().inner().autodiff().require_grad();
        let value = distance(images.clone());
        let of_distance = gradient(&images, &value);
        let views = Views::draw(part, rows);
        let real = self.features(&part.x1.clone().autodiff(), &views.of_real, &views.t, part);
        let fake = self.features(&images, &views.of_fake, &views.t, part);
        let of_adversary = gradient(&images, &discriminator.student_loss(&fake));

        let square = |gradient: &Tensor<4>| (gradient.clone() * gradient.clone()).sum();
        let lengths = Tensor::cat(vec![square(&of_distance), square(&of_adversary)], 0);
        let weight = self.weight_after(discriminator.step) as f32 * discriminator.balance;
        let gradient = of_distance + of_adversary * weight;
        let along = (estimate * gradient.autodiff()).sum();
        let rest = value.inner() - along.clone().inner();
        let (loss, gradients) = discriminator.loss(&real, &fake);
        (along + rest.autodiff(), DiscriminatorGradients { images: part.len(), loss, lengths, gradients })
    }

    /// The encoder's features of the noised images, at times `t`.
    fn features(&self, images: &Tensor<4>, noise: &Tensor<4>, t: &[f32], part: &Batch) -> Vec<Tensor<4>> {
        let time = per_image(t, &images.device());
        self.encoder.encode(path(noise, images, &time), t, part.label.clone())
    }
}

/// Times and noise for the encoder's inputs, for one micro-batch.
struct Views {
    t: Vec<f32>,
    of_real: Tensor<4>,
    of_fake: Tensor<4>,
}

impl Views {
    /// Draws separately for each row, so that the numbers do not depend on the size of the micro-batches.
    fn draw(part: &Batch, rows: Range<usize>) -> Self {
        let device = part.x1.device();
        let shape = part.x1.shape();
        let len = shape.num_elements() / part.len();
        let (mut t, mut of_real, mut of_fake) = (Vec::new(), Vec::new(), Vec::new());
        for row in rows {
            let mut noise = Noise::new(part.seed, row as u64);
            t.push((EARLIEST + (1.0 - EARLIEST) * noise.uniform()) as f32);
            of_real.extend(noise.normals(len));
            of_fake.extend(noise.normals(len));
        }
        let tensor =
            |values: Vec<f32>| Tensor::from_data(TensorData::new(values, shape.clone()), &device).autodiff();
        Self { t, of_real: tensor(of_real), of_fake: tensor(of_fake) }
    }
}

/// Gradient of a loss with respect to the images.
fn gradient(images: &Tensor<4>, loss: &Tensor<1>) -> Tensor<4> {
    images.grad(&loss.backward()).unwrap_or_else(|| images.clone().inner().zeros_like())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::Config;
    use crate::model::Prediction;
    use crate::nn::denoiser::random_model;
    use crate::nn::host::labels_tensor;

    const IMAGES: usize = 4;

    fn spec() -> NetworkSpec {
        let mut spec = Config::preset("shapes").unwrap().network;
        (spec.height, spec.width, spec.num_classes) = (8, 8, Some(3));
        (spec.channel_mult, spec.attention_resolutions) = (vec![1.0, 2.0], vec![4]);
        spec.into()
    }

    /// Images `[IMAGES, 3, 8, 8]`.
    fn images(stream: u64) -> Tensor<4> {
        let values = Noise::new(1, stream).normals(IMAGES * spec().image_len());
        Tensor::from_data(TensorData::new(values, [IMAGES, 3, 8, 8]), &Device::flex())
    }

    fn batch() -> Batch {
        let label = Some(labels_tensor(&[0, 1, 2, 0], &Device::flex()));
        Batch { x0: images(0), x1: images(1), uniform: vec![0.5; IMAGES], label, seed: 7 }
    }

    fn adversary(weight: f64) -> Adversary {
        let encoder =
            Arc::new(Denoiser::frozen(&random_model(&spec(), &Prediction::Velocity, 3), &Device::flex()));
        Adversary { encoder, weight, from: 0, warmup_steps: 0, learning_rate: 0.01 }
    }

    fn schedule(learning_rate: f64) -> Schedule {
        Schedule { learning_rate, warmup_steps: 0, steps: 100, cooldown: 0.0, gradient_clip: 1e9 }
    }

    fn number(tensor: Tensor<1>) -> f64 {
        to_host(tensor).into_iter().map(f64::from).sum()
    }

    fn dot(a: &Tensor<4>, b: &Tensor<4>) -> f64 {
        number((a.clone() * b.clone()).sum())
    }

    #[test]
    fn the_gradient_in_the_images_is_that_of_the_logits() {
        let (adversary, batch, estimate) = (adversary(1.0), batch(), images(3));
        let discriminator = Discriminator::new(&spec(), 5, &Device::flex());
        let loss = |images: &Tensor<4>| {
            let views = Views::draw(&batch, 0..IMAGES);
            discriminator.student_loss(&adversary.features(images, &views.of_fake, &views.t, &batch))
        };
        let tracked = estimate.clone().autodiff().require_grad();
        let of_logits = gradient(&tracked, &loss(&tracked));
        for direction in [images(4), images(5)] {
            let step = 1e-2;
            let at =
                |step: f32| number(loss(&(estimate.clone() + direction.clone() * step).autodiff()).inner());
            let expected = (at(step) - at(-step)) / (2.0 * f64::from(step));
            let found = dot(&of_logits, &direction);
            assert!((found - expected).abs() < 0.01 * expected.abs(), "{found}, not {expected}");
        }
    }

    /// The gradient of the student's loss with respect to its images, the loss, and the discriminator's gradients.
    fn joined(weight: f64, discriminator: &Discriminator) -> (Tensor<4>, f64, DiscriminatorGradients) {
        let target = images(6).autodiff();
        let estimate = images(3).autodiff().require_grad();
        let distance = |images: Tensor<4>| ((images - target.clone()) * 0.01).abs().mean();
        let (loss, part) =
            adversary(weight).join(discriminator, estimate.clone(), &batch(), 0..IMAGES, distance);
        assert!((number(loss.clone().inner()) - number(distance(estimate.clone()).inner())).abs() < 1e-7);
        (gradient(&estimate, &loss), number(loss.inner()), part)
    }

    #[test]
    fn both_gradients_are_equally_long() {
        let mut discriminator = Discriminator::new(&spec(), 5, &Device::flex());
        let (distance, value, part) = joined(1.0, &discriminator);
        discriminator.learn(&schedule(0.0), vec![part]);
        let (both, same_value, _) = joined(0.5, &discriminator);
        assert_eq!(value, same_value);
        let length = |gradient: &Tensor<4>| dot(gradient, gradient).sqrt();
        let ratio = length(&(both - distance.clone())) / length(&distance);
        assert!((ratio - 0.5).abs() < 1e-3, "{ratio}");
    }

    #[test]
    fn the_weight_grows_to_what_is_asked_for() {
        let at_once = adversary(3.0);
        assert_eq!([0, 5].map(|steps| at_once.weight_after(steps)), [3.0, 3.0]);
        let slowly = Adversary { warmup_steps: 30, ..at_once };
        assert_eq!([0, 14, 29, 100].map(|steps| slowly.weight_after(steps)), [0.1, 1.5, 3.0, 3.0]);
    }

    #[test]
    fn it_learns_to_tell_real_from_generated() {
        let mut discriminator = Discriminator::new(&spec(), 5, &Device::flex());
        let losses: Vec<f64> = (0..60)
            .map(|_| {
                let part = joined(1.0, &discriminator).2;
                discriminator.learn(&schedule(0.01), vec![part])
            })
            .collect();
        assert_eq!(discriminator.step, 60);
        assert!((losses[0] - 2.0).abs() < 0.5 && losses[59] < 0.5, "{losses:?}");
    }
}
