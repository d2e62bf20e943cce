//! Lists the images of zip and tar archives in one pass. Entries stay compressed in memory, or on disk; nothing is unpacked.
//!
//! Sizes in headers are not trusted: entries are read up to a limit, and an archive that ends early is an error.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use zip::read::ZipFile;
use zip::result::ZipError;
use zip::{CompressionMethod, ZipArchive};

use super::DataError;
use super::content::{Content, LARGEST_FILE, Part, Source, read_bounded, too_large};
use super::files::{Kind, is_gzip, kind, open_maybe_gzip};

/// The first bytes of a zip archive with entries.
const ZIP_MAGIC: [u8; 2] = *b"PK";

/// Size of a tar block in bytes. A complete archive ends with at least one block of zeros.
const TAR_BLOCK: u64 = 512;

/// What a listing keeps of the images in an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// Their bytes.
    Bytes,
    /// Their places in the archive, which must stay as it is. Other files are kept as bytes.
    Places,
}

/// Lists the files in the zip archive at `path`. An entry that cannot be unpacked becomes an unreadable image.
///
/// # Errors
/// [`DataError::Truncated`] if the directory at the archive's end is missing, [`DataError::Archive`] if the file is not
/// a zip archive, [`DataError::Io`].
pub(super) fn in_zip(path: &Path, keep: Keep) -> Result<Source, DataError> {
    let failed = |error| DataError::reading(path, error);
    let mut magic = Vec::new();
    File::open(path).and_then(|file| file.take(2).read_to_end(&mut magic)).map_err(failed)?;
    let file = BufReader::new(File::open(path).map_err(failed)?);
    let mut archive = ZipArchive::new(file).map_err(|error| match error {
        ZipError::UnsupportedArchive(reason) => DataError::Archive {
            path: path.to_path_buf(),
            expected: "a zip archive",
            reason: reason.to_owned(),
        },
        _ if ZIP_MAGIC.starts_with(&magic) => DataError::Truncated {
            path: path.to_path_buf(),
            detail: "the directory at the end of the zip archive is missing or incomplete".to_owned(),
        },
        error => DataError::Archive {
            path: path.to_path_buf(),
            expected: "a zip archive",
            reason: error.to_string(),
        },
    })?;
    let shared: Arc<Path> = path.into();
    let mut source = Source::default();
    for index in 0..archive.len() {
        let Some(name) = archive.name_for_index(index).and_then(Result::ok) else { continue };
        if name.ends_with(['/', '\\']) {
            continue;
        }
        let kind = kind(&name);
        if !matches!(kind, Kind::Data(_) | Kind::Text(_)) {
            source.add(kind, Content::default);
            continue;
        }
        let content = match archive.by_index(index) {
            Ok(entry) if entry.size() > LARGEST_FILE => Content::Refused(too_large()),
            Ok(entry) if keep == Keep::Places && matches!(kind, Kind::Data(_)) => {
                place_in_zip(&entry, &shared)
            }
            Ok(entry) => match read_bounded(entry) {
                Ok(content) => Content::from(content),
                Err(error) => Content::Refused(format!("cannot be unpacked: {error}")),
            },
            Err(error) => Content::Refused(format!("cannot be unpacked: {error}")),
        };
        source.add(kind, || content);
    }
    Ok(source)
}

fn place_in_zip(entry: &ZipFile<'_, impl Read>, archive: &Arc<Path>) -> Content {
    let deflated = match entry.compression() {
        CompressionMethod::Stored => false,
        CompressionMethod::Deflated => true,
        other => return Content::Refused(format!("cannot be read in its archive: compressed with {other}")),
    };
    match entry.data_start() {
        Some(start) => Content::Part(Part {
            archive: Arc::clone(archive),
            start,
            length: entry.compressed_size(),
            deflated,
        }),
        None => Content::Refused("has no place in its archive".to_owned()),
    }
}

/// Lists the files in the tar archive at `path`, with or without gzip compression. A compressed one is kept as bytes.
///
/// # Errors
/// [`DataError::Truncated`] if the archive ends early, [`DataError::Archive`] if it is damaged or not a tar archive,
/// [`DataError::Io`].
pub(super) fn in_tar(path: &Path, keep: Keep) -> Result<Source, DataError> {
    let truncated =
        |detail: &str| DataError::Truncated { path: path.to_path_buf(), detail: detail.to_owned() };
    if keep == Keep::Places && !is_gzip(path)? {
        return places_in_tar(path).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => truncated("the tar archive ends in the middle of an entry"),
            _ if error.raw_os_error().is_some() => DataError::reading(path, error),
            _ => DataError::Archive {
                path: path.to_path_buf(),
                expected: "a tar archive",
                reason: error.to_string(),
            },
        });
    }
    let mut stream = Watched { inner: open_maybe_gzip(path)?, ended: false, zeros: 0 };
    let outcome = read_entries(&mut stream);
    let found = outcome.and_then(|found| io::copy(&mut stream, &mut io::sink()).map(|_| found));
    match found {
        Ok(_) if stream.zeros < TAR_BLOCK => Err(truncated("the tar archive has no end marker")),
        Ok(found) => Ok(found),
        Err(error) if stream.ended || error.kind() == io::ErrorKind::UnexpectedEof => {
            Err(truncated("the tar archive ends in the middle of an entry"))
        }
        Err(error) if error.raw_os_error().is_some() => Err(DataError::reading(path, error)),
        Err(error) => Err(DataError::Archive {
            path: path.to_path_buf(),
            expected: "a tar archive",
            reason: error.to_string(),
        }),
    }
}

fn read_entries(stream: impl Read) -> io::Result<Source> {
    let mut archive = tar::Archive::new(stream);
    let mut source = Source::default();
    for entry in archive.entries()? {
        let entry = entry?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let kind = kind(&String::from_utf8_lossy(&entry.path_bytes()));
        if !matches!(kind, Kind::Data(_) | Kind::Text(_)) {
            source.add(kind, Content::default);
            continue;
        }
        let size = entry.size();
        let content = if size > LARGEST_FILE { Err(too_large()) } else { read_bounded(entry)? };
        if content.as_ref().is_ok_and(|bytes| (bytes.len() as u64) < size) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        source.add(kind, || Content::from(content));
    }
    Ok(source)
}

/// Lists a tar archive that is not compressed, without reading its images.
fn places_in_tar(path: &Path) -> io::Result<Source> {
    let length = std::fs::metadata(path)?.len();
    let shared: Arc<Path> = path.into();
    let mut archive = tar::Archive::new(File::open(path)?);
    let mut source = Source::default();
    for entry in archive.entries_with_seek()? {
        let entry = entry?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let kind = kind(&String::from_utf8_lossy(&entry.path_bytes()));
        let (start, size) = (entry.raw_file_position(), entry.size());
        if start.checked_add(size).is_none_or(|end| end > length) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let content = match &kind {
            _ if size > LARGEST_FILE => Content::Refused(too_large()),
            Kind::Data(_) => {
                Content::Part(Part { archive: Arc::clone(&shared), start, length: size, deflated: false })
            }
            Kind::Text(_) => Content::from(read_bounded(entry)?),
            _ => Content::default(),
        };
        source.add(kind, || content);
    }
    Ok(source)
}

/// A reader that records whether it reached its end and how many zero bytes it read last.
struct Watched<R> {
    inner: R,
    ended: bool,
    zeros: u64,
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.ended |= count == 0 && !buffer.is_empty();
        let zeros = buffer[..count].iter().rev().take_while(|byte| **byte == 0).count();
        self.zeros = if zeros == count { self.zeros + zeros as u64 } else { zeros as u64 };
        Ok(count)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::fs;
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use zip::write::{SimpleFileOptions, ZipWriter};

    use super::*;

    /// Bytes that do not compress and do not end with zeros.
    fn noise(count: usize) -> Vec<u8> {
        let mut state = 1u32;
        let next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8 | 1
        };
        std::iter::repeat_with(next).take(count).collect()
    }

    fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            builder.append_data(&mut header, name, *bytes).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zip_of(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut writer = ZipWriter::new(io::Cursor::new(Vec::new()));
        for (name, bytes) in files {
            writer.start_file(*name, SimpleFileOptions::default()).unwrap();
            writer.write_all(bytes).unwrap();
        }
        writer.finish().unwrap().into_inner()
    }

    type Reader = fn(&Path, Keep) -> Result<Source, DataError>;

    /// The bytes of the files that a listing found.
    fn bytes(source: Source) -> Vec<Vec<u8>> {
        source.found.into_values().map(|content| content.into_bytes().unwrap()).collect()
    }

    #[test]
    fn every_truncated_archive_is_reported_as_truncated() {
        let folder = tempfile::tempdir().unwrap();
        let big = noise(3000);
        let files: &[(&str, &[u8])] = &[("a/x.png", &big), ("a/notes.txt", &big), ("b/y.png", &big)];
        let kinds: [(&str, Vec<u8>, Reader); 3] = [
            ("t.tar", tar_of(files), in_tar),
            ("t.tgz", gzip(&tar_of(files)), in_tar),
            ("t.zip", zip_of(files), in_zip),
        ];
        for (name, whole, read) in kinds {
            let path = folder.path().join(name);
            fs::write(&path, &whole).unwrap();
            let found = read(&path, Keep::Bytes).unwrap().found;
            assert_eq!(found.keys().collect::<Vec<_>>(), ["a/x.png", "b/y.png"]);
            assert!(found.values().all(|content| matches!(content, Content::Encoded(b) if *b == big)));
            // Losing a part of the end marker loses no data.
            let last = if name == "t.tar" { whole.len() - 1024 } else { whole.len() - 1 };
            for length in (2..last).step_by(97).chain([1, 2, 511, 512, 513, 1024, last]) {
                fs::write(&path, &whole[..length]).unwrap();
                let error = read(&path, Keep::Bytes)
                    .err()
                    .unwrap_or_else(|| panic!("{name} cut to {length} was read"));
                assert!(error.to_string().contains("truncated"), "{name} cut to {length}: {error}");
                assert!(error.to_string().contains(name), "{error}");
            }
        }
    }

    #[test]
    fn entries_of_one_path_are_all_read_and_other_files_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let files: &[(&str, &[u8])] =
            &[("a/x.png", b"one"), ("./a/x.png", b"two"), ("a/x.heic", b"three"), ("a/.x.png", b"four")];
        let archives: [(&str, Vec<u8>, Reader); 2] =
            [("t.tar", tar_of(files), in_tar), ("t.zip", zip_of(files), in_zip)];
        for (name, bytes, read) in archives {
            let path = folder.path().join(name);
            fs::write(&path, bytes).unwrap();
            let Source { found, not_read, .. } = read(&path, Keep::Bytes).unwrap();
            assert_eq!(found.keys().collect::<Vec<_>>(), ["a/x.png", "a/x.png (2)"], "{name}");
            assert_eq!(not_read.to_string(), "1 .heic picture", "{name}");
        }
    }

    #[test]
    fn a_file_that_is_no_archive_is_not_called_truncated() {
        let folder = tempfile::tempdir().unwrap();
        let page = b"<html>404 not found</html>".repeat(100);
        for (name, read) in [("page.zip", in_zip as Reader), ("page.tgz", in_tar)] {
            let path = folder.path().join(name);
            fs::write(&path, &page).unwrap();
            let error = read(&path, Keep::Bytes).err().unwrap();
            assert!(matches!(error, DataError::Archive { .. }), "{error}");
        }
    }

    #[test]
    fn entries_above_the_limit_are_refused_and_the_rest_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let huge = vec![0; LARGEST_FILE as usize + 1];
        let files: &[(&str, &[u8])] = &[("huge.png", &huge), ("x.png", b"small")];
        let kinds: [(&str, Vec<u8>, Reader); 2] =
            [("t.tgz", gzip(&tar_of(files)), in_tar), ("t.zip", zip_of(files), in_zip)];
        for (name, bytes, read) in kinds {
            let path = folder.path().join(name);
            fs::write(&path, bytes).unwrap();
            let found = read(&path, Keep::Bytes).unwrap().found;
            assert!(matches!(&found["huge.png"], Content::Refused(reason) if reason.contains("64 MiB")));
            assert!(matches!(&found["x.png"], Content::Encoded(bytes) if bytes == b"small"));
        }
    }

    #[test]
    fn a_damaged_zip_entry_spoils_only_itself() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.zip");
        let big = noise(3000);
        let mut bytes = zip_of(&[("x.png", &big), ("y.png", &big)]);
        bytes[500] ^= 0xff;
        fs::write(&path, bytes).unwrap();
        let found = in_zip(&path, Keep::Bytes).unwrap().found;
        assert!(matches!(&found["x.png"], Content::Refused(reason) if reason.contains("unpacked")));
        assert!(matches!(&found["y.png"], Content::Encoded(bytes) if *bytes == big));
    }

    #[test]
    fn files_are_read_at_their_places_on_disk() {
        let folder = tempfile::tempdir().unwrap();
        let (big, other) = (noise(3000), noise(1000));
        let files: &[(&str, &[u8])] = &[("a/x.png", &big), ("a/x.cls", b"3"), ("b/y.png", &other)];
        let kinds: [(&str, Vec<u8>, Reader); 3] = [
            ("t.tar", tar_of(files), in_tar),
            ("t.tgz", gzip(&tar_of(files)), in_tar),
            ("t.zip", zip_of(files), in_zip),
        ];
        for (name, whole, read) in kinds {
            let path = folder.path().join(name);
            fs::write(&path, &whole).unwrap();
            let source = read(&path, Keep::Places).unwrap();
            let on_disk = source.found.values().all(|content| matches!(content, Content::Part(_)));
            assert_eq!(on_disk, name != "t.tgz");
            assert!(matches!(&source.texts["a/x.cls"], Content::Encoded(text) if text == b"3"));
            assert_eq!(bytes(source), [big.clone(), other.clone()], "{name}");
        }
        let cut = folder.path().join("cut.tar");
        fs::write(&cut, &tar_of(files)[..2000]).unwrap();
        assert!(in_tar(&cut, Keep::Places).unwrap_err().to_string().contains("truncated"));
    }
}
