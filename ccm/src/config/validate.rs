//! Checks the ranges of a configuration's settings before a run starts.

use super::durations::{LONGEST_KIMG, decay};
use super::{
    Config, ConfigError, DataConfig, DistillConfig, FinishConfig, RunConfig, SHAPES, TeacherConfig,
    TeacherTraining,
};
use crate::method::coupling::Coupling;
use crate::method::curriculum::{Mode, StepSolver};
use crate::model::networks::Family as _;
use std::fmt::Display;
use std::ops::RangeInclusive;

/// Images per optimiser step.
pub(super) const BATCH: RangeInclusive<usize> = 1..=65_536;

/// Images that one plan pairs: an assignment of n images takes n^3 operations.
const PLAN: RangeInclusive<usize> = 1..=16_384;

/// CPU threads over which a batch is split.
const THREADS: RangeInclusive<usize> = 1..=1024;

/// Images that the source `shapes` generates.
const COUNT: RangeInclusive<usize> = 1..=10_000_000;

/// Shortest step of the teacher: much shorter ones vanish in the rounding of times.
const SHORTEST_STEP: f64 = 0.001;

/// Pixels that a discriminator's images are moved by.
const MAX_TRANSLATION: usize = 64;

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
        self.check_plans()?;
        self.check_pipeline()?;
        self.check_autoguidance()?;
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

impl Config {
    /// Checks how many images a plan pairs.
    fn check_plans(&self) -> Result<(), ConfigError> {
        let (teacher, distill) = (&self.teacher, &self.distill);
        for (key, images, coupling) in [
            ("teacher.coupling_images", teacher.coupling_images, teacher.coupling),
            ("distill.coupling_images", distill.coupling_images, distill.coupling),
        ] {
            let Some(images) = images else { continue };
            within(key, images, PLAN)?;
            if coupling == Coupling::OptimalTransport && self.data.streamed {
                return Err(wrong(key, "none, as data.streamed is true", images));
            }
        }
        Ok(())
    }

    /// Checks that autoguidance has one weaker teacher, and that a weaker teacher is used.
    fn check_autoguidance(&self) -> Result<(), ConfigError> {
        let (teacher, distill) = (&self.teacher, &self.distill);
        let set = [
            ("teacher.weaker_kimg", teacher.weaker_kimg.map(|kimg| kimg.to_string())),
            ("distill.weaker_model", distill.weaker_model.clone()),
            ("distill.autoguidance_until", distill.autoguidance_until.map(|until| until.to_string())),
        ];
        let Some(scale) = distill.autoguidance else {
            return match set.into_iter().find_map(|(key, value)| Some((key, value?))) {
                Some((key, found)) => Err(wrong(key, "none, as distill.autoguidance is not given", found)),
                None => Ok(()),
            };
        };
        if !(scale >= 1.0 && scale.is_finite()) {
            return Err(wrong("distill.autoguidance", "a finite scale, 1 or more", scale));
        }
        if self.data.captions {
            return Err(wrong("distill.autoguidance", "none, as data.captions is true", scale));
        }
        if distill.mode == Mode::Ct {
            let expected = "none, as distill.mode is `ct`, which has no teacher";
            return Err(wrong("distill.autoguidance", expected, scale));
        }
        let until = distill.autoguidance_until.unwrap_or(1.0);
        if !(until > 0.0 && until <= 1.0) {
            return Err(wrong("distill.autoguidance_until", "a flow time above 0 and at most 1", until));
        }
        match (teacher.weaker_kimg, &distill.weaker_model) {
            (None, None) => Err(wrong(
                "distill.weaker_model",
                "a weaker teacher, as distill.autoguidance is given",
                "none",
            )),
            (Some(kimg), Some(_)) => {
                Err(wrong("teacher.weaker_kimg", "none, as distill.weaker_model is given", kimg))
            }
            (Some(kimg), None) if teacher.training == Some(TeacherTraining::FromWeights) => {
                let expected =
                    "none, as teacher.training is `from-weights`, and its first weights are not weaker";
                Err(wrong("teacher.weaker_kimg", expected, kimg))
            }
            (Some(kimg), None) if !(kimg > 0.0 && kimg < teacher.kimg) => Err(wrong(
                "teacher.weaker_kimg",
                "thousands of images, above 0 and less than teacher.kimg",
                kimg,
            )),
            _ => Ok(()),
        }
    }

    /// Checks the settings that only pipelines have, and those that they do not have.
    fn check_pipeline(&self) -> Result<(), ConfigError> {
        let (teacher, distill) = (&self.teacher, &self.distill);
        let not_without = |key: &str, given: bool| match given {
            true => Err(wrong(key, "none, as data.captions is false", "a value")),
            false => Ok(()),
        };
        if !self.data.captions {
            not_without("data.image_size", self.data.image_size.is_some())?;
            not_without("teacher.config", teacher.config.is_some())?;
            not_without("teacher.caption_dropout", teacher.caption_dropout.is_some())?;
            not_without("teacher.train_text_encoder", teacher.train_text_encoder)?;
            not_without("distill.guidance", distill.guidance.is_some())?;
            not_without("distill.guidance_channels", distill.guidance_channels.is_some())?;
            not_without("distill.lora_rank", distill.lora_rank.is_some())?;
        } else {
            let refused = [
                ("data.horizontal_flip", self.data.horizontal_flip),
                ("data.class_conditional", self.data.class_conditional),
            ];
            if let Some((key, _)) = refused.iter().find(|(_, set)| *set) {
                return Err(wrong(key, "false, as data.captions is true", true));
            }
            for (key, coupling) in
                [("teacher.coupling", teacher.coupling), ("distill.coupling", distill.coupling)]
            {
                if coupling != Coupling::Independent {
                    return Err(wrong(key, "independent, as data.captions is true", "optimal-transport"));
                }
            }
            if teacher.train_text_encoder && teacher.training.is_none() {
                return Err(wrong("teacher.train_text_encoder", "false without teacher.training", true));
            }
            if teacher.train_text_encoder && distill.lora_rank.is_some() {
                let expected = "none, as teacher.train_text_encoder is true";
                return Err(wrong("distill.lora_rank", expected, "a number"));
            }
            if distill.lora_rank.is_some() && self.finish.kimg > 0.0 {
                return Err(wrong("finish.kimg", "0, as distill.lora_rank is given", self.finish.kimg));
            }
        }
        // A pipeline is missing in a preset, as images are; a run needs it.
        if teacher.training.is_some() && teacher.model.is_none() && !self.data.captions {
            return Err(wrong("teacher.training", "none, as teacher.model is not given", "a value"));
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
        if let Some(buffer) = self.shuffle_buffer {
            within("data.shuffle_buffer", buffer, COUNT)?;
            if !self.streamed {
                return Err(wrong("data.shuffle_buffer", "none, as data.streamed is false", buffer));
            }
        }
        if self.streamed && (self.captions || self.source.as_deref() == Some(SHAPES)) {
            let expected = "false with captions and with generated images, which are in memory";
            return Err(wrong("data.streamed", expected, "true"));
        }
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
        duration("teacher.kimg", self.kimg)?;
        self.stage().validate("teacher")?;
        if let Some(dropout) = self.caption_dropout
            && !(0.0..1.0).contains(&dropout)
        {
            return Err(wrong(
                "teacher.caption_dropout",
                "a share from 0 up to but not including 1",
                dropout,
            ));
        }
        halflife("teacher.ema_halflife_kimg", self.ema_halflife_kimg, self.batch)
    }
}

impl DistillConfig {
    fn check_text_settings(&self) -> Result<(), ConfigError> {
        positive("distill.kdc_peak", self.kdc_peak.unwrap_or(1.0))?;
        if let Some([low, high]) = self.guidance
            && !(low.is_finite() && high.is_finite() && 0.0 <= low && low <= high)
        {
            let found = format!("[{low}, {high}]");
            return Err(wrong("distill.guidance", "two numbers, 0 or more, the smaller one first", found));
        }
        if self.guidance.is_some() && self.mode == Mode::Ct {
            return Err(wrong(
                "distill.guidance",
                "none, as distill.mode is `ct`, which has no teacher",
                "a range",
            ));
        }
        if let Some(channels) = self.guidance_channels {
            if channels == 0 || channels % 2 == 1 || channels > 4096 {
                return Err(wrong("distill.guidance_channels", "an even number from 2 to 4096", channels));
            }
            if self.guidance.is_none() || self.lora_rank.is_some() {
                let expected = "none, as the student has no guidance or only low-rank products";
                return Err(wrong("distill.guidance_channels", expected, channels));
            }
        }
        if let Some(rank) = self.lora_rank {
            within("distill.lora_rank", rank, 1..=4096)?;
        }
        positive("distill.lora_alpha", self.lora_alpha.unwrap_or(1.0))?;
        if self.lora_rank.is_none() && (self.lora_alpha.is_some() || self.lora_targets.is_some()) {
            return Err(wrong("distill.lora_rank", "a rank, as lora_alpha or lora_targets is given", "none"));
        }
        Ok(())
    }

    fn validate(&self) -> Result<(), ConfigError> {
        duration("distill.kimg", self.kimg)?;
        self.stage().validate("distill")?;
        if !(0.0..=100.0).contains(&self.threshold) {
            return Err(wrong("distill.threshold", "a KDC from 0 to 100 dB", self.threshold));
        }
        if !(SHORTEST_STEP..=1.0).contains(&self.step_size) {
            let expected = format!("a step from {SHORTEST_STEP} to 1");
            return Err(wrong("distill.step_size", expected, self.step_size));
        }
        if (self.mode, self.solver) == (Mode::Ct, StepSolver::Heun) {
            return Err(wrong(
                "distill.solver",
                "euler, as distill.mode is `ct`, which has no teacher",
                "heun",
            ));
        }
        if !(1.0..=100.0).contains(&self.step_shift.unwrap_or(1.0)) {
            let found = self.step_shift.unwrap_or(1.0);
            return Err(wrong("distill.step_shift", "a shift of the teacher's times from 1 to 100", found));
        }
        self.lpips_files()?;
        self.check_text_settings()?;
        positive("distill.time_alpha", self.time_alpha)?;
        zero_or_more("distill.adversarial_weight", self.adversarial_weight)?;
        positive("distill.discriminator_noise_power", self.discriminator_noise_power.unwrap_or(1.0))?;
        let translation = self.discriminator_translation.unwrap_or(0);
        within("distill.discriminator_translation", translation, 0..=MAX_TRANSLATION)?;
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
        self.stage().validate("finish")?;
        positive("finish.discriminator_learning_rate", self.discriminator_learning_rate)?;
        zero_or_more("finish.r1_weight", self.r1_weight)?;
        halflife("finish.sample_halflife_kimg", self.sample_halflife_kimg, self.batch)
    }
}

pub(super) fn wrong(key: &str, expected: impl Into<String>, found: impl Display) -> ConfigError {
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
pub(super) fn duration_or_none(key: &str, kimg: f64) -> Result<(), ConfigError> {
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

pub(super) fn within(key: &str, value: usize, range: RangeInclusive<usize>) -> Result<(), ConfigError> {
    let (least, most) = (range.start(), range.end());
    if range.contains(&value) { Ok(()) } else { Err(wrong(key, format!("{least} to {most}"), value)) }
}

pub(super) fn positive(key: &str, value: f64) -> Result<(), ConfigError> {
    if value > 0.0 && value.is_finite() { Ok(()) } else { Err(wrong(key, "a finite number above 0", value)) }
}

fn zero_or_more(key: &str, value: f64) -> Result<(), ConfigError> {
    if value >= 0.0 && value.is_finite() {
        Ok(())
    } else {
        Err(wrong(key, "a finite number, 0 or more", value))
    }
}
