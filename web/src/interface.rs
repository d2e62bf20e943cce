//! What the engines of models with and without text have in common: backends by name, descriptions as objects of JavaScript,
//! and pixels as bytes.

use ccm::sampler::image::to_byte;
use ccm::sampler::{Backend, Info};
use js_sys::{Object, Reflect};
use wasm_bindgen::prelude::*;

use crate::error::coded;

/// Runs once when the module starts: makes a panic print its message to the console.
#[wasm_bindgen(start)]
pub(crate) fn start() {
    std::panic::set_hook(Box::new(|panic| gloo_console::error!(panic.to_string())));
}

/// The backend `auto`, `webgpu`, `webgpu-software` or `cpu`.
pub(crate) fn backend_of(name: &str) -> Result<Backend, JsValue> {
    Ok(match name {
        "auto" => Backend::Auto,
        "cpu" => Backend::Cpu,
        "webgpu" => Backend::Gpu { api: None, software: false },
        "webgpu-software" => Backend::Gpu { api: None, software: true },
        _ => {
            let expected = "expected auto, webgpu, webgpu-software or cpu";
            return Err(coded("request", &format!("backend: {expected}, found {name}")));
        }
    })
}

/// A whole number of JavaScript.
pub(crate) fn number(value: usize) -> JsValue {
    JsValue::from_f64(value as f64)
}

/// `Info` of `index.d.ts`: the properties of the device, the size `[channels, height, width]` of the images, and `others`.
pub(crate) fn description<const N: usize>(
    info: Info,
    [channels, height, width]: [usize; 3],
    others: [(&str, JsValue); N],
) -> Result<JsValue, JsValue> {
    let properties: [(&str, JsValue); 9] = [
        ("backend", info.backend.into()),
        ("adapter", info.adapter.into()),
        ("software", info.software.into()),
        ("precision", info.precision.into()),
        ("parameters", number(info.parameters)),
        ("memory", JsValue::from_f64(info.memory as f64)),
        ("width", number(width)),
        ("height", number(height)),
        ("channels", number(channels)),
    ];
    let description = Object::new();
    for (key, value) in properties.into_iter().chain(others) {
        Reflect::set(&description, &key.into(), &value)?;
    }
    Ok(description.into())
}

/// `[N, C, H, W]` in [-1, 1] to `[N, H, W, 4]` bytes; grey becomes equal red, green and blue.
pub(crate) fn to_rgba(planes: &[f32], [channels, height, width]: [usize; 3]) -> Vec<u8> {
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
