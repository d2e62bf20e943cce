//! Opens a text-to-image pipeline, Stable Diffusion 1, 2, XL or 3: a folder in diffusers' layout, such a folder with its
//! weights in a single file, or a file of this program that holds all parts.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use pollster::block_on;

use super::checkpoint::Stored;
use super::diffusers::{current_name, find_weights, parsed, scheduler, weights};
use super::single_file::{Origin, Taken, origins};
use super::{Checkpoint, ImportError};
use crate::disk::{self, DiskError};
use crate::model::graph::{Graph, Parameter};
use crate::model::json::Json;
use crate::model::{AutoencoderSpec, ModelCard, NetworkSpec, SpecError, TensorSpec, TextEncoderSpec};
use crate::pipeline::{
    HEAD, Packed, PackedError, Part, PipelineSpec, Source, Tokenizer, TokenizerError, TokenizerFiles,
    Weights, is_packed,
};
use crate::weights::{CompactTensor, HostTensor, Precision, WeightsError};

/// File name of the weights of denoisers and autoencoders, without extension.
const STEM: &str = "diffusion_pytorch_model";

/// A pipeline: everything but the weights, which are read on demand.
pub struct Folder {
    /// The parts.
    pub spec: PipelineSpec,
    /// One tokenizer for each text encoder.
    pub tokenizers: Vec<Tokenizer>,
    /// Messages about settings of the scheduler that are not applied.
    pub notes: Vec<String>,
    /// The origin of the pipeline.
    pub card: ModelCard,
    /// The smallest precision of the weights, if the pipeline says so.
    pub precision: Precision,
    /// Where the weights are.
    pub weights: PartWeights,
    /// The folder with the configuration; `None` if a file of this program holds all.
    pub(super) config: Option<PathBuf>,
}

/// Where the weights of a pipeline are.
#[derive(Debug, Clone)]
pub enum PartWeights {
    /// In a folder for each part.
    Folders {
        /// The denoiser's.
        denoiser: PathBuf,
        /// The autoencoder's, if there is one.
        autoencoder: Option<PathBuf>,
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
    /// In a file of this program.
    Packed {
        /// The file.
        path: PathBuf,
        /// Its contents.
        packed: Arc<Packed<FileSource>>,
    },
}

/// An open file that is read in parts.
#[derive(Debug)]
pub struct FileSource {
    file: Mutex<File>,
    size: u64,
}

impl Source for FileSource {
    fn size(&self) -> u64 {
        self.size
    }

    async fn read(&self, range: Range<u64>) -> Result<Vec<u8>, String> {
        let size = range.end.checked_sub(range.start).filter(|_| range.end <= self.size);
        let size = size.and_then(|size| usize::try_from(size).ok());
        let size = size.ok_or("a part that is not in the file")?;
        let mut bytes = vec![0; size];
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let read = file.seek(SeekFrom::Start(range.start)).and_then(|_| file.read_exact(&mut bytes));
        read.map(|()| bytes).map_err(|error| error.to_string())
    }
}

/// Whether a folder has diffusers' layout of a pipeline with a text encoder, or a file of this program holds one.
pub fn is_text_to_image(path: &Path) -> bool {
    if path.is_file() {
        let mut head = Vec::new();
        let read = File::open(path).and_then(|file| file.take(HEAD as u64).read_to_end(&mut head));
        return read.is_ok() && is_packed(&head);
    }
    parsed(&path.join("model_index.json")).is_ok_and(|index| has_part(&index, "text_encoder"))
}

/// Opens a pipeline: a folder in diffusers' layout, a file of this program that holds all parts, or with `config` a single
/// file with the weights.
///
/// # Errors
/// As [`open`], [`open_file`] and [`open_packed`].
pub fn open_any(path: &Path, config: Option<&Path>) -> Result<Folder, ImportError> {
    match config {
        Some(config) => open_file(path, config),
        None if path.is_file() => open_packed(path),
        None => open(path),
    }
}

/// Opens a file of this program that holds all parts.
///
/// # Errors
/// If the file cannot be read, or is no such file.
pub fn open_packed(path: &Path) -> Result<Folder, ImportError> {
    let file = File::open(path).map_err(DiskError::of(path))?;
    let size = file.metadata().map_err(DiskError::of(path))?.len();
    let packed = block_on(Packed::open(FileSource { file: Mutex::new(file), size }));
    let packed = packed.map_err(|error| at_fault(path, error))?;
    Ok(Folder {
        spec: packed.spec.clone(),
        tokenizers: block_on(packed.tokenizers()).map_err(|error| at_fault(path, error))?,
        notes: Vec::new(),
        card: packed.card.clone(),
        precision: packed.precision,
        weights: PartWeights::Packed { path: path.into(), packed: Arc::new(packed) },
        config: None,
    })
}

/// The error of a file of this program.
pub(super) fn at_fault(path: &Path, error: PackedError) -> ImportError {
    match error {
        PackedError::Weights(source) => ImportError::Weights { path: path.into(), source },
        other => fault(path, &other),
    }
}

/// The folders of the parts of a pipeline in diffusers' layout.
pub(super) struct Layout {
    pub(super) denoiser: PathBuf,
    pub(super) autoencoder: Option<PathBuf>,
    pub(super) text_encoders: Vec<PathBuf>,
    pub(super) tokenizers: Vec<PathBuf>,
    /// Whether guidance leads away from zeros, not from the empty text.
    pub(super) zeros_for_empty: bool,
}

impl Layout {
    /// Reads the `model_index.json` of a folder.
    pub(super) fn read(folder: &Path) -> Result<Self, ImportError> {
        let index = parsed(&folder.join("model_index.json"))?;
        let of = |name: &str| folder.join(name);
        let mut layout = Self {
            denoiser: of(if has_part(&index, "transformer") { "transformer" } else { "unet" }),
            autoencoder: has_part(&index, "vae").then(|| of("vae")),
            text_encoders: Vec::new(),
            tokenizers: Vec::new(),
            zeros_for_empty: index.get("force_zeros_for_empty_prompt").and_then(Json::flag).unwrap_or(false),
        };
        for suffix in ["", "_2", "_3"] {
            let name = format!("text_encoder{suffix}");
            if has_part(&index, &name) {
                layout.text_encoders.push(of(&name));
                layout.tokenizers.push(of(&format!("tokenizer{suffix}")));
            }
        }
        Ok(layout)
    }
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
    let Layout { denoiser, autoencoder, text_encoders, tokenizers, zeros_for_empty } = Layout::read(folder)?;
    let network = read(&denoiser, NetworkSpec::from_config)?;
    let found = scheduler(&folder.join("scheduler/scheduler_config.json"))?;
    let encoders = text_encoders.iter().map(|part| read(part, TextEncoderSpec::from_config));
    let encoders = encoders.collect::<Result<_, _>>()?;
    let decoder = autoencoder.as_deref().map(|part| read(part, AutoencoderSpec::from_config)).transpose()?;
    let spec = PipelineSpec::new(network, found.prediction, decoder, encoders, zeros_for_empty);
    let spec = spec.map_err(|error| fault(folder, &error))?;
    let tokenizers = tokenizers.iter().enumerate().map(|(index, path)| tokenizer(path, spec.tokens(index)));
    let tokenizers = tokenizers.collect::<Result<_, _>>()?;
    let name = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let card = ModelCard {
        role: found.role,
        source: name.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
        version: env!("CARGO_PKG_VERSION").into(),
        ..ModelCard::default()
    };
    Ok(Folder {
        spec,
        tokenizers,
        notes: found.notes,
        card,
        precision: Precision::F32,
        weights: PartWeights::Folders { denoiser, autoencoder, text_encoders },
        config: Some(folder.into()),
    })
}

/// Opens a pipeline whose weights are in a single file. Its configuration and tokenizers are in a folder in diffusers' layout,
/// which needs no weights.
///
/// # Errors
/// As [`open`].
pub fn open_file(file: &Path, config: &Path) -> Result<Folder, ImportError> {
    let folder = open(config)?;
    let weights = PartWeights::File { path: file.into(), spec: Box::new(folder.spec.clone()) };
    let source = file.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    Ok(Folder { weights, card: ModelCard { source, ..folder.card.clone() }, ..folder })
}

pub(super) fn fault(path: &Path, error: &dyn std::fmt::Display) -> ImportError {
    ImportError::Spec(format!("{}: {error}", path.display()))
}

/// Reads the `config.json` of a part.
fn read<T>(part: &Path, parse: impl Fn(&Json) -> Result<T, SpecError>) -> Result<T, ImportError> {
    let path = part.join("config.json");
    parse(&parsed(&path)?).map_err(|error| fault(&path, &error))
}

/// Opens a tokenizer.
fn tokenizer(folder: &Path, length: usize) -> Result<Tokenizer, ImportError> {
    let config = parsed(&folder.join("tokenizer_config.json"))?;
    tokenizer_files(folder)?.open(&config, length).map_err(|error| fault(folder, &error))
}

/// Reads the files of a tokenizer.
pub(super) fn tokenizer_files(folder: &Path) -> Result<TokenizerFiles, ImportError> {
    /// An error of a file, or of the tokenizer.
    enum Found {
        Disk(DiskError),
        Files(TokenizerError),
    }
    impl From<TokenizerError> for Found {
        fn from(error: TokenizerError) -> Self {
            Self::Files(error)
        }
    }
    let found = TokenizerFiles::find(|name| {
        let path = folder.join(name);
        path.exists().then(|| disk::read_text(&path).map_err(Found::Disk)).transpose()
    });
    found.map_err(|error| match error {
        Found::Disk(error) => error.into(),
        Found::Files(error) => fault(folder, &error),
    })
}

impl Weights for PartWeights {
    type Error = ImportError;

    async fn each(
        &self,
        part: Part,
        graph: &Graph,
        precision: Precision,
        take: &mut dyn FnMut(CompactTensor) -> Result<(), ImportError>,
    ) -> Result<(), ImportError> {
        let of = |parameter: &Parameter| TensorSpec {
            name: parameter.name.clone(),
            shape: parameter.shape.clone(),
        };
        let expected: Vec<TensorSpec> = graph.parameters.iter().map(of).collect();
        match (self, part) {
            (Self::File { path, spec }, _) => {
                // PyTorch's files have all tensors in one dictionary.
                let top_level = |name: &str| name.strip_prefix("state_dict.").unwrap_or(name).to_owned();
                let checkpoint = Checkpoint::open(path)?.renamed(top_level);
                expected.iter().try_for_each(|tensor| {
                    let found = checkpoint.read_origin(tensor, origins(spec, part, &tensor.name))?;
                    take(found.rounded(precision))
                })
            }
            (Self::Packed { path, packed }, _) => {
                let mut failed = None;
                let take = &mut |tensor| {
                    take(tensor).map_err(|error| {
                        failed = Some(error);
                        PackedError::Read(String::new())
                    })
                };
                let read = packed.each(part, graph, precision, take).await;
                match (read, failed) {
                    (_, Some(error)) => Err(error),
                    (read, None) => read.map_err(|error| at_fault(path, error)),
                }
            }
            (Self::Folders { denoiser, .. }, Part::Denoiser) => {
                weights(denoiser, STEM)?.each_compact(&expected, true, precision, take)
            }
            (Self::Folders { autoencoder, .. }, Part::Encoder | Part::Decoder) => {
                let Some(autoencoder) = autoencoder else { return Ok(()) };
                let checkpoint = weights(autoencoder, STEM)?.renamed(current_name).reshaped(&expected);
                checkpoint.each_compact(&expected, false, precision, take)
            }
            (Self::Folders { text_encoders, .. }, Part::TextEncoder(index)) => {
                let folder = &text_encoders[index];
                let checkpoint = match find_weights(folder, "model")? {
                    Some(checkpoint) => checkpoint,
                    None => weights(folder, "pytorch_model")?,
                };
                checkpoint.renamed(text_name).each_compact(&expected, false, precision, take)
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
            if let Some(found) = self.tensors.get_mut(name).map(Stored::shape_mut)
                && found.len() > shape.len()
                && found.starts_with(shape)
                && found[shape.len()..].iter().all(|&size| size == 1)
            {
                found.clone_from(shape);
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
