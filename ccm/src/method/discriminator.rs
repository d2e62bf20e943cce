//! The discriminator of the adversarial loss: small heads on feature maps of the teacher's encoder ([`super::adversary`]).
//!
//! Each feature map has a head with one logit per pixel: positive for real images, negative for the student's images. The
//! encoder is frozen, or learns with the heads.

use burn::module::Module;
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};

use crate::model::{NetworkSpec, TensorSpec};
use crate::nn::denoiser::Denoiser;
use crate::nn::host::to_host;
use crate::nn::layers::{Convolution, Loader, parameters, take_gradients, with_parameters};
use crate::nn::ops::{Norm, group_norm};
use crate::nn::optimizer::{Optimizer, Schedule};
use crate::noise::Noise;
use crate::weights::HostTensor;

/// Hidden channels of a head.
pub const WIDTH: usize = 64;

/// The group norm of a head.
const NORM: Norm = Norm { groups: 32, epsilon: 1e-5, silu: true };

/// Length of the random step of the gradient penalty, in units of the images.
pub(super) const SHIFT: f64 = 0.01;

/// Range that [`Discriminator::balance`] is clamped to (PAPER.md §6).
const BALANCE: [f32; 2] = [0.01, 10.0];

/// The losses of student and discriminator, in terms of the logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum AdversarialLoss {
    /// The hinge loss of PAPER.md §6: `relu(1 - real) + relu(1 + fake)`, and `-fake` for the student.
    Hinge,
    /// The non-saturating loss of PAPER.md §10: `softplus(-real) + softplus(fake)`, and `softplus(-fake)` for the
    /// student. `r1` is the weight of the gradient penalty on real images, `r1 / 2 |d logit / d image|^2` (arXiv
    /// 1801.04406).
    NonSaturating {
        /// Weight of the penalty; 0 omits it.
        r1: f64,
    },
}

impl AdversarialLoss {
    /// The weight of the gradient penalty.
    pub(super) fn r1(self) -> f64 {
        match self {
            Self::Hinge => 0.0,
            Self::NonSaturating { r1 } => r1,
        }
    }

    fn of_real(self, logits: Tensor<4>) -> Tensor<4> {
        match self {
            Self::Hinge => relu(-logits + 1.0),
            Self::NonSaturating { .. } => softplus(-logits),
        }
    }

    fn of_fake(self, logits: Tensor<4>) -> Tensor<4> {
        match self {
            Self::Hinge => relu(logits + 1.0),
            Self::NonSaturating { .. } => softplus(logits),
        }
    }

    fn of_student(self, logits: Tensor<4>) -> Tensor<4> {
        match self {
            Self::Hinge => -logits,
            Self::NonSaturating { .. } => softplus(-logits),
        }
    }
}

/// `ln(1 + e^x)`, without overflow.
fn softplus(x: Tensor<4>) -> Tensor<4> {
    relu(x.clone()) + (-x.abs()).exp().log1p()
}

/// A discriminator in training: the heads, the encoder if it learns, and their optimiser.
#[derive(Clone)]
pub struct Discriminator {
    /// The heads; they record gradients.
    pub heads: Heads,
    /// The encoder, if it learns ([`Denoiser::encoder`]). Without it, the features are the teacher's.
    pub encoder: Option<Denoiser>,
    /// The optimiser of heads and encoder.
    pub optimizer: Optimizer,
    /// Steps taken.
    pub step: u64,
    /// Norm of the distance's gradient divided by the norm of the adversarial loss's gradient, both with respect to the
    /// student's images, in the last step. 0 before the first step, because an untrained discriminator's gradient has no
    /// meaning.
    pub balance: f32,
}

/// The heads of a discriminator: one head per feature map of the encoder.
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

    /// The logits of each head, `[B, 1, H, W]`.
    fn logits(&self, maps: &[Tensor<4>]) -> Vec<Tensor<4>> {
        self.heads.iter().zip(maps).map(|(head, map)| head.forward(map.clone())).collect()
    }
}

/// The mean of `f(logits)`: over images and pixels, then over heads. `[1]`
fn mean(logits: &[Tensor<4>], f: impl Fn(Tensor<4>) -> Tensor<4>) -> Tensor<1> {
    let of_heads = logits.iter().map(|logits| f(logits.clone()).mean());
    Tensor::cat(of_heads.collect(), 0).mean()
}

/// The mean logit of each image: over pixels, then over heads. `[B, 1]`
fn of_images(logits: &[Tensor<4>]) -> Tensor<2> {
    let of_heads = logits.iter().map(|logits| logits.clone().flatten::<2>(1, 3).mean_dim(1));
    Tensor::cat(of_heads.collect(), 1).mean_dim(1)
}

impl Discriminator {
    /// An untrained discriminator for the encoder of a network; `encoder` is given if it learns. The weights of the heads
    /// depend on `seed` only.
    pub fn new(spec: &NetworkSpec, seed: u64, encoder: Option<Denoiser>, device: &Device) -> Self {
        let heads = Heads::new(spec, &Heads::random(spec, seed), &device.clone().autodiff());
        Self { heads, encoder, optimizer: Optimizer::of_discriminator(), step: 0, balance: 0.0 }
    }

    /// Names and shapes of the parameters, for the encoder of a network.
    pub fn tensors(&self, spec: &NetworkSpec) -> Vec<TensorSpec> {
        let of_encoder = self.encoder.iter().flat_map(Denoiser::tensors);
        let of_encoder = of_encoder.map(|of| TensorSpec { name: format!("encoder.{}", of.name), ..of });
        Heads::tensors(spec).into_iter().chain(of_encoder).collect()
    }

    /// The parameters, flat, without gradients, in the order of [`Discriminator::tensors`].
    pub fn parameters(&self) -> Vec<Tensor<1>> {
        self.heads
            .parameters()
            .into_iter()
            .chain(self.encoder.iter().flat_map(Denoiser::parameters))
            .collect()
    }

    /// The same discriminator with other parameters, in the order of [`Discriminator::parameters`].
    ///
    /// # Panics
    /// If the number of parameters differs.
    pub fn with_parameters(self, mut parameters: Vec<Tensor<1>>) -> Self {
        let of_encoder = parameters.split_off(self.heads.parameters().len());
        Self {
            heads: with_parameters(self.heads, parameters),
            encoder: self.encoder.map(|encoder| encoder.with_parameters(of_encoder)),
            ..self
        }
    }

    /// The encoder with its present weights, fixed, for the student's gradient; the teacher's if it does not learn.
    pub(super) fn fixed_encoder(&self, teacher: &Denoiser) -> Denoiser {
        self.encoder.as_ref().map_or_else(|| teacher.clone(), Denoiser::as_frozen)
    }

    /// Passes of a batch through the encoder in a step: real images and the student's, and if the encoder learns, the
    /// student's again for its own gradient.
    pub fn encoder_passes(&self) -> usize {
        2 + usize::from(self.encoder.is_some())
    }

    /// A copy whose autodiff graph is its own, so that micro-batches can be computed at the same time.
    pub(super) fn fresh(&self) -> Self {
        let parameters = self.parameters();
        self.clone().with_parameters(parameters)
    }

    /// The student's adversarial loss, `[1]`, from the features of its images.
    pub(super) fn student_loss(&self, loss: AdversarialLoss, fake: &[Tensor<4>]) -> Tensor<1> {
        mean(&self.heads.clone().no_grad().logits(fake), |logits| loss.of_student(logits))
    }

    /// The discriminator's loss, `[1]`, and its gradients, from features without a gradient to the images. `shifted` are the
    /// features of the real images after a random step of length [`SHIFT`] per value, for the gradient penalty.
    ///
    /// The penalty needs no second derivative: for a step `h e` with `e ~ N(0, I)`, the mean of `((D(x + h e) - D(x)) / h)^2`
    /// is the squared norm of the gradient of `D`, as h goes to 0 (Lin et al., arXiv 2501.08316).
    pub(super) fn loss(
        &self,
        loss: AdversarialLoss,
        real: &[Tensor<4>],
        shifted: Option<&[Tensor<4>]>,
        fake: &[Tensor<4>],
    ) -> (Tensor<1>, Vec<Tensor<1>>) {
        let (of_real, of_fake) = (self.heads.logits(real), self.heads.logits(fake));
        let mut value =
            mean(&of_real, |logits| loss.of_real(logits)) + mean(&of_fake, |logits| loss.of_fake(logits));
        if let Some(shifted) = shifted {
            let slope = (of_images(&self.heads.logits(shifted)) - of_images(&of_real)) / SHIFT;
            value = value + (slope.clone() * slope).mean() * (loss.r1() / 2.0);
        }
        let mut of_all = value.backward();
        let of_encoder = self.encoder.as_ref().map(|encoder| encoder.take_gradients(&mut of_all));
        let of_heads = take_gradients(&self.heads, of_all);
        (value.inner(), of_heads.into_iter().chain(of_encoder.into_iter().flatten()).collect())
    }

    /// Takes an optimiser step with the gradients of a batch, and returns its loss.
    pub fn learn(&mut self, schedule: &Schedule, of_batch: DiscriminatorGradients) -> f64 {
        let DiscriminatorGradients { loss, gradients, squared_norms } = of_batch;
        let figures = to_host(Tensor::cat(std::iter::once(loss).chain(squared_norms).collect(), 0));
        if let [_, of_distance, of_adversary] = figures[..] {
            self.balance =
                (of_distance / of_adversary.max(f32::MIN_POSITIVE)).sqrt().clamp(BALANCE[0], BALANCE[1]);
        }
        let (parameters, _) = self.optimizer.step(schedule, self.step, self.parameters(), gradients);
        *self = self.clone().with_parameters(parameters);
        self.step += 1;
        f64::from(figures[0])
    }
}

/// Loss and gradients of the discriminator: those of a micro-batch, or a sum over micro-batches.
pub struct DiscriminatorGradients {
    /// Loss, `[1]`.
    pub(super) loss: Tensor<1>,
    /// Gradients of that loss with respect to the discriminator's parameters, flat.
    pub(super) gradients: Vec<Tensor<1>>,
    /// Squared norms, `[2]`, of the distance's and the adversarial loss's gradient with respect to the student's images;
    /// `None` if there is no distance.
    pub(super) squared_norms: Option<Tensor<1>>,
}

impl DiscriminatorGradients {
    /// The contribution of a micro-batch that is this share of its batch.
    pub fn of_share(self, share: f32) -> Self {
        Self {
            loss: self.loss * share,
            gradients: self.gradients.into_iter().map(|gradient| gradient * share).collect(),
            squared_norms: self.squared_norms.map(|squared_norms| squared_norms * (share * share)),
        }
    }

    /// The sum of two contributions.
    pub fn join(self, other: Self) -> Self {
        let gradients = self.gradients.into_iter().zip(other.gradients);
        let squared_norms = self.squared_norms.zip(other.squared_norms);
        Self {
            loss: self.loss + other.loss,
            gradients: gradients.map(|(sum, gradient)| sum + gradient).collect(),
            squared_norms: squared_norms.map(|(sum, squared_norms)| sum + squared_norms),
        }
    }

    /// Its tensors.
    pub fn tensors(&mut self) -> impl Iterator<Item = &mut Tensor<1>> {
        std::iter::once(&mut self.loss).chain(&mut self.gradients).chain(&mut self.squared_norms)
    }
}
