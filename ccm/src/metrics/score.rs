//! Inception score (Salimans et al., arXiv 1606.03498): `exp E KL(p(y | x) || p(y))`, averaged over splits of the set.

use super::kernel::Spread;

/// Number of splits.
pub const SPLITS: usize = 10;

/// Streaming inception score.
#[derive(Debug, Clone)]
pub struct Score {
    total: usize,
    seen: usize,
    parts: Vec<Part>,
}

#[derive(Debug, Clone)]
struct Part {
    images: usize,
    /// Sum of the probabilities of each class.
    probabilities: Vec<f64>,
    /// Sum of `p log p` over images and classes.
    information: f64,
}

impl Score {
    /// Creates the score for `total` images and `classes` classes.
    pub fn new(total: usize, classes: usize) -> Self {
        let part = Part { images: 0, probabilities: vec![0.0; classes], information: 0.0 };
        Self { total, seen: 0, parts: vec![part; SPLITS.min(total.max(1))] }
    }

    /// Adds the logits of one image. Images beyond the total are ignored.
    pub fn add(&mut self, logits: &[f32]) {
        if self.seen >= self.total {
            return;
        }
        let place = self.seen * self.parts.len() / self.total;
        self.seen += 1;
        let part = &mut self.parts[place];
        let largest = logits.iter().fold(f64::NEG_INFINITY, |most, &logit| most.max(f64::from(logit)));
        let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - largest).exp()).sum();
        part.images += 1;
        for (total, &logit) in part.probabilities.iter_mut().zip(logits) {
            let log = f64::from(logit) - largest - sum.ln();
            *total += log.exp();
            part.information += log.exp() * log;
        }
    }

    /// Mean and standard deviation of the score over the splits; `None` until all images are added.
    pub fn value(&self) -> Option<Spread> {
        let score = |part: &Part| {
            let images = part.images as f64;
            let marginal = |sum: &f64| if *sum > 0.0 { sum / images * (sum / images).ln() } else { 0.0 };
            let entropy = part.probabilities.iter().map(marginal).sum::<f64>();
            (part.information / images - entropy).exp()
        };
        (self.seen == self.total && self.total > 0)
            .then(|| Spread::of(&self.parts.iter().map(score).collect::<Vec<_>>()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn certain_and_balanced_predictions_score_the_number_of_classes() {
        let mut score = Score::new(400, 4);
        for i in 0..400 {
            let mut logits = [0.0f32; 4];
            logits[i % 4] = 100.0;
            score.add(&logits);
        }
        let found = score.value().unwrap();
        assert!((found.mean - 4.0).abs() < 1e-9 && found.deviation < 1e-9, "{found:?}");
    }

    #[test]
    fn identical_images_score_one() {
        let mut score = Score::new(23, 3);
        assert_eq!(score.value(), None);
        (0..23).for_each(|_| score.add(&[1.0, 2.0, -3.0]));
        assert!((score.value().unwrap().mean - 1.0).abs() < 1e-12);
    }

    #[test]
    fn the_score_agrees_with_its_formula() {
        let mut score = Score::new(2, 2);
        score.parts.truncate(1);
        let half = |p: f64| [(p / (1.0 - p)).ln() as f32, 0.0];
        score.add(&half(0.9));
        score.add(&half(0.3));
        let divergence = |p: f64| p * (p / 0.6).ln() + (1.0 - p) * ((1.0 - p) / 0.4).ln();
        let expected = ((divergence(0.9) + divergence(0.3)) / 2.0).exp();
        assert!((score.value().unwrap().mean - expected).abs() < 1e-6);
    }
}
