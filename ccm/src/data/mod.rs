//! Loads images as a [`Dataset`]: CIFAR-10, MNIST, folders and archives of image files, and generated shapes. [`encoded`]
//! holds latents and text embeddings of captioned images.
//!
//! [`load`] detects the kind of source from its path, converts every image to one [`ImageShape`] and keeps all images
//! in memory as bytes. [`open`] leaves them on disk. [`shapes()`] generates a data set without a download. Progress and skipped files are reported as
//! [`Event`]s. This module prints nothing and writes nothing to disk.
//!
//! | Source | Train | Held out |
//! |---|---|---|
//! | folder with MNIST IDX files, `.gz` or not | `train-*` | `t10k-*` |
//! | CIFAR-10 binary batches: folder, `.tar`, `.tar.gz`, `.tgz`, `.zip` | `data_batch_*.bin` | `test_batch.bin` |
//! | images with a folder `train` and a folder `test`, `val`, `valid` or `validation` | `train` | the other folder |
//! | tar archives with a class file for each image (`webdataset`) | `train*.tar` | `val*.tar` |
//! | any other folder or archive of images | the remaining images | every 20th of each class |
//!
//! The class of an image is the first folder in which paths differ, as in torchvision's `ImageFolder`.

mod archive;
mod body;
mod captions;
mod cifar;
mod classes;
mod colour;
mod content;
mod dataset;
mod decode;
pub mod encoded;
mod error;
mod examples;
mod files;
mod idx;
mod not_read;
mod shapes;
pub mod shards;
mod streamed;
mod webdataset;

use std::fmt;
use std::fs;
use std::path::Path;

use archive::Keep;
use rayon::prelude::*;

pub use dataset::{Dataset, ImageShape};
pub use encoded::Encoded;
pub use error::DataError;
pub use examples::Examples;
pub use not_read::NotRead;
pub use shapes::{SHAPE_CLASSES, shapes};
pub use streamed::{Read, Streamed};

/// Number of images decoded between two [`Event::Progress`].
const CHUNK: usize = 256;

/// Number of unreadable images listed in an error.
const EXAMPLES: usize = 3;

/// Which part of a source to load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Split {
    /// The images for training.
    Train,
    /// The images that are never trained on, for metrics.
    HeldOut,
}

impl fmt::Display for Split {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Train => "training",
            Self::HeldOut => "held-out",
        })
    }
}

/// Options of [`load`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// How many images may be unreadable and skipped before loading fails. By default 1 % of the split, but at least
    /// 10. A split without a readable image is always an error.
    pub max_unreadable: Option<usize>,
    /// Whether the classes are the captions of the images: `metadata.jsonl` or `metadata.csv`, or a `.txt` or `.json` file
    /// beside each image.
    pub captions: bool,
}

impl LoadOptions {
    fn allowed_unreadable(&self, images: usize) -> usize {
        self.max_unreadable.unwrap_or_else(|| (images / 100).max(10))
    }
}

/// Progress of [`load`]. Events arrive in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The source is being listed or, if it is an archive, read.
    Reading {
        /// The folder or archive.
        path: &'a Path,
    },
    /// The split is listed; no image is decoded yet.
    Found {
        /// Number of images in this split.
        images: usize,
        /// Number of classes in the whole source.
        classes: usize,
        /// Number of images in neither split: those outside the folders `train` and `test`, or without a class folder
        /// while other images have one.
        left_out: usize,
        /// Size of the data set in memory, in bytes; 0 if it stays on disk.
        bytes: u64,
    },
    /// Class folders contain subfolders, which do not become classes.
    Nested {
        /// Names of the classes.
        classes: &'a [String],
        /// A folder inside one of them.
        below: &'a str,
    },
    /// The source has files of other kinds, which are not read. Hidden files are not counted.
    NotRead {
        /// Number of files of each kind.
        files: &'a NotRead,
        /// The image formats that are read.
        formats: &'static str,
    },
    /// An image is skipped.
    Unreadable {
        /// Its path within the source.
        name: &'a str,
        /// Why the image cannot be read.
        reason: &'a str,
    },
    /// More images are decoded.
    Progress {
        /// Number of images decoded or skipped so far.
        done: usize,
        /// Number of images in this split.
        total: usize,
    },
    /// Loading is complete, but some images were skipped.
    Skipped {
        /// Number of unreadable images.
        unreadable: usize,
        /// Number of images in the data set.
        kept: usize,
    },
}

/// The images of one split before decoding.
struct Listing {
    classes: Vec<String>,
    /// A folder inside a class folder, if there is one.
    below: Option<String>,
    left_out: usize,
    not_read: NotRead,
    entries: Vec<Entry>,
}

/// An image before decoding.
struct Entry {
    /// Path within the source.
    name: String,
    /// Class index, below the number of classes.
    label: u32,
    content: content::Content,
}

/// Loads one split of `source`, a folder or an archive, as images of `shape`.
///
/// Every image is converted in the same way: EXIF orientation is applied; transparency is composited on white; colours
/// become grey (Rec. 709) or RGB; the largest centred region of the right aspect ratio is cropped and resized (Lanczos
/// to shrink, Catmull-Rom to enlarge). An image that already has `shape` is copied unchanged. Of an animation, the
/// first frame is used.
///
/// Images are sorted by path and classes by name. Neither depends on the order on disk or on the number of threads.
///
/// # Errors
/// See [`DataError`]: each error names the file, what was expected and what was found.
pub fn load(
    source: &Path,
    shape: ImageShape,
    split: Split,
    options: LoadOptions,
    observer: &mut dyn FnMut(Event<'_>),
) -> Result<Dataset, DataError> {
    shape.validate()?;
    observer(Event::Reading { path: source });
    let listing = list(source, split, options.captions, Keep::Bytes)?;
    assemble(source, listing, shape, split, options, observer)
}

/// Opens one split of `source`, a folder or an archive, as images of `shape` that are read and decoded when a batch needs them, in the
/// way of [`load`]. `buffer` is the number of images from which an epoch draws the next one.
///
/// # Errors
/// As [`load`]; images that are not on disk one by one.
pub fn open(
    source: &Path,
    shape: ImageShape,
    split: Split,
    buffer: usize,
    observer: &mut dyn FnMut(Event<'_>),
) -> Result<Streamed, DataError> {
    shape.validate()?;
    observer(Event::Reading { path: source });
    let listing = list(source, split, false, Keep::Places)?;
    let (images, classes) = (listing.entries.len(), listing.classes.len());
    observer(Event::Found { images, classes, left_out: listing.left_out, bytes: 0 });
    describe(&listing, observer);
    Streamed::new(source, listing, shape, buffer)
}

/// Reports the parts of a source that are not read.
fn describe(listing: &Listing, observer: &mut dyn FnMut(Event<'_>)) {
    if let Some(below) = &listing.below {
        observer(Event::Nested { classes: &listing.classes, below });
    }
    if !listing.not_read.is_empty() {
        observer(Event::NotRead { files: &listing.not_read, formats: not_read::FORMATS });
    }
}

/// Detects the kind of `source` and lists the images of `split`.
fn list(source: &Path, split: Split, captions: bool, keep: Keep) -> Result<Listing, DataError> {
    let metadata = fs::metadata(source).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            DataError::Missing { path: source.to_path_buf(), expected: "a folder or archive of images" }
        }
        _ => DataError::reading(source, error),
    })?;
    if metadata.is_dir() && !captions && idx::is_in(source) {
        return idx::list(source, split);
    }
    let mut files = if metadata.is_dir() {
        let files = files::in_folder(source)?;
        // A folder of images may have archives of other things.
        if captions || files.found.is_empty() { files::with_shards(source, keep)? } else { files }
    } else {
        let name = source.to_string_lossy().to_lowercase();
        if name.ends_with(".zip") {
            archive::in_zip(source, keep)?
        } else if [".tar", ".tar.gz", ".tgz"].iter().any(|ending| name.ends_with(ending)) {
            archive::in_tar(source, keep)?
        } else {
            return Err(DataError::Unrecognised { path: source.to_path_buf() });
        }
    };
    if captions {
        captions::list(source, files, split)
    } else if let Some(listing) = webdataset::list(source, &mut files, split)? {
        Ok(listing)
    } else if files.found.keys().any(|name| cifar::is_batch(name)) {
        cifar::list(source, files.found, split)
    } else {
        classes::list(source, files, split)
    }
}

/// Decodes the entries of `listing` in parallel, keeps their order and skips unreadable images.
fn assemble(
    source: &Path,
    listing: Listing,
    shape: ImageShape,
    split: Split,
    options: LoadOptions,
    observer: &mut dyn FnMut(Event<'_>),
) -> Result<Dataset, DataError> {
    let total = listing.entries.len();
    let size = shape.bytes();
    let bytes = total as u64 * (size + size_of::<u32>()) as u64;
    let (images, left_out) = (total, listing.left_out);
    observer(Event::Found { images, classes: listing.classes.len(), left_out, bytes });
    describe(&listing, observer);
    let Listing { classes, mut entries, .. } = listing;

    let mut pixels = shape.allocate(total)?;
    let mut labels = Vec::with_capacity(total);
    let mut unreadable = Vec::new();
    let allowed = options.allowed_unreadable(total);
    let mut done = 0;
    while done < total {
        let chunk = &mut entries[done..total.min(done + CHUNK)];
        let results: Vec<Result<(), String>> = chunk
            .par_iter_mut()
            .zip(pixels[done * size..].par_chunks_exact_mut(size))
            .map(|(entry, image)| decode::decode(std::mem::take(&mut entry.content), shape, image))
            .collect();
        for (offset, (entry, result)) in chunk.iter().zip(results).enumerate() {
            match result {
                Ok(()) => {
                    let (from, to) = ((done + offset) * size, labels.len() * size);
                    pixels.copy_within(from..from + size, to);
                    labels.push(entry.label);
                }
                Err(reason) => {
                    observer(Event::Unreadable { name: &entry.name, reason: &reason });
                    unreadable.push(format!("{} ({reason})", entry.name));
                }
            }
        }
        done += chunk.len();
        if unreadable.len() > allowed || (done == total && labels.is_empty()) {
            return Err(DataError::TooManyUnreadable {
                path: source.to_path_buf(),
                unreadable: unreadable.len(),
                total,
                allowed: allowed.min(total.saturating_sub(1)),
                examples: unreadable[..unreadable.len().min(EXAMPLES)].join(", "),
            });
        }
        observer(Event::Progress { done, total });
    }
    pixels.truncate(labels.len() * size);
    if !unreadable.is_empty() {
        observer(Event::Skipped { unreadable: unreadable.len(), kept: labels.len() });
    }
    Ok(Dataset::new(pixels, labels, classes, shape, split))
}

#[cfg(test)]
mod tests;
