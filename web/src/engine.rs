//! The door to `ccm`'s sampler: numbers in, bytes of pixels out. What is asked for is checked in JavaScript, where
//! the names that the page uses are known, and once more by the sampler.

use ccm::sampler::image::to_byte;
use ccm::sampler::schedule::Request;
use ccm::sampler::{Backend, Sampler, SurfaceTarget};
use ccm::spec::UNetSpec;
use ccm::weights::Model;
use js_sys::{Array, Object, Reflect};
use wasm_bindgen::prelude::*;
use web_sys::{HtmlCanvasElement, OffscreenCanvas};

use crate::error::{coded, from_sampler};

/// A model, ready to make images.
#[wasm_bindgen]
pub struct Engine {
    sampler: Sampler,
}

/// A canvas that the GPU draws to.
#[wasm_bindgen]
pub struct Surface(ccm::sampler::Surface);

/// Called once, when the module starts: a panic says what it was before it stops the module.
#[wasm_bindgen(start)]
pub(crate) fn start() {
    std::panic::set_hook(Box::new(|panic| gloo_console::error!(panic.to_string())));
}

#[wasm_bindgen]
impl Engine {
    /// Loads a model file; `backend` is `auto`, `webgpu`, `webgpu-software` or `cpu`.
    pub async fn load(bytes: Vec<u8>, backend: String) -> Result<Engine, JsValue> {
        let backend = match backend.as_str() {
            "auto" => Backend::Auto,
            "cpu" => Backend::Cpu,
            "webgpu" => Backend::Gpu { api: None, software: false },
            "webgpu-software" => Backend::Gpu { api: None, software: true },
            _ => {
                let expected = "expected auto, webgpu, webgpu-software or cpu";
                return Err(coded("request", &format!("backend: {expected}, found {backend}")));
            }
        };
        let model = Model::from_bytes(&bytes).map_err(|error| from_sampler(error.into()))?;
        // The file goes before the weights are laid out, because the memory of a page never shrinks.
        drop(bytes);
        let sampler = Sampler::new(model, backend).await.map_err(from_sampler)?;
        Ok(Self { sampler })
    }

    /// What the model is and what it runs on: `Info` of `index.d.ts`.
    pub fn describe(&self) -> Result<JsValue, JsValue> {
        let (info, spec, card) = (self.sampler.info(), self.sampler.spec(), self.sampler.card());
        let description = Object::new();
        let set = |key: &str, value: JsValue| Reflect::set(&description, &key.into(), &value);
        set("backend", info.backend.into())?;
        set("adapter", info.adapter.into())?;
        set("software", info.software.into())?;
        set("precision", info.precision.into())?;
        set("parameters", (info.parameters as f64).into())?;
        set("memory", (info.memory as f64).into())?;
        set("width", (spec.width as f64).into())?;
        set("height", (spec.height as f64).into())?;
        set("channels", (spec.in_channels as f64).into())?;
        set("numClasses", spec.num_classes.map_or(JsValue::NULL, |count| (count as f64).into()))?;
        set("classes", card.classes.iter().map(JsValue::from).collect::<Array>().into())?;
        set("role", card.role.name().into())?;
        set("source", card.source.as_str().into())?;
        set("data", card.data.as_str().into())?;
        Ok(description.into())
    }

    /// Whether the GPU is gone, and the engine with it.
    #[wasm_bindgen(js_name = isLost)]
    pub fn is_lost(&self) -> bool {
        self.sampler.is_lost()
    }

    /// Opens a lost GPU again.
    pub async fn recover(&mut self) -> Result<(), JsValue> {
        self.sampler.recover().await.map_err(from_sampler)
    }

    /// Gives the GPU back, as the browser may at any time; for tests of what happens then.
    #[wasm_bindgen(js_name = loseDevice)]
    pub fn lose_device(&self) {
        self.sampler.lose_device();
    }

    /// Prepares a canvas (`HTMLCanvasElement` or `OffscreenCanvas`) to be drawn to by the GPU.
    pub fn surface(&self, canvas: JsValue) -> Result<Surface, JsValue> {
        let target = match canvas.dyn_into::<HtmlCanvasElement>() {
            Ok(canvas) => SurfaceTarget::Canvas(canvas),
            Err(other) => SurfaceTarget::OffscreenCanvas(other.dyn_into::<OffscreenCanvas>()?),
        };
        let surface = self.sampler.surface(target).map_err(from_sampler)?;
        surface.map(Surface).ok_or_else(|| coded("no-webgpu", "this sampler runs on the CPU"))
    }

    /// Draws the image at `weight` of the way between two seeds over the whole of a canvas.
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

    /// Images from the seeds `from, from + 1, ...`; where `to` is another seed than `from`, the image at `weight` of
    /// the way to it: `[count, height, width, 4]` bytes.
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
        Ok(to_rgba(&planes, self.sampler.spec()))
    }
}

/// `[N, C, H, W]` in [-1, 1] to `[N, H, W, 4]` bytes; grey becomes equal red, green and blue.
fn to_rgba(planes: &[f32], spec: &UNetSpec) -> Vec<u8> {
    let pixels = spec.height * spec.width;
    let mut bytes = vec![u8::MAX; planes.len() / spec.in_channels * 4];
    for (image, bytes) in planes.chunks_exact(spec.image_len()).zip(bytes.chunks_exact_mut(pixels * 4)) {
        for (place, pixel) in bytes.chunks_exact_mut(4).enumerate() {
            for (channel, byte) in pixel[..3].iter_mut().enumerate() {
                let plane = channel.min(spec.in_channels - 1);
                *byte = to_byte(image[plane * pixels + place]);
            }
        }
    }
    bytes
}
