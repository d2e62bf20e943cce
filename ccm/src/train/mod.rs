//! Everything that needs Burn: the network, the teacher's and the student's training, and a run from images to
//! a report.
//!
//! To read the method, read [`distill`], then [`curriculum`] and [`kdc`] beside PAPER.md §4 and §5; [`teacher`],
//! [`flow`] and [`coupling`] are §1 and §2, [`distance`] and [`discriminator`] what a student is judged by (§6). [`trainee`] is the step that both stages share, [`batches`] what they
//! learn from, [`run`] the order in which all of it happens.

pub mod batches;
pub mod checkpoint;
pub mod coupling;
pub mod curriculum;
pub mod discriminator;
pub mod disk;
pub mod distance;
pub mod distill;
pub mod ema;
pub mod error;
pub mod flow;
pub mod folder;
pub mod import;
pub mod kdc;
pub mod kdc_curve;
pub mod kernels;
pub(crate) mod layers;
pub mod lpips;
pub mod metrics_log;
pub mod ops;
pub mod optimizer;
pub mod run;
pub mod samples;
pub mod summary;
pub mod teacher;
pub mod trainee;
pub mod trial;
pub mod unet;
