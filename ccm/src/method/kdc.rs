//! Knowledge discrepancy of the curriculum (PAPER.md §4).

use burn::tensor::Tensor;

use crate::nn::host::to_host;

/// Largest difference between two values of an image in [-1, 1]; for latents, a setting.
pub const PEAK: f64 = 2.0;

/// Upper limit of the PSNR, at which KDC is 0.
const PSNR_CAP: f64 = 100.0;

/// `PSNR = 10 log10(peak^2 / MSE)`, in dB, at most 100.
pub fn psnr(mse: f64, peak: f64) -> f64 {
    let psnr = 10.0 * (peak * peak / mse).log10();
    // Not `min`, which would turn NaN into the best PSNR.
    if psnr > PSNR_CAP { PSNR_CAP } else { psnr }
}

/// `KDC = 100 - PSNR`, in dB, at least 0: the discrepancy between the target and the student's estimate.
pub fn kdc(mse: f64, peak: f64) -> f64 {
    100.0 - psnr(mse, peak)
}

/// Mean squared difference of each pair of images. `a`, `b`: `[B, C, H, W]`; result: `B` values on the host.
pub fn mse(a: Tensor<4>, b: Tensor<4>) -> Vec<f64> {
    let [batch, channels, height, width] = a.dims();
    let difference = (a - b).reshape([batch, channels * height * width]);
    let mean = (difference.clone() * difference).mean_dim(1);
    to_host(mean).into_iter().map(f64::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kdc_of_identical_images_is_capped() {
        assert_eq!(kdc(0.0, PEAK), 0.0);
    }

    #[test]
    fn kdc_of_opposite_images_is_100() {
        assert!((kdc(4.0, PEAK) - 100.0).abs() < 1e-12);
    }

    #[test]
    fn a_tenth_of_the_error_is_20_db_less() {
        assert!((kdc(0.5, PEAK) - kdc(0.005, PEAK) - 20.0).abs() < 1e-12);
    }
}
