//! The stages of a run after the teacher's, made from its configuration: distillation and adversarial fine-tuning.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use burn::tensor::DType;

use super::batches::StageKind;
use super::distill::{self, Distillation};
use super::drive::Watch;
use super::error::RunError;
use super::finish::Finish;
use super::folder::files;
use super::run::{Outcome, Run};
use super::state::{Stage as _, TrainState};
use super::student::Student;
use super::trainable::{Adaptation, Trainable};
use super::workers::{Workers, part_of};
use crate::config::{EncoderWeights, FixedPrecision, HalfPrecision, StageConfig};
use crate::disk;
use crate::method::adversary::Adversary;
use crate::method::coupling::Coupling;
use crate::method::curriculum::{Curriculum, Scope};
use crate::method::discriminator::{AdversarialLoss, Discriminator};
use crate::method::distance::{Distance, DistanceKind};
use crate::method::kdc::PEAK;
use crate::method::lpips::Lpips;
use crate::model::graph::{Graph, Op, Shape};
use crate::model::{Role, SpecError, TensorSpec};
use crate::nn::denoiser::{Denoiser, random_lora};
use crate::nn::network::Network;
use crate::nn::optimizer::Schedule;
use crate::pipeline::Part;
use crate::weights::{CompactTensor, HostTensor, Model};

/// The teacher, given or trained, on the device, and what the student trains: one copy of the teacher's weights serves the whole
/// run.
pub(super) struct Basis {
    /// The teacher as a fixed function.
    pub(super) frozen: Arc<Denoiser>,
    /// The weaker teacher of autoguidance.
    pub(super) weaker: Option<Denoiser>,
    /// What the student trains.
    pub(super) trainable: Trainable,
    /// The values that the student starts from.
    first: Vec<HostTensor>,
}

/// The error of a setting of the section `distill` that does not suit the network.
pub(super) fn distill_setting(error: SpecError) -> RunError {
    RunError::Unsuitable(format!("distill.{error}"))
}

impl Run {
    /// The distilled student: the given one, one distilled earlier, or one distilled now; `None` if interrupted.
    pub(super) fn distill(&self, basis: &Basis, watch: &mut dyn Watch) -> Result<Option<Student>, RunError> {
        if let Some(given) = &self.given.student {
            return Ok(Some(Student::Model(Box::new(given.clone()))));
        }
        let path = self.path(self.result_of(StageKind::Distill));
        if path.exists() {
            return Ok(Some(Student::read(&path, &basis.trainable)?));
        }
        let config = &self.config.distill;
        let untrained = self.distillation_discriminator(basis);
        let note = &mut |text: &str| watch.note(text);
        let resumed = self.resumed(StageKind::Distill, &basis.trainable, untrained.as_ref(), note)?;
        let state = match resumed {
            Some(state) => state,
            None => self.fresh_student(basis),
        };
        let mut distillation = self.distillation(basis, state)?;
        let steps = (config.steps(), config.batch);
        let outcome = self.drive(StageKind::Distill, &mut distillation, steps, watch)?;
        if outcome == Outcome::Interrupted {
            return Ok(None);
        }
        let card = self.card(Role::Student, &distillation, config.batch);
        let student = Student::new(&basis.trainable, &distillation.sampled().denoiser, card);
        self.write(&path, &student.to_bytes())?;
        watch.note(&format!("student: {}", path.display()));
        Ok(Some(student))
    }

    /// Adversarial fine-tuning, if the configuration has it.
    pub(super) fn finish(
        &self,
        basis: &Basis,
        distilled: &Student,
        watch: &mut dyn Watch,
    ) -> Result<Outcome, RunError> {
        let config = &self.config.finish;
        let path = self.path(files::STUDENT);
        let Student::Model(distilled) = distilled else { return Ok(Outcome::Finished) };
        if config.steps() == 0 || path.exists() {
            return Ok(Outcome::Finished);
        }
        let trainable = Trainable::weights(distilled);
        let (untrained, note) = (self.discriminator(basis), &mut |text: &str| watch.note(text));
        let mut state = match self.resumed(StageKind::Finish, &trainable, Some(&untrained), note)? {
            Some(state) => state,
            None => TrainState {
                discriminator: Some(untrained),
                ..TrainState::new(distilled, &[config.sample_decay()], &self.device)
            },
        };
        state.denoiser = state.denoiser.with_fixed_weights(|tensor| config.fixed.contains(tensor));
        let workers = self.workers(&config.stage())?;
        let state = self.with_settings(state, &workers);
        let mut finish = Finish {
            batches: self
                .batches(&self.data, StageKind::Finish, config.batch, Coupling::Independent)
                .with_rows(workers.rows(config.batch)),
            schedule: schedule(&config.stage()),
            workers,
            adversary: Adversary {
                encoder: Arc::clone(&basis.frozen),
                loss: AdversarialLoss::NonSaturating { r1: config.r1_weight },
                weight: 1.0,
                from: 0,
                warmup_steps: 0,
                learning_rate: config.discriminator_learning_rate,
                augmentation: self.config.distill.augmentation(),
            },
            state,
        };
        let steps = (config.steps(), config.batch);
        let outcome = self.drive(StageKind::Finish, &mut finish, steps, watch)?;
        if outcome == Outcome::Finished {
            let mut card = self.card(Role::Student, &finish, config.batch);
            card.steps += distilled.card.steps;
            card.images += distilled.card.images;
            let model = finish.sampled().denoiser.to_model(card);
            self.write(&path, &model.to_bytes())?;
            watch.note(&format!("student, fine-tuned: {}", path.display()));
        }
        Ok(outcome)
    }

    /// Puts the teacher on the device, and decides what the student trains.
    pub(super) fn basis(&self, teacher: &Model) -> Result<Basis, RunError> {
        let config = &self.config.distill;
        let frozen = Denoiser::frozen(teacher, &self.device);
        let frozen = match config.fixed_precision.unwrap_or_default() {
            FixedPrecision::F32 => frozen,
            FixedPrecision::F16 => frozen.halved(),
        };
        let (trainable, first) = match config.lora() {
            Some(lora) => {
                let first =
                    random_lora(&teacher.spec, &lora, self.config.run.seed).map_err(distill_setting)?;
                (Trainable::Lora(Box::new(Adaptation::new(&frozen, lora).map_err(distill_setting)?)), first)
            }
            None => self.all_weights(teacher).map_err(distill_setting)?,
        };
        Ok(Basis { frozen: Arc::new(frozen), weaker: self.weaker()?, trainable, first })
    }

    /// The student's network and its first weights: the teacher's (PAPER.md §6), and zeros for an embedding of the guidance
    /// scale, so that the scale has no influence at first.
    fn all_weights(&self, teacher: &Model) -> Result<(Trainable, Vec<HostTensor>), SpecError> {
        let Some(channels) = self.config.distill.guidance_channels else {
            return Ok((Trainable::weights(teacher), teacher.tensors.clone()));
        };
        let spec = teacher.spec.with_guidance(channels)?;
        let named: BTreeMap<String, &HostTensor> =
            teacher.spec.tensors().into_iter().map(|tensor| tensor.name).zip(&teacher.tensors).collect();
        let first = |tensor: TensorSpec| match named.get(&tensor.name) {
            Some(tensor) => (*tensor).clone(),
            None => HostTensor::new(tensor.shape.clone(), vec![0.0; tensor.shape.iter().product()]),
        };
        let first = spec.tensors().into_iter().map(first).collect();
        Ok((Trainable::Weights { spec, prediction: teacher.prediction.clone() }, first))
    }

    /// The student before its first step, with its discriminator.
    pub(super) fn fresh_student(&self, basis: &Basis) -> TrainState {
        let config = &self.config.distill;
        let decays = [config.target_decay(), config.sample_decay()];
        let state = TrainState::of(&basis.trainable, &basis.first, &decays, &self.device);
        TrainState { discriminator: self.distillation_discriminator(basis), ..state }
    }

    /// A discriminator before its first step.
    fn discriminator(&self, basis: &Basis) -> Discriminator {
        let encoder = match self.config.distill.discriminator_encoder.unwrap_or_default() {
            EncoderWeights::Frozen => None,
            EncoderWeights::Trained => Some(basis.frozen.encoder()),
        };
        Discriminator::new(basis.frozen.spec(), self.config.run.seed, encoder, &self.device)
    }

    /// The discriminator of the distillation before its first step, if there is an adversarial loss.
    pub(super) fn distillation_discriminator(&self, basis: &Basis) -> Option<Discriminator> {
        (self.config.distill.adversarial_weight > 0.0).then(|| self.discriminator(basis))
    }

    pub(super) fn distillation(
        &self,
        basis: &Basis,
        state: TrainState,
    ) -> Result<Distillation<'_>, RunError> {
        let config = &self.config.distill;
        let frozen = &basis.frozen;
        let adversary = (config.adversarial_weight > 0.0).then(|| Adversary {
            encoder: Arc::clone(frozen),
            loss: AdversarialLoss::Hinge,
            weight: config.adversarial_weight,
            from: config.adversarial_from(),
            warmup_steps: config.adversarial_warmup_steps(),
            learning_rate: config.discriminator_learning_rate,
            augmentation: config.augmentation(),
        });
        let workers = self.workers(&config.stage())?;
        let mut state = self.with_settings(state, &workers);
        let teacher = self.guided_teacher(basis).map(|network| self.mixed(network));
        let target = &mut state.emas[distill::TARGET].denoiser;
        *target = self.mixed(target.clone());
        let batches = self.batches(&self.data, StageKind::Distill, config.batch, config.coupling);
        Ok(Distillation {
            batches: match config.scope {
                Scope::Image => batches.with_rows(workers.rows(config.batch)),
                // The KDC of a batch needs all its images.
                Scope::Batch => batches,
            },
            schedule: schedule(&config.stage()),
            workers,
            curriculum: self.curriculum(),
            distance: self.distance(frozen)?,
            adversary,
            time_alpha: config.time_alpha as f32,
            teacher,
            state,
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
                let lpips = Arc::new(Lpips::new(weights, &self.device));
                Distance::Lpips { lpips, decoder: self.decoder()? }
            }
            DistanceKind::TeacherFeatures => Distance::TeacherFeatures(Arc::clone(frozen)),
        })
    }

    /// The pipeline's decoder as a fixed function, if it has one.
    fn decoder(&self) -> Result<Option<Arc<Network>>, RunError> {
        let Some(pipeline) = &self.given.pipeline else { return Ok(None) };
        let Some(graph) = pipeline.spec.decoder() else { return Ok(None) };
        let tensors = pipeline.read(Part::Decoder, &graph)?;
        let tensors: Vec<HostTensor> = tensors.into_iter().map(CompactTensor::into_host).collect();
        Ok(Some(Arc::new(Network::new(&graph, &tensors, &self.device).frozen())))
    }

    pub(super) fn workers(&self, config: &StageConfig) -> Result<Workers, RunError> {
        let StageConfig { batch, micro_batch, .. } = *config;
        let (group, threads) = (Arc::clone(&self.group), self.threads_of_rank());
        let workers = Workers::of_ranks(group, threads, batch, self.part(batch, micro_batch))?;
        Ok(if self.overlaps()? { workers.overlapping() } else { workers })
    }

    /// Checks, before anything is trained, that each rank has images of the batches of every stage that is left.
    pub(super) fn check_ranks(&self) -> Result<(), RunError> {
        let (ranks, threads) = (self.group.size(), self.threads_of_rank());
        for (stage, StageConfig { batch, micro_batch, .. }) in self.given.stages(&self.config) {
            let part = part_of(ranks * threads, batch, self.part(batch, micro_batch));
            let first_of_last_rank = (ranks - 1) * threads * part;
            if first_of_last_rank >= batch && !self.path(self.result_of(stage)).exists() {
                return Err(RunError::Unsuitable(format!(
                    "{}.batch: expected images for each of {ranks} ranks, found {batch}",
                    stage.name()
                )));
            }
        }
        Ok(())
    }

    /// The model file that a stage ends with.
    fn result_of(&self, stage: StageKind) -> &'static str {
        match stage {
            StageKind::Teacher if self.config.teacher.trains_only_weaker() => files::WEAKER,
            StageKind::Teacher => files::TEACHER,
            StageKind::Distill if self.config.finish.steps() > 0 => files::DISTILLED,
            StageKind::Distill | StageKind::Finish => files::STUDENT,
        }
    }

    /// Threads that compute in this rank.
    fn threads_of_rank(&self) -> usize {
        // All threads share dropout's generator, so with two threads its numbers would depend on timing.
        if self.spec().dropout() > 0.0 { 1 } else { self.threads }
    }

    /// Whether gradients are exchanged while others are being computed. By default GPUs do that: on the CPU, the exchange would
    /// take time from the computation.
    pub(super) fn overlaps(&self) -> Result<bool, RunError> {
        let (group, threads) = (&self.group, self.threads_of_rank());
        if group.size() == 1 {
            return Ok(false);
        }
        let setting = self.config.run.overlap_exchange;
        let missing = match (threads, group.is_for_any_thread()) {
            (1, true) => None,
            (1, false) => Some("an MPI library with MPI_THREAD_SERIALIZED, found one without".to_owned()),
            _ => Some(format!("one thread in each rank, found {threads}")),
        };
        match (setting, missing) {
            (Some(true), Some(missing)) => {
                Err(RunError::Unsuitable(format!("run.overlap_exchange: expected {missing}")))
            }
            // All ranks must do the same.
            (_, missing) => Ok(!group.any(missing.is_some() || !setting.unwrap_or_else(|| self.is_gpu()))),
        }
    }

    /// Writes a file of the run, if this is the first rank.
    pub(super) fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), RunError> {
        if self.group.is_first() {
            disk::write(path, bytes)?;
        }
        Ok(())
    }

    /// Largest number of images in a part of a batch.
    pub(super) fn part(&self, batch: usize, micro_batch: Option<usize>) -> usize {
        // A teacher with guidance evaluates every image twice.
        let evaluations = if self.config.distill.guidance.is_some() { 2 } else { 1 };
        let most = if self.is_gpu() { most_on_gpu(&self.spec().graph()) / evaluations } else { usize::MAX };
        micro_batch.unwrap_or(batch).min(most).max(1)
    }

    pub(super) fn with_settings(&self, mut state: TrainState, workers: &Workers) -> TrainState {
        state.denoiser = self.mixed(state.denoiser);
        state.loss_scale = match self.config.run.mixed_precision {
            Some(HalfPrecision::F16) => Some(state.loss_scale.unwrap_or_default()),
            Some(HalfPrecision::Bf16) | None => None,
        };
        if self.config.run.gradient_checkpointing {
            state.denoiser = state.denoiser.checkpointed();
        } else if workers.overlap() {
            state.denoiser = state.denoiser.in_segments();
        }
        if self.config.run.eight_bit_optimizer {
            state.optimizer = state.optimizer.in_eight_bits();
        }
        state
    }

    /// A network of a training step in the run's precision. The networks inside losses (LPIPS, the discriminator's encoder) are in
    /// single precision.
    pub(super) fn mixed(&self, denoiser: Denoiser) -> Denoiser {
        match self.config.run.mixed_precision {
            None => denoiser,
            Some(half) => denoiser.in_half(dtype(half)),
        }
    }

    pub(super) fn curriculum(&self) -> Curriculum {
        let config = &self.config.distill;
        Curriculum {
            mode: config.mode,
            scope: config.scope,
            threshold: config.threshold,
            peak: config.kdc_peak.unwrap_or(PEAK),
            step_size: config.step_size as f32,
            step_shift: config.step_shift.unwrap_or(1.0) as f32,
            solver: config.solver,
            // Padding avoids compilation for new batch sizes on a GPU. The CPU compiles nothing.
            pad_to: self.is_gpu().then(|| self.images_at_once().min(self.images_of_rank())),
        }
    }

    /// Images of a batch whose targets this rank computes.
    fn images_of_rank(&self) -> usize {
        let config = &self.config.distill;
        match config.scope {
            Scope::Image => config.batch.div_ceil(self.group.size()),
            Scope::Batch => config.batch,
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

/// The schedule of a stage's optimiser.
pub(super) fn schedule(config: &StageConfig) -> Schedule {
    Schedule {
        learning_rate: config.learning_rate,
        warmup_steps: config.warmup_steps(),
        steps: config.steps(),
        cooldown: config.cooldown,
        gradient_clip: config.gradient_clip,
    }
}

pub(super) fn dtype(half: HalfPrecision) -> DType {
    match half {
        HalfPrecision::F16 => DType::F16,
        HalfPrecision::Bf16 => DType::BF16,
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
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::Config;
    use crate::model::networks::Family as _;

    #[test]
    fn parts_of_a_batch_fit_a_gpu() {
        let most = |preset: &str| most_on_gpu(&Config::preset(preset).unwrap().network.graph());
        // 32x32 positions, 16x16 with 64x64 pixels in patches of 4x4, and 64x64.
        assert_eq!([most("cifar10"), most("avatars"), most("imagenet64")], [511, 2047, 127]);
    }
}
