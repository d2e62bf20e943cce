//! The uniform of each kernel as the host writes it.
//!
//! A struct here has the name, the fields and the order of the struct in WGSL. The tests compare each field's offset
//! and type with those that naga computes from the source.

/// One field of a uniform.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// Name, equal in Rust and in WGSL.
    pub name: &'static str,
    /// Offset from the start of the struct, in bytes.
    pub offset: usize,
    /// Type, equal in Rust and in WGSL: `u32` or `f32`.
    pub scalar: &'static str,
}

/// A struct that is the uniform of a kernel.
pub trait Uniform: bytemuck::Pod {
    /// Name of the struct in WGSL.
    const NAME: &'static str;
    /// Fields, in order.
    const FIELDS: &'static [Field];
}

/// Declares uniforms: plain structs with the layout of C, and the list of their fields.
macro_rules! uniforms {
    ($(
        $(#[$doc:meta])*
        $vis:vis struct $struct:ident { $($(#[$field_doc:meta])* $field:ident: $scalar:ident,)* }
    )*) => {$(
        $(#[$doc])*
        #[repr(C)]
        #[derive(Debug, Clone, Copy, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
        $vis struct $struct { $($(#[$field_doc])* $vis $field: $scalar,)* }

        impl $crate::uniform::Uniform for $struct {
            const NAME: &'static str = stringify!($struct);
            const FIELDS: &'static [$crate::uniform::Field] = &[$($crate::uniform::Field {
                name: stringify!($field),
                offset: std::mem::offset_of!($struct, $field),
                scalar: stringify!($scalar),
            },)*];
        }
    )*};
}
#[cfg(test)]
pub(crate) use uniforms;

uniforms! {
    /// Uniform of `conv.wgsl`.
    pub struct Conv {
        /// Height of `x` in pixels, before upsampling.
        in_height: u32,
        /// Width of `x` in pixels, before upsampling.
        in_width: u32,
        /// Height of `y` in pixels.
        out_height: u32,
        /// Width of `y` in pixels.
        out_width: u32,
        /// Blocks of four channels of the first input.
        first_blocks: u32,
        /// Blocks of four channels of the second input; 0 without one.
        second_blocks: u32,
        /// Blocks of four channels of `y`.
        out_blocks: u32,
        /// Side of the kernel: 1 or 3.
        kernel: u32,
        /// 1 or 2.
        stride: u32,
        /// Rows of zeros above, and columns to the left: 1 or 0.
        border: u32,
        /// 1 if `x` is upsampled by 2, otherwise 0.
        upsample: u32,
        /// Position of the bias, in blocks.
        bias_start: u32,
        /// Distance from one image's bias to the next, in blocks; 0 if all images share it.
        bias_pitch: u32,
        /// 0: no residual. 1: a map of the size of `y`. 2: a map of half that size.
        residual: u32,
        /// Pixels of `y` in all images together.
        pixels: u32,
    }

    /// Uniform of `group_norm.wgsl`.
    pub struct GroupNorm {
        /// Pixels of one image.
        pixels: u32,
        /// Blocks of four channels of the first input.
        first_blocks: u32,
        /// Blocks of four channels of the second input; 0 without one.
        second_blocks: u32,
        /// Position of the gain, in channels.
        gain_start: u32,
        /// Position of the offset, in channels.
        offset_start: u32,
        /// Distance from one image's gain and offset to the next, in channels; 0 if all images share them.
        pitch: u32,
        /// 1 if SiLU follows, otherwise 0.
        silu: u32,
        /// Channels of a group.
        of_group: u32,
        /// Added to the variance.
        epsilon: f32,
    }

    /// Uniform of `attention.wgsl`.
    pub struct Attention {
        /// Positions of queries.
        queries: u32,
        /// Positions of keys and values.
        keys: u32,
        /// Heads.
        heads: u32,
        /// Blocks of four channels of a head.
        blocks: u32,
        /// Blocks of a position in the map of queries.
        q_pitch: u32,
        /// The first block of the queries.
        q_first: u32,
        /// Blocks of a position in the map of keys.
        k_pitch: u32,
        /// The first block of the keys.
        k_first: u32,
        /// Blocks of a position in the map of values.
        v_pitch: u32,
        /// The first block of the values.
        v_first: u32,
        /// 1 if a bias is added to the scores, otherwise 0.
        biased: u32,
        /// Position of the first head's biases.
        bias_start: u32,
        /// Distance to the biases of the next head; 0 if all heads share them.
        bias_pitch: u32,
        /// Factor of the scores.
        scale: f32,
    }

    /// Uniform of `layer_norm.wgsl`.
    pub struct LayerNorm {
        /// Positions of one image.
        positions: u32,
        /// Equal parts of the channels, each with its own norm.
        heads: u32,
        /// Blocks of four channels of a head.
        blocks: u32,
        /// Position of the gain, in blocks.
        gain_start: u32,
        /// Distance from one image's gain to the next, in blocks; 0 if all images share it.
        gain_pitch: u32,
        /// Position of the offset, in blocks.
        offset_start: u32,
        /// Distance from one image's offset to the next, in blocks; 0 if all images share it.
        offset_pitch: u32,
        /// 1 if the mean is subtracted, otherwise 0.
        centred: u32,
        /// Heads of all positions of all images together.
        count: u32,
        /// Added to the variance.
        epsilon: f32,
    }

    /// Uniform of `pointwise.wgsl`.
    pub struct Pointwise {
        /// Positions of one image.
        positions: u32,
        /// Blocks of four channels of a position of `y`.
        blocks: u32,
        /// Blocks of a position of `x`.
        x_pitch: u32,
        /// The first block of `x` to read.
        x_first: u32,
        /// 0: none. 1: SiLU. 2: GELU. 3: its approximation. 4: quick GELU. 5: ReLU. 6: hyperbolic tangent.
        activation: u32,
        /// 0: no factor. 1: a map. 2: one number per channel.
        factor: u32,
        /// Blocks of a position of the factor's map, or the distance from one image's numbers to the next, in blocks.
        factor_pitch: u32,
        /// The first block of the factor to read.
        factor_first: u32,
        /// 0: no term. 1: a map. 2: a map that all images share.
        term: u32,
        /// The first block of the shared map.
        term_first: u32,
        /// Blocks of `y` in all images together.
        count: u32,
    }

    /// Uniform of `copy.wgsl`.
    pub struct Copy {
        /// Positions of one image in `x`.
        x_positions: u32,
        /// Positions of one image in `y`.
        y_positions: u32,
        /// The first position to read.
        read_first: u32,
        /// The first position to write.
        write_first: u32,
        /// Number of positions.
        positions: u32,
        /// Blocks of four channels of a position.
        blocks: u32,
        /// Blocks that are copied in all images together.
        count: u32,
    }

    /// Uniform of `pool.wgsl`.
    pub struct Pool {
        /// Height of `y` in pixels.
        height: u32,
        /// Width of `y` in pixels.
        width: u32,
        /// Blocks of four channels of a pixel.
        blocks: u32,
        /// Blocks of `y` in all images together.
        count: u32,
    }

    /// Uniform of `advance.wgsl`.
    pub struct Step {
        /// Factors of the image, the network's output and the memory in the new image.
        image_image: f32,
        /// See `image_image`.
        image_output: f32,
        /// See `image_image`.
        image_memory: f32,
        /// Factors of the same in the new memory.
        memory_image: f32,
        /// See `memory_image`.
        memory_output: f32,
        /// See `memory_image`.
        memory_memory: f32,
        /// Factor of the noise in the new image.
        fresh: f32,
        /// Factor of the new image in the network's input.
        input_scale: f32,
        /// Pixels of all images together.
        count: u32,
    }

    /// Uniform of `rgba.wgsl`.
    pub struct Picture {
        /// Height in pixels.
        height: u32,
        /// Width in pixels.
        width: u32,
        /// 1 (grey) or 3 (RGB).
        channels: u32,
        /// Side of the patches of pixels.
        side: u32,
        /// Blocks of a patch.
        blocks: u32,
    }
}
