//! The exponential moving average (EMA) of a network.

use burn::tensor::{Tensor, TensorData};

use super::denoiser::Denoiser;
use crate::weights::HostTensor;

/// An exponential moving average of a network's weights: `w = decay w + (1 - decay) w_student`.
#[derive(Debug, Clone)]
pub struct Ema {
    /// Weight of the old average in each step, in [0, 1).
    pub decay: f64,
    /// The network with the averaged weights; it records no gradients.
    pub denoiser: Denoiser,
}

impl Ema {
    /// Updates the average with the student's weights. Fixed weights stay as they are, to the last bit.
    pub fn update(&mut self, student: &Denoiser) {
        let decay = self.decay as f32;
        let pairs = self.denoiser.parameters().into_iter().zip(student.parameters());
        let averages = pairs.zip(student.fixed_weights()).map(|((average, weight), fixed)| match fixed {
            true => average,
            false => average * decay + weight * (1.0 - decay),
        });
        let averages = averages.collect();
        self.denoiser = self.denoiser.with_parameters(averages);
    }

    /// The average after `updates` updates, at least one, without the share `decay^updates` of the weights `first` that it started
    /// from, as Adam corrects its moments. After a short training this share is large.
    pub fn without_start(&self, first: &[HostTensor], updates: u64) -> Denoiser {
        let share = self.decay.powf(updates as f64);
        let parameters = self.denoiser.parameters().into_iter().zip(first).map(|(average, first)| {
            let count = first.values.len();
            let first = TensorData::new(first.values.clone(), [count]);
            let first = Tensor::<1>::from_data(first, &average.device());
            (average - first * share as f32) / (1.0 - share) as f32
        });
        self.denoiser.with_parameters(parameters.collect())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use burn::tensor::Device;

    use super::*;
    use crate::config::Config;
    use crate::model::{NetworkSpec, Prediction};
    use crate::nn::denoiser::random_model;

    #[test]
    fn an_average_without_its_start_is_that_of_the_updates() {
        let mut spec = Config::preset("shapes").unwrap().network;
        (spec.height, spec.width, spec.num_classes) = (8, 8, Some(3));
        (spec.channel_mult, spec.attention_resolutions) = (vec![1.0, 2.0], vec![4]);
        let model = |seed| random_model(NetworkSpec::from(spec.clone()), &Prediction::Velocity, seed);
        let (first, later) = (model(1), model(2));
        let device = Device::flex();
        let mut ema = Ema { decay: 0.9, denoiser: Denoiser::frozen(&first, &device) };
        let student = Denoiser::new(&later, &device);
        ema.update(&student);
        ema.update(&student);
        let average = ema.without_start(&first.tensors, 2).to_host();
        assert_eq!(average.len(), later.tensors.len());
        for (average, later) in average.iter().zip(&later.tensors) {
            for (found, expected) in average.values.iter().zip(&later.values) {
                assert!((found - expected).abs() < 1e-5, "{found}, not {expected}");
            }
        }
    }
}
