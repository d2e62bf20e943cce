//! Benchmark: one distillation step and one teacher step on the CPU.
//!
//! The small U-Net: 32x32 RGB, 32 channels, multipliers 1, 2, 2, one residual block, attention at 8, ten classes,
//! 1.1 M parameters; batch 64, Adam, three averages of the weights.
#![allow(missing_docs, reason = "criterion's macros")]
#![allow(clippy::unwrap_used)]

use burn::tensor::Device;
use ccm::config::Config;
use ccm::data::{ImageShape, Split, shapes};
use ccm::method::coupling::Coupling;
use ccm::method::curriculum::{Curriculum, Mode, Scope, StepSolver};
use ccm::method::distance::Distance;
use ccm::method::kdc::PEAK;
use ccm::method::teacher::TimeDistribution;
use ccm::model::{Prediction, UNetSpec};
use ccm::nn::denoiser::{Denoiser, random_model};
use ccm::nn::optimizer::Schedule;
use ccm::train::batches::{Ahead, Batches, Conditioning, StageKind};
use ccm::train::distill::Distillation;
use ccm::train::state::{Stage, TrainState};
use ccm::train::teacher::Teacher;
use ccm::train::workers::Workers;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

/// The allocator of the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const BATCH: usize = 64;

/// The network of the `mnist` preset for larger RGB images.
fn small() -> UNetSpec {
    let digits = Config::preset("mnist").unwrap().network;
    UNetSpec {
        in_channels: 3,
        height: 32,
        width: 32,
        attention_resolutions: vec![8],
        num_classes: Some(10),
        ..digits
    }
}

fn workers() -> Workers {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    Workers::new(threads, BATCH, BATCH).unwrap()
}

fn steps(c: &mut Criterion) {
    let device = Device::flex();
    let shape = ImageShape { channels: 3, height: 32, width: 32 };
    let data = shapes(256, shape, Split::Train, 1).unwrap().into();
    let model = random_model(small(), &Prediction::Velocity, 1);
    let schedule =
        Schedule { learning_rate: 1e-6, warmup_steps: 1, steps: u64::MAX, cooldown: 0.0, gradient_clip: 1.0 };
    let batches = |stage| Batches {
        data: &data,
        stage,
        seed: 1,
        size: BATCH,
        coupling: Coupling::Independent,
        batches_per_plan: 1,
        horizontal_flip: false,
        conditioning: Conditioning::Labels,
        rows: (0..BATCH).collect(),
        device: device.clone(),
        ahead: Ahead::default(),
    };
    let mut group = c.benchmark_group("small U-Net, batch 64");
    group.sample_size(10).throughput(Throughput::Elements(BATCH as u64));

    let mut teacher = Teacher {
        batches: batches(StageKind::Teacher),
        schedule,
        workers: workers(),
        times: TimeDistribution::Uniform,
        state: TrainState::new(&model, &[0.999], &device),
    };
    group.bench_function("teacher step", |b| b.iter(|| teacher.step().unwrap()));

    // From t = 0 the threshold is never reached, and the third step of 0.4 reaches the end: three teacher evaluations
    // and two target evaluations per image.
    let curriculum = Curriculum {
        mode: Mode::Cd,
        scope: Scope::Image,
        threshold: 1000.0,
        peak: PEAK,
        step_size: 0.4,
        step_shift: 1.0,
        solver: StepSolver::Euler,
        pad_to: None,
    };
    let mut distillation = Distillation {
        batches: batches(StageKind::Distill),
        schedule,
        workers: workers(),
        curriculum,
        distance: Distance::PseudoHuber,
        adversary: None,
        time_alpha: 1e6,
        teacher: Denoiser::new(&model, &device).into(),
        state: TrainState::new(&model, &[0.9, 0.9999], &device),
    };
    group.bench_function("distillation step", |b| {
        b.iter(|| {
            let report = distillation.step().unwrap();
            assert_eq!(report.teacher_steps, Some(3.0));
        });
    });
    group.finish();
}

criterion_group!(benches, steps);
criterion_main!(benches);
