//! `y = softmax(scale q^T k + bias) v` for every head. GPU version: `shaders/src/attention.wgsl`.
//!
//! Threads share the heads; with few heads they also share the queries of a head. Scores are computed for a few
//! queries and all keys at a time, so that they stay in the cache.

use std::cell::RefCell;

use pulp::{Simd, WithSimd};

use super::arch::Arch;
use super::multiply::{MAX_ROWS, Part, multiply, panel_vectors};
use super::shared::{Member, Shared};
use crate::sampler::plan::{Attention, Channels};
use crate::simd::exp;

#[derive(Default)]
struct Scratch {
    /// Keys as panels of positions, `[head_channels, width]` each.
    keys: Vec<f32>,
    /// Values as panels of channels, `[positions, width]` each.
    values: Vec<f32>,
    /// `[MAX_ROWS, positions]`, padded to whole panels.
    scores: Vec<f32>,
    /// `[MAX_ROWS, head_channels]`, padded to whole panels.
    sums: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Maps of queries, keys and values, and the biases of every head.
#[derive(Clone, Copy)]
pub(super) struct Operands<'a> {
    pub(super) q: &'a [f32],
    pub(super) k: &'a [f32],
    pub(super) v: &'a [f32],
    #[cfg(feature = "text")]
    pub(super) bias: &'a [f32],
}

/// Computes this member's share of the attention of one image.
pub(super) fn attention(op: &Attention, operands: Operands, y: Shared, member: &Member) {
    let positions = op.y.pixels();
    let parts = member.count.div_ceil(op.heads);
    for item in member.share(op.heads * parts) {
        let (head, part) = (item / parts, item % parts);
        let queries = positions * part / parts..positions * (part + 1) / parts;
        SCRATCH.with_borrow_mut(|scratch| {
            Arch::new().dispatch(Head { op, operands, y, head, queries, scratch });
        });
    }
}

struct Head<'a> {
    op: &'a Attention,
    operands: Operands<'a>,
    y: Shared<'a>,
    head: usize,
    queries: std::ops::Range<usize>,
    scratch: &'a mut Scratch,
}

impl WithSimd for Head<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if panel_vectors::<S>() == 4 { self.run::<S, 4>(simd) } else { self.run::<S, 2>(simd) }
    }
}

/// Packs a matrix of `rows` by `columns` into panels of `width` columns; the last panel is padded with zeros.
#[inline(always)]
fn pack(panels: &mut Vec<f32>, [rows, columns, width]: [usize; 3], value: impl Fn(usize, usize) -> f32) {
    panels.clear();
    for first in (0..columns).step_by(width) {
        for row in 0..rows {
            let own = (first..columns.min(first + width)).map(|column| value(row, column));
            panels.extend(own);
            panels.resize(panels.len().next_multiple_of(width), 0.0);
        }
    }
}

impl Head<'_> {
    #[inline(always)]
    fn run<S: Simd, const N: usize>(self, simd: S) {
        let width = N * S::F32_LANES;
        let Self { op, operands, y, head, queries, scratch } = self;
        let (positions, depth) = (op.keys(), op.padded_channels());
        let place = |of: Channels, position: usize| position * of.map.channels + of.first + head * depth;
        let Operands { q, k, v, .. } = operands;
        pack(&mut scratch.keys, [depth, positions, width], |channel, position| {
            k[place(op.k, position) + channel]
        });
        pack(&mut scratch.values, [positions, depth, width], |position, channel| {
            v[place(op.v, position) + channel]
        });
        let (score_len, sum_len) = (positions.next_multiple_of(width), depth.next_multiple_of(width));
        scratch.scores.resize(MAX_ROWS * score_len, 0.0);
        scratch.sums.resize(MAX_ROWS * sum_len, 0.0);

        for first in queries.clone().step_by(MAX_ROWS) {
            // Rows past the last query repeat the last query.
            let query = |m: usize| (first + m).min(queries.end - 1);
            let rows = std::array::from_fn(|m| q[place(op.q, query(m))..][..depth].as_ptr());
            product::<S, N>(simd, rows, depth, &scratch.keys, &mut scratch.scores, score_len);
            let mut totals = [0.0; MAX_ROWS];
            #[cfg(feature = "text")]
            for (m, scores) in scratch.scores.chunks_exact_mut(score_len).enumerate() {
                add_bias(op, operands.bias, head, query(m), &mut scores[..positions]);
            }
            for (total, scores) in totals.iter_mut().zip(scratch.scores.chunks_exact_mut(score_len)) {
                *total = soften(&mut scores[..positions], op.scale);
            }
            let rows = std::array::from_fn(|m| scratch.scores[m * score_len..][..positions].as_ptr());
            product::<S, N>(simd, rows, positions, &scratch.values, &mut scratch.sums, sum_len);
            for (m, total) in totals.iter().enumerate().take(queries.end - first) {
                let place = (first + m) * op.y.channels + head * depth;
                // SAFETY: only this member writes these queries of this head.
                let y = unsafe { y.write(place, depth) };
                let sums = &scratch.sums[m * sum_len..][..depth];
                y.iter_mut().zip(sums).for_each(|(y, sum)| *y = sum / total);
            }
        }
    }
}

/// Adds the biases of a query to its scores, before these are scaled.
#[cfg(feature = "text")]
#[inline(always)]
fn add_bias(op: &Attention, biases: &[f32], head: usize, query: usize, scores: &mut [f32]) {
    let Some(of_head) = op.bias else { return };
    // The first bias is that of the first key and the last query.
    let first = head * of_head.pitch + op.y.pixels() - 1 - query;
    let biases = biases[first..][..scores.len()].iter().map(|bias| bias / op.scale);
    scores.iter_mut().zip(biases).for_each(|(score, bias)| *score += bias);
}

/// Multiplies rows of `depth` values by panels into `out`, `[MAX_ROWS, pitch]`.
#[inline(always)]
fn product<S: Simd, const N: usize>(
    simd: S,
    rows: [*const f32; MAX_ROWS],
    depth: usize,
    panels: &[f32],
    out: &mut [f32],
    pitch: usize,
) {
    let width = N * S::F32_LANES;
    for (panel, values) in panels.chunks_exact(depth * width).enumerate() {
        let part = Part { rows, depth, panel: values };
        // SAFETY: the callers slice every row to this depth.
        let sums = unsafe { multiply(simd, part, [[simd.splat_f32s(0.0); N]; MAX_ROWS]) };
        for (m, sums) in sums.iter().enumerate() {
            let out = &mut out[m * pitch + panel * width..][..width];
            for (out, sum) in out.chunks_exact_mut(S::F32_LANES).zip(sums) {
                // SAFETY: the chunk is as long as a vector.
                unsafe { out.as_mut_ptr().cast::<S::f32s>().write_unaligned(*sum) };
            }
        }
    }
}

/// Replaces scores by `exp(scale * (score - largest))`. Returns their sum.
#[inline(always)]
fn soften(scores: &mut [f32], scale: f32) -> f32 {
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut total = [0.0; 16];
    for scores in scores.chunks_mut(total.len()) {
        for (score, total) in scores.iter_mut().zip(&mut total) {
            *score = exp(scale * (*score - largest));
            *total += *score;
        }
    }
    total.iter().sum()
}
