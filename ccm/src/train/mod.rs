//! Everything that needs Burn.
pub mod ops;
pub mod unet;
pub mod import;
