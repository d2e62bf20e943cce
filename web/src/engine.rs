//! The interface of `ccm`'s sampler to JavaScript: takes numbers and returns the bytes of pixels. JavaScript checks the
//! arguments first, because its error messages use the names of the page's API; the sampler checks them again.

use ccm::model::NetworkSpec;
use ccm::sampler::image::to_byte;
use ccm::sampler::schedule::Request;
use ccm::sampler::{Backend, Sampler, SurfaceTarget};
use ccm::weights::Model;
use js_sys::{Array, Object, Reflect};
use wasm_bindgen::prelude::*;
use web_sys::{HtmlCanvasElement, OffscreenCanvas};

use crate::error::{coded, from_sampler};

/// A loaded model.
#[wasm_bindgen]
pub struct Engine {
    sampler: Sampler,
}

/// The GPU surface of a canvas.
#[wasm_bindgen]
pub struct Surface(ccm::sampler::Surface);

/// Runs once when the module starts: makes a panic print its message to the console.
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
        // Freed before the weights are packed, because the memory of WebAssembly never shrinks.
        drop(bytes);
        let sampler = Sampler::new(model, backend).await.map_err(from_sampler)?;
        Ok(Self { sampler })
    }

    /// Properties of the model and of its device: `Info` of `index.d.ts`.
    pub fn describe(&self) -> Result<JsValue, JsValue> {
        let (info, spec, card) = (self.sampler.info(), self.sampler.spec(), self.sampler.card());
        let [channels, height, width] = spec.image();
        let description = Object::new();
        let classes = card.classes.iter().map(JsValue::from).collect::<Array>();
        let number = |value: usize| JsValue::from_f64(value as f64);
        let properties: [(&str, JsValue); 14] = [
            ("backend", info.backend.into()),
            ("adapter", info.adapter.into()),
            ("software", info.software.into()),
            ("precision", info.precision.into()),
            ("parameters", number(info.parameters)),
            ("memory", JsValue::from_f64(info.memory as f64)),
            ("width", number(width)),
            ("height", number(height)),
            ("channels", number(channels)),
            ("numClasses", spec.num_classes().map_or(JsValue::NULL, number)),
            ("classes", classes.into()),
            ("role", card.role.name().into()),
            ("source", card.source.as_str().into()),
            ("data", card.data.as_str().into()),
        ];
        for (key, value) in properties {
            Reflect::set(&description, &key.into(), &value)?;
        }
        Ok(description.into())
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
        Ok(to_rgba(&planes, self.sampler.spec()))
    }
}

/// `[N, C, H, W]` in [-1, 1] to `[N, H, W, 4]` bytes; grey becomes equal red, green and blue.
fn to_rgba(planes: &[f32], spec: &NetworkSpec) -> Vec<u8> {
    let [channels, height, width] = spec.image();
    let pixels = height * width;
    let mut bytes = vec![u8::MAX; planes.len() / channels * 4];
    for (image, bytes) in planes.chunks_exact(channels * pixels).zip(bytes.chunks_exact_mut(pixels * 4)) {
        for (place, pixel) in bytes.chunks_exact_mut(4).enumerate() {
            for (channel, byte) in pixel[..3].iter_mut().enumerate() {
                let plane = channel.min(channels - 1);
                *byte = to_byte(image[plane * pixels + place]);
            }
        }
    }
    bytes
}
