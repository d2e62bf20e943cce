//! Models in diffusers' layout give the images of the model file. `references/export_check.py` compares with diffusers itself.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot read its data has failed")]

use std::fs;

use ccm::export::{diffusers as files_of, to_unet2d};
use ccm::import::diffusers;
use ccm::model::prediction::{Betas, Edm, Schedule};
use ccm::model::{NetworkSpec, Prediction, Role, UNetSpec};
use ccm::sampler::schedule::Request;
use ccm::sampler::{Backend, Sampler};
use ccm::weights::Model;
use ccm_tests::program::{distill, fail, succeed};
use ccm_tests::{lively_model, relative_error, small_spec};
use pollster::block_on;
use tempfile::tempdir;

/// ADM's networks that together use every option that a `UNet2DModel` has.
fn specs() -> Vec<UNetSpec> {
    let small = small_spec();
    vec![
        UNetSpec { num_head_channels: Some(16), ..small.clone() },
        UNetSpec {
            use_scale_shift_norm: true,
            resblock_updown: true,
            use_new_attention_order: true,
            num_res_blocks: 2,
            num_head_channels: Some(32),
            num_classes: None,
            ..small.clone()
        },
        UNetSpec {
            channel_mult: vec![1.0, 1.0, 2.0],
            attention_resolutions: vec![8, 4],
            num_head_channels: Some(8),
            in_channels: 1,
            width: 16,
            ..small.clone()
        },
        UNetSpec { attention_resolutions: vec![4], num_heads: 4, ..small },
    ]
}

fn images(model: Model, steps: usize) -> Vec<f32> {
    let labels = [1, 2, 0];
    let request = Request::from_seeds(&model.spec, 3, &labels, 3);
    let mut sampler = block_on(Sampler::new(model, Backend::Cpu)).unwrap();
    block_on(sampler.sample(&request, steps)).unwrap()
}

#[test]
fn a_network_of_adm_is_the_same_as_a_unet2dmodel() {
    for spec in specs() {
        let model = lively_model(&spec);
        let converted = to_unet2d(&model).unwrap();
        assert!(matches!(converted.spec, NetworkSpec::UNet2D(_)));
        assert_eq!(converted.spec.parameters(), model.spec.parameters());
        let error = relative_error(&images(converted, 2), &images(model, 2));
        assert!(error < 1e-5, "{spec:?}: {error:.1e}");
    }
}

#[test]
fn a_folder_imported_again_gives_the_same_images() {
    let schedule = Schedule {
        betas: Betas::Table((1..=100).map(|i| 0.001 * f64::from(i)).collect()),
        steps: 100,
        ..Schedule::default()
    };
    let boundary = Edm { boundary: true, ..Edm::default() };
    for (prediction, role, pipeline) in [
        (Prediction::Noise(Schedule::default()), Role::Teacher, Some("DDIMPipeline")),
        (
            Prediction::Data(Schedule { betas: Betas::Cosine, ..Schedule::default() }),
            Role::Student,
            Some("DDIMPipeline"),
        ),
        (Prediction::V(schedule), Role::Teacher, Some("DDIMPipeline")),
        (Prediction::Edm(boundary), Role::Student, Some("ConsistencyModelPipeline")),
        (Prediction::NoiseMinusData { shift: 3.0 }, Role::Teacher, Some("DDPMPipeline")),
    ] {
        let mut model = lively_model(UNetSpec { num_classes: None, ..small_spec() });
        (model.prediction, model.card.role) = (prediction, role);
        let folder = tempdir().unwrap();
        for (file, bytes) in files_of(&model, 4).unwrap() {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        let index = fs::read_to_string(folder.path().join("model_index.json")).ok();
        assert_eq!(index.is_some(), pipeline.is_some());
        assert!(index.zip(pipeline).is_none_or(|(index, pipeline)| index.contains(pipeline)));
        let read = diffusers::read(folder.path(), Some(role)).unwrap().model;
        assert_eq!((&read.prediction, read.card.role), (&model.prediction, role));
        let error = relative_error(&images(read, 4), &images(model, 4));
        assert!(error < 1e-5, "{error:.1e}");
    }
}

#[test]
fn the_program_writes_a_whole_folder_or_none() {
    let folder = tempdir().unwrap();
    let (model, out) = (folder.path().join("model.safetensors"), folder.path().join("diffusers"));
    fs::write(&model, lively_model(UNetSpec { num_head_channels: Some(16), ..small_spec() }).to_bytes())
        .unwrap();
    let export = |out: &std::path::Path| {
        let mut command = distill();
        command.arg("export").arg(&model).args(["--layout", "diffusers", "--out"]).arg(out);
        command
    };
    let said = succeed(&mut export(&out));
    assert!(said.contains("unet/config.json") && said.contains("sample.py"), "{said}");
    assert!(out.join("unet/diffusion_pytorch_model.safetensors").exists() && !out.join("scheduler").exists());
    fail(&mut export(&out), &["--out", "diffusers", "expected a new or empty folder"]);
    let other = folder.path().join("other");
    fail(export(&other).args(["--precision", "q8"]), &["--precision", "f32", "q8"]);
    fail(export(&other).args(["--steps", "0"]), &["--steps: expected 1 to 10000, found 0"]);
    fail(distill().arg("export").arg(&model).arg("--out").arg(&out), &["--precision"]);

    // Heads of several widths.
    let spec = UNetSpec { attention_resolutions: vec![8, 4], num_heads: 2, ..small_spec() };
    fs::write(&model, lively_model(&spec).to_bytes()).unwrap();
    fail(&mut export(&other), &["model.safetensors", "num_heads"]);
    assert!(!other.exists());
}
