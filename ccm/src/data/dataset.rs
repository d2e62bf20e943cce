//! A data set in memory: all images as bytes, read in batches.
//!
//! Reads no files; [`super::load`] and [`super::shapes()`] create data sets.

use std::fmt;

use super::{DataError, Split};
use crate::model::NetworkSpec;

/// Largest height or width of an image, in pixels.
const LARGEST_SIDE: usize = 4096;

/// Shape of all images of a data set: `[channels, height, width]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageShape {
    /// 1 (grey) or 3 (RGB).
    pub channels: usize,
    /// Height in pixels.
    pub height: usize,
    /// Width in pixels.
    pub width: usize,
}

impl fmt::Display for ImageShape {
    /// `CxHxW`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}x{}", self.channels, self.height, self.width)
    }
}

impl ImageShape {
    /// Shape of the images of a network.
    #[must_use]
    pub fn of(network: &NetworkSpec) -> Self {
        let [channels, height, width] = network.image();
        Self { channels, height, width }
    }

    /// Size of an image in bytes: `channels * height * width`.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.channels * self.height * self.width
    }

    /// # Errors
    /// [`DataError::Shape`] unless `channels` is 1 or 3 and both sides are in `1..=4096`.
    pub(crate) fn validate(&self) -> Result<(), DataError> {
        let side = 1..=LARGEST_SIDE;
        if matches!(self.channels, 1 | 3) && side.contains(&self.height) && side.contains(&self.width) {
            return Ok(());
        }
        let Self { channels, height, width } = *self;
        Err(DataError::Shape { channels, height, width, largest: LARGEST_SIDE })
    }

    /// Allocates zeroed pixels for `images` images.
    ///
    /// # Errors
    /// [`DataError::TooLarge`] if the allocation fails.
    pub(super) fn allocate(&self, images: usize) -> Result<Vec<u8>, DataError> {
        let Self { channels, height, width } = *self;
        let too_large = || DataError::TooLarge { images, channels, height, width };
        let bytes = images.checked_mul(self.bytes()).ok_or_else(too_large)?;
        let mut pixels = Vec::new();
        pixels.try_reserve_exact(bytes).map_err(|_| too_large())?;
        pixels.resize(bytes, 0);
        Ok(pixels)
    }
}

/// Labelled images of one shape, in memory as bytes `[N, C, H, W]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    pixels: Vec<u8>,
    labels: Vec<u32>,
    classes: Vec<String>,
    shape: ImageShape,
    split: Split,
}

impl Dataset {
    /// Creates a data set from `pixels` `[labels.len(), C, H, W]`; every label is below `classes.len()`.
    pub(super) fn new(
        pixels: Vec<u8>,
        labels: Vec<u32>,
        classes: Vec<String>,
        shape: ImageShape,
        split: Split,
    ) -> Self {
        assert_eq!(pixels.len(), labels.len() * shape.bytes());
        assert!(labels.iter().all(|&label| (label as usize) < classes.len()));
        Self { pixels, labels, classes, shape, split }
    }

    /// Number of images, N.
    #[must_use]
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether the data set has no images. A loaded data set has at least one.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Shape of every image.
    #[must_use]
    pub fn shape(&self) -> ImageShape {
        self.shape
    }

    /// The split of the source.
    #[must_use]
    pub fn split(&self) -> Split {
        self.split
    }

    /// Names of the classes, indexed by label. Both splits of a source have the same classes.
    #[must_use]
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Labels `[N]`, each below `classes().len()`.
    #[must_use]
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// Label of image `index`.
    ///
    /// # Panics
    /// If `index` is not below [`len`](Self::len).
    #[must_use]
    pub fn label(&self, index: usize) -> u32 {
        self.labels[index]
    }

    /// Pixels of image `index`: `[C, H, W]` in 0..=255.
    ///
    /// # Panics
    /// If `index` is not below [`len`](Self::len).
    #[must_use]
    pub fn image(&self, index: usize) -> &[u8] {
        let bytes = self.shape.bytes();
        &self.pixels[index * bytes..][..bytes]
    }

    /// Size of pixels and labels in bytes.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.pixels.len() + size_of_val(self.labels.as_slice())
    }

    /// The images at `indices` as `[B, C, H, W]` in [-1, 1]; byte `x` becomes `x / 127.5 - 1`.
    ///
    /// Image `k` of the batch is mirrored horizontally if `flip[k]` is true. `flip` may be shorter than the batch; the
    /// remaining images are not mirrored.
    ///
    /// # Panics
    /// If an index is not below [`len`](Self::len).
    #[must_use]
    pub fn batch(&self, indices: &[usize], flip: &[bool]) -> Vec<f32> {
        let images = indices.iter().map(|&index| self.image(index));
        values_of(images, self.shape, flip, indices.len())
    }
}

/// Images as values in [-1, 1]; see [`Dataset::batch`].
pub(super) fn to_values(pixels: &[u8], shape: ImageShape, flip: &[bool]) -> Vec<f32> {
    let size = shape.bytes();
    values_of(pixels.chunks_exact(size), shape, flip, pixels.len() / size)
}

fn values_of<'a>(
    images: impl Iterator<Item = &'a [u8]>,
    shape: ImageShape,
    flip: &[bool],
    count: usize,
) -> Vec<f32> {
    let to_float = |byte: &u8| f32::from(*byte) / 127.5 - 1.0;
    let mut values = Vec::with_capacity(count * shape.bytes());
    for (position, image) in images.enumerate() {
        let mirrored = flip.get(position).copied().unwrap_or(false);
        for row in image.chunks_exact(shape.width) {
            if mirrored {
                values.extend(row.iter().rev().map(to_float));
            } else {
                values.extend(row.iter().map(to_float));
            }
        }
    }
    values
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn two_images() -> Dataset {
        let shape = ImageShape { channels: 3, height: 1, width: 2 };
        let pixels = vec![0, 255, 10, 20, 30, 40, 51, 102, 153, 204, 1, 2];
        Dataset::new(pixels, vec![1, 0], vec!["a".into(), "b".into()], shape, Split::Train)
    }

    #[test]
    fn a_batch_holds_the_requested_images_scaled_to_minus_one_to_one() {
        let batch = two_images().batch(&[1, 0, 1], &[]);
        assert_eq!(batch.len(), 3 * 6);
        assert_eq!(batch[6..8], [-1.0, 1.0]);
        assert!((batch[0] - -0.6).abs() < 1e-6, "51 is a fifth of 255, so -0.6: {}", batch[0]);
        assert_eq!(batch[..6], batch[12..]);
        assert!(batch.iter().all(|value| (-1.0..=1.0).contains(value)));
    }

    #[test]
    fn a_flip_mirrors_the_rows_of_the_flagged_images_only() {
        let data = two_images();
        let plain = data.batch(&[0, 0], &[]);
        let flipped = data.batch(&[0, 0], &[false, true]);
        assert_eq!(flipped[..6], plain[..6]);
        assert_eq!(flipped[6..], [plain[1], plain[0], plain[3], plain[2], plain[5], plain[4]]);
    }

    #[test]
    fn memory_counts_pixels_and_labels() {
        assert_eq!(two_images().memory(), 12 + 8);
    }

    #[test]
    fn unsupported_shapes_are_errors() {
        for (channels, height, width) in [(2, 8, 8), (3, 0, 8), (1, 8, 5000), (0, 1, 1)] {
            assert!(matches!(
                ImageShape { channels, height, width }.validate(),
                Err(DataError::Shape { .. })
            ));
        }
    }

    #[test]
    fn an_allocation_that_fails_is_an_error() {
        let shape = ImageShape { channels: 3, height: 64, width: 64 };
        assert!(matches!(shape.allocate(usize::MAX / 2), Err(DataError::TooLarge { .. })));
        assert!(matches!(shape.allocate(usize::MAX / 12288), Err(DataError::TooLarge { .. })));
    }
}
