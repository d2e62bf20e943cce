//! Imports networks from files of other programs: PyTorch checkpoints, safetensors and diffusers' pipelines.
//!
//! [`Checkpoint`] opens a file and detects its format. [`Checkpoint::select`] finds a network in it, with any prefix
//! before the tensor names. [`description`] and [`spec_from_json`] parse descriptions of networks; [`diffusers`]
//! imports whole pipelines in diffusers' layout.

mod arguments;
pub mod changes;
mod checkpoint;
pub mod description;
pub mod diffusers;
mod format;
pub mod lora;
pub mod pack;
mod select;
mod single_file;
pub mod text_to_image;

use std::path::PathBuf;

pub use arguments::spec_from_json;
pub use checkpoint::Checkpoint;
pub use select::Selection;

use crate::disk::DiskError;
use crate::weights::WeightsError;

/// Why a checkpoint or a description cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The checkpoint cannot be opened.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The file is of another format.
    #[error("{path}: expected a PyTorch checkpoint or a safetensors file, found {found}")]
    Format {
        /// The file.
        path: PathBuf,
        /// The format, as far as the first bytes show it.
        found: &'static str,
    },
    /// A safetensors file cannot be read, or a tensor of the network does not fit.
    #[error("{path}: {source}")]
    Weights {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: WeightsError,
    },
    /// The checkpoint is cut short or malformed.
    #[error("{path}: not a whole PyTorch checkpoint: {source}")]
    Checkpoint {
        /// The checkpoint.
        path: PathBuf,
        /// The error of the PyTorch reader.
        source: Box<burn_store::pytorch::PytorchError>,
    },
    /// No tensor is under the requested key.
    #[error("{path}: no state dict `{key}`; the file holds {found}")]
    Key {
        /// The checkpoint.
        path: PathBuf,
        /// The requested key.
        key: String,
        /// The keys in the file.
        found: String,
    },
    /// No prefix has all of the network's tensors.
    #[error(
        "{path}: expected the network's {expected} tensors under one prefix; {nearest}; the file holds {found}"
    )]
    Network {
        /// The checkpoint.
        path: PathBuf,
        /// Number of tensors of the network.
        expected: usize,
        /// The prefix that has most of them, and the first tensor that is missing there.
        nearest: String,
        /// The keys in the file.
        found: String,
    },
    /// A tensor cannot be read.
    #[error("{path}: tensor `{name}`: {reason}")]
    Tensor {
        /// The checkpoint.
        path: PathBuf,
        /// Name of the tensor.
        name: String,
        /// The reason.
        reason: String,
    },
    /// The file is a model of this program.
    #[error("{0}: is a model file of this program already; it needs no import")]
    OwnModel(PathBuf),
    /// The description of the network is malformed or not supported.
    #[error("{0}")]
    Spec(String),
}
