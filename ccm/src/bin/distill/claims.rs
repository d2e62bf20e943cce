//! `distill claims`: the curriculum beside fixed steps, from one teacher and at equal cost (PAPER.md §7, claim 2).

use std::path::{Path, PathBuf};
use std::time::Instant;

use ccm::config::{Config, DistillConfig};
use ccm::data::ImageShape;
use ccm::metrics::evaluation::Reference;
use ccm::metrics::extractor::fingerprint;
use ccm::metrics::kernel::Spread;
use ccm::metrics::{Collection, Extractor, Figures};
use ccm::sampler::{Backend, Sampler};
use ccm::train::curriculum::Mode;
use ccm::train::disk;
use ccm::train::distance::DistanceKind;
use ccm::train::folder::read_config;
use ccm::train::run::{Run, check_distance, suit, trained_teacher};
use ccm::weights::Model;
use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::device::{self, Choice};
use crate::eval::{LEAST_IMAGES, extractor};
use crate::progress::counter;
use crate::run::load_data;
use crate::sample::backend;

/// What all rows have in common.
const TERMS: &str = "terms.json";
/// Rows so far, a line each; what stands there is not done again.
const ROWS: &str = "claims.jsonl";
/// The table.
const TABLE: &str = "claims.md";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The folder of a run, whose teacher and settings are used
    run: PathBuf,
    /// What to see with: as for `eval`
    #[arg(long, value_name = "FILE")]
    features: PathBuf,
    /// Thresholds T of the curriculum, in dB
    #[arg(long, value_delimiter = ',', default_values_t = [50.0, 60.0, 70.0])]
    thresholds: Vec<f64>,
    /// Lengths s of fixed steps, in flow time
    #[arg(long, value_delimiter = ',', default_values_t = [0.03, 0.1, 0.3])]
    step_sizes: Vec<f64>,
    /// Distances beside the run's own, all under the curriculum of the run; LPIPS' weights as in the run's settings
    #[arg(long, value_delimiter = ',')]
    distances: Vec<String>,
    /// Students of each setting
    #[arg(long, default_value_t = 3)]
    seeds: u64,
    /// Network evaluations that each student may spend: of itself, its teacher and its target, an image each; two looks
    /// through the teacher's encoder, of a distance or a discriminator, count as one, and LPIPS' own network as none
    #[arg(long, default_value_t = 500_000)]
    evaluations: u64,
    /// Images to judge each student by
    #[arg(long, default_value_t = 5000)]
    count: usize,
    /// Folder of the rows and the table; what is there already is not done again
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[arg(long, default_value = "auto")]
    device: Choice,
}

/// How a student is taught.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Setting {
    steps: Steps,
    distance: DistanceKind,
}

/// How far ahead the teacher looks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Steps {
    /// As far as a curriculum with this threshold says.
    Curriculum { threshold: f64 },
    /// One step of this length.
    Fixed { step_size: f64 },
}

impl Setting {
    fn apply(self, config: &mut DistillConfig) {
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

/// What all students of a table have in common.
#[derive(Serialize, Deserialize)]
struct Terms {
    /// The extractor's name.
    features: String,
    /// Network evaluations that each may spend.
    budget: u64,
    /// Images that each is judged by.
    images: usize,
    /// Fingerprint of the teacher.
    teacher: String,
    /// The run's.
    config: Config,
}

/// A student and its figures.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Row {
    setting: Setting,
    seed: u64,
    evaluations: u64,
    steps: u64,
    seconds: f64,
    frechet: f64,
    accuracy: Option<f64>,
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    arguments.check()?;
    let mut config = read_config(&arguments.run)?;
    config.validate()?;
    let settings = arguments.settings(&config)?;
    let teacher = trained_teacher(&config, &arguments.run)?;
    let path = arguments.out.join(ROWS);
    let mut rows = if path.exists() { read_rows(&path)? } else { Vec::new() };
    let opened = device::open(arguments.device)?;
    let extractor = extractor(&arguments.features, ImageShape::of(&config.network), &opened.device)?;
    let terms = Terms {
        features: extractor.name(),
        budget: arguments.evaluations,
        images: arguments.count,
        teacher: fingerprint(teacher.tensors.iter().map(|tensor| &tensor.values)),
        config: config.clone(),
    };
    if rows.is_empty() {
        disk::make(&arguments.out)?;
        disk::write(&arguments.out.join(TERMS), serde_json::to_string_pretty(&terms)?.as_bytes())?;
    } else {
        terms.agree(&arguments.out)?;
    }

    let (data, held_out) = load_data(&config)?;
    suit(&mut config, &data)?;
    println!("device: {}; features: {}", opened.name, terms.features);
    let threads = opened.threads.map_or(1, |own| config.run.threads.unwrap_or(own));
    let seen = Collection::of_data(&*extractor, &data, &opened.device, |_| {});
    let source = config.data.source.as_deref().unwrap_or_default();
    let real = seen.and_then(|seen| seen.gaussian()).map_err(|error| format!("{source}: {error}"))?;
    let (folder, command) = (arguments.run, String::new());
    let mut bench = Bench {
        run: Run { config: config.clone(), folder, device: opened.device, threads, data, held_out, command },
        config,
        teacher,
        extractor,
        reference: Reference::Statistics(real),
        backend: backend(arguments.device),
    };
    for seed in 0..arguments.seeds {
        for &setting in &settings {
            if rows.iter().any(|row| (row.setting, row.seed) == (setting, seed)) {
                continue;
            }
            let row = bench.row(setting, seed, &terms)?;
            let line = serde_json::to_string(&row)?;
            println!("{line}");
            // Rows that stand there stay as they are.
            let before = if path.exists() { disk::read_text(&path)? } else { String::new() };
            disk::write(&path, format!("{before}{line}\n").as_bytes())?;
            rows.push(row);
        }
    }
    let text = table(&settings, &rows, &terms);
    disk::write(&arguments.out.join(TABLE), text.as_bytes())?;
    print!("{text}");
    Ok(())
}

impl Terms {
    /// Checks that those of the rows in a folder are these.
    fn agree(&self, folder: &Path) -> Result<(), Failure> {
        let path = folder.join(TERMS);
        let before: Self = serde_json::from_str(&disk::read_text(&path)?)
            .map_err(|error| format!("{}: {error}", path.display()))?;
        let mut differences = before.config.differences(&self.config);
        let terms = |terms: &Self| {
            [
                ("features", terms.features.clone()),
                ("evaluations", terms.budget.to_string()),
                ("count", terms.images.to_string()),
                ("teacher", terms.teacher.clone()),
            ]
        };
        for ((name, before), (_, now)) in terms(&before).into_iter().zip(terms(self)) {
            if before != now {
                differences.push(format!("{name}: {before} before, {now} now"));
            }
        }
        if differences.is_empty() {
            return Ok(());
        }
        let differences = differences.join("; ");
        Err(format!("--out: {}: holds rows of other terms: {differences}", folder.display()).into())
    }
}

impl Arguments {
    fn check(&self) -> Result<(), Failure> {
        let least = [
            ("--seeds", self.seeds, 1),
            ("--evaluations", self.evaluations, 1),
            ("--count", self.count as u64, LEAST_IMAGES as u64),
        ];
        match least.into_iter().find(|(_, value, least)| value < least) {
            Some((flag, value, least)) => {
                Err(format!("{flag}: expected at least {least}, found {value}").into())
            }
            None => Ok(()),
        }
    }

    /// Everything that is compared, once, each a valid configuration of the run.
    fn settings(&self, config: &Config) -> Result<Vec<Setting>, Failure> {
        let DistillConfig { distance: own, threshold: of_run, .. } = config.distill;
        let curriculum = |threshold| Steps::Curriculum { threshold };
        let mut settings: Vec<Setting> = Vec::new();
        let mut add = |flag: &str, steps: Steps, distance: DistanceKind| -> Result<(), Failure> {
            let setting = Setting { steps, distance };
            let mut config = config.clone();
            setting.apply(&mut config.distill);
            config.validate().map_err(|error| format!("{flag}: {error}"))?;
            if !settings.contains(&setting) {
                settings.push(setting);
            }
            Ok(())
        };
        check_distance(&config.distill)?;
        for &threshold in &self.thresholds {
            add("--thresholds", curriculum(threshold), own)?;
        }
        for &step_size in &self.step_sizes {
            add("--step-sizes", Steps::Fixed { step_size }, own)?;
        }
        for name in &self.distances {
            let named = config.clone().with_overrides(&[format!("distill.distance={name}")]);
            let named = named.map_err(|error| format!("--distances: {error}"))?.distill;
            let distance = named.distance;
            // Beside what it is compared with.
            add("--distances", curriculum(of_run), own)?;
            add("--distances", curriculum(of_run), distance)?;
            check_distance(&named).map_err(|error| format!("--distances: {error}"))?;
        }
        Ok(settings)
    }
}

/// What all students share: the run with its data, the teacher, and the features that judge.
struct Bench {
    run: Run,
    config: Config,
    teacher: Model,
    extractor: Box<dyn Extractor>,
    reference: Reference,
    backend: Backend,
}

impl Bench {
    /// Distils a student and looks at its images.
    fn row(&mut self, setting: Setting, seed: u64, terms: &Terms) -> Result<Row, Failure> {
        self.run.config = self.config.clone();
        self.run.config.run.seed = seed;
        setting.apply(&mut self.run.config.distill);
        let bar = counter("student");
        bar.set_length(terms.budget);
        let begin = Instant::now();
        let trial = self.run.trial(&self.teacher, terms.budget, &mut |spent| bar.set_position(spent))?;
        let seconds = begin.elapsed().as_secs_f64();
        bar.finish_and_clear();
        let mut sampler = pollster::block_on(Sampler::new(trial.student, self.backend))?;
        let device = &self.run.device;
        let samples =
            Collection::of_samples(&*self.extractor, &mut sampler, (0, terms.images, 1), device, |_| {});
        let figures = Figures::of(&*self.extractor, &pollster::block_on(samples)?, &self.reference)?;
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

fn read_rows(path: &Path) -> Result<Vec<Row>, Failure> {
    let text = disk::read_text(path)?;
    let row = |(line, text)| {
        let fault = |error| format!("{}: line {}: {error}", path.display(), line + 1);
        Ok(serde_json::from_str(text).map_err(fault)?)
    };
    text.lines().enumerate().map(row).collect()
}

/// Mean and spread of every setting, in Markdown.
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

/// `mean ± standard deviation` of a sample, or a dash where there is nothing.
fn spread(values: &[f64], digits: usize, unit: &str) -> String {
    let Spread { mean, deviation } = Spread::of(values);
    if mean.is_nan() {
        return "–".to_owned();
    }
    let count = values.len() as f64;
    match values.len() {
        1 => format!("{mean:.digits$}{unit}"),
        // Of the population that these are a sample of.
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
