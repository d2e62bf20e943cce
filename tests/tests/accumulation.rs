//! A batch in parts, on any number of threads, is the batch in one piece.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot read its data has failed")]

use burn::tensor::Device;
use ccm::train::curriculum::Scope;
use ccm::train::trainee::{Stage, StepReport, Workers};
use ccm_tests::{small_data, small_distillation, small_spec};

fn step(scope: Scope, threads: usize, micro_batch: usize) -> StepReport {
    let data = small_data();
    let workers = Workers::new(threads, 8, micro_batch).unwrap();
    small_distillation(&small_spec(), &data, 8, scope, workers, &Device::flex()).step()
}

#[test]
fn gradient_accumulation_changes_neither_loss_nor_gradient_nor_curriculum() {
    for scope in [Scope::Image, Scope::Batch] {
        let whole = step(scope, 1, 8);
        for (threads, micro_batch) in [(1, 3), (1, 1), (2, 8), (3, 2)] {
            let parts = step(scope, threads, micro_batch);
            let what =
                format!("{scope:?}, {threads} threads, {micro_batch} at a time: {parts:?} and {whole:?}");
            assert!((parts.loss / whole.loss - 1.0).abs() < 1e-5, "{what}");
            assert!((parts.gradient_norm / whole.gradient_norm - 1.0).abs() < 1e-4, "{what}");
            assert!((parts.kdc.unwrap() - whole.kdc.unwrap()).abs() < 1e-3, "{what}");
            assert_eq!(parts.teacher_steps, whole.teacher_steps, "{what}");
        }
    }
    // The two scopes are told apart by this batch, so neither can pass for the other.
    assert_ne!(step(Scope::Image, 1, 8).kdc, step(Scope::Batch, 1, 8).kdc);
}
