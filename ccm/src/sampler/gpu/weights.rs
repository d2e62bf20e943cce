//! Convolution weights on the GPU: in single or half precision, or as bytes with scales.

use ccm_shaders::Weights;
use half::f16;
use wgpu::util::{BufferInitDescriptor, DeviceExt};
use wgpu::{Buffer, BufferUsages};

use crate::sampler::plan::ConvWeight;
#[cfg(feature = "text")]
use crate::weights::Values;

/// One weight.
pub(super) struct StoredWeight {
    pub(super) values: Buffer,
    /// Weights in bytes only: for each output channel, the value of byte 127.
    pub(super) scales: Option<Buffer>,
    pub(super) bytes: u64,
}

impl StoredWeight {
    pub(super) fn new(gpu: &wgpu::Device, weight: &ConvWeight, kind: Weights) -> Self {
        let buffer = |contents: &[u8]| {
            let usage = BufferUsages::STORAGE;
            gpu.create_buffer_init(&BufferInitDescriptor { label: Some("weight"), contents, usage })
        };
        let (values, scales): (Vec<u8>, Option<Vec<f32>>) = match (kind, &weight.values) {
            #[cfg(feature = "text")]
            (Weights::F16, Values::F16(values)) => (to_halves(values.iter().copied()), None),
            #[cfg(feature = "text")]
            (Weights::Q8, Values::Q8 { bytes, scales }) => {
                let scales = scales.iter().map(|scale| 127.0 * scale).collect();
                (bytemuck::cast_slice(bytes).to_vec(), Some(scales))
            }
            _ => {
                let values = weight.to_f32();
                match kind {
                    Weights::F32 => (bytemuck::cast_slice(&values).to_vec(), None),
                    Weights::F16 => (to_halves(values.iter().map(|&value| f16::from_f32(value))), None),
                    Weights::Q8 => {
                        let (bytes, scales) = to_bytes(&values, weight.out_channels);
                        (bytes, Some(scales))
                    }
                }
            }
        };
        let bytes = (values.len() + scales.as_ref().map_or(0, |scales| 4 * scales.len())) as u64;
        let scales = scales.map(|scales| buffer(bytemuck::cast_slice(&scales)));
        Self { values: buffer(&values), scales, bytes }
    }
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
