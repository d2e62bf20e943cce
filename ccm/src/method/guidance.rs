//! The teacher's velocity with classifier-free guidance (arXiv 2207.12598), which the student learns in one evaluation.

use burn::tensor::Tensor;

use crate::nn::conditions::Conditions;
use crate::nn::denoiser::Denoiser;

/// The teacher and the negative condition of classifier-free guidance.
pub struct Teacher {
    /// The network.
    pub denoiser: Denoiser,
    /// The condition of one image without a prompt. `None` for a teacher without guidance.
    pub negative: Option<Conditions>,
}

impl From<Denoiser> for Teacher {
    fn from(denoiser: Denoiser) -> Self {
        Self { denoiser, negative: None }
    }
}

impl Teacher {
    /// Network evaluations of one velocity.
    pub fn evaluations(&self) -> usize {
        1 + usize::from(self.negative.is_some())
    }

    /// `v(x, t, nothing) + w (v(x, t, condition) - v(x, t, nothing))` with the guidance scales `w` of the condition; without
    /// guidance `v(x, t, condition)`. Shapes are those of [`Denoiser::velocity`].
    ///
    /// # Panics
    /// If there is guidance, and the condition has no scales.
    pub fn velocity(&self, x: Tensor<4>, t: &[f32], condition: Conditions) -> Tensor<4> {
        let Some(negative) = &self.negative else {
            return self.denoiser.velocity(x, t, condition);
        };
        let count = t.len();
        let scale = condition.guidance.clone().unwrap_or_else(|| panic!("guidance needs a scale"));
        let both = condition.join(negative.clone().repeat(count));
        let v = self.denoiser.velocity(Tensor::cat(vec![x.clone(), x], 0), &[t, t].concat(), both);
        let (towards, away) = (v.clone().narrow(0, 0, count), v.narrow(0, count, count));
        away.clone() + (towards - away) * scale.reshape([count, 1, 1, 1])
    }
}
