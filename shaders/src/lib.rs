//! The kernels of ccm's sampler in WGSL, one file each.
//!
//! A kernel is one source for all its variants: [`Kernel::source`] puts a few declarations before it, which say
//! what feature maps and weights are stored as and how large a tile is. The CPU has kernels of the same names.

/// A kernel's file as `build.rs` leaves it.
macro_rules! wgsl {
    ($file:literal) => {
        include_str!(concat!(env!("OUT_DIR"), "/", $file))
    };
}

/// What feature maps are stored and products computed as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Real {
    /// Single precision.
    F32,
    /// Half precision; needs the feature `shader-f16`. Sums are in single precision all the same.
    F16,
}

/// What the weights of convolutions are stored as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Weights {
    /// Single precision.
    F32,
    /// Half precision.
    F16,
    /// Signed bytes with a scale for each output channel.
    Q8,
}

/// How a convolution is cut up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tile {
    /// 64 pixels by 64 output channels a workgroup, staged in workgroup memory.
    Wide,
    /// 32 pixels by 32 output channels a workgroup, staged in workgroup memory.
    Narrow,
    /// No workgroup memory: for adapters that run on a CPU.
    Direct,
}

impl Tile {
    /// Pixels of a workgroup.
    pub fn pixels(self) -> u32 {
        match self {
            Self::Wide => 64,
            Self::Narrow => 32,
            Self::Direct => 16 * 4,
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
    /// `conv.wgsl`. Bindings: sizes, first and second input, bias, residual, output, weights, and with
    /// [`Weights::Q8`] scales.
    Conv(Weights, Tile),
    /// `group_norm.wgsl`. Bindings: sizes, first and second input, statistics.
    Moments,
    /// `group_norm.wgsl`. Bindings: sizes, first and second input, statistics, gain, offset, output.
    Normalize,
    /// `attention.wgsl`. Bindings: sizes, queries with keys and values, output.
    Attention,
    /// As [`Kernel::Attention`], without workgroup memory: for adapters that run on a CPU.
    AttentionDirect,
    /// `pool.wgsl`. Bindings: sizes, input, output.
    Pool,
    /// `advance.wgsl`. Bindings: step, velocity, noise, image, input of the network.
    Advance,
}

/// `rgba.wgsl`: draws an image; entry points `corner` (vertex) and `colour` (fragment). Bindings: sizes, image.
pub const RGBA: &str = wgsl!("rgba.wgsl");

/// Pixels that a workgroup of [`Kernel::Normalize`] writes.
pub const NORMALIZE_RUN: u32 = 64;
/// Blocks of four channels of a workgroup of [`Kernel::Moments`] and [`Kernel::Normalize`].
pub const NORM_BLOCKS: u32 = 8;
/// Queries of a workgroup of [`Kernel::Attention`].
pub const ATTENTION_QUERIES: u32 = 16;
/// Blocks of four channels that a workgroup of [`Kernel::Attention`] writes.
pub const ATTENTION_WIDTH: u32 = 16;
/// Blocks of four channels that an invocation of [`Kernel::AttentionDirect`] writes; a workgroup
/// has as many queries as one of [`Kernel::Attention`].
pub const ATTENTION_DIRECT_WIDTH: u32 = 4;
/// Invocations of a workgroup of [`Kernel::Pool`] and [`Kernel::Advance`].
pub const LINE: u32 = 64;

impl Kernel {
    /// The name of its entry point.
    pub fn entry_point(self) -> &'static str {
        match self {
            Self::Conv(_, Tile::Direct) => "direct",
            Self::Conv(..) => "tiled",
            Self::Moments => "moments",
            Self::Normalize => "normalize",
            Self::Attention => "attend",
            Self::AttentionDirect => "direct",
            Self::Pool => "pool",
            Self::Advance => "advance",
        }
    }

    /// The whole module.
    pub fn source(self, real: Real) -> String {
        let mut parts = vec![match real {
            Real::F32 => wgsl!("prelude/f32.wgsl"),
            Real::F16 => wgsl!("prelude/f16.wgsl"),
        }];
        if let Self::Conv(weights, tile) = self {
            parts.push(match weights {
                Weights::F32 => wgsl!("prelude/weight_f32.wgsl"),
                Weights::F16 => wgsl!("prelude/weight_f16.wgsl"),
                Weights::Q8 => wgsl!("prelude/weight_q8.wgsl"),
            });
            parts.push(match tile {
                Tile::Narrow => wgsl!("prelude/narrow.wgsl"),
                Tile::Wide | Tile::Direct => wgsl!("prelude/wide.wgsl"),
            });
        }
        parts.push(match self {
            Self::Conv(..) => wgsl!("conv.wgsl"),
            Self::Moments | Self::Normalize => wgsl!("group_norm.wgsl"),
            Self::Attention | Self::AttentionDirect => wgsl!("attention.wgsl"),
            Self::Pool => wgsl!("pool.wgsl"),
            Self::Advance => wgsl!("advance.wgsl"),
        });
        parts.concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Kernel> {
        let weights = [Weights::F32, Weights::F16, Weights::Q8];
        let tiles = [Tile::Wide, Tile::Narrow, Tile::Direct];
        let convolutions = weights.iter().flat_map(|w| tiles.iter().map(|tile| Kernel::Conv(*w, *tile)));
        let others = [
            Kernel::Moments,
            Kernel::Normalize,
            Kernel::Attention,
            Kernel::AttentionDirect,
            Kernel::Pool,
            Kernel::Advance,
        ];
        convolutions.chain(others).collect()
    }

    fn validate(source: &str) -> Result<naga::Module, String> {
        let module = naga::front::wgsl::parse_str(source).map_err(|error| error.emit_to_string(source))?;
        let flags = naga::valid::ValidationFlags::all();
        use naga::valid::Capabilities;
        let capabilities = Capabilities::SHADER_FLOAT16 | Capabilities::SHADER_FLOAT16_IN_FLOAT32;
        let mut validator = naga::valid::Validator::new(flags, capabilities);
        validator.validate(&module).map_err(|error| error.emit_to_string(source))?;
        Ok(module)
    }

    #[test]
    fn every_variant_of_every_kernel_is_valid_and_has_its_entry_point() {
        for real in [Real::F32, Real::F16] {
            for kernel in all() {
                let module =
                    validate(&kernel.source(real)).unwrap_or_else(|error| panic!("{kernel:?}\n{error}"));
                let entry = kernel.entry_point();
                assert!(module.entry_points.iter().any(|point| point.name == entry), "{kernel:?}: {entry}");
            }
        }
        validate(RGBA).unwrap_or_else(|error| panic!("rgba\n{error}"));
    }

    #[test]
    fn what_a_kernel_shares_between_invocations_fits_any_adapter() {
        /// `maxComputeWorkgroupStorageSize` that every adapter has.
        const MOST: u32 = 16 * 1024;
        for kernel in all() {
            let module = validate(&kernel.source(Real::F32)).unwrap_or_else(|error| panic!("{error}"));
            let mut layouter = naga::proc::Layouter::default();
            layouter.update(module.to_ctx()).unwrap_or_else(|error| panic!("{kernel:?}: {error}"));
            let shared =
                module.global_variables.iter().filter(|(_, v)| v.space == naga::AddressSpace::WorkGroup);
            let bytes: u32 = shared.map(|(_, variable)| layouter[variable.ty].size).sum();
            assert!(bytes <= MOST, "{kernel:?}: {bytes} bytes");
        }
    }
}
