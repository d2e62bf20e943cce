//! Counts the files of a source that are not read, by extension.

use std::collections::BTreeMap;
use std::fmt;

/// The supported image formats, for messages.
pub(super) const FORMATS: &str = "PNG, JPEG, WebP, GIF, BMP and TIFF";

/// Extensions of image formats that are not supported.
///
/// AVIF: the Rust decoder `rav1d` has the unsafe interface of a C library, and its safe wrappers are under the AGPL.
const PICTURES: [&str; 32] = [
    "ai", "arw", "avif", "cr2", "cr3", "dds", "dng", "eps", "exr", "hdr", "heic", "heif", "ico", "j2k",
    "jp2", "jxl", "jxr", "nef", "orf", "pbm", "pcx", "pgm", "pnm", "ppm", "psd", "qoi", "raf", "raw", "rw2",
    "svg", "tga", "xcf",
];

/// Number of files that are not read, by extension in lower case. Hidden files are not counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NotRead {
    counts: BTreeMap<String, usize>,
}

impl NotRead {
    pub(super) fn add(&mut self, ending: String) {
        *self.counts.entry(ending).or_default() += 1;
    }

    /// Counts the files of an archive that are not read, instead of the archive, which has this extension.
    pub(super) fn replace(&mut self, ending: &str, contents: &Self) {
        if let Some(count) = self.counts.get_mut(ending) {
            *count -= 1;
        }
        self.counts.retain(|_, count| *count > 0);
        for (ending, count) in &contents.counts {
            *self.counts.entry(ending.clone()).or_default() += count;
        }
    }

    /// Whether all files are read.
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// Number of image files among them.
    pub fn pictures(&self) -> usize {
        self.of(true).map(|(_, count)| count).sum()
    }

    /// The extensions of image files, or of other files, the most frequent first.
    fn of(&self, pictures: bool) -> impl Iterator<Item = (&str, usize)> {
        let is_picture = |ending: &str| PICTURES.contains(&ending);
        let kinds = self.counts.iter().filter(move |(ending, _)| is_picture(ending) == pictures);
        let mut kinds: Vec<_> = kinds.map(|(ending, &count)| (ending.as_str(), count)).collect();
        kinds.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        kinds.into_iter()
    }
}

impl fmt::Display for NotRead {
    /// Formats as `3 .avif and 1 .heic pictures, 2 .txt files`: image files first, at most six extensions of each kind.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MOST: usize = 6;
        let mut parts = Vec::new();
        for (pictures, what) in [(true, "picture"), (false, "file")] {
            let kinds: Vec<(&str, usize)> =
                self.of(pictures).filter(|(ending, _)| !ending.is_empty()).collect();
            let total: usize = kinds.iter().map(|(_, count)| count).sum();
            let rest: usize = kinds.iter().skip(MOST).map(|(_, count)| count).sum();
            let mut listed: Vec<String> =
                kinds.iter().take(MOST).map(|(ending, count)| format!("{count} .{ending}")).collect();
            if rest > 0 {
                listed.push(format!("{rest} other"));
            }
            if let Some(last) = listed.pop() {
                let listed =
                    if listed.is_empty() { last } else { format!("{} and {last}", listed.join(", ")) };
                parts.push(format!("{listed} {what}{}", if total == 1 { "" } else { "s" }));
            }
        }
        match self.counts.get("") {
            None => {}
            Some(1) => parts.push("1 file without an ending".into()),
            Some(count) => parts.push(format!("{count} files without an ending")),
        }
        f.write_str(&parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(counts: &[(&str, usize)]) -> NotRead {
        NotRead { counts: counts.iter().map(|(ending, count)| ((*ending).to_owned(), *count)).collect() }
    }

    #[test]
    fn pictures_come_first_and_the_most_frequent_kind_before_others() {
        let files = of(&[("txt", 2), ("heic", 1), ("avif", 3), ("", 1)]);
        assert_eq!(files.to_string(), "3 .avif and 1 .heic pictures, 2 .txt files, 1 file without an ending");
        assert_eq!(files.pictures(), 4);
        assert_eq!(of(&[("json", 1)]).to_string(), "1 .json file");
        assert!(NotRead::default().is_empty());
    }

    #[test]
    fn at_most_six_extensions_are_listed() {
        let endings = ["a", "b", "c", "d", "e", "f", "g", "h"];
        let files = of(&endings.map(|ending| (ending, 1)));
        assert_eq!(files.to_string(), "1 .a, 1 .b, 1 .c, 1 .d, 1 .e, 1 .f and 2 other files");
    }
}
