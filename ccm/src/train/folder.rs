//! The folder of a run: what stands where in it, and whether a run can begin or go on there.

use std::path::Path;

use super::disk;
use super::error::RunError;
use crate::config::Config;

/// The files of a run.
pub mod files {
    /// The resolved configuration.
    pub const CONFIG: &str = "config.toml";
    /// A line of figures every few steps.
    pub const METRICS: &str = "metrics.jsonl";
    /// Folder of the checkpoints.
    pub const CHECKPOINTS: &str = "checkpoints";
    /// Folder of the grids of samples.
    pub const SAMPLES: &str = "samples";
    /// The trained teacher.
    pub const TEACHER: &str = "teacher.safetensors";
    /// The distilled student.
    pub const STUDENT: &str = "student.safetensors";
    /// The page for a person to look at.
    pub const REPORT: &str = "report.html";
    /// KDC and teacher steps against t.
    pub const KDC: &str = "kdc.json";
}

/// Reads the configuration of a run.
///
/// # Errors
/// A folder without a run, or a configuration that cannot be read.
pub fn read_config(folder: &Path) -> Result<Config, RunError> {
    let path = folder.join(files::CONFIG);
    if !path.exists() {
        return Err(RunError::NothingToResume(folder.to_owned()));
    }
    Config::from_toml(&disk::read_text(&path)?).map_err(|source| RunError::Config { path, source })
}
