//! Feature matrices and their products, on which all distances are based.

use super::MetricsError;

/// Features of a set of images, `[images, width]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rows {
    width: usize,
    values: Vec<f64>,
}

impl Rows {
    /// Creates rows of `width` values.
    ///
    /// # Errors
    /// [`MetricsError`] if the values do not form whole rows or are not finite.
    pub fn new(width: usize, values: Vec<f64>) -> Result<Self, MetricsError> {
        if width == 0 || !values.len().is_multiple_of(width) {
            return Err(MetricsError::Width { expected: width, found: values.len() });
        }
        if values.iter().any(|value| !value.is_finite()) {
            return Err(MetricsError::NotFinite("features"));
        }
        Ok(Self { width, values })
    }

    /// Number of values per row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.values.len() / self.width.max(1)
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// All values, in row-major order.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// Row `index`.
    ///
    /// # Panics
    /// If `index` is not below [`len`](Self::len).
    pub fn row(&self, index: usize) -> &[f64] {
        &self.values[index * self.width..][..self.width]
    }

    /// The rows at `indices`.
    ///
    /// # Panics
    /// If an index is not below [`len`](Self::len).
    pub fn select(&self, indices: &[usize]) -> Self {
        let values = indices.iter().flat_map(|&index| self.row(index)).copied().collect();
        Self { width: self.width, values }
    }

    /// The first `count` rows, or all if there are fewer.
    pub fn first(&self, count: usize) -> Self {
        let len = count.min(self.len()) * self.width;
        Self { width: self.width, values: self.values[..len].to_vec() }
    }

    /// Checks that two sets have rows of the same width.
    ///
    /// # Errors
    /// [`MetricsError::Width`] if they do not.
    pub fn suit(&self, other: &Self) -> Result<(), MetricsError> {
        if self.width == other.width {
            Ok(())
        } else {
            Err(MetricsError::Width { expected: self.width, found: other.width })
        }
    }

    /// Inner products of rows `from..to` with all rows of `other`: `[to - from, other.len()]`.
    pub(super) fn products(&self, from: usize, to: usize, other: &Self) -> Vec<f64> {
        let mut products = vec![0.0; (to - from) * other.len()];
        let left = &self.values[from * self.width..to * self.width];
        let right =
            Matrix { values: &other.values, rows: other.width, row_stride: 1, column_stride: other.width };
        let left = Matrix { values: left, rows: to - from, row_stride: self.width, column_stride: 1 };
        add_product(&mut products, left, right, self.width, other.len());
        products
    }
}

/// A strided view of a matrix.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub(super) values: &'a [f64],
    pub(super) rows: usize,
    /// Values from one row to the next.
    pub(super) row_stride: usize,
    /// Values from one column to the next.
    pub(super) column_stride: usize,
}

/// `sum += left * right` on all cores. `left` has `inner` columns, `right` has `columns`, and `sum` is row-major.
///
/// # Panics
/// If the sizes do not fit.
pub(super) fn add_product(sum: &mut [f64], left: Matrix, right: Matrix, inner: usize, columns: usize) {
    if sum.is_empty() || inner == 0 {
        return;
    }
    let last = |m: Matrix, columns: usize| (m.rows - 1) * m.row_stride + (columns - 1) * m.column_stride;
    assert_eq!(right.rows, inner, "rows of `right`");
    assert_eq!(sum.len(), left.rows * columns, "values of `sum`");
    assert!(last(left, inner) < left.values.len() && last(right, columns) < right.values.len());
    // SAFETY: the assertions above bound every index that is read or written, and `sum` is borrowed exclusively.
    unsafe {
        gemm::gemm(
            left.rows,
            columns,
            inner,
            sum.as_mut_ptr(),
            1,
            columns as isize,
            true,
            left.values.as_ptr(),
            left.column_stride as isize,
            left.row_stride as isize,
            right.values.as_ptr(),
            right.column_stride as isize,
            right.row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::Rayon(0),
        );
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn products_agree_with_sums_over_each_pair() {
        let rows = |count: usize, shift: f64| {
            Rows::new(5, (0..5 * count).map(|i| (i as f64 * 0.7 + shift).sin()).collect()).unwrap()
        };
        let (a, b) = (rows(7, 0.1), rows(3, 0.4));
        let products = a.products(2, 6, &b);
        for i in 0..4 {
            for j in 0..3 {
                let expected: f64 = a.row(2 + i).iter().zip(b.row(j)).map(|(x, y)| x * y).sum();
                assert!((products[i * 3 + j] - expected).abs() < 1e-12, "{i}, {j}");
            }
        }
    }

    #[test]
    fn incomplete_rows_and_values_that_are_not_finite_are_errors() {
        assert!(Rows::new(3, vec![0.0; 7]).is_err());
        assert!(Rows::new(0, vec![]).is_err());
        assert!(Rows::new(2, vec![0.0, f64::NAN]).is_err());
    }
}
