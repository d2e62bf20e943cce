//! Why a run ends early. Every message is one line that names the file, setting or flag at fault.

use std::path::PathBuf;

use super::checkpoint::CheckpointError;
use crate::config::ConfigError;
use crate::data::DataError;
use crate::data::encoded::EncodedError;
use crate::disk::{DiskError, ModelFileError};
use crate::import::ImportError;
use crate::pipeline::PipelineError;
use crate::report::ReportError;

/// Why a run ends early.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration cannot be used.
    #[error("{path}: {source}")]
    Config {
        /// The file of the configuration.
        path: PathBuf,
        /// The error in it.
        source: ConfigError,
    },
    /// A setting cannot be used.
    #[error(transparent)]
    Setting(#[from] ConfigError),
    /// The images cannot be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A file cannot be read or written.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A model file cannot be used.
    #[error(transparent)]
    Model(#[from] ModelFileError),
    /// Encoded images cannot be used.
    #[error(transparent)]
    Encoded(#[from] EncodedError),
    /// A pipeline cannot be run.
    #[error(transparent)]
    Pipeline(#[from] PipelineError<ImportError>),
    /// Weights of a distance cannot be used.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// A checkpoint cannot be written or read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The report cannot be made.
    #[error("report.html: {0}")]
    Report(#[from] ReportError),
    /// A grid of samples cannot be made.
    #[error("samples: {0}")]
    Picture(#[from] image::ImageError),
    /// The system cannot start threads.
    #[error("threads: {0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),
    /// The folder contains a run already.
    #[error("{0}: a run is there already; `--resume` continues it, another `--out` starts a new one")]
    Exists(PathBuf),
    /// The folder contains no run.
    #[error("{0}: no run there (no config.toml)")]
    NoRun(PathBuf),
    /// The run was started with another configuration.
    #[error("--resume: the configuration differs from that of {path}: {}", differences.join("; "))]
    Differs {
        /// The configuration of the run.
        path: PathBuf,
        /// The settings that differ, one string each.
        differences: Vec<String>,
    },
    /// The data and the configuration do not match.
    #[error("{0}")]
    Unsuitable(String),
    /// Training has diverged.
    #[error(
        "{stage}: after step {step} {what}; training has diverged (a smaller learning rate or clip may help); \
         {kept}"
    )]
    Diverged {
        /// The stage.
        stage: &'static str,
        /// The step, counted from 1.
        step: u64,
        /// The quantity that is not finite.
        what: String,
        /// The checkpoint that the run can resume from.
        kept: String,
    },
}
