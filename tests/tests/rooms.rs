//! The structure of the library: which module may use which, and which crates each feature adds.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot read its data has failed")]

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Every top-level module (room), and the rooms that it may use.
const MAY_USE: [(&str, &[&str]); 16] = [
    ("noise", &[]),
    ("simd", &[]),
    ("model", &[]),
    ("weights", &["model"]),
    ("sampler", &["model", "noise", "simd", "weights"]),
    ("nn", &["model", "noise", "simd", "weights"]),
    ("method", &["model", "nn", "noise", "weights"]),
    ("disk", &["model", "weights"]),
    ("export", &["model", "sampler", "weights"]),
    ("pipeline", &["model", "sampler", "weights"]),
    ("import", &["disk", "model", "pipeline", "weights"]),
    ("data", &["disk", "model", "noise", "weights"]),
    ("config", &["method", "model"]),
    ("report", &[]),
    ("metrics", &["data", "disk", "import", "nn", "noise", "sampler", "model", "weights"]),
    (
        "train",
        &[
            "config", "data", "disk", "import", "method", "metrics", "nn", "noise", "pipeline", "report",
            "sampler", "model", "weights",
        ],
    ),
];

fn library() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../ccm/src")
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The rooms that a file uses outside of its tests: the words after `crate::`.
fn uses(text: &str) -> BTreeSet<&str> {
    let program = text.split("#[cfg(test)]").next().unwrap();
    let code = program.lines().filter(|line| !line.trim_start().starts_with("//"));
    let words = code.flat_map(|line| line.split("crate::").skip(1));
    words.map(|rest| rest.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).next().unwrap()).collect()
}

#[test]
fn every_room_uses_only_the_rooms_below_it() {
    let may_use = BTreeMap::from(MAY_USE);
    let mut files = Vec::new();
    sources(&library(), &mut files);
    assert!(files.len() > 50, "{} files", files.len());
    for file in files {
        let inside = file.strip_prefix(library()).unwrap();
        let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
        let room = first.strip_suffix(".rs").unwrap_or(first);
        let name = inside.file_name().unwrap();
        // Skip tests, the program (whose `crate` is its own) and the list of rooms.
        if name == "tests.rs" || room == "bin" || room == "lib" {
            continue;
        }
        let allowed =
            may_use.get(room).unwrap_or_else(|| panic!("{}: a room without a rule", file.display()));
        for used in uses(&fs::read_to_string(&file).unwrap()) {
            assert!(
                used == room || allowed.contains(&used),
                "{}: `{room}` uses `{used}`, which is not among {allowed:?}",
                inside.display()
            );
        }
    }
}

#[test]
fn the_rules_have_no_cycles() {
    // A room is listed after all rooms that it uses.
    for (i, (room, allowed)) in MAY_USE.iter().enumerate() {
        for used in *allowed {
            let before = MAY_USE[..i].iter().any(|(earlier, _)| earlier == used);
            assert!(before, "{room} uses {used}, which comes after it");
        }
    }
}

#[test]
fn no_two_subcommands_use_each_other() {
    let mut files = Vec::new();
    sources(&library().join("bin/distill"), &mut files);
    let name = |file: &Path| file.file_stem().unwrap().to_str().unwrap().to_owned();
    let texts: BTreeMap<String, String> =
        files.iter().map(|file| (name(file), fs::read_to_string(file).unwrap())).collect();
    let graph: BTreeMap<&str, BTreeSet<&str>> = texts
        .iter()
        .map(|(file, text)| (file.as_str(), uses(text)))
        .map(|(file, used)| (file, used.into_iter().filter(|used| texts.contains_key(*used)).collect()))
        .collect();
    assert!(graph.len() > 8, "{} files", graph.len());
    for file in graph.keys() {
        let mut reached: BTreeSet<&str> = BTreeSet::new();
        let mut next: Vec<&str> = graph[file].iter().copied().collect();
        while let Some(used) = next.pop() {
            if reached.insert(used) {
                next.extend(&graph[used]);
            }
        }
        assert!(!reached.contains(file), "{file}.rs uses itself by way of {reached:?}");
    }
}

#[test]
fn the_library_without_the_program_has_no_crates_of_the_command_line() {
    let library =
        tree(&["--package", "ccm", "--no-default-features", "--features", "train", "--edges", "normal"]);
    assert!(library.contains("burn v"), "{library}");
    for name in ["clap", "ctrlc", "indicatif", "mimalloc"] {
        assert!(
            !library.lines().any(|line| line.starts_with(&format!("{name} v"))),
            "the library uses {name}"
        );
    }
}

#[test]
fn the_sampler_alone_has_no_crates_of_training() {
    let sampler = tree(&["--package", "ccm", "--no-default-features", "--edges", "normal"]);
    for name in ["burn", "cubecl", "image v", "clap", "zip", "nalgebra"] {
        assert!(!sampler.lines().any(|line| line.starts_with(name)), "the sampler uses {name}");
    }
}

/// Otherwise, starting the program after the tests would build Burn again.
#[test]
fn program_and_tests_share_one_build_of_burn() {
    let features = |flags: &[&str]| tree(&[flags, &["--format", "{p} with {f}"]].concat());
    let tests = features(&["--workspace", "--edges", "normal,build,dev"]);
    let program = features(&["--package", "ccm", "--package", "ccm-web", "--edges", "normal,build"]);
    let plain = |line: &str| line.trim_end_matches(" (*)").to_owned();
    let tests: HashSet<String> = tests.lines().map(plain).collect();
    let other: Vec<String> = program.lines().map(plain).filter(|line| !tests.contains(line)).collect();
    assert!(other.is_empty(), "with other features in the tests: {other:?}");
}

/// The output of `cargo tree`, one package per line.
fn tree(flags: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--prefix", "none"])
        .args(["--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml")])
        .args(flags)
        .output()
        .unwrap();
    let tree = String::from_utf8(output.stdout).unwrap();
    assert!(tree.contains("wgpu v"), "not a dependency tree: {tree}");
    tree
}
