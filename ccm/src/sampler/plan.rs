//! A network compiled to a flat list of operations over a few buffers.
//!
//! Both executors run the same [`Plan`]. `lower` makes it from a graph and weights: it decides the order of the
//! operations and the layout of the weights. `buffers` assigns a buffer to each feature map.
//!
//! A feature map is `[height, width, channels]`: the channels of a pixel are adjacent. The number of channels is a
//! multiple of 4; the 1 or 3 channels of the image are padded with zeros. Skip connections are never concatenated;
//! operations read them as a second input map.

mod buffers;
mod lower;

use super::condition::Conditioner;
use crate::model::{NetworkSpec, Path};

/// Channels of a block: the unit in which kernels read and write channels.
pub const BLOCK: usize = 4;

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

/// `y = softmax(q^T k / sqrt(head_channels)) v` for every head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attention {
    /// Queries, keys and values. The channels are `[3, heads, head_channels]`, with each head padded to a multiple of
    /// [`BLOCK`].
    pub qkv: Map,
    /// Number of heads.
    pub heads: usize,
    /// Channels per head, without padding.
    pub head_channels: usize,
    /// The output. The channels are `[heads, head_channels]`, padded in the same way.
    pub y: Map,
}

impl Attention {
    /// Channels per head, padded to a multiple of [`BLOCK`].
    pub fn padded_channels(&self) -> usize {
        self.head_channels.next_multiple_of(BLOCK)
    }
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
}

impl Op {
    /// The map that it writes.
    pub fn y(&self) -> Map {
        match self {
            Self::Conv(op) => op.y,
            Self::GroupNorm(op) => op.y,
            Self::Attention(op) => op.y,
            Self::Pool(op) => op.y,
        }
    }

    /// The maps that it reads, the residual included.
    pub fn inputs(&self) -> Vec<Map> {
        match self {
            Self::Conv(op) => op.x.maps().chain(op.residual.map(|residual| residual.map)).collect(),
            Self::GroupNorm(op) => op.x.maps().collect(),
            Self::Attention(op) => vec![op.qkv],
            Self::Pool(op) => vec![op.x],
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
            Self::Attention(op) => 4 * op.y.len() * op.y.pixels(),
            Self::GroupNorm(op) => 8 * op.y.len(),
            Self::Pool(op) => 4 * op.y.len(),
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
    /// Values in the order above.
    pub values: Vec<f32>,
}

/// A network compiled for an executor.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The architecture.
    pub spec: NetworkSpec,
    /// The prediction and its path (PAPER.md §8).
    pub path: Path,
    /// The operations, in order.
    pub ops: Vec<Op>,
    /// Size of each buffer, in values per image.
    pub buffers: Vec<usize>,
    /// The map that holds the network's input before the first operation.
    pub x: Map,
    /// The map that holds the network's output after the last operation.
    pub output: Map,
    /// Weights of the convolutions.
    pub weights: Vec<ConvWeight>,
    /// Biases, gains and offsets that do not depend on the image.
    pub vectors: Vec<f32>,
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
