//! Training: the state of a network in training, its stages, checkpoints, and runs from images to a report.
//!
//! [`teacher`] implements PAPER.md §2, [`distill`], with [`crate::method`], §5, and [`finish`] §10. [`state`] holds the
//! training step that all stages share, [`batches`] provides the images, and [`run`] executes the stages in order.

pub mod batches;
pub mod checkpoint;
pub mod claims;
pub mod distill;
pub mod drive;
pub mod encode;
pub mod error;
pub mod event_log;
mod exchange;
pub mod finish;
pub mod folder;
pub mod given;
pub mod group;
pub mod kdc_curve;
pub mod loss_scale;
pub mod memory;
pub mod metrics_log;
#[cfg(feature = "mpi")]
pub mod mpi;
pub mod replicas;
pub mod run;
pub mod samples;
mod stages;
pub mod state;
pub mod status;
mod student;
pub mod summary;
pub mod teacher;
mod teachers;
pub mod trainable;
pub mod trial;
pub mod workers;
