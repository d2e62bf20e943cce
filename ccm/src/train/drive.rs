//! Takes the steps of a stage, with metrics, samples, checkpoints, and an observer that can stop it.

use std::time::Instant;

use super::batches::StageKind;
use super::checkpoint::{self, CheckpointError};
use super::error::RunError;
use super::event_log::EventLog;
use super::folder::files;
use super::metrics_log::{Line, MetricsLog, is_due};
use super::run::{Outcome, Run};
use super::state::Stage;
use crate::disk;
use crate::sampler::schedule::Solver;

/// An observer of a run: it shows progress and can request a stop.
pub trait Watch {
    /// A stage starts or resumes after `done` of `total` steps.
    fn stage(&mut self, stage: StageKind, done: u64, total: u64, batch: usize);
    /// A line of metrics was written.
    fn line(&mut self, line: &Line);
    /// A message for the user.
    fn note(&mut self, text: &str);
    /// Whether the run should save and stop.
    fn should_stop(&self) -> bool;
}

/// An observer that shows nothing.
pub struct Quiet;

impl Watch for Quiet {
    fn stage(&mut self, _: StageKind, _: u64, _: u64, _: usize) {}
    fn line(&mut self, _: &Line) {}
    fn note(&mut self, _: &str) {}
    fn should_stop(&self) -> bool {
        false
    }
}

impl Run {
    /// Takes the remaining steps of a stage, with metrics, samples and checkpoints.
    pub(super) fn drive(
        &self,
        kind: StageKind,
        stage: &mut dyn Stage,
        (steps, batch): (u64, usize),
        watch: &mut dyn Watch,
    ) -> Result<Outcome, RunError> {
        let every = &self.config.run;
        let checkpoints = self.path(files::CHECKPOINTS);
        let (metrics, done) = (self.path(files::METRICS), stage.state().step);
        let leads = self.group.is_first();
        let mut log = match leads {
            true => Some(MetricsLog::open(&metrics, kind, done)?),
            false => None,
        };
        let mut events = match leads && every.tensorboard {
            true => Some(EventLog::open(&self.path(files::EVENTS), kind, done * batch as u64)?),
            false => None,
        };
        watch.stage(kind, done, steps, batch);
        while stage.state().step < steps {
            let begin = Instant::now();
            let report = stage.step()?;
            self.data.messages().iter().for_each(|message| watch.note(message));
            if let Some(what) = report.fault() {
                return Err(self.diverged(kind, report.step, what));
            }
            if let Some(log) = &mut log {
                log.add(report, begin.elapsed().as_secs_f64());
            }
            if is_due(report.step, every.log_every(batch), steps) {
                let rank_seconds = self.rank_seconds(stage.workers().take_busy());
                if let Some(log) = &mut log
                    && let Some(line) = log.write(kind, batch, rank_seconds)?
                {
                    if let Some(events) = &mut events {
                        events.line(&line)?;
                    }
                    watch.line(&line);
                }
            }
            let stop = self.group.any(watch.should_stop()) && report.step < steps;
            if !leads {
                if stop {
                    return Ok(Outcome::Interrupted);
                }
                continue;
            }
            if report.step.is_multiple_of(every.checkpoint_every(batch)) || report.step == steps || stop {
                let path = match checkpoint::save(&checkpoints, kind, stage.state()) {
                    // The loss of a step can be finite although its update is not.
                    Err(CheckpointError::NotFinite { tensor }) => {
                        return Err(self.diverged(kind, report.step, format!("`{tensor}` is not finite")));
                    }
                    saved => saved?,
                };
                if stop {
                    watch.note(&format!("stopped; `--resume` goes on from {}", path.display()));
                    return Ok(Outcome::Interrupted);
                }
            }
            if report.step.is_multiple_of(every.sample_every(batch)) || report.step == steps {
                let network = stage.sampled().denoiser.clone();
                let (picture, _) = match kind {
                    StageKind::Teacher => {
                        self.sample_grid(&self.guided(network), Solver::Euler, every.report_steps)?
                    }
                    StageKind::Distill | StageKind::Finish => {
                        self.sample_grid(&network.into(), Solver::Jumps, 1)?
                    }
                };
                let name = format!("{}/{}-{:09}.png", files::SAMPLES, kind.name(), report.step);
                let png = picture.to_png()?;
                disk::write(&self.path(&name), &png)?;
                if let Some(events) = &mut events {
                    events.samples(report.images, [picture.width, picture.height, picture.channels], &png)?;
                }
            }
        }
        Ok(Outcome::Finished)
    }

    /// The seconds of every rank; empty for a run of one rank.
    fn rank_seconds(&self, own: f64) -> Vec<f64> {
        if self.group.size() == 1 {
            return Vec::new();
        }
        let of_rank = |bytes: Vec<u8>| bytes.try_into().map_or(f64::NAN, f64::from_le_bytes);
        self.group.all_gather(&own.to_le_bytes()).into_iter().map(of_rank).collect()
    }

    pub(super) fn diverged(&self, stage: StageKind, step: u64, what: String) -> RunError {
        let kept = match checkpoint::list(&self.path(files::CHECKPOINTS)).pop() {
            Some(last) => format!("the last good checkpoint is {}", last.path.display()),
            None => "there is no checkpoint yet".into(),
        };
        RunError::Diverged { stage: stage.name(), step, what, kept }
    }
}
