//! Shared by the tests: reference values, small models and comparisons.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test that cannot read its data has failed")]

pub mod browser;
pub mod pipelines;
pub mod program;
pub mod site;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};
use ccm::config::EncoderWeights;
use ccm::data::{Examples, ImageShape, Split, shapes};
use ccm::import::{Checkpoint, spec_from_json};
use ccm::method::adversary::Adversary;
use ccm::method::coupling::Coupling;
use ccm::method::curriculum::{Curriculum, Mode, Scope, StepSolver};
use ccm::method::discriminator::{AdversarialLoss, Discriminator};
use ccm::method::distance::Distance;
use ccm::method::guidance::Guidance;
use ccm::method::kdc::PEAK;
use ccm::method::lpips::Trunk;
use ccm::method::views::Augmentation;
use ccm::metrics::file::open;
use ccm::metrics::inception;
use ccm::model::{ModelCard, NetworkSpec, Prediction, TensorSpec, UNetSpec};
use ccm::nn::denoiser::{Denoiser, random_model};
use ccm::nn::optimizer::Schedule;
use ccm::noise::Noise;
use ccm::train::batches::{Ahead, Batches, Conditioning, StageKind};
use ccm::train::distill::Distillation;
use ccm::train::state::TrainState;
use ccm::train::workers::Workers;
use ccm::weights::{HostTensor, Model, TensorFile};
use tempfile::NamedTempFile;

/// Folder of reference values: `CCM_FIXTURES`, or `../shared/fixtures` beside the repository.
pub fn fixtures() -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    match std::env::var_os("CCM_FIXTURES") {
        Some(folder) => root.join(folder),
        None => root.join("../shared/fixtures"),
    }
}

/// The networks of `configs.json`, in file order.
pub fn configurations() -> Vec<(String, NetworkSpec)> {
    let path = fixtures().join("configs.json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    // `serde_json` sorts the keys of a map; the tests need the first configuration of the file.
    let configs: BTreeMap<String, serde_json::Value> = serde_json::from_str(&text).expect("configs.json");
    let mut configs: Vec<_> = configs.into_iter().collect();
    configs.sort_by_key(|(name, _)| text.find(&format!("\"{name}\"")));
    configs
        .into_iter()
        .map(|(name, value)| (name, spec_from_json(&value.to_string()).expect("spec")))
        .collect()
}

/// Reads a model from a checkpoint of the fixtures.
pub fn model(file: &str, spec: &NetworkSpec, key: Option<&str>) -> Model {
    let checkpoint = Checkpoint::open(&fixtures().join(file)).expect("checkpoint");
    let found = checkpoint.select(&spec.tensors(), key).expect("the checkpoint fits its configuration");
    let (prediction, card) = (Prediction::Velocity, ModelCard::default());
    Model::new(spec.clone(), prediction, card, found.tensors).expect("tensors of the network")
}

/// Reads a file of reference tensors.
pub fn tensors(file: &str) -> BTreeMap<String, HostTensor> {
    let bytes = std::fs::read(fixtures().join(file)).expect("reference tensors");
    TensorFile::from_bytes(&bytes).expect("reference tensors").tensors
}

/// Folder of reference values of other programs, with the scripts that compute them.
pub fn references() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("references")
}

/// Deterministic values in [0, 1) that depend only on the number of the tensor and the index, as in
/// `references/formula.py`.
pub fn uniform(tensor: usize, count: usize) -> impl Iterator<Item = f64> {
    (0..count as u64).map(move |i| {
        let mut h = i.wrapping_mul(0x9E37_79B1) + tensor as u64 * 0x85EB_CA6B;
        for (shift, factor) in [(15, 0x2C1B_3C6D), (12, 0x297A_2D39), (15, 1)] {
            h &= 0xFFFF_FFFF;
            h = (h ^ (h >> shift)).wrapping_mul(factor);
        }
        (h & 0xFFFF_FFFF) as f64 / 4_294_967_296.0
    })
}

/// Weights of the LPIPS trunk and heads, as in `references/lpips.py`.
pub fn lpips_weights(trunk: Trunk) -> [BTreeMap<String, HostTensor>; 2] {
    let mut shapes = trunk.tensors().concat();
    shapes.sort_by(|a, b| a.name.cmp(&b.name));
    let tensors = shapes.into_iter().enumerate().map(|(number, TensorSpec { name, shape })| {
        let count: usize = shape.iter().product();
        let bound = (6.0 / (count / shape[0]) as f64).sqrt();
        let value = |u: f64| match (name.starts_with("lin"), shape.len()) {
            (true, _) => u,
            (false, 2..) => (2.0 * u - 1.0) * bound,
            (false, _) => u - 0.5,
        };
        let values = uniform(number, count).map(|u| value(u) as f32).collect();
        (name.clone(), HostTensor::new(shape.clone(), values))
    });
    let (heads, features) = tensors.partition(|(name, _): &(String, _)| name.starts_with("lin"));
    [features, heads]
}

/// Writes weights of the FID's Inception-v3, as in `references/inception.py`.
///
/// # Panics
/// If the file cannot be written.
pub fn write_inception(path: &Path) {
    let mut shapes = inception::tensors();
    shapes.sort_by(|a, b| a.name.cmp(&b.name));
    let tensors = shapes.into_iter().enumerate().map(|(number, TensorSpec { name, shape })| {
        let count: usize = shape.iter().product();
        let bound = (6.0 / (count / shape[0]) as f64).sqrt();
        let spread = name.ends_with("bn.weight") || name.ends_with("running_var");
        let value = |u: f64| match shape.len() {
            2.. => (2.0 * u - 1.0) * bound,
            _ if spread => u + 0.5,
            _ => u - 0.5,
        };
        let values = uniform(number, count).map(|u| value(u) as f32).collect();
        (name, HostTensor::new(shape.clone(), values))
    });
    let file = TensorFile { tensors: tensors.collect(), ..TensorFile::default() };
    std::fs::write(path, file.to_bytes()).expect("a file of weights");
}

/// Compares the FID's Inception-v3 with features and logits of pytorch-fid (`references/inception.py`).
///
/// # Panics
/// If they differ.
pub fn agrees_with_pytorch_fid(device: &Device) {
    let reference = std::fs::read(references().join("inception.safetensors")).expect("a file");
    let expected = TensorFile::from_bytes(&reference).expect("a reference").tensors;
    let weights = NamedTempFile::with_suffix(".safetensors").expect("a temporary file");
    write_inception(weights.path());
    let network = open(weights.path(), device).expect("weights");
    let shape = [2, 3, 20, 17];
    let images = uniform(1000, shape.iter().product()).map(|u| 2.0 * u as f32 - 1.0).collect::<Vec<_>>();
    let seen = network.extract(Tensor::from_data(TensorData::new(images, shape), device));
    for (what, found) in [("features", &seen.features), ("logits", &seen.logits)] {
        let error = relative_error(found, &expected[what].values);
        println!("{what}: relative error {error:.1e}");
        assert!(error < 1e-4, "{what}: relative error {error:.2e}");
    }
}

/// `|found - expected| / |expected|`.
pub fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len(), "number of values");
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut found.iter().zip(expected).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    difference / norm(&mut expected.iter().map(|value| f64::from(*value)))
}

/// A network that evaluates fast: 8x8 RGB images of eight classes, two levels, attention at the lower one.
pub fn small_spec() -> UNetSpec {
    UNetSpec {
        in_channels: 3,
        height: 8,
        width: 8,
        model_channels: 32,
        num_res_blocks: 1,
        channel_mult: vec![1.0, 2.0],
        attention_resolutions: vec![4],
        num_heads: 2,
        num_head_channels: None,
        num_heads_upsample: None,
        use_scale_shift_norm: false,
        resblock_updown: false,
        use_new_attention_order: false,
        dropout: 0.0,
        num_classes: Some(8),
        patch_size: 1,
    }
}

/// Eight images for [`small_spec`].
pub fn small_data() -> Examples {
    shapes(8, ImageShape { channels: 3, height: 8, width: 8 }, Split::Train, 1).expect("shapes").into()
}

/// A distillation of [`small_spec`] before its first step, with `batch` images per step.
pub fn small_distillation<'a>(
    spec: impl Into<NetworkSpec>,
    data: &'a Examples,
    batch: usize,
    scope: Scope,
    workers: Workers,
    device: &Device,
) -> Distillation<'a> {
    let model = lively_model(spec);
    Distillation {
        batches: Batches {
            data,
            stage: StageKind::Distill,
            seed: 1,
            size: batch,
            coupling: Coupling::OptimalTransport,
            batches_per_plan: 1,
            horizontal_flip: true,
            conditioning: Conditioning::Labels,
            rows: (0..batch).collect(),
            device: device.clone(),
            ahead: Ahead::default(),
        },
        schedule: Schedule {
            learning_rate: 1e-3,
            warmup_steps: 1,
            steps: u64::MAX,
            cooldown: 0.0,
            gradient_clip: 1.0,
        },
        workers,
        curriculum: Curriculum {
            mode: Mode::Cd,
            scope,
            threshold: 60.0,
            peak: PEAK,
            step_size: 0.5,
            step_shift: 1.0,
            solver: StepSolver::Euler,
            pad_to: None,
        },
        distance: Distance::PseudoHuber,
        adversary: None,
        time_alpha: 1.0,
        teacher: Denoiser::new(&model, device).into(),
        state: TrainState::new(&model, &[0.9, 0.999], device),
    }
}

/// Adds a discriminator whose loss has its full weight from the first step on.
pub fn oppose(distillation: &mut Distillation<'_>, weights: EncoderWeights, device: &Device) {
    let spec = distillation.teacher.denoiser.spec().clone();
    let encoder = Arc::new(Denoiser::frozen(&lively_model(&spec), device));
    let trained = (weights == EncoderWeights::Trained).then(|| encoder.encoder());
    distillation.adversary = Some(Adversary {
        encoder,
        loss: AdversarialLoss::Hinge,
        weight: 1.0,
        from: 0,
        warmup_steps: 0,
        learning_rate: 1e-3,
        augmentation: Augmentation { noise_power: 1.0, translation: 1 },
    });
    let untrained = Discriminator::new(&spec, 5, trained, device);
    distillation.state.discriminator = Some(Discriminator { balance: 1.0, ..untrained });
}

/// Leads the teacher away from a weaker one, a network with other weights.
pub fn guide(distillation: &mut Distillation<'_>, device: &Device) {
    let spec = distillation.teacher.denoiser.spec().clone();
    let weaker = Denoiser::frozen(&random_model(spec, &Prediction::Velocity, 6), device);
    distillation.teacher.guidance = Guidance::Auto { weaker, scale: 2.0, until: 0.5 };
}

/// A model with random weights, none of them zero, so that every layer affects the output.
pub fn lively_model(spec: impl Into<NetworkSpec>) -> Model {
    let mut model = random_model(spec, &Prediction::Velocity, 3);
    for (i, tensor) in model.tensors.iter_mut().enumerate() {
        let mut noise = Noise::new(4, i as u64);
        for value in &mut tensor.values {
            *value += 0.05 * noise.normal();
        }
    }
    model
}
