//! The interface that the host assumes of each kernel. Tests compare it with the source.

use crate::buffers::{self, Binding};
use crate::uniform::{self, Field, Uniform};
use crate::{
    ATTENTION_DIRECT_WIDTH, ATTENTION_QUERIES, ATTENTION_WIDTH, Kernel, LINE, NORM_BLOCKS, NORMALIZE_RUN,
    Tile, Weights,
};

/// The interface that the host assumes of a kernel.
#[derive(Debug, Clone, PartialEq)]
pub struct Interface {
    /// Names of the entry points.
    pub entry_points: Vec<&'static str>,
    /// Invocations of a workgroup; zeros for a kernel that draws.
    pub workgroup_size: [u32; 3],
    /// Name of the uniform's struct in WGSL. The uniform is binding 0.
    pub uniform: &'static str,
    /// Bytes of the uniform.
    pub uniform_size: usize,
    /// Fields of the uniform, in order.
    pub fields: Vec<Field>,
    /// Storage buffers, which are the bindings from 1 on.
    pub buffers: Vec<Binding>,
    /// Constants of the source that the host also uses.
    pub constants: Vec<(&'static str, Constant)>,
}

/// The value of a constant.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Constant {
    /// An unsigned integer.
    U32(u32),
    /// A number in single precision.
    F32(f32),
}

impl Interface {
    fn new<U: Uniform>(entry_points: &[&'static str], workgroup_size: [u32; 3], buffers: &[Binding]) -> Self {
        Self {
            entry_points: entry_points.to_vec(),
            workgroup_size,
            uniform: U::NAME,
            uniform_size: size_of::<U>(),
            fields: U::FIELDS.to_vec(),
            buffers: buffers.to_vec(),
            constants: Vec::new(),
        }
    }

    fn with(mut self, constants: &[(&'static str, Constant)]) -> Self {
        self.constants = constants.to_vec();
        self
    }

    /// The interface of [`crate::RGBA`].
    pub fn rgba() -> Self {
        Self::new::<uniform::Picture>(&["corner", "colour"], [0; 3], buffers::Picture::BINDINGS)
    }
}

impl Kernel {
    /// The interface that the host assumes of this kernel.
    pub fn interface(self) -> Interface {
        use Constant::U32;
        let entry = &[self.entry_point()];
        let norm = [("BLOCKS", U32(NORM_BLOCKS)), ("RUN", U32(NORMALIZE_RUN))];
        let queries = ("QUERIES", U32(ATTENTION_QUERIES));
        let line = [("LINE", U32(LINE))];
        match self {
            Self::Conv(weights, tile) => {
                let (size, [pixels, blocks]) = match tile {
                    Tile::Direct => ([1, 16, 1], ["DIRECT_TILE_PIXELS", "DIRECT_BLOCKS"]),
                    Tile::Wide | Tile::Narrow => ([8, 8, 1], ["TILE_PIXELS", "TILE_BLOCKS"]),
                };
                let mut bindings = buffers::Conv::BINDINGS.to_vec();
                if matches!(weights, Weights::F32 | Weights::F16) {
                    bindings.retain(|binding| binding.name != "scales");
                }
                Interface::new::<uniform::Conv>(entry, size, &bindings)
                    .with(&[(pixels, U32(tile.pixels())), (blocks, U32(tile.blocks()))])
            }
            Self::Moments => {
                let size = [NORM_BLOCKS, 8, 1];
                Interface::new::<uniform::GroupNorm>(entry, size, buffers::Moments::BINDINGS).with(&norm)
            }
            Self::Normalize => {
                let size = [NORM_BLOCKS, 8, 1];
                Interface::new::<uniform::GroupNorm>(entry, size, buffers::Normalize::BINDINGS).with(&norm)
            }
            Self::Attention => {
                let size = [4, ATTENTION_QUERIES, 1];
                Interface::new::<uniform::Attention>(entry, size, buffers::Attention::BINDINGS)
                    .with(&[queries, ("WIDTH", U32(ATTENTION_WIDTH))])
            }
            Self::AttentionDirect => {
                let size = [ATTENTION_QUERIES, 1, 1];
                Interface::new::<uniform::Attention>(entry, size, buffers::Attention::BINDINGS)
                    .with(&[queries, ("DIRECT_WIDTH", U32(ATTENTION_DIRECT_WIDTH))])
            }
            Self::Pool => {
                Interface::new::<uniform::Pool>(entry, [LINE, 1, 1], buffers::Pool::BINDINGS).with(&line)
            }
            #[cfg(feature = "text")]
            Self::LayerNorm => {
                let size = [crate::LAYER_NORM_ROW, 1, 1];
                Interface::new::<uniform::LayerNorm>(entry, size, buffers::LayerNorm::BINDINGS)
                    .with(&[("ROW", U32(crate::LAYER_NORM_ROW))])
            }
            #[cfg(feature = "text")]
            Self::Pointwise => {
                Interface::new::<uniform::Pointwise>(entry, [LINE, 1, 1], buffers::Pointwise::BINDINGS)
                    .with(&line)
            }
            #[cfg(feature = "text")]
            Self::Copy => {
                Interface::new::<uniform::Copy>(entry, [LINE, 1, 1], buffers::Copy::BINDINGS).with(&line)
            }
            Self::Advance => {
                Interface::new::<uniform::Step>(entry, [LINE, 1, 1], buffers::Advance::BINDINGS).with(&line)
            }
        }
    }
}
