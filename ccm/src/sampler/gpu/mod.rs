//! Runs a [`Plan`] on a GPU with wgpu: Vulkan, Metal or DX12 natively, WebGPU in a browser.
//!
//! Buffers, bind groups and pipelines are created once for a number of images. An evaluation is one command buffer and
//! one submission. Nothing is read back before the final image.

pub(crate) mod device;
mod drafts;
mod pipelines;
mod prepared;
mod weights;

use ccm_shaders::{RGBA, Real, Tile, Weights, buffers, uniform};
use device::Device;
use drafts::Fixed;
use pipelines::Pipelines;
use prepared::{MOST_WORKGROUPS, Prepared, block_bytes, uniform_bytes};
use weights::{StoredWeight, kind};
use wgpu::util::{BufferInitDescriptor, DeviceExt};
use wgpu::{Buffer, BufferUsages, RenderPipeline, TextureFormat};

use super::plan::{BLOCK, ConvWeight, Plan};
use super::schedule::{Update, Work};
use super::{Api, Denoiser, SamplerError};
use crate::weights::Precision;

/// A network on a GPU.
pub(super) struct Executor {
    device: Device,
    fixed: Fixed,
    pipelines: Pipelines,
    /// Prepared for the number of images of the last call.
    prepared: Option<Prepared>,
    most_images: usize,
    /// The pipeline that draws on a surface of this format.
    picture: Option<(TextureFormat, RenderPipeline)>,
}

/// A canvas or a window to draw images on.
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
        // Single-precision models are computed in single precision; rounded models in half precision where the GPU
        // supports it.
        let real = if precision != Precision::F32 && device.has_f16() { Real::F16 } else { Real::F32 };
        let weights = plan.weights.iter().map(|weight| bytes_of(weight, precision));
        let largest_weight = weights.fold(0, u64::max);
        let most_images = most_images(plan, real, most_bytes);
        if largest_weight > most_bytes || most_images == 0 {
            let needed = largest_weight.max(largest_map(plan, real));
            return Err(SamplerError::TooLarge { needed, allowed: most_bytes });
        }
        let gpu = &device.device;
        let weights = plan
            .weights
            .iter()
            .map(|weight| StoredWeight::new(gpu, weight, kind(weight, precision)))
            .collect();
        let vectors = gpu.create_buffer_init(&BufferInitDescriptor {
            label: Some("vectors"),
            contents: bytemuck::cast_slice(&plan.vectors),
            usage: BufferUsages::STORAGE,
        });
        let fixed = Fixed { real, tile: None, weights, vectors };
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

    /// Uses the same tile for every convolution.
    #[cfg(test)]
    pub(super) fn with_tile(mut self, tile: Tile) -> Self {
        self.fixed.tile = Some(tile);
        self
    }

    /// The adapter's description.
    pub(super) fn adapter(&self) -> wgpu::AdapterInfo {
        self.device.adapter.get_info()
    }

    /// Whether the adapter computes on the CPU.
    pub(super) fn is_software(&self) -> bool {
        self.device.software
    }

    /// Whether the device is lost. A lost device cannot sample again; make a new executor.
    pub(super) fn is_lost(&self) -> bool {
        self.device.is_lost()
    }

    /// Destroys the device, as a browser or a driver may at any time.
    pub(super) fn destroy(&self) {
        self.device.device.destroy();
    }

    /// Number format of feature maps and products.
    pub(super) fn real(&self) -> Real {
        self.fixed.real
    }

    /// Number of images that the adapter can hold at once.
    pub(super) fn most_images(&self) -> usize {
        self.most_images
    }

    /// Bytes of weights and buffers on the device.
    pub(super) fn memory(&self) -> u64 {
        let weights: u64 = self.fixed.weights.iter().map(|weight| weight.bytes).sum();
        weights + self.fixed.vectors.size() + self.prepared.as_ref().map_or(0, |prepared| prepared.bytes)
    }

    /// Samples the images of `work`, and reads them in the layout of [`Plan::x`].
    pub(super) async fn sample(&mut self, plan: &Plan, work: &Work) -> Result<Vec<f32>, SamplerError> {
        let image = self.run(plan, work)?;
        let bytes = self.read(&image, image.size()).await?;
        Ok(bytemuck::pod_collect_to_vec(&bytes))
    }

    /// Evaluates a network without conditions for one input, in the layout of [`Plan::x`]. Returns its output and its
    /// second output, which is empty if there is none.
    #[cfg(feature = "text")]
    pub(super) async fn evaluate(&mut self, plan: &Plan, x: &[f32]) -> Result<[Vec<f32>; 2], SamplerError> {
        self.device.check()?;
        self.prepare(plan, 1);
        let Some(prepared) = &self.prepared else { panic!("just prepared") };
        let input = self.fixed.real_bytes(x);
        self.device.queue.write_buffer(&prepared.maps[plan.x.buffer], 0, &input);
        let pipelines = &self.pipelines;
        self.device.submit(|encoder| pipelines.encode(encoder, prepared.evaluate.iter()));
        self.device.check()?;
        let mut outputs = [const { Vec::new() }; 2];
        for (map, output) in [Some(plan.output), plan.pooled].into_iter().zip(&mut outputs) {
            let Some(map) = map else { continue };
            let size = (map.len() / BLOCK) as u64 * block_bytes(self.fixed.real);
            let bytes = self.read(&prepared.maps[map.buffer], size).await?;
            *output = self.fixed.real_values(&bytes);
        }
        Ok(outputs)
    }

    /// Reads the first `size` bytes of a buffer.
    async fn read(&self, buffer: &Buffer, size: u64) -> Result<Vec<u8>, SamplerError> {
        let gpu = &self.device.device;
        let staging = gpu.create_buffer(&wgpu::BufferDescriptor {
            label: Some("staging"),
            size,
            usage: BufferUsages::MAP_READ | BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        self.device.submit(|encoder| encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, size));
        let (send, receive) = futures_channel::oneshot::channel();
        staging.map_async(wgpu::MapMode::Read, .., move |result| {
            // The receiver is gone if the caller has dropped this future.
            let _ = send.send(result);
        });
        // In a browser this does nothing, and the event loop runs the callback. Natively the callback receives any
        // error.
        let _ = gpu.poll(wgpu::PollType::wait_indefinitely());
        let mapped = receive.await;
        self.device.check()?;
        let fault = |error: &dyn std::fmt::Display| SamplerError::Device(error.to_string());
        mapped.map_err(|error| fault(&error))?.map_err(|error| fault(&error))?;
        let view = staging.get_mapped_range(..).map_err(|error| fault(&error))?;
        Ok(view.to_vec())
    }

    /// Prepares buffers and dispatches for a number of images, unless they are there.
    fn prepare(&mut self, plan: &Plan, images: usize) {
        let prepared = match self.prepared.take() {
            Some(prepared) if prepared.images == images => prepared,
            old => {
                // The old buffers are freed before the new ones are created.
                drop(old);
                Prepared::new(&self.device, plan, &self.fixed, &mut self.pipelines, images)
            }
        };
        self.prepared = Some(prepared);
    }

    /// Submits the evaluations of `work`. Returns the buffer of the images, which are not read back.
    fn run(&mut self, plan: &Plan, work: &Work) -> Result<Buffer, SamplerError> {
        self.device.check()?;
        let images = work.images();
        self.prepare(plan, images);
        let Some(prepared) = &self.prepared else { panic!("just prepared") };
        let (device, pipelines, queue) = (&self.device, &self.pipelines, &self.device.queue);
        for (number, update) in work.updates.iter().enumerate() {
            match work.noise.get(number).filter(|noise| !noise.is_empty()) {
                Some(noise) => queue.write_buffer(&prepared.noise, 0, bytemuck::cast_slice(noise)),
                None => assert!(update.fresh == 0.0, "a step that adds fresh noise has none"),
            }
            let Update { x, memory, fresh, c_in } = *update;
            let step = uniform::Step {
                image_image: x.x,
                image_output: x.v,
                image_memory: x.memory,
                memory_image: memory.x,
                memory_output: memory.v,
                memory_memory: memory.memory,
                fresh,
                input_scale: c_in,
                count: (images * plan.x.len() / BLOCK) as u32,
            };
            queue.write_buffer(&prepared.step, 0, &uniform_bytes(&step));
            // The first update scales the noise to the first `x`. It runs before any evaluation.
            let evaluate = if number == 0 { &[][..] } else { &prepared.evaluate };
            if number > 0 {
                let inputs = &work.inputs[number - 1];
                let mut rows = Vec::new();
                inputs.iter().for_each(|inputs| rows.extend_from_slice(&inputs.row));
                queue.write_buffer(&prepared.rows, 0, bytemuck::cast_slice(&rows));
                #[cfg(feature = "text")]
                if let Some(map) = plan.text {
                    let texts = inputs.iter().filter_map(|inputs| inputs.text.as_ref());
                    let tokens: Vec<f32> = texts.flat_map(|text| text.tokens.iter().copied()).collect();
                    queue.write_buffer(&prepared.maps[map.buffer], 0, &self.fixed.real_bytes(&tokens));
                }
            }
            device.submit(|encoder| pipelines.encode(encoder, evaluate.iter().chain([&prepared.advance])));
        }
        device.check()?;
        Ok(prepared.image.clone())
    }

    /// Prepares a canvas or a window to draw on.
    pub(super) fn surface(&self, target: wgpu::SurfaceTarget<'static>) -> Result<Surface, SamplerError> {
        let surface = self.device.instance.create_surface(target);
        let surface = surface.map_err(|error| SamplerError::Device(error.to_string()))?;
        Ok(Surface { surface, size: [0; 2] })
    }

    /// Samples `work` and draws its first image over the whole surface. Resizes the surface to the image.
    pub(super) fn draw(
        &mut self,
        denoiser: &Denoiser,
        work: &Work,
        surface: &mut Surface,
    ) -> Result<(), SamplerError> {
        let Denoiser { plan, spec, .. } = denoiser;
        let image = self.run(plan, work)?;
        let gpu = &self.device.device;
        let [channels, height, width] = spec.image().map(|size| size as u32);
        let size = [width, height];
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
        let pipeline = match &self.picture {
            Some((found, pipeline)) if *found == format => pipeline.clone(),
            _ => {
                let pipeline = picture_pipeline(gpu, format);
                self.picture = Some((format, pipeline.clone()));
                pipeline
            }
        };
        let picture = uniform::Picture {
            height,
            width,
            channels,
            side: spec.patch_size() as u32,
            blocks: (plan.x.channels / BLOCK) as u32,
        };
        let uniform = gpu.create_buffer_init(&BufferInitDescriptor {
            label: Some("picture"),
            contents: &uniform_bytes(&picture),
            usage: BufferUsages::UNIFORM,
        });
        let layout = pipeline.get_bind_group_layout(0);
        let operands = buffers::Picture { image: &image };
        let operands = prepared::bind(gpu, &layout, uniform.as_entire_buffer_binding(), &operands.in_order());
        let view = texture.texture.create_view(&Default::default());
        self.device.submit(|encoder| {
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
            pass.set_pipeline(&pipeline);
            pass.set_bind_group(0, &operands, &[]);
            pass.draw(0..3, 0..1);
        });
        self.device.queue.present(texture);
        self.device.check()
    }
}

impl Surface {
    fn configure(&mut self, gpu: &wgpu::Device, format: TextureFormat, size: [u32; 2]) {
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

fn picture_pipeline(gpu: &wgpu::Device, format: TextureFormat) -> RenderPipeline {
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

/// Bytes per weight.
fn bytes_of(weight: &ConvWeight, precision: Precision) -> u64 {
    let bits = match kind(weight, precision) {
        Weights::F32 => 32,
        Weights::F16 => 16,
        Weights::Q8 => 8,
        #[cfg(feature = "text")]
        Weights::Q4 => 4,
    };
    weight.len() as u64 * bits / 8
}

/// Bytes of the largest buffer of a plan, for one image.
fn largest_map(plan: &Plan, real: Real) -> u64 {
    plan.buffers.iter().map(|&values| values as u64 / 4 * block_bytes(real)).fold(0, u64::max)
}

/// Number of images per pass through the network. Each buffer must be within the adapter's limit, all buffers together
/// within a limit that fits a small GPU, and each dispatch within WebGPU's limit.
fn most_images(plan: &Plan, real: Real, most_bytes: u64) -> usize {
    const MOST_BYTES: u64 = 1 << 30;
    let together = plan.values_per_image() as u64 / 4 * block_bytes(real);
    let together = MOST_BYTES / together.max(1);
    let pixels = u64::from(MOST_WORKGROUPS * Tile::Narrow.pixels()) / plan.x.pixels() as u64;
    (most_bytes / largest_map(plan, real).max(1)).min(together.max(1)).min(pixels) as usize
}
