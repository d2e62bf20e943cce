//! Image quality metrics: distances between two sets of images in the feature space of a pretrained network.
//!
//! An [`Extractor`] turns images into *features*, and every metric is computed from features. Metrics of different
//! extractors cannot be compared, so [`Figures`] names the extractor. The Fréchet distance is the FID only with the
//! Inception-v3 network of [`inception`].
//!
//! | metric | module | source |
//! |---|---|---|
//! | Fréchet distance | [`frechet`] | Heusel et al., arXiv 1706.08500 |
//! | kernel distance, unbiased | [`kernel`] | Bińkowski et al., arXiv 1801.01401 |
//! | precision and recall | [`manifold`] | Kynkäänniemi et al., arXiv 1904.06991 |
//! | density and coverage | [`manifold`] | Naeem et al., arXiv 2002.09797 |
//! | inception score | [`score`] | Salimans et al., arXiv 1606.03498 |
//!
//! Mean, covariance and the sums of the inception score are accumulated in `f64` over all images. The other metrics
//! compare pairs of images and use the first images of a set.

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

/// Why a metric cannot be computed.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// Features have different lengths.
    #[error("features: expected {expected} values an image, found {found}")]
    Width {
        /// Values per image in one set.
        expected: usize,
        /// Values per image in the other set.
        found: usize,
    },
    /// A set has too few images.
    #[error("{figure}: expected at least {expected} images, found {found}")]
    TooFew {
        /// Name of the metric.
        figure: &'static str,
        /// Smallest number of images.
        expected: usize,
        /// Number of images in the set.
        found: usize,
    },
    /// Features or statistics contain NaN or infinity.
    #[error("{0}: expected finite numbers, found NaN or infinity")]
    NotFinite(&'static str),
    /// A file of statistics or of an extractor is invalid.
    #[error("{0}")]
    File(String),
    /// The sampler failed.
    #[error(transparent)]
    Sampler(#[from] crate::sampler::SamplerError),
}
