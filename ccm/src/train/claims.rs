//! Compares students of one teacher, distilled under several settings at equal cost (PAPER.md §7, claim 2).
//!
//! A [`Comparison`] distils and evaluates one student, which gives one row. A [`Record`] stores the rows in a folder,
//! so that an interrupted experiment continues with the next row.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::error::RunError;
use super::run::Run;
use crate::config::{Config, DistillConfig};
use crate::disk::{self, DiskError};
use crate::method::curriculum::Mode;
use crate::method::distance::DistanceKind;
use crate::metrics::evaluation::{Generated, Reference};
use crate::metrics::kernel::Spread;
use crate::metrics::{Collection, Extractor, Figures, MetricsError};
use crate::sampler::schedule::Request;
use crate::sampler::{Backend, Sampler, SamplerError};
use crate::weights::Model;

/// File of the [`Terms`], which all rows of a folder share.
const TERMS: &str = "terms.json";
/// File of the rows, one JSON object per line.
const ROWS: &str = "claims.jsonl";
/// File of the table.
const TABLE: &str = "claims.md";

/// Why a row cannot be computed or stored.
#[derive(Debug, thiserror::Error)]
pub enum ClaimsError {
    /// The student cannot be trained.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The student cannot be sampled.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    /// The student's images cannot be evaluated.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// A file of the folder cannot be read or written.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A file of the folder has a line in another format.
    #[error("{path}: line {line}: {source}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The folder has rows of other terms.
    #[error("{folder}: holds rows of other terms: {}", differences.join("; "))]
    Terms {
        /// The folder.
        folder: PathBuf,
        /// The terms that differ, one string each.
        differences: Vec<String>,
    },
}

/// How a student is distilled.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Setting {
    /// The rule for the number and length of the teacher steps.
    pub steps: Steps,
    /// The distance that the student minimises.
    pub distance: DistanceKind,
}

/// The rule for the number and length of the teacher steps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Steps {
    /// Steps until the KDC exceeds a threshold.
    Curriculum {
        /// Its threshold T, in dB.
        threshold: f64,
    },
    /// Exactly one step.
    Fixed {
        /// Its length s, as `distill.step_size`.
        step_size: f64,
    },
}

impl Setting {
    /// Changes a configuration to this setting.
    pub fn apply(self, config: &mut DistillConfig) {
        config.distance = self.distance;
        match self.steps {
            Steps::Curriculum { threshold } => {
                (config.mode, config.threshold) = (Mode::Cd, threshold);
            }
            Steps::Fixed { step_size } => {
                (config.mode, config.step_size) = (Mode::Fixed, step_size);
            }
        }
    }
}

/// The terms of a comparison, which all students of a table share.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Terms {
    /// Name of the feature extractor.
    pub features: String,
    /// Network evaluations that each student may spend.
    pub budget: u64,
    /// Generated images per student in the evaluation.
    pub images: usize,
    /// Fingerprint of the teacher's weights.
    pub teacher: String,
    /// Configuration of the run.
    pub config: Config,
}

impl Terms {
    /// The terms that differ, one string each.
    fn differences(&self, now: &Self) -> Vec<String> {
        let mut differences = self.config.differences(&now.config);
        let terms = |terms: &Self| {
            [
                ("features", terms.features.clone()),
                ("evaluations", terms.budget.to_string()),
                ("count", terms.images.to_string()),
                ("teacher", terms.teacher.clone()),
            ]
        };
        for ((name, before), (_, now)) in terms(self).into_iter().zip(terms(now)) {
            if before != now {
                differences.push(format!("{name}: {before} before, {now} now"));
            }
        }
        differences
    }
}

/// The results of one student.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    /// How the student was distilled.
    pub setting: Setting,
    /// Seed of the run.
    pub seed: u64,
    /// Network evaluations spent.
    pub evaluations: u64,
    /// Optimiser steps taken, including skipped ones.
    pub steps: u64,
    /// Seconds of distillation.
    pub seconds: f64,
    /// Fréchet distance of one-step images.
    pub frechet: f64,
    /// Class accuracy of one-step images, in [0, 1], if the extractor is a classifier of these classes.
    pub accuracy: Option<f64>,
}

/// Everything that the students share: the run with its data, the teacher, and the feature extractor of the metrics.
pub struct Comparison {
    /// The run; each student changes its configuration.
    pub run: Run,
    /// The run's own configuration.
    pub config: Config,
    /// The teacher.
    pub teacher: Model,
    /// Extracts the features.
    pub extractor: Box<dyn Extractor>,
    /// Features of the real images.
    pub reference: Reference,
    /// Backend of the sampler for the students.
    pub backend: Backend,
}

impl Comparison {
    /// Distils a student and evaluates its one-step images. Calls `watch` with the evaluations spent so far.
    ///
    /// # Errors
    /// As [`Run::trial`]; a student that cannot be sampled, or whose images are not finite.
    pub fn row(
        &mut self,
        setting: Setting,
        seed: u64,
        terms: &Terms,
        watch: &mut dyn FnMut(u64),
    ) -> Result<Row, ClaimsError> {
        self.run.config = self.config.clone();
        self.run.config.run.seed = seed;
        setting.apply(&mut self.run.config.distill);
        let begin = Instant::now();
        let trial = self.run.trial(&self.teacher, terms.budget, watch)?;
        let seconds = begin.elapsed().as_secs_f64();
        let mut sampler = pollster::block_on(Sampler::new(trial.student, self.backend))?;
        let device = &self.run.device;
        let (spec, card) = (sampler.spec().clone(), sampler.card().clone());
        let images = Generated { spec: &spec, classes: &card.classes, seed: 0, count: terms.images };
        let one_step = |request: &Request| Ok(pollster::block_on(sampler.sample(request, 1))?);
        let samples = Collection::of_samples(&*self.extractor, images, device, one_step, |_| {})?;
        let figures = Figures::of(&*self.extractor, &samples, &self.reference)?;
        Ok(Row {
            setting,
            seed,
            evaluations: trial.evaluations,
            steps: trial.steps,
            seconds,
            frechet: figures.frechet,
            accuracy: figures.accuracy,
        })
    }
}

/// The rows of a folder.
pub struct Record {
    folder: PathBuf,
    terms: Terms,
    rows: Vec<Row>,
}

impl Record {
    /// Opens a folder for rows under `terms`. Creates the folder if it does not exist.
    ///
    /// # Errors
    /// A folder with rows of other terms, or with files that this program did not write; a folder that cannot be
    /// created.
    pub fn open(folder: &Path, terms: Terms) -> Result<Self, ClaimsError> {
        let (path, terms_path) = (folder.join(ROWS), folder.join(TERMS));
        let rows = if path.exists() { read_rows(&path)? } else { Vec::new() };
        if rows.is_empty() {
            disk::make(folder)?;
            disk::write(&terms_path, json(&terms).as_bytes())?;
        } else {
            let before: Terms = serde_json::from_str(&disk::read_text(&terms_path)?)
                .map_err(|source| ClaimsError::Malformed { line: source.line(), path: terms_path, source })?;
            let differences = before.differences(&terms);
            if !differences.is_empty() {
                return Err(ClaimsError::Terms { folder: folder.to_owned(), differences });
            }
        }
        Ok(Self { folder: folder.to_owned(), terms, rows })
    }

    /// The terms that all rows share.
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// Whether there is a row of this setting and seed.
    pub fn has(&self, setting: Setting, seed: u64) -> bool {
        self.rows.iter().any(|row| (row.setting, row.seed) == (setting, seed))
    }

    /// Adds a row and returns its line. Existing lines are not changed.
    ///
    /// # Errors
    /// A file that cannot be read or written.
    pub fn add(&mut self, row: Row) -> Result<String, ClaimsError> {
        let path = self.folder.join(ROWS);
        let line = json_line(&row);
        let before = if path.exists() { disk::read_text(&path)? } else { String::new() };
        disk::write(&path, format!("{before}{line}\n").as_bytes())?;
        self.rows.push(row);
        Ok(line)
    }

    /// Writes the table of some settings, in Markdown, and returns it.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write_table(&self, settings: &[Setting]) -> Result<String, ClaimsError> {
        let text = table(settings, &self.rows, &self.terms);
        disk::write(&self.folder.join(TABLE), text.as_bytes())?;
        Ok(text)
    }
}

#[expect(clippy::expect_used, reason = "numbers and text become JSON")]
fn json(terms: &Terms) -> String {
    serde_json::to_string_pretty(terms).expect("terms have string keys and no foreign types")
}

#[expect(clippy::expect_used, reason = "numbers and text become JSON")]
fn json_line(row: &Row) -> String {
    serde_json::to_string(row).expect("a row has string keys and no foreign types")
}

fn read_rows(path: &Path) -> Result<Vec<Row>, ClaimsError> {
    let text = disk::read_text(path)?;
    let row = |(line, text)| {
        let fault = |source| ClaimsError::Malformed { path: path.to_owned(), line: line + 1, source };
        serde_json::from_str(text).map_err(fault)
    };
    text.lines().enumerate().map(row).collect()
}

/// A Markdown table with one row per setting: means, and standard deviations of the metrics.
fn table(settings: &[Setting], rows: &[Row], terms: &Terms) -> String {
    let DistillConfig { step_size, adversarial_weight, .. } = terms.config.distill;
    let mut table = format!(
        "Students of {} evaluations each, judged by {} one-step images; features: {}. Teacher steps of s = {step_size} \
         under a curriculum; adversarial weight {adversarial_weight}. Mean ± standard deviation over students.\n\n\
         | steps | distance | students | optimiser steps | evaluations | seconds | Fréchet distance | class accuracy |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- |\n",
        terms.budget, terms.images, terms.features
    );
    for setting in settings {
        let rows: Vec<&Row> = rows.iter().filter(|row| row.setting == *setting).collect();
        let values = |value: &dyn Fn(&Row) -> f64| rows.iter().map(|row| value(row)).collect::<Vec<_>>();
        let mean = |value: &dyn Fn(&Row) -> f64| Spread::of(&values(value)).mean;
        let steps = match setting.steps {
            Steps::Curriculum { threshold } => format!("curriculum, T = {threshold} dB"),
            Steps::Fixed { step_size } => format!("fixed steps, s = {step_size}"),
        };
        let accuracy = values(&|row| 100.0 * row.accuracy.unwrap_or(f64::NAN));
        table += &format!(
            "| {steps} | {} | {} | {:.0} | {:.0} | {:.0} | {} | {} |\n",
            setting.distance,
            rows.len(),
            mean(&|row| row.steps as f64),
            mean(&|row| row.evaluations as f64),
            mean(&|row| row.seconds),
            spread(&values(&|row| row.frechet), 2, ""),
            spread(&accuracy, 1, " %"),
        );
    }
    table
}

/// `mean ± standard deviation` of a sample, or a dash if the sample is empty.
fn spread(values: &[f64], digits: usize, unit: &str) -> String {
    let Spread { mean, deviation } = Spread::of(values);
    if mean.is_nan() {
        return "–".to_owned();
    }
    let count = values.len() as f64;
    match values.len() {
        1 => format!("{mean:.digits$}{unit}"),
        // `Spread` has the standard deviation of a population; these values are a sample.
        _ => format!("{mean:.digits$} ± {:.digits$}{unit}", deviation * (count / (count - 1.0)).sqrt()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_that_of_a_sample() {
        assert_eq!(spread(&[1.0, 2.0, 4.5], 2, " %"), "2.50 ± 1.80 %");
        assert_eq!(spread(&[1.25], 1, ""), "1.2");
        assert_eq!(spread(&[f64::NAN, 1.0], 1, ""), "–");
    }
}
