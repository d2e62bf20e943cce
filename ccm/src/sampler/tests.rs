//! Tests of every operation on both executors, for shapes that are not multiples of a tile, and several thread counts.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::{Arc, LazyLock};

use ccm_shaders::Tile;

use super::condition::Conditioner;
use super::plan::lower::layout::in_order;
use super::plan::{
    Attention, AttentionBias, BLOCK, Channels, Conv, ConvWeight, Copy, Factor, GroupNorm, Input, LayerNorm,
    Map, NO_SCORE, Op, Plan, Pointwise, Pool, Residual, Term, Vector,
};
use super::schedule::{Combination, Inputs, Update, Work};
use super::{cpu, gpu};
use crate::model::graph::Activation;
use crate::noise::Noise;
use crate::weights::{CompactTensor, HostTensor, Precision, Values};

/// A plan under construction, with random weights and a separate buffer for every map.
struct Sketch {
    plan: Plan,
    noise: Noise,
}

impl Sketch {
    fn new(height: usize, width: usize) -> Self {
        let mut sketch = Self {
            plan: Plan {
                ops: Vec::new(),
                buffers: Vec::new(),
                x: Map { buffer: 0, height, width, channels: BLOCK },
                text: None,
                pooled: None,
                embedding: None,
                output: Map { buffer: 0, height, width, channels: BLOCK },
                weights: Vec::new(),
                vectors: Vec::new(),
                conditioner: Conditioner::default(),
            },
            noise: Noise::new(11, 0),
        };
        sketch.plan.x = sketch.map(height, width, BLOCK);
        sketch
    }

    fn map(&mut self, height: usize, width: usize, channels: usize) -> Map {
        let map = Map { buffer: self.plan.buffers.len(), height, width, channels };
        self.plan.buffers.push(map.len());
        map
    }

    fn vector(&mut self, channels: usize) -> Vector {
        let place = self.plan.vectors.len();
        self.plan.vectors.extend(self.noise.normals(channels));
        Vector::Fixed(place)
    }

    /// Appends a convolution whose weight preserves the scale of its input.
    fn conv(&mut self, x: Input, channels: usize, kernel: usize, stride: usize, upsample: bool) -> Conv {
        let in_channels = x.channels();
        let count = kernel * kernel * in_channels * channels;
        let scale = 1.0 / ((kernel * kernel * in_channels) as f32).sqrt();
        let values = self.noise.normals(count).iter().map(|value| value * scale).collect();
        self.plan.weights.push(ConvWeight {
            kernel,
            in_channels,
            out_channels: channels,
            values: Values::F32(values),
        });
        let size = |size: usize| if upsample { 2 * size } else { size.div_ceil(stride) };
        let y = self.map(size(x.first.height), size(x.first.width), channels);
        let (weight, bias) = (self.plan.weights.len() - 1, self.vector(channels));
        Conv { x, kernel, stride, border: kernel / 2, upsample, weight, bias, residual: None, y }
    }

    fn push(&mut self, op: Op) -> Map {
        self.plan.ops.push(op);
        op.y()
    }

    /// Appends a 1x1 convolution from the image to a map of `channels` channels.
    fn widened(&mut self, channels: usize) -> Map {
        let conv = self.conv(self.plan.x.into(), channels, 1, 1, false);
        self.push(Op::Conv(conv))
    }

    /// The finished plan: its velocity is a 1x1 convolution of a map of the image's size.
    fn finish(mut self, map: Map) -> Plan {
        let conv = self.conv(map.into(), BLOCK, 1, 1, false);
        self.plan.output = self.push(Op::Conv(conv));
        self.plan
    }
}

const IMAGES: usize = 3;

static NO_INPUTS: LazyLock<Inputs> = LazyLock::new(|| Inputs { row: Arc::new([]), text: None });

/// Attention over a map of queries, keys and values.
fn self_attention(map: Map, heads: usize, head_channels: usize, y: Map) -> Attention {
    let width = map.channels / 3;
    let [q, k, v] = [0, 1, 2].map(|part| Channels { map, first: part * width });
    Attention { q, k, v, heads, head_channels, scale: 1.0 / (head_channels as f32).sqrt(), bias: None, y }
}

fn work(plan: &Plan) -> Work {
    let none = Combination::default();
    let of = |x, v, memory| Combination { x, v, memory };
    Work {
        updates: vec![
            Update { x: none, memory: none, fresh: 1.5, c_in: 0.5 },
            Update { x: of(0.25, 0.25, 0.0), memory: of(1.0, -0.5, 0.0), fresh: 0.75, c_in: 2.0 },
            Update { x: of(0.0, 0.5, 1.0), memory: none, fresh: 0.0, c_in: 1.0 },
        ],
        noise: (0..2).map(|i| Noise::new(3, i).normals(IMAGES * plan.x.len())).collect(),
        inputs: vec![vec![NO_INPUTS.clone(); IMAGES]; 2],
    }
}

fn on_cpu(plan: &Plan, threads: usize) -> Vec<f32> {
    cpu::Executor::new(&mut plan.clone(), threads).unwrap().sample(plan, &work(plan))
}

/// As [`on_cpu`], on a GPU or a software adapter; `None` if there is neither.
fn on_gpu(plan: &Plan, precision: Precision, tile: Tile) -> Option<Vec<f32>> {
    match pollster::block_on(gpu::Executor::new(plan, precision, None, true)) {
        Ok(executor) => Some(pollster::block_on(executor.with_tile(tile).sample(plan, &work(plan))).unwrap()),
        Err(error) => {
            println!("not compared with a GPU: {error}");
            None
        }
    }
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn assert_executors_agree(what: &str, plan: &Plan) {
    let expected = on_cpu(plan, 1);
    assert!(expected.iter().all(|value| value.is_finite()), "{what}");
    for threads in [2, 3, 5] {
        assert_eq!(on_cpu(plan, threads), expected, "{what} on {threads} threads");
    }
    for tile in [Tile::Direct, Tile::Wide, Tile::Narrow] {
        let Some(found) = on_gpu(plan, Precision::F32, tile) else { return };
        let difference = largest_difference(&found, &expected);
        assert!(difference < 1e-4, "{what}, {tile:?}: {difference:e} apart");
    }
}

#[test]
fn convolutions_agree() {
    for (kernel, upsample) in [(3, false), (1, false), (3, true), (1, true)] {
        // An odd-sized map with two inputs of 20 and 12 channels, and 44 output channels.
        let mut sketch = Sketch::new(7, 13);
        let (first, second) = (sketch.widened(20), sketch.widened(12));
        let conv = sketch.conv(Input { first, second: Some(second) }, 44, kernel, 1, upsample);
        let mut y = sketch.push(Op::Conv(conv));
        if upsample {
            let back = sketch.conv(y.into(), 8, 3, 2, false);
            y = sketch.push(Op::Conv(back));
        }
        assert_executors_agree(&format!("{kernel}x{kernel}, upsample: {upsample}"), &sketch.finish(y));
    }
}

#[test]
fn residuals_are_added_at_their_own_size_and_upsampled() {
    let mut sketch = Sketch::new(6, 10);
    let x = sketch.widened(36);
    let pooled = sketch.map(3, 5, 36);
    sketch.push(Op::Pool(Pool { x, y: pooled }));
    let up = sketch.conv(pooled.into(), 36, 3, 1, true);
    let residual = Some(Residual { map: pooled, upsample: true });
    let large = sketch.push(Op::Conv(Conv { residual, ..up }));
    let same = sketch.conv(large.into(), 36, 3, 1, false);
    let residual = Some(Residual { map: x, upsample: false });
    let y = sketch.push(Op::Conv(Conv { residual, ..same }));
    assert_executors_agree("residuals", &sketch.finish(y));
}

#[test]
fn norms_agree_whatever_the_size_of_a_group() {
    // Groups of 1 to 5 channels; some second inputs begin in the middle of a group.
    for (first, second, silu) in
        [(32, 0, true), (32, 32, false), (64, 32, true), (32, 96, true), (96, 64, true)]
    {
        let mut sketch = Sketch::new(5, 7);
        let x = sketch.widened(first);
        let second = (second > 0).then(|| sketch.widened(second));
        let x = Input { first: x, second };
        let channels = x.channels();
        let (gain, offset) = (sketch.vector(channels), sketch.vector(channels));
        let y = sketch.map(5, 7, channels);
        sketch.push(Op::GroupNorm(GroupNorm { x, gain, offset, groups: 32, epsilon: 1e-5, silu, y }));
        assert_executors_agree(&format!("norm of {channels} channels"), &sketch.finish(y));
    }
}

#[test]
fn attentions_agree_whatever_the_width_of_a_head() {
    for (heads, head_channels) in [(1, 32), (3, 6), (2, 17), (1, 70), (2, 132usize)] {
        let mut sketch = Sketch::new(5, 7);
        let padded = head_channels.next_multiple_of(BLOCK) * heads;
        let qkv = sketch.widened(3 * padded);
        let y = sketch.map(5, 7, padded);
        sketch.push(Op::Attention(self_attention(qkv, heads, head_channels, y)));
        assert_executors_agree(&format!("{heads} heads of {head_channels}"), &sketch.finish(y));
    }
}

#[test]
fn attentions_over_other_positions_and_with_biases_agree() {
    // Queries of 35 positions, in the second half of a map; keys and values of 21 in two other maps.
    for (heads, head_channels, biased) in [(3, 20, false), (2, 64, true), (5, 8, true)] {
        let mut sketch = Sketch::new(5, 7);
        let width = heads * head_channels;
        let queries = sketch.widened(2 * width);
        let small = sketch.map(3, 7, 2 * width);
        sketch.push(Op::Copy(Copy { x: queries, from: 3, y: small, to: 0, count: 21 }));
        let other = sketch.conv(small.into(), width, 1, 1, false);
        let values = sketch.push(Op::Conv(other));
        let y = sketch.map(5, 7, width);
        let pitch = 35 + 21 - 1;
        let bias = biased.then(|| match sketch.vector((pitch * heads).next_multiple_of(BLOCK)) {
            Vector::Fixed(start) => AttentionBias { start, pitch },
            Vector::Conditioned(_) => unreachable!("a fixed bias"),
        });
        sketch.push(Op::Attention(Attention {
            q: Channels { map: queries, first: width },
            k: Channels { map: small, first: width },
            v: values.into(),
            heads,
            head_channels,
            scale: 0.3,
            bias,
            y,
        }));
        assert_executors_agree(
            &format!("{heads} heads of {head_channels} over other positions"),
            &sketch.finish(y),
        );
    }
}

#[test]
fn causal_attention_sees_nothing_after_the_query() {
    let mut sketch = Sketch::new(1, 21);
    let qkv = sketch.widened(3 * 8);
    let y = sketch.map(1, 21, 8);
    let start = sketch.plan.vectors.len();
    let biases = (0..41).map(|place| if place > 20 { NO_SCORE } else { 0.0 });
    sketch.plan.vectors.extend(biases.chain([0.0; 3]));
    let bias = Some(AttentionBias { start, pitch: 0 });
    sketch.push(Op::Attention(Attention { bias, ..self_attention(qkv, 2, 4, y) }));
    let plan = sketch.finish(y);
    assert_executors_agree("causal attention", &plan);
    let mut executor = cpu::Executor::new(&mut plan.clone(), 2).unwrap();
    let mut x = Noise::new(5, 0).normals(plan.x.len());
    let [before, _] = executor.evaluate(&plan, &x);
    x[20 * BLOCK..].iter_mut().for_each(|value| *value += 1.0);
    let [after, _] = executor.evaluate(&plan, &x);
    assert_eq!(before[..20 * BLOCK], after[..20 * BLOCK], "the last position changes no other");
    assert_ne!(before[20 * BLOCK..], after[20 * BLOCK..]);
}

#[test]
fn layer_norms_agree() {
    for (channels, heads, centred) in [(20, 1, true), (520, 1, true), (36, 3, false), (512, 8, false)] {
        let mut sketch = Sketch::new(5, 7);
        let x = sketch.widened(channels);
        let (gain, offset) = (sketch.vector(channels), sketch.vector(channels));
        let y = sketch.map(5, 7, channels);
        sketch.push(Op::LayerNorm(LayerNorm { x, gain, offset, heads, centred, epsilon: 1e-5, y }));
        assert_executors_agree(&format!("norm of {channels} channels, {heads} heads"), &sketch.finish(y));
    }
}

#[test]
fn pointwise_operations_agree() {
    use Activation::{Gelu, GeluTanh, QuickGelu, Relu, Silu, Tanh};
    for activation in [None, Some(Silu), Some(Gelu), Some(GeluTanh), Some(QuickGelu), Some(Relu), Some(Tanh)]
    {
        let mut sketch = Sketch::new(5, 7);
        let (both, term) = (sketch.widened(40), sketch.widened(20));
        let x = Channels { map: both, first: 20 };
        let gated = sketch.map(5, 7, 20);
        let factor = Some(Factor::Map(Channels { map: both, first: 0 }));
        let term = Some(Term::Map(term));
        sketch.push(Op::Pointwise(Pointwise { x, activation, factor, term, y: gated }));
        let scaled = sketch.map(5, 7, 20);
        let factor = Some(Factor::Vector(sketch.vector(20)));
        let Vector::Fixed(start) = sketch.vector(scaled.len()) else { unreachable!("a fixed vector") };
        let (x, term) = (gated.into(), Some(Term::Fixed(start)));
        sketch.push(Op::Pointwise(Pointwise { x, activation: None, factor, term, y: scaled }));
        assert_executors_agree(&format!("{activation:?}"), &sketch.finish(scaled));
    }
}

#[test]
fn copies_keep_the_other_positions() {
    let mut sketch = Sketch::new(5, 7);
    let (a, b) = (sketch.widened(20), sketch.widened(20));
    let y = sketch.map(1, 47, 20);
    sketch.push(Op::Copy(Copy { x: a, from: 0, y, to: 0, count: 35 }));
    sketch.push(Op::Copy(Copy { x: b, from: 20, y, to: 35, count: 12 }));
    let back = sketch.map(5, 7, 20);
    sketch.push(Op::Copy(Copy { x: y, from: 12, y: back, to: 0, count: 35 }));
    assert_executors_agree("copies", &sketch.finish(back));
}

#[test]
fn attention_is_that_of_its_formula() {
    let mut sketch = Sketch::new(3, 5);
    let qkv = sketch.widened(12);
    let y = sketch.map(3, 5, 4);
    sketch.push(Op::Attention(self_attention(qkv, 1, 3, y)));
    let plan = sketch.finish(y);
    let image = &work(&plan).noise[0][..plan.x.len()];
    let Vector::Fixed(bias) = (match plan.ops[0] {
        Op::Conv(conv) => conv.bias,
        _ => unreachable!("the first operation widens"),
    }) else {
        unreachable!("a fixed bias")
    };
    let row = |pixel: usize| -> Vec<f64> {
        let channel = |c: usize| {
            let products =
                (0..4).map(|i| f64::from(image[pixel * 4 + i] * plan.weights[0].to_f32()[i * 12 + c]));
            products.sum::<f64>() + f64::from(plan.vectors[bias + c])
        };
        (0..12).map(channel).collect()
    };
    let rows: Vec<Vec<f64>> = (0..15).map(row).collect();
    let mut expected = Vec::new();
    for query in &rows {
        // The head has three channels, padded to four. In this test the fourth is not zero, so it contributes to the
        // score.
        let score = |key: &Vec<f64>| (0..4).map(|c| query[c] * key[4 + c]).sum::<f64>() / 3f64.sqrt();
        let weights: Vec<f64> = rows.iter().map(|key| score(key).exp()).collect();
        let total: f64 = weights.iter().sum();
        expected.extend((0..4).map(|c| {
            rows.iter().zip(&weights).map(|(key, weight)| weight * key[8 + c]).sum::<f64>() / total
        }));
    }
    // A plan of the attention alone. Its output is the network's output, which one step adds to the image.
    let mut alone = plan.clone();
    alone.ops.truncate(2);
    alone.output = y;
    let none = Combination::default();
    let start = Update { x: none, memory: none, fresh: 1.0, c_in: 1.0 };
    let step = Update { x: Combination { x: 1.0, v: 1.0, memory: 0.0 }, fresh: 0.0, ..start };
    let updates = vec![start, step];
    let one = Work { updates, noise: vec![image.to_vec()], inputs: vec![vec![NO_INPUTS.clone()]] };
    let found = cpu::Executor::new(&mut alone.clone(), 2).unwrap().sample(&alone, &one);
    for ((found, x), expected) in found.iter().zip(image).zip(expected) {
        assert!((f64::from(found - x) - expected).abs() < 1e-5, "{} is not {expected}", found - x);
    }
}

#[test]
fn rounded_weights_differ_by_no_more_than_their_steps() {
    let mut sketch = Sketch::new(7, 13);
    let x = sketch.widened(36);
    let conv = sketch.conv(x.into(), 44, 3, 1, false);
    let y = sketch.push(Op::Conv(conv));
    let plan = sketch.finish(y);
    let expected = on_cpu(&plan, 1);
    for (precision, most) in [(Precision::F16, 0.03), (Precision::Q8, 0.2)] {
        for tile in [Tile::Direct, Tile::Wide] {
            let Some(found) = on_gpu(&plan, precision, tile) else { return };
            let difference = largest_difference(&found, &expected);
            println!("{precision}, {tile:?}: {difference:e} apart");
            assert!(difference > 0.0 && difference < most, "{precision}, {tile:?}: {difference:e} apart");
        }
    }
}

/// The plan with its weights rounded, and with the same values in single precision.
fn rounded(plan: &Plan, precision: Precision) -> [Plan; 2] {
    let mut plans = [plan.clone(), plan.clone()];
    let [rounded, expanded] = &mut plans;
    for (weight, expanded) in rounded.weights.iter_mut().zip(&mut expanded.weights) {
        // A stored tensor has the order `[output, input, tap]`.
        let values = weight.to_f32().into_owned();
        let (taps, inputs, outputs) =
            (weight.kernel * weight.kernel, weight.in_channels, weight.out_channels);
        let value = |place: usize| {
            let (output, input, tap) = (place / taps / inputs, place / taps % inputs, place % taps);
            values[(tap * inputs + input) * outputs + output]
        };
        let shape = [outputs, inputs, weight.kernel, weight.kernel];
        let tensor = HostTensor::new(shape, (0..values.len()).map(value).collect());
        *weight = in_order(CompactTensor::from(tensor).rounded(precision), weight.kernel);
        expanded.values = Values::F32(weight.to_f32().into_owned());
    }
    plans
}

#[test]
fn weights_that_are_expanded_in_the_kernel_give_the_same_values() {
    for precision in [Precision::F16, Precision::Q8, Precision::Q4] {
        for (kernel, channels) in [(3, 44), (1, 132), (1, 20)] {
            let mut sketch = Sketch::new(7, 13);
            // 64 input channels of two maps: the second group of 32 begins inside the first map.
            let (first, second) = (sketch.widened(36), sketch.widened(28));
            let conv = sketch.conv(Input { first, second: Some(second) }, channels, kernel, 1, false);
            let weight = conv.weight;
            let y = sketch.push(Op::Conv(conv));
            let [compact, expanded] = rounded(&sketch.finish(y), precision);
            assert_ne!(compact.weights, expanded.weights);
            let in_four_bits = matches!(compact.weights[weight].values, Values::Q4 { .. });
            assert_eq!(in_four_bits, precision == Precision::Q4);
            for threads in [1, 2, 3] {
                assert_eq!(on_cpu(&compact, threads), on_cpu(&expanded, threads), "{precision}, {kernel}");
            }
            for tile in [Tile::Wide, Tile::Narrow, Tile::Direct] {
                let Some(found) = on_gpu(&compact, precision, tile) else { break };
                let expected = on_gpu(&expanded, precision, tile).unwrap();
                // A GPU rounds the expanded weights again, to the same values or, from four bits, to half precision.
                let most = if precision == Precision::Q4 { 0.01 } else { 1e-3 };
                let difference = largest_difference(&found, &expected);
                assert!(difference < most, "{precision}, {kernel}, {tile:?}: {difference:e} apart");
            }
        }
    }
}

#[test]
fn norms_of_other_groups_and_channels_that_fill_no_workgroup_agree() {
    for (first, second, groups, epsilon) in
        [(12, 0, 3, 1e-6), (20, 24, 4, 1e-2), (48, 0, 16, 1e-5), (36, 8, 1, 1e-3)]
    {
        let mut sketch = Sketch::new(5, 7);
        let x = sketch.widened(first);
        let second = (second > 0).then(|| sketch.widened(second));
        let x = Input { first: x, second };
        let channels = x.channels();
        let (gain, offset) = (sketch.vector(channels), sketch.vector(channels));
        let y = sketch.map(5, 7, channels);
        sketch.push(Op::GroupNorm(GroupNorm { x, gain, offset, groups, epsilon, silu: true, y }));
        assert_executors_agree(&format!("norm of {channels} channels in {groups} groups"), &sketch.finish(y));
    }
}

#[test]
fn convolutions_with_zeros_at_the_end_agree() {
    let mut sketch = Sketch::new(8, 14);
    let x = sketch.widened(20);
    let down = sketch.conv(x.into(), 24, 3, 2, false);
    let y = sketch.push(Op::Conv(Conv { border: 0, ..down }));
    let up = sketch.conv(y.into(), 8, 3, 1, true);
    let y = sketch.push(Op::Conv(up));
    assert_executors_agree("zeros at the end", &sketch.finish(y));
}
