//! Mixed precision agrees with single precision as far as its numbers allow, and steps that overflow are skipped.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot read its data has failed")]

use burn::tensor::{DType, Device, Tensor, TensorData};
use ccm::config::EncoderWeights;
use ccm::method::curriculum::Scope;
use ccm::model::{NetworkSpec, Prediction};
use ccm::nn::denoiser::Denoiser;
use ccm::nn::host::{labels_tensor, to_host};
use ccm::noise::Noise;
use ccm::train::batches::StageKind;
use ccm::train::checkpoint;
use ccm::train::loss_scale::LossScale;
use ccm::train::state::{Scaling, Stage, TrainState};
use ccm::train::trainable::Trainable;
use ccm::train::workers::Workers;
use ccm_tests::{
    configurations, lively_model, oppose, relative_error, small_data, small_distillation, small_spec,
};

/// The formats, and the relative error to expect of a network: some units in the last place.
const HALVES: [(DType, f64); 2] = [(DType::F16, 3e-3), (DType::BF16, 2.5e-2)];

/// Velocities of a network for two images, and the gradients of a loss of them.
fn evaluate(denoiser: &Denoiser) -> [Vec<f32>; 2] {
    let device = Device::flex();
    let spec = denoiser.spec();
    let [channels, height, width] = spec.image();
    let image = |stream| {
        let values = Noise::new(1, stream).normals(2 * spec.image_len());
        Tensor::<4>::from_data(TensorData::new(values, [2, channels, height, width]), &device).autodiff()
    };
    let label = spec.num_classes().map(|_| labels_tensor(&[0, 1], &device));
    let velocity = denoiser.velocity(image(0), &[0.2, 0.7], label);
    assert_eq!(velocity.dtype(), DType::F32);
    // Scaled, so that f16 has no gradients below its smallest numbers.
    let loss = ((velocity.clone() - image(1)).powi_scalar(2)).mean() * 1024.0;
    let gradients = denoiser.gradients(&loss);
    assert!(gradients.iter().all(|gradient| gradient.dtype() == DType::F32));
    [to_host(velocity.inner()), gradients.into_iter().flat_map(to_host).collect()]
}

#[test]
fn networks_in_half_precision_agree_with_single_precision() {
    for (name, mut spec) in configurations() {
        if let NetworkSpec::Adm(spec) = &mut spec {
            spec.dropout = 0.0;
        }
        let model = lively_model(spec);
        let network = || Denoiser::new(&model, &Device::flex().autodiff());
        let expected = evaluate(&network());
        for (half, tolerance) in HALVES {
            let plain = evaluate(&network().in_half(half));
            let checkpointed = evaluate(&network().in_half(half).checkpointed());
            for (what, found) in [("plain", plain), ("checkpointed", checkpointed)] {
                for (of, found, expected) in
                    [("velocity", &found[0], &expected[0]), ("gradient", &found[1], &expected[1])]
                {
                    let error = relative_error(found, expected);
                    println!("{name}, {half:?}, {what}, {of}: {error:.1e}");
                    // An error of zero would mean that nothing is in half precision.
                    assert!(
                        error > tolerance / 100.0 && error < tolerance,
                        "{name}, {half:?}, {of}: {error:.1e}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_step_of_distillation_in_half_precision_agrees_with_single_precision() {
    let (data, device) = (small_data(), Device::flex());
    let step = |half: Option<DType>| {
        let workers = Workers::new(1, 4, 4).unwrap();
        let mut distillation = small_distillation(small_spec(), &data, 4, Scope::Image, workers, &device);
        oppose(&mut distillation, EncoderWeights::Frozen, &device);
        if let Some(half) = half {
            let state = &mut distillation.state;
            state.denoiser = state.denoiser.clone().in_half(half);
            state.loss_scale = (half == DType::F16).then(LossScale::default);
            distillation.teacher.denoiser = distillation.teacher.denoiser.clone().in_half(half);
        }
        distillation.step().unwrap()
    };
    let expected = step(None);
    for (half, tolerance) in HALVES {
        let found = step(Some(half));
        println!("{half:?}: {found:?}");
        assert!((found.loss / expected.loss - 1.0).abs() < 2.0 * tolerance);
        assert!((found.gradient_norm / expected.gradient_norm - 1.0).abs() < 2.0 * tolerance);
        assert!((found.kdc.unwrap() - expected.kdc.unwrap()).abs() < 20.0 * tolerance);
        assert_eq!(found.scaling.is_some(), half == DType::F16);
        assert!(!found.scaling.is_some_and(|scaling| scaling.skipped));
    }
}

#[test]
fn steps_that_overflow_are_skipped_and_counted_and_survive_a_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let (data, device) = (small_data(), Device::flex());
    let trainable = Trainable::Weights { spec: small_spec().into(), prediction: Prediction::Velocity };
    let distillation = |state: Option<TrainState>| {
        let workers = Workers::new(1, 4, 4).unwrap();
        let mut it = small_distillation(small_spec(), &data, 4, Scope::Image, workers, &device);
        oppose(&mut it, EncoderWeights::Frozen, &device);
        it.state = state.unwrap_or(it.state);
        it.state.denoiser = it.state.denoiser.clone().in_half(DType::F16);
        it
    };
    let weights =
        |state: &TrainState| state.denoiser.parameters().into_iter().flat_map(to_host).collect::<Vec<_>>();
    let mut whole = distillation(None);
    // The gradient of the loss is far above what f16 can hold.
    whole.state.loss_scale = Some(LossScale { factor: 2f32.powi(40), finite_steps: 7 });
    let first = weights(&whole.state);
    let mut skipped = 0;
    for step in 1..40 {
        let report = whole.step().unwrap();
        let scaling: Scaling = report.scaling.unwrap();
        skipped += u64::from(scaling.skipped);
        assert_eq!((scaling.skipped_steps, report.step, report.fault()), (skipped, step, None));
        assert_eq!(report.gradient_norm.is_finite(), !scaling.skipped);
        // Nothing changes before the first step that is not skipped.
        assert_eq!(weights(&whole.state) == first, skipped == step, "step {step}");
        if step == 2 || step == 35 {
            checkpoint::save(folder.path(), StageKind::Distill, &whole.state).unwrap();
            let newest = checkpoint::list(folder.path()).pop().unwrap().path;
            let opponent = whole.state.discriminator.as_ref();
            let resumed =
                checkpoint::load(&newest, StageKind::Distill, &trainable, opponent, &device).unwrap();
            assert_eq!((resumed.loss_scale, resumed.step), (whole.state.loss_scale, step));
            let mut resumed = distillation(Some(resumed));
            let mut same = distillation(Some(whole.state.clone()));
            for _ in 0..2 {
                // As text, since a norm that is no number equals nothing.
                let [found, expected] =
                    [&mut resumed, &mut same].map(|it| format!("{:?}", it.step().unwrap()));
                assert_eq!(found, expected);
            }
            assert_eq!(weights(&resumed.state), weights(&same.state));
        }
    }
    assert!((2..35).contains(&skipped), "{skipped} steps skipped");
}
