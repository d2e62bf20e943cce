//! A plan for a number of images: buffers, bind groups and dispatches, made once and used again.

use ccm_shaders::{
    ATTENTION_DIRECT_WIDTH, ATTENTION_QUERIES, ATTENTION_WIDTH, Kernel, LINE, NORM_BLOCKS, NORMALIZE_RUN,
    Real, Tile,
};
use wgpu::util::{BufferInitDescriptor, DeviceExt};
use wgpu::{BindGroup, Buffer, BufferUsages, ComputePipeline};

use super::device::Device;
use super::weights::StoredWeight;
use crate::sampler::plan::{BLOCK, Conv, Map, Op, Plan, Vector};

/// Sizes of a dispatch stand so many bytes apart, which every adapter allows.
const SIZES_PITCH: u64 = 256;

/// What does not depend on the number of images.
pub(super) struct Fixed {
    pub(super) real: Real,
    pub(super) kind: ccm_shaders::Weights,
    /// How every convolution is cut up; as suits its size and the adapter where not given.
    pub(super) tile: Option<Tile>,
    pub(super) weights: Vec<StoredWeight>,
    pub(super) vectors: Buffer,
}

/// Everything for a number of images.
pub(super) struct Prepared {
    pub(super) images: usize,
    /// The images, `[N, height, width, 4]` in single precision.
    pub(super) image: Buffer,
    /// Noise that comes in, of the same size.
    pub(super) noise: Buffer,
    /// Each image's row of conditions.
    pub(super) rows: Buffer,
    /// What [`Kernel::Advance`] reads: step, keep, fresh, count.
    pub(super) step: Buffer,
    pub(super) evaluate: Vec<Dispatch>,
    pub(super) advance: Dispatch,
    pub(super) bytes: u64,
}

/// One kernel on its operands.
pub(super) struct Dispatch {
    pub(super) kernel: Kernel,
    pub(super) operands: BindGroup,
    pub(super) workgroups: [u32; 3],
}

/// A dispatch before its operands are bound.
struct Draft<'a> {
    kernel: Kernel,
    sizes: Vec<u32>,
    buffers: Vec<&'a Buffer>,
    workgroups: [u32; 3],
}

/// Bytes of four values of a feature map.
pub(super) fn block_bytes(real: Real) -> u64 {
    match real {
        Real::F32 => 16,
        Real::F16 => 8,
    }
}

impl Prepared {
    pub(super) fn new(
        device: &Device,
        plan: &Plan,
        fixed: &Fixed,
        pipelines: &mut Pipelines,
        images: usize,
    ) -> Self {
        let gpu = &device.device;
        let count = images as u64;
        let mut bytes = 0;
        let mut buffer = |label: &str, size: u64, usage: BufferUsages| {
            bytes += size;
            let size = size.max(16);
            gpu.create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size,
                usage,
                mapped_at_creation: false,
            })
        };
        let storage = BufferUsages::STORAGE;
        let maps: Vec<Buffer> = plan
            .buffers
            .iter()
            .map(|values| buffer("map", count * (values / BLOCK) as u64 * block_bytes(fixed.real), storage))
            .collect();
        let pixels = plan.x.pixels() as u64;
        let (source, target) = (storage | BufferUsages::COPY_SRC, storage | BufferUsages::COPY_DST);
        let image = buffer("image", count * pixels * 16, source);
        let noise = buffer("noise", count * pixels * 16, target);
        let rows = buffer("conditions", count * 4 * plan.conditioner.row_len() as u64, target);
        let channels = plan.ops.iter().filter_map(|op| match op {
            Op::GroupNorm(op) => Some(op.x.channels()),
            _ => None,
        });
        let statistics = buffer("statistics", count * 8 * channels.max().unwrap_or_default() as u64, storage);
        let step = buffer("step", 16, BufferUsages::UNIFORM | BufferUsages::COPY_DST);

        let build = Build { plan, fixed, maps: &maps, rows: &rows, statistics: &statistics, device, images };
        let drafts: Vec<Draft> = plan.ops.iter().flat_map(|op| build.drafts(op)).collect();
        pipelines.create(gpu, fixed.real, drafts.iter().map(|draft| draft.kernel).chain([Kernel::Advance]));

        let mut sizes = Vec::new();
        for draft in &drafts {
            sizes.extend(draft.sizes.iter().flat_map(|size| size.to_le_bytes()));
            sizes.resize(sizes.len().next_multiple_of(SIZES_PITCH as usize), 0);
        }
        let sizes = gpu.create_buffer_init(&BufferInitDescriptor {
            label: Some("sizes"),
            contents: &sizes,
            usage: BufferUsages::UNIFORM,
        });
        let evaluate = drafts.iter().enumerate().map(|(i, draft)| {
            let uniform = wgpu::BufferBinding {
                buffer: &sizes,
                offset: i as u64 * SIZES_PITCH,
                size: wgpu::BufferSize::new(4 * draft.sizes.len().next_multiple_of(4) as u64),
            };
            let operands = bind(gpu, pipelines.get(draft.kernel), uniform, &draft.buffers);
            Dispatch { kernel: draft.kernel, operands, workgroups: draft.workgroups }
        });
        let evaluate = evaluate.collect();
        let all = images as u32 * plan.x.pixels() as u32;
        let operands = [&maps[plan.velocity.buffer], &noise, &image, &maps[plan.x.buffer]];
        let uniform = wgpu::BufferBinding { buffer: &step, offset: 0, size: None };
        let advance = Dispatch {
            kernel: Kernel::Advance,
            operands: bind(gpu, pipelines.get(Kernel::Advance), uniform, &operands),
            workgroups: line(all),
        };
        Self { images, image, noise, rows, step, evaluate, advance, bytes }
    }
}

/// Binds a uniform and then the buffers, numbered from 0.
fn bind(
    gpu: &wgpu::Device,
    pipeline: &ComputePipeline,
    uniform: wgpu::BufferBinding,
    buffers: &[&Buffer],
) -> BindGroup {
    let buffers = buffers.iter().map(|buffer| buffer.as_entire_binding());
    let resources = std::iter::once(wgpu::BindingResource::Buffer(uniform)).chain(buffers);
    let entries: Vec<wgpu::BindGroupEntry> =
        resources.zip(0..).map(|(resource, binding)| wgpu::BindGroupEntry { binding, resource }).collect();
    let layout = &pipeline.get_bind_group_layout(0);
    gpu.create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout, entries: &entries })
}

/// The pipelines that have been created: a dozen at most, so that a list is as good as a map.
#[derive(Default)]
pub(super) struct Pipelines(Vec<(Kernel, ComputePipeline)>);

impl Pipelines {
    /// The pipeline of a kernel that has been created.
    pub(super) fn get(&self, kernel: Kernel) -> &ComputePipeline {
        let found = self.0.iter().find(|(created, _)| *created == kernel);
        &found.unwrap_or_else(|| unreachable!("every kernel is created before it is used")).1
    }

    /// Creates those that are not there yet, side by side where the platform has threads.
    fn create(&mut self, gpu: &wgpu::Device, real: Real, kernels: impl Iterator<Item = Kernel>) {
        let mut missing = Vec::new();
        for kernel in kernels {
            if !missing.contains(&kernel) && self.0.iter().all(|(created, _)| *created != kernel) {
                missing.push(kernel);
            }
        }
        let create = |kernel: Kernel| (kernel, create_pipeline(gpu, kernel, real));
        #[cfg(not(target_arch = "wasm32"))]
        {
            use rayon::prelude::*;
            self.0.par_extend(missing.into_par_iter().map(create));
        }
        #[cfg(target_arch = "wasm32")]
        self.0.extend(missing.into_iter().map(create));
    }
}

fn create_pipeline(gpu: &wgpu::Device, kernel: Kernel, real: Real) -> ComputePipeline {
    let source = wgpu::ShaderSource::Wgsl(kernel.source(real).into());
    let name = Some(kernel.entry_point());
    let descriptor = wgpu::ShaderModuleDescriptor { label: name, source };
    // SAFETY: the kernels are this project's own and guard every place by the sizes that they are given, which
    // come from a checked plan; their loops end. Natively the checks would keep drivers from unrolling loops.
    let module =
        unsafe { gpu.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) };
    let descriptor = wgpu::ComputePipelineDescriptor {
        label: name,
        layout: None,
        module: &module,
        entry_point: name,
        compilation_options: wgpu::PipelineCompilationOptions {
            // Every kernel writes what it shares before it reads it.
            zero_initialize_workgroup_memory: false,
            ..Default::default()
        },
        cache: None,
    };
    gpu.create_compute_pipeline(&descriptor)
}

/// Workgroups of [`LINE`] invocations for `count` of them, in two dimensions where one is too short.
fn line(count: u32) -> [u32; 3] {
    const MOST: u32 = 65_535;
    let workgroups = count.div_ceil(LINE);
    [workgroups.min(MOST), workgroups.div_ceil(MOST), 1]
}

struct Build<'a> {
    plan: &'a Plan,
    fixed: &'a Fixed,
    maps: &'a [Buffer],
    rows: &'a Buffer,
    statistics: &'a Buffer,
    device: &'a Device,
    images: usize,
}

impl<'a> Build<'a> {
    fn map(&self, map: Map) -> &'a Buffer {
        &self.maps[map.buffer]
    }

    /// The buffer of a vector, where it begins, and how far it is from one image to the next.
    fn vector(&self, vector: Vector) -> (&'a Buffer, u32, u32) {
        match vector {
            Vector::Fixed(place) => (&self.fixed.vectors, place as u32, 0),
            Vector::Conditioned(place) => (self.rows, place as u32, self.plan.conditioner.row_len() as u32),
        }
    }

    fn drafts(&self, op: &Op) -> Vec<Draft<'a>> {
        let images = self.images as u32;
        let blocks = |map: Map| (map.channels / BLOCK) as u32;
        match op {
            Op::Conv(op) => vec![self.conv(op)],
            Op::GroupNorm(op) => {
                let (gain, gain_start, pitch) = self.vector(op.gain);
                let (offset, offset_start, _) = self.vector(op.offset);
                let (first, second) = (op.x.first, op.x.second);
                let pixels = first.pixels() as u32;
                let sizes = vec![
                    pixels,
                    blocks(first),
                    second.map_or(0, blocks),
                    gain_start,
                    offset_start,
                    pitch,
                    u32::from(op.silu),
                ];
                let x = [self.map(first), self.map(second.unwrap_or(first)), self.statistics];
                let columns = blocks(op.y) / NORM_BLOCKS;
                let moments = Draft {
                    kernel: Kernel::Moments,
                    sizes: sizes.clone(),
                    buffers: x.to_vec(),
                    workgroups: [columns, images, 1],
                };
                let normalize = Draft {
                    kernel: Kernel::Normalize,
                    sizes,
                    buffers: [&x[..], &[gain, offset, self.map(op.y)]].concat(),
                    workgroups: [columns, pixels.div_ceil(NORMALIZE_RUN), images],
                };
                vec![moments, normalize]
            }
            Op::Attention(op) => {
                let positions = op.y.pixels() as u32;
                let of_head = (op.padded_channels() / BLOCK) as u32;
                let scale = 1.0 / (op.head_channels as f32).sqrt();
                let (kernel, width) = match self.direct() {
                    true => (Kernel::AttentionDirect, ATTENTION_DIRECT_WIDTH),
                    false => (Kernel::Attention, ATTENTION_WIDTH),
                };
                vec![Draft {
                    kernel,
                    sizes: vec![positions, op.heads as u32, of_head, scale.to_bits()],
                    buffers: vec![self.map(op.qkv), self.map(op.y)],
                    workgroups: [
                        positions.div_ceil(ATTENTION_QUERIES),
                        op.heads as u32 * of_head.div_ceil(width),
                        images,
                    ],
                }]
            }
            Op::Pool(op) => {
                let count = images * (op.y.len() / BLOCK) as u32;
                vec![Draft {
                    kernel: Kernel::Pool,
                    sizes: vec![op.y.height as u32, op.y.width as u32, blocks(op.y), count],
                    buffers: vec![self.map(op.x), self.map(op.y)],
                    workgroups: line(count),
                }]
            }
        }
    }

    fn conv(&self, op: &Conv) -> Draft<'a> {
        let (first, second) = (op.x.first, op.x.second);
        let (bias, bias_start, bias_pitch) = self.vector(op.bias);
        let pixels = (self.images * op.y.pixels()) as u32;
        let blocks = (op.y.channels / BLOCK) as u32;
        let (residual, residual_kind) = match op.residual {
            None => (first, 0),
            Some(residual) => (residual.map, if residual.upsample { 2 } else { 1 }),
        };
        let tile = self.tile(pixels, blocks);
        let weight = &self.fixed.weights[op.weight];
        let mut buffers = vec![
            self.map(first),
            self.map(second.unwrap_or(first)),
            bias,
            self.map(residual),
            self.map(op.y),
            &weight.values,
        ];
        buffers.extend(&weight.scales);
        let block = BLOCK as u32;
        Draft {
            kernel: Kernel::Conv(self.fixed.kind, tile),
            sizes: vec![
                first.height as u32,
                first.width as u32,
                op.y.height as u32,
                op.y.width as u32,
                first.channels as u32 / block,
                second.map_or(0, |map| map.channels as u32 / block),
                blocks,
                op.kernel as u32,
                op.stride as u32,
                u32::from(op.upsample),
                bias_start / block,
                bias_pitch / block,
                residual_kind,
                pixels,
            ],
            buffers,
            workgroups: match tile {
                Tile::Direct => [blocks.div_ceil(tile.blocks()), pixels.div_ceil(tile.pixels()), 1],
                _ => [pixels.div_ceil(tile.pixels()), blocks.div_ceil(tile.blocks()), 1],
            },
        }
    }

    fn tile(&self, pixels: u32, blocks: u32) -> Tile {
        /// Workgroups that keep a GPU of middling size busy.
        const BUSY: u32 = 96;
        let wide = pixels.div_ceil(Tile::Wide.pixels()) * blocks.div_ceil(Tile::Wide.blocks());
        match self.fixed.tile {
            Some(tile) => tile,
            None if self.direct() => Tile::Direct,
            None if wide >= BUSY => Tile::Wide,
            None => Tile::Narrow,
        }
    }

    /// Whether kernels do without workgroup memory.
    fn direct(&self) -> bool {
        self.fixed.tile.map_or(self.device.software, |tile| tile == Tile::Direct)
    }
}
