//! Training from images on disk.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot read its data has failed")]

use std::fs;
use std::path::Path;
use std::process::Command;

use ccm::data::{self, ImageShape, LoadOptions, Split};
use ccm::train::batches::StageKind;
use ccm_tests::fixtures;
use ccm_tests::program::{
    TINY, assert_same_models, distill, fail, kill_after, picture_folder, resume, succeed,
};
use tempfile::{TempDir, tempdir};

const SHAPE: ImageShape = ImageShape { channels: 3, height: 8, width: 8 };

/// A folder with 120 pictures, and their shards.
fn sources() -> TempDir {
    let folder = tempdir().unwrap();
    let [pictures, shards] = ["pictures", "shards"].map(|name| folder.path().join(name));
    picture_folder(&pictures, 120);
    let mut command = distill();
    command
        .args(["shard", "--shape", "3x8x8", "--each", "16", "--data"])
        .arg(&pictures)
        .arg("--out")
        .arg(&shards);
    let said = succeed(&mut command);
    assert!(said.contains("training: 112 images") && said.contains("held-out: 8 images"), "{said}");
    folder
}

/// A run that streams a source with two threads altogether.
fn streamed(source: &Path, out: &Path, more: &[&str]) -> Command {
    let mut command = distill();
    command.args(["run", "--device", "cpu", "--data"]).arg(source).arg("--out").arg(out).args(TINY);
    command.args([
        "--set",
        "data.streamed=true",
        "--set",
        "data.shuffle_buffer=40",
        "--set",
        "teacher.coupling_images=none",
        "--set",
        "distill.coupling_images=none",
        "--set",
        "run.threads=2",
    ]);
    command.args(more);
    command
}

/// The pixels of all images with the names of their classes, sorted.
fn pixels(source: &Path, split: Split) -> Vec<(String, Vec<u8>)> {
    let images = data::load(source, SHAPE, split, LoadOptions::default(), &mut |_| {}).unwrap();
    let of = |i: usize| (images.classes()[images.label(i) as usize].clone(), images.image(i).to_vec());
    let mut all: Vec<_> = (0..images.len()).map(of).collect();
    all.sort();
    all
}

#[test]
fn shards_hold_the_images_of_their_source() {
    let folder = sources();
    let [pictures, shards] = ["pictures", "shards"].map(|name| folder.path().join(name));
    for split in [Split::Train, Split::HeldOut] {
        assert_eq!(pixels(&shards, split), pixels(&pictures, split));
    }
    let mut names: Vec<String> =
        fs::read_dir(&shards).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names[..2], ["classes.txt", "train-00000.tar"]);
    assert_eq!(names.len(), 1 + 7 + 1);
    // Other programs read them: names without a folder, a class for each image.
    let listed = succeed(Command::new("tar").arg("-tf").arg(shards.join("train-00001.tar")));
    assert_eq!(listed.lines().take(2).collect::<Vec<_>>(), ["000000016.png", "000000016.cls"]);
    let mut again = distill();
    again.args(["shard", "--shape", "3x8x8", "--data"]).arg(&pictures).arg("--out").arg(&shards);
    fail(&mut again, &["--out", "without archives"]);
}

#[test]
fn images_on_disk_are_those_in_memory() {
    let folder = sources();
    let pictures = folder.path().join("pictures");
    let zip = folder.path().join("pictures.zip");
    succeed(Command::new("python3").args(["-m", "zipfile", "-c"]).arg(&zip).arg(&pictures));
    for source in [&pictures, &zip, &folder.path().join("shards")] {
        let streamed = data::open(source, SHAPE, Split::Train, 10, &mut |_| {}).unwrap();
        let every: Vec<usize> = (0..streamed.len()).collect();
        let flip: Vec<bool> = every.iter().map(|i| i % 3 == 0).collect();
        let read = streamed.batch(&every, &flip).unwrap();
        let loaded = data::load(source, SHAPE, Split::Train, LoadOptions::default(), &mut |_| {}).unwrap();
        assert_eq!(streamed.classes(), loaded.classes());
        // Both have the order of the disk.
        let labels: Vec<u32> = every.iter().map(|&i| loaded.label(i)).collect();
        assert_eq!(read.labels, labels, "{}", source.display());
        assert!(read.values == loaded.batch(&every, &flip), "{}", source.display());
    }
}

#[test]
fn a_killed_run_resumes_at_the_same_image() {
    let folder = sources();
    let shards = folder.path().join("shards");
    let [whole, killed, shared] = ["whole", "killed", "shared"].map(|name| folder.path().join(name));
    // Three epochs a stage.
    let longer = ["--set", "teacher.kimg=0.32", "--set", "distill.kimg=0.32"];
    succeed(&mut streamed(&shards, &whole, &longer));
    kill_after(&mut streamed(&shards, &killed, &longer), &killed, StageKind::Teacher, 16);
    kill_after(&mut resume(&killed), &killed, StageKind::Distill, 16);
    succeed(&mut resume(&killed));
    assert_same_models(&whole, &killed);
    // Each of two devices reads its own shards.
    let mut command = streamed(&shards, &shared, &longer);
    let arguments: Vec<String> =
        command.get_args().map(|a| a.to_str().unwrap().replace("cpu", "cpu:0,1")).collect();
    command = distill();
    succeed(command.args(arguments));
    assert_same_models(&whole, &shared);
}

#[test]
fn imagenet64_runs_from_shards_to_figures() {
    let folder = sources();
    let file = |name: &str| folder.path().join(name);
    let mut command = streamed(&file("shards"), &file("run"), &["--preset", "imagenet64"]);
    succeed(command.args(["--set", "run.gradient_checkpointing=true", "--set", "network.num_heads=1"]));
    succeed(
        distill()
            .args(["features", "--device", "cpu", "--shape", "3x8x8", "--epochs", "1", "--data"])
            .arg(file("shards"))
            .arg("--out")
            .arg(file("features.safetensors")),
    );
    let said = succeed(
        distill()
            .args(["eval", "--device", "cpu", "--count", "100"])
            .arg(file("run/student.safetensors"))
            .arg("--data")
            .arg(file("shards"))
            .arg("--features")
            .arg(file("features.safetensors")),
    );
    assert!(said.contains("class accuracy") && said.contains("112 training images"), "{said}");
    // The classes are the names of the folders.
    let said = succeed(distill().arg("inspect").arg(file("run/student.safetensors")));
    assert!(said.contains("bunny"), "{said}");
}

/// A checkpoint with the names of OpenAI's networks, read as EDM's, in the place of a large one.
#[test]
fn imagenet64_runs_from_an_imported_teacher_of_edm() {
    let folder = tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    picture_folder(&file("pictures"), 60);
    let mut shard = distill();
    shard.args(["shard", "--shape", "3x32x32", "--data"]).arg(file("pictures"));
    succeed(shard.arg("--out").arg(file("shards")));
    let configs = fs::read_to_string(fixtures().join("configs.json")).unwrap();
    let configs: serde_json::Value = serde_json::from_str(&configs).unwrap();
    fs::write(file("spec.json"), configs["unet_cond"].to_string()).unwrap();
    let mut import = distill();
    import.arg("import").arg(fixtures().join("unet_cond.pt")).args(["--predicts", "edm", "--spec"]);
    succeed(import.arg(file("spec.json")).arg("--out").arg(file("teacher.safetensors")));
    let teacher = file("teacher.safetensors");
    let given = ["--preset", "imagenet64", "--teacher", teacher.to_str().unwrap()];
    let mut command = streamed(&file("shards"), &file("run"), &given);
    succeed(command.args([
        "--set",
        "distill.kimg=0.064",
        "--set",
        "distill.batch=16",
        "--set",
        "run.tensorboard=true",
    ]));
    let said = succeed(distill().arg("inspect").arg(file("run/student.safetensors")));
    assert!(said.contains("edm") && said.contains("student"), "{said}");
    assert!(file("run/report.html").exists() && file("run/events").exists());
}

#[test]
fn unreadable_images_are_skipped_and_reported() {
    let folder = sources();
    let pictures = folder.path().join("pictures");
    let class = fs::read_dir(&pictures).unwrap().next().unwrap().unwrap().path();
    fs::write(class.join("000-broken.png"), b"no picture").unwrap();
    let said = succeed(&mut streamed(&pictures, &folder.path().join("run"), &["--set", "teacher.kimg=0.32"]));
    assert_eq!(said.matches("000-broken.png").count(), 1, "{said}");
    for entry in fs::read_dir(&pictures).unwrap() {
        for file in fs::read_dir(entry.unwrap().path()).unwrap() {
            fs::write(file.unwrap().path(), b"no picture").unwrap();
        }
    }
    fail(
        &mut streamed(&pictures, &folder.path().join("none"), &[]),
        &["cannot be read", "expected at most 10"],
    );
}

#[test]
fn sources_that_cannot_be_streamed_are_refused() {
    let folder = sources();
    let out = folder.path().join("run");
    let packed = folder.path().join("packed.tgz");
    succeed(Command::new("tar").arg("-czf").arg(&packed).arg("-C").arg(folder.path()).arg("pictures"));
    fail(&mut streamed(&packed, &out, &[]), &["packed.tgz", "distill shard"]);
    fail(&mut streamed(Path::new("shapes"), &out, &[]), &["data.streamed", "false"]);
    let cut = folder.path().join("shards/train-00000.tar");
    let bytes = fs::read(&cut).unwrap();
    fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    fail(&mut streamed(&folder.path().join("shards"), &out, &[]), &["train-00000.tar", "truncated"]);
}
