//! Derives classes and splits from the paths of images. Opens no file.
//!
//! Folders shared by all images are ignored. If some images are under a folder `train` or `training` and some under `test`,
//! `testing`, `val`, `valid` or `validation`, those folders are the splits, and other images are left out. The class is the first
//! remaining folder, as in torchvision's `ImageFolder`; deeper folders do not matter. Images without a class folder
//! form the class `all` if no image has a class folder; otherwise they are left out.

use std::collections::BTreeMap;
use std::path::Path;

use super::content::{Content, Source};
use super::{DataError, Entry, Listing, Split};

/// One in this many images of each class is held out if the source does not define the splits.
const HELD_OUT_EVERY: usize = 20;

/// The class of images without a class folder.
const ONLY_CLASS: &str = "all";

/// Meaning of an image's path.
struct Place<'a> {
    split: Option<Split>,
    class: Option<&'a str>,
    /// The folder inside the class folder.
    below: Option<&'a str>,
}

/// The classes, and what happens to each image of a list.
struct Choices {
    /// Names of the classes, sorted.
    classes: Vec<String>,
    /// A folder inside a class folder, if there is one.
    below: Option<String>,
    /// One choice per image.
    chosen: Vec<Choice>,
}

/// Lists the images of `split` among `found`, sorted by path. Classes are numbered by name, with the same numbers for
/// both splits.
///
/// # Errors
/// [`DataError::NoImages`] and [`DataError::EmptySplit`].
pub(super) fn list(path: &Path, source: Source, split: Split) -> Result<Listing, DataError> {
    let Source { mut found, texts, mut not_read, .. } = source;
    for name in texts.into_keys() {
        not_read.add(name.rsplit_once('.').map_or_else(String::new, |(_, ending)| ending.to_lowercase()));
    }
    // `batches.meta.txt` can be in the list and is not an image.
    found.retain(|name, _| !super::cifar::is_part(name));
    if found.is_empty() {
        return Err(DataError::NoImages { path: path.to_path_buf(), not_read });
    }
    let names: Vec<&str> = found.keys().map(String::as_str).collect();
    let Choices { classes, below, chosen } = choose(&names, split);
    let left_out = chosen.iter().filter(|choice| matches!(choice, Choice::LeftOut)).count();
    let pair = |((name, content), choice): ((String, Content), Choice)| match choice {
        Choice::Taken(label) => Some(Entry { name, label, content }),
        Choice::OtherSplit | Choice::LeftOut => None,
    };
    let entries: Vec<Entry> = found.into_iter().zip(chosen).filter_map(pair).collect();
    if entries.is_empty() {
        let expected = match split {
            Split::Train => "images with a class under a folder train",
            Split::HeldOut => "a folder test, val or valid, or at least two images in a class",
        };
        return Err(DataError::EmptySplit { path: path.to_path_buf(), split, expected });
    }
    Ok(Listing { classes, below, left_out, not_read, entries })
}

/// What happens to an image when one split is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    /// The image is in the split and has this label.
    Taken(u32),
    OtherSplit,
    LeftOut,
}

/// The classes, and one choice for each of the sorted paths `names` when `split` is loaded.
fn choose(names: &[&str], split: Split) -> Choices {
    let places = places(names);
    let has_splits = places.iter().any(|place| place.split.is_some());
    let has_classes = places.iter().any(|place| place.class.is_some());
    let class_of = |place: &Place<'_>| -> Option<String> {
        let in_play = !has_splits || place.split.is_some();
        let class = if has_classes { place.class } else { Some(ONLY_CLASS) };
        class.filter(|_| in_play).map(str::to_owned)
    };
    // Per class: the number of images, and how many of them came before.
    let mut counts: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for class in places.iter().filter_map(class_of) {
        counts.entry(class).or_default().0 += 1;
    }
    let classes: Vec<String> = counts.keys().cloned().collect();
    let choices = places.iter().map(|place| {
        let Some(class) = class_of(place) else {
            return Choice::LeftOut;
        };
        let Ok(label) = classes.binary_search(&class) else {
            return Choice::LeftOut;
        };
        let (total, seen) = counts.entry(class).or_default();
        *seen += 1;
        let own = place.split.unwrap_or_else(|| split_by_position(*seen, *total));
        if own == split { Choice::Taken(label as u32) } else { Choice::OtherSplit }
    });
    let chosen = choices.collect();
    Choices { classes, below: places.iter().find_map(|place| place.below).map(str::to_owned), chosen }
}

/// The split of image `position` (from 1) of the `total` images of a class: every 20th is held out, or the last if
/// there are fewer than 20. The only image of a class is for training.
pub(super) fn split_by_position(position: usize, total: usize) -> Split {
    let held_out = position.is_multiple_of(HELD_OUT_EVERY.min(total));
    if held_out && total > 1 { Split::HeldOut } else { Split::Train }
}

/// The split of each of the sorted paths, whatever its class: that of its folder `train` or `test`; `None` outside of these
/// folders. Without such folders, every 20th image is held out.
pub(super) fn splits(names: &[&str]) -> Vec<Option<Split>> {
    let places = places(names);
    let has_splits = places.iter().any(|place| place.split.is_some());
    let by_position = |place: usize| split_by_position(place + 1, names.len());
    let split =
        |(place, of): (usize, &Place<'_>)| if has_splits { of.split } else { Some(by_position(place)) };
    places.iter().enumerate().map(split).collect()
}

fn places<'a>(names: &[&'a str]) -> Vec<Place<'a>> {
    let folders: Vec<Vec<&str>> = names
        .iter()
        .map(|name| {
            let mut parts: Vec<&str> = name.split('/').collect();
            parts.pop();
            parts
        })
        .collect();
    let shared = shared_folders(folders.iter().map(Vec::as_slice));
    let split_at = |folders: &[&str]| {
        let found = folders.iter().enumerate().skip(shared);
        found.filter_map(|(depth, folder)| named_split(folder).map(|split| (depth, split))).next()
    };
    let splits: Vec<Option<(usize, Split)>> = folders.iter().map(|folders| split_at(folders)).collect();
    let has = |wanted| splits.iter().flatten().any(|(_, split)| *split == wanted);
    let has_splits = has(Split::Train) && has(Split::HeldOut);
    // The path without shared folders and without the folder of the split.
    let remaining = folders.into_iter().zip(splits).map(|(mut folders, split)| {
        let split = split.filter(|_| has_splits);
        if let Some((depth, _)) = split {
            folders.remove(depth);
        }
        (split.map(|(_, split)| split), folders.split_off(shared))
    });
    let remaining: Vec<(Option<Split>, Vec<&str>)> = remaining.collect();
    // Also ignore folders that all classes share inside the splits, such as `animals` in `train/animals/cats` and
    // `val/animals/dogs`. If there is only one class, keep the last folder.
    let in_splits = || remaining.iter().filter(|(split, folders)| split.is_some() && !folders.is_empty());
    let deepest = in_splits().map(|(_, folders)| folders.len()).max().unwrap_or(0);
    let shared = shared_folders(in_splits().map(|(_, folders)| folders.as_slice()));
    let root = shared.min(deepest.saturating_sub(1));
    let place = |(split, folders): (Option<Split>, Vec<&'a str>)| {
        let mut below_root = folders.into_iter().skip(if split.is_some() { root } else { 0 });
        Place { split, class: below_root.next(), below: below_root.next() }
    };
    remaining.into_iter().map(place).collect()
}

/// Number of outermost folders that all images share.
fn shared_folders<'a>(mut folders: impl Iterator<Item = &'a [&'a str]>) -> usize {
    let Some(first) = folders.next() else {
        return 0;
    };
    let same = |other: &[&str]| first.iter().zip(other).take_while(|(a, b)| a == b).count();
    folders.map(same).min().unwrap_or(first.len())
}

fn named_split(folder: &str) -> Option<Split> {
    match folder.to_lowercase().as_str() {
        "train" | "training" => Some(Split::Train),
        "test" | "testing" | "val" | "valid" | "validation" => Some(Split::HeldOut),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::Choice::{LeftOut, OtherSplit, Taken};
    use super::*;
    use crate::data::content::Found;

    fn chosen(names: &[&str], split: Split) -> (Vec<String>, Vec<Choice>) {
        let Choices { classes, chosen, .. } = choose(names, split);
        (classes, chosen)
    }

    /// The classes of images in such folders, and a folder inside a class folder.
    fn classes(folders: &[&str]) -> (Vec<String>, Option<String>) {
        let mut names: Vec<String> = folders.iter().map(|folder| format!("{folder}/x.png")).collect();
        names.sort();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let Choices { classes, below, .. } = choose(&names, Split::Train);
        (classes, below)
    }

    #[test]
    fn the_class_is_the_first_folder_in_which_paths_differ() {
        for (folders, expected, below) in [
            (
                &["pets/cats/2021", "pets/cats/2022", "pets/dogs/2021"][..],
                &["cats", "dogs"][..],
                Some("2021"),
            ),
            (&["cats", "dogs"], &["cats", "dogs"], None),
            (&["data/cats", "data/dogs/old"], &["cats", "dogs"], Some("old")),
            // Equal names in different folders are not merged.
            (&["a/left", "b/left"], &["a", "b"], Some("left")),
            // The split folder is above the class folder, below it, or separated from it by another folder.
            (&["d/train/cats", "d/val/cats", "d/val/dogs"], &["cats", "dogs"], None),
            (&["cats/train", "cats/test", "dogs/train", "dogs/test"], &["cats", "dogs"], None),
            (&["train/animals/cats", "val/animals/cats", "val/animals/dogs"], &["cats", "dogs"], None),
            (&["train/animals/cats/2021", "val/animals/dogs/2021"], &["cats", "dogs"], Some("2021")),
            (&["train/cats", "val/cats"], &["cats"], None),
            // An image outside the class folders is left out, with and without split folders.
            (&["train/animals/cats", "train/animals", "val/animals/dogs"], &["cats", "dogs"], None),
            (&["animals/cats", "animals", "animals/dogs"], &["cats", "dogs"], None),
            (&["x/train/cats", "y/val/cats"], &["x", "y"], Some("cats")),
        ] {
            let expected: Vec<String> = expected.iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(classes(folders), (expected, below.map(str::to_owned)), "{folders:?}");
        }
    }

    #[test]
    fn split_folders_above_classes_are_the_splits() {
        let names =
            ["c/test/cat/1.png", "c/test/owl/1.png", "c/train/ape/1.png", "c/train/cat/1.png", "c/x.png"];
        let (classes, train) = chosen(&names, Split::Train);
        assert_eq!(classes, ["ape", "cat", "owl"], "numbered over both splits");
        assert_eq!(train, [OtherSplit, OtherSplit, Taken(0), Taken(1), LeftOut]);
        let (classes, held_out) = chosen(&names, Split::HeldOut);
        assert_eq!(classes, ["ape", "cat", "owl"]);
        assert_eq!(held_out, [Taken(1), Taken(2), OtherSplit, OtherSplit, LeftOut]);
    }

    #[test]
    fn a_class_called_train_is_a_class() {
        let (classes, train) = chosen(&["boat/1.png", "train/1.png", "train/2.png"], Split::Train);
        assert_eq!(classes, ["boat", "train"]);
        assert_eq!(train, [Taken(0), Taken(1), OtherSplit]);
        let nested = ["train/train/1.png", "val/boat/1.png"];
        assert_eq!(
            chosen(&nested, Split::Train),
            (vec!["boat".into(), "train".into()], vec![Taken(1), OtherSplit])
        );
    }

    #[test]
    fn images_without_a_class_folder_are_one_class_or_left_out() {
        for names in [["1.png", "2.png"], ["d/1.png", "d/2.png"], ["train/1.png", "test/1.png"]] {
            assert_eq!(choose(&names, Split::Train).classes, ["all"], "{names:?}");
        }
        let (classes, choices) = chosen(&["d/a/1.png", "d/b/1.png", "d/preview.png"], Split::Train);
        assert_eq!(classes, ["a", "b"]);
        assert_eq!(choices, [Taken(0), Taken(1), LeftOut]);
        // Test images without labels beside a labelled training set.
        let (classes, choices) = chosen(&["test/1.png", "train/a/1.png", "train/b/1.png"], Split::Train);
        assert_eq!((classes.len(), choices[0]), (2, LeftOut));
    }

    #[test]
    fn every_twentieth_of_a_class_is_held_out_and_the_rest_is_not() {
        for (total, held_out) in [(1, 0), (2, 1), (19, 1), (20, 1), (39, 1), (40, 2), (100, 5)] {
            let names: Vec<String> = (0..total).map(|index| format!("a/{index:03}.png")).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).chain(["b/0.png", "b/1.png"]).collect();
            let taken = |split| {
                let (_, choices) = chosen(&names, split);
                choices.iter().map(|choice| *choice == Taken(0)).collect::<Vec<_>>()
            };
            let (train, test) = (taken(Split::Train), taken(Split::HeldOut));
            assert_eq!(test.iter().filter(|taken| **taken).count(), held_out, "{total}");
            assert!((0..total).all(|index| train[index] != test[index]), "each image in one split");
        }
    }

    #[test]
    fn no_images_and_an_empty_split_are_different_errors() {
        let one = || {
            let found = Found::from([("x.png".to_owned(), Content::Encoded(Vec::new()))]);
            Source { found, ..Source::default() }
        };
        let none = list(Path::new("d"), Source::default(), Split::Train);
        assert!(matches!(none, Err(DataError::NoImages { .. })));
        assert!(matches!(list(Path::new("d"), one(), Split::HeldOut), Err(DataError::EmptySplit { .. })));
        assert_eq!(list(Path::new("d"), one(), Split::Train).unwrap().entries.len(), 1);
    }
}
