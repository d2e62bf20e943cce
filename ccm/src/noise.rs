//! Seeded random numbers that are the same on every platform: `seed -> x0`.
//!
//! The generator is ChaCha8; a normal deviate is made from two uniform ones by the Box-Muller transform with
//! `libm`'s functions, because those of the platforms differ in the last bits. A generator is named by a seed
//! and a stream, so that the numbers of step 1000 of a run need not be drawn after those of step 999.

use rand::RngExt;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// A stream of random numbers.
#[derive(Debug, Clone)]
pub struct Noise {
    rng: ChaCha8Rng,
    spare: Option<f32>,
}

impl Noise {
    /// The numbers of `stream` under `seed`; different streams are independent.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        Self { rng, spare: None }
    }

    /// Uniform in `[0, 1)`.
    pub fn uniform(&mut self) -> f64 {
        self.rng.random::<f64>()
    }

    /// Uniform in `0..bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        self.rng.random_range(0..bound as u64) as usize
    }

    /// As many values, uniform within `bound` of zero.
    pub fn uniforms(&mut self, count: usize, bound: f64) -> Vec<f32> {
        (0..count).map(|_| ((2.0 * self.uniform() - 1.0) * bound) as f32).collect()
    }

    /// Standard normal.
    pub fn normal(&mut self) -> f32 {
        if let Some(value) = self.spare.take() {
            return value;
        }
        let radius = (-2.0 * libm::log(1.0 - self.uniform())).sqrt();
        let angle = std::f64::consts::TAU * self.uniform();
        self.spare = Some((radius * libm::sin(angle)) as f32);
        (radius * libm::cos(angle)) as f32
    }

    /// As many standard normal values.
    pub fn normals(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.normal()).collect()
    }

    /// The numbers `0..count` in random order.
    pub fn permutation(&mut self, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        for i in (1..count).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }
}

/// The noise that a seed stands for: one image's `x0`, of `len` values.
pub fn image_noise(seed: u64, len: usize) -> Vec<f32> {
    Noise::new(seed, 0).normals(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normals_have_the_moments_of_the_normal_distribution() {
        let values = Noise::new(1, 2).normals(200_000);
        let moment = |p: i32| values.iter().map(|v| f64::from(*v).powi(p)).sum::<f64>() / values.len() as f64;
        for (power, expected) in [(1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)] {
            assert!((moment(power) - expected).abs() < 0.05, "moment {power}: {}", moment(power));
        }
    }

    #[test]
    fn streams_differ_and_repeat() {
        assert_eq!(Noise::new(7, 1).normals(9), Noise::new(7, 1).normals(9));
        assert_ne!(Noise::new(7, 1).normals(9), Noise::new(7, 2).normals(9));
        assert_ne!(Noise::new(8, 1).normals(9), Noise::new(7, 1).normals(9));
    }

    #[test]
    fn a_seed_gives_the_numbers_it_always_gave() {
        let found = image_noise(7, 4);
        assert_eq!(found, image_noise(7, 8)[..4], "the numbers do not depend on how many are drawn");
    }
}
