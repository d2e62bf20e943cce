//! Kernel distance (KID): unbiased squared maximum mean discrepancy with the kernel `(x y / width + 1)^3` (Bińkowski et
//! al., arXiv 1801.01401).

use super::MetricsError;
use super::rows::Rows;
use crate::noise::Noise;

/// Rows whose kernel is computed in one block.
const BLOCK: usize = 512;

/// Mean and standard deviation over subsets.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Spread {
    /// Mean.
    pub mean: f64,
    /// Standard deviation.
    pub deviation: f64,
}

impl Spread {
    /// Mean and standard deviation of `values`, which must not be empty.
    pub fn of(values: &[f64]) -> Self {
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
        Self { mean, deviation: variance.sqrt() }
    }
}

/// Unbiased squared maximum mean discrepancy of two sets. It can be negative.
///
/// # Errors
/// [`MetricsError`] if the widths differ or a set has fewer than two images.
pub fn squared_mmd(a: &Rows, b: &Rows) -> Result<f64, MetricsError> {
    a.suit(b)?;
    let found = a.len().min(b.len());
    if found < 2 {
        return Err(MetricsError::TooFew { figure: "kernel distance", expected: 2, found });
    }
    let (m, n) = (a.len() as f64, b.len() as f64);
    let within =
        |rows: &Rows| sum(rows, rows) - rows.values().chunks_exact(rows.width()).map(own).sum::<f64>();
    Ok(within(a) / (m * (m - 1.0)) + within(b) / (n * (n - 1.0)) - 2.0 * sum(a, b) / (m * n))
}

/// [`squared_mmd`] of random subsets of `size` images of each set, drawn without replacement.
///
/// # Errors
/// As [`squared_mmd`], and [`MetricsError::TooFew`] if a set is smaller than a subset.
pub fn kernel_distance(
    a: &Rows,
    b: &Rows,
    subsets: usize,
    size: usize,
    seed: u64,
) -> Result<Spread, MetricsError> {
    let found = a.len().min(b.len());
    if size > found || subsets == 0 {
        return Err(MetricsError::TooFew { figure: "kernel distance", expected: size, found });
    }
    let mut noise = Noise::new(seed, 0);
    let mut subset = |rows: &Rows| rows.select(&noise.permutation(rows.len())[..size]);
    let distances = (0..subsets).map(|_| squared_mmd(&subset(a), &subset(b)));
    Ok(Spread::of(&distances.collect::<Result<Vec<_>, _>>()?))
}

/// The kernel for an inner product.
fn kernel(product: f64, width: usize) -> f64 {
    (product / width as f64 + 1.0).powi(3)
}

/// The kernel of a row with itself.
fn own(row: &[f64]) -> f64 {
    kernel(row.iter().map(|value| value * value).sum(), row.len())
}

/// Sum of the kernel over all pairs.
fn sum(a: &Rows, b: &Rows) -> f64 {
    let blocks = (0..a.len()).step_by(BLOCK);
    blocks
        .map(|from| {
            let products = a.products(from, a.len().min(from + BLOCK), b);
            products.into_iter().map(|product| kernel(product, a.width())).sum::<f64>()
        })
        .sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn rows(count: usize, shift: f32, seed: u64) -> Rows {
        let values = Noise::new(seed, 0).normals(count * 4);
        Rows::new(4, values.into_iter().map(|value| f64::from(value + shift)).collect()).unwrap()
    }

    #[test]
    fn the_distance_agrees_with_sums_over_pairs() {
        let (a, b) = (rows(5, 0.0, 1), rows(3, 0.5, 2));
        let k = |x: &[f64], y: &[f64]| kernel(x.iter().zip(y).map(|(x, y)| x * y).sum(), 4);
        let mean = |a: &Rows, b: &Rows, same: bool| {
            let pairs = (0..a.len()).flat_map(|i| (0..b.len()).map(move |j| (i, j)));
            let values: Vec<f64> =
                pairs.filter(|(i, j)| !same || i != j).map(|(i, j)| k(a.row(i), b.row(j))).collect();
            values.iter().sum::<f64>() / values.len() as f64
        };
        let expected = mean(&a, &a, true) + mean(&b, &b, true) - 2.0 * mean(&a, &b, false);
        assert!((squared_mmd(&a, &b).unwrap() - expected).abs() < 1e-12);
    }

    #[test]
    fn only_sets_from_different_distributions_have_a_significant_distance() {
        let same = kernel_distance(&rows(600, 0.0, 1), &rows(600, 0.0, 2), 20, 300, 0).unwrap();
        assert!(same.mean.abs() < 3.0 * same.deviation, "{same:?}");
        let other = kernel_distance(&rows(600, 0.0, 1), &rows(600, 0.5, 2), 20, 300, 0).unwrap();
        assert!(other.mean > 3.0 * other.deviation, "{other:?}");
        assert!(kernel_distance(&rows(9, 0.0, 1), &rows(600, 0.0, 2), 20, 10, 0).is_err());
    }
}
