//! Benchmark: this project's CPU kernels and Burn's operations, forward and backward, batch 64, 32 channels at 28x28.
#![allow(missing_docs, reason = "criterion's macros")]

use burn::nn::GroupNormConfig;
use burn::tensor::activation::silu;
use burn::tensor::module::conv2d;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, Tensor, TensorData};
use ccm::nn::kernels::Operands;
use ccm::nn::ops::{Norm, conv, group_norm, set_conv_operands};
use ccm::noise::Noise;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

/// The allocator of the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const NORM: Norm = Norm { groups: 32, epsilon: 1e-5, silu: true };
const BATCH: usize = 64;
const CHANNELS: usize = 32;
const SIDE: usize = 28;

fn random<const D: usize>(shape: [usize; D], seed: u64) -> Tensor<D> {
    let values = Noise::new(seed, 0).normals(shape.iter().product());
    Tensor::from_data(TensorData::new(values, shape), &Device::flex().autodiff()).require_grad()
}

fn kernels(c: &mut Criterion) {
    let x = random([BATCH, CHANNELS, SIDE, SIDE], 1);
    let weight = random([CHANNELS, CHANNELS, 3, 3], 2);
    let bias = random([1, CHANNELS], 3);
    let (gain, offset) = (random([BATCH, CHANNELS], 4), random([BATCH, CHANNELS], 5));
    let norm = GroupNormConfig::new(NORM.groups, CHANNELS)
        .with_epsilon(f64::from(NORM.epsilon))
        .init(&Device::flex().autodiff());

    // Two operations per multiply-add; three products: forward, gradient of the input, gradient of the weight.
    let mut group = c.benchmark_group("3x3 convolution, forward and backward");
    let operations = 3 * 2 * BATCH * CHANNELS * CHANNELS * 9 * SIDE * SIDE;
    group.sample_size(10).throughput(Throughput::Elements(operations as u64));
    group.bench_function("ccm", |b| {
        b.iter(|| conv(x.clone(), weight.clone(), bias.clone(), 1).sum().backward());
    });
    if Operands::Bf16.available() {
        set_conv_operands(Operands::Bf16);
        group.bench_function("ccm, operands in bfloat16", |b| {
            b.iter(|| conv(x.clone(), weight.clone(), bias.clone(), 1).sum().backward());
        });
        set_conv_operands(Operands::F32);
    }
    group.bench_function("Burn", |b| {
        b.iter(|| {
            let options = ConvOptions { stride: [1; 2], padding: [(1, 1); 2], dilation: [1; 2], groups: 1 };
            let bias = bias.clone().reshape([CHANNELS]);
            conv2d(x.clone(), weight.clone(), Some(bias), options).sum().backward()
        });
    });
    group.finish();

    let mut group = c.benchmark_group("group norm and SiLU, forward and backward");
    group.sample_size(10).throughput(Throughput::Elements((BATCH * CHANNELS * SIDE * SIDE) as u64));
    group.bench_function("ccm", |b| {
        b.iter(|| group_norm(x.clone(), gain.clone(), offset.clone(), NORM).sum().backward());
    });
    group.bench_function("Burn", |b| b.iter(|| silu(norm.forward(x.clone())).sum().backward()));
    group.finish();
}

criterion_group!(benches, kernels);
criterion_main!(benches);
