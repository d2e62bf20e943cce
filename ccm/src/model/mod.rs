//! The description of a model: its network, its prediction and its card. Does not use Burn or the file system.

mod card;
mod condition;
pub mod graph;
pub mod json;
pub mod networks;
pub mod options;
pub mod path;
pub mod prediction;
mod time_grid;

pub use card::{ModelCard, Role, Rounding};
pub use condition::Condition;
#[cfg(feature = "text")]
pub use condition::Text;
pub use graph::TensorSpec;
#[cfg(feature = "text")]
pub use networks::{AutoencoderSpec, MmditSpec, TextEncoderSpec, UNet2DConditionSpec};
pub use networks::{NetworkSpec, SpecError, UNet2DSpec, UNetSpec};
pub use path::Path;
pub use prediction::Prediction;
pub use time_grid::TimeGrid;
