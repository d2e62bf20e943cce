//! A training step on Burn's wgpu backend agrees with the CPU. Skipped without an adapter.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot read its data has failed")]

use std::sync::{Arc, OnceLock};

use burn::tensor::{DType, Device, DeviceKind, Tensor, TensorData};
use burn_wgpu::wgpu::{Backends, DeviceType, Instance, InstanceDescriptor};
use ccm::config::EncoderWeights;
use ccm::data::{Examples, ImageShape};
use ccm::method::curriculum::Scope;
use ccm::metrics::Extractor;
use ccm::metrics::classifier::{Classifier, Training};
use ccm::model::UNetSpec;
use ccm::nn::denoiser::Denoiser;
use ccm::nn::host::labels_tensor;
use ccm::nn::host::to_host;
use ccm::noise::Noise;
use ccm::train::group::Threads;
use ccm::train::loss_scale::LossScale;
use ccm::train::state::{Stage, StepReport};
use ccm::train::workers::Workers;
use ccm_tests::{
    agrees_with_pytorch_fid, guide, lively_model, oppose, relative_error, small_data, small_distillation,
    small_spec,
};

/// The best adapter, hardware before software. It can be opened once per process.
fn gpu() -> Option<Device> {
    static DEVICE: OnceLock<Option<Device>> = OnceLock::new();
    DEVICE.get_or_init(|| Some(Device::wgpu_options().device_kind(adapter()?).init().unwrap())).clone()
}

fn adapter() -> Option<DeviceKind> {
    let backends = Backends::PRIMARY;
    let instance =
        Instance::new(InstanceDescriptor { backends, ..InstanceDescriptor::new_without_display_handle() });
    let adapters = pollster::block_on(instance.enumerate_adapters(backends));
    let kinds = adapters.iter().map(|adapter| match adapter.get_info().device_type {
        DeviceType::DiscreteGpu => DeviceKind::DiscreteGpu(0),
        DeviceType::IntegratedGpu => DeviceKind::IntegratedGpu(0),
        DeviceType::VirtualGpu => DeviceKind::VirtualGpu(0),
        DeviceType::Cpu => DeviceKind::Cpu,
        DeviceType::Other => DeviceKind::DefaultDevice,
    });
    kinds.min_by_key(|kind| *kind == DeviceKind::Cpu)
}

/// Runs one distillation step, in mixed precision if `half` is given, with autoguidance if the encoder is trained. Returns
/// the weights of the student after it, and those of the discriminator.
fn step(device: &Device, encoder: EncoderWeights, half: Option<DType>) -> (StepReport, [Vec<f32>; 2]) {
    let data = small_data();
    // Kernels are autotuned for every new shape, which takes most of the time on a software adapter.
    let spec = UNetSpec { channel_mult: vec![1.0, 1.0], ..small_spec() };
    let workers = Workers::new(1, 4, 4).unwrap();
    let mut distillation = small_distillation(&spec, &data, 4, Scope::Image, workers, device);
    oppose(&mut distillation, encoder, device);
    // The costly settings together.
    if encoder == EncoderWeights::Trained {
        guide(&mut distillation, device);
    }
    if let Some(half) = half {
        distillation.state.denoiser = distillation.state.denoiser.clone().in_half(half);
        distillation.state.loss_scale = Some(LossScale::default());
        distillation.teacher.denoiser = distillation.teacher.denoiser.clone().in_half(half);
    }
    let report = distillation.step().unwrap();
    let opponent = distillation.state.discriminator.as_ref().unwrap().parameters();
    let student = distillation.state().denoiser.parameters();
    (report, [student, opponent].map(|of| of.into_iter().flat_map(to_host).collect()))
}

#[test]
fn a_training_step_on_wgpu_agrees_with_the_cpu() {
    let Some(gpu) = gpu() else {
        println!("SKIPPED: no adapter");
        return;
    };
    for encoder in [EncoderWeights::Frozen, EncoderWeights::Trained] {
        let (found, weights) = step(&gpu, encoder, None);
        let (expected, expected_weights) = step(&Device::flex(), encoder, None);
        println!("{encoder:?}\nwgpu {found:?}\nCPU  {expected:?}");
        assert!((found.loss / expected.loss - 1.0).abs() < 1e-3);
        assert!((found.gradient_norm / expected.gradient_norm - 1.0).abs() < 1e-3);
        assert!((found.kdc.unwrap() - expected.kdc.unwrap()).abs() < 1e-2);
        assert_eq!(found.teacher_steps, expected.teacher_steps);
        let opponents = [found, expected].map(|report| report.discriminator_loss.unwrap());
        assert!((opponents[0] / opponents[1] - 1.0).abs() < 1e-3);
        for (whose, found, expected) in [
            ("student", &weights[0], &expected_weights[0]),
            ("discriminator", &weights[1], &expected_weights[1]),
        ] {
            let error = relative_error(found, expected);
            println!("{whose}: relative error {error:.1e}");
            // Adam's first step is the sign of the gradient, and rounding changes the sign of gradients close to zero.
            assert!(error < 2e-3, "weights of the {whose} after the step: {error:.2e}");
        }
    }
}

/// As [`step`], by two ranks that share the device and exchange gradients while others are being computed.
fn step_of_two_ranks(device: &Device) -> Vec<(StepReport, Vec<f32>)> {
    let data = small_data();
    let spec = UNetSpec { channel_mult: vec![1.0, 1.0], ..small_spec() };
    let of_rank = |group: Threads| {
        let workers = Workers::of_ranks(Arc::new(group), 1, 4, 4).unwrap().overlapping();
        let rows = workers.rows(4);
        let mut distillation = small_distillation(&spec, &data, 4, Scope::Image, workers, device);
        distillation.batches.rows = rows;
        oppose(&mut distillation, EncoderWeights::Frozen, device);
        distillation.state.denoiser = distillation.state.denoiser.clone().in_segments();
        let report = distillation.step().unwrap();
        (report, distillation.state().denoiser.parameters().into_iter().flat_map(to_host).collect())
    };
    let of_rank = &of_rank;
    std::thread::scope(|scope| {
        let ranks = Threads::new(2).into_iter();
        let threads: Vec<_> = ranks.map(|group| scope.spawn(move || of_rank(group))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn a_step_of_two_ranks_on_wgpu_agrees_with_one_on_the_cpu() {
    let Some(gpu) = gpu() else {
        println!("SKIPPED: no adapter");
        return;
    };
    let ranks = step_of_two_ranks(&gpu);
    let (expected, [expected_weights, _]) = step(&Device::flex(), EncoderWeights::Frozen, None);
    assert_eq!(ranks[0].1, ranks[1].1, "the ranks' weights after the step");
    for (found, weights) in ranks {
        println!("wgpu {found:?}\nCPU  {expected:?}");
        assert!((found.loss / expected.loss - 1.0).abs() < 1e-3);
        assert!((found.gradient_norm / expected.gradient_norm - 1.0).abs() < 1e-3);
        assert!((found.kdc.unwrap() - expected.kdc.unwrap()).abs() < 1e-2);
        assert_eq!(found.teacher_steps, expected.teacher_steps);
        let error = relative_error(&weights, &expected_weights);
        assert!(error < 2e-3, "weights after the step: {error:.2e}");
    }
}

#[test]
fn a_training_step_in_f16_on_wgpu_agrees_with_the_cpu() {
    let Some(gpu) = gpu().filter(|gpu| gpu.supports_dtype(DType::F16)) else {
        println!("SKIPPED: no adapter that computes in f16");
        return;
    };
    let (found, _) = step(&gpu, EncoderWeights::Frozen, Some(DType::F16));
    let (expected, _) = step(&Device::flex(), EncoderWeights::Frozen, Some(DType::F16));
    println!("wgpu {found:?}\nCPU  {expected:?}");
    assert!((found.loss / expected.loss - 1.0).abs() < 5e-3);
    assert!((found.gradient_norm / expected.gradient_norm - 1.0).abs() < 5e-3);
    assert!((found.kdc.unwrap() - expected.kdc.unwrap()).abs() < 0.1);
    assert_eq!(found.scaling, expected.scaling);
}

#[test]
fn a_classifier_on_wgpu_agrees_with_the_cpu() {
    let Some(gpu) = gpu() else {
        println!("SKIPPED: no adapter");
        return;
    };
    let (data, cpu) = (small_data(), Device::flex());
    let Examples::Images(data) = data else { panic!("images with classes") };
    let training = Training { epochs: 1, batch: 16, ..Training::default() };
    let bytes = Classifier::train(&data, &data, "shapes", &training, &cpu, |_, _, _| {}).unwrap().to_bytes();
    let images = data.batch(&[0, 1, 2, 3, 4], &[]);
    let ImageShape { channels, height, width } = data.shape();
    let see = |device: &Device| {
        let images = TensorData::new(images.clone(), [5, channels, height, width]);
        Classifier::from_bytes(&bytes, device).unwrap().extract(Tensor::from_data(images, device))
    };
    let (found, expected) = (see(&gpu), see(&cpu));
    for (what, found, expected) in
        [("features", &found.features, &expected.features), ("logits", &found.logits, &expected.logits)]
    {
        let error = relative_error(found, expected);
        println!("{what}: relative error {error:.1e}");
        assert!(error < 1e-4, "{what}: relative error {error:.2e}");
    }
}

#[test]
fn the_network_of_the_fid_on_wgpu_agrees_with_pytorch() {
    match gpu() {
        Some(gpu) => agrees_with_pytorch_fid(&gpu),
        None => println!("SKIPPED: no adapter"),
    }
}

/// Grey images: the last convolution has one output channel.
#[test]
fn a_network_of_one_channel_on_wgpu_agrees_with_the_cpu() {
    let Some(gpu) = gpu() else {
        println!("SKIPPED: no adapter");
        return;
    };
    let spec = UNetSpec { in_channels: 1, channel_mult: vec![1.0, 1.0], ..small_spec() };
    let model = lively_model(&spec);
    let on = |device: &Device| {
        let unet = Denoiser::new(&model, &device.clone().autodiff());
        let values = Noise::new(1, 0).normals(4 * model.spec.image_len());
        let x = TensorData::new(values, [4, 1, spec.height, spec.width]);
        let x: Tensor<4> = Tensor::from_data(x, device).autodiff();
        let label = Some(labels_tensor(&[0, 1, 2, 0], device));
        to_host(unet.velocity(x, &[0.0, 0.3, 0.6, 0.9], label).inner())
    };
    let error = relative_error(&on(&gpu), &on(&Device::flex()));
    assert!(error < 1e-4, "{error:.2e}");
}
