//! Opens a text-to-image pipeline, Stable Diffusion 1, 2, XL or 3: a folder in diffusers' layout, or such a folder with its
//! weights in a single file.

use std::path::{Path, PathBuf};

use super::checkpoint::Stored;
use super::diffusers::{current_name, parsed, scheduler, weights};
use super::single_file::{Origin, Taken, origins};
use super::{Checkpoint, ImportError};
use crate::disk;
use crate::model::graph::{Graph, Parameter};
use crate::model::json::Json;
use crate::model::{AutoencoderSpec, NetworkSpec, SpecError, TensorSpec, TextEncoderSpec};
use crate::pipeline::{Part, PipelineSpec, Tokenizer, Weights};
use crate::weights::{CompactTensor, HostTensor, Precision, WeightsError};

/// File name of the weights of denoisers and autoencoders, without extension.
const STEM: &str = "diffusion_pytorch_model";

/// A pipeline's folder: everything but the weights, which are read on demand.
pub struct Folder {
    /// The parts.
    pub spec: PipelineSpec,
    /// One tokenizer for each text encoder.
    pub tokenizers: Vec<Tokenizer>,
    /// Messages about settings of the scheduler that are not applied.
    pub notes: Vec<String>,
    /// Where the weights are.
    pub weights: PartWeights,
}

/// Where the weights of a pipeline are.
#[derive(Debug, Clone)]
pub enum PartWeights {
    /// In a folder for each part.
    Folders {
        /// The denoiser's.
        denoiser: PathBuf,
        /// The autoencoder's.
        autoencoder: PathBuf,
        /// One for each text encoder.
        text_encoders: Vec<PathBuf>,
    },
    /// In a single file with the names of Stable Diffusion's own repositories.
    File {
        /// The file.
        path: PathBuf,
        /// The parts.
        spec: Box<PipelineSpec>,
    },
}

/// Whether a folder has diffusers' layout of a pipeline with a text encoder.
pub fn is_text_to_image(folder: &Path) -> bool {
    parsed(&folder.join("model_index.json")).is_ok_and(|index| has_part(&index, "text_encoder"))
}

/// Whether a `model_index.json` lists a part; a part that was left out is a list of nulls.
fn has_part(index: &Json, name: &str) -> bool {
    index.get(name).and_then(Json::list).is_some_and(|of| of.iter().any(|value| value.text().is_some()))
}

/// Opens a pipeline.
///
/// # Errors
/// If a part is of another class, an option is not supported (by name), the parts do not fit together, or a file is missing.
pub fn open(folder: &Path) -> Result<Folder, ImportError> {
    let index_path = folder.join("model_index.json");
    let index = parsed(&index_path)?;
    let denoiser = folder.join(if has_part(&index, "transformer") { "transformer" } else { "unet" });
    let autoencoder = folder.join("vae");
    let network = read(&denoiser, NetworkSpec::from_config)?;
    let path = folder.join("scheduler/scheduler_config.json");
    let found = scheduler(&path)?;
    let mut text_encoders = Vec::new();
    let mut tokenizers = Vec::new();
    let mut folders = Vec::new();
    for suffix in ["", "_2", "_3"] {
        let name = format!("text_encoder{suffix}");
        if has_part(&index, &name) {
            let part = folder.join(name);
            text_encoders.push(read(&part, TextEncoderSpec::from_config)?);
            folders.push(part);
            tokenizers.push(folder.join(format!("tokenizer{suffix}")));
        }
    }
    let zeros = index.get("force_zeros_for_empty_prompt").and_then(Json::flag).unwrap_or(false);
    let spec = PipelineSpec::new(
        network,
        found.prediction,
        read(&autoencoder, AutoencoderSpec::from_config)?,
        text_encoders,
        zeros,
    );
    let spec = spec.map_err(|error| fault(folder, &error))?;
    let tokenizers = tokenizers.iter().enumerate().map(|(index, path)| tokenizer(path, spec.tokens(index)));
    let tokenizers = tokenizers.collect::<Result<_, _>>()?;
    let weights = PartWeights::Folders { denoiser, autoencoder, text_encoders: folders };
    Ok(Folder { spec, tokenizers, notes: found.notes, weights })
}

/// Opens a pipeline whose weights are in a single file. Its configuration and tokenizers are in a folder in diffusers' layout,
/// which needs no weights.
///
/// # Errors
/// As [`open`].
pub fn open_file(file: &Path, config: &Path) -> Result<Folder, ImportError> {
    let folder = open(config)?;
    let weights = PartWeights::File { path: file.into(), spec: Box::new(folder.spec.clone()) };
    Ok(Folder { weights, ..folder })
}

fn fault(path: &Path, error: &dyn std::fmt::Display) -> ImportError {
    ImportError::Spec(format!("{}: {error}", path.display()))
}

/// Reads the `config.json` of a part.
fn read<T>(part: &Path, parse: impl Fn(&Json) -> Result<T, SpecError>) -> Result<T, ImportError> {
    let path = part.join("config.json");
    parse(&parsed(&path)?).map_err(|error| fault(&path, &error))
}

/// Opens a tokenizer: `tokenizer.json`, or CLIP's `vocab.json` and `merges.txt`.
fn tokenizer(folder: &Path, length: usize) -> Result<Tokenizer, ImportError> {
    let config = parsed(&folder.join("tokenizer_config.json"))?;
    let whole = folder.join("tokenizer.json");
    let vocabulary = folder.join("vocab.json");
    let found = if vocabulary.exists() {
        let merges = disk::read_text(&folder.join("merges.txt"))?;
        Tokenizer::clip(&disk::read_text(&vocabulary)?, &merges, &config, length)
    } else if whole.exists() {
        Tokenizer::from_json(&disk::read_text(&whole)?, &config, length)
    } else {
        return Err(fault(folder, &"expected tokenizer.json, or vocab.json and merges.txt, found neither"));
    };
    found.map_err(|error| fault(folder, &error))
}

impl Weights for PartWeights {
    type Error = ImportError;

    fn read(
        &self,
        part: Part,
        graph: &Graph,
        precision: Precision,
    ) -> Result<Vec<CompactTensor>, ImportError> {
        let of = |parameter: &Parameter| TensorSpec {
            name: parameter.name.clone(),
            shape: parameter.shape.clone(),
        };
        let expected: Vec<TensorSpec> = graph.parameters.iter().map(of).collect();
        match (self, part) {
            (Self::File { path, spec }, _) => {
                let checkpoint = Checkpoint::open(path)?;
                let read = |tensor: &TensorSpec| {
                    let found = checkpoint.read_origin(tensor, origins(spec, part, &tensor.name))?;
                    Ok(found.rounded(precision))
                };
                expected.iter().map(read).collect()
            }
            (Self::Folders { denoiser, .. }, Part::Denoiser) => {
                weights(denoiser, STEM)?.select_compact(&expected, true, precision)
            }
            (Self::Folders { autoencoder, .. }, Part::Encoder | Part::Decoder) => {
                let checkpoint = weights(autoencoder, STEM)?.renamed(current_name).reshaped(&expected);
                checkpoint.select_compact(&expected, false, precision)
            }
            (Self::Folders { text_encoders, .. }, Part::TextEncoder(index)) => {
                let folder = &text_encoders[index];
                let has_pytorch = folder.join("pytorch_model.bin").exists();
                let checkpoint = match weights(folder, "model") {
                    Err(_) if has_pytorch => weights(folder, "pytorch_model")?,
                    found => found?,
                };
                checkpoint.renamed(text_name).select_compact(&expected, false, precision)
            }
        }
    }
}

/// Today's name of a text encoder's tensor: CLIP's begin with `text_model.`, except for the projection.
fn text_name(name: &str) -> String {
    let is_clip =
        ["embeddings.", "encoder.layers.", "final_layer_norm."].iter().any(|own| name.starts_with(own));
    match name {
        // The same tensor, under the name in T5's encoder.
        "encoder.embed_tokens.weight" => "shared.weight".into(),
        _ if is_clip => format!("text_model.{name}"),
        _ => name.into(),
    }
}

impl Checkpoint {
    /// Drops dimensions of 1 that tensors have beyond the expected ones: old autoencoders store attention's matrices as 1x1
    /// convolutions.
    fn reshaped(mut self, expected: &[TensorSpec]) -> Self {
        for TensorSpec { name, shape } in expected {
            if let Some(Stored::Safetensors { entry: tensor, .. }) = self.tensors.get_mut(name)
                && tensor.shape.len() > shape.len()
                && tensor.shape.starts_with(shape)
                && tensor.shape[shape.len()..].iter().all(|&size| size == 1)
            {
                tensor.shape.clone_from(shape);
            }
        }
        self
    }

    /// Reads a tensor from the first of its possible origins that the file has.
    fn read_origin(&self, tensor: &TensorSpec, origins: Vec<Origin>) -> Result<CompactTensor, ImportError> {
        let fault = |source| ImportError::Weights { path: self.path.clone(), source };
        let found = origins.iter().find(|(name, _)| self.tensors.contains_key(name));
        let Some((name, taken)) = found else {
            let name = origins.first().map_or(&tensor.name, |(name, _)| name);
            return Err(fault(WeightsError::Missing(name.clone())));
        };
        let expected = match taken {
            Taken::Whole | Taken::SwappedHalves => tensor.shape.clone(),
            Taken::Third(_) => [&[3 * tensor.shape[0]], &tensor.shape[1..]].concat(),
            Taken::Transposed => tensor.shape.iter().rev().copied().collect(),
        };
        let found = self.tensors[name].shape();
        if without_ones(found) != without_ones(&expected) {
            let (name, found) = (name.clone(), found.to_vec());
            return Err(fault(WeightsError::Shape { name, expected, found }));
        }
        let stored = self.compact(name)?;
        if *taken == Taken::Whole {
            return Ok(CompactTensor { shape: tensor.shape.clone(), ..stored });
        }
        let values = stored.into_f32();
        let values = match taken {
            Taken::Whole => values,
            Taken::Third(part) => {
                let len = values.len() / 3;
                values[part * len..][..len].to_vec()
            }
            Taken::SwappedHalves => {
                let (first, second) = values.split_at(values.len() / 2);
                [second, first].concat()
            }
            Taken::Transposed => {
                let [rows, columns] = [tensor.shape[0], tensor.shape[1]];
                let at = |place: usize| values[place % columns * rows + place / columns];
                (0..rows * columns).map(at).collect()
            }
        };
        Ok(HostTensor { shape: tensor.shape.clone(), values }.into())
    }
}

/// Dimensions without those of 1 at both ends.
fn without_ones(shape: &[usize]) -> &[usize] {
    let is_one = |size: &usize| *size == 1;
    let end = shape.iter().rposition(|size| !is_one(size)).map_or(0, |last| last + 1);
    let start = shape[..end].iter().position(|size| !is_one(size)).unwrap_or(end);
    &shape[start..end]
}
