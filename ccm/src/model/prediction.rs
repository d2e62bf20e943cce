//! The prediction of a network: the meaning of its output, and the path it was trained on (PAPER.md §8).
//!
//! The rest of this crate uses velocities on the straight path `x_t = t x1 + (1 - t) x0`. A [`Prediction`] defines the
//! conversion of a network's output to that velocity; [`Path`](super::Path) tabulates its schedule.

use serde_json::{Value, json};

use super::json::Json;
use super::networks::{Decimal, SpecError};
use super::options::Options;

/// The quantity that a network outputs.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Prediction {
    /// The velocity; the network's time is `t`. Flow matching as in torchcfm.
    #[default]
    Velocity,
    /// The velocity without the part of it that follows from the input: `v = a x + b F`, with EDM's `a` and `b` on the
    /// straight path and the network's time `t`. For data of this standard deviation, F has unit variance at every time: the
    /// image near noise, where a one-step sampler reads it, and the negative noise near the image. A network of velocities
    /// has to reproduce the noise of its input, so that its errors leave grain.
    PreconditionedVelocity {
        /// Standard deviation of the data.
        sigma_data: f64,
    },
    /// The data; the network's time is `1000 t` (arXiv 2511.13720). The network never has to reproduce the noise of its input,
    /// which costs it most where a patch has many pixels.
    StraightData,
    /// Noise minus data; the network's time is `1000 (1 - t)`. Used by Stable Diffusion 3.
    NoiseMinusData {
        /// Shift of the time grid towards noise; 1 means no shift.
        shift: f64,
    },
    /// The noise of a variance-preserving path (DDPM, arXiv 2006.11239).
    Noise(Schedule),
    /// The data of a variance-preserving path.
    Data(Schedule),
    /// `alpha noise - sigma data` of a variance-preserving path (arXiv 2202.00512).
    V(Schedule),
    /// EDM's preconditioned network (arXiv 2206.00364).
    Edm(Edm),
}

/// A variance-preserving path: `x = alpha x1 + sigma x0` with `alpha^2 + sigma^2 = 1`, defined at integer steps. Step
/// 0 has the least noise.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// Defines `alpha`: `alpha_i^2` is the product of `1 - beta` up to step i.
    pub betas: Betas,
    /// Number of steps. For a table, its length.
    pub steps: usize,
    /// Whether the betas are rescaled so that the last step is pure noise (arXiv 2305.08891).
    pub zero_terminal_snr: bool,
    /// Steps at which the model is sampled.
    pub spacing: Spacing,
}

/// The betas of a [`Schedule`].
#[derive(Debug, Clone, PartialEq)]
pub enum Betas {
    /// Equally spaced from the first to the second.
    Linear(f64, f64),
    /// Squares of equally spaced numbers, from the root of the first to the root of the second.
    ScaledLinear(f64, f64),
    /// `alpha^2 = cos^2((t + 0.008) / 1.008 * pi / 2)`, betas at most 0.999 (arXiv 2102.09672).
    Cosine,
    /// An explicit list.
    Table(Vec<f64>),
}

/// Selects the steps of a [`Schedule`] for sampling with fewer evaluations than steps. Names are diffusers'.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Spacing {
    /// Equally spaced, starting at the last step.
    #[default]
    Trailing,
    /// Multiples of `steps / evaluations`, plus an offset.
    Leading(usize),
    /// Equally spaced from the last step to step 0, both included.
    Linspace,
}

/// EDM's preconditioning and path: `x = x1 + sigma x0`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Edm {
    /// Standard deviation of the data.
    pub sigma_data: f64,
    /// Smallest sigma of the network's input.
    pub sigma_min: f64,
    /// Sigma of the noise at the start of sampling.
    pub sigma_max: f64,
    /// Exponent of the time grid.
    pub rho: f64,
    /// The network's time is `time_scale ln(sigma)`: 0.25 in EDM, 250 in openai/consistency_models.
    pub time_scale: f64,
    /// Whether `c_skip` and `c_out` are shifted by `sigma_min`, so that the output at `sigma_min` equals the input, as
    /// in a consistency model (arXiv 2303.01469).
    pub boundary: bool,
}

impl Default for Edm {
    /// The published settings, with the time scale of openai/consistency_models, which matches the time embedding of
    /// ADM's U-Net.
    fn default() -> Self {
        Self {
            sigma_data: 0.5,
            sigma_min: 0.002,
            sigma_max: 80.0,
            rho: 7.0,
            time_scale: 250.0,
            boundary: false,
        }
    }
}

impl Default for Schedule {
    /// The schedule of DDPM: 1000 steps, betas from 1e-4 to 0.02.
    fn default() -> Self {
        Self {
            betas: Betas::Linear(1e-4, 0.02),
            steps: 1000,
            zero_terminal_snr: false,
            spacing: Spacing::Trailing,
        }
    }
}

impl Schedule {
    /// `ln(alpha / sigma)` of every step, decreasing. The last is minus infinity with `zero_terminal_snr`.
    pub(super) fn log_ratios(&self) -> Vec<f64> {
        /// Bound on the rounding error of a table in single precision.
        const TINY: f64 = 1e-12;
        let last = (self.steps - 1).max(1) as f64;
        let even = |first: f64, end: f64, i: usize| first + (end - first) * i as f64 / last;
        let beta = |i: usize| match &self.betas {
            Betas::Linear(first, end) => even(*first, *end, i),
            Betas::ScaledLinear(first, end) => {
                let root = even(libm::sqrt(*first), libm::sqrt(*end), i);
                root * root
            }
            Betas::Cosine => {
                let alpha = |i: usize| {
                    let angle = (i as f64 / self.steps as f64 + 0.008) / 1.008;
                    let cos = libm::cos(angle * std::f64::consts::FRAC_PI_2);
                    cos * cos
                };
                (1.0 - alpha(i + 1) / alpha(i)).min(0.999)
            }
            Betas::Table(betas) => betas[i],
        };
        let mut square = 1.0;
        let mut alphas: Vec<f64> = (0..self.steps)
            .map(|i| {
                square *= 1.0 - beta(i);
                libm::sqrt(square)
            })
            .collect();
        if self.zero_terminal_snr {
            let (first, end) = (alphas[0], alphas[self.steps - 1]);
            alphas.iter_mut().for_each(|alpha| *alpha = (*alpha - end) * first / (first - end));
        }
        let ratio = |alpha: f64| libm::log(alpha / libm::sqrt((1.0 - alpha * alpha).max(TINY)));
        alphas.into_iter().map(ratio).collect()
    }

    /// Checks the ranges of the numbers.
    fn validate(&self) -> Result<(), SpecError> {
        const MOST: usize = 1_000_000;
        if !(2..=MOST).contains(&self.steps) {
            return Err(refused("steps", format_args!("expected 2 to {MOST}, found {}", self.steps)));
        }
        let betas = match &self.betas {
            Betas::Linear(first, last) | Betas::ScaledLinear(first, last) => vec![*first, *last],
            Betas::Cosine => Vec::new(),
            Betas::Table(betas) if betas.len() != self.steps => {
                return Err(refused(
                    "betas",
                    format_args!("expected {} numbers, found {}", self.steps, betas.len()),
                ));
            }
            Betas::Table(betas) => betas.clone(),
        };
        match betas.iter().find(|beta| !(**beta > 0.0 && **beta < 1.0)) {
            Some(beta) => Err(refused(
                "betas",
                format_args!("expected numbers between 0 and 1, found {}", Decimal(*beta)),
            )),
            None => Ok(()),
        }
    }
}

impl Prediction {
    /// Parses the prediction of a model file.
    ///
    /// # Errors
    /// If an option is missing, of another type, or not supported (by name).
    pub fn from_json(object: &Json) -> Result<Self, SpecError> {
        let options = Options::new(object);
        let number = |key, usual| options.number(key).unwrap_or(usual);
        let schedule = || {
            let (first, last) = (number("beta_start", 1e-4), number("beta_end", 0.02));
            let betas = match (options.numbers("betas"), options.text("schedule")) {
                (Some(table), None) => Betas::Table(table),
                (None, Some("scaled-linear")) => Betas::ScaledLinear(first, last),
                (None, Some("cosine")) => Betas::Cosine,
                (None, Some("linear")) => Betas::Linear(first, last),
                _ => {
                    options.refuse("schedule", "linear, scaled-linear or cosine");
                    Betas::Cosine
                }
            };
            let steps = match &betas {
                Betas::Table(table) => table.len(),
                _ => options.count("steps").unwrap_or(1000),
            };
            let spacing = match options.text("spacing") {
                None | Some("trailing") => Spacing::Trailing,
                Some("leading") => Spacing::Leading(options.count("offset").unwrap_or(0)),
                Some("linspace") => Spacing::Linspace,
                _ => {
                    options.refuse("spacing", "trailing, leading or linspace");
                    Spacing::Trailing
                }
            };
            let zero_terminal_snr = options.flag("zero_terminal_snr").unwrap_or(false);
            Schedule { betas, steps, zero_terminal_snr, spacing }
        };
        let prediction = match options.text("predicts") {
            Some("velocity") => Self::Velocity,
            Some("preconditioned-velocity") => {
                Self::PreconditionedVelocity { sigma_data: number("sigma_data", Edm::default().sigma_data) }
            }
            Some("straight-data") => Self::StraightData,
            Some("noise-minus-data") => Self::NoiseMinusData { shift: number("shift", 1.0) },
            Some("noise") => Self::Noise(schedule()),
            Some("data") => Self::Data(schedule()),
            Some("v") => Self::V(schedule()),
            Some("edm") => {
                let usual = Edm::default();
                Self::Edm(Edm {
                    sigma_data: number("sigma_data", usual.sigma_data),
                    sigma_min: number("sigma_min", usual.sigma_min),
                    sigma_max: number("sigma_max", usual.sigma_max),
                    rho: number("rho", usual.rho),
                    time_scale: number("time_scale", usual.time_scale),
                    boundary: options.flag("boundary").unwrap_or(false),
                })
            }
            _ => {
                options.refuse(
                    "predicts",
                    "velocity, preconditioned-velocity, straight-data, noise-minus-data, noise, data, v or edm",
                );
                Self::Velocity
            }
        };
        options.finish()?;
        prediction.validate()?;
        Ok(prediction)
    }

    /// Serializes to JSON that [`Prediction::from_json`] reads back.
    pub fn to_json(&self) -> Value {
        let schedule = |predicts: &str, schedule: &Schedule| {
            let mut map = json!({ "predicts": predicts });
            match &schedule.betas {
                Betas::Linear(first, last) => {
                    map["schedule"] = "linear".into();
                    (map["beta_start"], map["beta_end"]) = ((*first).into(), (*last).into());
                }
                Betas::ScaledLinear(first, last) => {
                    map["schedule"] = "scaled-linear".into();
                    (map["beta_start"], map["beta_end"]) = ((*first).into(), (*last).into());
                }
                Betas::Cosine => map["schedule"] = "cosine".into(),
                Betas::Table(table) => map["betas"] = table.clone().into(),
            }
            if !matches!(schedule.betas, Betas::Table(_)) {
                map["steps"] = schedule.steps.into();
            }
            map["spacing"] = match schedule.spacing {
                Spacing::Trailing => "trailing",
                Spacing::Leading(offset) => {
                    map["offset"] = offset.into();
                    "leading"
                }
                Spacing::Linspace => "linspace",
            }
            .into();
            if schedule.zero_terminal_snr {
                map["zero_terminal_snr"] = true.into();
            }
            map
        };
        match self {
            Self::Velocity => json!({ "predicts": "velocity" }),
            Self::PreconditionedVelocity { sigma_data } => {
                json!({ "predicts": "preconditioned-velocity", "sigma_data": sigma_data })
            }
            Self::StraightData => json!({ "predicts": "straight-data" }),
            Self::NoiseMinusData { shift } => json!({ "predicts": "noise-minus-data", "shift": shift }),
            Self::Noise(of) => schedule("noise", of),
            Self::Data(of) => schedule("data", of),
            Self::V(of) => schedule("v", of),
            Self::Edm(edm) => json!({
                "predicts": "edm",
                "sigma_data": edm.sigma_data,
                "sigma_min": edm.sigma_min,
                "sigma_max": edm.sigma_max,
                "rho": edm.rho,
                "time_scale": edm.time_scale,
                "boundary": edm.boundary,
            }),
        }
    }

    /// The kind of model, as text for display.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Velocity
            | Self::PreconditionedVelocity { .. }
            | Self::StraightData
            | Self::NoiseMinusData { .. } => "flow-matching",
            Self::Noise(_) | Self::Data(_) | Self::V(_) => "diffusion (VP)",
            Self::Edm(_) => "diffusion (EDM)",
        }
    }

    /// Checks the ranges of the numbers.
    ///
    /// # Errors
    /// If a number is out of range (by name).
    pub fn validate(&self) -> Result<(), SpecError> {
        match self {
            Self::Velocity | Self::StraightData => Ok(()),
            Self::PreconditionedVelocity { sigma_data } => check_positive("sigma_data", *sigma_data),
            Self::NoiseMinusData { shift } => check_positive("shift", *shift),
            Self::Noise(schedule) | Self::Data(schedule) | Self::V(schedule) => schedule.validate(),
            Self::Edm(edm) => edm.validate(),
        }
    }
}

fn refused(field: &str, reason: std::fmt::Arguments) -> SpecError {
    SpecError { field: field.into(), reason: reason.to_string() }
}

fn check_positive(name: &str, found: f64) -> Result<(), SpecError> {
    if found > 0.0 && found.is_finite() {
        return Ok(());
    }
    Err(refused(name, format_args!("expected a number above 0, found {}", Decimal(found))))
}

impl Edm {
    fn validate(&self) -> Result<(), SpecError> {
        for (name, value) in [
            ("sigma_data", self.sigma_data),
            ("sigma_min", self.sigma_min),
            ("sigma_max", self.sigma_max),
            ("rho", self.rho),
            ("time_scale", self.time_scale),
        ] {
            check_positive(name, value)?;
        }
        if self.sigma_min >= self.sigma_max {
            return Err(refused(
                "sigma_min",
                format_args!("expected less than sigma_max, found {}", Decimal(self.sigma_min)),
            ));
        }
        Ok(())
    }
}
