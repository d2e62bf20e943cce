//! The memory that `--show-config` prints is what a step of distillation allocates.
#![allow(clippy::unwrap_used, reason = "a test that cannot read its data has failed")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use burn::tensor::{DType, Device};
use ccm::config::{Config, FixedPrecision};
use ccm::data::encoded::{Encoded, Texts};
use ccm::data::{Examples, ImageShape, Split, shapes};
use ccm::method::coupling::Coupling;
use ccm::method::curriculum::Scope;
use ccm::method::distance::{Distance, DistanceKind};
use ccm::method::guidance::{Guidance, Teacher};
use ccm::method::lpips::{Lpips, LpipsWeights};

use ccm::model::json::Json;
use ccm::model::{NetworkSpec, Text, UNetSpec};
use ccm::nn::conditions::Conditions;
use ccm::nn::denoiser::{Denoiser, random_lora};
use ccm::noise::Noise;
use ccm::train::batches::Conditioning;
use ccm::train::distill::Distillation;
use ccm::train::memory::Memory;
use ccm::train::state::{Stage, TrainState};
use ccm::train::trainable::{Adaptation, Trainable};
use ccm::train::workers::Workers;
use ccm_tests::{guide, lively_model, lpips_weights, oppose, small_distillation};
use serde_json::json;

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
    let UNetSpec { height, width, patch_size, .. } = config.network;
    let [height, width] = [height, width].map(|side| side.min(32.max(16 * patch_size)));
    let spec = UNetSpec { height, width, num_classes: Some(8), ..config.network.clone() };
    let shape = ImageShape { channels: spec.in_channels, height, width };
    let data: Examples = shapes(IMAGES, shape, Split::Train, 1).unwrap().into();
    let part = config.distill.micro_batch.unwrap_or(IMAGES);
    let before = NOW.load(SeqCst);
    let workers = Workers::new(config.run.threads.unwrap_or(1), IMAGES, part).unwrap();
    let mut distillation =
        small_distillation(NetworkSpec::from(spec.clone()), &data, IMAGES, Scope::Image, workers, &device);
    if config.distill.adversarial_weight > 0.0 {
        let encoder = config.distill.discriminator_encoder.unwrap_or_default();
        oppose(&mut distillation, encoder, &device);
    }
    if config.distill.autoguidance.is_some() {
        guide(&mut distillation, &device);
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
    compare(distillation, before, &spec.into(), &config, part)
}

/// As [`measure`], for the network of a preset for text-to-image models, at a small size.
fn measure_text_to_image(preset: &str, settings: &[&str]) -> [f64; 2] {
    const IMAGES: usize = 4;
    let json = match preset {
        "sd3" => json!({
            "_class_name": "SD3Transformer2DModel", "sample_size": 32, "num_layers": 3, "num_attention_heads": 4,
            "attention_head_dim": 32, "caption_projection_dim": 128, "pos_embed_max_size": 32,
            "joint_attention_dim": 64, "pooled_projection_dim": 32
        }),
        _ => json!({
            "_class_name": "UNet2DConditionModel", "sample_size": 32, "cross_attention_dim": 64,
            "block_out_channels": [64, 128], "layers_per_block": 1, "attention_head_dim": 4,
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]
        }),
    };
    let device = Device::flex();
    let spec = NetworkSpec::from_config(&Json::parse(&json.to_string()).unwrap()).unwrap();
    let parts = [format!("distill.batch={IMAGES}"), format!("distill.micro_batch={IMAGES}")];
    let settings: Vec<String> = settings.iter().map(|&setting| setting.to_owned()).chain(parts).collect();
    let config = Config::preset(preset).unwrap().with_overrides(&settings).unwrap();
    let shape = spec.text().unwrap();
    let text = |number: usize| {
        let mut noise = Noise::new(3, number as u64);
        let tokens = noise.normals(shape.tokens * shape.channels);
        Arc::new(Text { tokens, pooled: noise.normals(shape.pooled), sizes: Vec::new() })
    };
    let captions: Vec<String> = (0..IMAGES).map(|number| number.to_string()).collect();
    let encoded: Vec<Arc<Text>> = (0..IMAGES).map(text).collect();
    let texts = Arc::new(Texts::new(captions, &encoded, &text(IMAGES)));
    let latents = Noise::new(4, 0).normals(IMAGES * spec.image_len());
    let captions = (0..IMAGES as u32).collect();
    let data: Examples = Encoded::new(latents, spec.image(), captions, Arc::clone(&texts)).into();
    let before = NOW.load(SeqCst);
    let workers = Workers::new(1, IMAGES, IMAGES).unwrap();
    let mut distillation = small_distillation(spec.clone(), &data, IMAGES, Scope::Image, workers, &device);
    distillation.batches.coupling = Coupling::Independent;
    distillation.batches.horizontal_flip = false;
    let guidance = config.distill.guidance;
    distillation.batches.conditioning = Conditioning::Texts { shape, dropout: 0.0, guidance };
    let base = Denoiser::new(&lively_model(spec.clone()), &device);
    let base = match config.distill.fixed_precision.unwrap_or_default() {
        FixedPrecision::F16 => base.halved(),
        FixedPrecision::F32 => base,
    };
    let negative = Conditions::of_texts(&[texts.negative()], shape, &device);
    distillation.teacher =
        Teacher { denoiser: base.without_gradients(), guidance: Guidance::ClassifierFree(negative) };
    if let Some(lora) = config.distill.lora() {
        let first = random_lora(&spec, &lora, 1).unwrap();
        let trainable = Trainable::Lora(Box::new(Adaptation::new(&base, lora).unwrap()));
        distillation.state = TrainState::of(&trainable, &first, &[0.9, 0.999], &device);
    }
    drop(base);
    if config.run.gradient_checkpointing {
        distillation.state.denoiser = distillation.state.denoiser.clone().checkpointed();
    }
    compare(distillation, before, &spec, &config, IMAGES)
}

/// Bytes that a step allocates at its peak beside those that were in use `before`, and those that the program computes.
fn compare(
    mut distillation: Distillation<'_>,
    before: usize,
    spec: &NetworkSpec,
    config: &Config,
    part: usize,
) -> [f64; 2] {
    // After the first step, the optimiser has its moments.
    distillation.step().unwrap();
    MOST.store(NOW.load(SeqCst), SeqCst);
    distillation.step().unwrap();
    let measured = MOST.load(SeqCst) - before;
    let computed = Memory::of_distillation(spec, &config.distill, part, &config.run).unwrap();
    println!("{:.1} MB measured\n{computed}", measured as f64 / 1e6);
    [measured as f64, computed.total() as f64]
}

#[test]
fn a_step_allocates_what_show_config_prints() {
    const FROZEN: &str = "distill.discriminator_encoder=frozen";
    // The order counts: threads keep their scratch memory from one case to the next.
    let cases: [(&str, &[&str]); 19] = [
        ("mnist", &[]),
        ("avatars", &["distill.adversarial_weight=0"]),
        ("avatars", &[]),
        ("avatars", &[FROZEN]),
        ("avatars", &[FROZEN, "run.gradient_checkpointing=true"]),
        ("avatars", &[FROZEN, "run.eight_bit_optimizer=true"]),
        ("avatars", &["distill.micro_batch=2"]),
        ("avatars", &["run.mixed_precision=f16"]),
        ("avatars", &[FROZEN, "run.mixed_precision=f16", "run.gradient_checkpointing=true"]),
        ("avatars", &[FROZEN, "run.threads=2", "distill.micro_batch=2"]),
        ("avatars", &["distill.adversarial_weight=0", "distill.distance=teacher-features"]),
        ("avatars", &[FROZEN, "distill.distance=teacher-features"]),
        ("mnist", &["distill.distance=lpips-alexnet", "distill.adversarial_weight=0"]),
        ("mnist", &["distill.distance=lpips-vgg16"]),
        ("sd15", &[]),
        ("sd15", &["run.gradient_checkpointing=false", "distill.fixed_precision=f32"]),
        ("sd3", &[]),
        ("sd3", &["run.gradient_checkpointing=false", "distill.fixed_precision=f32"]),
        ("avatars", &[FROZEN, "run.threads=2", "run.mixed_precision=f16"]),
    ];
    let ratios = cases.map(|(preset, settings)| {
        println!("{preset} {settings:?}");
        let [measured, computed] = match preset {
            "sd15" | "sd3" => measure_text_to_image(preset, settings),
            _ => measure(preset, settings),
        };
        (preset, settings, computed / measured)
    });
    for (preset, settings, ratio) in ratios {
        println!("{preset} {settings:?}: {ratio:.3}");
    }
    let close = |ratio: &f64| (0.9..1.1).contains(ratio);
    assert!(ratios.iter().all(|(.., ratio)| close(ratio)), "off by more than 10 %");
}
