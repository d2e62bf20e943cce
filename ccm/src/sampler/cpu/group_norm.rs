//! `y = act(gain * (x - mean) / deviation + offset)`. GPU version: `shaders/src/group_norm.wgsl`.
//!
//! Threads share the groups. Each reads the map three times, pixel by pixel: for the mean of every channel, for the
//! mean squared distance from it, and to write the result. The statistics of a group's channels are combined (Chan,
//! Golub and LeVeque, 1979), which avoids the cancellation of subtracting two large sums.

use super::arch::Arch;
use super::shared::{Member, Shared};
use crate::sampler::plan::GroupNorm;
use crate::simd::exp;

/// Computes this member's share of the norm of one image.
///
/// `x` is one or two maps; `gain` and `offset` hold one number per channel.
pub(super) fn group_norm(
    op: &GroupNorm,
    x: [&[f32]; 2],
    gain: &[f32],
    offset: &[f32],
    y: Shared,
    member: &Member,
) {
    let channels = op.x.channels();
    let of_group = channels / op.groups;
    let groups = member.share(op.groups);
    let own = groups.start * of_group..groups.end * of_group;
    if own.is_empty() {
        return;
    }
    let (mut slope, mut shift) = (vec![0.0; own.len()], vec![0.0; own.len()]);
    // This member's part of each map, and the position of that part among this member's channels.
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
        let inverse = 1.0 / (variance + op.epsilon).sqrt();
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
                    // SAFETY: only this member writes these channels.
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

    /// Computes the mean of each channel, and the mean squared distance from it.
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
