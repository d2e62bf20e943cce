//! Tests of crop, resize, colour conversion and unreadable images.

use std::io::Cursor;

use image::codecs::jpeg::JpegEncoder;
use image::{ImageEncoder, ImageFormat, LumaA, Rgb};

use super::*;

const FORMATS: [ImageFormat; 6] = [
    ImageFormat::Png,
    ImageFormat::Jpeg,
    ImageFormat::WebP,
    ImageFormat::Gif,
    ImageFormat::Bmp,
    ImageFormat::Tiff,
];

fn shape(channels: usize, height: usize, width: usize) -> ImageShape {
    ImageShape { channels, height, width }
}

fn textured(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        Rgb([(x * 37 + y * 11) as u8, (x * y) as u8, 255u32.wrapping_sub(x * 5 + y) as u8])
    })
}

fn encode(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.into().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn decoded(content: Content, shape: ImageShape) -> Result<Vec<u8>, String> {
    let mut out = vec![0; shape.bytes()];
    decode(content, shape, &mut out).map(|()| out)
}

fn fitted(image: impl Into<DynamicImage>, shape: ImageShape) -> Vec<u8> {
    decoded(Content::Encoded(encode(image, ImageFormat::Png)), shape).unwrap()
}

#[test]
fn an_image_of_the_right_size_is_copied_unchanged() {
    let image = textured(13, 7);
    let planes = fitted(image.clone(), shape(3, 7, 13));
    for (x, y, pixel) in image.enumerate_pixels() {
        for channel in 0..3 {
            assert_eq!(planes[channel * 91 + y as usize * 13 + x as usize], pixel[channel]);
        }
    }
    let again = decoded(Content::Planes { shape: shape(3, 7, 13), pixels: planes.clone() }, shape(3, 7, 13));
    assert_eq!(again.unwrap(), planes);
}

#[test]
fn a_tiff_of_16_or_32_bits_gives_the_values_of_its_8_bit_version() {
    let image = textured(13, 7);
    let shape = shape(3, 7, 13);
    let expected = fitted(image.clone(), shape);
    let image = DynamicImage::ImageRgb8(image);
    let deep: [DynamicImage; 2] = [image.to_rgb16().into(), image.to_rgb32f().into()];
    for image in deep {
        let found = decoded(Content::Encoded(encode(image, ImageFormat::Tiff)), shape).unwrap();
        let difference = found.iter().zip(&expected).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(difference <= Some(1), "{difference:?}");
    }
}

#[test]
fn planes_are_cropped_without_other_changes() {
    // 8x8 to 4x8 only crops: rows 2 to 5 of each plane.
    let pixels: Vec<u8> = (0..192).collect();
    let cropped = decoded(Content::Planes { shape: shape(3, 8, 8), pixels }, shape(3, 4, 8)).unwrap();
    let expected: Vec<u8> = (0..3).flat_map(|plane| plane * 64 + 16..plane * 64 + 48).collect();
    assert_eq!(cropped, expected);
}

#[test]
fn a_constant_image_stays_constant_at_every_size() {
    for (width, height) in [(1, 1), (3, 50), (28, 28), (64, 64), (200, 17)] {
        for target in [shape(3, 32, 32), shape(3, 16, 24), shape(1, 5, 3), shape(1, 40, 40)] {
            let planes = fitted(RgbImage::from_pixel(width, height, Rgb([200, 200, 200])), target);
            assert!(planes.iter().all(|value| *value == 200), "{width}x{height} to {target:?}");
        }
    }
}

#[test]
fn the_crop_is_centred_and_the_largest_of_its_aspect_ratio() {
    assert_eq!(largest_crop((100, 50), (32, 32)), (50, 50));
    assert_eq!(largest_crop((50, 101), (32, 32)), (50, 50));
    assert_eq!(largest_crop((64, 64), (32, 16)), (64, 32));
    assert_eq!(largest_crop((64, 48), (4, 3)), (64, 48));
    assert_eq!(largest_crop((16384, 1), (32, 32)), (1, 1));
    // The outer quarters are red and blue; the crop keeps the white centre.
    let image = RgbImage::from_fn(64, 32, |x, _| match x {
        0..16 => Rgb([255, 0, 0]),
        48.. => Rgb([0, 0, 255]),
        _ => Rgb([255, 255, 255]),
    });
    assert!(fitted(image, shape(3, 32, 32)).iter().all(|value| *value == 255));
}

#[test]
fn a_mirrored_image_gives_a_mirrored_result() {
    let image = textured(60, 40);
    for target in [shape(3, 16, 16), shape(3, 80, 80), shape(1, 10, 20)] {
        let plain = fitted(image.clone(), target);
        let mirrored = fitted(imageops::flip_horizontal(&image), target);
        for (row, mirrored) in plain.chunks(target.width).zip(mirrored.chunks(target.width)) {
            let worst = row.iter().rev().zip(mirrored).map(|(a, b)| a.abs_diff(*b)).max();
            assert!(worst <= Some(1), "{target:?}: {worst:?}");
        }
    }
}

#[test]
fn shrinking_keeps_the_mean_and_enlarging_keeps_a_ramp_monotonic() {
    let image = GrayImage::from_fn(64, 64, |x, _| image::Luma([x as u8 * 4]));
    let mean =
        |values: &[u8]| values.iter().map(|value| f64::from(*value)).sum::<f64>() / values.len() as f64;
    assert!((mean(&fitted(image.clone(), shape(1, 16, 16))) - mean(image.as_raw())).abs() < 1.0);
    let grown = fitted(image, shape(1, 100, 100));
    assert!(grown[..100].is_sorted(), "monotonic");
}

#[test]
fn colours_become_grey_by_their_luminance_and_grey_becomes_three_equal_planes() {
    // Rec. 709: 0.2126 R + 0.7152 G + 0.0722 B.
    for (colour, grey) in [([255, 0, 0], 54), ([0, 255, 0], 182), ([0, 0, 255], 18), ([9, 9, 9], 9)] {
        let value = fitted(RgbImage::from_pixel(2, 2, Rgb(colour)), shape(1, 2, 2))[0];
        assert!(value.abs_diff(grey) <= 1, "{colour:?}: {value}");
    }
    let digits = Content::Planes { shape: shape(1, 2, 2), pixels: vec![1, 2, 3, 4] };
    assert_eq!(decoded(digits, shape(3, 2, 2)).unwrap(), [1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4]);
}

#[test]
fn transparency_is_composited_on_white() {
    let image = image::RgbaImage::from_fn(3, 1, |x, _| Rgba([100, 0, 0, [0, 128, 255][x as usize]]));
    let planes = fitted(image, shape(3, 1, 3));
    assert_eq!(planes[..3], [255, 177, 100]);
    assert_eq!(planes[3..6], [255, 127, 0]);
    let grey = image::GrayAlphaImage::from_pixel(1, 1, LumaA([0, 0]));
    assert_eq!(fitted(grey, shape(1, 1, 1)), [255]);
}

#[test]
fn exif_orientation_is_applied() {
    // A picture stored on its side: its top (black) is on the right, and orientation tag 6 says so.
    let stored = RgbImage::from_fn(32, 16, |x, _| Rgb([if x < 16 { 255 } else { 0 }; 3]));
    let mut exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0".to_vec();
    let mut jpeg = Vec::new();
    let mut encoder = JpegEncoder::new_with_quality(&mut jpeg, 100);
    encoder.set_exif_metadata(std::mem::take(&mut exif)).unwrap();
    encoder.encode_image(&stored).unwrap();
    let upright = decoded(Content::Encoded(jpeg), shape(1, 32, 16)).unwrap();
    // Tag 6 turns the stored image by 90 degrees clockwise: its left side becomes the top.
    assert!(upright[..16 * 8].iter().all(|value| *value > 200));
    assert!(upright[16 * 24..].iter().all(|value| *value < 50));
}

#[test]
fn every_format_is_read_and_every_truncation_is_unreadable() {
    for format in FORMATS {
        let whole = encode(textured(40, 30), format);
        let target = shape(3, 30, 40);
        let planes = decoded(Content::Encoded(whole.clone()), target).unwrap();
        assert_eq!(planes.len(), target.bytes());
        for percent in [0, 1, 10, 50, 90] {
            let cut = whole[..whole.len() * percent / 100].to_vec();
            assert!(decoded(Content::Encoded(cut), target).is_err(), "{format:?} cut to {percent}%");
        }
        let mut no_marker = whole;
        no_marker.truncate(no_marker.len() - 2);
        if format == ImageFormat::Jpeg {
            assert!(decoded(Content::Encoded(no_marker), target).unwrap_err().contains("ends before"));
        }
    }
}

#[test]
fn images_with_huge_dimensions_are_refused_before_decoding() {
    let mut bmp = encode(textured(2, 2), ImageFormat::Bmp);
    bmp[18..22].copy_from_slice(&20_000i32.to_le_bytes());
    assert!(decoded(Content::Encoded(bmp.clone()), shape(3, 2, 2)).is_err());
    bmp[18..22].copy_from_slice(&16_000i32.to_le_bytes());
    bmp[22..26].copy_from_slice(&16_000i32.to_le_bytes());
    assert!(decoded(Content::Encoded(bmp), shape(3, 2, 2)).is_err());
    let mut png = Vec::new();
    let encoder = image::codecs::png::PngEncoder::new(&mut png);
    encoder.write_image(&[0; 16385], 16385, 1, image::ExtendedColorType::L8).unwrap();
    assert!(decoded(Content::Encoded(png), shape(3, 2, 2)).is_err());
}

#[test]
fn a_file_that_is_not_an_image_is_unreadable_with_a_reason() {
    for bytes in [&b""[..], b"hello", &[0xff, 0xd8], &[0xff, 0xd8, 0xff, 0xff, 0xff, 0xff]] {
        assert!(!decoded(Content::Encoded(bytes.to_vec()), shape(3, 2, 2)).unwrap_err().is_empty());
    }
    assert!(decoded(Content::File("/no/such/file.png".into()), shape(3, 2, 2)).is_err());
    assert_eq!(decoded(Content::Refused("too big".into()), shape(3, 2, 2)).unwrap_err(), "too big");
}
