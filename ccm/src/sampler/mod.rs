//! The engine: a model file in, images out, on a GPU or the CPU. It knows nothing of Burn, of training, of files
//! or of the clock, and compiles for the web.
//!
//! [`plan`] turns a network into a list of operations over a few buffers. An executor runs it: `gpu` with the WGSL
//! kernels of `ccm-shaders`, `cpu` with kernels of the same names. [`schedule`] says what happens between
//! evaluations, [`condition`] computes time and label, [`image`] makes pictures.

pub mod condition;
pub(crate) mod cpu;
pub(crate) mod gpu;
pub mod image;
pub mod plan;
pub mod rounding;
pub mod schedule;
#[cfg(test)]
mod tests;

pub use gpu::Surface;
pub use gpu::device::is_software;
use plan::Plan;
use schedule::{Conditions, Request, Solver, Step, Work, to_planes};
pub use wgpu::SurfaceTarget;

use crate::model::{ModelCard, NetworkSpec, TimeGrid};
use crate::weights::{Model, Precision, WeightsError};

/// Where a sampler runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backend {
    /// A real GPU where there is one, otherwise the CPU.
    #[default]
    Auto,
    /// A GPU.
    Gpu {
        /// Its API; any where not given.
        api: Option<Api>,
        /// Whether an adapter that computes on the CPU may be taken if there is no real one.
        software: bool,
    },
    /// The CPU.
    Cpu,
}

/// Graphics API. Ignored in the browser, which always uses WebGPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    /// Vulkan.
    Vulkan,
    /// Metal.
    Metal,
    /// Direct3D 12.
    Dx12,
}

/// Why a model cannot be loaded or sampled.
#[derive(Debug, thiserror::Error)]
pub enum SamplerError {
    /// The model file cannot be used.
    #[error("model: {0}")]
    Model(#[from] WeightsError),
    /// There is no GPU of the kind that was asked for.
    #[error("no GPU: {0}")]
    NoGpu(String),
    /// The model does not fit the adapter.
    #[error("the model wants a buffer of {needed} bytes, this adapter allows {allowed}")]
    TooLarge {
        /// Bytes of the largest buffer.
        needed: u64,
        /// Bytes that the adapter allows.
        allowed: u64,
    },
    /// The GPU has gone away. The next call opens it anew.
    #[error("the GPU is lost; the next call opens it again")]
    DeviceLost,
    /// The GPU reports an error.
    #[error("GPU: {0}")]
    Device(String),
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
    /// Whether the GPU adapter is a software adapter, which computes on the CPU.
    pub software: bool,
    /// Kind of the numbers computed with: `f32` or `f16`.
    pub precision: String,
    /// Parameters of the network.
    pub parameters: usize,
    /// Bytes of weights and buffers held at the moment.
    pub memory: u64,
}

/// A model, ready to make images.
pub struct Sampler {
    plan: Plan,
    card: ModelCard,
    precision: Precision,
    backend: Backend,
    executor: Executor,
    conditions: Conditions,
    solver: Solver,
    grid: TimeGrid,
}

#[expect(clippy::large_enum_variant, reason = "there is one of it")]
enum Executor {
    Cpu(cpu::Executor),
    Gpu(gpu::Executor),
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
    pub async fn new(model: Model, backend: Backend) -> Result<Self, SamplerError> {
        let (card, precision) = (model.card.clone(), model.precision);
        let mut plan = Plan::new(model);
        let executor = Executor::new(&plan, precision, backend).await?;
        if matches!(executor, Executor::Cpu(_)) {
            // Packed by now; a GPU may be lost, and want them again.
            plan.weights = Vec::new();
        }
        let (solver, grid) = (Solver::of(&card), plan.path.grid());
        let conditions = Conditions::default();
        Ok(Self { plan, card, precision, backend, executor, conditions, solver, grid })
    }

    /// The architecture.
    pub fn spec(&self) -> &NetworkSpec {
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
        let parameters = self.plan.spec.parameters();
        match &self.executor {
            Executor::Cpu(executor) => Info {
                backend: "cpu".into(),
                adapter: match executor.threads() {
                    1 => "1 thread".into(),
                    threads => format!("{threads} threads"),
                },
                software: false,
                precision: "f32".into(),
                parameters,
                memory: executor.memory() as u64,
            },
            Executor::Gpu(executor) => {
                let adapter = executor.adapter();
                let api = match adapter.backend {
                    wgpu::Backend::BrowserWebGpu => "webgpu".to_owned(),
                    other => other.to_string(),
                };
                Info {
                    backend: api,
                    adapter: adapter.name,
                    software: executor.is_software(),
                    precision: match executor.real() {
                        ccm_shaders::Real::F32 => "f32".into(),
                        ccm_shaders::Real::F16 => "f16".into(),
                    },
                    parameters,
                    memory: executor.memory(),
                }
            }
        }
    }

    /// How this model is sampled.
    pub fn solver(&self) -> Solver {
        self.solver
    }

    /// The times at which this model is evaluated.
    pub fn times(&self) -> TimeGrid {
        self.grid
    }

    /// Samples with another solver and other times than the model's own.
    pub fn with_solver(self, solver: Solver, grid: TimeGrid) -> Self {
        Self { solver, grid, ..self }
    }

    /// The steps of a sample with at most `count` evaluations.
    fn steps(&self, count: usize) -> Result<Vec<Step>, SamplerError> {
        let steps = self.solver.steps(&self.plan.path, self.grid, count);
        steps.map_err(|error| SamplerError::Request(format!("steps: {error}")))
    }

    /// What its weights are stored as.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Whether the GPU has gone away; the next call opens it again.
    pub fn is_lost(&self) -> bool {
        matches!(&self.executor, Executor::Gpu(executor) if executor.is_lost())
    }

    /// Gives the GPU back, as a browser or a driver may at any time; for tests of what happens then.
    pub fn lose_device(&self) {
        if let Executor::Gpu(executor) = &self.executor {
            executor.destroy();
        }
    }

    /// Samples `[N, C, H, W]` with `steps` evaluations an image; values are mostly in [-1, 1]. More images than
    /// memory allows go through the network one part after the other.
    ///
    /// # Errors
    /// Labels that the model does not have, no steps at all, or a device that is lost.
    pub async fn sample(&mut self, request: &Request, steps: usize) -> Result<Vec<f32>, SamplerError> {
        self.check(request, steps)?;
        self.recover().await?;
        let steps = self.steps(steps)?;
        let images = request.images(&self.plan.spec);
        let most = match &self.executor {
            Executor::Cpu(_) => images,
            Executor::Gpu(executor) => executor.most_images(),
        };
        let mut planes = Vec::with_capacity(request.noise.len());
        for first in (0..images).step_by(most) {
            let part = first..images.min(first + most);
            let work = Work::new(&self.plan, &mut self.conditions, request, part, &steps);
            let blocks = match &mut self.executor {
                Executor::Cpu(executor) => executor.sample(&self.plan, &work),
                Executor::Gpu(executor) => executor.sample(&self.plan, &work).await?,
            };
            planes.extend(to_planes(&blocks, &self.plan));
        }
        Ok(planes)
    }

    /// Prepares a canvas or a window to be drawn on; `None` on the CPU, which cannot.
    ///
    /// # Errors
    /// A canvas that has been drawn on in another way, or a device that is lost.
    pub fn surface(&self, target: SurfaceTarget<'static>) -> Result<Option<Surface>, SamplerError> {
        match &self.executor {
            Executor::Cpu(_) => Ok(None),
            Executor::Gpu(executor) => executor.surface(target).map(Some),
        }
    }

    /// Samples the first image of a request and draws it over the whole surface, whose size becomes that of the
    /// image. Nothing is read back.
    ///
    /// # Errors
    /// As [`Sampler::sample`]; a sampler on the CPU; a surface of a device that is lost.
    pub async fn draw(
        &mut self,
        surface: &mut Surface,
        request: &Request,
        steps: usize,
    ) -> Result<(), SamplerError> {
        self.check(request, steps)?;
        self.recover().await?;
        let steps = self.steps(steps)?;
        let work = Work::new(&self.plan, &mut self.conditions, request, 0..1, &steps);
        match &mut self.executor {
            Executor::Cpu(_) => Err(SamplerError::NoGpu("this sampler runs on the CPU".into())),
            Executor::Gpu(executor) => executor.draw(&self.plan, &work, surface),
        }
    }

    /// Opens the GPU again if it is lost, as every call does; a surface must be made after that.
    ///
    /// # Errors
    /// A GPU that has not come back.
    pub async fn recover(&mut self) -> Result<(), SamplerError> {
        if self.is_lost() {
            self.executor = Executor::new(&self.plan, self.precision, self.backend).await?;
        }
        Ok(())
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
        let Some(classes) = spec.num_classes() else { return Ok(()) };
        if request.labels.len() != images {
            return fail(format!("labels: expected {images}, found {}", request.labels.len()));
        }
        match request.labels.iter().find(|label| **label as usize >= classes) {
            Some(label) => fail(format!("label: expected 0 to {}, found {label}", classes - 1)),
            None => Ok(()),
        }
    }
}

impl Executor {
    async fn new(plan: &Plan, precision: Precision, backend: Backend) -> Result<Self, SamplerError> {
        let gpu = match backend {
            Backend::Cpu => None,
            Backend::Gpu { api, software } => Some(gpu::Executor::new(plan, precision, api, software).await?),
            // What a GPU cannot do, the CPU can, if only more slowly.
            Backend::Auto => gpu::Executor::new(plan, precision, None, false).await.ok(),
        };
        gpu.map_or_else(|| Ok(Self::Cpu(cpu_executor(plan)?)), |gpu| Ok(Self::Gpu(gpu)))
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
