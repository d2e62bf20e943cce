//! The stages of a run, made from its configuration: training of the teacher, distillation, adversarial fine-tuning.

use std::sync::Arc;

use super::batches::StageKind;
use super::distill::Distillation;
use super::error::RunError;
use super::finish::Finish;
use super::folder::files;
use super::given::read_teacher;
use super::run::{Outcome, Run, Watch};
use super::state::{TrainState, Workers};
use super::teacher::Teacher;
use crate::disk;
use crate::method::adversary::Adversary;
use crate::method::coupling::Coupling;
use crate::method::curriculum::{Curriculum, Scope};
use crate::method::discriminator::{AdversarialLoss, Discriminator};
use crate::method::distance::{Distance, DistanceKind};
use crate::method::lpips::Lpips;
use crate::model::Role;
use crate::model::graph::{Graph, Op, Shape};
use crate::nn::denoiser::{Denoiser, random_model};
use crate::nn::optimizer::Schedule;
use crate::weights::Model;

impl Run {
    /// The teacher: the given one, one trained earlier, or one trained now; `None` if interrupted.
    pub(super) fn teacher(&self, watch: &mut dyn Watch) -> Result<Option<Model>, RunError> {
        if let Some(given) = &self.given.teacher {
            return Ok(Some(given.clone()));
        }
        let path = self.path(files::TEACHER);
        if path.exists() {
            return Ok(Some(read_teacher(&self.config, &path)?));
        }
        let config = &self.config.teacher;
        let state =
            match self.resumed(StageKind::Teacher, (&self.spec(), &self.prediction()), &mut |text| {
                watch.note(text)
            })? {
                Some(state) => state,
                None => {
                    let model = random_model(&self.spec(), &self.prediction(), self.config.run.seed);
                    TrainState::new(&model, &[config.decay()], &self.device)
                }
            };
        let mut teacher = Teacher {
            batches: self.batches(&self.data, StageKind::Teacher, config.batch, config.coupling),
            schedule: Schedule {
                learning_rate: config.learning_rate,
                warmup_steps: config.warmup_steps(),
                steps: config.steps(),
                cooldown: config.cooldown,
                gradient_clip: config.gradient_clip,
            },
            workers: self.workers(config.batch, config.micro_batch)?,
            times: self.config.path.times(),
            state: self.with_checkpointing(state),
        };
        let steps = (config.steps(), config.batch);
        let outcome = self.drive(StageKind::Teacher, &mut teacher, steps, watch)?;
        if outcome == Outcome::Interrupted {
            return Ok(None);
        }
        let model = self.trained(Role::Teacher, &teacher, config.batch);
        disk::write(&path, &model.to_bytes())?;
        watch.note(&format!("teacher: {}", path.display()));
        Ok(Some(model))
    }

    /// The distilled student: the given one, one distilled earlier, or one distilled now; `None` if interrupted.
    pub(super) fn distill(&self, teacher: &Model, watch: &mut dyn Watch) -> Result<Option<Model>, RunError> {
        if let Some(given) = &self.given.student {
            return Ok(Some(given.clone()));
        }
        let path = self.path(if self.config.finish.steps() > 0 { files::DISTILLED } else { files::STUDENT });
        if path.exists() {
            return Ok(Some(disk::read_model(&path)?));
        }
        let config = &self.config.distill;
        let state =
            match self.resumed(StageKind::Distill, (&self.spec(), &self.prediction()), &mut |text| {
                watch.note(text)
            })? {
                Some(state) => state,
                None => self.fresh_student(teacher),
            };
        let mut distillation = self.distillation(teacher, state)?;
        let steps = (config.steps(), config.batch);
        let outcome = self.drive(StageKind::Distill, &mut distillation, steps, watch)?;
        if outcome == Outcome::Interrupted {
            return Ok(None);
        }
        let model = self.trained(Role::Student, &distillation, config.batch);
        disk::write(&path, &model.to_bytes())?;
        watch.note(&format!("student: {}", path.display()));
        Ok(Some(model))
    }

    /// Adversarial fine-tuning, if the configuration has it.
    pub(super) fn finish(
        &self,
        teacher: &Model,
        distilled: &Model,
        watch: &mut dyn Watch,
    ) -> Result<Outcome, RunError> {
        let config = &self.config.finish;
        let path = self.path(files::STUDENT);
        if config.steps() == 0 || path.exists() {
            return Ok(Outcome::Finished);
        }
        let networks = (&distilled.spec, &distilled.prediction);
        let mut state = match self.resumed(StageKind::Finish, networks, &mut |text| watch.note(text))? {
            Some(state) => state,
            None => TrainState::new(distilled, &[config.sample_decay()], &self.device),
        };
        let seed = self.config.run.seed;
        state.discriminator.get_or_insert_with(|| Discriminator::new(&teacher.spec, seed, &self.device));
        state.denoiser = state.denoiser.with_fixed_weights(|tensor| config.fixed.contains(tensor));
        let mut finish = Finish {
            batches: self.batches(&self.data, StageKind::Finish, config.batch, Coupling::Independent),
            schedule: Schedule {
                learning_rate: config.learning_rate,
                warmup_steps: config.warmup_steps(),
                steps: config.steps(),
                cooldown: config.cooldown,
                gradient_clip: config.gradient_clip,
            },
            workers: self.workers(config.batch, config.micro_batch)?,
            adversary: Adversary {
                encoder: Arc::new(Denoiser::frozen(teacher, &self.device)),
                loss: AdversarialLoss::NonSaturating { r1: config.r1_weight },
                weight: 1.0,
                from: 0,
                warmup_steps: 0,
                learning_rate: config.discriminator_learning_rate,
            },
            state: self.with_checkpointing(state),
        };
        let steps = (config.steps(), config.batch);
        let outcome = self.drive(StageKind::Finish, &mut finish, steps, watch)?;
        if outcome == Outcome::Finished {
            let mut model = self.trained(Role::Student, &finish, config.batch);
            model.card.steps += distilled.card.steps;
            model.card.images += distilled.card.images;
            disk::write(&path, &model.to_bytes())?;
            watch.note(&format!("student, fine-tuned: {}", path.display()));
        }
        Ok(outcome)
    }

    /// The student before its first step: a copy of the teacher (PAPER.md §6).
    pub(super) fn fresh_student(&self, teacher: &Model) -> TrainState {
        let config = &self.config.distill;
        let decays = [config.target_decay(), config.sample_decay()];
        let discriminator = (config.adversarial_weight > 0.0)
            .then(|| Discriminator::new(&teacher.spec, self.config.run.seed, &self.device));
        TrainState { discriminator, ..TrainState::new(teacher, &decays, &self.device) }
    }

    pub(super) fn distillation(
        &self,
        teacher: &Model,
        state: TrainState,
    ) -> Result<Distillation<'_>, RunError> {
        let config = &self.config.distill;
        let schedule = Schedule {
            learning_rate: config.learning_rate,
            warmup_steps: config.warmup_steps(),
            steps: config.steps(),
            cooldown: config.cooldown,
            gradient_clip: config.gradient_clip,
        };
        // One copy on the device: `without_gradients` shares its weights.
        let frozen = Arc::new(Denoiser::frozen(teacher, &self.device));
        let adversary = (config.adversarial_weight > 0.0).then(|| Adversary {
            encoder: Arc::clone(&frozen),
            loss: AdversarialLoss::Hinge,
            weight: config.adversarial_weight,
            from: config.adversarial_from(),
            warmup_steps: config.adversarial_warmup_steps(),
            learning_rate: config.discriminator_learning_rate,
        });
        Ok(Distillation {
            batches: self.batches(&self.data, StageKind::Distill, config.batch, config.coupling),
            schedule,
            workers: self.workers(config.batch, config.micro_batch)?,
            curriculum: self.curriculum(),
            distance: self.distance(&frozen)?,
            adversary,
            time_alpha: config.time_alpha as f32,
            teacher: frozen.without_gradients(),
            state: self.with_checkpointing(state),
        })
    }

    fn distance(&self, frozen: &Arc<Denoiser>) -> Result<Distance, RunError> {
        let config = &self.config.distill;
        Ok(match config.distance {
            DistanceKind::PseudoHuber => Distance::PseudoHuber,
            DistanceKind::L2 => Distance::L2,
            DistanceKind::L1 => Distance::L1,
            DistanceKind::LpipsVgg16 | DistanceKind::LpipsAlexnet => {
                let weights =
                    self.given.lpips.iter().find(|weights| Some(weights.trunk()) == config.distance.trunk());
                let weights = weights.ok_or_else(|| {
                    RunError::Unsuitable(format!(
                        "distill.distance: the weights of {} are not read",
                        config.distance
                    ))
                })?;
                Distance::Lpips(Arc::new(Lpips::new(weights, &self.device)))
            }
            DistanceKind::TeacherFeatures => Distance::TeacherFeatures(Arc::clone(frozen)),
        })
    }

    fn workers(&self, batch: usize, micro_batch: Option<usize>) -> Result<Workers, RunError> {
        // All threads share dropout's generator, so with two threads its numbers would depend on timing.
        let threads = if self.spec().dropout() > 0.0 { 1 } else { self.threads };
        Ok(Workers::new(threads, batch, self.part(batch, micro_batch))?)
    }

    /// Largest number of images in a part of a batch.
    fn part(&self, batch: usize, micro_batch: Option<usize>) -> usize {
        let most = if self.is_gpu() { most_on_gpu(&self.spec().graph()) } else { usize::MAX };
        micro_batch.unwrap_or(batch).min(most)
    }

    fn with_checkpointing(&self, mut state: TrainState) -> TrainState {
        if self.config.run.gradient_checkpointing {
            state.denoiser = state.denoiser.checkpointed();
        }
        state
    }

    pub(super) fn curriculum(&self) -> Curriculum {
        let config = &self.config.distill;
        Curriculum {
            mode: config.mode,
            scope: config.scope,
            threshold: config.threshold,
            step_size: config.step_size as f32,
            solver: config.solver,
            // Padding avoids compilation for new batch sizes on a GPU. The CPU compiles nothing.
            pad_to: self.is_gpu().then(|| self.images_at_once()),
        }
    }

    /// Largest number of images whose targets are computed together.
    pub(super) fn images_at_once(&self) -> usize {
        let config = &self.config.distill;
        match config.scope {
            Scope::Image => self.part(config.batch, config.micro_batch),
            Scope::Batch => config.batch,
        }
    }
}

/// Most images in a part of a batch on a GPU: a matrix product of Burn starts a workgroup for 8 positions of the feature
/// maps, and a GPU starts at most 65 535 in each direction.
fn most_on_gpu(graph: &Graph) -> usize {
    let positions = graph.nodes.iter().filter_map(|node| match (node.op, graph.shape(node.output)) {
        (Op::Conv(_), Shape::Map([_, height, width])) => Some(height * width),
        _ => None,
    });
    (8 * 65_535 / positions.max().unwrap_or(1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::model::networks::Family as _;

    #[test]
    fn parts_of_a_batch_fit_a_gpu() {
        let most = |preset: &str| most_on_gpu(&Config::preset(preset).unwrap().network.graph());
        // 32x32 positions, also with 64x64 pixels in patches of 2x2.
        assert_eq!([most("cifar10"), most("avatars"), most("imagenet64")], [511, 511, 127]);
    }
}
