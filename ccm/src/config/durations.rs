//! Converts durations in thousands of images (kimg) to optimiser steps, and half-lives in kimg to decays per step.
//! Both depend on the batch size of the stage.
//!
//! ```text
//! steps = round(1000 kimg / batch)
//! decay = 0.5^(batch / (1000 halflife))
//! ```
//!
//! Decays are rounded to a multiple of 1e-6, so that a half-life with few digits gives a round decay: with a batch of
//! 32, the half-life 4.425 gives 0.995. The half-life 0 gives the decay 0, which means no averaging.

use super::{DistillConfig, FinishConfig, RunConfig, TeacherConfig};

/// Images per unit of duration.
const KIMG: f64 = 1000.0;

/// Decays are multiples of `1 / DECAY_UNITS`.
const DECAY_UNITS: f64 = 1e6;

/// The longest duration, in thousands of images: 2^53 images. `f64` represents every integer up to there.
pub(super) const LONGEST_KIMG: f64 = (1_u64 << 53) as f64 / KIMG;

/// Optimiser steps, rounded to the nearest integer, which may be 0.
pub(super) fn steps(kimg: f64, batch: usize) -> u64 {
    (kimg * KIMG / batch as f64).round() as u64
}

/// Optimiser steps, rounded to the nearest integer, at least 1.
pub(super) fn at_least_one_step(kimg: f64, batch: usize) -> u64 {
    steps(kimg, batch).max(1)
}

/// Decay per step of an average with this half-life: a multiple of 1e-6 in `[0, 1]`. A very long half-life gives 1,
/// with which the average would never change; [`super::Config::validate`] rejects it.
pub(super) fn decay(halflife_kimg: f64, batch: usize) -> f64 {
    if halflife_kimg == 0.0 {
        return 0.0;
    }
    let decay = 0.5_f64.powf(batch as f64 / (KIMG * halflife_kimg));
    (decay * DECAY_UNITS).round() / DECAY_UNITS
}

impl RunConfig {
    /// Optimiser steps of `batch` images between two sample grids.
    pub fn sample_every(&self, batch: usize) -> u64 {
        at_least_one_step(self.sample_every_kimg, batch)
    }

    /// Optimiser steps of `batch` images between two checkpoints.
    pub fn checkpoint_every(&self, batch: usize) -> u64 {
        at_least_one_step(self.checkpoint_every_kimg, batch)
    }

    /// Optimiser steps of `batch` images between two lines of the metrics log.
    pub fn log_every(&self, batch: usize) -> u64 {
        at_least_one_step(self.log_every_kimg, batch)
    }
}

impl TeacherConfig {
    /// Optimiser steps after which the weaker teacher is saved, at least 1.
    pub fn weaker_steps(&self) -> Option<u64> {
        self.weaker_kimg.map(|kimg| at_least_one_step(kimg, self.batch))
    }

    /// Whether the teacher is given, so that at most a weaker one is trained beside it.
    pub fn trains_only_weaker(&self) -> bool {
        self.model.is_some() && self.training.is_none()
    }

    /// Decay per step of the weight average that is sampled and distilled.
    pub fn decay(&self) -> f64 {
        decay(self.ema_halflife_kimg, self.batch)
    }
}

impl DistillConfig {
    /// Optimiser steps before the adversarial loss starts.
    pub fn adversarial_from(&self) -> u64 {
        steps(self.adversarial_from_kimg, self.batch)
    }

    /// Optimiser steps over which the weight of the adversarial loss then grows from 0.
    pub fn adversarial_warmup_steps(&self) -> u64 {
        steps(self.adversarial_warmup_kimg, self.batch)
    }

    /// Decay per step of the target network, an average of the student's weights.
    pub fn target_decay(&self) -> f64 {
        decay(self.target_halflife_kimg, self.batch)
    }

    /// Decay per step of the average of the student's weights that is sampled and saved.
    pub fn sample_decay(&self) -> f64 {
        decay(self.sample_halflife_kimg, self.batch)
    }
}

impl FinishConfig {
    /// Decay per step of the average of the student's weights that is sampled and saved.
    pub fn sample_decay(&self) -> f64 {
        decay(self.sample_halflife_kimg, self.batch)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use crate::config::Config;

    /// The teacher's steps, warm-up steps and decay.
    type OfTeacher = (u64, u64, f64);

    /// The student's steps, warm-up steps, first step and warm-up steps of the adversarial loss, and decays of the
    /// target and of the sampled average.
    type OfStudent = (u64, u64, u64, u64, f64, f64);

    #[test]
    fn each_preset_has_round_numbers_of_steps_and_round_decays() {
        let presets: [(&str, OfTeacher, OfStudent); 6] = [
            ("shapes", (900, 100, 0.99), (400, 30, 0, 60, 0.9, 0.98)),
            ("mnist", (3000, 200, 0.998), (5000, 50, 0, 5000, 0.9, 0.995)),
            ("cifar10-small", (3600, 200, 0.998), (1500, 50, 0, 1500, 0.9, 0.995)),
            ("avatars", (4000, 100, 0.996_31), (3000, 50, 750, 500, 0.9, 0.994_47)),
            ("cifar10", (400_000, 5000, 0.9999), (300_000, 5000, 100_000, 0, 0.9, 0.9999)),
            ("imagenet64", (400_000, 5000, 0.9999), (300_000, 5000, 100_000, 0, 0.9, 0.9999)),
        ];
        for (name, of_teacher, of_student) in presets {
            let Config { teacher, distill, .. } = Config::preset(name).unwrap();
            assert_eq!(
                (teacher.steps(), teacher.stage().warmup_steps(), teacher.decay()),
                of_teacher,
                "{name}"
            );
            let found = (
                distill.steps(),
                distill.stage().warmup_steps(),
                distill.adversarial_from(),
                distill.adversarial_warmup_steps(),
                distill.target_decay(),
                distill.sample_decay(),
            );
            assert_eq!(found, of_student, "{name}");
        }
    }

    #[test]
    fn each_preset_has_round_intervals_of_the_teacher() {
        for (name, intervals) in [
            ("shapes", [200, 250, 10]),
            ("mnist", [500, 500, 10]),
            ("cifar10-small", [500, 500, 10]),
            ("avatars", [1000, 500, 20]),
            ("cifar10", [5000, 5000, 100]),
            ("imagenet64", [10_000, 10_000, 100]),
        ] {
            let Config { run, teacher: of, .. } = Config::preset(name).unwrap();
            let found = [run.sample_every(of.batch), run.checkpoint_every(of.batch), run.log_every(of.batch)];
            assert_eq!(found, intervals, "{name}");
        }
    }

    #[test]
    fn a_larger_batch_takes_fewer_steps_and_a_smaller_decay() {
        let mut teacher = Config::preset("mnist").unwrap().teacher;
        teacher.batch *= 2;
        assert_eq!((teacher.steps(), teacher.stage().warmup_steps()), (1500, 100));
        // 0.998^2, rounded to a multiple of 1e-6.
        assert_eq!(teacher.decay(), 0.996_004);
    }

    #[test]
    fn steps_are_rounded_and_only_a_warm_up_may_be_none() {
        let mut teacher = Config::preset("shapes").unwrap().teacher;
        (teacher.kimg, teacher.warmup_kimg) = (0.047, 0.015);
        assert_eq!((teacher.steps(), teacher.stage().warmup_steps()), (1, 0));
        (teacher.kimg, teacher.warmup_kimg) = (0.001, 0.049);
        assert_eq!((teacher.steps(), teacher.stage().warmup_steps()), (1, 2));
        let mut run = Config::preset("shapes").unwrap().run;
        run.log_every_kimg = 0.001;
        assert_eq!(run.log_every(32), 1);
    }

    #[test]
    fn a_decay_halves_over_a_half_life_and_0_is_none() {
        assert_eq!(super::decay(0.008, 8), 0.5);
        assert_eq!(super::decay(0.024, 8), 0.793_701);
        assert_eq!(super::decay(0.0, 8), 0.0);
        assert_eq!(super::decay(f64::INFINITY, 8), 1.0);
    }
}
