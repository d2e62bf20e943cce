//! Dynamic loss scaling for mixed precision in f16 (Micikevicius et al., arXiv 1710.03740).
//!
//! Gradients below 6e-8 are zero in f16, and those above 65 504 infinite. The loss is therefore multiplied by the loss scale
//! before the backward pass, and the gradients are divided by it afterwards. A step whose gradient is not finite is skipped and
//! halves the scale; many finite steps in a row double it.

/// The loss scale.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossScale {
    /// A power of two, so that it changes no digit of a gradient.
    pub factor: f32,
    /// Finite steps since the factor changed.
    pub finite_steps: u32,
}

impl Default for LossScale {
    /// PyTorch's `GradScaler` begins with the same factor.
    fn default() -> Self {
        Self { factor: 65_536.0, finite_steps: 0 }
    }
}

impl LossScale {
    /// Finite steps in a row after which the factor doubles, as in PyTorch's `GradScaler`.
    const GROWTH_INTERVAL: u32 = 2000;
    /// The smallest factor. A gradient that still overflows has another cause.
    const LEAST: f32 = 1.0;

    /// Updates the scale after a step. `finite`: whether the gradient was finite.
    pub fn update(&mut self, finite: bool) {
        if !finite {
            *self = Self { factor: self.factor / 2.0, finite_steps: 0 };
        } else if self.finite_steps + 1 == Self::GROWTH_INTERVAL {
            *self = Self { factor: self.factor * 2.0, finite_steps: 0 };
        } else {
            self.finite_steps += 1;
        }
    }

    /// Whether the factor is below the smallest.
    pub fn is_exhausted(&self) -> bool {
        self.factor < Self::LEAST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_halves_at_once_and_doubles_slowly() {
        let mut scale = LossScale::default();
        for _ in 0..3 {
            scale.update(false);
        }
        assert_eq!(scale.factor, 8192.0);
        for _ in 0..1999 {
            scale.update(true);
        }
        assert_eq!(scale.factor, 8192.0);
        scale.update(true);
        assert_eq!(scale, LossScale { factor: 16_384.0, finite_steps: 0 });
        while !scale.is_exhausted() {
            scale.update(false);
        }
        assert_eq!(scale.factor, 0.5);
    }
}
