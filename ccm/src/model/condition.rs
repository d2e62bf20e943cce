//! What an image shows.

#[cfg(feature = "text")]
use std::sync::Arc;

/// What a network is conditioned on besides the time, for one image.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Condition {
    /// The class, for a network with classes.
    pub label: Option<u32>,
    /// The text, for a network that reads one.
    #[cfg(feature = "text")]
    pub text: Option<Arc<Text>>,
    /// The guidance scale, for a network into which guidance is distilled.
    #[cfg(feature = "text")]
    pub guidance: Option<f32>,
}

/// A text as text encoders give it to a network.
#[cfg(feature = "text")]
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Text {
    /// The embedding of each token, `[tokens, channels]`, or its id, for a network with its own text encoder.
    pub tokens: Vec<f32>,
    /// The embedding of the text as a whole; empty for networks that do not read it.
    pub pooled: Vec<f32>,
    /// Original size, crop and target size of the picture in pixels, height first (arXiv 2307.01952, section 2.2); empty
    /// for networks that do not read them.
    pub sizes: Vec<f32>,
}

impl Condition {
    /// Whether two conditions are the same: the same label and guidance scale, and the very same text in memory.
    #[cfg(feature = "text")]
    pub fn is_same(&self, other: &Self) -> bool {
        let same_text = match (&self.text, &other.text) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        };
        let scale = |of: &Self| of.guidance.map(f32::to_bits);
        same_text && self.label == other.label && scale(self) == scale(other)
    }

    /// Whether two conditions are the same.
    #[cfg(not(feature = "text"))]
    pub fn is_same(&self, other: &Self) -> bool {
        self.label == other.label
    }
}
