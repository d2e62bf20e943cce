//! Files of a source before decoding, read without trusting the sizes that they claim.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::read::DeflateDecoder;

use super::ImageShape;
use super::files::Kind;
use super::not_read::NotRead;

/// Largest encoded image or CIFAR-10 batch that is read, in bytes.
pub(super) const LARGEST_FILE: u64 = 64 << 20;

/// Images, or parts of CIFAR-10, sorted by their path within the source, with `/` between folders.
pub(super) type Found = BTreeMap<String, Content>;

/// The files of a folder or an archive.
#[derive(Debug, Default)]
pub(super) struct Source {
    /// The files that are read.
    pub(super) found: Found,
    /// Files that may hold captions.
    pub(super) texts: BTreeMap<String, Content>,
    /// The files that are not read.
    pub(super) not_read: NotRead,
    /// For each path that occurs more than once, the number of its files.
    pub(super) copies: BTreeMap<String, usize>,
}

impl Source {
    /// Adds a file. An archive can contain a path twice; a number is then appended to the later path, so that both
    /// files are kept.
    pub(super) fn add(&mut self, kind: Kind, content: impl FnOnce() -> Content) {
        match kind {
            Kind::Hidden => {}
            Kind::Other(ending) => self.not_read.add(ending),
            Kind::Text(name) => {
                self.texts.insert(name, content());
            }
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

/// An image before decoding.
#[derive(Debug)]
pub(super) enum Content {
    /// A file on disk.
    File(PathBuf),
    /// The bytes of an encoded file.
    Encoded(Vec<u8>),
    /// An encoded file in an archive on disk.
    Part(Part),
    /// Decoded pixels `[C, H, W]` with the dimensions of `shape`; `C` is 1 or 3.
    Planes { shape: ImageShape, pixels: Vec<u8> },
    /// A file that cannot be read, with the reason.
    Refused(String),
}

/// A file in an archive on disk.
#[derive(Clone, Debug)]
pub(super) struct Part {
    /// The archive.
    pub(super) archive: Arc<Path>,
    /// Position of the first byte in the archive.
    pub(super) start: u64,
    /// Number of bytes in the archive.
    pub(super) length: u64,
    /// Whether the bytes are compressed with deflate.
    pub(super) deflated: bool,
}

impl Part {
    fn read(&self) -> io::Result<Result<Vec<u8>, String>> {
        let mut archive = File::open(&self.archive)?;
        archive.seek(SeekFrom::Start(self.start))?;
        let bytes = archive.take(self.length);
        if self.deflated {
            return read_bounded(DeflateDecoder::new(io::BufReader::new(bytes)));
        }
        let read = read_bounded(bytes)?;
        if read.as_ref().is_ok_and(|bytes| (bytes.len() as u64) < self.length) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(read)
    }
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
    /// The same content, if it is on disk.
    pub(super) fn on_disk(&self) -> Option<Self> {
        match self {
            Self::File(path) => Some(Self::File(path.clone())),
            Self::Part(part) => Some(Self::Part(part.clone())),
            _ => None,
        }
    }

    /// The place on disk, for messages.
    pub(super) fn name(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Part(part) => format!("{} at byte {}", part.archive.display(), part.start),
            _ => "an image".to_owned(),
        }
    }

    /// The bytes of a file or archive entry, or the reason why it cannot be read.
    pub(super) fn into_bytes(self) -> Result<Vec<u8>, String> {
        match self {
            Self::Part(part) => part.read().map_err(|error| error.to_string()).flatten(),
            Self::File(path) => {
                let read = File::open(path).and_then(read_bounded);
                read.map_err(|error| error.to_string()).flatten()
            }
            Self::Encoded(bytes) | Self::Planes { pixels: bytes, .. } => Ok(bytes),
            Self::Refused(reason) => Err(reason),
        }
    }
}

/// Reads all bytes of `reader`, or returns a reason if there are more than [`LARGEST_FILE`].
pub(super) fn read_bounded(reader: impl Read) -> io::Result<Result<Vec<u8>, String>> {
    let mut bytes = Vec::new();
    reader.take(LARGEST_FILE + 1).read_to_end(&mut bytes)?;
    Ok(if bytes.len() as u64 > LARGEST_FILE { Err(too_large()) } else { Ok(bytes) })
}

/// The reason for refusing a file above [`LARGEST_FILE`].
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
