//! The storage buffers of each kernel, as the host binds them.
//!
//! A struct here has one field for each buffer, with the name of the variable in WGSL. The uniform is binding 0; the
//! buffers follow from 1 in the order of the fields. The tests compare names, numbers, access and element types with
//! those that naga reads from the source.

/// How a kernel uses a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// `read`.
    Read,
    /// `read_write`.
    ReadWrite,
}

/// Element type of a buffer's array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// `f32`.
    F32,
    /// `vec4<f32>`.
    F32x4,
    /// Four values of a feature map: `vec4<f32>` or `vec4<f16>`, by [`crate::Real`].
    Real4,
    /// Four weights: `vec4<f32>`, `vec2<u32>` or `u32`, or eight in a `u32`, by [`crate::Weights`].
    Weight4,
    /// Scales of four output channels: `vec4<f32>` or `vec2<u32>`, by [`crate::Weights`].
    Scale4,
}

/// One storage buffer of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding {
    /// Name of the variable in WGSL.
    pub name: &'static str,
    /// How the kernel uses it.
    pub access: Access,
    /// Element type of its array.
    pub element: Element,
}

/// Declares the buffers of kernels: structs that hold one `B` for each buffer, and the list of their bindings. A field
/// after the semicolon is optional: it is bound last, by the variants of the kernel that have it.
macro_rules! buffers {
    ($(
        $(#[$doc:meta])*
        pub struct $struct:ident {
            $($(#[$field_doc:meta])* $field:ident: $access:ident $element:ident,)*
            $(; $(#[$last_doc:meta])* $last:ident: $last_access:ident $last_element:ident,)?
        }
    )*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub struct $struct<B> {
            $($(#[$field_doc])* pub $field: B,)*
            $($(#[$last_doc])* pub $last: Option<B>,)?
        }

        impl $struct<()> {
            /// The bindings from 1 on, with the optional one if there is any.
            pub const BINDINGS: &'static [Binding] = &[
                $(Binding {
                    name: stringify!($field), access: Access::$access, element: Element::$element,
                },)*
                $(Binding {
                    name: stringify!($last), access: Access::$last_access, element: Element::$last_element,
                },)?
            ];
        }

        impl<B> $struct<B> {
            /// The buffers in the order of their bindings, from 1 on.
            pub fn in_order(self) -> Vec<B> {
                #[allow(unused_mut, reason = "only a struct with an optional buffer extends the list")]
                let mut buffers = vec![$(self.$field),*];
                $(buffers.extend(self.$last);)?
                buffers
            }
        }
    )*};
}

buffers! {
    /// Buffers of [`crate::Kernel::Conv`].
    pub struct Conv {
        /// The first input.
        first: Read Real4,
        /// The second input, or any map if there is none.
        second: Read Real4,
        /// The bias.
        bias: Read F32x4,
        /// A map that is added to the output, or any map if there is none.
        residual: Read Real4,
        /// The output.
        y: ReadWrite Real4,
        /// `[tap, input channel, output block]`.
        weights: Read Weight4,
        ;
        /// The scales of the output channels, for the formats of [`crate::Weights`] that have any.
        scales: Read Scale4,
    }

    /// Buffers of [`crate::Kernel::Moments`].
    pub struct Moments {
        /// The first input.
        first: Read Real4,
        /// The second input, or any map if there is none.
        second: Read Real4,
        /// For each image and block of channels: the mean, then the mean squared distance from it.
        statistics: ReadWrite F32x4,
    }

    /// Buffers of [`crate::Kernel::Normalize`].
    pub struct Normalize {
        /// The first input.
        first: Read Real4,
        /// The second input, or any map if there is none.
        second: Read Real4,
        /// Output of [`crate::Kernel::Moments`].
        statistics: ReadWrite F32x4,
        /// Gain of each channel.
        gain: Read F32,
        /// Offset of each channel.
        offset: Read F32,
        /// The output.
        y: ReadWrite Real4,
    }

    /// Buffers of [`crate::Kernel::Attention`] and [`crate::Kernel::AttentionDirect`].
    pub struct Attention {
        /// Queries: `[image, position, block]`.
        q: Read Real4,
        /// Keys.
        k: Read Real4,
        /// Values.
        v: Read Real4,
        /// For each head, the bias of every distance; any vector if there is none.
        bias: Read F32,
        /// The output: `[image, position, head, block]`.
        y: ReadWrite Real4,
    }

    /// Buffers of `Kernel::LayerNorm`.
    pub struct LayerNorm {
        /// The input.
        x: Read Real4,
        /// Gain of each channel.
        gain: Read F32x4,
        /// Offset of each channel.
        offset: Read F32x4,
        /// The output.
        y: ReadWrite Real4,
    }

    /// Buffers of `Kernel::Pointwise`.
    pub struct Pointwise {
        /// The input.
        x: Read Real4,
        /// The factor, if it is a map.
        factor_map: Read Real4,
        /// The factor, if it is one number per channel.
        factor_vector: Read F32x4,
        /// The term, if it is a map.
        term_map: Read Real4,
        /// The term, if all images share it.
        term_shared: Read F32x4,
        /// The output.
        y: ReadWrite Real4,
    }

    /// Buffers of `Kernel::Copy`.
    pub struct Copy {
        /// The input.
        x: Read Real4,
        /// The output.
        y: ReadWrite Real4,
    }

    /// Buffers of [`crate::Kernel::Pool`].
    pub struct Pool {
        /// The input.
        x: Read Real4,
        /// The output.
        y: ReadWrite Real4,
    }

    /// Buffers of [`crate::Kernel::Advance`].
    pub struct Advance {
        /// Output of the network.
        output: Read Real4,
        /// Fresh noise.
        noise: Read F32x4,
        /// The images.
        image: ReadWrite F32x4,
        /// A second image for each, which a solver keeps.
        memory: ReadWrite F32x4,
        /// Input of the network.
        x: ReadWrite Real4,
    }

    /// Buffers of [`crate::RGBA`].
    pub struct Picture {
        /// The image, four values a pixel.
        image: Read F32x4,
    }
}
