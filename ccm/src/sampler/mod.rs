//! The engine.
pub mod cpu;
