//! A distilled student: a model, or a LoRA file for the teacher's pipeline.

use std::path::Path;

use burn::tensor::Device;
use serde::Serialize;

use super::error::RunError;
use super::trainable::Trainable;
use crate::disk;
use crate::import::ImportError;
use crate::model::graph::lora::{LoraSpec, UP};
use crate::model::{ModelCard, NetworkSpec};
use crate::nn::denoiser::Denoiser;
use crate::weights::{HostTensor, Model, TensorFile};

/// A distilled student.
#[derive(Debug, Clone)]
pub(super) enum Student {
    /// All weights.
    Model(Box<Model>),
    /// Low-rank products beside the teacher's weights.
    Lora {
        /// What was trained.
        trainable: Trainable,
        /// Its values.
        tensors: Vec<HostTensor>,
        /// The origin.
        card: ModelCard,
    },
}

/// The description in a LoRA file.
#[derive(Serialize)]
struct Description<'a> {
    lora: &'a LoraSpec,
    card: &'a ModelCard,
}

/// What diffusers calls the denoiser in the names of a LoRA file.
fn prefix(network: &NetworkSpec) -> &'static str {
    match network {
        NetworkSpec::Mmdit(_) => "transformer.",
        _ => "unet.",
    }
}

impl Student {
    /// A trained network.
    pub(super) fn new(trainable: &Trainable, denoiser: &Denoiser, card: ModelCard) -> Self {
        match trainable {
            Trainable::Weights { .. } => Self::Model(Box::new(denoiser.to_model(card))),
            Trainable::Lora { .. } => {
                Self::Lora { trainable: trainable.clone(), tensors: denoiser.to_host(), card }
            }
        }
    }

    /// The network on a device.
    pub(super) fn denoiser(&self, device: &Device) -> Denoiser {
        match self {
            Self::Model(model) => Denoiser::new(model, device),
            Self::Lora { trainable, tensors, .. } => trainable.denoiser(tensors.clone(), device),
        }
    }

    /// The contents of a file: a model file, or a LoRA file with diffusers' names. The factor of the products is part of their
    /// matrices `B` there, because diffusers applies no factor to such files.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let (trainable, tensors, card) = match self {
            Self::Model(model) => return model.to_bytes(),
            Self::Lora { trainable, tensors, card } => (trainable, tensors, card),
        };
        let Trainable::Lora { spec, .. } = trainable else { return Vec::new() };
        let named = trainable.tensors().into_iter().zip(tensors).map(|(named, tensor)| {
            let mut tensor = tensor.clone();
            if named.name.ends_with(UP) {
                tensor.values.iter_mut().for_each(|value| *value *= spec.factor());
            }
            (format!("{}{}", prefix(trainable.network()), named.name), tensor)
        });
        #[expect(clippy::expect_used, reason = "numbers and text become JSON")]
        let description = serde_json::to_string(&Description { lora: spec, card })
            .expect("a description has string keys only");
        TensorFile { tensors: named.collect(), description }.to_bytes()
    }

    /// Reads the file of a student.
    ///
    /// # Errors
    /// If it cannot be read, or its tensors are not those that the run trains.
    pub(super) fn read(path: &Path, trainable: &Trainable) -> Result<Self, RunError> {
        let Trainable::Lora { base, spec, .. } = trainable else {
            return Ok(Self::Model(Box::new(disk::read_model(path)?)));
        };
        let fault = |source| ImportError::Weights { path: path.to_owned(), source };
        let mut file = TensorFile::from_bytes(&disk::read(path)?).map_err(fault)?;
        let tensors = trainable.tensors().into_iter().map(|expected| {
            let name = format!("{}{}", prefix(trainable.network()), expected.name);
            let found = file.take(&name)?;
            if found.shape != expected.shape {
                let (expected, found) = (expected.shape, found.shape);
                return Err(crate::weights::WeightsError::Shape { name, expected, found });
            }
            Ok(found)
        });
        let tensors = tensors.collect::<Result<Vec<_>, _>>().map_err(fault)?;
        // The factor is part of the matrices.
        let spec = LoraSpec { alpha: spec.rank as f32, ..spec.clone() };
        let trainable =
            Trainable::lora(base, spec).map_err(|error| RunError::Unsuitable(error.to_string()))?;
        Ok(Self::Lora { trainable, tensors, card: ModelCard::default() })
    }
}
