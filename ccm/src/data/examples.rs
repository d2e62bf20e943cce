//! What a run trains on: images with classes, or latents with captions.

use std::sync::Arc;

use super::encoded::{Encoded, Texts};
use super::{Dataset, ImageShape};

/// The training images of a run, in memory.
#[derive(Debug, Clone, PartialEq)]
pub enum Examples {
    /// Pixels, with classes.
    Images(Dataset),
    /// A pipeline's latents, with captions.
    Encoded(Encoded),
}

impl From<Dataset> for Examples {
    fn from(images: Dataset) -> Self {
        Self::Images(images)
    }
}

impl From<Encoded> for Examples {
    fn from(encoded: Encoded) -> Self {
        Self::Encoded(encoded)
    }
}

impl Examples {
    /// Number of images.
    pub fn len(&self) -> usize {
        match self {
            Self::Images(images) => images.len(),
            Self::Encoded(encoded) => encoded.len(),
        }
    }

    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Channels, height and width of an image or of latents.
    pub fn shape(&self) -> [usize; 3] {
        match self {
            Self::Images(images) => {
                let ImageShape { channels, height, width } = images.shape();
                [channels, height, width]
            }
            Self::Encoded(encoded) => encoded.shape(),
        }
    }

    /// Names of the classes; empty for captioned images.
    pub fn classes(&self) -> &[String] {
        match self {
            Self::Images(images) => images.classes(),
            Self::Encoded(_) => &[],
        }
    }

    /// The texts of captioned images.
    pub fn texts(&self) -> Option<&Arc<Texts>> {
        match self {
            Self::Images(_) => None,
            Self::Encoded(encoded) => Some(encoded.texts()),
        }
    }

    /// The class or the number of the caption of an image.
    pub fn label(&self, index: usize) -> u32 {
        match self {
            Self::Images(images) => images.label(index),
            Self::Encoded(encoded) => encoded.caption(index),
        }
    }

    /// The images at `indices`, `[B, C, H, W]`: pixels in [-1, 1], or latents. See [`Dataset::batch`] for `flip`, which is for
    /// pixels.
    pub fn batch(&self, indices: &[usize], flip: &[bool]) -> Vec<f32> {
        match self {
            Self::Images(images) => images.batch(indices, flip),
            Self::Encoded(encoded) => encoded.batch(indices),
        }
    }
}
