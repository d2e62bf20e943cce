//! Tensors in the precision in which they are stored. The sampler keeps weights this way and expands them in its kernels.

#[cfg(feature = "text")]
use std::borrow::Cow;

use super::HostTensor;
#[cfg(feature = "text")]
use super::header::Entry;
#[cfg(feature = "text")]
use super::{Dtype, Precision, SCALE_SUFFIX, StoredTensor, WeightsError, to_f32};
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
    /// Four bits a value, for shapes `[outputs, inputs, ...]` with a multiple of [`GROUP`] inputs: see [`Precision::Q4`].
    #[cfg(feature = "text")]
    Q4 {
        /// Two values a byte, `[outputs, inputs / 2, ...]`: of an even input in the low bits, of the next one in the high bits.
        /// Bits `n` mean `n - 8` times the scale.
        nibbles: Vec<u8>,
        /// The scales, `[outputs, inputs / GROUP, ...]`.
        scales: Vec<f16>,
    },
}

/// Inputs that share a scale in [`Precision::Q4`].
#[cfg(feature = "text")]
pub const GROUP: usize = 32;

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
    /// The tensor in single precision.
    pub fn into_host(self) -> HostTensor {
        HostTensor { shape: self.shape.clone(), values: self.into_f32() }
    }

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
            #[cfg(feature = "text")]
            Values::Q4 { nibbles, scales } => {
                let layout = Nibbles::new(&self.shape);
                (0..layout.outputs).flat_map(|output| layout.row(&nibbles, &scales, output)).collect()
            }
        }
    }
}

/// Where the values of a tensor in four bits are.
#[cfg(feature = "text")]
#[derive(Debug, Clone, Copy)]
struct Nibbles {
    outputs: usize,
    inputs: usize,
    /// Values for each output and input.
    taps: usize,
}

#[cfg(feature = "text")]
impl Nibbles {
    /// # Panics
    /// If the shape has fewer than two dimensions.
    fn new(shape: &[usize]) -> Self {
        Self { outputs: shape[0], inputs: shape[1], taps: shape[2..].iter().product() }
    }

    /// The dimensions of bytes and scales; `None` if a tensor of this shape is not stored in four bits.
    fn shapes(shape: &[usize]) -> Option<[Vec<usize>; 2]> {
        let inputs = *shape.get(1)?;
        let with = |inputs| [&shape[..1], &[inputs], &shape[2..]].concat();
        let suits = inputs.is_multiple_of(GROUP) && shape.iter().all(|&size| size > 0);
        suits.then(|| [with(inputs / 2), with(inputs / GROUP)])
    }

    /// The values of an output, `[inputs, taps]`.
    fn row(&self, nibbles: &[u8], scales: &[f16], output: usize) -> Vec<f32> {
        let Self { inputs, taps, .. } = *self;
        let nibbles = &nibbles[output * inputs / 2 * taps..][..inputs / 2 * taps];
        let scales = &scales[output * inputs / GROUP * taps..][..inputs / GROUP * taps];
        let mut values = vec![0.0; inputs * taps];
        for (group, values) in values.chunks_exact_mut(GROUP * taps).enumerate() {
            let nibbles = &nibbles[group * GROUP / 2 * taps..];
            for tap in 0..taps {
                let scale = scales[group * taps + tap].to_f32();
                for pair in 0..GROUP / 2 {
                    let byte = nibbles[pair * taps + tap];
                    values[2 * pair * taps + tap] = (f32::from(byte & 15) - 8.0) * scale;
                    values[(2 * pair + 1) * taps + tap] = (f32::from(byte >> 4) - 8.0) * scale;
                }
            }
        }
        values
    }
}

/// Rounds the values of a group to four bits: the scale and, for each value, `n` with `n - 8` times the scale near it. Tries
/// eight scales that put the value of the largest magnitude near -8, fits each to the numbers it gives, and takes the one
/// with the least squared error.
#[cfg(feature = "text")]
fn group_of(values: &[f32; GROUP]) -> (f16, [u8; GROUP]) {
    /// `1.5 * 2^23`. Adding it rounds a small number to a whole one, in a form that the compiler vectorises.
    const ROUND: f32 = 12_582_912.0;
    let numbers = |inverse: f32| values.map(|value| (value * inverse).clamp(-8.0, 7.0) + ROUND - ROUND);
    let larger = |most: f32, value: &f32| if value.abs() > most.abs() { *value } else { most };
    let largest = values.iter().fold(0f32, larger);
    let mut best = (f32::INFINITY, f16::ZERO, [0.0; GROUP]);
    if largest != 0.0 && largest.is_finite() {
        for steps in [6.5, 7.0, 7.5, 8.0, 8.5, 9.0, 9.5, 10.0] {
            let found = numbers(-steps / largest);
            let scale = sum(values, &found, |value, number| value * number)
                / sum(values, &found, |_, number| number * number);
            let scale = f16::from_f32(scale.clamp(-65_504.0, 65_504.0));
            let single = scale.to_f32();
            let found = numbers(1.0 / single);
            let error = sum(values, &found, |value, number| {
                let error = value - number * single;
                error * error
            });
            if error < best.0 {
                best = (error, scale, found);
            }
        }
    }
    (best.1, best.2.map(|number| (number + 8.0) as u8))
}

/// The sum over the pairs of two groups, in eight parts that the compiler vectorises.
#[cfg(feature = "text")]
#[inline(always)]
fn sum(values: &[f32; GROUP], numbers: &[f32; GROUP], of: impl Fn(f32, f32) -> f32) -> f32 {
    let mut sums = [0.0; 8];
    for (values, numbers) in values.as_chunks::<8>().0.iter().zip(numbers.as_chunks::<8>().0) {
        for i in 0..8 {
            sums[i] += of(values[i], numbers[i]);
        }
    }
    sums.iter().sum()
}

#[cfg(feature = "text")]
impl CompactTensor {
    /// Rounds the values of a matrix or kernel to a precision, unless they are stored in it or in a smaller one. Vectors stay
    /// as they are. Where four bits do not suit a shape, bytes take their place.
    pub fn rounded(self, precision: Precision) -> Self {
        if self.shape.len() < 2 {
            return self;
        }
        let suits = precision == Precision::Q4 && Nibbles::shapes(&self.shape).is_some();
        let values = match (precision, self.values) {
            (Precision::Q4, values @ (Values::F32(_) | Values::F16(_) | Values::Q8 { .. })) if suits => {
                let tensor = Self { shape: self.shape.clone(), values };
                return tensor.into_nibbles();
            }
            (Precision::F16, Values::F32(values)) => {
                Values::F16(values.into_iter().map(f16::from_f32).collect())
            }
            (Precision::Q8 | Precision::Q4, values @ (Values::F32(_) | Values::F16(_))) => {
                let tensor = Self { shape: self.shape.clone(), values };
                return tensor.into_bytes();
            }
            (_, values) => values,
        };
        Self { shape: self.shape, values }
    }

    fn into_bytes(self) -> Self {
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

    fn into_nibbles(self) -> Self {
        let shape = self.shape.clone();
        let Nibbles { inputs, taps, .. } = Nibbles::new(&shape);
        let values = self.into_f32();
        let mut nibbles = vec![0; values.len() / 2];
        let mut scales = Vec::with_capacity(values.len() / GROUP);
        // The groups of an output follow each other, and so do their bytes.
        let groups = values.chunks_exact(GROUP * taps).zip(nibbles.chunks_exact_mut(GROUP / 2 * taps));
        debug_assert!(inputs.is_multiple_of(GROUP), "a shape that suits four bits");
        for (values, nibbles) in groups {
            for tap in 0..taps {
                let (scale, found) = group_of(&std::array::from_fn(|input| values[input * taps + tap]));
                scales.push(scale);
                for (pair, numbers) in found.as_chunks::<2>().0.iter().enumerate() {
                    nibbles[pair * taps + tap] = numbers[0] | numbers[1] << 4;
                }
            }
        }
        Self { shape, values: Values::Q4 { nibbles, scales } }
    }

    /// The tensors of a file that hold this one.
    pub(crate) fn stored(self, name: &str) -> Vec<StoredTensor> {
        let stored = |name: &str, kind, shape, bytes| StoredTensor { name: name.into(), kind, shape, bytes };
        let halves = |values: Vec<f16>| values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let singles = |values: Vec<f32>| values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let of_scales = format!("{name}{SCALE_SUFFIX}");
        let shapes = Nibbles::shapes(&self.shape);
        match self.values {
            Values::F32(values) => vec![stored(name, Dtype::F32, self.shape, singles(values))],
            Values::F16(values) => vec![stored(name, Dtype::F16, self.shape, halves(values))],
            Values::Q8 { bytes, scales } => {
                let rows = vec![scales.len()];
                let bytes = bytemuck::cast_slice(&bytes).to_vec();
                vec![
                    stored(name, Dtype::I8, self.shape, bytes),
                    stored(&of_scales, Dtype::F32, rows, singles(scales)),
                ]
            }
            Values::Q4 { nibbles, scales } => {
                let [of_nibbles, groups] = shapes.unwrap_or_else(|| panic!("a shape that suits four bits"));
                vec![
                    stored(name, Dtype::U8, of_nibbles, nibbles),
                    stored(&of_scales, Dtype::F16, groups, halves(scales)),
                ]
            }
        }
    }

    /// Makes the tensor `name` from what a file holds under its name and under the name of its scales: entries and bytes. It
    /// stays in the precision in which it is stored.
    ///
    /// # Errors
    /// If the tensor or its scales are missing, or of another shape or type.
    pub(crate) fn find(
        name: &str,
        shape: &[usize],
        [tensor, of_scales]: [Option<(&Entry, Vec<u8>)>; 2],
    ) -> Result<Self, WeightsError> {
        let check = |name: &str, expected: &[usize], entry: &Entry| match entry.shape == expected {
            true => Ok(()),
            false => {
                let (expected, found) = (expected.to_vec(), entry.shape.clone());
                Err(WeightsError::Shape { name: name.into(), expected, found })
            }
        };
        let halves = |bytes: &[u8]| -> Vec<f16> {
            bytes.as_chunks().0.iter().map(|pair| f16::from_le_bytes(*pair)).collect()
        };
        // The scales, if they are of the expected type and dimensions.
        let scales = |kind: &str, expected: &[usize]| {
            let name = format!("{name}{SCALE_SUFFIX}");
            let (entry, bytes) = of_scales.ok_or_else(|| WeightsError::Missing(name.clone()))?;
            check(&name, expected, entry)?;
            match entry.kind == kind {
                true => Ok(bytes),
                false => Err(WeightsError::Kind { name, found: entry.kind.clone() }),
            }
        };
        let (entry, bytes) = tensor.ok_or_else(|| WeightsError::Missing(name.into()))?;
        let values = match entry.kind.as_str() {
            "I8" => {
                check(name, shape, entry)?;
                let scales = scales("F32", &shape[..1.min(shape.len())])?;
                let scales = to_f32(name, "F32", &scales)?;
                Values::Q8 { bytes: bytemuck::cast_slice(&bytes).to_vec(), scales }
            }
            "U8" => {
                let Some([of_nibbles, groups]) = Nibbles::shapes(shape) else {
                    return Err(WeightsError::Kind { name: name.into(), found: "U8".into() });
                };
                check(name, &of_nibbles, entry)?;
                Values::Q4 { nibbles: bytes, scales: halves(&scales("F16", &groups)?) }
            }
            "F16" => {
                check(name, shape, entry)?;
                Values::F16(halves(&bytes))
            }
            kind => {
                check(name, shape, entry)?;
                Values::F32(to_f32(name, kind, &bytes)?)
            }
        };
        Ok(Self { shape: shape.to_vec(), values })
    }

    /// The numbers of a tensor in four bits, one a byte, `[outputs, inputs, ...]`, and its scales,
    /// `[outputs, inputs / GROUP, ...]`; `None` for a tensor in another precision.
    pub(crate) fn numbers(&self) -> Option<(Vec<u8>, &[f16])> {
        let Values::Q4 { nibbles, scales } = &self.values else { return None };
        let taps = Nibbles::new(&self.shape).taps;
        let mut numbers = vec![0; 2 * nibbles.len()];
        for (pair, of_inputs) in nibbles.chunks_exact(taps).zip(numbers.chunks_exact_mut(2 * taps)) {
            let (even, odd) = of_inputs.split_at_mut(taps);
            for ((byte, even), odd) in pair.iter().zip(even).zip(odd) {
                (*even, *odd) = (byte & 15, byte >> 4);
            }
        }
        Some((numbers, scales))
    }

    /// Bytes of the values.
    pub fn bytes(&self) -> usize {
        match &self.values {
            Values::F32(values) => 4 * values.len(),
            Values::F16(values) => 2 * values.len(),
            Values::Q8 { bytes, scales } => bytes.len() + 4 * scales.len(),
            Values::Q4 { nibbles, scales } => nibbles.len() + 2 * scales.len(),
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
            Values::Q4 { nibbles, scales } => Nibbles::new(&self.shape).row(nibbles, scales, index).into(),
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

#[cfg(test)]
#[cfg(feature = "text")]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;

    use super::*;
    use crate::noise::Noise;

    fn normal(shape: &[usize], scale: f32) -> CompactTensor {
        let values = Noise::new(5, 0).normals(shape.iter().product());
        HostTensor::new(shape, values.iter().map(|value| value * scale).collect()).into()
    }

    fn error(of: &CompactTensor, from: &CompactTensor) -> f64 {
        let (found, expected) = (of.clone().into_f32(), from.clone().into_f32());
        let square = |value: f32| f64::from(value) * f64::from(value);
        let errors: f64 = found.iter().zip(&expected).map(|(a, b)| square(a - b)).sum();
        (errors / expected.iter().map(|&value| square(value)).sum::<f64>()).sqrt()
    }

    /// The literal is from a calculation with NumPy.
    #[test]
    fn four_bits_leave_a_known_error_on_normal_values() {
        for scale in [1.0, 1e-3, 100.0] {
            let tensor = normal(&[64, 64, 3, 3], scale);
            let found = error(&tensor.clone().rounded(Precision::Q4), &tensor);
            assert!((found - 0.0812).abs() < 0.001, "{found}");
        }
    }

    #[test]
    fn a_group_has_its_own_inputs_and_tap() {
        // Each group has one magnitude, of which -8 and 7 steps are exact.
        let shape = [2, 64, 3, 1];
        let magnitude =
            |output: usize, group: usize, tap: usize| (1 << (output * 6 + group * 3 + tap)) as f32;
        let value = |place: usize| {
            let (output, input, tap) = (place / 192, place / 3 % 64, place % 3);
            magnitude(output, input / 32, tap) * if input % 2 == 0 { -8.0 } else { 7.0 }
        };
        let tensor: CompactTensor = HostTensor::new(shape, (0..384).map(value).collect()).into();
        let rounded = tensor.clone().rounded(Precision::Q4);
        assert_eq!(rounded.clone().into_f32(), tensor.clone().into_f32());
        assert_eq!(rounded.bytes(), 384 / 2 + 2 * 12);
        assert_eq!(*rounded.row(1, 192), tensor.row(1, 192)[..]);
        let (numbers, scales) = rounded.numbers().unwrap();
        assert_eq!((numbers[0], numbers[3], scales.len()), (0, 15, 12));
    }

    #[test]
    fn shapes_that_do_not_suit_four_bits_are_stored_in_bytes() {
        for shape in [&[8, 36][..], &[4, 4, 3, 3], &[7, 1], &[0, 32], &[5, 32, 0]] {
            let rounded = normal(shape, 1.0).rounded(Precision::Q4);
            assert!(matches!(rounded.values, Values::Q8 { .. }), "{shape:?}");
        }
        assert!(matches!(normal(&[32], 1.0).rounded(Precision::Q4).values, Values::F32(_)));
        let zeros: CompactTensor = HostTensor::new([3, 32], vec![0.0; 96]).into();
        assert_eq!(zeros.clone().rounded(Precision::Q4).into_f32(), vec![0.0; 96]);
        let halves = normal(&[3, 32], 1.0).rounded(Precision::F16);
        assert!(matches!(halves.clone().rounded(Precision::Q4).values, Values::Q4 { .. }));
        assert!(matches!(halves.rounded(Precision::Q8).rounded(Precision::Q4).values, Values::Q4 { .. }));
    }

    #[test]
    fn stored_tensors_are_found_again_and_faults_are_named() {
        let shape = [6, 64, 3, 3];
        for precision in [Precision::F32, Precision::F16, Precision::Q8, Precision::Q4] {
            let tensor = normal(&shape, 1.0).rounded(precision);
            let mut file = BTreeMap::new();
            for part in tensor.clone().stored("a") {
                let range = 0..part.values().len();
                let entry = Entry { kind: part.kind(), shape: part.shape().to_vec(), range };
                file.insert(part.name().to_owned(), (entry, part.values().to_vec()));
            }
            let find = |file: &BTreeMap<String, (Entry, Vec<u8>)>, shape: &[usize]| {
                let of = |name: &str| file.get(name).map(|(entry, bytes)| (entry, bytes.clone()));
                CompactTensor::find("a", shape, [of("a"), of("a_scale")])
            };
            assert_eq!(find(&file, &shape).unwrap(), tensor, "{precision}");
            let wrong = find(&file, &[6, 96, 3, 3]).unwrap_err().to_string();
            assert!(wrong.contains("tensor `a`: expected shape"), "{wrong}");
            let wrong = find(&BTreeMap::new(), &shape).unwrap_err().to_string();
            assert!(wrong.contains("tensor `a` is missing"), "{wrong}");
            if let Some(scales) = file.remove("a_scale") {
                let wrong = find(&file, &shape).unwrap_err().to_string();
                assert!(wrong.contains("tensor `a_scale` is missing"), "{wrong}");
                let entry = Entry { shape: vec![5], ..scales.0.clone() };
                file.insert("a_scale".into(), (entry, scales.1.clone()));
                let wrong = find(&file, &shape).unwrap_err().to_string();
                assert!(wrong.contains("tensor `a_scale`: expected shape"), "{wrong}");
                let entry = Entry { kind: "I64".into(), ..scales.0 };
                file.insert("a_scale".into(), (entry, scales.1));
                let wrong = find(&file, &shape).unwrap_err().to_string();
                assert!(wrong.contains("tensor `a_scale`: expected floating-point"), "{wrong}");
            }
        }
    }
}
