//! The network of the FID: Inception-v3 (Szegedy et al., arXiv 1512.00567) with the weights of TensorFlow's 2015
//! release, as published by pytorch-fid and torchmetrics.
//!
//! As in that release, and unlike other versions of Inception-v3, average pools do not count padding, and the last
//! block uses a max pool instead of an average pool. Images are resized to 299x299 bilinearly (half-pixel centres).

use std::collections::BTreeMap;

use burn::tensor::activation::relu;
use burn::tensor::module::{avg_pool2d, conv2d, interpolate, max_pool2d};
use burn::tensor::ops::{AvgPoolOptions, ConvOptions, InterpolateMode, InterpolateOptions, MaxPoolOptions};
use burn::tensor::{Device, Tensor, TensorData};

use super::MetricsError;
use super::extractor::{Extractor, Features, fingerprint};
use crate::data::ImageShape;
use crate::model::TensorSpec;
use crate::nn::host::to_host;
use crate::weights::HostTensor;

/// Height and width of the input.
const SIDE: usize = 299;
/// Number of features.
const WIDTH: usize = 2048;
/// Number of logits.
const CLASSES: usize = 1008;
/// Epsilon of the batch norms.
const EPSILON: f64 = 1e-3;
/// Images per forward pass. A feature map of one image takes up to 6 MB.
const TOGETHER: usize = 16;

/// A convolution followed by batch norm and ReLU.
struct Layer {
    name: String,
    /// `[outputs, inputs, height, width]`.
    shape: [usize; 4],
    stride: usize,
    /// Whether the feature map keeps its size.
    padded: bool,
}

/// All convolutions, in the order of evaluation.
fn layers() -> Vec<Layer> {
    let mut layers = Vec::new();
    let mut add =
        |name: String, outputs: usize, inputs: usize, [height, width]: [usize; 2], stride, padded| {
            layers.push(Layer { name, shape: [outputs, inputs, height, width], stride, padded });
        };
    for (name, outputs, inputs, kernel, stride, padded) in [
        ("Conv2d_1a_3x3", 32, 3, 3, 2, false),
        ("Conv2d_2a_3x3", 32, 32, 3, 1, false),
        ("Conv2d_2b_3x3", 64, 32, 3, 1, true),
        ("Conv2d_3b_1x1", 80, 64, 1, 1, false),
        ("Conv2d_4a_3x3", 192, 80, 3, 1, false),
    ] {
        add(name.into(), outputs, inputs, [kernel; 2], stride, padded);
    }
    for (block, inputs, pool) in [("5b", 192, 32), ("5c", 256, 64), ("5d", 288, 64)] {
        for (branch, outputs, inputs, kernel) in [
            ("branch1x1", 64, inputs, 1),
            ("branch5x5_1", 48, inputs, 1),
            ("branch5x5_2", 64, 48, 5),
            ("branch3x3dbl_1", 64, inputs, 1),
            ("branch3x3dbl_2", 96, 64, 3),
            ("branch3x3dbl_3", 96, 96, 3),
            ("branch_pool", pool, inputs, 1),
        ] {
            add(format!("Mixed_{block}.{branch}"), outputs, inputs, [kernel; 2], 1, true);
        }
    }
    for (branch, outputs, inputs, kernel, stride) in [
        ("branch3x3", 384, 288, 3, 2),
        ("branch3x3dbl_1", 64, 288, 1, 1),
        ("branch3x3dbl_2", 96, 64, 3, 1),
        ("branch3x3dbl_3", 96, 96, 3, 2),
    ] {
        add(format!("Mixed_6a.{branch}"), outputs, inputs, [kernel; 2], stride, stride == 1);
    }
    for (block, inner) in [("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)] {
        for (branch, outputs, inputs, kernel) in [
            ("branch1x1", 192, 768, [1, 1]),
            ("branch7x7_1", inner, 768, [1, 1]),
            ("branch7x7_2", inner, inner, [1, 7]),
            ("branch7x7_3", 192, inner, [7, 1]),
            ("branch7x7dbl_1", inner, 768, [1, 1]),
            ("branch7x7dbl_2", inner, inner, [7, 1]),
            ("branch7x7dbl_3", inner, inner, [1, 7]),
            ("branch7x7dbl_4", inner, inner, [7, 1]),
            ("branch7x7dbl_5", 192, inner, [1, 7]),
            ("branch_pool", 192, 768, [1, 1]),
        ] {
            add(format!("Mixed_{block}.{branch}"), outputs, inputs, kernel, 1, true);
        }
    }
    for (branch, outputs, inputs, kernel, stride) in [
        ("branch3x3_1", 192, 768, [1, 1], 1),
        ("branch3x3_2", 320, 192, [3, 3], 2),
        ("branch7x7x3_1", 192, 768, [1, 1], 1),
        ("branch7x7x3_2", 192, 192, [1, 7], 1),
        ("branch7x7x3_3", 192, 192, [7, 1], 1),
        ("branch7x7x3_4", 192, 192, [3, 3], 2),
    ] {
        add(format!("Mixed_7a.{branch}"), outputs, inputs, kernel, stride, stride == 1);
    }
    for (block, inputs) in [("7b", 1280), ("7c", 2048)] {
        for (branch, outputs, inputs, kernel) in [
            ("branch1x1", 320, inputs, [1, 1]),
            ("branch3x3_1", 384, inputs, [1, 1]),
            ("branch3x3_2a", 384, 384, [1, 3]),
            ("branch3x3_2b", 384, 384, [3, 1]),
            ("branch3x3dbl_1", 448, inputs, [1, 1]),
            ("branch3x3dbl_2", 384, 448, [3, 3]),
            ("branch3x3dbl_3a", 384, 384, [1, 3]),
            ("branch3x3dbl_3b", 384, 384, [3, 1]),
            ("branch_pool", 192, inputs, [1, 1]),
        ] {
            add(format!("Mixed_{block}.{branch}"), outputs, inputs, kernel, 1, true);
        }
    }
    layers
}

/// Names and shapes of the tensors that are read from a file. Other tensors are ignored.
pub fn tensors() -> Vec<TensorSpec> {
    let mut tensors = Vec::new();
    let mut push = |name, shape: &[usize]| tensors.push(TensorSpec { name, shape: shape.to_vec() });
    for Layer { name, shape, .. } in layers() {
        push(format!("{name}.conv.weight"), &shape);
        for vector in ["weight", "bias", "running_mean", "running_var"] {
            push(format!("{name}.bn.{vector}"), &shape[..1]);
        }
    }
    push("fc.weight".into(), &[CLASSES, WIDTH]);
    tensors
}

/// The Inception-v3 network.
pub struct Inception {
    convolutions: BTreeMap<String, Convolution>,
    fc_weight: Tensor<2>,
    fingerprint: String,
}

/// A convolution with its batch norm folded in.
struct Convolution {
    weight: Tensor<4>,
    bias: Tensor<1>,
    options: ConvOptions<2>,
}

impl Inception {
    /// Creates the network from the tensors of a checkpoint.
    ///
    /// # Errors
    /// [`MetricsError::File`], with the name, if a tensor is missing or has another shape.
    pub fn new(mut named: BTreeMap<String, HostTensor>, device: &Device) -> Result<Self, MetricsError> {
        for TensorSpec { name, shape: expected } in tensors() {
            match named.get(&name) {
                None => return Err(MetricsError::File(format!("tensor `{name}` is missing"))),
                Some(HostTensor { shape, .. }) if *shape != expected => {
                    let text = format!("tensor `{name}`: expected shape {expected:?}, found {shape:?}");
                    return Err(MetricsError::File(text));
                }
                Some(_) => {}
            }
        }
        let fingerprint = fingerprint(tensors().iter().map(|tensor| &named[&tensor.name].values));
        #[expect(clippy::expect_used, reason = "checked above")]
        let mut take = |name: String| named.remove(&name).expect("every tensor is present").values;
        let mut convolutions = BTreeMap::new();
        for Layer { name, shape, stride, padded } in layers() {
            let mut weight = take(format!("{name}.conv.weight"));
            let [gain, offset, mean, variance] = ["weight", "bias", "running_mean", "running_var"]
                .map(|vector| take(format!("{name}.bn.{vector}")));
            let mut bias = Vec::with_capacity(shape[0]);
            for (i, kernel) in weight.chunks_exact_mut(shape[1] * shape[2] * shape[3]).enumerate() {
                let scale = f64::from(gain[i]) / (f64::from(variance[i]) + EPSILON).sqrt();
                kernel.iter_mut().for_each(|value| *value = (f64::from(*value) * scale) as f32);
                bias.push((f64::from(offset[i]) - f64::from(mean[i]) * scale) as f32);
            }
            let padding = if padded { [shape[2] / 2, shape[3] / 2] } else { [0; 2] };
            let convolution = Convolution {
                weight: Tensor::from_data(TensorData::new(weight, shape), device),
                bias: Tensor::from_data(TensorData::new(bias, [shape[0]]), device),
                options: ConvOptions::new([stride; 2], padding, [1; 2], 1),
            };
            convolutions.insert(name, convolution);
        }
        Ok(Self {
            convolutions,
            fc_weight: Tensor::from_data(TensorData::new(take("fc.weight".into()), [CLASSES, WIDTH]), device),
            fingerprint,
        })
    }

    /// Features `[B, 2048]` and logits `[B, 1008]` of images `[B, 3, H, W]` in [-1, 1]. The logits omit the bias, as is
    /// customary for the inception score.
    fn forward(&self, images: Tensor<4>) -> (Tensor<2>, Tensor<2>) {
        let resize = InterpolateOptions::new(InterpolateMode::Bilinear)
            .with_align_corners(false)
            .with_output_size([SIDE; 2]);
        let mut x = interpolate(images, resize);
        for name in ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3"] {
            x = self.conv(name, x);
        }
        x = largest(x, 2);
        for name in ["Conv2d_3b_1x1", "Conv2d_4a_3x3"] {
            x = self.conv(name, x);
        }
        x = largest(x, 2);
        for block in ["Mixed_5b", "Mixed_5c", "Mixed_5d"] {
            let pooled = average(x.clone());
            x = self.branches(
                block,
                x,
                &[
                    &["branch1x1"],
                    &["branch5x5_1", "branch5x5_2"],
                    &["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"],
                ],
                Some(pooled),
            );
        }
        let pooled = largest(x.clone(), 2);
        let branches: [&[&str]; 2] =
            [&["branch3x3"], &["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"]];
        x = Tensor::cat(vec![self.branches("Mixed_6a", x, &branches, None), pooled], 1);
        for block in ["Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"] {
            let pooled = average(x.clone());
            x = self.branches(
                block,
                x,
                &[
                    &["branch1x1"],
                    &["branch7x7_1", "branch7x7_2", "branch7x7_3"],
                    &[
                        "branch7x7dbl_1",
                        "branch7x7dbl_2",
                        "branch7x7dbl_3",
                        "branch7x7dbl_4",
                        "branch7x7dbl_5",
                    ],
                ],
                Some(pooled),
            );
        }
        let pooled = largest(x.clone(), 2);
        let branches: [&[&str]; 2] = [
            &["branch3x3_1", "branch3x3_2"],
            &["branch7x7x3_1", "branch7x7x3_2", "branch7x7x3_3", "branch7x7x3_4"],
        ];
        x = Tensor::cat(vec![self.branches("Mixed_7a", x, &branches, None), pooled], 1);
        let pooled = average(x.clone());
        x = self.last_block("Mixed_7b", x, pooled);
        // A max pool as in TensorFlow's release; the other blocks have average pools here.
        let pooled = largest(x.clone(), 1);
        x = self.last_block("Mixed_7c", x, pooled);
        let [images, channels, height, width] = x.dims();
        let features = x.reshape([images, channels, height * width]).mean_dim(2).squeeze_dim::<2>(2);
        let logits = features.clone().matmul(self.fc_weight.clone().transpose());
        (features, logits)
    }

    fn conv(&self, name: &str, x: Tensor<4>) -> Tensor<4> {
        let Convolution { weight, bias, options } = &self.convolutions[name];
        relu(conv2d(x, weight.clone(), Some(bias.clone()), options.clone()))
    }

    /// Concatenates the branches of a block. `pooled` is the input of the last branch.
    fn branches(
        &self,
        block: &str,
        x: Tensor<4>,
        branches: &[&[&str]],
        pooled: Option<Tensor<4>>,
    ) -> Tensor<4> {
        let through =
            |x, names: &[&str]| names.iter().fold(x, |x, name| self.conv(&format!("{block}.{name}"), x));
        let mut maps: Vec<Tensor<4>> = branches.iter().map(|names| through(x.clone(), names)).collect();
        maps.extend(pooled.map(|pooled| through(pooled, &["branch_pool"])));
        Tensor::cat(maps, 1)
    }

    /// A block at 8x8, in which two branches fork.
    fn last_block(&self, block: &str, x: Tensor<4>, pooled: Tensor<4>) -> Tensor<4> {
        let conv = |name: &str, x: Tensor<4>| self.conv(&format!("{block}.{name}"), x);
        let narrow = conv("branch3x3_1", x.clone());
        let wide = conv("branch3x3dbl_2", conv("branch3x3dbl_1", x.clone()));
        let maps = vec![
            conv("branch1x1", x),
            conv("branch3x3_2a", narrow.clone()),
            conv("branch3x3_2b", narrow),
            conv("branch3x3dbl_3a", wide.clone()),
            conv("branch3x3dbl_3b", wide),
            conv("branch_pool", pooled),
        ];
        Tensor::cat(maps, 1)
    }
}

/// Max pool over 3x3 pixels. With stride 1 the feature map keeps its size.
fn largest(x: Tensor<4>, stride: usize) -> Tensor<4> {
    let padding = if stride == 1 { 1 } else { 0 };
    max_pool2d(
        x,
        MaxPoolOptions {
            stride: [stride; 2],
            padding: [(padding, padding); 2],
            ..MaxPoolOptions::new([3; 2])
        },
    )
}

/// Average pool over 3x3 pixels without padding pixels.
fn average(x: Tensor<4>) -> Tensor<4> {
    let options = AvgPoolOptions {
        stride: [1; 2],
        padding: [(1, 1); 2],
        count_include_pad: false,
        ..AvgPoolOptions::new([3; 2])
    };
    avg_pool2d(x, options)
}

impl Extractor for Inception {
    fn name(&self) -> String {
        format!("Inception-v3 of the FID (weights {})", self.fingerprint)
    }

    fn width(&self) -> usize {
        WIDTH
    }

    fn classes(&self) -> usize {
        CLASSES
    }

    fn is_of_fid(&self) -> bool {
        true
    }

    fn shape(&self) -> Option<ImageShape> {
        None
    }

    fn extract(&self, images: Tensor<4>) -> Features {
        let [count, channels, ..] = images.dims();
        let images = if channels == 1 { images.repeat_dim(1, 3) } else { images };
        let mut seen = Features::default();
        for start in (0..count).step_by(TOGETHER) {
            let part = images.clone().narrow(0, start, TOGETHER.min(count - start));
            let (features, logits) = self.forward(part);
            seen.features.extend(to_host(features));
            seen.logits.extend(to_host(logits));
        }
        seen
    }
}
