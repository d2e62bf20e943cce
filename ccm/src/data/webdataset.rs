//! Classes in webdataset's layout: tar archives whose samples are files of one name, such as `000.jpg` and `000.cls`.
//!
//! The class of an image is in its `.cls` file, as a number or a name, or in its `.json` file under `class`, `label` or `cls`.
//! Numbers select a line of `classes.txt` beside the archives, if there is one. Archives whose names begin with `train`
//! hold the training images, and those that begin with `test`, `val` or `held-out` the held-out ones; without both kinds, every
//! 20th image is held out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use super::classes::split_by_position;
use super::content::{Content, Source};
use super::{DataError, Entry, Listing, Split};

/// Names of classes, by number.
pub(super) const CLASSES: &str = "classes.txt";

/// Lists the images of `split`, sorted by path; `None` if no image has a file with its class. Images without such a file are left
/// out.
///
/// # Errors
/// A file that names no class; an empty split.
pub(super) fn list(path: &Path, source: &mut Source, split: Split) -> Result<Option<Listing>, DataError> {
    let names = match source.texts.get(CLASSES) {
        Some(content) => {
            read_text(path, CLASSES, content)?.lines().map(|line| line.trim().to_owned()).collect()
        }
        None => Vec::new(),
    };
    let mut classes: BTreeMap<String, String> = BTreeMap::new();
    if !source.texts.keys().any(|file| file.ends_with(".cls") || file.ends_with(".json")) {
        return Ok(None);
    }
    let samples: BTreeSet<&str> = source.found.keys().map(|image| key(image)).collect();
    for (file, content) in &source.texts {
        let is_json = file.ends_with(".json");
        let is_of_image = samples.contains(key(file));
        if !is_of_image || (!is_json && !file.ends_with(".cls")) {
            continue;
        }
        let text = read_text(path, file, content)?;
        let class = if is_json { in_json(&text) } else { Some(text.trim().to_owned()) };
        // A `.json` file may describe something else.
        let Some(class) = class.filter(|class| is_json || !class.is_empty()) else {
            if is_json {
                continue;
            }
            return Err(fault(path, file, "expected a class, found an empty file".into()));
        };
        classes
            .insert(key(file).to_owned(), named(&class, &names).map_err(|reason| fault(path, file, reason))?);
    }
    if !source.found.keys().any(|image| classes.contains_key(key(image))) {
        return Ok(None);
    }
    let total = source.found.len();
    let labelled: Vec<(String, Content, &String)> = std::mem::take(&mut source.found)
        .into_iter()
        .filter_map(|(image, content)| classes.get(key(&image)).map(|class| (image, content, class)))
        .collect();
    let left_out = total - labelled.len();
    let unique: BTreeSet<&String> = labelled.iter().map(|(.., class)| *class).collect();
    let unique: Vec<String> = unique.into_iter().cloned().collect();
    let splits: Vec<Option<Split>> = labelled.iter().map(|(image, ..)| of_archive(image)).collect();
    let both = [Split::Train, Split::HeldOut].iter().all(|split| splits.contains(&Some(*split)));
    let count = labelled.len();
    let mut entries = Vec::new();
    for (position, ((name, content, class), own)) in labelled.into_iter().zip(splits).enumerate() {
        let own = if both { own } else { Some(split_by_position(position + 1, count)) };
        if own == Some(split)
            && let Ok(label) = unique.binary_search(class)
        {
            entries.push(Entry { name, label: label as u32, content });
        }
    }
    if entries.is_empty() {
        let expected = "archives whose names begin with train, and others that begin with val";
        return Err(DataError::EmptySplit { path: path.to_path_buf(), split, expected });
    }
    Ok(Some(Listing { classes: unique, below: None, left_out, not_read: source.not_read.clone(), entries }))
}

/// The key of a sample: the path of a file up to the first dot of its name.
fn key(path: &str) -> &str {
    let name = path.rfind('/').map_or(0, |slash| slash + 1);
    path[name..].find('.').map_or(path, |dot| &path[..name + dot])
}

/// The split of an archive, by the beginning of its name.
fn of_archive(path: &str) -> Option<Split> {
    let name = path.to_lowercase();
    let begins = |names: &[&str]| names.iter().any(|of_split| name.starts_with(of_split));
    match () {
        () if begins(&["train"]) => Some(Split::Train),
        () if begins(&["test", "val", "held-out"]) => Some(Split::HeldOut),
        () => None,
    }
}

/// The class in a `.json` file.
fn in_json(text: &str) -> Option<String> {
    let value: Value = serde_json::from_str(text).ok()?;
    match ["class", "label", "cls"].iter().find_map(|name| value.get(name))? {
        Value::String(name) => Some(name.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// The name of a class that is given by number or name. Numbers without names are padded, so that their order stays.
fn named(class: &str, names: &[String]) -> Result<String, String> {
    match class.parse::<usize>() {
        Ok(number) if names.is_empty() => Ok(format!("{number:05}")),
        Ok(number) => names.get(number).cloned().ok_or_else(|| {
            format!("expected a class below {}, the lines of {CLASSES}, found {number}", names.len())
        }),
        Err(_) => Ok(class.to_owned()),
    }
}

fn read_text(path: &Path, file: &str, content: &Content) -> Result<String, DataError> {
    let bytes = match content {
        Content::Encoded(bytes) => Ok(bytes.clone()),
        Content::Refused(reason) => Err(reason.clone()),
        content => content.on_disk().unwrap_or_default().into_bytes(),
    };
    let bytes = bytes.map_err(|reason| fault(path, file, reason))?;
    String::from_utf8(bytes).map_err(|_| fault(path, file, "expected text in UTF-8".into()))
}

fn fault(path: &Path, file: &str, reason: String) -> DataError {
    DataError::Captions { path: path.to_path_buf(), name: file.to_owned(), reason }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::data::files::kind;

    fn source(files: &[(&str, &str)]) -> Source {
        let mut source = Source::default();
        for (name, text) in files {
            source.add(kind(name), || Content::Encoded(text.as_bytes().to_vec()));
        }
        source
    }

    fn listed(files: &[(&str, &str)], split: Split) -> Result<Option<(Vec<String>, Vec<u32>)>, String> {
        let listing = list(Path::new("d"), &mut source(files), split).map_err(|error| error.to_string())?;
        Ok(listing.map(|of| (of.classes, of.entries.iter().map(|entry| entry.label).collect())))
    }

    #[test]
    fn classes_are_numbers_or_names() {
        let files = [
            ("train-0.tar/a.jpg", ""),
            ("train-0.tar/a.cls", "10\n"),
            ("train-0.tar/b.png", ""),
            ("train-0.tar/b.json", r#"{"label": 2}"#),
            ("train-0.tar/c.png", ""),
            ("val-0.tar/d.webp", ""),
            ("val-0.tar/d.cls", "2"),
        ];
        let classes = ["00002", "00010"].map(String::from).to_vec();
        assert_eq!(listed(&files, Split::Train), Ok(Some((classes.clone(), vec![1, 0]))));
        assert_eq!(listed(&files, Split::HeldOut), Ok(Some((classes, vec![0]))));
        let named = [("x.tar/a.png", ""), ("x.tar/a.cls", "1"), ("x.tar/b.png", ""), ("x.tar/b.cls", "0")];
        let with_names = [&named[..], &[("classes.txt", "zebra\nant\n")]].concat();
        let classes = ["ant", "zebra"].map(String::from).to_vec();
        assert_eq!(listed(&with_names, Split::Train), Ok(Some((classes, vec![0]))));
        let error = listed(&[&with_names[..], &[("x.tar/b.cls", "2")]].concat(), Split::Train).unwrap_err();
        assert!(
            error.contains("x.tar/b.cls") && error.contains("below 2") && error.contains("found 2"),
            "{error}"
        );
        assert!(listed(&[("a.png", ""), ("a.cls", " ")], Split::Train).unwrap_err().contains("a.cls"));
    }

    #[test]
    fn images_without_files_of_classes_are_another_layout() {
        assert_eq!(
            listed(&[("a/x.png", ""), ("a/x.json", "[]"), ("a/x.txt", "a cat")], Split::Train),
            Ok(None)
        );
        // A file of another name belongs to no image and is not read.
        let mut with_table = source(&[("a/x.png", "")]);
        with_table.add(kind("annotations/table.json"), || Content::Refused("it is too large".into()));
        assert!(list(Path::new("d"), &mut with_table, Split::Train).unwrap().is_none());
    }
}
