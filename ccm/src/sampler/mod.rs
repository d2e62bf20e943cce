//! The engine.
pub mod cpu;
pub mod image;
