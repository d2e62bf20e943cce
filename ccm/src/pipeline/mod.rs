//! Text-to-image pipelines: text encoders with their tokenizers, a denoiser of latents and an autoencoder; or a denoiser of
//! pixels.
//!
//! [`PipelineSpec`] says how the parts fit together; [`Pipeline`] runs them on one device. It loads each part when it needs
//! it, and frees it before the next one, so that only the largest must fit into memory.

mod packed;
mod spec;
mod tokenizer;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use packed::{HEAD, Packed, PackedError, Source, is_packed, part_name};
pub use spec::{PipelineKind, PipelineSpec};
pub use tokenizer::{Tokenizer, TokenizerError, TokenizerFiles};

use crate::model::graph::{self, Graph};
use crate::model::prediction::Spacing;
use crate::model::{Role, Text, TimeGrid};
use crate::sampler::evaluator::Evaluator;
use crate::sampler::guidance::Guidance;
use crate::sampler::{Backend, Info, Sampler, SamplerError};
use crate::weights::{CompactTensor, HostTensor, Precision};

/// A part of a pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A text encoder, counted from 0.
    TextEncoder(usize),
    /// The denoiser.
    Denoiser,
    /// The autoencoder's half from pixels to latents.
    Encoder,
    /// The autoencoder's half from latents to pixels.
    Decoder,
}

/// Where the weights of a pipeline are.
pub trait Weights {
    /// Why a part cannot be read.
    type Error: std::error::Error + 'static;

    /// Reads the weights of a part one after another, in the order of [`Graph::parameters`], rounds the matrices that are
    /// stored in a larger precision, and gives each to `take`.
    ///
    /// # Errors
    /// If they cannot be read, or a tensor is missing or of another shape (by name); also the first error of `take`.
    fn each(
        &self,
        part: Part,
        graph: &Graph,
        precision: Precision,
        take: &mut dyn FnMut(CompactTensor) -> Result<(), Self::Error>,
    ) -> impl Future<Output = Result<(), Self::Error>>;

    /// Reads all weights of a part, as [`Weights::each`], and waits for them.
    ///
    /// # Errors
    /// As [`Weights::each`].
    #[cfg(not(target_arch = "wasm32"))]
    fn read(
        &self,
        part: Part,
        graph: &Graph,
        precision: Precision,
    ) -> Result<Vec<CompactTensor>, Self::Error> {
        pollster::block_on(all(self, part, graph, precision))
    }
}

/// Reads all weights of a part.
async fn all<W: Weights + ?Sized>(
    weights: &W,
    part: Part,
    graph: &Graph,
    precision: Precision,
) -> Result<Vec<CompactTensor>, W::Error> {
    let mut tensors = Vec::with_capacity(graph.parameters.len());
    let take = &mut |tensor| {
        tensors.push(tensor);
        Ok(())
    };
    weights.each(part, graph, precision, take).await?;
    Ok(tensors)
}

/// Why a pipeline cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError<E: std::error::Error + 'static> {
    /// Weights cannot be read.
    #[error(transparent)]
    Weights(E),
    /// A text cannot be split into tokens.
    #[error("tokenizer: {0}")]
    Tokenizer(#[from] TokenizerError),
    /// A part cannot be run.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
}

/// The times of a sample, from those that are asked for and the denoiser's own. By default a schedule's last step is the
/// first, for any number of steps: with few of them, the other spacings start too late. `leading` keeps the schedule's own
/// offset.
pub fn sample_times(asked: Option<TimeGrid>, own: TimeGrid) -> TimeGrid {
    match (asked, own) {
        (Some(TimeGrid::Steps(Spacing::Leading(_))), TimeGrid::Steps(Spacing::Leading(_))) => own,
        (Some(times), _) => times,
        (None, TimeGrid::Steps(_)) => TimeGrid::Steps(Spacing::Trailing),
        (None, own) => own,
    }
}

/// A pipeline on a device.
pub struct Pipeline<W> {
    /// The parts.
    pub spec: PipelineSpec,
    /// One tokenizer for each text encoder.
    tokenizers: Vec<Tokenizer>,
    weights: W,
    backend: Backend,
    precision: Precision,
    role: Role,
}

impl<W: Weights> Pipeline<W> {
    /// A pipeline whose parts are loaded when they are needed.
    ///
    /// # Panics
    /// If there is not one tokenizer for each text encoder.
    pub fn new(spec: PipelineSpec, tokenizers: Vec<Tokenizer>, weights: W, backend: Backend) -> Self {
        assert_eq!(spec.text_encoders.len(), tokenizers.len(), "tokenizers of a pipeline");
        Self { spec, tokenizers, weights, backend, precision: Precision::F32, role: Role::Teacher }
    }

    /// The same pipeline with the matrices of its networks rounded to a precision, unless they are stored in a smaller one.
    /// A GPU computes in half precision if they are rounded.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// The same pipeline, with a denoiser that was trained as this.
    pub fn with_role(self, role: Role) -> Self {
        Self { role, ..self }
    }

    /// Properties of the device, before any part is loaded; no number of parameters, and no memory.
    ///
    /// # Errors
    /// If the backend is not available.
    pub async fn device(&self) -> Result<Info, SamplerError> {
        let small = graph::build(|g| g.conv("a", g.image([4, 1, 1]), 4, 1));
        let zeros =
            |of: &graph::Parameter| HostTensor::new(&of.shape[..], vec![0.0; of.shape.iter().product()]);
        let tensors = small.parameters.iter().map(|of| zeros(of).into()).collect();
        Ok(Evaluator::new(small, tensors, self.precision, self.backend).await?.info())
    }

    /// The same pipeline on another device.
    pub fn with_backend(self, backend: Backend) -> Self {
        Self { backend, ..self }
    }

    /// The guidance scale of a sample that names none: 5 for a teacher, 1 (no guidance) for a student. `None` for a student
    /// that reads the scale: only its trainer knows the range.
    pub fn usual_guidance(&self) -> Option<f32> {
        match (self.spec.network.reads_guidance(), self.role) {
            (true, _) => None,
            (false, Role::Teacher) => Some(5.0),
            (false, Role::Student) => Some(1.0),
        }
    }

    /// The tokens of a text for each text encoder.
    ///
    /// # Errors
    /// If the text cannot be split into tokens.
    pub fn tokens(&self, text: &str) -> Result<Vec<Vec<u32>>, TokenizerError> {
        self.tokenizers.iter().map(|tokenizer| tokenizer.encode(text)).collect()
    }

    async fn evaluator(&self, part: Part, graph: Graph) -> Result<Evaluator, PipelineError<W::Error>> {
        let tensors = self.tensors(part, &graph).await?;
        // The weights keep their precision.
        let precision = if self.spec.exceeds_half(part) { Precision::F32 } else { self.precision };
        Ok(Evaluator::new(graph, tensors, precision, self.backend).await?)
    }

    /// Encodes texts. Equal texts are encoded once.
    ///
    /// # Errors
    /// If a text cannot be split into tokens, weights cannot be read, or the device fails.
    pub async fn texts(&self, texts: &[&str]) -> Result<Vec<Arc<Text>>, PipelineError<W::Error>> {
        let mut encoded = BTreeMap::new();
        for text in texts {
            encoded.entry(*text).or_insert_with(Vec::new);
        }
        for (index, tokenizer) in self.tokenizers.iter().enumerate() {
            let mut encoder = self.evaluator(Part::TextEncoder(index), self.spec.text_encoder(index)).await?;
            for (text, encoded) in &mut encoded {
                let ids = tokenizer.encode(text)?;
                let found = encoder.text(&ids).await?;
                encoded.push((ids, found));
            }
        }
        let encoded: BTreeMap<&str, Arc<Text>> =
            encoded.into_iter().map(|(text, parts)| (text, Arc::new(self.spec.text(&parts)))).collect();
        Ok(texts.iter().map(|text| Arc::clone(&encoded[text])).collect())
    }

    /// Encodes what a sample is about: a text for each image, and the guidance if `weight` is not 1. Guidance leads away from
    /// `negative`; without it, from the empty text, or from zeros if the pipeline says so.
    ///
    /// # Errors
    /// As [`Pipeline::texts`].
    pub async fn conditions(
        &self,
        prompts: &[&str],
        negative: Option<&str>,
        weight: f32,
    ) -> Result<(Vec<Arc<Text>>, Option<Guidance>), PipelineError<W::Error>> {
        // A network that reads the scale has guidance distilled into it.
        let is_distilled = self.spec.network.reads_guidance();
        if is_distilled || weight == 1.0 {
            let guidance = is_distilled.then_some(Guidance { weight, negative: Vec::new() });
            return Ok((self.texts(prompts).await?, guidance));
        }
        let negative = negative.or((!self.spec.zeros_for_empty).then_some(""));
        let all: Vec<&str> = prompts.iter().copied().chain(negative).collect();
        let mut texts = self.texts(&all).await?;
        let away = match negative {
            Some(_) => texts.remove(prompts.len()),
            None => Arc::new(self.spec.zero_text()),
        };
        Ok((texts, Some(Guidance { weight, negative: vec![away; prompts.len()] })))
    }

    /// The denoiser, which samples latents.
    ///
    /// # Errors
    /// If weights cannot be read, or the device fails.
    pub async fn denoiser(&self) -> Result<Sampler, PipelineError<W::Error>> {
        let spec = self.spec.network.clone();
        let tensors = self.tensors(Part::Denoiser, &spec.graph()).await?;
        let prediction = &self.spec.prediction;
        Ok(Sampler::with_weights(spec, prediction, self.role, tensors, self.precision, self.backend).await?)
    }

    /// The weights of a part, rounded to the pipeline's precision.
    async fn tensors(
        &self,
        part: Part,
        graph: &Graph,
    ) -> Result<Vec<CompactTensor>, PipelineError<W::Error>> {
        all(&self.weights, part, graph, self.precision).await.map_err(PipelineError::Weights)
    }

    /// The weights of a part in single precision.
    ///
    /// # Errors
    /// If they cannot be read.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn read(&self, part: Part, graph: &Graph) -> Result<Vec<CompactTensor>, W::Error> {
        self.weights.read(part, graph, Precision::F32)
    }

    /// Decodes latents `[N, C, H, W]` to images `[N, 3, H, W]`, whose values are mostly in [-1, 1]. Without an autoencoder they are
    /// these images.
    ///
    /// # Errors
    /// If weights cannot be read, the number of values is not that of whole images, or the device fails.
    pub async fn decode(&self, latents: &[f32]) -> Result<Vec<f32>, PipelineError<W::Error>> {
        match self.spec.decoder() {
            Some(graph) => Ok(self.evaluator(Part::Decoder, graph).await?.images(latents).await?),
            None => Ok(latents.to_vec()),
        }
    }

    /// Encodes images `[N, 3, H, W]` with values in [-1, 1] to latents.
    ///
    /// # Errors
    /// As [`Pipeline::decode`].
    pub async fn encode(&self, images: &[f32]) -> Result<Vec<f32>, PipelineError<W::Error>> {
        match self.encoder().await? {
            Some(mut encoder) => Ok(encoder.images(images).await?),
            None => Ok(images.to_vec()),
        }
    }

    /// The autoencoder's half from images `[N, 3, H, W]` with values in [-1, 1] to latents, if there is an autoencoder.
    ///
    /// # Errors
    /// If weights cannot be read, or the device fails.
    pub async fn encoder(&self) -> Result<Option<Evaluator>, PipelineError<W::Error>> {
        match self.spec.encoder() {
            Some(graph) => Ok(Some(self.evaluator(Part::Encoder, graph).await?)),
            None => Ok(None),
        }
    }
}
