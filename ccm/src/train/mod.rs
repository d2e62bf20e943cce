//! Training: the state of a network in training, its stages, checkpoints, and runs from images to a report.
//!
//! To read the method, read [`distill`] beside [`crate::method`] and PAPER.md §5; [`teacher`] is §2. [`state`] is the
//! step that both stages share, [`batches`] gives it images, and [`run`] is the order in which all of it happens.

pub mod batches;
pub mod checkpoint;
pub mod claims;
pub mod distill;
pub mod error;
pub mod folder;
pub mod given;
pub mod kdc_curve;
pub mod metrics_log;
pub mod run;
pub mod samples;
pub mod state;
pub mod summary;
pub mod teacher;
pub mod trial;
