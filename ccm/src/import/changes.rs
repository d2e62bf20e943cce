//! Changes of a pipeline's weights when they are read: another denoiser in the place of its own, and LoRA files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::ImportError;
use super::lora::Lora;
use super::text_to_image::{Folder, PartWeights};
use crate::disk;
use crate::model::graph::Graph;
use crate::model::{NetworkSpec, SpecError};
use crate::pipeline::{Part, Weights};
use crate::weights::{CompactTensor, HostTensor, Precision};

/// A pipeline's weights with changes.
#[derive(Debug, Clone)]
pub struct Changed {
    weights: PartWeights,
    /// The denoiser in the place of the pipeline's own.
    denoiser: Option<Arc<[HostTensor]>>,
    loras: Vec<Lora>,
}

impl Folder {
    /// The weights with the denoiser of a model file of this program in the place of the pipeline's own, and with LoRA files,
    /// each with its weight. Changes the spec and the card to those of that denoiser.
    ///
    /// # Errors
    /// If a file cannot be read, or does not belong to the pipeline.
    pub fn read_changes(
        &mut self,
        denoiser: Option<&Path>,
        loras: &[(PathBuf, f32)],
    ) -> Result<Changed, ImportError> {
        let denoiser = denoiser.map(|path| self.replace_denoiser(path)).transpose()?;
        let open = |(file, weight): &(PathBuf, f32)| Lora::open(file, *weight, &self.spec);
        let loras = loras.iter().map(open).collect::<Result<_, _>>()?;
        Ok(Changed { weights: self.weights.clone(), denoiser, loras })
    }

    fn replace_denoiser(&mut self, path: &Path) -> Result<Arc<[HostTensor]>, ImportError> {
        let fault =
            |reason: &dyn std::fmt::Display| ImportError::Spec(format!("{}: {reason}", path.display()));
        let model = disk::read_model(path).map_err(|error| ImportError::Spec(error.to_string()))?;
        let network = like(&self.spec.network, &model.spec).map_err(|error| fault(&error))?;
        if model.prediction != self.spec.prediction {
            return Err(fault(&"its prediction or its schedule is not that of the pipeline"));
        }
        self.spec.network = network;
        self.card = model.card;
        Ok(model.tensors.into())
    }
}

/// The network of a pipeline, with the embedding of the guidance scale that `other` may have.
fn like(network: &NetworkSpec, other: &NetworkSpec) -> Result<NetworkSpec, SpecError> {
    let guided = match other {
        NetworkSpec::UNet2DCondition(other) => other.time_cond_proj_dim,
        _ => None,
    };
    let network = match guided {
        Some(channels) => network.with_guidance(channels)?,
        None => network.clone(),
    };
    if network.tensors() == other.tensors() {
        return Ok(network);
    }
    let reason = "expected the network of the pipeline's denoiser, found another one".into();
    Err(SpecError { field: "network".into(), reason })
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
        let replaced = self.denoiser.as_ref().filter(|_| part == Part::Denoiser);
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
