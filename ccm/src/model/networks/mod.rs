//! Families of networks: one builder each, and the sizes and options that a builder reads.
//!
//! A new family is a file here with a spec and its `graph`, and a variant of [`NetworkSpec`].

pub mod adm;
pub mod unet2d;

pub use adm::UNetSpec;
pub use unet2d::UNet2DSpec;

use std::fmt::{Arguments, Display, Formatter};

use super::graph::{Graph, TensorSpec};

/// The architecture of a network that makes images.
#[derive(Debug, Clone, PartialEq)]
pub enum NetworkSpec {
    /// ADM's U-Net.
    Adm(UNetSpec),
    /// diffusers' `UNet2DModel`.
    UNet2D(UNet2DSpec),
}

/// A spec out of range: the field, and why.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct SpecError {
    /// The field at fault.
    pub field: String,
    /// What was expected and what was found.
    pub reason: String,
}

/// A number in a message. In a page it has three decimals, because the standard library's digits are 20 kB of code.
pub(crate) struct Decimal<T>(pub(crate) T);

impl<T: Display + Copy + Into<f64>> Display for Decimal<T> {
    #[cfg(not(target_arch = "wasm32"))]
    fn fmt(&self, f: &mut Formatter) -> std::fmt::Result {
        self.0.fmt(f)
    }

    #[cfg(target_arch = "wasm32")]
    fn fmt(&self, f: &mut Formatter) -> std::fmt::Result {
        let thousandths = libm::round(self.0.into() * 1000.0) as i64;
        let sign = if thousandths < 0 { "-" } else { "" };
        write!(f, "{sign}{}.{:03}", thousandths.unsigned_abs() / 1000, thousandths.unsigned_abs() % 1000)
    }
}

fn require(holds: bool, field: &str, reason: Arguments) -> Result<(), SpecError> {
    if holds { Ok(()) } else { Err(SpecError { field: field.into(), reason: reason.to_string() }) }
}

impl From<UNetSpec> for NetworkSpec {
    fn from(spec: UNetSpec) -> Self {
        Self::Adm(spec)
    }
}

impl From<&UNetSpec> for NetworkSpec {
    fn from(spec: &UNetSpec) -> Self {
        Self::Adm(spec.clone())
    }
}

impl From<&NetworkSpec> for NetworkSpec {
    fn from(spec: &NetworkSpec) -> Self {
        spec.clone()
    }
}

impl From<UNet2DSpec> for NetworkSpec {
    fn from(spec: UNet2DSpec) -> Self {
        Self::UNet2D(spec)
    }
}

impl NetworkSpec {
    /// Checks every field against its range and against the others.
    ///
    /// # Errors
    /// The first field that is out of range.
    pub fn validate(&self) -> Result<(), SpecError> {
        match self {
            Self::Adm(spec) => spec.validate(),
            Self::UNet2D(spec) => spec.validate(),
        }
    }

    /// The network of a valid spec.
    pub fn graph(&self) -> Graph {
        match self {
            Self::Adm(spec) => spec.graph(),
            Self::UNet2D(spec) => spec.graph(),
        }
    }

    /// Channels, height and width of an image.
    pub fn image(&self) -> [usize; 3] {
        match self {
            Self::Adm(spec) => [spec.in_channels, spec.height, spec.width],
            Self::UNet2D(spec) => [spec.in_channels, spec.sample_size[0], spec.sample_size[1]],
        }
    }

    /// Values of an image.
    pub fn image_len(&self) -> usize {
        self.image().iter().product()
    }

    /// Side of the patches of pixels that the network reads as channels.
    pub fn patch_size(&self) -> usize {
        match self {
            Self::Adm(spec) => spec.patch_size,
            Self::UNet2D(_) => 1,
        }
    }

    /// Classes of a conditional model.
    pub fn num_classes(&self) -> Option<usize> {
        match self {
            Self::Adm(spec) => spec.num_classes,
            Self::UNet2D(spec) => spec.num_class_embeds,
        }
    }

    /// Probability that a feature is dropped in training.
    pub fn dropout(&self) -> f64 {
        match self {
            Self::Adm(spec) => spec.dropout,
            Self::UNet2D(spec) => spec.dropout,
        }
    }

    /// Every tensor of a model file.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let parameters = self.graph().parameters.into_iter();
        parameters.map(|parameter| TensorSpec { name: parameter.name, shape: parameter.shape }).collect()
    }

    /// Number of trainable values.
    pub fn parameters(&self) -> usize {
        self.graph().parameters.iter().map(|parameter| parameter.shape.iter().product::<usize>()).sum()
    }
}
