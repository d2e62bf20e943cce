//! The report of a training run: one self-contained HTML page.
//!
//! [`Report`] is plain data and [`Report::to_html`] is a pure function: this module reads no files and no clock. The
//! page loads no resources: images are data URIs and charts are inline SVG. All strings are escaped.

use serde::{Deserialize, Serialize};

mod axis;
mod chart;
pub mod events;
mod page;
mod series;
#[cfg(test)]
mod tests;

/// Contents of the page. For an unfinished run, the later parts are empty, and the page says so.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Name of the run or its preset, such as `cifar10`.
    pub title: String,
    /// One sentence that describes the run.
    pub summary: String,
    /// The command line of the run.
    pub command: String,
    /// Version of the program.
    pub version: String,
    /// Key figures as `(label, value)`, such as `("Parameters", "35.7 M")`, in display order.
    pub tiles: Vec<(String, String)>,
    /// The resolved configuration, as TOML.
    pub config_toml: String,
    /// Samples of student and teacher from the same seeds.
    pub pictures: Pictures,
    /// The same samples at several steps of training, earliest first.
    pub growth: Vec<Growth>,
    /// Log of the teacher's training, one point per logged step.
    pub teacher: Vec<TeacherPoint>,
    /// Log of the distillation, one point per logged step.
    pub distill: Vec<DistillPoint>,
    /// Log of the adversarial fine-tuning, one point per logged step; empty without this stage.
    pub finish: Vec<FinishPoint>,
    /// KDC and teacher steps against `t`; `None` until they are measured.
    pub curriculum: Option<Curves>,
    /// Seconds after which a browser reloads the page of an unfinished run.
    pub reload_seconds: Option<u64>,
}

/// Samples of student and teacher. Equal cells of both grids have the same seed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pictures {
    /// `None` if there is no student yet.
    pub student: Option<Grid>,
    /// `None` if there is no teacher yet.
    pub teacher: Option<Grid>,
    /// Labels of the grid rows from top to bottom, one per class; empty without classes. All rows have the same height.
    pub rows: Vec<String>,
    /// A caption for both grids, such as `Seeds 0 to 63, sampled from EMA 0.9999.`
    pub note: String,
}

/// An image grid of samples and its cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    /// Network evaluations (NFE) per image.
    pub steps: u32,
    /// Wall-clock milliseconds per image, if measured.
    pub ms_per_image: Option<f64>,
    /// An encoded PNG file.
    pub png: Vec<u8>,
}

/// Samples at one step of training.
#[derive(Clone, Debug, PartialEq)]
pub struct Growth {
    /// Images trained on so far.
    pub images: u64,
    /// An encoded PNG file.
    pub png: Vec<u8>,
}

/// One logged step of the adversarial fine-tuning (PAPER.md §10).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FinishPoint {
    /// Images trained on so far.
    pub images: u64,
    /// Loss of the student.
    pub loss: f64,
    /// Loss of the discriminator.
    pub discriminator: f64,
}

/// One logged step of the teacher's training (PAPER.md §2).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TeacherPoint {
    /// Images trained on so far.
    pub images: u64,
    /// Mean squared error of the velocity.
    pub loss: f64,
}

/// One logged step of the distillation (PAPER.md §5); means over the batch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct DistillPoint {
    /// Images trained on so far.
    pub images: u64,
    /// Distance between the student's jump and its target.
    pub loss: f64,
    /// KDC at the last teacher step.
    pub kdc: f64,
    /// Teacher steps per image.
    pub teacher_steps: f64,
}

/// KDC against `t` with curriculum and with a fixed step, measured with the same networks (PAPER.md §7, claim 1).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Curves {
    /// Threshold T of the curriculum.
    pub threshold: f64,
    /// With the curriculum: the teacher steps until KDC reaches T or time reaches 1.
    pub curriculum: Vec<KdcBin>,
    /// With a fixed step: the teacher takes exactly one step.
    pub fixed: Vec<KdcBin>,
}

impl Curves {
    /// The curves as a JSON document.
    pub fn to_json(&self) -> String {
        #[expect(clippy::expect_used, reason = "a struct of numbers is valid JSON")]
        serde_json::to_string_pretty(self).expect("curves are valid JSON")
    }
}

/// Means over the images whose `t` is in one interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct KdcBin {
    /// Centre of the interval, in [0, 1].
    pub t: f64,
    /// Mean KDC at the last teacher step.
    pub kdc: f64,
    /// Mean teacher steps per image.
    pub teacher_steps: f64,
    /// Number of images measured. A bin without images is not drawn.
    pub images: usize,
}

/// Why a page cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// An image is not a PNG file or has no pixels.
    #[error(
        "report picture `{picture}`: expected a PNG file with at least one pixel, found {length} bytes of something else"
    )]
    NotPng {
        /// Name of the image.
        picture: String,
        /// Its size in bytes.
        length: usize,
    },
    /// Drawing a chart failed.
    #[error("report chart `{chart}`: {reason}")]
    Chart {
        /// The chart's title.
        chart: String,
        /// Message of the drawing library.
        reason: String,
    },
}

impl Report {
    /// Renders the page, the contents of `report.html`.
    ///
    /// Charts omit values that are not finite, and the page states how many. A series without values is replaced by "no
    /// data yet".
    ///
    /// # Errors
    /// [`ReportError::NotPng`] if an image is not a PNG file, [`ReportError::Chart`] if drawing fails.
    pub fn to_html(&self) -> Result<String, ReportError> {
        page::write(self)
    }
}
