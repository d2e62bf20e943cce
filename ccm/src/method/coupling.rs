//! Coupling: pairs each image of a minibatch with a noise sample (PAPER.md §2).

use lapjv::Matrix;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// How the noise and the images of a batch are paired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Coupling {
    /// In the order drawn (I-CFM).
    Independent,
    /// By the exact optimal-transport plan of the batch (OT-CFM). With labels there is one plan per label, so that the
    /// noise is independent of the label.
    OptimalTransport,
}

impl Coupling {
    /// Returns the row of `x0` for each row of `x1`.
    ///
    /// # Shapes
    /// - `x0`, `x1`: `[B, len]`
    /// - `labels`: `[B]`, or empty for unlabelled images
    /// - result: `[B]`
    pub fn pair(self, x0: &[f32], x1: &[f32], len: usize, labels: &[u32]) -> Vec<usize> {
        let batch = x1.len() / len;
        let mut pairs: Vec<usize> = (0..batch).collect();
        if self == Self::Independent {
            return pairs;
        }
        let mut groups: Vec<u32> = labels.to_vec();
        groups.sort_unstable();
        groups.dedup();
        if labels.is_empty() {
            groups.push(0);
        }
        for group in groups {
            let rows: Vec<usize> = (0..batch).filter(|&i| labels.is_empty() || labels[i] == group).collect();
            for (&row, of) in rows.iter().zip(assignment(x0, x1, len, &rows)) {
                pairs[row] = rows[of];
            }
        }
        pairs
    }
}

/// The assignment among `rows` with the least total squared distance: a position in `rows` of `x0` for each of `x1`.
fn assignment(x0: &[f32], x1: &[f32], len: usize, rows: &[usize]) -> Vec<usize> {
    let distance = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(a - b) * f64::from(a - b)).sum()
    };
    let costs: Vec<f64> = rows
        .par_iter()
        .flat_map_iter(|&i| {
            let x1 = &x1[i * len..(i + 1) * len];
            rows.iter().map(move |&j| distance(&x0[j * len..(j + 1) * len], x1))
        })
        .collect();
    let identity = || (0..rows.len()).collect();
    // Both calls fail only if a cost is not finite. The training step then reports the error.
    let Ok(costs) = Matrix::from_shape_vec((rows.len(), rows.len()), costs) else { return identity() };
    lapjv::lapjv(&costs).map_or_else(|_| identity(), |(columns, _)| columns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_never_mixed() {
        let x: Vec<f32> = (0..12).map(|i| (i * 7 % 12) as f32).collect();
        let labels = [0, 1, 0, 1, 2, 2, 0, 1, 2, 0, 0, 1];
        let pairs = Coupling::OptimalTransport.pair(&x, &x, 1, &labels);
        assert!(pairs.iter().enumerate().all(|(image, &noise)| labels[image] == labels[noise]), "{pairs:?}");
    }

    #[test]
    fn in_one_dimension_the_plan_keeps_the_order() {
        let x0 = [3.0, 1.0, 2.0, 0.0];
        let x1 = [10.0, 30.0, 20.0, 40.0];
        assert_eq!(Coupling::OptimalTransport.pair(&x0, &x1, 1, &[]), [3, 2, 1, 0]);
    }
}
