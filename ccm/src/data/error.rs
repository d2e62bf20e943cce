//! What can be wrong with a data set: one variant per cause, one clear line each.
//!
//! Every message names the file at fault, what was expected and what was found. A single picture that cannot
//! be read is not an error here: it is skipped and reported as an event until there are too many of them.

use std::io;
use std::path::{Path, PathBuf};

use super::Split;
use super::not_read::{FORMATS, NotRead};

/// Why a data set could not be loaded or drawn.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A path that should exist does not.
    #[error("{} does not exist: expected {expected}", path.display())]
    Missing {
        /// The path that was looked for.
        path: PathBuf,
        /// What should have been there.
        expected: &'static str,
    },
    /// A file whose name says nothing about how to read it.
    #[error(
        "{} is not a data set: expected a folder, or a file ending in .zip, .tar, .tar.gz or .tgz",
        path.display()
    )]
    Unrecognised {
        /// The file.
        path: PathBuf,
    },
    /// A folder or archive that holds nothing to train on.
    #[error(
        "{} holds no images: expected {FORMATS}, MNIST IDX files or CIFAR-10 binary batches, found {}",
        path.display(),
        if not_read.is_empty() { "no files".to_owned() } else { not_read.to_string() }
    )]
    NoImages {
        /// The folder or archive.
        path: PathBuf,
        /// What it holds instead.
        not_read: NotRead,
    },
    /// A source with images, but none for the split that was asked for.
    #[error("{} has no {split} images: expected {expected}", path.display())]
    EmptySplit {
        /// The folder or archive.
        path: PathBuf,
        /// The split that is empty.
        split: Split,
        /// What would have given it images.
        expected: &'static str,
    },
    /// A file that ends before its contents do.
    #[error("{} is truncated: {detail}", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// What was expected and what was found.
        detail: String,
    },
    /// A file whose contents contradict its format, its own header or its companion file.
    #[error("{}: {what}: expected {expected}, found {found}", path.display())]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// Which quantity disagrees.
        what: &'static str,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A label outside the classes of its format.
    #[error("{}: label of record {record}: expected 0 to {}, found {found}", path.display(), classes - 1)]
    BadLabel {
        /// The file that holds the label.
        path: PathBuf,
        /// Which record, counted from 0.
        record: usize,
        /// How many classes the format has.
        classes: usize,
        /// The label.
        found: u8,
    },
    /// More unreadable images than the options allow, or nothing but unreadable images.
    #[error(
        "{}: {unreadable} of {total} images cannot be read, expected at most {allowed}; the first: {examples}",
        path.display()
    )]
    TooManyUnreadable {
        /// The folder or archive.
        path: PathBuf,
        /// How many were unreadable when loading stopped.
        unreadable: usize,
        /// How many images the split has.
        total: usize,
        /// How many were allowed to be.
        allowed: usize,
        /// The first few, each with its reason.
        examples: String,
    },
    /// An archive that is whole but damaged, or that uses something this program cannot read.
    #[error("{} cannot be read as {expected}: {reason}", path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// What it was read as: `a zip archive`.
        expected: &'static str,
        /// What the archive reader said.
        reason: String,
    },
    /// An image shape that no data set can have.
    #[error(
        "image shape {channels}x{height}x{width}: expected 1 or 3 channels and 1 to {largest} pixels a side"
    )]
    Shape {
        /// Channels asked for.
        channels: usize,
        /// Height asked for.
        height: usize,
        /// Width asked for.
        width: usize,
        /// The longest side allowed.
        largest: usize,
    },
    /// More pixels than this machine will hand out memory for.
    #[error("{images} images of {channels}x{height}x{width} do not fit in memory")]
    TooLarge {
        /// How many images.
        images: usize,
        /// Channels of one image.
        channels: usize,
        /// Height of one image.
        height: usize,
        /// Width of one image.
        width: usize,
    },
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

impl DataError {
    /// An error met while reading `path`; a premature end is [`DataError::Truncated`].
    pub(super) fn reading(path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::UnexpectedEof => {
                Self::Truncated { path, detail: "the file ends in the middle of its contents".to_owned() }
            }
            _ => Self::Io { path, source },
        }
    }

    /// A quantity of `path` that is not what it should be.
    pub(super) fn mismatch(
        path: &Path,
        what: &'static str,
        expected: impl ToString,
        found: impl ToString,
    ) -> Self {
        Self::Mismatch {
            path: path.to_path_buf(),
            what,
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }
}
