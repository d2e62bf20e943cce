//! Adam with a learning-rate schedule and gradient clipping, and its state as plain tensors.

use burn::optim::{Adam, AdamConfig, AdamState, AdaptiveMomentumState, Optimizer as _};
use burn::tensor::Tensor;

use super::host::to_host;

/// The learning-rate schedule and the gradient clipping.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Learning rate after the warm-up.
    pub learning_rate: f64,
    /// Steps over which the learning rate grows linearly from zero.
    pub warmup_steps: u64,
    /// Total number of steps.
    pub steps: u64,
    /// Fraction of the steps, at the end, with cosine decay of the learning rate to zero, in [0, 1].
    pub cooldown: f64,
    /// Largest norm of the gradient of all parameters together; a larger gradient is scaled down to it.
    pub gradient_clip: f64,
}

impl Schedule {
    /// Learning rate at step `step`, counted from 0.
    fn rate(&self, step: u64) -> f64 {
        let warmup = (step + 1) as f64 / self.warmup_steps.max(1) as f64;
        let left = self.steps.saturating_sub(step) as f64 / (self.cooldown * self.steps as f64);
        // If `cooldown` is 0, `left` is infinite, or NaN after the last step (0 / 0). `min` maps both to 1.
        let cooled = 0.5 - 0.5 * (std::f64::consts::PI * left.min(1.0)).cos();
        self.learning_rate * warmup.min(1.0) * cooled
    }
}

/// Adam (Kingma and Ba, arXiv 1412.6980). Betas are 0.9 and 0.999 by default, epsilon is 1e-8, as in PyTorch.
#[derive(Clone)]
pub struct Optimizer {
    rule: Adam,
    /// First and second moments of each parameter, flat.
    moments: Vec<[Tensor<1>; 2]>,
}

impl Default for Optimizer {
    fn default() -> Self {
        Self::with_betas(0.9, 0.999)
    }
}

impl Optimizer {
    /// Adam with the betas of PAPER.md §6 for a discriminator.
    pub fn of_discriminator() -> Self {
        Self::with_betas(0.5, 0.9)
    }

    fn with_betas(first: f32, second: f32) -> Self {
        let rule = AdamConfig::new().with_beta_1(first).with_beta_2(second).with_epsilon(1e-8);
        Self { rule: rule.build(), moments: Vec::new() }
    }

    /// Replaces the moments, to resume training.
    pub fn from_moments(self, moments: Vec<[Tensor<1>; 2]>) -> Self {
        Self { moments, ..self }
    }

    /// First moments (`moment` = 0) or second moments (1), in the order of the parameters; empty before the first step.
    pub fn moment(&self, moment: usize) -> Vec<Tensor<1>> {
        self.moments.iter().map(|moments| moments[moment].clone()).collect()
    }

    /// Takes step `step`, counted from 0. Returns the new parameters and the norm of the gradient before clipping.
    ///
    /// # Panics
    /// If the numbers of parameters and gradients differ.
    pub fn step(
        &mut self,
        schedule: &Schedule,
        step: u64,
        parameters: Vec<Tensor<1>>,
        gradients: Vec<Tensor<1>>,
    ) -> (Vec<Tensor<1>>, f64) {
        assert_eq!(parameters.len(), gradients.len(), "a gradient for each parameter");
        let norm = norm(&gradients);
        let shorten = if norm > schedule.gradient_clip { schedule.gradient_clip / norm } else { 1.0 };
        let rate = schedule.rate(step);
        let first = self.moments.is_empty();
        let mut old = std::mem::take(&mut self.moments).into_iter();
        let change = |(parameter, gradient): (Tensor<1>, Tensor<1>)| {
            let gradient = if shorten < 1.0 { gradient * shorten as f32 } else { gradient };
            let state = old.next().filter(|_| !first).map(|[moment_1, moment_2]| {
                AdamState::new(AdaptiveMomentumState::new(step as usize, moment_1, moment_2))
            });
            let (parameter, state) = self.rule.step(rate, parameter, gradient, state);
            if let Some(AdamState { momentum }) = state {
                self.moments.push([momentum.moment_1, momentum.moment_2]);
            }
            parameter
        };
        (parameters.into_iter().zip(gradients).map(change).collect(), norm)
    }
}

/// Euclidean norm of all gradients together.
fn norm(gradients: &[Tensor<1>]) -> f64 {
    /// Number of values per partial sum. On the CPU, Burn sums larger tensors in an order that depends on its threads;
    /// the norm must be reproducible.
    const PIECE: usize = 1 << 20;
    let pieces = gradients.iter().flat_map(|gradient| {
        let [count] = gradient.dims();
        (0..count)
            .step_by(PIECE)
            .map(move |start| gradient.clone().narrow(0, start, PIECE.min(count - start)))
    });
    let squares: Vec<Tensor<1>> = pieces.map(|piece| (piece.clone() * piece).sum()).collect();
    if squares.is_empty() {
        return 0.0;
    }
    to_host(Tensor::cat(squares, 0)).into_iter().map(f64::from).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn the_learning_rate_rises_stays_and_falls() {
        let schedule =
            Schedule { learning_rate: 2.0, warmup_steps: 10, steps: 100, cooldown: 0.2, gradient_clip: 1.0 };
        let rates = [0, 4, 9, 50, 80, 85, 90, 95, 99].map(|step| schedule.rate(step));
        let cosine = |left: f64| 1.0 - (std::f64::consts::PI * left / 20.0).cos();
        let expected = [0.2, 1.0, 2.0, 2.0, 2.0, cosine(15.0), 1.0, cosine(5.0), cosine(1.0)];
        for (rate, expected) in rates.into_iter().zip(expected) {
            assert!((rate - expected).abs() < 1e-12, "{rates:?}");
        }
        let constant = Schedule { cooldown: 0.0, ..schedule };
        assert_eq!([10, 99, 100, 1000].map(|step| constant.rate(step)), [2.0; 4]);
    }

    #[test]
    fn the_norm_of_a_long_gradient_is_exact_and_always_the_same() {
        let values: Vec<f32> = (0..5_000_001u64).map(|i| ((i * 7919) % 1000) as f32 * 1e-3).collect();
        let expected = values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
        let gradients = [Tensor::<1>::from_data(values.as_slice(), &Device::flex())];
        let found = norm(&gradients);
        assert!((found / expected - 1.0).abs() < 1e-6, "{found}, not {expected}");
        for _ in 0..20 {
            assert_eq!(norm(&gradients), found);
        }
    }
}
