//! The files other than images that a configuration names: a teacher, and the weights of LPIPS.

use std::path::Path;

use super::error::RunError;
use super::folder::files;
use crate::config::{Config, DistillConfig, LpipsFiles};
use crate::disk;
use crate::import::{Checkpoint, ImportError};
use crate::method::lpips::LpipsWeights;
use crate::model::{NetworkSpec, Prediction};
use crate::weights::Model;

/// The contents of the files other than images that a configuration names, read and checked.
#[derive(Debug, Default)]
pub struct Given {
    /// The teacher (`teacher.model`).
    pub teacher: Option<Model>,
    /// The distilled student (`distill.model`).
    pub student: Option<Model>,
    /// The weights of LPIPS, one for each trunk that a distance uses.
    pub lpips: Vec<LpipsWeights>,
}

impl Given {
    /// Reads the teacher, the student and the weights of the distance.
    ///
    /// # Errors
    /// A model that cannot be read; weights of LPIPS that cannot be used.
    pub fn read(config: &Config) -> Result<Self, RunError> {
        let model =
            |path: &Option<String>| path.as_ref().map(|path| disk::read_model(Path::new(path))).transpose();
        let (teacher, student) = (model(&config.teacher.model)?, model(&config.distill.model)?);
        let mut given = Self { teacher, student, lpips: Vec::new() };
        if given.student.is_none() {
            given.read_distance(&config.distill)?;
        }
        Ok(given)
    }

    /// The architecture of teacher and student: that of the given teacher, otherwise the configuration's.
    pub fn spec(&self, config: &Config) -> NetworkSpec {
        self.teacher.as_ref().map_or_else(|| config.spec(), |teacher| teacher.spec.clone())
    }

    /// What the network predicts: that of the given teacher, otherwise the configuration's.
    pub fn prediction(&self, config: &Config) -> Prediction {
        let teacher = self.teacher.as_ref();
        teacher.map_or_else(|| config.path.prediction(), |teacher| teacher.prediction.clone())
    }

    /// Reads the weights of a distance, unless they have been read already.
    ///
    /// # Errors
    /// Weights of LPIPS that are not named or cannot be used.
    pub fn read_distance(&mut self, config: &DistillConfig) -> Result<(), RunError> {
        let Some(LpipsFiles { trunk, features, heads }) = config.lpips_files()? else { return Ok(()) };
        if self.lpips.iter().any(|weights| weights.trunk() == trunk) {
            return Ok(());
        }
        let [of_trunk, of_heads] = trunk.tensors();
        let of_trunk = Checkpoint::open(features)?.select_part(&of_trunk)?.tensors;
        let of_heads = Checkpoint::open(heads)?.select_part(&of_heads)?.tensors;
        let fault = |source| ImportError::Weights { path: features.into(), source };
        self.lpips.push(LpipsWeights::new(trunk, of_trunk, of_heads).map_err(fault)?);
        Ok(())
    }

    /// The teacher of the run in a folder: the given teacher, otherwise the one that the run has trained.
    ///
    /// # Errors
    /// A run whose teacher is not trained yet, or a file with another network.
    pub fn teacher_of_run(&self, config: &Config, folder: &Path) -> Result<Model, RunError> {
        match &self.teacher {
            Some(given) => Ok(given.clone()),
            None => read_teacher(config, &folder.join(files::TEACHER)),
        }
    }
}

/// The teacher that a run has trained, if it has the configuration's network.
pub(super) fn read_teacher(config: &Config, path: &Path) -> Result<Model, RunError> {
    let model = disk::read_model(path)?;
    let mut network = config.network.clone();
    if config.data.class_conditional && network.num_classes.is_none() {
        // The data set decides the number of classes, and it may not be read yet.
        network.num_classes = model.spec.num_classes();
    }
    if model.spec != network.into() || model.prediction != config.path.prediction() {
        let path = path.display();
        return Err(RunError::Unsuitable(format!("{path}: its network differs from the configuration's")));
    }
    Ok(model)
}
