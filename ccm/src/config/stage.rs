//! The settings that the stages of training share: duration, batch and optimiser.

use super::durations::{at_least_one_step, steps};
use super::validate::{BATCH, duration_or_none, positive, within, wrong};
use super::{ConfigError, DistillConfig, FinishConfig, TeacherConfig};

/// The settings that every stage of training has. [`TeacherConfig`], [`DistillConfig`] and [`FinishConfig`] define them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StageConfig {
    /// Training images, in thousands.
    pub kimg: f64,
    /// Images per optimiser step.
    pub batch: usize,
    /// Largest number of images in a backward pass.
    pub micro_batch: Option<usize>,
    /// Learning rate after the warm-up.
    pub learning_rate: f64,
    /// Length of the warm-up, in thousands of images.
    pub warmup_kimg: f64,
    /// Share of the optimiser steps, at the end, over which the learning rate falls to 0.
    pub cooldown: f64,
    /// Largest norm of the gradient of all parameters.
    pub gradient_clip: f64,
}

impl StageConfig {
    /// Optimiser steps, at least 1; 0 if the stage is omitted.
    pub fn steps(&self) -> u64 {
        if self.kimg > 0.0 { at_least_one_step(self.kimg, self.batch) } else { 0 }
    }

    /// Optimiser steps of the learning-rate warm-up.
    pub fn warmup_steps(&self) -> u64 {
        steps(self.warmup_kimg, self.batch)
    }

    /// Checks all settings but the duration, which only some stages may have as 0.
    pub(super) fn validate(&self, section: &str) -> Result<(), ConfigError> {
        let key = |name: &str| format!("{section}.{name}");
        within(&key("batch"), self.batch, BATCH)?;
        if self.micro_batch == Some(0) {
            return Err(wrong(&key("micro_batch"), "at least 1", 0));
        }
        positive(&key("learning_rate"), self.learning_rate)?;
        duration_or_none(&key("warmup_kimg"), self.warmup_kimg)?;
        if !(0.0..=1.0).contains(&self.cooldown) {
            return Err(wrong(&key("cooldown"), "a share from 0 to 1", self.cooldown));
        }
        positive(&key("gradient_clip"), self.gradient_clip)
    }
}

macro_rules! stages {
    ($($section:ty),*) => {$(
        impl $section {
            /// The settings that every stage has.
            pub fn stage(&self) -> StageConfig {
                let &Self { kimg, batch, micro_batch, learning_rate, warmup_kimg, cooldown, gradient_clip, .. } = self;
                StageConfig { kimg, batch, micro_batch, learning_rate, warmup_kimg, cooldown, gradient_clip }
            }

            /// As [`StageConfig::steps`].
            pub fn steps(&self) -> u64 {
                self.stage().steps()
            }
        }
    )*};
}

stages!(TeacherConfig, DistillConfig, FinishConfig);
