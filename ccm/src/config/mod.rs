//! The configuration of a run: [`Config`], the presets, and its TOML form.
//!
//! A configuration is plain data. It neither opens the data set nor builds the network; a run fills in what
//! only the data knows (`network.num_classes`) and writes the result down as its `config.toml`. A preset and
//! a run's `config.toml` hold every setting, so nothing depends on a default that a later version changes.
//!
//! Durations and half-lives are in thousands of images (kimg), as in EDM (arXiv 2206.00364), so that they keep their
//! meaning when the batch size changes. Methods such as [`TeacherConfig::steps`] convert them to optimiser steps.

mod durations;
mod error;
mod keys;
mod overrides;
mod path;
mod validate;

pub use error::ConfigError;
pub use path::{PathConfig, PathKind, Predicts, ScheduleName};

use crate::method::coupling::Coupling;
use crate::method::curriculum::{Mode, Scope, StepSolver};
use crate::method::distance::DistanceKind;
use crate::method::lpips::Trunk;
use crate::model::{NetworkSpec, UNetSpec};
use keys::Known;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Names of the presets, the smallest first.
pub const PRESETS: [&str; 5] = ["shapes", "mnist", "cifar10-small", "cifar10", "imagenet64"];

/// The presets themselves, in the order of [`PRESETS`].
const PRESET_TEXTS: [&str; 5] = [
    include_str!("../../presets/shapes.toml"),
    include_str!("../../presets/mnist.toml"),
    include_str!("../../presets/cifar10-small.toml"),
    include_str!("../../presets/cifar10.toml"),
    include_str!("../../presets/imagenet64.toml"),
];

/// A whole run: what to learn from, the network, its training as a teacher and its distillation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Seed, and how often to report.
    pub run: RunConfig,
    /// The images.
    pub data: DataConfig,
    /// The architecture of teacher and student. Where `teacher.model` is given, its network is used instead.
    pub network: UNetSpec,
    /// The path that the teacher is trained on. Where `teacher.model` is given, its path is used instead.
    pub path: PathConfig,
    /// Training of the teacher, PAPER.md §2 and §8.
    pub teacher: TeacherConfig,
    /// Consistency distillation with a curriculum, PAPER.md §5.
    pub distill: DistillConfig,
}

/// Seed, and how often a run reports.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// What the run and its models are called in titles and cards.
    pub name: String,
    /// Seed of everything random, `0..2^63` (TOML's integers are signed).
    pub seed: u64,
    /// CPU threads that share a batch, `1..=1024`; those of the machine where absent. Sums depend on their
    /// number, so a run writes down what it began with, and goes on with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// Recompute the activations of each block in the backward pass: less memory, about a third more time, the same result.
    #[serde(default)]
    pub gradient_checkpointing: bool,
    /// Thousands of images of a stage between two grids of samples, above 0; at least one optimiser step.
    pub sample_every_kimg: f64,
    /// Thousands of images of a stage between two checkpoints, above 0; at least one optimiser step.
    pub checkpoint_every_kimg: f64,
    /// Thousands of images of a stage between two lines of metrics, above 0; at least one optimiser step.
    pub log_every_kimg: f64,
    /// NFE of the teacher where it stands beside the student in grids and in the report, `1..=1000`.
    pub report_steps: usize,
    /// Images in a grid, `1..=1024`.
    pub report_images: usize,
}

/// The images to learn from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// `shapes` (procedural, [`SHAPES`]) or the path of a data set; where absent, the run must be given one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Images to draw, `1..=10_000_000`, where the source is `shapes`; other sources are read whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<usize>,
    /// Mirror each training image left to right with probability 1/2.
    pub horizontal_flip: bool,
    /// Tell the network the labels; `network.num_classes` is then filled in from the data.
    pub class_conditional: bool,
}

/// The `data.source` that names no path: shapes drawn by this program.
pub const SHAPES: &str = "shapes";

/// Training of the teacher, PAPER.md §2 and §8.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeacherConfig {
    /// Model file of a teacher to distil as it is, such as an imported one; where absent, one is trained.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Thousands of images, above 0; at least one optimiser step.
    pub kimg: f64,
    /// Images an optimiser step, `1..=65536`.
    pub batch: usize,
    /// Images a backward pass, at most; gradients accumulate over the batch. All at once where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub micro_batch: Option<usize>,
    /// Step size of Adam after the warm-up, above 0.
    pub learning_rate: f64,
    /// Thousands of images over which the learning rate rises from 0, 0 or more.
    pub warmup_kimg: f64,
    /// Share of the optimiser steps, the last ones, over which the learning rate falls to 0 like half a cosine, `[0, 1]`
    /// (arXiv 2405.18392).
    #[serde(default)]
    pub cooldown: f64,
    /// Largest norm of the whole gradient; a longer one is scaled down to it. Above 0.
    pub gradient_clip: f64,
    /// Half-life of the average of the weights that is sampled and distilled, in thousands of images, 0 or more; 0 is
    /// no average.
    pub ema_halflife_kimg: f64,
    /// Which noise belongs to which image.
    pub coupling: Coupling,
}

/// Distillation of the student: a consistency model with a curriculum, PAPER.md §5.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DistillConfig {
    /// Thousands of images, above 0; at least one optimiser step.
    pub kimg: f64,
    /// Images an optimiser step, `1..=65536`.
    pub batch: usize,
    /// Images a backward pass, at most; gradients accumulate over the batch. All at once where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub micro_batch: Option<usize>,
    /// Step size of Adam after the warm-up, above 0.
    pub learning_rate: f64,
    /// Thousands of images over which the learning rate rises from 0, 0 or more.
    pub warmup_kimg: f64,
    /// Share of the optimiser steps, the last ones, over which the learning rate falls to 0 like half a cosine, `[0, 1]`
    /// (arXiv 2405.18392).
    #[serde(default)]
    pub cooldown: f64,
    /// Largest norm of the whole gradient; a longer one is scaled down to it. Above 0.
    pub gradient_clip: f64,
    /// Where the target's `x_u` comes from.
    pub mode: Mode,
    /// Over what one KDC is taken, and so what decides to step on together.
    pub scope: Scope,
    /// The curriculum's threshold `T` on the KDC, in dB, `0..=100`; `fixed` does not read it.
    pub threshold: f64,
    /// Step size `s` of the teacher's solver, in flow time, `(0, 1]`.
    pub step_size: f64,
    /// How the teacher takes a step: `euler`, or `heun` with two evaluations.
    pub solver: StepSolver,
    /// `alpha` of `t = (U (1 - s))^alpha`, above 0; above 1 favours noise (PAPER.md §6).
    pub time_alpha: f64,
    /// What the student minimises.
    pub distance: DistanceKind,
    /// Weights of LPIPS' trunk, as torchvision publishes them; where the distance is one of `lpips-vgg16` and
    /// `lpips-alexnet`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lpips_trunk: Option<String>,
    /// Weights of LPIPS' heads, as the package `lpips` publishes them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lpips_heads: Option<String>,
    /// Weight of the adversarial loss, 0 or more: how long its gradient is, in lengths of the distance's. 1 is the paper's,
    /// 0 is none.
    pub adversarial_weight: f64,
    /// Thousands of images before there is an adversarial loss, 0 or more.
    pub adversarial_from_kimg: f64,
    /// Thousands of images, from there on, over which its weight grows linearly from 0; 0 or more. A large weight makes
    /// the student diverge where the discriminator tells its images from real ones at once.
    pub adversarial_warmup_kimg: f64,
    /// Step size of the discriminator's Adam, above 0; it cools down as the student's.
    pub discriminator_learning_rate: f64,
    /// Half-life of the average of the student that is the target network, in thousands of images, 0 or more; 0 is no
    /// average.
    pub target_halflife_kimg: f64,
    /// Half-life of the average of the student that is sampled and saved, in thousands of images, 0 or more; 0 is no
    /// average.
    pub sample_halflife_kimg: f64,
    /// Which noise belongs to which image.
    pub coupling: Coupling,
}

/// What LPIPS is made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LpipsFiles<'a> {
    /// The network whose features are compared.
    pub trunk: Trunk,
    /// Its weights.
    pub features: &'a Path,
    /// Weights of the heads.
    pub heads: &'a Path,
}

impl DistillConfig {
    /// The files of LPIPS; `None` where another distance is minimised.
    ///
    /// # Errors
    /// A file that LPIPS needs and the configuration does not name.
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

impl Config {
    /// The preset of this name, one of [`PRESETS`].
    ///
    /// # Errors
    /// [`ConfigError::UnknownPreset`] where there is none.
    pub fn preset(name: &str) -> Result<Self, ConfigError> {
        match PRESETS.iter().zip(PRESET_TEXTS).find(|(preset, _)| **preset == name) {
            Some((_, text)) => Self::from_toml(text),
            None => Err(ConfigError::UnknownPreset {
                name: keys::one_line(name),
                nearest: keys::nearest(name, PRESETS).to_owned(),
            }),
        }
    }

    /// Reads a whole configuration, such as the `config.toml` of a run. Ranges are [`Config::validate`]'s.
    ///
    /// # Errors
    /// Text that is not TOML, an unknown or missing key, or a value of the wrong type.
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        let entries = keys::parse(text)?;
        let known = Known::new()?;
        for (key, value) in &entries {
            known.check(known.find(key)?, value)?;
        }
        match known.keys.iter().find(|key| !keys::is_optional(key) && !entries.contains_key(*key)) {
            Some(key) => Err(ConfigError::MissingKey { key: key.clone() }),
            None => keys::assemble(entries),
        }
    }

    /// The architecture of a teacher that is trained.
    pub fn spec(&self) -> NetworkSpec {
        self.network.clone().into()
    }

    /// The whole configuration as TOML. The same configuration gives the same bytes.
    ///
    /// # Errors
    /// A value that TOML cannot hold; none in a configuration that [`Config::validate`] accepts.
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        toml::to_string(self)
            .map_err(|error| ConfigError::Toml { reason: keys::one_line(&error.to_string()) })
    }

    /// What `other` has changed, a line a setting, such as `distill.threshold: 60 before, 65 now`: `self` is
    /// before, `other` is now, and an optional setting that is absent is `none`. Empty where they are equal.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let (before, now) = match (keys::entries_of(self), keys::entries_of(other)) {
            (Ok(before), Ok(now)) => (before, now),
            (Err(error), _) | (_, Err(error)) => return vec![error.to_string()],
        };
        let added = now.keys().filter(|key| !before.contains_key(*key));
        let mut keys: Vec<_> = before.keys().chain(added).collect();
        keys.sort();
        let shown = |value| Option::map_or(value, "none".to_owned(), keys::shown);
        keys.into_iter()
            .filter(|key| before.get(*key) != now.get(*key))
            .map(|key| format!("{key}: {} before, {} now", shown(before.get(key)), shown(now.get(key))))
            .collect()
    }
}

#[cfg(test)]
mod tests;
