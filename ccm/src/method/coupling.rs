//! Which noise goes with which image of a minibatch (PAPER.md §2).

use lapjv::Matrix;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// How noise and images of a batch are paired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Coupling {
    /// As drawn (I-CFM).
    Independent,
    /// By the exact optimal-transport plan of the batch (OT-CFM); with labels, one plan within each label, so
    /// that the noise of a label stays standard normal.
    OptimalTransport,
}

impl Coupling {
    /// For each image the row of the noise that goes with it.
    ///
    /// # Shapes
    /// `x0`, `x1`: `[B, len]`; `labels`: `[B]`, or empty for unlabelled images.
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

/// The assignment of least total squared distance among `rows`: for each row of `x1` the one of `x0`.
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
    // Both fail only if a cost is not finite; then the training step will say so.
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
