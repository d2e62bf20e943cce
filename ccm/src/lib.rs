//! x
#![allow(missing_docs)]
pub mod sampler;
pub mod spec;
#[cfg(feature = "train")]
pub mod train;
