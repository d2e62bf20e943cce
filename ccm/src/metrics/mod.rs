//! Image quality metrics: distances between two sets of images in the feature space of a pretrained network.
//!
//! An [`Extractor`] turns images into *features*, and every figure is computed from features. A figure means nothing
//! without the name of its extractor, which [`Figures`] carries. Only with the Inception-v3 network of the field is a
//! Fréchet distance the FID.
//!
//! | figure | module | source |
//! |---|---|---|
//! | Fréchet distance | [`frechet`] | Heusel et al., arXiv 1706.08500 |
//! | kernel distance, unbiased | [`kernel`] | Bińkowski et al., arXiv 1801.01401 |
//! | precision and recall | [`manifold`] | Kynkäänniemi et al., arXiv 1904.06991 |
//! | density and coverage | [`manifold`] | Naeem et al., arXiv 2002.09797 |
//! | inception score | [`score`] | Salimans et al., arXiv 1606.03498 |
//!
//! Mean, covariance and the score's sums are accumulated in `f64`, image by image. The other figures compare pairs of
//! images, and use the first images of a set.

pub mod classifier;
pub mod evaluation;
pub mod extractor;
pub mod file;
pub mod frechet;
pub mod inception;
pub mod kernel;
pub mod manifold;
pub mod rows;
pub mod score;
pub mod statistics;

pub use evaluation::{Collection, Figures};
pub use extractor::{Extractor, Features};
pub use frechet::{Gaussian, Moments};
pub use rows::Rows;

/// Why a figure cannot be computed.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// Features of two sets are of different length.
    #[error("features: expected {expected} values an image, found {found}")]
    Width {
        /// Values of one set.
        expected: usize,
        /// Values of the other.
        found: usize,
    },
    /// A set is too small.
    #[error("{figure}: expected at least {expected} images, found {found}")]
    TooFew {
        /// The figure.
        figure: &'static str,
        /// Images that it takes.
        expected: usize,
        /// Images of the set.
        found: usize,
    },
    /// Features or statistics with infinities or without values.
    #[error("{0}: expected finite numbers, found others")]
    NotFinite(&'static str),
    /// A file of statistics or features that is none.
    #[error("{0}")]
    File(String),
    /// The sampler could not make images.
    #[error(transparent)]
    Sampler(#[from] crate::sampler::SamplerError),
}
