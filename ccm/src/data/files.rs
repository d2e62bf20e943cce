//! Lists the files of a data set: file names that are read, and the search of a folder.
//!
//! `classes` derives classes and splits from paths; `archive` reads archives.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{BufReader, Read, Seek};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use super::DataError;
use super::archive::{self, Keep};
use super::cifar;
use super::content::{Content, Source};

/// Extensions of the supported image formats, in lower case.
const IMAGES: [&str; 11] = ["png", "apng", "jpg", "jpeg", "jpe", "jfif", "webp", "gif", "bmp", "tif", "tiff"];

/// Extensions of files that may hold captions or classes, in lower case.
const TEXTS: [&str; 5] = ["txt", "json", "jsonl", "csv", "cls"];

/// The first bytes of a gzip file.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Kind of a file, by its name.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A hidden file or one made by an operating system: `.x`, `._x`, `__MACOSX/x`.
    Hidden,
    /// An image or a part of CIFAR-10, with its path within the source.
    Data(String),
    /// A file that may hold captions or classes, with its path within the source.
    Text(String),
    /// Any other file, with its extension in lower case, or an empty string.
    Other(String),
}

/// Kind of the file at `path` within a source. The separator may be `/` or `\\`; `.` and `..` are dropped.
pub(super) fn kind(path: &str) -> Kind {
    let parts: Vec<&str> = path.split(['/', '\\']).filter(|part| !matches!(*part, "" | "." | "..")).collect();
    let Some(file) = parts.last() else { return Kind::Hidden };
    if parts.iter().any(|part| is_hidden(part)) {
        return Kind::Hidden;
    }
    let ending = file.rsplit_once('.').map_or_else(String::new, |(_, ending)| ending.to_lowercase());
    if IMAGES.contains(&ending.as_str()) || cifar::is_part(file) {
        Kind::Data(parts.join("/"))
    } else if TEXTS.contains(&ending.as_str()) {
        Kind::Text(parts.join("/"))
    } else {
        Kind::Other(ending)
    }
}

fn is_hidden(part: &str) -> bool {
    part.starts_with('.') || part == "__MACOSX"
}

/// Lists the files in `folder` and its subfolders. Links are followed, and each folder is searched once.
///
/// # Errors
/// [`DataError::Io`] if a folder cannot be listed.
pub(super) fn in_folder(folder: &Path) -> Result<Source, DataError> {
    let mut source = Source::default();
    search(folder, "", &mut source, &mut HashSet::new())?;
    Ok(source)
}

/// As [`in_folder`], with the contents of the folder's tar archives: webdataset's shards. Their file names become folders.
///
/// # Errors
/// [`DataError`] if a folder cannot be listed or an archive not be read.
pub(super) fn with_shards(folder: &Path, keep: Keep) -> Result<Source, DataError> {
    let mut source = in_folder(folder)?;
    for path in shards(folder)? {
        let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let shard = archive::in_tar(&path, keep)?;
        source.not_read.replace("tar", &shard.not_read);
        let within = |(file, content): (String, Content)| (format!("{name}/{file}"), content);
        source.found.extend(shard.found.into_iter().map(within));
        source.texts.extend(shard.texts.into_iter().map(within));
    }
    Ok(source)
}

/// The tar archives of a folder, sorted by name.
///
/// # Errors
/// If the folder cannot be listed.
pub(super) fn shards(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let children = fs::read_dir(folder).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let mut shards: Vec<PathBuf> =
        children.map_err(|error| DataError::reading(folder, error))?.iter().map(fs::DirEntry::path).collect();
    shards.retain(|path| path.extension().is_some_and(|ending| ending == "tar"));
    shards.sort();
    Ok(shards)
}

fn search(
    folder: &Path,
    prefix: &str,
    source: &mut Source,
    visited: &mut HashSet<PathBuf>,
) -> Result<(), DataError> {
    let unlisted = |error| DataError::reading(folder, error);
    if !visited.insert(fs::canonicalize(folder).map_err(unlisted)?) {
        return Ok(());
    }
    let mut children =
        fs::read_dir(folder).and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(unlisted)?;
    children.sort_by_key(fs::DirEntry::file_name);
    for child in children {
        let path = child.path();
        let file_name = child.file_name().to_string_lossy().replace('\\', "_");
        let name = format!("{prefix}{file_name}");
        let file_type = child.file_type().map_err(|error| DataError::reading(&path, error))?;
        if is_hidden(&file_name) {
            continue;
        }
        if file_type.is_dir() || (file_type.is_symlink() && path.is_dir()) {
            search(&path, &format!("{name}/"), source, visited)?;
        } else {
            source.add(kind(&name), || Content::File(path));
        }
    }
    Ok(())
}

/// Whether the file at `path` starts with the magic number of gzip.
///
/// # Errors
/// [`DataError::Io`].
pub(super) fn is_gzip(path: &Path) -> Result<bool, DataError> {
    let mut magic = Vec::new();
    let read = File::open(path).and_then(|file| file.take(2).read_to_end(&mut magic));
    read.map_err(|error| DataError::reading(path, error))?;
    Ok(magic == GZIP)
}

/// Opens `path` and decompresses it if it starts with the magic number of gzip.
///
/// # Errors
/// [`DataError::Io`].
pub(super) fn open_maybe_gzip(path: &Path) -> Result<Box<dyn Read>, DataError> {
    let failed = |error| DataError::reading(path, error);
    let mut file = File::open(path).map_err(failed)?;
    let mut magic = Vec::new();
    file.by_ref().take(2).read_to_end(&mut magic).map_err(failed)?;
    file.rewind().map_err(failed)?;
    let file = BufReader::with_capacity(1 << 16, file);
    Ok(if magic == GZIP { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_normalised_and_classified() {
        let data = |name: &str| Kind::Data(name.to_owned());
        let other = |ending: &str| Kind::Other(ending.to_owned());
        for (path, expected) in [
            ("./a//b.PNG", data("a/b.PNG")),
            ("a\\b.jpeg", data("a/b.jpeg")),
            ("../a/b.tiff", data("a/b.tiff")),
            ("/a/b.Tif", data("a/b.Tif")),
            ("c/data_batch_1.bin", data("c/data_batch_1.bin")),
            ("a/b.txt", Kind::Text("a/b.txt".to_owned())),
            ("a.b/c.HEIC", other("heic")),
            ("png", other("")),
            ("a.bin", other("bin")),
            ("__MACOSX/a/b.png", Kind::Hidden),
            ("a/._b.png", Kind::Hidden),
            (".cache/b.png", Kind::Hidden),
            ("", Kind::Hidden),
        ] {
            assert_eq!(kind(path), expected, "{path}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_link_to_a_parent_folder_does_not_loop() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("a")).unwrap();
        fs::write(folder.path().join("a/x.png"), "").unwrap();
        fs::write(folder.path().join("a/x.heic"), "").unwrap();
        std::os::unix::fs::symlink(folder.path(), folder.path().join("a/top")).unwrap();
        let source = in_folder(folder.path()).unwrap();
        assert_eq!(source.found.into_keys().collect::<Vec<_>>(), ["a/x.png"]);
        assert_eq!(source.not_read.to_string(), "1 .heic picture");
    }
}
