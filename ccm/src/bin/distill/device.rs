//! The option `--device`: selects the device for training and sampling.

use burn::tensor::{Device, DeviceKind};
use burn_wgpu::WgpuBackend;
use burn_wgpu::wgpu::{AdapterInfo, Backend, Backends, DeviceType, Instance, InstanceDescriptor};
use ccm::sampler::is_software;

use crate::Failure;

/// Device: `auto` selects a hardware GPU, or the CPU if there is none; an API may select a software adapter
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum Choice {
    #[default]
    Auto,
    Vulkan,
    Metal,
    Dx12,
    Cpu,
}

/// An initialized device.
pub(crate) struct Opened {
    pub(crate) device: Device,
    /// Name for messages.
    pub(crate) name: String,
    /// Number of CPU threads over which a batch is split; `None` for a GPU.
    pub(crate) threads: Option<usize>,
}

/// Initializes a device.
pub(crate) fn open(choice: Choice) -> Result<Opened, Failure> {
    let Some((flag, backends)) = api_of(choice) else { return Ok(cpu()) };
    let mut usable = usable(&adapters(backends), choice != Choice::Auto);
    if usable.is_empty() {
        return match choice {
            Choice::Auto => Ok(cpu()),
            _ => Err(none_found(flag).into()),
        };
    }
    initialize(flag, usable.swap_remove(0))
}

/// Initializes several devices: those with these numbers in the order of [`usable`], or all. The CPU has any number of equal
/// devices, which share its threads; all of them are one.
pub(crate) fn open_several(choice: Choice, numbers: Option<&[usize]>) -> Result<Vec<Opened>, Failure> {
    let Some((flag, backends)) = api_of(choice) else {
        let count = numbers.map_or(1, <[usize]>::len);
        let of_one =
            |opened: Opened| Opened { threads: opened.threads.map(|all| (all / count).max(1)), ..opened };
        return Ok((0..count).map(|_| of_one(cpu())).collect());
    };
    let usable = usable(&adapters(backends), choice != Choice::Auto);
    if usable.is_empty() {
        return Err(none_found(flag).into());
    }
    if let Some(number) = numbers.and_then(|numbers| numbers.iter().find(|number| **number >= usable.len())) {
        let names: Vec<String> =
            usable.iter().enumerate().map(|(number, of)| format!("{number} ({})", of.name)).collect();
        return Err(format!("--device {flag}: expected {}, found {number}", names.join(" or ")).into());
    }
    let wanted = |number: &usize| numbers.is_none_or(|numbers| numbers.contains(number));
    let wanted = usable.into_iter().enumerate().filter(|(number, _)| wanted(number));
    wanted.map(|(_, chosen)| initialize(flag, chosen)).collect()
}

/// Number of the devices that [`open_several`] numbers; 0 for the CPU.
pub(crate) fn count(choice: Choice) -> usize {
    api_of(choice).map_or(0, |(_, backends)| usable(&adapters(backends), choice != Choice::Auto).len())
}

/// The API of a choice other than the CPU, with its name.
fn api_of(choice: Choice) -> Option<(&'static str, Backends)> {
    Some(match choice {
        Choice::Cpu => return None,
        Choice::Auto => ("auto", Backends::PRIMARY),
        Choice::Vulkan => ("vulkan", Backends::VULKAN),
        Choice::Metal => ("metal", Backends::METAL),
        Choice::Dx12 => ("dx12", Backends::DX12),
    })
}

fn none_found(flag: &str) -> String {
    format!("--device {flag}: no adapter found; `--device cpu` always works")
}

fn initialize(flag: &str, chosen: Chosen) -> Result<Opened, Failure> {
    let options = Device::wgpu_options().device_kind(chosen.kind).graphics_api(chosen.api);
    let (device, setup) =
        options.init_with_setup().map_err(|error| format!("--device {flag}: {}: {error}", chosen.name))?;
    // The name of the adapter that was opened, which may differ from the requested one.
    let info = setup.adapter.get_info();
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

/// An adapter, with the values by which Burn identifies it.
#[derive(Debug, PartialEq)]
struct Chosen {
    name: String,
    kind: DeviceKind,
    api: WgpuBackend,
}

/// The hardware GPUs of an enumeration: discrete ones before integrated ones before virtual ones. If there is none and
/// `software` is true, the software adapters.
fn usable(adapters: &[AdapterInfo], software: bool) -> Vec<Chosen> {
    let rank = |info: &AdapterInfo| match info.device_type {
        DeviceType::DiscreteGpu => 0,
        DeviceType::IntegratedGpu => 1,
        DeviceType::VirtualGpu => 2,
        DeviceType::Other | DeviceType::Cpu => 3,
    };
    let all_software = adapters.iter().all(is_software);
    let mut usable: Vec<(usize, Chosen)> = Vec::new();
    for (place, info) in adapters.iter().enumerate() {
        let Some(api) = api(info.backend).filter(|_| !is_software(info) || software && all_software) else {
            continue;
        };
        // Burn's index counts the adapters of the same kind and API, including software adapters.
        let alike =
            |other: &&AdapterInfo| (other.device_type, other.backend) == (info.device_type, info.backend);
        let index = adapters[..place].iter().filter(alike).count();
        let kind = match info.device_type {
            DeviceType::DiscreteGpu => DeviceKind::DiscreteGpu(index),
            DeviceType::IntegratedGpu => DeviceKind::IntegratedGpu(index),
            DeviceType::VirtualGpu => DeviceKind::VirtualGpu(index),
            // Burn has no index for these two kinds.
            DeviceType::Cpu => DeviceKind::Cpu,
            DeviceType::Other => DeviceKind::DefaultDevice,
        };
        usable.push((rank(info), Chosen { name: info.name.clone(), kind, api }));
    }
    usable.sort_by_key(|(rank, _)| *rank);
    usable.into_iter().map(|(_, chosen)| chosen).collect()
}

fn api(backend: Backend) -> Option<WgpuBackend> {
    match backend {
        Backend::Vulkan => Some(WgpuBackend::Vulkan),
        Backend::Metal => Some(WgpuBackend::Metal),
        Backend::Dx12 => Some(WgpuBackend::Dx12),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(name: &str, device_type: DeviceType, backend: Backend) -> AdapterInfo {
        AdapterInfo { name: name.into(), ..AdapterInfo::new(device_type, backend) }
    }

    fn chosen(adapters: &[AdapterInfo], software: bool) -> Option<(String, DeviceKind, WgpuBackend)> {
        let first = usable(adapters, software).into_iter().next();
        first.map(|chosen| (chosen.name, chosen.kind, chosen.api))
    }

    #[test]
    fn the_index_passed_to_burn_selects_the_named_adapter() {
        let list = [
            adapter("Intel", DeviceType::IntegratedGpu, Backend::Vulkan),
            // Counted by Burn, but not selected.
            adapter("SwiftShader", DeviceType::DiscreteGpu, Backend::Vulkan),
            adapter("NVIDIA", DeviceType::DiscreteGpu, Backend::Vulkan),
            adapter("AMD", DeviceType::DiscreteGpu, Backend::Vulkan),
        ];
        let expected = ("NVIDIA".to_owned(), DeviceKind::DiscreteGpu(1), WgpuBackend::Vulkan);
        assert_eq!(chosen(&list, false), Some(expected.clone()));
        assert_eq!(chosen(&list, true), Some(expected));
        let expected = ("Intel".to_owned(), DeviceKind::IntegratedGpu(0), WgpuBackend::Vulkan);
        assert_eq!(chosen(&list[..2], false), Some(expected));
        let names: Vec<String> = usable(&list, true).into_iter().map(|chosen| chosen.name).collect();
        assert_eq!(names, ["NVIDIA", "AMD", "Intel"]);
    }

    #[test]
    fn adapters_are_counted_within_their_graphics_api() {
        let list = [
            adapter("llvmpipe", DeviceType::VirtualGpu, Backend::Vulkan),
            adapter("GPU", DeviceType::VirtualGpu, Backend::Dx12),
            adapter("GPU", DeviceType::VirtualGpu, Backend::Gl),
        ];
        let expected = ("GPU".to_owned(), DeviceKind::VirtualGpu(0), WgpuBackend::Dx12);
        assert_eq!(chosen(&list, false), Some(expected));
        assert_eq!(chosen(&list[2..], true), None, "an API without support in Burn");
    }

    #[test]
    fn a_software_adapter_is_selected_only_if_allowed() {
        let list = [
            adapter("llvmpipe (LLVM 19)", DeviceType::Cpu, Backend::Vulkan),
            adapter("Microsoft Basic Render Driver", DeviceType::Other, Backend::Dx12),
        ];
        assert_eq!(chosen(&list, false), None);
        let expected = ("llvmpipe (LLVM 19)".to_owned(), DeviceKind::Cpu, WgpuBackend::Vulkan);
        assert_eq!(chosen(&list, true), Some(expected));
        assert_eq!(chosen(&[], true), None);
    }
}
