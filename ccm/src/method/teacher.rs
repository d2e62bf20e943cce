//! The teacher's loss: the mean squared error of the network's output, on any path (PAPER.md §2 and §8).
//!
//! With `v = a x + b F`, the error of the output `F` is the error of the velocity divided by `b`. The loss is flow matching
//! on the straight path, DDPM's simple loss for a network that predicts noise (arXiv 2006.11239), and the weighted denoiser
//! loss of EDM for an EDM network (arXiv 2206.00364).

use burn::tensor::Tensor;

use super::batch::Batch;
use super::distance::Distance;
use super::flow::path;
use crate::model::{Path, Prediction};
use crate::nn::conditions::Conditions;
use crate::nn::denoiser::Denoiser;
use crate::nn::host::per_image;

/// Distribution of the times `t` in the teacher's training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum TimeDistribution {
    /// `t` uniform in [0, 1).
    Uniform,
    /// Uniform over the steps of the path's schedule.
    Steps,
    /// `ln(sigma)` normal, with `sigma = (1 - t) / t` clamped to the path's range.
    LogNormal {
        /// Mean of `ln(sigma)`.
        mean: f64,
        /// Standard deviation of `ln(sigma)`.
        deviation: f64,
    },
    /// `ln((1 - t) / t)` normal.
    LogitNormal {
        /// Its mean.
        mean: f64,
        /// Its standard deviation.
        deviation: f64,
    },
}

impl TimeDistribution {
    /// The distribution that the authors of each kind of model train with: every step of a schedule alike; for Stable
    /// Diffusion 3 `ln((1 - t) / t)` normal around the logarithm of its shift (arXiv 2403.03206, sections 3.1 and 5.3.2).
    pub fn of(prediction: &Prediction) -> Self {
        match prediction {
            Prediction::Velocity | Prediction::PreconditionedVelocity { .. } | Prediction::StraightData => {
                Self::Uniform
            }
            Prediction::NoiseMinusData { shift } => Self::LogitNormal { mean: shift.ln(), deviation: 1.0 },
            Prediction::Noise(_) | Prediction::Data(_) | Prediction::V(_) => Self::Steps,
            Prediction::Edm(_) => Self::LogNormal { mean: -1.2, deviation: 1.2 },
        }
    }

    /// Maps uniform random numbers in [0, 1) to times of this distribution.
    pub fn times(self, path: &Path, uniform: &[f32]) -> Vec<f32> {
        let time = |u: f64| match self {
            Self::Uniform => u,
            Self::Steps => path.time_of_step((u * path.steps() as f64) as usize),
            Self::LogNormal { mean, deviation } => {
                let [least, most] = path.sigmas();
                let sigma = (mean + deviation * normal_quantile(u)).exp().clamp(least, most);
                1.0 / (1.0 + sigma)
            }
            Self::LogitNormal { mean, deviation } => {
                1.0 / (1.0 + (mean + deviation * normal_quantile(u)).exp())
            }
        };
        uniform.iter().map(|&u| time(f64::from(u)) as f32).collect()
    }
}

/// Quantile function of the standard normal distribution, with a relative error of about 1e-9 (Acklam, 2003). `p` is
/// clamped to [1e-12, 1 - 1e-12].
fn normal_quantile(p: f64) -> f64 {
    const A: [f64; 6] = [
        -3.969683028665376e1,
        2.209460984245205e2,
        -2.759285104469687e2,
        1.383577518672690e2,
        -3.066479806614716e1,
        2.506628277459239,
    ];
    const B: [f64; 6] = [
        -5.447609879822406e1,
        1.615858368580409e2,
        -1.556989798598866e2,
        6.680131188771972e1,
        -1.328068155288572e1,
        1.0,
    ];
    const C: [f64; 6] = [
        -7.784894002430293e-3,
        -3.223964580411365e-1,
        -2.400758277161838,
        -2.549732539343734,
        4.374664141464968,
        2.938163982698783,
    ];
    const D: [f64; 5] =
        [7.784695709041462e-3, 3.224671290700398e-1, 2.445134137142996, 3.754408661907416, 1.0];
    /// Below `TAIL` and above `1 - TAIL` the approximation uses the formula for the tails.
    const TAIL: f64 = 0.02425;
    let polynomial = |factors: &[f64], x: f64| factors.iter().fold(0.0, |sum, factor| sum * x + factor);
    let p = p.clamp(1e-12, 1.0 - 1e-12);
    let tail = |p: f64| {
        let q = (-2.0 * p.ln()).sqrt();
        polynomial(&C, q) / polynomial(&D, q)
    };
    if p < TAIL {
        tail(p)
    } else if p > 1.0 - TAIL {
        -tail(1.0 - p)
    } else {
        let q = p - 0.5;
        q * polynomial(&A, q * q) / polynomial(&B, q * q)
    }
}

/// Smallest `1 - t` in the weight of a data prediction's error, so that the last times do not outweigh all others.
const LEAST_LEFT: f64 = 0.2;

/// The mean over a batch of the squared error of the network's output, `[1]`. A network of data on the straight path has the
/// loss of its velocity, `1 / (1 - t)^2` times that error, limited to 25 times.
pub fn teacher_loss(denoiser: &Denoiser, times: TimeDistribution, batch: Batch) -> Tensor<1> {
    let straight = denoiser.path();
    let t = times.times(straight, &batch.uniform);
    let time = per_image(&t, &batch.x0.device());
    let x_t = path(&batch.x0, &batch.x1, &time);
    let v = denoiser.velocity(x_t.autodiff(), &t, batch.condition);
    let target = (batch.x1 - batch.x0).autodiff();
    if straight.is_straight() {
        return Distance::L2.mean(v, target, &Conditions::default());
    }
    let factor = |&t: &f32| {
        let of_output = straight.coefficients(f64::from(t)).b.recip();
        let weight = match straight.prediction() {
            Prediction::StraightData => (1.0 - f64::from(t)).max(LEAST_LEFT).recip(),
            _ => 1.0,
        };
        (of_output * weight) as f32
    };
    let factors: Vec<f32> = t.iter().map(factor).collect();
    let count = factors.len();
    let factor = per_image(&factors, &v.device()).reshape([count, 1, 1, 1]);
    Distance::L2.mean(v * factor.clone(), target * factor, &Conditions::default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::prediction::{Edm, Schedule};

    #[test]
    fn quantiles_are_those_of_tables() {
        for (p, expected) in
            [(0.5, 0.0), (0.975, 1.959_963_985), (0.001, -3.090_232_306), (0.9999, 3.719_016_485)]
        {
            assert!((normal_quantile(p) - expected).abs() < 1e-8, "{p}");
        }
    }

    #[test]
    fn times_follow_their_distribution() {
        let uniform: Vec<f32> = (0..10_000).map(|i| (i as f32 + 0.5) / 10_000.0).collect();
        let path = Path::new(&Prediction::Edm(Edm::default()));
        let times = TimeDistribution::LogNormal { mean: -1.2, deviation: 1.2 }.times(&path, &uniform);
        let logs: Vec<f64> = times.iter().map(|&t| f64::from((1.0 - t) / t).ln()).collect();
        let mean = logs.iter().sum::<f64>() / 1e4;
        let deviation = (logs.iter().map(|log| (log - mean).powi(2)).sum::<f64>() / 1e4).sqrt();
        assert!((mean + 1.2).abs() < 1e-3 && (deviation - 1.2).abs() < 1e-3, "{mean} {deviation}");

        let path = Path::new(&Prediction::Noise(Schedule::default()));
        let times = TimeDistribution::Steps.times(&path, &[0.0, 0.9999]);
        assert_eq!(times, [path.time_of_step(0) as f32, path.time_of_step(999) as f32]);
    }
}
