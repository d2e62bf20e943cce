//! Adam with a learning-rate schedule and gradient clipping, and its state as plain tensors.

use burn::optim::{Adam, AdamConfig, AdamState, AdaptiveMomentumState, Optimizer as _};
use burn::tensor::Tensor;

use super::eight_bits::{BLOCK, EightBits, POSITIVE, SIGNED, thresholds as thresholds_of};
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
    /// First and second moments of each parameter.
    moments: Vec<Moments>,
    /// Whether the moments are kept in eight bits.
    eight_bits: bool,
    /// Steps that were skipped.
    skipped: u64,
}

/// The first and the second moment of a parameter.
#[derive(Clone)]
#[expect(clippy::large_enum_variant, reason = "one for each parameter, of much larger tensors")]
enum Moments {
    /// In single precision, flat.
    Single([Tensor<1>; 2]),
    /// In eight bits.
    EightBits([EightBits; 2]),
}

impl Moments {
    fn values(&self) -> [Tensor<1>; 2] {
        match self {
            Self::Single(moments) => moments.clone(),
            Self::EightBits(moments) => moments.each_ref().map(EightBits::values),
        }
    }

    fn eight_bits([first, second]: [Tensor<1>; 2], thresholds: &Tensor<2>) -> Self {
        Self::EightBits([
            EightBits::new(first, SIGNED, thresholds),
            EightBits::new(second, POSITIVE, thresholds),
        ])
    }
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
        Self { rule: rule.build(), moments: Vec::new(), eight_bits: false, skipped: 0 }
    }

    /// Replaces the moments, to resume training.
    pub fn from_moments(self, moments: Vec<[Tensor<1>; 2]>) -> Self {
        Self { moments: moments.into_iter().map(Moments::Single).collect(), ..self }
    }

    /// Skips a step: nothing changes but the number of skipped steps.
    pub fn skip(&mut self) {
        self.skipped += 1;
    }

    /// Sets the number of skipped steps, to resume training.
    pub fn with_skipped(self, skipped: u64) -> Self {
        Self { skipped, ..self }
    }

    /// Steps that were skipped.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// The same optimiser with moments in eight bits. Moments that were in eight bits before, and then in a checkpoint, are the
    /// same ones.
    pub fn in_eight_bits(self) -> Self {
        let rounded = |moments: Moments| {
            let moments = moments.values();
            let halves = Tensor::full([1, BLOCK], 0.5, &moments[0].device());
            Moments::eight_bits(moments, &halves)
        };
        Self { moments: self.moments.into_iter().map(rounded).collect(), eight_bits: true, ..self }
    }

    /// First moments (`moment` = 0) or second moments (1), in the order of the parameters; empty before the first step.
    pub fn moment(&self, moment: usize) -> Vec<Tensor<1>> {
        self.moments.iter().map(|moments| moments.values()[moment].clone()).collect()
    }

    /// Takes step `step`, counted from 0 including skipped ones. Returns the new parameters and the norm of the gradient before
    /// clipping.
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
        let updates = (step - self.skipped) as usize;
        let thresholds = parameters.first().filter(|_| self.eight_bits);
        let thresholds = thresholds.map(|parameter| thresholds_of(step, &parameter.device()));
        let mut old = std::mem::take(&mut self.moments).into_iter();
        let change = |(parameter, gradient): (Tensor<1>, Tensor<1>)| {
            let gradient = if shorten < 1.0 { gradient * shorten as f32 } else { gradient };
            let state = old.next().filter(|_| !first).map(|moments| {
                let [moment_1, moment_2] = moments.values();
                AdamState::new(AdaptiveMomentumState::new(updates, moment_1, moment_2))
            });
            let (parameter, state) = self.rule.step(rate, parameter, gradient, state);
            if let Some(AdamState { momentum }) = state {
                let moments = [momentum.moment_1, momentum.moment_2];
                self.moments.push(match &thresholds {
                    Some(thresholds) => Moments::eight_bits(moments, thresholds),
                    None => Moments::Single(moments),
                });
            }
            parameter
        };
        (parameters.into_iter().zip(gradients).map(change).collect(), norm)
    }
}

/// Euclidean norm of all gradients together.
pub fn norm(gradients: &[Tensor<1>]) -> f64 {
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
    fn eight_bits_reach_the_minimum_as_single_precision_does() {
        // A quadratic whose axes differ by a factor of a hundred.
        let device = Device::flex();
        let curvature = |i: usize| 1.0 + 99.0 * i as f32 / 599.0;
        let curvatures = Tensor::<1>::from_data(&(0..600).map(curvature).collect::<Vec<_>>()[..], &device);
        let schedule =
            Schedule { learning_rate: 0.05, warmup_steps: 1, steps: 400, cooldown: 0.5, gradient_clip: 1e9 };
        let distance = |mut optimizer: Optimizer| {
            let mut x = Tensor::<1>::ones([600], &device);
            for step in 0..400 {
                let gradient = x.clone() * curvatures.clone();
                x = optimizer.step(&schedule, step, vec![x], vec![gradient]).0.remove(0);
            }
            to_host(x.abs().max())[0]
        };
        let [single, eight] = [Optimizer::default(), Optimizer::default().in_eight_bits()].map(distance);
        assert!(single < 1e-3 && eight < 1e-2, "{single} {eight}");
    }

    #[test]
    fn a_skipped_step_changes_nothing() {
        let device = Device::flex();
        let schedule =
            Schedule { learning_rate: 0.01, warmup_steps: 1, steps: 9, cooldown: 0.0, gradient_clip: 1.0 };
        let gradient = |value: f32| Tensor::<1>::from_data([value, 0.5], &device);
        let run = |gradients: &[f32]| {
            let (mut optimizer, mut x) = (Optimizer::default(), Tensor::<1>::ones([2], &device));
            for (step, &value) in gradients.iter().enumerate() {
                if value.is_finite() {
                    x = optimizer.step(&schedule, step as u64, vec![x], vec![gradient(value)]).0.remove(0);
                } else {
                    optimizer.skip();
                }
            }
            (to_host(x), optimizer.skipped())
        };
        let (expected, none) = run(&[1.0, -2.0, 3.0]);
        let (found, skipped) = run(&[f32::NAN, 1.0, f32::INFINITY, -2.0, 3.0]);
        assert_eq!((found, skipped, none), (expected, 2, 0));
    }

    #[test]
    fn moments_in_eight_bits_survive_a_checkpoint() {
        let device = Device::flex();
        let gradient = |step: u64| {
            let values = crate::noise::Noise::new(4, step).normals(700);
            Tensor::<1>::from_data(&values[..], &device)
        };
        let schedule =
            Schedule { learning_rate: 0.01, warmup_steps: 1, steps: 9, cooldown: 0.0, gradient_clip: 1.0 };
        let mut optimizer = Optimizer::default().in_eight_bits();
        let mut x = Tensor::<1>::zeros([700], &device);
        for step in 0..6 {
            if step == 3 {
                let moments = optimizer.moment(0).into_iter().zip(optimizer.moment(1));
                let saved: Vec<_> = moments.map(|(first, second)| [first, second]).collect();
                let mut resumed = Optimizer::default().from_moments(saved).in_eight_bits();
                let step_of = |optimizer: &mut Optimizer| {
                    to_host(optimizer.step(&schedule, 3, vec![x.clone()], vec![gradient(3)]).0.remove(0))
                };
                assert_eq!(step_of(&mut resumed), step_of(&mut optimizer.clone()));
            }
            x = optimizer.step(&schedule, step, vec![x], vec![gradient(step)]).0.remove(0);
        }
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
