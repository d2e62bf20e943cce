//! Runs the nodes of a graph.

use std::collections::btree_map::Entry;

use burn::tensor::{Device, Tensor, TensorData};

use super::functions::{
    activate, average_pool, dropout, heads_attention, in_a_row, per_pixel, qkv_attention, sinusoids, upsample,
};
use super::{Inputs, Network, Output, Pass, Program, single};
use crate::model::graph::{
    Attention, AttentionBias, Conv, GUIDANCE_FACTOR, GroupNorm, LayerNorm, Node, Op, Padding, Param,
    PositionEmbedding, Shape, Value,
};
use crate::nn::ops::{Norm, conv, group_norm};

impl Network {
    /// Runs one node, and drops the values that it is the last to read. Returns its output.
    #[expect(clippy::expect_used, reason = "a graph's nodes stand in the order in which they run")]
    pub(super) fn run<'a>(&self, index: usize, pass: &'a mut Pass) -> &'a Output {
        let Program { graph, last_reads } = &*self.program;
        let Node { op, output } = &graph.nodes[index];
        let Pass { inputs, values, masks } = pass;
        let mut read = |value: Value| {
            let place = &mut values[value.index()];
            let value = if last_reads[index].contains(&value) { place.take() } else { place.clone() };
            value.expect("a value that a node before has computed")
        };
        let shape = graph.shape(*output);
        let y = self.apply(op, shape, inputs, masks.entry(*output), &mut read);
        let y = match op {
            // Numbers that half precision would change; only sinusoids read them.
            Op::Time | Op::Sizes | Op::Guidance => y,
            _ => y.cast(self.activations),
        };
        values[output.index()].insert(y)
    }

    fn apply(
        &self,
        op: &Op,
        shape: Shape,
        inputs: &Inputs,
        mask: Entry<Value, Tensor<4>>,
        read: &mut dyn FnMut(Value) -> Output,
    ) -> Output {
        use Output::{Map, Vector};
        match *op {
            Op::Image => Map(inputs.x.clone()),
            Op::Text => Map(given(&inputs.condition.text, "a text")),
            Op::Pooled => Vector(given(&inputs.condition.pooled, "a text")),
            Op::Sizes => Vector(given(&inputs.condition.sizes, "sizes")),
            Op::Guidance => {
                Vector((given(&inputs.condition.guidance, "a guidance scale") - 1.0) * GUIDANCE_FACTOR)
            }
            Op::Time => Vector(inputs.time.clone().unsqueeze_dim(1)),
            Op::Sinusoids(x, embedding) => Vector(sinusoids(&embedding, read(x).into_vector())),
            Op::LabelEmbedding(table) => Vector(match &inputs.condition.label {
                Some(label) => self.rows(table).select(0, label.clone()),
                None => self.no_label(table, &inputs.time),
            }),
            Op::TokenEmbedding(table) => {
                let ids = given(&inputs.condition.text, "the ids of a text's tokens");
                let [batch, _, _, tokens] = ids.dims();
                let rows = self.rows(table).select(0, ids.reshape([batch * tokens]).int());
                let [_, channels] = rows.dims();
                Map(rows.reshape([batch, 1, tokens, channels]).permute([0, 3, 1, 2]))
            }
            Op::PositionEmbedding(embedding) => Map(self.position_embedding(&embedding, shape)),
            Op::Linear(x, affine) => {
                let weight = self.parameter::<2>(affine.weight);
                let y = read(x).into_vector().matmul(weight.transpose());
                Vector(match affine.bias {
                    Some(bias) => y + self.parameter::<1>(bias).unsqueeze(),
                    None => y,
                })
            }
            Op::Activate(x, activation) => match read(x) {
                Map(x) => Map(activate(activation, single(x))),
                Vector(x) => Vector(activate(activation, single(x))),
            },
            Op::Add(a, b) => match (read(a), read(b)) {
                (Map(a), Map(b)) => Map(a + b),
                (a, b) => Vector(a.into_vector() + b.into_vector()),
            },
            Op::AddVector(x, shift) => {
                let x = read(x).into_map();
                Map(x + per_pixel(read(shift).into_vector()))
            }
            Op::Multiply(a, b) => Map(read(a).into_map() * read(b).into_map()),
            Op::MultiplyVector(x, factor) => {
                let x = read(x).into_map();
                Map(x * per_pixel(read(factor).into_vector()))
            }
            Op::Chunk { x, parts, index } => match read(x) {
                Map(x) => {
                    let part = x.dims()[1] / parts;
                    Map(x.narrow(1, index * part, part))
                }
                Vector(x) => {
                    let [batch, channels] = x.dims();
                    let part = channels / parts;
                    Vector(x.slice([0..batch, index * part..(index + 1) * part]))
                }
            },
            Op::Conv(conv) => {
                let x = read(conv.x).into_map();
                let shift = conv.shift.map(|shift| read(shift).into_vector());
                Map(self.conv(&conv, x, shift))
            }
            Op::GroupNorm(norm) => {
                let x = read(norm.x).into_map();
                let modulation = norm.modulation.map(|values| values.map(|value| read(value).into_vector()));
                Map(self.group_norm(&norm, x, modulation))
            }
            Op::LayerNorm(norm) => {
                let x = read(norm.x).into_map();
                let modulation = norm.modulation.map(|values| values.map(|value| read(value).into_vector()));
                Map(self.layer_norm(&norm, x, modulation))
            }
            Op::Modulate { x, scale, shift } => {
                let [x, scale, shift] = [
                    read(x).into_map(),
                    per_pixel(read(scale).into_vector()),
                    per_pixel(read(shift).into_vector()),
                ];
                Map(x * (scale + 1.0) + shift)
            }
            Op::Concat(a, b) => match (read(a), read(b)) {
                (Map(a), Map(b)) => Map(Tensor::cat(vec![a, b], 1)),
                (a, b) => Vector(Tensor::cat(vec![a.into_vector(), b.into_vector()], 1)),
            },
            Op::Join(a, b) => {
                Map(Tensor::cat([a, b].map(|value| in_a_row(read(value).into_map())).to_vec(), 3))
            }
            Op::Part { x, first } => {
                let x = in_a_row(read(x).into_map());
                let [batch, channels, ..] = x.dims();
                let Shape::Map([_, height, width]) = shape else { panic!("expected a map, found a vector") };
                Map(x.narrow(3, first, height * width).reshape([batch, channels, height, width]))
            }
            Op::Upsample(x) => Map(upsample(read(x).into_map())),
            Op::AveragePool(x) => Map(average_pool(read(x).into_map())),
            Op::QkvAttention { qkv, heads, order } => Map(qkv_attention(read(qkv).into_map(), heads, order)),
            Op::Attention(attention) => {
                let [q, k, v] = attention.qkv.map(|value| read(value).into_map());
                Map(self.attention(&attention, q, k, v))
            }
            Op::PatchChannels { x, side } => {
                let x = read(x).into_map();
                let [batch, channels, height, width] = x.dims();
                let x = x.reshape([batch, side, side, channels / side / side, height * width]);
                Map(x.permute([0, 3, 1, 2, 4]).reshape([batch, channels, height, width]))
            }
            Op::Dropout(x, probability) => {
                let x = read(x).into_map();
                Map(if self.dropout { dropout(x, probability, mask) } else { x })
            }
            Op::Scale { x, factor, offset } => match read(x) {
                Map(x) => Map(x * factor + offset),
                Vector(x) => Vector(x * factor + offset),
            },
        }
    }

    /// The values of a parameter, flat, as they are stored.
    fn stored(&self, param: Param) -> Tensor<1> {
        match param.index().checked_sub(self.base.len()) {
            None => self.base[param.index()].clone(),
            Some(place) => self.parameters[place].clone(),
        }
    }

    /// The values of a parameter, flat, in the type of the activations.
    fn weight(&self, param: Param) -> Tensor<1> {
        self.stored(param).cast(self.activations)
    }

    /// A parameter in the type of the activations.
    fn parameter<const D: usize>(&self, param: Param) -> Tensor<D> {
        let shape = &self.program.graph.parameter(param).shape;
        self.weight(param).reshape(burn::tensor::Shape::from(shape.clone()))
    }

    /// A table of embeddings in single precision: a row's gradient is a sum over the batch.
    fn rows(&self, table: Param) -> Tensor<2> {
        let [rows, channels] = self.program.graph.parameter(table).shape[..] else {
            panic!("a table is a matrix")
        };
        single(self.stored(table)).reshape([rows, channels])
    }

    /// A vector of parameters in single precision.
    fn single_vector(&self, param: Param) -> Tensor<1> {
        single(self.stored(param))
    }

    /// The embedding of a missing label: zeros, `[B, channels]`.
    fn no_label(&self, table: Param, time: &Tensor<1>) -> Tensor<2> {
        let [batch] = time.dims();
        Tensor::zeros([batch, self.program.graph.parameter(table).shape[1]], &time.device())
    }

    /// `x`: `[B, C, H, W]`; `shift`: `[B, D]`, added to the bias.
    fn conv(&self, op: &Conv, x: Tensor<4>, shift: Option<Tensor<2>>) -> Tensor<4> {
        let outputs = self.program.graph.parameter(op.affine.weight).shape[0];
        let inputs = x.dims()[1];
        let weight = self.weight(op.affine.weight);
        let weight = weight.reshape([outputs, inputs, op.kernel, op.kernel]);
        let bias = match op.affine.bias {
            Some(bias) => self.parameter::<1>(bias),
            None => Tensor::<1>::zeros([outputs], &x.device()).cast(self.activations),
        };
        let bias = bias.unsqueeze();
        let bias = shift.map_or(bias.clone(), |shift| shift + bias);
        match op.padding {
            Padding::Around => conv(x, weight, bias, op.stride),
            // Padding only at the end, with stride 2: shift the map by a row and a column of zeros, convolve with padding
            // all around, and drop the first row and column of the result.
            Padding::End => {
                let y = conv(x.pad((1, 0, 1, 0), 0.0), weight, bias, op.stride);
                let [batch, channels, height, width] = y.dims();
                y.slice([0..batch, 0..channels, 1..height, 1..width])
            }
        }
    }

    /// `x`: `[B, C, H, W]`; `modulation`: scale and shift, `[B, C]` each.
    fn group_norm(&self, op: &GroupNorm, x: Tensor<4>, modulation: Option<[Tensor<2>; 2]>) -> Tensor<4> {
        let [batch, channels, ..] = x.dims();
        let [gain, offset] = [op.gain, op.offset].map(|param| self.single_vector(param));
        let (gain, offset) = match modulation.map(|values| values.map(single)) {
            None => {
                let per_image = |value: Tensor<1>| value.unsqueeze::<2>().expand([batch, channels]);
                (per_image(gain), per_image(offset))
            }
            Some([scale, shift]) => {
                let scale = scale + 1.0;
                (scale.clone() * gain.unsqueeze(), scale * offset.unsqueeze() + shift)
            }
        };
        group_norm(x, gain, offset, Norm { groups: op.groups, epsilon: op.epsilon, silu: op.silu })
    }

    /// `x`: `[B, C, H, W]`; `modulation`: scale and shift, `[B, C]` each.
    fn layer_norm(&self, op: &LayerNorm, x: Tensor<4>, modulation: Option<[Tensor<2>; 2]>) -> Tensor<4> {
        let [batch, channels, height, width] = x.dims();
        let of_head = channels / op.heads;
        let x = single(x).reshape([batch, op.heads, of_head, height * width]);
        let x = if op.centred { x.clone() - x.mean_dim(2) } else { x };
        let deviation = (x.clone().square().mean_dim(2) + op.epsilon).sqrt();
        let mut y = x / deviation;
        let of_channel = |param: Param| self.single_vector(param).reshape([1, 1, of_head, 1]);
        if let Some(gain) = op.gain {
            y = y * of_channel(gain);
        }
        if let Some(offset) = op.offset {
            y = y + of_channel(offset);
        }
        let y = y.reshape([batch, channels, height, width]);
        match modulation.map(|values| values.map(single)) {
            Some([scale, shift]) => y * (per_pixel(scale) + 1.0) + per_pixel(shift),
            None => y,
        }
    }

    /// The rows of a table that make a map, `[1, C, H, W]`.
    fn position_embedding(&self, op: &PositionEmbedding, shape: Shape) -> Tensor<4> {
        let Shape::Map([channels, height, width]) = shape else { panic!("expected a map, found a vector") };
        let table = self.weight(op.table);
        let rows = table.dims()[0] / channels / op.side;
        let table = table.narrow(0, 0, rows * op.side * channels).reshape([rows, op.side, channels]);
        let part = table.narrow(0, op.top, height).narrow(1, op.left, width);
        part.permute([2, 0, 1]).unsqueeze()
    }

    /// Attention over positions. `q` and the result: `[B, C, H, W]`; `k`, `v`: of any number of positions.
    fn attention(&self, op: &Attention, q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Tensor<4> {
        let [batch, channels, height, width] = q.dims();
        let split = |x: Tensor<4>| {
            let [_, _, height, width] = x.dims();
            x.reshape([batch, op.heads, channels / op.heads, height * width])
        };
        let (q, k, v) = (split(q), split(k), split(v));
        let bias = self.attention_bias(op, q.dims()[3], k.dims()[3]);
        heads_attention(q, k, v, f64::from(op.scale), bias).reshape([batch, channels, height, width])
    }

    /// The bias of every score, `[1, heads or 1, queries, keys]`, in single precision.
    fn attention_bias(&self, op: &Attention, queries: usize, keys: usize) -> Option<Tensor<4>> {
        let pairs = (0..queries).flat_map(|query| (0..keys).map(move |key| key as isize - query as isize));
        let first = self.base.first().or(self.parameters.first());
        let device = first.map_or_else(Device::default, Tensor::device);
        match op.bias {
            AttentionBias::None => None,
            AttentionBias::Causal => {
                let scores: Vec<f32> = pairs.map(|distance| if distance > 0 { -1e30 } else { 0.0 }).collect();
                Some(Tensor::from_data(TensorData::new(scores, [1, 1, queries, keys]), &device))
            }
            AttentionBias::Relative(bias) => {
                let buckets: Vec<i32> = pairs.map(|distance| bias.bucket(distance) as i32).collect();
                let buckets = TensorData::new(buckets, [queries * keys]);
                let scores = self.rows(bias.table).select(0, Tensor::from_data(buckets, &device));
                Some(scores.transpose().reshape([1, op.heads, queries, keys]))
            }
        }
    }
}

/// A part of the condition that the network reads.
///
/// # Panics
/// If there is none.
fn given<T: Clone>(part: &Option<T>, what: &str) -> T {
    part.clone().unwrap_or_else(|| panic!("this network needs {what}"))
}
