//! Errors as the page sees them: an `Error` whose `code` tells what to do about it.

use ccm::sampler::SamplerError;
use wasm_bindgen::{JsCast, JsValue};

/// A JavaScript `Error` with a `code`; `js/errors.js` makes the class of it.
pub(crate) fn coded(code: &str, message: &str) -> JsValue {
    let error = js_sys::Error::new(message);
    // Setting a property of a new object cannot fail.
    let _ = js_sys::Reflect::set(error.unchecked_ref(), &"code".into(), &code.into());
    error.into()
}

/// The engine's error, with the code that `js/errors.js` knows it by.
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
