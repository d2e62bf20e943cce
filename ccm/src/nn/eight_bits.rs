//! Values in eight bits, in blocks that share a scale: the moments of Adam take a quarter of the memory (Dettmers et al., arXiv
//! 2110.02861, with logarithmic levels instead of their table).
//!
//! A step of Adam changes its second moment by less than the distance of two levels. Values are therefore rounded up or down with
//! probabilities that keep their mean; the random numbers are a function of step and place.

use burn::tensor::{Device, Int, IntDType, Tensor, TensorData};

/// Values of a block.
pub(super) const BLOCK: usize = 256;

/// Codes in a packed integer.
const PACKED: usize = 4;

/// The levels of a kind of values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Levels {
    /// Levels per factor of two.
    per_octave: f32,
    /// Largest code. Its level is the largest value of the block.
    most: f32,
    /// Whether a code has a sign, in its highest bit.
    signed: bool,
    /// Smallest code of a block that is not all zero: 0 is the value 0.
    least: f32,
}

/// Levels of numbers with a sign: a relative distance of 9 %, down to `2^-15.75` of the block's largest value, and 0.
pub(super) const SIGNED: Levels = Levels { per_octave: 8.0, most: 127.0, signed: true, least: 0.0 };

/// Levels of positive numbers: a relative distance of 6 %, down to `2^-21.2` of the block's largest value. Smaller ones are rounded up
/// to it, since Adam divides by their roots.
pub(super) const POSITIVE: Levels = Levels { per_octave: 12.0, most: 255.0, signed: false, least: 1.0 };

/// Values in eight bits.
#[derive(Debug, Clone)]
pub(super) struct EightBits {
    levels: Levels,
    /// Four codes in each, `[blocks * BLOCK / PACKED]`.
    codes: Tensor<1, Int>,
    /// The largest absolute value of each block, `[blocks, 1]`.
    scales: Tensor<2>,
    len: usize,
}

/// The thresholds of a step for rounding up, `[1, BLOCK]`: for each place of a block, they are equally distributed in [0, 1) over the
/// steps.
pub(super) fn thresholds(step: u64, device: &Device) -> Tensor<2> {
    /// The powers of a root of `x^3 = x + 1`, whose multiples fill a square evenly (Roberts, 2018).
    const STEPS: [f64; 2] = [0.754_877_666_246_693, 0.569_840_290_998_053];
    let of_place = |place: usize| (place as f64 * STEPS[1] + step as f64 * STEPS[0]).fract() as f32;
    Tensor::from_data(TensorData::new((0..BLOCK).map(of_place).collect(), [1, BLOCK]), device)
}

impl EightBits {
    /// Rounds values. With thresholds of one half, values that [`EightBits::values`] returned get their codes back.
    pub(super) fn new(values: Tensor<1>, levels: Levels, thresholds: &Tensor<2>) -> Self {
        let [len] = values.dims();
        let blocks = len.div_ceil(BLOCK);
        let device = values.device();
        let padded = match blocks * BLOCK - len {
            0 => values,
            more => Tensor::cat(vec![values, Tensor::zeros([more], &device)], 0),
        };
        let values: Tensor<2> = padded.reshape([blocks, BLOCK]);
        let sizes = values.clone().abs();
        let scales = sizes.clone().max_dim(1);
        let largest = scales.clone().mask_fill(scales.clone().equal_elem(0.0), 1.0);
        let sizes = sizes / largest;
        // The level below, as a number of levels from the largest, and the place between it and the next.
        let below = (sizes.clone().clamp_min(f32::MIN_POSITIVE).log()
            * (levels.per_octave / std::f32::consts::LN_2))
            .floor();
        let below = (below + levels.most).clamp(0.0, levels.most);
        let (lower, upper) = (size(below.clone(), levels), size(below.clone() + 1.0, levels));
        let place = (sizes - lower.clone()) / (upper - lower);
        let up = place.greater(thresholds.clone()).int().float();
        let codes = (below + up).clamp(levels.least, levels.most);
        let codes = codes * scales.clone().not_equal_elem(0.0).int().float();
        let codes = match levels.signed {
            true => codes + values.lower_elem(0.0).int().float() * 128.0,
            false => codes,
        };
        Self { levels, codes: pack(codes), scales, len }
    }

    /// The values, flat.
    pub(super) fn values(&self) -> Tensor<1> {
        let Self { levels, codes, scales, len } = self;
        let [blocks, _] = scales.dims();
        let codes: Tensor<2> = unpack(codes.clone()).reshape([blocks, BLOCK]);
        let (codes, sign) = match levels.signed {
            true => {
                let negative = codes.clone().greater_equal_elem(128.0).int().float();
                (codes - negative.clone() * 128.0, Some(negative * -2.0 + 1.0))
            }
            false => (codes, None),
        };
        let sizes = size(codes, *levels) * scales.clone();
        let values = match sign {
            Some(sign) => sizes * sign,
            None => sizes,
        };
        values.reshape([blocks * BLOCK]).narrow(0, 0, *len)
    }
}

/// The level of a code, relative to the block's largest value.
fn size(codes: Tensor<2>, levels: Levels) -> Tensor<2> {
    let zero = codes.clone().lower_elem(0.5);
    let exponents = (codes - levels.most) * (std::f32::consts::LN_2 / levels.per_octave);
    exponents.exp().mask_fill(zero, 0.0)
}

/// Packs codes in 0..256 into integers.
fn pack(codes: Tensor<2>) -> Tensor<1, Int> {
    let [blocks, block] = codes.dims();
    let count = blocks * block / PACKED;
    let codes = codes.int().cast(IntDType::I32).reshape([count, PACKED]);
    let part = |i: usize| codes.clone().narrow(1, i, 1).reshape([count]);
    let high = |i: usize| part(i).bitwise_left_shift_scalar(8 * i as i32);
    part(0).bitwise_or(high(1)).bitwise_or(high(2)).bitwise_or(high(3))
}

fn unpack(packed: Tensor<1, Int>) -> Tensor<1> {
    let [count] = packed.dims();
    let part = |i: usize| {
        let byte = packed.clone().bitwise_right_shift_scalar(8 * i as i32).bitwise_and_scalar(255);
        byte.float().reshape([count, 1])
    };
    Tensor::<2>::cat((0..PACKED).map(part).collect(), 1).reshape([count * PACKED])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::host::to_host;
    use crate::noise::Noise;

    fn tensor(values: &[f32]) -> Tensor<1> {
        Tensor::from_data(values, &Device::flex())
    }

    fn halves() -> Tensor<2> {
        Tensor::full([1, BLOCK], 0.5, &Device::flex())
    }

    /// Values of many magnitudes.
    fn spread(count: usize) -> Vec<f32> {
        let mut noise = Noise::new(1, 2);
        (0..count).map(|_| noise.normal() * (2.0 * noise.normal()).exp()).collect()
    }

    #[test]
    fn values_are_close_and_stay_the_same_when_rounded_again() {
        for len in [1, 255, 256, 1000] {
            for (levels, distance) in [(SIGNED, 0.046), (POSITIVE, 0.03)] {
                let values: Vec<f32> =
                    spread(len).into_iter().map(|v| if levels.signed { v } else { v * v }).collect();
                let packed = EightBits::new(tensor(&values), levels, &halves());
                let found = to_host(packed.values());
                for (block, found) in values.chunks(BLOCK).zip(found.chunks(BLOCK)) {
                    let largest = block.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
                    let smallest = largest * 2_f32.powf((1.0 - levels.most) / levels.per_octave);
                    for (value, found) in block.iter().zip(found) {
                        let error = (value - found).abs();
                        assert!(error <= distance * value.abs() + smallest, "{value} became {found}");
                        assert!(levels.signed || *found > 0.0);
                    }
                }
                let again = EightBits::new(tensor(&found), levels, &halves());
                assert_eq!(to_host(again.values()), found);
            }
        }
        let zeros = EightBits::new(tensor(&[0.0; 300]), POSITIVE, &halves());
        assert_eq!(to_host(zeros.values()), [0.0; 300]);
    }

    #[test]
    fn rounding_keeps_the_mean_over_the_steps() {
        const STEPS: u64 = 2000;
        let values = spread(BLOCK);
        for levels in [SIGNED, POSITIVE] {
            let values: Vec<f32> =
                values.iter().map(|v| if levels.signed { *v } else { v * v + 1e-3 }).collect();
            let mut sums = vec![0.0; BLOCK];
            for step in 0..STEPS {
                let packed = EightBits::new(tensor(&values), levels, &thresholds(step, &Device::flex()));
                let found = to_host(packed.values());
                sums.iter_mut().zip(found).for_each(|(sum, value)| *sum += f64::from(value));
            }
            let largest = values.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
            for (value, sum) in values.iter().zip(sums) {
                let mean = sum / STEPS as f64;
                let error = (mean - f64::from(*value)).abs();
                let smallest =
                    f64::from(largest) * 2_f64.powf(f64::from((1.0 - levels.most) / levels.per_octave));
                assert!(error < 1e-3 * f64::from(value.abs()) + smallest, "{value} has the mean {mean}");
            }
        }
    }

    #[test]
    fn codes_take_a_byte() {
        let packed = EightBits::new(tensor(&spread(1024)), SIGNED, &halves());
        assert_eq!((packed.codes.dims(), packed.scales.dims()), ([256], [4, 1]));
        assert_eq!(packed.codes.dtype().size(), 4);
    }
}
