//! Model files: a network with its weights, its prediction and its card.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::{HostTensor, Precision, TensorFile, WeightsError, apply_scales, serialize, store};
use crate::model::json::Json;
use crate::model::{ModelCard, NetworkSpec, Prediction, UNet2DSpec, UNetSpec};

/// A network with its weights: the contents of a model file.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// The architecture.
    pub spec: NetworkSpec,
    /// The prediction (PAPER.md §8).
    pub prediction: Prediction,
    /// The origin of the model.
    pub card: ModelCard,
    /// Storage precision in the file. `tensors` holds the values after rounding to it.
    pub precision: Precision,
    /// One tensor for each of [`NetworkSpec::tensors`], in that order.
    pub tensors: Vec<HostTensor>,
}

/// The JSON description in a model file. It has exactly one of `spec`, `unet2d` and `network`.
#[derive(Serialize)]
struct Description<'a> {
    /// ADM's U-Net.
    #[serde(skip_serializing_if = "Option::is_none")]
    spec: Option<Value>,
    /// diffusers' `config.json` of a `UNet2DModel`.
    #[serde(skip_serializing_if = "Option::is_none")]
    unet2d: Option<Value>,
    /// diffusers' `config.json` of any other denoiser.
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<Value>,
    /// See [`Prediction::from_json`]; absent if the network predicts the velocity.
    #[serde(skip_serializing_if = "Option::is_none")]
    prediction: Option<Value>,
    card: &'a ModelCard,
    precision: Precision,
}

impl Model {
    /// Puts named tensors into the order of the spec.
    ///
    /// # Errors
    /// If the spec or the prediction is invalid, or a tensor is missing, unexpected or of another shape (by name).
    #[inline]
    pub fn new(
        spec: NetworkSpec,
        prediction: Prediction,
        card: ModelCard,
        mut named: BTreeMap<String, HostTensor>,
    ) -> Result<Self, WeightsError> {
        spec.validate()?;
        prediction.validate()?;
        let mut tensors = Vec::new();
        for expected in spec.tensors() {
            let tensor = named.remove(&expected.name).ok_or(WeightsError::Missing(expected.name.clone()))?;
            if tensor.shape != expected.shape {
                return Err(WeightsError::Shape {
                    name: expected.name,
                    expected: expected.shape,
                    found: tensor.shape,
                });
            }
            tensors.push(tensor);
        }
        match named.into_keys().next() {
            Some(name) => Err(WeightsError::Unexpected(name)),
            None => Ok(Self { spec, prediction, card, precision: Precision::F32, tensors }),
        }
    }

    /// Parses a model file.
    ///
    /// # Errors
    /// As [`TensorFile::from_bytes`] and [`Model::new`]; also if the file has no description of a model.
    #[inline]
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WeightsError> {
        let mut file = TensorFile::from_bytes(bytes)?;
        if file.description.is_empty() {
            return Err(WeightsError::NoModel("there is none".into()));
        }
        let no_model = |reason: &str| WeightsError::NoModel(reason.to_owned());
        let description = Json::parse(&file.description).map_err(|error| no_model(&error.to_string()))?;
        let network = ["spec", "unet2d", "network"].map(|key| description.get(key));
        let spec = match network {
            [Some(spec), None, None] => UNetSpec::from_json(spec)?.into(),
            [None, Some(config), None] => UNet2DSpec::from_config(config)?.into(),
            #[cfg(feature = "text")]
            [None, None, Some(config)] => NetworkSpec::from_config(config)?,
            _ => return Err(no_model("expected one network, `spec`, `unet2d` or `network`")),
        };
        let prediction = description.get("prediction");
        let prediction = prediction.map_or(Ok(Prediction::Velocity), Prediction::from_json)?;
        let card = description.get("card").ok_or_else(|| no_model("expected a `card`"))?;
        let card = ModelCard::from_json(card)?;
        let precision = match description.get("precision").map(Json::text) {
            None | Some(Some("f32")) => Precision::F32,
            Some(Some("f16")) => Precision::F16,
            Some(Some("q8")) => Precision::Q8,
            #[cfg(feature = "text")]
            Some(Some("q4")) => Precision::Q4,
            #[cfg(feature = "text")]
            Some(_) => return Err(no_model("precision: expected f32, f16, q8 or q4")),
            #[cfg(not(feature = "text"))]
            Some(_) => return Err(no_model("precision: expected f32, f16 or q8")),
        };
        apply_scales(&mut file.tensors)?;
        Ok(Self { precision, ..Self::new(spec, prediction, card, file.tensors)? })
    }

    /// Serializes to a model file in its precision. The same model always gives the same bytes.
    ///
    /// # Panics
    /// If the tensors do not match the spec, which [`Model::new`] checks.
    pub fn to_bytes(&self) -> Vec<u8> {
        let Self { spec, prediction, card, precision, tensors } = self;
        let names = spec.tensors();
        assert_eq!(tensors.len(), names.len(), "tensors of the network");
        #[expect(clippy::expect_used, reason = "numbers and text become JSON")]
        let network = Some(spec.to_json().expect("a description has string keys only"));
        let (spec, unet2d, network) = match spec {
            NetworkSpec::Adm(_) => (network, None, None),
            NetworkSpec::UNet2D(_) => (None, network, None),
            #[cfg(feature = "text")]
            _ => (None, None, network),
        };
        let prediction = (*prediction != Prediction::Velocity).then(|| prediction.to_json());
        let description = Description { spec, unet2d, network, prediction, card, precision: *precision };
        let stored =
            names.into_iter().zip(tensors).flat_map(|(spec, tensor)| store(spec.name, tensor, *precision));
        #[expect(clippy::expect_used, reason = "numbers and text become JSON")]
        let description = serde_json::to_string(&description).expect("a description has string keys only");
        serialize(&stored.collect::<Vec<_>>(), &description)
    }

    /// Rounds the model to a storage precision.
    ///
    /// # Errors
    /// If the spec is out of range, which [`Model::new`] also rejects.
    pub fn rounded(mut self, precision: Precision) -> Result<Self, WeightsError> {
        self.precision = precision;
        Self::from_bytes(&self.to_bytes())
    }
}
