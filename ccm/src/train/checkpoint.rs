//! Checkpoints: the complete state of a training stage, one safetensors file per checkpoint.
//!
//! Random numbers and the position in the data are functions of the step (see [`super::batches`]), so a checkpoint
//! stores only the step number for both. A run keeps its last two checkpoints, and the last one of distillation, whose
//! networks the KDC is measured with.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::batches::StageKind;
use super::loss_scale::LossScale;
use super::state::TrainState;
use super::trainable::Trainable;
use crate::disk::{self, DiskError};
use crate::method::discriminator::Discriminator;
use crate::model::TensorSpec;
use crate::nn::denoiser::Denoiser;
use crate::nn::ema::Ema;
use crate::nn::host::to_host;
use crate::nn::optimizer::Optimizer;
use crate::weights::{HostTensor, TensorFile, WeightsError};

/// Number of checkpoints that a run keeps.
const KEPT: usize = 2;

/// A checkpoint that cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file cannot be read or written.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The file is not a checkpoint of this network.
    #[error("{path}: {source}")]
    Weights {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: WeightsError,
    },
    /// The checkpoint belongs to another stage or to another version of this program.
    #[error("{path}: expected {expected}, found {found}")]
    Other {
        /// The file.
        path: PathBuf,
        /// The kind of checkpoint that the stage can resume from.
        expected: String,
        /// The kind of checkpoint in the file.
        found: String,
    },
    /// The state contains a value that is not finite.
    #[error("tensor `{tensor}` is not finite")]
    NotFinite {
        /// Name of the tensor. The checkpoint was not written.
        tensor: String,
    },
    /// Checkpoints exist, but none can be read.
    #[error(
        "{newest}; no older checkpoint of the stage can be read (with none there, the stage starts anew)"
    )]
    NoneReadable {
        /// The error of the newest checkpoint.
        newest: Box<CheckpointError>,
    },
}

/// A checkpoint on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The file.
    pub path: PathBuf,
    /// Stage that it belongs to.
    pub stage: StageKind,
    /// Steps taken.
    pub step: u64,
}

#[derive(Serialize, Deserialize)]
struct Description {
    stage: String,
    step: u64,
    decays: Vec<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    discriminator: Option<Opponent>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    loss_scale: Option<Scale>,
}

/// Loss scaling.
#[derive(Serialize, Deserialize)]
struct Scale {
    factor: f32,
    finite_steps: u32,
    skipped_steps: u64,
}

/// Discriminator state that is not a tensor.
#[derive(Serialize, Deserialize)]
struct Opponent {
    step: u64,
    balance: f32,
}

/// The checkpoints in a folder, oldest first. Empty if the folder does not exist.
pub fn list(folder: &Path) -> Vec<Checkpoint> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<Checkpoint> = entries.filter_map(|entry| parse(&entry.path())).collect();
    found.sort_by_key(|checkpoint| (checkpoint.stage, checkpoint.step));
    found
}

fn parse(path: &Path) -> Option<Checkpoint> {
    let (stage, step) = path.file_name()?.to_str()?.strip_suffix(".safetensors")?.split_once('-')?;
    Some(Checkpoint { path: path.to_owned(), stage: StageKind::named(stage)?, step: step.parse().ok()? })
}

/// Writes a checkpoint and removes those that a run does not keep.
///
/// # Errors
/// Weights, averages or moments that are not finite, a folder that cannot be written, or a full disk. Older
/// checkpoints are kept in all these cases.
pub fn save(folder: &Path, stage: StageKind, state: &TrainState) -> Result<PathBuf, CheckpointError> {
    let of_network = state.denoiser.tensors();
    let mut tensors = BTreeMap::new();
    let mut add = |prefix: &str, specs: &[TensorSpec], values: Vec<Tensor<1>>| {
        for (TensorSpec { name, .. }, values) in specs.iter().zip(values) {
            let (tensor, values) = (format!("{prefix}.{name}"), to_host(values));
            if values.iter().any(|value| !value.is_finite()) {
                return Err(CheckpointError::NotFinite { tensor });
            }
            tensors.insert(tensor, HostTensor::new([values.len()], values));
        }
        Ok(())
    };
    add("model", &of_network, state.denoiser.parameters())?;
    for (i, ema) in state.emas.iter().enumerate() {
        add(&format!("ema.{i}"), &of_network, ema.denoiser.parameters())?;
    }
    for moment in [0, 1] {
        add(&format!("adam.{moment}"), &of_network, state.optimizer.moment(moment))?;
    }
    if let Some(discriminator) = &state.discriminator {
        let tensors = discriminator.tensors(state.denoiser.spec());
        add("discriminator", &tensors, discriminator.parameters())?;
        for moment in [0, 1] {
            let values = discriminator.optimizer.moment(moment);
            add(&format!("discriminator.adam.{moment}"), &tensors, values)?;
        }
    }
    let description = Description {
        stage: stage.name().into(),
        step: state.step,
        decays: state.emas.iter().map(|ema| ema.decay).collect(),
        discriminator: state.discriminator.as_ref().map(|it| Opponent { step: it.step, balance: it.balance }),
        loss_scale: state.loss_scale.map(|LossScale { factor, finite_steps }| Scale {
            factor,
            finite_steps,
            skipped_steps: state.optimizer.skipped(),
        }),
    };
    #[expect(clippy::expect_used, reason = "numbers and text become JSON")]
    let description = serde_json::to_string(&description).expect("a description has string keys only");
    let path = folder.join(format!("{}-{:09}.safetensors", stage.name(), state.step));
    disk::write(&path, &TensorFile { tensors, description }.to_bytes())?;
    // A checkpoint of a later step is one that could not be read on resume.
    let is_later = |found: &Checkpoint| found.stage == stage && found.step > state.step;
    let (later, mut old): (Vec<_>, Vec<_>) = list(folder).into_iter().partition(is_later);
    let distilled = old.iter().rfind(|found| found.stage == StageKind::Distill).cloned();
    old.truncate(old.len().saturating_sub(KEPT));
    old.retain(|found| Some(found) != distilled.as_ref());
    for found in later.into_iter().chain(old) {
        fs::remove_file(&found.path).map_err(DiskError::of(&found.path))?;
    }
    Ok(path)
}

/// Reads the newest readable checkpoint of a stage; `None` if the stage has no checkpoint yet. Reports each unreadable
/// checkpoint to `note`. `discriminator`, untrained, is given if the stage has one.
///
/// # Errors
/// Checkpoints exist, but none can be read.
pub fn resume(
    folder: &Path,
    stage: StageKind,
    trainable: &Trainable,
    discriminator: Option<&Discriminator>,
    device: &Device,
    note: &mut dyn FnMut(&str),
) -> Result<Option<TrainState>, CheckpointError> {
    let mut damaged = Vec::new();
    for found in list(folder).into_iter().rev().filter(|found| found.stage == stage) {
        match load(&found.path, stage, trainable, discriminator, device) {
            Ok(state) => {
                for error in &damaged {
                    note(&format!("{error}; going on from {} instead", found.path.display()));
                }
                return Ok(Some(state));
            }
            Err(error) => damaged.push(error),
        }
    }
    match damaged.into_iter().next() {
        Some(newest) => Err(CheckpointError::NoneReadable { newest: Box::new(newest) }),
        None => Ok(None),
    }
}

/// Reads a checkpoint of a network. `discriminator`, untrained, is given if the stage has one.
///
/// # Errors
/// A file that cannot be read or belongs to another stage, or whose tensors are not those of the network and its
/// training.
pub fn load(
    path: &Path,
    stage: StageKind,
    trainable: &Trainable,
    discriminator: Option<&Discriminator>,
    device: &Device,
) -> Result<TrainState, CheckpointError> {
    let wrong = |source| CheckpointError::Weights { path: path.to_owned(), source };
    let mut file = TensorFile::from_bytes(&disk::read(path)?).map_err(wrong)?;
    let description: Description = serde_json::from_str(&file.description)
        .map_err(|error| wrong(WeightsError::NoModel(error.to_string())))?;

    let mut take = |prefix: &str, specs: Vec<TensorSpec>| -> Result<Vec<HostTensor>, WeightsError> {
        let expected = specs.into_iter().map(|tensor| {
            let name = format!("{prefix}.{}", tensor.name);
            let found = file.take(&name)?;
            let count = tensor.shape.iter().product::<usize>();
            if found.shape != [count] {
                return Err(WeightsError::Shape { name, expected: vec![count], found: found.shape });
            }
            Ok(HostTensor { shape: tensor.shape, values: found.values })
        });
        expected.collect()
    };
    let mut denoiser = |prefix: &str, device: &Device| -> Result<Denoiser, WeightsError> {
        Ok(trainable.denoiser(take(prefix, trainable.tensors())?, device))
    };
    let plain = device.clone().without_autodiff();
    let student = denoiser("model", &device.clone().autodiff()).map_err(wrong)?;
    let expected = stage.averages();
    if description.stage != stage.name() || description.decays.len() != expected {
        return Err(CheckpointError::Other {
            path: path.to_owned(),
            expected: format!("a checkpoint of the stage {} with {expected} averages", stage.name()),
            found: format!("one of {} with {}", description.stage, description.decays.len()),
        });
    }
    let mut emas = Vec::new();
    for (i, &decay) in description.decays.iter().enumerate() {
        emas.push(Ema { decay, denoiser: denoiser(&format!("ema.{i}"), &plain).map_err(wrong)? });
    }
    let flat = |tensor: HostTensor| Tensor::<1>::from_data(tensor.values.as_slice(), &plain);
    let skipped = description.loss_scale.as_ref().map_or(0, |scale| scale.skipped_steps);
    let factor = description.loss_scale.as_ref().map_or(1.0, |scale| scale.factor);
    if skipped > description.step || !factor.is_normal() || factor < 0.0 {
        return Err(CheckpointError::Other {
            path: path.to_owned(),
            expected: format!("a loss scale above 0 and at most {} skipped steps", description.step),
            found: format!("{factor} and {skipped}"),
        });
    }
    // The optimiser has no moments before the first step that was not skipped.
    let mut moments = |prefix: &str, step: u64, specs: &dyn Fn() -> Vec<TensorSpec>| {
        let mut take = |moment| match step {
            0 => Ok(Vec::new()),
            _ => take(&format!("{prefix}adam.{moment}"), specs()),
        };
        let (first, second) = (take(0)?, take(1)?);
        Ok(first.into_iter().zip(second).map(|(first, second)| [flat(first), flat(second)]).collect())
    };
    let of_student = moments("", description.step - skipped, &|| trainable.tensors()).map_err(wrong)?;
    let discriminator = match (description.discriminator, discriminator) {
        (None, None) => None,
        (Some(Opponent { step, balance }), Some(untrained)) => {
            let tensors = || untrained.tensors(trainable.network());
            let moments = moments("discriminator.", step, &tensors).map_err(wrong)?;
            let parameters = take("discriminator", tensors()).map_err(wrong)?.into_iter().map(flat).collect();
            let resumed = untrained.clone().with_parameters(parameters);
            let optimizer = resumed.optimizer.clone().from_moments(moments);
            Some(Discriminator { optimizer, step, balance, ..resumed })
        }
        (found, expected) => {
            let with = |there: bool| if there { "with a discriminator" } else { "without a discriminator" };
            return Err(CheckpointError::Other {
                path: path.to_owned(),
                expected: format!("a checkpoint {}", with(expected.is_some())),
                found: format!("one {}", with(found.is_some())),
            });
        }
    };
    if let Some(name) = file.tensors.into_keys().next() {
        return Err(wrong(WeightsError::Unexpected(name)));
    }
    let optimizer = Optimizer::default().from_moments(of_student).with_skipped(skipped);
    let loss_scale =
        description.loss_scale.map(|Scale { factor, finite_steps, .. }| LossScale { factor, finite_steps });
    Ok(TrainState { denoiser: student, emas, optimizer, discriminator, loss_scale, step: description.step })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::Config;
    use crate::model::Prediction;
    use crate::nn::denoiser::random_model;

    fn state(step: u64) -> TrainState {
        let mut spec = Config::preset("shapes").unwrap().network;
        (spec.height, spec.width, spec.channel_mult, spec.attention_resolutions) = (8, 8, vec![1.0], vec![]);
        let model = random_model(spec, &Prediction::Velocity, 1);
        let state = TrainState::new(&model, &[0.9], &Device::flex());
        // Moments for every parameter, as after a step.
        let moments =
            state.denoiser.parameters().into_iter().map(|weight| [weight.clone(), weight]).collect();
        TrainState { optimizer: Optimizer::default().from_moments(moments), step, ..state }
    }

    fn steps(folder: &Path) -> Vec<u64> {
        list(folder).iter().map(|found| found.step).collect()
    }

    #[test]
    fn weights_that_are_not_finite_are_not_written() {
        let folder = tempfile::tempdir().unwrap();
        save(folder.path(), StageKind::Teacher, &state(1)).unwrap();
        for bad in [f32::NAN, f32::INFINITY] {
            let mut broken = state(2);
            let weights = broken.denoiser.parameters().into_iter().map(|weight| weight * bad).collect();
            broken.denoiser = broken.denoiser.with_parameters(weights);
            let error = save(folder.path(), StageKind::Teacher, &broken).unwrap_err().to_string();
            assert!(error.contains("tensor `model.") && error.contains("not finite"), "{error}");
        }
        assert_eq!(steps(folder.path()), [1]);
    }

    #[test]
    fn an_impossible_loss_scale_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let spec = state(0).denoiser.spec().clone();
        let trainable = Trainable::Weights { spec, prediction: Prediction::Velocity };
        let load = |factor: f32, skipped: u64| {
            let mut state = state(4);
            state.loss_scale = Some(LossScale { factor, finite_steps: 0 });
            state.optimizer = state.optimizer.with_skipped(skipped);
            let path = save(folder.path(), StageKind::Teacher, &state).unwrap();
            load(&path, StageKind::Teacher, &trainable, None, &Device::flex())
        };
        assert_eq!(load(1024.0, 3).unwrap().optimizer.skipped(), 3);
        for (factor, skipped) in [(1024.0, 5), (0.0, 3), (-2.0, 3)] {
            let error = load(factor, skipped).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains("at most 4 skipped steps") && error.contains("found"), "{error}");
        }
    }

    #[test]
    fn the_last_two_checkpoints_and_the_last_one_of_distillation_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let kept = |stage, step| {
            save(folder.path(), stage, &state(step)).unwrap();
            let found = list(folder.path());
            found.iter().map(|found| (found.stage, found.step)).collect::<Vec<_>>()
        };
        use StageKind::{Distill, Finish, Teacher};
        assert_eq!(kept(Teacher, 4), [(Teacher, 4)]);
        assert_eq!(kept(Distill, 2), [(Teacher, 4), (Distill, 2)]);
        assert_eq!(kept(Distill, 4), [(Distill, 2), (Distill, 4)]);
        assert_eq!(kept(Finish, 1), [(Distill, 4), (Finish, 1)]);
        assert_eq!(kept(Finish, 2), [(Distill, 4), (Finish, 1), (Finish, 2)]);
        assert_eq!(kept(Finish, 3), [(Distill, 4), (Finish, 2), (Finish, 3)]);
    }

    #[test]
    fn a_damaged_checkpoint_is_passed_over_and_does_not_outlive_a_good_one() {
        let folder = tempfile::tempdir().unwrap();
        let spec = state(0).denoiser.spec().clone();
        let trainable = Trainable::Weights { spec, prediction: Prediction::Velocity };
        let mut notes = Vec::new();
        let mut resume = |stage| {
            resume(folder.path(), stage, &trainable, None, &Device::flex(), &mut |note| {
                notes.push(note.to_owned())
            })
        };
        assert!(resume(StageKind::Teacher).unwrap().is_none());
        save(folder.path(), StageKind::Teacher, &state(4)).unwrap();
        let newest = save(folder.path(), StageKind::Teacher, &state(8)).unwrap();
        assert_eq!(resume(StageKind::Teacher).unwrap().unwrap().step, 8);

        let whole = fs::read(&newest).unwrap();
        fs::write(&newest, &whole[..whole.len() / 2]).unwrap();
        assert_eq!(resume(StageKind::Teacher).unwrap().unwrap().step, 4);
        assert!(resume(StageKind::Distill).unwrap().is_none());
        save(folder.path(), StageKind::Teacher, &state(6)).unwrap();
        assert_eq!(steps(folder.path()), [4, 6]);
        assert_eq!(resume(StageKind::Teacher).unwrap().unwrap().step, 6);

        for found in list(folder.path()) {
            fs::write(&found.path, "no checkpoint").unwrap();
        }
        let error = resume(StageKind::Teacher).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("teacher-000000006.safetensors"), "{error}");
        assert_eq!(notes.len(), 1);
        assert!(notes[0].contains("000000008") && notes[0].contains("000000004"), "{}", notes[0]);
    }
}
