//! A data set in memory: every image as bytes, ready to be handed out in batches.
//!
//! Nothing here touches a file; [`super::load`] and [`super::shapes()`] make one.

use std::fmt;

use super::{DataError, Split};
use crate::model::NetworkSpec;

/// The longest side of an image in a data set, in pixels.
const LARGEST_SIDE: usize = 4096;

/// The size that every image of a data set is brought to: `[channels, height, width]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageShape {
    /// 1 (grey) or 3 (red, green, blue).
    pub channels: usize,
    /// Rows, in pixels.
    pub height: usize,
    /// Columns, in pixels.
    pub width: usize,
}

impl fmt::Display for ImageShape {
    /// `CxHxW`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}x{}", self.channels, self.height, self.width)
    }
}

impl ImageShape {
    /// Of the images that such a network makes.
    #[must_use]
    pub fn of(network: &NetworkSpec) -> Self {
        let [channels, height, width] = network.image();
        Self { channels, height, width }
    }

    /// Bytes of one image: `channels * height * width`.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.channels * self.height * self.width
    }

    /// # Errors
    /// [`DataError::Shape`] unless there are 1 or 3 channels and 1 to 4096 pixels a side.
    pub(crate) fn validate(&self) -> Result<(), DataError> {
        let side = 1..=LARGEST_SIDE;
        if matches!(self.channels, 1 | 3) && side.contains(&self.height) && side.contains(&self.width) {
            return Ok(());
        }
        let Self { channels, height, width } = *self;
        Err(DataError::Shape { channels, height, width, largest: LARGEST_SIDE })
    }

    /// Zeroed room for `images` images.
    ///
    /// # Errors
    /// [`DataError::TooLarge`] when the memory is not to be had.
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

/// Labelled images, all of one shape, in memory as bytes: `[N, C, H, W]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    pixels: Vec<u8>,
    labels: Vec<u32>,
    classes: Vec<String>,
    shape: ImageShape,
    split: Split,
}

impl Dataset {
    /// `pixels` is `[labels.len(), C, H, W]` and every label is below `classes.len()`.
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

    /// Whether there are no images. A loaded data set always has some.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The shape of every image.
    #[must_use]
    pub fn shape(&self) -> ImageShape {
        self.shape
    }

    /// Which part of its source this is.
    #[must_use]
    pub fn split(&self) -> Split {
        self.split
    }

    /// The class names; a label is an index into them. The same for both splits of a source.
    #[must_use]
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// All labels, `[N]`, each below `classes().len()`.
    #[must_use]
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// The label of image `index`.
    ///
    /// # Panics
    /// When `index` is not below [`len`](Self::len).
    #[must_use]
    pub fn label(&self, index: usize) -> u32 {
        self.labels[index]
    }

    /// The pixels of image `index`: `[C, H, W]`, 0 to 255.
    ///
    /// # Panics
    /// When `index` is not below [`len`](Self::len).
    #[must_use]
    pub fn image(&self, index: usize) -> &[u8] {
        let bytes = self.shape.bytes();
        &self.pixels[index * bytes..][..bytes]
    }

    /// Memory held by pixels and labels, in bytes.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.pixels.len() + size_of_val(self.labels.as_slice())
    }

    /// The images at `indices` as `[B, C, H, W]` in [-1, 1], where byte `x` becomes `x / 127.5 - 1`.
    ///
    /// Image `k` of the batch is mirrored left to right where `flip[k]`; images beyond the end of `flip` are
    /// not, so `&[]` mirrors none.
    ///
    /// # Panics
    /// When an index is not below [`len`](Self::len).
    #[must_use]
    pub fn batch(&self, indices: &[usize], flip: &[bool]) -> Vec<f32> {
        let to_float = |byte: &u8| f32::from(*byte) / 127.5 - 1.0;
        let mut values = Vec::with_capacity(indices.len() * self.shape.bytes());
        for (position, &index) in indices.iter().enumerate() {
            let mirrored = flip.get(position).copied().unwrap_or(false);
            for row in self.image(index).chunks_exact(self.shape.width) {
                if mirrored {
                    values.extend(row.iter().rev().map(to_float));
                } else {
                    values.extend(row.iter().map(to_float));
                }
            }
        }
        values
    }
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
    fn a_batch_holds_the_images_asked_for_scaled_to_plus_and_minus_one() {
        let batch = two_images().batch(&[1, 0, 1], &[]);
        assert_eq!(batch.len(), 3 * 6);
        assert_eq!(batch[6..8], [-1.0, 1.0]);
        assert!((batch[0] - -0.6).abs() < 1e-6, "51 is a fifth of 255, so -0.6: {}", batch[0]);
        assert_eq!(batch[..6], batch[12..]);
        assert!(batch.iter().all(|value| (-1.0..=1.0).contains(value)));
    }

    #[test]
    fn a_flip_mirrors_rows_within_their_plane_and_only_where_told() {
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
    fn shapes_that_no_model_takes_are_refused() {
        for (channels, height, width) in [(2, 8, 8), (3, 0, 8), (1, 8, 5000), (0, 1, 1)] {
            assert!(matches!(
                ImageShape { channels, height, width }.validate(),
                Err(DataError::Shape { .. })
            ));
        }
    }

    #[test]
    fn more_memory_than_there_is_is_an_error_not_an_abort() {
        let shape = ImageShape { channels: 3, height: 64, width: 64 };
        assert!(matches!(shape.allocate(usize::MAX / 2), Err(DataError::TooLarge { .. })));
        assert!(matches!(shape.allocate(usize::MAX / 12288), Err(DataError::TooLarge { .. })));
    }
}
