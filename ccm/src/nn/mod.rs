//! Networks on Burn tensors: an interpreter of graphs, kernels with their gradients, and the optimiser.
//!
//! [`network`] runs a [`crate::model::graph::Graph`]; [`denoiser`] makes a velocity of its output. [`layers`] are for small
//! networks that have no graph. [`ops`] extends Burn by convolution and group norm; on the CPU these run [`kernels`].
//! [`optimizer`] turns gradients into steps, and [`ema`] averages weights over steps. Nothing here knows the method, files or
//! threads.

mod checkpointing;
pub mod denoiser;
pub mod ema;
pub mod host;
pub mod kernels;
pub(crate) mod layers;
pub mod network;
pub mod ops;
pub mod optimizer;
