//! Families of networks. Each has a spec and a function that builds its graph.
//!
//! To add a family of denoisers, add a file here with a spec that is a [`Family`], and a variant of [`NetworkSpec`]. The
//! feature `text` adds the families of text-to-image pipelines.

pub mod adm;
#[cfg(feature = "text")]
pub mod autoencoder;
pub mod blocks;
#[cfg(feature = "text")]
pub mod mmdit;
#[cfg(feature = "text")]
pub mod text_encoder;
pub mod unet2d;
#[cfg(feature = "text")]
pub mod unet2d_condition;

pub use adm::UNetSpec;
#[cfg(feature = "text")]
pub use autoencoder::AutoencoderSpec;
#[cfg(feature = "text")]
pub use mmdit::MmditSpec;
#[cfg(feature = "text")]
pub use text_encoder::TextEncoderSpec;
pub use unet2d::UNet2DSpec;
#[cfg(feature = "text")]
pub use unet2d_condition::UNet2DConditionSpec;

use std::fmt::{Arguments, Display, Formatter};

use super::graph::{Graph, TensorSpec};
#[cfg(feature = "text")]
use super::json::Json;

/// The architecture of a network.
#[derive(Debug, Clone, PartialEq)]
pub enum NetworkSpec {
    /// ADM's U-Net.
    Adm(UNetSpec),
    /// diffusers' `UNet2DModel`.
    UNet2D(UNet2DSpec),
    /// diffusers' `UNet2DConditionModel`.
    #[cfg(feature = "text")]
    UNet2DCondition(UNet2DConditionSpec),
    /// diffusers' `SD3Transformer2DModel`.
    #[cfg(feature = "text")]
    Mmdit(MmditSpec),
}

/// A family of denoisers: what is known of a network from its spec.
pub trait Family {
    /// Checks every field against its range and against the others.
    ///
    /// # Errors
    /// If a field is out of range: the first such field.
    fn validate(&self) -> Result<(), SpecError>;

    /// Builds the network. The spec must be valid.
    fn graph(&self) -> Graph;

    /// Channels, height and width of an image or of latents.
    fn image(&self) -> [usize; 3];

    /// Number of classes; `None` for a network that reads no label.
    fn num_classes(&self) -> Option<usize>;

    /// What the network reads of a text; `None` for a network without text.
    #[cfg(feature = "text")]
    fn text(&self) -> Option<TextShape> {
        None
    }

    /// Side of the patches of pixels that the network reads as channels.
    fn patch_size(&self) -> usize {
        1
    }

    /// Dropout probability in training.
    fn dropout(&self) -> f64 {
        0.0
    }
}

/// What a network reads of a text.
#[cfg(feature = "text")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextShape {
    /// Number of tokens.
    pub tokens: usize,
    /// Channels of a token's embedding; 1 for a network that reads the ids of tokens, with its own text encoder.
    pub channels: usize,
    /// Channels of the embedding of the whole text; 0 if the network does not read it.
    pub pooled: usize,
    /// Whether the network reads the sizes of the picture.
    pub sizes: bool,
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

/// Requires a whole number in a range.
fn require_range(field: &str, found: usize, range: std::ops::RangeInclusive<usize>) -> Result<(), SpecError> {
    let (least, most) = (range.start(), range.end());
    require(range.contains(&found), field, format_args!("expected {least} to {most}, found {found}"))
}

/// Requires a finite number above 0.
fn require_positive(field: &str, found: f32) -> Result<(), SpecError> {
    let holds = found.is_finite() && found > 0.0;
    require(holds, field, format_args!("expected a number above 0, found {}", Decimal(found)))
}

/// Requires a number from 0 up to but not including another.
fn require_below(field: &str, found: f64, most: f64) -> Result<(), SpecError> {
    let holds = (0.0..most).contains(&found);
    require(
        holds,
        field,
        format_args!("expected 0 up to but not including {}, found {}", Decimal(most), Decimal(found)),
    )
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

#[cfg(feature = "text")]
impl From<UNet2DConditionSpec> for NetworkSpec {
    fn from(spec: UNet2DConditionSpec) -> Self {
        Self::UNet2DCondition(spec)
    }
}

#[cfg(feature = "text")]
impl From<MmditSpec> for NetworkSpec {
    fn from(spec: MmditSpec) -> Self {
        Self::Mmdit(spec)
    }
}

impl NetworkSpec {
    /// Parses diffusers' `config.json` of a denoiser. Without `_class_name` it is a `UNet2DModel`.
    ///
    /// # Errors
    /// If the class or an option is not supported (by name).
    #[cfg(feature = "text")]
    pub fn from_config(config: &Json) -> Result<Self, SpecError> {
        let class = config.get("_class_name").map_or(Some("UNet2DModel"), Json::text);
        Ok(match class.unwrap_or_default() {
            "UNet2DModel" => UNet2DSpec::from_config(config)?.into(),
            "UNet2DConditionModel" => UNet2DConditionSpec::from_config(config)?.into(),
            "SD3Transformer2DModel" => MmditSpec::from_config(config)?.into(),
            other => {
                let expected = "UNet2DModel, UNet2DConditionModel or SD3Transformer2DModel";
                let reason = format!("expected {expected}, found {other}");
                return Err(SpecError { field: "_class_name".into(), reason });
            }
        })
    }

    /// The family.
    fn family(&self) -> &dyn Family {
        match self {
            Self::Adm(spec) => spec,
            Self::UNet2D(spec) => spec,
            #[cfg(feature = "text")]
            Self::UNet2DCondition(spec) => spec,
            #[cfg(feature = "text")]
            Self::Mmdit(spec) => spec,
        }
    }

    /// See [`Family::validate`].
    ///
    /// # Errors
    /// If a field is out of range: the first such field.
    pub fn validate(&self) -> Result<(), SpecError> {
        self.family().validate()
    }

    /// See [`Family::graph`].
    pub fn graph(&self) -> Graph {
        self.family().graph()
    }

    /// See [`Family::image`].
    pub fn image(&self) -> [usize; 3] {
        self.family().image()
    }

    /// Number of values of an image.
    pub fn image_len(&self) -> usize {
        self.image().iter().product()
    }

    /// See [`Family::text`].
    #[cfg(feature = "text")]
    pub fn text(&self) -> Option<TextShape> {
        self.family().text()
    }

    /// The same network with an embedding of the guidance scale (`time_cond_proj_dim`) of this many channels.
    ///
    /// # Errors
    /// If the family has no such embedding.
    #[cfg(feature = "text")]
    pub fn with_guidance(&self, channels: usize) -> Result<Self, SpecError> {
        match self {
            Self::UNet2DCondition(spec) => {
                let time_cond_proj_dim = Some(channels);
                Ok(Self::UNet2DCondition(UNet2DConditionSpec { time_cond_proj_dim, ..spec.clone() }))
            }
            _ => Err(SpecError {
                field: "guidance_channels".into(),
                reason: "only UNet2DConditionModel has an embedding of the guidance scale".into(),
            }),
        }
    }

    /// The same network with a text encoder of its own, which is trained with it. It reads the ids of tokens.
    ///
    /// # Errors
    /// If the family cannot have one, or the text encoder is not of a kind that it can have.
    #[cfg(feature = "text")]
    pub fn with_text_encoder(&self, encoders: &[TextEncoderSpec]) -> Result<Self, SpecError> {
        match (self, encoders) {
            (Self::UNet2DCondition(spec), [TextEncoderSpec::Clip(clip)]) if spec.text_time.is_none() => {
                let text_encoder = Some(clip.clone());
                Ok(Self::UNet2DCondition(UNet2DConditionSpec { text_encoder, ..spec.clone() }))
            }
            _ => Err(SpecError {
                field: "train_text_encoder".into(),
                reason: "only the CLIP of a UNet2DConditionModel without text_time can be trained".into(),
            }),
        }
    }

    /// The same network without a text encoder of its own.
    #[cfg(feature = "text")]
    pub fn without_text_encoder(&self) -> Self {
        match self {
            Self::UNet2DCondition(spec) => {
                Self::UNet2DCondition(UNet2DConditionSpec { text_encoder: None, ..spec.clone() })
            }
            _ => self.clone(),
        }
    }

    /// Whether the network has a text encoder of its own.
    #[cfg(feature = "text")]
    pub fn has_text_encoder(&self) -> bool {
        matches!(self, Self::UNet2DCondition(UNet2DConditionSpec { text_encoder: Some(_), .. }))
    }

    /// Whether the network reads the guidance scale, which is then distilled into it.
    #[cfg(feature = "text")]
    pub fn reads_guidance(&self) -> bool {
        self.graph().nodes.iter().any(|node| node.op == super::graph::Op::Guidance)
    }

    /// The same network for latents of another height and width; other families stay as they are.
    #[cfg(feature = "text")]
    pub fn with_size(mut self, size: [usize; 2]) -> Self {
        match &mut self {
            Self::UNet2DCondition(spec) => spec.sample_size = size,
            Self::Mmdit(spec) => spec.sample_size = size,
            Self::Adm(_) | Self::UNet2D(_) => {}
        }
        self
    }

    /// This network, with the embedding of the guidance scale and the text encoder that `other` has, if both have the same
    /// tensors then.
    ///
    /// # Errors
    /// If `other` is another network.
    #[cfg(feature = "text")]
    pub fn like(&self, other: &Self) -> Result<Self, SpecError> {
        let network = match (self, other) {
            (Self::UNet2DCondition(own), Self::UNet2DCondition(other)) => {
                let UNet2DConditionSpec { time_cond_proj_dim, text_encoder, .. } = other.clone();
                Self::UNet2DCondition(UNet2DConditionSpec { time_cond_proj_dim, text_encoder, ..own.clone() })
            }
            _ => self.clone(),
        };
        if network.tensors() == other.tensors() {
            return Ok(network);
        }
        let reason = "expected the network of the pipeline's denoiser, found another one".into();
        Err(SpecError { field: "network".into(), reason })
    }

    /// See [`Family::patch_size`].
    pub fn patch_size(&self) -> usize {
        self.family().patch_size()
    }

    /// See [`Family::num_classes`].
    pub fn num_classes(&self) -> Option<usize> {
        self.family().num_classes()
    }

    /// See [`Family::dropout`].
    pub fn dropout(&self) -> f64 {
        self.family().dropout()
    }

    /// The spec as JSON: a [`UNetSpec`], or diffusers' `config.json`.
    ///
    /// # Errors
    /// If a number has no JSON, which [`NetworkSpec::validate`] also rejects.
    pub fn to_json(&self) -> serde_json::Result<serde_json::Value> {
        match self {
            Self::Adm(spec) => serde_json::to_value(spec),
            Self::UNet2D(spec) => Ok(spec.to_config()),
            #[cfg(feature = "text")]
            Self::UNet2DCondition(spec) => Ok(spec.to_config()),
            #[cfg(feature = "text")]
            Self::Mmdit(spec) => Ok(spec.to_config()),
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
