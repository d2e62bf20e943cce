//! `--device`: which processor trains and samples.

use burn::tensor::{Device, DeviceKind};
use burn_wgpu::WgpuBackend;
use burn_wgpu::wgpu::{AdapterInfo, Backends, DeviceType, Instance, InstanceDescriptor};

use crate::Failure;

/// Processor: `auto` takes a real GPU and otherwise the CPU, and says which; the others are taken at their word
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum Choice {
    #[default]
    Auto,
    Vulkan,
    Metal,
    Dx12,
    Cpu,
}

/// A device that is ready.
pub(crate) struct Opened {
    pub(crate) device: Device,
    /// What a person calls it.
    pub(crate) name: String,
    /// Threads of a CPU, which share a batch; a GPU takes it from one.
    pub(crate) threads: Option<usize>,
}

/// Opens a device.
pub(crate) fn open(choice: Choice) -> Result<Opened, Failure> {
    let (flag, backends, api) = match choice {
        Choice::Cpu => return Ok(cpu()),
        Choice::Auto => ("auto", Backends::PRIMARY, None),
        Choice::Vulkan => ("vulkan", Backends::VULKAN, Some(WgpuBackend::Vulkan)),
        Choice::Metal => ("metal", Backends::METAL, Some(WgpuBackend::Metal)),
        Choice::Dx12 => ("dx12", Backends::DX12, Some(WgpuBackend::Dx12)),
    };
    let adapters = adapters(backends);
    let real = adapters.iter().position(|info| info.device_type != DeviceType::Cpu && !is_software(info));
    let Some(adapter) = real.or((choice != Choice::Auto && !adapters.is_empty()).then_some(0)) else {
        return match choice {
            Choice::Auto => Ok(cpu()),
            _ => Err(format!("--device {flag}: no adapter found; `--device cpu` always works").into()),
        };
    };
    let info = &adapters[adapter];
    let kind = match info.device_type {
        DeviceType::DiscreteGpu => DeviceKind::DiscreteGpu(0),
        DeviceType::IntegratedGpu => DeviceKind::IntegratedGpu(0),
        DeviceType::VirtualGpu => DeviceKind::VirtualGpu(0),
        DeviceType::Cpu => DeviceKind::Cpu,
        DeviceType::Other => DeviceKind::DefaultDevice,
    };
    let options = Device::wgpu_options().device_kind(kind);
    let options = match api {
        Some(api) => options.graphics_api(api),
        None => options,
    };
    let device = options.init().map_err(|error| format!("--device {flag}: {}: {error}", info.name))?;
    Ok(Opened { device, name: format!("{} ({:?})", info.name, info.backend), threads: None })
}

fn cpu() -> Opened {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    Opened { device: Device::flex(), name: format!("CPU, {threads} threads"), threads: Some(threads) }
}

fn adapters(backends: Backends) -> Vec<AdapterInfo> {
    let instance =
        Instance::new(InstanceDescriptor { backends, ..InstanceDescriptor::new_without_display_handle() });
    pollster::block_on(instance.enumerate_adapters(backends))
        .iter()
        .map(|adapter| adapter.get_info())
        .collect()
}

/// Some drivers that draw on the CPU report themselves as something else.
fn is_software(info: &AdapterInfo) -> bool {
    let name = info.name.to_lowercase();
    ["llvmpipe", "lavapipe", "swiftshader", "softpipe", "basic render"].iter().any(|part| name.contains(part))
}
