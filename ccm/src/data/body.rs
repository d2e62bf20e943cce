//! Bodies of the generated creatures as signed distances: positive outside, negative inside.
//!
//! Every body fits the unit circle around the origin; y points up. Formulas: Inigo Quilez,
//! <https://iquilezles.org/articles/distfunctions2d/>. Distances to ellipses and waves are lower bounds.

use std::f32::consts::TAU;

/// A point or a direction.
pub(super) type Point = [f32; 2];

/// The bodies, in the order of their labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    Bunny,
    Cat,
    Drop,
    Ghost,
    Mushroom,
    Robot,
    Sprout,
    Star,
}

impl Body {
    /// All bodies, indexed by label.
    pub(super) const ALL: [Self; 8] = [
        Self::Bunny,
        Self::Cat,
        Self::Drop,
        Self::Ghost,
        Self::Mushroom,
        Self::Robot,
        Self::Sprout,
        Self::Star,
    ];

    /// Centre of the face.
    pub(super) fn face(self) -> Point {
        match self {
            Self::Bunny => [0.0, -0.32],
            Self::Cat => [0.0, -0.14],
            Self::Drop => [0.0, -0.24],
            Self::Ghost => [0.0, 0.16],
            Self::Mushroom => [0.0, -0.28],
            Self::Robot => [0.0, -0.08],
            Self::Sprout => [0.0, -0.24],
            Self::Star => [0.0, -0.02],
        }
    }

    /// Signed distance from `point` to the outline.
    pub(super) fn distance(self, point: Point) -> f32 {
        let [x, y] = point;
        // The right half stands for both.
        let half = [x.abs(), y];
        match self {
            Self::Bunny => {
                let ear = capsule(half, [0.26, 0.1], [0.34, 0.72], 0.17);
                merged(ellipse(difference(point, [0.0, -0.37]), [0.66, 0.56]), ear, 0.08)
            }
            Self::Cat => {
                let ear = polygon(half, &[[0.2, 0.36], [0.6, 0.72], [0.68, 0.08]]) - 0.05;
                merged(ellipse(difference(point, [0.0, -0.18]), [0.8, 0.66]), ear, 0.06)
            }
            Self::Drop => {
                let tip = capsule(point, [0.0, 0.1], [0.0, 0.82], 0.06);
                merged(circle(difference(point, [0.0, -0.28]), 0.64), tip, 0.55)
            }
            Self::Ghost => {
                let dome = if y > 0.18 { circle([x, y - 0.18], 0.64) } else { half[0] - 0.64 };
                let hem = 0.1 * (x * 2.0 * TAU).cos() - 0.64 - y;
                // The hem's slope is at most 1.26.
                dome.max(0.6 * hem)
            }
            Self::Mushroom => {
                let cap = ellipse(difference(point, [0.0, 0.08]), [0.88, 0.7]).max(0.08 - y) - 0.04;
                cap.min(rounded_box(difference(point, [0.0, -0.36]), [0.52, 0.48], 0.2))
            }
            Self::Robot => {
                let head = rounded_box(difference(point, [0.0, -0.14]), [0.72, 0.58], 0.16);
                let antenna = capsule(point, [0.0, 0.4], [0.0, 0.7], 0.05);
                head.min(antenna).min(circle(difference(point, [0.0, 0.78]), 0.13))
            }
            Self::Sprout => {
                let (sine, cosine) = 0.5_f32.sin_cos();
                let [leaf_x, leaf_y] = difference(half, [0.24, 0.62]);
                let along = [cosine * leaf_x + sine * leaf_y, cosine * leaf_y - sine * leaf_x];
                let stem = capsule(point, [0.0, 0.2], [0.0, 0.5], 0.05);
                let bulb = ellipse(difference(point, [0.0, -0.3]), [0.72, 0.6]);
                bulb.min(stem).min(ellipse(along, [0.28, 0.15]))
            }
            Self::Star => polygon(point, &star()) - 0.07,
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

/// The circle around the origin.
pub(super) fn circle(point: Point, radius: f32) -> f32 {
    length(point) - radius
}

/// The ellipse around the origin with these radii.
pub(super) fn ellipse([x, y]: Point, [wide, high]: Point) -> f32 {
    (length([x / wide, y / high]) - 1.0) * wide.min(high)
}

/// The points within `radius` of the line from `from` to `to`.
fn capsule(point: Point, from: Point, to: Point, radius: f32) -> f32 {
    let (offset, line) = (difference(point, from), difference(to, from));
    let along = (dot(offset, line) / dot(line, line)).clamp(0.0, 1.0);
    length(difference(offset, [line[0] * along, line[1] * along])) - radius
}

/// A box around the origin, `half` as wide and high on each side, with round corners.
fn rounded_box([x, y]: Point, half: Point, radius: f32) -> f32 {
    let (x, y) = (x.abs() - half[0] + radius, y.abs() - half[1] + radius);
    length([x.max(0.0), y.max(0.0)]) + x.max(y).min(0.0) - radius
}

/// The union of two shapes, with a soft seam.
fn merged(a: f32, b: f32, seam: f32) -> f32 {
    let near = (1.0 - (a - b).abs() / seam).max(0.0);
    a.min(b) - near * near * seam / 4.0
}

/// Five points; the first is at the top.
fn star() -> [Point; 10] {
    std::array::from_fn(|corner| {
        let radius = if corner.is_multiple_of(2) { 0.92 } else { 0.55 };
        let (sine, cosine) = (corner as f32 * TAU / 10.0).sin_cos();
        [radius * sine, radius * cosine]
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Grid of points over [-1.5, 1.5] x [-1.5, 1.5].
    fn grid() -> impl Iterator<Item = Point> {
        (0..3721).map(|at| [(at % 61) as f32 / 20.0 - 1.5, (at / 61) as f32 / 20.0 - 1.5])
    }

    #[test]
    fn every_body_is_within_the_unit_circle_and_has_a_large_area() {
        for body in Body::ALL {
            let outside = grid().filter(|point| length(*point) > 1.02);
            assert!(outside.fold(f32::INFINITY, |least, at| least.min(body.distance(at))) > 0.0, "{body:?}");
            let filled = grid().filter(|point| body.distance(*point) < 0.0).count() as f32 / 400.0;
            assert!((1.0..2.6).contains(&filled), "{body:?} has area {filled}");
        }
    }

    #[test]
    fn every_face_is_on_its_body() {
        for body in Body::ALL {
            let [x, y] = body.face();
            for corner in [[x - 0.3, y], [x + 0.3, y], [x, y + 0.3], [x, y - 0.3]] {
                assert!(body.distance(corner) < 0.0, "{body:?} at {corner:?}");
            }
        }
    }

    #[test]
    fn distances_are_lipschitz_with_constant_one() {
        for body in Body::ALL {
            for point in grid() {
                for step in [[0.01, 0.0], [0.0, 0.01]] {
                    let moved = [point[0] + step[0], point[1] + step[1]];
                    let change = (body.distance(moved) - body.distance(point)).abs();
                    assert!(change < 0.0101, "{body:?} at {point:?}: {change}");
                }
            }
        }
    }

    #[test]
    fn areas_agree_with_closed_forms() {
        // Moved, so that no point is on an edge.
        let area = |distance: &dyn Fn(Point) -> f32| {
            grid().filter(|[x, y]| distance([x + 0.017, y + 0.011]) < 0.0).count() as f32 / 400.0
        };
        let pi = TAU / 2.0;
        let cases: [(&dyn Fn(Point) -> f32, f32); 5] = [
            (&|p| circle(p, 0.9), pi * 0.81),
            (&|p| ellipse(p, [1.2, 0.7]), pi * 0.84),
            (&|p| capsule(p, [-0.5, -0.3], [0.3, 0.3], 0.4), pi * 0.16 + 0.8),
            (&|p| rounded_box(p, [0.975, 0.725], 0.2), 2.8275 - (4.0 - pi) * 0.04),
            (&|p| polygon(p, &[[0.0, 1.0], [-1.0, -1.0], [1.0, -1.0]]), 2.0),
        ];
        for (distance, expected) in cases {
            let found = area(distance);
            assert!((found - expected).abs() < 0.06, "{found} for {expected}");
        }
    }
}
