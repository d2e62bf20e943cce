//! What a discriminator's encoder sees of real and generated images: they are noised, and moved by a few pixels if asked for.
//! Both keep the discriminator from learning the training images by heart.

use std::ops::Range;

use burn::tensor::{Device, Int, Tensor, TensorData};

use super::batch::Batch;
use super::flow::path;
use crate::nn::conditions::Conditions;
use crate::nn::denoiser::Denoiser;
use crate::nn::host::per_image;
use crate::noise::Noise;

/// Start of the range of times of the encoder's inputs, `[EARLIEST, 1)`.
const EARLIEST: f64 = 0.5;

/// How images are changed before a discriminator's encoder sees them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Augmentation {
    /// Power of the share of noise, which is `1 - t = (1 - EARLIEST) U^power`.
    pub noise_power: f64,
    /// Largest number of pixels that an image is moved by, in each direction; its edges are repeated (Zhao et al.,
    /// arXiv 2006.10738). Without it, the gradient of an encoder of patches can repeat from patch to patch, and the student's
    /// images then show a grid (docs/experiments.md).
    pub translation: usize,
}

impl Augmentation {
    /// The time of an input, for `u` uniform in [0, 1).
    fn time(self, u: f64) -> f32 {
        // Exactly `u` for a power of 1.
        let place = if self.noise_power == 1.0 { u } else { 1.0 - (1.0 - u).powf(self.noise_power) };
        (EARLIEST + (1.0 - EARLIEST) * place) as f32
    }

    /// Pixels to move by, from -translation to translation, for `u` uniform in [0, 1).
    fn pixels(self, u: f64) -> i64 {
        let most = self.translation as i64;
        (u * (2 * most + 1) as f64).floor() as i64 - most
    }
}

/// Views of the real and the generated images of one micro-batch, at the same times.
pub(super) struct Views {
    pub(super) of_real: View,
    pub(super) of_fake: View,
    /// The direction of the gradient penalty, if there is one.
    pub(super) shift: Option<Tensor<4>>,
}

/// How an encoder sees the images of a micro-batch.
pub(super) struct View {
    t: Vec<f32>,
    noise: Tensor<4>,
    /// Where the pixels of moved images are taken from ([`places`]).
    places: Option<Tensor<3, Int>>,
}

impl Views {
    /// Draws separately for each row, so that the numbers do not depend on the size of the micro-batches.
    pub(super) fn draw(part: &Batch, rows: Range<usize>, augmentation: Augmentation, penalty: bool) -> Self {
        let device = part.x1.device();
        let shape = part.x1.shape();
        let [_, channels, height, width] = part.x1.dims();
        let len = channels * height * width;
        let (mut t, mut of_real, mut of_fake, mut shift) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut real_pixels, mut fake_pixels) = (Vec::new(), Vec::new());
        for row in rows {
            let mut noise = Noise::new(part.seed, row as u64);
            t.push(augmentation.time(noise.uniform()));
            of_real.extend(noise.normals(len));
            of_fake.extend(noise.normals(len));
            if penalty {
                shift.extend(noise.normals(len));
            }
            for pixels in [&mut real_pixels, &mut fake_pixels] {
                pixels.push([(); 2].map(|()| augmentation.pixels(noise.uniform())));
            }
        }
        let tensor =
            |values: Vec<f32>| Tensor::from_data(TensorData::new(values, shape.clone()), &device).autodiff();
        let view = |noise, pixels: &[[i64; 2]]| View {
            t: t.clone(),
            noise: tensor(noise),
            places: (augmentation.translation > 0)
                .then(|| places([channels, height, width], pixels, &device)),
        };
        Self {
            of_real: view(of_real, &real_pixels),
            of_fake: view(of_fake, &fake_pixels),
            shift: penalty.then(|| tensor(shift)),
        }
    }
}

impl View {
    /// An encoder's features of images.
    pub(super) fn features(
        &self,
        encoder: &Denoiser,
        images: Tensor<4>,
        condition: Conditions,
    ) -> Vec<Tensor<4>> {
        let time = per_image(&self.t, &images.device());
        encoder.encode(path(&self.noise, &self.moved(images), &time), &self.t, condition)
    }

    fn moved(&self, images: Tensor<4>) -> Tensor<4> {
        let Some(places) = &self.places else { return images };
        let shape = images.shape();
        images.flatten::<3>(2, 3).gather(2, places.clone()).reshape(shape)
    }
}

/// The pixel that each pixel of a moved image is taken from, `[B, C, H W]`, from the pixels that each image moves down and
/// right by. Beyond the edge, it is the nearest.
fn places([channels, height, width]: [usize; 3], pixels: &[[i64; 2]], device: &Device) -> Tensor<3, Int> {
    let nearest = |at: usize, by: i64, len: usize| (at as i64 - by).clamp(0, len as i64 - 1);
    let mut places = Vec::with_capacity(pixels.len() * height * width);
    for [down, right] in pixels {
        for y in 0..height {
            let start = nearest(y, *down, height) * width as i64;
            places.extend((0..width).map(|x| start + nearest(x, *right, width)));
        }
    }
    let places: Tensor<3, Int> =
        Tensor::from_data(TensorData::new(places, [pixels.len(), 1, height * width]), device);
    places.expand([pixels.len(), channels, height * width])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::host::to_host;

    const PLAIN: Augmentation = Augmentation { noise_power: 1.0, translation: 0 };

    #[test]
    fn a_higher_power_means_less_noise() {
        let squared = Augmentation { noise_power: 2.0, ..PLAIN };
        for u in [0.0, 0.3, 0.9] {
            let [plain, squared] = [PLAIN, squared].map(|of| f64::from(1.0 - of.time(u)) / 0.5);
            assert!(
                (plain * plain - squared).abs() < 1e-6 && (0.0..=1.0).contains(&plain),
                "{plain} {squared}"
            );
        }
    }

    #[test]
    fn every_translation_is_as_likely() {
        let augmentation = Augmentation { translation: 2, ..PLAIN };
        let mut counts = [0; 5];
        (0..1000).for_each(|i| counts[(augmentation.pixels(f64::from(i) / 1000.0) + 2) as usize] += 1);
        assert_eq!(counts, [200; 5]);
        assert_eq!(PLAIN.pixels(0.999), 0);
    }

    /// Two images of two channels, moved by different numbers of pixels, and the gradient of their values.
    #[test]
    fn moved_images_repeat_their_edges() {
        let device = Device::flex();
        let plane = |first: i32| (first..first + 6).map(|value| value as f32);
        let values: Vec<f32> = [0, 10, 20, 30].into_iter().flat_map(plane).collect();
        let images =
            Tensor::<4>::from_data(TensorData::new(values, [2, 2, 2, 3]), &device).autodiff().require_grad();
        let view = View {
            t: vec![1.0; 2],
            noise: images.clone().inner().zeros_like(),
            places: Some(places([2, 2, 3], &[[1, 0], [0, -1]], &device)),
        };
        let moved = view.moved(images.clone());
        let expected = [
            [0.0, 1.0, 2.0, 0.0, 1.0, 2.0],
            [10.0, 11.0, 12.0, 10.0, 11.0, 12.0],
            [21.0, 22.0, 22.0, 24.0, 25.0, 25.0],
            [31.0, 32.0, 32.0, 34.0, 35.0, 35.0],
        ];
        assert_eq!(to_host(moved.clone().inner()), expected.concat());
        let gradient = images.grad(&moved.sum().backward());
        let down = [2.0, 2.0, 2.0, 0.0, 0.0, 0.0];
        let left = [0.0, 1.0, 2.0, 0.0, 1.0, 2.0];
        assert_eq!(gradient.map(to_host), Some([down, down, left, left].concat()));
    }
}
