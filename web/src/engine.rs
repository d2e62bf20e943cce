//! The interface of `ccm`'s sampler to JavaScript: takes numbers and returns the bytes of pixels. JavaScript checks the
//! arguments first, because its error messages use the names of the page's API; the sampler checks them again.

use ccm::sampler::schedule::Request;
use ccm::sampler::{Sampler, SurfaceTarget};
use ccm::weights::Model;
use js_sys::Array;
use wasm_bindgen::prelude::*;
use web_sys::{HtmlCanvasElement, OffscreenCanvas};

use crate::error::{coded, from_sampler};
use crate::interface::{backend_of, description, number, to_rgba};

/// A loaded model.
#[wasm_bindgen]
pub struct Engine {
    sampler: Sampler,
}

/// The GPU surface of a canvas.
#[wasm_bindgen]
pub struct Surface(ccm::sampler::Surface);

#[wasm_bindgen]
impl Engine {
    /// Loads a model file; `backend` is `auto`, `webgpu`, `webgpu-software` or `cpu`.
    pub async fn load(bytes: Vec<u8>, backend: String) -> Result<Engine, JsValue> {
        let backend = backend_of(&backend)?;
        let model = Model::from_bytes(&bytes).map_err(|error| from_sampler(error.into()))?;
        // Freed before the weights are packed, because the memory of WebAssembly never shrinks.
        drop(bytes);
        let sampler = Sampler::new(model, backend).await.map_err(from_sampler)?;
        Ok(Self { sampler })
    }

    /// Properties of the model and of its device: `Info` of `index.d.ts`.
    pub fn describe(&self) -> Result<JsValue, JsValue> {
        let (spec, card) = (self.sampler.spec(), self.sampler.card());
        let others = [
            ("numClasses", spec.num_classes().map_or(JsValue::NULL, number)),
            ("classes", card.classes.iter().map(JsValue::from).collect::<Array>().into()),
            ("role", card.role.name().into()),
            ("source", card.source.as_str().into()),
            ("data", card.data.as_str().into()),
        ];
        description(self.sampler.info(), spec.image(), others)
    }

    /// Whether the GPU device is lost.
    #[wasm_bindgen(js_name = isLost)]
    pub fn is_lost(&self) -> bool {
        self.sampler.is_lost()
    }

    /// Opens a new GPU device after the old one was lost.
    pub async fn recover(&mut self) -> Result<(), JsValue> {
        self.sampler.recover().await.map_err(from_sampler)
    }

    /// Destroys the GPU device, as the browser may at any time. For tests.
    #[wasm_bindgen(js_name = loseDevice)]
    pub fn lose_device(&self) {
        self.sampler.lose_device();
    }

    /// Prepares a canvas (`HTMLCanvasElement` or `OffscreenCanvas`) for drawing by the GPU.
    pub fn surface(&self, canvas: JsValue) -> Result<Surface, JsValue> {
        let target = match canvas.dyn_into::<HtmlCanvasElement>() {
            Ok(canvas) => SurfaceTarget::Canvas(canvas),
            Err(other) => SurfaceTarget::OffscreenCanvas(other.dyn_into::<OffscreenCanvas>()?),
        };
        let surface = self.sampler.surface(target).map_err(from_sampler)?;
        surface.map(Surface).ok_or_else(|| coded("no-webgpu", "this sampler runs on the CPU"))
    }

    /// Draws an image to a canvas, interpolated from one seed (`weight` 0) to another (1).
    pub async fn draw(
        &mut self,
        surface: &mut Surface,
        from: u64,
        to: u64,
        weight: f32,
        label: u32,
        steps: usize,
    ) -> Result<(), JsValue> {
        let request = Request::between(self.sampler.spec(), [from, to], Some(label), &[weight]);
        self.sampler.draw(&mut surface.0, &request, steps).await.map_err(from_sampler)
    }

    /// Samples images as bytes `[count, height, width, 4]` with the seeds `from, from + 1, ...`. If `to` is not `from`,
    /// samples one image, interpolated from one seed (`weight` 0) to the other (1).
    pub async fn sample(
        &mut self,
        from: u64,
        to: u64,
        weight: f32,
        label: u32,
        steps: usize,
        count: usize,
    ) -> Result<Vec<u8>, JsValue> {
        let spec = self.sampler.spec();
        let request = if from == to {
            Request::from_seeds(spec, from, &vec![label; count], count)
        } else {
            Request::between(spec, [from, to], Some(label), &[weight])
        };
        let planes = self.sampler.sample(&request, steps).await.map_err(from_sampler)?;
        Ok(to_rgba(&planes, self.sampler.spec().image()))
    }
}
