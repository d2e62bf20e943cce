//! The gradients used in training agree with finite differences of the loss.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot read its data has failed")]

use std::sync::Arc;

use burn::tensor::{Device, Int, Tensor, TensorData};
use ccm::method::distance::Distance;
use ccm::method::flow::jump;
use ccm::model::UNetSpec;
use ccm::nn::conditions::Conditions;
use ccm::nn::denoiser::Denoiser;
use ccm::nn::host::{per_image, to_host};
use ccm::noise::Noise;
use ccm::weights::Model;
use ccm_tests::{lively_model, small_spec};

fn specs() -> [UNetSpec; 2] {
    let plain = small_spec();
    let other = UNetSpec {
        use_scale_shift_norm: true,
        resblock_updown: true,
        use_new_attention_order: true,
        num_head_channels: Some(16),
        ..plain.clone()
    };
    [plain, other]
}

/// The student's loss of PAPER.md §5 for a given target.
fn loss(model: &Model, device: &Device, distance: &Distance) -> (Denoiser, Tensor<1>) {
    let spec = &model.spec;
    let unet = Denoiser::new(model, device);
    let mut noise = Noise::new(5, 0);
    let [channels, height, width] = spec.image();
    let shape = [2, channels, height, width];
    let mut images =
        || Tensor::<4>::from_data(TensorData::new(noise.normals(2 * spec.image_len()), shape), device);
    let (x_t, target) = (images(), images());
    let t = [0.1, 0.7];
    let label = Tensor::<1, Int>::from_data([2, 0], device);
    let v = unet.velocity(x_t.clone(), &t, Some(label));
    let estimate = jump(x_t, &per_image(&t, device), v);
    let loss = distance.mean(estimate, target, &Conditions::default());
    (unet, loss)
}

#[test]
fn the_gradient_of_the_students_loss_agrees_with_finite_differences() {
    let device = Device::flex().autodiff();
    for spec in specs() {
        let model = lively_model(&spec);
        let seen = Distance::TeacherFeatures(Arc::new(Denoiser::frozen(&model, &Device::flex())));
        for distance in [Distance::PseudoHuber, Distance::L2, Distance::L1, seen] {
            let name = format!("{distance:?}").chars().take(12).collect::<String>();
            let (unet, value) = loss(&model, &device, &distance);
            let gradients: Vec<Vec<f32>> = unet.gradients(&value).into_iter().map(to_host).collect();
            for (tensor, gradient) in model.tensors.iter().zip(&gradients) {
                assert_eq!(tensor.values.len(), gradient.len());
            }
            // One tensor after the other, along its own gradient, where the slope equals the gradient's norm.
            let mut followed = 0;
            for (i, tensor) in model.spec.tensors().iter().enumerate() {
                let direction = gradients[i].clone();
                let length = direction.iter().map(|d| d * d).sum::<f32>().sqrt();
                if length < 1e-4 {
                    // Shifting a channel before a norm over that channel alone has no effect.
                    continue;
                }
                followed += 1;
                let expected: f64 =
                    direction.iter().zip(&gradients[i]).map(|(d, g)| f64::from(d * g)).sum::<f64>()
                        / f64::from(length);
                const STEP: f32 = 1e-2;
                let at = |sign: f32| {
                    let mut moved = model.clone();
                    for (value, d) in moved.tensors[i].values.iter_mut().zip(&direction) {
                        *value += sign * STEP * d / length;
                    }
                    f64::from(to_host(loss(&moved, &device, &distance).1)[0])
                };
                let slope = (at(1.0) - at(-1.0)) / (2.0 * f64::from(STEP));
                // The rounding error of the loss, about 1e-7, is divided by the step; L1 can have a kink between the
                // two points.
                let share = if matches!(distance, Distance::L1) { 0.08 } else { 0.03 };
                let tolerance = 2e-4 + share * expected.abs();
                assert!(
                    (slope - expected).abs() < tolerance,
                    "{name}, {}: slope {slope:.6}, gradient {expected:.6}",
                    tensor.name
                );
            }
            assert!(2 * followed > model.tensors.len(), "{name}: only {followed} tensors have a gradient");
        }
    }
}
