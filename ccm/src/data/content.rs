//! What stands behind the names of a source before anything is decoded, and how it is read without trusting its
//! size. What the bytes mean is not asked here.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use super::ImageShape;

/// The largest encoded image or CIFAR-10 batch that is read, in bytes.
pub(super) const LARGEST_FILE: u64 = 64 << 20;

/// The files of a source by their path within it, `/` between its parts: sorted, and each path once.
pub(super) type Found = BTreeMap<String, Content>;

/// An image that is not decoded yet.
#[derive(Debug)]
pub(super) enum Content {
    /// A file to be read.
    File(PathBuf),
    /// A whole encoded file.
    Encoded(Vec<u8>),
    /// Plain pixels, `[C, H, W]` with `C` 1 or 3; there are as many as `shape` says.
    Planes { shape: ImageShape, pixels: Vec<u8> },
    /// Nothing, and why.
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
    fn reading_stops_at_the_limit() {
        let endless = io::repeat(7);
        assert!(read_bounded(endless).unwrap().unwrap_err().contains("64 MiB"));
        assert_eq!(read_bounded(&[1u8, 2][..]).unwrap(), Ok(vec![1, 2]));
    }
}
