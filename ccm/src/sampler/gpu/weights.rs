//! Convolution weights on the GPU: in single or half precision, or as bytes or four bits with scales.

use ccm_shaders::Weights;
use half::f16;
use wgpu::util::{BufferInitDescriptor, DeviceExt};
use wgpu::{Buffer, BufferUsages};

use crate::sampler::plan::ConvWeight;
use crate::weights::{Precision, Values};

/// One weight.
pub(super) struct StoredWeight {
    pub(super) kind: Weights,
    pub(super) values: Buffer,
    /// Weights in bytes: for each output channel, the value of byte 127. Weights in four bits: the scales in half precision.
    pub(super) scales: Option<Buffer>,
    pub(super) bytes: u64,
}

/// The format of a weight on the GPU: that in which the plan has it, or for single precision that of the model's file.
pub(super) fn kind(weight: &ConvWeight, precision: Precision) -> Weights {
    match (&weight.values, precision) {
        #[cfg(feature = "text")]
        (Values::F16(_), _) => Weights::F16,
        #[cfg(feature = "text")]
        (Values::Q8 { .. }, _) => Weights::Q8,
        #[cfg(feature = "text")]
        (Values::Q4 { .. }, _) => Weights::Q4,
        (Values::F32(_), Precision::F32) => Weights::F32,
        (Values::F32(_), Precision::Q8) => Weights::Q8,
        // Values that are rounded to four bits would not have the same scales again.
        (Values::F32(_), Precision::F16 | Precision::Q4) => Weights::F16,
    }
}

impl StoredWeight {
    pub(super) fn new(gpu: &wgpu::Device, weight: &ConvWeight, kind: Weights) -> Self {
        let buffer = |contents: &[u8]| weight_buffer(gpu, contents);
        let (values, scales): (Vec<u8>, Option<Buffer>) = match (kind, &weight.values) {
            #[cfg(feature = "text")]
            (Weights::Q4, Values::Q4 { nibbles, scales }) => {
                (nibbles.clone(), Some(buffer(&to_halves(scales.iter().copied()))))
            }
            #[cfg(feature = "text")]
            (Weights::F16, Values::F16(values)) => (to_halves(values.iter().copied()), None),
            #[cfg(feature = "text")]
            (Weights::Q8, Values::Q8 { bytes, scales }) => {
                let scales: Vec<f32> = scales.iter().map(|scale| 127.0 * scale).collect();
                (bytemuck::cast_slice(bytes).to_vec(), Some(buffer(bytemuck::cast_slice(&scales))))
            }
            _ => {
                let values = weight.to_f32();
                match kind {
                    Weights::F32 => (bytemuck::cast_slice(&values).to_vec(), None),
                    Weights::F16 => (to_halves(values.iter().map(|&value| f16::from_f32(value))), None),
                    // Only values in four bits are kept in them.
                    _ => {
                        let (bytes, scales) = to_bytes(&values, weight.out_channels);
                        (bytes, Some(buffer(bytemuck::cast_slice(&scales))))
                    }
                }
            }
        };
        let bytes = values.len() as u64 + scales.as_ref().map_or(0, Buffer::size);
        Self { kind, values: buffer(&values), scales, bytes }
    }
}

#[inline(never)]
fn weight_buffer(gpu: &wgpu::Device, contents: &[u8]) -> Buffer {
    let usage = BufferUsages::STORAGE;
    gpu.create_buffer_init(&BufferInitDescriptor { label: Some("weight"), contents, usage })
}

fn to_halves(values: impl Iterator<Item = f16>) -> Vec<u8> {
    let mut bytes = Vec::new();
    values.for_each(|value| bytes.extend(value.to_le_bytes()));
    bytes
}

/// Rounds to signed bytes. The scale of an output channel is its largest magnitude, the value of byte 127. Values that
/// are already rounded this way give the same bytes again.
fn to_bytes(values: &[f32], out_channels: usize) -> (Vec<u8>, Vec<f32>) {
    let mut scales = vec![0f32; out_channels];
    for row in values.chunks_exact(out_channels) {
        scales.iter_mut().zip(row).for_each(|(scale, value)| *scale = scale.max(value.abs()));
    }
    let byte = |value: f32, scale: f32| if scale > 0.0 { (value / scale * 127.0).round() as i8 } else { 0 };
    let rows = values.chunks_exact(out_channels);
    let bytes = rows.flat_map(|row| row.iter().zip(&scales).map(|(value, scale)| byte(*value, *scale) as u8));
    (bytes.collect(), scales)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_within_half_a_step_of_the_value() {
        let values: Vec<f32> = (0..64).map(|i| ((i * 37 % 64) as f32 - 31.0) / 7.0).collect();
        let (bytes, scales) = to_bytes(&values, 4);
        for (i, value) in values.iter().enumerate() {
            let (scale, byte) = (scales[i % 4], bytes[i] as i8);
            assert!((f32::from(byte) / 127.0 * scale - value).abs() <= 0.5001 * scale / 127.0);
        }
    }
}
