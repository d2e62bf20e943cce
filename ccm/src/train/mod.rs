//! Everything that needs Burn.
pub mod batches;
pub mod coupling;
pub mod curriculum;
pub mod distance;
pub mod distill;
pub mod ema;
pub mod flow;
pub mod import;
pub mod kdc;
pub mod ops;
pub mod optimizer;
pub mod teacher;
pub mod trainee;
pub mod unet;
