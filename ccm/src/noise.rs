//! Seeded random numbers, equal on every platform and in every version of this crate.
//!
//! A seed identifies an image, so these numbers must never change. Only the block function of ChaCha8, a published
//! standard, comes from a crate. This module implements the parts that crates may change between versions: the key of a
//! seed, uniform numbers and integers below a bound. The Box-Muller transform makes normal values from two uniform
//! numbers. It uses the functions of `libm`, since those of the platforms differ in the last bits.
//!
//! A generator is selected by a seed and a stream, so that the numbers of step 1000 of a run do not depend on those of
//! step 999.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A stream of random numbers.
#[derive(Debug, Clone)]
pub struct Noise {
    rng: ChaCha8Rng,
    /// The second value of the last Box-Muller pair.
    spare: Option<f32>,
}

impl Noise {
    /// The generator of `seed` and `stream`. Different streams are independent.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut rng = ChaCha8Rng::from_seed(key(seed));
        rng.set_stream(stream);
        Self { rng, spare: None }
    }

    /// Uniform in `[0, 1)`: a multiple of `2^-53`.
    pub fn uniform(&mut self) -> f64 {
        const STEP: f64 = 1.0 / (1u64 << 53) as f64;
        (self.rng.next_u64() >> 11) as f64 * STEP
    }

    /// Uniform in `0..bound`, by Canon's method with one correction.
    ///
    /// # Panics
    /// If `bound` is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        assert!(bound > 0, "a random number below 0: there is none");
        let bound = bound as u64;
        let product = |rng: &mut ChaCha8Rng| {
            let product = u128::from(rng.next_u64()) * u128::from(bound);
            ((product >> 64) as u64, product as u64)
        };
        let (number, fraction) = product(&mut self.rng);
        if fraction <= bound.wrapping_neg() {
            return number as usize;
        }
        // The lower digits of the product may carry into the number.
        let (digits, _) = product(&mut self.rng);
        (number + u64::from(fraction.checked_add(digits).is_none())) as usize
    }

    /// `count` values, uniform in `[-bound, bound)`.
    pub fn uniforms(&mut self, count: usize, bound: f64) -> Vec<f32> {
        (0..count).map(|_| ((2.0 * self.uniform() - 1.0) * bound) as f32).collect()
    }

    /// A standard normal value.
    pub fn normal(&mut self) -> f32 {
        if let Some(value) = self.spare.take() {
            return value;
        }
        let radius = (-2.0 * libm::log(1.0 - self.uniform())).sqrt();
        let angle = std::f64::consts::TAU * self.uniform();
        self.spare = Some((radius * libm::sin(angle)) as f32);
        (radius * libm::cos(angle)) as f32
    }

    /// `count` standard normal values.
    pub fn normals(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.normal()).collect()
    }

    /// Goes on as if `count` normal values had been drawn.
    pub fn skip_normals(&mut self, count: usize) {
        /// 32-bit words of a uniform number.
        const WORDS: u128 = 2;
        let count = if count > 0 && self.spare.take().is_some() { count - 1 } else { count };
        let pairs = (count / 2) as u128;
        self.rng.set_word_pos(self.rng.get_word_pos() + 2 * WORDS * pairs);
        if count % 2 == 1 {
            self.normal();
        }
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

/// The key of ChaCha8 for a seed: eight outputs of PCG32 (O'Neill, 2014), as `seed_from_u64` of rand_core 0.10.
fn key(seed: u64) -> [u8; 32] {
    let mut key = [0; 32];
    let mut state = seed;
    for word in key.chunks_exact_mut(4) {
        state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0xA176_54E4_6FBE_17F3);
        let shifted = (((state >> 18) ^ state) >> 27) as u32;
        word.copy_from_slice(&shifted.rotate_right((state >> 59) as u32).to_le_bytes());
    }
    key
}

/// The noise `x0` of the image with this seed: `len` standard normal values.
pub fn image_noise(seed: u64, len: usize) -> Vec<f32> {
    Noise::new(seed, 0).normals(len)
}

#[cfg(test)]
mod tests {
    use rand::RngExt as _;

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
    fn skipped_normals_are_as_if_drawn() {
        for before in 0..3 {
            for count in [0, 1, 2, 7, 100, 1001] {
                let [mut drawn, mut skipped] = [Noise::new(3, 4), Noise::new(3, 4)];
                drawn.below(5);
                drawn.normals(before + count);
                skipped.below(5);
                skipped.normals(before);
                skipped.skip_normals(count);
                assert_eq!(skipped.normals(3), drawn.normals(3), "{count} after {before}");
                assert_eq!(skipped.uniform(), drawn.uniform());
            }
        }
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    /// The literals are from `tests/references/noise.py`, which computes them without these crates.
    #[test]
    fn a_seed_gives_the_numbers_it_always_gave() {
        let pictures = [
            (0, [0xbfc4_8c9e, 0x3eaa_f61d, 0x3fb8_610d, 0x3f12_75ed]),
            (7, [0x3e93_ddd6, 0x3f02_8cc6, 0xbe68_c391, 0xbfc5_acf7]),
            (u64::MAX, [0xbfae_e486, 0x3f29_5b62, 0xbf64_aceb, 0x3ecd_3f04]),
        ];
        for (seed, expected) in pictures {
            assert_eq!(bits(&image_noise(seed, 4)), expected, "seed {seed}");
        }
        let late = [0xbf8f_96d4, 0x3e85_baab, 0xbf92_dd9f, 0xbf33_231a];
        assert_eq!(bits(&image_noise(7, 1000)[996..]), late, "after hundreds of blocks");
        let streams =
            [(1, 0x4046_d72a), (1000, 0xbefc_7504), (1 << 40, 0xbf7b_b632), (u64::MAX, 0xbd82_b3ef)];
        for (stream, expected) in streams {
            assert_eq!(Noise::new(7, stream).normal().to_bits(), expected, "stream {stream}");
        }
    }

    /// The literals are from `tests/references/noise.py`, too.
    #[test]
    fn uniform_numbers_and_permutations_are_those_they_always_were() {
        let mut noise = Noise::new(1, 2);
        let expected =
            [0x3fec_0b6b_afd2_264e, 0x3fe5_d903_5cfd_6e22, 0x3fd5_8bf0_e590_7230, 0x3fe0_60ba_fb24_4278];
        assert_eq!([(); 4].map(|()| noise.uniform().to_bits()), expected);
        let expected = [0x3d8b_b8ff, 0x3e32_49db, 0xbe9a_ac7d, 0xbddd_6c46];
        assert_eq!(bits(&Noise::new(1, 3).uniforms(4, 0.5)), expected);
        let mut noise = Noise::new(1, 4);
        let bounds = [1, 2, 10, 1000, 1 << 32, 1 << 53];
        assert_eq!(
            bounds.map(|bound| noise.below(bound)),
            [0, 0, 4, 802, 2_464_598_931, 340_542_300_528_864]
        );
        let mut noise = Noise::new(1, 5);
        // With this bound, about half of the numbers need the correction.
        let expected = [
            3_588_404_322_155_030_878,
            3_259_972_385_156_971_439,
            2_211_278_315_439_420_212,
            750_175_836_812_170_747,
            5_500_514_617_676_865_861,
            2_162_732_023_147_695_178,
        ];
        assert_eq!([(); 6].map(|()| noise.below((1 << 63) + 1)), expected);
        assert_eq!(Noise::new(1, 6).permutation(12), [2, 4, 1, 3, 0, 8, 9, 5, 7, 10, 11, 6]);
    }

    /// If this test fails with a new version of `rand`, delete it: the literals above are the specification.
    #[test]
    fn the_numbers_are_those_of_rand_0_10() {
        for seed in [0, 1, 7, 1 << 40, u64::MAX] {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(3);
            let mut noise = Noise::new(seed, 3);
            for bound in [1, 2, 3, 10, 255, 60_000, 1 << 40, (1 << 63) + 1, (1 << 63) + (1 << 62), u64::MAX] {
                for _ in 0..100 {
                    assert_eq!(noise.uniform(), rng.random::<f64>(), "seed {seed}");
                    let expected = rng.random_range(0..bound);
                    assert_eq!(noise.below(bound as usize) as u64, expected, "seed {seed}, below {bound}");
                }
            }
        }
    }

    #[test]
    fn the_numbers_do_not_depend_on_how_many_are_drawn() {
        assert_eq!(image_noise(7, 4), image_noise(7, 8)[..4]);
    }

    #[test]
    #[should_panic(expected = "below 0")]
    fn there_is_no_number_below_zero() {
        Noise::new(0, 0).below(0);
    }
}
