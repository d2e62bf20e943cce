//! Blocks of diffusers' networks that several families share.

use crate::model::graph::{Builder, Value};

/// How the embedding of time and label conditions a residual block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeScaleShift {
    /// Adds it before the second norm.
    Default,
    /// Scales and shifts the second norm's output.
    ScaleShift,
}

/// The change of resolution inside a residual block.
#[derive(Clone, Copy)]
pub(super) enum Direction {
    Down,
    Up,
}

/// `ResnetBlock2D`.
#[derive(Clone, Copy)]
pub(super) struct Resnet {
    /// Groups of the norms.
    pub(super) groups: usize,
    /// Added to the variance in the norms.
    pub(super) epsilon: f32,
    pub(super) time_scale_shift: TimeScaleShift,
    /// Dropout probability in training.
    pub(super) dropout: f64,
    /// Divisor of the sum.
    pub(super) scale_factor: f32,
    pub(super) resample: Option<Direction>,
}

impl Resnet {
    /// Appends the block. `embed` is the embedding of time and label after SiLU; autoencoders have none.
    pub(super) fn build(&self, g: &Builder, x: Value, embed: Option<Value>, out_channels: usize) -> Value {
        let norm = |name: &str, x: Value| g.group_norm(name, x, self.groups, self.epsilon);
        let resampled = |x| match self.resample {
            None => x,
            Some(Direction::Down) => g.average_pool(x),
            Some(Direction::Up) => g.upsample(x),
        };
        let h = resampled(g.silu(norm("norm1", x)));
        let x = resampled(x);
        let h = g.conv("conv1", h, out_channels, 3);
        let h = match (embed, self.time_scale_shift) {
            (None, _) => norm("norm2", h),
            (Some(embed), TimeScaleShift::Default) => {
                norm("norm2", g.add(h, g.linear("time_emb_proj", embed, out_channels)))
            }
            (Some(embed), TimeScaleShift::ScaleShift) => {
                let modulation = g.chunk(g.linear("time_emb_proj", embed, 2 * out_channels));
                g.modulate(norm("norm2", h), modulation)
            }
        };
        let h = g.conv("conv2", g.dropout(g.silu(h), self.dropout), out_channels, 3);
        let x = if g.channels(x) == out_channels { x } else { g.conv("conv_shortcut", x, out_channels, 1) };
        g.scale(g.add(x, h), 1.0 / self.scale_factor, 0.0)
    }
}

/// `Attention` over the pixels of a map, with a residual connection. `norm` is the number of groups and the epsilon of
/// the norm before it.
pub(super) fn pixel_attention(
    g: &Builder,
    x: Value,
    norm: Option<(usize, f32)>,
    heads: usize,
    scale_factor: f32,
) -> Value {
    let channels = g.channels(x);
    let h = norm.map_or(x, |(groups, epsilon)| g.group_norm("group_norm", x, groups, epsilon));
    let qkv = ["to_q", "to_k", "to_v"].map(|name| g.linear(name, h, channels));
    let h = g.linear("to_out.0", g.attention(qkv, heads), channels);
    g.scale(g.add(x, h), 1.0 / scale_factor, 0.0)
}
