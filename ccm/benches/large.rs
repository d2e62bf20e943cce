//! Benchmark: one evaluation of the denoisers of Stable Diffusion XL and 3 on the CPU, with random weights in bytes, for
//! pictures of 512x512: seconds, GFLOP/s and the process's peak memory beside the size of the weights.
//!
//! `cargo bench --profile dev -p ccm --bench large -- sdxl` (or `sd3`, or `sd15`); one network a process, for the peak.
//! `pytorch_large.py` measures PyTorch on the same networks.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark that cannot run has failed")]

use std::sync::Arc;
use std::time::Instant;

use ccm::model::{Prediction, Role, Text};
use ccm::noise::Noise;
use ccm::sampler::schedule::Request;
use ccm::sampler::{Backend, Sampler};
use ccm::train::memory::published_network;
use ccm::weights::{CompactTensor, Precision, Values};
use pollster::block_on;

/// Peak memory of this process in bytes, on Linux.
fn peak() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(1024.0 * kilobytes)
}

fn main() {
    let named = std::env::args().skip(1).find_map(|name| Some((name.clone(), published_network(&name)?)));
    let Some((name, spec)) = named else { return println!("choose a network: sd15, sdxl or sd3") };
    // Latents of 512x512 pixels.
    let spec = spec.with_size([64, 64]);
    spec.validate().unwrap();
    let mut noise = Noise::new(0, 0);
    let mut stored = 0;
    let tensors: Vec<CompactTensor> = spec
        .graph()
        .parameters
        .into_iter()
        .map(|parameter| {
            let shape = parameter.shape;
            let count: usize = shape.iter().product();
            let values = match shape.len() {
                0 | 1 => Values::F32(vec![if parameter.name.ends_with("weight") { 1.0 } else { 0.0 }; count]),
                _ => {
                    // Uniform bytes, of variance 1 / fan_in.
                    let fan_in = (count / shape[0]) as f32;
                    let bits = noise.uniforms(count.min(1 << 16), 127.0);
                    let bytes = (0..count).map(|place| bits[place % bits.len()] as i8).collect();
                    Values::Q8 { bytes, scales: vec![(3.0 / fan_in).sqrt() / 127.0; shape[0]] }
                }
            };
            let tensor = CompactTensor { shape, values };
            stored += tensor.bytes();
            tensor
        })
        .collect();
    let parameters = spec.parameters();
    let begin = Instant::now();
    let prediction = Prediction::NoiseMinusData { shift: 1.0 };
    let sampler =
        Sampler::with_weights(spec.clone(), &prediction, Role::Teacher, tensors, Precision::Q8, Backend::Cpu);
    let mut sampler = block_on(sampler).unwrap();
    let loaded = begin.elapsed().as_secs_f64();
    let shape = spec.text().unwrap();
    let text = Text {
        tokens: Noise::new(1, 0).normals(shape.tokens * shape.channels),
        pooled: Noise::new(2, 0).normals(shape.pooled),
        sizes: if shape.sizes { vec![512.0, 512.0, 0.0, 0.0, 512.0, 512.0] } else { Vec::new() },
    };
    let request = Request { texts: vec![Arc::new(text)], ..Request::from_seeds(&spec, 0, &[], 1) };
    let seconds: Vec<f64> = (0..3)
        .map(|_| {
            let begin = Instant::now();
            let found = block_on(sampler.sample(&request, 1)).unwrap();
            assert!(found.iter().all(|value| value.is_finite()));
            begin.elapsed().as_secs_f64()
        })
        .collect();
    let best = seconds.iter().copied().fold(f64::INFINITY, f64::min);
    let gflop = sampler.plan().flops() as f64 / 1e9;
    println!(
        "{name}: {parameters} parameters, {:.2} GB of weights, peak memory {:.2} GB; prepared in {loaded:.1} s; one \
         evaluation {best:.2} s (first {:.2}), {gflop:.0} GFLOP, {:.0} GFLOP/s",
        stored as f64 / 1e9,
        peak().unwrap_or(f64::NAN) / 1e9,
        seconds[0],
        gflop / best
    );
}
