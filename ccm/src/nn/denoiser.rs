//! A denoiser: a network whose output, of any prediction type, is converted to the velocity on the straight path
//! (PAPER.md §8).

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{DType, Device, Gradients, Tensor};

use super::conditions::Conditions;
use super::host::{per_image, to_host};
use super::network::Network;
use crate::model::graph::lora::LoraSpec;
use crate::model::graph::{Init, Parameter};
use crate::model::path::Coefficients;
use crate::model::{ModelCard, NetworkSpec, Path, Prediction, SpecError, TensorSpec};
use crate::noise::Noise;
use crate::weights::{HostTensor, Model, Precision};

/// `v(x, t[, condition])`, the velocity of PAPER.md §1.
#[derive(Debug, Clone)]
pub struct Denoiser {
    network: Network,
    spec: Arc<NetworkSpec>,
    /// Whether its own parameters are those of low-rank products beside the layers.
    has_products: bool,
    path: Arc<Path>,
    sizes: Option<BatchSizes>,
}

/// The batch sizes that a denoiser has been evaluated on.
pub type BatchSizes = Arc<Mutex<BTreeSet<usize>>>;

impl Denoiser {
    /// The denoiser of a model.
    ///
    /// On a device that records gradients, the parameters require gradients and dropout is active.
    ///
    /// # Panics
    /// If a tensor of the model is missing or does not have the shape that the spec gives. The message has its name.
    pub fn new(model: &Model, device: &Device) -> Self {
        Self {
            network: Network::new(&model.spec.graph(), &model.tensors, device),
            spec: Arc::new(model.spec.clone()),
            has_products: false,
            path: Arc::new(Path::new(&model.prediction)),
            sizes: None,
        }
    }

    /// A denoiser with low-rank products beside the layers of this one, whose weights it shares and never changes.
    /// `tensors` are the values of [`lora_tensors`], in that order.
    ///
    /// # Errors
    /// If a target of the spec names no layer.
    ///
    /// # Panics
    /// As [`Denoiser::new`].
    pub fn with_lora(
        &self,
        lora: &LoraSpec,
        tensors: &[HostTensor],
        device: &Device,
    ) -> Result<Self, SpecError> {
        let graph = self.spec.graph().with_lora(lora)?;
        Ok(Self { network: self.network.beside(&graph, tensors, device), has_products: true, ..self.clone() })
    }

    /// The denoiser as a fixed feature extractor: its input gets gradients, its parameters get none, and dropout is off.
    pub fn frozen(model: &Model, device: &Device) -> Self {
        Self::new(model, &device.clone().without_autodiff()).as_frozen()
    }

    /// The encoder, which computes the feature maps: parameters of its own that require gradients, at first those of this
    /// denoiser. It has no velocity.
    ///
    /// # Panics
    /// If the network has no features.
    pub fn encoder(&self) -> Self {
        Self { network: self.network.encoder(), ..self.clone() }
    }

    /// The same denoiser as a fixed feature extractor, as [`Denoiser::frozen`].
    pub fn as_frozen(&self) -> Self {
        Self { network: self.network.frozen(), ..self.clone() }
    }

    /// The same denoiser in mixed precision: activations inside the network are of this type. Inputs, velocities, features and
    /// parameters are in single precision.
    pub fn in_half(self, half: DType) -> Self {
        Self { network: self.network.in_half(half), ..self }
    }

    /// The same denoiser, fixed, with its weights in half precision. Each weight is converted when it is used.
    pub fn halved(self) -> Self {
        Self { network: self.network.halved(), ..self }
    }

    /// The same denoiser with gradient checkpointing: less memory in training, for about a third more time. No gradient
    /// flows to its input.
    pub fn checkpointed(self) -> Self {
        Self { network: self.network.checkpointed(), ..self }
    }

    /// The same denoiser, whose [`Denoiser::gradients_in_turn`] come segment by segment. No gradient flows to its input.
    pub fn in_segments(self) -> Self {
        Self { network: self.network.in_segments(), ..self }
    }

    /// The same denoiser, in training, with some weights fixed: their gradients are zero and are not computed.
    pub fn with_fixed_weights(self, fixed: impl Fn(&TensorSpec) -> bool) -> Self {
        let fixed: Vec<bool> = self.tensors().iter().map(fixed).collect();
        Self { network: self.network.with_fixed(&fixed), ..self }
    }

    /// Which parameters are fixed in training, in the order of [`Denoiser::parameters`].
    pub fn fixed_weights(&self) -> Vec<bool> {
        self.network.fixed()
    }

    /// Adds the size of every later batch to `sizes`. Clones do the same.
    pub fn record_sizes(&mut self, sizes: &BatchSizes) {
        self.sizes = Some(Arc::clone(sizes));
    }

    /// The architecture.
    pub fn spec(&self) -> &NetworkSpec {
        &self.spec
    }

    /// Names and shapes of its own parameters: those of the spec, or those of the low-rank products.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        self.network.tensors()
    }

    /// The network's prediction type, with its noise schedule.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `v(x, t[, condition])`.
    ///
    /// # Shapes
    /// - `x`, result: `[B, C, H, W]`, on the straight path
    /// - `t`: one time per image, in `[Path::first_time, 1)`
    /// - `condition`: what the network reads; a label in `0..num_classes` if and only if the model has classes
    pub fn velocity(&self, x: Tensor<4>, t: &[f32], condition: impl Into<Conditions>) -> Tensor<4> {
        let condition = condition.into();
        if let Some(sizes) = &self.sizes {
            sizes.lock().unwrap_or_else(PoisonError::into_inner).insert(t.len());
        }
        if self.path.is_straight() {
            let time = per_image(t, &x.device());
            return self.forward(x, time, condition);
        }
        let coefficients = self.coefficients(t);
        let [a, b] = [|c: &Coefficients| c.a, |c: &Coefficients| c.b].map(|of| factor(&x, &coefficients, of));
        let (input, time) = self.input(x.clone(), &coefficients);
        x * a + self.forward(input, time, condition) * b
    }

    /// The feature maps of the network's encoder: the last one of each resolution, then the middle block's. The arguments
    /// are those of [`Denoiser::velocity`], but `t` may be 1, and any model may be given no label.
    pub fn encode(&self, x: Tensor<4>, t: &[f32], condition: impl Into<Conditions>) -> Vec<Tensor<4>> {
        let (input, time) = self.input(x, &self.coefficients(t));
        self.network.features(patches(input, self.spec.patch_size()), time, condition.into())
    }

    /// The network's output for whole images.
    fn forward(&self, x: Tensor<4>, time: Tensor<1>, condition: Conditions) -> Tensor<4> {
        let size = self.spec.patch_size();
        pixels(self.network.forward(patches(x, size), time, condition), size)
    }

    fn coefficients(&self, t: &[f32]) -> Vec<Coefficients> {
        t.iter().map(|&t| self.path.coefficients(f64::from(t))).collect()
    }

    /// The network's input, `c_in x`, and its own time `tau`.
    fn input(&self, x: Tensor<4>, coefficients: &[Coefficients]) -> (Tensor<4>, Tensor<1>) {
        let tau: Vec<f32> = coefficients.iter().map(|c| c.tau as f32).collect();
        let time = per_image(&tau, &x.device());
        let scaled = coefficients.iter().any(|c| c.c_in != 1.0);
        let factor = factor(&x, coefficients, |c| c.c_in);
        (if scaled { x * factor } else { x }, time)
    }

    /// The same denoiser without gradients and without dropout.
    pub fn without_gradients(&self) -> Self {
        Self { network: self.network.without_gradients(), ..self.clone() }
    }

    /// The values of its own parameters, in the order of [`Denoiser::tensors`].
    pub fn to_host(&self) -> Vec<HostTensor> {
        let values = self.parameters().into_iter().zip(self.tensors());
        values.map(|(values, tensor)| HostTensor { shape: tensor.shape, values: to_host(values) }).collect()
    }

    /// The model: the spec, the prediction type and the weights.
    ///
    /// # Panics
    /// If it has low-rank products beside its layers.
    pub fn to_model(&self, card: ModelCard) -> Model {
        assert!(!self.has_products, "a denoiser with all weights of its own");
        Model {
            spec: (*self.spec).clone(),
            prediction: self.path.prediction().clone(),
            card,
            precision: Precision::F32,
            tensors: self.to_host(),
        }
    }

    /// Its own parameters, flat, without gradients, in the order of [`Denoiser::tensors`].
    pub fn parameters(&self) -> Vec<Tensor<1>> {
        self.network.parameters()
    }

    /// The same denoiser with other parameters, in the order of [`Denoiser::parameters`].
    ///
    /// # Panics
    /// If the number of parameters differs.
    pub fn with_parameters(&self, parameters: Vec<Tensor<1>>) -> Self {
        Self { network: self.network.with_parameters(parameters), ..self.clone() }
    }

    /// Gradients of a loss with respect to the parameters, flat, in their order.
    pub fn gradients(&self, loss: &Tensor<1>) -> Vec<Tensor<1>> {
        self.network.gradients(loss)
    }

    /// Takes the gradients of the parameters out of those of a loss: [`Denoiser::gradients`] for a loss of several networks.
    pub(crate) fn take_gradients(&self, gradients: &mut Gradients) -> Vec<Tensor<1>> {
        self.network.take_gradients(gradients)
    }

    /// Calls `each` with the place of every parameter and its gradient of a loss. After [`Denoiser::in_segments`] or
    /// [`Denoiser::checkpointed`], a gradient comes as soon as it is complete, from the output to the input; the order is the
    /// same for every loss.
    pub fn gradients_in_turn(&self, loss: &Tensor<1>, each: impl FnMut(usize, Tensor<1>)) {
        self.network.gradients_in_turn(loss, each);
    }
}

/// PyTorch's `pixel_unshuffle`: `[B, C, H, W]` to `[B, C size^2, H / size, W / size]`.
fn patches(x: Tensor<4>, size: usize) -> Tensor<4> {
    if size == 1 {
        return x;
    }
    let [batch, channels, height, width] = x.dims();
    let [rows, columns] = [height / size, width / size];
    let x = x.reshape([batch, channels, rows, size, columns, size]).permute([0, 1, 3, 5, 2, 4]);
    x.reshape([batch, channels * size * size, rows, columns])
}

/// PyTorch's `pixel_shuffle`, the inverse of [`patches`].
fn pixels(x: Tensor<4>, size: usize) -> Tensor<4> {
    if size == 1 {
        return x;
    }
    let [batch, channels, rows, columns] = x.dims();
    let channels = channels / size / size;
    let x = x.reshape([batch, channels, size, size, rows, columns]).permute([0, 1, 4, 2, 5, 3]);
    x.reshape([batch, channels, rows * size, columns * size])
}

/// One coefficient per image, `[B, 1, 1, 1]`.
fn factor(x: &Tensor<4>, coefficients: &[Coefficients], of: impl Fn(&Coefficients) -> f64) -> Tensor<4> {
    let values: Vec<f32> = coefficients.iter().map(|c| of(c) as f32).collect();
    let count = values.len();
    per_image(&values, &x.device()).reshape([count, 1, 1, 1])
}

/// A model with the initial weights of its family. They depend on `seed` only.
pub fn random_model(spec: impl Into<NetworkSpec>, prediction: &Prediction, seed: u64) -> Model {
    let spec = spec.into();
    let tensors = random_tensors(&spec.graph().parameters, seed);
    Model {
        spec,
        prediction: prediction.clone(),
        card: ModelCard::default(),
        precision: Precision::F32,
        tensors,
    }
}

/// Names and shapes of the matrices of the low-rank products beside the layers of a network.
///
/// # Errors
/// If a target of the spec names no layer.
pub fn lora_tensors(spec: &NetworkSpec, lora: &LoraSpec) -> Result<Vec<TensorSpec>, SpecError> {
    let tensor = |Parameter { name, shape, .. }| TensorSpec { name, shape };
    Ok(lora_parameters(spec, lora)?.into_iter().map(tensor).collect())
}

/// Initial values of [`lora_tensors`]: `A` at random, `B` zero, so that the network is the same. They depend on `seed` only.
///
/// # Errors
/// If a target of the spec names no layer.
pub fn random_lora(spec: &NetworkSpec, lora: &LoraSpec, seed: u64) -> Result<Vec<HostTensor>, SpecError> {
    Ok(random_tensors(&lora_parameters(spec, lora)?, seed))
}

fn lora_parameters(spec: &NetworkSpec, lora: &LoraSpec) -> Result<Vec<Parameter>, SpecError> {
    let graph = spec.graph();
    let own = graph.parameters.len();
    Ok(graph.with_lora(lora)?.parameters.split_off(own))
}

/// The initial values of parameters.
fn random_tensors(parameters: &[Parameter], seed: u64) -> Vec<HostTensor> {
    let tensors = parameters.iter().enumerate().map(|(i, parameter)| {
        let mut noise = Noise::new(seed, i as u64);
        let count = parameter.shape.iter().product();
        let values = match parameter.init {
            Init::Uniform { fan_in } => noise.uniforms(count, 1.0 / (fan_in as f64).sqrt()),
            Init::Normal => noise.normals(count),
            Init::Zeros => vec![0.0; count],
            Init::Ones => vec![1.0; count],
            Init::Sincos { base_size } => sincos_positions(&parameter.shape, base_size),
        };
        HostTensor { shape: parameter.shape.clone(), values }
    });
    tensors.collect()
}

/// diffusers' `get_2d_sincos_pos_embed`: for each position of a square grid, sines and cosines of its column, then of its
/// row. The positions are scaled so that they are whole numbers in a grid of `base_size` positions a side.
fn sincos_positions(shape: &[usize], base_size: usize) -> Vec<f32> {
    let &[_, positions, channels] = shape else {
        panic!("expected [1, positions, channels], found {shape:?}")
    };
    let side = positions.isqrt();
    let quarter = channels / 4;
    let mut values = Vec::with_capacity(positions * channels);
    for place in 0..positions {
        for coordinate in [place % side, place / side] {
            let coordinate = coordinate as f64 * base_size as f64 / side as f64;
            let angle = |i: usize| coordinate * 10_000f64.powf(-(i as f64) / quarter as f64);
            values.extend((0..quarter).map(|i| angle(i).sin() as f32));
            values.extend((0..quarter).map(|i| angle(i).cos() as f32));
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::TensorData;

    #[test]
    fn patches_are_in_the_order_of_pytorchs_pixel_unshuffle() {
        let image: Vec<f32> = (0..16u8).map(f32::from).collect();
        let image = Tensor::<4>::from_data(TensorData::new(image, [1, 2, 2, 4]), &Device::flex());
        let found = patches(image.clone(), 2);
        assert_eq!(found.dims(), [1, 8, 1, 2]);
        let expected = [0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15].map(|value| value as f32);
        assert_eq!(to_host(found.clone().reshape([16])), expected);
        assert_eq!(to_host(pixels(found, 2).reshape([16])), to_host(image.reshape([16])));
    }
}
