//! The path of a [`Prediction`] (PAPER.md §8): the conversion of a network's output to the velocity on the straight path, and
//! the times of a schedule.

use super::prediction::{Edm, Prediction};
use super::time_grid::TimeGrid;

/// `v(x, t) = a x + b F(c_in x; tau)`, with `x` on the straight path and F the network.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Coefficients {
    /// Factor of `x`.
    pub a: f64,
    /// Factor of the network's output.
    pub b: f64,
    /// Factor of the network's input.
    pub c_in: f64,
    /// The network's own time.
    pub tau: f64,
}

/// A [`Prediction`] with a table of its schedule.
#[derive(Debug, Clone, PartialEq)]
pub struct Path {
    prediction: Prediction,
    /// `ln(alpha / sigma)` of every step of the schedule; empty without one.
    log_ratios: Vec<f64>,
}

/// EDM's preconditioning on the straight path: `a` and `b` of [`Coefficients`], and the standard deviation of `x`.
///
/// With `sigma = (1 - t) / t`, the variance of `x` equals `t^2 (sigma^2 + sigma_data^2)`, so `a` and `b` stay bounded at both
/// ends of the path.
fn preconditioning(sigma_data: f64, t: f64) -> (f64, f64, f64) {
    let data = sigma_data * sigma_data;
    let variance = (1.0 - t) * (1.0 - t) + data * t * t;
    let deviation = libm::sqrt(variance);
    ((data * t - (1.0 - t)) / variance, sigma_data / deviation, deviation)
}

impl Edm {
    /// The network's time for a sigma.
    fn tau(&self, sigma: f64) -> f64 {
        self.time_scale * libm::log(sigma.clamp(self.sigma_min, self.sigma_max))
    }

    fn coefficients(&self, t: f64) -> Coefficients {
        let data = self.sigma_data * self.sigma_data;
        let sigma = (1.0 - t) / t;
        let (a, b, root) = preconditioning(self.sigma_data, t);
        let (a, b) = if !self.boundary {
            (a, b)
        } else if sigma > self.sigma_min {
            let beyond = sigma - self.sigma_min;
            let square = beyond * beyond;
            let a = (data - t * square / (1.0 - t)) / (t * (square + data));
            (a, beyond * t * self.sigma_data / (root * (1.0 - t)))
        } else {
            (1.0 / t, 0.0)
        };
        Coefficients { a, b, c_in: 1.0 / root, tau: self.tau(sigma) }
    }
}

impl Path {
    /// Tabulates a prediction. It must have passed [`Prediction::validate`].
    pub fn new(prediction: &Prediction) -> Self {
        let log_ratios = match prediction {
            Prediction::Noise(schedule) | Prediction::Data(schedule) | Prediction::V(schedule) => {
                schedule.log_ratios()
            }
            _ => Vec::new(),
        };
        Self { prediction: prediction.clone(), log_ratios }
    }

    /// The prediction.
    pub fn prediction(&self) -> &Prediction {
        &self.prediction
    }

    /// Whether the network outputs the velocity from inputs `x` and `t`, without conversion.
    pub fn is_straight(&self) -> bool {
        self.prediction == Prediction::Velocity
    }

    /// The coefficients that convert the network's output to the velocity at `t`, in `[first_time, 1)`.
    pub fn coefficients(&self, t: f64) -> Coefficients {
        // `alpha + sigma` of a variance-preserving path.
        let c = 1.0 / libm::sqrt(t * t + (1.0 - t) * (1.0 - t));
        match &self.prediction {
            Prediction::Velocity => Coefficients { a: 0.0, b: 1.0, c_in: 1.0, tau: t },
            Prediction::PreconditionedVelocity { sigma_data } => {
                let (a, b, _) = preconditioning(*sigma_data, t);
                Coefficients { a, b, c_in: 1.0, tau: t }
            }
            Prediction::NoiseMinusData { .. } => {
                Coefficients { a: 0.0, b: -1.0, c_in: 1.0, tau: 1000.0 * (1.0 - t) }
            }
            Prediction::Noise(_) => {
                // Avoids a division by t = 0 at pure noise.
                let t_safe = t.max(f64::from(f32::EPSILON));
                Coefficients { a: 1.0 / t_safe, b: -1.0 / t_safe, c_in: c, tau: self.step_at(t) }
            }
            Prediction::Data(_) | Prediction::StraightData => {
                let b = 1.0 / (1.0 - t).max(f64::from(f32::EPSILON));
                let straight = self.log_ratios.is_empty();
                let (c_in, tau) = if straight { (1.0, 1000.0 * t) } else { (c, self.step_at(t)) };
                Coefficients { a: -b, b, c_in, tau }
            }
            Prediction::V(_) => {
                Coefficients { a: c * c * (2.0 * t - 1.0), b: -c, c_in: c, tau: self.step_at(t) }
            }
            Prediction::Edm(edm) => edm.coefficients(t),
        }
    }

    /// The fractional step of a schedule at `t`. `ln(alpha / sigma)` is interpolated linearly between steps.
    fn step_at(&self, t: f64) -> f64 {
        let ratio = libm::log(t / (1.0 - t));
        let above = self.log_ratios.partition_point(|&of_step| of_step > ratio);
        let last = self.log_ratios.len() - 1;
        if above == 0 {
            return 0.0;
        }
        if above > last {
            return last as f64;
        }
        let (high, low) = (self.log_ratios[above - 1], self.log_ratios[above]);
        if low.is_finite() {
            return (above - 1) as f64 + (high - ratio) / (high - low);
        }
        // At pure noise the ratio is infinite, so this interval is linear in t instead.
        last as f64 - t / time_of(high)
    }

    /// The time of an integer step of the schedule.
    pub(crate) fn time_of_step(&self, step: usize) -> f64 {
        time_of(self.log_ratios[step])
    }

    /// Number of steps of the schedule; 0 if there is none.
    pub fn steps(&self) -> usize {
        self.log_ratios.len()
    }

    /// The first time of the path, `t0`; 0 if the path reaches pure noise.
    pub fn first_time(&self) -> f64 {
        match &self.prediction {
            Prediction::Edm(edm) => 1.0 / (1.0 + edm.sigma_max),
            _ => self.log_ratios.last().map_or(0.0, |&last| time_of(last)),
        }
    }

    /// Standard deviation of the initial noise if sampling starts at `t`, on the straight path.
    pub fn start_scale(&self, t: f64) -> f64 {
        match &self.prediction {
            Prediction::Noise(_) | Prediction::Data(_) | Prediction::V(_) => {
                libm::sqrt(t * t + (1.0 - t) * (1.0 - t))
            }
            Prediction::Edm(edm) => edm.sigma_max * t,
            _ => 1.0,
        }
    }

    /// The default time grid for sampling.
    pub fn grid(&self) -> TimeGrid {
        match &self.prediction {
            Prediction::Velocity | Prediction::PreconditionedVelocity { .. } | Prediction::StraightData => {
                TimeGrid::Uniform
            }
            Prediction::NoiseMinusData { shift } => TimeGrid::Shifted(*shift),
            Prediction::Noise(schedule) | Prediction::Data(schedule) | Prediction::V(schedule) => {
                TimeGrid::Steps(schedule.spacing)
            }
            Prediction::Edm(edm) => TimeGrid::Rho(edm.rho),
        }
    }

    /// `[sigma_min, sigma_max]`, the range of sigma in which the network is defined. For paths other than EDM's: the
    /// range of EDM's publication, restricted to the path.
    pub(crate) fn sigmas(&self) -> [f64; 2] {
        match &self.prediction {
            Prediction::Edm(edm) => [edm.sigma_min, edm.sigma_max],
            _ => {
                let t0 = self.first_time();
                let most = if t0 > 0.0 { (1.0 - t0) / t0 } else { f64::INFINITY };
                [Edm::default().sigma_min, Edm::default().sigma_max.min(most)]
            }
        }
    }
}

/// `t = alpha / (alpha + sigma)` for `ln(alpha / sigma)`.
fn time_of(log_ratio: f64) -> f64 {
    1.0 / (1.0 + libm::exp(-log_ratio))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_of_data_is_the_jump_to_the_image() {
        let path = Path::new(&Prediction::StraightData);
        for t in [0.0, 0.3, 0.9, 0.9999] {
            let Coefficients { a, b, c_in, tau } = path.coefficients(t);
            // `x + (1 - t) v`, in terms of x and of the network's output.
            let jump = [1.0 + (1.0 - t) * a, (1.0 - t) * b];
            assert!(jump[0].abs() < 1e-12 && (jump[1] - 1.0).abs() < 1e-12, "{t}: {jump:?}");
            assert_eq!((c_in, tau), (1.0, 1000.0 * t));
        }
        let Coefficients { a, b, .. } = path.coefficients(1.0);
        assert!(a.is_finite() && b.is_finite());
    }

    #[test]
    fn a_preconditioned_network_predicts_what_the_input_does_not_say() {
        for sigma_data in [0.3, 0.7, 1.0] {
            let path = Path::new(&Prediction::PreconditionedVelocity { sigma_data });
            // Factors of image and noise in `F = (v - a x) / b`, with `v = x1 - x0` and `x = t x1 + (1 - t) x0`.
            let factors = |t: f64| {
                let Coefficients { a, b, c_in, tau } = path.coefficients(t);
                assert_eq!((c_in, tau), (1.0, t));
                [(1.0 - a * t) / b, -(1.0 + a * (1.0 - t)) / b]
            };
            for t in [0.0, 0.1, 0.4, 0.8, 1.0] {
                let [of_image, of_noise] = factors(t);
                let variance = (of_image * sigma_data).powi(2) + of_noise * of_noise;
                assert!((variance - 1.0).abs() < 1e-12, "{t}: {variance}");
                let covariance = of_image * t * sigma_data * sigma_data + of_noise * (1.0 - t);
                assert!(covariance.abs() < 1e-12, "{t}: {covariance}");
            }
            assert_eq!(factors(0.0), [1.0 / sigma_data, 0.0]);
            let [of_image, of_noise] = factors(1.0);
            assert!(of_image.abs() < 1e-12 && (of_noise + 1.0).abs() < 1e-12);
        }
    }
}
