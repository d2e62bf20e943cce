//! Writes images as webdataset's tar archives: PNG files of one size, each with its class, in random order.

use std::io::Cursor;
use std::path::Path;

use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};
use rayon::prelude::*;

use super::webdataset::CLASSES;
use super::{Dataset, ImageShape, Split, Streamed};
use crate::disk::{self, DiskError};
use crate::noise::Noise;

/// Where images come from.
pub enum Images {
    /// Memory.
    Here(Dataset),
    /// A disk.
    OnDisk(Streamed),
}

impl Images {
    /// Number of images.
    pub fn len(&self) -> usize {
        match self {
            Self::Here(images) => images.len(),
            Self::OnDisk(images) => images.len(),
        }
    }

    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Names of the classes, indexed by label.
    pub fn classes(&self) -> &[String] {
        match self {
            Self::Here(images) => images.classes(),
            Self::OnDisk(images) => images.classes(),
        }
    }

    fn shape(&self) -> ImageShape {
        match self {
            Self::Here(images) => images.shape(),
            Self::OnDisk(images) => images.shape(),
        }
    }

    /// An image as a PNG file, and its class.
    fn png(&self, index: usize) -> Result<(Vec<u8>, u32), String> {
        let shape = self.shape();
        match self {
            Self::Here(images) => Ok((encode(images.image(index), shape)?, images.label(index))),
            Self::OnDisk(images) => {
                let mut planes = vec![0; shape.bytes()];
                images.decode(index, &mut planes)?;
                Ok((encode(&planes, shape)?, images.label(index)))
            }
        }
    }
}

/// Encodes planes `[C, H, W]` as a PNG file.
fn encode(planes: &[u8], shape: ImageShape) -> Result<Vec<u8>, String> {
    let ImageShape { channels, height, width } = shape;
    let plane = height * width;
    let pixels: Vec<u8> =
        (0..plane).flat_map(|at| (0..channels).map(move |c| planes[c * plane + at])).collect();
    let colour = if channels == 1 { ExtendedColorType::L8 } else { ExtendedColorType::Rgb8 };
    let mut png = Cursor::new(Vec::new());
    let encoder = PngEncoder::new_with_quality(&mut png, CompressionType::Fast, FilterType::Adaptive);
    encoder.write_image(&pixels, width as u32, height as u32, colour).map_err(|error| error.to_string())?;
    Ok(png.into_inner())
}

/// Writes the archives of a split, `train-00000.tar` or `val-00000.tar` and so on, with at most `each` images in one, and
/// `classes.txt`. The order depends on `seed` only. `progress` gets the number of images so far, and messages about images that
/// cannot be read. Returns the number of images written.
///
/// # Errors
/// A file that cannot be written.
pub fn write(
    images: &Images,
    split: Split,
    folder: &Path,
    each: usize,
    seed: u64,
    progress: &mut dyn FnMut(usize, Option<&str>),
) -> Result<usize, DiskError> {
    let prefix = match split {
        Split::Train => "train",
        Split::HeldOut => "val",
    };
    disk::make(folder)?;
    let names: String =
        images.classes().iter().map(|class| format!("{}\n", class.replace('\n', " "))).collect();
    disk::write(&folder.join(CLASSES), names.as_bytes())?;
    let order = Noise::new(seed, split as u64).permutation(images.len());
    let (mut done, mut written) = (0, 0);
    for (number, part) in order.chunks(each).enumerate() {
        let encoded: Vec<_> = part.par_iter().map(|&index| images.png(index)).collect();
        let mut archive = tar::Builder::new(Vec::new());
        for image in encoded {
            done += 1;
            let (png, label) = match image {
                Ok(image) => image,
                Err(reason) => {
                    progress(done, Some(&reason));
                    continue;
                }
            };
            for (ending, bytes) in [("png", png), ("cls", label.to_string().into_bytes())] {
                let mut header = tar::Header::new_gnu();
                header.set_size(bytes.len() as u64);
                header.set_mode(0o644);
                let name = format!("{written:09}.{ending}");
                archive.append_data(&mut header, name, &bytes[..]).map_err(DiskError::of(folder))?;
            }
            written += 1;
        }
        let bytes = archive.into_inner().map_err(DiskError::of(folder))?;
        disk::write(&folder.join(format!("{prefix}-{number:05}.tar")), &bytes)?;
        progress(done, None);
    }
    Ok(written)
}
