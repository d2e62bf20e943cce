//! What a run trains on: images with classes, or latents with captions.

use std::sync::Arc;

use super::encoded::{Encoded, Texts};
use super::{DataError, Dataset, ImageShape, Read, Streamed};
use crate::noise::Noise;

/// The training images of a run.
#[derive(Debug)]
pub enum Examples {
    /// Pixels in memory, with classes.
    Images(Dataset),
    /// Images on disk, with classes.
    Streamed(Streamed),
    /// A pipeline's latents, with captions.
    Encoded(Encoded),
}

impl From<Dataset> for Examples {
    fn from(images: Dataset) -> Self {
        Self::Images(images)
    }
}

impl From<Streamed> for Examples {
    fn from(images: Streamed) -> Self {
        Self::Streamed(images)
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
            Self::Streamed(images) => images.len(),
            Self::Encoded(encoded) => encoded.len(),
        }
    }

    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Channels, height and width of an image or of latents.
    pub fn shape(&self) -> [usize; 3] {
        let of_images = |ImageShape { channels, height, width }| [channels, height, width];
        match self {
            Self::Images(images) => of_images(images.shape()),
            Self::Streamed(images) => of_images(images.shape()),
            Self::Encoded(encoded) => encoded.shape(),
        }
    }

    /// Names of the classes; empty for captioned images.
    pub fn classes(&self) -> &[String] {
        match self {
            Self::Images(images) => images.classes(),
            Self::Streamed(images) => images.classes(),
            Self::Encoded(_) => &[],
        }
    }

    /// The texts of captioned images.
    pub fn texts(&self) -> Option<&Arc<Texts>> {
        match self {
            Self::Images(_) | Self::Streamed(_) => None,
            Self::Encoded(encoded) => Some(encoded.texts()),
        }
    }

    /// The class or the number of the caption of an image.
    pub fn label(&self, index: usize) -> u32 {
        match self {
            Self::Images(images) => images.label(index),
            Self::Streamed(images) => images.label(index),
            Self::Encoded(encoded) => encoded.caption(index),
        }
    }

    /// The order of an epoch of batches of `size` images.
    pub(crate) fn order(&self, noise: &mut Noise, size: usize) -> Vec<usize> {
        match self {
            Self::Streamed(images) => images.order(noise, size),
            Self::Images(_) | Self::Encoded(_) => noise.permutation(self.len()),
        }
    }

    /// Number of images of an epoch of batches of `size` images.
    pub(crate) fn epoch(&self, size: usize) -> usize {
        match self {
            Self::Streamed(images) => images.len() / size * size,
            Self::Images(_) | Self::Encoded(_) => self.len(),
        }
    }

    /// The images at `indices`, `[B, C, H, W]`, pixels in [-1, 1] or latents, with their classes or the numbers of their captions. See
    /// [`Dataset::batch`] for `flip`, which is for pixels.
    ///
    /// # Errors
    /// Too many images on disk that cannot be read.
    pub fn batch(&self, indices: &[usize], flip: &[bool]) -> Result<Read, DataError> {
        let values = match self {
            Self::Images(images) => images.batch(indices, flip),
            Self::Streamed(images) => return images.batch(indices, flip),
            Self::Encoded(encoded) => encoded.batch(indices),
        };
        Ok(Read { values, labels: indices.iter().map(|&index| self.label(index)).collect() })
    }

    /// Messages about images that could not be read since the last call.
    pub fn messages(&self) -> Vec<String> {
        match self {
            Self::Streamed(images) => images.messages(),
            Self::Images(_) | Self::Encoded(_) => Vec::new(),
        }
    }
}
