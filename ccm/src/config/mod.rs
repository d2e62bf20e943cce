//! The configuration of a run: [`Config`], the presets, and its TOML form.
//!
//! A configuration is plain data. This module neither opens the data set nor builds the network. A run sets
//! `network.num_classes` from the data and writes the result to its `config.toml`. Presets and `config.toml` files have
//! every required setting, so a later version cannot change a run by changing a default.
//!
//! Durations and half-lives are in thousands of images (kimg), as in EDM (arXiv 2206.00364), so they do not depend on
//! the batch size. Methods such as [`TeacherConfig::steps`] convert them to optimiser steps.

mod durations;
mod error;
mod keys;
mod overrides;
mod path;
mod stage;
mod student;
mod validate;

pub use error::ConfigError;
pub use path::{PathConfig, PathKind, Predicts, ScheduleName};
pub use stage::StageConfig;
pub use student::{DistillConfig, EncoderWeights, FinishConfig, FixedPrecision, FixedWeights, LpipsFiles};

use crate::method::coupling::Coupling;
use crate::model::{NetworkSpec, UNetSpec};
use keys::Known;

use serde::{Deserialize, Serialize};

/// Names of the presets, smallest first.
pub const PRESETS: [&str; 10] =
    ["shapes", "mnist", "cifar10-small", "avatars", "emoji", "cifar10", "imagenet64", "sd15", "sd3", "sdxl"];

/// The presets as TOML, in the order of [`PRESETS`].
const PRESET_TEXTS: [&str; 10] = [
    include_str!("../../presets/shapes.toml"),
    include_str!("../../presets/mnist.toml"),
    include_str!("../../presets/cifar10-small.toml"),
    include_str!("../../presets/avatars.toml"),
    include_str!("../../presets/emoji.toml"),
    include_str!("../../presets/cifar10.toml"),
    include_str!("../../presets/imagenet64.toml"),
    include_str!("../../presets/sd15.toml"),
    include_str!("../../presets/sd3.toml"),
    include_str!("../../presets/sdxl.toml"),
];

/// The configuration of a run: data, network, training of the teacher and distillation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Seed, threads and intervals of outputs.
    pub run: RunConfig,
    /// The images.
    pub data: DataConfig,
    /// The architecture of teacher and student. Ignored if `teacher.model` is set: its network is used.
    pub network: UNetSpec,
    /// The path on which the teacher is trained. Ignored if `teacher.model` is set: its path is used.
    pub path: PathConfig,
    /// Training of the teacher (PAPER.md §2 and §8).
    pub teacher: TeacherConfig,
    /// Consistency distillation with a curriculum (PAPER.md §5).
    pub distill: DistillConfig,
    /// Adversarial fine-tuning after distillation (PAPER.md §10). Configurations of earlier versions do not have this
    /// section, and their runs do not have this stage.
    #[serde(default)]
    pub finish: FinishConfig,
}

/// Seed, threads and intervals of outputs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Name of the run, in the report's title and in model cards.
    pub name: String,
    /// Seed of all random numbers, `0..2^63` (TOML's integers are signed).
    pub seed: u64,
    /// CPU threads over which a batch is split, `1..=1024`; by default, those of the machine. Rounding of sums depends
    /// on the number, so a run records it and uses the same number when resumed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// Recompute the activations of each block in the backward pass: less memory, about a third more time, the same result.
    #[serde(default)]
    pub gradient_checkpointing: bool,
    /// Thousands of training images between two sample grids, above 0; at least one optimiser step.
    pub sample_every_kimg: f64,
    /// Thousands of training images between two checkpoints, above 0; at least one optimiser step.
    pub checkpoint_every_kimg: f64,
    /// Thousands of training images between two lines of the metrics log, above 0; at least one optimiser step.
    pub log_every_kimg: f64,
    /// Mixed precision: activations and their gradients in 16 bits, weights in single precision. Off by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mixed_precision: Option<HalfPrecision>,
    /// Whether convolutions on the CPU, also those of losses, round their operands to bfloat16, for speed. Needs a processor with
    /// AVX512-BF16. Sums, activations and weights stay in single precision.
    #[serde(default, skip_serializing_if = "is_false")]
    pub bf16_convolutions: bool,
    /// Whether the optimiser keeps its moments in eight bits instead of 32.
    #[serde(default, skip_serializing_if = "is_false")]
    pub eight_bit_optimizer: bool,
    /// Whether ranks exchange gradients while others are still being computed; by default, if all ranks compute on GPUs. Needs
    /// one thread in each rank.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overlap_exchange: Option<bool>,
    /// Whether metrics and samples are also written as TensorBoard's event files, in the folder `events`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub tensorboard: bool,
    /// Network evaluations per teacher image in sample grids and in the report, `1..=1000`.
    pub report_steps: usize,
    /// Images in a sample grid, `1..=1024`.
    pub report_images: usize,
}

/// The training images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Path of a data set, or `shapes` ([`SHAPES`]) for generated images. A run needs a source; a preset may omit it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Number of generated images, `1..=10_000_000`. Required if the source is `shapes`, otherwise not used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<usize>,
    /// Whether images stay on disk and are read and decoded when a batch needs them: for data larger than memory. A folder, a
    /// `.zip` or `.tar` of images, or a folder of `.tar` shards.
    #[serde(default, skip_serializing_if = "is_false")]
    pub streamed: bool,
    /// Streamed images from which the next one is drawn, for all rows of a batch together, `1..=10_000_000`. By default 8192. Only
    /// if `streamed` is true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shuffle_buffer: Option<usize>,
    /// Whether training images are mirrored left to right with probability 1/2.
    pub horizontal_flip: bool,
    /// Whether the network is conditioned on class labels. If so, `network.num_classes` is set from the data.
    pub class_conditional: bool,
    /// Whether the images have captions, and `teacher.model` is a text-to-image pipeline, which gives the network and the path:
    /// there are no sections `network` and `path`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub captions: bool,
    /// Height and width of captioned images in pixels; by default, those of the pipeline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_size: Option<[usize; 2]>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it")]
fn is_false(value: &bool) -> bool {
    !value
}

/// The `data.source` of generated images: shapes drawn by this program.
pub const SHAPES: &str = "shapes";

/// Training of the teacher (PAPER.md §2 and §8).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeacherConfig {
    /// Model file of a trained teacher, such as an imported one, or a text-to-image pipeline: a folder in diffusers' layout or
    /// a single file. If absent, the run trains a teacher.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Folder in diffusers' layout with the configuration and the tokenizers of `teacher.model`, if that is a single file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<String>,
    /// How a teacher is trained from `teacher.model`. By default, the model is the teacher as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub training: Option<TeacherTraining>,
    /// Whether a pipeline's text encoder is trained with the denoiser, by the teacher's training and by distillation. Its weights
    /// are then part of both models.
    #[serde(default, skip_serializing_if = "is_false")]
    pub train_text_encoder: bool,
    /// Share of the images, in [0, 1), whose caption is replaced by the negative text while the teacher is trained, so that
    /// guidance has something to lead away from. By default 0.1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caption_dropout: Option<f64>,
    /// Length of the training in thousands of images, above 0; at least one optimiser step.
    pub kimg: f64,
    /// Images per optimiser step, `1..=65536`.
    pub batch: usize,
    /// Largest number of images per backward pass, at least 1; gradients accumulate over the batch. By default, the
    /// whole batch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub micro_batch: Option<usize>,
    /// Learning rate of Adam after the warm-up, above 0.
    pub learning_rate: f64,
    /// Length of the learning-rate warm-up from 0, in thousands of images, 0 or more.
    pub warmup_kimg: f64,
    /// Share of the optimiser steps in `[0, 1]`. Over these last steps, the learning rate falls to 0 along half a
    /// cosine (arXiv 2405.18392).
    #[serde(default)]
    pub cooldown: f64,
    /// Largest norm of the gradient of all parameters, above 0. A larger gradient is scaled down to it.
    pub gradient_clip: f64,
    /// Half-life of the weight average that is sampled and distilled, in thousands of images, 0 or more. 0 disables
    /// averaging.
    pub ema_halflife_kimg: f64,
    /// Thousands of images, above 0 and less than `kimg`, after which the average of the weights, without the share of the first
    /// ones, is also saved as a weaker teacher, which `distill.autoguidance` leads away from. Beside a given teacher (`model`), only
    /// the weaker one is trained. By default there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weaker_kimg: Option<f64>,
    /// How noise and images are paired.
    pub coupling: Coupling,
    /// Images that one optimal-transport plan pairs, `1..=16384`, rounded up to whole batches. By default those of a batch.
    /// Independent pairs ignore it. More images make the teacher's paths straighter (arXiv 2506.05526). Teacher and student
    /// should have the same number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub coupling_images: Option<usize>,
}

/// How a teacher is trained from a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TeacherTraining {
    /// Further, from the model's weights.
    FromWeights,
    /// From nothing: only the model's network and path are used.
    FromNothing,
}

/// A number format of 16 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HalfPrecision {
    /// IEEE 754 binary16: 11 bits of precision, largest value 65 504. Needs loss scaling.
    F16,
    /// bfloat16: the range of single precision, 8 bits of precision.
    Bf16,
}

impl Config {
    /// The preset with this name, one of [`PRESETS`].
    ///
    /// # Errors
    /// [`ConfigError::UnknownPreset`] if there is none.
    pub fn preset(name: &str) -> Result<Self, ConfigError> {
        match PRESETS.iter().zip(PRESET_TEXTS).find(|(preset, _)| **preset == name) {
            Some((_, text)) => Self::from_toml(text),
            None => Err(ConfigError::UnknownPreset {
                name: keys::one_line(name),
                nearest: keys::nearest(name, PRESETS).to_owned(),
            }),
        }
    }

    /// Parses a complete configuration, such as the `config.toml` of a run. Does not check ranges; [`Config::validate`]
    /// does.
    ///
    /// # Errors
    /// Text that is not TOML, an unknown or missing key, or a value of the wrong type.
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        let mut entries = keys::parse(text)?;
        let known = Known::new()?;
        keys::add_pipeline_sections(&mut entries, &known)?;
        for (key, value) in &entries {
            known.check(known.find(key)?, value)?;
        }
        let older = !entries.keys().any(|key| keys::is_finish_key(key));
        let may_miss = |key: &str| keys::is_optional(key) || (older && keys::is_finish_key(key));
        match known.keys.iter().find(|key| !may_miss(key) && !entries.contains_key(*key)) {
            Some(key) => Err(ConfigError::MissingKey { key: key.clone() }),
            None => keys::assemble(entries),
        }
    }

    /// The architecture of a teacher that the run trains.
    pub fn spec(&self) -> NetworkSpec {
        self.network.clone().into()
    }

    /// The complete configuration as TOML. Equal configurations give equal bytes.
    ///
    /// # Errors
    /// A value that TOML cannot represent. [`Config::validate`] rejects such values.
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        let fault =
            |error: toml::ser::Error| ConfigError::Toml { reason: keys::one_line(&error.to_string()) };
        if !self.data.captions {
            return toml::to_string(self).map_err(fault);
        }
        let mut sections = toml::Table::try_from(self).map_err(fault)?;
        keys::PIPELINE_SECTIONS.iter().for_each(|section| {
            sections.remove(*section);
        });
        toml::to_string(&sections).map_err(fault)
    }

    /// The settings that differ, one line each, such as `distill.threshold: 60 before, 65 now`: `self` is before,
    /// `other` is now. An absent optional setting is `none`. Settings of a stage that both omit do not count. Empty if the
    /// configurations are equal.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let (before, now) = match (keys::entries_of(self), keys::entries_of(other)) {
            (Ok(before), Ok(now)) => (before, now),
            (Err(error), _) | (_, Err(error)) => return vec![error.to_string()],
        };
        let added = now.keys().filter(|key| !before.contains_key(*key));
        let mut all: Vec<_> = before.keys().chain(added).collect();
        all.sort();
        let shown = |value| Option::map_or(value, "none".to_owned(), keys::shown);
        let fine_tuned = self.finish.steps() > 0 || other.finish.steps() > 0;
        all.into_iter()
            .filter(|key| before.get(*key) != now.get(*key) && (fine_tuned || !keys::is_finish_key(key)))
            .map(|key| format!("{key}: {} before, {} now", shown(before.get(key)), shown(now.get(key))))
            .collect()
    }
}

#[cfg(test)]
mod tests;
