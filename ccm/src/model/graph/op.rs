//! The operations of a [`Graph`](super::Graph), and what they are made of.

use super::{Param, Value};

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

    /// The parameters that it reads.
    pub fn parameters(&self) -> Vec<Param> {
        let both = |affine: Affine| [affine.weight].into_iter().chain(affine.bias).collect();
        match *self {
            Self::LabelEmbedding(table)
            | Self::TokenEmbedding(table)
            | Self::PositionEmbedding(PositionEmbedding { table, .. })
            | Self::Attention(Attention {
                bias: AttentionBias::Relative(RelativeBias { table, .. }), ..
            }) => vec![table],
            Self::Linear(_, affine) | Self::Conv(Conv { affine, .. }) => both(affine),
            Self::GroupNorm(GroupNorm { gain, offset, .. }) => vec![gain, offset],
            Self::LayerNorm(LayerNorm { gain, offset, .. }) => gain.into_iter().chain(offset).collect(),
            Self::Image
            | Self::Text
            | Self::Pooled
            | Self::Time
            | Self::Sizes
            | Self::Guidance
            | Self::Sinusoids(..)
            | Self::Activate(..)
            | Self::Add(..)
            | Self::AddVector(..)
            | Self::Multiply(..)
            | Self::MultiplyVector(..)
            | Self::Chunk { .. }
            | Self::Modulate { .. }
            | Self::Concat(..)
            | Self::Join(..)
            | Self::Part { .. }
            | Self::Upsample(_)
            | Self::AveragePool(_)
            | Self::PatchChannels { .. }
            | Self::QkvAttention { .. }
            | Self::Attention(_)
            | Self::Dropout(..)
            | Self::Scale { .. } => Vec::new(),
        }
    }
}
