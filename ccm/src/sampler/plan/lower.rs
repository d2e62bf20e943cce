//! Compiles a graph and weights to a [`Plan`]: orders and fuses operations, and lays out the weights.
//!
//! Vectors, which depend on time and label alone, go to the [`Conditioner`]. Some maps are never stored: concatenations,
//! which two-input operations read as two maps; upsampled maps, which are upsampled while a convolution reads them; the
//! output of a convolution that is only added to another map; and activations and products that are only multiplied or
//! added ([`Lazy`]).
//!
//! Functions here and in [`crate::model::graph`] are not inlined, to keep the WebAssembly module small.

mod attention;
pub(in crate::sampler) mod layout;
#[cfg(feature = "text")]
mod pointwise;
#[cfg(feature = "text")]
mod text;

use super::{BLOCK, Conv, ConvWeight, GroupNorm, Input, Map, Op, Plan, Pool, Residual, Vector};
use crate::model::graph::{self, Graph, Node, Padding, Param, QkvOrder, Shape, Value};
use crate::sampler::condition::Conditioner;
use crate::weights::CompactTensor;
use layout::{Order, identity, packed, placed};
#[cfg(feature = "text")]
use pointwise::Lazy;

impl Plan {
    /// Compiles a network with its weights, in the order of [`Graph::parameters`].
    ///
    /// # Panics
    /// If the tensors do not match the parameters. [`crate::weights::Model::new`] rejects such models.
    pub fn new(graph: Graph, tensors: Vec<CompactTensor>) -> Self {
        let (mut plan, sizes) = Self::unshared(graph, tensors);
        plan.share_buffers(&sizes);
        plan
    }

    /// The plan in which every map has its own buffer, and the number of values per image of each map.
    fn unshared(graph: Graph, tensors: Vec<CompactTensor>) -> (Self, Vec<usize>) {
        assert!(
            tensors.len() == graph.parameters.len(),
            "the model must have one tensor for each of its spec"
        );
        for (tensor, parameter) in tensors.iter().zip(&graph.parameters) {
            assert!(tensor.shape == parameter.shape, "shape of {}", parameter.name);
        }
        let graph = Graph { features: Vec::new(), ..graph }.fused();
        let mut lowering = Lowering {
            readers: readers(&graph),
            graph: &graph,
            tensors: tensors.into_iter().map(Some).collect(),
            lowered: vec![None; graph.shapes.len()],
            ops: Vec::new(),
            maps: Vec::new(),
            weights: Vec::new(),
            vectors: Vec::new(),
            conditioner: Conditioner::default(),
            #[cfg(feature = "text")]
            embedding: None,
            #[cfg(feature = "text")]
            biases: Vec::new(),
            x: None,
            #[cfg(feature = "text")]
            text: None,
        };
        for node in &graph.nodes {
            lowering.node(node);
        }
        let output = lowering.map(graph.output);
        #[cfg(feature = "text")]
        let pooled = graph.pooled.map(|pooled| lowering.map(pooled));
        assert!(lowering.tensors.iter().all(Option::is_none), "the plan uses every tensor");
        let plan = Self {
            ops: lowering.ops,
            buffers: Vec::new(),
            x: lowering.x.unwrap_or_else(|| panic!("the network reads an image or tokens")),
            #[cfg(feature = "text")]
            text: lowering.text,
            output,
            #[cfg(feature = "text")]
            pooled,
            weights: lowering.weights,
            vectors: lowering.vectors,
            #[cfg(feature = "text")]
            embedding: lowering.embedding,
            conditioner: lowering.conditioner,
        };
        (plan, lowering.maps)
    }
}

/// The operation that reads each value, for values that are read exactly once.
fn readers(graph: &Graph) -> Vec<Option<graph::Op>> {
    let uses = graph.uses();
    let mut readers = vec![None; uses.len()];
    for node in &graph.nodes {
        for value in node.op.inputs() {
            if uses[value.index()] == 1 {
                readers[value.index()] = Some(node.op);
            }
        }
    }
    readers
}

/// The plan's representation of a value of the graph.
#[derive(Debug, Clone, Copy)]
enum Lowered {
    /// A map.
    Map(Map, Order),
    /// Two maps, whose channels are concatenated.
    Pair(Map, Map),
    /// A map that is upsampled by 2 when it is read.
    Upsampled(Map),
    /// A convolution that is emitted when its only reader is lowered.
    Deferred(graph::Conv),
    /// An operation on single values that is emitted when its only reader is lowered.
    #[cfg(feature = "text")]
    Lazy(Lazy),
    /// A map that is the same for all images, at this position of the plan's vectors.
    #[cfg(feature = "text")]
    Fixed(usize),
}

struct Lowering<'a> {
    graph: &'a Graph,
    readers: Vec<Option<graph::Op>>,
    /// The tensors that no operation has used yet.
    tensors: Vec<Option<CompactTensor>>,
    lowered: Vec<Option<Lowered>>,
    ops: Vec<Op>,
    maps: Vec<usize>,
    weights: Vec<ConvWeight>,
    vectors: Vec<f32>,
    conditioner: Conditioner,
    #[cfg(feature = "text")]
    embedding: Option<CompactTensor>,
    /// The biases of attention that layers share, by kind and by numbers of queries and keys.
    #[cfg(feature = "text")]
    biases: Vec<((graph::AttentionBias, [usize; 2]), super::AttentionBias)>,
    x: Option<Map>,
    #[cfg(feature = "text")]
    text: Option<Map>,
}

impl Lowering<'_> {
    fn node(&mut self, node: &Node) {
        let Shape::Map(shape) = self.graph.shape(node.output) else { return self.vector_node(node) };
        let lowered = match node.op {
            graph::Op::Image => self.input_map(shape),
            graph::Op::Conv(conv) => {
                use graph::Op::{Add, Attention};
                match self.readers[node.output.index()] {
                    Some(Add(..) | Attention(_)) => Lowered::Deferred(conv),
                    _ => self.conv(&conv, None),
                }
            }
            graph::Op::GroupNorm(norm) => self.group_norm(&norm),
            graph::Op::Add(a, b) => self.add(a, b),
            graph::Op::AddVector(x, vector) => {
                let channels = shape[0];
                let bias = Vector::Conditioned(self.conditioner.shift(vector, &vec![0.0; channels]));
                let (x, _) = self.input(x);
                self.scaled(x, 1.0, Order::Plain, channels, Some(bias), None)
            }
            graph::Op::Concat(a, b) => {
                let (a, b) = (self.map(a), self.map(b));
                Lowered::Pair(a, b)
            }
            graph::Op::Upsample(x) => Lowered::Upsampled(self.map(x)),
            graph::Op::AveragePool(x) => {
                let x = self.map(x);
                let y = self.new_map(shape);
                self.ops.push(Op::Pool(Pool { x, y }));
                Lowered::Map(y, Order::Plain)
            }
            graph::Op::QkvAttention { qkv, heads, order } => {
                let heads_first = order == QkvOrder::HeadsFirst;
                self.packed_attention(qkv, heads, shape, heads_first)
            }
            graph::Op::Attention(attention) => self.attention(&attention, shape),
            graph::Op::Dropout(x, _) => self.lowered(x),
            graph::Op::Scale { x, factor, offset } => {
                let (x, _) = self.input(x);
                let bias = self.vector(&vec![offset; shape[0]]);
                self.scaled(x, factor, Order::Plain, shape[0], Some(bias), None)
            }
            #[cfg(feature = "text")]
            _ => self.text_node(node, shape),
            #[cfg(not(feature = "text"))]
            _ => panic!("the sampler has no kernel for an operation on maps"),
        };
        self.lowered[node.output.index()] = Some(lowered);
    }

    /// The map of the network's input.
    fn input_map(&mut self, shape: [usize; 3]) -> Lowered {
        let map = self.new_map(shape);
        self.x = Some(map);
        Lowered::Map(map, Order::Plain)
    }

    /// Adds a node whose output is a vector to the conditioner.
    fn vector_node(&mut self, node: &Node) {
        let parameters = match node.op {
            graph::Op::LabelEmbedding(table) => vec![table],
            graph::Op::Linear(_, affine) => [affine.weight].into_iter().chain(affine.bias).collect(),
            _ => Vec::new(),
        };
        for param in parameters {
            let tensor = self.take(param);
            self.conditioner.parameter(param, tensor);
        }
        self.conditioner.push(*node);
    }

    #[inline(never)]
    fn take(&mut self, param: Param) -> CompactTensor {
        self.tensors[param.index()].take().unwrap_or_else(|| panic!("a tensor is read twice"))
    }

    fn lowered(&self, value: Value) -> Lowered {
        self.lowered[value.index()].unwrap_or_else(|| panic!("a value is read before it is computed"))
    }

    /// The map of a value with its channels in order. Emits operations if there is no such map yet.
    #[inline(never)]
    fn map(&mut self, value: Value) -> Map {
        let channels = self.graph.shape(value).channels();
        let map = match self.lowered(value) {
            Lowered::Map(map, Order::Plain) => return map,
            Lowered::Map(map, order) => self.scaled(map.into(), 1.0, order, channels, None, None),
            Lowered::Pair(first, second) => {
                let pair = Input { first, second: Some(second) };
                self.scaled(pair, 1.0, Order::Plain, channels, None, None)
            }
            Lowered::Upsampled(map) => {
                let weight = identity(channels, 1.0, Order::Plain);
                let bias = self.vector(&vec![0.0; channels]);
                Lowered::Map(self.emit(map.into(), weight, [1, 0], true, bias, None), Order::Plain)
            }
            Lowered::Deferred(conv) => self.conv(&conv, None),
            #[cfg(feature = "text")]
            Lowered::Lazy(lazy) => self.emit_pointwise(lazy, None),
            #[cfg(feature = "text")]
            Lowered::Fixed(_) => panic!("a position embedding is added to a map"),
        };
        self.lowered[value.index()] = Some(map);
        self.map(value)
    }

    /// The one or two maps to read for a value, and the order of their channels.
    #[inline(never)]
    fn input(&mut self, value: Value) -> (Input, Order) {
        match self.lowered(value) {
            Lowered::Map(map, order) => (map.into(), order),
            Lowered::Pair(first, second) => (Input { first, second: Some(second) }, Order::Plain),
            _ => (self.map(value).into(), Order::Plain),
        }
    }

    fn conv(&mut self, op: &graph::Conv, residual: Option<Residual>) -> Lowered {
        let (x, columns, upsample) = match self.lowered(op.x) {
            Lowered::Upsampled(map) if op.stride == 1 => (map.into(), Order::Plain, true),
            _ => {
                let (x, order) = self.input(op.x);
                (x, order, false)
            }
        };
        let rows = self.rows_of(op);
        let weight = self.take(op.affine.weight);
        let values = self.bias(op);
        let bias = match op.shift {
            Some(shift) => Vector::Conditioned(self.conditioner.shift(shift, &values)),
            None => self.vector(&placed(&values, rows)),
        };
        let weight = packed(vec![weight], op.kernel, rows, columns);
        let border = if op.padding == Padding::Around { weight.kernel / 2 } else { 0 };
        Lowered::Map(self.emit(x, weight, [op.stride, border], upsample, bias, residual), rows)
    }

    /// The bias of a convolution; zeros if it has none.
    #[inline(never)]
    fn bias(&mut self, op: &graph::Conv) -> Vec<f32> {
        match op.affine.bias {
            Some(bias) => self.take(bias).into_f32(),
            None => vec![0.0; self.graph.parameter(op.affine.weight).shape[0]],
        }
    }

    /// The channel order of a convolution's output: the order that its reader needs.
    fn rows_of(&self, op: &graph::Conv) -> Order {
        let output =
            self.graph.nodes.iter().find(|node| node.op == graph::Op::Conv(*op)).map(|node| node.output);
        match output.and_then(|output| self.readers[output.index()]) {
            Some(graph::Op::QkvAttention { qkv, heads, order }) => {
                let head_channels = self.graph.shape(qkv).channels() / 3 / heads;
                Order::Heads { parts: 3, heads, head_channels, heads_first: order == QkvOrder::HeadsFirst }
            }
            #[cfg(feature = "text")]
            Some(graph::Op::PatchChannels { side, .. }) => Order::Patches { side },
            _ => Order::Plain,
        }
    }

    fn group_norm(&mut self, op: &graph::GroupNorm) -> Lowered {
        let (x, _) = self.input(op.x);
        let [gain, offset] = [op.gain, op.offset].map(|param| self.take(param).into_f32());
        let channels = gain.len();
        let [gain, offset] = self.modulated(&gain, &offset, op.modulation);
        let y = self.new_map([channels, x.first.height, x.first.width]);
        let (groups, epsilon, silu) = (op.groups, op.epsilon, op.silu);
        self.ops.push(Op::GroupNorm(GroupNorm { x, gain, offset, groups, epsilon, silu, y }));
        Lowered::Map(y, Order::Plain)
    }

    /// Gain and offset of a norm with the modulation that follows it.
    fn modulated(&mut self, gain: &[f32], offset: &[f32], modulation: Option<[Value; 2]>) -> [Vector; 2] {
        match modulation {
            None => [self.vector(gain), self.vector(offset)],
            Some(modulation) => {
                self.conditioner.scale_and_shift(modulation, gain, offset).map(Vector::Conditioned)
            }
        }
    }

    /// A sum. If one operand is a deferred convolution, the other becomes its residual.
    fn add(&mut self, a: Value, b: Value) -> Lowered {
        #[cfg(feature = "text")]
        if let Some(sum) = self.add_pointwise(a, b) {
            return sum;
        }
        let (conv, other) = match (self.lowered(a), self.lowered(b)) {
            (_, Lowered::Deferred(conv)) => (Some(conv), a),
            (Lowered::Deferred(conv), _) => (Some(conv), b),
            _ => (None, a),
        };
        let residual = match self.lowered(other) {
            Lowered::Upsampled(map) => Residual { map, upsample: true },
            _ => Residual { map: self.map(other), upsample: false },
        };
        match conv {
            Some(conv) => self.conv(&conv, Some(residual)),
            None => {
                let channels = self.graph.shape(b).channels();
                let (x, order) = self.input(b);
                self.scaled(x, 1.0, order, channels, None, Some(residual))
            }
        }
    }

    /// A 1x1 convolution that multiplies by a factor and puts the channels in order.
    #[inline(never)]
    fn scaled(
        &mut self,
        x: Input,
        factor: f32,
        order: Order,
        channels: usize,
        bias: Option<Vector>,
        residual: Option<Residual>,
    ) -> Lowered {
        let bias = bias.unwrap_or_else(|| self.vector(&vec![0.0; channels]));
        let y = self.emit(x, identity(channels, factor, order), [1, 0], false, bias, residual);
        Lowered::Map(y, Order::Plain)
    }

    #[inline(never)]
    fn emit(
        &mut self,
        x: Input,
        weight: ConvWeight,
        [stride, border]: [usize; 2],
        upsample: bool,
        bias: Vector,
        residual: Option<Residual>,
    ) -> Map {
        let size = |size: usize| if upsample { 2 * size } else { size.div_ceil(stride) };
        let y = self.new_map([weight.out_channels, size(x.first.height), size(x.first.width)]);
        assert!(x.channels() == weight.in_channels, "channels of a convolution's input");
        let (kernel, place) = (weight.kernel, self.weights.len());
        self.weights.push(weight);
        let conv = Conv { x, kernel, stride, border, upsample, weight: place, bias, residual, y };
        self.ops.push(Op::Conv(conv));
        y
    }

    /// Appends a vector, padded to whole blocks.
    #[inline(never)]
    fn vector(&mut self, values: &[f32]) -> Vector {
        let place = self.vectors.len();
        self.vectors.extend_from_slice(values);
        self.vectors.resize(self.vectors.len().next_multiple_of(BLOCK), 0.0);
        Vector::Fixed(place)
    }

    /// A new map `[channels, height, width]`, with its channels padded to whole blocks.
    #[inline(never)]
    fn new_map(&mut self, [channels, height, width]: [usize; 3]) -> Map {
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
    use crate::model::{NetworkSpec, UNetSpec};
    use crate::weights::HostTensor;

    /// Specs that together contain every kind of layer.
    pub(in crate::sampler::plan) fn specs() -> Vec<NetworkSpec> {
        let spec = |json: &str| NetworkSpec::from(serde_json::from_str::<UNetSpec>(json).unwrap());
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

    fn zeros(graph: &Graph) -> Vec<CompactTensor> {
        let zeros = |shape: &[usize]| HostTensor::new(shape, vec![0.0; shape.iter().product()]).into();
        graph.parameters.iter().map(|parameter| zeros(&parameter.shape)).collect()
    }

    /// A plan of zero weights in which every map has its own buffer, and the number of values per image of each map.
    pub(in crate::sampler::plan) fn unshared(spec: &NetworkSpec) -> (Plan, Vec<usize>) {
        let graph = spec.graph();
        let tensors = zeros(&graph);
        Plan::unshared(graph, tensors)
    }

    #[test]
    #[should_panic(expected = "the model must have one tensor for each of its spec")]
    fn a_missing_tensor_is_not_replaced() {
        let graph = specs()[0].graph();
        let mut tensors = zeros(&graph);
        tensors.pop();
        Plan::new(graph, tensors);
    }

    #[test]
    #[should_panic(expected = "shape of time_embed.0.weight")]
    fn a_tensor_of_another_shape_is_not_used() {
        let graph = specs()[0].graph();
        let mut tensors = zeros(&graph);
        tensors.reverse();
        Plan::new(graph, tensors);
    }

    #[test]
    fn residuals_concatenations_and_upsampled_maps_take_no_operation() {
        for spec in &specs() {
            let (plan, _) = unshared(spec);
            let count = plan.ops.iter().filter(|op| matches!(op, Op::Conv(_))).count();
            let weights = spec.tensors().iter().filter(|tensor| tensor.shape.len() > 2).count();
            assert_eq!(count, weights, "a convolution for each weight of {spec:?}");
        }
    }
}
