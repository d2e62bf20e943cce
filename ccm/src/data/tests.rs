//! Tests of whole sources: equal images from every container, and unreadable images.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Cursor, Write};
use std::path::PathBuf;

use flate2::Compression;
use flate2::write::GzEncoder;
use image::{ImageFormat, Rgb, RgbImage};
use tempfile::TempDir;
use zip::write::{SimpleFileOptions, ZipWriter};

use super::*;

const SHAPE: ImageShape = ImageShape { channels: 3, height: 4, width: 4 };

type Files = Vec<(String, Vec<u8>)>;

fn png(value: u8) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    RgbImage::from_pixel(4, 4, Rgb([value, 0, 255 - value])).write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// Two classes of 30 images each, not sorted; image `k` of a class is filled with `k`.
fn two_classes() -> Files {
    let name = |class: &str, index: u8| (format!("root/{class}/{index:02}.png"), png(index));
    let mut files: Files = (0..30).rev().flat_map(|index| [name("oak", index), name("elm", index)]).collect();
    files.push(("root/readme.txt".to_owned(), b"not an image".to_vec()));
    files.push(("__MACOSX/root/elm/00.png".to_owned(), b"not an image".to_vec()));
    files
}

fn write_folder(root: &Path, files: &Files) -> PathBuf {
    for (name, bytes) in files {
        let path = root.join("folder").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    root.join("folder")
}

fn write_zip(root: &Path, files: &Files) -> PathBuf {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in files {
        writer.start_file(name.as_str(), SimpleFileOptions::default()).unwrap();
        writer.write_all(bytes).unwrap();
    }
    fs::write(root.join("a.zip"), writer.finish().unwrap().into_inner()).unwrap();
    root.join("a.zip")
}

fn tar_bytes(files: &Files) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, name, bytes.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn write_tar(root: &Path, files: &Files) -> PathBuf {
    fs::write(root.join("a.tar"), tar_bytes(files)).unwrap();
    root.join("a.tar")
}

fn write_tgz(root: &Path, files: &Files) -> PathBuf {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(&tar_bytes(files)).unwrap();
    fs::write(root.join("a.tgz"), encoder.finish().unwrap()).unwrap();
    root.join("a.tgz")
}

fn write_all(root: &Path, files: &Files) -> [PathBuf; 4] {
    [write_folder(root, files), write_zip(root, files), write_tar(root, files), write_tgz(root, files)]
}

fn quiet(source: &Path, split: Split) -> Result<Dataset, DataError> {
    load(source, SHAPE, split, LoadOptions::default(), &mut |_| {})
}

#[test]
fn folder_zip_tar_and_tgz_give_the_same_data() {
    let scratch = TempDir::new().unwrap();
    for path in write_all(scratch.path(), &two_classes()) {
        let data = quiet(&path, Split::Train).unwrap();
        assert_eq!(data.classes(), ["elm", "oak"], "{}", path.display());
        // Sorted by path; the 20th image of each class is held out.
        let expected: Vec<u8> = (0..19).chain(20..30).collect();
        let values: Vec<u8> = (0..data.len()).map(|index| data.image(index)[0]).collect();
        assert_eq!(values, [expected.clone(), expected].concat());
        assert_eq!(data.labels(), [vec![0; 29], vec![1; 29]].concat());
        assert_eq!(data.image(1)[32..48], [254; 16], "the blue plane comes last");
        let held_out = quiet(&path, Split::HeldOut).unwrap();
        assert_eq!(
            (held_out.labels(), held_out.image(0)[0], held_out.split()),
            (&[0, 1][..], 19, Split::HeldOut)
        );
    }
}

#[test]
fn one_thread_and_many_give_the_same_data() {
    let scratch = TempDir::new().unwrap();
    let path = write_folder(scratch.path(), &two_classes());
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| quiet(&path, Split::Train)).unwrap()
    };
    assert_eq!(with(1), with(4));
}

#[test]
fn cifar_batches_are_found_in_folders_and_archives() {
    let scratch = TempDir::new().unwrap();
    let batch = |label: u8| [vec![label], vec![label * 20; 3072]].concat();
    let files = vec![
        ("cifar-10-batches-bin/data_batch_1.bin".to_owned(), [batch(3), batch(1)].concat()),
        ("cifar-10-batches-bin/test_batch.bin".to_owned(), batch(7)),
        ("cifar-10-batches-bin/readme.html".to_owned(), b"hello".to_vec()),
    ];
    let [folder, others @ ..] = write_all(scratch.path(), &files);
    for path in [folder.join("cifar-10-batches-bin"), folder].iter().chain(&others) {
        let data = quiet(path, Split::Train).unwrap();
        assert_eq!((data.labels(), data.classes()[3].as_str()), (&[3, 1][..], "cat"));
        assert_eq!((data.image(0), data.image(1)), (&[60; 48][..], &[20; 48][..]));
        assert_eq!(quiet(path, Split::HeldOut).unwrap().labels(), [7]);
    }
}

#[test]
fn idx_files_are_recognised_and_resized() {
    let scratch = TempDir::new().unwrap();
    let images = [&[0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 2][..], &[9; 4], &[200; 4]].concat();
    fs::write(scratch.path().join("train-images-idx3-ubyte"), images).unwrap();
    fs::write(scratch.path().join("train-labels-idx1-ubyte"), [0, 0, 8, 1, 0, 0, 0, 2, 5, 6]).unwrap();
    let data = quiet(scratch.path(), Split::Train).unwrap();
    assert_eq!((data.labels(), data.classes().len()), (&[5, 6][..], 10));
    assert_eq!((data.image(0), data.image(1)), (&[9; 48][..], &[200; 48][..]));
}

#[test]
fn events_report_the_memory_before_decoding_and_every_skipped_image() {
    let scratch = TempDir::new().unwrap();
    let mut files = two_classes();
    files[5].1.truncate(40);
    let spoiled = files[5].0.clone();
    for path in write_all(scratch.path(), &files) {
        let mut log = Vec::new();
        let data = load(&path, SHAPE, Split::Train, LoadOptions::default(), &mut |event| {
            log.push(format!("{event:?}"));
        })
        .unwrap();
        assert_eq!(data.len(), 57);
        assert!(log[0].starts_with("Reading"), "{log:?}");
        assert_eq!(log[1], "Found { images: 58, classes: 2, left_out: 0, bytes: 3016 }");
        assert!(log[2].starts_with("NotRead") && log[2].contains("txt"), "{log:?}");
        assert!(log[3].starts_with(&format!("Unreadable {{ name: {spoiled:?}, reason:")), "{log:?}");
        assert_eq!(log[4..], ["Progress { done: 58, total: 58 }", "Skipped { unreadable: 1, kept: 57 }"]);
        let others = (0..57).map(|index| (data.label(index), data.image(index)[0]));
        assert_eq!(others.filter(|image| *image == (0, 27)).count(), 0, "27 of elm is the spoiled one");
    }
}

#[test]
fn too_many_unreadable_images_are_an_error_that_names_some() {
    let scratch = TempDir::new().unwrap();
    let mut files = two_classes();
    for file in &mut files[..24] {
        file.1.truncate(40);
    }
    let path = write_zip(scratch.path(), &files);
    let with = |max_unreadable| {
        load(&path, SHAPE, Split::Train, LoadOptions { max_unreadable, captions: false }, &mut |_| {})
    };
    let error = with(None).unwrap_err();
    assert!(matches!(error, DataError::TooManyUnreadable { unreadable: 22, total: 58, allowed: 10, .. }));
    assert!(error.to_string().contains("root/elm/18.png ("), "{error}");
    assert!(with(Some(21)).is_err());
    assert_eq!(with(Some(22)).unwrap().len(), 36);
}

#[test]
fn a_source_without_one_readable_image_is_an_error_whatever_the_options() {
    let scratch = TempDir::new().unwrap();
    let path = write_folder(scratch.path(), &vec![("x.png".to_owned(), b"no".to_vec())]);
    let options = LoadOptions { max_unreadable: Some(1000), captions: false };
    let error = load(&path, SHAPE, Split::Train, options, &mut |_| {}).unwrap_err();
    assert!(
        matches!(error, DataError::TooManyUnreadable { unreadable: 1, total: 1, allowed: 0, .. }),
        "{error}"
    );
}

#[test]
fn invalid_sources_are_named() {
    let scratch = TempDir::new().unwrap();
    let missing = scratch.path().join("nowhere");
    assert!(quiet(&missing, Split::Train).unwrap_err().to_string().contains("nowhere does not exist"));
    assert!(matches!(quiet(scratch.path(), Split::Train), Err(DataError::NoImages { .. })));
    let text = scratch.path().join("notes.txt");
    fs::write(&text, "hello").unwrap();
    assert!(matches!(quiet(&text, Split::Train), Err(DataError::Unrecognised { .. })));
    let empty = write_zip(scratch.path(), &Vec::new());
    assert!(matches!(quiet(&empty, Split::Train), Err(DataError::NoImages { .. })));
    let shape = ImageShape { channels: 2, ..SHAPE };
    let refused = load(scratch.path(), shape, Split::Train, LoadOptions::default(), &mut |_| {});
    assert!(matches!(refused, Err(DataError::Shape { .. })));
}
