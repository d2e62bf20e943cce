//! The folder of a run: the names of its files, and the checks before a run starts or resumes in it.

use std::path::Path;

use super::error::RunError;
use crate::config::Config;
use crate::disk;

/// The files of a run.
pub mod files {
    /// The resolved configuration.
    pub const CONFIG: &str = "config.toml";
    /// Latents and text embeddings of captioned images.
    pub const ENCODED: &str = "encoded.safetensors";
    /// Training metrics, one line every few steps.
    pub const METRICS: &str = "metrics.jsonl";
    /// Folder of TensorBoard's event files.
    pub const EVENTS: &str = "events";
    /// The page that `distill watch` keeps up to date.
    pub const WATCH: &str = "watch.html";
    /// Folder of the checkpoints.
    pub const CHECKPOINTS: &str = "checkpoints";
    /// Folder of the grids of samples.
    pub const SAMPLES: &str = "samples";
    /// The trained teacher.
    pub const TEACHER: &str = "teacher.safetensors";
    /// The weaker teacher, if autoguidance leads away from one that the run has trained.
    pub const WEAKER: &str = "weaker.safetensors";
    /// The distilled student, if it is fine-tuned afterwards.
    pub const DISTILLED: &str = "distilled.safetensors";
    /// The student: distilled, and fine-tuned if the configuration says so.
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

/// Checks that a run with this configuration can start or resume in a folder. Creates no files, so a caller can run this check
/// before reading images or training.
///
/// # Errors
/// A new run in a folder that has one; a resumed run in a folder that has none; another configuration; a folder that cannot be
/// written.
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
    Ok(disk::check(folder, 0)?)
}

/// Checkpoints that a run has at a time: three, and a fourth during the write.
pub(super) const CHECKPOINTS: usize = 4;

/// Bytes that a run will add to its folder if its checkpoints and model files hold this many values.
pub(super) fn still_needed(values: usize, folder: &Path) -> u64 {
    /// Sample grids, metrics and the report.
    const REST: u64 = 32 << 20;
    (4 * values as u64 + REST).saturating_sub(disk::size(folder))
}

/// Creates the folder of a new run, or checks the folder of a resumed run.
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
        let (values, folder) = (1_000_000, tempfile::tempdir().unwrap());
        let all = still_needed(values, folder.path());
        assert_eq!(still_needed(values, &folder.path().join("not there yet")), all);
        disk::make(&folder.path().join(files::CHECKPOINTS)).unwrap();
        disk::write(&folder.path().join(files::CHECKPOINTS).join("a"), &[0; 1000]).unwrap();
        disk::write(&folder.path().join("b"), &[0; 234]).unwrap();
        assert_eq!(still_needed(values, folder.path()), all - 1234);
    }

    #[test]
    fn a_check_leaves_nothing_behind() {
        let (config, folder) = (Config::preset("shapes").unwrap(), tempfile::tempdir().unwrap());
        check(&config, &folder.path().join("run"), false).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
