//! Appends operations to a graph, with the names and arguments of PyTorch's layers.

use std::cell::RefCell;
use std::fmt::Display;

use super::{
    Activation, Affine, Attention, AttentionBias, Conv, Graph, GroupNorm, Init, LayerNorm, Node, Op, Padding,
    Param, Parameter, PositionEmbedding, QkvOrder, Shape, TimestepEmbedding, Value,
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
        pooled: None,
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

    /// Marks a map as [`Graph::pooled`].
    pub fn pooled(&self, map: Value) {
        self.graph.borrow_mut().pooled = Some(map);
    }

    #[inline(never)]
    fn push(&self, op: Op, shape: Shape) -> Value {
        let mut graph = self.graph.borrow_mut();
        let output = Value(graph.shapes.len());
        graph.shapes.push(shape);
        graph.nodes.push(Node { op, output });
        output
    }

    /// Adds a parameter.
    #[inline(never)]
    pub fn param(&self, name: &str, shape: &[usize], init: Init) -> Param {
        let mut graph = self.graph.borrow_mut();
        let name = format!("{}{name}", self.prefix);
        graph.parameters.push(Parameter { name, shape: shape.to_vec(), init });
        Param(graph.parameters.len() - 1)
    }

    #[inline(never)]
    fn affine(&self, name: &str, weight: &[usize], init: [Init; 2]) -> Affine {
        let g = self.at(name);
        let weight_param = g.param("weight", weight, init[0]);
        Affine { weight: weight_param, bias: Some(g.param("bias", &weight[..1], init[1])) }
    }

    /// The input, `[channels, height, width]`.
    pub fn image(&self, shape: [usize; 3]) -> Value {
        self.push(Op::Image, Shape::Map(shape))
    }

    /// Embeddings of the text's tokens.
    pub fn text(&self, channels: usize, tokens: usize) -> Value {
        self.push(Op::Text, Shape::Map([channels, 1, tokens]))
    }

    /// The embedding of the text as a whole.
    pub fn pooled_text(&self, channels: usize) -> Value {
        self.push(Op::Pooled, Shape::Vector(channels))
    }

    /// The original size of the picture, its crop and its target size.
    pub fn sizes(&self) -> Value {
        self.push(Op::Sizes, Shape::Vector(6))
    }

    /// The guidance scale.
    pub fn guidance(&self) -> Value {
        self.push(Op::Guidance, Shape::Vector(1))
    }

    /// The sinusoidal embedding of the time.
    pub fn timestep_embedding(&self, embedding: TimestepEmbedding) -> Value {
        let time = self.push(Op::Time, Shape::Vector(1));
        self.sinusoids(time, embedding)
    }

    /// The sinusoidal embeddings of the numbers of a vector.
    pub fn sinusoids(&self, x: Value, embedding: TimestepEmbedding) -> Value {
        let shape = Shape::Vector(self.channels(x) * embedding.channels);
        self.push(Op::Sinusoids(x, embedding), shape)
    }

    /// `nn.Embedding` of the label.
    pub fn label_embedding(&self, name: &str, classes: usize, channels: usize) -> Value {
        let table = self.at(name).param("weight", &[classes, channels], Init::Normal);
        self.push(Op::LabelEmbedding(table), Shape::Vector(channels))
    }

    /// `nn.Embedding` of the ids of the text's tokens.
    pub fn token_embedding(&self, name: &str, vocabulary: usize, channels: usize, tokens: usize) -> Value {
        let table = self.at(name).param("weight", &[vocabulary, channels], Init::Normal);
        self.push(Op::TokenEmbedding(table), Shape::Map([channels, 1, tokens]))
    }

    /// A map of rows of a table.
    pub fn position_embedding(&self, embedding: PositionEmbedding, shape: [usize; 3]) -> Value {
        self.push(Op::PositionEmbedding(embedding), Shape::Map(shape))
    }

    /// `nn.Linear`, for a vector or for every position of a map.
    #[inline(never)]
    pub fn linear(&self, name: &str, x: Value, outputs: usize) -> Value {
        let inputs = self.channels(x);
        let init = Init::Uniform { fan_in: inputs };
        let affine = self.affine(name, &[outputs, inputs], [init; 2]);
        self.push_linear(x, affine, outputs)
    }

    /// As [`Builder::linear`], without a bias.
    #[inline(never)]
    pub fn linear_without_bias(&self, name: &str, x: Value, outputs: usize) -> Value {
        let inputs = self.channels(x);
        let weight = self.at(name).param("weight", &[outputs, inputs], Init::Uniform { fan_in: inputs });
        self.push_linear(x, Affine { weight, bias: None }, outputs)
    }

    /// As [`Builder::linear`], initialised to zero.
    pub fn zero_linear(&self, name: &str, x: Value, outputs: usize) -> Value {
        let affine = self.affine(name, &[outputs, self.channels(x)], [Init::Zeros; 2]);
        self.push_linear(x, affine, outputs)
    }

    fn push_linear(&self, x: Value, affine: Affine, outputs: usize) -> Value {
        match self.shape(x) {
            Shape::Vector(_) => self.push(Op::Linear(x, affine), Shape::Vector(outputs)),
            Shape::Map(_) => self.push_conv(x, affine, outputs, [1, 1], Padding::Around),
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
        self.push_conv(x, affine, outputs, [kernel, stride], padding)
    }

    /// As [`Builder::conv`], without a bias.
    pub fn conv_without_bias(&self, name: &str, x: Value, outputs: usize, kernel: usize) -> Value {
        let inputs = self.channels(x);
        let init = Init::Uniform { fan_in: inputs * kernel * kernel };
        let weight = self.at(name).param("weight", &[outputs, inputs, kernel, kernel], init);
        self.push_conv(x, Affine { weight, bias: None }, outputs, [kernel, 1], Padding::Around)
    }

    /// As [`Builder::conv_without_bias`], of stride 2.
    pub fn strided_conv_without_bias(&self, name: &str, x: Value, outputs: usize) -> Value {
        let inputs = self.channels(x);
        let weight =
            self.at(name).param("weight", &[outputs, inputs, 3, 3], Init::Uniform { fan_in: 9 * inputs });
        self.push_conv(x, Affine { weight, bias: None }, outputs, [3, 2], Padding::Around)
    }

    /// A convolution whose kernel and stride are the side of a patch. `x` has the pixels of a patch as channels, `[channels,
    /// side, side]`.
    pub fn patch_conv(&self, name: &str, x: Value, outputs: usize, side: usize) -> Value {
        let inputs = self.channels(x);
        let init = Init::Uniform { fan_in: inputs };
        let affine = self.affine(name, &[outputs, inputs / side / side, side, side], [init; 2]);
        self.push_conv(x, affine, outputs, [1, 1], Padding::Around)
    }

    /// `nn.Conv1d` with a kernel of 1 over the pixels of a map.
    pub fn conv1d(&self, name: &str, x: Value, outputs: usize) -> Value {
        let init = Init::Uniform { fan_in: self.channels(x) };
        let affine = self.affine(name, &[outputs, self.channels(x), 1], [init; 2]);
        self.push_conv(x, affine, outputs, [1, 1], Padding::Around)
    }

    /// As [`Builder::conv1d`], initialised to zero.
    pub fn zero_conv1d(&self, name: &str, x: Value, outputs: usize) -> Value {
        let affine = self.affine(name, &[outputs, self.channels(x), 1], [Init::Zeros; 2]);
        self.push_conv(x, affine, outputs, [1, 1], Padding::Around)
    }

    #[inline(never)]
    fn push_conv(
        &self,
        x: Value,
        affine: Affine,
        outputs: usize,
        [kernel, stride]: [usize; 2],
        padding: Padding,
    ) -> Value {
        let [height, width] = self.shape(x).size();
        let shape = Shape::Map([outputs, height.div_ceil(stride), width.div_ceil(stride)]);
        self.push(Op::Conv(Conv { x, affine, kernel, stride, padding, shift: None }), shape)
    }

    /// `nn.GroupNorm`.
    #[inline(never)]
    pub fn group_norm(&self, name: &str, x: Value, groups: usize, epsilon: f32) -> Value {
        let (channels, g) = (self.channels(x), self.at(name));
        let gain = g.param("weight", &[channels], Init::Ones);
        let offset = g.param("bias", &[channels], Init::Zeros);
        let norm = GroupNorm { x, gain, offset, groups, epsilon, modulation: None, silu: false };
        self.push(Op::GroupNorm(norm), self.shape(x))
    }

    /// `nn.LayerNorm` over the channels.
    pub fn layer_norm(&self, name: &str, x: Value, epsilon: f32) -> Value {
        let (channels, g) = (self.channels(x), self.at(name));
        let gain = Some(g.param("weight", &[channels], Init::Ones));
        let offset = Some(g.param("bias", &[channels], Init::Zeros));
        self.push_layer_norm(LayerNorm { gain, offset, ..plain_norm(x, epsilon) })
    }

    /// `nn.LayerNorm` over the channels, without parameters.
    pub fn plain_layer_norm(&self, x: Value, epsilon: f32) -> Value {
        self.push_layer_norm(plain_norm(x, epsilon))
    }

    /// `nn.RMSNorm` over the channels of each head.
    pub fn rms_norm(&self, name: &str, x: Value, heads: usize, epsilon: f32) -> Value {
        let gain = Some(self.at(name).param("weight", &[self.channels(x) / heads], Init::Ones));
        self.push_layer_norm(LayerNorm { gain, heads, centred: false, ..plain_norm(x, epsilon) })
    }

    fn push_layer_norm(&self, norm: LayerNorm) -> Value {
        self.push(Op::LayerNorm(norm), self.shape(norm.x))
    }

    /// SiLU.
    pub fn silu(&self, x: Value) -> Value {
        self.activate(x, Activation::Silu)
    }

    /// A function of every value.
    #[inline(never)]
    pub fn activate(&self, x: Value, activation: Activation) -> Value {
        self.push(Op::Activate(x, activation), self.shape(x))
    }

    /// `a + b`. If `a` is a map, `b` may be a vector.
    pub fn add(&self, a: Value, b: Value) -> Value {
        let op = match (self.shape(a), self.shape(b)) {
            (Shape::Map(_), Shape::Vector(_)) => Op::AddVector(a, b),
            _ => Op::Add(a, b),
        };
        self.push(op, self.shape(a))
    }

    /// `a b`. If `a` is a map, `b` may be a vector.
    pub fn multiply(&self, a: Value, b: Value) -> Value {
        let op = match (self.shape(a), self.shape(b)) {
            (Shape::Map(_), Shape::Vector(_)) => Op::MultiplyVector(a, b),
            _ => Op::Multiply(a, b),
        };
        self.push(op, self.shape(a))
    }

    /// `torch.chunk` of the channels.
    pub fn chunk<const N: usize>(&self, x: Value) -> [Value; N] {
        let shape = self.shape(x).with_channels(self.channels(x) / N);
        std::array::from_fn(|index| self.push(Op::Chunk { x, parts: N, index }, shape))
    }

    /// `x (1 + scale) + shift`.
    pub fn modulate(&self, x: Value, [scale, shift]: [Value; 2]) -> Value {
        self.push(Op::Modulate { x, scale, shift }, self.shape(x))
    }

    /// `torch.cat` of the channels of two maps or vectors.
    pub fn concat(&self, a: Value, b: Value) -> Value {
        let shape = self.shape(a).with_channels(self.channels(a) + self.channels(b));
        self.push(Op::Concat(a, b), shape)
    }

    /// `torch.cat` of the positions of two maps.
    pub fn join(&self, a: Value, b: Value) -> Value {
        let positions = self.shape(a).positions() + self.shape(b).positions();
        self.push(Op::Join(a, b), Shape::Map([self.channels(a), 1, positions]))
    }

    /// The positions of a map from `first` on, in the size of the map `like`.
    pub fn part(&self, x: Value, first: usize, like: Value) -> Value {
        self.push(Op::Part { x, first }, self.shape(like).with_channels(self.channels(x)))
    }

    /// Reorders channels from `[side, side, channels]` to `[channels, side, side]`.
    pub fn patch_channels(&self, x: Value, side: usize) -> Value {
        self.push(Op::PatchChannels { x, side }, self.shape(x))
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

    /// Attention of queries over keys and values, with scores divided by the square root of a head's channels.
    pub fn attention(&self, qkv: [Value; 3], heads: usize) -> Value {
        let scale = 1.0 / ((self.channels(qkv[0]) / heads) as f32).sqrt();
        self.biased_attention(Attention { qkv, heads, scale, bias: AttentionBias::None })
    }

    /// Attention with any scale and bias of the scores.
    pub fn biased_attention(&self, attention: Attention) -> Value {
        self.push(Op::Attention(attention), self.shape(attention.qkv[0]))
    }

    /// Dropout; returns `x` if the probability is 0.
    pub fn dropout(&self, x: Value, probability: f64) -> Value {
        if probability == 0.0 { x } else { self.push(Op::Dropout(x, probability), self.shape(x)) }
    }

    /// `x * factor + offset`; returns `x` if that changes nothing.
    pub fn scale(&self, x: Value, factor: f32, offset: f32) -> Value {
        match (factor, offset) {
            (1.0, 0.0) => x,
            _ => self.push(Op::Scale { x, factor, offset }, self.shape(x)),
        }
    }
}

/// A layer norm without parameters.
fn plain_norm(x: Value, epsilon: f32) -> LayerNorm {
    LayerNorm { x, gain: None, offset: None, heads: 1, centred: true, epsilon, modulation: None }
}
