//! The files of a source before they are decoded, and how they are read without trusting their size.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use super::ImageShape;
use super::files::Kind;
use super::not_read::NotRead;

/// The largest encoded image or CIFAR-10 batch that is read, in bytes.
pub(super) const LARGEST_FILE: u64 = 64 << 20;

/// The images of a source, or parts of CIFAR-10, by their path within it: sorted, `/` between the parts of a path.
pub(super) type Found = BTreeMap<String, Content>;

/// A folder or archive whose files are listed.
#[derive(Debug, Default)]
pub(super) struct Source {
    /// The files that are read.
    pub(super) found: Found,
    /// The files that are not.
    pub(super) not_read: NotRead,
    /// How many files there are of each path that occurs more than once.
    pub(super) copies: BTreeMap<String, usize>,
}

impl Source {
    /// Adds a file. Where a path is there already, as it can be in an archive, the later file gets a number behind its
    /// name, so that neither is lost.
    pub(super) fn add(&mut self, kind: Kind, content: impl FnOnce() -> Content) {
        match kind {
            Kind::Hidden => {}
            Kind::Other(ending) => self.not_read.add(ending),
            Kind::Data(name) => {
                let mut free = name.clone();
                while self.found.contains_key(&free) {
                    let number = self.copies.entry(name.clone()).or_insert(1);
                    *number += 1;
                    free = format!("{name} ({number})");
                }
                self.found.insert(free, content());
            }
        }
    }
}

/// An image that is not decoded yet.
#[derive(Debug)]
pub(super) enum Content {
    /// A file to be read.
    File(PathBuf),
    /// A whole encoded file.
    Encoded(Vec<u8>),
    /// Plain pixels, `[C, H, W]` with `C` 1 or 3; there are as many as `shape` says.
    Planes { shape: ImageShape, pixels: Vec<u8> },
    /// A file that cannot be read, and why.
    Refused(String),
}

impl Default for Content {
    fn default() -> Self {
        Self::Refused("it is already decoded".to_owned())
    }
}

impl From<Result<Vec<u8>, String>> for Content {
    fn from(bytes: Result<Vec<u8>, String>) -> Self {
        match bytes {
            Ok(bytes) => Self::Encoded(bytes),
            Err(reason) => Self::Refused(reason),
        }
    }
}

impl Content {
    /// The bytes of a file or of an archive's entry, or why there are none.
    pub(super) fn into_bytes(self) -> Result<Vec<u8>, String> {
        match self {
            Self::File(path) => {
                let read = File::open(path).and_then(read_bounded);
                read.map_err(|error| error.to_string()).flatten()
            }
            Self::Encoded(bytes) | Self::Planes { pixels: bytes, .. } => Ok(bytes),
            Self::Refused(reason) => Err(reason),
        }
    }
}

/// The bytes of `reader`, or why there are too many of them, whatever any header claims.
pub(super) fn read_bounded(reader: impl Read) -> io::Result<Result<Vec<u8>, String>> {
    let mut bytes = Vec::new();
    reader.take(LARGEST_FILE + 1).read_to_end(&mut bytes)?;
    Ok(if bytes.len() as u64 > LARGEST_FILE { Err(too_large()) } else { Ok(bytes) })
}

/// Why a file above [`LARGEST_FILE`] is refused.
pub(super) fn too_large() -> String {
    format!("it is larger than {} MiB", LARGEST_FILE >> 20)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn two_files_of_one_path_are_both_kept() {
        let mut source = Source::default();
        for bytes in [1, 2, 3] {
            source.add(Kind::Data("a/x.png".into()), || Content::Encoded(vec![bytes]));
        }
        let names: Vec<&str> = source.found.keys().map(String::as_str).collect();
        assert_eq!(names, ["a/x.png", "a/x.png (2)", "a/x.png (3)"]);
    }

    #[test]
    fn reading_stops_at_the_limit() {
        let endless = io::repeat(7);
        assert!(read_bounded(endless).unwrap().unwrap_err().contains("64 MiB"));
        assert_eq!(read_bounded(&[1u8, 2][..]).unwrap(), Ok(vec![1, 2]));
    }
}
