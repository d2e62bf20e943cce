//! One-step image generators: the Curriculum Consistency Model (Liu et al., "See Further When Clear", CVPR 2025,
//! arXiv 2412.06295), trained on any GPU that wgpu supports or on the CPU.
//!
//! A *teacher* is a flow-matching or diffusion model. It generates an image from noise in tens of network evaluations.
//! A *student*, distilled from it, takes one evaluation. The crate has two halves, which share the model file:
//!
//! ```text
//! images ──> teacher ──> student ──> model.safetensors ──> pixels
//!            └── train (Burn) ──┘        weights           sampler
//! ```
//!
//! | module | contents | may use |
//! |---|---|---|
//! | [`model`], [`noise`] | description of a model: network graphs, predictions; seeded noise | nothing |
//! | [`weights`] | tensors and model files in memory | `model` |
//! | [`sampler`] | sampling: plans, GPU and CPU executors | `model`, `weights`, `noise` |
//! | `pipeline` | text-to-image pipelines: tokenizers, text encoders, autoencoders around a sampler | `model`, `weights`, `sampler` |
//! | [`nn`] | networks on Burn tensors, kernels, the optimiser | `model`, `weights`, `noise` |
//! | [`method`] | the paper's method: flow, KDC, curriculum, distances, adversarial loss | `nn` and its dependencies |
//! | [`data`] | image data sets | `model`, `noise` |
//! | [`disk`], [`import`], [`export`] | file access; conversion from and to formats of other programs | `model`, `weights`; `export` also `sampler` |
//! | [`metrics`] | image quality metrics | all of these except `method` |
//! | [`config`], [`report`] | configuration and HTML report of a run | `model`, `method` |
//! | [`train`] | training state, stages, checkpoints, runs | everything |
//!
//! The feature `text` adds networks that read a text, with their text encoders and autoencoders; the feature `train`
//! everything that needs Burn. The feature `program` adds the dependencies of the command line
//! `distill`. Without them, the crate is only the sampler. `tests/tests/rooms.rs` checks the last column.
//!
//! # Example
//!
//! Trains a teacher of small coloured shapes and a one-step student, with a few steps each:
//!
//! ```
//! # #[cfg(feature = "train")]
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//!
//! use burn::tensor::Device;
//! use ccm::config::Config;
//! use ccm::data::{ImageShape, Split, shapes};
//! use ccm::train::given::Given;
//! use ccm::train::group::Alone;
//! use ccm::train::drive::Quiet;
//! use ccm::train::run::{Outcome, Run, suit};
//!
//! let tiny = ["teacher.kimg=0.008", "distill.kimg=0.008", "teacher.batch=4", "distill.batch=4", "run.report_steps=2"];
//! let mut config = Config::preset("shapes")?.with_overrides(&tiny.map(String::from))?;
//! let shape = ImageShape { channels: 3, height: 16, width: 16 };
//! let (data, held_out) = (shapes(64, shape, Split::Train, 0)?, shapes(16, shape, Split::HeldOut, 0)?);
//! let given = Given::default();
//! suit(&mut config, &given, &data.clone().into())?;
//! let folder = tempfile::tempdir()?;
//! let run = Run {
//!     config,
//!     folder: folder.path().join("run"),
//!     device: Device::flex(),
//!     threads: 2,
//!     group: Arc::new(Alone),
//!     given: Arc::new(given),
//!     data: Arc::new(data.into()),
//!     held_out: Arc::new(held_out.into()),
//!     command: "an example".into(),
//! };
//! assert_eq!(run.go(false, &mut Quiet)?, Outcome::Finished);
//! assert!(folder.path().join("run/student.safetensors").exists());
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "train"))]
//! # fn main() {}
//! ```

#[cfg(feature = "train")]
pub mod config;
#[cfg(feature = "train")]
pub mod data;
#[cfg(feature = "train")]
pub mod disk;
#[cfg(feature = "train")]
pub mod export;
#[cfg(feature = "train")]
pub mod import;
#[cfg(feature = "train")]
pub mod method;
#[cfg(feature = "train")]
pub mod metrics;
pub mod model;
#[cfg(feature = "train")]
pub mod nn;
pub mod noise;
#[cfg(feature = "text")]
pub mod pipeline;
#[cfg(feature = "train")]
pub mod report;
pub mod sampler;
pub(crate) mod simd;
#[cfg(feature = "train")]
pub mod train;
pub mod weights;

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::panic::catch_unwind;

    #[test]
    fn broken_invariants_and_overflows_panic_in_tests() {
        assert!(cfg!(debug_assertions), "`debug_assert!` is compiled in");
        assert!(catch_unwind(|| black_box(u8::MAX) + black_box(1)).is_err(), "sums are checked");
        assert!(catch_unwind(|| black_box(0usize) - black_box(1)).is_err(), "differences are checked");
    }
}
