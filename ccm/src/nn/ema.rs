//! The exponential moving average (EMA) of a network.

use super::denoiser::Denoiser;

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
}
