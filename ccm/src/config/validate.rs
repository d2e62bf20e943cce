//! Checks the ranges of a configuration's settings before a run starts.

use super::durations::{LONGEST_KIMG, decay};
use super::{Config, ConfigError, DataConfig, DistillConfig, FinishConfig, RunConfig, SHAPES, TeacherConfig};
use crate::model::networks::Family as _;
use std::fmt::Display;
use std::ops::RangeInclusive;

/// Images per optimiser step.
const BATCH: RangeInclusive<usize> = 1..=65_536;

/// CPU threads over which a batch is split.
const THREADS: RangeInclusive<usize> = 1..=1024;

/// Images that the source `shapes` generates.
const COUNT: RangeInclusive<usize> = 1..=10_000_000;

impl Config {
    /// Checks every setting against its range and against the others.
    ///
    /// A warm-up may be longer than its stage; the stage then ends during the warm-up.
    ///
    /// # Errors
    /// The first setting that is out of range or contradicts another.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.run.validate()?;
        self.data.validate()?;
        self.network.validate()?;
        if let (false, Some(classes)) = (self.data.class_conditional, self.network.num_classes) {
            return Err(wrong("network.num_classes", "none, as data.class_conditional is false", classes));
        }
        self.path.validate()?;
        self.teacher.validate()?;
        self.distill.validate()?;
        self.finish.validate()?;
        if self.distill.model.is_some() && self.teacher.model.is_none() {
            return Err(wrong("distill.model", "none, as teacher.model is not given", "a model"));
        }
        if self.distill.model.is_some() && self.finish.kimg == 0.0 {
            let expected =
                "thousands of images above 0, as distill.model is given and there is nothing else to do";
            return Err(wrong("finish.kimg", expected, 0));
        }
        Ok(())
    }
}

impl RunConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        if i64::try_from(self.seed).is_err() {
            return Err(wrong("run.seed", "a whole number from 0 to 9223372036854775807", self.seed));
        }
        if let Some(threads) = self.threads {
            within("run.threads", threads, THREADS)?;
        }
        duration("run.sample_every_kimg", self.sample_every_kimg)?;
        duration("run.checkpoint_every_kimg", self.checkpoint_every_kimg)?;
        duration("run.log_every_kimg", self.log_every_kimg)?;
        within("run.report_steps", self.report_steps, 1..=1000)?;
        within("run.report_images", self.report_images, 1..=1024)
    }
}

impl DataConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        match (self.source.as_deref(), self.count) {
            (Some(""), _) => Err(wrong("data.source", "`shapes` or a path", "an empty string")),
            (Some(SHAPES), None) => {
                Err(wrong("data.count", "the number of images to draw, as data.source is `shapes`", "none"))
            }
            (_, Some(count)) => within("data.count", count, COUNT),
            (_, None) => Ok(()),
        }
    }
}

impl TeacherConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        within("teacher.batch", self.batch, BATCH)?;
        duration("teacher.kimg", self.kimg)?;
        duration_or_none("teacher.warmup_kimg", self.warmup_kimg)?;
        some_images("teacher.micro_batch", self.micro_batch)?;
        positive("teacher.learning_rate", self.learning_rate)?;
        share("teacher.cooldown", self.cooldown)?;
        positive("teacher.gradient_clip", self.gradient_clip)?;
        halflife("teacher.ema_halflife_kimg", self.ema_halflife_kimg, self.batch)
    }
}

impl DistillConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        within("distill.batch", self.batch, BATCH)?;
        duration("distill.kimg", self.kimg)?;
        duration_or_none("distill.warmup_kimg", self.warmup_kimg)?;
        some_images("distill.micro_batch", self.micro_batch)?;
        positive("distill.learning_rate", self.learning_rate)?;
        share("distill.cooldown", self.cooldown)?;
        positive("distill.gradient_clip", self.gradient_clip)?;
        if !(0.0..=100.0).contains(&self.threshold) {
            return Err(wrong("distill.threshold", "a KDC from 0 to 100 dB", self.threshold));
        }
        if !(self.step_size > 0.0 && self.step_size <= 1.0) {
            return Err(wrong(
                "distill.step_size",
                "a step of flow time above 0 and at most 1",
                self.step_size,
            ));
        }
        self.lpips_files()?;
        positive("distill.time_alpha", self.time_alpha)?;
        zero_or_more("distill.adversarial_weight", self.adversarial_weight)?;
        duration_or_none("distill.adversarial_from_kimg", self.adversarial_from_kimg)?;
        duration_or_none("distill.adversarial_warmup_kimg", self.adversarial_warmup_kimg)?;
        positive("distill.discriminator_learning_rate", self.discriminator_learning_rate)?;
        halflife("distill.target_halflife_kimg", self.target_halflife_kimg, self.batch)?;
        halflife("distill.sample_halflife_kimg", self.sample_halflife_kimg, self.batch)
    }
}

impl FinishConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        duration_or_none("finish.kimg", self.kimg)?;
        within("finish.batch", self.batch, BATCH)?;
        some_images("finish.micro_batch", self.micro_batch)?;
        positive("finish.learning_rate", self.learning_rate)?;
        duration_or_none("finish.warmup_kimg", self.warmup_kimg)?;
        share("finish.cooldown", self.cooldown)?;
        positive("finish.gradient_clip", self.gradient_clip)?;
        positive("finish.discriminator_learning_rate", self.discriminator_learning_rate)?;
        zero_or_more("finish.r1_weight", self.r1_weight)?;
        halflife("finish.sample_halflife_kimg", self.sample_halflife_kimg, self.batch)
    }
}

fn wrong(key: &str, expected: impl Into<String>, found: impl Display) -> ConfigError {
    ConfigError::Value { key: key.to_owned(), expected: expected.into(), found: found.to_string() }
}

/// Checks a duration that must be above 0.
fn duration(key: &str, kimg: f64) -> Result<(), ConfigError> {
    if kimg > 0.0 && kimg <= LONGEST_KIMG {
        Ok(())
    } else {
        Err(wrong(key, format!("thousands of images, above 0 and at most {LONGEST_KIMG}"), kimg))
    }
}

/// Checks a duration that may be 0.
fn duration_or_none(key: &str, kimg: f64) -> Result<(), ConfigError> {
    if (0.0..=LONGEST_KIMG).contains(&kimg) {
        Ok(())
    } else {
        Err(wrong(key, format!("thousands of images, from 0 to {LONGEST_KIMG}"), kimg))
    }
}

/// Checks that a half-life gives a decay below 1 per step, so that the average changes.
fn halflife(key: &str, kimg: f64, batch: usize) -> Result<(), ConfigError> {
    if kimg >= 0.0 && decay(kimg, batch) < 1.0 {
        Ok(())
    } else {
        let expected = format!(
            "a half-life in thousands of images, 0 or more, that gives a decay below 1 a step of {batch} images"
        );
        Err(wrong(key, expected, kimg))
    }
}

fn within(key: &str, value: usize, range: RangeInclusive<usize>) -> Result<(), ConfigError> {
    let (least, most) = (range.start(), range.end());
    if range.contains(&value) { Ok(()) } else { Err(wrong(key, format!("{least} to {most}"), value)) }
}

fn some_images(key: &str, micro_batch: Option<usize>) -> Result<(), ConfigError> {
    if micro_batch == Some(0) { Err(wrong(key, "at least 1", 0)) } else { Ok(()) }
}

fn positive(key: &str, value: f64) -> Result<(), ConfigError> {
    if value > 0.0 && value.is_finite() { Ok(()) } else { Err(wrong(key, "a finite number above 0", value)) }
}

fn zero_or_more(key: &str, value: f64) -> Result<(), ConfigError> {
    if value >= 0.0 && value.is_finite() {
        Ok(())
    } else {
        Err(wrong(key, "a finite number, 0 or more", value))
    }
}

fn share(key: &str, value: f64) -> Result<(), ConfigError> {
    if (0.0..=1.0).contains(&value) { Ok(()) } else { Err(wrong(key, "a share from 0 to 1", value)) }
}
