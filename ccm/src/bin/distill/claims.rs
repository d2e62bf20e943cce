//! `distill claims`: the curriculum beside fixed steps, from one teacher and at equal cost (PAPER.md §7, claim 2).

use std::path::{Path, PathBuf};

use ccm::data::ImageShape;
use ccm::metrics::evaluation::Reference;
use ccm::metrics::file::open;
use ccm::metrics::kernel::Spread;
use ccm::metrics::{Collection, Figures};
use ccm::sampler::Sampler;
use ccm::train::curriculum::Mode;
use ccm::train::disk;
use ccm::train::folder::read_config;
use ccm::train::run::Run;
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
#[serde(rename_all = "kebab-case")]
enum Setting {
    /// By a curriculum with this threshold.
    Curriculum { threshold: f64 },
    /// By steps of this length.
    Fixed { step_size: f64 },
}

/// A student and its figures.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Row {
    #[serde(flatten)]
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
    let Arguments { run: folder, features, thresholds, step_sizes, seeds, evaluations, count, out, device } =
        arguments;
    for (flag, value, least) in
        [("--seeds", seeds, 1), ("--evaluations", evaluations, 1), ("--count", count as u64, 10)]
    {
        if value < least {
            return Err(format!("{flag}: expected at least {least}, found {value}").into());
        }
    }
    let config = read_config(&folder)?;
    config.validate()?;
    let Opened { device: opened, name, threads } = device::open(device)?;
    let extractor =
        open(&features, &opened).map_err(|error| format!("--features: {}: {error}", features.display()))?;
    let network = &config.network;
    let shape = ImageShape { channels: network.in_channels, height: network.height, width: network.width };
    if extractor.shape().is_some_and(|found| found != shape) {
        return Err(format!(
            "--features: {}: made for images of another size than the run's",
            features.display()
        )
        .into());
    }
    let (data, held_out) = load_data(&config)?;
    let threads = threads.map_or(1, |own| config.run.threads.unwrap_or(own));
    let mut run = Run { config, folder, device: opened, threads, data, held_out, command: String::new() };
    let teacher = run.trained_teacher()?;
    println!("device: {name}; features: {}", extractor.name());

    disk::make(&out)?;
    let path = out.join(ROWS);
    let mut rows = if path.exists() { read_rows(&path)? } else { Vec::new() };
    let reference =
        Reference::Images(Box::new(Collection::of_data(&*extractor, &run.data, &run.device, |_| {})?));
    let curricula = thresholds.into_iter().map(|threshold| Setting::Curriculum { threshold });
    let settings: Vec<Setting> =
        curricula.chain(step_sizes.into_iter().map(|step_size| Setting::Fixed { step_size })).collect();
    let (threshold, step_size) = (run.config.distill.threshold, run.config.distill.step_size);
    for seed in 0..seeds {
        for &setting in &settings {
            let same = |row: &Row| (row.setting, row.seed, row.budget) == (setting, seed, evaluations);
            if rows.iter().any(same) {
                continue;
            }
            let distill = &mut run.config.distill;
            (distill.mode, distill.threshold, distill.step_size) = match setting {
                Setting::Curriculum { threshold } => (Mode::Cd, threshold, step_size),
                Setting::Fixed { step_size } => (Mode::Fixed, threshold, step_size),
            };
            run.config.run.seed = seed;
            run.config.validate()?;
            let bar = counter("student");
            bar.set_length(evaluations);
            let trial = run.trial(&teacher, evaluations, &mut |spent| bar.set_position(spent))?;
            bar.finish_and_clear();
            let mut sampler = pollster::block_on(Sampler::new(trial.student, backend(device)))?;
            let samples =
                Collection::of_samples(&*extractor, &mut sampler, (0, count, 1), &run.device, |_| {});
            let figures = Figures::of(&*extractor, &pollster::block_on(samples)?, &reference)?;
            let row = Row {
                setting,
                seed,
                budget: evaluations,
                evaluations: trial.evaluations,
                steps: trial.steps,
                images: figures.images,
                features: figures.features,
                frechet: figures.frechet,
                accuracy: figures.accuracy,
            };
            println!("{}", serde_json::to_string(&row)?);
            rows.push(row);
            write_rows(&path, &rows)?;
        }
    }
    let table = table(&settings, &rows, evaluations);
    disk::write(&out.join(TABLE), table.as_bytes())?;
    print!("{table}");
    Ok(())
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
        "| student | students | steps | evaluations | Fréchet distance | class accuracy |\n".to_owned();
    table += "| --- | --- | --- | --- | --- | --- |\n";
    for setting in settings {
        let of_setting: Vec<&Row> =
            rows.iter().filter(|row| row.setting == *setting && row.budget == budget).collect();
        if of_setting.is_empty() {
            continue;
        }
        let spread = |value: &dyn Fn(&Row) -> f64| {
            Spread::of(&of_setting.iter().map(|row| value(row)).collect::<Vec<_>>())
        };
        let name = match setting {
            Setting::Curriculum { threshold } => format!("curriculum, T = {threshold} dB"),
            Setting::Fixed { step_size } => format!("fixed steps, s = {step_size}"),
        };
        let frechet = spread(&|row| row.frechet);
        let accuracy = spread(&|row| row.accuracy.unwrap_or(f64::NAN));
        let accuracy = match accuracy.mean.is_nan() {
            true => "–".to_owned(),
            false => format!("{:.1} ± {:.1} %", 100.0 * accuracy.mean, 100.0 * accuracy.deviation),
        };
        table += &format!(
            "| {name} | {} | {:.0} | {:.0} | {:.2} ± {:.2} | {accuracy} |\n",
            of_setting.len(),
            spread(&|row| row.steps as f64).mean,
            spread(&|row| row.evaluations as f64).mean,
            frechet.mean,
            frechet.deviation,
        );
    }
    table
}
