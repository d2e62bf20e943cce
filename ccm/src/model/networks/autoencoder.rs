//! diffusers' autoencoders between pixels and latents: `AutoencoderKL` (arXiv 2112.10752) and `AutoencoderTiny`. Parameters
//! and options have diffusers' names.

use super::blocks::{Resnet, TimeScaleShift, pixel_attention};
use super::{Decimal, SpecError, require, require_positive, require_range};
use crate::model::graph::{Activation, Builder, Graph, Padding, Value, build};
use crate::model::json::Json;
use crate::model::options::Options;

/// Epsilon of the norms of `AutoencoderKL`.
const EPSILON: f32 = 1e-6;

/// The architecture of an autoencoder.
#[derive(Debug, Clone, PartialEq)]
pub enum AutoencoderSpec {
    /// `AutoencoderKL`.
    Kl(AutoencoderKlSpec),
    /// `AutoencoderTiny`.
    Tiny(AutoencoderTinySpec),
}

/// The architecture of an `AutoencoderKL`.
#[derive(Debug, Clone, PartialEq)]
pub struct AutoencoderKlSpec {
    /// Channels of the images.
    pub in_channels: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Channels of each level, largest maps first. Each further level halves the resolution.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks per level of the encoder. The decoder has one more per level.
    pub layers_per_block: usize,
    /// Number of groups of the norms.
    pub norm_num_groups: usize,
    /// Whether the middle blocks have attention.
    pub mid_block_add_attention: bool,
    /// Whether a 1x1 convolution follows the encoder.
    pub use_quant_conv: bool,
    /// Whether a 1x1 convolution precedes the decoder.
    pub use_post_quant_conv: bool,
    /// Multiplies latents, after the shift.
    pub scaling_factor: f32,
    /// Is subtracted from latents.
    pub shift_factor: f32,
    /// Whether feature maps can exceed the range of half precision, so that they are computed in single precision. False if the
    /// option is absent, unlike in diffusers, where only the pipelines of Stable Diffusion XL read it.
    pub force_upcast: bool,
}

/// The architecture of an `AutoencoderTiny`.
#[derive(Debug, Clone, PartialEq)]
pub struct AutoencoderTinySpec {
    /// Channels of the images.
    pub in_channels: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Channels of every map.
    pub channels: usize,
    /// Blocks of each level of the encoder, largest maps first.
    pub num_encoder_blocks: Vec<usize>,
    /// Blocks of each level of the decoder, smallest maps first.
    pub num_decoder_blocks: Vec<usize>,
    /// The activation: ReLU, SiLU or GELU.
    pub activation: Activation,
    /// Multiplies latents, after the shift.
    pub scaling_factor: f32,
    /// Is subtracted from latents.
    pub shift_factor: f32,
}

impl AutoencoderSpec {
    /// Parses diffusers' `config.json`. Absent options have diffusers' defaults.
    ///
    /// # Errors
    /// If the class or an option is not supported (by name), or an option is out of range.
    pub fn from_config(config: &Json) -> Result<Self, SpecError> {
        let options = Options::new(config);
        let spec = match config.get("_class_name").and_then(Json::text) {
            None | Some("AutoencoderKL") => Self::Kl(AutoencoderKlSpec::read(&options)),
            Some("AutoencoderTiny") => Self::Tiny(AutoencoderTinySpec::read(&options)),
            Some(_) => {
                options.refuse("_class_name", "AutoencoderKL or AutoencoderTiny");
                return Err(options.finish_some().err().unwrap_or_else(|| SpecError {
                    field: "_class_name".into(),
                    reason: "expected AutoencoderKL or AutoencoderTiny".into(),
                }));
            }
        };
        options.finish()?;
        spec.validate()?;
        Ok(spec)
    }

    /// Channels of the images.
    pub fn image_channels(&self) -> usize {
        match self {
            Self::Kl(spec) => spec.in_channels,
            Self::Tiny(spec) => spec.in_channels,
        }
    }

    /// Channels of the latents.
    pub fn latent_channels(&self) -> usize {
        match self {
            Self::Kl(spec) => spec.latent_channels,
            Self::Tiny(spec) => spec.latent_channels,
        }
    }

    /// Side of the square of pixels for one position of the latents.
    pub fn reduction(&self) -> usize {
        1 << (match self {
            Self::Kl(spec) => spec.block_out_channels.len(),
            Self::Tiny(spec) => spec.num_decoder_blocks.len(),
        } - 1)
    }

    fn validate(&self) -> Result<(), SpecError> {
        let in_range = |field, found, most| require_range(field, found, 1..=most);
        let finite = |field, value: f32| {
            require(value.is_finite(), field, format_args!("expected a number, found {}", Decimal(value)))
        };
        require(
            matches!(self.image_channels(), 1 | 3),
            "in_channels",
            format_args!("expected 1 (grey) or 3 (RGB), found {}", self.image_channels()),
        )?;
        in_range("latent_channels", self.latent_channels(), 256)?;
        match self {
            Self::Kl(spec) => {
                in_range("block_out_channels", spec.block_out_channels.len(), 8)?;
                in_range("layers_per_block", spec.layers_per_block, 16)?;
                in_range("norm_num_groups", spec.norm_num_groups, 1024)?;
                for &channels in &spec.block_out_channels {
                    require(
                        (4..=16_384).contains(&channels)
                            && channels % 4 == 0
                            && channels % spec.norm_num_groups == 0,
                        "block_out_channels",
                        format_args!("expected multiples of 4 and of norm_num_groups, found {channels}"),
                    )?;
                }
                require_positive("scaling_factor", spec.scaling_factor)?;
                finite("shift_factor", spec.shift_factor)
            }
            Self::Tiny(spec) => {
                in_range("num_encoder_blocks", spec.num_encoder_blocks.len(), 8)?;
                in_range("num_decoder_blocks", spec.num_decoder_blocks.len(), 8)?;
                require(
                    spec.num_encoder_blocks.len() == spec.num_decoder_blocks.len(),
                    "num_decoder_blocks",
                    format_args!("expected as many levels as in num_encoder_blocks"),
                )?;
                for &blocks in spec.num_encoder_blocks.iter().chain(&spec.num_decoder_blocks) {
                    require(
                        blocks <= 64,
                        "num_decoder_blocks",
                        format_args!("expected up to 64, found {blocks}"),
                    )?;
                }
                require(
                    (4..=16_384).contains(&spec.channels) && spec.channels % 4 == 0,
                    "block_out_channels",
                    format_args!("expected a multiple of 4 up to 16384, found {}", spec.channels),
                )?;
                require_positive("scaling_factor", spec.scaling_factor)?;
                finite("shift_factor", spec.shift_factor)
            }
        }
    }

    /// Builds the encoder, from pixels in [-1, 1] to scaled latents (the mean of their distribution), for images of this
    /// height and width, multiples of [`AutoencoderSpec::reduction`].
    pub fn encoder(&self, size: [usize; 2]) -> Graph {
        build(|g| match self {
            Self::Kl(spec) => spec.encoder(g, size),
            Self::Tiny(spec) => spec.encoder(g, size),
        })
    }

    /// Builds the decoder, from scaled latents of this height and width to pixels in [-1, 1].
    pub fn decoder(&self, size: [usize; 2]) -> Graph {
        build(|g| match self {
            Self::Kl(spec) => spec.decoder(g, size),
            Self::Tiny(spec) => spec.decoder(g, size),
        })
    }
}

/// `(x - shift) * scaling`.
fn scaled(g: &Builder, x: Value, scaling: f32, shift: f32) -> Value {
    g.scale(x, scaling, -shift * scaling)
}

/// `x / scaling + shift`.
fn unscaled(g: &Builder, x: Value, scaling: f32, shift: f32) -> Value {
    g.scale(x, 1.0 / scaling, shift)
}

impl AutoencoderKlSpec {
    fn read(options: &Options) -> Self {
        options.one_of("act_fn", &["silu", "swish"]);
        for key in ["latents_mean", "latents_std"] {
            options.only_null(key);
        }
        // It changes something with tiles only.
        options.get("sample_size");
        let in_channels = options.count("in_channels").unwrap_or(3);
        if options.count("out_channels").unwrap_or(3) != in_channels {
            options.refuse("out_channels", "as many as in_channels");
        }
        options.names("down_block_types", &["DownEncoderBlock2D"]);
        options.names("up_block_types", &["UpDecoderBlock2D"]);
        Self {
            in_channels,
            latent_channels: options.count("latent_channels").unwrap_or(4),
            block_out_channels: options.counts("block_out_channels").unwrap_or_else(|| vec![64]),
            layers_per_block: options.count("layers_per_block").unwrap_or(1),
            norm_num_groups: options.count("norm_num_groups").unwrap_or(32),
            mid_block_add_attention: options.flag("mid_block_add_attention").unwrap_or(true),
            use_quant_conv: options.flag("use_quant_conv").unwrap_or(true),
            use_post_quant_conv: options.flag("use_post_quant_conv").unwrap_or(true),
            scaling_factor: options.number("scaling_factor").unwrap_or(0.18215) as f32,
            shift_factor: options.number("shift_factor").unwrap_or(0.0) as f32,
            force_upcast: options.flag("force_upcast").unwrap_or(false),
        }
    }

    fn resnet(&self, g: &Builder, x: Value, channels: usize) -> Value {
        let block = Resnet {
            groups: self.norm_num_groups,
            epsilon: EPSILON,
            time_scale_shift: TimeScaleShift::Default,
            dropout: 0.0,
            scale_factor: 1.0,
            resample: None,
        };
        block.build(g, x, None, channels)
    }

    fn middle(&self, g: &Builder, x: Value) -> Value {
        let channels = g.channels(x);
        let mut h = self.resnet(&g.at("resnets.0"), x, channels);
        if self.mid_block_add_attention {
            h = pixel_attention(&g.at("attentions.0"), h, Some((self.norm_num_groups, EPSILON)), 1, 1.0);
        }
        self.resnet(&g.at("resnets.1"), h, channels)
    }

    fn norm_out(&self, g: &Builder, x: Value) -> Value {
        g.silu(g.group_norm("conv_norm_out", x, self.norm_num_groups, EPSILON))
    }

    fn encoder(&self, g: &Builder, [height, width]: [usize; 2]) -> Value {
        let outer = g;
        let g = &outer.at("encoder");
        let channels = &self.block_out_channels;
        let mut h = g.conv("conv_in", g.image([self.in_channels, height, width]), channels[0], 3);
        for (level, &width) in channels.iter().enumerate() {
            let g = g.at(format!("down_blocks.{level}"));
            for layer in 0..self.layers_per_block {
                h = self.resnet(&g.at(format!("resnets.{layer}")), h, width);
            }
            if level + 1 < channels.len() {
                h = g.strided_conv("downsamplers.0.conv", h, width, Padding::End);
            }
        }
        h = self.norm_out(g, self.middle(&g.at("mid_block"), h));
        h = g.conv("conv_out", h, 2 * self.latent_channels, 3);
        if self.use_quant_conv {
            h = outer.conv("quant_conv", h, 2 * self.latent_channels, 1);
        }
        let [mean, _] = outer.chunk(h);
        scaled(outer, mean, self.scaling_factor, self.shift_factor)
    }

    fn decoder(&self, g: &Builder, [height, width]: [usize; 2]) -> Value {
        let latents = g.image([self.latent_channels, height, width]);
        let mut h = unscaled(g, latents, self.scaling_factor, self.shift_factor);
        if self.use_post_quant_conv {
            h = g.conv("post_quant_conv", h, self.latent_channels, 1);
        }
        let g = &g.at("decoder");
        let channels = &self.block_out_channels;
        h = g.conv("conv_in", h, channels[channels.len() - 1], 3);
        h = self.middle(&g.at("mid_block"), h);
        for (block, &width) in channels.iter().rev().enumerate() {
            let g = g.at(format!("up_blocks.{block}"));
            for layer in 0..=self.layers_per_block {
                h = self.resnet(&g.at(format!("resnets.{layer}")), h, width);
            }
            if block + 1 < channels.len() {
                h = g.conv("upsamplers.0.conv", g.upsample(h), width, 3);
            }
        }
        g.conv("conv_out", self.norm_out(g, h), self.in_channels, 3)
    }
}

impl AutoencoderTinySpec {
    fn read(options: &Options) -> Self {
        let in_channels = options.count("in_channels").unwrap_or(3);
        if options.count("out_channels").unwrap_or(3) != in_channels {
            options.refuse("out_channels", "as many as in_channels");
        }
        options.one_of("upsample_fn", &["nearest"]);
        if options.count("upsampling_scaling_factor").unwrap_or(2) != 2 {
            options.refuse("upsampling_scaling_factor", "2");
        }
        // They only convert latents to bytes and back, or change nothing in single precision.
        for key in ["latent_magnitude", "latent_shift", "force_upcast"] {
            options.get(key);
        }
        let mut channels = None;
        for key in ["encoder_block_out_channels", "decoder_block_out_channels", "block_out_channels"] {
            for count in options.counts(key).unwrap_or_default() {
                if *channels.get_or_insert(count) != count {
                    options.refuse(key, "the same number of channels in all levels");
                }
            }
        }
        let activation = match options.text("act_fn") {
            None | Some("relu") => Activation::Relu,
            Some("silu" | "swish") => Activation::Silu,
            Some("gelu") => Activation::Gelu,
            Some(_) => {
                options.refuse("act_fn", "relu, silu or gelu");
                Activation::Relu
            }
        };
        Self {
            in_channels,
            latent_channels: options.count("latent_channels").unwrap_or(4),
            channels: channels.unwrap_or(64),
            num_encoder_blocks: options.counts("num_encoder_blocks").unwrap_or_else(|| vec![1, 3, 3, 3]),
            num_decoder_blocks: options.counts("num_decoder_blocks").unwrap_or_else(|| vec![3, 3, 3, 1]),
            activation,
            scaling_factor: options.number("scaling_factor").unwrap_or(1.0) as f32,
            shift_factor: options.number("shift_factor").unwrap_or(0.0) as f32,
        }
    }

    /// `AutoencoderTinyBlock`.
    fn block(&self, g: &Builder, x: Value) -> Value {
        let conv = |place: usize, x: Value| g.conv(&format!("conv.{place}"), x, self.channels, 3);
        let h = g.activate(conv(0, x), self.activation);
        let h = conv(4, g.activate(conv(2, h), self.activation));
        // The block ends in a ReLU, whatever the activation.
        g.activate(g.add(x, h), Activation::Relu)
    }

    fn encoder(&self, g: &Builder, [height, width]: [usize; 2]) -> Value {
        let image = g.image([self.in_channels, height, width]);
        let outer = g;
        let g = &outer.at("encoder.layers");
        // From [-1, 1] to [0, 1].
        let mut h = g.scale(image, 0.5, 0.5);
        let mut layer = 0;
        for (level, &blocks) in self.num_encoder_blocks.iter().enumerate() {
            h = match level {
                0 => g.conv(&layer.to_string(), h, self.channels, 3),
                _ => g.strided_conv_without_bias(&layer.to_string(), h, self.channels),
            };
            layer += 1;
            for _ in 0..blocks {
                h = self.block(&g.at(layer), h);
                layer += 1;
            }
        }
        let latents = g.conv(&layer.to_string(), h, self.latent_channels, 3);
        scaled(outer, latents, self.scaling_factor, self.shift_factor)
    }

    fn decoder(&self, g: &Builder, [height, width]: [usize; 2]) -> Value {
        let latents = g.image([self.latent_channels, height, width]);
        let latents = unscaled(g, latents, self.scaling_factor, self.shift_factor);
        let g = &g.at("decoder.layers");
        // Clamps latents smoothly to [-3, 3].
        let h = g.scale(g.activate(g.scale(latents, 1.0 / 3.0, 0.0), Activation::Tanh), 3.0, 0.0);
        let mut h = g.activate(g.conv("0", h, self.channels, 3), self.activation);
        let mut layer = 2;
        for (level, &blocks) in self.num_decoder_blocks.iter().enumerate() {
            for _ in 0..blocks {
                h = self.block(&g.at(layer), h);
                layer += 1;
            }
            if level + 1 < self.num_decoder_blocks.len() {
                h = g.conv_without_bias(&(layer + 1).to_string(), g.upsample(h), self.channels, 3);
                layer += 2;
            }
        }
        // From [0, 1] to [-1, 1].
        g.scale(g.conv(&layer.to_string(), h, self.in_channels, 3), 2.0, -1.0)
    }
}
