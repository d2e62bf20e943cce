//! Latents and text embeddings of captioned images, encoded once before training.
//!
//! A file of encoded images is a safetensors file:
//!
//! | tensor | shape | content |
//! |---|---|---|
//! | `train.latents`, `held_out.latents` | `[N, C, H, W]` | the mean of each image's latents, scaled and shifted as the denoiser reads them |
//! | `train.caption`, `held_out.caption` | `[N]` | number of the caption |
//! | `text.tokens` | `[captions + 1, tokens, channels]` | the embedding of each caption's tokens, or their ids with one channel; the last one is the negative text |
//! | `text.pooled` | `[captions + 1, channels]` | embeddings of whole captions, if the denoiser reads them |
//! | `text.sizes` | `[6]` | sizes of the picture, if the denoiser reads them |
//!
//! Its description has the captions. Embeddings are stored and kept in half precision.

use std::path::Path;
use std::sync::Arc;

use half::f16;
use serde::{Deserialize, Serialize};

use super::Split;
use crate::disk::{self, DiskError};
use crate::model::networks::TextShape;
use crate::model::{NetworkSpec, Text};
use crate::weights::{HostTensor, StoredTensor, TensorFile, WeightsError, serialize};

/// Why a file of encoded images cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EncodedError {
    /// It cannot be read.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// It is not one, or it is damaged.
    #[error("{path}: {source}")]
    Weights {
        /// The file.
        path: String,
        /// What is wrong with it.
        source: WeightsError,
    },
    /// An image's caption is not in the file.
    #[error("{path}: caption: expected a number below {captions}, found {found}")]
    Caption {
        /// The file.
        path: String,
        /// Number of captions.
        captions: usize,
        /// The number found.
        found: f32,
    },
    /// It was made from other images or with another pipeline than the run has.
    #[error(
        "{path}: made from {} with {} at {:?} pixels, but the run has {}, {} and {:?}; delete it to encode the images again",
        found.data, found.pipeline, found.size, expected.data, expected.pipeline, expected.size
    )]
    Origin {
        /// The file.
        path: String,
        /// What the run has.
        expected: Box<Origin>,
        /// What the file was made from.
        found: Box<Origin>,
    },
    /// It was encoded for another pipeline.
    #[error("{path}: {what}: expected {expected}, as the denoiser reads, found {found}")]
    Other {
        /// The file.
        path: String,
        /// The quantity that differs.
        what: &'static str,
        /// What the denoiser reads.
        expected: String,
        /// What the file has.
        found: String,
    },
}

/// Latents with captions.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    /// `[N, C, H, W]`.
    latents: Vec<f32>,
    shape: [usize; 3],
    /// The number of each image's caption.
    captions: Vec<u32>,
    texts: Arc<Texts>,
}

/// The captions of both splits and their embeddings.
#[derive(Debug, PartialEq)]
pub struct Texts {
    /// The captions.
    pub captions: Vec<String>,
    /// `[captions + 1, tokens, channels]`.
    tokens: Tokens,
    /// `[captions + 1, channels]`, or empty.
    pooled: Vec<f16>,
    /// Sizes of the picture, or empty.
    sizes: Vec<f32>,
}

/// What a network reads of the tokens of texts.
#[derive(Debug, PartialEq)]
enum Tokens {
    /// Their embeddings.
    Embeddings(Vec<f16>),
    /// Their ids, in single precision, because half precision is exact only up to 2048.
    Ids(Vec<f32>),
}

/// A row of values of which there are this many rows.
fn row<T>(values: &[T], index: usize, rows: usize) -> &[T] {
    let width = values.len() / rows;
    &values[index * width..][..width]
}

impl Texts {
    /// The texts of captions as the ids of their tokens; the last one is the negative text.
    pub fn of_ids(captions: Vec<String>, ids: &[Vec<u32>]) -> Self {
        let ids = ids.iter().flatten().map(|&id| id as f32).collect();
        Self { captions, tokens: Tokens::Ids(ids), pooled: Vec::new(), sizes: Vec::new() }
    }

    /// The texts of captions, and the negative text.
    pub fn new(captions: Vec<String>, encoded: &[Arc<Text>], negative: &Text) -> Self {
        let all = || encoded.iter().map(|text| &**text).chain([negative]);
        let halves =
            |of: fn(&Text) -> &Vec<f32>| all().flat_map(of).map(|&value| f16::from_f32(value)).collect();
        Self {
            captions,
            tokens: Tokens::Embeddings(halves(|text| &text.tokens)),
            pooled: halves(|text| &text.pooled),
            sizes: negative.sizes.clone(),
        }
    }

    /// The text of a caption; index `captions.len()` is the negative text.
    pub fn text(&self, caption: usize) -> Arc<Text> {
        let rows = self.captions.len() + 1;
        let halves = |values: &[f16]| row(values, caption, rows).iter().map(|value| value.to_f32()).collect();
        let tokens = match &self.tokens {
            Tokens::Embeddings(values) => halves(values),
            Tokens::Ids(ids) => row(ids, caption, rows).to_vec(),
        };
        Arc::new(Text { tokens, pooled: halves(&self.pooled), sizes: self.sizes.clone() })
    }

    /// The text that guidance leads away from.
    pub fn negative(&self) -> Arc<Text> {
        self.text(self.captions.len())
    }
}

#[derive(Serialize, Deserialize)]
struct Description {
    /// The captions of an encoded data set.
    captions: Vec<String>,
    /// What the images were read from and encoded with.
    origin: Origin,
}

/// What encoded images were made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Path of the images.
    pub data: String,
    /// Path of the pipeline.
    pub pipeline: String,
    /// Height and width in pixels.
    pub size: [usize; 2],
}

/// Prefix of a split's tensors.
fn prefix(split: Split) -> &'static str {
    match split {
        Split::Train => "train",
        Split::HeldOut => "held_out",
    }
}

impl Encoded {
    /// Latents `[N, C, H, W]` and the numbers of their captions.
    ///
    /// # Panics
    /// If the numbers of values do not fit, or a caption is not among the texts.
    pub fn new(latents: Vec<f32>, shape: [usize; 3], captions: Vec<u32>, texts: Arc<Texts>) -> Self {
        assert_eq!(latents.len(), captions.len() * shape.iter().product::<usize>(), "values of the latents");
        assert!(captions.iter().all(|&caption| (caption as usize) < texts.captions.len()), "captions");
        Self { latents, shape, captions, texts }
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.captions.len()
    }

    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.captions.is_empty()
    }

    /// Channels, height and width of the latents.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// The texts of both splits.
    pub fn texts(&self) -> &Arc<Texts> {
        &self.texts
    }

    /// The number of an image's caption.
    pub fn caption(&self, index: usize) -> u32 {
        self.captions[index]
    }

    /// The latents at `indices`, `[B, C, H, W]`.
    pub fn batch(&self, indices: &[usize]) -> Vec<f32> {
        let len: usize = self.shape.iter().product();
        indices.iter().flat_map(|&index| &self.latents[index * len..][..len]).copied().collect()
    }

    /// Writes both splits to a file.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(
        path: &Path,
        [train, held_out]: [&Self; 2],
        shape: TextShape,
        origin: Origin,
    ) -> Result<(), DiskError> {
        let texts = &train.texts;
        let rows = texts.captions.len() + 1;
        let mut tensors = Vec::new();
        for (split, of) in [(Split::Train, train), (Split::HeldOut, held_out)] {
            let dims = [&[of.len()], &of.shape[..]].concat();
            let latents = HostTensor::new(dims, of.latents.clone());
            tensors.push(StoredTensor::f32(format!("{}.latents", prefix(split)), &latents));
            let captions: Vec<i64> = of.captions.iter().map(|&caption| caption.into()).collect();
            tensors.push(StoredTensor::i64(format!("{}.caption", prefix(split)), &captions));
        }
        let tokens = vec![rows, shape.tokens, shape.channels];
        tensors.push(match &texts.tokens {
            Tokens::Embeddings(values) => StoredTensor::f16("text.tokens", tokens, values),
            Tokens::Ids(ids) => StoredTensor::f32("text.tokens", &HostTensor::new(tokens, ids.clone())),
        });
        if !texts.pooled.is_empty() {
            let dims = vec![rows, texts.pooled.len() / rows];
            tensors.push(StoredTensor::f16("text.pooled", dims, &texts.pooled));
        }
        if !texts.sizes.is_empty() {
            let sizes = HostTensor::new([texts.sizes.len()], texts.sizes.clone());
            tensors.push(StoredTensor::f32("text.sizes", &sizes));
        }
        let captions = Description { captions: texts.captions.clone(), origin };
        #[expect(clippy::expect_used, reason = "a list of texts becomes JSON")]
        let description = serde_json::to_string(&captions).expect("a description has string keys only");
        disk::write(path, &serialize(&tensors, &description))
    }

    /// Reads both splits, and checks that a denoiser can read them; with `origin`, also what they were made from.
    ///
    /// # Errors
    /// If the file cannot be read, is damaged, has no images, or was encoded for another pipeline or from other images.
    pub fn read(
        path: &Path,
        network: &NetworkSpec,
        origin: Option<&Origin>,
    ) -> Result<[Self; 2], EncodedError> {
        let shown = || path.display().to_string();
        let wrong = |source| EncodedError::Weights { path: shown(), source };
        let mut file = TensorFile::from_bytes(&disk::read(path)?).map_err(wrong)?;
        let other = |what, expected: &dyn std::fmt::Debug, found: &dyn std::fmt::Debug| EncodedError::Other {
            path: shown(),
            what,
            expected: format!("{expected:?}"),
            found: format!("{found:?}"),
        };
        let description: Description = serde_json::from_str(&file.description).map_err(|_| {
            wrong(WeightsError::NoModel("expected encoded images, as `distill encode` writes them".into()))
        })?;
        if let Some(origin) = origin
            && *origin != description.origin
        {
            let found = Box::new(description.origin);
            return Err(EncodedError::Origin { path: shown(), expected: Box::new(origin.clone()), found });
        }
        let rows = description.captions.len() + 1;
        let Some(shape) = network.text() else {
            return Err(wrong(WeightsError::NoModel("the network reads no text".into())));
        };
        let mut take = |name: &'static str, expected: Vec<usize>| -> Result<Vec<f32>, EncodedError> {
            let found = file.take(name).map_err(wrong)?;
            if found.shape != expected { Err(other(name, &expected, &found.shape)) } else { Ok(found.values) }
        };
        let halves = |values: Vec<f32>| -> Vec<f16> { values.into_iter().map(f16::from_f32).collect() };
        let tokens = take("text.tokens", vec![rows, shape.tokens, shape.channels])?;
        let pooled = match shape.pooled {
            0 => Vec::new(),
            width => take("text.pooled", vec![rows, width])?,
        };
        let sizes = if shape.sizes { take("text.sizes", vec![6])? } else { Vec::new() };
        let texts = Arc::new(Texts {
            captions: description.captions,
            tokens: if shape.channels == 1 {
                Tokens::Ids(tokens)
            } else {
                Tokens::Embeddings(halves(tokens))
            },
            pooled: halves(pooled),
            sizes,
        });
        let mut split = |split: Split| {
            let name = |part| format!("{}.{part}", prefix(split));
            let latents = file.take(&name("latents")).map_err(wrong)?;
            let captions = file.take(&name("caption")).map_err(wrong)?;
            let expected = network.image();
            if latents.shape.len() != 4 || latents.shape[1..] != expected {
                return Err(other("latents", &expected, &latents.shape));
            }
            if captions.values.is_empty() {
                return Err(wrong(WeightsError::NoModel(format!("expected {split} images, found none"))));
            }
            if captions.shape != latents.shape[..1] {
                return Err(other("caption", &latents.shape[0], &captions.shape));
            }
            let most = (rows - 1) as f32;
            if let Some(wrong) = captions.values.iter().find(|caption| !(0.0..most).contains(*caption)) {
                return Err(EncodedError::Caption { path: shown(), captions: rows - 1, found: *wrong });
            }
            let captions = captions.values.iter().map(|&caption| caption as u32).collect();
            Ok(Self::new(latents.values, expected, captions, Arc::clone(&texts)))
        };
        Ok([split(Split::Train)?, split(Split::HeldOut)?])
    }
}
