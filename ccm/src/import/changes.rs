//! Changes of a pipeline's weights when they are read: another denoiser in the place of its own, and LoRA files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::ImportError;
use super::lora::Lora;
use super::text_to_image::{Folder, PartWeights};
use crate::disk;
use crate::model::Role;
use crate::model::graph::Graph;
use crate::pipeline::{Part, Weights};
use crate::weights::{CompactTensor, HostTensor, Precision};

/// A pipeline's weights with changes.
#[derive(Debug, Clone)]
pub struct Changed {
    weights: PartWeights,
    replaced: Replaced,
    loras: Vec<Lora>,
}

/// Weights in the place of the pipeline's own.
#[derive(Debug, Clone, Default)]
struct Replaced {
    denoiser: Option<Arc<[HostTensor]>>,
    /// The text encoder that was trained with the denoiser.
    text_encoder: Option<Arc<[HostTensor]>>,
}

impl Folder {
    /// The weights with the denoiser of a model file of this program in the place of the pipeline's own, and with LoRA files,
    /// each with its weight. Changes the spec and the card to those of the changed denoiser.
    ///
    /// # Errors
    /// If a file cannot be read, or does not belong to the pipeline.
    pub fn read_changes(
        &mut self,
        denoiser: Option<&Path>,
        loras: &[(PathBuf, f32)],
    ) -> Result<Changed, ImportError> {
        let replaced = denoiser.map(|path| self.replace_denoiser(path)).transpose()?.unwrap_or_default();
        let open = |(file, weight): &(PathBuf, f32)| Lora::open(file, *weight, &self.spec);
        let loras = loras.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        // Low-rank products that were trained to be a student make one of the denoiser.
        if loras.iter().filter_map(|lora| lora.card.as_ref()).any(|card| card.role == Role::Student) {
            self.card.role = Role::Student;
        }
        Ok(Changed { weights: self.weights.clone(), replaced, loras })
    }

    fn replace_denoiser(&mut self, path: &Path) -> Result<Replaced, ImportError> {
        let fault =
            |reason: &dyn std::fmt::Display| ImportError::Spec(format!("{}: {reason}", path.display()));
        let model = disk::read_model(path).map_err(|error| ImportError::Spec(error.to_string()))?;
        let network = self.spec.network.like(&model.spec).map_err(|error| fault(&error))?;
        if model.prediction != self.spec.prediction {
            return Err(fault(&"its prediction or its schedule is not that of the pipeline"));
        }
        self.card = model.card;
        self.spec.network = network.without_text_encoder();
        let mut tensors = model.tensors;
        if !network.has_text_encoder() {
            return Ok(Replaced { denoiser: Some(tensors.into()), text_encoder: None });
        }
        let own = network.tensors().len() - self.spec.network.tensors().len();
        if own != self.spec.text_encoder(0).parameters.len() {
            return Err(fault(&"its text encoder is not that of the pipeline"));
        }
        // The parameters of the text encoder come first.
        let denoiser = tensors.split_off(self.spec.text_encoder(0).parameters.len());
        Ok(Replaced { denoiser: Some(denoiser.into()), text_encoder: Some(tensors.into()) })
    }
}

impl Weights for Changed {
    type Error = ImportError;

    async fn each(
        &self,
        part: Part,
        graph: &Graph,
        precision: Precision,
        take: &mut dyn FnMut(CompactTensor) -> Result<(), ImportError>,
    ) -> Result<(), ImportError> {
        let replaced = match part {
            Part::Denoiser => self.replaced.denoiser.as_ref(),
            Part::TextEncoder(0) => self.replaced.text_encoder.as_ref(),
            _ => None,
        };
        if self.loras.is_empty() && replaced.is_none() {
            return self.weights.each(part, graph, precision, take).await;
        }
        let mut parameters = graph.parameters.iter();
        // Changes are added before weights are rounded.
        let mut changed = |tensor| {
            let Some(parameter) = parameters.next() else { panic!("more weights than parameters") };
            let apply = |tensor, lora: &Lora| lora.apply(part, parameter, tensor);
            take(self.loras.iter().try_fold(tensor, apply)?.rounded(precision))
        };
        match replaced {
            Some(tensors) => tensors.iter().try_for_each(|tensor| changed(tensor.clone().into())),
            None => self.weights.each(part, graph, Precision::F32, &mut changed).await,
        }
    }
}
