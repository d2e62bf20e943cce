//! What the tests share: where the reference fixtures are, and how far apart two results may be.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test that cannot read its data has failed")]

pub mod program;

use std::collections::BTreeMap;
use std::path::PathBuf;

use ccm::noise::Noise;
use ccm::spec::{ModelCard, UNetSpec};
use ccm::train::import::{read_checkpoint, spec_from_json};
use ccm::train::unet::random_model;
use ccm::weights::{HostTensor, Model, TensorFile};

/// The folder of reference numbers: `CCM_FIXTURES`, or `../shared/fixtures` beside the repository.
pub fn fixtures() -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    match std::env::var_os("CCM_FIXTURES") {
        Some(folder) => root.join(folder),
        None => root.join("../shared/fixtures"),
    }
}

/// The networks of `configs.json`, in the order of the file.
pub fn configurations() -> Vec<(String, UNetSpec)> {
    let path = fixtures().join("configs.json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    // A map of `serde_json` sorts its keys; the first configuration of the file has a meaning.
    let configs: BTreeMap<String, serde_json::Value> = serde_json::from_str(&text).expect("configs.json");
    let mut configs: Vec<_> = configs.into_iter().collect();
    configs.sort_by_key(|(name, _)| text.find(&format!("\"{name}\"")));
    configs
        .into_iter()
        .map(|(name, value)| (name, spec_from_json(&value.to_string()).expect("spec")))
        .collect()
}

/// The model in a checkpoint of the fixtures.
pub fn model(file: &str, spec: &UNetSpec, key: Option<&str>) -> Model {
    let tensors = read_checkpoint(&fixtures().join(file), key).expect("checkpoint");
    Model::new(spec.clone(), ModelCard::default(), tensors).expect("the checkpoint fits its configuration")
}

/// A file of reference tensors.
pub fn tensors(file: &str) -> BTreeMap<String, HostTensor> {
    let bytes = std::fs::read(fixtures().join(file)).expect("reference tensors");
    TensorFile::from_bytes(&bytes).expect("reference tensors").tensors
}

/// `|found - expected| / |expected|`.
pub fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len(), "number of values");
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut found.iter().zip(expected).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    difference / norm(&mut expected.iter().map(|value| f64::from(*value)))
}

/// Random weights of which none is zero, so that every layer has a say.
pub fn lively_model(spec: &UNetSpec) -> Model {
    let mut model = random_model(spec, 3);
    for (i, tensor) in model.tensors.iter_mut().enumerate() {
        let mut noise = Noise::new(4, i as u64);
        for value in &mut tensor.values {
            *value += 0.05 * noise.normal();
        }
    }
    model
}
