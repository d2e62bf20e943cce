//! Runs a [`Plan`] on a GPU with wgpu: on Vulkan, Metal, DX12, or in a browser on WebGPU.
//!
//! Buffers, bind groups and pipelines are made once for a number of images. An evaluation is one command buffer and
//! one submission; between noise and picture nothing comes back to the CPU.

pub(crate) mod device;
mod prepared;
mod weights;

use ccm_shaders::{RGBA, Real, Weights};
use device::Device;
use prepared::{Dispatch, Fixed, Pipelines, Prepared, block_bytes};
use weights::StoredWeight;
use wgpu::util::{BufferInitDescriptor, DeviceExt};
use wgpu::{BufferUsages, CommandEncoder, ComputePipeline};

use super::plan::Plan;
use super::schedule::{Step, Work};
use super::{Api, SamplerError};
use crate::weights::Precision;

/// A network on a GPU.
pub(super) struct Executor {
    device: Device,
    fixed: Fixed,
    pipelines: Pipelines,
    prepared: Option<Prepared>,
    most_images: usize,
    picture: Option<(wgpu::TextureFormat, wgpu::RenderPipeline)>,
}

/// A canvas or a window that pictures are drawn on.
pub struct Surface {
    surface: wgpu::Surface<'static>,
    size: [u32; 2],
}

impl Executor {
    /// Opens a device and uploads the weights, in the precision of the model's file.
    pub(super) async fn new(
        plan: &Plan,
        precision: Precision,
        api: Option<Api>,
        software: bool,
    ) -> Result<Self, SamplerError> {
        let device = Device::open(api, software).await?;
        let limits = device.device.limits();
        let most_bytes = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size);
        let kind = match precision {
            Precision::F32 => Weights::F32,
            Precision::F16 => Weights::F16,
            Precision::Q8 => Weights::Q8,
        };
        // A file in single precision is computed with as it is; one that has been rounded, as fast as can be.
        let real = if precision != Precision::F32 && device.has_f16() { Real::F16 } else { Real::F32 };
        let largest = plan.weights.iter().map(|weight| weight.values.len() as u64 * kind_bytes(kind)).max();
        let most_images = most_images(plan, real, most_bytes);
        if largest.unwrap_or_default() > most_bytes || most_images == 0 {
            let map = plan.buffers.iter().max().map_or(0, |&len| len as u64 / 4 * block_bytes(real));
            return Err(SamplerError::TooLarge {
                needed: largest.unwrap_or_default().max(map),
                allowed: most_bytes,
            });
        }
        let gpu = &device.device;
        let weights = plan.weights.iter().map(|weight| StoredWeight::new(gpu, weight, kind)).collect();
        let vectors = gpu.create_buffer_init(&BufferInitDescriptor {
            label: Some("vectors"),
            contents: bytemuck::cast_slice(&plan.vectors),
            usage: BufferUsages::STORAGE,
        });
        let fixed = Fixed { real, kind, tile: None, weights, vectors };
        device.check()?;
        Ok(Self {
            device,
            fixed,
            pipelines: Pipelines::default(),
            prepared: None,
            most_images,
            picture: None,
        })
    }

    /// Cuts every convolution up in the same way, whatever its size and the adapter.
    #[cfg(test)]
    pub(super) fn with_tile(mut self, tile: ccm_shaders::Tile) -> Self {
        self.fixed.tile = Some(tile);
        self
    }

    /// What wgpu says of the adapter.
    pub(super) fn adapter(&self) -> wgpu::AdapterInfo {
        self.device.adapter.get_info()
    }

    /// Whether the adapter computes on the CPU.
    pub(super) fn is_software(&self) -> bool {
        self.device.software
    }

    /// Whether the device is lost; a new executor has to be made then.
    pub(super) fn is_lost(&self) -> bool {
        self.device.is_lost()
    }

    /// Gives the device back, as a browser or a driver may at any time.
    pub(super) fn destroy(&self) {
        self.device.device.destroy();
    }

    /// What feature maps are stored as and products computed as.
    pub(super) fn real(&self) -> Real {
        self.fixed.real
    }

    /// Images that fit the adapter together.
    pub(super) fn most_images(&self) -> usize {
        self.most_images
    }

    /// Bytes of weights and buffers on the device.
    pub(super) fn memory(&self) -> u64 {
        let weights: u64 = self.fixed.weights.iter().map(|weight| weight.bytes).sum();
        weights + self.fixed.vectors.size() + self.prepared.as_ref().map_or(0, |prepared| prepared.bytes)
    }

    /// Samples the images of `work`, and reads them: `[N, height, width, 4]`.
    pub(super) async fn sample(&mut self, plan: &Plan, work: &Work) -> Result<Vec<f32>, SamplerError> {
        self.run(plan, work)?;
        let Some(prepared) = &self.prepared else { return Ok(Vec::new()) };
        let gpu = &self.device.device;
        let size = prepared.image.size();
        let staging = gpu.create_buffer(&wgpu::BufferDescriptor {
            label: Some("staging"),
            size,
            usage: BufferUsages::MAP_READ | BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let mut encoder = gpu.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(&prepared.image, 0, &staging, 0, size);
        self.device.queue.submit([encoder.finish()]);
        let (send, receive) = futures_channel::oneshot::channel();
        staging.map_async(wgpu::MapMode::Read, .., move |result| {
            // Nobody waits any more if the call was given up.
            let _ = send.send(result);
        });
        // In a browser this does nothing, and the event loop runs the callback.
        let _ = gpu.poll(wgpu::PollType::wait_indefinitely());
        let mapped = receive.await;
        self.device.check()?;
        let fault = |error: &dyn std::fmt::Display| SamplerError::Device(error.to_string());
        mapped.map_err(|error| fault(&error))?.map_err(|error| fault(&error))?;
        let view = staging.get_mapped_range(..).map_err(|error| fault(&error))?;
        Ok(bytemuck::pod_collect_to_vec(&view))
    }

    /// Submits the evaluations of `work`; the images stay on the device.
    fn run(&mut self, plan: &Plan, work: &Work) -> Result<(), SamplerError> {
        self.device.check()?;
        if self.prepared.as_ref().is_none_or(|prepared| prepared.images != work.images()) {
            // The old buffers go before the new ones come.
            self.prepared = None;
            self.prepared =
                Some(Prepared::new(&self.device, plan, &self.fixed, &mut self.pipelines, work.images()));
        }
        let Some(prepared) = &self.prepared else { return Ok(()) };
        let queue = &self.device.queue;
        let write_step = |step: &Step| {
            let count = (prepared.images * plan.x.pixels()) as u32;
            let values = [step.step.to_bits(), step.keep.to_bits(), step.fresh.to_bits(), count];
            queue.write_buffer(&prepared.step, 0, bytemuck::cast_slice(&values));
        };
        // The image begins as noise alone.
        queue.write_buffer(&prepared.noise, 0, bytemuck::cast_slice(&work.noise[0]));
        write_step(&Step { t: 0.0, step: 0.0, keep: 0.0, fresh: 1.0 });
        self.submit(|encoder| self.encode(encoder, std::iter::once(&prepared.advance)));
        for (number, step) in work.steps.iter().enumerate() {
            if let Some(noise) = work.noise.get(number + 1) {
                queue.write_buffer(&prepared.noise, 0, bytemuck::cast_slice(noise));
            }
            let rows: Vec<f32> = work.rows[number].iter().flat_map(|row| row.iter().copied()).collect();
            queue.write_buffer(&prepared.rows, 0, bytemuck::cast_slice(&rows));
            write_step(step);
            self.submit(|encoder| {
                self.encode(encoder, prepared.evaluate.iter().chain([&prepared.advance]));
            });
        }
        self.device.check()
    }

    fn submit(&self, encode: impl FnOnce(&mut CommandEncoder)) {
        let mut encoder = self.device.device.create_command_encoder(&Default::default());
        encode(&mut encoder);
        self.device.queue.submit([encoder.finish()]);
    }

    fn encode<'a>(&self, encoder: &mut CommandEncoder, dispatches: impl Iterator<Item = &'a Dispatch>) {
        let mut pass = encoder.begin_compute_pass(&Default::default());
        let mut last: Option<&ComputePipeline> = None;
        for dispatch in dispatches {
            let pipeline = self.pipelines.get(dispatch.kernel);
            if last != Some(pipeline) {
                pass.set_pipeline(pipeline);
                last = Some(pipeline);
            }
            pass.set_bind_group(0, &dispatch.operands, &[]);
            let [x, y, z] = dispatch.workgroups;
            pass.dispatch_workgroups(x, y, z);
        }
    }

    /// Prepares a canvas or a window to be drawn on.
    pub(super) fn surface(&self, target: wgpu::SurfaceTarget<'static>) -> Result<Surface, SamplerError> {
        let surface = self.device.instance.create_surface(target);
        let surface = surface.map_err(|error| SamplerError::Device(error.to_string()))?;
        Ok(Surface { surface, size: [0; 2] })
    }

    /// Samples `work` and draws its first image over the whole surface, whose size becomes that of the image.
    pub(super) fn draw(
        &mut self,
        plan: &Plan,
        work: &Work,
        surface: &mut Surface,
    ) -> Result<(), SamplerError> {
        self.run(plan, work)?;
        let gpu = &self.device.device;
        let size = [plan.x.width as u32, plan.x.height as u32];
        let capabilities = surface.surface.get_capabilities(&self.device.adapter);
        let plain = capabilities.formats.iter().find(|format| !format.is_srgb());
        let Some(format) = plain.or(capabilities.formats.first()).copied() else {
            return Err(SamplerError::Device("this adapter cannot draw on the canvas".into()));
        };
        if surface.size != size {
            surface.configure(gpu, format, size);
        }
        let texture = match surface.surface.get_current_texture() {
            wgpu::CurrentSurfaceTexture::Success(texture)
            | wgpu::CurrentSurfaceTexture::Suboptimal(texture) => texture,
            _ => {
                surface.size = [0; 2];
                return Err(SamplerError::Device("the canvas gives no texture".into()));
            }
        };
        if self.picture.as_ref().is_none_or(|(found, _)| *found != format) {
            self.picture = Some((format, picture_pipeline(gpu, format)));
        }
        let (Some(prepared), Some((_, pipeline))) = (&self.prepared, &self.picture) else { return Ok(()) };
        let sizes = [size[1], size[0], plan.spec.in_channels as u32, 0];
        let sizes = gpu.create_buffer_init(&BufferInitDescriptor {
            label: Some("picture"),
            contents: bytemuck::cast_slice(&sizes),
            usage: BufferUsages::UNIFORM,
        });
        let operands = gpu.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &pipeline.get_bind_group_layout(0),
            entries: &[
                wgpu::BindGroupEntry { binding: 0, resource: sizes.as_entire_binding() },
                wgpu::BindGroupEntry { binding: 1, resource: prepared.image.as_entire_binding() },
            ],
        });
        let view = texture.texture.create_view(&Default::default());
        self.submit(|encoder| {
            let attachment = wgpu::RenderPassColorAttachment {
                view: &view,
                depth_slice: None,
                resolve_target: None,
                ops: wgpu::Operations::default(),
            };
            let mut pass = encoder.begin_render_pass(&wgpu::RenderPassDescriptor {
                color_attachments: &[Some(attachment)],
                ..Default::default()
            });
            pass.set_pipeline(pipeline);
            pass.set_bind_group(0, &operands, &[]);
            pass.draw(0..3, 0..1);
        });
        self.device.queue.present(texture);
        self.device.check()
    }
}

impl Surface {
    fn configure(&mut self, gpu: &wgpu::Device, format: wgpu::TextureFormat, size: [u32; 2]) {
        self.surface.configure(
            gpu,
            &wgpu::SurfaceConfiguration {
                usage: wgpu::TextureUsages::RENDER_ATTACHMENT,
                format,
                color_space: Default::default(),
                width: size[0],
                height: size[1],
                present_mode: wgpu::PresentMode::Fifo,
                desired_maximum_frame_latency: 2,
                alpha_mode: wgpu::CompositeAlphaMode::Auto,
                view_formats: Vec::new(),
            },
        );
        self.size = size;
    }
}

fn picture_pipeline(gpu: &wgpu::Device, format: wgpu::TextureFormat) -> wgpu::RenderPipeline {
    let source = wgpu::ShaderSource::Wgsl(RGBA.into());
    let module = gpu.create_shader_module(wgpu::ShaderModuleDescriptor { label: Some("rgba"), source });
    gpu.create_render_pipeline(&wgpu::RenderPipelineDescriptor {
        label: Some("rgba"),
        layout: None,
        vertex: wgpu::VertexState {
            module: &module,
            entry_point: Some("corner"),
            compilation_options: Default::default(),
            buffers: &[],
        },
        primitive: Default::default(),
        depth_stencil: None,
        multisample: Default::default(),
        fragment: Some(wgpu::FragmentState {
            module: &module,
            entry_point: Some("colour"),
            compilation_options: Default::default(),
            targets: &[Some(format.into())],
        }),
        multiview_mask: None,
        cache: None,
    })
}

fn kind_bytes(kind: Weights) -> u64 {
    match kind {
        Weights::F32 => 4,
        Weights::F16 => 2,
        Weights::Q8 => 1,
    }
}

/// Images that go through the network together: as many as each buffer may hold, and all buffers within a limit
/// that does not trouble a small GPU.
fn most_images(plan: &Plan, real: Real, most_bytes: u64) -> usize {
    const MOST_BYTES: u64 = 1 << 30;
    let bytes = |values: usize| values as u64 / 4 * block_bytes(real);
    let largest = plan.buffers.iter().max().map_or(1, |&values| bytes(values).max(1));
    let together = MOST_BYTES / bytes(plan.values_per_image()).max(1);
    // Workgroups have at least 32 pixels, and a dimension of a dispatch at most 65 535 of them.
    let pixels = 65_535 * 32 / plan.x.pixels() as u64;
    (most_bytes / largest).min(together.max(1)).min(pixels) as usize
}
