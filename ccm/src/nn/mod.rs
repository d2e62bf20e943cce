//! Networks on Burn tensors: a graph interpreter, operations with gradients, and the optimiser.
//!
//! [`network`] runs a [`crate::model::graph::Graph`]; [`denoiser`] converts its output to a velocity; [`conditions`] holds
//! what both are conditioned on. [`encoder`] cuts a graph after its features. [`layers`] are for small networks that have no
//! graph. [`ops`] extends Burn by convolution and group norm; on the CPU these run [`kernels`].
//! [`optimizer`] is Adam, [`ema`] averages weights over steps, and [`host`] copies between tensors and host memory.
//! Nothing here depends on the method, files or threads.

pub mod conditions;
pub mod denoiser;
mod eight_bits;
pub mod ema;
pub(crate) mod encoder;
pub mod host;
pub mod kernels;
pub(crate) mod layers;
pub mod network;
pub mod ops;
pub mod optimizer;
