//! `y = conv(x) + bias + residual`. GPU version: `shaders/src/conv.wgsl`.
//!
//! Indirect convolution (Dukhan, arXiv 1907.02129): a matrix product whose left rows are read through pointers. For
//! every output pixel and tap, a pointer leads to the input pixel, or to zeros outside the map. Nothing is copied or
//! padded; stride, upsampling and a second input only change the pointers.

use pulp::{Simd, WithSimd};

use super::arch::Arch;
use super::multiply::{MAX_ROWS, Part, TAIL_ROWS, multiply, panel_vectors};
use super::shared::{Member, Shared};
use crate::sampler::plan::{Conv, ConvWeight};
#[cfg(feature = "text")]
use crate::weights::GROUP;
use crate::weights::Values;

/// A weight as panels of output channels, each `[taps, in_channels, width]`.
pub(super) struct PackedWeight {
    panels: Vec<Panel>,
    values: Values,
}

#[derive(Clone, Copy)]
struct Panel {
    /// The first output channel.
    channel: usize,
    /// Number of vectors of output channels.
    vectors: usize,
    /// Position in the packed values.
    start: usize,
    /// Number of values for each input channel of each tap.
    width: usize,
}

/// Vectors of the widest panel, and values in a vector, on this machine.
fn panel_shape() -> (usize, usize) {
    struct Shape;
    impl WithSimd for Shape {
        type Output = (usize, usize);
        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> (usize, usize) {
            (panel_vectors::<S>(), S::F32_LANES)
        }
    }
    Arch::new().dispatch(Shape)
}

impl PackedWeight {
    pub(super) fn new(weight: ConvWeight) -> Self {
        let (widest, lanes) = panel_shape();
        let rows = weight.kernel * weight.kernel * weight.in_channels;
        let (mut panels, mut start) = (Vec::new(), 0);
        let mut channel = 0;
        while channel < weight.out_channels {
            let left = (weight.out_channels - channel).div_ceil(lanes);
            // 4, 2 or 1: the kernels are compiled for these widths.
            let vectors = widest.min(1 << left.ilog2());
            let width = vectors * lanes;
            panels.push(Panel { channel, vectors, start, width });
            start += rows * width;
            channel += width;
        }
        let values = match &weight.values {
            Values::F32(values) => Values::F32(packed(values, weight.out_channels, &panels)),
            #[cfg(feature = "text")]
            Values::F16(values) => Values::F16(packed(values, weight.out_channels, &panels)),
            #[cfg(feature = "text")]
            Values::Q8 { bytes, scales } => {
                let mut scales = scales.clone();
                scales.resize(channel, 0.0);
                Values::Q8 { bytes: packed(bytes, weight.out_channels, &panels), scales }
            }
            #[cfg(feature = "text")]
            Values::Q4 { nibbles, scales } => {
                let numbers: Vec<u8> = nibbles.iter().flat_map(|byte| [byte & 15, byte >> 4]).collect();
                Values::Q4 {
                    nibbles: halved(&packed(&numbers, weight.out_channels, &panels), rows, &panels),
                    scales: packed(scales, weight.out_channels, &panels),
                }
            }
        };
        Self { panels, values }
    }

    /// Bytes of the packed values.
    pub(super) fn bytes(&self) -> usize {
        match &self.values {
            Values::F32(values) => 4 * values.len(),
            #[cfg(feature = "text")]
            Values::F16(values) => 2 * values.len(),
            #[cfg(feature = "text")]
            Values::Q8 { bytes, scales } => bytes.len() + 4 * scales.len(),
            #[cfg(feature = "text")]
            Values::Q4 { nibbles, scales } => nibbles.len() + 2 * scales.len(),
        }
    }
}

/// Packs numbers of four bits two a byte: the low bits of a row of a panel are its first half, the high bits its second half.
#[cfg(feature = "text")]
fn halved(numbers: &[u8], rows: usize, panels: &[Panel]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(numbers.len().div_ceil(2));
    for panel in panels {
        for row in numbers[panel.start..][..rows * panel.width].chunks_exact(panel.width) {
            let (low, high) = row.split_at(panel.width.div_ceil(2));
            bytes.extend(low.iter().enumerate().map(|(i, low)| low | high.get(i).unwrap_or(&0) << 4));
        }
    }
    bytes
}

/// Packs a matrix with rows of `out_channels` values into panels.
#[inline(never)]
fn packed<T: Copy + Default>(values: &[T], out_channels: usize, panels: &[Panel]) -> Vec<T> {
    let width: usize = panels.iter().map(|panel| panel.width).sum();
    let mut packed = Vec::with_capacity(values.len() / out_channels.max(1) * width);
    for panel in panels {
        for row in values.chunks_exact(out_channels) {
            let own = &row[panel.channel..row.len().min(panel.channel + panel.width)];
            packed.extend_from_slice(own);
            packed.resize(packed.len() + panel.width - own.len(), T::default());
        }
    }
    packed
}

#[cfg(feature = "text")]
thread_local! {
    /// A part of a panel in single precision.
    static EXPANDED: std::cell::RefCell<Vec<f32>> = std::cell::RefCell::default();
}

impl PackedWeight {
    /// Calls `use_rows` with the values of `rows` of a panel in single precision.
    #[inline(always)]
    fn with_rows(&self, panel: &Panel, rows: std::ops::Range<usize>, use_rows: impl Fn(&[f32])) {
        let place = panel.start + rows.start * panel.width..panel.start + rows.end * panel.width;
        match &self.values {
            Values::F32(values) => use_rows(&values[place]),
            #[cfg(feature = "text")]
            values => EXPANDED.with_borrow_mut(|expanded| {
                expanded.resize(place.len(), 0.0);
                expand(values, panel, place, expanded);
                use_rows(expanded);
            }),
        }
    }
}

/// Expands a part of the values of a panel to single precision.
#[cfg(feature = "text")]
fn expand(values: &Values, panel: &Panel, place: std::ops::Range<usize>, expanded: &mut [f32]) {
    match values {
        Values::F32(values) => expanded.copy_from_slice(&values[place]),
        Values::F16(values) => {
            use half::slice::HalfFloatSliceExt as _;
            values[place].convert_to_f32_slice(expanded);
        }
        Values::Q4 { nibbles, scales } => Arch::new().dispatch(
            #[inline(always)]
            || {
                use half::slice::HalfFloatSliceExt as _;
                let width = panel.width;
                // Only the last panel may have an odd width.
                let half = width.div_ceil(2);
                let first = (place.start - panel.start) / width;
                let mut scale = vec![0.0; width];
                let groups = expanded.chunks_mut(GROUP * width).enumerate();
                for (group, values) in groups {
                    let row = first + group * GROUP;
                    let of_group = panel.start / GROUP + row / GROUP * width;
                    scales[of_group..][..width].convert_to_f32_slice(&mut scale);
                    let (of_low, of_high) = scale.split_at(half);
                    let nibbles = nibbles[panel.start / 2 + row * half..].chunks_exact(half);
                    for (values, nibbles) in values.chunks_exact_mut(width).zip(nibbles) {
                        let (low, high) = values.split_at_mut(half);
                        for ((value, byte), scale) in low.iter_mut().zip(nibbles).zip(of_low) {
                            *value = (f32::from(byte & 15) - 8.0) * scale;
                        }
                        for ((value, byte), scale) in high.iter_mut().zip(nibbles).zip(of_high) {
                            *value = (f32::from(byte >> 4) - 8.0) * scale;
                        }
                    }
                }
            },
        ),
        Values::Q8 { bytes, scales } => Arch::new().dispatch(
            #[inline(always)]
            || {
                let scales = &scales[panel.channel..][..panel.width];
                let rows = bytes[place.clone()].chunks_exact(panel.width);
                for (bytes, values) in rows.zip(expanded.chunks_exact_mut(panel.width)) {
                    for ((value, byte), scale) in values.iter_mut().zip(bytes).zip(scales) {
                        *value = f32::from(*byte) * scale;
                    }
                }
            },
        ),
    }
}

/// Inputs and output of a convolution, for one image.
pub(super) struct Operands<'a> {
    /// One or two maps.
    pub(super) x: [&'a [f32]; 2],
    pub(super) weight: &'a PackedWeight,
    /// `[out_channels]`.
    pub(super) bias: &'a [f32],
    /// Added to the output: a map of the size of `y`, or of half that size.
    pub(super) residual: Option<&'a [f32]>,
    pub(super) y: Shared<'a>,
    /// Zeros, at least as many as either input has channels.
    pub(super) zeros: &'a [f32],
}

/// Computes this member's share of the convolution.
pub(super) fn conv(op: &Conv, operands: &Operands, member: &Member) {
    // Members share panels, so that each reads its own weights. With too few panels, they share pixels too.
    let panels = operands.weight.panels.len();
    let (mut groups, mut rest) = (panels, member.count);
    while rest > 0 {
        (groups, rest) = (rest, groups % rest);
    }
    let of_group = |count: usize, index: usize| index * count / groups..(index + 1) * count / groups;
    let columns = of_group(panels, member.index % groups);
    let sharers = member.count / groups;
    let place = member.index / groups;
    let pixels = op.y.pixels();
    let pixels = pixels * place / sharers..pixels * (place + 1) / sharers;
    let taps = op.kernel * op.kernel;
    for panel in &operands.weight.panels[columns] {
        let pass = (CACHED / (op.x.channels() * panel.width)).clamp(1, taps);
        for first in (0..taps).step_by(pass) {
            let taps = first..taps.min(first + pass);
            let rows = taps.start * op.x.channels()..taps.end * op.x.channels();
            operands.weight.with_rows(panel, rows, |values| {
                let (taps, pixels) = (taps.clone(), pixels.clone());
                Arch::new().dispatch(Strip { op, operands, panel, values, taps, pixels });
            });
        }
    }
}

/// Number of values of a panel that stay in the second-level cache while they are used for all pixels.
const CACHED: usize = 128 * 1024;

/// A run of pixels in one panel of output channels, and some of the taps.
struct Strip<'a> {
    op: &'a Conv,
    operands: &'a Operands<'a>,
    panel: &'a Panel,
    /// The values of the panel from the first of these taps on.
    values: &'a [f32],
    taps: std::ops::Range<usize>,
    pixels: std::ops::Range<usize>,
}

impl WithSimd for Strip<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match self.panel.vectors {
            1 => self.run::<S, 1>(simd),
            // A constant for each instruction set, so that unused widths are not compiled.
            4 if panel_vectors::<S>() == 4 => self.run::<S, 4>(simd),
            _ => self.run::<S, 2>(simd),
        }
    }
}

impl Strip<'_> {
    #[inline(always)]
    fn run<S: Simd, const N: usize>(self, simd: S) {
        let mut pixel = self.pixels.start;
        while pixel < self.pixels.end {
            match self.pixels.end - pixel {
                MAX_ROWS.. => self.tile::<S, MAX_ROWS, N>(simd, pixel),
                TAIL_ROWS.. => self.tile::<S, TAIL_ROWS, N>(simd, pixel),
                _ => self.tile::<S, 1, N>(simd, pixel),
            }
            pixel += match self.pixels.end - pixel {
                MAX_ROWS.. => MAX_ROWS,
                TAIL_ROWS.. => TAIL_ROWS,
                _ => 1,
            };
        }
    }

    /// Adds some taps of `M` pixels: the first taps to bias and residual, later ones to the partial sums in the
    /// output.
    #[inline(always)]
    fn tile<S: Simd, const M: usize, const N: usize>(&self, simd: S, pixel: usize) {
        let Conv { x, kernel, stride, border, upsample, y, .. } = *self.op;
        let Operands { bias, residual, zeros, .. } = *self.operands;
        let channel = self.panel.channel;
        let width = self.panel.width.min(y.channels - channel);
        let position: [(usize, usize); M] =
            std::array::from_fn(|m| ((pixel + m) / y.width, (pixel + m) % y.width));
        // SAFETY: only this member writes these pixels and channels.
        let output = |m: usize| unsafe { self.operands.y.write((pixel + m) * y.channels + channel, width) };

        let mut sums: [[S::f32s; N]; M] = std::array::from_fn(|m| {
            if self.taps.start > 0 {
                return load(simd, output(m));
            }
            let bias = load(simd, &bias[channel..channel + width]);
            let (Some(map), Some(read)) = (residual, self.op.residual) else { return bias };
            let (row, column) = position[m];
            let place = match read.upsample {
                true => row / 2 * (y.width / 2) + column / 2,
                false => pixel + m,
            };
            let residual: [_; N] = load(simd, &map[place * y.channels + channel..][..width]);
            std::array::from_fn(|n| simd.add_f32s(bias[n], residual[n]))
        });

        let (height, width_in) = match upsample {
            true => (2 * x.first.height, 2 * x.first.width),
            false => (x.first.height, x.first.width),
        };
        let channels = x.channels();
        for tap in self.taps.clone() {
            let source: [Option<usize>; M] = std::array::from_fn(|m| {
                // A negative row or column wraps to a large number, which is out of range.
                let row = (position[m].0 * stride + tap / kernel).wrapping_sub(border);
                let column = (position[m].1 * stride + tap % kernel).wrapping_sub(border);
                let inside = row < height && column < width_in;
                inside.then(|| match upsample {
                    true => row / 2 * (width_in / 2) + column / 2,
                    false => row * width_in + column,
                })
            });
            let mut before = 0;
            for (map, values) in x.maps().zip(self.operands.x) {
                let rows = source.map(|pixel| match pixel {
                    Some(pixel) => values[pixel * map.channels..][..map.channels].as_ptr(),
                    None => zeros[..map.channels].as_ptr(),
                });
                let place = (tap - self.taps.start) * channels + before;
                let panel = &self.values[place * self.panel.width..];
                // SAFETY: every row is a whole pixel of its map, or the zeros.
                sums = unsafe { multiply(simd, Part { rows, depth: map.channels, panel }, sums) };
                before += map.channels;
            }
        }

        for (m, sums) in sums.into_iter().enumerate() {
            store::<S, N>(sums, output(m));
        }
    }
}

/// Up to `N` vectors of values, followed by zeros.
#[inline(always)]
fn load<S: Simd, const N: usize>(simd: S, values: &[f32]) -> [S::f32s; N] {
    let mut vectors = [simd.splat_f32s(0.0); N];
    let whole: &mut [f32] = bytemuck::cast_slice_mut(&mut vectors);
    match values.len() == whole.len() {
        // Of a known length, so that it compiles to vector loads.
        true => whole.copy_from_slice(values),
        false => whole[..values.len()].copy_from_slice(values),
    }
    vectors
}

/// Stores the first `values.len()` values of the vectors.
#[inline(always)]
fn store<S: Simd, const N: usize>(vectors: [S::f32s; N], values: &mut [f32]) {
    let whole: &[f32] = bytemuck::cast_slice(&vectors);
    match values.len() == whole.len() {
        true => values.copy_from_slice(whole),
        false => values.copy_from_slice(&whole[..values.len()]),
    }
}
