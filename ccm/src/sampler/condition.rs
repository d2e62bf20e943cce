//! Time and label, on the CPU: the embedding of both, projected for every residual block.
//!
//! What comes out is one row of numbers an image, a few kB, that the kernels read as biases, gains and offsets:
//! the conditioned bias of a convolution holds its own bias already, and a conditioned norm its own affine map.

use crate::weights::HostTensor;

/// `W x + b`.
#[derive(Debug, Clone, Default)]
pub struct Linear {
    /// `[outputs, inputs]`.
    pub weight: HostTensor,
    /// `[outputs]`.
    pub bias: Vec<f32>,
}

impl Linear {
    fn apply(&self, x: &[f32]) -> Vec<f32> {
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

/// The embedding network and what the residual blocks make of it.
#[derive(Debug, Clone)]
pub struct Conditioner {
    model_channels: usize,
    /// The two layers of the time embedding.
    pub time_embed: [Linear; 2],
    /// The embedding of each label, `[classes, embed]`.
    pub labels: Option<HostTensor>,
    projections: Vec<(Linear, Projection)>,
    row_len: usize,
}

impl Conditioner {
    pub(super) fn new(model_channels: usize) -> Self {
        Self {
            model_channels,
            time_embed: Default::default(),
            labels: None,
            projections: Vec::new(),
            row_len: 0,
        }
    }

    /// Adds a projection that is added to a bias, and gives the place of the sum in a row.
    pub(super) fn shift(&mut self, embed: Linear, bias: &[f32]) -> usize {
        self.push(embed, Projection::Shift { bias: bias.to_vec() })
    }

    /// Adds a projection to the scale and the shift of a norm, and gives the place of the gain in a row; the
    /// offset stands behind it.
    pub(super) fn scale_and_shift(&mut self, embed: Linear, gain: &[f32], offset: &[f32]) -> usize {
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

    /// The row of an image at time `t`, in [0, 1], with a label below the number of classes if there are any.
    pub fn row(&self, t: f32, label: Option<u32>) -> Vec<f32> {
        let [first, second] = &self.time_embed;
        let mut embed = first.apply(&timestep_embedding(t, self.model_channels));
        silu(&mut embed);
        let mut embed = second.apply(&embed);
        if let (Some(table), Some(label)) = (&self.labels, label) {
            let row = table.values.chunks_exact(embed.len()).nth(label as usize).unwrap_or_default();
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
