//! What is trained of a network: all its weights, or low-rank products beside them.

use burn::tensor::Device;

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
    /// Low-rank products beside weights that stay as they are.
    Lora(Box<Adaptation>),
}

/// Low-rank products beside the weights of a network, which are shared.
#[derive(Debug, Clone)]
pub struct Adaptation {
    /// The network with these weights.
    pub base: Denoiser,
    /// The products.
    pub spec: LoraSpec,
    /// Names and shapes of their matrices.
    pub tensors: Vec<TensorSpec>,
}

impl Adaptation {
    /// Products beside the weights of `base`.
    ///
    /// # Errors
    /// If a target names no layer.
    pub fn new(base: &Denoiser, spec: LoraSpec) -> Result<Self, SpecError> {
        let tensors = lora_tensors(base.spec(), &spec)?;
        Ok(Self { base: base.without_gradients(), spec, tensors })
    }

    /// The network with these values of the matrices, in order.
    ///
    /// # Panics
    /// If a matrix is missing or has another shape.
    pub fn denoiser(&self, tensors: &[HostTensor], device: &Device) -> Denoiser {
        let found = self.base.with_lora(&self.spec, tensors, device);
        found.unwrap_or_else(|error| panic!("the targets are checked: {error}"))
    }
}

impl Trainable {
    /// All weights of a model's network.
    pub fn weights(model: &Model) -> Self {
        Self::Weights { spec: model.spec.clone(), prediction: model.prediction.clone() }
    }

    /// The architecture, without products.
    pub fn network(&self) -> &NetworkSpec {
        match self {
            Self::Weights { spec, .. } => spec,
            Self::Lora(lora) => lora.base.spec(),
        }
    }

    /// Names and shapes of what is trained.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        match self {
            Self::Weights { spec, .. } => spec.tensors(),
            Self::Lora(lora) => lora.tensors.clone(),
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
            Self::Lora(lora) => lora.denoiser(&tensors, device),
        }
    }
}
