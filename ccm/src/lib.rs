//! x
#![allow(missing_docs)]
#[cfg(feature = "train")]
pub mod config;
#[cfg(feature = "train")]
pub mod data;
pub mod noise;
#[cfg(feature = "train")]
pub mod report;
pub mod sampler;
pub mod spec;
#[cfg(feature = "train")]
pub mod train;
pub mod weights;
