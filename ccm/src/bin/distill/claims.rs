//! `distill claims`: compares the curriculum with fixed steps, from one teacher and at equal cost (PAPER.md §7, claim
//! 2).

use std::path::PathBuf;
use std::sync::Arc;

use ccm::config::{Config, DistillConfig};
use ccm::data::{Examples, ImageShape};
use ccm::method::distance::DistanceKind;
use ccm::metrics::Collection;
use ccm::metrics::evaluation::Reference;
use ccm::metrics::extractor::fingerprint;
use ccm::train::claims::{Comparison, Record, Setting, Steps, Terms};
use ccm::train::folder::read_config;
use ccm::train::given::Given;
use ccm::train::group::Alone;
use ccm::train::run::{Run, suit};

use crate::Failure;
use crate::data::load_data;
use crate::device::{self, Choice};
use crate::extractor::{LEAST_IMAGES, open_extractor};
use crate::progress::counter;
use crate::sample::backend;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Folder of a run, whose teacher and settings are used
    run: PathBuf,
    /// Feature extractor, as for `eval`
    #[arg(long, value_name = "FILE")]
    features: PathBuf,
    /// Thresholds T of the curriculum, in dB
    #[arg(long, value_delimiter = ',', default_values_t = [50.0, 60.0, 70.0])]
    thresholds: Vec<f64>,
    /// Step sizes s of the fixed steps
    #[arg(long, value_delimiter = ',', default_values_t = [0.03, 0.1, 0.3])]
    step_sizes: Vec<f64>,
    /// More distances to compare, each with the run's curriculum. The run's settings name the weights of LPIPS
    #[arg(long, value_delimiter = ',')]
    distances: Vec<String>,
    /// Students per setting
    #[arg(long, default_value_t = 3)]
    seeds: u64,
    /// Network evaluations per student: of the student, the teacher and the target, counted per image. Two passes
    /// through the teacher's encoder count as one. The LPIPS network does not count
    #[arg(long, default_value_t = 500_000)]
    evaluations: u64,
    /// Images generated to evaluate each student
    #[arg(long, default_value_t = 5000)]
    count: usize,
    /// Folder for the rows and the table. Existing rows are not computed again
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Device; `auto` is a hardware GPU if there is one, otherwise the CPU
    #[arg(long, default_value = "auto")]
    device: Choice,
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    arguments.check()?;
    let mut config = read_config(&arguments.run)?;
    config.validate()?;
    if config.data.captions {
        return Err(format!("{}: expected a run on images with classes", arguments.run.display()).into());
    }
    let mut given = Given::read(&config)?;
    let settings = arguments.settings(&config, &mut given)?;
    let teacher = given.teacher_of_run(&config, &arguments.run)?;
    let opened = device::open(arguments.device)?;
    let extractor =
        open_extractor(&arguments.features, ImageShape::of(&given.spec(&config)), &opened.device)?;
    let terms = Terms {
        features: extractor.name(),
        budget: arguments.evaluations,
        images: arguments.count,
        teacher: fingerprint(teacher.tensors.iter().map(|tensor| &tensor.values)),
        config: config.clone(),
    };
    let mut record = Record::open(&arguments.out, terms).map_err(|error| format!("--out: {error}"))?;

    let [data, held_out] = load_data(&config, &given, &arguments.run, false)?;
    suit(&mut config, &given, &data)?;
    println!("device: {}; features: {}", opened.name, record.terms().features);
    let threads = opened.threads.map_or(1, |own| config.run.threads.unwrap_or(own));
    let Examples::Images(images) = &data else {
        return Err(format!("{}: expected a run on images with classes", arguments.run.display()).into());
    };
    let real = Collection::of_data(&*extractor, images, &opened.device, |_| {});
    let real = real.and_then(|real| real.gaussian()).map_err(|error| format!("data.source: {error}"))?;
    let (folder, command, device) = (arguments.run, String::new(), opened.device);
    let [data, held_out] = [data, held_out].map(Arc::new);
    let (given, group) = (Arc::new(given), Arc::new(Alone));
    let mut comparison = Comparison {
        run: Run { config: config.clone(), folder, device, threads, group, given, data, held_out, command },
        config,
        teacher,
        extractor,
        reference: Reference::Statistics(real),
        backend: backend(arguments.device),
    };
    for seed in 0..arguments.seeds {
        for &setting in settings.iter().filter(|setting| !record.has(**setting, seed)).collect::<Vec<_>>() {
            let bar = counter("student");
            bar.set_length(arguments.evaluations);
            let row = comparison.row(setting, seed, record.terms(), &mut |spent| bar.set_position(spent))?;
            bar.finish_and_clear();
            println!("{}", record.add(row)?);
        }
    }
    print!("{}", record.write_table(&settings)?);
    Ok(())
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

    /// The settings to compare, without duplicates. Each is a valid configuration of the run. Reads the weights of
    /// their distances into `given`.
    fn settings(&self, config: &Config, given: &mut Given) -> Result<Vec<Setting>, Failure> {
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
            // The run's own distance, for comparison.
            add("--distances", curriculum(of_run), own)?;
            add("--distances", curriculum(of_run), distance)?;
            given.read_distance(&named).map_err(|error| format!("--distances: {error}"))?;
        }
        Ok(settings)
    }
}
