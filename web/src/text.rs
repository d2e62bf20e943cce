//! The interface of `ccm`'s text-to-image pipelines to JavaScript. JavaScript checks the arguments first, because its error
//! messages use the names of the page's API.
//!
//! The file is a `Blob`, which browsers keep on disk if it is large. Every sample reads the parts from it one after another,
//! tensor by tensor, so that the memory of WebAssembly, which never shrinks, grows to the largest part only. The denoiser of a
//! small file is kept from one sample to the next, for a page that draws while one types.

use std::ops::Range;
use std::sync::Arc;

use ccm::model::{ModelCard, Text};
use ccm::pipeline::{Packed, PackedError, Pipeline, PipelineError, Source, sample_times};
use ccm::sampler::guidance::Guidance;
use ccm::sampler::schedule::{Request, Solver};
use ccm::sampler::{Info, Sampler};
use js_sys::{Array, Uint8Array};
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::JsFuture;
use web_sys::Blob;

use crate::error::{coded, from_sampler};
use crate::interface::{backend_of, description, number, to_rgba};

/// A file that the browser holds, in memory or on disk.
struct File(Blob);

impl Source for File {
    fn size(&self) -> u64 {
        self.0.size() as u64
    }

    async fn read(&self, range: Range<u64>) -> Result<Vec<u8>, String> {
        let fault = |error: JsValue| error.as_string().unwrap_or_else(|| "the file cannot be read".into());
        let (start, end) = (range.start as f64, range.end as f64);
        let part = self.0.slice_with_f64_and_f64(start, end).map_err(fault)?;
        let buffer = JsFuture::from(part.array_buffer()).await.map_err(fault)?;
        Ok(Uint8Array::new(&buffer).to_vec())
    }
}

/// The encoded prompt and negative prompt of the last sample. They are kept, so that a page that changes only the seed does not
/// encode them again.
struct Conditions {
    prompt: String,
    negative: Option<String>,
    is_guided: bool,
    text: Arc<Text>,
    guidance: Option<Guidance>,
}

/// Bytes of a file up to which the denoiser is kept.
const KEPT: u64 = 64 << 20;

/// A pipeline with text.
#[wasm_bindgen]
pub struct TextEngine {
    pipeline: Pipeline<Packed<File>>,
    card: ModelCard,
    info: Info,
    parameters: usize,
    conditions: Option<Conditions>,
    keeps: bool,
    /// The denoiser of the last sample.
    denoiser: Option<Sampler>,
}

fn from_file(error: &PackedError) -> JsValue {
    coded("corrupt", &format!("model: {error}"))
}

fn from_pipeline(error: PipelineError<PackedError>) -> JsValue {
    match error {
        PipelineError::Weights(error) => from_file(&error),
        PipelineError::Tokenizer(error) => coded("request", &format!("prompt: {error}")),
        PipelineError::Sampler(error) => from_sampler(error),
    }
}

#[wasm_bindgen]
impl TextEngine {
    /// Opens a model file with a pipeline; `backend` is `auto`, `webgpu`, `webgpu-software` or `cpu`.
    pub async fn load(file: Blob, backend: String) -> Result<TextEngine, JsValue> {
        let backend = backend_of(&backend)?;
        let file = File(file);
        let keeps = file.size() <= KEPT;
        let packed = Packed::open(file).await.map_err(|error| from_file(&error))?;
        let tokenizers = packed.tokenizers().await.map_err(|error| from_file(&error))?;
        let (spec, card, precision) = (packed.spec.clone(), packed.card.clone(), packed.precision);
        let parameters = spec.network.parameters();
        let pipeline = Pipeline::new(spec, tokenizers, packed, backend);
        let pipeline = pipeline.with_precision(precision).with_role(card.role);
        let info = Info { parameters, ..pipeline.device().await.map_err(from_sampler)? };
        Ok(Self { pipeline, card, info, parameters, conditions: None, keeps, denoiser: None })
    }

    /// Properties of the model and of its device: `Info` of `index.d.ts`.
    pub fn describe(&self) -> Result<JsValue, JsValue> {
        let others = [
            ("numClasses", JsValue::NULL),
            ("classes", Array::new().into()),
            ("role", self.card.role.name().into()),
            ("source", self.card.source.as_str().into()),
            ("data", self.card.data.as_str().into()),
            ("text", JsValue::TRUE),
            ("steps", number(Solver::of(&self.card).usual_steps())),
        ];
        description(self.info.clone(), self.shape(), others)
    }

    /// Samples images as bytes `[count, height, width, 4]`, as `Engine::sample`, of what `prompt` says, guided by
    /// `guidance` away from `negative`. `noise` takes the place of the seed's.
    #[expect(clippy::too_many_arguments, reason = "JavaScript passes numbers and texts, not structs")]
    pub async fn sample(
        &mut self,
        from: u64,
        to: u64,
        weight: f32,
        steps: usize,
        count: usize,
        prompt: String,
        negative: Option<String>,
        guidance: Option<f32>,
        noise: Option<Vec<f32>>,
    ) -> Result<Vec<u8>, JsValue> {
        let guidance = guidance.or(self.pipeline.usual_guidance());
        let missing = || coded("request", "guidance: expected the scale, which this student reads");
        let guidance = guidance.ok_or_else(missing)?;
        let is_guided = guidance != 1.0;
        let is_kept = self.conditions.as_ref().is_some_and(|kept| {
            kept.prompt == prompt && kept.negative == negative && kept.is_guided == is_guided
        });
        if !is_kept {
            // Texts that no longer matter are freed first.
            self.conditions = None;
            let prompts = [prompt.as_str()];
            let found = self.pipeline.conditions(&prompts, negative.as_deref(), guidance).await;
            let (mut texts, guidance) = found.map_err(from_pipeline)?;
            let text = texts.remove(0);
            self.conditions = Some(Conditions { prompt, negative, is_guided, text, guidance });
        }
        let mut sampler = match self.denoiser.take() {
            Some(kept) => kept,
            None => self.pipeline.denoiser().await.map_err(from_pipeline)?,
        };
        let spec = sampler.spec();
        let mut request = match noise {
            Some(noise) => Request { noise, seed: from, ..Request::default() },
            None if from == to => Request::from_seeds(spec, from, &[], count),
            None => Request::between(spec, [from, to], None, &[weight]),
        };
        if let Some(Conditions { text, guidance: kept, .. }) = &self.conditions {
            request.texts = vec![Arc::clone(text); count];
            request.guidance = kept.as_ref().map(|kept| Guidance {
                weight: guidance,
                negative: kept.negative.iter().cycle().take(kept.negative.len() * count).cloned().collect(),
            });
        }
        let (solver, times) = (sampler.solver(), sample_times(None, sampler.times()));
        sampler = sampler.with_solver(solver, times);
        let latents = sampler.sample(&request, steps).await.map_err(from_sampler)?;
        self.info = Info { parameters: self.parameters, ..sampler.info() };
        self.denoiser = self.keeps.then_some(sampler);
        let planes = self.pipeline.decode(&latents).await.map_err(from_pipeline)?;
        Ok(to_rgba(&planes, self.shape()))
    }
}

impl TextEngine {
    /// `[channels, height, width]` of the images.
    fn shape(&self) -> [usize; 3] {
        let spec = &self.pipeline.spec;
        let [height, width] = spec.image_size();
        [spec.image_channels(), height, width]
    }
}
