//! What a model is: [`UNetSpec`], the only description of the network's architecture, and [`ModelCard`],
//! where a model comes from.
//!
//! The network is the U-Net of ADM (Dhariwal and Nichol, arXiv 2105.05233) as torchcfm builds it. The Burn
//! module, the importer and the sampler are all made from [`UNetSpec::layout`], and a model file holds exactly
//! the tensors of [`UNetSpec::tensors`], so no channel count is written down anywhere else.

use serde::{Deserialize, Serialize};

/// Groups of every group norm in the network.
pub const NORM_GROUPS: usize = 32;

/// Added to the variance in every group norm.
pub const NORM_EPSILON: f32 = 1e-5;

/// The architecture of a U-Net, in torchcfm's and guided-diffusion's own names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UNetSpec {
    /// Channels of the image, and of the velocity: 1 (grey) or 3 (RGB).
    pub in_channels: usize,
    /// Height of the image in pixels.
    pub height: usize,
    /// Width of the image in pixels.
    pub width: usize,
    /// Base width of the network, even; every level must come out at a multiple of 32.
    pub model_channels: usize,
    /// Residual blocks a level on the way down; one more on the way up.
    pub num_res_blocks: usize,
    /// Width of each level as a multiple of `model_channels`; every further level halves the resolution.
    pub channel_mult: Vec<f32>,
    /// Widths of feature maps, in pixels, at which attention follows every residual block.
    #[serde(default)]
    pub attention_resolutions: Vec<usize>,
    /// Attention heads, where `num_head_channels` is not given.
    #[serde(default = "one")]
    pub num_heads: usize,
    /// Channels of an attention head; takes precedence over `num_heads`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_head_channels: Option<usize>,
    /// Attention heads on the way up; `num_heads` where not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_heads_upsample: Option<usize>,
    /// Condition by scale and shift after the second norm, instead of by addition before it.
    #[serde(default)]
    pub use_scale_shift_norm: bool,
    /// Resample inside residual blocks instead of with convolutions.
    #[serde(default)]
    pub resblock_updown: bool,
    /// Order of the rows of `qkv.weight`: heads inside q, k, v (`true`) or q, k, v inside heads (`false`).
    #[serde(default)]
    pub use_new_attention_order: bool,
    /// Probability that a feature is dropped in training, in `[0, 1)`.
    #[serde(default)]
    pub dropout: f64,
    /// Classes of a conditional model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_classes: Option<usize>,
}

fn one() -> usize {
    1
}

/// What is wrong with a [`UNetSpec`]: the field, and why.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct SpecError {
    /// The field at fault.
    pub field: &'static str,
    /// What was expected and what was found.
    pub reason: String,
}

fn require(holds: bool, field: &'static str, reason: impl FnOnce() -> String) -> Result<(), SpecError> {
    if holds { Ok(()) } else { Err(SpecError { field, reason: reason() }) }
}

/// How a residual block changes the resolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resample {
    /// 2x2 average pooling.
    Down,
    /// Nearest-neighbour upsampling by 2.
    Up,
}

/// One layer of a block, with the channels it takes and gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LayerSpec {
    /// The first convolution, 3x3.
    Conv {
        /// Channels in.
        in_channels: usize,
        /// Channels out.
        out_channels: usize,
    },
    /// Residual block: norm, SiLU, convolution; condition; norm, SiLU, dropout, convolution; skip.
    ResBlock {
        /// Channels in, the concatenated skip connection included.
        in_channels: usize,
        /// Channels out.
        out_channels: usize,
        /// Change of resolution inside the block.
        resample: Option<Resample>,
    },
    /// Self-attention over all positions.
    Attention {
        /// Channels in and out.
        channels: usize,
        /// Heads; divides `channels`.
        num_heads: usize,
    },
    /// 3x3 convolution with stride 2.
    Downsample {
        /// Channels in and out.
        channels: usize,
    },
    /// Nearest-neighbour upsampling by 2 and a 3x3 convolution.
    Upsample {
        /// Channels in and out.
        channels: usize,
    },
}

/// The network as lists of blocks, each a list of layers, in the order in which they run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Channels of the time embedding; four times the base width.
    pub embed_channels: usize,
    /// The way down; the output of every block is kept for the way up.
    pub input_blocks: Vec<Vec<LayerSpec>>,
    /// The bottom.
    pub middle_block: Vec<LayerSpec>,
    /// The way up; each block first reads the kept output of its counterpart, concatenated.
    pub output_blocks: Vec<Vec<LayerSpec>>,
    /// Channels that the last norm and convolution read.
    pub final_channels: usize,
}

/// Name and shape of one tensor of a model file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// torchcfm's name, such as `input_blocks.1.0.in_layers.2.weight`.
    pub name: String,
    /// Dimensions in PyTorch's order.
    pub shape: Vec<usize>,
}

impl UNetSpec {
    /// Checks every field against its range and against the others.
    ///
    /// # Errors
    /// The first field that is out of range.
    pub fn validate(&self) -> Result<(), SpecError> {
        let levels = self.channel_mult.len();
        require(matches!(self.in_channels, 1 | 3), "in_channels", || {
            format!("expected 1 (grey) or 3 (RGB), found {}", self.in_channels)
        })?;
        require((1..=8).contains(&levels), "channel_mult", || {
            format!("expected 1 to 8 levels, found {levels}")
        })?;
        let divisor = 1 << (levels - 1);
        for (field, size) in [("height", self.height), ("width", self.width)] {
            require((4..=1024).contains(&size) && size % divisor == 0, field, || {
                format!("expected 4 to 1024 pixels, divisible by {divisor} for {levels} levels, found {size}")
            })?;
        }
        require((1..=16).contains(&self.num_res_blocks), "num_res_blocks", || {
            format!("expected 1 to 16, found {}", self.num_res_blocks)
        })?;
        require(
            (2..=4096).contains(&self.model_channels) && self.model_channels.is_multiple_of(2),
            "model_channels",
            || format!("expected an even number from 2 to 4096, found {}", self.model_channels),
        )?;
        for (level, &mult) in self.channel_mult.iter().enumerate() {
            require(mult.is_finite() && mult > 0.0 && mult <= 64.0, "channel_mult", || {
                format!("expected factors above 0 and at most 64, found {mult}")
            })?;
            let channels = self.level_channels(level);
            require(channels > 0 && channels.is_multiple_of(NORM_GROUPS), "channel_mult", || {
                format!(
                    "every level's channels must be a multiple of {NORM_GROUPS} (group norm), found {channels} = {} x {mult}",
                    self.model_channels
                )
            })?;
        }
        for &resolution in &self.attention_resolutions {
            require(
                (0..levels).any(|level| self.width >> level == resolution),
                "attention_resolutions",
                || {
                    format!(
                        "no feature map is {resolution} wide; the widths are {}",
                        (0..levels)
                            .map(|level| (self.width >> level).to_string())
                            .collect::<Vec<_>>()
                            .join(", ")
                    )
                },
            )?;
        }
        require(self.num_heads > 0, "num_heads", || "expected at least 1, found 0".into())?;
        require(self.num_heads_upsample != Some(0), "num_heads_upsample", || {
            "expected at least 1, found 0".into()
        })?;
        require(self.num_head_channels != Some(0), "num_head_channels", || {
            "expected at least 1, found 0".into()
        })?;
        require((0.0..1.0).contains(&self.dropout), "dropout", || {
            format!("expected a probability from 0 up to but not including 1, found {}", self.dropout)
        })?;
        if let Some(classes) = self.num_classes {
            require((1..=100_000).contains(&classes), "num_classes", || {
                format!("expected 1 to 100000, found {classes}")
            })?;
        }
        for layer in self.layout().layers() {
            if let LayerSpec::Attention { channels, num_heads } = *layer {
                let field = if self.num_head_channels.is_some() { "num_head_channels" } else { "num_heads" };
                require(num_heads > 0 && channels % num_heads == 0, field, || {
                    format!("the heads must divide the {channels} channels of an attention layer")
                })?;
                if let Some(width) = self.num_head_channels {
                    require(channels % width == 0, field, || {
                        format!("{width} does not divide the {channels} channels of an attention layer")
                    })?;
                }
            }
        }
        Ok(())
    }

    /// Values of one image: `C * H * W`.
    pub fn image_len(&self) -> usize {
        self.in_channels * self.height * self.width
    }

    /// Channels of the feature maps of a level, counted from 0, the largest maps.
    pub(crate) fn level_channels(&self, level: usize) -> usize {
        (self.channel_mult[level] * self.model_channels as f32) as usize
    }

    fn attention(&self, channels: usize, num_heads: usize) -> LayerSpec {
        LayerSpec::Attention {
            channels,
            num_heads: self.num_head_channels.map_or(num_heads, |width| channels / width),
        }
    }

    /// The network, block by block.
    pub fn layout(&self) -> Layout {
        let levels = self.channel_mult.len();
        let attends = |level: usize| self.attention_resolutions.contains(&(self.width >> level));
        let resample = |channels, direction| {
            vec![match (self.resblock_updown, direction) {
                (true, _) => LayerSpec::ResBlock {
                    in_channels: channels,
                    out_channels: channels,
                    resample: Some(direction),
                },
                (false, Resample::Down) => LayerSpec::Downsample { channels },
                (false, Resample::Up) => LayerSpec::Upsample { channels },
            }]
        };

        let mut channels = self.level_channels(0);
        let mut input_blocks =
            vec![vec![LayerSpec::Conv { in_channels: self.in_channels, out_channels: channels }]];
        let mut kept = vec![channels];
        for level in 0..levels {
            let out_channels = self.level_channels(level);
            for _ in 0..self.num_res_blocks {
                let mut block =
                    vec![LayerSpec::ResBlock { in_channels: channels, out_channels, resample: None }];
                channels = out_channels;
                if attends(level) {
                    block.push(self.attention(channels, self.num_heads));
                }
                input_blocks.push(block);
                kept.push(channels);
            }
            if level + 1 < levels {
                input_blocks.push(resample(channels, Resample::Down));
                kept.push(channels);
            }
        }

        let same = LayerSpec::ResBlock { in_channels: channels, out_channels: channels, resample: None };
        let middle_block = vec![same.clone(), self.attention(channels, self.num_heads), same];

        let mut output_blocks = Vec::new();
        for level in (0..levels).rev() {
            let out_channels = self.level_channels(level);
            for index in 0..=self.num_res_blocks {
                #[expect(clippy::expect_used, reason = "both ways have num_res_blocks + 1 blocks a level")]
                let skip = kept.pop().expect("an output block for every input block");
                let mut block =
                    vec![LayerSpec::ResBlock { in_channels: channels + skip, out_channels, resample: None }];
                channels = out_channels;
                if attends(level) {
                    block.push(self.attention(channels, self.num_heads_upsample.unwrap_or(self.num_heads)));
                }
                if level > 0 && index == self.num_res_blocks {
                    block.extend(resample(channels, Resample::Up));
                }
                output_blocks.push(block);
            }
        }
        Layout {
            embed_channels: 4 * self.model_channels,
            input_blocks,
            middle_block,
            output_blocks,
            final_channels: channels,
        }
    }

    /// Every tensor of a model file, in the order of PyTorch's state dict.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let layout = self.layout();
        let mut list = TensorList { tensors: Vec::new(), embed: layout.embed_channels, spec: self };
        list.linear("time_embed.0", self.model_channels, layout.embed_channels);
        list.linear("time_embed.2", layout.embed_channels, layout.embed_channels);
        if let Some(classes) = self.num_classes {
            list.push("label_emb.weight", &[classes, layout.embed_channels]);
        }
        for (i, block) in layout.input_blocks.iter().enumerate() {
            list.block(&format!("input_blocks.{i}"), block);
        }
        list.block("middle_block", &layout.middle_block);
        for (i, block) in layout.output_blocks.iter().enumerate() {
            list.block(&format!("output_blocks.{i}"), block);
        }
        list.norm("out.0", layout.final_channels);
        list.conv("out.2", layout.final_channels, self.in_channels, 3);
        list.tensors
    }

    /// Number of trainable values.
    pub fn parameters(&self) -> usize {
        self.tensors().iter().map(|tensor| tensor.shape.iter().product::<usize>()).sum()
    }
}

impl Layout {
    /// All layers, in the order in which they run.
    pub fn layers(&self) -> impl Iterator<Item = &LayerSpec> {
        let down = self.input_blocks.iter().flatten();
        down.chain(&self.middle_block).chain(self.output_blocks.iter().flatten())
    }
}

/// Names the tensors of each kind of layer.
struct TensorList<'a> {
    tensors: Vec<TensorSpec>,
    embed: usize,
    spec: &'a UNetSpec,
}

impl TensorList<'_> {
    fn push(&mut self, name: impl Into<String>, shape: &[usize]) {
        self.tensors.push(TensorSpec { name: name.into(), shape: shape.to_vec() });
    }

    fn linear(&mut self, name: &str, inputs: usize, outputs: usize) {
        self.push(format!("{name}.weight"), &[outputs, inputs]);
        self.push(format!("{name}.bias"), &[outputs]);
    }

    fn norm(&mut self, name: &str, channels: usize) {
        self.push(format!("{name}.weight"), &[channels]);
        self.push(format!("{name}.bias"), &[channels]);
    }

    fn conv(&mut self, name: &str, inputs: usize, outputs: usize, kernel: usize) {
        self.push(format!("{name}.weight"), &[outputs, inputs, kernel, kernel]);
        self.push(format!("{name}.bias"), &[outputs]);
    }

    fn conv1d(&mut self, name: &str, inputs: usize, outputs: usize) {
        self.push(format!("{name}.weight"), &[outputs, inputs, 1]);
        self.push(format!("{name}.bias"), &[outputs]);
    }

    fn block(&mut self, prefix: &str, layers: &[LayerSpec]) {
        for (j, layer) in layers.iter().enumerate() {
            let name = format!("{prefix}.{j}");
            match *layer {
                LayerSpec::Conv { in_channels, out_channels } => {
                    self.conv(&name, in_channels, out_channels, 3)
                }
                LayerSpec::ResBlock { in_channels, out_channels, .. } => {
                    self.norm(&format!("{name}.in_layers.0"), in_channels);
                    self.conv(&format!("{name}.in_layers.2"), in_channels, out_channels, 3);
                    let conditions =
                        if self.spec.use_scale_shift_norm { 2 * out_channels } else { out_channels };
                    self.linear(&format!("{name}.emb_layers.1"), self.embed, conditions);
                    self.norm(&format!("{name}.out_layers.0"), out_channels);
                    self.conv(&format!("{name}.out_layers.3"), out_channels, out_channels, 3);
                    if in_channels != out_channels {
                        self.conv(&format!("{name}.skip_connection"), in_channels, out_channels, 1);
                    }
                }
                LayerSpec::Attention { channels, .. } => {
                    self.norm(&format!("{name}.norm"), channels);
                    self.conv1d(&format!("{name}.qkv"), channels, 3 * channels);
                    self.conv1d(&format!("{name}.proj_out"), channels, channels);
                }
                LayerSpec::Downsample { channels } => self.conv(&format!("{name}.op"), channels, channels, 3),
                LayerSpec::Upsample { channels } => self.conv(&format!("{name}.conv"), channels, channels, 3),
            }
        }
    }
}

/// What a model was trained as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A velocity field: many solver steps from noise to data.
    #[default]
    // Files of version 0.1 of imported models.
    #[serde(alias = "imported", alias = "")]
    Teacher,
    /// A consistency model: one jump from noise to data, or a few with fresh noise between them.
    Student,
}

impl Role {
    /// The role's name in files and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Teacher => "teacher",
            Self::Student => "student",
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Where a model comes from, kept in the metadata of its file.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelCard {
    /// What the model was trained as, which decides how it is sampled.
    pub role: Role,
    /// The preset it was trained with, or the checkpoint it was imported from.
    pub source: String,
    /// The data it was trained on.
    pub data: String,
    /// Names of the classes, in the order of the labels.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<String>,
    /// Optimiser steps taken.
    pub steps: u64,
    /// Images seen in training.
    pub images: u64,
    /// Seed of the run.
    pub seed: u64,
    /// Decay of the average of the weights that this file holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ema: Option<f64>,
    /// What rounding the weights has changed; in files that are not in single precision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rounding: Option<Rounding>,
    /// Version of this program.
    pub version: String,
}

/// How far the pictures of a rounded model are from those of the model it was made from, seed by seed, in steps
/// of an 8-bit channel (1/255 of its range).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rounding {
    /// Pictures compared.
    pub images: usize,
    /// Evaluations of the network for each.
    pub steps: usize,
    /// Root of the mean squared difference of a channel.
    pub rms: f64,
    /// Largest difference of a channel.
    pub largest: f64,
}

impl std::fmt::Display for Rounding {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let Self { images, steps, rms, largest } = self;
        let evaluations =
            if *steps == 1 { "one evaluation".to_owned() } else { format!("{steps} evaluations") };
        write!(
            f,
            "{rms:.2}/255 from f32 (root mean square; at most {largest:.1}/255) over {images} images of {evaluations}"
        )
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

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
        }
    }

    #[test]
    fn the_papers_cifar10_network_has_35_7_million_parameters() {
        let spec = cifar10();
        spec.validate().unwrap();
        assert_eq!((spec.parameters() as f64 / 1e5).round() / 10.0, 35.7);
    }

    #[test]
    fn a_spec_survives_its_own_json() {
        let spec = cifar10();
        let json = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<UNetSpec>(&json).unwrap(), spec);
    }

    #[test]
    fn roles_of_all_versions_are_read_and_others_are_refused() {
        let role = |text: &str| serde_json::from_str::<ModelCard>(text).map(|card| card.role);
        for (text, expected) in [
            (r#"{"role": "teacher"}"#, Role::Teacher),
            (r#"{"role": "student"}"#, Role::Student),
            (r#"{"role": "imported"}"#, Role::Teacher),
            (r#"{"role": ""}"#, Role::Teacher),
            ("{}", Role::Teacher),
        ] {
            assert_eq!(role(text).unwrap(), expected, "{text}");
        }
        let error = role(r#"{"role": "judge"}"#).unwrap_err().to_string();
        assert!(error.contains("`judge`") && error.contains("`student`"), "{error}");
        let card = ModelCard { role: Role::Student, ..ModelCard::default() };
        assert!(serde_json::to_string(&card).unwrap().contains(r#""role":"student""#));
    }

    #[test]
    fn each_field_out_of_range_is_named() {
        type Change = fn(&mut UNetSpec);
        let cases: [(&str, Change); 8] = [
            ("in_channels", |s| s.in_channels = 2),
            ("height", |s| s.height = 36),
            ("num_res_blocks", |s| s.num_res_blocks = 0),
            ("channel_mult", |s| s.channel_mult = vec![]),
            ("channel_mult", |s| s.model_channels = 24),
            ("attention_resolutions", |s| s.attention_resolutions = vec![12]),
            ("num_head_channels", |s| s.num_head_channels = Some(48)),
            ("dropout", |s| s.dropout = 1.0),
        ];
        for (field, change) in cases {
            let mut spec = cifar10();
            change(&mut spec);
            assert_eq!(spec.validate().unwrap_err().field, field);
        }
    }
}
