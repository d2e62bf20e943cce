//! Turns the operations of a plan into dispatches: kernel, uniform, buffers and workgroups.

use ccm_shaders::uniform::Uniform;
use ccm_shaders::{
    ATTENTION_DIRECT_WIDTH, ATTENTION_QUERIES, ATTENTION_WIDTH, Kernel, NORM_BLOCKS, NORMALIZE_RUN, Real,
    Tile, buffers, uniform,
};
use wgpu::Buffer;

use super::device::Device;
#[cfg(feature = "text")]
use super::prepared::folded;
use super::prepared::{line, uniform_bytes};
use super::weights::StoredWeight;
#[cfg(feature = "text")]
use crate::model::graph::Activation;
use crate::sampler::plan::{Attention, BLOCK, Channels, Conv, GroupNorm, Map, Op, Plan, Pool, Vector};
#[cfg(feature = "text")]
use crate::sampler::plan::{Copy, Factor, LayerNorm, Pointwise, Term};

/// Objects that do not depend on the number of images.
pub(super) struct Fixed {
    pub(super) real: Real,
    /// The tile of every convolution. `None` chooses one for each by its size and the adapter.
    pub(super) tile: Option<Tile>,
    pub(super) weights: Vec<StoredWeight>,
    pub(super) vectors: Buffer,
}

impl Fixed {
    /// The bytes of values of a feature map.
    #[cfg(feature = "text")]
    pub(super) fn real_bytes(&self, values: &[f32]) -> Vec<u8> {
        match self.real {
            Real::F32 => bytemuck::cast_slice(values).to_vec(),
            Real::F16 => values.iter().flat_map(|&value| half::f16::from_f32(value).to_le_bytes()).collect(),
        }
    }

    /// The values of bytes of a feature map.
    #[cfg(feature = "text")]
    pub(super) fn real_values(&self, bytes: &[u8]) -> Vec<f32> {
        match self.real {
            Real::F32 => bytemuck::pod_collect_to_vec(bytes),
            Real::F16 => {
                let pairs = bytes.as_chunks::<2>().0.iter();
                pairs.map(|pair| half::f16::from_le_bytes(*pair).to_f32()).collect()
            }
        }
    }
}

/// A dispatch before its buffers are bound.
pub(super) struct Draft<'a> {
    pub(super) kernel: Kernel,
    pub(super) uniform: Vec<u8>,
    pub(super) buffers: Vec<&'a Buffer>,
    pub(super) workgroups: [u32; 3],
}

impl<'a> Draft<'a> {
    fn new<U: Uniform>(kernel: Kernel, uniform: &U, buffers: Vec<&'a Buffer>, workgroups: [u32; 3]) -> Self {
        Self { kernel, uniform: uniform_bytes(uniform), buffers, workgroups }
    }
}

/// Inputs for making the dispatches of a plan.
pub(super) struct Build<'a> {
    pub(super) plan: &'a Plan,
    pub(super) fixed: &'a Fixed,
    pub(super) maps: &'a [Buffer],
    pub(super) rows: &'a Buffer,
    pub(super) statistics: &'a Buffer,
    pub(super) device: &'a Device,
    pub(super) images: usize,
}

/// Number of blocks of four channels in a pixel of a map.
fn blocks(map: Map) -> u32 {
    (map.channels / BLOCK) as u32
}

/// Converts a position in channels to a position in blocks.
fn in_blocks(position: u32) -> u32 {
    let block = BLOCK as u32;
    debug_assert!(position.is_multiple_of(block), "a position inside a block");
    position / block
}

impl<'a> Build<'a> {
    /// Appends the dispatches of one operation.
    pub(super) fn drafts(&self, op: &Op, drafts: &mut Vec<Draft<'a>>) {
        let draft = match op {
            Op::Conv(op) => self.conv(op),
            Op::GroupNorm(op) => {
                let [moments, normalize] = self.group_norm(op);
                drafts.push(moments);
                normalize
            }
            Op::Attention(op) => self.attention(op),
            Op::Pool(op) => self.pool(op),
            #[cfg(feature = "text")]
            Op::LayerNorm(op) => self.layer_norm(op),
            #[cfg(feature = "text")]
            Op::Pointwise(op) => self.pointwise(op),
            #[cfg(feature = "text")]
            Op::Copy(op) => self.copy(op),
        };
        drafts.push(draft);
    }

    fn map(&self, map: Map) -> &'a Buffer {
        &self.maps[map.buffer]
    }

    /// The buffer of a vector, the position in it, and the distance between the vectors of two images, in channels.
    fn vector(&self, vector: Vector) -> (&'a Buffer, u32, u32) {
        match vector {
            Vector::Fixed(place) => (&self.fixed.vectors, place as u32, 0),
            Vector::Conditioned(place) => (self.rows, place as u32, self.plan.conditioner.row_len() as u32),
        }
    }

    fn conv(&self, op: &Conv) -> Draft<'a> {
        let (first, second) = (op.x.first, op.x.second);
        let (bias, bias_start, bias_pitch) = self.vector(op.bias);
        let pixels = (self.images * op.y.pixels()) as u32;
        let out_blocks = blocks(op.y);
        let (residual, residual_kind) = match op.residual {
            None => (first, 0),
            Some(residual) => (residual.map, if residual.upsample { 2 } else { 1 }),
        };
        let uniform = uniform::Conv {
            in_height: first.height as u32,
            in_width: first.width as u32,
            out_height: op.y.height as u32,
            out_width: op.y.width as u32,
            first_blocks: blocks(first),
            second_blocks: second.map_or(0, blocks),
            out_blocks,
            kernel: op.kernel as u32,
            stride: op.stride as u32,
            border: op.border as u32,
            upsample: u32::from(op.upsample),
            bias_start: in_blocks(bias_start),
            bias_pitch: in_blocks(bias_pitch),
            residual: residual_kind,
            pixels,
        };
        let weight = &self.fixed.weights[op.weight];
        let buffers = buffers::Conv {
            first: self.map(first),
            second: self.map(second.unwrap_or(first)),
            bias,
            residual: self.map(residual),
            y: self.map(op.y),
            weights: &weight.values,
            scales: weight.scales.as_ref(),
        };
        let tile = self.tile(pixels, out_blocks);
        let [pixels, blocks] = [pixels.div_ceil(tile.pixels()), out_blocks.div_ceil(tile.blocks())];
        let workgroups = match tile {
            Tile::Direct => [blocks, pixels, 1],
            Tile::Wide | Tile::Narrow => [pixels, blocks, 1],
        };
        Draft::new(Kernel::Conv(weight.kind, tile), &uniform, buffers.in_order(), workgroups)
    }

    fn group_norm(&self, op: &GroupNorm) -> [Draft<'a>; 2] {
        let images = self.images as u32;
        let (gain, gain_start, pitch) = self.vector(op.gain);
        let (offset, offset_start, _) = self.vector(op.offset);
        let pixels = op.y.pixels() as u32;
        let uniform = uniform::GroupNorm {
            pixels,
            first_blocks: blocks(op.x.first),
            second_blocks: op.x.second.map_or(0, blocks),
            gain_start,
            offset_start,
            pitch,
            silu: u32::from(op.silu),
            of_group: (op.y.channels / op.groups) as u32,
            epsilon: op.epsilon,
        };
        let (first, second) = (self.map(op.x.first), self.map(op.x.second.unwrap_or(op.x.first)));
        let statistics = self.statistics;
        let moments = buffers::Moments { first, second, statistics };
        let normalize = buffers::Normalize { first, second, statistics, gain, offset, y: self.map(op.y) };
        let columns = blocks(op.y).div_ceil(NORM_BLOCKS);
        [
            Draft::new(Kernel::Moments, &uniform, moments.in_order(), [columns, images, 1]),
            Draft::new(
                Kernel::Normalize,
                &uniform,
                normalize.in_order(),
                [columns, pixels.div_ceil(NORMALIZE_RUN), images],
            ),
        ]
    }

    fn attention(&self, op: &Attention) -> Draft<'a> {
        let (queries, heads) = (op.y.pixels() as u32, op.heads as u32);
        let of_head = (op.padded_channels() / BLOCK) as u32;
        let first = |of: Channels| in_blocks(of.first as u32);
        let uniform = uniform::Attention {
            queries,
            keys: op.keys() as u32,
            heads,
            blocks: of_head,
            q_pitch: blocks(op.q.map),
            q_first: first(op.q),
            k_pitch: blocks(op.k.map),
            k_first: first(op.k),
            v_pitch: blocks(op.v.map),
            v_first: first(op.v),
            biased: u32::from(op.bias.is_some()),
            bias_start: op.bias.map_or(0, |bias| bias.start as u32),
            bias_pitch: op.bias.map_or(0, |bias| bias.pitch as u32),
            scale: op.scale,
        };
        let [q, k, v] = [op.q, op.k, op.v].map(|of| self.map(of.map));
        let buffers = buffers::Attention { q, k, v, bias: &self.fixed.vectors, y: self.map(op.y) };
        let (kernel, width) = match self.direct() {
            true => (Kernel::AttentionDirect, ATTENTION_DIRECT_WIDTH),
            false => (Kernel::Attention, ATTENTION_WIDTH),
        };
        let workgroups =
            [queries.div_ceil(ATTENTION_QUERIES), heads * of_head.div_ceil(width), self.images as u32];
        Draft::new(kernel, &uniform, buffers.in_order(), workgroups)
    }

    fn pool(&self, op: &Pool) -> Draft<'a> {
        let count = (self.images * op.y.len() / BLOCK) as u32;
        let (height, width) = (op.y.height as u32, op.y.width as u32);
        let uniform = uniform::Pool { height, width, blocks: blocks(op.y), count };
        let buffers = buffers::Pool { x: self.map(op.x), y: self.map(op.y) };
        Draft::new(Kernel::Pool, &uniform, buffers.in_order(), line(count))
    }

    #[cfg(feature = "text")]
    fn layer_norm(&self, op: &LayerNorm) -> Draft<'a> {
        let (gain, gain_start, gain_pitch) = self.vector(op.gain);
        let (offset, offset_start, offset_pitch) = self.vector(op.offset);
        let count = (self.images * op.y.pixels() * op.heads) as u32;
        let uniform = uniform::LayerNorm {
            positions: op.y.pixels() as u32,
            heads: op.heads as u32,
            blocks: blocks(op.y) / op.heads as u32,
            gain_start: in_blocks(gain_start),
            gain_pitch: in_blocks(gain_pitch),
            offset_start: in_blocks(offset_start),
            offset_pitch: in_blocks(offset_pitch),
            centred: u32::from(op.centred),
            count,
            epsilon: op.epsilon,
        };
        let buffers = buffers::LayerNorm { x: self.map(op.x), gain, offset, y: self.map(op.y) };
        Draft::new(Kernel::LayerNorm, &uniform, buffers.in_order(), folded(count))
    }

    #[cfg(feature = "text")]
    fn pointwise(&self, op: &Pointwise) -> Draft<'a> {
        let x = self.map(op.x.map);
        // Buffers that are not used are bound to any others of their type.
        let (mut factor_map, mut factor_vector) = (x, &self.fixed.vectors);
        let (factor, factor_pitch, factor_first) = match op.factor {
            None => (0, 0, 0),
            Some(Factor::Map(of)) => {
                factor_map = self.map(of.map);
                (1, blocks(of.map), in_blocks(of.first as u32))
            }
            Some(Factor::Vector(vector)) => {
                let (buffer, start, pitch) = self.vector(vector);
                factor_vector = buffer;
                (2, in_blocks(pitch), in_blocks(start))
            }
        };
        let (term, term_first, term_map) = match op.term {
            None => (0, 0, x),
            Some(Term::Map(map)) => (1, 0, self.map(map)),
            Some(Term::Fixed(start)) => (2, in_blocks(start as u32), x),
        };
        let count = (self.images * op.y.len() / BLOCK) as u32;
        let uniform = uniform::Pointwise {
            positions: op.y.pixels() as u32,
            blocks: blocks(op.y),
            x_pitch: blocks(op.x.map),
            x_first: in_blocks(op.x.first as u32),
            activation: match op.activation {
                None => 0,
                Some(Activation::Silu) => 1,
                Some(Activation::Gelu) => 2,
                Some(Activation::GeluTanh) => 3,
                Some(Activation::QuickGelu) => 4,
                Some(Activation::Relu) => 5,
                Some(Activation::Tanh) => 6,
            },
            factor,
            factor_pitch,
            factor_first,
            term,
            term_first,
            count,
        };
        let term_shared = &self.fixed.vectors;
        let y = self.map(op.y);
        let buffers = buffers::Pointwise { x, factor_map, factor_vector, term_map, term_shared, y };
        Draft::new(Kernel::Pointwise, &uniform, buffers.in_order(), line(count))
    }

    #[cfg(feature = "text")]
    fn copy(&self, op: &Copy) -> Draft<'a> {
        let count = (self.images * op.count * op.y.channels / BLOCK) as u32;
        let uniform = uniform::Copy {
            x_positions: op.x.pixels() as u32,
            y_positions: op.y.pixels() as u32,
            read_first: op.from as u32,
            write_first: op.to as u32,
            positions: op.count as u32,
            blocks: blocks(op.y),
            count,
        };
        let buffers = buffers::Copy { x: self.map(op.x), y: self.map(op.y) };
        Draft::new(Kernel::Copy, &uniform, buffers.in_order(), line(count))
    }

    fn tile(&self, pixels: u32, blocks: u32) -> Tile {
        /// Number of workgroups that occupy a GPU of medium size.
        const BUSY: u32 = 96;
        let wide = pixels.div_ceil(Tile::Wide.pixels()) * blocks.div_ceil(Tile::Wide.blocks());
        match self.fixed.tile {
            Some(tile) => tile,
            None if self.direct() => Tile::Direct,
            None if wide >= BUSY => Tile::Wide,
            None => Tile::Narrow,
        }
    }

    /// Whether to use kernels without workgroup memory.
    fn direct(&self) -> bool {
        self.fixed.tile.map_or(self.device.software, |tile| tile == Tile::Direct)
    }
}
