//! The time of the exchange of gradients between processes, for networks of several sizes:
//!
//! `mpirun -n 2 cargo bench --profile dev -p ccm --features mpi --bench exchange`
//!
//! Without a launcher or the feature `mpi`, it measures two threads. Then it also measures how much of an exchange over a slow
//! network is hidden behind the backward pass.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot start has failed")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use burn::tensor::Device;
use ccm::config::Config;
use ccm::data::{Examples, ImageShape, Split, shapes};
use ccm::method::coupling::Coupling;
use ccm::method::teacher::TimeDistribution;
use ccm::model::{Prediction, UNetSpec};
use ccm::nn::denoiser::random_model;
use ccm::nn::optimizer::Schedule;
use ccm::train::batches::{Ahead, Batches, Conditioning, StageKind};
use ccm::train::group::{Group, Threads};
use ccm::train::state::{Stage as _, TrainState};
use ccm::train::teacher::Teacher;
use ccm::train::workers::Workers;

/// The allocator of the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Names and parameters of networks.
const NETWORKS: [(&str, usize); 3] =
    [("avatars", 3_310_000), ("cifar10", 35_700_000), ("imagenet64", 296_000_000)];

fn measure(group: &dyn Group) {
    for (network, parameters) in NETWORKS {
        let mut gradient = vec![1.0_f32; parameters];
        group.all_reduce(&mut gradient);
        let rounds = (100_000_000 / parameters).clamp(1, 20);
        group.barrier();
        let begin = Instant::now();
        for _ in 0..rounds {
            gradient.fill(1.0);
            group.all_reduce(&mut gradient);
        }
        group.barrier();
        let seconds = begin.elapsed().as_secs_f64() / rounds as f64;
        assert_eq!(gradient[parameters - 1], group.size() as f32);
        if group.is_first() {
            println!(
                "{network:>10}: {:>7.1} MB in {:>8.1} ms, {} ranks",
                parameters as f64 * 4e-6,
                seconds * 1e3,
                group.size()
            );
        }
    }
}

/// Threads whose exchange takes longer, as over a network that needs no processor.
#[derive(Debug)]
struct SlowNetwork {
    ranks: Threads,
    seconds_per_value: f64,
}

impl Group for SlowNetwork {
    fn rank(&self) -> usize {
        self.ranks.rank()
    }

    fn size(&self) -> usize {
        self.ranks.size()
    }

    fn all_gather(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
        self.ranks.all_gather(bytes)
    }

    fn all_reduce(&self, values: &mut [f32]) {
        std::thread::sleep(Duration::from_secs_f64(values.len() as f64 * self.seconds_per_value));
        self.ranks.all_reduce(values);
    }
}

/// Images of a step, for both ranks together.
const BATCH: usize = 64;

/// Seconds of a teacher's step of two ranks, if the exchange of the gradient takes `seconds` on the network.
fn step(seconds: f64, overlap: bool) -> f64 {
    const STEPS: usize = 4;
    let device = Device::flex();
    let network = Config::preset("avatars").unwrap().network;
    let shape = ImageShape { channels: 3, height: 64, width: 64 };
    let data: Examples = shapes(256, shape, Split::Train, 1).unwrap().into();
    let model = random_model(UNetSpec { num_classes: Some(8), ..network }, &Prediction::Velocity, 1);
    let parameters: usize = model.tensors.iter().map(|tensor| tensor.values.len()).sum();
    let of_rank = |ranks: Threads| {
        let group = Arc::new(SlowNetwork { ranks, seconds_per_value: seconds / parameters as f64 });
        let workers = Workers::of_ranks(group, 1, BATCH, BATCH).unwrap();
        let mut state = TrainState::new(&model, &[0.999], &device);
        if overlap {
            state.denoiser = state.denoiser.in_segments();
        }
        let mut teacher = Teacher {
            batches: Batches {
                data: &data,
                stage: StageKind::Teacher,
                seed: 1,
                size: BATCH,
                coupling: Coupling::Independent,
                batches_per_plan: 1,
                horizontal_flip: false,
                conditioning: Conditioning::Labels,
                rows: workers.rows(BATCH),
                device: device.clone(),
                ahead: Ahead::default(),
            },
            schedule: Schedule {
                learning_rate: 1e-6,
                warmup_steps: 1,
                steps: u64::MAX,
                cooldown: 0.0,
                gradient_clip: 1.0,
            },
            workers: if overlap { workers.overlapping() } else { workers },
            times: TimeDistribution::Uniform,
            state,
        };
        teacher.step().unwrap();
        let begin = Instant::now();
        for _ in 0..STEPS {
            teacher.step().unwrap();
        }
        begin.elapsed().as_secs_f64() / STEPS as f64
    };
    let (of_rank, ranks) = (&of_rank, Threads::new(2));
    std::thread::scope(|scope| {
        let threads: Vec<_> = ranks.into_iter().map(|ranks| scope.spawn(move || of_rank(ranks))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).fold(0.0, f64::max)
    })
}

fn measure_overlap() {
    println!("a step of avatars' teacher, {BATCH} images, 2 ranks of one thread:");
    let alone = step(0.0, false);
    for seconds in [0.0, alone / 4.0, alone / 2.0, alone] {
        let [after, meanwhile] = [false, true].map(|overlap| step(seconds, overlap));
        println!(
            "network {seconds:>5.2} s: step {after:.2} s with the exchange at its end, {meanwhile:.2} s meanwhile"
        );
    }
}

fn main() {
    #[cfg(feature = "mpi")]
    if let Some(processes) = ccm::train::mpi::Mpi::start() {
        measure(&processes);
        return;
    }
    std::thread::scope(|scope| {
        for rank in Threads::new(2) {
            scope.spawn(move || measure(&rank));
        }
    });
    measure_overlap();
}
