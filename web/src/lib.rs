//! The sampler in a web page.
//!
//! Compiled to WebAssembly this crate is [`Engine`], a thin door to `ccm`'s sampler; the interface that a page sees
//! is the JavaScript around it, in `js/`, which the build puts beside the module without its comments. Compiled
//! natively it is what builds that WebAssembly and serves the demo page.

#[cfg(not(target_arch = "wasm32"))]
pub mod build;
#[cfg(target_arch = "wasm32")]
mod engine;
#[cfg(target_arch = "wasm32")]
mod error;
#[cfg(not(target_arch = "wasm32"))]
pub mod serve;

#[cfg(target_arch = "wasm32")]
pub use engine::Engine;
