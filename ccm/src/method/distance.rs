//! The student's loss: a distance between its estimate and the target.

use std::fmt;
use std::sync::Arc;

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::lpips::{Lpips, SIDE, Trunk, normalized};
use crate::nn::conditions::Conditions;
use crate::nn::denoiser::Denoiser;
use crate::nn::network::Network;

/// The name of a distance in a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DistanceKind {
    /// [`Distance::PseudoHuber`].
    PseudoHuber,
    /// [`Distance::L2`].
    L2,
    /// [`Distance::L1`].
    L1,
    /// [`Distance::Lpips`] with VGG16, as in the paper.
    LpipsVgg16,
    /// [`Distance::Lpips`] with AlexNet.
    LpipsAlexnet,
    /// [`Distance::TeacherFeatures`].
    TeacherFeatures,
}

impl fmt::Display for DistanceKind {
    /// The name used in a configuration.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

impl DistanceKind {
    /// The trunk of an LPIPS distance; `None` for other distances.
    pub fn trunk(self) -> Option<Trunk> {
        match self {
            Self::LpipsVgg16 => Some(Trunk::Vgg16),
            Self::LpipsAlexnet => Some(Trunk::AlexNet),
            Self::PseudoHuber | Self::L2 | Self::L1 | Self::TeacherFeatures => None,
        }
    }
}

/// A distance between images.
#[derive(Debug, Clone)]
pub enum Distance {
    /// `sqrt(|a - b|^2 + c^2) - c` over an image of `d` values, `c = 0.00054 sqrt(d)` (Song and Dhariwal,
    /// arXiv 2310.14189), divided by `sqrt(d)`.
    PseudoHuber,
    /// Mean squared difference.
    L2,
    /// Mean absolute difference.
    L1,
    /// LPIPS: distance between the features of a pretrained network. Latents are decoded first.
    Lpips {
        /// The network.
        lpips: Arc<Lpips>,
        /// The decoder of latents, as a fixed function.
        decoder: Option<Arc<Network>>,
    },
    /// Distance between the teacher's features: LPIPS on the feature maps of the teacher's encoder, with equal weights for
    /// all channels. The encoder's inputs are the images at `t = 1`, without a label but with the text. The teacher is
    /// [`Denoiser::frozen`].
    TeacherFeatures(Arc<Denoiser>),
}

impl Distance {
    /// Network evaluations per image. Two passes through the encoder, each about half a network, count as one.
    pub fn evaluations(&self) -> usize {
        match self {
            Self::TeacherFeatures(_) => 1,
            Self::PseudoHuber | Self::L2 | Self::L1 | Self::Lpips { .. } => 0,
        }
    }

    /// The mean distance over the pairs of a batch. `a`, `b`: `[B, C, H, W]`; result: `[1]`. `condition` is what the images
    /// show.
    pub fn mean(&self, a: Tensor<4>, b: Tensor<4>, condition: &Conditions) -> Tensor<1> {
        let flat = |a: Tensor<4>, b: Tensor<4>| {
            let [batch, channels, height, width] = a.dims();
            (a - b).reshape([batch, channels * height * width])
        };
        match self {
            Self::PseudoHuber => {
                // Dividing by `sqrt(d)` turns |a - b|^2 into a mean square and c into a constant.
                const C: f32 = 0.00054;
                let difference = flat(a, b);
                let square = (difference.clone() * difference).mean_dim(1);
                ((square + C * C).sqrt() - C).mean()
            }
            Self::L2 => {
                let difference = flat(a, b);
                (difference.clone() * difference).mean_dim(1).mean()
            }
            Self::L1 => flat(a, b).abs().mean_dim(1).mean(),
            Self::Lpips { lpips, decoder } => {
                let [a, b] = match decoder {
                    Some(decoder) => [a, b].map(|latents| decoder.map(latents)),
                    None => [a, b],
                };
                // Large pictures as they are: a reduction without a filter would skip most of their pixels.
                let [_, _, height, width] = a.dims();
                if height.min(width) < SIDE {
                    lpips.distances(a, b).mean()
                } else {
                    lpips.distances_at(a, b).mean()
                }
            }
            Self::TeacherFeatures(teacher) => {
                let encode = |images: Tensor<4>| {
                    let [batch, ..] = images.dims();
                    teacher.encode(images, &vec![1.0; batch], condition.clone().without_label())
                };
                let pairs = encode(a).into_iter().zip(encode(b));
                let distances: Vec<Tensor<1>> = pairs
                    .map(|(a, b)| {
                        let difference = normalized(a) - normalized(b);
                        (difference.clone() * difference).sum_dim(1).mean()
                    })
                    .collect();
                Tensor::cat(distances, 0).mean()
            }
        }
    }
}
