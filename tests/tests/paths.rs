//! Teachers on every path: their losses are those of the publications, they learn, and a student learns from them.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot read its data has failed")]

use burn::tensor::{Device, Tensor, TensorData};
use ccm::method::batch::Batch;
use ccm::method::coupling::Coupling;
use ccm::method::curriculum::Scope;
use ccm::method::teacher::{TimeDistribution, teacher_loss};
use ccm::model::Prediction;
use ccm::model::prediction::{Betas, Edm, Schedule};
use ccm::nn::denoiser::{Denoiser, random_model};
use ccm::nn::host::{labels_tensor, to_host};
use ccm::nn::optimizer::Schedule as LearningRate;
use ccm::noise::Noise;
use ccm::sampler::schedule::{Request, Solver};
use ccm::train::batches::{Batches, Conditioning, StageKind};
use ccm::train::samples::sample;
use ccm::train::state::{Stage, TrainState};
use ccm::train::teacher::Teacher;
use ccm::train::workers::Workers;
use ccm::weights::Model;
use ccm_tests::{lively_model, small_data, small_distillation, small_spec};

fn cosine() -> Schedule {
    Schedule { betas: Betas::Cosine, ..Schedule::default() }
}

fn edm() -> TimeDistribution {
    TimeDistribution::LogNormal { mean: -1.2, deviation: 1.2 }
}

/// Every kind of prediction that can be trained, with its distribution of times.
fn predictions() -> [(Prediction, TimeDistribution); 7] {
    [
        (Prediction::Velocity, TimeDistribution::Uniform),
        (Prediction::PreconditionedVelocity { sigma_data: 0.7 }, TimeDistribution::Uniform),
        (Prediction::StraightData, TimeDistribution::Uniform),
        (Prediction::Noise(Schedule::default()), TimeDistribution::Steps),
        (Prediction::Data(cosine()), TimeDistribution::Steps),
        (Prediction::V(cosine()), TimeDistribution::Steps),
        (Prediction::Edm(Edm::default()), edm()),
    ]
}

#[test]
fn losses_are_those_of_the_publications() {
    const IMAGES: usize = 6;
    let device = Device::flex();
    let images = |stream| {
        let values = Noise::new(2, stream).normals(IMAGES * 3 * 64);
        Tensor::<4>::from_data(TensorData::new(values, [IMAGES, 3, 8, 8]), &device)
    };
    let uniform = [0.05, 0.2, 0.4, 0.6, 0.8, 0.97].to_vec();
    let label = Some(labels_tensor(&[0, 1, 2, 3, 4, 5], &device));
    let batch = Batch {
        x0: images(0),
        x1: images(1),
        uniform: uniform.clone(),
        condition: label.clone().into(),
        seed: 0,
        rows: (0..IMAGES).collect(),
        size: IMAGES,
    };
    let squares = |a: &[f32], b: &[f32]| -> f64 {
        let square = |(a, b): (&f32, &f32)| f64::from(a - b).powi(2);
        a.iter().zip(b).map(square).sum::<f64>() / a.len() as f64
    };
    for (prediction, times) in predictions() {
        let model = Model { prediction: prediction.clone(), ..lively_model(small_spec()) };
        let tracked = Denoiser::new(&model, &device.clone().autodiff());
        let found = f64::from(to_host(teacher_loss(&tracked, times, batch.clone()).inner())[0]);

        let plain = Denoiser::new(&model, &device);
        let t = times.times(plain.path(), &uniform);
        let (x0, x1) = (to_host(batch.x0.clone()), to_host(batch.x1.clone()));
        let row = |i: usize| i * 192..(i + 1) * 192;
        let mix = |i: usize| x0[row(i)].iter().zip(&x1[row(i)]).collect::<Vec<_>>();
        let x_t: Vec<f32> = (0..IMAGES)
            .flat_map(|i| mix(i).into_iter().map(|(a, b)| (1.0 - t[i]) * a + t[i] * b).collect::<Vec<_>>())
            .collect();
        let x = Tensor::<4>::from_data(TensorData::new(x_t.clone(), [IMAGES, 3, 8, 8]), &device);
        let v = to_host(plain.velocity(x, &t, label.clone()));
        let expected = (0..IMAGES).map(|i| {
            let (t, sigma) = (t[i], (1.0 - t[i]) / t[i]);
            let value = |f: &dyn Fn(f32, f32) -> f32| -> Vec<f32> {
                x_t[row(i)].iter().zip(&v[row(i)]).map(|(x, v)| f(*x, *v)).collect()
            };
            let data = value(&|x, v| x + (1.0 - t) * v);
            let noise = value(&|x, v| x - t * v);
            match &prediction {
                // arXiv 2006.11239, equation 14.
                Prediction::Noise(_) => squares(&noise, &x0[row(i)]),
                Prediction::Data(_) => squares(&data, &x1[row(i)]),
                // arXiv 2511.13720: the loss of the velocity, limited near the image.
                Prediction::StraightData => squares(&data, &x1[row(i)]) / f64::from(1.0 - t).max(0.2).powi(2),
                // arXiv 2202.00512: v = alpha noise - sigma data.
                Prediction::V(_) => {
                    let c = (t * t + (1.0 - t) * (1.0 - t)).sqrt().recip();
                    let v_of = |noise: &[f32], data: &[f32]| -> Vec<f32> {
                        noise.iter().zip(data).map(|(n, d)| c * (t * n - (1.0 - t) * d)).collect()
                    };
                    squares(&v_of(&noise, &data), &v_of(&x0[row(i)], &x1[row(i)]))
                }
                // arXiv 2206.00364, table 1: weight (sigma^2 + sigma_data^2) / (sigma sigma_data)^2.
                Prediction::Edm(Edm { sigma_data, .. })
                | Prediction::PreconditionedVelocity { sigma_data } => {
                    let (sigma, of_data) = (f64::from(sigma), *sigma_data);
                    (sigma * sigma + of_data * of_data) / (sigma * of_data).powi(2)
                        * squares(&data, &x1[row(i)])
                }
                _ => {
                    let velocity: Vec<f32> = x0[row(i)].iter().zip(&x1[row(i)]).map(|(a, b)| b - a).collect();
                    squares(&v[row(i)], &velocity)
                }
            }
        });
        let expected = expected.sum::<f64>() / IMAGES as f64;
        println!("{prediction:?}: {found:.5}, expected {expected:.5}");
        assert!((found / expected - 1.0).abs() < 2e-3, "{prediction:?}: {found} and {expected}");
    }
}

#[test]
fn teachers_learn_on_every_path_and_students_learn_from_them() {
    const BATCH: usize = 8;
    let (data, device) = (small_data(), Device::flex());
    for (prediction, times) in predictions() {
        let model = random_model(small_spec(), &prediction, 1);
        let mut distillation = {
            let workers = Workers::new(1, BATCH, BATCH).unwrap();
            small_distillation(small_spec(), &data, BATCH, Scope::Image, workers, &device)
        };
        let batches = Batches {
            data: &data,
            stage: StageKind::Teacher,
            seed: 1,
            size: BATCH,
            coupling: Coupling::Independent,
            batches_per_plan: 1,
            horizontal_flip: false,
            conditioning: Conditioning::Labels,
            rows: (0..BATCH).collect(),
            device: device.clone(),
            ahead: Default::default(),
        };
        let schedule = LearningRate {
            learning_rate: 2e-3,
            warmup_steps: 10,
            steps: 120,
            cooldown: 0.0,
            gradient_clip: 1.0,
        };
        let workers = Workers::new(1, BATCH, BATCH).unwrap();
        let state = TrainState::new(&model, &[0.9], &device);
        let mut teacher = Teacher { batches, schedule, workers, times, state };
        let losses: Vec<f64> = (0..120).map(|_| teacher.step().unwrap().loss).collect();
        let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
        let (first, last) = (mean(&losses[..10]), mean(&losses[100..]));
        assert!(last < 0.8 * first, "{prediction:?}: the loss was {first} and is {last}");

        let teacher = teacher.sampled().denoiser.to_model(Default::default());
        distillation.teacher = Denoiser::new(&teacher, &device).into();
        distillation.state = TrainState::new(&teacher, &[0.5, 0.9], &device);
        distillation.curriculum.step_size = 0.1;
        let labels: Vec<u32> = (0..8).collect();
        let request = Request::from_seeds(&teacher.spec, 100, &labels, 8);
        let draw = |denoiser: &Denoiser, solver: Solver, steps| {
            let steps = solver.steps(denoiser.path(), solver.grid(denoiser.path()), steps).unwrap();
            sample(&denoiser.clone().into(), &request, &steps, 8, &device)
        };
        let expected = draw(&distillation.teacher.denoiser, Solver::Euler, 20);
        let distance = |found: &[f32]| -> f64 {
            found.iter().zip(&expected).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>()
                / found.len() as f64
        };
        let before = distance(&draw(&distillation.teacher.denoiser, Solver::Jumps, 1));
        for _ in 0..60 {
            distillation.step().unwrap();
        }
        let after = distance(&draw(&distillation.sampled().denoiser, Solver::Jumps, 1));
        println!("{prediction:?}: loss {first:.3} to {last:.3}, distance {before:.4} to {after:.4}");
        // Where one step of the teacher is as good as twenty there is little to learn.
        assert!(
            after < 0.9 * before || before.max(after) < 0.05,
            "{prediction:?}: the student's distance was {before} and is {after}"
        );
    }
}
