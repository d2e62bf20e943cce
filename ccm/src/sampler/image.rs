//! Converts values in [-1, 1] to pictures: bytes, grids, PNG.

/// One image or a grid of images: interleaved rows of bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Bytes per pixel: 1 (grey) or 3 (RGB).
    pub channels: usize,
    /// `height * width * channels` bytes.
    pub pixels: Vec<u8>,
}

/// Maps [-1, 1] to 0..=255. Out-of-range values are clamped; NaN maps to 0.
pub fn to_byte(value: f32) -> u8 {
    // The cast saturates.
    ((value + 1.0) * 127.5).round() as u8
}

/// Lays images out in a grid, row by row, with one pixel of mid-grey between them.
///
/// # Shapes
/// `images`: `[N, channels, height, width]`, values in [-1, 1]
pub fn grid(images: &[f32], [channels, height, width]: [usize; 3], columns: usize) -> Picture {
    const GAP: usize = 1;
    const GREY: u8 = 128;
    let image = channels * height * width;
    let count = images.len() / image.max(1);
    let columns = columns.clamp(1, count.max(1));
    let rows = count.div_ceil(columns);
    let mut picture = Picture {
        width: (columns * (width + GAP)).saturating_sub(GAP),
        height: (rows * (height + GAP)).saturating_sub(GAP),
        channels,
        pixels: Vec::new(),
    };
    picture.pixels.resize(picture.width * picture.height * channels, GREY);
    for (i, values) in images.chunks_exact(image.max(1)).enumerate() {
        let (top, left) = (i / columns * (height + GAP), i % columns * (width + GAP));
        for (place, value) in values.iter().enumerate() {
            let (channel, y, x) = (place / (height * width), place / width % height, place % width);
            picture.pixels[((top + y) * picture.width + left + x) * channels + channel] = to_byte(*value);
        }
    }
    picture
}

#[cfg(feature = "train")]
impl Picture {
    /// The picture as a PNG file.
    ///
    /// # Errors
    /// If the picture has no pixels.
    pub fn to_png(&self) -> Result<Vec<u8>, image::ImageError> {
        use image::ImageEncoder as _;
        let mut file = Vec::new();
        let colour =
            if self.channels == 1 { image::ExtendedColorType::L8 } else { image::ExtendedColorType::Rgb8 };
        image::codecs::png::PngEncoder::new(&mut file).write_image(
            &self.pixels,
            self.width as u32,
            self.height as u32,
            colour,
        )?;
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_rounded_and_clamped() {
        let bytes = [-2.0, -1.0, 0.0, 1.0, 2.0, f32::NAN].map(to_byte);
        assert_eq!(bytes, [0, 0, 128, 255, 255, 0]);
    }

    #[test]
    fn a_grid_puts_every_image_in_its_place() {
        // Two RGB images of one pixel side by side.
        let picture = grid(&[-1.0, 0.0, 1.0, 1.0, 0.0, -1.0], [3, 1, 1], 2);
        assert_eq!((picture.width, picture.height), (3, 1));
        assert_eq!(picture.pixels, [0, 128, 255, 128, 128, 128, 255, 128, 0]);
    }
}
