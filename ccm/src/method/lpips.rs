//! LPIPS, the distance of PAPER.md §6: the distance between two images in the feature space of a pretrained network (Zhang
//! et al., arXiv 1801.03924).
//!
//! The trunk is VGG16 or AlexNet with torchvision's weights. Five of its feature maps are compared: at every pixel the
//! features are normalised to length 1; a head, with the weights of the package `lpips`, weights the squared differences
//! of the channels; the results are averaged over the pixels and summed over the five maps.

use std::collections::BTreeMap;

use burn::tensor::activation::relu;
use burn::tensor::module::{conv2d, max_pool2d};
use burn::tensor::ops::{ConvOptions, MaxPoolOptions};
use burn::tensor::{Device, Tensor, TensorData};

use crate::model::TensorSpec;
use crate::nn::ops::conv;
use crate::weights::{HostTensor, WeightsError};

/// Height and width that images are resized to (PAPER.md §6).
pub const SIDE: usize = 224;

/// The trunk's input is `(image - SHIFT) / SCALE`, per channel.
const SHIFT: [f32; 3] = [-0.030, -0.088, -0.188];
/// See [`SHIFT`].
const SCALE: [f32; 3] = [0.458, 0.448, 0.450];

/// Added to the length of a feature vector before dividing by it.
const EPSILON: f64 = 1e-10;

/// The pretrained network that extracts the features.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trunk {
    /// VGG16 (Simonyan and Zisserman, arXiv 1409.1556).
    Vgg16,
    /// AlexNet, as in torchvision (Krizhevsky, arXiv 1404.5997).
    AlexNet,
}

/// A layer of a trunk.
#[derive(Debug, Clone, Copy)]
enum Layer {
    /// A convolution with bias, followed by ReLU.
    Convolution { outputs: usize, kernel: usize, stride: usize },
    /// Max pooling with this kernel size and stride 2.
    Pool(usize),
    /// Not a layer: the features at this point are compared.
    Tap,
}

/// Padding of AlexNet's first convolution, which has stride 4.
const STEM_PADDING: usize = 2;

/// A map that a trunk computes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MapOf {
    /// Number of its values, for one image.
    pub(crate) values: usize,
    /// Whether a pool computes it, instead of a convolution.
    pub(crate) pooled: bool,
    /// Whether two images are compared in it.
    pub(crate) compared: bool,
}

impl Trunk {
    fn layers(self) -> Vec<Layer> {
        use Layer::{Convolution, Pool, Tap};
        let convolution = |outputs, kernel, stride| Convolution { outputs, kernel, stride };
        let mut layers = Vec::new();
        match self {
            Self::Vgg16 => {
                for (block, (outputs, count)) in
                    [(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)].into_iter().enumerate()
                {
                    if block > 0 {
                        layers.push(Pool(2));
                    }
                    layers.extend((0..count).map(|_| convolution(outputs, 3, 1)));
                    layers.push(Tap);
                }
            }
            Self::AlexNet => layers.extend([
                convolution(64, 11, 4),
                Tap,
                Pool(3),
                convolution(192, 5, 1),
                Tap,
                Pool(3),
                convolution(384, 3, 1),
                Tap,
                convolution(256, 3, 1),
                Tap,
                convolution(256, 3, 1),
                Tap,
            ]),
        }
        layers
    }

    /// The maps after each convolution and pool, for images of this height and width.
    pub(crate) fn maps(self, [mut height, mut width]: [usize; 2]) -> Vec<MapOf> {
        let mut maps: Vec<MapOf> = Vec::new();
        let mut channels = 3;
        for layer in self.layers() {
            match layer {
                Layer::Convolution { outputs, kernel, stride } => {
                    let padding = if stride == 1 { kernel / 2 } else { STEM_PADDING };
                    [height, width] = [height, width].map(|side| (side + 2 * padding - kernel) / stride + 1);
                    channels = outputs;
                }
                Layer::Pool(size) => [height, width] = [height, width].map(|side| (side - size) / 2 + 1),
                Layer::Tap => {
                    maps.last_mut().into_iter().for_each(|map| map.compared = true);
                    continue;
                }
            }
            let pooled = matches!(layer, Layer::Pool(_));
            maps.push(MapOf { values: channels * height * width, pooled, compared: false });
        }
        maps
    }

    /// Names and shapes of the tensors read from torchvision's file, and of those read from the file of `lpips`.
    pub fn tensors(self) -> [Vec<TensorSpec>; 2] {
        let (mut trunk, mut heads) = (Vec::new(), Vec::new());
        let spec = |name: String, shape: &[usize]| TensorSpec { name, shape: shape.to_vec() };
        // torchvision numbers convolutions, ReLUs and pools.
        let (mut number, mut inputs) = (0, 3);
        for layer in self.layers() {
            match layer {
                Layer::Convolution { outputs, kernel, .. } => {
                    let weight = [outputs, inputs, kernel, kernel];
                    trunk.push(spec(format!("features.{number}.weight"), &weight));
                    trunk.push(spec(format!("features.{number}.bias"), &[outputs]));
                    (number, inputs) = (number + 2, outputs);
                }
                Layer::Pool(_) => number += 1,
                Layer::Tap => {
                    heads.push(spec(format!("lin{}.model.1.weight", heads.len()), &[1, inputs, 1, 1]));
                }
            }
        }
        [trunk, heads]
    }
}

/// The weights of a trunk and its heads, in memory.
#[derive(Debug, Clone)]
pub struct LpipsWeights {
    trunk: Trunk,
    /// Weight `[outputs, inputs, kernel, kernel]` and bias `[outputs]` of each convolution.
    convolutions: Vec<[HostTensor; 2]>,
    /// Weight `[1, channels, 1, 1]` for each tap.
    heads: Vec<HostTensor>,
}

impl LpipsWeights {
    /// Takes the weights of torchvision's trunk and of the heads of `lpips`. Other tensors are ignored.
    ///
    /// # Errors
    /// If a tensor is missing or has the wrong shape. The error has its name.
    pub fn new(
        trunk: Trunk,
        mut features: BTreeMap<String, HostTensor>,
        mut heads: BTreeMap<String, HostTensor>,
    ) -> Result<Self, WeightsError> {
        let [of_trunk, of_heads] = trunk.tensors();
        let take = |named: &mut BTreeMap<String, HostTensor>, TensorSpec { name, shape }: &TensorSpec| {
            let tensor = named.remove(name).ok_or(WeightsError::Missing(name.clone()))?;
            if tensor.shape != *shape {
                let (name, expected) = (name.clone(), shape.clone());
                return Err(WeightsError::Shape { name, expected, found: tensor.shape });
            }
            Ok(tensor)
        };
        let convolutions = of_trunk
            .as_chunks::<2>()
            .0
            .iter()
            .map(|[weight, bias]| Ok([take(&mut features, weight)?, take(&mut features, bias)?]));
        let convolutions = convolutions.collect::<Result<_, WeightsError>>()?;
        let heads = of_heads.iter().map(|head| take(&mut heads, head)).collect::<Result<_, _>>()?;
        Ok(Self { trunk, convolutions, heads })
    }

    /// The network of these weights.
    pub fn trunk(&self) -> Trunk {
        self.trunk
    }
}

/// LPIPS on a device.
#[derive(Debug, Clone)]
pub struct Lpips {
    trunk: Trunk,
    convolutions: Vec<(Tensor<4>, Tensor<1>)>,
    heads: Vec<Tensor<4>>,
}

impl Lpips {
    /// Copies the weights to a device. The device need not record gradients.
    pub fn new(weights: &LpipsWeights, device: &Device) -> Self {
        fn tensor<const D: usize>(HostTensor { shape, values }: &HostTensor, device: &Device) -> Tensor<D> {
            Tensor::from_data(TensorData::new(values.clone(), shape.clone()), device)
        }
        let convolutions = weights.convolutions.iter();
        Self {
            trunk: weights.trunk,
            convolutions: convolutions
                .map(|[weight, bias]| (tensor(weight, device), tensor(bias, device)))
                .collect(),
            heads: weights.heads.iter().map(|head| tensor(head, device)).collect(),
        }
    }

    /// The distance of each pair, `[B]`. `a` and `b` are `[B, C, H, W]` in [-1, 1], C = 1 or 3. Both are resized to
    /// [`SIDE`] x [`SIDE`] by bilinear interpolation. Gradients flow to `a` only.
    pub fn distances(&self, a: Tensor<4>, b: Tensor<4>) -> Tensor<1> {
        self.distances_at(upsampled(a, SIDE), upsampled(b, SIDE))
    }

    /// Like [`Lpips::distances`], without resizing.
    pub fn distances_at(&self, a: Tensor<4>, b: Tensor<4>) -> Tensor<1> {
        let tracked = a.device().is_autodiff();
        let b = if b.device().is_autodiff() { b.inner() } else { b };
        let lifted = |x: Tensor<4>| if tracked { x.autodiff() } else { x };
        let [batch, ..] = a.dims();
        let (seen, target) = (self.features(a), self.features(b));
        let layers = seen.into_iter().zip(target).zip(&self.heads).map(|((a, b), head)| {
            let difference = normalized(a) - lifted(normalized(b));
            let weighted = difference.clone() * difference * lifted(head.clone());
            // Summed over the channels, averaged over the pixels.
            weighted.sum_dim(1).mean_dim(3).mean_dim(2).reshape([batch])
        });
        layers.reduce(|sum, layer| sum + layer).unwrap_or_else(|| Tensor::zeros([batch], &Default::default()))
    }

    /// The feature maps at the taps, in the order of the layers.
    fn features(&self, images: Tensor<4>) -> Vec<Tensor<4>> {
        let device = images.device();
        let tracked = device.is_autodiff();
        let [_, channels, ..] = images.dims();
        let images = if channels == 1 { images.repeat_dim(1, 3) } else { images };
        let plain = device.without_autodiff();
        let per_channel = |values: [f32; 3]| {
            let tensor = Tensor::<4>::from_data(TensorData::new(values.to_vec(), [1, 3, 1, 1]), &plain);
            if tracked { tensor.autodiff() } else { tensor }
        };
        let mut x = (images - per_channel(SHIFT)) / per_channel(SCALE);
        let mut convolutions = self.convolutions.iter();
        let mut maps = Vec::new();
        for layer in self.trunk.layers() {
            match layer {
                Layer::Convolution { kernel, stride, .. } => {
                    let Some((weight, bias)) = convolutions.next() else { continue };
                    let (weight, bias) = (weight.clone(), bias.clone());
                    let (weight, bias) =
                        if tracked { (weight.autodiff(), bias.autodiff()) } else { (weight, bias) };
                    x = relu(if kernel == 3 {
                        conv(x, weight, bias.unsqueeze(), 1)
                    } else {
                        let padding = if stride == 1 { kernel / 2 } else { STEM_PADDING };
                        conv2d(x, weight, Some(bias), ConvOptions::new([stride; 2], [padding; 2], [1; 2], 1))
                    });
                }
                Layer::Pool(size) => {
                    x = max_pool2d(x, MaxPoolOptions { stride: [2; 2], ..MaxPoolOptions::new([size; 2]) });
                }
                Layer::Tap => maps.push(x.clone()),
            }
        }
        maps
    }
}

/// Normalises the features at every pixel to length 1. `[B, C, H, W]`
pub(super) fn normalized(x: Tensor<4>) -> Tensor<4> {
    // The first epsilon keeps the gradient of the root finite where all features are zero.
    let length = ((x.clone() * x.clone()).sum_dim(1) + EPSILON * EPSILON).sqrt() + EPSILON;
    x / length
}

/// Resizes to `side` x `side` by bilinear interpolation between pixel centres, as two differentiable matrix products.
fn upsampled(x: Tensor<4>, side: usize) -> Tensor<4> {
    let [batch, channels, height, width] = x.dims();
    let tracked = x.device().is_autodiff();
    let plain = x.device().without_autodiff();
    let matrix = |size: usize| {
        let mut values = vec![0.0f32; side * size];
        for (i, row) in values.chunks_exact_mut(size).enumerate() {
            let place = ((i as f64 + 0.5) * size as f64 / side as f64 - 0.5).max(0.0);
            let first = (place as usize).min(size - 1);
            let share = (place - first as f64) as f32;
            row[first] += 1.0 - share;
            row[(first + 1).min(size - 1)] += share;
        }
        let matrix = Tensor::<3>::from_data(TensorData::new(values, [1, side, size]), &plain);
        if tracked { matrix.autodiff() } else { matrix }
    };
    let planes = x.reshape([batch * channels, height, width]);
    let rows = matrix(height).expand([batch * channels, side, height]).matmul(planes);
    let columns = matrix(width).expand([batch * channels, side, width]).swap_dims(1, 2);
    rows.matmul(columns).reshape([batch, channels, side, side])
}
