//! The kernels of the network on the CPU, one file each. They know nothing of Burn.
pub mod conv;
pub mod group_norm;
