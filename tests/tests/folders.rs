//! Typical folders and archives of images.
#![allow(clippy::unwrap_used, reason = "a test that cannot read its data has failed")]

use std::path::PathBuf;

use ccm::data::{Dataset, ImageShape, LoadOptions, Split, load};
use ccm_tests::fixtures;
use ccm_tests::program::{TINY, distill, fail, succeed};
use tempfile::tempdir;

const SHAPE: ImageShape = ImageShape { channels: 3, height: 8, width: 8 };

fn case(file: &str) -> PathBuf {
    fixtures().join("../cases").join(file)
}

fn loaded(file: &str) -> Dataset {
    load(&case(file), SHAPE, Split::Train, LoadOptions::default(), &mut |_| {}).unwrap()
}

/// The output of a short run about its data.
fn printed(file: &str) -> Vec<String> {
    let folder = tempdir().unwrap();
    let mut run = distill();
    run.args(["run", "--preset", "cifar10-small", "--device", "cpu"]).args(TINY);
    let said = succeed(run.arg("--data").arg(case(file)).arg("--out").arg(folder.path().join("run")));
    said.lines().filter(|line| line.starts_with("data:")).map(str::to_owned).collect()
}

#[test]
fn nested_folders_belong_to_the_class_above_them() {
    let data = loaded("nested_classes.zip");
    assert_eq!(data.classes(), ["cats", "dogs"]);
    let of_class = |class| data.labels().iter().filter(|label| **label == class).count();
    assert_eq!((of_class(0), of_class(1)), (11, 11), "twelve of each, of which one is held out");
    let lines = printed("nested_classes.zip");
    let told: Vec<&String> = lines.iter().filter(|line| line.contains("cats, dogs")).collect();
    assert_eq!(told.len(), 1, "{lines:?}");
    assert!(told[0].contains("such as 2021"), "{}", told[0]);
}

#[test]
fn every_file_is_read_or_counted() {
    // Twelve PNG files and five TIFF files, one of them held out.
    assert_eq!(loaded("mixed_formats.zip").len(), 16);
    let lines = printed("mixed_formats.zip");
    let told: Vec<&String> = lines.iter().filter(|line| line.contains("not read")).collect();
    assert_eq!(told.len(), 1, "{lines:?}");
    assert!(told[0].contains("not read: 3 .avif and 1 .heic pictures, 1 .txt file ("), "{}", told[0]);
}

#[test]
fn a_folder_without_readable_images_names_what_it_holds() {
    let folder = tempdir().unwrap();
    let photos = folder.path().join("photos");
    std::fs::create_dir(&photos).unwrap();
    for name in ["a.heic", "b.heic", "c.jxl", "notes"] {
        std::fs::write(photos.join(name), "x").unwrap();
    }
    let mut run = distill();
    run.args(["run", "--preset", "mnist", "--device", "cpu", "--data"]).arg(&photos);
    let found = "found 2 .heic and 1 .jxl pictures, 1 file without an ending";
    fail(run.arg("--out").arg(folder.path().join("run")), &["photos holds no images", "TIFF", found]);
}
