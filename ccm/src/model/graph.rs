//! A network as a list of operations on named parameters.
//!
//! Each family of networks builds its graph with a [`Builder`] (see [`super::networks`]). Two interpreters run the
//! graph: `nn` on Burn tensors, with gradients, and `sampler` as a plan for its kernels. Neither has code for a
//! particular family.
//!
//! A value is a feature map `[B, C, H, W]` or a vector `[B, C]`; [`Shape`] omits the batch. Every value is the output
//! of one [`Node`]. Nodes are listed in execution order.

mod builder;

use std::ops::Range;

pub use builder::{Builder, build};

/// The output of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Value(usize);

impl Value {
    /// Its index in [`Graph::shapes`].
    pub fn index(self) -> usize {
        self.0
    }
}

/// A parameter: an index into [`Graph::parameters`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Param(usize);

impl Param {
    /// Its index in [`Graph::parameters`].
    pub fn index(self) -> usize {
        self.0
    }
}

/// The shape of a value, without the batch dimension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A feature map, `[channels, height, width]`.
    Map([usize; 3]),
    /// A vector, `[channels]`.
    Vector(usize),
}

impl Shape {
    /// Number of channels.
    pub fn channels(self) -> usize {
        match self {
            Self::Map([channels, ..]) | Self::Vector(channels) => channels,
        }
    }

    /// Height and width of a map; 1 and 1 for a vector.
    fn size(self) -> [usize; 2] {
        match self {
            Self::Map([_, height, width]) => [height, width],
            Self::Vector(_) => [1, 1],
        }
    }
}

/// Initialisation of a parameter before training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Init {
    /// Uniform in `±1 / sqrt(fan_in)`, as in PyTorch's layers.
    Uniform {
        /// Number of inputs of each output.
        fan_in: usize,
    },
    /// Standard normal.
    Normal,
    /// Zero.
    Zeros,
    /// One.
    Ones,
}

/// A named parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// The name in the original library's state dict, such as `input_blocks.1.0.in_layers.2.weight`.
    pub name: String,
    /// Dimensions in PyTorch's order.
    pub shape: Vec<usize>,
    /// Distribution of its initial values.
    pub init: Init,
}

/// Name and shape of one tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// The name.
    pub name: String,
    /// Dimensions in PyTorch's order.
    pub shape: Vec<usize>,
}

/// Weight and bias of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Affine {
    /// The weight.
    pub weight: Param,
    /// The bias, `[outputs]`.
    pub bias: Param,
}

/// Sinusoidal embedding of the time: cosines and sines of `time * max_period^(-i / (half - freq_shift))` for `i` below
/// `half = channels / 2`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TimestepEmbedding {
    /// Number of channels, even.
    pub channels: usize,
    /// Cosines first (ADM, diffusers' `flip_sin_to_cos`) instead of sines first.
    pub cosines_first: bool,
    /// diffusers' `freq_shift`; 0 in ADM.
    pub freq_shift: f32,
}

impl TimestepEmbedding {
    /// Natural logarithms of the frequencies, `[channels / 2]`.
    pub fn log_frequencies(&self) -> Vec<f32> {
        /// ln(10 000).
        const LOG_MAX_PERIOD: f64 = 9.210_340_371_976_184;
        let half = self.channels / 2;
        (0..half).map(|i| -LOG_MAX_PERIOD as f32 * i as f32 / (half as f32 - self.freq_shift)).collect()
    }
}

/// Zero padding of a 3x3 convolution of stride 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    /// One row or column on each side.
    Around,
    /// One row below and one column to the right (diffusers' `downsample_padding` 0).
    End,
}

/// Order of the rows of a packed projection to queries, keys and values, slowest dimension first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkvOrder {
    /// `[heads, 3, head_channels]`: guided-diffusion's `QKVAttentionLegacy`.
    HeadsFirst,
    /// `[3, heads, head_channels]`: guided-diffusion's `QKVAttention`.
    PartsFirst,
}

/// An operation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Op {
    /// The network's input, a map.
    Image,
    /// The embedding of the time, a vector.
    TimestepEmbedding(TimestepEmbedding),
    /// The label's row of a table `[classes, channels]`, a vector.
    LabelEmbedding(Param),
    /// `W x + b` of a vector.
    Linear(Value, Affine),
    /// `x sigmoid(x)`.
    Silu(Value),
    /// The sum of two values of the same shape.
    Add(Value, Value),
    /// A map plus a vector, which is added at every pixel.
    AddVector(Value, Value),
    /// One of several equal parts of a vector's channels.
    Chunk {
        /// The vector.
        x: Value,
        /// Number of parts.
        parts: usize,
        /// The part, counted from 0.
        index: usize,
    },
    /// A convolution, 3x3 or 1x1, of a map.
    Conv(Conv),
    /// Group norm of a map.
    GroupNorm(GroupNorm),
    /// `x (1 + scale) + shift`; `scale` and `shift` are vectors.
    Modulate {
        /// The map.
        x: Value,
        /// The vector that scales.
        scale: Value,
        /// The vector that is added.
        shift: Value,
    },
    /// Concatenation of the channels of two maps of the same size.
    Concat(Value, Value),
    /// Nearest-neighbour upsampling by 2.
    Upsample(Value),
    /// 2x2 average pooling.
    AveragePool(Value),
    /// `softmax(q^T k / sqrt(head_channels)) v` for every head, over all positions, with q, k and v in one map.
    QkvAttention {
        /// Queries, keys and values: three times the channels of the output.
        qkv: Value,
        /// Number of heads.
        heads: usize,
        /// Order of the channels of `qkv`.
        order: QkvOrder,
    },
    /// As [`Op::QkvAttention`], with q, k and v in separate maps.
    Attention {
        /// Queries, keys and values; channels `[heads, head_channels]` each.
        qkv: [Value; 3],
        /// Number of heads.
        heads: usize,
    },
    /// Sets values to zero with the given probability, in training only.
    Dropout(Value, f64),
    /// `x * factor`.
    Scale(Value, f32),
}

/// See [`Op::Conv`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv {
    /// The input.
    pub x: Value,
    /// Weight `[outputs, inputs, kernel, kernel]`; a 1x1 kernel may also be `[outputs, inputs, 1]` or `[outputs,
    /// inputs]`.
    pub affine: Affine,
    /// Stride: 1, or 2 with a 3x3 kernel.
    pub stride: usize,
    /// Zero padding of a 3x3 convolution; [`Padding::Around`] if the stride is 1.
    pub padding: Padding,
    /// A vector that is added to every pixel. [`Graph::fused`] sets it.
    pub shift: Option<Value>,
}

/// See [`Op::GroupNorm`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GroupNorm {
    /// The input.
    pub x: Value,
    /// Gain and offset, `[channels]` each.
    pub affine: Affine,
    /// Number of groups of channels, each with its own mean and variance.
    pub groups: usize,
    /// Added to the variance.
    pub epsilon: f32,
    /// Scale and shift of an [`Op::Modulate`] that follows. [`Graph::fused`] sets it.
    pub modulation: Option<[Value; 2]>,
    /// Whether SiLU follows. [`Graph::fused`] sets it.
    pub silu: bool,
}

impl Op {
    /// The values that it reads.
    #[inline(never)]
    pub fn inputs(&self) -> Vec<Value> {
        match *self {
            Self::Image | Self::TimestepEmbedding(_) | Self::LabelEmbedding(_) => Vec::new(),
            Self::Linear(x, _)
            | Self::Silu(x)
            | Self::Chunk { x, .. }
            | Self::Upsample(x)
            | Self::AveragePool(x)
            | Self::QkvAttention { qkv: x, .. }
            | Self::Dropout(x, _)
            | Self::Scale(x, _) => vec![x],
            Self::Add(a, b) | Self::AddVector(a, b) | Self::Concat(a, b) => vec![a, b],
            Self::Modulate { x, scale, shift } => vec![x, scale, shift],
            Self::Attention { qkv, .. } => qkv.to_vec(),
            Self::Conv(Conv { x, shift, .. }) => [x].into_iter().chain(shift).collect(),
            Self::GroupNorm(GroupNorm { x, modulation, .. }) => {
                [x].into_iter().chain(modulation.into_iter().flatten()).collect()
            }
        }
    }
}

/// An operation and its output.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Node {
    /// The operation.
    pub op: Op,
    /// Its output.
    pub output: Value,
}

/// A network.
#[derive(Debug, Clone, PartialEq)]
pub struct Graph {
    /// The operations, in order.
    pub nodes: Vec<Node>,
    /// The shape of every value.
    pub shapes: Vec<Shape>,
    /// The parameters, in the order of the original library's state dict.
    pub parameters: Vec<Parameter>,
    /// The network's output.
    pub output: Value,
    /// Feature maps of the input: the last map of each size in the encoder, then the output of the middle block.
    pub features: Vec<Value>,
}

impl Graph {
    /// The shape of a value.
    pub fn shape(&self, value: Value) -> Shape {
        self.shapes[value.0]
    }

    /// A parameter.
    pub fn parameter(&self, param: Param) -> &Parameter {
        &self.parameters[param.0]
    }

    /// Number of reads of each value. The output and the features count as reads.
    pub fn uses(&self) -> Vec<usize> {
        let mut uses = vec![0; self.shapes.len()];
        let read = self.nodes.iter().flat_map(|node| node.op.inputs());
        for value in read.chain([self.output]).chain(self.features.iter().copied()) {
            uses[value.0] += 1;
        }
        uses
    }

    /// Fuses operations: SiLU and a modulation into the norm before them, and the addition of a vector into the
    /// convolution before it. A value that has another reader is not fused away.
    pub fn fused(&self) -> Self {
        let uses = self.uses();
        let mut nodes: Vec<Node> = Vec::with_capacity(self.nodes.len());
        for node in &self.nodes {
            let before =
                |x: Value| nodes.iter().rposition(|before| before.output == x).filter(|_| uses[x.0] == 1);
            let joined = match node.op {
                Op::Silu(x) => before(x).and_then(|place| match nodes[place].op {
                    Op::GroupNorm(norm) if !norm.silu => {
                        Some((place, Op::GroupNorm(GroupNorm { silu: true, ..norm })))
                    }
                    _ => None,
                }),
                Op::Modulate { x, scale, shift } => before(x).and_then(|place| match nodes[place].op {
                    Op::GroupNorm(norm) if !norm.silu && norm.modulation.is_none() => {
                        let modulation = Some([scale, shift]);
                        Some((place, Op::GroupNorm(GroupNorm { modulation, ..norm })))
                    }
                    _ => None,
                }),
                Op::AddVector(x, vector) => before(x).and_then(|place| match nodes[place].op {
                    Op::Conv(conv) if conv.shift.is_none() => {
                        Some((place, Op::Conv(Conv { shift: Some(vector), ..conv })))
                    }
                    _ => None,
                }),
                _ => None,
            };
            // The fused operation runs at the later position, where all its inputs exist.
            match joined {
                Some((place, op)) => {
                    nodes.remove(place);
                    nodes.push(Node { op, output: node.output });
                }
                None => nodes.push(*node),
            }
        }
        Self { nodes, ..self.clone() }
    }

    /// The network cut after every residual connection, the sum of two maps. Between these cuts stand a residual block or an
    /// attention block.
    pub fn segments(&self) -> Vec<Segment> {
        let residual =
            |node: &Node| matches!(node.op, Op::Add(a, _) if matches!(self.shape(a), Shape::Map(_)));
        let mut segments = Vec::new();
        let mut start = 0;
        for (index, node) in self.nodes.iter().enumerate() {
            if residual(node) || index + 1 == self.nodes.len() {
                let nodes = start..index + 1;
                let inside = &self.nodes[nodes.clone()];
                let mut inputs: Vec<Value> = inside.iter().flat_map(|node| node.op.inputs()).collect();
                inputs.sort_unstable();
                inputs.dedup();
                inputs.retain(|input| inside.iter().all(|node| node.output != *input));
                segments.push(Segment { nodes, inputs });
                start = index + 1;
            }
        }
        segments
    }
}

/// Consecutive nodes that gradient checkpointing recomputes together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Indices into [`Graph::nodes`].
    pub nodes: Range<usize>,
    /// Values that earlier segments compute and this one reads, without repetition.
    pub inputs: Vec<Value>,
}

/// For each node, the values that no later node reads.
pub fn last_reads(nodes: &[Node]) -> Vec<Vec<Value>> {
    let mut seen = Vec::new();
    let mut reads: Vec<Vec<Value>> = nodes
        .iter()
        .rev()
        .map(|node| {
            let mut last = node.op.inputs();
            last.sort_unstable();
            last.dedup();
            last.retain(|value| !seen.contains(value));
            seen.extend_from_slice(&last);
            last
        })
        .collect();
    reads.reverse();
    reads
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activations_modulations_and_shifts_join_the_operation_before_them() {
        let graph = build(|g| {
            let embed = g.label_embedding("label", 3, 8);
            let x = g.conv("a", g.image([4, 6, 6]), 8, 3);
            let x = g.group_norm("b", g.add(x, embed), 4, 1e-5);
            g.silu(g.modulate(x, [embed, embed]))
        });
        let fused = graph.fused();
        assert_eq!((graph.nodes.len(), fused.nodes.len()), (7, 4));
        assert!(matches!(fused.nodes[2].op, Op::Conv(Conv { shift: Some(_), .. })));
        let Op::GroupNorm(norm) = fused.nodes[3].op else { panic!("{:?}", fused.nodes[3]) };
        assert!(norm.silu && norm.modulation.is_some());
        assert_eq!(fused.nodes[3].output, graph.output);
    }

    #[test]
    fn a_value_that_is_read_twice_is_kept() {
        let graph = build(|g| {
            let x = g.group_norm("a", g.image([4, 6, 6]), 4, 1e-5);
            g.add(x, g.silu(x))
        });
        assert_eq!(graph.fused(), graph);
    }

    #[test]
    fn every_value_is_read_for_the_last_time_once() {
        let graph = build(|g| {
            let x = g.conv("a", g.image([4, 6, 6]), 4, 3);
            let y = g.conv("b", x, 4, 3);
            g.add(g.add(x, y), g.add(y, y))
        });
        let mut last: Vec<Value> = last_reads(&graph.nodes).concat();
        last.sort_unstable();
        // All values except the output.
        assert_eq!(
            last,
            graph.nodes[..graph.nodes.len() - 1].iter().map(|node| node.output).collect::<Vec<_>>()
        );
    }
}
