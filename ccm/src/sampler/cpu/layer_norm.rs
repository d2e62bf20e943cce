//! `y = gain * (x - mean) / deviation + offset` over the channels of each position. GPU version:
//! `shaders/src/layer_norm.wgsl`.

use super::arch::Arch;
use super::shared::{Member, Shared};
use crate::sampler::plan::LayerNorm;

/// Computes this member's share of the norm of one image: a range of positions.
///
/// `gain` and `offset` hold one number per channel.
pub(super) fn layer_norm(
    op: &LayerNorm,
    x: &[f32],
    gain: &[f32],
    offset: &[f32],
    y: Shared,
    member: &Member,
) {
    let channels = op.y.channels;
    Arch::new().dispatch(
        #[inline(always)]
        || {
            for position in member.share(op.y.pixels()) {
                let x = &x[position * channels..][..channels];
                // SAFETY: only this member writes this position.
                let y = unsafe { y.write(position * channels, channels) };
                let width = channels / op.heads;
                let heads = x.chunks_exact(width).zip(y.chunks_exact_mut(width));
                for ((x, y), (gain, offset)) in
                    heads.zip(gain.chunks_exact(width).zip(offset.chunks_exact(width)))
                {
                    let mean = if op.centred { sum(x, |x| x) / width as f32 } else { 0.0 };
                    let variance = sum(x, |x| (x - mean) * (x - mean)) / width as f32;
                    let inverse = 1.0 / (variance + op.epsilon).sqrt();
                    let affine = x.iter().zip(gain).zip(offset);
                    for (y, ((x, gain), offset)) in y.iter_mut().zip(affine) {
                        *y = (x - mean) * inverse * gain + offset;
                    }
                }
            }
        },
    );
}

/// The sum of a function over values, with partial sums that the compiler vectorises.
#[inline(always)]
fn sum(values: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0.0; 16];
    let (whole, rest) = values.as_chunks::<16>();
    for values in whole {
        sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += of(*value));
    }
    sums.iter().sum::<f32>() + rest.iter().map(|value| of(*value)).sum::<f32>()
}
