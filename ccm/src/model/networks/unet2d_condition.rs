//! diffusers' `UNet2DConditionModel`, the U-Net of Stable Diffusion 1, 2 (arXiv 2112.10752) and XL (arXiv 2307.01952):
//! residual blocks and transformers that attend to a text. Parameters and options have diffusers' names.

mod config;

use super::blocks::{Resnet, TimeScaleShift};
use super::text_encoder::{ClipLayer, ClipSpec};
use super::{Family, SpecError, TextShape, require, require_below, require_positive, require_range};
use crate::model::graph::{Activation, Builder, Graph, Padding, TimestepEmbedding, Value, build};

/// Epsilon of the group norm before a transformer.
const TRANSFORMER_EPSILON: f32 = 1e-6;
/// Epsilon of the layer norms in a transformer.
const LAYER_EPSILON: f32 = 1e-5;

/// The architecture of a `UNet2DConditionModel`. Lists have one entry for each level, largest maps first.
#[derive(Debug, Clone, PartialEq)]
pub struct UNet2DConditionSpec {
    /// Channels of the latents and of the output.
    pub in_channels: usize,
    /// Height and width of the latents.
    pub sample_size: [usize; 2],
    /// Side of the patches of the input that the first convolution reads as channels, and the last one writes; 1 in diffusers,
    /// which does not store it.
    pub patch_size: usize,
    /// Number of tokens of a text. diffusers does not store it: it is the text encoder's.
    pub tokens: usize,
    /// Channels of each level. Each further level halves the resolution.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of each level of the encoder. The decoder has one more per level.
    pub layers_per_block: Vec<usize>,
    /// Which levels of the encoder have transformers.
    pub down_attention: Vec<bool>,
    /// Which levels of the decoder have transformers, smallest maps first.
    pub up_attention: Vec<bool>,
    /// Whether there is a middle block.
    pub mid_block: bool,
    /// Transformer blocks after each residual block.
    pub transformer_layers_per_block: Vec<usize>,
    /// Heads of the attention.
    pub num_attention_heads: Vec<usize>,
    /// Channels of a token's embedding.
    pub cross_attention_dim: usize,
    /// Whether transformers begin and end with linear layers, otherwise with 1x1 convolutions.
    pub use_linear_projection: bool,
    /// Zero padding of the convolutions that halve the resolution: 1 for both sides, 0 for the end only.
    pub downsample_padding: usize,
    /// Divisor of the residual sums in the middle block.
    pub mid_block_scale_factor: f32,
    /// Number of groups of the group norms.
    pub norm_num_groups: usize,
    /// Added to the variance in the group norms of residual blocks.
    pub norm_eps: f32,
    /// How the embedding of the time conditions a residual block.
    pub resnet_time_scale_shift: TimeScaleShift,
    /// Cosines before sines in the time embedding.
    pub flip_sin_to_cos: bool,
    /// Subtracted from the number of frequencies in the exponents of the time embedding.
    pub freq_shift: f32,
    /// Channels of the embedding of the time; by default four times the channels of the first level.
    pub time_embedding_dim: Option<usize>,
    /// Channels of the embedding of the guidance scale; `None` if the network does not read it.
    pub time_cond_proj_dim: Option<usize>,
    /// The embedding of the whole text and of sizes, of Stable Diffusion XL.
    pub text_time: Option<TextTime>,
    /// Number of classes; `None` for a network that reads no label.
    pub num_class_embeds: Option<usize>,
    /// Dropout probability in training, in `[0, 1)`.
    pub dropout: f64,
    /// A text encoder that is trained with the network, which then reads the ids of tokens. Its parameters' names begin with
    /// `text_encoder.`; diffusers stores it as another network.
    pub text_encoder: Option<ClipSpec>,
}

/// diffusers' `addition_embed_type` `text_time`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextTime {
    /// Channels of the embedding of each of the six sizes.
    pub time_embed_dim: usize,
    /// Channels of the embedding of the whole text and of all sizes together.
    pub input_dim: usize,
}

impl TextTime {
    /// Channels of the embedding of the whole text.
    pub fn pooled_dim(&self) -> usize {
        self.input_dim.saturating_sub(6 * self.time_embed_dim)
    }
}

impl Family for UNet2DConditionSpec {
    fn validate(&self) -> Result<(), SpecError> {
        let levels = self.block_out_channels.len();
        require(
            (1..=8).contains(&levels),
            "block_out_channels",
            format_args!("expected 1 to 8 levels, found {levels}"),
        )?;
        for (field, found) in [
            ("down_block_types", self.down_attention.len()),
            ("up_block_types", self.up_attention.len()),
            ("layers_per_block", self.layers_per_block.len()),
            ("transformer_layers_per_block", self.transformer_layers_per_block.len()),
            ("attention_head_dim", self.num_attention_heads.len()),
        ] {
            require(found == levels, field, format_args!("expected {levels} levels, found {found}"))?;
        }
        let in_range = |field, found, most| require_range(field, found, 1..=most);
        in_range("in_channels", self.in_channels, 256)?;
        in_range("tokens", self.tokens, 4096)?;
        in_range("cross_attention_dim", self.cross_attention_dim, 65_536)?;
        require(
            self.cross_attention_dim.is_multiple_of(4),
            "cross_attention_dim",
            format_args!("expected a multiple of 4, found {}", self.cross_attention_dim),
        )?;
        in_range("norm_num_groups", self.norm_num_groups, 1024)?;
        in_range("patch_size", self.patch_size, 8)?;
        let divisor = self.patch_size << (levels - 1);
        for size in self.sample_size {
            require(
                (1..=1024).contains(&size) && size % divisor == 0,
                "sample_size",
                format_args!("expected up to 1024, divisible by {divisor} for {levels} levels, found {size}"),
            )?;
        }
        if let Some(clip) = &self.text_encoder {
            for (field, found, expected) in [
                ("text_encoder: hidden_size", clip.hidden_size, self.cross_attention_dim),
                ("text_encoder: max_position_embeddings", clip.max_position_embeddings, self.tokens),
            ] {
                require(found == expected, field, format_args!("expected {expected}, found {found}"))?;
            }
        }
        require(
            matches!(self.downsample_padding, 0 | 1),
            "downsample_padding",
            format_args!("expected 0 or 1, found {}", self.downsample_padding),
        )?;
        for (level, &channels) in self.block_out_channels.iter().enumerate() {
            require(
                (4..=16_384).contains(&channels) && channels % 4 == 0 && channels % self.norm_num_groups == 0,
                "block_out_channels",
                format_args!("expected multiples of 4 and of norm_num_groups up to 16384, found {channels}"),
            )?;
            in_range("layers_per_block", self.layers_per_block[level], 16)?;
            in_range("transformer_layers_per_block", self.transformer_layers_per_block[level], 64)?;
            let heads = self.num_attention_heads[level];
            require(
                heads > 0 && channels % heads == 0,
                "attention_head_dim",
                format_args!("expected a divisor of {channels} channels, found {heads}"),
            )?;
        }
        require_positive("mid_block_scale_factor", self.mid_block_scale_factor)?;
        require_positive("norm_eps", self.norm_eps)?;
        let half = self.block_out_channels[0] as f64 / 2.0;
        require_below("freq_shift", self.freq_shift.into(), half)?;
        require_below("dropout", self.dropout, 1.0)?;
        for (field, dim) in
            [("time_embedding_dim", self.time_embedding_dim), ("time_cond_proj_dim", self.time_cond_proj_dim)]
        {
            require(
                dim.is_none_or(|dim| (2..=32_768).contains(&dim) && dim % 2 == 0),
                field,
                format_args!("expected an even number up to 32768, found {}", dim.unwrap_or(0)),
            )?;
        }
        if let Some(of) = self.text_time {
            require(
                (2..=4096).contains(&of.time_embed_dim) && of.time_embed_dim % 2 == 0,
                "addition_time_embed_dim",
                format_args!("expected an even number up to 4096, found {}", of.time_embed_dim),
            )?;
            require(
                (6 * of.time_embed_dim + 1..=65_536).contains(&of.input_dim),
                "projection_class_embeddings_input_dim",
                format_args!("expected more than six times addition_time_embed_dim, found {}", of.input_dim),
            )?;
        }
        require_range("num_class_embeds", self.num_class_embeds.unwrap_or(1), 1..=100_000)
    }

    fn graph(&self) -> Graph {
        build(|g| self.network(g))
    }

    fn image(&self) -> [usize; 3] {
        [self.in_channels, self.sample_size[0], self.sample_size[1]]
    }

    fn num_classes(&self) -> Option<usize> {
        self.num_class_embeds
    }

    fn text(&self) -> Option<TextShape> {
        Some(TextShape {
            tokens: self.tokens,
            channels: if self.text_encoder.is_some() { 1 } else { self.cross_attention_dim },
            pooled: self.text_time.map_or(0, |of| of.pooled_dim()),
            sizes: self.text_time.is_some(),
        })
    }

    fn patch_size(&self) -> usize {
        self.patch_size
    }

    fn dropout(&self) -> f64 {
        self.dropout
    }
}

impl UNet2DConditionSpec {
    fn network(&self, g: &Builder) -> Value {
        let channels = &self.block_out_channels;
        let [height, width] = self.sample_size.map(|size| size / self.patch_size);
        let pixels = self.in_channels * self.patch_size * self.patch_size;
        let text = match &self.text_encoder {
            Some(clip) => clip.network(&g.at("text_encoder"), ClipLayer::Last, false),
            None => g.text(self.cross_attention_dim, self.tokens),
        };
        let embed = self.embedding(g);

        let mut h = g.conv("conv_in", g.image([pixels, height, width]), channels[0], 3);
        let mut skips = vec![h];
        for level in 0..channels.len() {
            let g = g.at(format!("down_blocks.{level}"));
            for layer in 0..self.layers_per_block[level] {
                h = self.resnet(&g.at(format!("resnets.{layer}")), h, embed, channels[level], 1.0);
                if self.down_attention[level] {
                    h = self.transformer(&g.at(format!("attentions.{layer}")), h, text, level);
                }
                skips.push(h);
            }
            g.feature(h);
            if level + 1 < channels.len() {
                let padding = if self.downsample_padding == 1 { Padding::Around } else { Padding::End };
                h = g.strided_conv("downsamplers.0.conv", h, channels[level], padding);
                skips.push(h);
            }
        }
        if self.mid_block {
            let (g, last) = (g.at("mid_block"), channels.len() - 1);
            let factor = self.mid_block_scale_factor;
            h = self.resnet(&g.at("resnets.0"), h, embed, channels[last], factor);
            h = self.transformer(&g.at("attentions.0"), h, text, last);
            h = self.resnet(&g.at("resnets.1"), h, embed, channels[last], factor);
        }
        g.feature(h);
        for (block, &attends) in self.up_attention.iter().enumerate() {
            let g = g.at(format!("up_blocks.{block}"));
            let level = channels.len() - 1 - block;
            for layer in 0..=self.layers_per_block[level] {
                let skip = skips.remove(skips.len() - 1);
                let x = g.concat(h, skip);
                h = self.resnet(&g.at(format!("resnets.{layer}")), x, embed, channels[level], 1.0);
                if attends {
                    h = self.transformer(&g.at(format!("attentions.{layer}")), h, text, level);
                }
            }
            if level > 0 {
                h = g.conv("upsamplers.0.conv", g.upsample(h), channels[level], 3);
            }
        }
        let h = g.silu(g.group_norm("conv_norm_out", h, self.norm_num_groups, self.norm_eps));
        g.conv("conv_out", h, pixels, 3)
    }

    /// The embedding of time, guidance scale, label, text and sizes, after SiLU: every residual block applies it first.
    fn embedding(&self, g: &Builder) -> Value {
        let first = self.block_out_channels[0];
        let channels = self.time_embedding_dim.unwrap_or(4 * first);
        let sinusoids = |channels| TimestepEmbedding {
            channels,
            cosines_first: self.flip_sin_to_cos,
            freq_shift: self.freq_shift,
        };
        let mut time = g.timestep_embedding(sinusoids(first));
        if let Some(dim) = self.time_cond_proj_dim {
            let embedding = TimestepEmbedding { channels: dim, cosines_first: false, freq_shift: 1.0 };
            let guidance = g.sinusoids(g.guidance(), embedding);
            time = g.add(time, g.linear_without_bias("time_embedding.cond_proj", guidance, first));
        }
        let mlp = |name: &str, x: Value| {
            let g = g.at(name);
            g.linear("linear_2", g.silu(g.linear("linear_1", x, channels)), channels)
        };
        let mut embed = mlp("time_embedding", time);
        if let Some(classes) = self.num_class_embeds {
            embed = g.add(embed, g.label_embedding("class_embedding", classes, channels));
        }
        if let Some(of) = self.text_time {
            let sizes = g.sinusoids(g.sizes(), sinusoids(of.time_embed_dim));
            let both = g.concat(g.pooled_text(of.pooled_dim()), sizes);
            embed = g.add(embed, mlp("add_embedding", both));
        }
        g.silu(embed)
    }

    fn resnet(&self, g: &Builder, x: Value, embed: Value, out_channels: usize, scale_factor: f32) -> Value {
        let block = Resnet {
            groups: self.norm_num_groups,
            epsilon: self.norm_eps,
            time_scale_shift: self.resnet_time_scale_shift,
            dropout: self.dropout,
            scale_factor,
            resample: None,
        };
        block.build(g, x, Some(embed), out_channels)
    }

    /// `Transformer2DModel`.
    fn transformer(&self, g: &Builder, x: Value, text: Value, level: usize) -> Value {
        let channels = g.channels(x);
        let heads = self.num_attention_heads[level];
        let project = |name: &str, x: Value| match self.use_linear_projection {
            true => g.linear(name, x, channels),
            false => g.conv(name, x, channels, 1),
        };
        let mut h = project("proj_in", g.group_norm("norm", x, self.norm_num_groups, TRANSFORMER_EPSILON));
        for layer in 0..self.transformer_layers_per_block[level] {
            let g = g.at(format!("transformer_blocks.{layer}"));
            let normed = g.layer_norm("norm1", h, LAYER_EPSILON);
            h = g.add(h, attention(&g.at("attn1"), normed, normed, heads));
            let normed = g.layer_norm("norm2", h, LAYER_EPSILON);
            h = g.add(h, attention(&g.at("attn2"), normed, text, heads));
            let normed = g.layer_norm("norm3", h, LAYER_EPSILON);
            h = g.add(h, feed_forward(&g.at("ff"), normed));
        }
        g.add(x, project("proj_out", h))
    }
}

/// Attention of a map over a map or a text.
fn attention(g: &Builder, x: Value, over: Value, heads: usize) -> Value {
    let channels = g.channels(x);
    let q = g.linear_without_bias("to_q", x, channels);
    let [k, v] = ["to_k", "to_v"].map(|name| g.linear_without_bias(name, over, channels));
    g.linear("to_out.0", g.attention([q, k, v], heads), channels)
}

/// `FeedForward` with GEGLU (arXiv 2002.05202).
fn feed_forward(g: &Builder, x: Value) -> Value {
    let channels = g.channels(x);
    let [h, gate] = g.chunk(g.linear("net.0.proj", x, 8 * channels));
    g.linear("net.2", g.multiply(h, g.activate(gate, Activation::Gelu)), channels)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use crate::model::NetworkSpec;
    use crate::model::json::Json;

    fn parameters(config: &str) -> usize {
        let spec = NetworkSpec::from_config(&Json::parse(config).unwrap()).unwrap();
        spec.validate().unwrap();
        spec.parameters()
    }

    #[test]
    fn published_networks_have_their_number_of_parameters() {
        // As diffusers 0.42.1 counts them.
        let sd15 =
            r#"{"_class_name": "UNet2DConditionModel", "sample_size": 64, "cross_attention_dim": 768}"#;
        assert_eq!(parameters(sd15), 859_520_964);
        let sdxl = r#"{"_class_name": "UNet2DConditionModel", "sample_size": 128,
            "block_out_channels": [320, 640, 1280], "transformer_layers_per_block": [1, 2, 10],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "attention_head_dim": [5, 10, 20], "cross_attention_dim": 2048, "use_linear_projection": true,
            "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816}"#;
        assert_eq!(parameters(sdxl), 2_567_463_684);
    }
}
