//! The kernels of the network on the CPU, one file each, with their gradients. They know nothing of Burn, which
//! calls them in training (`train::ops`).

pub mod conv;
pub mod conv_weight_gradient;
pub mod group_norm;
