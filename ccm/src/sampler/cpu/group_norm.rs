//! `y = act(gain * (x - mean) / deviation + offset)`, as `shaders/src/group_norm.wgsl`.
//!
//! Members share groups. Each walks through the map three times, channels side by side: for the mean of every
//! channel, for the squares about it, and to write the result. Means and squares of a group's channels are then
//! put together (Chan, Golub and LeVeque, 1979), which never subtracts two large sums.

use super::arch::Arch;
use super::shared::{Member, Shared};
use crate::sampler::plan::GroupNorm;
use crate::spec::{NORM_EPSILON, NORM_GROUPS};

/// This member's share of the norm of one image.
///
/// `x` are one or two maps; `gain` and `offset` hold one number a channel.
pub(super) fn group_norm(
    op: &GroupNorm,
    x: [&[f32]; 2],
    gain: &[f32],
    offset: &[f32],
    y: Shared,
    member: &Member,
) {
    let channels = op.x.channels();
    let of_group = channels / NORM_GROUPS;
    let groups = member.share(NORM_GROUPS);
    let own = groups.start * of_group..groups.end * of_group;
    if own.is_empty() {
        return;
    }
    let (mut slope, mut shift) = (vec![0.0; own.len()], vec![0.0; own.len()]);
    // The part of each map that is this member's, and where it stands among this member's channels.
    let mut before = 0;
    let parts = op.x.maps().zip(x).filter_map(|(map, values)| {
        let first = own.start.max(before);
        let last = own.end.min(before + map.channels);
        let part = (first < last).then(|| Part {
            values,
            channels: map.channels,
            first: first - before,
            len: last - first,
            own: first - own.start,
        });
        before += map.channels;
        part
    });
    let parts: Vec<Part> = parts.collect();
    Arch::new().dispatch(
        #[inline(always)]
        || {
            for part in &parts {
                let (mean, square) = (&mut slope[part.own..][..part.len], &mut shift[part.own..][..part.len]);
                part.moments(mean, square);
            }
        },
    );
    for (group, (means, squares)) in
        slope.chunks_exact_mut(of_group).zip(shift.chunks_exact_mut(of_group)).enumerate()
    {
        let mean = means.iter().sum::<f32>() / of_group as f32;
        let spread = means.iter().map(|m| (m - mean) * (m - mean)).sum::<f32>();
        let variance = (squares.iter().sum::<f32>() + spread) / of_group as f32;
        let inverse = 1.0 / (variance + NORM_EPSILON).sqrt();
        let first = own.start + group * of_group;
        for (i, (slope, shift)) in means.iter_mut().zip(squares).enumerate() {
            *slope = gain[first + i] * inverse;
            *shift = offset[first + i] - mean * *slope;
        }
    }
    Arch::new().dispatch(
        #[inline(always)]
        || {
            for part in &parts {
                let (slope, shift) = (&slope[part.own..][..part.len], &shift[part.own..][..part.len]);
                for (pixel, x) in part.rows().enumerate() {
                    // SAFETY: these channels are this member's own.
                    let y = unsafe { y.write(pixel * channels + own.start + part.own, part.len) };
                    let affine = x.iter().zip(slope).zip(shift).map(|((x, slope), shift)| x * slope + shift);
                    if op.silu {
                        y.iter_mut().zip(affine).for_each(|(y, z)| *y = z / (1.0 + exp(-z)));
                    } else {
                        y.iter_mut().zip(affine).for_each(|(y, z)| *y = z);
                    }
                }
            }
        },
    );
}

/// Channels `first..first + len` of a map.
struct Part<'a> {
    values: &'a [f32],
    channels: usize,
    first: usize,
    len: usize,
    own: usize,
}

impl Part<'_> {
    #[inline(always)]
    fn rows(&self) -> impl Iterator<Item = &[f32]> {
        self.values.chunks_exact(self.channels).map(|pixel| &pixel[self.first..][..self.len])
    }

    /// Mean of each channel, and mean square about it.
    #[inline(always)]
    fn moments(&self, mean: &mut [f32], square: &mut [f32]) {
        let scale = 1.0 / (self.values.len() / self.channels) as f32;
        for x in self.rows() {
            mean.iter_mut().zip(x).for_each(|(sum, x)| *sum += x);
        }
        mean.iter_mut().for_each(|sum| *sum *= scale);
        for x in self.rows() {
            square.iter_mut().zip(x).zip(&*mean).for_each(|((sum, x), mean)| *sum += (x - mean) * (x - mean));
        }
        square.iter_mut().for_each(|sum| *sum *= scale);
    }
}

/// `exp(x)` to two units in the last place, without a branch, so that a loop over it is vector code. Arguments
/// are limited to ±87, where the result is near the ends of the range of `f32`.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    /// Adding it rounds to an integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 87.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    // Taylor's series to the sixth order; |r| <= ln(2) / 2.
    let p = 1.0 / 720.0;
    let p = p * r + 1.0 / 120.0;
    let p = p * r + 1.0 / 24.0;
    let p = p * r + 1.0 / 6.0;
    let p = p * r + 0.5;
    let p = p * r + 1.0;
    let p = p * r + 1.0;
    p * f32::from_bits(shifted.to_bits().wrapping_add(127) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_agrees_with_the_standard_library() {
        for i in -8600..8600 {
            let x = i as f32 / 100.0;
            let expected = f64::from(x).exp();
            assert!(
                (f64::from(exp(x)) / expected - 1.0).abs() < 3e-7,
                "exp({x}) = {}, not {expected}",
                exp(x)
            );
        }
    }
}
