//! Errors of the engine in JavaScript: an `Error` with a `code`.

use ccm::sampler::SamplerError;
use wasm_bindgen::{JsCast, JsValue};

/// A JavaScript `Error` with a `code`, which `js/errors.js` turns into an error of the class for that code.
pub(crate) fn coded(code: &str, message: &str) -> JsValue {
    let error = js_sys::Error::new(message);
    // Setting a property of a new object cannot fail.
    let _ = js_sys::Reflect::set(error.unchecked_ref(), &"code".into(), &code.into());
    error.into()
}

/// The sampler's error as a JavaScript `Error`.
pub(crate) fn from_sampler(error: SamplerError) -> JsValue {
    let code = match &error {
        SamplerError::Model(_) => "corrupt",
        SamplerError::NoGpu(_) => "no-webgpu",
        SamplerError::TooLarge { .. } => "too-large",
        SamplerError::DeviceLost => "device-lost",
        SamplerError::Request(_) => "request",
        SamplerError::Device(_) | SamplerError::Threads(_) => "internal",
    };
    coded(code, &error.to_string())
}
