//! The state of a run, from the files in its folder: for watching a run from another process or machine.

use std::fmt;
use std::path::{Path, PathBuf};

use super::batches::StageKind;
use super::error::RunError;
use super::folder::{files, read_config};
use super::metrics_log::{self, Line};
use super::summary::{self, duration};
use crate::config::Config;
use crate::disk;
use crate::report::{Grid, Pictures, Report};

/// The state of a run.
pub struct Status {
    folder: PathBuf,
    config: Config,
    lines: Vec<Line>,
}

/// A stage of a run, with its progress.
struct Progress<'a> {
    stage: StageKind,
    steps: u64,
    batch: usize,
    lines: Vec<&'a Line>,
}

impl Progress<'_> {
    /// Seconds of training so far.
    fn seconds(&self) -> f64 {
        let mut before = 0;
        let of_line = |line: &&Line| {
            let images = line.images - std::mem::replace(&mut before, line.images);
            images as f64 / line.images_per_second
        };
        self.lines.iter().map(of_line).sum()
    }

    /// Seconds of training that are left, at the speed of the last line.
    fn left(&self) -> f64 {
        let Some(last) = self.lines.last() else { return 0.0 };
        self.steps.saturating_sub(last.step) as f64 * self.batch as f64 / last.images_per_second
    }
}

impl Status {
    /// Reads the state of the run in a folder.
    ///
    /// # Errors
    /// A folder without a run; a file that cannot be read.
    pub fn read(folder: &Path) -> Result<Self, RunError> {
        let config = read_config(folder)?;
        let lines = metrics_log::read(&folder.join(files::METRICS))?;
        Ok(Self { folder: folder.to_owned(), config, lines })
    }

    /// Whether the run is complete.
    pub fn is_finished(&self) -> bool {
        self.folder.join(files::REPORT).exists()
    }

    /// The stages that have begun.
    fn stages(&self) -> Vec<Progress<'_>> {
        let Config { teacher, distill, finish, .. } = &self.config;
        let of_weaker = teacher.weaker_steps().filter(|_| teacher.trains_only_weaker());
        let stages = [
            (StageKind::Teacher, of_weaker.unwrap_or_else(|| teacher.steps()), teacher.batch),
            (StageKind::Distill, distill.steps(), distill.batch),
            (StageKind::Finish, finish.steps(), finish.batch),
        ];
        let progress = |(stage, steps, batch): (StageKind, u64, usize)| {
            let lines: Vec<&Line> = self.lines.iter().filter(|line| line.stage == stage.name()).collect();
            (!lines.is_empty()).then_some(Progress { stage, steps, batch, lines })
        };
        stages.into_iter().filter_map(progress).collect()
    }

    /// The newest grid of samples.
    fn samples(&self) -> Option<PathBuf> {
        let Progress { stage, .. } = self.stages().pop()?;
        let files = std::fs::read_dir(self.folder.join(files::SAMPLES)).ok()?;
        let of_stage = |path: &PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(stage.name()))
        };
        files.flatten().map(|file| file.path()).filter(of_stage).max()
    }

    /// A report of the run so far.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn report(&self) -> Result<Report, RunError> {
        let stages = self.stages();
        let now = stages.last();
        let mut tiles = summary::tiles(&self.config, &self.lines);
        if let Some(now) = now.filter(|_| !self.is_finished()) {
            tiles.push((format!("left of {}", now.stage.name()), duration(now.left())));
        }
        let mut pictures = Pictures::default();
        if let (Some(path), Some(now)) = (self.samples(), now) {
            let steps = if now.stage == StageKind::Teacher { self.config.run.report_steps as u32 } else { 1 };
            let grid = Some(Grid { steps, ms_per_image: None, png: disk::read(&path)? });
            match now.stage {
                StageKind::Teacher => pictures.teacher = grid,
                StageKind::Distill | StageKind::Finish => pictures.student = grid,
            }
            pictures.note = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into());
        }
        let mut report = Report {
            title: self.config.run.name.clone(),
            summary: self.to_string().lines().next().unwrap_or_default().to_owned(),
            version: env!("CARGO_PKG_VERSION").into(),
            tiles,
            config_toml: self
                .config
                .to_toml()
                .map_err(|source| RunError::Config { path: self.folder.join(files::CONFIG), source })?,
            pictures,
            growth: summary::growth(&self.config, &self.folder)?,
            ..Report::default()
        };
        summary::add_logs(&mut report, &self.lines);
        Ok(report)
    }
}

/// A line of bars, one for each mean of equally many values.
fn bars(values: &[f64]) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    const WIDTH: usize = 48;
    let means: Vec<f64> = values
        .chunks(values.len().div_ceil(WIDTH).max(1))
        .map(|part| part.iter().sum::<f64>() / part.len() as f64)
        .collect();
    let low = means.iter().copied().fold(f64::INFINITY, f64::min);
    let high = means.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let bar = |mean: &f64| {
        let height = (mean - low) / (high - low) * (BARS.len() - 1) as f64;
        // All values may be equal.
        BARS[if height.is_finite() { height.round() as usize } else { 0 }]
    };
    means.iter().map(bar).collect()
}

impl fmt::Display for Status {
    /// A line of where the run is, and a table of its stages.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stages = self.stages();
        let Some(now) = stages.last() else {
            return write!(f, "{}: no step has been logged yet", self.folder.display());
        };
        match (self.is_finished(), now.lines.last()) {
            (true, _) => writeln!(f, "{}: finished", self.folder.display())?,
            (false, Some(last)) => writeln!(
                f,
                "{}: {}, step {} of {}, {:.0} images/s, {} left of this stage",
                self.folder.display(),
                now.stage.name(),
                last.step,
                now.steps,
                last.images_per_second,
                duration(now.left())
            )?,
            (false, None) => {}
        }
        writeln!(f)?;
        writeln!(
            f,
            "{:<8} {:>18} {:>10} {:>9} {:>14} {:>9} {:>14}",
            "stage", "steps", "loss", "KDC/dB", "teacher steps", "images/s", "time"
        )?;
        for progress in &stages {
            let Some(last) = progress.lines.last() else { continue };
            let seconds = progress.seconds();
            let optional = |value: Option<f64>, digits: usize| {
                value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
            };
            writeln!(
                f,
                "{:<8} {:>18} {:>10.4} {:>9} {:>14} {:>9.0} {:>14}",
                progress.stage.name(),
                format!("{} of {}", last.step, progress.steps),
                last.loss,
                optional(last.kdc, 1),
                optional(last.teacher_steps, 2),
                last.images as f64 / seconds,
                duration(seconds)
            )?;
        }
        writeln!(f)?;
        writeln!(f, "loss     {}", bars(&now.lines.iter().map(|line| line.loss).collect::<Vec<_>>()))?;
        if now.lines.iter().any(|line| line.kdc.is_some()) {
            let kdc: Vec<f64> = now.lines.iter().filter_map(|line| line.kdc).collect();
            writeln!(f, "KDC      {}", bars(&kdc))?;
        }
        if let Some((steps, scale)) = now.lines.last().and_then(|it| it.skipped_steps.zip(it.loss_scale)) {
            writeln!(f, "f16      {steps} steps skipped, loss scale {scale}")?;
        }
        if let Some(last) = now.lines.last().filter(|last| !last.rank_seconds.is_empty()) {
            let most = last.rank_seconds.iter().copied().fold(0.0, f64::max);
            let share = |seconds: &f64| format!("{:.0} %", 100.0 * seconds / most);
            let shares: Vec<String> = last.rank_seconds.iter().map(share).collect();
            writeln!(f, "ranks    computing for {} of the slowest one's time", shares.join(", "))?;
        }
        if let Some(samples) = self.samples() {
            writeln!(f, "samples  {}", samples.display())?;
        }
        if !self.is_finished() {
            let checkpoints = super::checkpoint::list(&self.folder.join(files::CHECKPOINTS));
            if let Some(last) = checkpoints.last() {
                writeln!(f, "saved    {}", last.path.display())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_show_means() {
        assert_eq!(bars(&[0.0, 1.0, 7.0]), "▁▂█");
        assert_eq!(bars(&[2.0, 2.0]), "▁▁");
        assert_eq!(bars(&[]), "");
        assert_eq!(bars(&vec![1.0; 1000]).chars().count(), 48);
    }
}
