//! Coupling: pairs each image with a noise sample (PAPER.md §2).

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor, TensorData};
use lapjv::Matrix;
use serde::{Deserialize, Serialize};

use crate::nn::host::to_host;

/// How the noise and the images of a batch are paired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Coupling {
    /// In the order drawn (I-CFM).
    Independent,
    /// By the exact optimal-transport plan of a batch, or of the images of several batches (OT-CFM). With labels there is
    /// one plan per label, so that the noise is independent of the label.
    OptimalTransport,
}

impl Coupling {
    /// Pairs images with noise. Returns the noise sample of each image.
    ///
    /// `labels` has one entry for each image, or is empty for unlabelled images. `read` gives the noise and the images of
    /// some rows. It is called once for each label, with all rows of the label.
    ///
    /// # Shapes
    /// - result of `read`: `[rows, len]` each
    /// - result: `[count]`
    ///
    /// # Errors
    /// Those of `read`.
    pub fn pair<E>(
        self,
        count: usize,
        labels: &[u32],
        mut read: impl FnMut(&[usize]) -> Result<[Vec<f32>; 2], E>,
    ) -> Result<Vec<usize>, E> {
        let mut pairs: Vec<usize> = (0..count).collect();
        if self == Self::Independent {
            return Ok(pairs);
        }
        let mut groups: BTreeMap<Option<u32>, Vec<usize>> = BTreeMap::new();
        for row in 0..count {
            groups.entry(labels.get(row).copied()).or_default().push(row);
        }
        for rows in groups.values() {
            let [x0, x1] = read(rows)?;
            for (&row, of) in rows.iter().zip(assignment(x0, x1, rows.len())) {
                pairs[row] = rows[of];
            }
        }
        Ok(pairs)
    }
}

/// The assignment with the least total squared distance: the row of `x0` for each row of `x1`. Both are `[rows, len]`.
///
/// `|x0 - x1|^2 = |x0|^2 + |x1|^2 - 2 <x0, x1>`, and the sum of the squares is the same for every assignment, so the inner
/// products, in single precision, decide.
fn assignment(x0: Vec<f32>, x1: Vec<f32>, rows: usize) -> Vec<usize> {
    let identity = || (0..rows).collect();
    let device = Device::flex();
    let matrix = |values: Vec<f32>| {
        let len = values.len() / rows;
        Tensor::<2>::from_data(TensorData::new(values, [rows, len]), &device)
    };
    let products = to_host(matrix(x1).matmul(matrix(x0).transpose()).flatten::<1>(0, 1));
    let costs = products.into_iter().map(|product| -f64::from(product)).collect();
    // Both calls fail only if a cost is not finite. The training step then reports the error.
    let Ok(costs) = Matrix::from_shape_vec((rows, rows), costs) else { return identity() };
    lapjv::lapjv(&costs).map_or_else(|_| identity(), |(columns, _)| columns)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    /// The plan of values in one dimension.
    fn plan(x0: &[f32], x1: &[f32], labels: &[u32]) -> Vec<usize> {
        let of = |x: &[f32], rows: &[usize]| rows.iter().map(|&row| x[row]).collect();
        let read = |rows: &[usize]| Ok::<_, Infallible>([of(x0, rows), of(x1, rows)]);
        let Ok(pairs) = Coupling::OptimalTransport.pair(x1.len(), labels, read);
        pairs
    }

    #[test]
    fn labels_are_never_mixed() {
        let x: Vec<f32> = (0..12).map(|i| (i * 7 % 12) as f32).collect();
        let labels = [0, 1, 0, 1, 2, 2, 0, 1, 2, 0, 0, 1];
        let pairs = plan(&x, &x, &labels);
        assert!(pairs.iter().enumerate().all(|(image, &noise)| labels[image] == labels[noise]), "{pairs:?}");
    }

    #[test]
    fn in_one_dimension_the_plan_keeps_the_order() {
        let x0 = [3.0, 1.0, 2.0, 0.0];
        let x1 = [10.0, 30.0, 20.0, 40.0];
        assert_eq!(plan(&x0, &x1, &[]), [3, 2, 1, 0]);
    }
}
