//! The times at which sampling evaluates a model.

use super::path::Path;
use super::prediction::Spacing;

/// A rule for the times of a given number of evaluations, from noise to data.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum TimeGrid {
    /// Equally spaced in t.
    Uniform,
    /// Steps of the model's own schedule.
    Steps(Spacing),
    /// Equally spaced in `sigma^(1 / rho)` from `sigma_max` to `sigma_min`, with `sigma = (1 - t) / t`, then sigma 0
    /// (EDM, arXiv 2206.00364).
    Rho(f64),
    /// `1 - t = shift s / (1 + (shift - 1) s)` for equally spaced s (SD3, arXiv 2403.03206). As in diffusers'
    /// scheduler, the smallest s is that of step 1 of 1000, already shifted once.
    Shifted(f64),
}

impl TimeGrid {
    /// The times of `count` evaluations, followed by the end, 1: `count + 1` increasing numbers. `count` is at least
    /// 1.
    ///
    /// # Errors
    /// If the path does not support the grid, or its schedule has fewer than `count` steps.
    pub fn times(self, path: &Path, count: usize) -> Result<Vec<f64>, String> {
        let n = count as f64;
        let place = |i: usize| if count > 1 { i as f64 / (n - 1.0) } else { 0.0 };
        let mut times: Vec<f64> = match self {
            Self::Uniform => {
                let first = path.first_time();
                (0..count).map(|i| first + (1.0 - first) * (i as f64 / n)).collect()
            }
            Self::Steps(_) if path.steps() == 0 => {
                return Err("the model has no schedule of steps; use another time grid".into());
            }
            Self::Steps(_) if count > path.steps() => {
                return Err(format!("expected at most the schedule's {} steps, found {count}", path.steps()));
            }
            Self::Steps(spacing) => {
                let steps = spacing.steps(path.steps(), count);
                steps.into_iter().map(|step| path.time_of_step(step)).collect()
            }
            Self::Rho(rho) => {
                let [least, most] = path.sigmas();
                let power = |x: f64, exponent: f64| libm::exp(exponent * libm::log(x));
                let (least, most) = (power(least, 1.0 / rho), power(most, 1.0 / rho));
                let sigma = |i| power(most + place(i) * (least - most), rho);
                (0..count).map(|i| 1.0 / (1.0 + sigma(i))).collect()
            }
            Self::Shifted(shift) => {
                let shifted = |s: f64| shift * s / (1.0 + (shift - 1.0) * s);
                let least = shifted(1e-3);
                (0..count).map(|i| 1.0 - shifted(1.0 + place(i) * (least - 1.0))).collect()
            }
        };
        times.push(1.0);
        Ok(times)
    }
}

impl Spacing {
    /// The steps of `count` evaluations, decreasing, from a schedule of `steps` steps.
    fn steps(self, steps: usize, count: usize) -> Vec<usize> {
        let (all, n) = (steps as f64, count as f64);
        // NumPy rounds halves to even.
        let round = |x: f64| libm::rint(x) as usize;
        let last = steps - 1;
        match self {
            Self::Trailing => (0..count).map(|i| round(all - i as f64 * all / n).max(1) - 1).collect(),
            Self::Leading(offset) => {
                (0..count).rev().map(|i| (i * (steps / count) + offset).min(last)).collect()
            }
            Self::Linspace if count == 1 => vec![last],
            Self::Linspace => (0..count).rev().map(|i| round(i as f64 * last as f64 / (n - 1.0))).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_those_of_diffusers() {
        // Expected values: `DDIMScheduler.set_timesteps` of diffusers 0.42 with 1000 steps.
        assert_eq!(Spacing::Trailing.steps(1000, 4), [999, 749, 499, 249]);
        assert_eq!(Spacing::Trailing.steps(1000, 3), [999, 666, 332]);
        assert_eq!(Spacing::Leading(1).steps(1000, 4), [751, 501, 251, 1]);
        assert_eq!(Spacing::Linspace.steps(1000, 4), [999, 666, 333, 0]);
        assert_eq!(Spacing::Linspace.steps(1000, 1), [999]);
    }
}
