//! CIFAR-10 in its binary version: batches of records, each a label byte and 3072 bytes of planar RGB.
//!
//! Format: <https://www.cs.toronto.edu/~kriz/cifar.html>. The files may come from a folder or an archive.

use std::path::Path;

use super::content::{Content, Found};
use super::{DataError, Entry, ImageShape, Listing, NotRead, Split};

/// Shape of every image.
const SHAPE: ImageShape = ImageShape { channels: 3, height: 32, width: 32 };

/// Size of a record in bytes: the label and the image.
const RECORD: usize = 1 + 3 * 32 * 32;

/// The file with the names of the classes, one per line.
const META: &str = "batches.meta.txt";

/// Names of the classes, used if [`META`] is missing.
const CLASSES: [&str; 10] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

/// The split of the batch file `name`; `None` for other files.
fn split_of(name: &str) -> Option<Split> {
    let file = name.rsplit('/').next().unwrap_or(name);
    if file == "test_batch.bin" {
        return Some(Split::HeldOut);
    }
    let number = file.strip_prefix("data_batch_")?.strip_suffix(".bin")?;
    (!number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())).then_some(Split::Train)
}

/// Whether `name` is a batch file.
pub(super) fn is_batch(name: &str) -> bool {
    split_of(name).is_some()
}

/// Whether `name` is a batch file or the file of class names.
pub(super) fn is_part(name: &str) -> bool {
    is_batch(name) || name.rsplit('/').next() == Some(META)
}

/// Lists the images of `split` in the batches among `found`, in the order of their files.
///
/// # Errors
/// [`DataError::Truncated`] if a file is not a whole number of records, [`DataError::Mismatch`] if the number of class
/// names is not 10, [`DataError::BadLabel`], [`DataError::EmptySplit`].
pub(super) fn list(source: &Path, found: Found, split: Split) -> Result<Listing, DataError> {
    let mut classes: Vec<String> = CLASSES.map(str::to_owned).to_vec();
    let mut entries = Vec::new();
    for (name, content) in found {
        let path = source.join(&name);
        let is_meta = !is_batch(&name) && is_part(&name);
        if !is_meta && split_of(&name) != Some(split) {
            continue;
        }
        let bytes = content.into_bytes().map_err(|reason| DataError::Archive {
            path: path.clone(),
            expected: "a CIFAR-10 batch",
            reason,
        })?;
        if is_meta {
            classes = class_names(&path, &bytes)?;
        } else {
            entries.extend(records(&path, &name, &bytes)?);
        }
    }
    if entries.is_empty() {
        let expected = match split {
            Split::Train => "data_batch_1.bin to data_batch_5.bin",
            Split::HeldOut => "test_batch.bin",
        };
        return Err(DataError::EmptySplit { path: source.to_path_buf(), split, expected });
    }
    Ok(Listing { classes, below: None, left_out: 0, not_read: NotRead::default(), entries })
}

fn class_names(path: &Path, bytes: &[u8]) -> Result<Vec<String>, DataError> {
    let text = String::from_utf8_lossy(bytes);
    let names: Vec<String> =
        text.lines().map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
    if names.len() != CLASSES.len() {
        return Err(DataError::mismatch(path, "class names", CLASSES.len(), names.len()));
    }
    Ok(names)
}

fn records(path: &Path, name: &str, bytes: &[u8]) -> Result<Vec<Entry>, DataError> {
    if bytes.is_empty() || !bytes.len().is_multiple_of(RECORD) {
        return Err(DataError::Truncated {
            path: path.to_path_buf(),
            detail: format!("expected records of {RECORD} bytes, found {} bytes", bytes.len()),
        });
    }
    let record = |(index, record): (usize, &[u8])| match record {
        [label, pixels @ ..] if usize::from(*label) < CLASSES.len() => Ok(Entry {
            name: format!("{name}[{index}]"),
            label: u32::from(*label),
            content: Content::Planes { shape: SHAPE, pixels: pixels.to_vec() },
        }),
        _ => Err(DataError::BadLabel {
            path: path.to_path_buf(),
            record: index,
            classes: CLASSES.len(),
            found: record[0],
        }),
    };
    bytes.chunks_exact(RECORD).enumerate().map(record).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    /// A batch in which image `k` has label `labels[k]` and planes filled with `k`, `k + 100` and `k + 200`.
    fn batch(labels: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (index, label) in labels.iter().enumerate() {
            bytes.push(*label);
            for offset in [0, 100, 200] {
                bytes.extend([index as u8 + offset; 1024]);
            }
        }
        bytes
    }

    fn found(files: &[(&str, Vec<u8>)]) -> Found {
        files.iter().map(|(name, bytes)| (name.to_string(), Content::Encoded(bytes.clone()))).collect()
    }

    #[test]
    fn batches_belong_to_the_split_of_their_name_and_hold_records() {
        let files = [
            ("c/data_batch_2.bin", batch(&[9])),
            ("c/data_batch_1.bin", batch(&[3, 0])),
            ("c/test_batch.bin", batch(&[5])),
        ];
        let train = list(Path::new("c"), found(&files), Split::Train).unwrap();
        assert_eq!(train.entries.iter().map(|entry| entry.label).collect::<Vec<_>>(), [3, 0, 9]);
        assert_eq!(train.classes[6], "frog");
        let Content::Planes { pixels, .. } = &train.entries[1].content else { panic!("not planes") };
        assert_eq!((pixels.len(), pixels[0], pixels[1024], pixels[3071]), (3072, 1, 101, 201));
        let held_out = list(Path::new("c"), found(&files), Split::HeldOut).unwrap();
        assert_eq!(held_out.entries.iter().map(|entry| entry.label).collect::<Vec<_>>(), [5]);
    }

    #[test]
    fn class_names_come_from_the_meta_file_which_must_have_ten() {
        let names = |text: &str| {
            let files = [("batches.meta.txt", text.into()), ("test_batch.bin", batch(&[0]))];
            list(Path::new("c"), found(&files), Split::HeldOut).map(|listing| listing.classes)
        };
        assert_eq!(names("a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n\n").unwrap()[9], "j");
        let error = names("a\nb\n").unwrap_err().to_string();
        assert!(error.contains("batches.meta.txt") && error.contains("expected 10, found 2"), "{error}");
    }

    #[test]
    fn a_label_above_nine_is_reported_with_its_record() {
        let files = [("data_batch_1.bin", batch(&[1, 2, 10]))];
        let error = list(Path::new("c"), found(&files), Split::Train).err().unwrap();
        assert!(matches!(error, DataError::BadLabel { record: 2, found: 10, .. }));
        assert!(error.to_string().contains("data_batch_1.bin"), "{error}");
        assert!(error.to_string().contains("0 to 9"), "{error}");
    }

    #[test]
    fn an_incomplete_record_is_reported_as_truncated() {
        let mut bytes = batch(&[1, 2]);
        bytes.pop();
        let error = list(Path::new("c"), found(&[("test_batch.bin", bytes)]), Split::HeldOut).err().unwrap();
        assert!(error.to_string().contains("test_batch.bin is truncated"), "{error}");
        assert!(error.to_string().contains("6145"), "{error}");
    }

    #[test]
    fn a_missing_test_batch_is_an_empty_split() {
        let files = [("data_batch_1.bin", batch(&[1]))];
        let error = list(Path::new("c"), found(&files), Split::HeldOut).err().unwrap();
        assert!(error.to_string().contains("no held-out images: expected test_batch.bin"), "{error}");
    }
}
