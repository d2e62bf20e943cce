//! Models of other libraries: the imported network's output and samples agree with the reference values of the library, from
//! the training network and both executors, and through the program.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot read its data has failed")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Int, Tensor, TensorData};
use ccm::import::{Checkpoint, description, diffusers};
use ccm::model::{ModelCard, Role};
use ccm::nn::denoiser::Denoiser;
use ccm::nn::host::{labels_tensor, to_host};
use ccm::sampler::schedule::{Request, Solver};
use ccm::sampler::{Backend, Sampler};
use ccm::train::samples::sample;
use ccm::weights::{HostTensor, Model, TensorFile};
use ccm_tests::program::{distill, succeed};
use ccm_tests::{fixtures, references, relative_error};
use pollster::block_on;

const TOLERANCE: f64 = 1e-4;

/// Folders of pipelines that hold a denoiser of pixels: those of the fixtures, and those of this repository.
fn folders() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = [fixtures().join("pipelines"), references().join("pipelines")]
        .iter()
        .flat_map(|root| fs::read_dir(root).expect("a folder of pipelines").flatten())
        .map(|entry| entry.path())
        .filter(|folder| {
            let class = fs::read_to_string(folder.join("unet/config.json")).unwrap_or_default();
            class.contains("\"UNet2DModel\"") || folder.join("network.pt").exists()
        })
        .collect();
    found.sort();
    assert!(found.len() >= 2, "{found:?}");
    found
}

fn name(folder: &Path) -> String {
    folder.file_name().unwrap().to_string_lossy().into_owned()
}

fn reference(folder: &Path) -> BTreeMap<String, HostTensor> {
    let bytes = fs::read(folder.join("reference.safetensors")).expect("reference values");
    TensorFile::from_bytes(&bytes).expect("reference values").tensors
}

fn read(folder: &Path, role: Role) -> Model {
    if diffusers::is_pipeline(folder) {
        return diffusers::read(folder, Some(role)).expect("a pipeline").model;
    }
    let (checkpoint, text) = description::described_folder(folder).expect("a checkpoint with a description");
    let text = fs::read_to_string(text).unwrap();
    let description = description::description_from_json(&text, role).expect("a description");
    let found = Checkpoint::open(&checkpoint).unwrap().select(&description.spec.tensors(), None).unwrap();
    let card = ModelCard { role, ..ModelCard::default() };
    Model::new(description.spec, description.prediction, card, found.tensors).unwrap()
}

fn labels(io: &BTreeMap<String, HostTensor>) -> Vec<u32> {
    io.get("label").map_or(Vec::new(), |label| label.values.iter().map(|label| *label as u32).collect())
}

/// Tensors of samples with the evaluations that each takes, and the role that they are of.
fn samples(io: &BTreeMap<String, HostTensor>) -> Vec<(&'static str, usize, Role)> {
    let all = [
        ("steps_1", 1, Role::Teacher),
        ("steps_4", 4, Role::Teacher),
        ("one_step_boundary", 1, Role::Student),
        ("one_step", 1, Role::Student),
    ];
    all.into_iter().filter(|(tensor, ..)| io.contains_key(*tensor)).collect()
}

/// `[B, C, H, W]` row by row: some references have rows of very different lengths.
fn assert_close(what: &str, found: &[f32], expected: &HostTensor) {
    let row = expected.values.len() / expected.shape[0];
    for (i, (found, expected)) in found.chunks(row).zip(expected.values.chunks(row)).enumerate() {
        let error = relative_error(found, expected);
        println!("{what}, row {i}: relative error {error:.1e}");
        assert!(error < TOLERANCE, "{what}, row {i}: relative error {error:.2e}");
    }
}

#[test]
fn velocities_agree_with_the_library() {
    let device = Device::flex();
    for folder in folders() {
        let (name, io) = (name(&folder), reference(&folder));
        let Some(velocity) = io.get("velocity") else { continue };
        let denoiser = Denoiser::new(&read(&folder, Role::Teacher), &device);
        let x = &io["straight_x"];
        let x = Tensor::<4>::from_data(TensorData::new(x.values.clone(), x.shape.clone()), &device);
        let label: Option<Tensor<1, Int>> = io.get("label").map(|_| labels_tensor(&labels(&io), &device));
        let found = to_host(denoiser.velocity(x, &io["straight_t"].values, label));
        assert_close(&format!("{name}, velocity"), &found, velocity);
    }
}

#[test]
fn samples_agree_with_the_library() {
    for folder in folders() {
        let (name, io) = (name(&folder), reference(&folder));
        let request = Request { noise: io["noise"].values.clone(), labels: labels(&io), seed: 0 };
        for (tensor, steps, role) in samples(&io) {
            let model = read(&folder, role);
            let denoiser = Denoiser::new(&model, &Device::flex());
            let solver = Solver::of(&model.card);
            let found = sample(&denoiser, solver, &request, steps, 64, &Device::flex()).unwrap();
            assert_close(&format!("{name}, {tensor}, training's network"), &found, &io[tensor]);
            for backend in [Backend::Cpu, Backend::Gpu { api: None, software: true }] {
                let mut sampler = match block_on(Sampler::new(model.clone(), backend)) {
                    Ok(sampler) => sampler,
                    Err(error) => {
                        println!("SKIPPED on a GPU: {error}");
                        continue;
                    }
                };
                let found = block_on(sampler.sample(&request, steps)).unwrap();
                assert_close(&format!("{name}, {tensor}, {}", sampler.info().backend), &found, &io[tensor]);
            }
        }
    }
}

#[test]
fn the_program_imports_and_samples_what_the_library_samples() {
    for folder in folders() {
        let (name, io) = (name(&folder), reference(&folder));
        let temporary = tempfile::tempdir().unwrap();
        let (model, out, noise) = (
            temporary.path().join("m.safetensors"),
            temporary.path().join("x.safetensors"),
            temporary.path().join("n.safetensors"),
        );
        let mut tensors = BTreeMap::from([("x".to_owned(), io["noise"].clone())]);
        tensors.extend(io.get("label").map(|label| ("label".to_owned(), label.clone())));
        fs::write(&noise, TensorFile { tensors, description: String::new() }.to_bytes()).unwrap();
        for (tensor, steps, role) in samples(&io) {
            let mut import = distill();
            import.arg("import").arg(&folder).arg("--out").arg(&model);
            if role == Role::Student && !name.contains("consistency") {
                import.args(["--role", "student"]);
            }
            succeed(&mut import);
            let mut sample = distill();
            sample.arg("sample").arg(&model).arg("--noise").arg(&noise).arg("--out").arg(&out);
            succeed(sample.args(["--steps", &steps.to_string(), "--device", "cpu"]));
            let found = TensorFile::from_bytes(&fs::read(&out).unwrap()).unwrap().take("images").unwrap();
            assert_eq!(found.shape, io[tensor].shape);
            assert_close(&format!("{name}, {tensor}, through the program"), &found.values, &io[tensor]);
        }
    }
}
