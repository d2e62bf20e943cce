//! Executes a run on several devices of a machine: a thread for each, which holds a copy of everything.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use burn::tensor::Device;

use super::drive::{Quiet, Watch};
use super::error::RunError;
use super::group::{Ended, Threads};
use super::run::{Outcome, Run};

/// Executes a run with a rank for each device. `run` has the threads of one rank; its device and its group are not used.
///
/// # Errors
/// As [`Run::go`]. If a rank fails, all end, and the error is the first rank's that has one of its own.
///
/// # Panics
/// If a rank does.
pub fn go(run: &Run, devices: Vec<Device>, resume: bool, watch: &mut dyn Watch) -> Result<Outcome, RunError> {
    let rank = |(group, device)| Run { group: Arc::new(group), device, ..run.clone() };
    let mut ranks: Vec<Run> = Threads::new(devices.len()).into_iter().zip(devices).map(rank).collect();
    let first = ranks.remove(0);
    let ends: Vec<_> = std::thread::scope(|scope| {
        let start = |run: Run| scope.spawn(move || run.go(resume, &mut Quiet));
        let others: Vec<_> = ranks.into_iter().map(start).collect();
        // A rank that has ended must be dropped, so that the others notice.
        let first = catch_unwind(AssertUnwindSafe(move || first.go(resume, watch)));
        std::iter::once(first).chain(others.into_iter().map(std::thread::ScopedJoinHandle::join)).collect()
    });
    let mut outcome = Outcome::Finished;
    for end in ends {
        match end {
            Ok(of_rank) => {
                if of_rank? == Outcome::Interrupted {
                    outcome = Outcome::Interrupted;
                }
            }
            Err(unwound) if unwound.is::<Ended>() => {}
            Err(panic) => resume_unwind(panic),
        }
    }
    Ok(outcome)
}
