//! A run: from a configuration and images to a teacher, a student and a report, in one folder (see [`super::folder`]).
//! A run can be stopped at any time and resumed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use burn::tensor::Device;

use super::batches::{Ahead, Batches, Conditioning, StageKind};
use super::checkpoint;
use super::distill;
use super::drive::Watch;
use super::error::RunError;
use super::folder::{self, files};
use super::given::{Given, check_weaker};
use super::group::Group;
use super::kdc_curve::{Networks, curves};
use super::memory;
use super::samples::{SampleGrid, sample};
use super::stages::{Basis, distill_setting, dtype};
use super::state::{Stage, TrainState};
use super::summary;
use super::trainable::Trainable;
use crate::config::{Config, StageConfig};
use crate::data::Examples;
use crate::disk;
use crate::method::coupling::Coupling;
use crate::method::curriculum::Curriculum;
use crate::method::discriminator::Discriminator;
use crate::method::guidance::Teacher as Guided;
use crate::model::{ModelCard, NetworkSpec, Path as ModelPath, Prediction, Role};
use crate::nn::denoiser::lora_tensors;
use crate::nn::kernels::Operands;
use crate::nn::ops::set_conv_operands;
use crate::report::Curves;
use crate::sampler::image::{Picture, grid};
use crate::sampler::schedule::Solver;
use crate::weights::Model;

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All stages are complete.
    Finished,
    /// The observer requested a stop; a checkpoint holds the state.
    Interrupted,
}

/// A run that is ready to start, as one of its ranks sees it.
#[derive(Clone)]
pub struct Run {
    /// The complete configuration, with `network.num_classes` set if the network has classes.
    pub config: Config,
    /// The folder of the run.
    pub folder: PathBuf,
    /// Device of the tensors.
    pub device: Device,
    /// Threads of this rank over which its share of a batch is split; 1 for a GPU.
    pub threads: usize,
    /// The ranks that train together. The first one writes the files.
    pub group: Arc<dyn Group>,
    /// The contents of the files that the configuration names.
    pub given: Arc<Given>,
    /// The images to train on.
    pub data: Arc<Examples>,
    /// The held-out images.
    pub held_out: Arc<Examples>,
    /// The command line that started the run, for the report.
    pub command: String,
}

/// Fills in the settings that depend on the data, and checks that configuration and data match.
///
/// # Errors
/// A number of classes or a batch size that does not match the data.
pub fn suit(config: &mut Config, given: &Given, data: &Examples) -> Result<(), RunError> {
    let classes = data.classes().len();
    if given.pipeline.is_some() {
        if data.texts().is_none() {
            let expected = "expected images with captions, found images with classes";
            return Err(RunError::Unsuitable(format!("data.source: {expected}")));
        }
    } else if let Some(teacher) = &given.teacher {
        let expected = config.data.class_conditional.then_some(classes);
        let found = teacher.spec.num_classes();
        if found.unwrap_or(0) < expected.unwrap_or(0) || found.is_some() != expected.is_some() {
            let expected = expected
                .map_or("no classes, as data.class_conditional is false".into(), |classes| {
                    format!("at least the data's {classes} classes")
                });
            let found = found.map_or("none".into(), |classes| classes.to_string());
            return Err(RunError::Unsuitable(format!(
                "teacher.model: expected a network of {expected}, found {found}"
            )));
        }
    } else if config.data.class_conditional {
        match config.network.num_classes {
            None => config.network.num_classes = Some(classes),
            Some(given) if given < classes => {
                return Err(RunError::Unsuitable(format!(
                    "network.num_classes: expected at least the data's {classes} classes, found {given}"
                )));
            }
            Some(_) => {}
        }
    }
    if let Some(student) = &given.student {
        let unlike = |expected: &str, found: &str| {
            Err(RunError::Unsuitable(format!("distill.model: expected {expected}, found {found}")))
        };
        if student.card.role != Role::Student {
            return unlike("a student", &format!("a {}", student.card.role.name()));
        }
        let mut network = given.spec(config);
        if let Some(channels) = config.distill.guidance_channels {
            network = network.with_guidance(channels).map_err(distill_setting)?;
        }
        if student.spec.reads_guidance() != network.reads_guidance() {
            let [with, is_given] =
                if network.reads_guidance() { ["with", "given"] } else { ["without", "not given"] };
            return unlike(
                &format!("a network {with} time_cond_proj_dim, as distill.guidance_channels is {is_given}"),
                "the opposite",
            );
        }
        if student.spec != network {
            return unlike("the network of teacher.model", "another network");
        }
        if student.prediction != given.prediction(config) {
            return unlike("the path and prediction of teacher.model", "others");
        }
        if !student.card.classes.is_empty() && student.card.classes != data.classes() {
            return unlike("the classes of the data", &student.card.classes.join(", "));
        }
    }
    if let Some(weaker) = &given.weaker {
        let expected = (&given.spec(config), &given.prediction(config));
        check_weaker(weaker, expected, &"distill.weaker_model")?;
    }
    let prediction = given.prediction(config);
    let path = ModelPath::new(&prediction);
    let solver = Solver::Euler;
    solver
        .steps(&path, solver.grid(&path), config.run.report_steps)
        .map_err(|reason| RunError::Unsuitable(format!("run.report_steps: {reason}")))?;
    for (stage, StageConfig { batch, .. }) in given.stages(config) {
        if batch > data.len() {
            return Err(RunError::Unsuitable(format!(
                "{}.batch: expected at most the data's {} images, found {batch}",
                stage.name(),
                data.len()
            )));
        }
    }
    Ok(())
}

/// Checks that the settings suit a pipeline.
fn check_pipeline(config: &Config, network: &NetworkSpec) -> Result<(), RunError> {
    if network.reads_guidance() {
        let expected = "expected a pipeline without distilled guidance, found one with time_cond_proj_dim";
        return Err(RunError::Unsuitable(format!("teacher.model: {expected}")));
    }
    if let Some(channels) = config.distill.guidance_channels {
        network.with_guidance(channels).map_err(distill_setting)?;
    }
    if let Some(lora) = config.distill.lora() {
        lora_tensors(network, &lora).map_err(distill_setting)?;
    }
    Ok(())
}

/// Values in the checkpoints and model files of a run, at most.
fn values_to_write(config: &Config, network: &NetworkSpec) -> Result<usize, RunError> {
    let Config { teacher, distill, finish, .. } = config;
    let trained = match distill.lora() {
        Some(lora) if teacher.training.is_none() => {
            let matrices = lora_tensors(network, &lora).map_err(distill_setting)?;
            matrices.iter().map(|matrix| matrix.shape.iter().product::<usize>()).sum()
        }
        _ => network.parameters(),
    };
    let discriminator = if distill.adversarial_weight > 0.0 || finish.steps() > 0 {
        memory::discriminator_values(network, distill.discriminator_encoder.unwrap_or_default()) as usize
    } else {
        0
    };
    // Weights, two averages and two moments; a discriminator has no averages.
    let of_checkpoint = (1 + 2 + 2) * trained + (1 + 2) * discriminator;
    let models = 3 + usize::from(teacher.weaker_kimg.is_some());
    Ok(folder::CHECKPOINTS * of_checkpoint + models * trained)
}

/// Checks the folder before images are read, reads the files that the configuration names, and checks the disk space.
///
/// # Errors
/// As [`folder::check`] and [`Given::read`]; too little disk space.
pub fn check(config: &Config, folder: &Path, resume: bool) -> Result<Given, RunError> {
    folder::check(config, folder, resume)?;
    let given = Given::read(config)?;
    let network = given.spec(config);
    if given.pipeline.is_some() {
        check_pipeline(config, &network)?;
    }
    disk::check(folder, folder::still_needed(values_to_write(config, &network)?, folder))?;
    Ok(given)
}

/// Checks that a device computes in the run's precision.
///
/// # Errors
/// If it does not.
pub fn check_precision(config: &Config, device: &Device) -> Result<(), RunError> {
    if config.run.bf16_convolutions && !(conv_operands(config).available() && *device == Device::flex()) {
        return Err(RunError::Unsuitable(
            "run.bf16_convolutions: expected a CPU with AVX512-BF16, found a device without".into(),
        ));
    }
    match config.run.mixed_precision.map(dtype) {
        Some(half) if !device.supports_dtype(half) => Err(RunError::Unsuitable(format!(
            "run.mixed_precision: expected a device that computes in {}, found one that does not",
            half.name()
        ))),
        _ => Ok(()),
    }
}

/// Operands of the run's convolutions on the CPU.
fn conv_operands(config: &Config) -> Operands {
    if config.run.bf16_convolutions { Operands::Bf16 } else { Operands::F32 }
}

impl Run {
    /// Executes the parts of the run that are not complete yet.
    ///
    /// # Errors
    /// See [`RunError`]; completed work is kept.
    pub fn go(&self, resume: bool, watch: &mut dyn Watch) -> Result<Outcome, RunError> {
        self.set_precision()?;
        self.overlaps()?;
        self.check_ranks()?;
        // No rank looks at the folder after the first has written to it.
        self.group.barrier();
        if self.group.is_first() {
            folder::prepare(&self.config, &self.folder, resume)?;
        }
        self.group.barrier();
        let teacher = match self.teacher(watch)? {
            Some(teacher) => teacher,
            None => return Ok(Outcome::Interrupted),
        };
        let basis = self.basis(&teacher)?;
        let distilled = match self.distill(&basis, watch)? {
            Some(student) => student,
            None => return Ok(Outcome::Interrupted),
        };
        if self.finish(&basis, &distilled, watch)? == Outcome::Interrupted {
            return Ok(Outcome::Interrupted);
        }
        if !self.group.is_first() {
            return Ok(Outcome::Finished);
        }
        let curves = match self.given.student {
            None => Some(self.curves_of(&basis, &mut |text| watch.note(text))?),
            Some(_) => None,
        };
        if let Some(curves) = &curves {
            disk::write(&self.path(files::KDC), curves.to_json().as_bytes())?;
        }
        summary::write(self, &basis, curves)?;
        watch.note(&format!("report: {}", self.path(files::REPORT).display()));
        Ok(Outcome::Finished)
    }

    /// Checks that the device computes in the run's precision, and sets the operands of the process's convolutions.
    pub(super) fn set_precision(&self) -> Result<(), RunError> {
        check_precision(&self.config, &self.device)?;
        set_conv_operands(conv_operands(&self.config));
        Ok(())
    }

    /// The architecture: that of the given teacher, otherwise the configuration's.
    pub fn spec(&self) -> NetworkSpec {
        self.given.spec(&self.config)
    }

    /// What the network predicts: that of the given teacher, otherwise the configuration's.
    pub fn prediction(&self) -> Prediction {
        self.given.prediction(&self.config)
    }

    /// Height and width of an image in pixels.
    pub(super) fn image_size(&self) -> [usize; 2] {
        let [_, height, width] = self.spec().image();
        self.given.pipeline.as_ref().map_or([height, width], |pipeline| pipeline.spec.image_size())
    }

    pub(super) fn path(&self, file: &str) -> PathBuf {
        self.folder.join(file)
    }

    pub(super) fn batches<'a>(
        &'a self,
        data: &'a Examples,
        stage: StageKind,
        size: usize,
        coupling: Coupling,
    ) -> Batches<'a> {
        /// diffusers' training scripts and the authors of guidance (arXiv 2207.12598) drop 10 % of the captions.
        const CAPTION_DROPOUT: f64 = 0.1;
        let (dropout, guidance) = match stage {
            StageKind::Teacher => (self.config.teacher.caption_dropout.unwrap_or(CAPTION_DROPOUT), None),
            StageKind::Distill | StageKind::Finish => (0.0, self.config.distill.guidance),
        };
        let plan = match stage {
            StageKind::Teacher => self.config.teacher.coupling_images,
            StageKind::Distill => self.config.distill.coupling_images,
            StageKind::Finish => None,
        };
        Batches {
            data,
            stage,
            seed: self.config.run.seed,
            size,
            coupling,
            batches_per_plan: plan.map_or(1, |images| images.div_ceil(size)),
            horizontal_flip: self.config.data.horizontal_flip,
            conditioning: Conditioning::new(&self.spec(), dropout, guidance),
            rows: (0..size).collect(),
            device: self.device.clone(),
            ahead: Ahead::default(),
        }
    }

    pub(super) fn is_gpu(&self) -> bool {
        self.device != Device::flex()
    }

    /// The state of the newest checkpoint of a stage, if there is one. `discriminator` is untrained.
    pub(super) fn resumed(
        &self,
        stage: StageKind,
        trainable: &Trainable,
        discriminator: Option<&Discriminator>,
        note: &mut dyn FnMut(&str),
    ) -> Result<Option<TrainState>, RunError> {
        let folder = self.path(files::CHECKPOINTS);
        Ok(checkpoint::resume(&folder, stage, trainable, discriminator, &self.device, note)?)
    }

    /// The card of the sampled average of a stage.
    pub(super) fn card(&self, role: Role, stage: &dyn Stage, batch: usize) -> ModelCard {
        let state = stage.state();
        // Only the name of the data, since the full path may be private.
        let data = self.config.data.source.as_deref().and_then(|source| Path::new(source).file_stem());
        ModelCard {
            role,
            source: self.config.run.name.clone(),
            data: data.map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
            classes: if self.config.data.class_conditional {
                self.data.classes().to_vec()
            } else {
                Vec::new()
            },
            steps: state.step,
            images: state.step * batch as u64,
            seed: self.config.run.seed,
            ema: Some(stage.sampled().decay),
            rounding: None,
            version: env!("CARGO_PKG_VERSION").into(),
        }
    }

    /// The grid of samples of a run's reports: a row for each class or caption.
    pub(super) fn grid(&self) -> SampleGrid {
        let (spec, count) = (self.spec(), self.config.run.report_images);
        let Some(texts) = self.data.texts() else { return SampleGrid::new(&spec, count) };
        let guidance = self.config.distill.guidance.map(|[low, high]| ((low + high) / 2.0) as f32);
        SampleGrid::of_captions(&spec, texts, &self.captions(), count, guidance)
    }

    /// Numbers of the captions of held-out images, without repetition; of training images if there are none.
    pub(super) fn captions(&self) -> Vec<usize> {
        let shown = if self.held_out.is_empty() { &self.data } else { &self.held_out };
        let mut captions: Vec<usize> = Vec::new();
        for index in 0..shown.len() {
            let caption = shown.label(index) as usize;
            if !captions.contains(&caption) {
                captions.push(caption);
            }
        }
        captions
    }

    /// Samples the grid, and decodes latents. Returns the picture and the seconds that sampling took.
    pub(super) fn sample_grid(
        &self,
        network: &Guided,
        solver: Solver,
        steps: usize,
    ) -> Result<(Picture, f64), RunError> {
        /// Most images sampled at once.
        const BATCH: usize = 64;
        let batch = BATCH.min(self.part(BATCH, self.config.distill.micro_batch));
        let SampleGrid { request, columns } = self.grid();
        let begin = Instant::now();
        let path = network.denoiser.path();
        let steps = solver
            .steps(path, solver.grid(path), steps)
            .map_err(|reason| RunError::Unsuitable(format!("run.report_steps: {reason}")))?;
        let images = sample(network, &request, &steps, batch, &self.device);
        let seconds = begin.elapsed().as_secs_f64();
        let picture = match &self.given.pipeline {
            None => grid(&images, self.spec().image(), columns),
            Some(pipeline) => {
                let images = pollster::block_on(pipeline.decode(&images))?;
                let [height, width] = pipeline.spec.image_size();
                grid(&images, [pipeline.spec.image_channels(), height, width], columns)
            }
        };
        Ok((picture, seconds))
    }

    /// KDC and teacher steps against t on held-out images, with the networks of the last checkpoint. Reports a
    /// checkpoint that cannot be read to `note`.
    ///
    /// # Errors
    /// A run without a distillation checkpoint.
    pub fn curves(&self, teacher: &Model, note: &mut dyn FnMut(&str)) -> Result<Curves, RunError> {
        self.curves_of(&self.basis(teacher)?, note)
    }

    fn curves_of(&self, basis: &Basis, note: &mut dyn FnMut(&str)) -> Result<Curves, RunError> {
        // Eight times the images of a grid: about 50 images in each bin of t.
        let images = 8 * self.config.run.report_images;
        let untrained = self.distillation_discriminator(basis);
        let resumed = self.resumed(StageKind::Distill, &basis.trainable, untrained.as_ref(), note)?;
        let state = resumed.ok_or_else(|| {
            RunError::Unsuitable(format!("{}: no checkpoint of a distillation", self.folder.display()))
        })?;
        let networks = Networks {
            teacher: &self.guided_teacher(basis),
            target: &state.emas[distill::TARGET].denoiser,
            student: &state.denoiser.without_gradients(),
        };
        let size = self.images_at_once().min(self.held_out.len());
        let batches = self.batches(&self.held_out, StageKind::Distill, size, self.config.distill.coupling);
        let curriculum = Curriculum { pad_to: self.is_gpu().then_some(size), ..self.curriculum() };
        Ok(curves(&networks, &batches, &curriculum, images.min(self.held_out.len()))?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::data::{ImageShape, Split, shapes};
    use crate::nn::denoiser::random_model;
    use crate::train::drive::Quiet;
    use crate::train::group::Alone;

    #[test]
    fn checkpoints_and_models_are_counted() {
        let values = |settings: &[&str]| {
            let settings: Vec<String> = settings.iter().map(|&setting| setting.to_owned()).collect();
            let config = Config::preset("shapes").unwrap().with_overrides(&settings).unwrap();
            values_to_write(&config, &config.spec()).unwrap()
        };
        const ALONE: &str = "distill.adversarial_weight=0";
        let network = Config::preset("shapes").unwrap().spec().parameters();
        // Weights, two averages and two moments in four checkpoints, and three models.
        assert_eq!(values(&[ALONE]), (4 * 5 + 3) * network);
        let weaker = ["distill.autoguidance=2", "teacher.weaker_kimg=1", ALONE];
        assert_eq!(values(&weaker), (4 * 5 + 4) * network);
        let [heads, with_encoder] = ["frozen", "trained"]
            .map(|encoder| values(&["finish.kimg=1", &format!("discriminator_encoder={encoder}"), ALONE]));
        assert!(heads > values(&[ALONE]));
        let encoder = (with_encoder - heads) / (4 * 3);
        assert!(encoder > network / 4 && encoder < network, "{encoder} of {network}");
    }

    #[test]
    fn the_teacher_that_was_checked_is_the_one_that_is_used() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("teacher.safetensors");
        let mut config = Config::preset("shapes").unwrap();
        config.network.num_classes = Some(8);
        let teacher = random_model(config.spec(), &config.path.prediction(), 3);
        disk::write(&path, &teacher.to_bytes()).unwrap();
        config.teacher.model = Some(path.to_str().unwrap().to_owned());
        let given = check(&config, &folder.path().join("run"), false).unwrap();
        // The run has the file's contents in memory and must not read the file again.
        std::fs::remove_file(&path).unwrap();
        let shape = ImageShape::of(&config.spec());
        let data = |split| shapes(64, shape, split, 0).unwrap();
        let [data, held_out] = [Split::Train, Split::HeldOut].map(|split| Arc::new(data(split).into()));
        let (folder, command) = (folder.path().join("run"), String::new());
        let (device, group, given) = (Device::flex(), Arc::new(Alone), Arc::new(given));
        let run = Run { config, folder, device, threads: 1, group, given, data, held_out, command };
        assert_eq!(run.teacher(&mut Quiet).unwrap().unwrap().tensors, teacher.tensors);
    }
}
