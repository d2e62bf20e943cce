//! Fréchet distance between two sets of features, each modelled as a normal distribution (Heusel et al., arXiv
//! 1706.08500): `|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))`.

use nalgebra::{DMatrix, DVector};

use super::MetricsError;
use super::rows::{Matrix, Rows, add_product};

/// Mean and covariance.
#[derive(Debug, Clone, PartialEq)]
pub struct Gaussian {
    /// `[width]`.
    pub mean: Vec<f64>,
    /// `[width, width]`, symmetric.
    pub covariance: Vec<f64>,
}

impl Gaussian {
    /// Whether all values are finite.
    pub fn is_finite(&self) -> bool {
        self.mean.iter().chain(&self.covariance).all(|value| value.is_finite())
    }
}

/// Streaming mean and covariance of features. The features themselves are not kept.
#[derive(Debug, Clone)]
pub struct Moments {
    count: u64,
    mean: Vec<f64>,
    /// Sum of the products of deviations from the mean.
    scatter: Vec<f64>,
}

impl Moments {
    /// No features of `width` values.
    pub fn new(width: usize) -> Self {
        Self { count: 0, mean: vec![0.0; width], scatter: vec![0.0; width * width] }
    }

    /// Number of features added.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Adds features.
    ///
    /// Merges the moments of the batch into the running ones (Chan, Golub and LeVeque, 1979), which avoids the
    /// cancellation of subtracting two large sums.
    ///
    /// # Errors
    /// [`MetricsError::Width`] if the rows have another width.
    pub fn add(&mut self, rows: &Rows) -> Result<(), MetricsError> {
        let width = self.mean.len();
        if rows.width() != width {
            return Err(MetricsError::Width { expected: width, found: rows.width() });
        }
        if rows.is_empty() {
            return Ok(());
        }
        let (before, new) = (self.count as f64, rows.len() as f64);
        let mut mean = vec![0.0; width];
        for row in rows.values().chunks_exact(width) {
            mean.iter_mut().zip(row).for_each(|(mean, value)| *mean += value / new);
        }
        let deviations =
            rows.values().chunks_exact(width).flat_map(|row| row.iter().zip(&mean).map(|(x, m)| x - m));
        let mut deviations: Vec<f64> = deviations.collect();
        // The difference of the two means acts as one more deviation.
        let weight = (before * new / (before + new)).sqrt();
        deviations.extend(mean.iter().zip(&self.mean).map(|(new, old)| (new - old) * weight));
        let count = rows.len() + 1;
        let left = Matrix { values: &deviations, rows: width, row_stride: 1, column_stride: width };
        let right = Matrix { values: &deviations, rows: count, row_stride: width, column_stride: 1 };
        add_product(&mut self.scatter, left, right, count, width);
        let share = new / (before + new);
        self.mean.iter_mut().zip(&mean).for_each(|(old, new)| *old += (new - *old) * share);
        self.count += rows.len() as u64;
        Ok(())
    }

    /// The normal distribution with this mean and the unbiased covariance.
    ///
    /// # Errors
    /// [`MetricsError::TooFew`] if there are fewer than two features.
    pub fn gaussian(&self) -> Result<Gaussian, MetricsError> {
        if self.count < 2 {
            let found = self.count as usize;
            return Err(MetricsError::TooFew { figure: "covariance", expected: 2, found });
        }
        let scale = 1.0 / (self.count - 1) as f64;
        let covariance = self.scatter.iter().map(|value| value * scale).collect();
        Ok(Gaussian { mean: self.mean.clone(), covariance })
    }
}

/// The Fréchet distance between two normal distributions.
///
/// # Errors
/// [`MetricsError`] if the widths differ or a value is not finite.
pub fn frechet_distance(a: &Gaussian, b: &Gaussian) -> Result<f64, MetricsError> {
    let width = a.mean.len();
    if b.mean.len() != width {
        return Err(MetricsError::Width { expected: width, found: b.mean.len() });
    }
    for gaussian in [a, b] {
        if gaussian.covariance.len() != width * width {
            return Err(MetricsError::Width { expected: width * width, found: gaussian.covariance.len() });
        }
        if !gaussian.is_finite() {
            return Err(MetricsError::NotFinite("mean and covariance"));
        }
    }
    let (a_mean, b_mean) = (DVector::from_column_slice(&a.mean), DVector::from_column_slice(&b.mean));
    let matrix = |gaussian: &Gaussian| DMatrix::from_column_slice(width, width, &gaussian.covariance);
    let (a, b) = (matrix(a), matrix(b));
    let traces = a.trace() + b.trace();
    Ok((a_mean - b_mean).norm_squared() + traces - 2.0 * trace_of_root(&a, &b))
}

/// `tr (A B)^(1/2)`. With `A = R R^T`, the nonzero eigenvalues of `A B` are those of the symmetric `R^T B R`.
fn trace_of_root(a: &DMatrix<f64>, b: &DMatrix<f64>) -> f64 {
    let root = root(a);
    if root.is_empty() {
        return 0.0;
    }
    let product = root.tr_mul(&(b * &root));
    product.symmetric_eigenvalues().iter().map(|value| value.max(0.0).sqrt()).sum()
}

/// Pivoted Cholesky factor `R`, `[width, rank]`, of a positive semidefinite `A = R R^T`. It stops when the residual of
/// `A` is rounding error, so the rank is at most the number of images.
fn root(a: &DMatrix<f64>) -> DMatrix<f64> {
    let width = a.nrows();
    let mut root = DMatrix::zeros(width, width);
    let mut left = a.diagonal();
    let rounding = width as f64 * f64::EPSILON * left.max();
    for rank in 0..width {
        let (pivot, height) = left.argmax();
        if height <= rounding {
            return root.columns(0, rank).into_owned();
        }
        let before = root.columns(0, rank);
        let column = (a.column(pivot) - before * before.row(pivot).transpose()) / height.sqrt();
        left.zip_apply(&column, |left, value| *left -= value * value);
        root.set_column(rank, &column);
    }
    root
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use nalgebra::SymmetricEigen;

    use super::*;
    use crate::noise::Noise;

    fn rows(count: usize, width: usize, seed: u64) -> Rows {
        let values = Noise::new(seed, 0).normals(count * width);
        Rows::new(width, values.into_iter().map(f64::from).collect()).unwrap()
    }

    fn gaussian(rows: &Rows) -> Gaussian {
        let mut moments = Moments::new(rows.width());
        moments.add(rows).unwrap();
        moments.gaussian().unwrap()
    }

    #[test]
    fn moments_do_not_depend_on_the_batches() {
        let all = rows(101, 6, 1);
        let whole = gaussian(&all);
        let mut moments = Moments::new(6);
        for part in [0..1, 1..40, 40..40, 40..101] {
            moments.add(&all.select(&part.collect::<Vec<_>>())).unwrap();
        }
        let found = moments.gaussian().unwrap();
        let pairs = found.covariance.iter().zip(&whole.covariance).chain(found.mean.iter().zip(&whole.mean));
        assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() < 1e-13));
        let mean: f64 = (0..101).map(|i| all.row(i)[2]).sum::<f64>() / 101.0;
        let covariance: f64 =
            (0..101).map(|i| (all.row(i)[2] - mean) * (all.row(i)[4] - whole.mean[4])).sum::<f64>() / 100.0;
        assert!((whole.mean[2] - mean).abs() < 1e-14);
        assert!((whole.covariance[2 * 6 + 4] - covariance).abs() < 1e-14);
    }

    #[test]
    fn the_distance_of_diagonal_gaussians_agrees_with_the_closed_form() {
        let diagonal = |mean: f64, deviations: [f64; 3]| {
            let covariance = (0..9).map(|i| if i % 4 == 0 { deviations[i / 4].powi(2) } else { 0.0 });
            Gaussian { mean: vec![mean; 3], covariance: covariance.collect() }
        };
        // The second distribution has zero variance along one axis.
        let (a, b) = (diagonal(1.0, [1.0, 2.0, 3.0]), diagonal(3.0, [2.0, 0.5, 0.0]));
        let expected = 3.0 * 4.0 + 1.0 + 1.5f64.powi(2) + 9.0;
        for (a, b) in [(&a, &b), (&b, &a)] {
            assert!((frechet_distance(a, b).unwrap() - expected).abs() < 1e-12);
        }
    }

    #[test]
    fn the_distance_of_a_set_to_itself_is_zero_even_with_fewer_images_than_features() {
        for count in [5, 200] {
            let gaussian = gaussian(&rows(count, 12, 3));
            assert!(frechet_distance(&gaussian, &gaussian).unwrap().abs() < 1e-6, "{count} images");
        }
    }

    /// 12 features, one of which is always 0, and sets that contain some images twice.
    #[test]
    fn the_trace_for_singular_covariances_agrees_with_eigenvectors() {
        let images = |count: usize, seed: u64, silent: usize| {
            let mut values = rows(count, 12, seed).values().to_vec();
            values.chunks_mut(12).for_each(|row| row[silent] = 0.0);
            values.extend_from_within(..24);
            gaussian(&Rows::new(12, values).unwrap())
        };
        for (a, b) in [(4, 200), (200, 5), (6, 7), (200, 300)] {
            let (a, b) = (images(a, 1, 2), images(b, 2, 7));
            let matrix = |gaussian: &Gaussian| DMatrix::from_column_slice(12, 12, &gaussian.covariance);
            let SymmetricEigen { mut eigenvectors, eigenvalues } = SymmetricEigen::new(matrix(&a));
            for (mut column, value) in eigenvectors.column_iter_mut().zip(&eigenvalues) {
                column *= value.max(0.0).sqrt();
            }
            let product = eigenvectors.transpose() * matrix(&b) * eigenvectors;
            let expected: f64 = product.symmetric_eigenvalues().iter().map(|v| v.max(0.0).sqrt()).sum();
            let found = trace_of_root(&matrix(&a), &matrix(&b));
            assert!((found - expected).abs() < 1e-6 * expected, "{found}, {expected}");
        }
        let nothing = DMatrix::zeros(3, 3);
        assert_eq!(trace_of_root(&nothing, &nothing), 0.0);
    }

    #[test]
    fn different_widths_and_values_that_are_not_finite_are_errors() {
        let (three, four) = (gaussian(&rows(9, 3, 1)), gaussian(&rows(9, 4, 1)));
        assert!(matches!(
            frechet_distance(&three, &four),
            Err(MetricsError::Width { expected: 3, found: 4 })
        ));
        let mut broken = three.clone();
        broken.covariance[1] = f64::NAN;
        assert!(matches!(frechet_distance(&three, &broken), Err(MetricsError::NotFinite(_))));
        assert!(Moments::new(3).gaussian().is_err());
        assert!(Moments::new(3).add(&rows(2, 4, 1)).is_err());
    }
}
