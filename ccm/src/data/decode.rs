//! Converts one image from encoded bytes to planes: decode, orient, convert colours, crop, resize.
//!
//! Dimensions and memory are limited. A failure is a reason text, because an unreadable image is not an error of the
//! data set.

use std::io::Cursor;

use image::imageops::{self, FilterType};
use image::{DynamicImage, GrayImage, ImageBuffer, ImageDecoder, ImageReader, Limits, Pixel, RgbImage, Rgba};

use super::ImageShape;
use super::content::Content;

/// Largest height or width of an encoded image, in pixels.
const LARGEST_SIDE: u32 = 16384;

/// Memory limit for decoding one image, in bytes.
const LARGEST_ALLOCATION: u64 = 512 << 20;

/// Decodes `content` into `out`, the planes `[C, H, W]` of `shape`, or returns the reason for the failure.
pub(super) fn decode(content: Content, shape: ImageShape, out: &mut [u8]) -> Result<(), String> {
    match content {
        Content::Planes { shape: own, pixels } if own == shape => out.copy_from_slice(&pixels),
        Content::Planes { shape: own, pixels } => fit(from_planes(own, &pixels)?, shape, out),
        encoded => fit(from_encoded(&encoded.into_bytes()?)?, shape, out),
    }
    Ok(())
}

/// Decodes an image file and applies its orientation.
fn from_encoded(bytes: &[u8]) -> Result<DynamicImage, String> {
    let mut limits = Limits::default();
    limits.max_image_width = Some(LARGEST_SIDE);
    limits.max_image_height = Some(LARGEST_SIDE);
    limits.max_alloc = Some(LARGEST_ALLOCATION);
    let decode = || {
        let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
        reader.limits(limits.clone());
        let mut decoder = reader.into_decoder()?;
        limits.clone().reserve(decoder.total_bytes())?;
        let orientation = decoder.orientation()?;
        let mut image = DynamicImage::from_decoder(decoder)?;
        image.apply_orientation(orientation);
        Ok(image)
    };
    let image = decode().map_err(|error: image::ImageError| error.to_string())?;
    if jpeg_is_cut_short(bytes) {
        return Err("the JPEG data ends before the image does".to_owned());
    }
    Ok(image)
}

/// Whether `bytes` are a JPEG file without an end-of-image marker after the start of its first scan.
///
/// The decoder fills missing data with grey and reports no error.
fn jpeg_is_cut_short(bytes: &[u8]) -> bool {
    if !bytes.starts_with(&[0xff, 0xd8]) {
        return false;
    }
    let mut at = 2;
    // Skip the segments before the scan by their length: embedded thumbnails have end markers too.
    while let Some(&[0xff, marker, high, low]) = bytes.get(at..at + 4) {
        match marker {
            0xda => break,
            0xff => at += 1,
            _ => at += 2 + usize::from(u16::from_be_bytes([high, low])),
        }
    }
    !bytes.get(at..).is_some_and(|scan| scan.windows(2).any(|pair| pair == [0xff, 0xd9]))
}

/// Converts planes `[C, H, W]` to interleaved pixels.
fn from_planes(shape: ImageShape, pixels: &[u8]) -> Result<DynamicImage, String> {
    let (width, height) = (shape.width as u32, shape.height as u32);
    let image = if shape.channels == 1 {
        GrayImage::from_raw(width, height, pixels.to_vec()).map(DynamicImage::ImageLuma8)
    } else {
        let plane = shape.height * shape.width;
        let interleaved = (0..plane).flat_map(|at| (0..3).map(move |channel| pixels[channel * plane + at]));
        RgbImage::from_raw(width, height, interleaved.collect()).map(DynamicImage::ImageRgb8)
    };
    image.ok_or_else(|| format!("it has {} bytes, expected {}", pixels.len(), shape.bytes()))
}

/// Converts `image` to `shape` and writes its planes to `out`.
fn fit(image: DynamicImage, shape: ImageShape, out: &mut [u8]) {
    let image = if image.color().has_alpha() { on_white(&image) } else { image };
    let (width, height) = (shape.width as u32, shape.height as u32);
    if shape.channels == 1 {
        out.copy_from_slice(crop_and_resize(image.into_luma8(), width, height).as_raw());
    } else {
        let plane = shape.height * shape.width;
        let rgb = crop_and_resize(image.into_rgb8(), width, height);
        for (at, pixel) in rgb.pixels().enumerate() {
            for channel in 0..3 {
                out[channel * plane + at] = pixel[channel];
            }
        }
    }
}

/// Composites a transparent image on white.
fn on_white(image: &DynamicImage) -> DynamicImage {
    let image = image.to_rgba8();
    DynamicImage::ImageRgb8(RgbImage::from_fn(image.width(), image.height(), |x, y| {
        let Rgba([red, green, blue, alpha]) = *image.get_pixel(x, y);
        let alpha = u32::from(alpha);
        let over = |value: u8| ((u32::from(value) * alpha + 255 * (255 - alpha) + 127) / 255) as u8;
        image::Rgb([over(red), over(green), over(blue)])
    }))
}

/// Crops the largest centred region with the aspect ratio `width : height` and resizes it to that size.
fn crop_and_resize<P>(image: ImageBuffer<P, Vec<u8>>, width: u32, height: u32) -> ImageBuffer<P, Vec<u8>>
where
    P: Pixel<Subpixel = u8> + 'static,
{
    let (own_width, own_height) = image.dimensions();
    let (crop_width, crop_height) = largest_crop((own_width, own_height), (width, height));
    let (left, top) = ((own_width - crop_width) / 2, (own_height - crop_height) / 2);
    let part = if (crop_width, crop_height) == (own_width, own_height) {
        image
    } else {
        imageops::crop_imm(&image, left, top, crop_width, crop_height).to_image()
    };
    if (crop_width, crop_height) == (width, height) {
        return part;
    }
    let grows = u64::from(crop_width) * u64::from(crop_height) < u64::from(width) * u64::from(height);
    imageops::resize(&part, width, height, if grows { FilterType::CatmullRom } else { FilterType::Lanczos3 })
}

/// The largest `(width, height)` within `own` with the aspect ratio of `target`, rounded to pixels.
fn largest_crop(own: (u32, u32), target: (u32, u32)) -> (u32, u32) {
    let scaled = |length: u32, by: u32, over: u32| {
        let (length, by, over) = (u64::from(length), u64::from(by), u64::from(over));
        ((2 * length * by + over) / (2 * over)).max(1) as u32
    };
    if u64::from(own.0) * u64::from(target.1) > u64::from(own.1) * u64::from(target.0) {
        (scaled(own.1, target.0, target.1).min(own.0), own.1)
    } else {
        (own.0, scaled(own.0, target.1, target.0).min(own.1))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
