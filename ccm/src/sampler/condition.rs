//! Time and label, on the CPU: the embedding of both, projected for every residual block.
//!
//! The result is one row of numbers for each image, a few kB, which the kernels read as biases, gains and offsets. A
//! conditioned bias includes the bias of its convolution; a conditioned gain and offset include those of their norm.

use crate::weights::HostTensor;

/// `W x + b`.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[outputs, inputs]`.
    pub weight: HostTensor,
    /// `[outputs]`.
    pub bias: Vec<f32>,
}

impl Linear {
    fn apply(&self, x: &[f32]) -> Vec<f32> {
        assert!(self.weight.shape == [self.bias.len(), x.len()], "shape of a linear layer's weight");
        let rows = self.weight.values.chunks_exact(x.len());
        rows.zip(&self.bias).map(|(row, bias)| dot(row, x) + bias).collect()
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = a.as_chunks::<16>();
    let (b, b_rest) = b.as_chunks::<16>();
    let mut sums = [0.0; 16];
    for (a, b) in a.iter().zip(b) {
        for i in 0..16 {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

fn silu(x: &mut [f32]) {
    for x in x {
        *x /= 1.0 + libm::expf(-*x);
    }
}

#[derive(Debug, Clone)]
enum Projection {
    /// `bias + embed`, for a convolution.
    Shift { bias: Vec<f32> },
    /// `(1 + scale) gain` and `(1 + scale) offset + shift`, for a norm.
    ScaleAndShift { gain: Vec<f32>, offset: Vec<f32> },
}

/// The embedding network and its projections for the residual blocks.
#[derive(Debug, Clone)]
pub struct Conditioner {
    model_channels: usize,
    /// The two layers of the time embedding.
    time_embed: [Linear; 2],
    /// The embedding of each label, `[classes, embed]`.
    labels: Option<HostTensor>,
    projections: Vec<(Linear, Projection)>,
    row_len: usize,
}

impl Conditioner {
    /// An embedding without projections.
    ///
    /// # Shapes
    /// - `time_embed`: `[embed, model_channels]`, `[embed, embed]`
    /// - `labels`: `[classes, embed]`
    pub(super) fn new(model_channels: usize, time_embed: [Linear; 2], labels: Option<HostTensor>) -> Self {
        Self { model_channels, time_embed, labels, projections: Vec::new(), row_len: 0 }
    }

    /// Adds a projection that is added to a bias. Returns the position of the sum in a row.
    pub(super) fn shift(&mut self, embed: Linear, bias: &[f32]) -> usize {
        assert!(embed.bias.len() == bias.len(), "outputs of a shift");
        self.push(embed, Projection::Shift { bias: bias.to_vec() })
    }

    /// Adds a projection to the scale and the shift of a norm. Returns the position of the gain in a row; the offset
    /// follows it.
    pub(super) fn scale_and_shift(&mut self, embed: Linear, gain: &[f32], offset: &[f32]) -> usize {
        assert!(embed.bias.len() == gain.len() + offset.len(), "outputs of a scale and a shift");
        self.push(embed, Projection::ScaleAndShift { gain: gain.to_vec(), offset: offset.to_vec() })
    }

    fn push(&mut self, embed: Linear, projection: Projection) -> usize {
        let place = self.row_len;
        self.row_len += embed.bias.len();
        self.projections.push((embed, projection));
        place
    }

    /// Values of a row.
    pub fn row_len(&self) -> usize {
        self.row_len
    }

    /// The row of an image at time `t`, in [0, 1]. A label is ignored by a model without classes.
    ///
    /// # Panics
    /// If the model has classes and `label` is missing or not below their number.
    #[expect(clippy::expect_used, reason = "`Sampler` checks the labels of a request before it samples")]
    pub fn row(&self, t: f32, label: Option<u32>) -> Vec<f32> {
        let [first, second] = &self.time_embed;
        let mut embed = first.apply(&timestep_embedding(t, self.model_channels));
        silu(&mut embed);
        let mut embed = second.apply(&embed);
        if let Some(table) = &self.labels {
            let label = label.expect("a model with classes needs a label");
            let row = table.values.chunks_exact(embed.len()).nth(label as usize);
            let row = row.expect("a label below the number of classes");
            for (value, label) in embed.iter_mut().zip(row) {
                *value += label;
            }
        }
        silu(&mut embed);
        let mut row = Vec::with_capacity(self.row_len);
        for (linear, projection) in &self.projections {
            let values = linear.apply(&embed);
            match projection {
                Projection::Shift { bias } => row.extend(values.iter().zip(bias).map(|(v, bias)| v + bias)),
                Projection::ScaleAndShift { gain, offset } => {
                    let (scale, shift) = values.split_at(gain.len());
                    row.extend(scale.iter().zip(gain).map(|(scale, gain)| (1.0 + scale) * gain));
                    let affine = scale.iter().zip(offset).zip(shift);
                    row.extend(affine.map(|((scale, offset), shift)| (1.0 + scale) * offset + shift));
                }
            }
        }
        row
    }
}

/// Cosines and sines of the time at `channels / 2` frequencies.
fn timestep_embedding(t: f32, channels: usize) -> Vec<f32> {
    const MAX_PERIOD: f64 = 10_000.0;
    let half = channels / 2;
    let exponent = |i: usize| -libm::log(MAX_PERIOD) as f32 * i as f32 / half as f32;
    let angle = |i: usize| f64::from(t * libm::expf(exponent(i)));
    (0..half)
        .map(|i| libm::cos(angle(i)) as f32)
        .chain((0..half).map(|i| libm::sin(angle(i)) as f32))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One projection of an embedding of 4 values, with two classes.
    fn conditioner() -> Conditioner {
        let linear = |outputs: usize, inputs: usize| Linear {
            weight: HostTensor::new(vec![outputs, inputs], vec![0.5; outputs * inputs]),
            bias: vec![0.25; outputs],
        };
        let labels = HostTensor::new(vec![2, 4], vec![1.0, 2.0, 3.0, 4.0, -1.0, -2.0, -3.0, -4.0]);
        let mut conditioner = Conditioner::new(8, [linear(4, 8), linear(4, 4)], Some(labels));
        conditioner.shift(linear(3, 4), &[0.0; 3]);
        conditioner
    }

    #[test]
    fn the_label_is_added_to_the_embedding_of_the_time() {
        let silu = |x: f64| x / (1.0 + (-x).exp());
        let angle = |i: usize| 0.75 * 10_000f64.powf(-(i as f64) / 4.0);
        let embedding: f64 = (0..4).map(|i| angle(i).cos() + angle(i).sin()).sum();
        let hidden = silu(0.5 * embedding + 0.25);
        let embedding = 0.5 * 4.0 * hidden + 0.25;
        for (label, row) in [[1.0, 2.0, 3.0, 4.0], [-1.0, -2.0, -3.0, -4.0]].iter().enumerate() {
            let expected = 0.25 + row.iter().map(|value| 0.5 * silu(embedding + value)).sum::<f64>();
            let found = conditioner().row(0.75, Some(label as u32));
            assert_eq!(found.len(), 3);
            assert!((f64::from(found[0]) - expected).abs() < 1e-5, "{found:?}, not {expected}");
        }
    }

    #[test]
    #[should_panic(expected = "a label below the number of classes")]
    fn a_label_outside_the_table_is_not_an_empty_row() {
        conditioner().row(0.75, Some(2));
    }

    #[test]
    #[should_panic(expected = "needs a label")]
    fn a_missing_label_is_not_an_empty_row() {
        conditioner().row(0.75, None);
    }

    #[test]
    #[should_panic(expected = "outputs of a shift")]
    fn a_bias_of_another_length_is_not_cut_off() {
        let weight = HostTensor::new(vec![3, 4], vec![0.0; 12]);
        conditioner().shift(Linear { weight, bias: vec![0.0; 3] }, &[0.0; 2]);
    }
}
