//! The kernels of ccm's sampler in WGSL, one file each, and their interface: uniforms, buffers and constants.
//!
//! A kernel is one source for all its variants: [`Kernel::source`] puts a few declarations before it, which define the
//! types of feature maps and weights and the size of a tile. The CPU has kernels of the same names.
//!
//! The source is the authority on a kernel's interface. [`uniform`], [`buffers`] and the constants here repeat it for
//! the host; tests compare them with the source through naga, so that a change of only one of the two fails.

pub mod buffers;
pub mod interface;
#[cfg(test)]
mod tests;
pub mod uniform;

/// A kernel's source without comments and white space, as `build.rs` writes it.
macro_rules! wgsl {
    ($file:literal) => {
        include_str!(concat!(env!("OUT_DIR"), "/", $file))
    };
}

/// Number format of feature maps and of products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Real {
    /// Single precision.
    F32,
    /// Half precision, which needs the feature `shader-f16`. Sums are in single precision nevertheless.
    F16,
}

/// Number format of the weights of convolutions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Weights {
    /// Single precision.
    F32,
    /// Half precision.
    F16,
    /// Signed bytes, with a scale for each output channel.
    Q8,
    /// Four bits, with a scale for each output channel and 32 input channels of a tap.
    #[cfg(feature = "text")]
    Q4,
}

/// How the output of a convolution is divided into workgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tile {
    /// 64 pixels by 64 output channels a workgroup, staged in workgroup memory.
    Wide,
    /// 32 pixels by 32 output channels a workgroup, staged in workgroup memory.
    Narrow,
    /// 64 pixels by 8 output channels a workgroup, without workgroup memory: for adapters that run on a CPU.
    Direct,
}

impl Tile {
    /// Pixels of a workgroup.
    pub fn pixels(self) -> u32 {
        match self {
            Self::Wide => 64,
            Self::Narrow => 32,
            Self::Direct => 64,
        }
    }

    /// Blocks of four output channels of a workgroup.
    pub fn blocks(self) -> u32 {
        match self {
            Self::Wide => 16,
            Self::Narrow => 8,
            Self::Direct => 2,
        }
    }
}

/// A compute kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kernel {
    /// `conv.wgsl`; [`uniform::Conv`] and [`buffers::Conv`].
    Conv(Weights, Tile),
    /// The first half of `group_norm.wgsl`; [`uniform::GroupNorm`] and [`buffers::Moments`].
    Moments,
    /// The second half of `group_norm.wgsl`; [`uniform::GroupNorm`] and [`buffers::Normalize`].
    Normalize,
    /// `attention.wgsl`; [`uniform::Attention`] and [`buffers::Attention`].
    Attention,
    /// As [`Kernel::Attention`], without workgroup memory: for adapters that run on a CPU.
    AttentionDirect,
    /// `pool.wgsl`; [`uniform::Pool`] and [`buffers::Pool`].
    Pool,
    /// `layer_norm.wgsl`; [`uniform::LayerNorm`] and [`buffers::LayerNorm`].
    #[cfg(feature = "text")]
    LayerNorm,
    /// `pointwise.wgsl`; [`uniform::Pointwise`] and [`buffers::Pointwise`].
    #[cfg(feature = "text")]
    Pointwise,
    /// `copy.wgsl`; [`uniform::Copy`] and [`buffers::Copy`].
    #[cfg(feature = "text")]
    Copy,
    /// `advance.wgsl`; [`uniform::Step`] and [`buffers::Advance`].
    Advance,
}

/// `rgba.wgsl`, which draws an image; entry points `corner` (vertex) and `colour` (fragment), [`uniform::Picture`] and
/// [`buffers::Picture`].
pub const RGBA: &str = wgsl!("rgba.wgsl");

/// Blocks of four channels that a workgroup of [`Kernel::Moments`] and [`Kernel::Normalize`] handles.
pub const NORM_BLOCKS: u32 = 8;
/// Pixels that a workgroup of [`Kernel::Normalize`] writes.
pub const NORMALIZE_RUN: u32 = 64;
/// Queries of a workgroup of [`Kernel::Attention`] and [`Kernel::AttentionDirect`].
pub const ATTENTION_QUERIES: u32 = 16;
/// Blocks of four channels that a workgroup of [`Kernel::Attention`] writes.
pub const ATTENTION_WIDTH: u32 = 16;
/// Blocks of four channels that an invocation of [`Kernel::AttentionDirect`] writes.
pub const ATTENTION_DIRECT_WIDTH: u32 = 4;
/// Invocations of a workgroup of [`Kernel::Pool`], `Kernel::Pointwise`, `Kernel::Copy` and [`Kernel::Advance`].
pub const LINE: u32 = 64;
/// Invocations of a workgroup of `Kernel::LayerNorm`, which handles one head at one position.
pub const LAYER_NORM_ROW: u32 = 64;

impl Kernel {
    /// Name of the entry point.
    pub fn entry_point(self) -> &'static str {
        match self {
            Self::Conv(_, Tile::Direct) => "direct",
            Self::Conv(..) => "tiled",
            Self::Moments => "moments",
            Self::Normalize => "normalize",
            Self::Attention => "attend",
            Self::AttentionDirect => "direct",
            Self::Pool => "pool",
            #[cfg(feature = "text")]
            Self::LayerNorm => "layer_norm",
            #[cfg(feature = "text")]
            Self::Pointwise => "apply",
            #[cfg(feature = "text")]
            Self::Copy => "copy",
            Self::Advance => "advance",
        }
    }

    /// Source of the kernel: a complete WGSL module.
    pub fn source(self, real: Real) -> String {
        let mut source = String::from(match real {
            Real::F32 => wgsl!("prelude/f32.wgsl"),
            Real::F16 => wgsl!("prelude/f16.wgsl"),
        });
        if let Self::Conv(weights, tile) = self {
            source.push_str(match weights {
                Weights::F32 => wgsl!("prelude/weight_f32.wgsl"),
                Weights::F16 => wgsl!("prelude/weight_f16.wgsl"),
                Weights::Q8 => wgsl!("prelude/weight_q8.wgsl"),
                #[cfg(feature = "text")]
                Weights::Q4 => wgsl!("prelude/weight_q4.wgsl"),
            });
            source.push_str(match tile {
                Tile::Narrow => wgsl!("prelude/narrow.wgsl"),
                Tile::Wide | Tile::Direct => wgsl!("prelude/wide.wgsl"),
            });
        }
        source.push_str(match self {
            Self::Conv(..) => wgsl!("conv.wgsl"),
            Self::Moments | Self::Normalize => wgsl!("group_norm.wgsl"),
            Self::Attention | Self::AttentionDirect => wgsl!("attention.wgsl"),
            Self::Pool => wgsl!("pool.wgsl"),
            #[cfg(feature = "text")]
            Self::LayerNorm => wgsl!("layer_norm.wgsl"),
            #[cfg(feature = "text")]
            Self::Pointwise => wgsl!("pointwise.wgsl"),
            #[cfg(feature = "text")]
            Self::Copy => wgsl!("copy.wgsl"),
            Self::Advance => wgsl!("advance.wgsl"),
        });
        source
    }
}
