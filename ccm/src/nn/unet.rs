//! The velocity network as a Burn module, built from [`UNetSpec`].
//!
//! ADM's U-Net (Dhariwal and Nichol, arXiv 2105.05233, as torchcfm has it). Parameters are
//! found by the names of [`UNetSpec::tensors`]; see [`super::layers`].

use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::activation::{silu, softmax};
use burn::tensor::{Device, Int, Tensor, TensorData};

use super::layers::{Convolution, Linear, Loader, parameters, zip_map};
use super::ops::{conv, group_norm};
use crate::noise::Noise;
use crate::spec::{LayerSpec, ModelCard, Resample, UNetSpec};
use crate::weights::{HostTensor, Model, Precision};

/// `v(x, t[, label])`, the velocity of PAPER.md §1.
#[derive(Module, Debug)]
pub struct UNet {
    time_embed: [Linear; 2],
    label_emb: Option<Param<Tensor<2>>>,
    input_blocks: Vec<Block>,
    middle_block: Block,
    output_blocks: Vec<Block>,
    out_norm: Norm,
    out_conv: Convolution,
    #[module(skip)]
    spec: UNetSpec,
}

#[derive(Module, Debug)]
struct Block {
    layers: Vec<Layer>,
}

#[derive(Module, Debug)]
#[expect(clippy::large_enum_variant, reason = "most layers are residual blocks")]
enum Layer {
    Conv(Convolution),
    ResBlock(ResBlock),
    Attention(Attention),
    Downsample(Convolution),
    Upsample(Convolution),
}

/// The 1x1 convolution of an attention layer, whose weight is three-dimensional in PyTorch.
#[derive(Module, Debug)]
struct Pointwise {
    weight: Param<Tensor<3>>,
    bias: Param<Tensor<1>>,
}

/// The affine map of a group norm.
#[derive(Module, Debug)]
struct Norm {
    weight: Param<Tensor<1>>,
    bias: Param<Tensor<1>>,
}

#[derive(Module, Debug)]
struct ResBlock {
    in_norm: Norm,
    in_conv: Convolution,
    embed: Linear,
    out_norm: Norm,
    out_conv: Convolution,
    skip_connection: Option<Convolution>,
    dropout: Dropout,
    #[module(skip)]
    resample: Option<Resample>,
    use_scale_shift_norm: bool,
}

#[derive(Module, Debug)]
struct Attention {
    norm: Norm,
    qkv: Pointwise,
    proj_out: Pointwise,
    num_heads: usize,
    use_new_attention_order: bool,
}

impl UNet {
    /// The network with a model's weights.
    ///
    /// With a device that records gradients, the parameters ask for them and dropout is active.
    ///
    /// # Panics
    /// If a tensor of the model is missing or has another shape than its spec says, by name.
    pub fn new(model: &Model, device: &Device) -> Self {
        let spec = &model.spec;
        let (layout, specs) = (spec.layout(), spec.tensors());
        let mut load = Loader::new(&specs, &model.tensors, device);
        let mut blocks = |name: &str, blocks: &[Vec<LayerSpec>]| -> Vec<Block> {
            let block =
                |(i, layers): (usize, &Vec<LayerSpec>)| load.block(&format!("{name}.{i}"), layers, spec);
            blocks.iter().enumerate().map(block).collect()
        };
        let input_blocks = blocks("input_blocks", &layout.input_blocks);
        let output_blocks = blocks("output_blocks", &layout.output_blocks);
        let unet = Self {
            time_embed: [load.linear("time_embed.0"), load.linear("time_embed.2")],
            label_emb: spec.num_classes.map(|_| load.param("label_emb.weight")),
            input_blocks,
            middle_block: load.block("middle_block", &layout.middle_block, spec),
            output_blocks,
            out_norm: load.norm("out.0"),
            out_conv: load.convolution("out.2"),
            spec: spec.clone(),
        };
        load.finish();
        unet
    }

    /// The architecture.
    pub fn spec(&self) -> &UNetSpec {
        &self.spec
    }

    /// `v(x, t[, label])`.
    ///
    /// # Shapes
    /// - `x`, result: `[B, C, H, W]`
    /// - `t`: `[B]`, in [0, 1]
    /// - `label`: `[B]`, below the spec's `num_classes`; `None` exactly if the model has no classes
    pub fn forward(&self, x: Tensor<4>, t: Tensor<1>, label: Option<Tensor<1, Int>>) -> Tensor<4> {
        let embed = silu(self.embed(t, label));
        let mut kept = Vec::new();
        let mut h = x;
        for block in &self.input_blocks {
            h = block.forward(h, &embed);
            kept.push(h.clone());
        }
        h = self.middle_block.forward(h, &embed);
        for (block, skip) in self.output_blocks.iter().zip(kept.into_iter().rev()) {
            h = block.forward(Tensor::cat(vec![h, skip], 1), &embed);
        }
        self.out_conv.forward(self.out_norm.forward(h, true), None, 1)
    }

    /// The feature maps of the way down, the last of each size, and that of the middle block, for images `[B, C, H, W]`
    /// at the time `t` of their way: `[B, level_channels, H >> level, W >> level]` each.
    pub fn encode(&self, x: Tensor<4>, t: Tensor<1>, label: Option<Tensor<1, Int>>) -> Vec<Tensor<4>> {
        let embed = silu(self.embed(t, label));
        let mut maps: Vec<Tensor<4>> = Vec::new();
        let mut h = x;
        for block in &self.input_blocks {
            h = block.forward(h, &embed);
            match maps.last_mut() {
                Some(last) if last.dims()[2..] == h.dims()[2..] => *last = h.clone(),
                _ => maps.push(h.clone()),
            }
        }
        maps.push(self.middle_block.forward(h, &embed));
        maps
    }

    /// The network as a fixed feature extractor: gradients flow through it to its input, its weights get none, and
    /// dropout is off.
    pub fn frozen(model: &Model, device: &Device) -> Self {
        let mut model = model.clone();
        model.spec.dropout = 0.0;
        Self::new(&model, &device.clone().autodiff()).no_grad()
    }

    /// The embedding of time and label, `[B, 4 * model_channels]`.
    fn embed(&self, t: Tensor<1>, label: Option<Tensor<1, Int>>) -> Tensor<2> {
        let [first, second] = &self.time_embed;
        let embed = second.forward(silu(first.forward(timestep_embedding(t, self.spec.model_channels))));
        match (&self.label_emb, label) {
            (Some(table), Some(label)) => embed + table.val().select(0, label),
            _ => embed,
        }
    }

    /// The same network, recording no gradients and without dropout.
    pub fn without_gradients(&self) -> Self {
        self.valid()
    }

    /// The weights, in the order of the spec.
    pub fn to_model(&self, card: ModelCard) -> Model {
        let tensors = self
            .parameters()
            .into_iter()
            .zip(self.spec.tensors())
            .map(|(values, tensor)| HostTensor { shape: tensor.shape, values: to_host(values) })
            .collect();
        Model { spec: self.spec.clone(), card, precision: Precision::F32, tensors }
    }

    /// The parameters, flat, without gradients, in the order of the spec.
    pub fn parameters(&self) -> Vec<Tensor<1>> {
        parameters(self)
    }

    /// Replaces every parameter by `f(parameter, value)`, the values in the order of [`UNet::parameters`].
    pub fn zip_map(self, values: Vec<Tensor<1>>, f: impl FnMut(Tensor<1>, Tensor<1>) -> Tensor<1>) -> Self {
        zip_map(self, values, f)
    }
}

/// The values of a tensor of any floating-point type, as `f32`.
pub fn to_host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    #[expect(clippy::expect_used, reason = "the line before makes it f32")]
    tensor.into_data().convert::<f32>().try_into_vec::<f32>().expect("converted to f32")
}

/// Weights as PyTorch draws them for this network: uniform within `1 / sqrt(inputs)`, embeddings normal, and
/// zero where guided-diffusion starts a residual branch or the output at zero.
pub fn random_model(spec: &UNetSpec, seed: u64) -> Model {
    let tensors = spec.tensors();
    let zero_in_block = ["out_layers.3", "proj_out", "out.2"];
    let mut fan_in = 1;
    let values = tensors.iter().enumerate().map(|(i, tensor)| {
        let mut noise = Noise::new(seed, i as u64);
        let count = tensor.shape.iter().product();
        #[expect(clippy::expect_used, reason = "`UNetSpec::tensors` names layer and kind")]
        let (layer, kind) = tensor.name.rsplit_once('.').expect("a layer and its weight or bias");
        let is_norm = kind == "weight" && tensor.shape.len() == 1;
        let follows_norm = kind == "bias" && i > 0 && tensors[i - 1].shape.len() == 1;
        if kind == "weight" {
            fan_in = tensor.shape[1..].iter().product();
        }
        let bound = 1.0 / (fan_in as f64).sqrt();
        let values = if layer == "label_emb" {
            noise.normals(count)
        } else if is_norm {
            vec![1.0; count]
        } else if follows_norm || zero_in_block.iter().any(|name| layer.ends_with(name)) {
            vec![0.0; count]
        } else {
            noise.uniforms(count, bound)
        };
        HostTensor { shape: tensor.shape.clone(), values }
    });
    Model {
        spec: spec.clone(),
        card: ModelCard::default(),
        precision: Precision::F32,
        tensors: values.collect(),
    }
}

impl Loader<'_> {
    fn norm(&mut self, name: &str) -> Norm {
        Norm { weight: self.param(&format!("{name}.weight")), bias: self.param(&format!("{name}.bias")) }
    }

    fn pointwise(&mut self, name: &str) -> Pointwise {
        Pointwise { weight: self.param(&format!("{name}.weight")), bias: self.param(&format!("{name}.bias")) }
    }

    fn block(&mut self, name: &str, layers: &[LayerSpec], spec: &UNetSpec) -> Block {
        let layer = |(j, layer)| self.layer(&format!("{name}.{j}"), layer, spec);
        Block { layers: layers.iter().enumerate().map(layer).collect() }
    }

    fn layer(&mut self, name: &str, layer: &LayerSpec, spec: &UNetSpec) -> Layer {
        let part = |part: &str| format!("{name}.{part}");
        match *layer {
            LayerSpec::Conv { .. } => Layer::Conv(self.convolution(name)),
            LayerSpec::Downsample { .. } => Layer::Downsample(self.convolution(&part("op"))),
            LayerSpec::Upsample { .. } => Layer::Upsample(self.convolution(&part("conv"))),
            LayerSpec::ResBlock { in_channels, out_channels, resample } => Layer::ResBlock(ResBlock {
                in_norm: self.norm(&part("in_layers.0")),
                in_conv: self.convolution(&part("in_layers.2")),
                embed: self.linear(&part("emb_layers.1")),
                out_norm: self.norm(&part("out_layers.0")),
                out_conv: self.convolution(&part("out_layers.3")),
                skip_connection: (in_channels != out_channels)
                    .then(|| self.convolution(&part("skip_connection"))),
                dropout: DropoutConfig::new(spec.dropout).init(),
                resample,
                use_scale_shift_norm: spec.use_scale_shift_norm,
            }),
            LayerSpec::Attention { num_heads, .. } => Layer::Attention(Attention {
                norm: self.norm(&part("norm")),
                qkv: self.pointwise(&part("qkv")),
                proj_out: self.pointwise(&part("proj_out")),
                num_heads,
                use_new_attention_order: spec.use_new_attention_order,
            }),
        }
    }
}

impl Block {
    fn forward(&self, x: Tensor<4>, embed: &Tensor<2>) -> Tensor<4> {
        self.layers.iter().fold(x, |x, layer| match layer {
            Layer::Conv(conv) => conv.forward(x, None, 1),
            Layer::ResBlock(block) => block.forward(x, embed),
            Layer::Attention(attention) => attention.forward(x),
            Layer::Downsample(conv) => conv.forward(x, None, 2),
            Layer::Upsample(conv) => conv.forward(upsample(x), None, 1),
        })
    }
}

impl Pointwise {
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        conv(x, self.weight.val().unsqueeze_dim(3), self.bias.val().unsqueeze(), 1)
    }
}

impl Norm {
    fn forward(&self, x: Tensor<4>, silu: bool) -> Tensor<4> {
        let [batch, channels, ..] = x.dims();
        let per_image = |value: Tensor<1>| value.unsqueeze::<2>().expand([batch, channels]);
        group_norm(x, per_image(self.weight.val()), per_image(self.bias.val()), silu)
    }

    /// Norm, SiLU, with a scale and a shift for every image and channel: `[B, C]` each.
    fn forward_conditioned(&self, x: Tensor<4>, scale: Tensor<2>, shift: Tensor<2>) -> Tensor<4> {
        let scale = scale + 1.0;
        let gain = scale.clone() * self.weight.val().unsqueeze();
        let offset = scale * self.bias.val().unsqueeze() + shift;
        group_norm(x, gain, offset, true)
    }
}

impl ResBlock {
    fn forward(&self, x: Tensor<4>, embed: &Tensor<2>) -> Tensor<4> {
        let resample = |x| match self.resample {
            None => x,
            Some(Resample::Down) => downsample(x),
            Some(Resample::Up) => upsample(x),
        };
        let h = resample(self.in_norm.forward(x.clone(), true));
        let x = resample(x);
        let condition = self.embed.forward(embed.clone());
        let h = if self.use_scale_shift_norm {
            let h = self.in_conv.forward(h, None, 1);
            let [batch, channels, ..] = h.dims();
            let scale = condition.clone().slice([0..batch, 0..channels]);
            let shift = condition.slice([0..batch, channels..2 * channels]);
            self.out_norm.forward_conditioned(h, scale, shift)
        } else {
            self.out_norm.forward(self.in_conv.forward(h, Some(condition), 1), true)
        };
        let h = self.out_conv.forward(self.dropout.forward(h), None, 1);
        let x = match &self.skip_connection {
            Some(conv) => conv.forward(x, None, 1),
            None => x,
        };
        x + h
    }
}

impl Attention {
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [batch, channels, height, width] = x.dims();
        let (heads, positions) = (self.num_heads, height * width);
        let width_of_head = channels / heads;
        let qkv = self.qkv.forward(self.norm.forward(x.clone(), false));
        // `[B, heads, channels of a head, positions]` each.
        let part = |index: usize| {
            if self.use_new_attention_order {
                let qkv = qkv.clone().reshape([batch, 3, heads, width_of_head, positions]);
                qkv.narrow(1, index, 1).squeeze_dim::<4>(1)
            } else {
                let qkv = qkv.clone().reshape([batch, heads, 3, width_of_head, positions]);
                qkv.narrow(2, index, 1).squeeze_dim::<4>(2)
            }
        };
        let (q, k, v) = (part(0), part(1), part(2));
        let scale = (width_of_head as f64).sqrt().recip();
        let weight = softmax((q * scale).swap_dims(2, 3).matmul(k), 3);
        let h = v.matmul(weight.swap_dims(2, 3)).reshape([batch, channels, height, width]);
        x + self.proj_out.forward(h)
    }
}

/// Sines and cosines of the time at `channels / 2` frequencies: `[B] -> [B, channels]`.
fn timestep_embedding(t: Tensor<1>, channels: usize) -> Tensor<2> {
    const MAX_PERIOD: f32 = 10_000.0;
    let half = channels / 2;
    let frequencies: Vec<f32> =
        (0..half).map(|i| (-MAX_PERIOD.ln() * i as f32 / half as f32).exp()).collect();
    let frequencies = Tensor::<2>::from_data(TensorData::new(frequencies, [1, half]), &t.device());
    let angles = t.unsqueeze_dim::<2>(1) * frequencies;
    Tensor::cat(vec![angles.clone().cos(), angles.sin()], 1)
}

/// Nearest-neighbour upsampling by 2.
fn upsample(x: Tensor<4>) -> Tensor<4> {
    let [batch, channels, height, width] = x.dims();
    x.reshape([batch, channels, height, 1, width, 1])
        .expand([batch, channels, height, 2, width, 2])
        .reshape([batch, channels, 2 * height, 2 * width])
}

/// 2x2 average pooling.
fn downsample(x: Tensor<4>) -> Tensor<4> {
    let [batch, channels, height, width] = x.dims();
    x.reshape([batch, channels, height / 2, 2, width / 2, 2]).mean_dim(5).mean_dim(3).reshape([
        batch,
        channels,
        height / 2,
        width / 2,
    ])
}

#[cfg(test)]
mod tests {
    use burn::tensor::DType;

    use super::*;

    #[test]
    fn values_of_any_floating_type_come_to_the_host() {
        let values = [0.5f32, -2.0, 3.25, 0.0];
        for dtype in [DType::F32, DType::F16, DType::BF16, DType::F64] {
            let tensor = Tensor::<1>::from_data(values, &Device::flex()).cast(dtype);
            assert_eq!(to_host(tensor), values, "{dtype:?}");
        }
    }
}
