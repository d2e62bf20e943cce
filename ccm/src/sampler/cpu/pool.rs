//! 2x2 average pooling. GPU version: `shaders/src/pool.wgsl`.

use super::shared::{Member, Shared};
use crate::sampler::plan::Pool;

/// Computes this member's share of the pooling of one image: a range of output rows.
pub(super) fn pool(op: &Pool, x: &[f32], y: Shared, member: &Member) {
    let channels = op.y.channels;
    for row in member.share(op.y.height) {
        for column in 0..op.y.width {
            let pixel = |dy: usize, dx: usize| {
                &x[((2 * row + dy) * op.x.width + 2 * column + dx) * channels..][..channels]
            };
            let [a, b, c, d] = [pixel(0, 0), pixel(0, 1), pixel(1, 0), pixel(1, 1)];
            // SAFETY: only this member writes this row.
            let y = unsafe { y.write((row * op.y.width + column) * channels, channels) };
            for (i, y) in y.iter_mut().enumerate() {
                *y = 0.25 * (a[i] + b[i] + c[i] + d[i]);
            }
        }
    }
}
