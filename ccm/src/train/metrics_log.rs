//! `metrics.jsonl`: training metrics, one line every few steps.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::batches::StageKind;
use super::state::StepReport;
use crate::disk::{self, DiskError};

/// One line: means over the steps since the previous line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Name of the stage: `teacher`, `distill` or `finish`.
    pub stage: String,
    /// Steps taken in the stage.
    pub step: u64,
    /// Images trained on in the stage.
    pub images: u64,
    /// Mean loss.
    pub loss: f64,
    /// Mean norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Mean KDC in dB; only in distillation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kdc: Option<f64>,
    /// Mean number of teacher steps per image; only in distillation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher_steps: Option<f64>,
    /// Mean loss of the discriminator; only with an adversarial loss. At chance 2 in distillation, and 1.39
    /// and the gradient penalty in fine-tuning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discriminator_loss: Option<f64>,
    /// The loss scale; only with mixed precision in f16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<f64>,
    /// Steps of the stage that were skipped because their gradients were not finite; only with mixed precision in f16. Means are
    /// over the other steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped_steps: Option<u64>,
    /// Training speed in images per second.
    pub images_per_second: f64,
    /// Seconds that each rank has computed since the previous line; empty for a run of one rank. A rank with a larger number than
    /// the others makes them wait.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rank_seconds: Vec<f64>,
}

/// Writes the file, and accumulates the steps of the next line.
pub struct MetricsLog {
    path: PathBuf,
    file: File,
    pending: Vec<StepReport>,
    seconds: f64,
    rank_seconds: Vec<f64>,
}

/// Whether a line follows step `step` of `steps`: after the first, the last and every `every`-th.
pub fn is_due(step: u64, every: u64, steps: u64) -> bool {
    step == 1 || step == steps || step.is_multiple_of(every)
}

/// Reads the lines of a file; empty if the file does not exist. Ignores lines that cannot be read, such as an
/// incomplete last one.
///
/// # Errors
/// A file that cannot be read.
pub fn read(path: &Path) -> Result<Vec<Line>, DiskError> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    Ok(disk::read_text(path)?.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

impl Line {
    /// The line in the file: JSON and a line end.
    fn to_json(&self) -> String {
        #[expect(clippy::expect_used, reason = "numbers and text become JSON")]
        let line = serde_json::to_string(self).expect("a line has string keys only");
        line + "\n"
    }
}

impl MetricsLog {
    /// Opens the file to continue after `step` steps of `stage`; lines of later steps are removed.
    ///
    /// # Errors
    /// A file that cannot be read or written.
    pub fn open(path: &Path, stage: StageKind, step: u64) -> Result<Self, DiskError> {
        let earlier = |line: &Line| match StageKind::named(&line.stage) {
            Some(of_line) if of_line == stage => line.step <= step,
            of_line => of_line < Some(stage),
        };
        let mut text = String::new();
        for line in read(path)?.iter().filter(|line| earlier(line)) {
            text += &line.to_json();
        }
        disk::write(path, text.as_bytes())?;
        let file = OpenOptions::new().append(true).open(path).map_err(DiskError::of(path))?;
        Ok(Self { path: path.to_owned(), file, pending: Vec::new(), seconds: 0.0, rank_seconds: Vec::new() })
    }

    /// Adds a step that took `seconds`.
    pub fn add(&mut self, report: StepReport, seconds: f64) {
        self.pending.push(report);
        self.seconds += seconds;
    }

    /// Writes the line of the steps since the last one; none if all of them were skipped.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(
        &mut self,
        stage: StageKind,
        batch: usize,
        rank_seconds: Vec<f64>,
    ) -> Result<Option<Line>, DiskError> {
        self.rank_seconds.resize(rank_seconds.len(), 0.0);
        self.rank_seconds.iter_mut().zip(rank_seconds).for_each(|(sum, seconds)| *sum += seconds);
        let Some(&report) = self.pending.last() else { return Ok(None) };
        let is_taken = |report: &&StepReport| !report.scaling.is_some_and(|scaling| scaling.skipped);
        let taken: Vec<&StepReport> = self.pending.iter().filter(is_taken).collect();
        if taken.is_empty() {
            return Ok(None);
        }
        let mean = |value: fn(&StepReport) -> f64| {
            taken.iter().map(|it| value(it)).sum::<f64>() / taken.len() as f64
        };
        // The mean over the steps that have this metric.
        let mean_of_some = |value: fn(&StepReport) -> Option<f64>| {
            let values: Vec<f64> = taken.iter().filter_map(|it| value(it)).collect();
            (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
        };
        let line = Line {
            stage: stage.name().into(),
            step: report.step,
            images: report.images,
            loss: mean(|report| report.loss),
            gradient_norm: mean(|report| report.gradient_norm),
            kdc: mean_of_some(|report| report.kdc),
            teacher_steps: mean_of_some(|report| report.teacher_steps),
            discriminator_loss: mean_of_some(|report| report.discriminator_loss),
            loss_scale: report.scaling.map(|scaling| f64::from(scaling.next.factor)),
            skipped_steps: report.scaling.map(|scaling| scaling.skipped_steps),
            images_per_second: (self.pending.len() * batch) as f64 / self.seconds,
            rank_seconds: std::mem::take(&mut self.rank_seconds),
        };
        self.pending.clear();
        self.seconds = 0.0;
        self.file.write_all(line.to_json().as_bytes()).map_err(DiskError::of(&self.path))?;
        Ok(Some(line))
    }
}
