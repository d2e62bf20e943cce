//! Precision, recall, density and coverage: how much of one set lies on the manifold of the other, which is the union
//! of balls about its images that reach to the k-th nearest of its own (Kynkäänniemi et al., arXiv 1904.06991; Naeem
//! et al., arXiv 2002.09797).

use super::MetricsError;
use super::rows::Rows;

/// Neighbours of the balls of precision and recall.
pub const PRECISION_NEIGHBOURS: usize = 3;
/// Neighbours of the balls of density and coverage.
pub const DENSITY_NEIGHBOURS: usize = 5;

/// Rows whose distances are computed at a time.
const BLOCK: usize = 256;

/// Fidelity (precision, density) and diversity (recall, coverage) of generated images.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Manifold {
    /// Share of the generated images that lie in a ball of the real ones.
    pub precision: f64,
    /// Share of the real images that lie in a ball of the generated ones.
    pub recall: f64,
    /// Balls of real images that a generated one lies in, over [`DENSITY_NEIGHBOURS`]; can be above 1.
    pub density: f64,
    /// Share of the balls of real images in which a generated one lies.
    pub coverage: f64,
}

/// Compares generated images with real ones.
///
/// # Errors
/// Sets of different width, or of too few images for their neighbours.
pub fn manifold(real: &Rows, generated: &Rows) -> Result<Manifold, MetricsError> {
    real.suit(generated)?;
    let (found, expected) = (real.len().min(generated.len()), DENSITY_NEIGHBOURS + 1);
    if found < expected {
        return Err(MetricsError::TooFew { figure: "density and coverage", expected, found });
    }
    let neighbours = [PRECISION_NEIGHBOURS, DENSITY_NEIGHBOURS];
    let (real_radii, generated_radii) = (radii(real, neighbours), radii(generated, neighbours));
    // Of the generated images, which; of the real ones, how many.
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

/// The squared distances of every row to its k-th nearest, itself not counted, for two k.
fn radii(rows: &Rows, neighbours: [usize; 2]) -> Vec<[f64; 2]> {
    let mut radii = Vec::with_capacity(rows.len());
    distances(rows, rows, |row, to_others| {
        let mut to_others = to_others.to_vec();
        // Rounding may have made it less than nothing, or not quite nothing.
        to_others[row] = f64::NEG_INFINITY;
        radii.push(neighbours.map(|k| *to_others.select_nth_unstable_by(k, f64::total_cmp).1));
    });
    radii
}

/// Calls `f` with every row of `a` in turn and its squared distances to all rows of `b`.
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
    fn balls_on_a_line_are_counted_as_by_hand() {
        // Ten real images a step apart: the balls of three neighbours reach to 2 (3 and 2 at the ends), those of five
        // to 3 (5, 4 and 3 at the ends).
        let real = line((0..10).map(f64::from));
        // Inside; off the end by 2.5, in the ball of the last one; far away; four more at one place, far away.
        let generated = line([4.5, 11.5, 100.0, 200.0, 200.0, 200.0, 200.0, 200.0]);
        let found = manifold(&real, &generated).unwrap();
        assert_eq!(found.precision, 2.0 / 8.0);
        // 4.5 is in the balls within 3 of it, 2 to 7, and in that of 0 and of 1 (5 and 4); 9 too (5), 8 (4).
        // 11.5 is in those of 8 (4) and 9 (5).
        assert_eq!(found.density, (10.0 + 2.0) / (8.0 * 5.0));
        assert_eq!(found.coverage, 1.0);
        // Balls of generated ones: 4.5 reaches 95.5, so everything real is in it.
        assert_eq!(found.recall, 1.0);
    }

    #[test]
    fn a_set_compared_with_itself_is_on_its_manifold() {
        let set = line((0..40).map(|i| (f64::from(i) * 0.37).sin()));
        let found = manifold(&set, &set).unwrap();
        assert_eq!([found.precision, found.recall, found.coverage], [1.0; 3]);
        assert!(manifold(&set, &line([1.0; 5])).is_err());
    }
}
