//! Averaged copies of a network.

use super::unet::UNet;

/// An exponential moving average of a network's weights: `w = decay w + (1 - decay) w_student`.
#[derive(Debug, Clone)]
pub struct Ema {
    /// Share of the old weights that a step keeps, in [0, 1).
    pub decay: f64,
    /// The network with the averaged weights; it records no gradients.
    pub unet: UNet,
}

impl Ema {
    /// Takes a step towards the student.
    pub fn update(&mut self, student: &UNet) {
        let decay = self.decay as f32;
        self.unet = self
            .unet
            .clone()
            .zip_map(student.parameters(), |average, weight| average * decay + weight * (1.0 - decay));
    }
}
