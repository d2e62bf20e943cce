//! A distilled student: a model, or a LoRA file for the teacher's pipeline.

use std::path::Path;

use burn::tensor::Device;
use serde::Serialize;

use super::error::RunError;
use super::trainable::{Adaptation, Trainable};
use crate::disk;
use crate::import::ImportError;
use crate::model::graph::lora::{LoraSpec, UP};
use crate::model::{ModelCard, NetworkSpec};
use crate::nn::denoiser::Denoiser;
use crate::weights::{HostTensor, Model, TensorFile, WeightsError};

/// A distilled student.
#[derive(Debug, Clone)]
pub(super) enum Student {
    /// All weights.
    Model(Box<Model>),
    /// Low-rank products beside the teacher's weights.
    Lora(Box<Products>),
}

/// Trained low-rank products.
#[derive(Debug, Clone)]
pub(super) struct Products {
    adaptation: Adaptation,
    tensors: Vec<HostTensor>,
    card: ModelCard,
}

/// The description in a LoRA file. Its alpha is the rank, because the factor of the products is part of the matrices.
#[derive(Serialize)]
struct Description<'a> {
    lora: &'a LoraSpec,
    card: &'a ModelCard,
}

/// diffusers' name of the denoiser, with which the names in a LoRA file begin.
fn prefix(network: &NetworkSpec) -> &'static str {
    match network {
        NetworkSpec::Mmdit(_) => "transformer.",
        _ => "unet.",
    }
}

/// The same products with a factor of 1.
fn without_factor(spec: &LoraSpec) -> LoraSpec {
    LoraSpec { alpha: spec.rank as f32, ..spec.clone() }
}

impl Products {
    /// A LoRA file with diffusers' names. The factor of the products is part of their matrices `B`, because diffusers applies
    /// no factor to such files.
    fn to_bytes(&self) -> Vec<u8> {
        let Adaptation { base, spec, tensors: names } = &self.adaptation;
        let named = names.iter().zip(&self.tensors).map(|(named, tensor)| {
            let mut tensor = tensor.clone();
            if named.name.ends_with(UP) {
                tensor.values.iter_mut().for_each(|value| *value *= spec.factor());
            }
            (format!("{}{}", prefix(base.spec()), named.name), tensor)
        });
        let description = Description { lora: &without_factor(spec), card: &self.card };
        #[expect(clippy::expect_used, reason = "numbers and text become JSON")]
        let description = serde_json::to_string(&description).expect("a description has string keys only");
        TensorFile { tensors: named.collect(), description }.to_bytes()
    }

    /// Reads a LoRA file of the products that a run trains.
    fn from_bytes(bytes: &[u8], adaptation: &Adaptation) -> Result<Self, WeightsError> {
        let mut file = TensorFile::from_bytes(bytes)?;
        let prefix = prefix(adaptation.base.spec());
        let tensors = adaptation.tensors.iter().map(|expected| {
            let name = format!("{prefix}{}", expected.name);
            let found = file.take(&name)?;
            if found.shape != expected.shape {
                let expected = expected.shape.clone();
                return Err(WeightsError::Shape { name, expected, found: found.shape });
            }
            Ok(found)
        });
        let tensors = tensors.collect::<Result<_, _>>()?;
        if let Some(name) = file.tensors.into_keys().next() {
            return Err(WeightsError::Unexpected(name));
        }
        let adaptation = Adaptation { spec: without_factor(&adaptation.spec), ..adaptation.clone() };
        Ok(Self { adaptation, tensors, card: ModelCard::default() })
    }
}

impl Student {
    /// A trained network.
    pub(super) fn new(trainable: &Trainable, denoiser: &Denoiser, card: ModelCard) -> Self {
        match trainable {
            Trainable::Weights { .. } => Self::Model(Box::new(denoiser.to_model(card))),
            Trainable::Lora(adaptation) => {
                let (adaptation, tensors) = ((**adaptation).clone(), denoiser.to_host());
                Self::Lora(Box::new(Products { adaptation, tensors, card }))
            }
        }
    }

    /// The network on a device.
    pub(super) fn denoiser(&self, device: &Device) -> Denoiser {
        match self {
            Self::Model(model) => Denoiser::new(model, device),
            Self::Lora(products) => products.adaptation.denoiser(&products.tensors, device),
        }
    }

    /// The contents of its file.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Model(model) => model.to_bytes(),
            Self::Lora(products) => products.to_bytes(),
        }
    }

    /// Reads the file of a student.
    ///
    /// # Errors
    /// If it cannot be read, or its tensors are not those that the run trains.
    pub(super) fn read(path: &Path, trainable: &Trainable) -> Result<Self, RunError> {
        match trainable {
            Trainable::Weights { spec, prediction } => {
                let mut model = disk::read_model(path)?;
                if model.spec.tensors() != spec.tensors() || model.prediction != *prediction {
                    let reason = "its network differs from that of the run";
                    return Err(RunError::Unsuitable(format!("{}: {reason}", path.display())));
                }
                model.spec = spec.clone();
                Ok(Self::Model(Box::new(model)))
            }
            Trainable::Lora(adaptation) => {
                let found = Products::from_bytes(&disk::read(path)?, adaptation);
                let found = found.map_err(|source| ImportError::Weights { path: path.to_owned(), source })?;
                Ok(Self::Lora(Box::new(found)))
            }
        }
    }
}
