//! A plan prepared for a number of images: buffers, bind groups and dispatches, reused by every sample.

use ccm_shaders::uniform::Uniform;
use ccm_shaders::{Kernel, LINE, Real, buffers, uniform};
use wgpu::util::{BufferInitDescriptor, DeviceExt};
use wgpu::{BindGroup, Buffer, BufferUsages};

use super::device::Device;
use super::drafts::{Build, Fixed};
use super::pipelines::Pipelines;
use crate::sampler::plan::{BLOCK, Op, Plan};

/// Distance between the uniforms of two dispatches, in bytes; every adapter supports it.
const UNIFORM_PITCH: u64 = 256;

/// Largest number of workgroups of a dispatch in one dimension that every adapter supports.
pub(super) const MOST_WORKGROUPS: u32 = 65_535;

/// Buffers and dispatches for a number of images.
pub(super) struct Prepared {
    pub(super) images: usize,
    /// The buffers of the plan.
    #[cfg(feature = "text")]
    pub(super) maps: Vec<Buffer>,
    /// The images in the layout of [`Plan::x`], in single precision.
    pub(super) image: Buffer,
    /// Noise for the next step, of the same size.
    pub(super) noise: Buffer,
    /// The row of conditions of each image.
    pub(super) rows: Buffer,
    /// Uniform of `advance`: [`uniform::Step`].
    pub(super) step: Buffer,
    /// One evaluation of the network.
    pub(super) evaluate: Vec<Dispatch>,
    /// The update of the images after an evaluation.
    pub(super) advance: Dispatch,
    /// Bytes of all buffers.
    pub(super) bytes: u64,
}

/// One kernel with its buffers.
pub(super) struct Dispatch {
    pub(super) kernel: Kernel,
    pub(super) operands: BindGroup,
    pub(super) workgroups: [u32; 3],
}

/// Bytes of one block: four values of a feature map.
pub(super) fn block_bytes(real: Real) -> u64 {
    match real {
        Real::F32 => 16,
        Real::F16 => 8,
    }
}

/// The bytes of a uniform, padded to a multiple of 16.
pub(super) fn uniform_bytes<U: Uniform>(uniform: &U) -> Vec<u8> {
    fn padded(bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        bytes.resize(bytes.len().next_multiple_of(16), 0);
        bytes
    }
    padded(bytemuck::bytes_of(uniform))
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
        let both = storage | BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
        let maps: Vec<Buffer> = plan
            .buffers
            .iter()
            .map(|values| buffer("map", count * (values / BLOCK) as u64 * block_bytes(fixed.real), both))
            .collect();
        let image_bytes = count * 4 * plan.x.len() as u64;
        let (source, target) = (storage | BufferUsages::COPY_SRC, storage | BufferUsages::COPY_DST);
        let image = buffer("image", image_bytes, source);
        let memory = buffer("memory", image_bytes, storage);
        let noise = buffer("noise", image_bytes, target);
        let rows = buffer("conditions", count * 4 * plan.conditioner.row_len() as u64, target);
        let normed = plan.ops.iter().filter_map(|op| match op {
            Op::GroupNorm(op) => Some(op.x.channels() as u64),
            _ => None,
        });
        let statistics = buffer("statistics", count * 8 * normed.fold(0, u64::max), storage);
        let step_bytes = (size_of::<uniform::Step>() as u64).next_multiple_of(16);
        let step = buffer("step", step_bytes, BufferUsages::UNIFORM | BufferUsages::COPY_DST);

        let build = Build { plan, fixed, maps: &maps, rows: &rows, statistics: &statistics, device, images };
        let mut drafts = Vec::new();
        for op in &plan.ops {
            build.drafts(op, &mut drafts);
        }
        pipelines.create(gpu, fixed.real, drafts.iter().map(|draft| draft.kernel).chain([Kernel::Advance]));

        let mut uniforms = Vec::new();
        for draft in &drafts {
            uniforms.extend_from_slice(&draft.uniform);
            uniforms.resize(uniforms.len().next_multiple_of(UNIFORM_PITCH as usize), 0);
        }
        let uniforms = gpu.create_buffer_init(&BufferInitDescriptor {
            label: Some("uniforms"),
            contents: &uniforms,
            usage: BufferUsages::UNIFORM,
        });
        let dispatch = |kernel, uniform, buffers: &[&Buffer], workgroups| {
            let layout = pipelines.get(kernel).get_bind_group_layout(0);
            Dispatch { kernel, operands: bind(gpu, &layout, uniform, buffers), workgroups }
        };
        let evaluate = drafts.iter().enumerate().map(|(i, draft)| {
            let uniform = wgpu::BufferBinding {
                buffer: &uniforms,
                offset: i as u64 * UNIFORM_PITCH,
                size: wgpu::BufferSize::new(draft.uniform.len() as u64),
            };
            dispatch(draft.kernel, uniform, &draft.buffers, draft.workgroups)
        });
        let evaluate = evaluate.collect();
        let operands = buffers::Advance {
            output: &maps[plan.output.buffer],
            noise: &noise,
            image: &image,
            memory: &memory,
            x: &maps[plan.x.buffer],
        };
        let workgroups = line((images * plan.x.len() / BLOCK) as u32);
        let advance =
            dispatch(Kernel::Advance, step.as_entire_buffer_binding(), &operands.in_order(), workgroups);
        Self {
            images,
            #[cfg(feature = "text")]
            maps,
            image,
            noise,
            rows,
            step,
            evaluate,
            advance,
            bytes,
        }
    }
}

/// Binds a uniform at binding 0 and the buffers from binding 1 on.
pub(super) fn bind(
    gpu: &wgpu::Device,
    layout: &wgpu::BindGroupLayout,
    uniform: wgpu::BufferBinding,
    buffers: &[&Buffer],
) -> BindGroup {
    let buffers = buffers.iter().map(|buffer| buffer.as_entire_binding());
    let resources = std::iter::once(wgpu::BindingResource::Buffer(uniform)).chain(buffers);
    let entries: Vec<wgpu::BindGroupEntry> =
        resources.zip(0..).map(|(resource, binding)| wgpu::BindGroupEntry { binding, resource }).collect();
    gpu.create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout, entries: &entries })
}

/// Workgroups of [`LINE`] invocations that cover `count` invocations.
pub(super) fn line(count: u32) -> [u32; 3] {
    folded(count.div_ceil(LINE))
}

/// At least `workgroups` workgroups, in two dimensions if one is too small.
pub(super) fn folded(workgroups: u32) -> [u32; 3] {
    [workgroups.min(MOST_WORKGROUPS), workgroups.div_ceil(MOST_WORKGROUPS), 1]
}
