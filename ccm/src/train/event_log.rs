//! Writes metrics and samples as TensorBoard's event files.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::batches::StageKind;
use super::metrics_log::Line;
use crate::disk::{self, DiskError};
use crate::report::events::{self, Value};

/// The event file of a stage. Steps are counted in images, so that runs with different batch sizes can be compared.
pub struct EventLog {
    path: PathBuf,
    file: File,
    stage: StageKind,
}

impl EventLog {
    /// Starts a file in the stage's folder below `folder`, to continue after `images` images.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn open(folder: &Path, stage: StageKind, images: u64) -> Result<Self, DiskError> {
        let folder = folder.join(stage.name());
        disk::make(&folder)?;
        // TensorBoard reads the files of a folder in the order of their names.
        const FIRST_PART: &str = "events.out.tfevents.";
        let number_of = |name: &str| name.strip_prefix(FIRST_PART)?.split('.').next()?.parse::<u64>().ok();
        let names = fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
        let last = names.filter_map(|name| number_of(&name.to_string_lossy())).max();
        let number = last.map_or(0, |last| last + 1);
        let path = folder.join(format!("{FIRST_PART}{number:010}.ccm"));
        let file =
            OpenOptions::new().create_new(true).append(true).open(&path).map_err(DiskError::of(&path))?;
        let mut log = Self { path, file, stage };
        log.write(&events::version(now()))?;
        log.write(&events::start(now(), images))?;
        Ok(log)
    }

    /// Adds a line of metrics.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn line(&mut self, line: &Line) -> Result<(), DiskError> {
        let metrics = [
            ("loss", Some(line.loss)),
            ("gradient_norm", Some(line.gradient_norm)),
            ("kdc", line.kdc),
            ("teacher_steps", line.teacher_steps),
            ("discriminator_loss", line.discriminator_loss),
            ("loss_scale", line.loss_scale),
            ("skipped_steps", line.skipped_steps.map(|steps| steps as f64)),
            ("images_per_second", Some(line.images_per_second)),
        ];
        let named =
            |name: &str, value: f64| (format!("{}/{name}", self.stage.name()), Value::Scalar(value as f32));
        let mut values: Vec<_> =
            metrics.into_iter().filter_map(|(name, value)| Some(named(name, value?))).collect();
        for (rank, seconds) in line.rank_seconds.iter().enumerate() {
            values.push(named(&format!("rank_{rank}_seconds"), *seconds));
        }
        self.write(&events::values(now(), line.images, &values))
    }

    /// Adds a grid of samples, a PNG file of this width, height and number of channels.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn samples(
        &mut self,
        images: u64,
        [width, height, channels]: [usize; 3],
        png: &[u8],
    ) -> Result<(), DiskError> {
        let size = [width as u32, height as u32];
        let value = Value::Image { size, channels: channels as u32, png };
        self.write(&events::values(now(), images, &[(format!("{}/samples", self.stage.name()), value)]))
    }

    fn write(&mut self, record: &[u8]) -> Result<(), DiskError> {
        self.file.write_all(record).map_err(DiskError::of(&self.path))
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
