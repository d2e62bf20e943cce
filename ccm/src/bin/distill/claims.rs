//! `distill claims`: the curriculum beside fixed steps, from one teacher and at equal cost (PAPER.md §7, claim 2).

use std::path::{Path, PathBuf};

use ccm::config::{Config, DistillConfig};
use ccm::data::ImageShape;
use ccm::metrics::evaluation::Reference;
use ccm::metrics::file::open;
use ccm::metrics::kernel::Spread;
use ccm::metrics::{Collection, Extractor, Figures};
use ccm::sampler::{Backend, Sampler};
use ccm::train::curriculum::Mode;
use ccm::train::disk;
use ccm::train::distance::DistanceKind;
use ccm::train::folder::read_config;
use ccm::train::run::Run;
use ccm::weights::Model;
use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::device::{self, Choice, Opened};
use crate::progress::counter;
use crate::run::load_data;
use crate::sample::backend;

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
    /// Distances beside the run's own, under the curriculum of the run; LPIPS' weights as in the run's settings
    #[arg(long, value_delimiter = ',')]
    distances: Vec<String>,
    /// Students of each setting
    #[arg(long, default_value_t = 3)]
    seeds: u64,
    /// Network evaluations that each student may spend: of itself, its teacher and its target, an image each
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

/// A student and its figures.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Row {
    setting: Setting,
    seed: u64,
    budget: u64,
    evaluations: u64,
    steps: u64,
    images: u64,
    features: String,
    frechet: f64,
    accuracy: Option<f64>,
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    arguments.check()?;
    let config = read_config(&arguments.run)?;
    config.validate()?;
    let settings = arguments.settings(&config)?;
    let mut bench = Bench::new(&arguments, config)?;

    disk::make(&arguments.out)?;
    let path = arguments.out.join(ROWS);
    let mut rows = if path.exists() { read_rows(&path)? } else { Vec::new() };
    let budget = arguments.evaluations;
    for seed in 0..arguments.seeds {
        for &setting in &settings {
            if rows.iter().any(|row| (row.setting, row.seed, row.budget) == (setting, seed, budget)) {
                continue;
            }
            let row = bench.row(setting, seed, budget, arguments.count)?;
            println!("{}", serde_json::to_string(&row)?);
            rows.push(row);
            write_rows(&path, &rows)?;
        }
    }
    let table = table(&settings, &rows, budget);
    disk::write(&arguments.out.join(TABLE), table.as_bytes())?;
    print!("{table}");
    Ok(())
}

impl Arguments {
    fn check(&self) -> Result<(), Failure> {
        let least = [
            ("--seeds", self.seeds, 1),
            ("--evaluations", self.evaluations, 1),
            ("--count", self.count as u64, 10),
        ];
        match least.into_iter().find(|(_, value, least)| value < least) {
            Some((flag, value, least)) => {
                Err(format!("{flag}: expected at least {least}, found {value}").into())
            }
            None => Ok(()),
        }
    }

    /// Everything that is compared, each a valid configuration of the run.
    fn settings(&self, config: &Config) -> Result<Vec<Setting>, Failure> {
        let own = config.distill.distance;
        let mut settings = Vec::new();
        for &threshold in &self.thresholds {
            settings.push(Setting { steps: Steps::Curriculum { threshold }, distance: own });
        }
        for &step_size in &self.step_sizes {
            settings.push(Setting { steps: Steps::Fixed { step_size }, distance: own });
        }
        for name in &self.distances {
            let named = config.clone().with_overrides(&[format!("distill.distance={name}")]);
            let distance = named.map_err(|error| format!("--distances: {error}"))?.distill.distance;
            let threshold = config.distill.threshold;
            settings.push(Setting { steps: Steps::Curriculum { threshold }, distance });
        }
        for setting in &settings {
            let mut config = config.clone();
            setting.apply(&mut config.distill);
            config.validate()?;
        }
        Ok(settings)
    }
}

/// What all students share: the run with its data, the teacher, and the eyes that judge.
struct Bench {
    run: Run,
    config: Config,
    teacher: Model,
    extractor: Box<dyn Extractor>,
    reference: Reference,
    backend: Backend,
}

impl Bench {
    fn new(arguments: &Arguments, config: Config) -> Result<Self, Failure> {
        let Opened { device, name, threads } = device::open(arguments.device)?;
        let features = &arguments.features;
        let extractor = open(features, &device)
            .map_err(|error| format!("--features: {}: {error}", features.display()))?;
        let network = &config.network;
        let shape =
            ImageShape { channels: network.in_channels, height: network.height, width: network.width };
        if extractor.shape().is_some_and(|found| found != shape) {
            let file = features.display();
            return Err(format!("--features: {file}: made for images of another size than the run's").into());
        }
        let (data, held_out) = load_data(&config)?;
        let threads = threads.map_or(1, |own| config.run.threads.unwrap_or(own));
        println!("device: {name}; features: {}", extractor.name());
        let seen = Collection::of_data(&*extractor, &data, &device, |_| {})?;
        let (folder, command) = (arguments.run.clone(), String::new());
        let run = Run { config: config.clone(), folder, device, threads, data, held_out, command };
        let teacher = run.trained_teacher()?;
        let reference = Reference::Statistics(seen.gaussian()?);
        Ok(Self { run, config, teacher, extractor, reference, backend: backend(arguments.device) })
    }

    /// Distils a student and looks at `count` of its images.
    fn row(&mut self, setting: Setting, seed: u64, budget: u64, count: usize) -> Result<Row, Failure> {
        self.run.config = self.config.clone();
        self.run.config.run.seed = seed;
        setting.apply(&mut self.run.config.distill);
        let bar = counter("student");
        bar.set_length(budget);
        let trial = self.run.trial(&self.teacher, budget, &mut |spent| bar.set_position(spent))?;
        bar.finish_and_clear();
        let mut sampler = pollster::block_on(Sampler::new(trial.student, self.backend))?;
        let device = &self.run.device;
        let samples = Collection::of_samples(&*self.extractor, &mut sampler, (0, count, 1), device, |_| {});
        let figures = Figures::of(&*self.extractor, &pollster::block_on(samples)?, &self.reference)?;
        Ok(Row {
            setting,
            seed,
            budget,
            evaluations: trial.evaluations,
            steps: trial.steps,
            images: figures.images,
            features: figures.features,
            frechet: figures.frechet,
            accuracy: figures.accuracy,
        })
    }
}

fn read_rows(path: &Path) -> Result<Vec<Row>, Failure> {
    let text = disk::read_text(path)?;
    let row =
        |line| serde_json::from_str(line).map_err(|error| format!("{}: {error}", path.display()).into());
    text.lines().map(row).collect()
}

fn write_rows(path: &Path, rows: &[Row]) -> Result<(), Failure> {
    let mut text = String::new();
    for row in rows {
        text += &serde_json::to_string(row)?;
        text.push('\n');
    }
    Ok(disk::write(path, text.as_bytes())?)
}

/// Mean and spread of every setting, in Markdown.
fn table(settings: &[Setting], rows: &[Row], budget: u64) -> String {
    let mut table =
        "| steps | distance | students | steps | evaluations | Fréchet distance | class accuracy |\n"
            .to_owned();
    table += "| --- | --- | --- | --- | --- | --- | --- |\n";
    for setting in settings {
        let of_setting: Vec<&Row> =
            rows.iter().filter(|row| row.setting == *setting && row.budget == budget).collect();
        if of_setting.is_empty() {
            continue;
        }
        let spread = |value: &dyn Fn(&Row) -> f64| {
            Spread::of(&of_setting.iter().map(|row| value(row)).collect::<Vec<_>>())
        };
        let steps = match setting.steps {
            Steps::Curriculum { threshold } => format!("curriculum, T = {threshold} dB"),
            Steps::Fixed { step_size } => format!("fixed steps, s = {step_size}"),
        };
        let distance = setting.distance;
        let frechet = spread(&|row| row.frechet);
        let accuracy = spread(&|row| row.accuracy.unwrap_or(f64::NAN));
        let accuracy = match accuracy.mean.is_nan() {
            true => "–".to_owned(),
            false => format!("{:.1} ± {:.1} %", 100.0 * accuracy.mean, 100.0 * accuracy.deviation),
        };
        table += &format!(
            "| {steps} | {distance} | {} | {:.0} | {:.0} | {:.2} ± {:.2} | {accuracy} |\n",
            of_setting.len(),
            spread(&|row| row.steps as f64).mean,
            spread(&|row| row.evaluations as f64).mean,
            frechet.mean,
            frechet.deviation,
        );
    }
    table
}
