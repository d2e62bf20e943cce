//! A pipeline in one file: a safetensors file with the tensors of all parts, the files of the tokenizers, and a description.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{Part, PipelineSpec, Tokenizer, TokenizerError, TokenizerFiles, Weights};
use crate::model::graph::{Graph, Parameter};
use crate::model::json::Json;
use crate::model::{AutoencoderSpec, ModelCard, NetworkSpec, Prediction, TextEncoderSpec};
use crate::weights::header::{Entry, read_head, too_long};
use crate::weights::{CompactTensor, Precision, SCALE_SUFFIX, WeightsError};

/// Bytes that can be read in parts.
pub trait Source {
    /// Number of bytes.
    fn size(&self) -> u64;

    /// Reads a range of them.
    ///
    /// # Errors
    /// A message, if they cannot be read.
    fn read(&self, range: Range<u64>) -> impl Future<Output = Result<Vec<u8>, String>>;
}

/// Why a file with a pipeline cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PackedError {
    /// The file is not such a file, or a tensor is missing or of another shape.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A tokenizer cannot be used.
    #[error("tokenizer: {0}")]
    Tokenizer(#[from] TokenizerError),
    /// The file cannot be read.
    #[error("{0}")]
    Read(String),
}

/// A safetensors file with a pipeline. Its tensors are read on demand.
///
/// | in the file | what it is |
/// | --- | --- |
/// | `denoiser.NAME`, `decoder.NAME`, `text_encoder.NAME`, `text_encoder_2.NAME`, `text_encoder_3.NAME` | the parameter `NAME` of a part, in any precision of [`Precision`] |
/// | `encoder.NAME` | the same of the autoencoder's half from pixels to latents, which only training needs; may be absent |
/// | `tokenizer/FILE`, `tokenizer_2/FILE`, `tokenizer_3/FILE` | bytes of a file of a tokenizer |
/// | metadata `ccm` | JSON: `pipeline`, `card` and `precision` |
///
/// `pipeline` has the `config.json` of `denoiser`, `autoencoder` (null without one) and `text_encoders`, the `tokenizer_config.json` of
/// `tokenizers`, the `prediction` ([`Prediction::from_json`]), and `zeros_for_empty`.
#[derive(Debug)]
pub struct Packed<S> {
    /// The parts.
    pub spec: PipelineSpec,
    /// The origin of the pipeline.
    pub card: ModelCard,
    /// The smallest precision of the weights.
    pub precision: Precision,
    /// The JSON under the metadata key.
    pub description: String,
    /// The `tokenizer_config.json` of each tokenizer.
    tokenizers: Vec<Json>,
    entries: BTreeMap<String, Entry>,
    /// Where the values of all tensors begin in the file.
    start: u64,
    source: S,
}

/// Number of bytes at the start of a file that [`is_packed`] needs.
pub const HEAD: usize = 64;

/// Whether a file that begins with these bytes has a pipeline: its description comes first and begins with that word.
pub fn is_packed(head: &[u8]) -> bool {
    const MARK: &[u8] = b"\"pipeline";
    head[..HEAD.min(head.len())].windows(MARK.len()).any(|bytes| bytes == MARK)
}

/// The name of a part in a file; the names of its tensors begin with it and a dot.
pub fn part_name(part: Part) -> String {
    match part {
        Part::Denoiser => "denoiser".into(),
        Part::Encoder => "encoder".into(),
        Part::Decoder => "decoder".into(),
        Part::TextEncoder(index) => numbered("text_encoder", index),
    }
}

/// The name of the first, second or later part of a kind, as diffusers names them.
fn numbered(name: &str, index: usize) -> String {
    if index == 0 { name.into() } else { format!("{name}_{}", index + 1) }
}

fn no_model(reason: impl ToString) -> WeightsError {
    WeightsError::NoModel(reason.to_string())
}

impl<S: Source> Packed<S> {
    /// Reads the header of a file.
    ///
    /// # Errors
    /// If it cannot be read, does not describe the file, or does not describe a pipeline.
    pub async fn open(source: S) -> Result<Self, PackedError> {
        let size = source.size();
        let malformed = |reason| PackedError::Weights(WeightsError::Malformed(reason));
        let length = if size < 8 { Ok(Vec::new()) } else { source.read(0..8).await };
        let length = length.map_err(PackedError::Read)?;
        let Some(length) = length.first_chunk::<8>() else {
            return Err(malformed(format!("expected a header of at least 8 bytes, found {size} bytes")));
        };
        let length = u64::from_le_bytes(*length);
        let rest = size - 8;
        let values = rest.checked_sub(length).and_then(|values| usize::try_from(values).ok());
        let values = values.ok_or_else(|| malformed(too_long(length, rest as usize)))?;
        let start = 8 + length;
        let head = source.read(8..start).await.map_err(PackedError::Read)?;
        let (entries, description) = read_head(&head, values)?;
        let json = Json::parse(&description).map_err(no_model)?;
        let pipeline = json.get("pipeline").ok_or_else(|| no_model("expected a `pipeline`"))?;
        let card = json.get("card").ok_or_else(|| no_model("expected a `card`"))?;
        let (card, spec) = (ModelCard::from_json(card).map_err(WeightsError::from)?, spec(pipeline)?);
        let precision = json.get("precision").and_then(Json::text).unwrap_or("f32");
        let precision = precision.parse().map_err(|error| no_model(format!("precision: {error}")))?;
        let tokenizers = list(pipeline, "tokenizers")?.to_vec();
        if tokenizers.len() != spec.text_encoders.len() {
            let (expected, found) = (spec.text_encoders.len(), tokenizers.len());
            return Err(no_model(format!("tokenizers: expected {expected}, found {found}")).into());
        }
        Ok(Self { spec, card, precision, description, tokenizers, entries, start, source })
    }

    /// One tokenizer for each text encoder.
    ///
    /// # Errors
    /// If a file is missing or malformed.
    pub async fn tokenizers(&self) -> Result<Vec<Tokenizer>, PackedError> {
        let count = self.tokenizers.len();
        let files: BTreeMap<String, Vec<u8>> = self.files(count).await?.into_iter().collect();
        let open = |(index, config): (usize, &Json)| {
            let folder = numbered("tokenizer", index);
            let files = TokenizerFiles::find(|file| -> Result<Option<String>, PackedError> {
                let name = format!("{folder}/{file}");
                let text = files.get(&name).map(|bytes| String::from_utf8(bytes.clone())).transpose();
                text.map_err(|_| PackedError::Read(format!("`{name}`: expected text in UTF-8")))
            });
            Ok(files?.open(config, self.spec.tokens(index))?)
        };
        self.tokenizers.iter().enumerate().map(open).collect()
    }

    /// The names and the bytes of the files of the first `count` tokenizers.
    ///
    /// # Errors
    /// If they cannot be read.
    pub async fn files(&self, count: usize) -> Result<Vec<(String, Vec<u8>)>, PackedError> {
        let folders: Vec<String> = (0..count).map(|index| numbered("tokenizer", index) + "/").collect();
        let mut files = Vec::new();
        for (name, entry) in &self.entries {
            if folders.iter().any(|folder| name.starts_with(folder.as_str())) {
                files.push((name.clone(), self.bytes(entry).await?));
            }
        }
        Ok(files)
    }

    /// Number of tensors of a part, scales included, and the bytes of their values.
    pub fn size_of(&self, part: Part) -> (usize, u64) {
        let prefix = part_name(part) + ".";
        let own = self.entries.iter().filter(|(name, _)| name.starts_with(&prefix));
        own.fold((0, 0), |(count, bytes), (_, entry)| (count + 1, bytes + entry.range.len() as u64))
    }

    async fn bytes(&self, entry: &Entry) -> Result<Vec<u8>, PackedError> {
        let range = self.start + entry.range.start as u64..self.start + entry.range.end as u64;
        self.source.read(range).await.map_err(PackedError::Read)
    }

    /// An entry of the file and its bytes.
    async fn find(&self, name: &str) -> Result<Option<(&Entry, Vec<u8>)>, PackedError> {
        let Some(entry) = self.entries.get(name) else { return Ok(None) };
        Ok(Some((entry, self.bytes(entry).await?)))
    }

    /// Reads a parameter of a part.
    async fn tensor(&self, part: &str, parameter: &Parameter) -> Result<CompactTensor, PackedError> {
        let name = format!("{part}.{}", parameter.name);
        let scales = self.find(&format!("{name}{SCALE_SUFFIX}")).await?;
        Ok(CompactTensor::find(&name, &parameter.shape, [self.find(&name).await?, scales])?)
    }
}

impl<S: Source> Weights for Packed<S> {
    type Error = PackedError;

    async fn each(
        &self,
        part: Part,
        graph: &Graph,
        precision: Precision,
        take: &mut dyn FnMut(CompactTensor) -> Result<(), PackedError>,
    ) -> Result<(), PackedError> {
        let part = part_name(part);
        for parameter in &graph.parameters {
            take(self.tensor(&part, parameter).await?.rounded(precision))?;
        }
        Ok(())
    }
}

fn list<'a>(pipeline: &'a Json, key: &str) -> Result<&'a [Json], WeightsError> {
    let found = pipeline.get(key).and_then(Json::list);
    found.ok_or_else(|| no_model(format!("`{key}`: expected a list")))
}

/// Parses the description of a pipeline.
fn spec(pipeline: &Json) -> Result<PipelineSpec, WeightsError> {
    let part = |key: &str| pipeline.get(key).ok_or_else(|| no_model(format!("expected `{key}`")));
    let prediction = Prediction::from_json(part("prediction")?)?;
    prediction.validate()?;
    let autoencoder = Some(part("autoencoder")?).filter(|config| **config != Json::Null);
    let encoders = list(pipeline, "text_encoders")?.iter().map(TextEncoderSpec::from_config);
    Ok(PipelineSpec::new(
        NetworkSpec::from_config(part("denoiser")?)?,
        prediction,
        autoencoder.map(AutoencoderSpec::from_config).transpose()?,
        encoders.collect::<Result<_, _>>()?,
        pipeline.get("zeros_for_empty").and_then(Json::flag).unwrap_or(false),
    )?)
}
