//! Tensors in the precision in which they are stored. The sampler keeps weights this way and expands them in its kernels.

#[cfg(feature = "text")]
use std::borrow::Cow;

use super::HostTensor;
#[cfg(feature = "text")]
use super::Precision;
#[cfg(feature = "text")]
use half::f16;

/// The values of a tensor.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// Single precision.
    F32(Vec<f32>),
    /// Half precision.
    #[cfg(feature = "text")]
    F16(Vec<f16>),
    /// Signed bytes, each times the scale of its row, which is an index of the first dimension.
    #[cfg(feature = "text")]
    Q8 {
        /// The bytes.
        bytes: Vec<i8>,
        /// The scales, `[rows]`.
        scales: Vec<f32>,
    },
}

/// A tensor: row-major values.
#[derive(Debug, Clone, PartialEq)]
pub struct CompactTensor {
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Values; their number is the product of the dimensions.
    pub values: Values,
}

impl From<HostTensor> for CompactTensor {
    fn from(tensor: HostTensor) -> Self {
        Self { shape: tensor.shape, values: Values::F32(tensor.values) }
    }
}

impl CompactTensor {
    /// The values in single precision.
    pub fn into_f32(self) -> Vec<f32> {
        match self.values {
            Values::F32(values) => values,
            #[cfg(feature = "text")]
            Values::F16(values) => values.into_iter().map(f16::to_f32).collect(),
            #[cfg(feature = "text")]
            Values::Q8 { bytes, scales } => {
                let width = bytes.len() / scales.len().max(1);
                let rows = bytes.chunks_exact(width.max(1)).zip(scales);
                rows.flat_map(|(row, scale)| row.iter().map(move |byte| f32::from(*byte) * scale)).collect()
            }
        }
    }
}

#[cfg(feature = "text")]
impl CompactTensor {
    /// Rounds the values of a matrix or kernel to a precision, unless they are stored in it. Vectors stay as they are.
    pub fn rounded(self, precision: Precision) -> Self {
        if self.shape.len() < 2 {
            return self;
        }
        let values = match (precision, self.values) {
            (Precision::F16, Values::F32(values)) => {
                Values::F16(values.into_iter().map(f16::from_f32).collect())
            }
            (Precision::Q8, values @ (Values::F32(_) | Values::F16(_))) => {
                let tensor = Self { shape: self.shape.clone(), values };
                return tensor.to_bytes();
            }
            (_, values) => values,
        };
        Self { shape: self.shape, values }
    }

    fn to_bytes(self) -> Self {
        let shape = self.shape.clone();
        let values = self.into_f32();
        let width = (values.len() / shape[0].max(1)).max(1);
        let rows = || values.chunks_exact(width);
        let scales: Vec<f32> =
            rows().map(|row| row.iter().fold(0f32, |most, value| most.max(value.abs())) / 127.0).collect();
        let mut bytes = Vec::with_capacity(values.len());
        for (row, scale) in rows().zip(&scales) {
            let inverse = if *scale > 0.0 { 1.0 / scale } else { 0.0 };
            bytes.extend(row.iter().map(|value| (value * inverse).round() as i8));
        }
        Self { shape, values: Values::Q8 { bytes, scales } }
    }

    /// Bytes of the values.
    pub fn bytes(&self) -> usize {
        match &self.values {
            Values::F32(values) => 4 * values.len(),
            Values::F16(values) => 2 * values.len(),
            Values::Q8 { bytes, scales } => bytes.len() + 4 * scales.len(),
        }
    }

    /// The values of row `index`, of `width` values.
    pub fn row(&self, index: usize, width: usize) -> Cow<'_, [f32]> {
        let place = index * width..(index + 1) * width;
        match &self.values {
            Values::F32(values) => Cow::Borrowed(&values[place]),
            Values::F16(values) => values[place].iter().map(|value| value.to_f32()).collect(),
            Values::Q8 { bytes, scales } => {
                bytes[place].iter().map(|byte| f32::from(*byte) * scales[index]).collect()
            }
        }
    }
}

#[cfg(not(feature = "text"))]
impl CompactTensor {
    /// The values of row `index`, of `width` values.
    pub fn row(&self, index: usize, width: usize) -> &[f32] {
        let Values::F32(values) = &self.values;
        &values[index * width..(index + 1) * width]
    }
}
