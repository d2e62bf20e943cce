//! Reads MNIST and data sets in its format: IDX files of grey images and of labels, with or without gzip.
//!
//! A header is `0, 0, type, rank` and one big-endian `u32` per dimension; the type is always 8, unsigned bytes. Format:
//! <http://yann.lecun.com/exdb/mnist/>. The dimensions are compared with the size of the contents.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::content::Content;
use super::files::open_maybe_gzip;
use super::{DataError, Entry, ImageShape, Listing, NotRead, Split};

/// Number of classes: the digits.
const CLASSES: usize = 10;

/// Largest height or width that is accepted, in pixels.
const LARGEST_SIDE: u32 = 16384;

/// The two files of a split.
#[derive(Clone, Copy)]
enum Part {
    Images,
    Labels,
}

impl Part {
    /// The rest of these files' names after `train` or `t10k`.
    fn stems(self) -> [&'static str; 2] {
        match self {
            Self::Images => ["-images-idx3-ubyte", "-images.idx3-ubyte"],
            Self::Labels => ["-labels-idx1-ubyte", "-labels.idx1-ubyte"],
        }
    }
}

/// Whether `folder` has the images of a split.
pub(super) fn is_in(folder: &Path) -> bool {
    [Split::Train, Split::HeldOut].into_iter().any(|split| find(folder, split, Part::Images).is_some())
}

fn find(folder: &Path, split: Split, part: Part) -> Option<PathBuf> {
    let start = match split {
        Split::Train => "train",
        Split::HeldOut => "t10k",
    };
    part.stems()
        .into_iter()
        .flat_map(|stem| ["", ".gz"].map(|ending| folder.join(format!("{start}{stem}{ending}"))))
        .find(|path| path.is_file())
}

/// Lists the images of `split` in `folder`.
///
/// # Errors
/// [`DataError::EmptySplit`] and [`DataError::Missing`] for missing files; [`DataError::Truncated`],
/// [`DataError::Mismatch`] and [`DataError::BadLabel`] for invalid files.
pub(super) fn list(folder: &Path, split: Split) -> Result<Listing, DataError> {
    let images_path = find(folder, split, Part::Images).ok_or_else(|| DataError::EmptySplit {
        path: folder.to_path_buf(),
        split,
        expected: match split {
            Split::Train => "a file train-images-idx3-ubyte.gz",
            Split::HeldOut => "a file t10k-images-idx3-ubyte.gz",
        },
    })?;
    let labels_path = find(folder, split, Part::Labels).ok_or_else(|| DataError::Missing {
        path: PathBuf::from(
            images_path.to_string_lossy().replace("images", "labels").replace("idx3", "idx1"),
        ),
        expected: "the labels of the images in the same folder",
    })?;
    let ([count, height, width], pixels) = read(&images_path)?;
    let ([label_count], labels) = read(&labels_path)?;
    if label_count != count {
        return Err(DataError::mismatch(&labels_path, "number of labels", count, label_count));
    }
    if let Some(record) = labels.iter().position(|label| usize::from(*label) >= CLASSES) {
        let found = labels[record];
        return Err(DataError::BadLabel { path: labels_path, record, classes: CLASSES, found });
    }
    let shape = ImageShape { channels: 1, height: height as usize, width: width as usize };
    let file = images_path.file_name().map_or(images_path.to_string_lossy(), |name| name.to_string_lossy());
    let entries = pixels.chunks_exact(shape.bytes()).zip(labels).enumerate();
    let entries = entries.map(|(index, (pixels, label))| Entry {
        name: format!("{file}[{index}]"),
        label: u32::from(label),
        content: Content::Planes { shape, pixels: pixels.to_vec() },
    });
    Ok(Listing {
        classes: (0..CLASSES).map(|digit| digit.to_string()).collect(),
        below: None,
        left_out: 0,
        not_read: NotRead::default(),
        entries: entries.collect(),
    })
}

/// The dimensions and the bytes of an IDX file of rank `RANK`. The number of bytes is the product of the dimensions.
fn read<const RANK: usize>(path: &Path) -> Result<([u32; RANK], Vec<u8>), DataError> {
    let failed = |error| DataError::reading(path, error);
    let mut file = open_maybe_gzip(path)?;
    let word = |file: &mut dyn Read| {
        let mut bytes = [0; 4];
        file.read_exact(&mut bytes).map(|()| u32::from_be_bytes(bytes)).map_err(failed)
    };
    let magic = word(&mut file)?;
    let expected_magic = 0x800 + RANK as u32;
    if magic != expected_magic {
        let hex = |number| format!("{number:#010x}");
        return Err(DataError::mismatch(path, "magic number", hex(expected_magic), hex(magic)));
    }
    let mut dimensions = [0; RANK];
    for dimension in &mut dimensions {
        *dimension = word(&mut file)?;
    }
    if dimensions.contains(&0) {
        return Err(DataError::mismatch(path, "dimensions", "none of them zero", format!("{dimensions:?}")));
    }
    if dimensions[1..].iter().any(|side| *side > LARGEST_SIDE) {
        let expected = format!("at most {LARGEST_SIDE} a side");
        return Err(DataError::mismatch(path, "dimensions", expected, format!("{dimensions:?}")));
    }
    // At most 2^32 * 2^14 * 2^14, so no overflow.
    let claimed = dimensions.iter().map(|dimension| u64::from(*dimension)).product::<u64>();
    let mut bytes = Vec::new();
    file.take(claimed + 1).read_to_end(&mut bytes).map_err(failed)?;
    let held = bytes.len() as u64;
    if held < claimed {
        return Err(DataError::Truncated {
            path: path.to_path_buf(),
            detail: format!("expected {claimed} bytes for dimensions {dimensions:?}, found {held}"),
        });
    }
    if held > claimed {
        let expected = format!("{claimed} for dimensions {dimensions:?}");
        return Err(DataError::mismatch(path, "bytes after the header", expected, "more"));
    }
    Ok((dimensions, bytes))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::fs;
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use tempfile::TempDir;

    use super::*;

    /// Two images of 2x3 with values from 0, written by hand from the format's description.
    const IMAGES: &[u8] =
        &[0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 3, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];
    const LABELS: &[u8] = &[0, 0, 8, 1, 0, 0, 0, 2, 7, 4];

    fn folder_of(images: &[u8], labels: &[u8]) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("train-images-idx3-ubyte"), images).unwrap();
        fs::write(folder.path().join("train-labels-idx1-ubyte"), labels).unwrap();
        folder
    }

    fn error_of(images: &[u8], labels: &[u8]) -> String {
        let folder = folder_of(images, labels);
        list(folder.path(), Split::Train).err().unwrap().to_string()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn images_and_labels_are_read_under_every_file_name() {
        for (name, ending, bytes) in [
            ("train-images-idx3-ubyte", "", IMAGES.to_vec()),
            ("train-images.idx3-ubyte", "", IMAGES.to_vec()),
            ("train-images-idx3-ubyte", ".gz", gzip(IMAGES)),
        ] {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join(format!("{name}{ending}")), bytes).unwrap();
            fs::write(folder.path().join("train-labels-idx1-ubyte.gz"), gzip(LABELS)).unwrap();
            assert!(is_in(folder.path()));
            let listing = list(folder.path(), Split::Train).unwrap();
            assert_eq!(listing.entries.iter().map(|entry| entry.label).collect::<Vec<_>>(), [7, 4]);
            let Content::Planes { shape, pixels } = &listing.entries[1].content else { panic!("not planes") };
            assert_eq!((shape.height, shape.width, pixels.as_slice()), (2, 3, &[6, 7, 8, 9, 10, 11][..]));
        }
    }

    #[test]
    fn a_header_with_too_large_dimensions_is_reported_with_both_sizes() {
        let mut huge = IMAGES.to_vec();
        huge[4..8].copy_from_slice(&[255; 4]);
        let error = error_of(&huge, LABELS);
        assert!(error.contains("train-images-idx3-ubyte is truncated"), "{error}");
        assert!(error.contains("expected 25769803770 bytes") && error.contains("found 12"), "{error}");
        huge[8..12].copy_from_slice(&[255; 4]);
        assert!(error_of(&huge, LABELS).contains("expected at most 16384 a side"));
    }

    #[test]
    fn every_shorter_file_is_truncated_and_a_longer_one_is_a_mismatch() {
        for length in 0..IMAGES.len() {
            let error = error_of(&IMAGES[..length], LABELS);
            assert!(error.contains("train-images-idx3-ubyte is truncated"), "{length}: {error}");
        }
        for length in 0..LABELS.len() {
            let error = error_of(IMAGES, &LABELS[..length]);
            assert!(error.contains("train-labels-idx1-ubyte is truncated"), "{length}: {error}");
        }
        let zipped = gzip(IMAGES);
        for length in 2..zipped.len() {
            let error = error_of(&zipped[..length], LABELS);
            assert!(error.contains("train-images-idx3-ubyte is truncated"), "{length}: {error}");
        }
        assert!(error_of(&[IMAGES, &[0]].concat(), LABELS).contains("expected 12 for dimensions [2, 2, 3]"));
    }

    #[test]
    fn a_wrong_magic_number_is_reported() {
        let error = error_of(LABELS, LABELS);
        assert!(error.contains("magic number: expected 0x00000803, found 0x00000801"), "{error}");
    }

    #[test]
    fn the_number_of_labels_must_match_and_labels_must_be_below_ten() {
        let error = error_of(IMAGES, &[0, 0, 8, 1, 0, 0, 0, 1, 7]);
        assert!(error.contains("number of labels: expected 2, found 1"), "{error}");
        let error = error_of(IMAGES, &[0, 0, 8, 1, 0, 0, 0, 2, 7, 10]);
        assert!(error.contains("train-labels-idx1-ubyte: label of record 1"), "{error}");
        assert!(error.contains("expected 0 to 9, found 10"), "{error}");
    }

    #[test]
    fn missing_files_are_named() {
        let folder = folder_of(IMAGES, LABELS);
        let error = list(folder.path(), Split::HeldOut).err().unwrap().to_string();
        assert!(error.contains("no held-out images") && error.contains("t10k-images-idx3-ubyte"), "{error}");
        fs::remove_file(folder.path().join("train-labels-idx1-ubyte")).unwrap();
        let error = list(folder.path(), Split::Train).err().unwrap().to_string();
        assert!(error.contains("train-labels-idx1-ubyte does not exist"), "{error}");
    }
}
