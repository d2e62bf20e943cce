//! A network compiled to a flat list of operations over a few buffers.
//!
//! Both executors run the same [`Plan`]. `lower` makes it from a graph and weights: it decides the order of the
//! operations and the layout of the weights. `buffers` assigns a buffer to each feature map.
//!
//! A feature map is `[height, width, channels]`: the channels of a pixel are adjacent. The number of channels is a
//! multiple of 4; the 1 or 3 channels of the image are padded with zeros. Skip connections are never concatenated;
//! operations read them as a second input map.

mod buffers;
pub(super) mod lower;

use std::borrow::Cow;

use super::condition::Conditioner;
use crate::model::graph::Activation;
use crate::weights::Values;
#[cfg(feature = "text")]
use crate::weights::{CompactTensor, GROUP};

/// Channels of a block: the unit in which kernels read and write channels.
pub const BLOCK: usize = 4;

/// A bias that excludes a key from attention. Minus infinity would make sums of it undefined.
pub const NO_SCORE: f32 = -1e30;

/// A feature map of every image of a batch: `[height, width, channels]` each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Map {
    /// Its buffer: an index into [`Plan::buffers`].
    pub buffer: usize,
    /// Height in pixels.
    pub height: usize,
    /// Width in pixels.
    pub width: usize,
    /// Channels, a multiple of [`BLOCK`].
    pub channels: usize,
}

impl Map {
    /// Number of pixels: height times width.
    pub fn pixels(&self) -> usize {
        self.height * self.width
    }

    /// Number of values of one image.
    pub fn len(&self) -> usize {
        self.pixels() * self.channels
    }

    /// Whether the map has no values; always false.
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
    /// Number of channels of both maps.
    pub fn channels(&self) -> usize {
        self.first.channels + self.second.map_or(0, |map| map.channels)
    }

    /// The maps, in order.
    pub fn maps(&self) -> impl Iterator<Item = Map> {
        [Some(self.first), self.second].into_iter().flatten()
    }

    fn maps_mut(&mut self) -> impl Iterator<Item = &mut Map> {
        [Some(&mut self.first), self.second.as_mut()].into_iter().flatten()
    }
}

impl From<Map> for Input {
    fn from(first: Map) -> Self {
        Self { first, second: None }
    }
}

/// One number per channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vector {
    /// Starts at this position of [`Plan::vectors`]; the same for all images.
    Fixed(usize),
    /// Starts at this position of each image's row of conditions ([`Conditioner::row`]).
    Conditioned(usize),
}

/// `y = conv(x) + bias + residual`, 3x3 or 1x1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv {
    /// The input.
    pub x: Input,
    /// Side of the kernel: 1 or 3.
    pub kernel: usize,
    /// Step between outputs: 1 or 2.
    pub stride: usize,
    /// Rows of zeros above, and columns of zeros to the left: 1 or 0.
    pub border: usize,
    /// Whether `x` is first upsampled by 2 (nearest neighbour).
    pub upsample: bool,
    /// Index into [`Plan::weights`].
    pub weight: usize,
    /// Bias, added to every pixel.
    pub bias: Vector,
    /// A map that is added to the output.
    pub residual: Option<Residual>,
    /// The output.
    pub y: Map,
}

/// A map that is added to the output of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Residual {
    /// The map. It must not be the output.
    pub map: Map,
    /// Whether it is first upsampled by 2 (nearest neighbour).
    pub upsample: bool,
}

/// `y = act(gain * (x - mean) / deviation + offset)`, with mean and deviation over each group of channels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GroupNorm {
    /// The input.
    pub x: Input,
    /// Gain.
    pub gain: Vector,
    /// Offset.
    pub offset: Vector,
    /// Number of groups of channels.
    pub groups: usize,
    /// Added to the variance.
    pub epsilon: f32,
    /// Whether SiLU follows.
    pub silu: bool,
    /// The output.
    pub y: Map,
}

/// Channels of a map, from `first` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Channels {
    /// The map.
    pub map: Map,
    /// The first channel, a multiple of [`BLOCK`].
    pub first: usize,
}

impl From<Map> for Channels {
    fn from(map: Map) -> Self {
        Self { map, first: 0 }
    }
}

/// `y = softmax(scale q^T k + bias) v` for every head.
///
/// The channels of queries, keys, values and output are `[heads, head_channels]`, with each head padded to a multiple of
/// [`BLOCK`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    /// Queries; their positions are those of the output.
    pub q: Channels,
    /// Keys.
    pub k: Channels,
    /// Values, at the positions of the keys.
    pub v: Channels,
    /// Number of heads.
    pub heads: usize,
    /// Channels per head, without padding.
    pub head_channels: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// Added to the scaled scores.
    pub bias: Option<AttentionBias>,
    /// The output.
    pub y: Map,
}

/// A bias of scores that depends on the head and on the distance between key and query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionBias {
    /// Position in [`Plan::vectors`] of the biases for distances from `1 - queries` to `keys - 1`, for each head.
    pub start: usize,
    /// Values from one head to the next; 0 if all heads share their biases.
    pub pitch: usize,
}

impl Attention {
    /// Channels per head, padded to a multiple of [`BLOCK`].
    pub fn padded_channels(&self) -> usize {
        self.head_channels.next_multiple_of(BLOCK)
    }

    /// Number of keys.
    pub fn keys(&self) -> usize {
        self.k.map.pixels()
    }
}

/// `y = gain * (x - mean) / deviation + offset`, over the channels of each head at each position. Without the mean, the
/// deviation is the root mean square (RMS norm).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerNorm {
    /// The input.
    pub x: Map,
    /// Gain.
    pub gain: Vector,
    /// Offset.
    pub offset: Vector,
    /// Number of equal parts of the channels, each with its own norm.
    pub heads: usize,
    /// Whether the mean is subtracted.
    pub centred: bool,
    /// Added to the variance or mean square.
    pub epsilon: f32,
    /// The output.
    pub y: Map,
}

/// `y = activation(x) * factor + term`, value by value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pointwise {
    /// The input.
    pub x: Channels,
    /// A function of the input; the identity if there is none.
    pub activation: Option<Activation>,
    /// Multiplies the result.
    pub factor: Option<Factor>,
    /// Is added to the result.
    pub term: Option<Term>,
    /// The output.
    pub y: Map,
}

/// See [`Pointwise::factor`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Factor {
    /// Channels of a map of the size of the output.
    Map(Channels),
    /// One number per channel.
    Vector(Vector),
}

/// See [`Pointwise::term`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Term {
    /// A map of the shape of the output.
    Map(Map),
    /// A map that is the same for all images; it starts at this position of [`Plan::vectors`].
    Fixed(usize),
}

/// Copies consecutive positions of one map to another map with the same channels. The other positions of `y` are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copy {
    /// The input.
    pub x: Map,
    /// The first position to read.
    pub from: usize,
    /// The output.
    pub y: Map,
    /// The first position to write.
    pub to: usize,
    /// Number of positions.
    pub count: usize,
}

/// 2x2 average pooling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool {
    /// The input.
    pub x: Map,
    /// The output.
    pub y: Map,
}

/// One operation of a plan.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Op {
    /// See [`Conv`].
    Conv(Conv),
    /// See [`GroupNorm`].
    GroupNorm(GroupNorm),
    /// See [`Attention`].
    Attention(Attention),
    /// See [`Pool`].
    Pool(Pool),
    /// See [`LayerNorm`].
    #[cfg(feature = "text")]
    LayerNorm(LayerNorm),
    /// See [`Pointwise`].
    #[cfg(feature = "text")]
    Pointwise(Pointwise),
    /// See [`Copy`].
    #[cfg(feature = "text")]
    Copy(Copy),
}

impl Op {
    /// The map that it writes.
    pub fn y(&self) -> Map {
        match self {
            Self::Conv(op) => op.y,
            Self::GroupNorm(op) => op.y,
            Self::Attention(op) => op.y,
            Self::Pool(op) => op.y,
            #[cfg(feature = "text")]
            Self::LayerNorm(op) => op.y,
            #[cfg(feature = "text")]
            Self::Pointwise(op) => op.y,
            #[cfg(feature = "text")]
            Self::Copy(op) => op.y,
        }
    }

    /// The maps that it reads, the residual included.
    pub fn inputs(&self) -> Vec<Map> {
        match self {
            Self::Conv(op) => op.x.maps().chain(op.residual.map(|residual| residual.map)).collect(),
            Self::GroupNorm(op) => op.x.maps().collect(),
            Self::Attention(op) => vec![op.q.map, op.k.map, op.v.map],
            Self::Pool(op) => vec![op.x],
            #[cfg(feature = "text")]
            Self::LayerNorm(op) => vec![op.x],
            #[cfg(feature = "text")]
            Self::Pointwise(op) => {
                let factor = op.factor.and_then(|factor| match factor {
                    Factor::Map(channels) => Some(channels.map),
                    Factor::Vector(_) => None,
                });
                let term = op.term.and_then(|term| match term {
                    Term::Map(map) => Some(map),
                    Term::Fixed(_) => None,
                });
                [Some(op.x.map), factor, term].into_iter().flatten().collect()
            }
            #[cfg(feature = "text")]
            Self::Copy(op) => vec![op.x],
        }
    }

    /// Asserts that the operation writes none of the buffers that it reads.
    pub(super) fn assert_writes_no_input(&self) {
        let y = self.y().buffer;
        assert!(self.inputs().iter().all(|x| x.buffer != y), "an operation writes what it reads");
    }

    /// Floating-point operations for one image; a multiplication and an addition count as two.
    pub fn flops(&self) -> usize {
        match self {
            Self::Conv(op) => 2 * op.y.len() * op.kernel * op.kernel * op.x.channels(),
            Self::Attention(op) => 4 * op.y.len() * op.keys(),
            Self::GroupNorm(op) => 8 * op.y.len(),
            Self::Pool(op) => 4 * op.y.len(),
            #[cfg(feature = "text")]
            Self::LayerNorm(op) => 8 * op.y.len(),
            #[cfg(feature = "text")]
            Self::Pointwise(op) => 2 * op.y.len(),
            #[cfg(feature = "text")]
            Self::Copy(_) => 0,
        }
    }
}

/// The weight of a convolution, `[kernel * kernel, in_channels, out_channels]`, both channel counts multiples of
/// [`BLOCK`].
#[derive(Debug, Clone, PartialEq)]
pub struct ConvWeight {
    /// Side of the kernel.
    pub kernel: usize,
    /// Input channels, padded.
    pub in_channels: usize,
    /// Output channels, padded.
    pub out_channels: usize,
    /// Values in the order above. The rows that have scales in bytes are output channels. In four bits a byte holds two output
    /// channels, the even one in the low bits, and the scales are `[kernel * kernel, in_channels / 32, out_channels]`.
    pub values: Values,
}

impl ConvWeight {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.kernel * self.kernel * self.in_channels * self.out_channels
    }

    /// Whether there are no values; always false.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The values in single precision.
    pub fn to_f32(&self) -> Cow<'_, [f32]> {
        match &self.values {
            Values::F32(values) => Cow::Borrowed(values),
            #[cfg(feature = "text")]
            Values::F16(values) => values.iter().map(|value| value.to_f32()).collect(),
            #[cfg(feature = "text")]
            Values::Q8 { bytes, scales } => {
                let rows = bytes.chunks_exact(self.out_channels);
                rows.flat_map(|row| row.iter().zip(scales).map(|(byte, scale)| f32::from(*byte) * scale))
                    .collect()
            }
            #[cfg(feature = "text")]
            Values::Q4 { nibbles, scales } => {
                let numbers = nibbles.iter().flat_map(|byte| [byte & 15, byte >> 4]).enumerate();
                let row = |place: usize| place / self.out_channels / GROUP;
                let scale = |place: usize| scales[row(place) * self.out_channels + place % self.out_channels];
                numbers.map(|(place, number)| (f32::from(number) - 8.0) * scale(place).to_f32()).collect()
            }
        }
    }
}

/// A network compiled for an executor.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The operations, in order.
    pub ops: Vec<Op>,
    /// Size of each buffer, in values per image.
    pub buffers: Vec<usize>,
    /// The map that holds the network's input before the first operation: an image, or embedded tokens.
    pub x: Map,
    /// The map that holds the embeddings of a text's tokens, for a network that reads them.
    #[cfg(feature = "text")]
    pub text: Option<Map>,
    /// The map that holds the network's output after the last operation.
    pub output: Map,
    /// The map that holds the second output of a text encoder.
    #[cfg(feature = "text")]
    pub pooled: Option<Map>,
    /// Weights of the convolutions.
    pub weights: Vec<ConvWeight>,
    /// Biases, gains, offsets and position embeddings, which do not depend on the image.
    pub vectors: Vec<f32>,
    /// The embedding of each token, `[vocabulary, channels]`, of a text encoder. Its rows are the input.
    #[cfg(feature = "text")]
    pub embedding: Option<CompactTensor>,
    /// Computes the vectors that depend on time and label, for each image.
    pub conditioner: Conditioner,
}

impl Plan {
    /// Floating-point operations of one evaluation for one image.
    pub fn flops(&self) -> usize {
        self.ops.iter().map(Op::flops).sum()
    }

    /// Size of all buffers together, in values per image.
    pub fn values_per_image(&self) -> usize {
        self.buffers.iter().sum()
    }
}
