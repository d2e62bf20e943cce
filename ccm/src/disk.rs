//! Reads and writes files. Writing is atomic: a file is written under a temporary name and renamed.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// A file or folder that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// An error of the operating system.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Message of the operating system.
        source: io::Error,
    },
    /// A folder instead of a file, or no folder where one is expected.
    #[error("{path}: expected {expected}, found {found}")]
    Kind {
        /// The file or folder.
        path: PathBuf,
        /// The expected kind.
        expected: &'static str,
        /// The kind found.
        found: &'static str,
    },
    /// The disk has too little space for a run.
    #[error("{path}: the run needs {needed} MB more of disk, {free} MB are free")]
    Full {
        /// The folder of the run.
        path: PathBuf,
        /// Megabytes that the run will write.
        needed: u64,
        /// Megabytes that are free.
        free: u64,
    },
}

impl DiskError {
    pub(crate) fn of(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}

/// Reads a file.
///
/// # Errors
/// [`DiskError::Io`] if the file does not exist or cannot be read.
pub fn read(path: &Path) -> Result<Vec<u8>, DiskError> {
    fs::read(path).map_err(DiskError::of(path))
}

/// Reads a text file.
///
/// # Errors
/// [`DiskError::Io`] if the file does not exist, cannot be read or is not UTF-8.
pub fn read_text(path: &Path) -> Result<String, DiskError> {
    fs::read_to_string(path).map_err(DiskError::of(path))
}

/// Writes a file atomically: writes a temporary file in the same folder, syncs it to disk and renames it. After a crash
/// or a power cut, the path has either the old or the new contents.
///
/// # Errors
/// [`DiskError::Io`] if the folder does not exist or is not writable, or if the disk is full.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), DiskError> {
    write_with(path, |file| file.write_all(bytes).map_err(DiskError::of(path)))
}

/// Writes a file atomically, as [`write`]; `fill` writes the contents.
///
/// # Errors
/// As [`write`]; also the error of `fill`.
pub fn write_with<E: From<DiskError>>(
    path: &Path,
    fill: impl FnOnce(&mut File) -> Result<(), E>,
) -> Result<(), E> {
    let mut name = path.file_name().map_or_else(OsString::new, ToOwned::to_owned);
    name.push(".partial");
    let partial = path.with_file_name(name);
    let written = || {
        let mut file = File::create(&partial).map_err(DiskError::of(path))?;
        fill(&mut file)?;
        file.sync_all().and_then(|()| fs::rename(&partial, path)).map_err(DiskError::of(path))?;
        Ok(())
    };
    written().inspect_err(|_| {
        // Report the first error, not one of removing the temporary file.
        let _ = fs::remove_file(&partial);
    })
}

/// Checks that `needed` bytes can be written to a folder, which need not exist yet. Removes its probe file.
///
/// # Errors
/// [`DiskError`] if the folder cannot be created or written, or if there is too little space.
pub fn check(folder: &Path, needed: u64) -> Result<(), DiskError> {
    let above = folder.ancestors().find(|above| above.exists());
    // A relative path whose first folder is new is in the current folder.
    let there = above.unwrap_or(Path::new("."));
    let probe = there.join(format!(".ccm-probe-{}", std::process::id()));
    File::create_new(&probe).and_then(|_| fs::remove_file(&probe)).map_err(DiskError::of(folder))?;
    let free = fs4::available_space(there).map_err(DiskError::of(folder))?;
    if free < needed {
        return Err(DiskError::Full {
            path: folder.to_owned(),
            needed: needed.div_ceil(1 << 20),
            free: free >> 20,
        });
    }
    Ok(())
}

/// Checks that a file can be written, before its contents are computed. Removes its probe file.
///
/// # Errors
/// [`DiskError`] if the folder does not exist or is not writable, or if the path is a folder.
pub fn check_file(file: &Path) -> Result<(), DiskError> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        return Err(DiskError::Kind { path: folder.to_owned(), expected: "a folder", found: "none" });
    }
    if file.is_dir() {
        return Err(DiskError::Kind { path: file.to_owned(), expected: "a file", found: "a folder" });
    }
    check(folder, 0)
}

/// Creates a folder and its parents.
///
/// # Errors
/// [`DiskError::Io`] if a folder cannot be created.
pub fn make(folder: &Path) -> Result<(), DiskError> {
    fs::create_dir_all(folder).map_err(DiskError::of(folder))
}

/// Total size in bytes of the files in a folder and its subfolders; 0 if the folder does not exist.
pub fn size(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => size(&entry.path()),
        Ok(found) => found.len(),
        Err(_) => 0,
    });
    sizes.sum()
}

/// Reads a model file.
///
/// # Errors
/// [`ModelFileError`], with the path, if the file cannot be read or is not a model.
pub fn read_model(path: &Path) -> Result<crate::weights::Model, ModelFileError> {
    let bytes = read(path)?;
    crate::weights::Model::from_bytes(&bytes)
        .map_err(|source| ModelFileError::Weights { path: path.to_owned(), source })
}

/// Why a model file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ModelFileError {
    /// The file cannot be read.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The file is not a model, or its tensors do not fit its network.
    #[error("{path}: {source}")]
    Weights {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: crate::weights::WeightsError,
    },
}
