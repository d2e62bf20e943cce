//! Group norm with optional SiLU on the CPU, and its gradients.
//!
//! `y = act(gain * (x - mean) / std + offset)`, with one mean and standard deviation per image and group. Gain and
//! offset are per image and channel, so that they cover both a learned affine map and the scale and shift of a
//! conditional norm.

use pulp::Arch;
use rayon::prelude::*;

use crate::simd::exp;

/// Sizes of a group norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupNormShape {
    /// Number of images.
    pub batch: usize,
    /// Number of channels, a multiple of `groups`.
    pub channels: usize,
    /// Number of groups, each with its own mean and standard deviation.
    pub groups: usize,
    /// Height times width.
    pub pixels: usize,
    /// Whether SiLU follows.
    pub silu: bool,
}

impl GroupNormShape {
    fn group_channels(&self) -> usize {
        self.channels / self.groups
    }

    fn group_len(&self) -> usize {
        self.group_channels() * self.pixels
    }

    fn check(&self, x: usize, y: usize, gain: usize, offset: usize) {
        assert!(self.groups > 0 && self.channels.is_multiple_of(self.groups), "groups of {self:?}");
        assert_eq!((x, y), (self.batch * self.channels * self.pixels, x), "input and output of {self:?}");
        assert_eq!((gain, offset), (self.batch * self.channels, gain), "gain and offset of {self:?}");
    }
}

/// Mean and inverse standard deviation of a group.
#[derive(Clone, Copy)]
struct Moments {
    mean: f32,
    inverse: f32,
}

impl Moments {
    #[inline(always)]
    fn of(x: &[f32], epsilon: f32) -> Self {
        let count = x.len() as f32;
        let mean = sum(x, |value| value) / count;
        let variance = sum(x, |value| (value - mean) * (value - mean)) / count;
        Self { mean, inverse: 1.0 / (variance + epsilon).sqrt() }
    }
}

/// Group norm, then SiLU if `shape.silu`. `epsilon` is added to the variance.
///
/// # Shapes
/// - `x`, `y`: `[batch, channels, pixels]`
/// - `gain`, `offset`: `[batch, channels]`
pub fn group_norm(
    shape: &GroupNormShape,
    epsilon: f32,
    x: &[f32],
    gain: &[f32],
    offset: &[f32],
    y: &mut [f32],
) {
    shape.check(x.len(), y.len(), gain.len(), offset.len());
    let channels = shape.group_channels();
    y.par_chunks_mut(shape.group_len())
        .zip(x.par_chunks(shape.group_len()))
        .zip(gain.par_chunks(channels).zip(offset.par_chunks(channels)))
        .for_each(|((y, x), (gain, offset))| {
            Arch::new().dispatch(|| {
                let Moments { mean, inverse } = Moments::of(x, epsilon);
                let planes = y.chunks_exact_mut(shape.pixels).zip(x.chunks_exact(shape.pixels));
                for ((y, x), (gain, offset)) in planes.zip(gain.iter().zip(offset)) {
                    let slope = gain * inverse;
                    let offset = offset - mean * slope;
                    for (y, x) in y.iter_mut().zip(x) {
                        let z = x * slope + offset;
                        *y = if shape.silu { z * sigmoid(z) } else { z };
                    }
                }
            });
        });
}

/// Computes the gradients of the inputs of [`group_norm`] from the gradient `dy` of its output.
///
/// # Shapes
/// - `x`, `dy`, `dx`: `[batch, channels, pixels]`
/// - `gain`, `offset`, `dgain`, `doffset`: `[batch, channels]`
#[expect(clippy::too_many_arguments, reason = "the inputs and outputs of one equation")]
pub fn group_norm_gradient(
    shape: &GroupNormShape,
    epsilon: f32,
    x: &[f32],
    gain: &[f32],
    offset: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    dgain: &mut [f32],
    doffset: &mut [f32],
) {
    shape.check(x.len(), dx.len(), gain.len(), offset.len());
    shape.check(dy.len(), dx.len(), dgain.len(), doffset.len());
    let (channels, len) = (shape.group_channels(), shape.group_len());
    let inputs = x.par_chunks(len).zip(dy.par_chunks(len));
    let affine = gain.par_chunks(channels).zip(offset.par_chunks(channels));
    let gradients = dgain.par_chunks_mut(channels).zip(doffset.par_chunks_mut(channels));
    dx.par_chunks_mut(len).zip(inputs).zip(affine.zip(gradients)).for_each(
        |((dx, (x, dy)), ((gain, offset), (dgain, doffset)))| {
            Arch::new().dispatch(|| {
                let moments = Moments::of(x, epsilon);
                // `dx` first holds the gradient before the activation. Its sums are the gradients of gain and offset.
                for (c, dz) in dx.chunks_exact_mut(shape.pixels).enumerate() {
                    let plane = c * shape.pixels..(c + 1) * shape.pixels;
                    let (x, dy) = (&x[plane.clone()], &dy[plane]);
                    if shape.silu {
                        let slope = gain[c] * moments.inverse;
                        let shift = offset[c] - moments.mean * slope;
                        for ((dz, x), dy) in dz.iter_mut().zip(x).zip(dy) {
                            let z = x * slope + shift;
                            let s = sigmoid(z);
                            *dz = dy * s * (1.0 + z * (1.0 - s));
                        }
                    } else {
                        dz.copy_from_slice(dy);
                    }
                    doffset[c] = sum(dz, |dz| dz);
                    dgain[c] = sum2(dz, x, |dz, x| dz * (x - moments.mean) * moments.inverse);
                }
                // Then subtract the gradient through the mean and the standard deviation.
                let mean = gain.iter().zip(&*doffset).map(|(gain, sum)| gain * sum).sum::<f32>() / len as f32;
                let slope = gain.iter().zip(&*dgain).map(|(gain, sum)| gain * sum).sum::<f32>() / len as f32;
                for (c, dx) in dx.chunks_exact_mut(shape.pixels).enumerate() {
                    let x = &x[c * shape.pixels..(c + 1) * shape.pixels];
                    let gain = gain[c];
                    for (dx, x) in dx.iter_mut().zip(x) {
                        let normal = (x - moments.mean) * moments.inverse;
                        *dx = moments.inverse * (*dx * gain - mean - normal * slope);
                    }
                }
            });
        },
    );
}

/// Number of partial sums. They make summation a vector operation with smaller rounding errors than a running total.
const PARTIAL_SUMS: usize = 64;

#[inline(always)]
fn sum(values: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0.0; PARTIAL_SUMS];
    let chunks = values.chunks_exact(PARTIAL_SUMS);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *sum += term(*value);
        }
    }
    sums.iter().sum::<f32>() + rest.iter().map(|value| term(*value)).sum::<f32>()
}

#[inline(always)]
fn sum2(a: &[f32], b: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
    let mut sums = [0.0; PARTIAL_SUMS];
    let (chunks_a, chunks_b) = (a.chunks_exact(PARTIAL_SUMS), b.chunks_exact(PARTIAL_SUMS));
    let rest = chunks_a.remainder().iter().zip(chunks_b.remainder());
    let rest = rest.map(|(a, b)| term(*a, *b)).sum::<f32>();
    for (a, b) in chunks_a.zip(chunks_b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += term(*a, *b);
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// `1 / (1 + exp(-x))`.
#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}
