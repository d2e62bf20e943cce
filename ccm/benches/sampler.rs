//! Benchmark: one evaluation of the sampler on the CPU and on every GPU: the first one, which includes preparation, and
//! the median of later ones. `peers.py` measures other programs on the same networks.
//!
//! `cargo bench --profile dev -p ccm --bench sampler`, or with `-- software` also on software adapters.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark that cannot run has failed")]

use std::time::Instant;

use ccm::config::Config;
use ccm::model::{NetworkSpec, Prediction, UNetSpec};
use ccm::nn::denoiser::random_model;
use ccm::sampler::schedule::Request;
use ccm::sampler::{Backend, Sampler};
use ccm::weights::Precision;
use pollster::block_on;

/// The allocator of the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// 1.1 M parameters, 0.5 GFLOP per evaluation.
fn small() -> UNetSpec {
    UNetSpec {
        in_channels: 3,
        height: 32,
        width: 32,
        attention_resolutions: vec![8],
        ..Config::preset("mnist").unwrap().network
    }
}

/// The paper's CIFAR-10 network: 35.7 M parameters, 12.4 GFLOP.
fn cifar10() -> UNetSpec {
    Config::preset("cifar10").unwrap().network
}

fn measure(name: &str, spec: &NetworkSpec, precision: Precision, backend: Backend, images: usize) {
    const RUNS: usize = 15;
    let model = random_model(spec, &Prediction::Velocity, 0).rounded(precision).unwrap();
    let begin = Instant::now();
    let mut sampler = match block_on(Sampler::new(model, backend)) {
        Ok(sampler) => sampler,
        Err(error) => return println!("{name:8} {backend:?}: {error}"),
    };
    let loaded = begin.elapsed();
    let request = Request::from_seeds(spec, 0, &vec![0; images], images);
    let mut times: Vec<f64> = (0..RUNS)
        .map(|_| {
            let begin = Instant::now();
            block_on(sampler.sample(&request, 1)).unwrap();
            begin.elapsed().as_secs_f64()
        })
        .collect();
    let first = times.remove(0);
    times.sort_by(f64::total_cmp);
    let (median, best) = (times[times.len() / 2], times[0]);
    let gflops = (images * sampler.plan().flops()) as f64 / median / 1e9;
    let info = sampler.info();
    println!(
        "{name:8} {precision} batch {images:<3} load {:7.1} ms  first {:8.2} ms  median {:8.2} ms  best {:8.2} ms  \
         {gflops:7.1} GFLOP/s  {:6.1} MB  {} ({}, computed in {})",
        loaded.as_secs_f64() * 1e3,
        first * 1e3,
        median * 1e3,
        best * 1e3,
        info.memory as f64 / 1e6,
        info.adapter,
        info.backend,
        info.precision,
    );
}

fn main() {
    let spec = UNetSpec { num_classes: Some(10), ..small() };
    let software = std::env::args().any(|argument| argument == "software");
    let gpu = Backend::Gpu { api: None, software };
    for (name, spec) in [("small", spec.into()), ("cifar10", cifar10().into())] {
        for images in [1, 16] {
            measure(name, &spec, Precision::F32, Backend::Cpu, images);
        }
        for precision in [Precision::F32, Precision::F16, Precision::Q8] {
            for images in [1, 64] {
                if !software || images == 1 {
                    measure(name, &spec, precision, gpu, images);
                }
            }
        }
    }
}
