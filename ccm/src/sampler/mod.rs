//! What sampling needs beside the weights: the kernels, and the way from values to pictures. It knows nothing of
//! Burn, of training, or of files.

pub mod cpu;
pub mod image;
