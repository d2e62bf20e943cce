//! Errors of loading a data set, one variant per cause.
//!
//! Every message names the file, what was expected and what was found. A single unreadable image is not an error: it is
//! skipped and reported as an event, until too many are unreadable.

use std::io;
use std::path::{Path, PathBuf};

use super::Split;
use super::not_read::{FORMATS, NotRead};

/// Why a data set cannot be loaded or generated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A path does not exist.
    #[error("{} does not exist: expected {expected}", path.display())]
    Missing {
        /// The missing path.
        path: PathBuf,
        /// What the path should be.
        expected: &'static str,
    },
    /// The name of a file does not reveal its format.
    #[error(
        "{} is not a data set: expected a folder, or a file ending in .zip, .tar, .tar.gz or .tgz",
        path.display()
    )]
    Unrecognised {
        /// The file.
        path: PathBuf,
    },
    /// A folder or archive has no images.
    #[error(
        "{} holds no images: expected {FORMATS}, MNIST IDX files or CIFAR-10 binary batches, found {}",
        path.display(),
        if not_read.is_empty() { "no files".to_owned() } else { not_read.to_string() }
    )]
    NoImages {
        /// The folder or archive.
        path: PathBuf,
        /// The files that it has instead.
        not_read: NotRead,
    },
    /// Images that cannot be read one by one.
    #[error(
        "{}: expected a folder, .zip or .tar of image files, as data.streamed is true; `distill shard` makes such archives",
        path.display()
    )]
    NotOnDisk {
        /// The source.
        path: PathBuf,
    },
    /// A source has images, but none in the requested split.
    #[error("{} has no {split} images: expected {expected}", path.display())]
    EmptySplit {
        /// The folder or archive.
        path: PathBuf,
        /// The split that is empty.
        split: Split,
        /// What the source would need.
        expected: &'static str,
    },
    /// A source has images, but no captions.
    #[error(
        "{}: {images} images without captions: expected metadata.jsonl or metadata.csv with file_name and text, or a .txt \
         file beside each image",
        path.display()
    )]
    NoCaptions {
        /// The folder or archive.
        path: PathBuf,
        /// Number of images.
        images: usize,
    },
    /// A file of captions cannot be read.
    #[error("{}: {name}: {reason}", path.display())]
    Captions {
        /// The folder or archive.
        path: PathBuf,
        /// The file in it.
        name: String,
        /// What was expected, or the reader's message.
        reason: String,
    },
    /// A file ends too early.
    #[error("{} is truncated: {detail}", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// What was expected and what was found.
        detail: String,
    },
    /// The contents of a file contradict its format, its header or its companion file.
    #[error("{}: {what}: expected {expected}, found {found}", path.display())]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// The quantity that differs.
        what: &'static str,
        /// The expected value.
        expected: String,
        /// The actual value.
        found: String,
    },
    /// A label is not a class of its format.
    #[error("{}: label of record {record}: expected 0 to {}, found {found}", path.display(), classes - 1)]
    BadLabel {
        /// The file that holds the label.
        path: PathBuf,
        /// Index of the record, from 0.
        record: usize,
        /// Number of classes of the format.
        classes: usize,
        /// The label.
        found: u8,
    },
    /// Too many images are unreadable, or all of them.
    #[error(
        "{}: {unreadable} of {total} images cannot be read, expected at most {allowed}; the first: {examples}",
        path.display()
    )]
    TooManyUnreadable {
        /// The folder or archive.
        path: PathBuf,
        /// Number of unreadable images when loading stopped.
        unreadable: usize,
        /// Number of images in the split.
        total: usize,
        /// Number of unreadable images that is allowed.
        allowed: usize,
        /// The first few, each with its reason.
        examples: String,
    },
    /// An archive is damaged or uses an unsupported feature.
    #[error("{} cannot be read as {expected}: {reason}", path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// The format it was read as, such as `a zip archive`.
        expected: &'static str,
        /// Message of the archive reader.
        reason: String,
    },
    /// The image shape is not supported.
    #[error(
        "image shape {channels}x{height}x{width}: expected 1 or 3 channels and 1 to {largest} pixels a side"
    )]
    Shape {
        /// Requested channels.
        channels: usize,
        /// Requested height.
        height: usize,
        /// Requested width.
        width: usize,
        /// Largest height or width.
        largest: usize,
    },
    /// The images do not fit in memory.
    #[error(
        "{images} images of {channels}x{height}x{width} do not fit in memory; with data.streamed=true a run reads them from disk"
    )]
    TooLarge {
        /// Number of images.
        images: usize,
        /// Channels of one image.
        channels: usize,
        /// Height of one image.
        height: usize,
        /// Width of one image.
        width: usize,
    },
    /// An error of the operating system.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Message of the operating system.
        source: io::Error,
    },
}

impl DataError {
    /// Converts an error of reading `path`; an unexpected end of file becomes [`DataError::Truncated`].
    pub(super) fn reading(path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::UnexpectedEof => {
                Self::Truncated { path, detail: "the file ends in the middle of its contents".to_owned() }
            }
            _ => Self::Io { path, source },
        }
    }

    /// A [`DataError::Mismatch`] of `path`.
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
