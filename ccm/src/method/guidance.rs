//! The teacher's velocity with guidance, which the student learns in one evaluation.

use burn::tensor::Tensor;

use crate::nn::conditions::Conditions;
use crate::nn::denoiser::Denoiser;
use crate::nn::host::per_image;

/// A network, and what its velocity is led away from.
pub struct Teacher {
    /// The network.
    pub denoiser: Denoiser,
    /// What its velocity is led away from.
    pub guidance: Guidance,
}

/// What guidance leads a velocity away from: `v_away + w (v - v_away)`, with the guidance scale `w`.
pub enum Guidance {
    /// Nothing: `v`.
    None,
    /// Classifier-free guidance (arXiv 2207.12598): `v_away` is the network's own velocity under the condition of one image
    /// without a prompt. The scales are those of the images' conditions.
    ClassifierFree(Conditions),
    /// Autoguidance (arXiv 2406.02507): `v_away` is the velocity of a weaker network under the same condition. Where both
    /// make the same kind of mistake, the weaker one makes it more often, and guidance leads away from it (PAPER.md §11).
    Auto {
        /// The weaker network, for the same images.
        weaker: Denoiser,
        /// The guidance scale.
        scale: f32,
        /// The time at which guidance ends. Near the image, the weaker network's grain is the largest difference.
        until: f32,
    },
}

impl From<Denoiser> for Teacher {
    fn from(denoiser: Denoiser) -> Self {
        Self { denoiser, guidance: Guidance::None }
    }
}

impl Teacher {
    /// The teacher with every network replaced.
    pub fn map(self, replace: impl Fn(Denoiser) -> Denoiser) -> Self {
        let guidance = match self.guidance {
            Guidance::Auto { weaker, scale, until } => {
                Guidance::Auto { weaker: replace(weaker), scale, until }
            }
            other => other,
        };
        Self { denoiser: replace(self.denoiser), guidance }
    }

    /// Network evaluations that the velocity at time `t` needs.
    pub fn evaluations(&self, t: f32) -> usize {
        match self.guidance {
            Guidance::ClassifierFree(_) => 2,
            Guidance::Auto { until, .. } if t < until => 2,
            Guidance::None | Guidance::Auto { .. } => 1,
        }
    }

    /// The guided velocity. Shapes are those of [`Denoiser::velocity`].
    ///
    /// # Panics
    /// If there is classifier-free guidance, and the condition has no scales.
    pub fn velocity(&self, x: Tensor<4>, t: &[f32], condition: Conditions) -> Tensor<4> {
        match &self.guidance {
            Guidance::None => self.denoiser.velocity(x, t, condition),
            Guidance::ClassifierFree(negative) => {
                let count = t.len();
                let scale = condition.guidance.clone().unwrap_or_else(|| panic!("guidance needs a scale"));
                let both = condition.join(negative.clone().repeat(count));
                let v = self.denoiser.velocity(Tensor::cat(vec![x.clone(), x], 0), &[t, t].concat(), both);
                let (towards, away) = (v.clone().narrow(0, 0, count), v.narrow(0, count, count));
                away.clone() + (towards - away) * scale.reshape([count, 1, 1, 1])
            }
            Guidance::Auto { weaker, scale, until } => {
                let v = self.denoiser.velocity(x.clone(), t, condition.clone());
                // The whole batch is evaluated: a GPU would compile kernels for each size of a part.
                if t.iter().all(|t| t >= until) {
                    return v;
                }
                let beyond = t.iter().map(|t| if t < until { scale - 1.0 } else { 0.0 });
                let beyond = per_image(&beyond.collect::<Vec<f32>>(), &x.device());
                let away = weaker.velocity(x, t, condition);
                v.clone() + (v - away) * beyond.reshape([t.len(), 1, 1, 1])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use burn::tensor::{Device, TensorData};

    use super::*;
    use crate::config::Config;
    use crate::model::{NetworkSpec, Prediction};
    use crate::nn::denoiser::random_model;
    use crate::nn::host::to_host;
    use crate::noise::Noise;

    #[test]
    fn autoguidance_leads_away_from_the_weaker_network_until_its_end() {
        let mut spec = Config::preset("shapes").unwrap().network;
        (spec.height, spec.width, spec.num_classes) = (8, 8, Some(3));
        (spec.channel_mult, spec.attention_resolutions) = (vec![1.0, 2.0], vec![4]);
        let spec = NetworkSpec::from(spec);
        let device = Device::flex();
        let network =
            |seed| Denoiser::frozen(&random_model(spec.clone(), &Prediction::Velocity, seed), &device);
        let values = Noise::new(1, 0).normals(3 * spec.image_len());
        let x = Tensor::<4>::from_data(TensorData::new(values, [3, 3, 8, 8]), &device);
        let condition = Conditions::of_labels(&[0, 1, 2], &device);
        let velocity =
            |teacher: &Teacher, t: &[f32]| to_host(teacher.velocity(x.clone(), t, condition.clone()));
        let auto = |until| Teacher {
            denoiser: network(1),
            guidance: Guidance::Auto { weaker: network(2), scale: 3.0, until },
        };
        let t = [0.1, 0.5, 0.9];
        let (own, weak) = (velocity(&network(1).into(), &t), velocity(&network(2).into(), &t));
        let found = velocity(&auto(0.5), &t);
        for (place, found) in found.into_iter().enumerate() {
            // Only the first image's time is before the end.
            let scale = if place < spec.image_len() { 3.0 } else { 1.0 };
            let expected = weak[place] + scale * (own[place] - weak[place]);
            assert!((found - expected).abs() < 1e-5 * expected.abs().max(1.0), "{found}, not {expected}");
        }
        assert_eq!(velocity(&auto(0.1), &t), own);
        assert_eq!(t.map(|t| auto(0.5).evaluations(t)), [2, 1, 1]);
    }
}
