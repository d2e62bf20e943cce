//! A network as a list of operations on named parameters.
//!
//! A family of networks describes itself once, with a [`Builder`] (see [`super::networks`]). Two interpreters run the
//! result: `nn` on Burn tensors, with gradients, and `sampler` as a plan for its kernels. Neither knows the family.
//!
//! A value is a feature map `[B, C, H, W]` or a vector `[B, C]`; [`Shape`] leaves the batch out. Every value is the output
//! of one [`Node`], and nodes stand in the order in which they run.

use std::cell::RefCell;
use std::fmt::Display;

/// The output of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Value(usize);

impl Value {
    /// Its place in [`Graph::shapes`].
    pub fn index(self) -> usize {
        self.0
    }
}

/// A parameter: an index into [`Graph::parameters`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Param(usize);

impl Param {
    /// Its place in [`Graph::parameters`].
    pub fn index(self) -> usize {
        self.0
    }
}

/// The shape of a value, without the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A feature map, `[channels, height, width]`.
    Map([usize; 3]),
    /// A vector, `[channels]`.
    Vector(usize),
}

impl Shape {
    /// Channels.
    pub fn channels(self) -> usize {
        match self {
            Self::Map([channels, ..]) | Self::Vector(channels) => channels,
        }
    }

    /// Height and width of a map; 1 and 1 of a vector.
    fn size(self) -> [usize; 2] {
        match self {
            Self::Map([_, height, width]) => [height, width],
            Self::Vector(_) => [1, 1],
        }
    }
}

/// How a parameter starts in training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Init {
    /// Uniform within `1 / sqrt(fan_in)`, as PyTorch's layers.
    Uniform {
        /// Inputs that a sum runs over.
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
    /// The name in the original's state dict, such as `input_blocks.1.0.in_layers.2.weight`.
    pub name: String,
    /// Dimensions in PyTorch's order.
    pub shape: Vec<usize>,
    /// Its values before training.
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

/// How a time becomes a vector: cosines and sines of `time * max_period^(-i / (half - freq_shift))` for `i` below
/// `half = channels / 2`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TimestepEmbedding {
    /// Channels, even.
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

/// Zeros around a 3x3 convolution of stride 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    /// One row or column on each side.
    Around,
    /// One row below and one column to the right (diffusers' `downsample_padding` 0).
    End,
}

/// Order of the rows of a packed projection to queries, keys and values, the slowest first.
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
    /// The row of a table `[classes, channels]` for the label, a vector.
    LabelEmbedding(Param),
    /// `W x + b` of a vector.
    Linear(Value, Affine),
    /// `x sigmoid(x)`.
    Silu(Value),
    /// The sum of two values of one shape.
    Add(Value, Value),
    /// A map with a vector's channels added to every pixel.
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
    /// `x (1 + scale) + shift`, with vectors for scale and shift.
    Modulate {
        /// The map.
        x: Value,
        /// The vector that scales.
        scale: Value,
        /// The vector that is added.
        shift: Value,
    },
    /// The channels of two maps of one size.
    Concat(Value, Value),
    /// Nearest-neighbour upsampling by 2.
    Upsample(Value),
    /// 2x2 average pooling.
    AveragePool(Value),
    /// `softmax(q^T k / sqrt(head_channels)) v` in every head, over all positions, with q, k and v in one map.
    QkvAttention {
        /// Queries, keys and values: three times the channels of the output.
        qkv: Value,
        /// Heads.
        heads: usize,
        /// Order of the channels of `qkv`.
        order: QkvOrder,
    },
    /// As [`Op::QkvAttention`], with a map for each.
    Attention {
        /// Queries, keys and values; channels `[heads, head_channels]` each.
        qkv: [Value; 3],
        /// Heads.
        heads: usize,
    },
    /// Sets values to zero with a probability, in training.
    Dropout(Value, f64),
    /// `x * factor`.
    Scale(Value, f32),
}

/// See [`Op::Conv`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv {
    /// The input.
    pub x: Value,
    /// Weight `[outputs, inputs, kernel, kernel]`; of 1x1 also `[outputs, inputs, 1]` and `[outputs, inputs]`.
    pub affine: Affine,
    /// 1, or 2 with a 3x3 kernel.
    pub stride: usize,
    /// Zeros around a 3x3 convolution; [`Padding::Around`] where the stride is 1.
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
    /// Groups of channels, each with its own mean and variance.
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
    /// The parameters, in the order of the original's state dict.
    pub parameters: Vec<Parameter>,
    /// The network's output.
    pub output: Value,
    /// Maps that serve as features of the input: the last of each size on the way down, then one behind the middle.
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

    /// How often each value is read, the output and the features included.
    pub fn uses(&self) -> Vec<usize> {
        let mut uses = vec![0; self.shapes.len()];
        let read = self.nodes.iter().flat_map(|node| node.op.inputs());
        for value in read.chain([self.output]).chain(self.features.iter().copied()) {
            uses[value.0] += 1;
        }
        uses
    }

    /// The same network with fewer operations: SiLU and a modulation join the norm before them, a vector that is added
    /// joins the convolution before it. A value that something else reads too is kept.
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
            // At the later place, where all inputs are there.
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
}

/// Appends operations to a graph. A builder for a submodule ([`Builder::at`]) puts the submodule's name before the names of
/// its parameters.
pub struct Builder<'a> {
    graph: &'a RefCell<Graph>,
    prefix: String,
}

/// Describes a network: calls `network` with a builder, and takes its result as the output.
pub fn build(network: impl FnOnce(&Builder) -> Value) -> Graph {
    let graph = RefCell::new(Graph {
        nodes: Vec::new(),
        shapes: Vec::new(),
        parameters: Vec::new(),
        output: Value(0),
        features: Vec::new(),
    });
    let output = network(&Builder { graph: &graph, prefix: String::new() });
    Graph { output, ..graph.into_inner() }
}

impl Builder<'_> {
    /// A builder for a submodule.
    #[inline(never)]
    pub fn at(&self, name: impl Display) -> Self {
        Self { graph: self.graph, prefix: format!("{}{name}.", self.prefix) }
    }

    /// The shape of a value.
    pub fn shape(&self, value: Value) -> Shape {
        self.graph.borrow().shape(value)
    }

    /// Channels of a value.
    pub fn channels(&self, value: Value) -> usize {
        self.shape(value).channels()
    }

    /// Marks a map as a feature of the input.
    pub fn feature(&self, map: Value) {
        self.graph.borrow_mut().features.push(map);
    }

    #[inline(never)]
    fn push(&self, op: Op, shape: Shape) -> Value {
        let mut graph = self.graph.borrow_mut();
        let output = Value(graph.shapes.len());
        graph.shapes.push(shape);
        graph.nodes.push(Node { op, output });
        output
    }

    #[inline(never)]
    fn param(&self, name: &str, shape: &[usize], init: Init) -> Param {
        let mut graph = self.graph.borrow_mut();
        let name = format!("{}{name}", self.prefix);
        graph.parameters.push(Parameter { name, shape: shape.to_vec(), init });
        Param(graph.parameters.len() - 1)
    }

    #[inline(never)]
    fn affine(&self, name: &str, weight: &[usize], init: [Init; 2]) -> Affine {
        let g = self.at(name);
        Affine { weight: g.param("weight", weight, init[0]), bias: g.param("bias", &weight[..1], init[1]) }
    }

    /// The input, `[channels, height, width]`.
    pub fn image(&self, shape: [usize; 3]) -> Value {
        self.push(Op::Image, Shape::Map(shape))
    }

    /// The embedding of the time.
    pub fn timestep_embedding(&self, embedding: TimestepEmbedding) -> Value {
        self.push(Op::TimestepEmbedding(embedding), Shape::Vector(embedding.channels))
    }

    /// `nn.Embedding` of the label.
    pub fn label_embedding(&self, name: &str, classes: usize, channels: usize) -> Value {
        let table = self.at(name).param("weight", &[classes, channels], Init::Normal);
        self.push(Op::LabelEmbedding(table), Shape::Vector(channels))
    }

    /// `nn.Linear`, of a vector or of every pixel of a map.
    #[inline(never)]
    pub fn linear(&self, name: &str, x: Value, outputs: usize) -> Value {
        let inputs = self.channels(x);
        let init = Init::Uniform { fan_in: inputs };
        let affine = self.affine(name, &[outputs, inputs], [init; 2]);
        match self.shape(x) {
            Shape::Vector(_) => self.push(Op::Linear(x, affine), Shape::Vector(outputs)),
            Shape::Map(_) => self.push_conv(x, affine, outputs, 1, Padding::Around),
        }
    }

    /// `nn.Conv2d` with `kernel // 2` rows of zeros around.
    pub fn conv(&self, name: &str, x: Value, outputs: usize, kernel: usize) -> Value {
        self.conv2d(name, x, outputs, kernel, 1, Padding::Around, false)
    }

    /// A convolution that starts at zero.
    pub fn zero_conv(&self, name: &str, x: Value, outputs: usize, kernel: usize) -> Value {
        self.conv2d(name, x, outputs, kernel, 1, Padding::Around, true)
    }

    /// A 3x3 convolution of stride 2.
    pub fn strided_conv(&self, name: &str, x: Value, outputs: usize, padding: Padding) -> Value {
        self.conv2d(name, x, outputs, 3, 2, padding, false)
    }

    #[expect(clippy::too_many_arguments, reason = "those of nn.Conv2d")]
    #[inline(never)]
    fn conv2d(
        &self,
        name: &str,
        x: Value,
        outputs: usize,
        kernel: usize,
        stride: usize,
        padding: Padding,
        zero: bool,
    ) -> Value {
        let inputs = self.channels(x);
        let init = if zero { Init::Zeros } else { Init::Uniform { fan_in: inputs * kernel * kernel } };
        let affine = self.affine(name, &[outputs, inputs, kernel, kernel], [init; 2]);
        self.push_conv(x, affine, outputs, stride, padding)
    }

    /// `nn.Conv1d` with a kernel of 1 over the pixels of a map.
    pub fn conv1d(&self, name: &str, x: Value, outputs: usize) -> Value {
        let init = Init::Uniform { fan_in: self.channels(x) };
        let affine = self.affine(name, &[outputs, self.channels(x), 1], [init; 2]);
        self.push_conv(x, affine, outputs, 1, Padding::Around)
    }

    /// As [`Builder::conv1d`]; it starts at zero.
    pub fn zero_conv1d(&self, name: &str, x: Value, outputs: usize) -> Value {
        let affine = self.affine(name, &[outputs, self.channels(x), 1], [Init::Zeros; 2]);
        self.push_conv(x, affine, outputs, 1, Padding::Around)
    }

    #[inline(never)]
    fn push_conv(&self, x: Value, affine: Affine, outputs: usize, stride: usize, padding: Padding) -> Value {
        let [height, width] = self.shape(x).size();
        let shape = Shape::Map([outputs, height.div_ceil(stride), width.div_ceil(stride)]);
        self.push(Op::Conv(Conv { x, affine, stride, padding, shift: None }), shape)
    }

    /// `nn.GroupNorm`.
    #[inline(never)]
    pub fn group_norm(&self, name: &str, x: Value, groups: usize, epsilon: f32) -> Value {
        let affine = self.affine(name, &[self.channels(x)], [Init::Ones, Init::Zeros]);
        let norm = GroupNorm { x, affine, groups, epsilon, modulation: None, silu: false };
        self.push(Op::GroupNorm(norm), self.shape(x))
    }

    /// SiLU.
    #[inline(never)]
    pub fn silu(&self, x: Value) -> Value {
        self.push(Op::Silu(x), self.shape(x))
    }

    /// `a + b`; `b` may be a vector where `a` is a map.
    pub fn add(&self, a: Value, b: Value) -> Value {
        let op = match (self.shape(a), self.shape(b)) {
            (Shape::Map(_), Shape::Vector(_)) => Op::AddVector(a, b),
            _ => Op::Add(a, b),
        };
        self.push(op, self.shape(a))
    }

    /// `torch.chunk` of a vector's channels.
    pub fn chunk<const N: usize>(&self, x: Value) -> [Value; N] {
        let shape = Shape::Vector(self.channels(x) / N);
        std::array::from_fn(|index| self.push(Op::Chunk { x, parts: N, index }, shape))
    }

    /// `x (1 + scale) + shift`.
    pub fn modulate(&self, x: Value, [scale, shift]: [Value; 2]) -> Value {
        self.push(Op::Modulate { x, scale, shift }, self.shape(x))
    }

    /// `torch.cat` of the channels of two maps.
    pub fn concat(&self, a: Value, b: Value) -> Value {
        let [height, width] = self.shape(a).size();
        self.push(Op::Concat(a, b), Shape::Map([self.channels(a) + self.channels(b), height, width]))
    }

    /// Nearest-neighbour upsampling by 2.
    pub fn upsample(&self, x: Value) -> Value {
        let [height, width] = self.shape(x).size();
        self.push(Op::Upsample(x), Shape::Map([self.channels(x), 2 * height, 2 * width]))
    }

    /// 2x2 average pooling.
    pub fn average_pool(&self, x: Value) -> Value {
        let [height, width] = self.shape(x).size();
        self.push(Op::AveragePool(x), Shape::Map([self.channels(x), height / 2, width / 2]))
    }

    /// Attention with queries, keys and values in one map.
    pub fn qkv_attention(&self, qkv: Value, heads: usize, order: QkvOrder) -> Value {
        let [height, width] = self.shape(qkv).size();
        let shape = Shape::Map([self.channels(qkv) / 3, height, width]);
        self.push(Op::QkvAttention { qkv, heads, order }, shape)
    }

    /// Attention of queries over keys and values.
    pub fn attention(&self, qkv: [Value; 3], heads: usize) -> Value {
        self.push(Op::Attention { qkv, heads }, self.shape(qkv[0]))
    }

    /// Dropout; nothing at all where the probability is 0.
    pub fn dropout(&self, x: Value, probability: f64) -> Value {
        if probability == 0.0 { x } else { self.push(Op::Dropout(x, probability), self.shape(x)) }
    }

    /// `x * factor`; `x` itself where the factor is 1.
    pub fn scale(&self, x: Value, factor: f32) -> Value {
        if factor == 1.0 { x } else { self.push(Op::Scale(x, factor), self.shape(x)) }
    }
}

/// Which values each node is the last to read.
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
