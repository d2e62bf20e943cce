//! The sampler agrees with PyTorch, and with the network used in training: on the CPU and on the available adapter.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot read its data has failed")]

use burn::tensor::Device;
use ccm::model::{NetworkSpec, Role, UNetSpec};
use ccm::nn::denoiser::Denoiser;
use ccm::sampler::rounding::round;
use ccm::sampler::schedule::{Request, Solver};
use ccm::sampler::{Backend, Sampler};
use ccm::train::samples::sample;
use ccm::weights::{HostTensor, Model, Precision};
use ccm_tests::{configurations, lively_model, model, relative_error, tensors};
use pollster::block_on;

const TOLERANCE: f64 = 1e-4;

/// A sampler on the CPU, and one on an adapter if there is any, software adapters included.
fn samplers(model: &Model) -> Vec<Sampler> {
    let gpu = Backend::Gpu { api: None, software: true };
    let load = |backend| block_on(Sampler::load(&model.to_bytes(), backend));
    let mut samplers = vec![load(Backend::Cpu).unwrap()];
    match load(gpu) {
        Ok(sampler) => samplers.push(sampler),
        Err(error) => println!("SKIPPED on a GPU: {error}"),
    }
    samplers
}

#[test]
fn samples_agree_with_pytorch() {
    for (name, spec) in configurations() {
        let io = tensors(&format!("{name}_io.safetensors"));
        let integers = |label: &HostTensor| label.values.iter().map(|value| *value as u32).collect();
        let labels = io.get("label").map(integers).unwrap_or_default();
        let request = Request { noise: io["x"].values.clone(), labels, ..Request::default() };
        for mut sampler in samplers(&model(&format!("{name}.pt"), &spec, None)) {
            for (tensor, steps) in [("one_step", 1), ("euler_4", 4)] {
                let found = block_on(sampler.sample(&request, steps)).unwrap();
                let error = relative_error(&found, &io[tensor].values);
                let backend = sampler.info().backend;
                println!("{name}, {tensor}, {backend}: relative error {error:.1e}");
                assert!(error < TOLERANCE, "{name}, {tensor}, {backend}: relative error {error:.2e}");
            }
        }
    }
}

/// Networks that together use every option.
fn specs() -> Vec<NetworkSpec> {
    let spec = |json: &str| NetworkSpec::from(serde_json::from_str::<UNetSpec>(json).unwrap());
    vec![
        spec(
            r#"{"in_channels": 1, "height": 12, "width": 20, "model_channels": 32, "num_res_blocks": 1,
                "channel_mult": [1, 2], "attention_resolutions": [10], "num_heads": 4, "num_heads_upsample": 2,
                "use_scale_shift_norm": true, "resblock_updown": true, "num_classes": 3}"#,
        ),
        spec(
            r#"{"in_channels": 3, "height": 8, "width": 8, "model_channels": 64, "num_res_blocks": 2,
                "channel_mult": [1, 1.5], "attention_resolutions": [8, 4], "num_heads": 16,
                "use_new_attention_order": true}"#,
        ),
        spec(
            r#"{"in_channels": 3, "height": 8, "width": 12, "model_channels": 32, "num_res_blocks": 1,
                "channel_mult": [1, 3], "num_head_channels": 6, "num_classes": 10}"#,
        ),
        spec(
            r#"{"in_channels": 3, "height": 8, "width": 12, "model_channels": 32, "num_res_blocks": 1,
                "channel_mult": [1, 1], "attention_resolutions": [6], "patch_size": 2, "num_classes": 4}"#,
        ),
        spec(
            r#"{"in_channels": 1, "height": 24, "width": 36, "model_channels": 32, "num_res_blocks": 1,
                "channel_mult": [1, 1], "patch_size": 3}"#,
        ),
    ]
}

#[test]
fn every_option_gives_the_images_of_the_training_network() {
    for spec in specs() {
        spec.validate().unwrap();
        for role in [Role::Student, Role::Teacher] {
            let mut model = lively_model(&spec);
            model.card.role = role;
            let labels: Vec<u32> = (0..5).map(|i| i % spec.num_classes().unwrap_or(1) as u32).collect();
            let request = Request::from_seeds(&spec, 7, &labels, 5);
            let unet = Denoiser::new(&model, &Device::flex());
            let solver = Solver::of(&model.card);
            let steps = solver.steps(unet.path(), solver.grid(unet.path()), 3).unwrap();
            let expected = sample(&unet.clone().into(), &request, &steps, 2, &Device::flex());
            for mut sampler in samplers(&model) {
                let found = block_on(sampler.sample(&request, 3)).unwrap();
                let error = relative_error(&found, &expected);
                let backend = sampler.info().backend;
                assert!(error < TOLERANCE, "{role}, {backend}, {spec:?}: {error:.2e}");
            }
        }
    }
}

#[test]
fn a_rounded_model_is_smaller_and_its_card_has_the_rounding_error() {
    let spec = specs().remove(0);
    let mut model = lively_model(&spec);
    model.card.role = Role::Student;
    let size = model.to_bytes().len();
    for (precision, share, most) in [(Precision::F16, 0.52, 2.0), (Precision::Q8, 0.3, 20.0)] {
        let rounded = block_on(round(model.clone(), precision, Backend::Cpu)).unwrap();
        let bytes = rounded.to_bytes();
        assert!((bytes.len() as f64) < share * size as f64, "{precision}: {} of {size} bytes", bytes.len());
        assert_eq!(Model::from_bytes(&bytes).unwrap(), rounded, "{precision}: what is written is read");
        assert_eq!(rounded.clone().rounded(precision).unwrap(), rounded, "{precision}: rounding twice");
        let rounding = rounded.card.rounding.expect("the card of a rounded model");
        assert!(rounding.rms > 0.0 && rounding.rms < most, "{precision}: {rounding}");
        // Measure the error here too: executors that expand weights in the kernel must give the same images.
        let request = Request::from_seeds(&spec, 0, &(0..16).map(|i| i % 3).collect::<Vec<_>>(), 16);
        let picture = |sampler: &mut Sampler| block_on(sampler.sample(&request, 1)).unwrap();
        let before = picture(&mut samplers(&model)[0]);
        for mut sampler in samplers(&rounded) {
            let squares = picture(&mut sampler)
                .into_iter()
                .zip(&before)
                .map(|(a, b)| (127.5 * f64::from(a.clamp(-1.0, 1.0) - b.clamp(-1.0, 1.0))).powi(2));
            let rms = (squares.sum::<f64>() / before.len() as f64).sqrt();
            let info = sampler.info();
            println!("{precision} on {}, computed in {}: {rms:.3}/255", info.backend, info.precision);
            // The error on the card is measured in f32; adapters with f16 add their own rounding error.
            let also = if info.precision == "f16" { 0.2 } else { 0.0 };
            assert!(rms > 0.75 * rounding.rms, "{precision}: {rms} and {rounding}");
            assert!(rms < 1.25 * rounding.rms + also, "{precision}: {rms} and {rounding}");
        }
    }
}

#[test]
fn a_lost_device_is_reopened_at_the_next_call() {
    let model = lively_model(&specs()[1]);
    let request = Request::from_seeds(&model.spec, 7, &[], 1);
    for mut sampler in samplers(&model).into_iter().skip(1) {
        let before = block_on(sampler.sample(&request, 1)).unwrap();
        sampler.lose_device();
        // The driver reports the loss at any time; the call during which that happens returns the error.
        let after = block_on(sampler.sample(&request, 1)).or_else(|error| {
            println!("{error}");
            block_on(sampler.sample(&request, 1))
        });
        assert_eq!(after.unwrap(), before);
    }
}

#[test]
fn invalid_requests_are_errors() {
    let model = lively_model(&specs()[0]);
    let mut sampler = samplers(&model).remove(0);
    let request = |labels: &[u32]| Request::from_seeds(&model.spec, 0, labels, 1);
    let mut fails = |request: &Request, steps: usize, part: &str| {
        let error = block_on(sampler.sample(request, steps)).unwrap_err().to_string();
        assert!(error.contains(part), "`{part}` expected in: {error}");
    };
    fails(&request(&[3]), 1, "label: expected 0 to 2, found 3");
    fails(&request(&[]), 1, "labels: expected 1, found 0");
    fails(&request(&[0]), 0, "steps: expected 1 to 10000, found 0");
    fails(&Request { noise: vec![0.0; 7], ..request(&[0]) }, 1, "noise: expected a multiple of 240 values");
}
