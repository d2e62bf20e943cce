//! Collects the results of a run for its report.

use std::path::{Path, PathBuf};

use super::batches::StageKind;
use super::error::RunError;
use super::folder::files;
use super::metrics_log::{self, Line};
use super::run::Run;
use super::samples::SampleGrid;
use super::stages::Basis;
use super::student::Student;
use crate::config::Config;
use crate::disk;
use crate::method::guidance::Teacher as Guided;
use crate::report::{Curves, DistillPoint, FinishPoint, Grid, Growth, Pictures, Report, TeacherPoint};
use crate::sampler::schedule::Solver;

/// Number of sample grids in the report that show the student's progress.
const GROWTH: usize = 6;

/// Writes `report.html`.
pub(super) fn write(run: &Run, basis: &Basis, curves: Option<Curves>) -> Result<(), RunError> {
    let lines = metrics_log::read(&run.folder.join(files::METRICS))?;
    let student = Student::read(&run.folder.join(files::STUDENT), &basis.trainable)?;
    let [height, width] = run.image_size();
    let SampleGrid { request, columns } = run.grid();
    let rows = request.labels.iter().step_by(columns.max(1));
    // A network may have more classes than the data set has class names.
    let class = |&label: &u32| {
        let name = run.data.classes().get(label as usize).cloned();
        name.unwrap_or_else(|| format!("class {label}"))
    };
    let rows: Vec<String> = match run.data.texts() {
        None => rows.map(class).collect(),
        Some(texts) => {
            let shown = request.texts.len() / columns.max(1);
            run.captions().into_iter().take(shown).map(|caption| texts.captions[caption].clone()).collect()
        }
    };
    let mut tiles_of_run =
        vec![("parameters".to_owned(), format!("{:.2} M", run.spec().parameters() as f64 / 1e6))];
    tiles_of_run.extend(tiles(&run.config, &lines));
    let mut report = Report {
        title: run.config.run.name.clone(),
        summary: format!(
            "A one-step image generator for {}x{} images of {}, {} a {} teacher{}.",
            width,
            height,
            run.config.data.source.as_deref().unwrap_or("the data"),
            if run.config.distill.model.is_some() {
                "fine-tuned from a given student of"
            } else {
                "distilled from"
            },
            run.prediction().kind(),
            match (&run.config.distill.model, run.config.finish.steps()) {
                (Some(_), _) => "",
                (None, 0) => " with the Curriculum Consistency Model",
                (None, _) => " with the Curriculum Consistency Model, and fine-tuned against a discriminator",
            },
        ),
        command: run.command.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
        tiles: tiles_of_run,
        config_toml: run
            .config
            .to_toml()
            .map_err(|source| RunError::Config { path: run.folder.join(files::CONFIG), source })?,
        pictures: Pictures {
            student: Some(grid(run, &student.denoiser(&run.device).into(), Solver::Jumps, 1)?),
            teacher: Some(grid(run, &run.guided_teacher(basis), Solver::Euler, run.config.run.report_steps)?),
            rows,
            note: "Both from the same noise: the same place in both grids is the same seed.".into(),
        },
        growth: growth(&run.config, &run.folder)?,
        curriculum: curves,
        ..Report::default()
    };
    add_logs(&mut report, &lines);
    Ok(disk::write(&run.folder.join(files::REPORT), report.to_html()?.as_bytes())?)
}

/// Adds the points of the charts.
pub(super) fn add_logs(report: &mut Report, lines: &[Line]) {
    let of = |stage: StageKind| lines.iter().filter(move |line| line.stage == stage.name());
    let point = |line: &Line| TeacherPoint { images: line.images, loss: line.loss };
    report.teacher = of(StageKind::Teacher).map(point).collect();
    let point = |line: &Line| DistillPoint {
        images: line.images,
        loss: line.loss,
        kdc: line.kdc.unwrap_or(f64::NAN),
        teacher_steps: line.teacher_steps.unwrap_or(f64::NAN),
    };
    report.distill = of(StageKind::Distill).map(point).collect();
    let point = |line: &Line| FinishPoint {
        images: line.images,
        loss: line.loss,
        discriminator: line.discriminator_loss.unwrap_or(f64::NAN),
    };
    report.finish = of(StageKind::Finish).map(point).collect();
}

fn grid(run: &Run, network: &Guided, solver: Solver, steps: usize) -> Result<Grid, RunError> {
    let images = run.grid().request.noise.len() / run.spec().image_len();
    let (picture, seconds) = run.sample_grid(network, solver, steps)?;
    let ms_per_image = Some(seconds * 1e3 / images.max(1) as f64);
    Ok(Grid { steps: steps as u32, ms_per_image, png: picture.to_png()? })
}

/// Up to [`GROWTH`] sample grids of the student, evenly spaced over distillation and fine-tuning.
pub(super) fn growth(config: &Config, folder: &Path) -> Result<Vec<Growth>, RunError> {
    let (distill, finish) = (&config.distill, &config.finish);
    let mut taken: Vec<(u64, PathBuf)> = Vec::new();
    let mut before = 0;
    for (stage, steps, batch) in [
        (StageKind::Distill, distill.steps(), distill.batch),
        (StageKind::Finish, finish.steps(), finish.batch),
    ] {
        let every = config.run.sample_every(batch);
        let last = (steps % every != 0).then_some(steps);
        for step in (1..=steps / every).map(|i| i * every).chain(last) {
            let path = folder.join(format!("{}/{}-{step:09}.png", files::SAMPLES, stage.name()));
            if path.exists() {
                taken.push((before + step * batch as u64, path));
            }
        }
        before = taken.last().map_or(0, |(images, _)| *images);
    }
    let Some(last) = taken.len().checked_sub(1) else { return Ok(Vec::new()) };
    let mut shown: Vec<usize> = (0..GROWTH).map(|i| i * last / (GROWTH - 1)).collect();
    shown.dedup();
    let picture = |i: usize| Ok(Growth { images: taken[i].0, png: disk::read(&taken[i].1)? });
    shown.into_iter().map(picture).collect()
}

/// The images, the time and the speed of each stage.
pub(super) fn tiles(config: &Config, lines: &[Line]) -> Vec<(String, String)> {
    let mut tiles = Vec::new();
    for (stage, who) in [
        (StageKind::Teacher, if config.teacher.trains_only_weaker() { "weaker teacher" } else { "teacher" }),
        (StageKind::Distill, "student"),
        (StageKind::Finish, "student in fine-tuning"),
    ] {
        let (mut images, mut seconds, mut last) = (0, 0.0, 0);
        for line in lines.iter().filter(|line| line.stage == stage.name()) {
            seconds += (line.images - last) as f64 / line.images_per_second;
            last = line.images;
            images = line.images;
        }
        if images > 0 {
            tiles.push((format!("images seen by the {who}"), images.to_string()));
            tiles.push((format!("training the {who}"), duration(seconds)));
            tiles.push((format!("{who}, images a second"), format!("{:.0}", images as f64 / seconds)));
        }
    }
    tiles
}

/// Formats a duration in seconds, such as `5 min 03 s`.
pub fn duration(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s:02} s"),
        (h, m, _) => format!("{h} h {m:02} min"),
    }
}
