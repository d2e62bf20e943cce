//! Micro-batches on any number of threads give the same result as the whole batch.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot read its data has failed")]

use burn::tensor::Device;
use ccm::config::EncoderWeights;
use ccm::method::curriculum::Scope;
use ccm::train::state::{Stage, StepReport};
use ccm::train::workers::Workers;
use ccm_tests::{oppose, small_data, small_distillation, small_spec};

/// Results of one step; with a discriminator, also the balance of the two losses.
fn step(
    scope: Scope,
    opposed: Option<EncoderWeights>,
    threads: usize,
    micro_batch: usize,
) -> (StepReport, Option<f32>) {
    let (data, device) = (small_data(), Device::flex());
    let workers = Workers::new(threads, 8, micro_batch).unwrap();
    let mut distillation = small_distillation(small_spec(), &data, 8, scope, workers, &device);
    if let Some(encoder) = opposed {
        oppose(&mut distillation, encoder, &device);
    }
    let report = distillation.step().unwrap();
    (report, distillation.state.discriminator.map(|discriminator| discriminator.balance))
}

#[test]
fn gradient_accumulation_changes_neither_losses_nor_gradient_nor_curriculum() {
    let (frozen, trained) = (Some(EncoderWeights::Frozen), Some(EncoderWeights::Trained));
    let cases =
        [(Scope::Image, None), (Scope::Image, frozen), (Scope::Batch, frozen), (Scope::Image, trained)];
    for (scope, opposed) in cases {
        let (whole, balance) = step(scope, opposed, 1, 8);
        for (threads, micro_batch) in [(1, 3), (1, 1), (2, 8), (3, 2)] {
            let (parts, balance_of_parts) = step(scope, opposed, threads, micro_batch);
            let what =
                format!("{scope:?}, {threads} threads, {micro_batch} at a time: {parts:?} and {whole:?}");
            assert!((parts.loss / whole.loss - 1.0).abs() < 1e-5, "{what}");
            assert!((parts.gradient_norm / whole.gradient_norm - 1.0).abs() < 1e-4, "{what}");
            assert!((parts.kdc.unwrap() - whole.kdc.unwrap()).abs() < 1e-3, "{what}");
            assert_eq!(parts.teacher_steps, whole.teacher_steps, "{what}");
            assert_eq!(parts.discriminator_loss.is_some(), opposed.is_some());
            if let (Some(found), Some(expected)) = (parts.discriminator_loss, whole.discriminator_loss) {
                assert!((found / expected - 1.0).abs() < 1e-5, "{what}");
            }
            if let (Some(found), Some(expected)) = (balance_of_parts, balance) {
                assert!((found / expected - 1.0).abs() < 1e-4, "{what}: balance {found}, not {expected}");
            }
        }
    }
    // On this batch the two scopes give different results, so each case tests its own scope.
    let kdc = |scope| step(scope, None, 1, 8).0.kdc;
    assert_ne!(kdc(Scope::Image), kdc(Scope::Batch));
}

#[test]
fn gradient_checkpointing_changes_neither_losses_nor_gradient_nor_curriculum() {
    let (data, device) = (small_data(), Device::flex());
    let step = |checkpointed: bool| {
        let workers = Workers::new(2, 8, 3).unwrap();
        let mut distillation = small_distillation(small_spec(), &data, 8, Scope::Image, workers, &device);
        oppose(&mut distillation, EncoderWeights::Frozen, &device);
        if checkpointed {
            distillation.state.denoiser = distillation.state.denoiser.checkpointed();
        }
        let first = distillation.step().unwrap();
        (first, distillation.step().unwrap())
    };
    let (plain, recomputed) = (step(false), step(true));
    let what = format!("{plain:?} and {recomputed:?}");
    for (plain, recomputed) in [(plain.0, recomputed.0), (plain.1, recomputed.1)] {
        assert!((recomputed.loss / plain.loss - 1.0).abs() < 1e-5, "{what}");
        assert!((recomputed.gradient_norm / plain.gradient_norm - 1.0).abs() < 1e-4, "{what}");
        assert_eq!(plain.teacher_steps, recomputed.teacher_steps, "{what}");
    }
}
