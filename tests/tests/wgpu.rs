//! A training step on Burn's wgpu, where there is an adapter, is the step that the CPU takes.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot read its data has failed")]

use burn::tensor::{Device, DeviceKind};
use burn_wgpu::wgpu::{Backends, DeviceType, Instance, InstanceDescriptor};
use ccm::data::{ImageShape, Split, shapes};
use ccm::spec::UNetSpec;
use ccm::train::batches::{Batches, StageKind};
use ccm::train::coupling::Coupling;
use ccm::train::curriculum::{Curriculum, Mode, Scope};
use ccm::train::distance::Distance;
use ccm::train::distill::Distillation;
use ccm::train::optimizer::Schedule;
use ccm::train::trainee::{Stage, StepReport, Trainee, Workers};
use ccm::train::unet::{UNet, to_host};
use ccm_tests::{lively_model, relative_error};

/// The kind of the first adapter, a real one before a software one.
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

/// One step of distillation, and the weights after it.
fn step(device: &Device) -> (StepReport, Vec<f32>) {
    let spec = UNetSpec {
        in_channels: 3,
        height: 8,
        width: 8,
        model_channels: 32,
        num_res_blocks: 1,
        channel_mult: vec![1.0, 1.0],
        attention_resolutions: vec![4],
        num_heads: 2,
        num_head_channels: None,
        num_heads_upsample: None,
        use_scale_shift_norm: false,
        resblock_updown: false,
        use_new_attention_order: false,
        dropout: 0.0,
        num_classes: Some(8),
    };
    let data = shapes(8, ImageShape { channels: 3, height: 8, width: 8 }, Split::Train, 1).unwrap();
    let model = lively_model(&spec);
    let mut distillation = Distillation {
        batches: Batches {
            data: &data,
            stage: StageKind::Distill,
            seed: 1,
            size: 4,
            coupling: Coupling::OptimalTransport,
            horizontal_flip: true,
            class_conditional: true,
            device: device.clone(),
        },
        schedule: Schedule { learning_rate: 1e-3, warmup_steps: 1, gradient_clip: 1.0 },
        workers: Workers::new(1, 4, 4).unwrap(),
        curriculum: Curriculum { mode: Mode::Cd, scope: Scope::Image, threshold: 60.0, step_size: 0.5 },
        distance: Distance::PseudoHuber,
        time_alpha: 1.0,
        teacher: UNet::new(&model, device),
        trainee: Trainee::new(&model, &[0.9, 0.99, 0.999], device),
    };
    let report = distillation.step();
    (report, distillation.trainee().unet.parameters().into_iter().flat_map(to_host).collect())
}

#[test]
fn a_training_step_on_wgpu_is_that_of_the_cpu() {
    let Some(kind) = adapter() else {
        println!("no adapter: nothing tested");
        return;
    };
    let device = Device::wgpu_options().device_kind(kind).init().unwrap();
    let (found, weights) = step(&device);
    let (expected, expected_weights) = step(&Device::flex());
    println!("wgpu {found:?}\nCPU  {expected:?}");
    assert!((found.loss / expected.loss - 1.0).abs() < 1e-3);
    assert!((found.gradient_norm / expected.gradient_norm - 1.0).abs() < 1e-3);
    assert!((found.kdc.unwrap() - expected.kdc.unwrap()).abs() < 1e-2);
    assert_eq!(found.teacher_steps, expected.teacher_steps);
    let error = relative_error(&weights, &expected_weights);
    // Adam's first step is the sign of the gradient, which rounding turns where the gradient is next to nothing.
    assert!(error < 2e-3, "weights after the step: {error:.2e}");
}
