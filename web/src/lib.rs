//! The sampler in a web page.
//!
//! Compiled to WebAssembly, this crate is [`Engine`], a thin layer over `ccm`'s sampler. Pages use its JavaScript API
//! in `js/`, which the build minifies and copies to the folder of the module. Compiled natively, this crate builds that
//! WebAssembly and serves the demo page.

#[cfg(not(target_arch = "wasm32"))]
pub mod build;
#[cfg(target_arch = "wasm32")]
mod engine;
#[cfg(target_arch = "wasm32")]
mod error;
#[cfg(not(target_arch = "wasm32"))]
pub mod script;
#[cfg(not(target_arch = "wasm32"))]
pub mod serve;

#[cfg(target_arch = "wasm32")]
pub use engine::Engine;
