//! Copies positions from one map to another. GPU version: `shaders/src/copy.wgsl`.

use super::shared::{Member, Shared};
use crate::sampler::plan::Copy;

/// Copies this member's share of the positions of one image.
pub(super) fn copy(op: &Copy, x: &[f32], y: Shared, member: &Member) {
    let channels = op.y.channels;
    let own = member.share(op.count);
    let x = &x[(op.from + own.start) * channels..][..own.len() * channels];
    // SAFETY: only this member writes these positions.
    unsafe { y.write((op.to + own.start) * channels, x.len()) }.copy_from_slice(x);
}
