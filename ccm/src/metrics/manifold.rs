//! Precision, recall, density and coverage: how much of one set lies on the manifold of the other. The manifold of a
//! set is a union of balls around its images; each ball reaches to the k-th nearest neighbour within the set
//! (Kynkäänniemi et al., arXiv 1904.06991; Naeem et al., arXiv 2002.09797).

use super::MetricsError;
use super::rows::Rows;

/// k for precision and recall.
pub const PRECISION_NEIGHBOURS: usize = 3;
/// k for density and coverage.
pub const DENSITY_NEIGHBOURS: usize = 5;

/// Rows whose distances are computed in one block.
const BLOCK: usize = 256;

/// Fidelity (precision, density) and diversity (recall, coverage) of generated images.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Manifold {
    /// Share of generated images in at least one ball of the real images.
    pub precision: f64,
    /// Share of real images in at least one ball of the generated images.
    pub recall: f64,
    /// Mean number of real balls that contain a generated image, divided by [`DENSITY_NEIGHBOURS`]. Can exceed 1.
    pub density: f64,
    /// Share of real balls that contain at least one generated image.
    pub coverage: f64,
}

/// Compares generated images with real ones.
///
/// # Errors
/// [`MetricsError`] if the widths differ or a set has fewer than `DENSITY_NEIGHBOURS + 1` images.
pub fn manifold(real: &Rows, generated: &Rows) -> Result<Manifold, MetricsError> {
    real.suit(generated)?;
    let (found, expected) = (real.len().min(generated.len()), DENSITY_NEIGHBOURS + 1);
    if found < expected {
        return Err(MetricsError::TooFew { figure: "density and coverage", expected, found });
    }
    let neighbours = [PRECISION_NEIGHBOURS, DENSITY_NEIGHBOURS];
    let (real_radii, generated_radii) = (radii(real, neighbours), radii(generated, neighbours));
    // A flag for every generated image, and counts of real images.
    let mut precise = vec![false; generated.len()];
    let (mut recalled, mut covered) = (0usize, 0usize);
    let mut inside = 0usize;
    distances(real, generated, |row, to_generated| {
        let [narrow, wide] = real_radii[row];
        let within = to_generated.iter().filter(|distance| **distance <= wide).count();
        inside += within;
        covered += usize::from(within > 0);
        recalled +=
            usize::from(to_generated.iter().zip(&generated_radii).any(|(d, [narrow, _])| d <= narrow));
        precise.iter_mut().zip(to_generated).for_each(|(precise, distance)| *precise |= *distance <= narrow);
    });
    let precise = precise.into_iter().filter(|precise| *precise).count();
    let share = |count: usize, of: &Rows| count as f64 / of.len() as f64;
    Ok(Manifold {
        precision: share(precise, generated),
        recall: share(recalled, real),
        density: share(inside, generated) / DENSITY_NEIGHBOURS as f64,
        coverage: share(covered, real),
    })
}

/// Squared distance from every row to its k-th nearest neighbour, for two values of k.
fn radii(rows: &Rows, neighbours: [usize; 2]) -> Vec<[f64; 2]> {
    let mut radii = Vec::with_capacity(rows.len());
    distances(rows, rows, |row, to_others| {
        let mut to_others = to_others.to_vec();
        // A row's distance to itself is 0 up to rounding; it must come first.
        to_others[row] = f64::NEG_INFINITY;
        radii.push(neighbours.map(|k| *to_others.select_nth_unstable_by(k, f64::total_cmp).1));
    });
    radii
}

/// Calls `f` for every row of `a` with its squared distances to all rows of `b`.
fn distances(a: &Rows, b: &Rows, mut f: impl FnMut(usize, &[f64])) {
    let squares = |rows: &Rows| -> Vec<f64> {
        let square = |row: &[f64]| row.iter().map(|value| value * value).sum();
        rows.values().chunks_exact(rows.width()).map(square).collect()
    };
    let (of_a, of_b) = (squares(a), squares(b));
    for from in (0..a.len()).step_by(BLOCK) {
        let to = a.len().min(from + BLOCK);
        let mut block = a.products(from, to, b);
        for (row, line) in (from..to).zip(block.chunks_exact_mut(b.len())) {
            for (value, square) in line.iter_mut().zip(&of_b) {
                *value = of_a[row] + square - 2.0 * *value;
            }
            f(row, line);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn line(places: impl IntoIterator<Item = f64>) -> Rows {
        Rows::new(1, places.into_iter().collect()).unwrap()
    }

    #[test]
    fn values_in_one_dimension_agree_with_a_count_by_hand() {
        // Ten real images at distance 1. Balls for k = 3 have radius 2 (3, 2 at the ends), and for k = 5 radius 3 (5,
        // 4, 3 at the ends).
        let real = line((0..10).map(f64::from));
        // One image inside; one 2.5 beyond the end, in the ball of the last real image; one far away; five far away at
        // one point.
        let generated = line([4.5, 11.5, 100.0, 200.0, 200.0, 200.0, 200.0, 200.0]);
        let found = manifold(&real, &generated).unwrap();
        assert_eq!(found.precision, 2.0 / 8.0);
        // 4.5 is in the balls of 2 to 7 (radius 3), of 0 and 9 (5) and of 1 and 8 (4). 11.5 is in those of 8 (4) and 9
        // (5).
        assert_eq!(found.density, (10.0 + 2.0) / (8.0 * 5.0));
        assert_eq!(found.coverage, 1.0);
        // The ball of the generated image 4.5 has radius 195.5 and contains all real images.
        assert_eq!(found.recall, 1.0);
    }

    #[test]
    fn a_set_lies_on_its_own_manifold() {
        let set = line((0..40).map(|i| (f64::from(i) * 0.37).sin()));
        let found = manifold(&set, &set).unwrap();
        assert_eq!([found.precision, found.recall, found.coverage], [1.0; 3]);
        assert!(manifold(&set, &line([1.0; 5])).is_err());
    }
}
