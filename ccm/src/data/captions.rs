//! Pairs images with captions, in the forms that people have.
//!
//! | form | caption of `a/x.png` |
//! |---|---|
//! | `a/metadata.jsonl` (Hugging Face's `ImageFolder`) | `text`, `caption` or `prompt` of the line whose `file_name` is `x.png` |
//! | `a/metadata.csv` | the same, of a row |
//! | `a/x.txt`, also in the tar archives of webdataset | the text |
//! | `a/x.json` beside it, as img2dataset writes it | its `caption`, `text` or `prompt` |
//!
//! A captioned data set is one whose classes are the captions.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use super::content::{Content, Source};
use super::{DataError, Entry, Listing, Split, classes};

/// The keys and columns that hold a caption, in order of preference.
const CAPTION: [&str; 3] = ["text", "caption", "prompt"];
/// The keys and columns that hold the name of an image.
const FILE: [&str; 2] = ["file_name", "file"];

/// Lists the captioned images of `split`, sorted by path. The classes are the captions of both splits, sorted. Images without
/// a caption are left out. Folders `train` and `test` are the splits, as in [`classes`]; otherwise every 20th image is held
/// out.
///
/// # Errors
/// A file of captions that cannot be read; no captions at all; an empty split.
pub(super) fn list(path: &Path, source: Source, split: Split) -> Result<Listing, DataError> {
    let Source { found, texts, not_read, .. } = source;
    let stems: BTreeSet<&str> = found.keys().map(|name| stem(name)).collect();
    let read = captions(path, texts, &stems)?;
    let total = found.len();
    if total == 0 {
        return Err(DataError::NoImages { path: path.to_path_buf(), not_read });
    }
    let captioned: Vec<(String, String, Content)> =
        found.into_iter().filter_map(|(name, content)| Some((read.of(&name)?, name, content))).collect();
    if captioned.is_empty() {
        return Err(DataError::NoCaptions { path: path.to_path_buf(), images: total });
    }
    let names: Vec<&str> = captioned.iter().map(|(_, name, _)| name.as_str()).collect();
    let splits = classes::splits(&names);
    let unique: BTreeSet<&str> = captioned.iter().map(|(caption, ..)| caption.as_str()).collect();
    let classes: Vec<String> = unique.into_iter().map(str::to_owned).collect();
    let left_out = total - splits.iter().flatten().count();
    let of = |((caption, name, content), own): ((String, String, Content), Option<Split>)| {
        let label = classes.binary_search(&caption).ok()? as u32;
        (own == Some(split)).then_some(Entry { name, label, content })
    };
    let entries: Vec<Entry> = captioned.into_iter().zip(splits).filter_map(of).collect();
    if entries.is_empty() {
        let expected =
            "at least two images with captions, or some in a folder train and some in a folder test";
        return Err(DataError::EmptySplit { path: path.to_path_buf(), split, expected });
    }
    Ok(Listing { entries, classes, below: None, left_out, not_read })
}

/// The captions of a source.
#[derive(Debug, Default)]
struct Captions {
    /// By path of the image.
    of_file: BTreeMap<String, String>,
    /// By path of the image without its ending.
    of_stem: BTreeMap<String, String>,
}

impl Captions {
    fn of(&self, image: &str) -> Option<String> {
        self.of_file.get(image).or_else(|| self.of_stem.get(stem(image))).cloned()
    }
}

/// A path without the ending of the file's name.
fn stem(path: &str) -> &str {
    let name = path.rfind('/').map_or(0, |slash| slash + 1);
    path[name..].rfind('.').map_or(path, |dot| &path[..name + dot])
}

/// Reads the captions of images, whose paths without their endings are `stems`. Other texts are not opened.
fn captions(
    path: &Path,
    texts: BTreeMap<String, Content>,
    stems: &BTreeSet<&str>,
) -> Result<Captions, DataError> {
    let mut captions = Captions::default();
    for (name, content) in texts {
        let fault =
            |reason: String| DataError::Captions { path: path.to_path_buf(), name: name.clone(), reason };
        let text = |content: Content| {
            let bytes = match content {
                // A file of captions may be larger than an image.
                Content::File(path) => std::fs::read(path).map_err(|error| fault(error.to_string()))?,
                other => other.into_bytes().map_err(&fault)?,
            };
            String::from_utf8(bytes).map_err(|error| fault(format!("expected UTF-8: {error}")))
        };
        let (folder, file) =
            name.rsplit_once('/').map_or(("", name.as_str()), |(folder, file)| (folder, file));
        let in_folder = |image: &str| {
            let parts = folder.split('/').chain(image.split(['/', '\\']));
            parts.filter(|part| !matches!(*part, "" | "." | "..")).collect::<Vec<_>>().join("/")
        };
        match file {
            "metadata.jsonl" => {
                for (number, line) in text(content)?.lines().enumerate() {
                    if line.trim().is_empty() {
                        continue;
                    }
                    let (image, caption) =
                        of_line(line).map_err(|reason| fault(format!("line {}: {reason}", number + 1)))?;
                    captions.of_file.insert(in_folder(&image), caption);
                }
            }
            "metadata.csv" => {
                let rows = of_table(&text(content)?).map_err(&fault)?;
                captions
                    .of_file
                    .extend(rows.into_iter().map(|(image, caption)| (in_folder(&image), caption)));
            }
            _ if !stems.contains(stem(&name)) => {}
            _ if file.ends_with(".txt") => {
                let caption = one_line(&text(content)?);
                captions.of_stem.insert(stem(&name).to_owned(), caption);
            }
            _ if file.ends_with(".json") => {
                // Other JSON files have no caption.
                if let Ok(value) = serde_json::from_str::<Value>(&text(content)?)
                    && let Some(caption) = first(&value, &CAPTION)
                {
                    captions.of_stem.entry(stem(&name).to_owned()).or_insert(caption);
                }
            }
            _ => {}
        }
    }
    Ok(captions)
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The first of the keys that holds a text.
fn first(value: &Value, keys: &[&str]) -> Option<String> {
    keys.iter().find_map(|key| value.get(key)?.as_str()).map(one_line)
}

/// Image and caption of a line of `metadata.jsonl`.
fn of_line(line: &str) -> Result<(String, String), String> {
    let value: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let part = |keys: &[&str]| first(&value, keys).ok_or_else(|| format!("expected {}", listed(keys)));
    Ok((part(&FILE)?, part(&CAPTION)?))
}

/// Images and captions of the rows of `metadata.csv`.
fn of_table(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut rows = rows(text)?.into_iter();
    let header = rows.next().unwrap_or_default();
    let column = |keys: &[&str]| {
        let found = keys.iter().find_map(|key| header.iter().position(|name| name.trim() == *key));
        found.ok_or_else(|| format!("expected a column {}", listed(keys)))
    };
    let (image, caption) = (column(&FILE)?, column(&CAPTION)?);
    let row = |(number, row): (usize, Vec<String>)| match row.len() == header.len() {
        true => Ok((row[image].clone(), one_line(&row[caption]))),
        false => Err(format!("row {}: expected {} fields, found {}", number + 2, header.len(), row.len())),
    };
    rows.enumerate().map(row).collect()
}

/// The rows of comma-separated values (RFC 4180): a field in quotes may hold commas, line ends, and quotes, doubled. Empty
/// lines are left out.
fn rows(text: &str) -> Result<Vec<Vec<String>>, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let (mut rows, mut row, mut field) = (Vec::new(), Vec::new(), String::new());
    let mut quoted = false;
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '"' if quoted && letters.peek() == Some(&'"') => {
                letters.next();
                field.push('"');
            }
            '"' if quoted || field.is_empty() => quoted = !quoted,
            ',' if !quoted => row.push(std::mem::take(&mut field)),
            '\r' if !quoted && letters.peek() == Some(&'\n') => {}
            '\n' if !quoted => {
                row.push(std::mem::take(&mut field));
                rows.push(std::mem::take(&mut row));
            }
            other => field.push(other),
        }
    }
    if quoted {
        return Err("a quote is not closed".into());
    }
    if !(row.is_empty() && field.is_empty()) {
        row.push(field);
        rows.push(row);
    }
    rows.retain(|row| row.iter().any(|field| !field.is_empty()));
    Ok(rows)
}

fn listed(keys: &[&str]) -> String {
    keys.join(" or ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn source(images: &[&str], texts: &[(&str, &str)]) -> Source {
        let image = |name: &&str| ((*name).to_owned(), Content::Encoded(Vec::new()));
        let text =
            |(name, text): &(&str, &str)| ((*name).to_owned(), Content::Encoded(text.as_bytes().to_vec()));
        Source {
            found: images.iter().map(image).collect(),
            texts: texts.iter().map(text).collect(),
            ..Source::default()
        }
    }

    /// Names and captions of both splits.
    fn listed_of(source: impl Fn() -> Source) -> Vec<(String, String)> {
        let mut all = Vec::new();
        for split in [Split::Train, Split::HeldOut] {
            let Listing { entries, classes, .. } = list(Path::new("d"), source(), split).unwrap();
            all.extend(entries.into_iter().map(|entry| (entry.name, classes[entry.label as usize].clone())));
        }
        all.sort();
        all
    }

    #[test]
    fn every_form_of_captions_is_read() {
        let forms: [&[(&str, &str)]; 5] = [
            &[("a/x.txt", "a fox\n"), ("a/y.txt", "two  birds")],
            &[(
                "a/metadata.jsonl",
                "{\"file_name\":\"x.png\",\"text\":\"a fox\"}\n\n{\"file_name\":\"y.jpg\",\"text\":\"two birds\",\"n\":1}\n",
            )],
            &[("a/metadata.csv", "n,file_name,caption\n1,x.png,a fox\n2,y.jpg,\"two birds\"\n")],
            &[("metadata.csv", "file_name,text\n./a/x.png,a fox\na\\y.jpg,two birds\n")],
            &[("a/x.json", "{\"caption\":\"a fox\"}"), ("a/y.json", "{\"caption\":\"two birds\"}")],
        ];
        for texts in forms {
            let found = listed_of(|| source(&["a/x.png", "a/y.jpg"], texts));
            let pair = |image: &str, caption: &str| (image.to_owned(), caption.to_owned());
            assert_eq!(found, [pair("a/x.png", "a fox"), pair("a/y.jpg", "two birds")], "{texts:?}");
        }
    }

    #[test]
    fn fields_in_quotes_may_hold_anything() {
        let text = "\u{feff}a,b\r\n\"x, \"\"y\"\"\nz\",\r\n\n1,\"\"";
        assert_eq!(rows(text).unwrap(), [vec!["a", "b"], vec!["x, \"y\"\nz", ""], vec!["1", ""]]);
    }

    #[test]
    fn images_without_a_caption_are_left_out() {
        let names = ["x.png", "y.png", "z.png", "a/w.png"];
        let texts = [("x.txt", "a"), ("y.txt", "b"), ("a/w.txt", "c")];
        let listing = list(Path::new("d"), source(&names, &texts), Split::Train).unwrap();
        assert_eq!((listing.left_out, listing.classes), (1, ["a", "b", "c"].map(str::to_owned).to_vec()));
        assert_eq!(listing.entries.len(), 2);
        let error = list(Path::new("d"), source(&names, &[]), Split::Train).err().unwrap();
        assert!(error.to_string().contains("metadata.jsonl"), "{error}");
    }

    #[test]
    fn a_damaged_file_of_captions_is_named_with_its_line() {
        let cases = [
            (
                "metadata.jsonl",
                "{\"file_name\":\"x.png\",\"text\":\"a\"}\n{\"text\":\"b\"}",
                "line 2: expected file_name",
            ),
            ("metadata.jsonl", "{", "line 1: "),
            ("metadata.csv", "file_name,text\nx.png,\"a\n", "not closed"),
            ("metadata.csv", "name,text\nx.png,a\n", "expected a column file_name"),
            ("metadata.csv", "file_name,text\n\nx.png\n", "row 2: expected 2 fields"),
        ];
        for (name, text, expected) in cases {
            let error =
                list(Path::new("d"), source(&["x.png"], &[(name, text)]), Split::Train).err().unwrap();
            let error = error.to_string();
            assert!(error.contains(name) && error.contains(expected), "{error}");
        }
    }
}
