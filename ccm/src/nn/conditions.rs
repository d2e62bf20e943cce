//! What a batch of images is conditioned on, as tensors.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{Device, Int, Tensor, TensorData};

use super::host::labels_tensor;
use crate::model::Text;
use crate::model::networks::TextShape;

/// What a network is conditioned on besides the time, for a batch.
#[derive(Debug, Clone, Default)]
pub struct Conditions {
    /// Labels, `[B]`, for a network with classes. Without labels the label embedding is zero.
    pub label: Option<Tensor<1, Int>>,
    /// Embeddings of the text's tokens, `[B, C, 1, tokens]`, or their ids, `[B, 1, 1, tokens]`, for a network with its own text
    /// encoder.
    pub text: Option<Tensor<4>>,
    /// Embeddings of the texts as a whole, `[B, C]`.
    pub pooled: Option<Tensor<2>>,
    /// Original size, crop and target size, `[B, 6]`.
    pub sizes: Option<Tensor<2>>,
    /// Guidance scales, `[B, 1]`: of the teacher, and of a network into which guidance is distilled.
    pub guidance: Option<Tensor<2>>,
}

impl From<Option<Tensor<1, Int>>> for Conditions {
    fn from(label: Option<Tensor<1, Int>>) -> Self {
        Self { label, ..Self::default() }
    }
}

impl Conditions {
    /// The classes of images; none for an empty slice.
    pub fn of_labels(labels: &[u32], device: &Device) -> Self {
        (!labels.is_empty()).then(|| labels_tensor(labels, device)).into()
    }

    /// Texts as a network of this shape reads them; none for an empty slice.
    pub fn of_texts(texts: &[Arc<Text>], shape: TextShape, device: &Device) -> Self {
        let count = texts.len();
        if count == 0 {
            return Self::default();
        }
        let rows = |of: fn(&Text) -> &[f32]| -> Vec<f32> {
            texts.iter().flat_map(|text| of(text).iter().copied()).collect()
        };
        let vectors = |of: fn(&Text) -> &[f32], width: usize| {
            (width > 0).then(|| Tensor::from_data(TensorData::new(rows(of), [count, width]), device))
        };
        let tokens = TensorData::new(rows(|text| &text.tokens), [count, 1, shape.tokens, shape.channels]);
        Self {
            text: Some(Tensor::from_data(tokens, device).permute([0, 3, 1, 2])),
            pooled: vectors(|text| &text.pooled, shape.pooled),
            sizes: vectors(|text| &text.sizes, if shape.sizes { 6 } else { 0 }),
            ..Self::default()
        }
    }

    /// The same with these guidance scales, one per image.
    #[must_use]
    pub fn with_guidance(self, scales: Vec<f32>, device: &Device) -> Self {
        let count = scales.len();
        Self { guidance: Some(Tensor::from_data(TensorData::new(scales, [count, 1]), device)), ..self }
    }

    /// The same without labels.
    #[must_use]
    pub fn without_label(self) -> Self {
        Self { label: None, ..self }
    }

    /// Applies a function to every part that is present.
    fn map(
        self,
        label: impl Fn(Tensor<1, Int>) -> Tensor<1, Int>,
        map: impl Fn(Tensor<4>) -> Tensor<4>,
        vector: impl Fn(Tensor<2>) -> Tensor<2>,
    ) -> Self {
        Self {
            label: self.label.map(label),
            text: self.text.map(map),
            pooled: self.pooled.map(&vector),
            sizes: self.sizes.map(&vector),
            guidance: self.guidance.map(&vector),
        }
    }

    /// The given rows of the batch, in the given order.
    #[must_use]
    pub fn select(self, rows: &Tensor<1, Int>) -> Self {
        self.map(
            |label| label.select(0, rows.clone()),
            |map| map.select(0, rows.clone()),
            |vector| vector.select(0, rows.clone()),
        )
    }

    /// A range of rows of the batch.
    #[must_use]
    pub fn narrow(self, rows: Range<usize>) -> Self {
        let (start, len) = (rows.start, rows.len());
        self.map(
            |label| label.narrow(0, start, len),
            |map| map.narrow(0, start, len),
            |vector| vector.narrow(0, start, len),
        )
    }

    /// The condition of a batch of one image, for `count` images.
    #[must_use]
    pub fn repeat(self, count: usize) -> Self {
        let rows = Tensor::zeros([count], &self.device());
        self.select(&rows)
    }

    /// The rows of this batch, then those of another, without guidance scales.
    ///
    /// # Panics
    /// If one of them has a part that the other lacks.
    #[must_use]
    pub fn join(self, other: Self) -> Self {
        fn both<T>(a: Option<T>, b: Option<T>, cat: impl FnOnce(Vec<T>) -> T) -> Option<T> {
            match (a, b) {
                (Some(a), Some(b)) => Some(cat(vec![a, b])),
                (None, None) => None,
                _ => panic!("conditions with the same parts"),
            }
        }
        let vectors = |a, b| both(a, b, |of| Tensor::cat(of, 0));
        Self {
            label: both(self.label, other.label, |of| Tensor::cat(of, 0)),
            text: both(self.text, other.text, |of| Tensor::cat(of, 0)),
            pooled: vectors(self.pooled, other.pooled),
            sizes: vectors(self.sizes, other.sizes),
            guidance: None,
        }
    }

    /// The device of the tensors; the default one if there are none.
    fn device(&self) -> Device {
        let vectors = [&self.pooled, &self.sizes, &self.guidance];
        let of_vectors = vectors.into_iter().flatten().map(Tensor::device).next();
        let of_maps = self.text.as_ref().map(Tensor::device);
        of_maps.or(of_vectors).or(self.label.as_ref().map(Tensor::device)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::nn::host::to_host;

    fn conditions() -> Conditions {
        let shape = TextShape { tokens: 2, channels: 3, pooled: 1, sizes: false };
        let text = |first: f32| {
            let tokens = (0..6).map(|i| first + i as f32).collect();
            Arc::new(Text { tokens, pooled: vec![first], sizes: Vec::new() })
        };
        Conditions::of_texts(&[text(0.0), text(10.0), text(20.0)], shape, &Device::flex())
    }

    #[test]
    fn tokens_become_positions() {
        let Conditions { text, pooled, sizes, .. } = conditions();
        let text = text.unwrap();
        assert_eq!(text.dims(), [3, 3, 1, 2]);
        assert_eq!(to_host(text.narrow(0, 1, 1)), [10.0, 13.0, 11.0, 14.0, 12.0, 15.0]);
        assert_eq!(to_host(pooled.unwrap()), [0.0, 10.0, 20.0]);
        assert!(sizes.is_none());
    }

    #[test]
    fn rows_are_chosen_of_every_part() {
        let device = Device::flex();
        let all = conditions().with_guidance(vec![4.0, 5.0, 6.0], &device);
        let pooled = |of: Conditions| to_host(of.pooled.unwrap());
        assert_eq!(pooled(all.clone().narrow(1..3)), [10.0, 20.0]);
        let rows = Tensor::from_data([2i32, 0], &device);
        let chosen = all.clone().select(&rows);
        assert_eq!(to_host(chosen.guidance.clone().unwrap()), [6.0, 4.0]);
        assert_eq!(pooled(chosen.clone().narrow(0..1).repeat(2).join(chosen)), [20.0, 20.0, 20.0, 0.0]);
    }
}
