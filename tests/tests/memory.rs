//! The memory that `--show-config` prints is what a step of distillation allocates.
#![allow(clippy::unwrap_used, reason = "a test that cannot read its data has failed")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use burn::tensor::{DType, Device};
use ccm::config::Config;
use ccm::data::{Examples, ImageShape, Split, shapes};
use ccm::method::curriculum::Scope;
use ccm::method::distance::{Distance, DistanceKind};
use ccm::method::lpips::{Lpips, LpipsWeights};
use ccm::model::{NetworkSpec, UNetSpec};
use ccm::nn::denoiser::Denoiser;
use ccm::train::memory::Memory;
use ccm::train::state::Stage;
use ccm::train::workers::Workers;
use ccm_tests::{lively_model, lpips_weights, oppose, small_distillation};

/// The system's allocator, which counts the bytes in use.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        MOST.fetch_max(NOW.fetch_add(layout.size(), SeqCst) + layout.size(), SeqCst);
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), SeqCst);
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes that a step of distillation needs at its peak, measured and computed.
fn measure(preset: &str, settings: &[&str]) -> [f64; 2] {
    const IMAGES: usize = 8;
    let device = Device::flex();
    let batch = format!("distill.batch={IMAGES}");
    let settings: Vec<String> = settings.iter().map(|&setting| setting.to_owned()).chain([batch]).collect();
    let config = Config::preset(preset).unwrap().with_overrides(&settings).unwrap();
    let UNetSpec { height, width, .. } = config.network;
    let [height, width] = [height, width].map(|side| side.min(32));
    let spec = UNetSpec { height, width, num_classes: Some(8), ..config.network.clone() };
    let shape = ImageShape { channels: spec.in_channels, height, width };
    let data: Examples = shapes(IMAGES, shape, Split::Train, 1).unwrap().into();
    let part = config.distill.micro_batch.unwrap_or(IMAGES);
    let before = NOW.load(SeqCst);
    let workers = Workers::new(config.run.threads.unwrap_or(1), IMAGES, part).unwrap();
    let mut distillation =
        small_distillation(NetworkSpec::from(spec.clone()), &data, IMAGES, Scope::Image, workers, &device);
    if config.distill.adversarial_weight > 0.0 {
        oppose(&mut distillation, &device);
    }
    distillation.distance = match (config.distill.distance, config.distill.distance.trunk()) {
        (DistanceKind::TeacherFeatures, _) => {
            Distance::TeacherFeatures(Arc::new(Denoiser::frozen(&lively_model(spec.clone()), &device)))
        }
        (_, Some(trunk)) => {
            let [features, heads] = lpips_weights(trunk);
            let weights = LpipsWeights::new(trunk, features, heads).unwrap();
            Distance::Lpips { lpips: Arc::new(Lpips::new(&weights, &device)), decoder: None }
        }
        _ => Distance::PseudoHuber,
    };
    if config.run.mixed_precision.is_some() {
        let (student, teacher) = (&mut distillation.state.denoiser, &mut distillation.teacher.denoiser);
        *student = student.clone().in_half(DType::F16);
        *teacher = teacher.clone().in_half(DType::F16);
    }
    if config.run.gradient_checkpointing {
        distillation.state.denoiser = distillation.state.denoiser.clone().checkpointed();
    }
    if config.run.eight_bit_optimizer {
        distillation.state.optimizer = distillation.state.optimizer.clone().in_eight_bits();
    }
    // After the first step, the optimiser has its moments.
    distillation.step().unwrap();
    MOST.store(NOW.load(SeqCst), SeqCst);
    distillation.step().unwrap();
    let measured = MOST.load(SeqCst) - before;
    let computed = Memory::of_distillation(&spec.into(), &config.distill, part, &config.run).unwrap();
    println!("{preset} {settings:?}: {:.1} MB measured\n{computed}", measured as f64 / 1e6);
    [measured as f64, computed.total() as f64]
}

#[test]
fn a_step_allocates_what_show_config_prints() {
    let cases: [(&str, &[&str]); 14] = [
        ("mnist", &[]),
        ("avatars", &["distill.adversarial_weight=0"]),
        ("avatars", &[]),
        ("avatars", &["run.gradient_checkpointing=true"]),
        ("avatars", &["run.eight_bit_optimizer=true"]),
        ("avatars", &["distill.micro_batch=2"]),
        ("avatars", &["run.mixed_precision=f16"]),
        ("avatars", &["run.mixed_precision=f16", "run.gradient_checkpointing=true"]),
        ("avatars", &["run.threads=2", "distill.micro_batch=2"]),
        ("avatars", &["distill.distance=teacher-features", "distill.adversarial_weight=0"]),
        ("avatars", &["distill.distance=teacher-features"]),
        ("mnist", &["distill.distance=lpips-alexnet", "distill.adversarial_weight=0"]),
        ("mnist", &["distill.distance=lpips-vgg16"]),
        ("avatars", &["run.threads=2", "run.mixed_precision=f16"]),
    ];
    let ratios = cases.map(|(preset, settings)| {
        let [measured, computed] = measure(preset, settings);
        (preset, settings, computed / measured)
    });
    for (preset, settings, ratio) in ratios {
        println!("{preset} {settings:?}: {ratio:.3}");
    }
    let close = |ratio: &f64| (0.9..1.1).contains(ratio);
    assert!(ratios.iter().all(|(.., ratio)| close(ratio)), "off by more than 10 %");
}
