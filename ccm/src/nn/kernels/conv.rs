//! 3x3 and 1x1 convolutions on the CPU, and their input gradients.
//!
//! There is no im2col. Each image is copied once into a zero-padded buffer. Each tap of the kernel reads the same
//! plane of this buffer at its own offset, so a convolution is a matrix product whose right-hand rows overlap in
//! memory. The inner loop computes a register tile of `M` output channels by `N` vectors of pixels, with broadcast
//! weights. Tiles run over whole padded rows; values outside the output are dropped when a tile is written back.
//! For stride 2 the buffer has four planes per channel, one for each parity of row and column. The input gradient
//! is a convolution with the kernel flipped and its channels swapped.
//!
//! With operands in bfloat16, a position of the buffer holds two channels ([`super::product`]).

use std::cell::RefCell;

use rayon::prelude::*;

use super::product::{Computation, LANES, Operands, Pair, Product, SLACK, Word};

/// Sizes of a convolution of a batch. Zero padding is `kernel / 2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvShape {
    /// Number of images.
    pub batch: usize,
    /// Input channels.
    pub in_channels: usize,
    /// Output channels.
    pub out_channels: usize,
    /// Height of the input in pixels.
    pub height: usize,
    /// Width of the input in pixels.
    pub width: usize,
    /// Side of the kernel: 1 or 3.
    pub kernel: usize,
    /// Stride: 1, or 2 with a 3x3 kernel.
    pub stride: usize,
}

impl ConvShape {
    /// Height of the output.
    pub fn out_height(&self) -> usize {
        (self.height - 1) / self.stride + 1
    }

    /// Width of the output.
    pub fn out_width(&self) -> usize {
        (self.width - 1) / self.stride + 1
    }

    pub(super) fn in_image(&self) -> usize {
        self.in_channels * self.height * self.width
    }

    pub(super) fn out_image(&self) -> usize {
        self.out_channels * self.out_height() * self.out_width()
    }

    pub(super) fn taps(&self) -> usize {
        self.kernel * self.kernel
    }

    /// Number of values of the weight, `[out_channels, in_channels, kernel, kernel]`.
    pub fn weight_len(&self) -> usize {
        self.out_channels * self.in_channels * self.taps()
    }

    pub(super) fn check(&self, x: usize, weight: usize, y: usize) {
        assert!(matches!((self.kernel, self.stride), (1 | 3, 1) | (3, 2)), "no such convolution: {self:?}");
        assert_eq!(x, self.batch * self.in_image(), "input of {self:?}");
        assert_eq!(weight, self.weight_len(), "weight of {self:?}");
        assert_eq!(y, self.batch * self.out_image(), "output of {self:?}");
    }
}

/// `y = conv(x, weight) + bias`.
///
/// # Shapes
/// - `x`: `[batch, in_channels, height, width]`
/// - `weight`: `[out_channels, in_channels, kernel, kernel]`
/// - `bias`: `[out_channels]`, or `[batch, out_channels]` for one bias per image
/// - `y`: `[batch, out_channels, out_height, out_width]`
pub fn conv(shape: &ConvShape, operands: Operands, x: &[f32], weight: &[f32], bias: &[f32], y: &mut [f32]) {
    match operands {
        Operands::F32 => conv_of::<f32>(shape, x, weight, bias, y),
        Operands::Bf16 => conv_of::<Pair>(shape, x, weight, bias, y),
    }
}

fn conv_of<W: Word>(shape: &ConvShape, x: &[f32], weight: &[f32], bias: &[f32], y: &mut [f32]) {
    shape.check(x.len(), weight.len(), y.len());
    let per_image = bias.len() == shape.batch * shape.out_channels;
    assert!(per_image || bias.len() == shape.out_channels, "bias of {shape:?}");
    let grid = Grid::new(shape.height, shape.width, shape.kernel, shape.stride);
    let weight = PackedWeight::<W>::new(shape, |co, ci, tap| {
        weight[(co * shape.in_channels + ci) * shape.taps() + tap]
    });
    y.par_chunks_mut(shape.out_image()).zip(x.par_chunks(shape.in_image())).enumerate().for_each(
        |(image, (y, x))| {
            let bias = if per_image { &bias[image * shape.out_channels..] } else { bias };
            SCRATCH.with_borrow_mut(|Scratch { input, pairs, tile }| {
                grid.pad(x, shape.in_channels, input);
                let input = W::of_rows(input, shape.in_channels, grid.plane, pairs);
                grid.multiply(&weight, input, bias, tile, y);
            });
        },
    );
}

/// Computes the gradient `dx` of the input from the gradient `dy` of the output.
///
/// # Shapes
/// As in [`conv`]; `dx` has the shape of `x`, `dy` that of `y`.
pub fn conv_input_gradient(
    shape: &ConvShape,
    operands: Operands,
    weight: &[f32],
    dy: &[f32],
    dx: &mut [f32],
) {
    match operands {
        Operands::F32 => input_gradient_of::<f32>(shape, weight, dy, dx),
        Operands::Bf16 => input_gradient_of::<Pair>(shape, weight, dy, dx),
    }
}

fn input_gradient_of<W: Word>(shape: &ConvShape, weight: &[f32], dy: &[f32], dx: &mut [f32]) {
    shape.check(dx.len(), weight.len(), dy.len());
    let turned =
        ConvShape { in_channels: shape.out_channels, out_channels: shape.in_channels, stride: 1, ..*shape };
    let taps = shape.taps();
    let grid = Grid::new(shape.height, shape.width, shape.kernel, 1);
    let weight = PackedWeight::<W>::new(&turned, |ci, co, tap| {
        weight[(co * shape.in_channels + ci) * taps + taps - 1 - tap]
    });
    let bias = vec![0.0; shape.in_channels];
    dx.par_chunks_mut(shape.in_image()).zip(dy.par_chunks(shape.out_image())).for_each(|(dx, dy)| {
        SCRATCH.with_borrow_mut(|Scratch { input, pairs, tile }| {
            if shape.stride == 1 {
                grid.pad(dy, shape.out_channels, input);
            } else {
                grid.pad_spread(dy, shape, input);
            }
            let input = W::of_rows(input, shape.out_channels, grid.plane, pairs);
            grid.multiply(&weight, input, &bias, tile, dx);
        });
    });
}

#[derive(Default)]
struct Scratch {
    input: Vec<f32>,
    pairs: Vec<Pair>,
    tile: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Memory layout of a padded image, and the offset that each tap of the kernel reads at.
pub(super) struct Grid {
    in_height: usize,
    in_width: usize,
    pub(super) out_height: usize,
    pub(super) out_width: usize,
    border: usize,
    stride: usize,
    /// Distance between rows, in values.
    pub(super) pitch: usize,
    /// Distance between the planes of two parities; the size of a channel if the stride is 1.
    phase: usize,
    /// Distance between channels.
    pub(super) plane: usize,
    /// Offset of each tap from the output position.
    pub(super) taps: Vec<usize>,
}

impl Grid {
    pub(super) fn new(in_height: usize, in_width: usize, kernel: usize, stride: usize) -> Self {
        let border = kernel / 2;
        let pitch = (in_width + 2 * border).div_ceil(stride);
        let phase = pitch * (in_height + 2 * border).div_ceil(stride);
        let tap = |ky: usize, kx: usize| {
            (ky % stride * stride + kx % stride) * phase + ky / stride * pitch + kx / stride
        };
        Self {
            in_height,
            in_width,
            out_height: (in_height - 1) / stride + 1,
            out_width: (in_width - 1) / stride + 1,
            border,
            stride,
            pitch,
            phase,
            plane: phase * stride * stride,
            taps: (0..kernel).flat_map(|ky| (0..kernel).map(move |kx| tap(ky, kx))).collect(),
        }
    }

    fn clear(&self, channels: usize, padded: &mut Vec<f32>) {
        padded.clear();
        // Tiles read whole vectors, also beyond the last plane.
        padded.resize(channels * self.plane + SLACK, 0.0);
    }

    /// Copies an image `[channels, height, width]` into the padded buffer.
    pub(super) fn pad(&self, x: &[f32], channels: usize, padded: &mut Vec<f32>) {
        self.clear(channels, padded);
        let image = self.in_height * self.in_width;
        for (x, plane) in x.chunks(image).zip(padded.chunks_mut(self.plane)) {
            for (y, row) in x.chunks(self.in_width).enumerate() {
                let y = y + self.border;
                if self.stride == 1 {
                    let start = y * self.pitch + self.border;
                    plane[start..start + self.in_width].copy_from_slice(row);
                } else {
                    let start = (y % 2 * 2) * self.phase + y / 2 * self.pitch;
                    for (x, &value) in row.iter().enumerate() {
                        let x = x + self.border;
                        plane[start + x % 2 * self.phase + x / 2] = value;
                    }
                }
            }
        }
    }

    /// Copies the output gradient of a stride-2 convolution to every second position of the padded buffer.
    fn pad_spread(&self, dy: &[f32], shape: &ConvShape, padded: &mut Vec<f32>) {
        self.clear(shape.out_channels, padded);
        let (height, width) = (shape.out_height(), shape.out_width());
        for (dy, plane) in dy.chunks(height * width).zip(padded.chunks_mut(self.plane)) {
            for (y, row) in dy.chunks(width).enumerate() {
                let start = (2 * y + self.border) * self.pitch + self.border;
                for (value, place) in row.iter().zip(plane[start..].iter_mut().step_by(2)) {
                    *place = *value;
                }
            }
        }
    }

    /// Number of output rows per block, so that the input of a block fits in the L2 cache.
    fn rows_per_block(&self, planes: usize) -> usize {
        const BLOCK_WORDS: usize = 96 * 1024;
        (BLOCK_WORDS / (planes * self.pitch * self.stride * self.stride)).clamp(1, self.out_height)
    }

    /// Convolves one padded image: `y = weight * padded + bias`.
    fn multiply<W: Word>(
        &self,
        weight: &PackedWeight<W>,
        padded: &[W],
        bias: &[f32],
        tile: &mut Vec<f32>,
        y: &mut [f32],
    ) {
        let block = self.rows_per_block(weight.planes);
        let out_plane = self.out_height * self.out_width;
        for first in (0..self.out_height).step_by(block) {
            let rows = block.min(self.out_height - first);
            let span = (rows - 1) * self.pitch + self.out_width;
            let tile_pitch = span.next_multiple_of(LANES) + 2 * LANES;
            tile.resize(weight.tile * tile_pitch, 0.0);
            for co in (0..weight.out_channels).step_by(weight.tile) {
                let input = &padded[first * self.pitch..];
                W::dispatch(Strip { grid: self, weight, co, input, span, out: tile, out_pitch: tile_pitch });
                for (row, channel) in (co..weight.out_channels.min(co + weight.tile)).enumerate() {
                    let start = channel * out_plane + first * self.out_width;
                    let y = &mut y[start..start + rows * self.out_width];
                    for (line, y) in y.chunks_mut(self.out_width).enumerate() {
                        let start = row * tile_pitch + line * self.pitch;
                        for (y, value) in y.iter_mut().zip(&tile[start..]) {
                            *y = value + bias[channel];
                        }
                    }
                }
            }
        }
    }
}

/// A kernel packed into tiles of output channels, each `[planes * taps, tile]`; a plane is one word of input channels. The
/// last tile and the last word are zero-padded.
struct PackedWeight<W> {
    words: Vec<W>,
    /// Output channels of a register tile. The tile's sums leave a few vector registers free for inputs and weights.
    tile: usize,
    planes: usize,
    out_channels: usize,
    rows: usize,
}

impl<W: Word> PackedWeight<W> {
    /// `at` gives the weight of an output channel, an input channel and a tap.
    fn new(shape: &ConvShape, at: impl Fn(usize, usize, usize) -> f32) -> Self {
        let tile = if W::wide() { 8 } else { 4 };
        let (taps, planes) = (shape.taps(), shape.in_channels.div_ceil(W::VALUES));
        let rows = planes * taps;
        let mut words = vec![W::default(); shape.out_channels.next_multiple_of(tile) * rows];
        for co in 0..shape.out_channels {
            let start = co / tile * tile * rows + co % tile;
            for plane in 0..planes {
                for tap in 0..taps {
                    let value = |place: usize| match plane * W::VALUES + place {
                        ci if place < W::VALUES && ci < shape.in_channels => at(co, ci, tap),
                        _ => 0.0,
                    };
                    words[start + (plane * taps + tap) * tile] = W::of([value(0), value(1)]);
                }
            }
        }
        Self { words, tile, planes, out_channels: shape.out_channels, rows }
    }
}

/// Computes one tile of output channels for `span` consecutive positions.
struct Strip<'a, W> {
    grid: &'a Grid,
    weight: &'a PackedWeight<W>,
    co: usize,
    input: &'a [W],
    span: usize,
    out: &'a mut [f32],
    out_pitch: usize,
}

impl<W: Word> Computation<W> for Strip<'_, W> {
    #[inline(always)]
    fn run<P: Product<Word = W>>(mut self, product: P) {
        let channels = self.weight.out_channels - self.co;
        match (P::WIDE, channels) {
            (true, 1) => self.channels::<P, 8, 1>(product),
            (true, 2..=4) => self.channels::<P, 8, 4>(product),
            (true, _) => self.channels::<P, 8, 8>(product),
            (false, 1) => self.channels::<P, 4, 1>(product),
            (false, _) => self.channels::<P, 4, 4>(product),
        }
    }
}

impl<W: Word> Strip<'_, W> {
    /// Computes the first `M` of the tile's `TILE` channels.
    #[inline(always)]
    fn channels<P: Product<Word = W>, const TILE: usize, const M: usize>(&mut self, product: P) {
        let mut position = 0;
        while position < self.span {
            match (self.span - position).div_ceil(P::LANES) {
                1 => self.tile::<P, TILE, M, 1>(product, position),
                2 => self.tile::<P, TILE, M, 2>(product, position),
                _ => self.tile::<P, TILE, M, 3>(product, position),
            };
            position += 3 * P::LANES;
        }
    }

    #[inline(always)]
    fn tile<P: Product<Word = W>, const TILE: usize, const M: usize, const N: usize>(
        &mut self,
        product: P,
        position: usize,
    ) {
        let last_tap = self.grid.taps.iter().max().copied().unwrap_or(0);
        let last_read = (self.weight.planes - 1) * self.grid.plane + last_tap + position + N * P::LANES;
        let weight = &self.weight.words[self.co * self.weight.rows..];
        assert!(last_read <= self.input.len());
        assert!(weight.len() >= self.weight.rows * TILE && M <= TILE);
        assert!((M - 1) * self.out_pitch + position + N * P::LANES <= self.out.len());
        let mut sums = [[product.zero(); N]; M];
        let mut weight = weight.as_ptr();
        for plane in 0..self.weight.planes {
            for &tap in &self.grid.taps {
                // SAFETY: the assertions above bound every read through these pointers.
                unsafe {
                    let row = self.input.as_ptr().add(plane * self.grid.plane + tap + position);
                    let mut pixels = [product.splat(W::default()); N];
                    for (n, vector) in pixels.iter_mut().enumerate() {
                        *vector = product.load(row.add(n * P::LANES));
                    }
                    for (m, sums) in sums.iter_mut().enumerate() {
                        let factor = product.splat(*weight.add(m));
                        for (sum, pixels) in sums.iter_mut().zip(&pixels) {
                            *sum = product.add_product(factor, *pixels, *sum);
                        }
                    }
                    weight = weight.add(TILE);
                }
            }
        }
        for (m, sums) in sums.iter().enumerate() {
            for (n, sum) in sums.iter().enumerate() {
                let place = m * self.out_pitch + position + n * P::LANES;
                // SAFETY: the third assertion bounds the write.
                unsafe { product.store(*sum, self.out.as_mut_ptr().add(place)) };
            }
        }
    }
}
