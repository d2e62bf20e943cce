//! ADM's U-Net (Dhariwal and Nichol, arXiv 2105.05233), compatible with guided-diffusion, torchcfm and
//! openai/consistency_models. Parameters have guided-diffusion's names.

use serde::{Deserialize, Serialize};

use super::{Decimal, Family, SpecError, require, require_below, require_range};
use crate::model::graph::{Builder, Graph, Padding, QkvOrder, TimestepEmbedding, Value, build};
use crate::model::json::Json;
use crate::model::options::Options;

/// Number of groups of every group norm.
const NORM_GROUPS: usize = 32;

/// Added to the variance in every group norm.
const NORM_EPSILON: f32 = 1e-5;

/// The architecture of a U-Net. Fields have the names of torchcfm and guided-diffusion.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UNetSpec {
    /// Channels of the image, and of the velocity: 1 (grey) or 3 (RGB).
    pub in_channels: usize,
    /// Height of the image in pixels.
    pub height: usize,
    /// Width of the image in pixels.
    pub width: usize,
    /// Base number of channels, even. The channels of every level must be a multiple of 32.
    pub model_channels: usize,
    /// Residual blocks per level of the encoder. The decoder has one more per level.
    pub num_res_blocks: usize,
    /// Channels of each level as a multiple of `model_channels`. Each further level halves the resolution.
    pub channel_mult: Vec<f32>,
    /// Feature map widths, in pixels, at which attention follows every residual block.
    #[serde(default)]
    pub attention_resolutions: Vec<usize>,
    /// Number of attention heads; ignored if `num_head_channels` is given.
    #[serde(default = "one")]
    pub num_heads: usize,
    /// Channels per attention head; overrides `num_heads`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_head_channels: Option<usize>,
    /// Number of attention heads in the decoder; defaults to `num_heads`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_heads_upsample: Option<usize>,
    /// Condition by scale and shift after the second norm, instead of by addition before it.
    #[serde(default)]
    pub use_scale_shift_norm: bool,
    /// Change the resolution inside residual blocks, instead of with convolutions.
    #[serde(default)]
    pub resblock_updown: bool,
    /// Order of the rows of `qkv.weight`: `[3, heads, head_channels]` if true, `[heads, 3, head_channels]` if false.
    #[serde(default)]
    pub use_new_attention_order: bool,
    /// Dropout probability in training, in `[0, 1)`.
    #[serde(default)]
    pub dropout: f64,
    /// Number of classes; `None` for an unconditional model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_classes: Option<usize>,
    /// Side of the patches, 1 to 8 pixels. The first convolution reads the pixels of a patch as channels, and the last
    /// one writes them, so all feature maps are smaller by this factor. Channels are in the order of PyTorch's
    /// `pixel_unshuffle`.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub patch_size: usize,
}

fn one() -> usize {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_one(value: &usize) -> bool {
    *value == 1
}

impl Family for UNetSpec {
    fn validate(&self) -> Result<(), SpecError> {
        let levels = self.channel_mult.len();
        require(
            matches!(self.in_channels, 1 | 3),
            "in_channels",
            format_args!("expected 1 (grey) or 3 (RGB), found {}", self.in_channels),
        )?;
        require(
            (1..=8).contains(&levels),
            "channel_mult",
            format_args!("expected 1 to 8 levels, found {levels}"),
        )?;
        require(
            (1..=8).contains(&self.patch_size),
            "patch_size",
            format_args!("expected 1 to 8 pixels, found {}", self.patch_size),
        )?;
        let divisor = self.patch_size << (levels - 1);
        for (field, size) in [("height", self.height), ("width", self.width)] {
            require(
                (4..=1024).contains(&size) && size % divisor == 0,
                field,
                format_args!(
                    "expected 4 to 1024 pixels, divisible by {divisor} for {levels} levels and patches of {}, found {size}",
                    self.patch_size
                ),
            )?;
        }
        require_range("num_res_blocks", self.num_res_blocks, 1..=16)?;
        require(
            (2..=4096).contains(&self.model_channels) && self.model_channels.is_multiple_of(2),
            "model_channels",
            format_args!("expected an even number from 2 to 4096, found {}", self.model_channels),
        )?;
        for (level, &mult) in self.channel_mult.iter().enumerate() {
            require(
                mult.is_finite() && mult > 0.0 && mult <= 64.0,
                "channel_mult",
                format_args!("expected factors above 0 and at most 64, found {}", Decimal(mult)),
            )?;
            let channels = self.level_channels(level);
            require(
                channels > 0 && channels.is_multiple_of(NORM_GROUPS),
                "channel_mult",
                format_args!(
                    "every level's channels must be a multiple of {NORM_GROUPS} (group norm), found {channels} = {} x {}",
                    self.model_channels,
                    Decimal(mult)
                ),
            )?;
        }
        for &resolution in &self.attention_resolutions {
            if !(0..levels).any(|level| self.level_width(level) == resolution) {
                let widths: Vec<String> =
                    (0..levels).map(|level| self.level_width(level).to_string()).collect();
                let widths = widths.join(", ");
                let reason = format_args!("no feature map is {resolution} wide; the widths are {widths}");
                require(false, "attention_resolutions", reason)?;
            }
        }
        let at_least_one = format_args!("expected at least 1, found 0");
        require(self.num_heads > 0, "num_heads", at_least_one)?;
        require(self.num_heads_upsample != Some(0), "num_heads_upsample", at_least_one)?;
        require(self.num_head_channels != Some(0), "num_head_channels", at_least_one)?;
        require_below("dropout", self.dropout, 1.0)?;
        if let Some(classes) = self.num_classes {
            require(
                (1..=100_000).contains(&classes),
                "num_classes",
                format_args!("expected 1 to 100000, found {classes}"),
            )?;
        }
        for (channels, heads) in self.attention_layers() {
            let field = if self.num_head_channels.is_some() { "num_head_channels" } else { "num_heads" };
            require(
                heads > 0 && channels.is_multiple_of(heads),
                field,
                format_args!("the heads must divide the {channels} channels of an attention layer"),
            )?;
            if let Some(width) = self.num_head_channels {
                require(
                    channels.is_multiple_of(width),
                    field,
                    format_args!("{width} does not divide the {channels} channels of an attention layer"),
                )?;
            }
        }
        Ok(())
    }

    fn graph(&self) -> Graph {
        build(|g| self.network(g))
    }

    fn image(&self) -> [usize; 3] {
        [self.in_channels, self.height, self.width]
    }

    fn num_classes(&self) -> Option<usize> {
        self.num_classes
    }

    fn patch_size(&self) -> usize {
        self.patch_size
    }

    fn dropout(&self) -> f64 {
        self.dropout
    }
}

impl UNetSpec {
    /// Parses a spec from the JSON that serde writes.
    ///
    /// # Errors
    /// If a field is missing, of another type or unknown (by name).
    pub fn from_json(object: &Json) -> Result<Self, SpecError> {
        let options = Options::new(object);
        let size = |key| options.needed(key, options.count(key));
        let flag = |key| options.flag(key).unwrap_or(false);
        let channel_mult = options.numbers("channel_mult");
        let channel_mult = channel_mult.map(|mult| mult.into_iter().map(|mult| mult as f32).collect());
        let spec = Self {
            in_channels: size("in_channels"),
            height: size("height"),
            width: size("width"),
            model_channels: size("model_channels"),
            num_res_blocks: size("num_res_blocks"),
            channel_mult: options.needed("channel_mult", channel_mult),
            attention_resolutions: options.counts("attention_resolutions").unwrap_or_default(),
            num_heads: options.count("num_heads").unwrap_or(1),
            num_head_channels: options.count("num_head_channels"),
            num_heads_upsample: options.count("num_heads_upsample"),
            use_scale_shift_norm: flag("use_scale_shift_norm"),
            resblock_updown: flag("resblock_updown"),
            use_new_attention_order: flag("use_new_attention_order"),
            dropout: options.number("dropout").unwrap_or(0.0),
            num_classes: options.count("num_classes"),
            patch_size: options.count("patch_size").unwrap_or(1),
        };
        options.finish()?;
        Ok(spec)
    }

    /// Channels of the feature maps of a level. Level 0 has the largest maps.
    pub(crate) fn level_channels(&self, level: usize) -> usize {
        (self.channel_mult[level] * self.model_channels as f32) as usize
    }

    /// Width of the feature maps of a level.
    fn level_width(&self, level: usize) -> usize {
        (self.width / self.patch_size) >> level
    }

    fn attends(&self, level: usize) -> bool {
        self.attention_resolutions.contains(&self.level_width(level))
    }

    fn heads(&self, channels: usize, num_heads: usize) -> usize {
        self.num_head_channels.map_or(num_heads, |width| channels / width)
    }

    /// Channels and heads of all possible attention layers.
    fn attention_layers(&self) -> Vec<(usize, usize)> {
        let last = self.channel_mult.len() - 1;
        let levels = (0..=last).filter(|&level| level == last || self.attends(level));
        let numbers = [Some(self.num_heads), self.num_heads_upsample];
        let layer = |level, heads| {
            let channels = self.level_channels(level);
            (channels, self.heads(channels, heads))
        };
        levels.flat_map(|level| numbers.into_iter().flatten().map(move |heads| layer(level, heads))).collect()
    }

    fn network(&self, g: &Builder) -> Value {
        let embed_channels = 4 * self.model_channels;
        let time = TimestepEmbedding { channels: self.model_channels, cosines_first: true, freq_shift: 0.0 };
        let patch = self.patch_size;
        let channels = self.in_channels * patch * patch;
        let image = g.image([channels, self.height / patch, self.width / patch]);
        let embed = g.linear("time_embed.0", g.timestep_embedding(time), embed_channels);
        let mut embed = g.linear("time_embed.2", g.silu(embed), embed_channels);
        if let Some(classes) = self.num_classes {
            embed = g.add(embed, g.label_embedding("label_emb", classes, embed_channels));
        }
        // Every `emb_layers` begins with SiLU; it is computed once.
        let embed = g.silu(embed);

        let levels = self.channel_mult.len();
        let mut h = g.conv("input_blocks.0.0", image, self.level_channels(0), 3);
        let mut skips = vec![h];
        for level in 0..levels {
            for _ in 0..self.num_res_blocks {
                let g = g.at(format!("input_blocks.{}", skips.len()));
                h = self.res_block(&g.at(0), h, embed, self.level_channels(level), None);
                if self.attends(level) {
                    h = self.attention_block(&g.at(1), h, self.num_heads);
                }
                skips.push(h);
            }
            if level + 1 < levels {
                g.feature(h);
                h = self.downsample(&g.at(format!("input_blocks.{}.0", skips.len())), h, embed);
                skips.push(h);
            }
        }
        g.feature(h);

        let width = g.channels(h);
        h = self.res_block(&g.at("middle_block.0"), h, embed, width, None);
        h = self.attention_block(&g.at("middle_block.1"), h, self.num_heads);
        h = self.res_block(&g.at("middle_block.2"), h, embed, width, None);
        g.feature(h);

        let mut block = 0;
        for level in (0..levels).rev() {
            for index in 0..=self.num_res_blocks {
                let g = g.at(format!("output_blocks.{block}"));
                let skip = skips.remove(skips.len() - 1);
                h = self.res_block(&g.at(0), g.concat(h, skip), embed, self.level_channels(level), None);
                let mut layer = 1;
                if self.attends(level) {
                    h = self.attention_block(&g.at(1), h, self.num_heads_upsample.unwrap_or(self.num_heads));
                    layer = 2;
                }
                if level > 0 && index == self.num_res_blocks {
                    h = self.upsample(&g.at(layer), h, embed);
                }
                block += 1;
            }
        }
        g.zero_conv("out.2", g.silu(norm(g, "out.0", h)), channels, 3)
    }

    fn res_block(
        &self,
        g: &Builder,
        x: Value,
        embed: Value,
        out_channels: usize,
        resample: Option<Resample>,
    ) -> Value {
        let resampled = |x| match resample {
            None => x,
            Some(Resample::Down) => g.average_pool(x),
            Some(Resample::Up) => g.upsample(x),
        };
        let h = resampled(g.silu(norm(g, "in_layers.0", x)));
        let x = resampled(x);
        let h = g.conv("in_layers.2", h, out_channels, 3);
        let h = if self.use_scale_shift_norm {
            let modulation = g.chunk(g.linear("emb_layers.1", embed, 2 * out_channels));
            g.modulate(norm(g, "out_layers.0", h), modulation)
        } else {
            let h = g.add(h, g.linear("emb_layers.1", embed, out_channels));
            norm(g, "out_layers.0", h)
        };
        let h = g.zero_conv("out_layers.3", g.dropout(g.silu(h), self.dropout), out_channels, 3);
        let x = if g.channels(x) == out_channels { x } else { g.conv("skip_connection", x, out_channels, 1) };
        g.add(x, h)
    }

    fn attention_block(&self, g: &Builder, x: Value, num_heads: usize) -> Value {
        let channels = g.channels(x);
        let order = if self.use_new_attention_order { QkvOrder::PartsFirst } else { QkvOrder::HeadsFirst };
        let qkv = g.conv1d("qkv", norm(g, "norm", x), 3 * channels);
        let h = g.qkv_attention(qkv, self.heads(channels, num_heads), order);
        g.add(x, g.zero_conv1d("proj_out", h, channels))
    }

    fn downsample(&self, g: &Builder, x: Value, embed: Value) -> Value {
        match self.resblock_updown {
            true => self.res_block(g, x, embed, g.channels(x), Some(Resample::Down)),
            false => g.strided_conv("op", x, g.channels(x), Padding::Around),
        }
    }

    fn upsample(&self, g: &Builder, x: Value, embed: Value) -> Value {
        match self.resblock_updown {
            true => self.res_block(g, x, embed, g.channels(x), Some(Resample::Up)),
            false => g.conv("conv", g.upsample(x), g.channels(x), 3),
        }
    }
}

/// The change of resolution inside a residual block.
#[derive(Clone, Copy)]
enum Resample {
    Down,
    Up,
}

/// guided-diffusion's `normalization`.
fn norm(g: &Builder, name: &str, x: Value) -> Value {
    g.group_norm(name, x, NORM_GROUPS, NORM_EPSILON)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::model::NetworkSpec;

    /// PAPER.md §6: the CIFAR-10 network.
    pub(crate) fn cifar10() -> UNetSpec {
        UNetSpec {
            in_channels: 3,
            height: 32,
            width: 32,
            model_channels: 128,
            num_res_blocks: 2,
            channel_mult: vec![1.0, 2.0, 2.0, 2.0],
            attention_resolutions: vec![16],
            num_heads: 4,
            num_head_channels: Some(64),
            num_heads_upsample: None,
            use_scale_shift_norm: false,
            resblock_updown: false,
            use_new_attention_order: false,
            dropout: 0.1,
            num_classes: None,
            patch_size: 1,
        }
    }

    #[test]
    fn the_papers_cifar10_network_has_35_7_million_parameters() {
        let spec = cifar10();
        spec.validate().unwrap();
        assert_eq!((NetworkSpec::from(spec.clone()).parameters() as f64 / 1e5).round() / 10.0, 35.7);
    }

    #[test]
    fn a_spec_survives_its_own_json() {
        let spec = cifar10();
        let json = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<UNetSpec>(&json).unwrap(), spec);
    }

    #[test]
    fn each_field_out_of_range_is_named() {
        type Change = fn(&mut UNetSpec);
        let cases: [(&str, Change); 10] = [
            ("in_channels", |s| s.in_channels = 2),
            ("height", |s| s.height = 36),
            ("num_res_blocks", |s| s.num_res_blocks = 0),
            ("channel_mult", |s| s.channel_mult = vec![]),
            ("channel_mult", |s| s.model_channels = 24),
            ("attention_resolutions", |s| s.attention_resolutions = vec![12]),
            ("num_head_channels", |s| s.num_head_channels = Some(48)),
            ("dropout", |s| s.dropout = 1.0),
            ("patch_size", |s| s.patch_size = 9),
            ("height", |s| s.patch_size = 8),
        ];
        for (field, change) in cases {
            let mut spec = cifar10();
            change(&mut spec);
            assert_eq!(spec.validate().unwrap_err().field, field);
        }
    }
}
