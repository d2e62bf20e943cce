//! What a GPU needs of the curriculum and of batches changes no result: few sizes of batches, and work done ahead.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot read its data has failed")]

use burn::tensor::Device;
use ccm::data::{Examples, ImageShape, Split, shapes};
use ccm::method::curriculum::{BATCH_SIZES, Scope, Start, StepSolver};
use ccm::nn::denoiser::BatchSizes;
use ccm::nn::host::to_host;
use ccm::train::batches::{Ahead, Batches};
use ccm::train::distill::Distillation;
use ccm::train::state::Stage;
use ccm::train::workers::Workers;
use ccm_tests::{relative_error, small_distillation, small_spec};

const BATCH: usize = 40;

fn data() -> Examples {
    shapes(100, ImageShape { channels: 3, height: 8, width: 8 }, Split::Train, 1).unwrap().into()
}

/// A distillation with many teacher steps for an image, whose networks record the sizes of their batches.
fn distillation(data: &Examples, pad_to: Option<usize>) -> (Distillation<'_>, BatchSizes) {
    let workers = Workers::new(1, BATCH, BATCH).unwrap();
    let mut distillation =
        small_distillation(small_spec(), data, BATCH, Scope::Image, workers, &Device::flex());
    // Every image goes to the end of the path, from where it is.
    let curriculum = &mut distillation.curriculum;
    (curriculum.threshold, curriculum.step_size, curriculum.pad_to) = (f64::INFINITY, 0.05, pad_to);
    let sizes = BatchSizes::default();
    distillation.teacher.denoiser.record_sizes(&sizes);
    distillation.state.denoiser.record_sizes(&sizes);
    for ema in &mut distillation.state.emas {
        ema.denoiser.record_sizes(&sizes);
    }
    (distillation, sizes)
}

#[test]
fn networks_get_batches_of_few_sizes_and_the_results_are_the_same() {
    let data = data();
    let (mut plain, many) = distillation(&data, None);
    let (mut padded, few) = distillation(&data, Some(BATCH));
    for _ in 0..3 {
        let (a, b) = (plain.step().unwrap(), padded.step().unwrap());
        assert_eq!((a.teacher_steps, a.evaluations), (b.teacher_steps, b.evaluations));
        assert!((a.loss / b.loss - 1.0).abs() < 1e-5 && (a.kdc.unwrap() - b.kdc.unwrap()).abs() < 1e-4);
    }
    let goal = |distillation: &Distillation| {
        let batch = distillation.batches.batch(9).unwrap();
        let t: Vec<f32> = batch.uniform.iter().map(|u| 0.9 * u).collect();
        let (estimate, x_t) = (batch.x0.clone(), batch.x1.clone());
        let start = Start { estimate, x_t, t, condition: batch.condition.clone(), direction: None };
        distillation.curriculum.goal(start, &distillation.teacher, &distillation.teacher.denoiser)
    };
    let (plain, padded) = (goal(&plain), goal(&padded));
    assert_eq!((plain.u, plain.steps), (padded.u, padded.steps));
    assert!(relative_error(&to_host(padded.target), &to_host(plain.target)) < 1e-6);
    let (many, few) = (many.lock().unwrap().len(), few.lock().unwrap().clone());
    println!("{many} sizes before, {few:?} now");
    // A run adds at most four: the teacher's micro-batch, an uneven last one of each stage, and grids of samples.
    assert!(few.len() <= BATCH_SIZES && BATCH_SIZES + 4 <= 8, "{few:?}");
    assert!(many > 8, "{many} sizes without padding: the test shows nothing");
}

#[test]
fn a_batch_prepared_ahead_is_the_batch() {
    let data = data();
    let (distillation, _) = distillation(&data, None);
    let batches = distillation.batches;
    for step in [0, 1, 2, 3, 7, 2] {
        let fresh = batches_like(&batches);
        let expected = fresh.batch(step).unwrap();
        batches.while_preparing(step, || ());
        let found = batches.batch(step).unwrap();
        assert_eq!(to_host(found.x0), to_host(expected.x0), "step {step}");
        assert_eq!(to_host(found.x1), to_host(expected.x1), "step {step}");
        assert_eq!((found.uniform, found.seed), (expected.uniform, expected.seed), "step {step}");
        // Prepared for another step: not used.
        batches.while_preparing(step + 1, || ());
        assert_eq!(batches.batch(step).unwrap().seed, found.seed);
    }
}

fn batches_like<'a>(batches: &Batches<'a>) -> Batches<'a> {
    Batches {
        data: batches.data,
        stage: batches.stage,
        seed: batches.seed,
        size: batches.size,
        coupling: batches.coupling,
        batches_per_plan: batches.batches_per_plan,
        horizontal_flip: batches.horizontal_flip,
        conditioning: batches.conditioning,
        rows: (0..batches.size).collect(),
        device: batches.device.clone(),
        ahead: Ahead::default(),
    }
}

#[test]
fn heun_steps_are_counted_and_closer_to_the_teachers_path() {
    let data = data();
    let target = |solver, step_size: f32| {
        let (mut distillation, _) = distillation(&data, None);
        let curriculum = &mut distillation.curriculum;
        // To the end of the path: the target is then the teacher's own endpoint.
        (curriculum.threshold, curriculum.solver, curriculum.step_size) = (f64::INFINITY, solver, step_size);
        let batch = distillation.batches.batch(0).unwrap();
        let t = vec![0.0; batch.len()];
        let start = Start {
            estimate: batch.x0.clone(),
            x_t: batch.x0.clone(),
            t,
            condition: batch.condition.clone(),
            direction: None,
        };
        let goal = distillation.curriculum.goal(start, &distillation.teacher, &distillation.teacher.denoiser);
        (to_host(goal.target), goal.evaluations[0])
    };
    let (exact, _) = target(StepSolver::Heun, 0.005);
    let (euler, of_euler) = target(StepSolver::Euler, 0.1);
    let (heun, of_heun) = target(StepSolver::Heun, 0.1);
    // Ten steps of the teacher, nine of them with two evaluations, and the target network before the end.
    assert_eq!((of_euler, of_heun), (10 + 9, 19 + 9));
    let (euler, heun) = (relative_error(&euler, &exact), relative_error(&heun, &exact));
    println!("Euler {euler:.1e}, Heun {heun:.1e}");
    assert!(heun < 0.3 * euler, "Euler {euler:.1e}, Heun {heun:.1e}");
}
