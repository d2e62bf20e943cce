//! Convolution weights on the GPU: in single or half precision, or as bytes with scales.

use ccm_shaders::Weights;
use half::f16;
use wgpu::util::{BufferInitDescriptor, DeviceExt};
use wgpu::{Buffer, BufferUsages};

use crate::sampler::plan::ConvWeight;

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
        let (values, scales): (Vec<u8>, Option<Vec<f32>>) = match kind {
            Weights::F32 => (bytemuck::cast_slice(&weight.values).to_vec(), None),
            Weights::F16 => {
                (weight.values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect(), None)
            }
            Weights::Q8 => {
                let (bytes, scales) = to_bytes(weight);
                (bytes, Some(scales))
            }
        };
        let bytes = (values.len() + scales.as_ref().map_or(0, |scales| 4 * scales.len())) as u64;
        let scales = scales.map(|scales| buffer(bytemuck::cast_slice(&scales)));
        Self { values: buffer(&values), scales, bytes }
    }
}

/// Rounds to signed bytes. The scale of an output channel is its largest magnitude, the value of byte 127. Values that
/// are already rounded this way give the same bytes again.
fn to_bytes(weight: &ConvWeight) -> (Vec<u8>, Vec<f32>) {
    let mut scales = vec![0f32; weight.out_channels];
    for row in weight.values.chunks_exact(weight.out_channels) {
        scales.iter_mut().zip(row).for_each(|(scale, value)| *scale = scale.max(value.abs()));
    }
    let byte = |value: f32, scale: f32| if scale > 0.0 { (value / scale * 127.0).round() as i8 } else { 0 };
    let rows = weight.values.chunks_exact(weight.out_channels);
    let bytes = rows.flat_map(|row| row.iter().zip(&scales).map(|(value, scale)| byte(*value, *scale) as u8));
    (bytes.collect(), scales)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_within_half_a_step_of_the_value() {
        let values: Vec<f32> = (0..64).map(|i| ((i * 37 % 64) as f32 - 31.0) / 7.0).collect();
        let weight = ConvWeight { kernel: 1, in_channels: 16, out_channels: 4, values };
        let (bytes, scales) = to_bytes(&weight);
        for (i, value) in weight.values.iter().enumerate() {
            let (scale, byte) = (scales[i % 4], bytes[i] as i8);
            assert!((f32::from(byte) / 127.0 * scale - value).abs() <= 0.5001 * scale / 127.0);
        }
    }
}
