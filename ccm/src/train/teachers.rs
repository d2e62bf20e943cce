//! The teachers of a run: the one that is distilled, given or trained, and the weaker one that autoguidance leads away from.

use super::batches::StageKind;
use super::drive::Watch;
use super::error::RunError;
use super::folder::files;
use super::given::check_weaker;
use super::run::{Outcome, Run};
use super::stages::{Basis, schedule};
use super::state::{Stage as _, TrainState};
use super::teacher::Teacher;
use super::trainable::Trainable;
use crate::config::TeacherTraining;
use crate::disk;
use crate::method::guidance::{Guidance, Teacher as Guided};
use crate::method::teacher::TimeDistribution;
use crate::model::Role;
use crate::nn::conditions::Conditions;
use crate::nn::denoiser::{Denoiser, random_model};
use crate::weights::Model;

impl Run {
    /// The teacher: the given one, one trained earlier, or one trained now; `None` if interrupted. A weaker teacher is saved on
    /// the way, or is all that is trained beside a given one.
    pub(super) fn teacher(&self, watch: &mut dyn Watch) -> Result<Option<Model>, RunError> {
        let config = &self.config.teacher;
        let untrained = || random_model(self.spec(), &self.prediction(), self.config.run.seed);
        if let (Some(given), None) = (&self.given.teacher, config.training) {
            let outcome = match config.weaker_steps() {
                Some(steps) if self.given.student.is_none() && !self.path(files::WEAKER).exists() => {
                    let first = untrained();
                    self.save_weaker(&mut self.teaching(&first, watch)?, &first, steps, watch)?
                }
                _ => Outcome::Finished,
            };
            return Ok((outcome == Outcome::Finished).then(|| given.clone()));
        }
        let path = self.path(files::TEACHER);
        if path.exists() {
            return Ok(Some(self.given.trained_teacher(&self.config, &path)?));
        }
        let first = match (&self.given.teacher, config.training) {
            (Some(given), Some(TeacherTraining::FromWeights)) => given.clone(),
            _ => untrained(),
        };
        let mut teacher = self.teaching(&first, watch)?;
        if let Some(steps) = config.weaker_steps().filter(|&steps| teacher.state.step <= steps)
            && self.save_weaker(&mut teacher, &first, steps, watch)? == Outcome::Interrupted
        {
            return Ok(None);
        }
        let steps = (config.steps(), config.batch);
        if self.drive(StageKind::Teacher, &mut teacher, steps, watch)? == Outcome::Interrupted {
            return Ok(None);
        }
        let model = teacher.sampled().denoiser.to_model(self.card(Role::Teacher, &teacher, config.batch));
        self.write(&path, &model.to_bytes())?;
        watch.note(&format!("teacher: {}", path.display()));
        Ok(Some(model))
    }

    /// The training of a teacher that begins with the weights of `first`, at its newest checkpoint.
    fn teaching(&self, first: &Model, watch: &mut dyn Watch) -> Result<Teacher<'_>, RunError> {
        let config = &self.config.teacher;
        let trainable = Trainable::weights(first);
        let state = match self.resumed(StageKind::Teacher, &trainable, None, &mut |text| watch.note(text))? {
            Some(state) => state,
            None => TrainState::new(first, &[config.decay()], &self.device),
        };
        let workers = self.workers(&config.stage())?;
        Ok(Teacher {
            batches: self
                .batches(&self.data, StageKind::Teacher, config.batch, config.coupling)
                .with_rows(workers.rows(config.batch)),
            schedule: schedule(&config.stage()),
            state: self.with_settings(state, &workers),
            workers,
            times: self.times(),
        })
    }

    /// Trains a teacher up to `steps`, and saves its average, without the share of the weights of `first`, as the weaker one.
    fn save_weaker(
        &self,
        teacher: &mut Teacher<'_>,
        first: &Model,
        steps: u64,
        watch: &mut dyn Watch,
    ) -> Result<Outcome, RunError> {
        let batch = self.config.teacher.batch;
        let outcome = self.drive(StageKind::Teacher, teacher, (steps, batch), watch)?;
        if outcome == Outcome::Finished {
            let card = self.card(Role::Teacher, teacher, batch);
            // If all steps were skipped, the average is still that of the first weights.
            let updates = (steps - teacher.state.optimizer.skipped()).max(1);
            let weaker = teacher.sampled().without_start(&first.tensors, updates).to_model(card);
            self.write(&self.path(files::WEAKER), &weaker.to_bytes())?;
            // The other ranks read the file.
            self.group.barrier();
        }
        Ok(outcome)
    }

    /// The distribution of the teacher's training times: the configuration's, or the usual one of a given model's path.
    fn times(&self) -> TimeDistribution {
        match &self.given.teacher {
            None => self.config.path.times(),
            Some(given) => TimeDistribution::of(&given.prediction),
        }
    }

    /// The weaker teacher of autoguidance, given or saved by the run, if the run distils.
    pub(super) fn weaker(&self) -> Result<Option<Denoiser>, RunError> {
        if self.config.distill.autoguidance.is_none() || self.given.student.is_some() {
            return Ok(None);
        }
        let weaker = match &self.given.weaker {
            Some(given) => given.clone(),
            None => {
                let path = self.path(files::WEAKER);
                let weaker = disk::read_model(&path)?;
                check_weaker(&weaker, (&self.spec(), &self.prediction()), &path.display())?;
                weaker
            }
        };
        Ok(Some(Denoiser::frozen(&weaker, &self.device)))
    }

    /// The teacher of a run, with the guidance of the configuration.
    pub(super) fn guided_teacher(&self, basis: &Basis) -> Guided {
        // `without_gradients` shares the weights.
        let denoiser = basis.frozen.without_gradients();
        let config = &self.config.distill;
        match (&basis.weaker, config.autoguidance) {
            (Some(weaker), Some(scale)) => {
                let (scale, until) = (scale as f32, config.autoguidance_until.unwrap_or(1.0) as f32);
                let guidance = Guidance::Auto { weaker: weaker.without_gradients(), scale, until };
                Guided { denoiser, guidance }
            }
            _ => self.guided(denoiser),
        }
    }

    /// A network with the classifier-free guidance of the configuration.
    pub(super) fn guided(&self, denoiser: Denoiser) -> Guided {
        let guidance = match (self.config.distill.guidance, denoiser.spec().text(), self.data.texts()) {
            (Some(_), Some(shape), Some(texts)) => {
                let negative = Conditions::of_texts(&[texts.negative()], shape, &self.device);
                Guidance::ClassifierFree(negative)
            }
            _ => Guidance::None,
        };
        Guided { denoiser, guidance }
    }
}
