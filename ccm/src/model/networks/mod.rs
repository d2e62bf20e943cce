//! Families of networks. Each has a spec and a function that builds its graph.
//!
//! To add a family, add a file here with a spec and its `graph`, and a variant of [`NetworkSpec`].

pub mod adm;
pub mod unet2d;

pub use adm::UNetSpec;
pub use unet2d::UNet2DSpec;

use std::fmt::{Arguments, Display, Formatter};

use super::graph::{Graph, TensorSpec};

/// The architecture of a network.
#[derive(Debug, Clone, PartialEq)]
pub enum NetworkSpec {
    /// ADM's U-Net.
    Adm(UNetSpec),
    /// diffusers' `UNet2DModel`.
    UNet2D(UNet2DSpec),
}

/// A spec is out of range: the field, and the reason.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct SpecError {
    /// The field at fault.
    pub field: String,
    /// What was expected and what was found.
    pub reason: String,
}

/// A number in a message. WebAssembly prints three decimals, because exact formatting adds 20 kB to the module.
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
    /// If a field is out of range: the first such field.
    pub fn validate(&self) -> Result<(), SpecError> {
        match self {
            Self::Adm(spec) => spec.validate(),
            Self::UNet2D(spec) => spec.validate(),
        }
    }

    /// Builds the network. The spec must be valid.
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

    /// Number of values of an image.
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

    /// Number of classes; `None` for an unconditional model.
    pub fn num_classes(&self) -> Option<usize> {
        match self {
            Self::Adm(spec) => spec.num_classes,
            Self::UNet2D(spec) => spec.num_class_embeds,
        }
    }

    /// Dropout probability in training.
    pub fn dropout(&self) -> f64 {
        match self {
            Self::Adm(spec) => spec.dropout,
            Self::UNet2D(spec) => spec.dropout,
        }
    }

    /// The tensors of a model file, in order.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let parameters = self.graph().parameters.into_iter();
        parameters.map(|parameter| TensorSpec { name: parameter.name, shape: parameter.shape }).collect()
    }

    /// Number of trainable values.
    pub fn parameters(&self) -> usize {
        self.graph().parameters.iter().map(|parameter| parameter.shape.iter().product::<usize>()).sum()
    }
}
