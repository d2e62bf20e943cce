//! The files other than images that a configuration names: a teacher or a pipeline, and the weights of LPIPS.

use std::fmt::Display;
use std::path::Path;

use super::batches::StageKind;
use super::error::RunError;
use super::folder::files;
use crate::config::{Config, DistillConfig, LpipsFiles, StageConfig, TeacherTraining};
use crate::disk;
use crate::import::text_to_image::{self, Folder, PartWeights};
use crate::import::{Checkpoint, ImportError};
use crate::method::lpips::LpipsWeights;
use crate::model::graph::Graph;
use crate::model::{ModelCard, NetworkSpec, Prediction, Role};
use crate::nn::denoiser::random_model;
use crate::pipeline::{Part, Pipeline, PipelineSpec, Weights as _};
use crate::sampler::Backend;
use crate::weights::{CompactTensor, Model, Precision};

/// The contents of the files other than images that a configuration names, read and checked.
#[derive(Default)]
pub struct Given {
    /// The teacher, or what its training starts from (`teacher.model`): a model, or a pipeline's denoiser.
    pub teacher: Option<Model>,
    /// The weaker teacher of autoguidance (`distill.weaker_model`).
    pub weaker: Option<Model>,
    /// The pipeline of a teacher with text.
    pub pipeline: Option<Pipeline<PartWeights>>,
    /// Messages about settings of the pipeline's scheduler that are not applied.
    pub notes: Vec<String>,
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
        let mut given = Self::default();
        if config.data.captions {
            let mut folder = open_pipeline(config)?;
            given.notes = std::mem::take(&mut folder.notes);
            let (pipeline, teacher) = read_pipeline(folder, config)?;
            (given.pipeline, given.teacher) = (Some(pipeline), Some(teacher));
        } else {
            given.teacher = model(&config.teacher.model)?;
        }
        given.weaker = model(&config.distill.weaker_model)?;
        let student = model(&config.distill.model)?;
        given.student = student.map(|student| given.adopt(student, &"distill.model")).transpose()?;
        if given.student.is_none() {
            given.read_distance(&config.distill)?;
        }
        Ok(given)
    }

    /// The stages that a run trains, and their settings.
    pub fn stages(&self, config: &Config) -> Vec<(StageKind, StageConfig)> {
        let Config { teacher, distill, finish, .. } = config;
        let weaker = teacher.weaker_kimg.is_some() && self.student.is_none();
        let trains_teacher = self.teacher.is_none() || teacher.training.is_some() || weaker;
        let stages = [
            (StageKind::Teacher, teacher.stage(), trains_teacher),
            (StageKind::Distill, distill.stage(), self.student.is_none()),
            (StageKind::Finish, finish.stage(), finish.steps() > 0),
        ];
        let used = stages.into_iter().filter(|(.., used)| *used);
        used.map(|(stage, settings, _)| (stage, settings)).collect()
    }

    /// The architecture of teacher and student: that of the given teacher, otherwise the configuration's.
    pub fn spec(&self, config: &Config) -> NetworkSpec {
        self.teacher.as_ref().map_or_else(|| config.spec(), |teacher| teacher.spec.clone())
    }

    /// A model of the pipeline's network, for latents of the pipeline's size. `what` is the setting or the file to name.
    ///
    /// # Errors
    /// If it has another network.
    fn adopt(&self, mut model: Model, what: &dyn Display) -> Result<Model, RunError> {
        if let Some(pipeline) = &self.pipeline {
            let network = pipeline.spec.network.like(&model.spec);
            model.spec = network.map_err(|error| RunError::Unsuitable(format!("{what}: {error}")))?;
        }
        Ok(model)
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
            Some(given) if config.teacher.training.is_none() => Ok(given.clone()),
            _ => self.trained_teacher(config, &folder.join(files::TEACHER)),
        }
    }

    /// The teacher that a run has trained, if it has the network of the run.
    pub(super) fn trained_teacher(&self, config: &Config, path: &Path) -> Result<Model, RunError> {
        match &self.teacher {
            None => read_teacher(config, path),
            Some(given) => {
                let model = self.adopt(disk::read_model(path)?, &path.display())?;
                if model.spec != given.spec || model.prediction != given.prediction {
                    return Err(RunError::Unsuitable(format!(
                        "{}: its network differs from that of teacher.model",
                        path.display()
                    )));
                }
                Ok(model)
            }
        }
    }
}

/// Checks that a weaker teacher is one of the images, classes and path of a teacher with this network and prediction. `what` is
/// the setting or the file to name.
///
/// # Errors
/// If it is not.
pub fn check_weaker(
    weaker: &Model,
    (expected, prediction): (&NetworkSpec, &Prediction),
    what: &dyn Display,
) -> Result<(), RunError> {
    let found = &weaker.spec;
    let fault = if found.text().is_some() {
        "a network without text, found one with text".into()
    } else if found.image() != expected.image() {
        format!("a network of images {:?}, as the teacher, found {:?}", expected.image(), found.image())
    } else if found.num_classes() != expected.num_classes() {
        let [expected, found] =
            [expected.num_classes(), found.num_classes()].map(|classes| classes.unwrap_or(0));
        format!("a network of {expected} classes, as the teacher, found {found}")
    } else if weaker.prediction != *prediction {
        "the teacher's path and prediction, found others".into()
    } else {
        return Ok(());
    };
    Err(RunError::Unsuitable(format!("{what}: expected {fault}")))
}

/// The network of `teacher.model`, without its weights.
///
/// # Errors
/// If the model or pipeline cannot be read.
pub fn given_network(config: &Config) -> Result<Option<NetworkSpec>, RunError> {
    match &config.teacher.model {
        Some(_) if config.data.captions => Ok(Some(trained_network(&open_pipeline(config)?.spec, config)?)),
        Some(path) => Ok(Some(disk::read_model(Path::new(path))?.spec)),
        None => Ok(None),
    }
}

/// Opens the pipeline that `teacher.model` names, for images of the configured size.
fn open_pipeline(config: &Config) -> Result<Folder, RunError> {
    let Some(path) = config.teacher.model.as_deref().map(Path::new) else {
        let reason = "teacher.model: expected a text-to-image pipeline, as data.captions is true, found none";
        return Err(RunError::Unsuitable(reason.into()));
    };
    let mut folder = text_to_image::open_any(path, config.teacher.config.as_deref().map(Path::new))?;
    if let Some(size) = config.data.image_size {
        folder.spec = folder
            .spec
            .with_image_size(size)
            .map_err(|error| RunError::Unsuitable(format!("data.image_size: {error}")))?;
    }
    Ok(folder)
}

/// What a run trains of a pipeline: the denoiser, and the text encoder if the configuration says so.
fn trained_network(pipeline: &PipelineSpec, config: &Config) -> Result<NetworkSpec, RunError> {
    if !config.teacher.train_text_encoder {
        return Ok(pipeline.network.clone());
    }
    let network = pipeline.network.with_text_encoder(&pipeline.text_encoders);
    network.map_err(|error| RunError::Unsuitable(format!("teacher.{error}")))
}

/// Reads what a run trains of a pipeline. Training from nothing needs no weights.
fn read_pipeline(folder: Folder, config: &Config) -> Result<(Pipeline<PartWeights>, Model), RunError> {
    let Folder { spec, tokenizers, weights, .. } = folder;
    let network = trained_network(&spec, config)?;
    let card = ModelCard { role: Role::Teacher, ..ModelCard::default() };
    let teacher = match config.teacher.training {
        Some(TeacherTraining::FromNothing) => random_model(&network, &spec.prediction, config.run.seed),
        _ => {
            let read = |part, graph: &Graph| weights.read(part, graph, Precision::F32);
            // The parameters of the text encoder come first.
            let mut tensors = match network.has_text_encoder() {
                true => read(Part::TextEncoder(0), &spec.text_encoder(0))?,
                false => Vec::new(),
            };
            tensors.extend(read(Part::Denoiser, &spec.network.graph())?);
            Model {
                spec: network,
                prediction: spec.prediction.clone(),
                card: ModelCard::default(),
                precision: Precision::F32,
                tensors: tensors.into_iter().map(CompactTensor::into_host).collect(),
            }
        }
    };
    Ok((Pipeline::new(spec, tokenizers, weights, Backend::Cpu), Model { card, ..teacher }))
}

/// The teacher that a run has trained, if it has the configuration's network.
fn read_teacher(config: &Config, path: &Path) -> Result<Model, RunError> {
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
