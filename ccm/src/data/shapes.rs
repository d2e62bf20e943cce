//! The generated data set: one coloured shape on a soft background in each image, drawn from a formula.
//!
//! A model of it trains in minutes. Shapes have anti-aliased edges, a gradient fill and a faint shadow. `outline` has
//! the outlines and `colour` the colour conversion; this file chooses position and colours and draws.

use std::f32::consts::{PI, TAU};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::colour::{Colour, Gradient, mix, oklch};
use super::outline::{Outline, Point};
use super::{DataError, Dataset, ImageShape, Split};

/// Names of the classes of [`shapes()`], indexed by label.
pub const SHAPE_CLASSES: [&str; 8] =
    ["circle", "crescent", "cross", "heart", "ring", "square", "star", "triangle"];

/// Number of the first held-out image, above the size of any training set.
const FIRST_HELD_OUT: u64 = 1 << 40;

/// Hues of the fills in degrees of OKLCH: coral, orange, amber, green, teal, sky, blue, violet, pink.
const HUES: [f32; 9] = [25.0, 50.0, 78.0, 148.0, 185.0, 230.0, 262.0, 300.0, 350.0];

/// Largest opacity of the shadow.
const SHADOW: f32 = 0.22;

/// Generates `count` images of `shape`. Image `k` has class `k % 8`; everything else is random.
///
/// An image depends only on `seed`, `split`, `shape` and its index, so a larger `count` adds images and changes none.
/// The splits have no image in common. Pixels may differ in the last bit between platforms with different sine
/// functions.
///
/// # Errors
/// [`DataError::Shape`] and [`DataError::TooLarge`].
pub fn shapes(count: usize, shape: ImageShape, split: Split, seed: u64) -> Result<Dataset, DataError> {
    shape.validate()?;
    let mut pixels = shape.allocate(count)?;
    pixels.par_chunks_exact_mut(shape.bytes()).enumerate().for_each(|(index, image)| {
        let number = match split {
            Split::Train => index as u64,
            Split::HeldOut => FIRST_HELD_OUT + index as u64,
        };
        let outline = Outline::ALL[index % Outline::ALL.len()];
        Picture::compose(outline, shape, Chance::new(seed, number)).paint(shape, image);
    });
    let labels = (0..count).map(|index| (index % Outline::ALL.len()) as u32).collect();
    Ok(Dataset::new(pixels, labels, SHAPE_CLASSES.map(str::to_owned).to_vec(), shape, split))
}

/// Random number generator of one image.
struct Chance(ChaCha8Rng);

impl Chance {
    fn new(seed: u64, number: u64) -> Self {
        let mut generator = ChaCha8Rng::seed_from_u64(seed);
        generator.set_stream(number);
        Self(generator)
    }

    /// Uniform in [`low`, `high`).
    fn between(&mut self, low: f32, high: f32) -> f32 {
        let unit = (self.0.next_u32() >> 8) as f32 / (1 << 24) as f32;
        low + (high - low) * unit
    }
}

/// The random parameters of an image.
struct Picture {
    outline: Outline,
    /// Centre of the shape, in pixels from the top left.
    centre: Point,
    /// Radius of the circle around the shape, in pixels.
    radius: f32,
    /// Sine and cosine of the rotation from upright.
    turn: (f32, f32),
    fill: Gradient,
    background: Gradient,
}

impl Picture {
    fn compose(outline: Outline, shape: ImageShape, mut chance: Chance) -> Self {
        let (height, width) = (shape.height as f32, shape.width as f32);
        let radius = height.min(width) * chance.between(0.36, 0.46);
        let room = |length: f32| (length / 2.0 - radius - 0.5).max(0.0);
        let centre = [
            width / 2.0 + room(width) * chance.between(-1.0, 1.0),
            height / 2.0 + room(height) * chance.between(-1.0, 1.0),
        ];
        let largest_turn = outline.largest_turn();
        let turn = chance.between(-largest_turn, largest_turn).sin_cos();
        let (fill, background) = colours(&mut chance);
        Self { outline, centre, radius, turn, fill, background }
    }

    /// Writes the planes `[C, H, W]` of the image.
    fn paint(&self, shape: ImageShape, image: &mut [u8]) {
        let plane = shape.height * shape.width;
        for at in 0..plane {
            let pixel = [(at % shape.width) as f32 + 0.5, (at / shape.width) as f32 + 0.5];
            let colour = self.colour(pixel, shape);
            if shape.channels == 1 {
                // Rec. 709, as for other sources.
                image[at] = to_byte(0.2126 * colour[0] + 0.7152 * colour[1] + 0.0722 * colour[2]);
            } else {
                for (channel, value) in colour.into_iter().enumerate() {
                    image[channel * plane + at] = to_byte(value);
                }
            }
        }
    }

    fn colour(&self, pixel: Point, shape: ImageShape) -> Colour {
        let (half_height, half_width) = (shape.height as f32 / 2.0, shape.width as f32 / 2.0);
        let on_canvas = [pixel[0] / half_width - 1.0, 1.0 - pixel[1] / half_height];
        let on_shape = self.on_shape(pixel);
        let above = self.on_shape([pixel[0], pixel[1] - 0.16 * self.radius]);
        // The shadow fades over a third of the radius, the edge over one pixel.
        let shade = SHADOW * smooth(0.5 - self.outline.distance(above) / 0.35);
        let cover = (0.5 - self.outline.distance(on_shape) * self.radius).clamp(0.0, 1.0);
        let ground = mix(self.background.at(on_canvas), [0.0, 0.0, 0.05], shade);
        mix(ground, self.fill.at(on_shape), cover)
    }

    /// Converts `pixel` to the coordinates of the outline.
    fn on_shape(&self, pixel: Point) -> Point {
        let (sine, cosine) = self.turn;
        let x = (pixel[0] - self.centre[0]) / self.radius;
        let y = (self.centre[1] - pixel[1]) / self.radius;
        [cosine * x + sine * y, cosine * y - sine * x]
    }
}

/// A fill and a contrasting background, which is dark with probability 1/2 and light otherwise.
fn colours(chance: &mut Chance) -> (Gradient, Gradient) {
    let hue = HUES[(chance.between(0.0, HUES.len() as f32) as usize).min(HUES.len() - 1)];
    let hue = hue + chance.between(-8.0, 8.0);
    // Dark yellow is brown, and dark greenish yellow is olive: lighten fills with hues around 80 degrees.
    let yellowness = (1.0 - (hue - 80.0).abs() / 40.0).max(0.0);
    let dark = chance.between(0.0, 1.0) < 0.5;
    let (fill_light, ground_light, ground_chroma, ground_hue) = if dark {
        // Dark backgrounds are teal, navy or plum; dark warm colours look brown.
        (chance.between(0.72, 0.80), chance.between(0.25, 0.33), 0.06, chance.between(200.0, 320.0))
    } else {
        let light = chance.between(0.60, 0.67) + 0.13 * yellowness;
        (light, chance.between(0.93, 0.965), 0.03, hue + chance.between(110.0, 250.0))
    };
    let fill = Gradient {
        from: oklch(fill_light + 0.08, 0.15, hue + 22.0 * (1.0 - yellowness)),
        to: oklch(fill_light - 0.07, 0.19, hue - 14.0),
        direction: direction(chance.between(-0.35, 0.35) * PI - 0.5 * PI),
    };
    let background = Gradient {
        from: oklch(ground_light + 0.03, ground_chroma, ground_hue),
        to: oklch(ground_light - 0.06, ground_chroma * 1.3, ground_hue + 30.0),
        direction: direction(chance.between(0.0, TAU)),
    };
    (fill, background)
}

fn direction(angle: f32) -> Point {
    let (sine, cosine) = angle.sin_cos();
    [cosine, sine]
}

/// Smooth step from 0 to 1.
fn smooth(value: f32) -> f32 {
    let value = value.clamp(0.0, 1.0);
    value * value * (3.0 - 2.0 * value)
}

fn to_byte(value: f32) -> u8 {
    (value.clamp(0.0, 1.0) * 255.0).round() as u8
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const RGB: ImageShape = ImageShape { channels: 3, height: 16, width: 16 };
    const GREY: ImageShape = ImageShape { channels: 1, height: 20, width: 32 };

    #[test]
    fn an_image_depends_on_seed_split_and_index_only() {
        let few = shapes(10, RGB, Split::Train, 5).unwrap();
        let many = shapes(100, RGB, Split::Train, 5).unwrap();
        assert!((0..10).all(|index| few.image(index) == many.image(index)));
        let other_seed = shapes(10, RGB, Split::Train, 6).unwrap();
        let held_out = shapes(10, RGB, Split::HeldOut, 5).unwrap();
        for index in 0..10 {
            assert_ne!(few.image(index), other_seed.image(index));
            assert_ne!(few.image(index), held_out.image(index));
        }
    }

    /// The shipped models of shapes are reproducible from the seed, so an upgrade of `rand` must not change the images.
    #[test]
    fn the_images_of_a_seed_never_change() {
        let data = shapes(64, RGB, Split::Train, 0).unwrap();
        let mut hasher = crc32fast::Hasher::new();
        (0..data.len()).for_each(|index| hasher.update(data.image(index)));
        assert_eq!(hasher.finalize(), 0x7d5d_3e6c);
    }

    #[test]
    fn no_two_images_are_the_same() {
        let data = shapes(2000, RGB, Split::Train, 1).unwrap();
        let distinct: std::collections::HashSet<&[u8]> = (0..2000).map(|index| data.image(index)).collect();
        assert_eq!(distinct.len(), 2000);
    }

    #[test]
    fn classes_are_balanced_and_have_the_names_of_their_outlines() {
        let data = shapes(80, GREY, Split::Train, 1).unwrap();
        for label in 0..8 {
            assert_eq!(data.labels().iter().filter(|own| **own == label).count(), 10);
            let drawn = format!("{:?}", Outline::ALL[label as usize]).to_lowercase();
            assert_eq!(data.classes()[label as usize], drawn);
        }
        assert_eq!(data.classes(), SHAPE_CLASSES);
    }

    #[test]
    fn the_shape_contrasts_with_its_background_and_does_not_touch_the_border() {
        for shape in [RGB, GREY] {
            let data = shapes(400, shape, Split::Train, 3).unwrap();
            for index in 0..400 {
                let plane = &data.image(index)[..shape.height * shape.width];
                let (least, most) = (plane.iter().min().unwrap(), plane.iter().max().unwrap());
                let grey = shape.channels == 1;
                assert!(!grey || most - least > 50, "image {index}: {least} to {most}");
            }
            let picture =
                |index: u64| Picture::compose(Outline::ALL[index as usize % 8], shape, Chance::new(3, index));
            for picture in (0..400).map(picture) {
                for x in 0..shape.width {
                    for y in [0.0, shape.height as f32] {
                        let distance = picture.outline.distance(picture.on_shape([x as f32, y]));
                        assert!(distance * picture.radius > 0.3, "{:?} at {x} {y}", picture.outline);
                    }
                }
            }
        }
    }

    #[test]
    fn grey_images_have_the_luminance_of_rgb_images() {
        let square = |channels| ImageShape { channels, height: 16, width: 16 };
        let colour = shapes(8, square(3), Split::Train, 2).unwrap();
        let grey = shapes(8, square(1), Split::Train, 2).unwrap();
        for index in 0..8 {
            let planes: Vec<&[u8]> = colour.image(index).chunks(256).collect();
            for (at, value) in grey.image(index).iter().enumerate() {
                let channel = |plane: usize| f32::from(planes[plane][at]);
                let luminance = 0.2126 * channel(0) + 0.7152 * channel(1) + 0.0722 * channel(2);
                assert!((luminance - f32::from(*value)).abs() <= 1.0);
            }
        }
    }

    #[test]
    fn tiny_and_empty_sets_are_generated() {
        assert!(shapes(0, RGB, Split::Train, 0).unwrap().is_empty());
        assert_eq!(
            shapes(3, ImageShape { channels: 3, height: 1, width: 2 }, Split::Train, 0).unwrap().len(),
            3
        );
        assert!(shapes(1, ImageShape { channels: 4, ..RGB }, Split::Train, 0).is_err());
    }
}
