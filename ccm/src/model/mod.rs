//! The description of a model: its network, its prediction and its card. Does not use Burn or the file system.

mod card;
pub mod graph;
pub mod json;
pub mod networks;
pub mod options;
pub mod prediction;
mod time_grid;

pub use card::{ModelCard, Role, Rounding};
pub use graph::TensorSpec;
pub use networks::{NetworkSpec, SpecError, UNet2DSpec, UNetSpec};
pub use prediction::{Path, Prediction};
pub use time_grid::TimeGrid;
