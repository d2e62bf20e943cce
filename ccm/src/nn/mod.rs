//! Networks on Burn tensors: the U-Net, its kernels with their gradients, and the optimiser.
//!
//! [`unet`] builds the network from a [`crate::spec::UNetSpec`] out of [`layers`]. [`ops`] extends Burn by convolution
//! and group norm; on the CPU these run [`kernels`]. [`optimizer`] turns gradients into steps, and [`ema`] averages
//! weights over steps. Nothing here knows the method, files or threads.

pub mod ema;
pub mod kernels;
pub(crate) mod layers;
pub mod ops;
pub mod optimizer;
pub mod unet;
