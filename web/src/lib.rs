//! The sampler in a web page.
//!
//! Compiled to WebAssembly, this crate is [`Engine`], a thin layer over `ccm`'s sampler, or with the feature `text` the engine
//! of pipelines with text, a module of its own that pages load for such models only. Pages use its JavaScript API in `js/`,
//! which the build minifies and copies to the folder of the modules. Compiled natively, this crate builds that WebAssembly and
//! serves the demo page.

#[cfg(not(target_arch = "wasm32"))]
pub mod build;
#[cfg(all(target_arch = "wasm32", not(feature = "text")))]
mod engine;
#[cfg(target_arch = "wasm32")]
mod error;
#[cfg(target_arch = "wasm32")]
mod interface;
#[cfg(not(target_arch = "wasm32"))]
pub mod script;
#[cfg(not(target_arch = "wasm32"))]
pub mod serve;

#[cfg(all(target_arch = "wasm32", feature = "text"))]
mod text;

#[cfg(all(target_arch = "wasm32", not(feature = "text")))]
pub use engine::Engine;
#[cfg(all(target_arch = "wasm32", feature = "text"))]
pub use text::TextEngine;
