//! Operations of graph nodes that have no parameters.

use std::collections::btree_map::Entry;

use burn::tensor::activation::{gelu, relu, sigmoid, silu, softmax, tanh};
use burn::tensor::{DType, Distribution, Tensor, TensorData};

use crate::model::graph::{Activation, QkvOrder, TimestepEmbedding, Value};

/// Sets values to zero with a probability and scales the rest, so that the expectation stays.
pub(super) fn dropout(x: Tensor<4>, probability: f64, mask: Entry<Value, Tensor<4>>) -> Tensor<4> {
    let keep = 1.0 - probability;
    let mask = mask.or_insert_with(|| x.random_like(Distribution::Bernoulli(keep)).inner());
    x * mask.clone() * (1.0 / keep)
}

/// `[B, C]` to `[B, C, 1, 1]`.
pub(super) fn per_pixel(vector: Tensor<2>) -> Tensor<4> {
    let [batch, channels] = vector.dims();
    vector.reshape([batch, channels, 1, 1])
}

/// `[B, C, H, W]` to `[B, C, 1, H W]`.
pub(super) fn in_a_row(x: Tensor<4>) -> Tensor<4> {
    let [batch, channels, height, width] = x.dims();
    x.reshape([batch, channels, 1, height * width])
}

pub(super) fn activate<const D: usize>(activation: Activation, x: Tensor<D>) -> Tensor<D> {
    match activation {
        Activation::Silu => silu(x),
        Activation::Gelu => gelu(x),
        Activation::GeluTanh => {
            let inner =
                (x.clone() + x.clone().powi_scalar(3) * 0.044715) * (2.0 / std::f64::consts::PI).sqrt();
            x * (tanh(inner) + 1.0) * 0.5
        }
        Activation::QuickGelu => x.clone() * sigmoid(x * 1.702),
        Activation::Relu => relu(x),
        Activation::Tanh => tanh(x),
    }
}

/// Sines and cosines of every number of a vector, `[B, N] -> [B, N channels]`.
pub(super) fn sinusoids(embedding: &TimestepEmbedding, x: Tensor<2>) -> Tensor<2> {
    let frequencies: Vec<f32> = embedding.log_frequencies().into_iter().map(f32::exp).collect();
    let half = frequencies.len();
    let [batch, numbers] = x.dims();
    let frequencies = Tensor::<2>::from_data(TensorData::new(frequencies, [1, half]), &x.device());
    let angles = x.reshape([batch * numbers, 1]) * frequencies;
    let (cos, sin) = (angles.clone().cos(), angles.sin());
    Tensor::cat(if embedding.cosines_first { vec![cos, sin] } else { vec![sin, cos] }, 1)
        .reshape([batch, numbers * 2 * half])
}

/// Self-attention on one map of queries, keys and values, `[B, 3 C, H, W] -> [B, C, H, W]`.
pub(super) fn qkv_attention(qkv: Tensor<4>, heads: usize, order: QkvOrder) -> Tensor<4> {
    let [batch, channels, height, width] = qkv.dims();
    let (positions, of_head) = (height * width, channels / 3 / heads);
    // `[B, heads, channels of a head, positions]` each.
    let part = |index: usize| match order {
        QkvOrder::PartsFirst => {
            let qkv = qkv.clone().reshape([batch, 3, heads, of_head, positions]);
            qkv.narrow(1, index, 1).squeeze_dim::<4>(1)
        }
        QkvOrder::HeadsFirst => {
            let qkv = qkv.clone().reshape([batch, heads, 3, of_head, positions]);
            qkv.narrow(2, index, 1).squeeze_dim::<4>(2)
        }
    };
    let scale = (of_head as f64).sqrt().recip();
    heads_attention(part(0), part(1), part(2), scale, None).reshape([batch, channels / 3, height, width])
}

/// Attention per head, with the softmax in single precision. `q`, `k`, `v` and the result: `[B, heads, channels of a head,
/// positions]`; `bias`: one number per head, query and key, in single precision.
pub(super) fn heads_attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    scale: f64,
    bias: Option<Tensor<4>>,
) -> Tensor<4> {
    let scores = (q * scale).swap_dims(2, 3).matmul(k).cast(DType::F32);
    let scores = bias.map_or(scores.clone(), |bias| scores + bias);
    let weights = softmax(scores, 3).cast(v.dtype());
    v.matmul(weights.swap_dims(2, 3))
}

/// Nearest-neighbour upsampling by 2.
pub(super) fn upsample(x: Tensor<4>) -> Tensor<4> {
    let [batch, channels, height, width] = x.dims();
    x.reshape([batch, channels, height, 1, width, 1])
        .expand([batch, channels, height, 2, width, 2])
        .reshape([batch, channels, 2 * height, 2 * width])
}

/// 2x2 average pooling.
pub(super) fn average_pool(x: Tensor<4>) -> Tensor<4> {
    let [batch, channels, height, width] = x.dims();
    x.reshape([batch, channels, height / 2, 2, width / 2, 2]).mean_dim(5).mean_dim(3).reshape([
        batch,
        channels,
        height / 2,
        width / 2,
    ])
}
