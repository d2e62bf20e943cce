//! The parts of a text-to-image pipeline, and how they fit together.

use super::Part;
use crate::model::graph::Graph;
use crate::model::networks::text_encoder::{ClipLayer, ClipSpec};
use crate::model::{AutoencoderSpec, NetworkSpec, Prediction, SpecError, Text, TextEncoderSpec};
use crate::sampler::evaluator::Encoded;

/// Tokens that T5 reads in Stable Diffusion 3 (diffusers' `max_sequence_length`).
const T5_TOKENS: usize = 256;

/// Channels of images without an autoencoder.
const RGB: usize = 3;

/// The families of pipelines. They differ in what they make of their text encoders' outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PipelineKind {
    /// Stable Diffusion 1 and 2 (arXiv 2112.10752): the last layer of one CLIP.
    StableDiffusion,
    /// Stable Diffusion XL (arXiv 2307.01952): the layers before the last of two CLIPs, and the second one's embedding of
    /// the whole text.
    StableDiffusionXl,
    /// Stable Diffusion 3 (arXiv 2403.03206): the layers before the last of two CLIPs with their embeddings of the whole
    /// text, and T5, which may be left out.
    StableDiffusion3,
}

/// A text-to-image pipeline without its weights.
#[derive(Debug, Clone, PartialEq)]
pub struct PipelineSpec {
    /// The family.
    pub kind: PipelineKind,
    /// The denoiser, whose images are latents.
    pub network: NetworkSpec,
    /// What the denoiser predicts.
    pub prediction: Prediction,
    /// The autoencoder between latents and pixels; `None` if the denoiser makes RGB pixels, as in DeepFloyd IF.
    pub autoencoder: Option<AutoencoderSpec>,
    /// The text encoders.
    pub text_encoders: Vec<TextEncoderSpec>,
    /// Whether guidance leads away from zeros, not from the empty text, if there is no negative prompt.
    pub zeros_for_empty: bool,
}

fn refused(field: &str, reason: String) -> SpecError {
    SpecError { field: field.into(), reason }
}

impl PipelineSpec {
    /// Recognises the family, sets the number of tokens that the denoiser reads, and checks that the parts fit.
    ///
    /// # Errors
    /// If the parts are not those of a supported family, or do not fit together.
    pub fn new(
        mut network: NetworkSpec,
        prediction: Prediction,
        autoencoder: Option<AutoencoderSpec>,
        text_encoders: Vec<TextEncoderSpec>,
        zeros_for_empty: bool,
    ) -> Result<Self, SpecError> {
        let kind = match &network {
            NetworkSpec::UNet2DCondition(spec) if spec.text_time.is_some() => PipelineKind::StableDiffusionXl,
            NetworkSpec::UNet2DCondition(_) => PipelineKind::StableDiffusion,
            NetworkSpec::Mmdit(_) => PipelineKind::StableDiffusion3,
            NetworkSpec::Adm(_) | NetworkSpec::UNet2D(_) => {
                return Err(refused("network", "expected a network that reads a text".into()));
            }
        };
        let tokens = tokens(kind, &text_encoders)?;
        match &mut network {
            NetworkSpec::UNet2DCondition(spec) => spec.tokens = tokens.iter().sum(),
            NetworkSpec::Mmdit(spec) => spec.tokens = tokens.iter().sum(),
            NetworkSpec::Adm(_) | NetworkSpec::UNet2D(_) => {}
        }
        network.validate()?;
        let spec = Self { kind, network, prediction, autoencoder, text_encoders, zeros_for_empty };
        spec.check_channels()?;
        Ok(spec)
    }

    fn check_channels(&self) -> Result<(), SpecError> {
        let [latents, ..] = self.network.image();
        match &self.autoencoder {
            Some(autoencoder) if autoencoder.latent_channels() != latents => {
                let found = autoencoder.latent_channels();
                let reason = format!("expected {latents}, as the denoiser reads, found {found}");
                return Err(refused("autoencoder: latent_channels", reason));
            }
            None if latents != RGB => {
                let reason =
                    format!("expected {RGB} for pixels, as there is no autoencoder, found {latents}");
                return Err(refused("in_channels", reason));
            }
            _ => {}
        }
        let Some(shape) = self.network.text() else { return Ok(()) };
        let of_clips: usize = self.clips().map(|clip| clip.hidden_size).sum();
        let fits = match self.kind {
            PipelineKind::StableDiffusion3 => of_clips <= shape.channels,
            _ => of_clips == shape.channels,
        };
        if !fits {
            let reason =
                format!("expected {} channels, found {of_clips} in the text encoders", shape.channels);
            return Err(refused("cross_attention_dim", reason));
        }
        for encoder in &self.text_encoders {
            if let TextEncoderSpec::T5(spec) = encoder
                && spec.d_model != shape.channels
            {
                let reason = format!("expected {} channels, found {} in T5", shape.channels, spec.d_model);
                return Err(refused("joint_attention_dim", reason));
            }
        }
        let pooled: usize =
            (0..self.text_encoders.len()).filter_map(|index| self.pooled_channels(index)).sum();
        if shape.pooled > 0 && pooled != shape.pooled {
            let reason = format!("expected {}, found {pooled} in the text encoders", shape.pooled);
            return Err(refused("projection_dim", reason));
        }
        Ok(())
    }

    fn clips(&self) -> impl Iterator<Item = &ClipSpec> {
        self.text_encoders.iter().filter_map(|encoder| match encoder {
            TextEncoderSpec::Clip(spec) => Some(spec),
            TextEncoderSpec::T5(_) => None,
        })
    }

    /// Channels of a text encoder's embedding of the whole text, if the pipeline reads it.
    fn pooled_channels(&self, index: usize) -> Option<usize> {
        match (&self.text_encoders[index], self.kind) {
            (TextEncoderSpec::Clip(spec), PipelineKind::StableDiffusion3) => spec.projection_dim,
            (TextEncoderSpec::Clip(spec), PipelineKind::StableDiffusionXl) if index == 1 => {
                spec.projection_dim
            }
            _ => None,
        }
    }

    /// Number of tokens that a text encoder reads.
    pub fn tokens(&self, index: usize) -> usize {
        match &self.text_encoders[index] {
            TextEncoderSpec::Clip(spec) => spec.max_position_embeddings,
            TextEncoderSpec::T5(_) => T5_TOKENS,
        }
    }

    /// Builds a text encoder.
    pub fn text_encoder(&self, index: usize) -> Graph {
        match &self.text_encoders[index] {
            TextEncoderSpec::T5(spec) => spec.graph(T5_TOKENS),
            TextEncoderSpec::Clip(spec) => match self.kind {
                PipelineKind::StableDiffusion => spec.graph(ClipLayer::Last, false),
                _ => spec.graph(ClipLayer::Penultimate, self.pooled_channels(index).is_some()),
            },
        }
    }

    /// The parts with their networks, without those that the pipeline does not have. The encoder turns pixels into latents,
    /// which only training needs.
    pub fn parts(&self, with_encoder: bool) -> Vec<(Part, Graph)> {
        let encoders = 0..self.text_encoders.len();
        let mut parts: Vec<(Part, Graph)> =
            encoders.map(|index| (Part::TextEncoder(index), self.text_encoder(index))).collect();
        parts.push((Part::Denoiser, self.network.graph()));
        parts.extend(self.decoder().map(|graph| (Part::Decoder, graph)));
        if with_encoder {
            parts.extend(self.encoder().map(|graph| (Part::Encoder, graph)));
        }
        parts
    }

    /// Whether feature maps of a part can exceed the range of half precision: those of T5, and of an autoencoder with
    /// `force_upcast`.
    pub fn exceeds_half(&self, part: Part) -> bool {
        match part {
            Part::TextEncoder(index) => matches!(self.text_encoders[index], TextEncoderSpec::T5(_)),
            Part::Encoder | Part::Decoder => {
                matches!(&self.autoencoder, Some(AutoencoderSpec::Kl(spec)) if spec.force_upcast)
            }
            Part::Denoiser => false,
        }
    }

    /// The autoencoder's half from latents to pixels.
    pub fn decoder(&self) -> Option<Graph> {
        let [_, height, width] = self.network.image();
        self.autoencoder.as_ref().map(|autoencoder| autoencoder.decoder([height, width]))
    }

    /// The autoencoder's half from pixels to latents.
    pub fn encoder(&self) -> Option<Graph> {
        self.autoencoder.as_ref().map(|autoencoder| autoencoder.encoder(self.image_size()))
    }

    /// Channels of the images in pixels.
    pub fn image_channels(&self) -> usize {
        self.autoencoder.as_ref().map_or(RGB, AutoencoderSpec::image_channels)
    }

    /// Side of the square of pixels for one position of the denoiser's images.
    pub fn reduction(&self) -> usize {
        self.autoencoder.as_ref().map_or(1, AutoencoderSpec::reduction)
    }

    /// The same pipeline without T5, with zeros in its place, as diffusers has it; the same if it has none.
    ///
    /// # Errors
    /// If the parts do not fit together without it.
    pub fn without_t5(mut self) -> Result<Self, SpecError> {
        self.text_encoders.retain(|encoder| !matches!(encoder, TextEncoderSpec::T5(_)));
        Self::new(self.network, self.prediction, self.autoencoder, self.text_encoders, self.zeros_for_empty)
    }

    /// Height and width of the images in pixels.
    pub fn image_size(&self) -> [usize; 2] {
        let [_, height, width] = self.network.image();
        [height, width].map(|size| size * self.reduction())
    }

    /// The same pipeline for images of another height and width in pixels.
    ///
    /// # Errors
    /// If a size does not suit the autoencoder or the denoiser.
    pub fn with_image_size(mut self, size: [usize; 2]) -> Result<Self, SpecError> {
        let reduction = self.reduction();
        if let Some(wrong) = size.iter().find(|size| !size.is_multiple_of(reduction)) {
            return Err(refused("size", format!("expected multiples of {reduction} pixels, found {wrong}")));
        }
        self.network = self.network.with_size(size.map(|size| size / reduction));
        self.network.validate()?;
        Ok(self)
    }

    /// What the denoiser reads of a text, from its tokens and what each text encoder makes of them.
    pub fn text(&self, encoded: &[(Vec<u32>, Encoded)]) -> Text {
        let Some(shape) = self.network.text() else { return Text::default() };
        let mut text = self.empty_text();
        // Rows of tokens and the first channel of each encoder in them.
        let (mut first_channel, mut first_row) = (0, 0);
        for (index, (ids, encoded)) in encoded.iter().enumerate() {
            let channels = self.text_encoders[index].channels();
            if let TextEncoderSpec::T5(_) = self.text_encoders[index] {
                (first_channel, first_row) = (0, shape.tokens - T5_TOKENS);
            }
            for (row, values) in encoded.tokens.chunks_exact(channels).enumerate() {
                let place = (first_row + row) * shape.channels + first_channel;
                text.tokens[place..place + channels].copy_from_slice(values);
            }
            first_channel += channels;
            if let (TextEncoderSpec::Clip(spec), Some(width)) =
                (&self.text_encoders[index], self.pooled_channels(index))
            {
                text.pooled.extend_from_slice(&encoded.pooled[spec.pooled_position(ids) * width..][..width]);
            }
        }
        text
    }

    /// The text of zeros that guidance leads away from, if there is no negative prompt.
    pub fn zero_text(&self) -> Text {
        let mut text = self.empty_text();
        text.pooled = vec![0.0; self.network.text().map_or(0, |shape| shape.pooled)];
        text
    }

    /// Zeros for the tokens, nothing for the whole text, and the sizes.
    fn empty_text(&self) -> Text {
        let Some(shape) = self.network.text() else { return Text::default() };
        let [height, width] = self.image_size().map(|size| size as f32);
        // The original size, no crop, and the target size.
        let sizes = if shape.sizes { vec![height, width, 0.0, 0.0, height, width] } else { Vec::new() };
        Text { tokens: vec![0.0; shape.tokens * shape.channels], pooled: Vec::new(), sizes }
    }
}

/// The numbers of tokens whose sum the denoiser reads.
fn tokens(kind: PipelineKind, text_encoders: &[TextEncoderSpec]) -> Result<Vec<usize>, SpecError> {
    use TextEncoderSpec::{Clip, T5};
    let fault = |expected: &str| Err(refused("text_encoder", format!("expected {expected}")));
    match (kind, text_encoders) {
        (PipelineKind::StableDiffusion, [Clip(clip)]) => Ok(vec![clip.max_position_embeddings]),
        (PipelineKind::StableDiffusion, _) => fault("one CLIP"),
        (PipelineKind::StableDiffusionXl, [Clip(first), Clip(second)])
            if second.projection_dim.is_some()
                && first.max_position_embeddings == second.max_position_embeddings =>
        {
            Ok(vec![first.max_position_embeddings])
        }
        (PipelineKind::StableDiffusionXl, _) => {
            fault("two CLIPs for as many tokens, the second with a projection")
        }
        (PipelineKind::StableDiffusion3, [Clip(first), Clip(second), rest @ ..])
            if first.projection_dim.is_some()
                && second.projection_dim.is_some()
                && first.max_position_embeddings == second.max_position_embeddings
                && matches!(rest, [] | [T5(_)]) =>
        {
            let clip = first.max_position_embeddings;
            // Without T5, diffusers puts as many zeros in its place as CLIP has tokens.
            Ok(vec![clip, if rest.is_empty() { clip } else { T5_TOKENS }])
        }
        (PipelineKind::StableDiffusion3, _) => {
            fault("two CLIPs with projections for as many tokens, and T5 or nothing")
        }
    }
}
