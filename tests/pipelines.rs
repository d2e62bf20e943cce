//! Text-to-image pipelines in diffusers' layout, for the tests of them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ccm::import::text_to_image;
use ccm::model::json::Json;
use ccm::weights::{HostTensor, TensorFile};

use crate::program::distill;
use crate::{fixtures, references, relative_error};

/// Largest relative error of a value that another program has computed.
const TOLERANCE: f64 = 1e-4;

/// Tensors by name.
pub type Tensors = BTreeMap<String, HostTensor>;

/// The fixtures that are text-to-image pipelines.
pub fn folders() -> Vec<PathBuf> {
    let entries = fs::read_dir(fixtures().join("pipelines")).expect("fixtures").flatten();
    let mut folders: Vec<PathBuf> =
        entries.map(|entry| entry.path()).filter(|path| text_to_image::is_text_to_image(path)).collect();
    folders.sort();
    assert!(folders.len() >= 3, "{folders:?}");
    folders
}

/// Reads a file of tensors.
pub fn tensors(path: &Path) -> Tensors {
    TensorFile::from_bytes(&fs::read(path).expect("reference values")).expect("reference values").tensors
}

/// Reads a JSON file.
pub fn parsed(path: &Path) -> Json {
    Json::parse(&fs::read_to_string(path).unwrap()).unwrap()
}

/// The strings of a list in a JSON object.
pub fn texts(json: &Json, key: &str) -> Vec<String> {
    json.get(key).unwrap().list().unwrap().iter().map(|text| text.text().unwrap().to_owned()).collect()
}

/// Compares values with a reference, and prints the relative error.
///
/// # Panics
/// If it is too large.
pub fn check(what: &str, found: &[f32], expected: &HostTensor) {
    let error = relative_error(found, &expected.values);
    println!("{what}: {error:.1e}");
    assert!(error < TOLERANCE, "{what}: relative error {error:e}");
}

/// Copies a folder with all that is in it.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        match entry.path() {
            folder if folder.is_dir() => copy(&folder, &to.join(entry.file_name())),
            file => fs::write(to.join(entry.file_name()), fs::read(file).unwrap()).unwrap(),
        }
    }
}

/// Writes the weights of a pipeline into a single file, as `references/single_file.py` describes its layout.
pub fn single_file(folder: &Path, path: &Path) {
    let layouts = fs::read_to_string(references().join("single_file.json")).unwrap();
    let layouts: serde_json::Value = serde_json::from_str(&layouts).unwrap();
    let name = folder.file_name().unwrap().to_str().unwrap();
    let mut parts: BTreeMap<String, Tensors> = BTreeMap::new();
    let mut file = Tensors::new();
    for (name, entry) in layouts[name].as_object().unwrap() {
        let part = entry[0].as_str().unwrap();
        let weights = parts.entry(part.to_owned()).or_insert_with(|| {
            let stem = if part.starts_with("text") { "model" } else { "diffusion_pytorch_model" };
            tensors(&folder.join(part).join(format!("{stem}.safetensors")))
        });
        let names: Vec<&str> = match &entry[1] {
            serde_json::Value::Array(names) => names.iter().map(|name| name.as_str().unwrap()).collect(),
            name => vec![name.as_str().unwrap()],
        };
        let mut whole = weights[names[0]].clone();
        for name in &names[1..] {
            whole.shape[0] += weights[*name].shape[0];
            whole.values.extend(&weights[*name].values);
        }
        match entry[2].as_str().unwrap_or("whole") {
            "whole" | "rows" => {}
            "dims" => whole.shape.extend([1, 1]),
            "swapped" => {
                let half = whole.values.len() / 2;
                whole.values.rotate_left(half);
            }
            "transposed" => {
                let [rows, columns] = [whole.shape[0], whole.shape[1]];
                let at = |place: usize| whole.values[place % rows * columns + place / rows];
                whole = HostTensor::new([columns, rows], (0..rows * columns).map(at).collect());
            }
            other => panic!("{other}"),
        }
        file.insert(name.clone(), whole);
    }
    fs::write(path, TensorFile { tensors: file, description: String::new() }.to_bytes()).unwrap();
}

/// `distill import` of a pipeline into one file.
pub fn pack(from: &Path, precision: &str, out: &Path) -> Command {
    let mut command = distill();
    command.arg("import").arg(from).args(["--precision", precision]).arg("--out").arg(out);
    command
}
