//! Appends operations to a graph, with the names and arguments of PyTorch's layers.

use std::cell::RefCell;
use std::fmt::Display;

use super::{
    Affine, Conv, Graph, GroupNorm, Init, Node, Op, Padding, Param, Parameter, QkvOrder, Shape,
    TimestepEmbedding, Value,
};

/// Appends operations to a graph. A builder for a submodule ([`Builder::at`]) prefixes its parameters' names with the
/// submodule's name.
pub struct Builder<'a> {
    graph: &'a RefCell<Graph>,
    prefix: String,
}

/// Builds a graph: calls `network` with a builder; the returned value is the graph's output.
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

    /// Number of channels of a value.
    pub fn channels(&self, value: Value) -> usize {
        self.shape(value).channels()
    }

    /// Marks a map as one of [`Graph::features`].
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

    /// The sinusoidal embedding of the time.
    pub fn timestep_embedding(&self, embedding: TimestepEmbedding) -> Value {
        self.push(Op::TimestepEmbedding(embedding), Shape::Vector(embedding.channels))
    }

    /// `nn.Embedding` of the label.
    pub fn label_embedding(&self, name: &str, classes: usize, channels: usize) -> Value {
        let table = self.at(name).param("weight", &[classes, channels], Init::Normal);
        self.push(Op::LabelEmbedding(table), Shape::Vector(channels))
    }

    /// `nn.Linear`, for a vector or for every pixel of a map.
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

    /// `nn.Conv2d` with zero padding of `kernel // 2`.
    pub fn conv(&self, name: &str, x: Value, outputs: usize, kernel: usize) -> Value {
        self.conv2d(name, x, outputs, kernel, 1, Padding::Around, false)
    }

    /// As [`Builder::conv`], initialised to zero.
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

    /// As [`Builder::conv1d`], initialised to zero.
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

    /// `a + b`. If `a` is a map, `b` may be a vector.
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

    /// Dropout; returns `x` if the probability is 0.
    pub fn dropout(&self, x: Value, probability: f64) -> Value {
        if probability == 0.0 { x } else { self.push(Op::Dropout(x, probability), self.shape(x)) }
    }

    /// `x * factor`; returns `x` if the factor is 1.
    pub fn scale(&self, x: Value, factor: f32) -> Value {
        if factor == 1.0 { x } else { self.push(Op::Scale(x, factor), self.shape(x)) }
    }
}
