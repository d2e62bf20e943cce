//! Dynamic loss scaling for mixed precision in f16 (Micikevicius et al., arXiv 1710.03740).
//!
//! Gradients below 6e-8 are zero in f16, and those above 65 504 infinite. The loss is therefore multiplied by a factor before
//! the backward pass, and the gradients are divided by it afterwards. A step whose gradient is not finite is skipped and
//! halves the factor; many good steps in a row double it.

/// The factor of the loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossScale {
    /// A power of two, so that it changes no digit of a gradient.
    pub factor: f32,
    /// Steps since the factor changed.
    pub good_steps: u32,
}

impl Default for LossScale {
    /// PyTorch's `GradScaler` begins with the same factor.
    fn default() -> Self {
        Self { factor: 65_536.0, good_steps: 0 }
    }
}

impl LossScale {
    /// Good steps after which the factor doubles, as in PyTorch's `GradScaler`.
    const PATIENCE: u32 = 2000;
    /// Gradients of a step are not finite because of the factor only if it is above this.
    const LEAST: f32 = 1.0;

    /// Takes note of a step: whether its gradient was finite.
    pub fn update(&mut self, finite: bool) {
        if !finite {
            *self = Self { factor: self.factor / 2.0, good_steps: 0 };
        } else if self.good_steps + 1 == Self::PATIENCE {
            *self = Self { factor: self.factor * 2.0, good_steps: 0 };
        } else {
            self.good_steps += 1;
        }
    }

    /// Whether a gradient that is not finite has another cause than the factor.
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
        assert_eq!(scale, LossScale { factor: 16_384.0, good_steps: 0 });
        while !scale.is_exhausted() {
            scale.update(false);
        }
        assert_eq!(scale.factor, 0.5);
    }
}
