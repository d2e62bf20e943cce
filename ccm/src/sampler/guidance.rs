//! Requests with texts, and classifier-free guidance (arXiv 2207.12598).

use std::sync::Arc;

use super::schedule::{Combination, Evaluation, Request, Step, plain_evaluations};
use crate::model::networks::TextShape;
use crate::model::{Condition, Text};

/// Classifier-free guidance.
#[derive(Debug, Clone, PartialEq)]
pub struct Guidance {
    /// The guidance scale; 1 has no effect.
    pub weight: f32,
    /// One negative text per image. Without any, the model has guidance distilled into it and reads the scale.
    pub negative: Vec<Arc<Text>>,
}

impl Step {
    /// The step with classifier-free guidance: the velocity is `weight` times that of the condition plus
    /// `1 - weight` times that of the negative condition. The first step evaluates the negative condition and keeps its
    /// part in the memory; `x` stays. `None` if that would need a second memory.
    fn guided(&self, weight: f32) -> Option<[Self; 2]> {
        let Self { t, x, memory, fresh } = *self;
        let kept = Combination { x: 0.0, v: x.v * (1.0 - weight), memory: x.memory };
        let negative =
            Self { t, x: Combination { x: 1.0, ..Combination::default() }, memory: kept, fresh: 0.0 };
        // What is kept for `x` must also serve the new memory, up to a factor.
        let factor = match (x.v != 0.0, x.memory != 0.0) {
            (true, _) => memory.v / x.v,
            (false, true) => memory.memory / x.memory,
            (false, false) => 0.0,
        };
        if memory.v * x.memory != memory.memory * x.v {
            return None;
        }
        let of = |of: Combination, memory: f32| Combination { x: of.x, v: of.v * weight, memory };
        Some([negative, Self { t, x: of(x, 1.0), memory: of(memory, factor), fresh }])
    }
}

impl Request {
    /// The condition of an image; with `is_negative`, the one that guidance leads away from.
    pub(super) fn condition(&self, image: usize, is_negative: bool) -> Condition {
        let negative = self.guidance.as_ref().filter(|_| is_negative).map(|guidance| &guidance.negative);
        Condition {
            label: self.labels.get(image).copied(),
            text: negative.unwrap_or(&self.texts).get(image).cloned(),
            guidance: self.guidance.as_ref().map(|guidance| guidance.weight),
        }
    }

    /// The evaluations of a sample: one for each step, or two with guidance.
    ///
    /// # Errors
    /// If the steps do not allow guidance.
    pub(super) fn evaluations(&self, steps: &[Step]) -> Result<Vec<Evaluation>, String> {
        let guidance = self.guidance.as_ref().filter(|guidance| !guidance.negative.is_empty());
        let Some(weight) = guidance.map(|guidance| guidance.weight).filter(|&weight| weight != 1.0) else {
            return Ok(plain_evaluations(steps));
        };
        let mut evaluations = Vec::with_capacity(2 * steps.len());
        for (place, step) in steps.iter().enumerate() {
            let [negative, step] = step
                .guided(weight)
                .ok_or("guidance: expected Euler's or Heun's method, found DPM-Solver++")?;
            let number = place + 1;
            evaluations.push(Evaluation { step: negative, number, is_negative: true });
            evaluations.push(Evaluation { step, number, is_negative: false });
        }
        Ok(evaluations)
    }

    /// Checks the texts of a request for a number of images.
    pub(super) fn check_texts(&self, shape: &TextShape, images: usize) -> Result<(), String> {
        let negative = self.guidance.iter().map(|guidance| &guidance.negative);
        for texts in negative.filter(|texts| !texts.is_empty()).chain([&self.texts]) {
            if texts.len() != images {
                return Err(format!("texts: expected {images}, found {}", texts.len()));
            }
            for text in texts {
                let sizes = if shape.sizes { 6 } else { 0 };
                for (part, found, expected) in [
                    ("tokens", text.tokens.len(), shape.tokens * shape.channels),
                    ("pooled", text.pooled.len(), shape.pooled),
                    ("sizes", text.sizes.len(), sizes),
                ] {
                    // A network that does not read a part may be given it.
                    if expected > 0 && found != expected {
                        return Err(format!("text: {part}: expected {expected} values, found {found}"));
                    }
                }
            }
        }
        Ok(())
    }
}
