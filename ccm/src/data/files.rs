//! Finding the files of a data set: which names count, and how a folder is searched.
//!
//! What a file's name means for classes and splits is `classes`' business; archives are `archive`'s.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{BufReader, Read, Seek};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use super::DataError;
use super::cifar;
use super::content::{Content, Found};

/// File name endings of the image formats that can be decoded, in lower case.
const IMAGE_EXTENSIONS: [&str; 6] = ["png", "jpg", "jpeg", "webp", "gif", "bmp"];

/// `path` within a source with `/` between its parts, or nothing if the file is of no interest.
///
/// Hidden files and folders (and so the `._x` files of macOS), `__MACOSX`, and whatever is neither a picture
/// nor part of CIFAR-10 are of no interest.
pub(super) fn name_of_interest(path: &str) -> Option<String> {
    let parts: Vec<&str> = path.split(['/', '\\']).filter(|part| !matches!(*part, "" | "." | "..")).collect();
    if parts.iter().any(|part| is_hidden(part)) {
        return None;
    }
    let file = parts.last()?;
    let is_image = file
        .rsplit_once('.')
        .is_some_and(|(_, extension)| IMAGE_EXTENSIONS.contains(&extension.to_lowercase().as_str()));
    (is_image || cifar::is_part(file)).then(|| parts.join("/"))
}

fn is_hidden(part: &str) -> bool {
    part.starts_with('.') || part == "__MACOSX"
}

/// The files of interest under `folder`, which is searched to any depth; links are followed, each folder
/// once.
///
/// # Errors
/// [`DataError::Io`] when a folder cannot be listed.
pub(super) fn in_folder(folder: &Path) -> Result<Found, DataError> {
    let mut found = Found::new();
    search(folder, "", &mut found, &mut HashSet::new())?;
    Ok(found)
}

fn search(
    folder: &Path,
    prefix: &str,
    found: &mut Found,
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
        let kind = child.file_type().map_err(|error| DataError::reading(&path, error))?;
        if is_hidden(&file_name) {
            continue;
        }
        if kind.is_dir() || (kind.is_symlink() && path.is_dir()) {
            search(&path, &format!("{name}/"), found, visited)?;
        } else if let Some(name) = name_of_interest(&name) {
            found.insert(name, Content::File(path));
        }
    }
    Ok(())
}

/// Opens `path` and decompresses it if its first bytes say that it is gzip.
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
    Ok(if magic == [0x1f, 0x8b] { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised_and_only_images_and_cifar_files_count() {
        assert_eq!(name_of_interest("./a//b.PNG").as_deref(), Some("a/b.PNG"));
        assert_eq!(name_of_interest("a\\b.jpeg").as_deref(), Some("a/b.jpeg"));
        assert_eq!(name_of_interest("c/data_batch_1.bin").as_deref(), Some("c/data_batch_1.bin"));
        for name in ["a/b.txt", "png", "__MACOSX/a/b.png", "a/._b.png", ".cache/b.png", "", "a.bin"] {
            assert_eq!(name_of_interest(name), None, "{name}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_link_back_to_the_top_does_not_loop() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("a")).unwrap();
        fs::write(folder.path().join("a/x.png"), "").unwrap();
        std::os::unix::fs::symlink(folder.path(), folder.path().join("a/top")).unwrap();
        assert_eq!(in_folder(folder.path()).unwrap().into_keys().collect::<Vec<_>>(), ["a/x.png"]);
    }
}
