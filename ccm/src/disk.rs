//! Files that are whole or not there: everything is written beside its place and renamed.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// A file or folder that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// What the system says of it.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A folder in place of a file, or nothing in place of a folder.
    #[error("{path}: expected {expected}, found {found}")]
    Kind {
        /// The file or folder.
        path: PathBuf,
        /// What should be there.
        expected: &'static str,
        /// What is there.
        found: &'static str,
    },
    /// The disk cannot hold what a run will write.
    #[error("{path}: the run needs {needed} MB more of disk, {free} MB are free")]
    Full {
        /// The folder of the run.
        path: PathBuf,
        /// Megabytes that will be written.
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

/// Reads a whole file.
///
/// # Errors
/// A file that is not there or cannot be read.
pub fn read(path: &Path) -> Result<Vec<u8>, DiskError> {
    fs::read(path).map_err(DiskError::of(path))
}

/// Reads a whole text file.
///
/// # Errors
/// A file that is not there, cannot be read or is not UTF-8.
pub fn read_text(path: &Path) -> Result<String, DiskError> {
    fs::read_to_string(path).map_err(DiskError::of(path))
}

/// Writes a file beside its place, waits until it is on the disk, and renames it. Whenever the program or the
/// machine stops, the old file or the new one is there, whole.
///
/// # Errors
/// A folder that is not there or cannot be written, or a full disk.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), DiskError> {
    let mut name = path.file_name().map_or_else(OsString::new, ToOwned::to_owned);
    name.push(".partial");
    let partial = path.with_file_name(name);
    let written = File::create(&partial).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    if let Err(source) = written.and_then(|()| fs::rename(&partial, path)) {
        // What is left of it helps nobody, and the first error is the one to report.
        let _ = fs::remove_file(&partial);
        return Err(DiskError::Io { path: path.to_owned(), source });
    }
    Ok(())
}

/// Checks that `needed` bytes can be written in a folder, which need not be there yet. Leaves nothing behind.
///
/// # Errors
/// A folder that cannot be made or written, or too little space.
pub fn check(folder: &Path, needed: u64) -> Result<(), DiskError> {
    let above = folder.ancestors().find(|above| above.exists());
    // Above a relative path is the current folder, which has no name.
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

/// Checks that a file can be written, before the work that makes it. Leaves nothing behind.
///
/// # Errors
/// A folder that is not there or cannot be written, or a folder where the file is to be.
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

/// Makes a folder, and those above it.
///
/// # Errors
/// A folder that cannot be made.
pub fn make(folder: &Path) -> Result<(), DiskError> {
    fs::create_dir_all(folder).map_err(DiskError::of(folder))
}

/// Bytes of the files in a folder and in those below it; 0 where there is none.
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
/// A file that cannot be read or is no model; the error names it.
pub fn read_model(path: &Path) -> Result<crate::weights::Model, ModelFileError> {
    let bytes = read(path)?;
    crate::weights::Model::from_bytes(&bytes)
        .map_err(|source| ModelFileError::Weights { path: path.to_owned(), source })
}

/// A model file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ModelFileError {
    /// It cannot be read.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// It is no model, or one with the wrong tensors.
    #[error("{path}: {source}")]
    Weights {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: crate::weights::WeightsError,
    },
}
