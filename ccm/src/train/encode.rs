//! Encodes captioned images with a pipeline, once before training: pixels to latents, captions to embeddings.

use std::sync::Arc;

use crate::data::encoded::{Encoded, Texts};
use crate::data::{Dataset, ImageShape};
use crate::import::ImportError;
use crate::import::text_to_image::PartWeights;
use crate::model::{NetworkSpec, Text};
use crate::pipeline::{Pipeline, PipelineError};

/// Progress of [`encode`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The captions are being encoded.
    Texts {
        /// Number of different captions.
        captions: usize,
    },
    /// Images are encoded.
    Images {
        /// Number of images encoded so far, of both splits.
        done: usize,
        /// Number of images.
        total: usize,
    },
}

/// The shape of the images that a pipeline encodes.
pub fn image_shape(pipeline: &Pipeline<PartWeights>) -> ImageShape {
    let [height, width] = pipeline.spec.image_size();
    ImageShape { channels: pipeline.spec.image_channels(), height, width }
}

/// Encodes both splits of a captioned data set, whose classes are the captions. Latents are the means of the autoencoder's
/// distribution, or pixels; texts are what `network` reads of them, embeddings or the ids of tokens.
///
/// # Errors
/// If a caption cannot be split into tokens, weights cannot be read, or the device fails.
pub fn encode(
    pipeline: &Pipeline<PartWeights>,
    splits: [&Dataset; 2],
    network: &NetworkSpec,
    observer: &mut dyn FnMut(Progress),
) -> Result<[Encoded; 2], PipelineError<ImportError>> {
    let captions = splits[0].classes();
    observer(Progress::Texts { captions: captions.len() });
    // The empty text last, for guidance.
    let all: Vec<&str> = captions.iter().map(String::as_str).chain([""]).collect();
    let texts = match network.has_text_encoder() {
        true => {
            // There is one text encoder.
            let tokens = |text: &&str| pipeline.tokens(text).map(|of| of.concat());
            Texts::of_ids(captions.to_vec(), &all.iter().map(tokens).collect::<Result<Vec<_>, _>>()?)
        }
        false => {
            let mut texts = pollster::block_on(pipeline.texts(&all))?;
            let empty = texts.split_off(captions.len());
            let negative: Arc<Text> = match empty.into_iter().next() {
                Some(empty) if !pipeline.spec.zeros_for_empty => empty,
                _ => Arc::new(pipeline.spec.zero_text()),
            };
            Texts::new(captions.to_vec(), &texts, &negative)
        }
    };
    let texts = Arc::new(texts);

    let mut encoder = pollster::block_on(pipeline.encoder())?;
    let shape = pipeline.spec.network.image();
    let total = splits.iter().map(|split| split.len()).sum();
    let mut done = 0;
    let mut encoded = |split: &Dataset| -> Result<Encoded, PipelineError<ImportError>> {
        let mut latents = Vec::with_capacity(split.len() * shape.iter().product::<usize>());
        for index in 0..split.len() {
            let pixels = split.batch(&[index], &[]);
            match &mut encoder {
                Some(encoder) => latents.extend(pollster::block_on(encoder.images(&pixels))?),
                None => latents.extend(pixels),
            }
            done += 1;
            observer(Progress::Images { done, total });
        }
        Ok(Encoded::new(latents, shape, split.labels().to_vec(), Arc::clone(&texts)))
    };
    let [train, held_out] = splits;
    Ok([encoded(train)?, encoded(held_out)?])
}
