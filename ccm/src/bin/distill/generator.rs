//! What makes the images that `distill eval` measures: the sampler, or a teacher with autoguidance.

use std::fmt;
use std::path::PathBuf;

use burn::tensor::Device;
use ccm::disk::read_model;
use ccm::method::guidance::{Guidance, Teacher};
use ccm::metrics::MetricsError;
use ccm::model::{Role, TimeGrid};
use ccm::nn::denoiser::Denoiser;
use ccm::sampler::schedule::{Request, Solver, Step};
use ccm::sampler::{Backend, Sampler};
use ccm::train::given::check_weaker;
use ccm::train::samples;
use ccm::weights::Model;

use crate::Failure;
use crate::sample::times_for;

/// Images that a teacher with autoguidance makes at once.
const AT_ONCE: usize = 50;

/// Autoguidance of a teacher (PAPER.md §11).
#[derive(clap::Args)]
pub(crate) struct Autoguidance {
    /// Scale of autoguidance, which leads a teacher away from that of --weaker: to choose `distill.autoguidance`
    #[arg(id = "autoguidance", long = "autoguidance", value_name = "SCALE", requires = "weaker")]
    pub(crate) scale: Option<f32>,
    /// Flow time at which autoguidance ends
    #[arg(
        long = "autoguidance-until",
        value_name = "TIME",
        requires = "autoguidance",
        default_value_t = 1.0
    )]
    until: f32,
    /// Model file of the weaker teacher
    #[arg(long, value_name = "FILE", requires = "autoguidance")]
    weaker: Option<PathBuf>,
}

/// Weaker teacher, scale and end of autoguidance.
pub(crate) type Guide = (Model, f32, f32);

impl Autoguidance {
    /// Reads the weaker teacher of a model, if there is autoguidance.
    pub(crate) fn read(&self, model: &Model) -> Result<Option<Guide>, Failure> {
        let (Some(scale), Some(file)) = (self.scale, &self.weaker) else { return Ok(None) };
        let fault = if model.card.role == Role::Student {
            "--autoguidance: expected a teacher, found a student".into()
        } else if model.spec.text().is_some() {
            "--autoguidance: expected a teacher without text, found one with text".into()
        } else if !(scale.is_finite() && scale >= 1.0) {
            format!("--autoguidance: expected a finite scale, 1 or more, found {scale}")
        } else if !(self.until > 0.0 && self.until <= 1.0) {
            let found = self.until;
            format!("--autoguidance-until: expected a flow time above 0 and at most 1, found {found}")
        } else {
            let weaker = read_model(file)?;
            let what = format!("--weaker: {}", file.display());
            check_weaker(&weaker, (&model.spec, &model.prediction), &what)?;
            return Ok(Some((weaker, scale, self.until)));
        };
        Err(fault.into())
    }

    /// The flow time at which autoguidance ends, if there is any.
    pub(crate) fn until(&self) -> Option<f32> {
        self.scale.map(|_| self.until)
    }
}

impl fmt::Display for Autoguidance {
    /// What to write after the model's role.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.scale {
            Some(scale) => write!(f, " with autoguidance of {scale} until t = {}", self.until),
            None => Ok(()),
        }
    }
}

/// What makes the images.
pub(crate) enum Generator {
    /// The sampler, with the number of evaluations.
    Sampler(Box<Sampler>, usize),
    /// A teacher with autoguidance, its steps, and the device of training.
    Guided(Box<Teacher>, Vec<Step>, Device),
}

impl Generator {
    /// A generator of images of `evaluations` evaluations each; guidance takes up to two for each of them.
    pub(crate) fn new(
        model: Model,
        guide: Option<Guide>,
        times: Option<TimeGrid>,
        evaluations: usize,
        (backend, device): (Backend, &Device),
    ) -> Result<Self, Failure> {
        let refused = |error| format!("--times or --steps: {error}");
        let Some((weaker, scale, until)) = guide else {
            let sampler = pollster::block_on(Sampler::new(model, backend))?;
            let (solver, times) = (sampler.solver(), times_for(times, sampler.times()));
            let sampler = sampler.with_solver(solver, times);
            sampler.evaluations(evaluations).map_err(refused)?;
            return Ok(Self::Sampler(Box::new(sampler), evaluations));
        };
        let denoiser = Denoiser::frozen(&model, device);
        let times = times_for(times, Solver::Euler.grid(denoiser.path()));
        let steps = Solver::Euler.steps(denoiser.path(), times, evaluations).map_err(refused)?;
        let guidance = Guidance::Auto { weaker: Denoiser::frozen(&weaker, device), scale, until };
        Ok(Self::Guided(Box::new(Teacher { denoiser, guidance }), steps, device.clone()))
    }

    /// The images of a request, `[N, C, H, W]`.
    pub(crate) fn images(&mut self, request: &Request) -> Result<Vec<f32>, MetricsError> {
        match self {
            Self::Sampler(sampler, evaluations) => {
                Ok(pollster::block_on(sampler.sample(request, *evaluations))?)
            }
            Self::Guided(teacher, steps, device) => {
                Ok(samples::sample(teacher, request, steps, AT_ONCE, device))
            }
        }
    }

    /// The device that makes the images; `device` is the name of training's device.
    pub(crate) fn adapter(&self, device: &str) -> String {
        match self {
            Self::Sampler(sampler, _) => sampler.info().adapter,
            Self::Guided(..) => device.to_owned(),
        }
    }
}
