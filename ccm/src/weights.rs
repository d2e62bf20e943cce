//! Reading and writing tensor files and model files (safetensors), in memory. Nothing here touches the disk.
//!
//! A model file holds the tensors of [`UNetSpec::tensors`] under torchcfm's names, and the spec and the card as
//! JSON under the metadata key `ccm`. PyTorch reads it with `safetensors.torch.load_file`.

use std::collections::{BTreeMap, HashMap};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use crate::spec::{ModelCard, SpecError, UNetSpec};

/// Why a tensor or model file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The file ends early, or its header does not describe it.
    #[error("not a whole safetensors file: {0}")]
    Malformed(String),
    /// A tensor that should be there is not.
    #[error("tensor `{0}` is missing")]
    Missing(String),
    /// A tensor is there that the network does not have.
    #[error("tensor `{0}` is not part of the network")]
    Unexpected(String),
    /// A tensor has other dimensions than the network wants.
    #[error("tensor `{name}`: expected shape {expected:?}, found {found:?}")]
    Shape {
        /// Name of the tensor.
        name: String,
        /// Dimensions that the network wants.
        expected: Vec<usize>,
        /// Dimensions in the file.
        found: Vec<usize>,
    },
    /// A tensor's values are of a kind that is not read.
    #[error("tensor `{name}`: expected floating-point or integer values, found {found}")]
    Kind {
        /// Name of the tensor.
        name: String,
        /// The kind in the file.
        found: String,
    },
    /// The file is no model of this project.
    #[error("no model description in the metadata (key `ccm`): {0}")]
    NoModel(String),
    /// The network described is impossible.
    #[error("the model's description is invalid: {0}")]
    Spec(#[from] SpecError),
}

/// A tensor in memory: row-major values.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HostTensor {
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Values, as many as the product of the dimensions.
    pub values: Vec<f32>,
}

impl HostTensor {
    /// A tensor of the given dimensions.
    ///
    /// # Panics
    /// If the number of values is not the product of the dimensions.
    pub fn new(shape: impl Into<Vec<usize>>, values: Vec<f32>) -> Self {
        let shape = shape.into();
        assert_eq!(shape.iter().product::<usize>(), values.len(), "values of {shape:?}");
        Self { shape, values }
    }
}

/// Named tensors and text, as a safetensors file holds them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TensorFile {
    /// Tensors by name.
    pub tensors: BTreeMap<String, HostTensor>,
    /// JSON under the metadata key `ccm`, or empty.
    pub description: String,
}

/// Metadata key of everything that is not a tensor. One key only: the header is written from a hash map, and
/// the same model must give the same bytes.
const METADATA_KEY: &str = "ccm";

impl TensorFile {
    /// Reads a safetensors file. Every length is checked before it is used; values become `f32`.
    ///
    /// # Errors
    /// A file that is cut short, a header that claims more than the file holds, or values that are no numbers.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WeightsError> {
        let length = bytes.get(..8).and_then(|head| head.try_into().ok()).map(u64::from_le_bytes);
        let length = length.ok_or_else(|| {
            WeightsError::Malformed(format!(
                "expected a header of at least 8 bytes, found {} bytes",
                bytes.len()
            ))
        })?;
        if length > bytes.len() as u64 - 8 {
            return Err(WeightsError::Malformed(format!(
                "the header claims {length} bytes, the file holds {} after it",
                bytes.len() - 8
            )));
        }
        let malformed = |error: safetensors::SafeTensorError| WeightsError::Malformed(error.to_string());
        let (header, metadata) = SafeTensors::read_metadata(bytes).map_err(malformed)?;
        let (claimed, held) = (metadata.data_len(), bytes.len() - 8 - header);
        if claimed != held {
            return Err(WeightsError::Malformed(format!(
                "the header claims {claimed} bytes of tensors, the file holds {held}"
            )));
        }
        let description =
            metadata.metadata().as_ref().and_then(|text| text.get(METADATA_KEY)).cloned().unwrap_or_default();
        let file = SafeTensors::deserialize(bytes).map_err(malformed)?;
        let tensors = file.iter().map(|(name, view)| Ok((name.to_owned(), host_tensor(name, &view)?)));
        Ok(Self { tensors: tensors.collect::<Result<_, WeightsError>>()?, description })
    }

    /// Writes a safetensors file; the same contents always give the same bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let views = self.tensors.iter().filter_map(|(name, tensor)| {
            let bytes = bytemuck::cast_slice(&tensor.values);
            Some((name.as_str(), TensorView::new(Dtype::F32, tensor.shape.clone(), bytes).ok()?))
        });
        let metadata = (!self.description.is_empty())
            .then(|| HashMap::from([(METADATA_KEY.to_owned(), self.description.clone())]));
        safetensors::serialize(views, metadata).unwrap_or_default()
    }

    /// Takes a tensor out.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn take(&mut self, name: &str) -> Result<HostTensor, WeightsError> {
        self.tensors.remove(name).ok_or_else(|| WeightsError::Missing(name.to_owned()))
    }
}

fn host_tensor(name: &str, view: &TensorView) -> Result<HostTensor, WeightsError> {
    let bytes = view.data();
    fn read<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f32) -> Vec<f32> {
        bytes.as_chunks::<N>().0.iter().map(|chunk| value(*chunk)).collect()
    }
    let values = match view.dtype() {
        Dtype::F32 => read(bytes, f32::from_le_bytes),
        Dtype::F16 => read(bytes, |b| half::f16::from_le_bytes(b).to_f32()),
        Dtype::BF16 => read(bytes, |b| half::bf16::from_le_bytes(b).to_f32()),
        Dtype::F64 => read(bytes, |b| f64::from_le_bytes(b) as f32),
        Dtype::I64 => read(bytes, |b| i64::from_le_bytes(b) as f32),
        Dtype::I32 => read(bytes, |b| i32::from_le_bytes(b) as f32),
        Dtype::U8 => read(bytes, |[b]: [u8; 1]| f32::from(b)),
        other => return Err(WeightsError::Kind { name: name.to_owned(), found: format!("{other:?}") }),
    };
    Ok(HostTensor { shape: view.shape().to_vec(), values })
}

/// A network's weights with what they are: the contents of a model file.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// The architecture.
    pub spec: UNetSpec,
    /// Where it comes from.
    pub card: ModelCard,
    /// One tensor for each of [`UNetSpec::tensors`], in that order.
    pub tensors: Vec<HostTensor>,
}

#[derive(Serialize, Deserialize)]
struct Description {
    spec: UNetSpec,
    card: ModelCard,
}

impl Model {
    /// Puts named tensors into the order of the spec.
    ///
    /// # Errors
    /// An invalid spec; a missing, unexpected or misshapen tensor, by name.
    pub fn new(
        spec: UNetSpec,
        card: ModelCard,
        mut named: BTreeMap<String, HostTensor>,
    ) -> Result<Self, WeightsError> {
        spec.validate()?;
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
            None => Ok(Self { spec, card, tensors }),
        }
    }

    /// Reads a model file.
    ///
    /// # Errors
    /// As [`TensorFile::from_bytes`] and [`Model::new`], or a file without a model's description.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WeightsError> {
        let file = TensorFile::from_bytes(bytes)?;
        if file.description.is_empty() {
            return Err(WeightsError::NoModel("there is none".into()));
        }
        let Description { spec, card } = serde_json::from_str(&file.description)
            .map_err(|error| WeightsError::NoModel(error.to_string()))?;
        Self::new(spec, card, file.tensors)
    }

    /// Writes a model file; the same model always gives the same bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let description = Description { spec: self.spec.clone(), card: self.card.clone() };
        let names = self.spec.tensors().into_iter().map(|tensor| tensor.name);
        let file = TensorFile {
            tensors: names.zip(self.tensors.iter().cloned()).collect(),
            description: serde_json::to_string(&description).unwrap_or_default(),
        };
        file.to_bytes()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn file() -> TensorFile {
        let tensors = BTreeMap::from([
            ("a".to_owned(), HostTensor::new([2, 3], vec![1.0, -2.5, 3.0, 0.0, 5.0, 6.0])),
            ("b".to_owned(), HostTensor::new([1], vec![7.0])),
        ]);
        TensorFile { tensors, description: "{}".into() }
    }

    #[test]
    fn a_file_survives_its_own_bytes_and_they_never_differ() {
        let bytes = file().to_bytes();
        assert_eq!(TensorFile::from_bytes(&bytes).unwrap(), file());
        assert_eq!(bytes, file().to_bytes());
    }

    #[test]
    fn a_file_cut_anywhere_is_an_error() {
        let bytes = file().to_bytes();
        for length in 0..bytes.len() {
            assert!(TensorFile::from_bytes(&bytes[..length]).is_err(), "cut to {length} bytes");
        }
    }

    #[test]
    fn a_header_that_claims_more_than_the_file_holds_is_an_error() {
        let mut bytes = file().to_bytes();
        bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        let error = TensorFile::from_bytes(&bytes).unwrap_err().to_string();
        assert!(error.contains("the header claims 18446744073709551615 bytes"), "{error}");
    }
}
