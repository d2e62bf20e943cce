//! Everything that needs Burn.
pub mod ops;
