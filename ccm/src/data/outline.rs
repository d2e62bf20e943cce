//! Outlines of the generated shapes as signed distances: positive outside, negative inside.
//!
//! Every shape fits the unit circle around the origin; y points up. Formulas: Inigo Quilez,
//! <https://iquilezles.org/articles/distfunctions2d/>. All polygons share one function.

use std::f32::consts::TAU;

/// A point or a direction.
pub(super) type Point = [f32; 2];

/// The shapes, in the order of their labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outline {
    Circle,
    Crescent,
    Cross,
    Heart,
    Ring,
    Square,
    Star,
    Triangle,
}

impl Outline {
    /// All shapes, indexed by label.
    pub(super) const ALL: [Self; 8] = [
        Self::Circle,
        Self::Crescent,
        Self::Cross,
        Self::Heart,
        Self::Ring,
        Self::Square,
        Self::Star,
        Self::Triangle,
    ];

    /// Largest rotation from upright, in radians. It is small for shapes that would otherwise resemble another shape.
    pub(super) fn largest_turn(self) -> f32 {
        match self {
            Self::Circle | Self::Ring => 0.0,
            Self::Heart => 0.15,
            Self::Square | Self::Cross => 0.12,
            Self::Triangle => 0.15,
            Self::Crescent => 0.25,
            Self::Star => 0.15,
        }
    }

    /// Signed distance from `point` to the outline.
    pub(super) fn distance(self, point: Point) -> f32 {
        match self {
            Self::Circle => length(point) - 0.88,
            Self::Ring => (length(point) - 0.67).abs() - 0.25,
            Self::Square => {
                polygon(point, &[[0.62, 0.62], [-0.62, 0.62], [-0.62, -0.62], [0.62, -0.62]]) - 0.1
            }
            Self::Triangle => polygon(point, &[[0.0, 0.86], [-0.745, -0.43], [0.745, -0.43]]) - 0.1,
            Self::Star => polygon(point, &star()) - 0.04,
            Self::Cross => polygon(point, &cross()) - 0.06,
            Self::Heart => heart([point[0] * 0.66, point[1] * 0.66 + 0.6]) / 0.66,
            Self::Crescent => crescent([point[0] - 0.05, point[1]]),
        }
    }
}

fn length([x, y]: Point) -> f32 {
    x.hypot(y)
}

fn dot(a: Point, b: Point) -> f32 {
    a[0] * b[0] + a[1] * b[1]
}

fn difference(a: Point, b: Point) -> Point {
    [a[0] - b[0], a[1] - b[1]]
}

/// Five points; the first is at the top.
fn star() -> [Point; 10] {
    std::array::from_fn(|corner| {
        let radius = if corner.is_multiple_of(2) { 0.95 } else { 0.43 };
        let (sine, cosine) = (corner as f32 * TAU / 10.0).sin_cos();
        [radius * sine, radius * cosine]
    })
}

/// Four equal arms.
fn cross() -> [Point; 12] {
    let (long, short) = (0.86, 0.23);
    let arm = [[short, short], [short, long], [-short, long]];
    std::array::from_fn(|corner| {
        let [x, y] = arm[corner % 3];
        match corner / 3 {
            0 => [x, y],
            1 => [-y, x],
            2 => [-x, -y],
            _ => [y, -x],
        }
    })
}

fn polygon(point: Point, corners: &[Point]) -> f32 {
    let mut nearest = f32::INFINITY;
    let mut inside = false;
    let mut previous = corners[corners.len() - 1];
    for &corner in corners {
        let edge = difference(previous, corner);
        let offset = difference(point, corner);
        let along = (dot(offset, edge) / dot(edge, edge)).clamp(0.0, 1.0);
        let away = difference(offset, [edge[0] * along, edge[1] * along]);
        nearest = nearest.min(dot(away, away));
        if (corner[1] > point[1]) != (previous[1] > point[1]) {
            let crossing = corner[0] + edge[0] * (point[1] - corner[1]) / edge[1];
            inside ^= point[0] < crossing;
        }
        previous = corner;
    }
    if inside { -nearest.sqrt() } else { nearest.sqrt() }
}

/// The tip is at the origin; width about 1.2, height about 1.1.
fn heart([x, y]: Point) -> f32 {
    let x = x.abs();
    if y + x > 1.0 {
        return length([x - 0.25, y - 0.75]) - 0.125_f32.sqrt();
    }
    let notch = length([x, y - 1.0]);
    let diagonal = 0.5 * (x + y).max(0.0);
    notch.min(length([x - diagonal, y - diagonal])).copysign(x - y)
}

/// The circle of radius 0.95 around the origin minus the circle of radius 0.78 around (0.45, 0).
fn crescent([x, y]: Point) -> f32 {
    let (outer, inner, shift) = (0.95_f32, 0.78_f32, 0.45_f32);
    let y = y.abs();
    let tip_x = (outer * outer - inner * inner + shift * shift) / (2.0 * shift);
    let tip_y = (outer * outer - tip_x * tip_x).max(0.0).sqrt();
    if x * tip_y - y * tip_x > shift * (tip_y - y).max(0.0) {
        return length([x - tip_x, y - tip_y]);
    }
    (length([x, y]) - outer).max(inner - length([x - shift, y]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Grid of points over [-1.5, 1.5] x [-1.5, 1.5].
    fn grid() -> impl Iterator<Item = Point> {
        (0..3721).map(|at| [(at % 61) as f32 / 20.0 - 1.5, (at / 61) as f32 / 20.0 - 1.5])
    }

    #[test]
    fn every_shape_is_within_the_unit_circle_and_has_a_large_area() {
        for outline in Outline::ALL {
            let outside = grid().filter(|point| length(*point) > 1.02);
            assert!(
                outside.fold(f32::INFINITY, |least, at| least.min(outline.distance(at))) > 0.0,
                "{outline:?}"
            );
            let filled = grid().filter(|point| outline.distance(*point) < 0.0).count() as f32 / 400.0;
            assert!((1.0..2.6).contains(&filled), "{outline:?} has area {filled}");
        }
    }

    #[test]
    fn distances_are_lipschitz_with_constant_one() {
        for outline in Outline::ALL {
            for point in grid() {
                for step in [[0.01, 0.0], [0.0, 0.01]] {
                    let moved = [point[0] + step[0], point[1] + step[1]];
                    let change = (outline.distance(moved) - outline.distance(point)).abs();
                    assert!(change < 0.0101, "{outline:?} at {point:?}: {change}");
                }
            }
        }
    }

    #[test]
    fn the_area_of_a_polygon_agrees_with_its_corners() {
        // A rounded edge of radius r enlarges an area A with perimeter P to A + P r + pi r^2.
        let square = 1.24 * 1.24 + 4.96 * 0.1 + 0.0314;
        let triangle = 0.5 * 1.49 * 1.29 + 3.0 * 1.49 * 0.1 + 0.0314;
        for (outline, area) in [(Outline::Square, square), (Outline::Triangle, triangle)] {
            let filled = grid().filter(|point| outline.distance(*point) < 0.0).count() as f32 / 400.0;
            assert!((filled - area).abs() < 0.1, "{outline:?}: {filled} for {area}");
        }
    }
}
