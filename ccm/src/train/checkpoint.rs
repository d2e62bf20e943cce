//! Checkpoints: everything that a stage of training changes, in one safetensors file a checkpoint.
//!
//! Random numbers and the position in the data are functions of the step (see [`super::batches`]), so the
//! number of the step stands for both. The last two checkpoints of a run are kept.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::batches::StageKind;
use super::disk::{self, DiskError};
use super::ema::Ema;
use super::optimizer::Optimizer;
use super::trainee::Trainee;
use super::unet::{UNet, to_host};
use crate::spec::{ModelCard, UNetSpec};
use crate::weights::{HostTensor, Model, Precision, TensorFile, WeightsError};

/// Checkpoints that are kept.
const KEPT: usize = 2;

/// A checkpoint that cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file cannot be read or written.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// It is no checkpoint of this network.
    #[error("{path}: {source}")]
    Weights {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: WeightsError,
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
}

/// The checkpoints of a folder, the oldest first. A folder that is not there holds none.
pub fn list(folder: &Path) -> Vec<Checkpoint> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<Checkpoint> = entries.filter_map(|entry| parse(&entry.path())).collect();
    found.sort_by_key(|checkpoint| (checkpoint.stage as u8, checkpoint.step));
    found
}

fn parse(path: &Path) -> Option<Checkpoint> {
    let (stage, step) = path.file_name()?.to_str()?.strip_suffix(".safetensors")?.split_once('-')?;
    let stage = [StageKind::Teacher, StageKind::Distill].into_iter().find(|kind| kind.name() == stage)?;
    Some(Checkpoint { path: path.to_owned(), stage, step: step.parse().ok()? })
}

/// Writes a checkpoint and removes all but the last two.
///
/// # Errors
/// A folder that cannot be written, or a full disk; older checkpoints are then still there.
pub fn save(folder: &Path, stage: StageKind, trainee: &Trainee) -> Result<PathBuf, CheckpointError> {
    let names: Vec<String> = trainee.unet.spec().tensors().into_iter().map(|tensor| tensor.name).collect();
    let mut tensors = BTreeMap::new();
    let mut add = |prefix: &str, values: Vec<Tensor<1>>| {
        for (name, values) in names.iter().zip(values) {
            let values = to_host(values);
            tensors.insert(format!("{prefix}.{name}"), HostTensor::new([values.len()], values));
        }
    };
    add("model", trainee.unet.parameters());
    for (i, ema) in trainee.emas.iter().enumerate() {
        add(&format!("ema.{i}"), ema.unet.parameters());
    }
    for moment in [0, 1] {
        let values = trainee.optimizer.moments().iter().map(|moments| moments[moment].clone()).collect();
        add(&format!("adam.{moment}"), values);
    }
    let description = Description {
        stage: stage.name().into(),
        step: trainee.step,
        decays: trainee.emas.iter().map(|ema| ema.decay).collect(),
    };
    let description = serde_json::to_string(&description).unwrap_or_default();
    let path = folder.join(format!("{}-{:09}.safetensors", stage.name(), trainee.step));
    disk::write(&path, &TensorFile { tensors, description }.to_bytes())?;
    for old in list(folder).iter().rev().skip(KEPT) {
        fs::remove_file(&old.path).map_err(DiskError::of(&old.path))?;
    }
    Ok(path)
}

/// Reads a checkpoint of a network.
///
/// # Errors
/// A file that cannot be read, or that holds other tensors than the network and its training want.
pub fn load(path: &Path, spec: &UNetSpec, device: &Device) -> Result<Trainee, CheckpointError> {
    let wrong = |source| CheckpointError::Weights { path: path.to_owned(), source };
    let mut file = TensorFile::from_bytes(&disk::read(path)?).map_err(wrong)?;
    let description: Description = serde_json::from_str(&file.description)
        .map_err(|error| wrong(WeightsError::NoModel(error.to_string())))?;

    let mut take = |prefix: &str| -> Result<Vec<HostTensor>, WeightsError> {
        let expected = spec.tensors().into_iter().map(|tensor| {
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
    let mut unet = |prefix: &str, device: &Device| -> Result<UNet, WeightsError> {
        let model = Model {
            spec: spec.clone(),
            card: ModelCard::default(),
            precision: Precision::F32,
            tensors: take(prefix)?,
        };
        Ok(UNet::new(&model, device))
    };
    let plain = device.clone().without_autodiff();
    let student = unet("model", &device.clone().autodiff()).map_err(wrong)?;
    let mut emas = Vec::new();
    for (i, &decay) in description.decays.iter().enumerate() {
        emas.push(Ema { decay, unet: unet(&format!("ema.{i}"), &plain).map_err(wrong)? });
    }
    let flat = |tensor: HostTensor| Tensor::<1>::from_data(tensor.values.as_slice(), &plain);
    let mut moments = Vec::new();
    if description.step > 0 {
        let (first, second) = (take("adam.0").map_err(wrong)?, take("adam.1").map_err(wrong)?);
        moments = first.into_iter().zip(second).map(|(first, second)| [flat(first), flat(second)]).collect();
    }
    Ok(Trainee { unet: student, emas, optimizer: Optimizer::from_moments(moments), step: description.step })
}
