//! A network as a list of operations on named parameters.
//!
//! Each family of networks builds its graph with a [`Builder`] (see [`super::networks`]). Two interpreters run the
//! graph: `nn` on Burn tensors, with gradients, and `sampler` as a plan for its kernels. Neither has code for a
//! particular family.
//!
//! A value is a feature map `[B, C, H, W]` or a vector `[B, C]`; [`Shape`] omits the batch. A sequence of tokens is a map
//! of height 1. Every value is the output of one [`Node`]. Nodes are listed in execution order.

mod builder;
#[cfg(feature = "text")]
pub mod lora;

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

    /// Number of positions (pixels or tokens) of a map; 1 for a vector.
    pub fn positions(self) -> usize {
        self.size().iter().product()
    }

    /// The same with another number of channels.
    fn with_channels(self, channels: usize) -> Self {
        match self {
            Self::Map([_, height, width]) => Self::Map([channels, height, width]),
            Self::Vector(_) => Self::Vector(channels),
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
    /// Sines and cosines of positions in the middle of a square grid: diffusers' `get_2d_sincos_pos_embed`. The shape is
    /// `[1, side * side, channels]`.
    Sincos {
        /// Side of the part of the grid whose positions are whole numbers.
        base_size: usize,
    },
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
    pub bias: Option<Param>,
}

/// A function of single values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x sigmoid(x)`.
    Silu,
    /// `x Phi(x)`, with the distribution function `Phi` of the standard normal distribution (arXiv 1606.08415).
    Gelu,
    /// The approximation of [`Activation::Gelu`] with the hyperbolic tangent.
    GeluTanh,
    /// `x sigmoid(1.702 x)`.
    QuickGelu,
    /// `max(x, 0)`.
    Relu,
    /// The hyperbolic tangent.
    Tanh,
}

/// Sinusoidal embedding of a number, such as the time: cosines and sines of `number * max_period^(-i / (half -
/// freq_shift))` for `i` below `half = channels / 2`.
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

/// See [`Op::Guidance`]: that of latent consistency models (arXiv 2310.04378).
pub const GUIDANCE_FACTOR: f32 = 1000.0;

/// What is added to the scores of attention before the softmax.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttentionBias {
    /// Nothing.
    None,
    /// Minus infinity for keys after the query.
    Causal,
    /// A learned number for each head and distance between key and query.
    Relative(RelativeBias),
}

/// T5's relative position bias (arXiv 1910.10683, section 2.1), for attention in both directions. Distances share
/// buckets: one each up to a quarter of the number of buckets, then in steps that grow with the logarithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelativeBias {
    /// `[buckets, heads]`.
    pub table: Param,
    /// Number of buckets, for both directions together.
    pub buckets: usize,
    /// The distance from which on all share the last bucket.
    pub max_distance: usize,
}

impl RelativeBias {
    /// The bucket of the distance `key - query`.
    pub fn bucket(&self, distance: isize) -> usize {
        let half = self.buckets / 2;
        let exact = half / 2;
        let first = if distance > 0 { half } else { 0 };
        let distance = distance.unsigned_abs();
        if distance < exact {
            return first + distance;
        }
        let log = |ratio: f64| libm::log(ratio);
        let share = log(distance as f64 / exact as f64) / log(self.max_distance as f64 / exact as f64);
        first + (exact + (share * (half - exact) as f64) as usize).min(half - 1)
    }
}

/// An operation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Op {
    /// The network's input, a map.
    Image,
    /// Embeddings of the text's tokens, a map.
    Text,
    /// The embedding of the text as a whole, a vector.
    Pooled,
    /// The network's own time, a vector of one number.
    Time,
    /// The original size of the picture, its crop and its target size, height first: a vector of six numbers (arXiv
    /// 2307.01952, section 2.2).
    Sizes,
    /// The guidance scale less 1, times [`GUIDANCE_FACTOR`]: a vector of one number.
    Guidance,
    /// The label's row of a table `[classes, channels]`, a vector.
    LabelEmbedding(Param),
    /// The rows of a table `[vocabulary, channels]` of the ids of the text's tokens, a map.
    TokenEmbedding(Param),
    /// A learned or fixed map that is the same for all images.
    PositionEmbedding(PositionEmbedding),
    /// The embeddings of the numbers of a vector, one after another.
    Sinusoids(Value, TimestepEmbedding),
    /// `W x + b` of a vector.
    Linear(Value, Affine),
    /// A function of every value.
    Activate(Value, Activation),
    /// The sum of two values of the same shape.
    Add(Value, Value),
    /// A map plus a vector, which is added at every position.
    AddVector(Value, Value),
    /// The product of two maps of the same shape.
    Multiply(Value, Value),
    /// A map times a vector, at every position.
    MultiplyVector(Value, Value),
    /// One of several equal parts of the channels.
    Chunk {
        /// The vector or map.
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
    /// Norm over the channels of each position of a map.
    LayerNorm(LayerNorm),
    /// `x (1 + scale) + shift`; `scale` and `shift` are vectors.
    Modulate {
        /// The map.
        x: Value,
        /// The vector that scales.
        scale: Value,
        /// The vector that is added.
        shift: Value,
    },
    /// Concatenation of the channels of two maps of the same size, or of two vectors.
    Concat(Value, Value),
    /// Concatenation of the positions of two maps of the same number of channels. The result has height 1.
    Join(Value, Value),
    /// Consecutive positions of a map, arranged as another map.
    Part {
        /// The map.
        x: Value,
        /// The first position.
        first: usize,
    },
    /// Nearest-neighbour upsampling by 2.
    Upsample(Value),
    /// 2x2 average pooling.
    AveragePool(Value),
    /// Reorders channels from `[side, side, channels]` to `[channels, side, side]`.
    PatchChannels {
        /// The map.
        x: Value,
        /// Side of the patches of pixels that the channels hold.
        side: usize,
    },
    /// `softmax(q^T k / sqrt(head_channels)) v` for every head, over all positions, with q, k and v in one map.
    QkvAttention {
        /// Queries, keys and values: three times the channels of the output.
        qkv: Value,
        /// Number of heads.
        heads: usize,
        /// Order of the channels of `qkv`.
        order: QkvOrder,
    },
    /// As [`Op::QkvAttention`], with q, k and v in separate maps; keys and values may have other positions than queries.
    Attention(Attention),
    /// Sets values to zero with the given probability, in training only.
    Dropout(Value, f64),
    /// `x * factor + offset`.
    Scale {
        /// The map; in training also a vector.
        x: Value,
        /// Multiplies it.
        factor: f32,
        /// Is added to it.
        offset: f32,
    },
}

/// See [`Op::PositionEmbedding`]: the rows `(top + y) * side + left + x` of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PositionEmbedding {
    /// `[rows, channels]` or `[1, rows, channels]`.
    pub table: Param,
    /// Rows of the table for one row of the map.
    pub side: usize,
    /// Rows of the map that the table has above the first.
    pub top: usize,
    /// Columns of the map that the table has before the first.
    pub left: usize,
}

/// See [`Op::Attention`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    /// Queries, keys and values; channels `[heads, head_channels]` each.
    pub qkv: [Value; 3],
    /// Number of heads.
    pub heads: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// Added to the scaled scores.
    pub bias: AttentionBias,
}

/// See [`Op::LayerNorm`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerNorm {
    /// The input.
    pub x: Value,
    /// Gain, `[channels / heads]`; 1 if there is none.
    pub gain: Option<Param>,
    /// Offset, `[channels / heads]`; 0 if there is none.
    pub offset: Option<Param>,
    /// Number of equal parts of the channels, each with its own norm.
    pub heads: usize,
    /// Whether the mean is subtracted; `false` is RMS norm (arXiv 1910.07467).
    pub centred: bool,
    /// Added to the variance or mean square.
    pub epsilon: f32,
    /// Scale and shift of an [`Op::Modulate`] that follows. [`Graph::fused`] sets it.
    pub modulation: Option<[Value; 2]>,
}

/// See [`Op::Conv`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv {
    /// The input.
    pub x: Value,
    /// Weight `[outputs, inputs, kernel, kernel]`; that of a 1x1 kernel may have any shape whose first dimension is
    /// `outputs`.
    pub affine: Affine,
    /// Side of the kernel: 1 or 3.
    pub kernel: usize,
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
    /// Gain, `[channels]`.
    pub gain: Param,
    /// Offset, `[channels]`.
    pub offset: Param,
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
            Self::Image
            | Self::Text
            | Self::Pooled
            | Self::Time
            | Self::Sizes
            | Self::Guidance
            | Self::LabelEmbedding(_)
            | Self::TokenEmbedding(_)
            | Self::PositionEmbedding(_) => Vec::new(),
            Self::Sinusoids(x, _)
            | Self::Linear(x, _)
            | Self::Activate(x, _)
            | Self::Chunk { x, .. }
            | Self::Part { x, .. }
            | Self::Upsample(x)
            | Self::AveragePool(x)
            | Self::PatchChannels { x, .. }
            | Self::QkvAttention { qkv: x, .. }
            | Self::Dropout(x, _)
            | Self::Scale { x, .. } => vec![x],
            Self::Add(a, b)
            | Self::AddVector(a, b)
            | Self::Multiply(a, b)
            | Self::MultiplyVector(a, b)
            | Self::Concat(a, b)
            | Self::Join(a, b) => vec![a, b],
            Self::Modulate { x, scale, shift } => vec![x, scale, shift],
            Self::Attention(Attention { qkv, .. }) => qkv.to_vec(),
            Self::Conv(Conv { x, shift, .. }) => [x].into_iter().chain(shift).collect(),
            Self::GroupNorm(GroupNorm { x, modulation, .. })
            | Self::LayerNorm(LayerNorm { x, modulation, .. }) => {
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
    /// A second output of text encoders: a map, one of whose positions is the embedding of the text as a whole.
    pub pooled: Option<Value>,
    /// Feature maps of the input: the last map of each size in the encoder, then the output of the middle block.
    pub features: Vec<Value>,
}

impl Graph {
    /// The shape of a value.
    pub fn shape(&self, value: Value) -> Shape {
        self.shapes[value.0]
    }

    /// The network's input: the image, or the embedded tokens of a network without an image.
    ///
    /// # Panics
    /// If it reads neither.
    pub fn input(&self) -> Value {
        let node = self.nodes.iter().find(|node| matches!(node.op, Op::Image));
        #[cfg(feature = "text")]
        let node = node.or_else(|| self.nodes.iter().find(|node| matches!(node.op, Op::TokenEmbedding(_))));
        node.unwrap_or_else(|| panic!("a network reads an image or tokens")).output
    }

    /// A parameter.
    pub fn parameter(&self, param: Param) -> &Parameter {
        &self.parameters[param.0]
    }

    /// Number of reads of each value. The outputs and the features count as reads.
    pub fn uses(&self) -> Vec<usize> {
        let mut uses = vec![0; self.shapes.len()];
        let mut read = |value: Value| uses[value.0] += 1;
        for node in &self.nodes {
            node.op.inputs().into_iter().for_each(&mut read);
        }
        read(self.output);
        self.pooled.into_iter().for_each(&mut read);
        self.features.iter().copied().for_each(&mut read);
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
                Op::Activate(x, Activation::Silu) => before(x).and_then(|place| match nodes[place].op {
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
                    #[cfg(feature = "text")]
                    Op::LayerNorm(norm) if norm.modulation.is_none() => {
                        let modulation = Some([scale, shift]);
                        Some((place, Op::LayerNorm(LayerNorm { modulation, ..norm })))
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
        // A scaled map is a low-rank product beside a layer.
        let is_scaled = |value: Value| {
            let of = self.nodes.iter().find(|node| node.output == value);
            of.is_some_and(|node| matches!(node.op, Op::Scale { .. }))
        };
        let residual = |node: &Node| matches!(node.op, Op::Add(a, b) if matches!(self.shape(a), Shape::Map(_)) && !is_scaled(b));
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
