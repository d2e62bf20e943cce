//! The folder of a run: what stands where in it, and whether a run can begin or go on there.

use std::path::Path;

use super::error::RunError;
use crate::config::Config;
use crate::disk;

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
    /// The report.
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
        return Err(RunError::NoRun(folder.to_owned()));
    }
    Config::from_toml(&disk::read_text(&path)?).map_err(|source| RunError::Config { path, source })
}

/// Checks that a run with this configuration can begin, or go on, in a folder, and that what it will write fits on
/// the disk. Leaves nothing behind, so it can be asked before hours or images are spent.
///
/// # Errors
/// A run that is there already or, to go on with, is not; another configuration; a folder that cannot be written;
/// too little space.
pub fn check(config: &Config, folder: &Path, resume: bool) -> Result<(), RunError> {
    let path = folder.join(files::CONFIG);
    if resume {
        let differences = read_config(folder)?.differences(config);
        if !differences.is_empty() {
            return Err(RunError::Differs { path, differences });
        }
    } else if path.exists() {
        return Err(RunError::Exists(folder.to_owned()));
    }
    Ok(disk::check(folder, still_needed(config, folder))?)
}

/// Bytes that a run will add to its folder.
fn still_needed(config: &Config, folder: &Path) -> u64 {
    /// Pictures, figures and the report.
    const REST: u64 = 32 << 20;
    // Weights, averages and moments, in two checkpoints and one that is being written, and two models.
    let copies = 3 * (1 + 3 + 2) + 2;
    let all = copies * 4 * config.spec().parameters() as u64 + REST;
    all.saturating_sub(disk::size(folder))
}

/// Makes the folder of a run, or checks that of one that goes on.
///
/// # Errors
/// As [`check`].
pub(super) fn prepare(config: &Config, folder: &Path, resume: bool) -> Result<(), RunError> {
    check(config, folder, resume)?;
    for part in [files::CHECKPOINTS, files::SAMPLES] {
        disk::make(&folder.join(part))?;
    }
    if resume {
        return Ok(());
    }
    let path = folder.join(files::CONFIG);
    let text = config.to_toml().map_err(|source| RunError::Config { path: path.clone(), source })?;
    Ok(disk::write(&path, text.as_bytes())?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_there_is_not_asked_for_again() {
        let (config, folder) = (Config::preset("shapes").unwrap(), tempfile::tempdir().unwrap());
        let all = still_needed(&config, folder.path());
        assert!(all > 20 * 4 * config.spec().parameters() as u64);
        assert_eq!(still_needed(&config, &folder.path().join("not there yet")), all);
        disk::make(&folder.path().join(files::CHECKPOINTS)).unwrap();
        disk::write(&folder.path().join(files::CHECKPOINTS).join("a"), &[0; 1000]).unwrap();
        disk::write(&folder.path().join("b"), &[0; 234]).unwrap();
        assert_eq!(still_needed(&config, folder.path()), all - 1234);
    }

    #[test]
    fn a_check_leaves_nothing_behind() {
        let (config, folder) = (Config::preset("shapes").unwrap(), tempfile::tempdir().unwrap());
        check(&config, &folder.path().join("run"), false).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
