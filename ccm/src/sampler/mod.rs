//! The engine: a model file in, images out, on a GPU or the CPU. It knows nothing of Burn, of training, of files
//! or of the clock, and compiles for the web.
//!
//! [`plan`] turns a network into a list of operations over a few buffers. An executor runs it: [`gpu`] with the
//! WGSL kernels of `ccm-shaders`, [`cpu`] with kernels of the same names. [`schedule`] says what happens between
//! evaluations, [`condition`] computes time and label, [`image`] makes pictures.

pub mod condition;
mod cpu;
pub mod image;
pub mod plan;
pub mod schedule;

use plan::Plan;
use schedule::{Conditions, Request, Solver, Work, to_planes};

use crate::spec::{ModelCard, UNetSpec};
use crate::weights::{Model, WeightsError};

/// Where a sampler runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backend {
    /// A real GPU where there is one, otherwise the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
}

/// Why a model cannot be loaded or sampled.
#[derive(Debug, thiserror::Error)]
pub enum SamplerError {
    /// The model file cannot be used.
    #[error("model: {0}")]
    Model(#[from] WeightsError),
    /// What was asked for cannot be sampled from this model.
    #[error("{0}")]
    Request(String),
    /// The system gives no threads.
    #[error("threads: {0}")]
    Threads(String),
}

/// What a sampler runs on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// `cpu`, or the API of the GPU: `vulkan`, `metal`, `dx12`, `webgpu`.
    pub backend: String,
    /// The processor, as its driver names it.
    pub adapter: String,
    /// Whether a GPU is one in name only, computed on the CPU.
    pub software: bool,
    /// Kind of the numbers computed with: `f32` or `f16`.
    pub precision: String,
    /// Parameters of the network.
    pub parameters: usize,
    /// Bytes of weights and buffers held at the moment.
    pub memory: usize,
}

/// A model, ready to make images.
pub struct Sampler {
    plan: Plan,
    card: ModelCard,
    executor: Executor,
    conditions: Conditions,
}

enum Executor {
    Cpu(cpu::Executor),
}

impl Sampler {
    /// Loads a model file.
    ///
    /// # Errors
    /// A file that is no model, a backend that is not there, or a model that is too large for it.
    pub async fn load(bytes: &[u8], backend: Backend) -> Result<Self, SamplerError> {
        Self::new(Model::from_bytes(bytes)?, backend).await
    }

    /// Prepares a model that has been read.
    ///
    /// # Errors
    /// A backend that is not there, or a model that is too large for it.
    pub async fn new(model: Model, _backend: Backend) -> Result<Self, SamplerError> {
        let card = model.card.clone();
        let plan = Plan::new(model);
        let executor = Executor::Cpu(cpu_executor(&plan)?);
        Ok(Self { plan, card, executor, conditions: Conditions::default() })
    }

    /// The architecture.
    pub fn spec(&self) -> &UNetSpec {
        &self.plan.spec
    }

    /// Where the model comes from.
    pub fn card(&self) -> &ModelCard {
        &self.card
    }

    /// The network as it is run.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What it runs on.
    pub fn info(&self) -> Info {
        match &self.executor {
            Executor::Cpu(executor) => Info {
                backend: "cpu".into(),
                adapter: format!("{} threads", executor.threads()),
                software: false,
                precision: "f32".into(),
                parameters: self.plan.spec.parameters(),
                memory: executor.memory(),
            },
        }
    }

    /// How this model is sampled: jumps for a student, Euler steps for everything else.
    pub fn solver(&self) -> Solver {
        if self.card.role == "student" { Solver::Jumps } else { Solver::Euler }
    }

    /// Samples `[N, C, H, W]` with `steps` evaluations an image; values are mostly in [-1, 1].
    ///
    /// # Errors
    /// Labels that the model does not have, no steps at all, or a device that is lost.
    pub async fn sample(&mut self, request: &Request, steps: usize) -> Result<Vec<f32>, SamplerError> {
        self.check(request, steps)?;
        let steps = self.solver().steps(steps);
        let images = request.images(&self.plan.spec);
        let work = Work::new(&self.plan, &mut self.conditions, request, 0..images, &steps);
        let Executor::Cpu(executor) = &mut self.executor;
        Ok(to_planes(&executor.sample(&self.plan, &work), &self.plan.spec))
    }

    fn check(&self, request: &Request, steps: usize) -> Result<(), SamplerError> {
        const MOST_STEPS: usize = 10_000;
        let fail = |text: String| Err(SamplerError::Request(text));
        let spec = &self.plan.spec;
        if !(1..=MOST_STEPS).contains(&steps) {
            return fail(format!("steps: expected 1 to {MOST_STEPS}, found {steps}"));
        }
        let images = request.images(spec);
        if images == 0 || request.noise.len() != images * spec.image_len() {
            let found = request.noise.len();
            return fail(format!("noise: expected a multiple of {} values, found {found}", spec.image_len()));
        }
        let Some(classes) = spec.num_classes else { return Ok(()) };
        if request.labels.len() != images {
            return fail(format!("labels: expected {images}, found {}", request.labels.len()));
        }
        match request.labels.iter().find(|label| **label as usize >= classes) {
            Some(label) => fail(format!("label: expected 0 to {}, found {label}", classes - 1)),
            None => Ok(()),
        }
    }
}

#[cfg(not(target_arch = "wasm32"))]
fn cpu_executor(plan: &Plan) -> Result<cpu::Executor, SamplerError> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    cpu::Executor::new(plan, threads).map_err(|error| SamplerError::Threads(error.to_string()))
}

#[cfg(target_arch = "wasm32")]
fn cpu_executor(plan: &Plan) -> Result<cpu::Executor, SamplerError> {
    Ok(cpu::Executor::new(plan))
}
