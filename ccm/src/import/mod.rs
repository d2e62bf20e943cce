//! Networks from files of other programs: PyTorch checkpoints and safetensors, as people save them.
//!
//! [`Checkpoint`] opens a file, whose format is told from its bytes. [`Checkpoint::select`] finds a network in it,
//! whatever wrappers and dictionaries stand around its tensors. [`description`] and [`spec_from_json`] read descriptions of
//! networks; [`diffusers`] reads whole pipelines in diffusers' layout.

mod arguments;
mod checkpoint;
pub mod description;
pub mod diffusers;
mod format;
mod select;

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
        /// The format, as far as its first bytes tell.
        found: &'static str,
    },
    /// A safetensors file cannot be read, or a tensor of the network does not fit.
    #[error("{path}: {source}")]
    Weights {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: WeightsError,
    },
    /// The checkpoint is cut short or malformed.
    #[error("{path}: not a whole PyTorch checkpoint: {source}")]
    Checkpoint {
        /// The checkpoint.
        path: PathBuf,
        /// What its reader reports.
        source: Box<burn_store::pytorch::PytorchError>,
    },
    /// There is nothing under the key that was asked for.
    #[error("{path}: no state dict `{key}`; the file holds {found}")]
    Key {
        /// The checkpoint.
        path: PathBuf,
        /// The key asked for.
        key: String,
        /// The keys that are there.
        found: String,
    },
    /// The network's tensors are not there, under any prefix.
    #[error(
        "{path}: expected the network's {expected} tensors under one prefix; {nearest}; the file holds {found}"
    )]
    Network {
        /// The checkpoint.
        path: PathBuf,
        /// Tensors of the network.
        expected: usize,
        /// The prefix that has most of them, and the first tensor that it lacks.
        nearest: String,
        /// The keys that are there.
        found: String,
    },
    /// A tensor cannot be read.
    #[error("{path}: tensor `{name}`: {reason}")]
    Tensor {
        /// The checkpoint.
        path: PathBuf,
        /// Name of the tensor.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The file is a model of this program.
    #[error("{0}: is a model file of this program already; it needs no import")]
    OwnModel(PathBuf),
    /// The description of the network is malformed or not supported.
    #[error("{0}")]
    Spec(String),
}
