//! Convolution and group norm, the operations that take most of a U-Net's time, as an extension of Burn.
//!
//! On the CPU they run [`super::kernels`]; on a GPU they run Burn's operations, which Burn fuses. The gradients
//! are explicit: a group norm with SiLU keeps only its inputs for the backward pass, not the intermediate maps.
//!
//! Maps and convolution weights may be in half precision. Sums are in single precision: on the CPU because the kernels convert,
//! on a GPU because Burn accumulates so and because group norms convert.

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::ops::ConvOptions;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, DType, Dispatch, Flex, Shape, TensorMetadata, backend_extension};
use burn::tensor::{FloatDType, Tensor};
use burn_wgpu::CubeBackend;
use half::slice::HalfFloatSliceExt as _;
use half::{bf16, f16};

use super::kernels::conv_weight_gradient::conv_weight_gradient;
use super::kernels::{Operands, conv as cpu_conv, group_norm as cpu_norm};

/// Whether the CPU's convolutions round their operands to bfloat16.
static BF16: AtomicBool = AtomicBool::new(false);

/// Sets the operands of all later convolutions and of their gradients on the CPU, in this process. Single precision by
/// default.
///
/// # Panics
/// If this processor lacks the instructions ([`Operands::available`]).
pub fn set_conv_operands(operands: Operands) {
    assert!(operands.available(), "this processor has no AVX512-BF16");
    BF16.store(operands == Operands::Bf16, Ordering::Relaxed);
}

fn operands() -> Operands {
    if BF16.load(Ordering::Relaxed) { Operands::Bf16 } else { Operands::F32 }
}

/// 3x3 (padding 1) or 1x1 convolution.
///
/// # Shapes
/// - `x`: `[B, C, H, W]`
/// - `weight`: `[D, C, K, K]`, K = 1 or 3
/// - `bias`: `[1, D]`, or `[B, D]` for one bias per image
/// - result: `[B, D, ceil(H / stride), ceil(W / stride)]`
pub fn conv(x: Tensor<4>, weight: Tensor<4>, bias: Tensor<2>, stride: usize) -> Tensor<4> {
    let y = Dispatch::unet_conv(x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch(), stride);
    Tensor::from_dispatch(y)
}

/// Options of a group norm.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Norm {
    /// Number of groups of channels, each with its own mean and variance; divides the number of channels.
    pub groups: usize,
    /// Added to the variance.
    pub epsilon: f32,
    /// Whether SiLU follows.
    pub silu: bool,
}

/// Group norm, then SiLU if `norm.silu`.
///
/// # Shapes
/// - `x`, result: `[B, C, H, W]`
/// - `gain`, `offset`: `[B, C]`, in single precision
pub fn group_norm(x: Tensor<4>, gain: Tensor<2>, offset: Tensor<2>, norm: Norm) -> Tensor<4> {
    let y = Dispatch::unet_norm(x.into_dispatch(), gain.into_dispatch(), offset.into_dispatch(), norm);
    Tensor::from_dispatch(y)
}

/// The operations and their gradients. The default bodies work on any backend; the CPU backend overrides them.
#[backend_extension(Flex, Cube, Fusion, Autodiff)]
pub trait UNetOps: Backend {
    /// See [`conv`].
    #[fusion(default)]
    fn unet_conv(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        stride: usize,
    ) -> FloatTensor<Self> {
        let [images, channels] = bias.shape().dims();
        let options = conv_options(&weight.shape(), stride);
        let y = Self::conv2d(x, weight, None, options);
        Self::float_add(y, Self::float_reshape(bias, Shape::new([images, channels, 1, 1])))
    }

    /// Gradient of [`conv`] with respect to `x`, which has the shape of `like`.
    #[fusion(default)]
    fn unet_conv_input_gradient(
        like: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        stride: usize,
    ) -> FloatTensor<Self> {
        let options = conv_options(&weight.shape(), stride);
        Self::conv2d_x_backward(like, weight, dy, options)
    }

    /// Gradient of [`conv`] with respect to `weight`, which has the shape of `like`.
    #[fusion(default)]
    fn unet_conv_weight_gradient(
        x: FloatTensor<Self>,
        like: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        stride: usize,
    ) -> FloatTensor<Self> {
        let options = conv_options(&like.shape(), stride);
        Self::conv2d_weight_backward(x, like, dy, options)
    }

    /// See [`group_norm`].
    #[fusion(default)]
    fn unet_norm(
        x: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        offset: FloatTensor<Self>,
        norm: Norm,
    ) -> FloatTensor<Self> {
        let (shape, dtype) = (x.shape(), x.dtype());
        let (normal, _) = normalize::<Self>(single::<Self>(x), norm);
        let z = affine::<Self>(normal, gain, offset);
        let y = if norm.silu { Self::float_mul(z.clone(), Self::sigmoid(z)) } else { z };
        Self::float_cast(Self::float_reshape(y, shape), dtype.into())
    }

    /// Gradients of [`group_norm`] with respect to `x`, `gain` and `offset`.
    #[fusion(default)]
    fn unet_norm_gradient(
        x: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        offset: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        norm: Norm,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let (shape, dtype) = (x.shape(), x.dtype());
        let [batch, channels, height, width] = shape.dims();
        let pixels = height * width;
        let planes = Shape::new([batch, channels, pixels]);
        let groups = Shape::new([batch, norm.groups, channels / norm.groups * pixels]);
        let per_channel = Shape::new([batch, channels]);

        let (normal, inverse) = normalize::<Self>(single::<Self>(x), norm);
        let dy = Self::float_reshape(single::<Self>(dy), planes.clone());
        let dz = if norm.silu {
            let z = affine::<Self>(normal.clone(), gain.clone(), offset);
            let s = Self::sigmoid(z.clone());
            // silu'(z) = s (1 + z (1 - s))
            let rest = Self::float_add_scalar(Self::float_neg(s.clone()), 1.0.into());
            let slope = Self::float_add_scalar(Self::float_mul(z, rest), 1.0.into());
            Self::float_mul(dy, Self::float_mul(s, slope))
        } else {
            dy
        };
        let doffset = Self::float_reshape(Self::float_sum_dim(dz.clone(), 2), per_channel.clone());
        let dgain = Self::float_sum_dim(Self::float_mul(dz.clone(), normal.clone()), 2);
        let dgain = Self::float_reshape(dgain, per_channel);

        let gain = Self::float_reshape(gain, Shape::new([batch, channels, 1]));
        let dnormal = Self::float_reshape(Self::float_mul(dz, gain), groups.clone());
        let normal = Self::float_reshape(normal, groups);
        let mean = Self::float_mean_dim(dnormal.clone(), 2);
        let slope = Self::float_mean_dim(Self::float_mul(dnormal.clone(), normal.clone()), 2);
        let dx = Self::float_sub(Self::float_sub(dnormal, mean), Self::float_mul(normal, slope));
        let dx = Self::float_reshape(Self::float_mul(dx, inverse), shape);
        (Self::float_cast(dx, dtype.into()), dgain, doffset)
    }
}

/// A tensor in single precision.
fn single<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    B::float_cast(x, FloatDType::F32)
}

fn conv_options(weight: &Shape, stride: usize) -> ConvOptions<2> {
    let [_, _, kernel, _] = weight.dims();
    let padding = kernel / 2;
    ConvOptions { stride: [stride; 2], padding: [(padding, padding); 2], dilation: [1; 2], groups: 1 }
}

/// `(x - mean) / std` as `[B, C, H * W]`, and `1 / std` as `[B, groups, 1]`.
fn normalize<B: Backend>(x: FloatTensor<B>, norm: Norm) -> (FloatTensor<B>, FloatTensor<B>) {
    let [batch, channels, height, width] = x.shape().dims();
    let x = B::float_reshape(x, Shape::new([batch, norm.groups, channels / norm.groups * height * width]));
    let x = B::float_sub(x.clone(), B::float_mean_dim(x, 2));
    let variance = B::float_mean_dim(B::float_mul(x.clone(), x.clone()), 2);
    let inverse = B::float_recip(B::float_sqrt(B::float_add_scalar(variance, norm.epsilon.into())));
    let normal = B::float_mul(x, inverse.clone());
    (B::float_reshape(normal, Shape::new([batch, channels, height * width])), inverse)
}

/// `gain * normal + offset`. `normal` and result: `[B, C, pixels]`; `gain`, `offset`: `[B, C]`.
fn affine<B: Backend>(
    normal: FloatTensor<B>,
    gain: FloatTensor<B>,
    offset: FloatTensor<B>,
) -> FloatTensor<B> {
    let [batch, channels] = gain.shape().dims();
    let column = Shape::new([batch, channels, 1]);
    B::float_add(
        B::float_mul(normal, B::float_reshape(gain, column.clone())),
        B::float_reshape(offset, column),
    )
}

impl UNetOps for CubeBackend {}

/// The values of a contiguous tensor, in single precision.
#[expect(clippy::expect_used, reason = "callers make tensors contiguous")]
fn values(tensor: &FlexTensor) -> Cow<'_, [f32]> {
    const CONTIGUOUS: &str = "the kernels of the CPU take contiguous tensors";
    let mut converted = Vec::new();
    match tensor.dtype() {
        DType::F16 => {
            let halves = tensor.as_slice::<f16>().expect(CONTIGUOUS);
            converted.resize(halves.len(), 0.0);
            halves.convert_to_f32_slice(&mut converted);
        }
        DType::BF16 => {
            let halves = tensor.as_slice::<bf16>().expect(CONTIGUOUS);
            converted.resize(halves.len(), 0.0);
            halves.convert_to_f32_slice(&mut converted);
        }
        _ => return Cow::Borrowed(tensor.as_slice::<f32>().expect(CONTIGUOUS)),
    }
    Cow::Owned(converted)
}

/// A new tensor of this shape and type, with the values that `fill` writes.
fn filled<const D: usize>(shape: [usize; D], dtype: DType, fill: impl FnOnce(&mut [f32])) -> FlexTensor {
    let mut tensor = FlexTensor::empty(Shape::new(shape), dtype);
    if dtype == DType::F32 {
        fill(tensor.storage_mut::<f32>());
        return tensor;
    }
    let mut values = vec![0.0; shape.iter().product()];
    fill(&mut values);
    match dtype {
        DType::F16 => tensor.storage_mut::<f16>().convert_from_f32_slice(&values),
        _ => tensor.storage_mut::<bf16>().convert_from_f32_slice(&values),
    }
    tensor
}

fn conv_shape(x: [usize; 4], weight: &Shape, stride: usize) -> cpu_conv::ConvShape {
    let [batch, in_channels, height, width] = x;
    let [out_channels, _, kernel, _] = weight.dims();
    cpu_conv::ConvShape { batch, in_channels, out_channels, height, width, kernel, stride }
}

fn norm_shape(x: [usize; 4], norm: Norm) -> cpu_norm::GroupNormShape {
    let [batch, channels, height, width] = x;
    cpu_norm::GroupNormShape { batch, channels, groups: norm.groups, pixels: height * width, silu: norm.silu }
}

impl UNetOps for Flex {
    fn unet_conv(x: FlexTensor, weight: FlexTensor, bias: FlexTensor, stride: usize) -> FlexTensor {
        let (x, weight, bias) = (x.to_contiguous(), weight.to_contiguous(), bias.to_contiguous());
        let shape = conv_shape(x.shape().dims(), &weight.shape(), stride);
        let y = [shape.batch, shape.out_channels, shape.out_height(), shape.out_width()];
        filled(y, x.dtype(), |y| {
            cpu_conv::conv(&shape, operands(), &values(&x), &values(&weight), &values(&bias), y);
        })
    }

    fn unet_conv_input_gradient(
        like: FlexTensor,
        weight: FlexTensor,
        dy: FlexTensor,
        stride: usize,
    ) -> FlexTensor {
        let (weight, dy) = (weight.to_contiguous(), dy.to_contiguous());
        let dims = like.shape().dims();
        let shape = conv_shape(dims, &weight.shape(), stride);
        filled(dims, like.dtype(), |dx| {
            cpu_conv::conv_input_gradient(&shape, operands(), &values(&weight), &values(&dy), dx);
        })
    }

    fn unet_conv_weight_gradient(
        x: FlexTensor,
        like: FlexTensor,
        dy: FlexTensor,
        stride: usize,
    ) -> FlexTensor {
        let (x, dy) = (x.to_contiguous(), dy.to_contiguous());
        let shape = conv_shape(x.shape().dims(), &like.shape(), stride);
        filled::<4>(like.shape().dims(), like.dtype(), |dweight| {
            conv_weight_gradient(&shape, operands(), &values(&x), &values(&dy), dweight);
        })
    }

    fn unet_norm(x: FlexTensor, gain: FlexTensor, offset: FlexTensor, norm: Norm) -> FlexTensor {
        let (x, gain, offset) = (x.to_contiguous(), gain.to_contiguous(), offset.to_contiguous());
        let dims = x.shape().dims();
        let shape = norm_shape(dims, norm);
        filled(dims, x.dtype(), |y| {
            cpu_norm::group_norm(&shape, norm.epsilon, &values(&x), &values(&gain), &values(&offset), y);
        })
    }

    fn unet_norm_gradient(
        x: FlexTensor,
        gain: FlexTensor,
        offset: FlexTensor,
        dy: FlexTensor,
        norm: Norm,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let (x, dy) = (x.to_contiguous(), dy.to_contiguous());
        let (gain, offset) = (gain.to_contiguous(), offset.to_contiguous());
        let dims = x.shape().dims();
        let shape = norm_shape(dims, norm);
        let (mut dgain, mut doffset) =
            (vec![0.0; shape.batch * shape.channels], vec![0.0; gain.shape().num_elements()]);
        let dx = filled(dims, x.dtype(), |dx| {
            cpu_norm::group_norm_gradient(
                &shape,
                norm.epsilon,
                &values(&x),
                &values(&gain),
                &values(&offset),
                &values(&dy),
                dx,
                &mut dgain,
                &mut doffset,
            );
        });
        let per_channel = [shape.batch, shape.channels];
        (
            dx,
            filled(per_channel, DType::F32, |to| to.copy_from_slice(&dgain)),
            filled(per_channel, DType::F32, |to| to.copy_from_slice(&doffset)),
        )
    }
}

#[derive(Debug)]
struct ConvBackward;

impl<B: UNetOps> Backward<B, 3> for ConvBackward {
    type State = (NodeId, NodeId, usize, usize);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let [node_x, node_weight, node_bias] = ops.parents;
        let dy = grads.consume::<B>(&ops.node);
        let (x, weight, bias_images, stride) = ops.state;
        let x: FloatTensor<B> = checkpointer.retrieve_node_output(x);
        let weight: FloatTensor<B> = checkpointer.retrieve_node_output(weight);
        if let Some(node) = node_bias {
            let [batch, channels, height, width] = dy.shape().dims();
            let dtype = dy.dtype();
            let sums = single::<B>(dy.clone());
            let sums = B::float_reshape(sums, Shape::new([batch, channels, height * width]));
            let sums = B::float_reshape(B::float_sum_dim(sums, 2), Shape::new([batch, channels]));
            let dbias = if bias_images == batch { sums } else { B::float_sum_dim(sums, 0) };
            grads.register::<B>(node.id, B::float_cast(dbias, dtype.into()));
        }
        if let Some(node) = node_x {
            let dx = B::unet_conv_input_gradient(x.clone(), weight.clone(), dy.clone(), stride);
            grads.register::<B>(node.id, dx);
        }
        if let Some(node) = node_weight {
            grads.register::<B>(node.id, B::unet_conv_weight_gradient(x, weight, dy, stride));
        }
    }
}

#[derive(Debug)]
struct NormBackward;

impl<B: UNetOps> Backward<B, 3> for NormBackward {
    type State = (NodeId, NodeId, NodeId, Norm);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let [node_x, node_gain, node_offset] = ops.parents;
        let dy = grads.consume::<B>(&ops.node);
        let (x, gain, offset, norm) = ops.state;
        let (dx, dgain, doffset) = B::unet_norm_gradient(
            checkpointer.retrieve_node_output(x),
            checkpointer.retrieve_node_output(gain),
            checkpointer.retrieve_node_output(offset),
            dy,
            norm,
        );
        for (node, gradient) in [(node_x, dx), (node_gain, dgain), (node_offset, doffset)] {
            if let Some(node) = node {
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}

impl<B: UNetOps, C: CheckpointStrategy> UNetOps for Autodiff<B, C> {
    fn unet_conv(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        stride: usize,
    ) -> FloatTensor<Self> {
        let bias_images = bias.primitive().shape()[0];
        let nodes = [x.node(), weight.node(), bias.node()];
        match ConvBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let state = (prep.checkpoint(&x), prep.checkpoint(&weight), bias_images, stride);
                prep.finish(
                    state,
                    B::unet_conv(x.into_primitive(), weight.into_primitive(), bias.into_primitive(), stride),
                )
            }
            OpsKind::UnTracked(prep) => prep.finish(B::unet_conv(
                x.into_primitive(),
                weight.into_primitive(),
                bias.into_primitive(),
                stride,
            )),
        }
    }

    fn unet_norm(
        x: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        offset: FloatTensor<Self>,
        norm: Norm,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), gain.node(), offset.node()];
        match NormBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let state = (prep.checkpoint(&x), prep.checkpoint(&gain), prep.checkpoint(&offset), norm);
                prep.finish(
                    state,
                    B::unet_norm(x.into_primitive(), gain.into_primitive(), offset.into_primitive(), norm),
                )
            }
            OpsKind::UnTracked(prep) => prep.finish(B::unet_norm(
                x.into_primitive(),
                gain.into_primitive(),
                offset.into_primitive(),
                norm,
            )),
        }
    }
}

#[cfg(test)]
mod tests;
