//! The generated data set: one little creature on a soft background in each image, drawn from a formula.
//!
//! A model of it trains in minutes. The class of a creature is the shape of its body; colours, place, eyes and mouth are
//! random. `body` has the outlines and `colour` the colour conversion; this file makes the random choices and draws.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::body::{Body, Point, circle, ellipse};
use super::colour::{Colour, Gradient, mix, oklch};
use super::{DataError, Dataset, ImageShape, Split};

/// Names of the classes of [`shapes()`], indexed by label.
pub const SHAPE_CLASSES: [&str; 8] = ["bunny", "cat", "drop", "ghost", "mushroom", "robot", "sprout", "star"];

/// Number of the first held-out image, above the size of any training set.
const FIRST_HELD_OUT: u64 = 1 << 40;

/// Hues of the bodies in degrees of OKLCH: coral, orange, amber, green, teal, sky, blue, violet, pink.
const HUES: [f32; 9] = [25.0, 50.0, 78.0, 148.0, 185.0, 230.0, 262.0, 300.0, 350.0];

/// Largest rotation from upright, in radians.
const LARGEST_TURN: f32 = 0.12;

/// Opacity of the shadow on the ground.
const SHADOW: f32 = 0.18;

const WHITE: Colour = [1.0; 3];

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
        let body = Body::ALL[index % Body::ALL.len()];
        Picture::compose(body, shape, Chance::new(seed, number)).paint(shape, image);
    });
    let labels = (0..count).map(|index| (index % Body::ALL.len()) as u32).collect();
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

    /// Uniform in `0..count`.
    fn below(&mut self, count: usize) -> usize {
        (self.between(0.0, count as f32) as usize).min(count - 1)
    }
}

/// The random choices of an image.
struct Picture {
    body: Body,
    /// Centre of the creature, in pixels from the top left.
    centre: Point,
    /// Radius of the circle around the creature, in pixels.
    radius: f32,
    /// Sine and cosine of the rotation from upright.
    turn: (f32, f32),
    colours: Colours,
    face: Face,
}

struct Colours {
    body: Gradient,
    background: Gradient,
    /// Pupils and mouth.
    ink: Colour,
    cheek: Colour,
    throat: Colour,
    tongue: Colour,
}

/// A face, in units of the body.
struct Face {
    centre: Point,
    /// Centres of the eyes.
    eyes: Vec<Point>,
    /// Radius of an eye.
    eye: f32,
    /// From the centre of an eye to its pupil.
    gaze: Point,
    mouth: Mouth,
    mouth_width: f32,
    /// Distance of the cheeks from the middle of the face.
    cheeks: f32,
}

enum Mouth {
    /// A curved line.
    Smile,
    /// Half a disc with a tongue.
    Laugh,
    /// A small ellipse.
    Whistle,
}

impl Picture {
    fn compose(body: Body, shape: ImageShape, mut chance: Chance) -> Self {
        let (height, width) = (shape.height as f32, shape.width as f32);
        let radius = height.min(width) * chance.between(0.40, 0.46);
        let room = |length: f32| (length / 2.0 - radius - 0.5).max(0.0);
        let centre = [
            width / 2.0 + room(width) * chance.between(-1.0, 1.0),
            height / 2.0 + room(height) * chance.between(-1.0, 1.0),
        ];
        let turn = chance.between(-LARGEST_TURN, LARGEST_TURN).sin_cos();
        let colours = Colours::draw(&mut chance);
        let face = Face::draw(body, &mut chance);
        Self { body, centre, radius, turn, colours, face }
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
        let Self { colours, body, .. } = self;
        let (half_height, half_width) = (shape.height as f32 / 2.0, shape.width as f32 / 2.0);
        let on_canvas = [pixel[0] / half_width - 1.0, 1.0 - pixel[1] / half_height];
        let upright = [(pixel[0] - self.centre[0]) / self.radius, (self.centre[1] - pixel[1]) / self.radius];
        let shade = SHADOW * smooth(0.5 - ellipse([upright[0], upright[1] + 0.9], [0.6, 0.1]) / 0.15);
        let ground = mix(colours.background.at(on_canvas), [0.0, 0.0, 0.05], shade);

        let point = self.on_body(pixel);
        let mut canvas = Canvas { colour: ground, radius: self.radius };
        canvas.cover(body.distance(point), colours.body.at(point), 1.0);
        self.face.paint(point, colours, &mut canvas);
        canvas.colour
    }

    /// Converts `pixel` to the coordinates of the body.
    fn on_body(&self, pixel: Point) -> Point {
        let (sine, cosine) = self.turn;
        let x = (pixel[0] - self.centre[0]) / self.radius;
        let y = (self.centre[1] - pixel[1]) / self.radius;
        [cosine * x + sine * y, cosine * y - sine * x]
    }
}

/// A pixel that is painted layer by layer.
struct Canvas {
    colour: Colour,
    /// Pixels per unit of distance.
    radius: f32,
}

impl Canvas {
    /// Paints a shape at this distance. Its edge is one pixel wide.
    fn cover(&mut self, distance: f32, colour: Colour, opacity: f32) {
        let cover = (0.5 - distance * self.radius).clamp(0.0, 1.0);
        self.colour = mix(self.colour, colour, cover * opacity);
    }
}

impl Face {
    fn draw(body: Body, chance: &mut Chance) -> Self {
        let [x, y] = body.face();
        let centre = [x + chance.between(-0.05, 0.05), y + chance.between(-0.04, 0.04)];
        let gap = chance.between(0.25, 0.31);
        // One eye, two, or three; mostly two. A star has no room for a third.
        let (eye, eyes) = match chance.below(6) {
            0 => (chance.between(0.26, 0.32), vec![[0.0, 0.12]]),
            1 if body != Body::Star => (0.14, vec![[-0.3, 0.06], [0.3, 0.06], [0.0, 0.26]]),
            _ => (chance.between(0.17, 0.22), vec![[-gap, 0.12], [gap, 0.12]]),
        };
        let gaze = [chance.between(-0.05, 0.05), chance.between(-0.04, 0.04)];
        let mouth = match chance.below(3) {
            0 => Mouth::Smile,
            1 => Mouth::Laugh,
            _ => Mouth::Whistle,
        };
        Self { centre, eyes, eye, gaze, mouth, mouth_width: chance.between(0.14, 0.24), cheeks: gap + 0.16 }
    }

    fn paint(&self, [x, y]: Point, colours: &Colours, canvas: &mut Canvas) {
        let point = [x - self.centre[0], y - self.centre[1]];
        let from = |centre: Point| [point[0] - centre[0], point[1] - centre[1]];
        for centre in &self.eyes {
            let pupil = [centre[0] + self.gaze[0], centre[1] + self.gaze[1]];
            let glint = [pupil[0] + 0.2 * self.eye, pupil[1] + 0.25 * self.eye];
            canvas.cover(circle(from(*centre), self.eye), WHITE, 1.0);
            canvas.cover(circle(from(pupil), 0.62 * self.eye), colours.ink, 1.0);
            canvas.cover(circle(from(glint), 0.2 * self.eye), WHITE, 1.0);
        }
        match self.mouth {
            Mouth::Smile => {
                let line = circle(from([0.0, -0.12]), self.mouth_width).abs() - 0.035;
                canvas.cover(line.max(point[1] + 0.15), colours.ink, 1.0);
            }
            Mouth::Laugh => {
                let open = circle(from([0.0, -0.14]), self.mouth_width).max(point[1] + 0.14);
                let tongue = circle(from([0.0, -0.36]), 0.8 * self.mouth_width).max(open + 0.02);
                canvas.cover(open, colours.throat, 1.0);
                canvas.cover(tongue, colours.tongue, 1.0);
            }
            Mouth::Whistle => canvas.cover(ellipse(from([0.0, -0.2]), [0.07, 0.09]), colours.ink, 1.0),
        }
        for side in [-self.cheeks, self.cheeks] {
            canvas.cover(ellipse(from([side, -0.1]), [0.10, 0.065]), colours.cheek, 0.7);
        }
    }
}

impl Colours {
    fn draw(chance: &mut Chance) -> Self {
        let hue = HUES[chance.below(HUES.len())] + chance.between(-8.0, 8.0);
        // Dark yellow is brown: lighten bodies with hues around 80 degrees.
        let yellowness = (1.0 - (hue - 80.0).abs() / 40.0).max(0.0);
        let light = chance.between(0.66, 0.74) + 0.1 * yellowness;
        let ground_hue = hue + chance.between(110.0, 250.0);
        let ground_light = chance.between(0.93, 0.965);
        Self {
            body: Gradient {
                from: oklch(light - 0.05, 0.17, hue - 10.0),
                to: oklch(light + 0.08, 0.14, hue + 20.0 * (1.0 - yellowness)),
                direction: [0.0, 1.0],
            },
            background: Gradient {
                from: oklch(0.88, 0.05, ground_hue + 30.0),
                to: oklch(ground_light, 0.035, ground_hue),
                direction: [0.0, 1.0],
            },
            ink: oklch(0.25, 0.04, hue),
            cheek: oklch(0.78, 0.13, 15.0),
            throat: oklch(0.35, 0.10, 20.0),
            tongue: oklch(0.70, 0.16, 20.0),
        }
    }
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
        assert_eq!(hasher.finalize(), 0x8f1b_e2e2);
    }

    #[test]
    fn no_two_images_are_the_same() {
        let data = shapes(2000, RGB, Split::Train, 1).unwrap();
        let distinct: std::collections::HashSet<&[u8]> = (0..2000).map(|index| data.image(index)).collect();
        assert_eq!(distinct.len(), 2000);
    }

    #[test]
    fn classes_are_balanced_and_have_the_names_of_their_bodies() {
        let data = shapes(80, GREY, Split::Train, 1).unwrap();
        for label in 0..8 {
            assert_eq!(data.labels().iter().filter(|own| **own == label).count(), 10);
            let drawn = format!("{:?}", Body::ALL[label as usize]).to_lowercase();
            assert_eq!(data.classes()[label as usize], drawn);
        }
        assert_eq!(data.classes(), SHAPE_CLASSES);
    }

    #[test]
    fn the_creature_contrasts_with_its_background_and_does_not_touch_the_border() {
        for shape in [RGB, GREY] {
            let data = shapes(400, shape, Split::Train, 3).unwrap();
            for index in 0..400 {
                let plane = &data.image(index)[..shape.height * shape.width];
                let (least, most) = (plane.iter().min().unwrap(), plane.iter().max().unwrap());
                let grey = shape.channels == 1;
                assert!(!grey || most - least > 50, "image {index}: {least} to {most}");
            }
            let picture =
                |index: u64| Picture::compose(Body::ALL[index as usize % 8], shape, Chance::new(3, index));
            for picture in (0..400).map(picture) {
                for x in 0..shape.width {
                    for y in [0.0, shape.height as f32] {
                        let distance = picture.body.distance(picture.on_body([x as f32, y]));
                        assert!(distance * picture.radius > 0.3, "{:?} at {x} {y}", picture.body);
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
