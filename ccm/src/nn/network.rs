//! Runs a [`Graph`] on Burn tensors, with or without gradients.

mod checkpointing;

use std::collections::{BTreeMap, btree_map::Entry};
use std::sync::Arc;

use burn::tensor::activation::{silu, softmax};
use burn::tensor::{Device, Distribution, Int, Tensor, TensorData};

use super::ops::{Norm, conv, group_norm};
use crate::model::graph::{
    Affine, Conv, Graph, GroupNorm, Node, Op, Padding, Param, QkvOrder, TimestepEmbedding, Value, last_reads,
};
use crate::weights::HostTensor;
use checkpointing::Tape;

/// A network with its parameters on a device.
#[derive(Debug, Clone)]
pub struct Network {
    program: Arc<Program>,
    /// Flat, in the order of [`Graph::parameters`].
    parameters: Vec<Tensor<1>>,
    dropout: bool,
    /// Forward passes to be recomputed, with gradient checkpointing.
    tape: Option<Tape>,
}

/// A fused graph, and for each node the values that it is the last to read.
#[derive(Debug)]
struct Program {
    graph: Graph,
    last_reads: Vec<Vec<Value>>,
}

/// The value of a graph node for a batch.
#[derive(Debug, Clone)]
enum Activation {
    /// `[B, C, H, W]`.
    Map(Tensor<4>),
    /// `[B, C]`.
    Vector(Tensor<2>),
}

/// The inputs of a network.
#[derive(Debug, Clone)]
struct Inputs {
    /// `[B, C, H, W]`.
    x: Tensor<4>,
    /// The network's own time `tau`, `[B]`.
    time: Tensor<1>,
    /// Labels, `[B]`, for a network with classes. Without labels the label embedding is zero.
    label: Option<Tensor<1, Int>>,
}

/// The state of a forward pass between two nodes.
#[derive(Debug)]
struct Pass {
    inputs: Inputs,
    /// By [`Value::index`]. A value is dropped when its last reader takes it.
    values: Vec<Option<Activation>>,
    /// Dropout masks by the value that they belong to. A mask that is missing is drawn.
    masks: BTreeMap<Value, Tensor<4>>,
}

impl Pass {
    fn new(inputs: Inputs, values: usize) -> Self {
        Self { inputs, values: vec![None; values], masks: BTreeMap::new() }
    }

    /// A value that has been computed and not been dropped.
    #[expect(clippy::expect_used, reason = "callers know what has been computed")]
    fn take(&mut self, value: Value) -> Activation {
        self.values[value.index()].take().expect("a value that has been computed")
    }
}

impl Network {
    /// A network with the values of its parameters. On a device that records gradients, the parameters require gradients.
    ///
    /// # Panics
    /// If a tensor is missing, or its shape differs from the parameter's; the message then has its name.
    pub(crate) fn new(graph: &Graph, tensors: &[HostTensor], device: &Device) -> Self {
        assert_eq!(graph.parameters.len(), tensors.len(), "tensors of the network");
        let parameter = |(parameter, tensor): (&crate::model::graph::Parameter, &HostTensor)| {
            assert_eq!(tensor.shape, parameter.shape, "shape of tensor `{}`", parameter.name);
            let count = tensor.values.len();
            let value = Tensor::<1>::from_data(TensorData::new(tensor.values.clone(), [count]), device);
            if device.is_autodiff() { value.require_grad() } else { value }
        };
        let parameters = graph.parameters.iter().zip(tensors).map(parameter).collect();
        let graph = graph.fused();
        let last_reads = last_reads(&graph.nodes);
        Self {
            program: Arc::new(Program { graph, last_reads }),
            parameters,
            dropout: device.is_autodiff(),
            tape: None,
        }
    }

    /// The network's output.
    ///
    /// # Shapes
    /// - `x`, result: `[B, C, H, W]`
    /// - `time`: `[B]`
    /// - `label`: `[B]`, in `0..num_classes`
    pub(crate) fn forward(&self, x: Tensor<4>, time: Tensor<1>, label: Option<Tensor<1, Int>>) -> Tensor<4> {
        let inputs = Inputs { x, time, label };
        match &self.tape {
            Some(tape) => self.forward_checkpointed(inputs, tape),
            None => {
                let mut pass = Pass::new(inputs, self.program.graph.shapes.len());
                for index in 0..self.program.graph.nodes.len() {
                    self.run(index, &mut pass);
                }
                pass.take(self.program.graph.output).into_map()
            }
        }
    }

    /// The maps of [`Graph::features`]. The inputs are those of [`Network::forward`].
    pub(crate) fn features(
        &self,
        x: Tensor<4>,
        time: Tensor<1>,
        label: Option<Tensor<1, Int>>,
    ) -> Vec<Tensor<4>> {
        let Graph { nodes, shapes, features, .. } = &self.program.graph;
        let mut pass = Pass::new(Inputs { x, time, label }, shapes.len());
        let mut found = Vec::with_capacity(features.len());
        for (index, node) in nodes.iter().enumerate() {
            let value = self.run(index, &mut pass);
            if features.contains(&node.output) {
                found.push(value.clone().into_map());
            }
            if found.len() == features.len() {
                break;
            }
        }
        found
    }

    /// Runs one node, and drops the values that it is the last to read. Returns its output.
    #[expect(clippy::expect_used, reason = "a graph's nodes stand in the order in which they run")]
    fn run<'a>(&self, index: usize, pass: &'a mut Pass) -> &'a Activation {
        let Program { graph, last_reads } = &*self.program;
        let Node { op, output } = &graph.nodes[index];
        let Pass { inputs, values, masks } = pass;
        let mut read = |value: Value| {
            let place = &mut values[value.index()];
            let value = if last_reads[index].contains(&value) { place.take() } else { place.clone() };
            value.expect("a value that a node before has computed")
        };
        let y = self.apply(op, inputs, masks.entry(*output), &mut read);
        values[output.index()].insert(y)
    }

    fn apply(
        &self,
        op: &Op,
        inputs: &Inputs,
        mask: Entry<Value, Tensor<4>>,
        read: &mut dyn FnMut(Value) -> Activation,
    ) -> Activation {
        use Activation::{Map, Vector};
        match *op {
            Op::Image => Map(inputs.x.clone()),
            Op::TimestepEmbedding(embedding) => Vector(timestep_embedding(&embedding, inputs.time.clone())),
            Op::LabelEmbedding(table) => Vector(match &inputs.label {
                Some(label) => self.parameter::<2>(table).select(0, label.clone()),
                None => self.no_label(table, &inputs.time),
            }),
            Op::Linear(x, affine) => {
                let weight = self.parameter::<2>(affine.weight);
                Vector(read(x).into_vector().matmul(weight.transpose()) + self.bias(affine).unsqueeze())
            }
            Op::Silu(x) => match read(x) {
                Map(x) => Map(silu(x)),
                Vector(x) => Vector(silu(x)),
            },
            Op::Add(a, b) => match (read(a), read(b)) {
                (Map(a), Map(b)) => Map(a + b),
                (a, b) => Vector(a.into_vector() + b.into_vector()),
            },
            Op::AddVector(x, shift) => {
                let x = read(x).into_map();
                Map(x + per_pixel(read(shift).into_vector()))
            }
            Op::Chunk { x, parts, index } => {
                let x = read(x).into_vector();
                let [batch, channels] = x.dims();
                let part = channels / parts;
                Vector(x.slice([0..batch, index * part..(index + 1) * part]))
            }
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
            Op::Modulate { x, scale, shift } => {
                let [x, scale, shift] = [
                    read(x).into_map(),
                    per_pixel(read(scale).into_vector()),
                    per_pixel(read(shift).into_vector()),
                ];
                Map(x * (scale + 1.0) + shift)
            }
            Op::Concat(a, b) => {
                let a = read(a).into_map();
                Map(Tensor::cat(vec![a, read(b).into_map()], 1))
            }
            Op::Upsample(x) => Map(upsample(read(x).into_map())),
            Op::AveragePool(x) => Map(average_pool(read(x).into_map())),
            Op::QkvAttention { qkv, heads, order } => Map(qkv_attention(read(qkv).into_map(), heads, order)),
            Op::Attention { qkv, heads } => {
                let [q, k, v] = qkv.map(|value| read(value).into_map());
                Map(attention(q, k, v, heads))
            }
            Op::Dropout(x, probability) => {
                let x = read(x).into_map();
                Map(if self.dropout { dropout(x, probability, mask) } else { x })
            }
            Op::Scale(x, factor) => Map(read(x).into_map() * factor),
        }
    }

    fn parameter<const D: usize>(&self, param: Param) -> Tensor<D> {
        let shape = &self.program.graph.parameter(param).shape;
        self.parameters[param.index()].clone().reshape(burn::tensor::Shape::from(shape.clone()))
    }

    fn bias(&self, affine: Affine) -> Tensor<1> {
        self.parameters[affine.bias.index()].clone()
    }

    /// The embedding of a missing label: zeros, `[B, channels]`.
    fn no_label(&self, table: Param, time: &Tensor<1>) -> Tensor<2> {
        let [batch] = time.dims();
        Tensor::zeros([batch, self.program.graph.parameter(table).shape[1]], &time.device())
    }

    /// `x`: `[B, C, H, W]`; `shift`: `[B, D]`, added to the bias.
    fn conv(&self, op: &Conv, x: Tensor<4>, shift: Option<Tensor<2>>) -> Tensor<4> {
        let shape = &self.program.graph.parameter(op.affine.weight).shape;
        let kernel = shape.get(2).map_or(1, |&kernel| kernel);
        let weight =
            self.parameters[op.affine.weight.index()].clone().reshape([shape[0], shape[1], kernel, kernel]);
        let bias = self.bias(op.affine).unsqueeze();
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
        let [gain, offset] = [op.affine.weight, op.affine.bias].map(|param| self.parameter::<1>(param));
        let (gain, offset) = match modulation {
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

    /// The parameters, flat, without gradients, in the order of [`Graph::parameters`].
    pub(crate) fn parameters(&self) -> Vec<Tensor<1>> {
        let plain = |parameter: &Tensor<1>| match parameter.device().is_autodiff() {
            true => parameter.clone().inner(),
            false => parameter.clone(),
        };
        self.parameters.iter().map(plain).collect()
    }

    /// The same network with new parameters, in the order of [`Network::parameters`]. They require gradients if the old
    /// ones did.
    ///
    /// # Panics
    /// If the number of parameters differs.
    pub(crate) fn with_parameters(&self, parameters: Vec<Tensor<1>>) -> Self {
        assert_eq!(parameters.len(), self.parameters.len(), "parameters of the network");
        let like = |(new, old): (Tensor<1>, &Tensor<1>)| match old.device().is_autodiff() {
            true if old.is_require_grad() => new.autodiff().require_grad(),
            true => new.autodiff(),
            false => new,
        };
        let parameters = parameters.into_iter().zip(&self.parameters).map(like).collect();
        let tape = self.tape.as_ref().map(Tape::fresh);
        Self { parameters, tape, ..self.clone() }
    }

    /// The same network, whose parameters `fixed` get no gradients: one entry for each parameter, in their order.
    pub(crate) fn with_fixed(&self, fixed: &[bool]) -> Self {
        let fix = |(parameter, &fixed): (&Tensor<1>, _)| match fixed {
            true => parameter.clone().inner().autodiff(),
            false => parameter.clone(),
        };
        let parameters = self.parameters.iter().zip(fixed).map(fix).collect();
        Self { parameters, ..self.clone() }
    }

    /// Which parameters get no gradients although the device records them.
    pub(crate) fn fixed(&self) -> Vec<bool> {
        let is_fixed =
            |parameter: &Tensor<1>| parameter.device().is_autodiff() && !parameter.is_require_grad();
        self.parameters.iter().map(is_fixed).collect()
    }

    /// The same network without gradients, and therefore without dropout.
    pub(crate) fn without_gradients(&self) -> Self {
        Self { parameters: self.parameters(), dropout: false, tape: None, ..self.clone() }
    }

    /// The same network as a fixed function: its input gets gradients, its parameters get none, and dropout is off.
    pub(crate) fn frozen(&self) -> Self {
        let parameters = self.parameters().into_iter().map(Tensor::autodiff).collect();
        Self { parameters, dropout: false, tape: None, ..self.clone() }
    }

    /// Gradients of a loss with respect to the parameters, in their order; zero for a parameter without influence on it.
    pub(crate) fn gradients(&self, loss: &Tensor<1>) -> Vec<Tensor<1>> {
        let mut gradients = loss.backward();
        let found = match &self.tape {
            Some(tape) => self.recomputed_gradients(tape, &mut gradients),
            None => self.parameters.iter().map(|parameter| parameter.grad_remove(&mut gradients)).collect(),
        };
        let or_zero = |(found, parameter): (Option<Tensor<1>>, &Tensor<1>)| {
            found.unwrap_or_else(|| parameter.clone().inner().zeros_like())
        };
        found.into_iter().zip(&self.parameters).map(or_zero).collect()
    }
}

impl Activation {
    /// # Panics
    /// If it is a vector.
    fn into_map(self) -> Tensor<4> {
        match self {
            Self::Map(map) => map,
            Self::Vector(_) => panic!("expected a map, found a vector"),
        }
    }

    /// # Panics
    /// If it is a map.
    fn into_vector(self) -> Tensor<2> {
        match self {
            Self::Vector(vector) => vector,
            Self::Map(_) => panic!("expected a vector, found a map"),
        }
    }
}

/// Sets values to zero with a probability and scales the rest, so that the expectation stays.
fn dropout(x: Tensor<4>, probability: f64, mask: Entry<Value, Tensor<4>>) -> Tensor<4> {
    let keep = 1.0 - probability;
    let mask = mask.or_insert_with(|| x.random_like(Distribution::Bernoulli(keep)).inner());
    x * mask.clone() * (1.0 / keep)
}

/// `[B, C]` to `[B, C, 1, 1]`.
fn per_pixel(vector: Tensor<2>) -> Tensor<4> {
    let [batch, channels] = vector.dims();
    vector.reshape([batch, channels, 1, 1])
}

/// Sines and cosines of the time, `[B] -> [B, channels]`.
fn timestep_embedding(embedding: &TimestepEmbedding, time: Tensor<1>) -> Tensor<2> {
    let frequencies: Vec<f32> = embedding.log_frequencies().into_iter().map(f32::exp).collect();
    let half = frequencies.len();
    let frequencies = Tensor::<2>::from_data(TensorData::new(frequencies, [1, half]), &time.device());
    let angles = time.unsqueeze_dim::<2>(1) * frequencies;
    let (cos, sin) = (angles.clone().cos(), angles.sin());
    Tensor::cat(if embedding.cosines_first { vec![cos, sin] } else { vec![sin, cos] }, 1)
}

/// Self-attention on one map of queries, keys and values, `[B, 3 C, H, W] -> [B, C, H, W]`.
fn qkv_attention(qkv: Tensor<4>, heads: usize, order: QkvOrder) -> Tensor<4> {
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
    heads_attention(part(0), part(1), part(2)).reshape([batch, channels / 3, height, width])
}

/// Attention over pixels. `q`, `k`, `v` and the result: `[B, C, H, W]`.
fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, heads: usize) -> Tensor<4> {
    let [batch, channels, height, width] = q.dims();
    let split = |x: Tensor<4>| {
        let [_, _, height, width] = x.dims();
        x.reshape([batch, heads, channels / heads, height * width])
    };
    heads_attention(split(q), split(k), split(v)).reshape([batch, channels, height, width])
}

/// Attention per head. `q`, `k`, `v` and the result: `[B, heads, channels of a head, positions]`.
fn heads_attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Tensor<4> {
    let [_, _, of_head, _] = q.dims();
    let scale = (of_head as f64).sqrt().recip();
    let weight = softmax((q * scale).swap_dims(2, 3).matmul(k), 3);
    v.matmul(weight.swap_dims(2, 3))
}

/// Nearest-neighbour upsampling by 2.
fn upsample(x: Tensor<4>) -> Tensor<4> {
    let [batch, channels, height, width] = x.dims();
    x.reshape([batch, channels, height, 1, width, 1])
        .expand([batch, channels, height, 2, width, 2])
        .reshape([batch, channels, 2 * height, 2 * width])
}

/// 2x2 average pooling.
fn average_pool(x: Tensor<4>) -> Tensor<4> {
    let [batch, channels, height, width] = x.dims();
    x.reshape([batch, channels, height / 2, 2, width / 2, 2]).mean_dim(5).mean_dim(3).reshape([
        batch,
        channels,
        height / 2,
        width / 2,
    ])
}
