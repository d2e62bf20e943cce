//! Images in: CIFAR-10, MNIST, folders and archives of pictures, and procedural shapes, as [`Dataset`]s.
//!
//! [`load`] recognises the source from its path, brings every image to one [`ImageShape`] and keeps them all
//! in memory as bytes; [`shapes()`] draws a data set that needs no download. What happens on the way is told as
//! [`Event`]s; nothing is printed here and nothing is written to disk.
//!
//! | Source | Train | Held out |
//! |---|---|---|
//! | folder with MNIST IDX files, `.gz` or not | `train-*` | `t10k-*` |
//! | CIFAR-10 binary batches: folder, `.tar`, `.tar.gz`, `.tgz`, `.zip` | `data_batch_*.bin` | `test_batch.bin` |
//! | images with a folder `train` and a folder `test`, `val`, `valid` or `validation` | the one | the others |
//! | any other folder or archive of images | the rest | every 20th of each class |
//!
//! The class of an image is the first folder that tells images apart, as in torchvision's `ImageFolder`.

mod archive;
mod cifar;
mod classes;
mod colour;
mod content;
mod dataset;
mod decode;
mod error;
mod files;
mod idx;
mod not_read;
mod outline;
mod shapes;

use std::fmt;
use std::fs;
use std::path::Path;

use rayon::prelude::*;

pub use dataset::{Dataset, ImageShape};
pub use error::DataError;
pub use not_read::NotRead;
pub use shapes::{SHAPE_CLASSES, shapes};

/// Images decoded between two [`Event::Progress`].
const CHUNK: usize = 256;

/// How many unreadable images an error quotes.
const EXAMPLES: usize = 3;

/// Which part of a source to load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Split {
    /// The images to learn from.
    Train,
    /// The images that training never sees, for metrics.
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

/// How forgiving [`load`] is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// How many images may be unreadable, and are skipped, before loading fails. By default one in a hundred
    /// of the split, and at least 10. Whatever the number, a split without one readable image is an error.
    pub max_unreadable: Option<usize>,
}

impl LoadOptions {
    fn allowed_unreadable(&self, images: usize) -> usize {
        self.max_unreadable.unwrap_or_else(|| (images / 100).max(10))
    }
}

/// What [`load`] has to say while it works, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The source is being listed or, if it is an archive, read.
    Reading {
        /// The folder or archive.
        path: &'a Path,
    },
    /// The images of the split are known and none is decoded yet.
    Found {
        /// Images in this split.
        images: usize,
        /// Classes in the whole source.
        classes: usize,
        /// Images in neither split: beside the folders `train` and `test`, or loose where others have a class
        /// folder.
        left_out: usize,
        /// Memory that the data set will take, in bytes.
        bytes: u64,
    },
    /// There are folders below the class folders, which are not classes.
    Nested {
        /// Names of the classes.
        classes: &'a [String],
        /// A folder below one of them.
        below: &'a str,
    },
    /// There are files that are not read, hidden ones aside.
    NotRead {
        /// How many of each kind.
        files: &'a NotRead,
        /// The image formats that are read.
        formats: &'static str,
    },
    /// An image was skipped.
    Unreadable {
        /// Its path within the source.
        name: &'a str,
        /// Why it cannot be read.
        reason: &'a str,
    },
    /// Some more images are decoded.
    Progress {
        /// Images decoded or skipped so far.
        done: usize,
        /// Images in this split.
        total: usize,
    },
    /// Everything is read, but not every image made it. Sent only if some were skipped.
    Skipped {
        /// How many were unreadable.
        unreadable: usize,
        /// How many are in the data set.
        kept: usize,
    },
}

/// The images of one split, not decoded yet.
struct Listing {
    classes: Vec<String>,
    /// A folder below a class folder, if there is any.
    below: Option<String>,
    left_out: usize,
    not_read: NotRead,
    entries: Vec<Entry>,
}

/// One image before decoding.
struct Entry {
    /// Its path within the source.
    name: String,
    /// Below the number of classes.
    label: u32,
    content: content::Content,
}

/// Loads one split of `source`, which is a folder or an archive, as images of `shape`.
///
/// Every image is brought to `shape` the same way: EXIF orientation applied, transparency composited on
/// white, grey or RGB as asked for (grey by the Rec. 709 weights), the largest centred part of the right
/// aspect cut out, and that resized (Lanczos when it shrinks, Catmull-Rom when it grows). An image that
/// already has the shape is taken byte for byte. Of an animation, the first frame counts.
///
/// The images are in the order of their paths, and the classes in the order of their names, whatever the
/// order on disk and the number of threads.
///
/// # Errors
/// See [`DataError`]; each names the file, what was expected and what was found.
pub fn load(
    source: &Path,
    shape: ImageShape,
    split: Split,
    options: LoadOptions,
    observer: &mut dyn FnMut(Event<'_>),
) -> Result<Dataset, DataError> {
    shape.validate()?;
    observer(Event::Reading { path: source });
    let listing = list(source, split)?;
    assemble(source, listing, shape, split, options, observer)
}

/// Recognises `source` and lists the images of `split`.
fn list(source: &Path, split: Split) -> Result<Listing, DataError> {
    let metadata = fs::metadata(source).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            DataError::Missing { path: source.to_path_buf(), expected: "a folder or archive of images" }
        }
        _ => DataError::reading(source, error),
    })?;
    if metadata.is_dir() && idx::is_in(source) {
        return idx::list(source, split);
    }
    let files = if metadata.is_dir() {
        files::in_folder(source)?
    } else {
        let name = source.to_string_lossy().to_lowercase();
        if name.ends_with(".zip") {
            archive::in_zip(source)?
        } else if [".tar", ".tar.gz", ".tgz"].iter().any(|ending| name.ends_with(ending)) {
            archive::in_tar(source)?
        } else {
            return Err(DataError::Unrecognised { path: source.to_path_buf() });
        }
    };
    if files.found.keys().any(|name| cifar::is_batch(name)) {
        cifar::list(source, files.found, split)
    } else {
        classes::list(source, files, split)
    }
}

/// Decodes the entries of `listing`, in parallel and in order, skipping what cannot be read.
fn assemble(
    source: &Path,
    listing: Listing,
    shape: ImageShape,
    split: Split,
    options: LoadOptions,
    observer: &mut dyn FnMut(Event<'_>),
) -> Result<Dataset, DataError> {
    let Listing { classes, below, left_out, not_read, mut entries } = listing;
    let total = entries.len();
    let size = shape.bytes();
    let bytes = total as u64 * (size + size_of::<u32>()) as u64;
    observer(Event::Found { images: total, classes: classes.len(), left_out, bytes });
    if let Some(below) = &below {
        observer(Event::Nested { classes: &classes, below });
    }
    if !not_read.is_empty() {
        observer(Event::NotRead { files: &not_read, formats: not_read::FORMATS });
    }

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
