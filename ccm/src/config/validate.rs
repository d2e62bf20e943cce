//! The ranges of a configuration's numbers, each checked once, before a run starts.

use super::{Config, ConfigError, DataConfig, DistillConfig, RunConfig, SHAPES, TeacherConfig};
use std::fmt::Display;
use std::ops::RangeInclusive;

/// Images of one optimiser step.
const BATCH: RangeInclusive<usize> = 1..=65_536;

/// CPU threads that share a batch.
const THREADS: RangeInclusive<usize> = 1..=1024;

/// Images that `shapes` draws.
const COUNT: RangeInclusive<usize> = 1..=10_000_000;

impl Config {
    /// Checks every setting against its range and against the others.
    ///
    /// A warm-up may be longer than its run: a shortened run then ends inside it.
    ///
    /// # Errors
    /// The first setting that is out of range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.run.validate()?;
        self.data.validate()?;
        self.network.validate()?;
        if let (false, Some(classes)) = (self.data.class_conditional, self.network.num_classes) {
            return Err(wrong("network.num_classes", "none, as data.class_conditional is false", classes));
        }
        self.path.validate()?;
        self.teacher.validate()?;
        self.distill.validate()
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
        at_least_one("run.sample_every", self.sample_every)?;
        at_least_one("run.checkpoint_every", self.checkpoint_every)?;
        at_least_one("run.log_every", self.log_every)?;
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
        at_least_one("teacher.steps", self.steps)?;
        within("teacher.batch", self.batch, BATCH)?;
        some_images("teacher.micro_batch", self.micro_batch)?;
        positive("teacher.learning_rate", self.learning_rate)?;
        share("teacher.cooldown", self.cooldown)?;
        positive("teacher.gradient_clip", self.gradient_clip)?;
        decay("teacher.ema", self.ema)
    }
}

impl DistillConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        at_least_one("distill.steps", self.steps)?;
        within("distill.batch", self.batch, BATCH)?;
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
        if !(self.adversarial_weight >= 0.0 && self.adversarial_weight.is_finite()) {
            return Err(wrong(
                "distill.adversarial_weight",
                "a finite number, 0 or more",
                self.adversarial_weight,
            ));
        }
        positive("distill.discriminator_learning_rate", self.discriminator_learning_rate)?;
        decay("distill.target_ema", self.target_ema)?;
        decay("distill.sample_ema", self.sample_ema)
    }
}

fn wrong(key: &str, expected: impl Into<String>, found: impl Display) -> ConfigError {
    ConfigError::Value { key: key.to_owned(), expected: expected.into(), found: found.to_string() }
}

fn at_least_one(key: &str, steps: u64) -> Result<(), ConfigError> {
    if steps >= 1 { Ok(()) } else { Err(wrong(key, "at least 1", steps)) }
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

fn share(key: &str, value: f64) -> Result<(), ConfigError> {
    if (0.0..=1.0).contains(&value) { Ok(()) } else { Err(wrong(key, "a share from 0 to 1", value)) }
}

fn decay(key: &str, value: f64) -> Result<(), ConfigError> {
    let expected = "a decay from 0 up to but not including 1";
    if (0.0..1.0).contains(&value) { Ok(()) } else { Err(wrong(key, expected, value)) }
}
