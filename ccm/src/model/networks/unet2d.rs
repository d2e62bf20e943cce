//! diffusers' `UNet2DModel`, the U-Net of its DDPM and consistency models; not conditioned on text. Parameters and
//! options have diffusers' names.

use serde_json::json;

use super::blocks::{Direction, Resnet, TimeScaleShift, pixel_attention};
use super::{Family, SpecError, require, require_below, require_positive, require_range};
use crate::model::graph::{Builder, Graph, Padding, TimestepEmbedding, Value, build};
use crate::model::json::Json;
use crate::model::options::Options;

/// The architecture of a `UNet2DModel`.
#[derive(Debug, Clone, PartialEq)]
pub struct UNet2DSpec {
    /// Channels of the image and of the output: 1 (grey) or 3 (RGB).
    pub in_channels: usize,
    /// Height and width of the image in pixels.
    pub sample_size: [usize; 2],
    /// Channels of each level. Each further level halves the resolution.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks per level of the encoder. The decoder has one more per level.
    pub layers_per_block: usize,
    /// The block type of each level of the encoder.
    pub down_block_types: Vec<DownBlock>,
    /// The block type of each level of the decoder, smallest maps first.
    pub up_block_types: Vec<UpBlock>,
    /// How encoder blocks with attention change the resolution.
    pub downsample_type: Resample,
    /// How decoder blocks with attention change the resolution.
    pub upsample_type: Resample,
    /// Whether there is a middle block.
    pub mid_block: bool,
    /// Whether the middle block has attention.
    pub add_attention: bool,
    /// Divisor of the residual sums in the middle block.
    pub mid_block_scale_factor: f32,
    /// Zero padding of the convolutions that halve the resolution: 1 for both sides, 0 for the end only.
    pub downsample_padding: usize,
    /// Channels per attention head; a single head if not given.
    pub attention_head_dim: Option<usize>,
    /// Number of groups of the group norms.
    pub norm_num_groups: usize,
    /// Number of groups of the norm before the middle block's attention, if different.
    pub attn_norm_num_groups: Option<usize>,
    /// Added to the variance in group norms.
    pub norm_eps: f32,
    /// How the embedding of time and label conditions a residual block.
    pub resnet_time_scale_shift: TimeScaleShift,
    /// Cosines before sines in the time embedding.
    pub flip_sin_to_cos: bool,
    /// Subtracted from the number of frequencies in the exponents of the time embedding.
    pub freq_shift: f32,
    /// Channels of the embedding of time and label; by default four times the channels of the first level.
    pub time_embedding_dim: Option<usize>,
    /// Number of classes; `None` for an unconditional model.
    pub num_class_embeds: Option<usize>,
    /// Dropout probability in training, in `[0, 1)`.
    pub dropout: f64,
}

/// A block of the encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DownBlock {
    /// Residual blocks, then a strided convolution.
    DownBlock2D,
    /// The same with attention after each residual block.
    AttnDownBlock2D,
    /// Residual blocks; the last one pools.
    ResnetDownsampleBlock2D,
}

/// A block of the decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpBlock {
    /// Residual blocks, then upsampling and a convolution.
    UpBlock2D,
    /// The same with attention after each residual block.
    AttnUpBlock2D,
    /// Residual blocks; the last one upsamples.
    ResnetUpsampleBlock2D,
}

const DOWN_BLOCKS: [DownBlock; 3] =
    [DownBlock::DownBlock2D, DownBlock::AttnDownBlock2D, DownBlock::ResnetDownsampleBlock2D];
/// Names of [`DOWN_BLOCKS`].
const DOWN_NAMES: [&str; 3] = ["DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"];

const UP_BLOCKS: [UpBlock; 3] = [UpBlock::UpBlock2D, UpBlock::AttnUpBlock2D, UpBlock::ResnetUpsampleBlock2D];
/// Names of [`UP_BLOCKS`].
const UP_NAMES: [&str; 3] = ["UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"];

/// How a block changes the resolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resample {
    /// By a convolution.
    Conv,
    /// Inside a residual block.
    Resnet,
}

impl Family for UNet2DSpec {
    fn validate(&self) -> Result<(), SpecError> {
        let levels = self.block_out_channels.len();
        require(
            (1..=8).contains(&levels),
            "block_out_channels",
            format_args!("expected 1 to 8 levels, found {levels}"),
        )?;
        for (field, found) in
            [("down_block_types", self.down_block_types.len()), ("up_block_types", self.up_block_types.len())]
        {
            require(found == levels, field, format_args!("expected {levels} blocks, found {found}"))?;
        }
        require(
            matches!(self.in_channels, 1 | 3),
            "in_channels",
            format_args!("expected 1 (grey) or 3 (RGB), found {}", self.in_channels),
        )?;
        let divisor = 1 << (levels - 1);
        for size in self.sample_size {
            require(
                (4..=1024).contains(&size) && size % divisor == 0,
                "sample_size",
                format_args!(
                    "expected 4 to 1024 pixels, divisible by {divisor} for {levels} levels, found {size}"
                ),
            )?;
        }
        require_range("layers_per_block", self.layers_per_block, 1..=16)?;
        require(
            matches!(self.downsample_padding, 0 | 1),
            "downsample_padding",
            format_args!("expected 0 or 1, found {}", self.downsample_padding),
        )?;
        let groups = [Some(self.norm_num_groups), self.attn_norm_num_groups];
        for &channels in &self.block_out_channels {
            require(
                (4..=8192).contains(&channels) && channels % 4 == 0,
                "block_out_channels",
                format_args!("expected multiples of 4 up to 8192, found {channels}"),
            )?;
            for groups in groups.into_iter().flatten() {
                require(
                    groups > 0 && channels % groups == 0,
                    "norm_num_groups",
                    format_args!("expected a divisor of {channels} channels, found {groups}"),
                )?;
            }
            if let Some(width) = self.attention_head_dim {
                require(
                    width > 0 && channels % width == 0,
                    "attention_head_dim",
                    format_args!("expected a divisor of {channels} channels, found {width}"),
                )?;
            }
        }
        require(
            self.block_out_channels[0].is_multiple_of(2),
            "block_out_channels",
            format_args!("expected an even number of channels in the first level"),
        )?;
        require_positive("mid_block_scale_factor", self.mid_block_scale_factor)?;
        require_positive("norm_eps", self.norm_eps)?;
        let half = self.block_out_channels[0] as f64 / 2.0;
        require_below("freq_shift", self.freq_shift.into(), half)?;
        require_below("dropout", self.dropout, 1.0)?;
        require_range("time_embedding_dim", self.time_embedding_dim.unwrap_or(1), 1..=32_768)?;
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

    fn dropout(&self) -> f64 {
        self.dropout
    }
}

impl UNet2DSpec {
    /// Parses diffusers' `config.json`. Absent options have diffusers' defaults.
    ///
    /// # Errors
    /// If an option is not supported (by name).
    pub fn from_config(config: &Json) -> Result<Self, SpecError> {
        let options = Options::new(config);
        let refuse = |key, expected: &str| options.refuse(key, expected);
        // Options that are supported with one value only.
        for (key, supported) in [
            ("time_embedding_type", &["positional"][..]),
            ("act_fn", &["silu", "swish"]),
            ("class_embed_type", &[]),
        ] {
            if options.text(key).is_some_and(|found| !supported.contains(&found)) {
                refuse(key, supported.first().unwrap_or(&"null"));
            }
        }
        if options.flag("center_input_sample") == Some(true) {
            refuse("center_input_sample", "false");
        }
        let in_channels = options.count("in_channels").unwrap_or(3);
        if options.count("out_channels").unwrap_or(3) != in_channels {
            refuse("out_channels", "as many as in_channels");
        }
        // Used by diffusers only for learned time embeddings; read here so that it is not reported as unsupported.
        options.get("num_train_timesteps");
        let resample = |key| match options.text(key) {
            None | Some("conv") => Resample::Conv,
            Some("resnet") => Resample::Resnet,
            Some(_) => {
                refuse(key, "conv or resnet");
                Resample::Conv
            }
        };
        let down = options.names("down_block_types", &DOWN_NAMES).unwrap_or_else(|| vec![0, 1, 1, 1]);
        let up = options.names("up_block_types", &UP_NAMES).unwrap_or_else(|| vec![1, 1, 1, 0]);
        let (side, sides) = (config.get("sample_size"), config.get("sample_size").and_then(Json::list));
        let sample_size = match (side.and_then(Json::count), sides) {
            (Some(side), _) => Some([side, side]),
            (None, Some([height, width])) => height.count().zip(width.count()).map(<[usize; 2]>::from),
            _ => None,
        };
        if options.get("sample_size").is_none() || sample_size.is_none() {
            refuse("sample_size", "a size in pixels");
        }
        // An absent key means the default, null means none.
        let or = |key, usual: Option<usize>| if options.has(key) { options.count(key) } else { usual };
        let norm_num_groups = or("norm_num_groups", Some(32));
        let spec = Self {
            in_channels,
            sample_size: sample_size.unwrap_or_default(),
            block_out_channels: options
                .counts("block_out_channels")
                .unwrap_or_else(|| vec![224, 448, 672, 896]),
            layers_per_block: options.count("layers_per_block").unwrap_or(2),
            down_block_types: down.into_iter().map(|place| DOWN_BLOCKS[place]).collect(),
            up_block_types: up.into_iter().map(|place| UP_BLOCKS[place]).collect(),
            downsample_type: resample("downsample_type"),
            upsample_type: resample("upsample_type"),
            mid_block: config.get("mid_block_type") != Some(&Json::Null),
            add_attention: options.flag("add_attention").unwrap_or(true),
            mid_block_scale_factor: options.number("mid_block_scale_factor").unwrap_or(1.0) as f32,
            downsample_padding: options.count("downsample_padding").unwrap_or(1),
            attention_head_dim: or("attention_head_dim", Some(8)),
            norm_num_groups: options.needed("norm_num_groups", norm_num_groups),
            attn_norm_num_groups: options.count("attn_norm_num_groups"),
            norm_eps: options.number("norm_eps").unwrap_or(1e-5) as f32,
            resnet_time_scale_shift: match options.text("resnet_time_scale_shift") {
                Some("scale_shift") => TimeScaleShift::ScaleShift,
                None | Some("default") => TimeScaleShift::Default,
                Some(_) => {
                    refuse("resnet_time_scale_shift", "default or scale_shift");
                    TimeScaleShift::Default
                }
            },
            flip_sin_to_cos: options.flag("flip_sin_to_cos").unwrap_or(true),
            freq_shift: options.number("freq_shift").unwrap_or(0.0) as f32,
            time_embedding_dim: options.count("time_embedding_dim"),
            num_class_embeds: options.count("num_class_embeds"),
            dropout: options.number("dropout").unwrap_or(0.0),
        };
        options.get("mid_block_type");
        options.finish()?;
        Ok(spec)
    }

    /// Converts to diffusers' `config.json`, which [`UNet2DSpec::from_config`] reads back.
    pub fn to_config(&self) -> serde_json::Value {
        fn names<T: PartialEq>(known: &[T], names: &[&'static str], kinds: &[T]) -> Vec<&'static str> {
            let place = |kind: &T| known.iter().position(|known| known == kind);
            kinds.iter().filter_map(place).map(|place| names[place]).collect()
        }
        let resample = |kind| if kind == Resample::Conv { "conv" } else { "resnet" };
        let [height, width] = self.sample_size;
        // Keeps the shortest decimal form of an `f32`.
        let digits = |value: f32| value.to_string().parse::<f64>().unwrap_or(value.into());
        json!({
            "_class_name": "UNet2DModel",
            "act_fn": "silu",
            "add_attention": self.add_attention,
            "attention_head_dim": self.attention_head_dim,
            "attn_norm_num_groups": self.attn_norm_num_groups,
            "block_out_channels": self.block_out_channels,
            "down_block_types": names(&DOWN_BLOCKS, &DOWN_NAMES, &self.down_block_types),
            "downsample_padding": self.downsample_padding,
            "downsample_type": resample(self.downsample_type),
            "dropout": self.dropout,
            "flip_sin_to_cos": self.flip_sin_to_cos,
            "freq_shift": digits(self.freq_shift),
            "in_channels": self.in_channels,
            "layers_per_block": self.layers_per_block,
            "mid_block_scale_factor": digits(self.mid_block_scale_factor),
            "mid_block_type": self.mid_block.then_some("UNetMidBlock2D"),
            "norm_eps": digits(self.norm_eps),
            "norm_num_groups": self.norm_num_groups,
            "num_class_embeds": self.num_class_embeds,
            "out_channels": self.in_channels,
            "resnet_time_scale_shift": match self.resnet_time_scale_shift {
                TimeScaleShift::Default => "default",
                TimeScaleShift::ScaleShift => "scale_shift",
            },
            "sample_size": if height == width { json!(height) } else { json!([height, width]) },
            "time_embedding_dim": self.time_embedding_dim,
            "time_embedding_type": "positional",
            "up_block_types": names(&UP_BLOCKS, &UP_NAMES, &self.up_block_types),
            "upsample_type": resample(self.upsample_type),
        })
    }

    fn network(&self, g: &Builder) -> Value {
        let channels = &self.block_out_channels;
        let [height, width] = self.sample_size;
        let time = TimestepEmbedding {
            channels: channels[0],
            cosines_first: self.flip_sin_to_cos,
            freq_shift: self.freq_shift,
        };
        let embed_channels = self.time_embedding_dim.unwrap_or(4 * channels[0]);
        let embed = g.linear("time_embedding.linear_1", g.timestep_embedding(time), embed_channels);
        let mut embed = g.linear("time_embedding.linear_2", g.silu(embed), embed_channels);
        if let Some(classes) = self.num_class_embeds {
            embed = g.add(embed, g.label_embedding("class_embedding", classes, embed_channels));
        }
        // Every residual block applies SiLU to the embedding first; it is computed once.
        let embed = g.silu(embed);

        let mut h = g.conv("conv_in", g.image([self.in_channels, height, width]), channels[0], 3);
        let mut skips = vec![h];
        for (level, (&out_channels, kind)) in channels.iter().zip(&self.down_block_types).enumerate() {
            let g = g.at(format!("down_blocks.{level}"));
            for layer in 0..self.layers_per_block {
                h = self.resnet(&g.at(format!("resnets.{layer}")), h, embed, out_channels, None, 1.0);
                if *kind == DownBlock::AttnDownBlock2D {
                    h = self.attention(
                        &g.at(format!("attentions.{layer}")),
                        h,
                        Some(self.norm_num_groups),
                        1.0,
                    );
                }
                skips.push(h);
            }
            g.feature(h);
            if level + 1 < channels.len() {
                let resample = match kind {
                    DownBlock::DownBlock2D => Resample::Conv,
                    DownBlock::AttnDownBlock2D => self.downsample_type,
                    DownBlock::ResnetDownsampleBlock2D => Resample::Resnet,
                };
                h = self.downsample(&g.at("downsamplers.0"), h, embed, resample);
                skips.push(h);
            }
        }
        if self.mid_block {
            h = self.middle(&g.at("mid_block"), h, embed);
        }
        g.feature(h);
        for (block, kind) in self.up_block_types.iter().enumerate() {
            let g = g.at(format!("up_blocks.{block}"));
            let level = channels.len() - 1 - block;
            for layer in 0..=self.layers_per_block {
                let skip = skips.remove(skips.len() - 1);
                let x = g.concat(h, skip);
                h = self.resnet(&g.at(format!("resnets.{layer}")), x, embed, channels[level], None, 1.0);
                if *kind == UpBlock::AttnUpBlock2D {
                    h = self.attention(
                        &g.at(format!("attentions.{layer}")),
                        h,
                        Some(self.norm_num_groups),
                        1.0,
                    );
                }
            }
            if level > 0 {
                let resample = match kind {
                    UpBlock::UpBlock2D => Resample::Conv,
                    UpBlock::AttnUpBlock2D => self.upsample_type,
                    UpBlock::ResnetUpsampleBlock2D => Resample::Resnet,
                };
                h = self.upsample(&g.at("upsamplers.0"), h, embed, resample);
            }
        }
        g.conv("conv_out", g.silu(self.norm(g, "conv_norm_out", h)), self.in_channels, 3)
    }

    fn norm(&self, g: &Builder, name: &str, x: Value) -> Value {
        g.group_norm(name, x, self.norm_num_groups, self.norm_eps)
    }

    /// `ResnetBlock2D`.
    fn resnet(
        &self,
        g: &Builder,
        x: Value,
        embed: Value,
        out_channels: usize,
        resample: Option<Direction>,
        scale_factor: f32,
    ) -> Value {
        let block = Resnet {
            groups: self.norm_num_groups,
            epsilon: self.norm_eps,
            time_scale_shift: self.resnet_time_scale_shift,
            dropout: self.dropout,
            scale_factor,
            resample,
        };
        block.build(g, x, Some(embed), out_channels)
    }

    /// `Attention` over the pixels of a map, with a residual connection.
    fn attention(&self, g: &Builder, x: Value, groups: Option<usize>, scale_factor: f32) -> Value {
        let norm = groups.map(|groups| (groups, self.norm_eps));
        let heads = self.attention_head_dim.map_or(1, |width| g.channels(x) / width);
        pixel_attention(g, x, norm, heads, scale_factor)
    }

    fn downsample(&self, g: &Builder, x: Value, embed: Value, resample: Resample) -> Value {
        let channels = g.channels(x);
        let padding = if self.downsample_padding == 1 { Padding::Around } else { Padding::End };
        match resample {
            Resample::Conv => g.strided_conv("conv", x, channels, padding),
            Resample::Resnet => self.resnet(g, x, embed, channels, Some(Direction::Down), 1.0),
        }
    }

    fn upsample(&self, g: &Builder, x: Value, embed: Value, resample: Resample) -> Value {
        let channels = g.channels(x);
        match resample {
            Resample::Conv => g.conv("conv", g.upsample(x), channels, 3),
            Resample::Resnet => self.resnet(g, x, embed, channels, Some(Direction::Up), 1.0),
        }
    }

    fn middle(&self, g: &Builder, x: Value, embed: Value) -> Value {
        let (channels, factor) = (g.channels(x), self.mid_block_scale_factor);
        let mut h = self.resnet(&g.at("resnets.0"), x, embed, channels, None, factor);
        if self.add_attention {
            let groups = match self.resnet_time_scale_shift {
                TimeScaleShift::Default => Some(self.attn_norm_num_groups.unwrap_or(self.norm_num_groups)),
                TimeScaleShift::ScaleShift => self.attn_norm_num_groups,
            };
            h = self.attention(&g.at("attentions.0"), h, groups, factor);
        }
        self.resnet(&g.at("resnets.1"), h, embed, channels, None, factor)
    }
}
