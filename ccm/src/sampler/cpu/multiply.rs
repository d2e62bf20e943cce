//! The matrix product inside convolution and attention: `M` rows of the left matrix times one panel of the right.
//!
//! The rows may be anywhere in memory; a panel is `N` vectors wide. The sums stay in registers while values of the
//! rows are broadcast. `M` and `N` are chosen for the number of registers.

use pulp::Simd;

/// Rows of the largest tile. Wasm engines reserve one of 16 registers and have no fused multiply-add.
pub(super) const MAX_ROWS: usize = if cfg!(target_arch = "wasm32") { 4 } else { 6 };

/// Rows of the tile for the pixels that the largest tiles leave over; any rest is computed row by row. Nearly all maps
/// have a multiple of 4 pixels.
pub(super) const TAIL_ROWS: usize = if MAX_ROWS == 4 { 1 } else { 4 };

/// Vectors of columns of the widest tile whose sums fit in registers.
#[inline(always)]
pub(super) fn panel_vectors<S: Simd>() -> usize {
    // pulp assumes 32 registers for wasm, but on most machines wasm engines have 16.
    if S::REGISTER_COUNT >= 32 && !cfg!(target_arch = "wasm32") { 4 } else { 2 }
}

/// A part of the sum: rows of the left matrix, each `depth` values long, and the panel to multiply them by.
#[derive(Clone, Copy)]
pub(super) struct Part<'a, const M: usize> {
    /// Start of each row.
    pub(super) rows: [*const f32; M],
    /// Number of values in each row.
    pub(super) depth: usize,
    /// `[depth, N]` vectors.
    pub(super) panel: &'a [f32],
}

/// Adds the products of `part` to the sums of a tile.
///
/// The sums are passed by value: if they were borrowed, the compiler would store every sum at every step.
///
/// # Safety
/// Every row is `depth` values long.
#[inline(always)]
pub(super) unsafe fn multiply<S: Simd, const M: usize, const N: usize>(
    simd: S,
    part: Part<M>,
    mut sums: [[S::f32s; N]; M],
) -> [[S::f32s; N]; M] {
    let width = N * S::F32_LANES;
    let Part { rows, depth, panel } = part;
    assert!(panel.len() >= depth * width);
    let mut panel = panel.as_ptr();
    for k in 0..depth {
        // SAFETY: the assertion bounds the panel; the caller promises the length of the rows.
        unsafe {
            let mut columns = [simd.splat_f32s(0.0); N];
            for (n, column) in columns.iter_mut().enumerate() {
                *column = panel.add(n * S::F32_LANES).cast::<S::f32s>().read_unaligned();
            }
            for (row, sums) in rows.iter().zip(sums.iter_mut()) {
                let factor = simd.splat_f32s(*row.add(k));
                for (sum, column) in sums.iter_mut().zip(&columns) {
                    *sum = simd.mul_add_e_f32s(factor, *column, *sum);
                }
            }
            panel = panel.add(width);
        }
    }
    sums
}
