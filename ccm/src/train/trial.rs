//! Distils students of one teacher at equal cost, for the comparison of PAPER.md §7.

use super::batches::StageKind;
use super::distill::Distillation;
use super::error::RunError;
use super::run::Run;
use super::state::Stage;
use crate::model::Role;
use crate::weights::Model;

/// A student distilled with a budget of network evaluations.
#[derive(Debug, Clone)]
pub struct Trial {
    /// The sampled average of its weights.
    pub student: Model,
    /// Optimiser steps taken, including skipped ones.
    pub steps: u64,
    /// Network evaluations spent, counted per image: of the student, the teacher and the target.
    pub evaluations: u64,
}

impl Run {
    /// Distils a student of `teacher` with the configuration's settings until a budget of network evaluations is spent.
    /// The number of steps follows from the budget. Writes no files. Calls `watch` with the evaluations spent so far.
    ///
    /// [`super::state::StepReport::evaluations`] defines the count. The backward pass of the student, one per step, is
    /// not counted. The cooldown and the adversarial loss keep their shares of the total number of steps, so that all
    /// settings have the same schedule relative to their length.
    ///
    /// # Errors
    /// A loss or weights that are not finite; weights of a distance that cannot be read.
    pub fn trial(
        &self,
        teacher: &Model,
        evaluations: u64,
        watch: &mut dyn FnMut(u64),
    ) -> Result<Trial, RunError> {
        self.set_precision()?;
        let basis = self.basis(teacher)?;
        let mut distillation = self.distillation(&basis, self.fresh_student(&basis))?;
        // The number of steps within the budget is unknown before the first step.
        self.stretch(&mut distillation, u64::MAX);
        let mut spent = 0;
        while spent < evaluations {
            let report = distillation.step()?;
            if let Some(what) = report.fault() {
                return Err(self.diverged(StageKind::Distill, report.step, what));
            }
            spent += report.evaluations;
            watch(spent);
            // The estimated total, from the mean cost of a step so far.
            let steps = report.step as f64 * evaluations as f64 / spent as f64;
            self.stretch(&mut distillation, steps.ceil() as u64);
        }
        Ok(Trial {
            student: distillation.sampled().denoiser.to_model(self.card(
                Role::Student,
                &distillation,
                self.config.distill.batch,
            )),
            steps: distillation.state().step,
            evaluations: spent,
        })
    }

    /// Stretches the schedule of a distillation to `steps` steps instead of the configuration's number.
    fn stretch(&self, distillation: &mut Distillation, steps: u64) {
        let config = &self.config.distill;
        let share = |of_run: u64| (of_run as f64 / config.steps() as f64 * steps as f64).ceil() as u64;
        distillation.schedule.steps = steps;
        if let Some(adversary) = &mut distillation.adversary {
            adversary.from = share(config.adversarial_from());
            adversary.warmup_steps = share(config.adversarial_warmup_steps());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use burn::tensor::Device;

    use super::*;
    use crate::config::Config;
    use crate::data::{ImageShape, Split, shapes};
    use crate::method::distance::{Distance, DistanceKind};
    use crate::nn::denoiser::random_model;
    use crate::train::given::Given;
    use crate::train::group::Alone;
    use crate::train::run::suit;

    /// 100 steps; an adversarial loss after 10, at its full weight after 50 more.
    const SETTINGS: [&str; 4] = [
        "distill.kimg=3.2",
        "distill.adversarial_weight=1.0",
        "distill.adversarial_from_kimg=0.32",
        "distill.adversarial_warmup_kimg=1.6",
    ];

    /// A run before its first step, and an untrained teacher.
    fn run() -> (Run, Model) {
        let mut config =
            Config::preset("shapes").unwrap().with_overrides(&SETTINGS.map(String::from)).unwrap();
        let shape = ImageShape::of(&config.spec());
        let data = |split| shapes(64, shape, split, 0).unwrap();
        let [data, held_out] = [Split::Train, Split::HeldOut].map(|split| Arc::new(data(split).into()));
        let (given, group) = (Arc::new(Given::default()), Arc::new(Alone));
        suit(&mut config, &given, &data).unwrap();
        let teacher = random_model(config.spec(), &config.path.prediction(), 3);
        let (folder, command, device) = ("never written".into(), String::new(), Device::flex());
        (Run { config, folder, device, threads: 1, group, given, data, held_out, command }, teacher)
    }

    #[test]
    fn the_teacher_is_on_the_device_once() {
        let (mut run, teacher) = run();
        run.config.distill.distance = DistanceKind::TeacherFeatures;
        let basis = run.basis(&teacher).unwrap();
        let distillation = run.distillation(&basis, run.fresh_student(&basis)).unwrap();
        let Distance::TeacherFeatures(of_distance) = &distillation.distance else {
            panic!("{:?}", distillation.distance)
        };
        assert!(Arc::ptr_eq(of_distance, &distillation.adversary.as_ref().unwrap().encoder));
    }

    #[test]
    fn a_shorter_schedule_keeps_the_shares_of_the_adversarial_loss() {
        let (run, teacher) = run();
        let basis = run.basis(&teacher).unwrap();
        let mut distillation = run.distillation(&basis, run.fresh_student(&basis)).unwrap();
        let mut stretched = |steps| {
            run.stretch(&mut distillation, steps);
            let adversary = distillation.adversary.as_ref().unwrap();
            (distillation.schedule.steps, adversary.from, adversary.warmup_steps)
        };
        assert_eq!(stretched(50), (50, 5, 25));
        // The shares refer to the configuration's steps, not to an earlier stretch.
        assert_eq!(stretched(300), (300, 30, 150));
    }
}
