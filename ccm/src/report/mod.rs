//! The report of a training run: one self-contained HTML page.
//!
//! [`Report`] is plain data and [`Report::to_html`] is a pure function of it: this module reads no file, asks
//! no clock and knows nothing of how the numbers were made. The page loads nothing from anywhere. Pictures
//! are data URIs, charts are inline SVG, and every string that is handed in is escaped.

use serde::{Deserialize, Serialize};

mod axis;
mod chart;
mod page;
mod series;
#[cfg(test)]
mod tests;

/// Everything the page shows. A run that is not finished leaves the later parts empty, and the page says so.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// The run's name or its preset, e.g. `cifar10`.
    pub title: String,
    /// What was trained, in one plain sentence.
    pub summary: String,
    /// The command line that made the run, as a person would type it.
    pub command: String,
    /// The version of the program that made the run.
    pub version: String,
    /// Key figures as `(label, value)`, e.g. `("Parameters", "35.7 M")`; shown in this order.
    pub tiles: Vec<(String, String)>,
    /// The resolved configuration, as TOML.
    pub config_toml: String,
    /// Student and teacher from the same seeds.
    pub pictures: Pictures,
    /// The same samples at several moments of training, earliest first.
    pub growth: Vec<Growth>,
    /// The teacher's training, one point per logged step.
    pub teacher: Vec<TeacherPoint>,
    /// The distillation, one point per logged step.
    pub distill: Vec<DistillPoint>,
    /// KDC and teacher steps against time; `None` until they have been measured.
    pub curriculum: Option<Curves>,
}

/// The student's samples beside the teacher's. Both grids hold the same seeds in the same cells.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pictures {
    /// `None` while there is no student.
    pub student: Option<Grid>,
    /// `None` while there is no teacher.
    pub teacher: Option<Grid>,
    /// Names of the grids' rows from top to bottom, one per class; empty without classes. Rows share the
    /// picture's height equally.
    pub rows: Vec<String>,
    /// What both grids have in common, e.g. `Seeds 0 to 63, sampled from EMA 0.9999.`
    pub note: String,
}

/// One picture of many samples, and what it cost to make.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    /// Network evaluations (NFE) per image.
    pub steps: u32,
    /// Wall-clock milliseconds per image, where it was measured.
    pub ms_per_image: Option<f64>,
    /// An encoded PNG file.
    pub png: Vec<u8>,
}

/// Samples at one moment of training.
#[derive(Clone, Debug, PartialEq)]
pub struct Growth {
    /// Images seen by then.
    pub images: u64,
    /// An encoded PNG file.
    pub png: Vec<u8>,
}

/// One logged step of the teacher's training (PAPER.md §2).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TeacherPoint {
    /// Images seen so far.
    pub images: u64,
    /// Mean squared error of the velocity.
    pub loss: f64,
}

/// One logged step of the distillation (PAPER.md §5); means over the batch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct DistillPoint {
    /// Images seen so far.
    pub images: u64,
    /// Distance between the student's jump and its target.
    pub loss: f64,
    /// KDC where the teacher stopped.
    pub kdc: f64,
    /// Teacher steps per image.
    pub teacher_steps: f64,
}

/// KDC against time in both modes, measured with the same networks (PAPER.md §7, claim 1).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Curves {
    /// The curriculum's threshold T.
    pub threshold: f64,
    /// The teacher steps until KDC reaches T or time reaches 1.
    pub curriculum: Vec<KdcBin>,
    /// The teacher takes exactly one step.
    pub fixed: Vec<KdcBin>,
}

impl Curves {
    /// The curves as a JSON document.
    pub fn to_json(&self) -> String {
        #[expect(clippy::expect_used, reason = "numbers become JSON")]
        serde_json::to_string_pretty(self).expect("curves have string keys only")
    }
}

/// The images whose `t` fell into one interval of time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct KdcBin {
    /// Centre of the interval, in [0, 1].
    pub t: f64,
    /// Mean KDC where the teacher stopped.
    pub kdc: f64,
    /// Mean teacher steps per image.
    pub teacher_steps: f64,
    /// How many images were measured; a bin without any is not drawn.
    pub images: usize,
}

/// Why a page could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// A picture is not a PNG file, or it has no pixels.
    #[error(
        "report picture `{picture}`: expected a PNG file with at least one pixel, found {length} bytes of something else"
    )]
    NotPng {
        /// Which picture.
        picture: String,
        /// Its length in bytes.
        length: usize,
    },
    /// A chart could not be drawn.
    #[error("report chart `{chart}`: {reason}")]
    Chart {
        /// The chart's title.
        chart: String,
        /// What the drawing library said.
        reason: String,
    },
}

impl Report {
    /// The whole page, ready to be written to `report.html`.
    ///
    /// Numbers that are not finite are left out of the charts, and the page says how many; a series without
    /// any usable number becomes the words "no data yet".
    ///
    /// # Errors
    /// [`ReportError::NotPng`] for a picture that no browser would show, [`ReportError::Chart`] if drawing
    /// fails.
    pub fn to_html(&self) -> Result<String, ReportError> {
        page::write(self)
    }
}
