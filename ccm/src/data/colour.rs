//! Colours of the generated creatures: conversion from OKLCH, a perceptually uniform colour space, to sRGB, and gradients.

use super::body::Point;

/// An sRGB colour, each channel in [0, 1].
pub(super) type Colour = [f32; 3];

/// A linear gradient: two colours and the direction from the first to the second.
pub(super) struct Gradient {
    pub(super) from: Colour,
    pub(super) to: Colour,
    pub(super) direction: Point,
}

impl Gradient {
    /// The colour at `point`. The gradient spans from -1 to 1 along its direction.
    pub(super) fn at(&self, [x, y]: Point) -> Colour {
        let along = (x * self.direction[0] + y * self.direction[1]).mul_add(0.5, 0.5).clamp(0.0, 1.0);
        mix(self.from, self.to, along)
    }
}

/// Interpolates linearly: `from` at `amount` 0, `to` at 1.
pub(super) fn mix(from: Colour, to: Colour, amount: f32) -> Colour {
    std::array::from_fn(|channel| from[channel] + (to[channel] - from[channel]) * amount)
}

/// Converts lightness, chroma and hue (degrees) to sRGB. Chroma is reduced until the colour is in the sRGB gamut.
///
/// Source: Björn Ottosson's OKLab, <https://bottosson.github.io/posts/oklab/>.
pub(super) fn oklch(lightness: f32, mut chroma: f32, hue: f32) -> Colour {
    let (sine, cosine) = hue.to_radians().sin_cos();
    let mut linear = linear_rgb(lightness, chroma * cosine, chroma * sine);
    while linear.iter().any(|value| !(0.0..=1.0).contains(value)) && chroma > 0.001 {
        chroma *= 0.95;
        linear = linear_rgb(lightness, chroma * cosine, chroma * sine);
    }
    linear.map(|value| {
        let value = value.clamp(0.0, 1.0);
        if value <= 0.003_130_8 { 12.92 * value } else { 1.055 * value.powf(1.0 / 2.4) - 0.055 }
    })
}

fn linear_rgb(lightness: f32, a: f32, b: f32) -> Colour {
    let long = (lightness + 0.396_337_78 * a + 0.215_803_76 * b).powi(3);
    let medium = (lightness - 0.105_561_346 * a - 0.063_854_17 * b).powi(3);
    let short = (lightness - 0.089_484_18 * a - 1.291_485_5 * b).powi(3);
    [
        4.076_741_7 * long - 3.307_711_6 * medium + 0.230_969_94 * short,
        -1.268_438 * long + 2.609_757_4 * medium - 0.341_319_4 * short,
        -0.004_196_086_3 * long - 0.703_418_6 * medium + 1.707_614_7 * short,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversion_agrees_with_published_colours() {
        // Examples from CSS Color Module Level 4, section 9.
        let published = [
            ((0.401_01, 0.123_32, 21.555), [125, 35, 41]),
            ((0.596_86, 0.156_19, 49.769), [198, 93, 6]),
            ((0.651_25, 0.131_38, 104.097), [157, 147, 24]),
            ((0.660_16, 0.155_46, 134.231), [104, 166, 57]),
            ((0.723_22, 0.124_03, 247.996), [98, 172, 239]),
        ];
        for ((lightness, chroma, hue), bytes) in published {
            let drawn = oklch(lightness, chroma, hue).map(|value| (value * 255.0).round() as u8);
            assert!((0..3).all(|at| drawn[at].abs_diff(bytes[at]) <= 1), "{drawn:?} for {bytes:?}");
        }
    }

    #[test]
    fn a_colour_outside_srgb_is_mapped_into_it_and_keeps_its_saturation() {
        for hue in (0..360).step_by(10) {
            let colour = oklch(0.7, 0.4, hue as f32);
            assert!(colour.iter().all(|value| (0.0..=1.0).contains(value)), "{hue}: {colour:?}");
            let spread = colour.iter().fold(0.0, |most: f32, value| most.max(*value))
                - colour.iter().fold(1.0, |least: f32, value| least.min(*value));
            assert!(spread > 0.4, "{hue}: {colour:?}");
        }
    }

    #[test]
    fn a_gradient_reaches_its_ends_along_its_direction() {
        let gradient = Gradient { from: [0.0; 3], to: [1.0, 0.5, 0.0], direction: [0.0, 1.0] };
        assert_eq!(gradient.at([0.3, -1.0]), [0.0; 3]);
        assert_eq!(gradient.at([-0.3, 0.0]), [0.5, 0.25, 0.0]);
        assert_eq!(gradient.at([0.0, 2.0]), [1.0, 0.5, 0.0]);
    }
}
