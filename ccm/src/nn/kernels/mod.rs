//! CPU kernels for convolution, group norm and their gradients, on slices in the layout `[B, C, H, W]`. They do
//! not depend on Burn; [`super::ops`] registers them with it.

pub mod conv;
pub mod conv_weight_gradient;
pub mod group_norm;
mod product;

pub use product::Operands;
