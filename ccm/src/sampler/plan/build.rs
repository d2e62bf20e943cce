//! From a model to a [`Plan`]: the order of the operations and the layout of the weights.

use std::collections::BTreeMap;

use super::{Attention, BLOCK, Conv, ConvWeight, GroupNorm, Input, Map, Op, Plan, Pool, Residual, Vector};
use crate::sampler::condition::{Conditioner, Linear};
use crate::spec::{LayerSpec, NORM_GROUPS, Resample, UNetSpec};
use crate::weights::{HostTensor, Model};

impl Plan {
    /// Compiles a model.
    ///
    /// # Panics
    /// If the tensors of the model are not those of its spec. [`Model::new`] makes no such model.
    pub fn new(model: Model) -> Self {
        let (mut plan, sizes) = Self::unshared(model);
        plan.share_buffers(&sizes);
        plan
    }

    /// The plan in which every map has a buffer of its own, and the values of one image of each.
    fn unshared(model: Model) -> (Self, Vec<usize>) {
        let Model { spec, tensors, .. } = model;
        let mut tensors = Tensors::new(&spec, tensors);
        let time_embed = ["time_embed.0", "time_embed.2"].map(|name| tensors.linear(name));
        let labels = spec.num_classes.map(|_| tensors.take("label_emb.weight"));
        let mut build = Builder {
            spec: &spec,
            tensors,
            ops: Vec::new(),
            maps: Vec::new(),
            weights: Vec::new(),
            vectors: Vec::new(),
            conditioner: Conditioner::new(spec.model_channels, time_embed, labels),
        };
        let (x, velocity) = build.network();
        let Builder { tensors, ops, maps, weights, vectors, conditioner, .. } = build;
        assert!(tensors.0.is_empty(), "the plan uses every tensor");
        (Self { ops, buffers: Vec::new(), x, velocity, weights, vectors, conditioner, spec }, maps)
    }
}

/// The tensors of a model by name, each taken once.
struct Tensors(BTreeMap<String, HostTensor>);

impl Tensors {
    fn new(spec: &UNetSpec, tensors: Vec<HostTensor>) -> Self {
        let expected = spec.tensors();
        assert!(tensors.len() == expected.len(), "the model must have one tensor for each of its spec");
        let mut named = BTreeMap::new();
        for (expected, tensor) in expected.into_iter().zip(tensors) {
            assert!(tensor.shape == expected.shape, "shape of {}", expected.name);
            named.insert(expected.name, tensor);
        }
        Self(named)
    }

    fn take(&mut self, name: &str) -> HostTensor {
        self.0.remove(name).unwrap_or_else(|| panic!("the spec has no tensor {name}, or it has been taken"))
    }

    fn values(&mut self, name: &str, kind: &str) -> Vec<f32> {
        self.take(&format!("{name}.{kind}")).values
    }

    fn linear(&mut self, name: &str) -> Linear {
        Linear { weight: self.take(&format!("{name}.weight")), bias: self.values(name, "bias") }
    }
}

/// How the rows (outputs) or columns (inputs) of a weight are placed among the channels of a map.
enum Order {
    /// In their order, with zeros at the end.
    Plain,
    /// As `[3, heads, head_channels]` with each head padded; from that order, or with `heads_first` from `[heads, 3,
    /// head_channels]`.
    Qkv { heads: usize, head_channels: usize, heads_first: bool },
    /// As `[heads, head_channels]` with each head padded.
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

/// Goes through the layers of a network, and emits operations on maps that each have a buffer of their own.
struct Builder<'a> {
    spec: &'a UNetSpec,
    tensors: Tensors,
    ops: Vec<Op>,
    maps: Vec<usize>,
    weights: Vec<ConvWeight>,
    vectors: Vec<f32>,
    conditioner: Conditioner,
}

impl Builder<'_> {
    /// Emits the whole network; the maps of its input and output.
    #[expect(clippy::expect_used, reason = "the layout of a spec has as many output blocks as input blocks")]
    fn network(&mut self) -> (Map, Map) {
        let layout = self.spec.layout();
        let x = self.map(self.spec.height, self.spec.width, self.spec.in_channels);
        let mut h = x;
        let mut kept = Vec::new();
        for (i, block) in layout.input_blocks.iter().enumerate() {
            h = self.block(&format!("input_blocks.{i}"), block, h.into());
            kept.push(h);
        }
        h = self.block("middle_block", &layout.middle_block, h.into());
        for (i, block) in layout.output_blocks.iter().enumerate() {
            let skip = kept.pop().expect("every output block has a skip connection");
            h = self.block(&format!("output_blocks.{i}"), block, Input { first: h, second: Some(skip) });
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
        let embed = self.tensors.linear(&format!("{name}.emb_layers.1"));
        let (in_conv, out_norm) = (format!("{name}.in_layers.2"), format!("{name}.out_layers.0"));
        let h = if self.spec.use_scale_shift_norm {
            let (gain, offset) =
                (self.tensors.values(&out_norm, "weight"), self.tensors.values(&out_norm, "bias"));
            let place = self.conditioner.scale_and_shift(embed, &gain, &offset);
            let h = self.conv(&in_conv, h.into(), 1, up, None, None);
            let (gain, offset) = (Vector::Conditioned(place), Vector::Conditioned(place + out_channels));
            self.push_norm(h.into(), gain, offset, true)
        } else {
            let bias = self.tensors.values(&in_conv, "bias");
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
        let (gain, offset) = (self.tensors.values(name, "weight"), self.tensors.values(name, "bias"));
        let (gain, offset) = (self.vector(&gain), self.vector(&offset));
        self.push_norm(x, gain, offset, silu)
    }

    fn push_norm(&mut self, x: Input, gain: Vector, offset: Vector, silu: bool) -> Map {
        assert!(x.channels().is_multiple_of(NORM_GROUPS), "channels of a norm that are no whole groups");
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
            let bias = self.tensors.values(name, "bias");
            self.vector(&bias)
        });
        let size = |size: usize| if upsample { 2 * size } else { size.div_ceil(stride) };
        let y = self.map(size(x.first.height), size(x.first.width), weight.out_channels);
        self.push_conv(
            Conv { x, kernel: weight.kernel, stride, upsample, weight: 0, bias, residual, y },
            weight,
        )
    }

    /// A 1x1 convolution whose channels are in another order than in the file.
    fn conv_ordered(
        &mut self,
        name: &str,
        x: Input,
        rows: Order,
        columns: Order,
        residual: Option<Residual>,
    ) -> Map {
        let weight = self.weight(name, &rows, &columns);
        let values = self.tensors.values(name, "bias");
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
        let HostTensor { shape, values } = self.tensors.take(&format!("{name}.weight"));
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

    /// Appends a vector, padded to whole blocks.
    fn vector(&mut self, values: &[f32]) -> Vector {
        let place = self.vectors.len();
        self.vectors.extend_from_slice(values);
        self.vectors.resize(self.vectors.len().next_multiple_of(BLOCK), 0.0);
        Vector::Fixed(place)
    }

    /// A new map, with its channels padded to whole blocks.
    fn map(&mut self, height: usize, width: usize, channels: usize) -> Map {
        let channels = channels.next_multiple_of(BLOCK);
        let map = Map { buffer: self.maps.len(), height, width, channels };
        self.maps.push(map.len());
        map
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::spec::ModelCard;
    use crate::weights::Precision;

    /// Networks that between them have every kind of layer.
    pub(in crate::sampler::plan) fn specs() -> Vec<UNetSpec> {
        let spec = |json: &str| serde_json::from_str::<UNetSpec>(json).unwrap();
        vec![
            spec(
                r#"{"in_channels": 1, "height": 12, "width": 20, "model_channels": 32, "num_res_blocks": 1,
                    "channel_mult": [1, 2], "attention_resolutions": [10], "num_heads": 4,
                    "use_scale_shift_norm": true, "resblock_updown": true, "num_classes": 3}"#,
            ),
            spec(
                r#"{"in_channels": 3, "height": 8, "width": 8, "model_channels": 64, "num_res_blocks": 2,
                    "channel_mult": [1, 2, 3], "attention_resolutions": [8, 4], "num_heads": 16,
                    "use_new_attention_order": true}"#,
            ),
        ]
    }

    fn zeros(spec: &UNetSpec) -> Model {
        let tensors = spec.tensors().into_iter().map(|tensor| {
            let values = vec![0.0; tensor.shape.iter().product()];
            HostTensor::new(tensor.shape, values)
        });
        let (card, precision) = (ModelCard::default(), Precision::F32);
        Model { spec: spec.clone(), card, precision, tensors: tensors.collect() }
    }

    /// A plan of zeros in which every map has a buffer of its own, and the values of one image of each.
    pub(in crate::sampler::plan) fn unshared(spec: &UNetSpec) -> (Plan, Vec<usize>) {
        Plan::unshared(zeros(spec))
    }

    #[test]
    #[should_panic(expected = "the model must have one tensor for each of its spec")]
    fn a_missing_tensor_is_not_replaced() {
        let mut model = zeros(&specs()[0]);
        model.tensors.pop();
        Plan::new(model);
    }

    #[test]
    #[should_panic(expected = "shape of time_embed.0.weight")]
    fn a_tensor_of_another_shape_is_not_used() {
        let mut model = zeros(&specs()[0]);
        model.tensors.reverse();
        Plan::new(model);
    }

    #[test]
    #[should_panic(expected = "the spec has no tensor out.3.weight")]
    fn a_tensor_that_is_not_there_is_not_made_up() {
        let model = zeros(&specs()[0]);
        Tensors::new(&model.spec, model.tensors).linear("out.3");
    }
}
