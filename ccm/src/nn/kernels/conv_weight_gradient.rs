//! The gradient of a convolution's weight on the CPU.
//!
//! For each tap of the kernel the gradient is a matrix product, input channels by output channels, summed over the
//! pixels. Input and output gradient are first transposed to make the channels of a pixel contiguous. The inner
//! loop sums a register tile of `M` input channels by `N` vectors of output channels.
//!
//! With operands in bfloat16 it takes two neighbouring pixels of a line at once ([`super::product`]).

use std::cell::RefCell;

use pulp::Arch;
use rayon::prelude::*;

use super::conv::{ConvShape, Grid};
use super::product::{Computation, LANES, Operands, Pair, Product, Word};

#[derive(Default)]
struct Scratch {
    input: Vec<f32>,
    x_pixels: Vec<f32>,
    x_pairs: Vec<Pair>,
    dy_lines: Vec<f32>,
    dy_pixels: Vec<f32>,
    dy_pairs: Vec<Pair>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Largest number of groups that a batch is split into; each group is summed in order. It does not depend on the
/// number of threads, so that results are reproducible.
const RUNS: usize = 8;

/// Computes the gradient `dweight` of the weight from the gradient `dy` of the output.
///
/// # Shapes
/// As in [`super::conv::conv`]; `dweight` has the shape of `weight`, `dy` that of `y`.
pub fn conv_weight_gradient(
    shape: &ConvShape,
    operands: Operands,
    x: &[f32],
    dy: &[f32],
    dweight: &mut [f32],
) {
    match operands {
        Operands::F32 => weight_gradient_of::<f32>(shape, x, dy, dweight),
        Operands::Bf16 => weight_gradient_of::<Pair>(shape, x, dy, dweight),
    }
}

fn weight_gradient_of<W: Word>(shape: &ConvShape, x: &[f32], dy: &[f32], dweight: &mut [f32]) {
    shape.check(x.len(), dweight.len(), dy.len());
    let grid = Grid::new(shape.height, shape.width, shape.kernel, shape.stride);
    let rows = shape.in_channels.next_multiple_of(GRADIENT_ROWS);
    let columns = shape.out_channels.next_multiple_of(LANES);
    let images = shape.batch.div_ceil(RUNS);
    let mut sums: Vec<Vec<f32>> = x
        .par_chunks(shape.in_image() * images)
        .zip(dy.par_chunks(shape.out_image() * images))
        .map(|(x, dy)| {
            let mut sum = vec![0.0; shape.taps() * rows * columns];
            SCRATCH.with_borrow_mut(|scratch| {
                for (x, dy) in x.chunks(shape.in_image()).zip(dy.chunks(shape.out_image())) {
                    add_gradient::<W>(shape, &grid, x, dy, scratch, &mut sum);
                }
            });
            sum
        })
        .collect();
    // Both passes read memory in order: large layers of few pixels spend as much time here as in the products.
    let Some((total, others)) = sums.split_first_mut() else { return dweight.fill(0.0) };
    total.par_chunks_mut(PART).enumerate().for_each(|(part, total)| {
        for other in &*others {
            total.iter_mut().zip(&other[part * PART..]).for_each(|(total, value)| *total += value);
        }
    });
    let row = shape.taps() * rows;
    let mut by_output = Vec::new();
    transpose(total, row, row, &mut by_output);
    dweight.par_chunks_mut(shape.in_channels * shape.taps()).zip(by_output.par_chunks(row)).for_each(
        |(dweight, sum)| {
            for (ci, dweight) in dweight.chunks_mut(shape.taps()).enumerate() {
                dweight.iter_mut().zip(sum[ci..].iter().step_by(rows)).for_each(|(to, from)| *to = *from);
            }
        },
    );
}

/// Adds the weight gradient of one image to `sum`, `[taps, rows, columns]`.
fn add_gradient<W: Word>(
    shape: &ConvShape,
    grid: &Grid,
    x: &[f32],
    dy: &[f32],
    scratch: &mut Scratch,
    sum: &mut [f32],
) {
    let Scratch { input, x_pixels, x_pairs, dy_lines, dy_pixels, dy_pairs } = scratch;
    let rows = shape.in_channels.next_multiple_of(GRADIENT_ROWS);
    let columns = shape.out_channels.next_multiple_of(LANES);
    grid.pad(x, shape.in_channels, input);
    transpose(&input[..shape.in_channels * grid.plane], shape.in_channels, rows, x_pixels);

    let dy = whole_words::<W>(dy, grid.out_width, dy_lines);
    transpose(dy, shape.out_channels, columns, dy_pixels);
    let positions = dy.len() / shape.out_channels;
    W::dispatch(WeightGradient {
        grid,
        x: W::of_each_row(x_pixels, rows, x_pairs),
        rows,
        dy: W::of_rows(dy_pixels, positions, columns, dy_pairs),
        columns,
        sum,
    });
}

/// Lines of `width` values, each padded with zeros to whole words.
fn whole_words<'a, W: Word>(dy: &'a [f32], width: usize, lines: &'a mut Vec<f32>) -> &'a [f32] {
    let whole = width.next_multiple_of(W::VALUES);
    if whole == width {
        return dy;
    }
    lines.clear();
    lines.resize(dy.len() / width * whole, 0.0);
    for (dy, line) in dy.chunks(width).zip(lines.chunks_mut(whole)) {
        line[..width].copy_from_slice(dy);
    }
    lines
}

/// Number of values of the sums that are added at once.
const PART: usize = 4096;

/// Input channels of the smallest register tile; a wide tile has twice as many.
const GRADIENT_ROWS: usize = 4;

/// Transposes `[channels, positions]` to `[positions, columns]`, padded with zeros.
fn transpose(x: &[f32], channels: usize, columns: usize, out: &mut Vec<f32>) {
    let positions = x.len() / channels;
    out.resize(positions * columns, 0.0);
    Arch::new().dispatch(
        #[inline(always)]
        || {
            for first in (0..columns).step_by(BLOCK) {
                let rows = &x[(first * positions).min(x.len())..((first + BLOCK) * positions).min(x.len())];
                let width = BLOCK.min(columns - first);
                for start in (0..positions).step_by(BLOCK) {
                    let run = BLOCK.min(positions - start);
                    transpose_block(
                        rows,
                        positions,
                        start..start + run,
                        width,
                        &mut out[start * columns + first..],
                        columns,
                    );
                }
            }
        },
    );
}

/// Side of the square blocks of [`transpose`]. A block stays in registers if there are enough.
const BLOCK: usize = 16;

/// Transposes one block: columns `range` of `rows`, each `positions` long, to rows of `width` values in `out`, `pitch`
/// apart.
#[inline(always)]
fn transpose_block(
    rows: &[f32],
    positions: usize,
    range: std::ops::Range<usize>,
    width: usize,
    out: &mut [f32],
    pitch: usize,
) {
    let mut block = [[0.0; BLOCK]; BLOCK];
    for (row, block) in rows.chunks_exact(positions).zip(&mut block) {
        block[..range.len()].copy_from_slice(&row[range.clone()]);
    }
    for (position, out) in out.chunks_mut(pitch).take(range.len()).enumerate() {
        for (value, row) in out[..width].iter_mut().zip(&block) {
            *value = row[position];
        }
    }
}

/// Adds the weight gradient of one image to `sum`, `[taps, rows, columns]`.
struct WeightGradient<'a, W> {
    grid: &'a Grid,
    /// The padded input, `[plane, rows]`; a word begins at each position.
    x: &'a [W],
    /// Input channels, rounded up to whole tiles.
    rows: usize,
    /// The gradient of the output, `[out_height * words of a line, columns]`.
    dy: &'a [W],
    /// Output channels, rounded up to whole vectors.
    columns: usize,
    sum: &'a mut [f32],
}

impl<W: Word> Computation<W> for WeightGradient<'_, W> {
    #[inline(always)]
    fn run<P: Product<Word = W>>(mut self, product: P) {
        for tap in 0..self.grid.taps.len() {
            let mut row = 0;
            while row < self.rows {
                // The widest tile that the registers and the remaining channels allow.
                let wide = P::WIDE && self.rows - row >= 2 * GRADIENT_ROWS;
                let mut column = 0;
                while column < self.columns {
                    let pair = self.columns - column >= 2 * P::LANES;
                    match (wide, pair) {
                        (true, true) => self.tile::<P, 8, 2>(product, tap, row, column),
                        (true, false) => self.tile::<P, 8, 1>(product, tap, row, column),
                        (false, true) => self.tile::<P, 4, 2>(product, tap, row, column),
                        (false, false) => self.tile::<P, 4, 1>(product, tap, row, column),
                    }
                    column += if pair { 2 * P::LANES } else { P::LANES };
                }
                row += if wide { 8 } else { 4 };
            }
        }
    }
}

impl<W: Word> WeightGradient<'_, W> {
    #[inline(always)]
    fn tile<P: Product<Word = W>, const M: usize, const N: usize>(
        &mut self,
        product: P,
        tap: usize,
        row: usize,
        column: usize,
    ) {
        let (height, width) = (self.grid.out_height, self.grid.out_width);
        let words = width.div_ceil(W::VALUES);
        let offset = self.grid.taps[tap];
        assert!((offset + (height - 1) * self.grid.pitch + width) * self.rows <= self.x.len());
        assert!(height * words * self.columns <= self.dy.len());
        assert!(row + M <= self.rows && column + N * P::LANES <= self.columns);
        let mut sums = [[product.zero(); N]; M];
        for line in 0..height {
            let mut x = self.x[(offset + line * self.grid.pitch) * self.rows + row..].as_ptr();
            let mut dy = self.dy[line * words * self.columns + column..].as_ptr();
            for _ in 0..words {
                // SAFETY: the assertions above bound every read from both matrices.
                unsafe {
                    let mut gradients = [product.splat(W::default()); N];
                    for (n, vector) in gradients.iter_mut().enumerate() {
                        *vector = product.load(dy.add(n * P::LANES));
                    }
                    for (m, sums) in sums.iter_mut().enumerate() {
                        let factor = product.splat(*x.add(m));
                        for (sum, gradients) in sums.iter_mut().zip(&gradients) {
                            *sum = product.add_product(factor, *gradients, *sum);
                        }
                    }
                }
                x = x.wrapping_add(self.rows * W::VALUES);
                dy = dy.wrapping_add(self.columns);
            }
        }
        for (m, sums) in sums.iter().enumerate() {
            for (n, sum) in sums.iter().enumerate() {
                let start = (tap * self.rows + row + m) * self.columns + column + n * P::LANES;
                let place = &mut self.sum[start..start + P::LANES];
                // SAFETY: the slice is as long as the vector.
                unsafe { product.add_to(*sum, place.as_mut_ptr()) };
            }
        }
    }
}
