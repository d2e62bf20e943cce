//! The CPU's own kernels against Burn's operations, on shapes that are multiples of nothing.

use burn::tensor::activation::silu;
use burn::tensor::module::conv2d;
use burn::tensor::{Device, TensorData};

use super::*;
use crate::nn::host::to_host;
use crate::noise::Noise;

const NORM_GROUPS: usize = 32;
const NORM_EPSILON: f32 = 1e-5;

fn random<const D: usize>(shape: [usize; D], seed: u64) -> Tensor<D> {
    let values = Noise::new(seed, 0).normals(shape.iter().product());
    Tensor::from_data(TensorData::new(values, shape), &Device::flex().autodiff()).require_grad()
}

fn assert_close<const D: usize>(what: &str, found: Tensor<D>, expected: Tensor<D>) {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    let (found, expected) = (to_host(found), to_host(expected));
    let norm =
        |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    let error =
        norm(&mut found.iter().zip(&expected).map(|(a, b)| a - b)) / norm(&mut expected.iter().copied());
    assert!(error < 1e-5, "{what}: relative error {error:.2e}");
}

type Inputs = (Tensor<4>, Tensor<4>, Tensor<2>);

/// Compares results, and the gradients of all three inputs.
fn compare(
    what: &str,
    inputs: &Inputs,
    ours: impl Fn(Inputs) -> Tensor<4>,
    theirs: impl Fn(Inputs) -> Tensor<4>,
) {
    let (y, expected) = (ours(inputs.clone()), theirs(inputs.clone()));
    assert_close(what, y.clone(), expected.clone());
    // A weight for every output, so that a misplaced one is noticed.
    let weight = random(y.dims(), 9).detach();
    let (found, expected) = ((y * weight.clone()).sum().backward(), (expected * weight).sum().backward());
    let (a, b, c) = inputs;
    let gradient =
        |grads: &_, of: &Tensor<4>| of.grad(grads).unwrap_or_else(|| of.clone().inner().zeros_like());
    assert_close(&format!("{what}, first gradient"), gradient(&found, a), gradient(&expected, a));
    assert_close(&format!("{what}, second gradient"), gradient(&found, b), gradient(&expected, b));
    let gradient = |grads: &_| c.grad(grads).unwrap_or_else(|| c.clone().inner().zeros_like());
    assert_close(&format!("{what}, third gradient"), gradient(&found), gradient(&expected));
}

#[test]
fn convolution_and_its_gradients_are_those_of_burn() {
    for (kernel, stride) in [(3, 1), (3, 2), (1, 1)] {
        for (batch, channels, out, height, width) in
            [(1, 1, 5, 5, 7), (3, 3, 17, 9, 6), (9, 33, 1, 6, 6), (2, 20, 40, 13, 11), (17, 8, 8, 4, 4)]
        {
            for bias_images in [1, batch] {
                let what =
                    format!("{batch}x{channels}x{height}x{width} to {out}, {kernel}x{kernel}/{stride}");
                let inputs = (
                    random([batch, channels, height, width], 1),
                    random([out, channels, kernel, kernel], 2),
                    random([bias_images, out], 3),
                );
                let ours = |(x, weight, bias): Inputs| conv(x, weight, bias, stride);
                let theirs = |(x, weight, bias): Inputs| {
                    let padding = kernel / 2;
                    let options = ConvOptions {
                        stride: [stride; 2],
                        padding: [(padding, padding); 2],
                        dilation: [1; 2],
                        groups: 1,
                    };
                    conv2d(x, weight, None, options) + bias.reshape([bias_images, out, 1, 1])
                };
                compare(&what, &inputs, ours, theirs);
            }
        }
    }
}

/// The kernels with operands in bfloat16 against those in single precision, with operands that are rounded before.
#[test]
fn convolutions_of_bf16_are_those_of_rounded_operands() {
    if !Operands::Bf16.available() {
        eprintln!("not tested: this processor has no AVX512-BF16");
        return;
    }
    let draw = |count: usize, seed: u64| -> Vec<f32> {
        Noise::new(seed, 0).normals(count).into_iter().map(|value| bf16::from_f32(value).to_f32()).collect()
    };
    let close = |what: &str, found: &[f32], expected: &[f32]| {
        let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>();
        let error =
            norm(&mut found.iter().zip(expected).map(|(a, b)| a - b)) / norm(&mut expected.iter().copied());
        assert!(error.sqrt() < 1e-5, "{what}: relative error {:.2e}", error.sqrt());
    };
    for (kernel, stride) in [(3, 1), (3, 2), (1, 1)] {
        for (batch, channels, out, height, width) in
            [(1, 1, 5, 5, 7), (3, 3, 17, 9, 6), (9, 33, 1, 6, 6), (2, 20, 40, 13, 11), (17, 8, 8, 4, 4)]
        {
            let shape = conv_shape(
                [batch, channels, height, width],
                &Shape::new([out, channels, kernel, kernel]),
                stride,
            );
            let x = draw(batch * channels * height * width, 1);
            let weight = draw(shape.weight_len(), 2);
            let bias = draw(out, 3);
            let dy = draw(batch * out * shape.out_height() * shape.out_width(), 4);
            let results = |operands| {
                let (mut y, mut dx, mut dweight) = (dy.clone(), x.clone(), weight.clone());
                cpu_conv::conv(&shape, operands, &x, &weight, &bias, &mut y);
                cpu_conv::conv_input_gradient(&shape, operands, &weight, &dy, &mut dx);
                conv_weight_gradient(&shape, operands, &x, &dy, &mut dweight);
                [("result", y), ("input gradient", dx), ("weight gradient", dweight)]
            };
            for (found, expected) in results(Operands::Bf16).iter().zip(results(Operands::F32)) {
                close(&format!("{shape:?}: {}", found.0), &found.1, &expected.1);
            }
        }
    }
}

#[test]
fn group_norm_and_its_gradients_are_those_of_burn() {
    for (batch, channels, height, width) in [(1, 32, 1, 3), (3, 64, 5, 7), (2, 96, 9, 4)] {
        for activation in [false, true] {
            let gains = random([batch, channels, 1, 1], 2);
            let inputs = (random([batch, channels, height, width], 1), gains, random([batch, channels], 3));
            let ours = |(x, gain, offset): Inputs| {
                group_norm(
                    x,
                    gain.reshape([batch, channels]),
                    offset,
                    Norm { groups: NORM_GROUPS, epsilon: NORM_EPSILON, silu: activation },
                )
            };
            let theirs = |(x, gain, offset): Inputs| {
                let groups = x.reshape([batch, NORM_GROUPS, channels / NORM_GROUPS * height * width]);
                let centred = groups.clone() - groups.mean_dim(2);
                let variance = (centred.clone() * centred.clone()).mean_dim(2);
                let normal = centred / (variance + NORM_EPSILON).sqrt();
                let z = normal.reshape([batch, channels, height, width]) * gain
                    + offset.reshape([batch, channels, 1, 1]);
                if activation { silu(z) } else { z }
            };
            compare(
                &format!("{batch}x{channels}x{height}x{width}, SiLU {activation}"),
                &inputs,
                ours,
                theirs,
            );
        }
    }
}
