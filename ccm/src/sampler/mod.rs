//! The inference engine: a model file in, images out, on a GPU or the CPU. It does not depend on Burn, the training
//! code, the file system or the clock, and compiles to WebAssembly.
//!
//! [`plan`] compiles a network into a list of operations over a few buffers. An executor runs the plan: `gpu` with the
//! WGSL kernels of `ccm-shaders`, `cpu` with kernels of the same names. [`schedule`] defines the solvers,
//! [`condition`] computes what depends on time and label, and [`image`] makes pictures.

pub mod condition;
pub(crate) mod cpu;
#[cfg(feature = "text")]
pub mod evaluator;
pub(crate) mod gpu;
#[cfg(feature = "text")]
pub mod guidance;
pub mod image;
pub mod plan;
pub mod rounding;
pub mod schedule;
#[cfg(all(test, feature = "text"))]
mod tests;

pub use gpu::Surface;
pub use gpu::device::is_software;
use plan::Plan;
use schedule::{Conditions, Request, Solver, Step, Work};
pub use wgpu::SurfaceTarget;

#[cfg(feature = "text")]
use crate::model::Role;
use crate::model::{ModelCard, NetworkSpec, Path, Prediction, TimeGrid};
use crate::weights::{CompactTensor, Model, Precision, WeightsError};

/// The device that a sampler runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backend {
    /// A hardware GPU if there is one, otherwise the CPU.
    #[default]
    Auto,
    /// A GPU.
    Gpu {
        /// Its API; `None` allows any.
        api: Option<Api>,
        /// Whether to accept a software adapter, which computes on the CPU, if there is no hardware GPU.
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
    /// There is no GPU of the requested kind.
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
    /// The GPU device is lost. The next call opens it again.
    #[error("the GPU is lost; the next call opens it again")]
    DeviceLost,
    /// The GPU reports an error.
    #[error("GPU: {0}")]
    Device(String),
    /// The request does not suit the model.
    #[error("{0}")]
    Request(String),
    /// The system cannot start threads.
    #[error("threads: {0}")]
    Threads(String),
}

/// Properties of the model and its device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// `cpu`, or the API of the GPU: `vulkan`, `metal`, `dx12`, `webgpu`.
    pub backend: String,
    /// The processor, as named by its driver.
    pub adapter: String,
    /// Whether the GPU adapter is software, which computes on the CPU.
    pub software: bool,
    /// Number format of the computation: `f32` or `f16`.
    pub precision: String,
    /// Number of parameters of the network.
    pub parameters: usize,
    /// Bytes of weights and buffers currently allocated.
    pub memory: u64,
}

/// A compiled denoiser.
struct Denoiser {
    plan: Plan,
    spec: NetworkSpec,
    /// The prediction and its path (PAPER.md §8).
    path: Path,
}

/// A loaded model that samples images.
pub struct Sampler {
    denoiser: Denoiser,
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
    /// If the bytes are not a model, the backend is not available, or the model is too large for it.
    pub async fn load(bytes: &[u8], backend: Backend) -> Result<Self, SamplerError> {
        Self::new(Model::from_bytes(bytes)?, backend).await
    }

    /// Prepares a parsed model.
    ///
    /// # Errors
    /// If the backend is not available or the model is too large for it.
    pub async fn new(model: Model, backend: Backend) -> Result<Self, SamplerError> {
        let Model { spec, prediction, card, precision, tensors } = model;
        let tensors = tensors.into_iter().map(CompactTensor::from).collect();
        Self::compiled(spec, &prediction, card, tensors, precision, backend).await
    }

    /// Prepares a denoiser with weights in the precision in which they are stored, in the order of the spec's tensors.
    ///
    /// # Errors
    /// If the backend is not available or the model is too large for it.
    ///
    /// # Panics
    /// If the weights do not fit the spec.
    #[cfg(feature = "text")]
    pub async fn with_weights(
        spec: NetworkSpec,
        prediction: &Prediction,
        role: Role,
        tensors: Vec<CompactTensor>,
        precision: Precision,
        backend: Backend,
    ) -> Result<Self, SamplerError> {
        let card = ModelCard { role, ..ModelCard::default() };
        Self::compiled(spec, prediction, card, tensors, precision, backend).await
    }

    async fn compiled(
        spec: NetworkSpec,
        prediction: &Prediction,
        card: ModelCard,
        tensors: Vec<CompactTensor>,
        precision: Precision,
        backend: Backend,
    ) -> Result<Self, SamplerError> {
        #[cfg(feature = "text")]
        if spec.has_text_encoder() {
            let text = "a denoiser with its own text encoder is sampled as a part of its pipeline; in the program, sample PIPELINE \
                        --denoiser MODEL";
            return Err(SamplerError::Request(text.into()));
        }
        let mut plan = Plan::new(spec.graph(), tensors);
        let executor = Executor::new(&mut plan, precision, backend).await?;
        let denoiser = Denoiser { plan, spec, path: Path::new(prediction) };
        let solver = Solver::of(&card);
        let grid = solver.grid(&denoiser.path);
        let conditions = Conditions::default();
        Ok(Self { denoiser, card, precision, backend, executor, conditions, solver, grid })
    }

    /// The architecture.
    pub fn spec(&self) -> &NetworkSpec {
        &self.denoiser.spec
    }

    /// The model card: role, data and training.
    pub fn card(&self) -> &ModelCard {
        &self.card
    }

    /// The compiled network.
    pub fn plan(&self) -> &Plan {
        &self.denoiser.plan
    }

    /// Properties of the model and its device.
    pub fn info(&self) -> Info {
        self.executor.info(self.denoiser.spec.parameters())
    }

    /// The solver for this model.
    pub fn solver(&self) -> Solver {
        self.solver
    }

    /// The time grid for this model.
    pub fn times(&self) -> TimeGrid {
        self.grid
    }

    /// Replaces the model's own solver and time grid.
    pub fn with_solver(self, solver: Solver, grid: TimeGrid) -> Self {
        Self { solver, grid, ..self }
    }

    /// Evaluations per image of a sample with at most `count`: Heun's method takes an odd number.
    ///
    /// # Errors
    /// If the model does not support the time grid, or its schedule has fewer steps.
    pub fn evaluations(&self, count: usize) -> Result<usize, String> {
        Ok(self.solver.steps(&self.denoiser.path, self.grid, count)?.len())
    }

    /// The steps of a sample with at most `count` evaluations.
    fn steps(&self, count: usize) -> Result<Vec<Step>, SamplerError> {
        let steps = self.solver.steps(&self.denoiser.path, self.grid, count);
        steps.map_err(|error| SamplerError::Request(format!("steps: {error}")))
    }

    /// Storage precision of the weights in the model's file.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Whether the GPU device is lost. The next call opens it again.
    pub fn is_lost(&self) -> bool {
        matches!(&self.executor, Executor::Gpu(executor) if executor.is_lost())
    }

    /// Destroys the GPU device, as a browser or a driver may at any time. For tests.
    pub fn lose_device(&self) {
        if let Executor::Gpu(executor) = &self.executor {
            executor.destroy();
        }
    }

    /// Samples `[N, C, H, W]` with `steps` evaluations per image; values are mostly in [-1, 1]. If memory does not
    /// allow all images at once, they are sampled in parts.
    ///
    /// # Errors
    /// If the model does not have the labels, `steps` is 0, or the device is lost.
    pub async fn sample(&mut self, request: &Request, steps: usize) -> Result<Vec<f32>, SamplerError> {
        self.check(request, steps)?;
        self.recover().await?;
        let steps = self.steps(steps)?;
        let images = request.images(&self.denoiser.spec);
        let most = match &self.executor {
            Executor::Cpu(_) => images,
            Executor::Gpu(executor) => executor.most_images(),
        };
        let mut planes = Vec::with_capacity(request.noise.len());
        for first in (0..images).step_by(most) {
            let part = first..images.min(first + most);
            let work = Work::new(&self.denoiser, &mut self.conditions, request, part, &steps);
            let work = work.map_err(SamplerError::Request)?;
            let blocks = match &mut self.executor {
                Executor::Cpu(executor) => executor.sample(&self.denoiser.plan, &work),
                Executor::Gpu(executor) => executor.sample(&self.denoiser.plan, &work).await?,
            };
            planes.extend(self.denoiser.to_planes(&blocks));
        }
        Ok(planes)
    }

    /// Prepares a canvas or a window for drawing. Returns `None` on the CPU, which cannot draw.
    ///
    /// # Errors
    /// If the canvas has another kind of context, or the device is lost.
    pub fn surface(&self, target: SurfaceTarget<'static>) -> Result<Option<Surface>, SamplerError> {
        match &self.executor {
            Executor::Cpu(_) => Ok(None),
            Executor::Gpu(executor) => executor.surface(target).map(Some),
        }
    }

    /// Samples the first image of a request and draws it over the whole surface. Resizes the surface to the image.
    /// Nothing is read back.
    ///
    /// # Errors
    /// As [`Sampler::sample`]; also if the sampler runs on the CPU, or the surface belongs to a lost device.
    pub async fn draw(
        &mut self,
        surface: &mut Surface,
        request: &Request,
        steps: usize,
    ) -> Result<(), SamplerError> {
        self.check(request, steps)?;
        self.recover().await?;
        let steps = self.steps(steps)?;
        let work = Work::new(&self.denoiser, &mut self.conditions, request, 0..1, &steps);
        let work = work.map_err(SamplerError::Request)?;
        match &mut self.executor {
            Executor::Cpu(_) => Err(SamplerError::NoGpu("this sampler runs on the CPU".into())),
            Executor::Gpu(executor) => executor.draw(&self.denoiser, &work, surface),
        }
    }

    /// Opens the GPU again if it is lost, as every call does. Surfaces must be made again afterwards.
    ///
    /// # Errors
    /// If the GPU is still not available.
    pub async fn recover(&mut self) -> Result<(), SamplerError> {
        if self.is_lost() {
            self.executor = Executor::new(&mut self.denoiser.plan, self.precision, self.backend).await?;
        }
        Ok(())
    }

    fn check(&self, request: &Request, steps: usize) -> Result<(), SamplerError> {
        const MOST_STEPS: usize = 10_000;
        let fail = |text: String| Err(SamplerError::Request(text));
        let spec = &self.denoiser.spec;
        if !(1..=MOST_STEPS).contains(&steps) {
            return fail(format!("steps: expected 1 to {MOST_STEPS}, found {steps}"));
        }
        let images = request.images(spec);
        if images == 0 || request.noise.len() != images * spec.image_len() {
            let found = request.noise.len();
            return fail(format!("noise: expected a multiple of {} values, found {found}", spec.image_len()));
        }
        #[cfg(feature = "text")]
        if let Some(shape) = spec.text() {
            request.check_texts(&shape, images).map_err(SamplerError::Request)?;
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
    /// Properties of the device, for a network of that many parameters.
    fn info(&self, parameters: usize) -> Info {
        match self {
            Self::Cpu(executor) => Info {
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
            Self::Gpu(executor) => {
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

    /// The CPU takes the weights out of the plan; a lost GPU needs them again.
    async fn new(plan: &mut Plan, precision: Precision, backend: Backend) -> Result<Self, SamplerError> {
        let gpu = match backend {
            Backend::Cpu => None,
            Backend::Gpu { api, software } => Some(gpu::Executor::new(plan, precision, api, software).await?),
            // If the GPU cannot run the plan, the CPU runs it.
            Backend::Auto => gpu::Executor::new(plan, precision, None, false).await.ok(),
        };
        gpu.map_or_else(|| Ok(Self::Cpu(cpu_executor(plan)?)), |gpu| Ok(Self::Gpu(gpu)))
    }
}

#[cfg(not(target_arch = "wasm32"))]
fn cpu_executor(plan: &mut Plan) -> Result<cpu::Executor, SamplerError> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    cpu::Executor::new(plan, threads).map_err(|error| SamplerError::Threads(error.to_string()))
}

#[cfg(target_arch = "wasm32")]
fn cpu_executor(plan: &mut Plan) -> Result<cpu::Executor, SamplerError> {
    Ok(cpu::Executor::new(plan))
}
