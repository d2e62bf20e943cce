//! The sections `distill` and `finish`: how the student is trained.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::method::coupling::Coupling;
use crate::method::curriculum::{Mode, Scope, StepSolver};
use crate::method::distance::DistanceKind;
use crate::method::lpips::Trunk;
use crate::method::views::Augmentation;
use crate::model::TensorSpec;
use crate::model::graph::lora::LoraSpec;

/// Distillation of the student: a consistency model with a curriculum (PAPER.md §5).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DistillConfig {
    /// Model file of a distilled student. If present, the run does not distil; it only fine-tunes this student
    /// (`finish`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
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
    /// Largest norm of the gradient of all parameters, above 0. A larger gradient is scaled down to it. It also
    /// limits the discriminator's gradient.
    pub gradient_clip: f64,
    /// What gives `x_u`: the teacher (`cd`, and `fixed` with exactly one step), or the line from noise to image (`ct`).
    pub mode: Mode,
    /// Whether each image has its own KDC (`image`) or the whole batch has one (`batch`).
    pub scope: Scope,
    /// The curriculum's threshold `T` on the KDC, in dB, `0..=100`. The mode `fixed` ignores it.
    pub threshold: f64,
    /// Step size `s` of the teacher's solver, in `[0.001, 1]`: flow time, unless `step_shift` is given.
    pub step_size: f64,
    /// `k` of the teacher's steps, `1..=100`: they have the length `s` in the time `k t / (1 + (k - 1) t)`. By default 1:
    /// equal steps of flow time. Larger values give shorter steps near noise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_shift: Option<f64>,
    /// Solver of the teacher: `euler`, or `heun` with two evaluations per step; only `euler` with `mode = "ct"`.
    pub solver: StepSolver,
    /// Largest difference between two values of an image or of latents, above 0, from which KDC is computed (PAPER.md §4).
    /// By default 2; the threshold belongs to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kdc_peak: Option<f64>,
    /// Range of the teacher's guidance scale, for teachers with text: each image's scale is drawn from it. Without it, the
    /// teacher has no guidance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance: Option<[f64; 2]>,
    /// Scale of autoguidance (arXiv 2406.02507), 1 or more: the teacher's velocity is led away from that of a weaker teacher,
    /// and the student learns the result. Not for teachers with text. By default there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub autoguidance: Option<f64>,
    /// Flow time at which autoguidance ends, in (0, 1], as near the image the weaker teacher differs by its grain most of all
    /// (arXiv 2404.07724 has such an interval for classifier-free guidance). By default 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub autoguidance_until: Option<f64>,
    /// Model file of the weaker teacher, for the same images and classes. By default the one that `teacher.weaker_kimg` saves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weaker_model: Option<String>,
    /// Channels of an embedding through which the student reads the guidance scale (`time_cond_proj_dim`, arXiv 2310.04378).
    /// Without it, the student learns the mean of the range.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance_channels: Option<usize>,
    /// Rank of the low-rank products that are trained beside the fixed weights (LoRA). By default all weights are trained.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora_rank: Option<usize>,
    /// Alpha of the low-rank products, above 0: they are multiplied by `lora_alpha / lora_rank`. By default the rank.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora_alpha: Option<f64>,
    /// Layers with low-rank products: their names, or the ends of their names after a dot, such as `to_q`. By default the
    /// projections of attention.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora_targets: Option<Vec<String>>,
    /// Precision in memory of weights that are not trained: the teacher's, and those beside low-rank products. By default
    /// `f32`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fixed_precision: Option<FixedPrecision>,
    /// `alpha` of `t = (U (1 - s))^alpha`, above 0. Values above 1 give more times near noise (PAPER.md §6).
    pub time_alpha: f64,
    /// The distance that the student minimises.
    pub distance: DistanceKind,
    /// File with the weights of LPIPS' trunk, as published by torchvision. Required if the distance is `lpips-vgg16` or
    /// `lpips-alexnet`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lpips_trunk: Option<String>,
    /// File with the weights of LPIPS' heads, as published in the package `lpips`. Required with `lpips_trunk`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lpips_heads: Option<String>,
    /// Weight of the adversarial loss, 0 or more: the norm of its gradient relative to the distance's. The paper has 1;
    /// 0 disables the loss.
    pub adversarial_weight: f64,
    /// Thousands of images before the adversarial loss starts, 0 or more.
    pub adversarial_from_kimg: f64,
    /// Thousands of images over which its weight then grows linearly from 0, 0 or more. Without this warm-up, a large
    /// weight makes the student diverge if the discriminator separates its images from real ones early.
    pub adversarial_warmup_kimg: f64,
    /// Learning rate of the discriminator's Adam, above 0. It has the student's schedule, counted from its own
    /// first step, without the warm-up.
    pub discriminator_learning_rate: f64,
    /// The share of noise in the images that the discriminator sees is `U^power / 2` for `U` uniform in [0, 1), also in
    /// `finish`. Above 0; by default 1. With 2 it sees less noise, and so more of the student's grain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discriminator_noise_power: Option<f64>,
    /// Largest number of pixels that the discriminator's images are moved by, in each direction, `0..=64`, also in `finish`. By
    /// default 0. A few pixels keep a student of patches from showing a grid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discriminator_translation: Option<usize>,
    /// Whether the discriminator's encoder learns with its heads, also in `finish`. By default `frozen`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discriminator_encoder: Option<EncoderWeights>,
    /// Half-life of the target network, an average of the student's weights, in thousands of images, 0 or more. 0
    /// disables averaging.
    pub target_halflife_kimg: f64,
    /// Half-life of the average of the student's weights that is sampled and saved, in thousands of images, 0 or more.
    /// 0 disables averaging.
    pub sample_halflife_kimg: f64,
    /// How noise and images are paired.
    pub coupling: Coupling,
    /// Images that one optimal-transport plan pairs, `1..=16384`, rounded up to whole batches. By default those of a batch.
    /// Independent pairs ignore it. It should be the teacher's number, because the teacher's paths depend on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub coupling_images: Option<usize>,
}

/// Adversarial fine-tuning of the student after distillation (PAPER.md §10): no distance, no teacher steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FinishConfig {
    /// Length of the training in thousands of images, 0 or more. 0 omits the stage.
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
    /// Share of the optimiser steps in `[0, 1]`. Over these last steps, both learning rates fall to 0 along half a
    /// cosine.
    #[serde(default)]
    pub cooldown: f64,
    /// Largest norm of the gradient of all parameters, above 0. A larger gradient is scaled down to it.
    pub gradient_clip: f64,
    /// Weights of the student that do not change.
    pub fixed: FixedWeights,
    /// Learning rate of the discriminator's Adam, above 0.
    pub discriminator_learning_rate: f64,
    /// Weight of the discriminator's gradient penalty on real images (R1), 0 or more.
    pub r1_weight: f64,
    /// Half-life of the average of the student's weights that is sampled and saved, in thousands of images, 0 or more.
    /// 0 disables averaging.
    pub sample_halflife_kimg: f64,
}

impl Default for FinishConfig {
    /// No fine-tuning.
    fn default() -> Self {
        Self {
            kimg: 0.0,
            batch: 32,
            micro_batch: None,
            learning_rate: 1e-4,
            warmup_kimg: 0.0,
            cooldown: 0.0,
            gradient_clip: 1.0,
            fixed: FixedWeights::None,
            discriminator_learning_rate: 1e-4,
            r1_weight: 1e-4,
            sample_halflife_kimg: 10.0,
        }
    }
}

/// Weights that do not change in adversarial fine-tuning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FixedWeights {
    /// All weights are trained.
    None,
    /// The kernels of all convolutions larger than 1x1 are fixed: 65 % of the weights of `avatars`, 85 % in arXiv
    /// 2405.20750.
    Convolutions,
}

impl FixedWeights {
    /// Whether the tensor is fixed.
    pub fn contains(self, tensor: &TensorSpec) -> bool {
        match self {
            Self::None => false,
            Self::Convolutions => matches!(tensor.shape[..], [_, _, height, width] if height * width > 1),
        }
    }
}

/// The weights of the discriminator's encoder. They are the teacher's at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EncoderWeights {
    /// Only the heads learn.
    #[default]
    Frozen,
    /// The encoder learns, too: a teacher's features need not show what is wrong with the student's images.
    Trained,
}

/// Precision in memory of weights that are not trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FixedPrecision {
    /// Single precision.
    #[default]
    F32,
    /// Half precision; each weight is converted to single precision when it is used.
    F16,
}

/// Layers with low-rank products unless the configuration names others: the projections of attention.
const LORA_TARGETS: [&str; 4] = ["to_q", "to_k", "to_v", "to_out.0"];

/// The files with the weights of LPIPS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LpipsFiles<'a> {
    /// The network that extracts the features.
    pub trunk: Trunk,
    /// File with the weights of the trunk.
    pub features: &'a Path,
    /// File with the weights of the heads.
    pub heads: &'a Path,
}

impl DistillConfig {
    /// What the discriminator sees of images.
    pub fn augmentation(&self) -> Augmentation {
        Augmentation {
            noise_power: self.discriminator_noise_power.unwrap_or(1.0),
            translation: self.discriminator_translation.unwrap_or(0),
        }
    }

    /// The low-rank products that are trained; `None` if all weights are.
    pub fn lora(&self) -> Option<LoraSpec> {
        let rank = self.lora_rank?;
        let targets = self.lora_targets.clone();
        Some(LoraSpec {
            rank,
            alpha: self.lora_alpha.unwrap_or(rank as f64) as f32,
            targets: targets.unwrap_or_else(|| LORA_TARGETS.map(str::to_owned).to_vec()),
        })
    }

    /// The files of LPIPS; `None` if the student minimises another distance.
    ///
    /// # Errors
    /// LPIPS needs a file that the configuration does not name.
    pub fn lpips_files(&self) -> Result<Option<LpipsFiles<'_>>, ConfigError> {
        fn named<'a>(key: &str, file: &'a Option<String>) -> Result<&'a Path, ConfigError> {
            let file = file.as_deref().filter(|file| !file.is_empty());
            file.map(Path::new).ok_or_else(|| ConfigError::Value {
                key: key.to_owned(),
                expected: "a file of weights, which LPIPS needs".to_owned(),
                found: "none".to_owned(),
            })
        }
        let Some(trunk) = self.distance.trunk() else { return Ok(None) };
        let features = named("distill.lpips_trunk", &self.lpips_trunk)?;
        let heads = named("distill.lpips_heads", &self.lpips_heads)?;
        Ok(Some(LpipsFiles { trunk, features, heads }))
    }
}
