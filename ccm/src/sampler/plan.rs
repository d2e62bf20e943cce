//! A network as a flat list of operations over a few buffers: [`UNetSpec`] and weights in, [`Plan`] out.
//!
//! Both executors run the same plan. All that depends on the architecture is decided here: the order of the
//! operations, which buffer each feature map lives in and for how long, and how weights are laid out. A feature
//! map is `[height, width, channels]` with the channels of a pixel side by side; channel counts are multiples of
//! 4, the image's 1 or 3 filled up with zeros. Skip connections are never concatenated: what reads one reads two
//! maps.

use std::collections::BTreeMap;

use super::condition::{Conditioner, Linear};
use crate::spec::{LayerSpec, NORM_GROUPS, Resample, UNetSpec};
use crate::weights::{HostTensor, Model};

/// Channels stand in blocks of so many.
pub const BLOCK: usize = 4;

/// A feature map of every image of a batch: `[height, width, channels]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Map {
    /// The buffer that it lives in, an index into [`Plan::buffers`].
    pub buffer: usize,
    /// Height in pixels.
    pub height: usize,
    /// Width in pixels.
    pub width: usize,
    /// Channels, a multiple of [`BLOCK`].
    pub channels: usize,
}

impl Map {
    /// Height times width.
    pub fn pixels(&self) -> usize {
        self.height * self.width
    }

    /// Values of one image.
    pub fn len(&self) -> usize {
        self.pixels() * self.channels
    }

    /// Whether it holds nothing; it never does.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One or two maps of the same size, read as if their channels were concatenated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Input {
    /// The first channels.
    pub first: Map,
    /// The channels after them.
    pub second: Option<Map>,
}

impl Input {
    /// Channels of both.
    pub fn channels(&self) -> usize {
        self.first.channels + self.second.map_or(0, |map| map.channels)
    }

    /// Both, in order.
    pub fn maps(&self) -> impl Iterator<Item = Map> {
        [Some(self.first), self.second].into_iter().flatten()
    }
}

impl From<Map> for Input {
    fn from(first: Map) -> Self {
        Self { first, second: None }
    }
}

/// One number a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vector {
    /// From this place in [`Plan::vectors`]; the same for all images.
    Fixed(usize),
    /// From this place in each image's row of conditions ([`Conditioner::row`]).
    Conditioned(usize),
}

/// `y = conv(x) + bias + residual`, 3x3 with zero padding or 1x1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv {
    /// What it reads.
    pub x: Input,
    /// Side of the kernel: 1 or 3.
    pub kernel: usize,
    /// Step between outputs: 1 or 2.
    pub stride: usize,
    /// Whether `x` is first upsampled by 2 (nearest neighbour).
    pub upsample: bool,
    /// Index into [`Plan::weights`].
    pub weight: usize,
    /// Added to every pixel.
    pub bias: Vector,
    /// Added as well.
    pub residual: Option<Residual>,
    /// What it writes.
    pub y: Map,
}

/// A map that is added to the output of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Residual {
    /// The map; it may be the output itself, which is then added to.
    pub map: Map,
    /// Whether it is first upsampled by 2 (nearest neighbour).
    pub upsample: bool,
}

/// `y = act(gain * (x - mean) / deviation + offset)`, mean and deviation over each of 32 groups of channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupNorm {
    /// What it reads.
    pub x: Input,
    /// Gain.
    pub gain: Vector,
    /// Offset.
    pub offset: Vector,
    /// Whether SiLU follows.
    pub silu: bool,
    /// What it writes.
    pub y: Map,
}

/// `y = softmax(q^T k / sqrt(head_channels)) v` in every head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attention {
    /// Queries, keys, values: `[3, heads, head_channels]` are its channels, each head filled up to a multiple
    /// of [`BLOCK`].
    pub qkv: Map,
    /// Heads.
    pub heads: usize,
    /// Channels of a head, before they are filled up.
    pub head_channels: usize,
    /// `[heads, head_channels]`, filled up in the same way.
    pub y: Map,
}

impl Attention {
    /// Channels of a head, filled up to a multiple of [`BLOCK`].
    pub fn padded_channels(&self) -> usize {
        self.head_channels.next_multiple_of(BLOCK)
    }
}

/// 2x2 average pooling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool {
    /// What it reads.
    pub x: Map,
    /// What it writes.
    pub y: Map,
}

/// One step of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// See [`Conv`].
    Conv(Conv),
    /// See [`GroupNorm`].
    GroupNorm(GroupNorm),
    /// See [`Attention`].
    Attention(Attention),
    /// See [`Pool`].
    Pool(Pool),
}

impl Op {
    /// The map that it writes.
    pub fn output(&self) -> Map {
        match self {
            Self::Conv(op) => op.y,
            Self::GroupNorm(op) => op.y,
            Self::Attention(op) => op.y,
            Self::Pool(op) => op.y,
        }
    }

    /// The maps that it reads.
    pub fn inputs(&self) -> Vec<Map> {
        match self {
            Self::Conv(op) => op.x.maps().chain(op.residual.map(|residual| residual.map)).collect(),
            Self::GroupNorm(op) => op.x.maps().collect(),
            Self::Attention(op) => vec![op.qkv],
            Self::Pool(op) => vec![op.x],
        }
    }

    /// Floating-point operations for one image, a multiplication and an addition counted as two.
    pub fn flops(&self) -> usize {
        match self {
            Self::Conv(op) => 2 * op.y.len() * op.kernel * op.kernel * op.x.channels(),
            Self::Attention(op) => 4 * op.y.len() * op.y.pixels(),
            Self::GroupNorm(op) => 8 * op.y.len(),
            Self::Pool(op) => 4 * op.y.len(),
        }
    }
}

/// The weight of a convolution, `[kernel * kernel, in_channels, out_channels]`, both channel counts multiples of
/// [`BLOCK`].
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ConvWeight {
    /// Side of the kernel.
    pub kernel: usize,
    /// Channels in.
    pub in_channels: usize,
    /// Channels out.
    pub out_channels: usize,
    /// Values.
    pub values: Vec<f32>,
}

/// A network, ready for an executor.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The architecture.
    pub spec: UNetSpec,
    /// What to do, in order.
    pub ops: Vec<Op>,
    /// Values of one image that each buffer holds.
    pub buffers: Vec<usize>,
    /// Where the noisy image goes before the first operation.
    pub x: Map,
    /// Where the velocity stands after the last.
    pub velocity: Map,
    /// Weights of the convolutions.
    pub weights: Vec<ConvWeight>,
    /// Biases, gains and offsets that do not depend on the image.
    pub vectors: Vec<f32>,
    /// Computes what depends on time and label.
    pub conditioner: Conditioner,
}

impl Plan {
    /// Compiles a model.
    pub fn new(model: Model) -> Self {
        let Model { spec, tensors, .. } = model;
        let names = spec.tensors().into_iter().map(|tensor| tensor.name);
        let mut build = Builder {
            spec: &spec,
            tensors: BTreeMap::new(),
            ops: Vec::new(),
            maps: Vec::new(),
            weights: Vec::new(),
            vectors: Vec::new(),
            conditioner: Conditioner::new(spec.model_channels),
        };
        build.tensors.extend(names.zip(tensors));
        let (x, velocity) = build.network();
        let Builder { ops, maps, weights, vectors, conditioner, .. } = build;
        let mut plan = Self { ops, buffers: Vec::new(), x, velocity, weights, vectors, conditioner, spec };
        plan.share_buffers(&maps);
        plan
    }

    /// Floating-point operations of one evaluation for one image.
    pub fn flops(&self) -> usize {
        self.ops.iter().map(Op::flops).sum()
    }

    /// Values of one image that all buffers hold together.
    pub fn values_per_image(&self) -> usize {
        self.buffers.iter().sum()
    }

    /// Gives every map, until now in a buffer of its own, the smallest buffer that is free while it lives.
    fn share_buffers(&mut self, sizes: &[usize]) {
        let mut last_use = vec![0; sizes.len()];
        for (time, op) in self.ops.iter().enumerate() {
            for map in op.inputs().into_iter().chain([op.output()]) {
                last_use[map.buffer] = time;
            }
        }
        // The image and the velocity outlive the evaluation.
        last_use[self.x.buffer] = usize::MAX;
        last_use[self.velocity.buffer] = usize::MAX;

        let mut busy_until: Vec<Option<usize>> = Vec::new();
        let mut place = vec![None; sizes.len()];
        let mut assign = |map: usize, time: usize, buffers: &mut Vec<usize>| {
            if place[map].is_some() {
                return;
            }
            let free = |buffer: &usize| busy_until[*buffer].is_none_or(|until| until < time);
            let size = sizes[map];
            let free: Vec<usize> = (0..buffers.len()).filter(free).collect();
            let large_enough =
                free.iter().copied().filter(|&b| buffers[b] >= size).min_by_key(|&b| buffers[b]);
            let buffer = large_enough.or(free.into_iter().max_by_key(|&b| buffers[b])).unwrap_or_else(|| {
                buffers.push(0);
                busy_until.push(None);
                buffers.len() - 1
            });
            buffers[buffer] = buffers[buffer].max(size);
            busy_until[buffer] = Some(last_use[map]);
            place[map] = Some(buffer);
        };
        let mut buffers = Vec::new();
        assign(self.x.buffer, 0, &mut buffers);
        for (time, op) in self.ops.iter().enumerate() {
            assign(op.output().buffer, time, &mut buffers);
        }
        let moved = |map: &mut Map| map.buffer = place[map.buffer].unwrap_or_default();
        for op in &mut self.ops {
            op.maps_mut().into_iter().for_each(moved);
        }
        moved(&mut self.x);
        moved(&mut self.velocity);
        self.buffers = buffers;
    }
}

impl Op {
    fn maps_mut(&mut self) -> Vec<&mut Map> {
        fn of(input: &mut Input) -> impl Iterator<Item = &mut Map> {
            [Some(&mut input.first), input.second.as_mut()].into_iter().flatten()
        }
        match self {
            Self::Conv(op) => {
                of(&mut op.x).chain(op.residual.as_mut().map(|r| &mut r.map)).chain([&mut op.y]).collect()
            }
            Self::GroupNorm(op) => of(&mut op.x).chain([&mut op.y]).collect(),
            Self::Attention(op) => vec![&mut op.qkv, &mut op.y],
            Self::Pool(op) => vec![&mut op.x, &mut op.y],
        }
    }
}

/// How the rows (outputs) or columns (inputs) of a weight are placed among the channels of a map.
enum Order {
    /// One after the other, zeros at the end.
    Plain,
    /// To `[3, heads, head_channels]`, each head filled up; from the same order, or from `[heads, 3,
    /// head_channels]`.
    Qkv { heads: usize, head_channels: usize, heads_first: bool },
    /// To `[heads, head_channels]`, each head filled up.
    Heads { head_channels: usize },
}

impl Order {
    /// The channel of the map for each row of a weight that has `count`.
    fn places(&self, count: usize) -> Vec<usize> {
        match *self {
            Self::Plain => (0..count).collect(),
            Self::Heads { head_channels: width } => {
                let padded = width.next_multiple_of(BLOCK);
                (0..count).map(|row| row / width * padded + row % width).collect()
            }
            Self::Qkv { heads, head_channels: width, heads_first } => {
                let padded = width.next_multiple_of(BLOCK);
                let place = |row: usize| {
                    let (part, head) = match heads_first {
                        true => (row / width % 3, row / width / 3),
                        false => (row / width / heads, row / width % heads),
                    };
                    (part * heads + head) * padded + row % width
                };
                (0..count).map(place).collect()
            }
        }
    }
}

/// Walks through the layout, and emits operations on maps that each have a buffer of their own.
struct Builder<'a> {
    spec: &'a UNetSpec,
    tensors: BTreeMap<String, HostTensor>,
    ops: Vec<Op>,
    maps: Vec<usize>,
    weights: Vec<ConvWeight>,
    vectors: Vec<f32>,
    conditioner: Conditioner,
}

impl Builder<'_> {
    fn network(&mut self) -> (Map, Map) {
        let layout = self.spec.layout();
        let linear = |build: &mut Self, name: &str| build.linear(name);
        self.conditioner.time_embed = [linear(self, "time_embed.0"), linear(self, "time_embed.2")];
        if self.spec.num_classes.is_some() {
            self.conditioner.labels = Some(self.take("label_emb.weight"));
        }
        let x = self.map(self.spec.height, self.spec.width, self.spec.in_channels);
        let mut h = x;
        let mut kept = Vec::new();
        for (i, block) in layout.input_blocks.iter().enumerate() {
            h = self.block(&format!("input_blocks.{i}"), block, h.into());
            kept.push(h);
        }
        h = self.block("middle_block", &layout.middle_block, h.into());
        for (i, block) in layout.output_blocks.iter().enumerate() {
            h = self.block(&format!("output_blocks.{i}"), block, Input { first: h, second: kept.pop() });
        }
        let normal = self.norm("out.0", h.into(), true);
        let velocity = self.conv("out.2", normal.into(), 1, false, None, None);
        (x, velocity)
    }

    fn block(&mut self, prefix: &str, layers: &[LayerSpec], x: Input) -> Map {
        // Only the first layer of a block, a residual block, reads two maps.
        let mut input = x;
        for (j, layer) in layers.iter().enumerate() {
            let name = format!("{prefix}.{j}");
            let y = match *layer {
                LayerSpec::Conv { .. } => self.conv(&name, input, 1, false, None, None),
                LayerSpec::ResBlock { out_channels, resample, .. } => {
                    self.res_block(&name, input, out_channels, resample)
                }
                LayerSpec::Attention { num_heads, .. } => self.attention(&name, input.first, num_heads),
                LayerSpec::Downsample { .. } => self.conv(&format!("{name}.op"), input, 2, false, None, None),
                LayerSpec::Upsample { .. } => self.conv(&format!("{name}.conv"), input, 1, true, None, None),
            };
            input = y.into();
        }
        input.first
    }

    fn res_block(&mut self, name: &str, x: Input, out_channels: usize, resample: Option<Resample>) -> Map {
        let down = resample == Some(Resample::Down);
        let up = resample == Some(Resample::Up);
        let mut h = self.norm(&format!("{name}.in_layers.0"), x, true);
        let mut skip = x;
        if down {
            h = self.pool(h);
            skip = self.pool(x.first).into();
        }
        let embed = self.linear(&format!("{name}.emb_layers.1"));
        let (in_conv, out_norm) = (format!("{name}.in_layers.2"), format!("{name}.out_layers.0"));
        let h = if self.spec.use_scale_shift_norm {
            let (gain, offset) = (self.take_values(&out_norm, "weight"), self.take_values(&out_norm, "bias"));
            let place = self.conditioner.scale_and_shift(embed, &gain, &offset);
            let h = self.conv(&in_conv, h.into(), 1, up, None, None);
            let (gain, offset) = (Vector::Conditioned(place), Vector::Conditioned(place + out_channels));
            self.push_norm(h.into(), gain, offset, true)
        } else {
            let bias = self.take_values(&in_conv, "bias");
            let bias = Vector::Conditioned(self.conditioner.shift(embed, &bias));
            let h = self.conv(&in_conv, h.into(), 1, up, Some(bias), None);
            self.norm(&out_norm, h.into(), true)
        };
        let residual = if x.channels() == out_channels {
            skip.first
        } else {
            self.conv(&format!("{name}.skip_connection"), skip, 1, false, None, None)
        };
        let residual = Residual { map: residual, upsample: up };
        self.conv(&format!("{name}.out_layers.3"), h.into(), 1, false, None, Some(residual))
    }

    fn attention(&mut self, name: &str, x: Map, heads: usize) -> Map {
        let head_channels = x.channels / heads;
        let normal = self.norm(&format!("{name}.norm"), x.into(), false);
        let heads_first = !self.spec.use_new_attention_order;
        let rows = Order::Qkv { heads, head_channels, heads_first };
        let qkv = self.conv_ordered(&format!("{name}.qkv"), normal.into(), rows, Order::Plain, None);
        let y = self.map(x.height, x.width, qkv.channels / 3);
        self.ops.push(Op::Attention(Attention { qkv, heads, head_channels, y }));
        let columns = Order::Heads { head_channels };
        let residual = Residual { map: x, upsample: false };
        self.conv_ordered(&format!("{name}.proj_out"), y.into(), Order::Plain, columns, Some(residual))
    }

    fn pool(&mut self, x: Map) -> Map {
        let y = self.map(x.height / 2, x.width / 2, x.channels);
        self.ops.push(Op::Pool(Pool { x, y }));
        y
    }

    fn norm(&mut self, name: &str, x: Input, silu: bool) -> Map {
        let (gain, offset) = (self.take_values(name, "weight"), self.take_values(name, "bias"));
        let (gain, offset) = (self.vector(&gain), self.vector(&offset));
        self.push_norm(x, gain, offset, silu)
    }

    fn push_norm(&mut self, x: Input, gain: Vector, offset: Vector, silu: bool) -> Map {
        debug_assert!(x.channels().is_multiple_of(NORM_GROUPS));
        let y = self.map(x.first.height, x.first.width, x.channels());
        self.ops.push(Op::GroupNorm(GroupNorm { x, gain, offset, silu, y }));
        y
    }

    fn conv(
        &mut self,
        name: &str,
        x: Input,
        stride: usize,
        upsample: bool,
        bias: Option<Vector>,
        residual: Option<Residual>,
    ) -> Map {
        let weight = self.weight(name, &Order::Plain, &Order::Plain);
        let bias = bias.unwrap_or_else(|| {
            let bias = self.take_values(name, "bias");
            self.vector(&bias)
        });
        let size = |size: usize| if upsample { 2 * size } else { size.div_ceil(stride) };
        let y = self.map(size(x.first.height), size(x.first.width), weight.out_channels);
        self.push_conv(
            Conv { x, kernel: weight.kernel, stride, upsample, weight: 0, bias, residual, y },
            weight,
        )
    }

    /// A 1x1 convolution whose channels are placed in another order than they have in the file.
    fn conv_ordered(
        &mut self,
        name: &str,
        x: Input,
        rows: Order,
        columns: Order,
        residual: Option<Residual>,
    ) -> Map {
        let weight = self.weight(name, &rows, &columns);
        let values = self.take_values(name, "bias");
        let mut bias = vec![0.0; weight.out_channels];
        for (value, place) in values.iter().zip(rows.places(values.len())) {
            bias[place] = *value;
        }
        let bias = self.vector(&bias);
        let y = self.map(x.first.height, x.first.width, weight.out_channels);
        self.push_conv(
            Conv { x, kernel: 1, stride: 1, upsample: false, weight: 0, bias, residual, y },
            weight,
        )
    }

    fn push_conv(&mut self, conv: Conv, weight: ConvWeight) -> Map {
        self.weights.push(weight);
        self.ops.push(Op::Conv(Conv { weight: self.weights.len() - 1, ..conv }));
        conv.y
    }

    /// A weight `[out, in, kernel, kernel]`, or `[out, in, 1]`, as a [`ConvWeight`].
    fn weight(&mut self, name: &str, rows: &Order, columns: &Order) -> ConvWeight {
        let HostTensor { shape, values } = self.take(&format!("{name}.weight"));
        let (outputs, inputs) = (shape[0], shape[1]);
        let taps: usize = shape[2..].iter().product();
        let (rows, columns) = (rows.places(outputs), columns.places(inputs));
        let width =
            |places: &[usize]| places.iter().max().map_or(0, |&last| (last + 1).next_multiple_of(BLOCK));
        let (out_channels, in_channels) = (width(&rows), width(&columns));
        let mut placed = vec![0.0; taps * in_channels * out_channels];
        for (values, &row) in values.chunks_exact(inputs * taps).zip(&rows) {
            for (values, &column) in values.chunks_exact(taps).zip(&columns) {
                for (tap, value) in values.iter().enumerate() {
                    placed[(tap * in_channels + column) * out_channels + row] = *value;
                }
            }
        }
        let kernel = if taps == 1 { 1 } else { 3 };
        ConvWeight { kernel, in_channels, out_channels, values: placed }
    }

    fn linear(&mut self, name: &str) -> Linear {
        Linear { weight: self.take(&format!("{name}.weight")), bias: self.take_values(name, "bias") }
    }

    /// Takes a tensor of the model, which [`Model::new`] has checked against the spec.
    fn take(&mut self, name: &str) -> HostTensor {
        self.tensors.remove(name).unwrap_or_default()
    }

    fn take_values(&mut self, name: &str, kind: &str) -> Vec<f32> {
        self.take(&format!("{name}.{kind}")).values
    }

    fn vector(&mut self, values: &[f32]) -> Vector {
        let place = self.vectors.len();
        self.vectors.extend_from_slice(values);
        self.vectors.resize(self.vectors.len().next_multiple_of(BLOCK), 0.0);
        Vector::Fixed(place)
    }

    fn map(&mut self, height: usize, width: usize, channels: usize) -> Map {
        let channels = channels.next_multiple_of(BLOCK);
        let map = Map { buffer: self.maps.len(), height, width, channels };
        self.maps.push(map.len());
        map
    }
}
