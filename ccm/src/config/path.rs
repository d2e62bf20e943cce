//! `[path]`: the probability path on which a teacher is trained, and what its network predicts.

use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::method::teacher::TimeDistribution;
use crate::model::prediction::{Betas, Edm, Schedule, Spacing};
use crate::model::{Prediction, SpecError};

/// The path on which a teacher is trained (PAPER.md §8). Absent settings have the defaults below, from the
/// publications.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PathConfig {
    /// `flow`: the straight path of flow matching (PAPER.md §2). `vp`: DDPM's variance-preserving path.
    /// `edm`: EDM's path, preconditioning, loss weights and time distribution.
    pub kind: PathKind,
    /// What the network predicts. `flow`: `velocity` (the default), `preconditioned-velocity`, for less grain in one-step
    /// images, or `data`, for large patches. `vp`: `v` (the default), `noise` or `data`. With `noise`, the error of the predicted
    /// image grows without bound near the noisy end of the path. A small network trained for minutes then gives bad
    /// images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub predicts: Option<Predicts>,
    /// `vp`: `linear` (the default), `scaled-linear` or `cosine`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<ScheduleName>,
    /// `vp`: the list of betas, each in (0, 1), instead of `schedule`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub betas: Option<Vec<f64>>,
    /// `vp`: the first beta of `linear` and `scaled-linear`; default 1e-4.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta_start: Option<f64>,
    /// `vp`: the last beta of `linear` and `scaled-linear`; default 0.02.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta_end: Option<f64>,
    /// `vp`: number of steps of the schedule; default 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule_steps: Option<usize>,
    /// `edm` and `preconditioned-velocity`: standard deviation of the images; default 0.5.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sigma_data: Option<f64>,
    /// `edm`: the smallest sigma; default 0.002.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sigma_min: Option<f64>,
    /// `edm`: the largest sigma, at which sampling starts; default 80.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sigma_max: Option<f64>,
    /// `edm`: mean of `ln(sigma)` in training; default -1.2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_sigma_mean: Option<f64>,
    /// `edm`: standard deviation of `ln(sigma)` in training; default 1.2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_sigma_deviation: Option<f64>,
}

/// See [`PathConfig::kind`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PathKind {
    /// Flow matching.
    Flow,
    /// DDPM.
    Vp,
    /// EDM.
    Edm,
}

/// See [`PathConfig::predicts`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Predicts {
    /// The velocity.
    Velocity,
    /// The velocity without the part that follows from the input ([`Prediction::PreconditionedVelocity`]).
    PreconditionedVelocity,
    /// The noise.
    Noise,
    /// The image.
    Data,
    /// `alpha noise - sigma data`.
    V,
}

impl Predicts {
    /// The name in a configuration.
    fn name(self) -> &'static str {
        match self {
            Self::Velocity => "velocity",
            Self::PreconditionedVelocity => "preconditioned-velocity",
            Self::Noise => "noise",
            Self::Data => "data",
            Self::V => "v",
        }
    }
}

/// See [`PathConfig::schedule`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScheduleName {
    /// Betas that increase linearly.
    Linear,
    /// Betas whose square roots increase linearly.
    ScaledLinear,
    /// The cosine schedule of arXiv 2102.09672.
    Cosine,
}

impl PathConfig {
    /// What the network predicts.
    pub fn prediction(&self) -> Prediction {
        let usual = Edm::default();
        let sigma_data = self.sigma_data.unwrap_or(usual.sigma_data);
        match self.kind {
            PathKind::Flow if self.predicts == Some(Predicts::PreconditionedVelocity) => {
                Prediction::PreconditionedVelocity { sigma_data }
            }
            PathKind::Flow if self.predicts == Some(Predicts::Data) => Prediction::StraightData,
            PathKind::Flow => Prediction::Velocity,
            PathKind::Vp => {
                let schedule = self.schedule();
                match self.predicts {
                    Some(Predicts::Noise) => Prediction::Noise(schedule),
                    Some(Predicts::Data) => Prediction::Data(schedule),
                    _ => Prediction::V(schedule),
                }
            }
            PathKind::Edm => Prediction::Edm(Edm {
                sigma_data,
                sigma_min: self.sigma_min.unwrap_or(usual.sigma_min),
                sigma_max: self.sigma_max.unwrap_or(usual.sigma_max),
                ..usual
            }),
        }
    }

    fn schedule(&self) -> Schedule {
        let (start, end) = (self.beta_start.unwrap_or(1e-4), self.beta_end.unwrap_or(0.02));
        let (betas, steps) = match (&self.betas, self.schedule.unwrap_or(ScheduleName::Linear)) {
            (Some(betas), _) => (Betas::Table(betas.clone()), betas.len()),
            (None, ScheduleName::Linear) => (Betas::Linear(start, end), 1000),
            (None, ScheduleName::ScaledLinear) => (Betas::ScaledLinear(start, end), 1000),
            (None, ScheduleName::Cosine) => (Betas::Cosine, 1000),
        };
        let steps = self.schedule_steps.unwrap_or(steps);
        Schedule { betas, steps, zero_terminal_snr: false, spacing: Spacing::Trailing }
    }

    /// Distribution of times in the teacher's training.
    pub fn times(&self) -> TimeDistribution {
        match self.kind {
            PathKind::Flow => TimeDistribution::Uniform,
            PathKind::Vp => TimeDistribution::Steps,
            PathKind::Edm => TimeDistribution::LogNormal {
                mean: self.log_sigma_mean.unwrap_or(-1.2),
                deviation: self.log_sigma_deviation.unwrap_or(1.2),
            },
        }
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let of_vp = [
            ("schedule", self.schedule.is_some()),
            ("betas", self.betas.is_some()),
            ("beta_start", self.beta_start.is_some()),
            ("beta_end", self.beta_end.is_some()),
            ("schedule_steps", self.schedule_steps.is_some()),
        ];
        let of_edm = [
            ("sigma_min", self.sigma_min.is_some()),
            ("sigma_max", self.sigma_max.is_some()),
            ("log_sigma_mean", self.log_sigma_mean.is_some()),
            ("log_sigma_deviation", self.log_sigma_deviation.is_some()),
        ];
        let others = of_vp.iter().filter(|_| self.kind != PathKind::Vp);
        let mut others = others.chain(of_edm.iter().filter(|_| self.kind != PathKind::Edm));
        let wrong = |key: &str, expected: String, found: &str| ConfigError::Value {
            key: format!("path.{key}"),
            expected,
            found: found.to_owned(),
        };
        if let Some((key, _)) = others.find(|(_, given)| *given) {
            let kind = if of_vp.iter().any(|(of_vp, _)| of_vp == key) { "vp" } else { "edm" };
            return Err(wrong(key, format!("none, as path.kind is not `{kind}`"), "a value"));
        }
        let of_kind: &[Predicts] = match self.kind {
            PathKind::Flow => &[Predicts::Velocity, Predicts::PreconditionedVelocity, Predicts::Data],
            PathKind::Vp => &[Predicts::V, Predicts::Noise, Predicts::Data],
            PathKind::Edm => &[],
        };
        if let Some(predicts) = self.predicts
            && !of_kind.contains(&predicts)
        {
            let names: Vec<&str> = of_kind.iter().map(|of_kind| of_kind.name()).collect();
            let expected = if names.is_empty() { "none".into() } else { names.join(" or ") };
            return Err(wrong("predicts", format!("{expected} with this path.kind"), predicts.name()));
        }
        let preconditioned =
            self.kind == PathKind::Edm || self.predicts == Some(Predicts::PreconditionedVelocity);
        if self.sigma_data.is_some() && !preconditioned {
            let expected = "none, as path.kind is not `edm` and path.predicts not `preconditioned-velocity`";
            return Err(wrong("sigma_data", expected.into(), "a value"));
        }
        if self.betas.is_some() && (self.schedule.is_some() || self.schedule_steps.is_some()) {
            return Err(wrong("betas", "none beside path.schedule or path.schedule_steps".into(), "a table"));
        }
        let ends = self.beta_start.is_some() || self.beta_end.is_some();
        if ends && (self.betas.is_some() || self.schedule == Some(ScheduleName::Cosine)) {
            let key = if self.beta_start.is_some() { "beta_start" } else { "beta_end" };
            return Err(wrong(key, "none, as path.schedule is `cosine` or a table".into(), "a value"));
        }
        if let Some(deviation) = self.log_sigma_deviation
            && !(deviation > 0.0 && deviation.is_finite())
        {
            let expected = "a number above 0".into();
            return Err(wrong("log_sigma_deviation", expected, &deviation.to_string()));
        }
        self.prediction().validate().map_err(|SpecError { field, reason }| {
            let (expected, found) = reason.split_once(", found ").unwrap_or((&reason, ""));
            wrong(&field, expected.trim_start_matches("expected ").to_owned(), found)
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::Config;

    #[test]
    fn a_prediction_belongs_to_its_path() {
        let path = |settings: &[&str]| {
            let settings: Vec<String> = settings.iter().map(|setting| format!("path.{setting}")).collect();
            let config = Config::preset("shapes").unwrap().with_overrides(&settings).unwrap();
            config.validate().map(|()| config.path.prediction()).map_err(|error| error.to_string())
        };
        let preconditioned = ["predicts=preconditioned-velocity", "sigma_data=0.7"];
        assert_eq!(path(&preconditioned), Ok(Prediction::PreconditionedVelocity { sigma_data: 0.7 }));
        assert_eq!(path(&["predicts=velocity"]), Ok(Prediction::Velocity));
        assert_eq!(path(&["predicts=data"]), Ok(Prediction::StraightData));
        for (settings, parts) in [
            (&["predicts=noise"][..], ["path.predicts", "velocity or preconditioned-velocity or data"]),
            (&["kind=vp", "predicts=velocity"], ["path.predicts", "v or noise or data"]),
            (&["kind=edm", "predicts=v"], ["path.predicts", "none"]),
            (&["sigma_data=0.7"], ["path.sigma_data", "none"]),
            (&["predicts=preconditioned-velocity", "sigma_data=0"], ["path.sigma_data", "above 0"]),
        ] {
            let error = path(settings).unwrap_err();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
    }
}
