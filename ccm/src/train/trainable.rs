//! What is trained of a network: all its weights, or low-rank products beside them.

use burn::tensor::{Device, Tensor};

use crate::model::graph::lora::LoraSpec;
use crate::model::{ModelCard, NetworkSpec, Prediction, SpecError, TensorSpec};
use crate::nn::denoiser::{Denoiser, lora_tensors};
use crate::weights::{HostTensor, Model, Precision};

/// What is trained of a network.
#[derive(Debug, Clone)]
pub enum Trainable {
    /// All weights.
    Weights {
        /// The architecture.
        spec: NetworkSpec,
        /// The prediction.
        prediction: Prediction,
    },
    /// Low-rank products beside weights that stay as they are and are shared.
    Lora {
        /// The network with these weights.
        base: Box<Denoiser>,
        /// The products.
        spec: LoraSpec,
        /// Names and shapes of their matrices.
        tensors: Vec<TensorSpec>,
    },
}

impl Trainable {
    /// All weights of a model's network.
    pub fn weights(model: &Model) -> Self {
        Self::Weights { spec: model.spec.clone(), prediction: model.prediction.clone() }
    }

    /// Low-rank products beside the weights of `base`.
    ///
    /// # Errors
    /// If a target names no layer.
    pub fn lora(base: &Denoiser, spec: LoraSpec) -> Result<Self, SpecError> {
        let tensors = lora_tensors(base.spec(), &spec)?;
        Ok(Self::Lora { base: Box::new(base.without_gradients()), spec, tensors })
    }

    /// The architecture, without products.
    pub fn network(&self) -> &NetworkSpec {
        match self {
            Self::Weights { spec, .. } => spec,
            Self::Lora { base, .. } => base.spec(),
        }
    }

    /// Names and shapes of what is trained.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        match self {
            Self::Weights { spec, .. } => spec.tensors(),
            Self::Lora { tensors, .. } => tensors.clone(),
        }
    }

    /// The network with these values of [`Trainable::tensors`], in that order.
    ///
    /// # Panics
    /// If a tensor is missing or has another shape.
    pub fn denoiser(&self, tensors: Vec<HostTensor>, device: &Device) -> Denoiser {
        match self {
            Self::Weights { spec, prediction } => {
                let model = Model {
                    spec: spec.clone(),
                    prediction: prediction.clone(),
                    card: ModelCard::default(),
                    precision: Precision::F32,
                    tensors,
                };
                Denoiser::new(&model, device)
            }
            Self::Lora { base, spec, .. } => {
                let found = base.with_lora(spec, &tensors, device);
                found.unwrap_or_else(|error| panic!("the targets are checked: {error}"))
            }
        }
    }

    /// A tensor on a device that records no gradients.
    pub(super) fn flat(tensor: HostTensor, device: &Device) -> Tensor<1> {
        Tensor::from_data(tensor.values.as_slice(), device)
    }
}
