//! Finds an adapter and opens a device on it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use wgpu::{Adapter, AdapterInfo, Backends, CommandEncoder, DeviceType, Instance, InstanceDescriptor};

use crate::sampler::{Api, SamplerError};

/// An open device.
pub(super) struct Device {
    pub(super) instance: Instance,
    pub(super) adapter: Adapter,
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    /// Whether the adapter computes on the CPU.
    pub(super) software: bool,
    lost: Arc<AtomicBool>,
    /// The first error that the device has reported since the last check.
    fault: Arc<Mutex<Option<String>>>,
}

impl Device {
    /// Opens the first hardware GPU of an API or, if there is none and `software` is set, a software adapter.
    pub(super) async fn open(api: Option<Api>, software: bool) -> Result<Self, SamplerError> {
        let backends = backends(api);
        let descriptor = InstanceDescriptor { backends, ..InstanceDescriptor::new_without_display_handle() };
        let instance = Instance::new(descriptor);
        let adapters = adapters(&instance, backends).await;
        let is_real = |adapter: &&Adapter| !is_software(&adapter.get_info());
        let real = adapters.iter().find(is_real);
        let Some(adapter) = real.or(adapters.first().filter(|_| software)).cloned() else {
            let found: Vec<String> = adapters.iter().map(|adapter| adapter.get_info().name).collect();
            let found = if found.is_empty() { "none".to_owned() } else { found.join(", ") };
            return Err(SamplerError::NoGpu(format!("adapters found: {found}")));
        };
        let software = is_software(&adapter.get_info());
        let (device, queue) = adapter
            .request_device(&wgpu::DeviceDescriptor {
                label: Some("ccm"),
                required_features: adapter.features() & wgpu::Features::SHADER_F16,
                required_limits: adapter.limits(),
                ..Default::default()
            })
            .await
            .map_err(|error| SamplerError::NoGpu(error.to_string()))?;
        let (lost, fault) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(None)));
        let flag = Arc::clone(&lost);
        device.set_device_lost_callback(move |_, _| flag.store(true, Ordering::Relaxed));
        let first = Arc::clone(&fault);
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert(error.to_string());
        }));
        Ok(Self { instance, adapter, device, queue, software, lost, fault })
    }

    /// Whether the device is lost.
    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// Whether the device supports half precision in shaders.
    pub(super) fn has_f16(&self) -> bool {
        self.device.features().contains(wgpu::Features::SHADER_F16)
    }

    /// Submits one command buffer.
    pub(super) fn submit(&self, encode: impl FnOnce(&mut CommandEncoder)) {
        let mut encoder = self.device.create_command_encoder(&Default::default());
        encode(&mut encoder);
        self.queue.submit([encoder.finish()]);
    }

    /// The loss of the device, or an error that it has reported since the last call.
    pub(super) fn check(&self) -> Result<(), SamplerError> {
        if self.is_lost() {
            return Err(SamplerError::DeviceLost);
        }
        match self.fault.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(fault) => Err(SamplerError::Device(fault)),
            None => Ok(()),
        }
    }
}

fn backends(api: Option<Api>) -> Backends {
    match api {
        None => Backends::PRIMARY,
        Some(Api::Vulkan) => Backends::VULKAN,
        Some(Api::Metal) => Backends::METAL,
        Some(Api::Dx12) => Backends::DX12,
    }
}

#[cfg(not(target_arch = "wasm32"))]
async fn adapters(instance: &Instance, backends: Backends) -> Vec<Adapter> {
    let mut adapters = instance.enumerate_adapters(backends).await;
    adapters.sort_by_key(|adapter| match adapter.get_info().device_type {
        DeviceType::DiscreteGpu => 0,
        DeviceType::IntegratedGpu => 1,
        DeviceType::VirtualGpu => 2,
        DeviceType::Other => 3,
        DeviceType::Cpu => 4,
    });
    adapters
}

#[cfg(target_arch = "wasm32")]
async fn adapters(instance: &Instance, _: Backends) -> Vec<Adapter> {
    let options = wgpu::RequestAdapterOptions {
        power_preference: wgpu::PowerPreference::HighPerformance,
        ..Default::default()
    };
    instance.request_adapter(&options).await.into_iter().collect()
}

/// Whether an adapter computes on the CPU. Some software drivers report another device type, so the name is checked
/// too.
pub fn is_software(info: &AdapterInfo) -> bool {
    let name = info.name.to_ascii_lowercase();
    let software = ["llvmpipe", "lavapipe", "swiftshader", "softpipe", "basic render"];
    info.device_type == DeviceType::Cpu || software.iter().any(|part| name.contains(part))
}
