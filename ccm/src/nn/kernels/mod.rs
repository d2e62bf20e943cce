//! Convolution and group norm with their gradients on the CPU, over Burn's layout `[B, C, H, W]`. They know
//! nothing of Burn, which calls them in training ([`super::ops`]).

pub mod conv;
pub mod conv_weight_gradient;
pub mod group_norm;
