//! Parses and serializes tensor files and model files (safetensors), in memory. Nothing here accesses the disk.
//!
//! A model file holds the tensors of [`NetworkSpec::tensors`] under the names of the original library. The metadata
//! key `ccm` holds the spec, the prediction and the card as JSON. PyTorch reads the file with
//! `safetensors.torch.load_file`. Matrices and kernels may be stored rounded ([`Precision`]); in memory all values are
//! `f32`.

use std::collections::{BTreeMap, HashMap};

use safetensors::tensor::{Dtype, TensorView};
use serde::Serialize;

use serde_json::Value;

use crate::model::json::Json;
use crate::model::{ModelCard, NetworkSpec, Prediction, SpecError, UNet2DSpec, UNetSpec};

mod compact;
pub(crate) mod header;

#[cfg(feature = "text")]
pub use compact::GROUP;
pub use compact::{CompactTensor, Values};

/// Why a tensor or model file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The file is cut short, or its header is invalid.
    #[error("not a whole safetensors file: {0}")]
    Malformed(String),
    /// A tensor of the network is not in the file.
    #[error("tensor `{0}` is missing")]
    Missing(String),
    /// The file has a tensor that the network does not have.
    #[error("tensor `{0}` is not part of the network")]
    Unexpected(String),
    /// A tensor does not have the dimensions that the network expects.
    #[error("tensor `{name}`: expected shape {expected:?}, found {found:?}")]
    Shape {
        /// Name of the tensor.
        name: String,
        /// Dimensions that the network expects.
        expected: Vec<usize>,
        /// Dimensions in the file.
        found: Vec<usize>,
    },
    /// The values of a tensor are of an unsupported type.
    #[error("tensor `{name}`: expected floating-point or integer values, found {found}")]
    Kind {
        /// Name of the tensor.
        name: String,
        /// The type in the file.
        found: String,
    },
    /// The file is not a model of this project.
    #[error("no model description in the metadata (key `ccm`): {0}")]
    NoModel(String),
    /// The spec of the network is invalid.
    #[error("the model's description is invalid: {0}")]
    Spec(#[from] SpecError),
}

/// Storage type of the matrices and kernels of a model file, from large to small. Vectors are always `f32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Single precision.
    #[default]
    F32,
    /// Half precision.
    F16,
    /// Signed bytes; each row (output channel) has a scale, `value = byte * scale`. The scales of tensor `NAME` are
    /// tensor `NAME_scale`, `[rows]`.
    Q8,
    /// Four bits a value, in groups of 32 along the inputs with one scale in half precision, `value = (bits - 8) * scale`:
    /// 4.5 bits a value. Tensor `NAME` has two values a byte, `[outputs, inputs / 2, ...]`, and tensor `NAME_scale` is
    /// `[outputs, inputs / 32, ...]`. Tensors whose inputs are not a multiple of 32 are stored as [`Precision::Q8`].
    ///
    /// The scale may be negative, and is the one of several with the least squared error in its group. On normally
    /// distributed values this leaves a root-mean-square error of 8.1 %, groups of 64 with a scale and a minimum, which are
    /// as large, 9.0 %, and the scale that maps the largest magnitude to 7 leaves 9.7 %.
    Q4,
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Q8 => "q8",
            Self::Q4 => "q4",
        })
    }
}

impl std::str::FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            "q8" => Ok(Self::Q8),
            "q4" => Ok(Self::Q4),
            other => Err(format!("expected f32, f16, q8 or q4, found `{other}`")),
        }
    }
}

/// Suffix of a tensor's name that gives the name of its scales.
pub(crate) const SCALE_SUFFIX: &str = "_scale";

/// A tensor in memory: row-major values.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HostTensor {
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Values; their number is the product of the dimensions.
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

/// The named tensors and the description in a safetensors file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TensorFile {
    /// Tensors by name.
    pub tensors: BTreeMap<String, HostTensor>,
    /// The JSON under the metadata key `ccm`; empty if absent.
    pub description: String,
}

/// Metadata key of the description. There is only one key: the header is written from a hash map, and the same model
/// must always give the same bytes.
const METADATA_KEY: &str = "ccm";

impl TensorFile {
    /// Parses a safetensors file. Every length is checked before it is used; values are converted to `f32`.
    ///
    /// # Errors
    /// If the file is cut short, the header does not match the file, or values are not numbers.
    #[inline]
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WeightsError> {
        let (entries, description, values) = header::read(bytes)?;
        let mut tensors = BTreeMap::new();
        for (name, header::Entry { kind, shape, range }) in entries {
            let values = to_f32(&name, &kind, &values[range])?;
            tensors.insert(name, HostTensor { shape, values });
        }
        Ok(Self { tensors, description })
    }

    /// Serializes to a safetensors file. The same contents always give the same bytes.
    ///
    /// # Panics
    /// If the number of values of a tensor does not match its shape.
    pub fn to_bytes(&self) -> Vec<u8> {
        let stored = self.tensors.iter().map(|(name, tensor)| StoredTensor::f32(name.clone(), tensor));
        serialize(&stored.collect::<Vec<_>>(), &self.description)
    }

    /// Removes a tensor and returns it.
    ///
    /// # Errors
    /// If there is no tensor with that name.
    pub fn take(&mut self, name: &str) -> Result<HostTensor, WeightsError> {
        self.tensors.remove(name).ok_or_else(|| WeightsError::Missing(name.to_owned()))
    }
}

/// Converts the values of a tensor, stored as `kind`.
///
/// # Errors
/// If they are not numbers.
#[inline]
pub(crate) fn to_f32(name: &str, kind: &str, bytes: &[u8]) -> Result<Vec<f32>, WeightsError> {
    fn read<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f32) -> Vec<f32> {
        bytes.as_chunks::<N>().0.iter().map(|chunk| value(*chunk)).collect()
    }
    Ok(match kind {
        "F32" => read(bytes, f32::from_le_bytes),
        "F16" => read(bytes, |b| half::f16::from_le_bytes(b).to_f32()),
        "BF16" => read(bytes, |b| half::bf16::from_le_bytes(b).to_f32()),
        "F64" => read(bytes, |b| f64::from_le_bytes(b) as f32),
        "I64" => read(bytes, |b| i64::from_le_bytes(b) as f32),
        "U64" => read(bytes, |b| u64::from_le_bytes(b) as f32),
        "I32" => read(bytes, |b| i32::from_le_bytes(b) as f32),
        "U8" => read(bytes, |[b]: [u8; 1]| f32::from(b)),
        "I8" => read(bytes, |b| f32::from(i8::from_le_bytes(b))),
        #[cfg(not(target_arch = "wasm32"))]
        "F8_E4M3" => read(bytes, |[b]| e4m3(b)),
        #[cfg(not(target_arch = "wasm32"))]
        "F8_E5M2" => read(bytes, |[b]| half::f16::from_bits(u16::from(b) << 8).to_f32()),
        _ => return Err(WeightsError::Kind { name: name.to_owned(), found: kind.to_owned() }),
    })
}

/// A number of eight bits: sign, four bits of exponent with a bias of 7, three of mantissa (arXiv 2209.05433). It has no
/// infinities, and NaN is all ones.
#[cfg(not(target_arch = "wasm32"))]
fn e4m3(bits: u8) -> f32 {
    let [sign, rest] = [u16::from(bits & 0x80), u16::from(bits & 0x7f)];
    if rest == 0x7f {
        return f32::NAN;
    }
    // The same bits in half precision, whose exponent has a bias of 15.
    256.0 * half::f16::from_bits(sign << 8 | rest << 7).to_f32()
}

/// A tensor as stored in a file.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredTensor {
    name: String,
    kind: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl StoredTensor {
    /// A tensor in single precision.
    pub fn f32(name: impl Into<String>, tensor: &HostTensor) -> Self {
        let bytes = bytemuck::cast_slice(&tensor.values).to_vec();
        Self { name: name.into(), kind: Dtype::F32, shape: tensor.shape.clone(), bytes }
    }

    /// A tensor in half precision.
    ///
    /// # Panics
    /// If the number of values does not match the shape.
    #[cfg(feature = "text")]
    pub fn f16(name: impl Into<String>, shape: Vec<usize>, values: &[half::f16]) -> Self {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "values of {shape:?}");
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self { name: name.into(), kind: Dtype::F16, shape, bytes }
    }

    /// A vector of signed integers.
    pub fn i64(name: impl Into<String>, values: &[i64]) -> Self {
        let (shape, bytes) = (vec![values.len()], bytemuck::cast_slice(values).to_vec());
        Self { name: name.into(), kind: Dtype::I64, shape, bytes }
    }

    /// Bytes, such as those of a file.
    #[cfg(feature = "text")]
    pub fn bytes(name: impl Into<String>, bytes: Vec<u8>) -> Self {
        Self { name: name.into(), kind: Dtype::U8, shape: vec![bytes.len()], bytes }
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The type of the values, as safetensors names it.
    pub fn kind(&self) -> String {
        format!("{:?}", self.kind)
    }

    /// The dimensions.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The bytes of the values.
    pub fn values(&self) -> &[u8] {
        &self.bytes
    }

    /// A vector of unsigned integers.
    pub fn u64(name: impl Into<String>, values: &[u64]) -> Self {
        let (shape, bytes) = (vec![values.len()], bytemuck::cast_slice(values).to_vec());
        Self { name: name.into(), kind: Dtype::U64, shape, bytes }
    }
}

/// Serializes tensors of any type to a safetensors file, with `description` under the metadata key `ccm` unless it is
/// empty.
///
/// # Panics
/// If the number of values of a tensor does not match its shape.
pub fn serialize(tensors: &[StoredTensor], description: &str) -> Vec<u8> {
    let views = tensors.iter().map(|tensor| {
        let view = TensorView::new(tensor.kind, tensor.shape.clone(), &tensor.bytes)
            .unwrap_or_else(|error| panic!("tensor `{}`: values of its shape: {error}", tensor.name));
        (tensor.name.as_str(), view)
    });
    let metadata =
        (!description.is_empty()).then(|| HashMap::from([(METADATA_KEY.to_owned(), description.to_owned())]));
    #[expect(
        clippy::expect_used,
        reason = "the views are checked, and a header of names and numbers is JSON"
    )]
    safetensors::serialize(views, metadata).expect("tensors that fit their shapes")
}

/// Converts a tensor to the given precision. A tensor stored as bytes is followed by its scales.
fn store(name: String, tensor: &HostTensor, precision: Precision) -> Vec<StoredTensor> {
    let HostTensor { shape, values } = tensor;
    let stored = |kind, bytes| StoredTensor { name: name.clone(), kind, shape: shape.clone(), bytes };
    match precision {
        Precision::F16 if shape.len() > 1 => {
            let bytes = values.iter().flat_map(|&value| half::f16::from_f32(value).to_le_bytes());
            vec![stored(Dtype::F16, bytes.collect())]
        }
        Precision::Q8 if shape.len() > 1 => {
            let rows = shape[0];
            let width = values.len() / rows.max(1);
            let rows_of_values = || (0..rows).map(|row| &values[row * width..(row + 1) * width]);
            let scale = |row: &[f32]| row.iter().fold(0f32, |most, value| most.max(value.abs())) / 127.0;
            let scales: Vec<f32> = rows_of_values().map(scale).collect();
            let byte = |value: f32, scale: f32| if scale > 0.0 { (value / scale).round() as i8 } else { 0 };
            let bytes = rows_of_values()
                .zip(&scales)
                .flat_map(|(row, &scale)| row.iter().map(move |&value| byte(value, scale) as u8));
            let bytes = stored(Dtype::I8, bytes.collect());
            let scales = HostTensor { shape: vec![rows], values: scales };
            vec![bytes, StoredTensor::f32(name.clone() + SCALE_SUFFIX, &scales)]
        }
        #[cfg(feature = "text")]
        Precision::Q4 if shape.len() > 1 => match CompactTensor::from(tensor.clone()).rounded(precision) {
            rounded @ CompactTensor { values: Values::Q4 { .. }, .. } => rounded.stored(&name),
            _ => store(name, tensor, Precision::Q8),
        },
        _ => vec![StoredTensor::f32(name, tensor)],
    }
}

/// Multiplies every tensor that has scales by its scales.
#[inline]
fn apply_scales(tensors: &mut BTreeMap<String, HostTensor>) -> Result<(), WeightsError> {
    let scaled: Vec<String> =
        tensors.keys().filter_map(|name| name.strip_suffix(SCALE_SUFFIX)).map(str::to_owned).collect();
    for name in &scaled {
        let scale_name = format!("{name}{SCALE_SUFFIX}");
        let Some(scales) = tensors.remove(&scale_name) else { continue };
        let tensor = tensors.get_mut(name).ok_or_else(|| WeightsError::Missing(name.clone()))?;
        #[cfg(feature = "text")]
        if scales.shape.len() > 1 {
            expand_nibbles(name, tensor, scales)?;
            continue;
        }
        let expected = tensor.shape.iter().take(1).copied().collect::<Vec<_>>();
        if scales.shape != expected || scales.values.is_empty() {
            return Err(WeightsError::Shape { name: scale_name, expected, found: scales.shape });
        }
        let row = (tensor.values.len() / scales.values.len()).max(1);
        for (values, scale) in tensor.values.chunks_mut(row).zip(&scales.values) {
            values.iter_mut().for_each(|value| *value *= scale);
        }
    }
    Ok(())
}

/// Replaces the bytes of a tensor in four bits by its values.
#[cfg(feature = "text")]
fn expand_nibbles(name: &str, tensor: &mut HostTensor, scales: HostTensor) -> Result<(), WeightsError> {
    let mut shape = tensor.shape.clone();
    if let Some(inputs) = shape.get_mut(1) {
        *inputs = inputs.saturating_mul(2);
    }
    let entry = |kind: &str, tensor: &HostTensor| header::Entry {
        kind: kind.into(),
        shape: tensor.shape.clone(),
        range: 0..tensor.values.len(),
    };
    let entries = [entry("U8", tensor), entry("F16", &scales)];
    let bytes = tensor.values.iter().map(|&value| value as u8).collect();
    let halves = scales.values.iter().flat_map(|&value| half::f16::from_f32(value).to_le_bytes()).collect();
    let found = CompactTensor::find(name, &shape, [Some((&entries[0], bytes)), Some((&entries[1], halves))])?;
    *tensor = HostTensor { shape, values: found.into_f32() };
    Ok(())
}

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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn numbers_of_eight_bits_are_those_of_pytorch() {
        let read = |kind: &str, bytes: &[u8]| to_f32("a", kind, bytes).unwrap();
        // Expected values: `tensor.view(torch.float8_e4m3fn).float()` of PyTorch 2.15.
        let found = read("F8_E4M3", &[0x38, 0xb8, 0x7e, 0x01, 0x08, 0x00, 0x45]);
        assert_eq!(found, [1.0, -1.0, 448.0, 0.001_953_125, 0.015_625, 0.0, 3.25]);
        assert!(read("F8_E4M3", &[0x7f])[0].is_nan());
        // And of `torch.float8_e5m2`.
        let found = read("F8_E5M2", &[0x3c, 0xbc, 0x7b, 0x04, 0x41, 0x7c]);
        assert_eq!(found, [1.0, -1.0, 57_344.0, 6.103_515_6e-5, 2.5, f32::INFINITY]);
    }

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
    #[should_panic(expected = "tensor `a`: values of its shape")]
    fn a_tensor_that_does_not_fit_its_shape_is_not_left_out() {
        let mut file = file();
        file.tensors.insert("a".into(), HostTensor { shape: vec![2, 3], values: vec![1.0; 5] });
        file.to_bytes();
    }

    #[test]
    fn integers_are_written_as_integers() {
        let tensors = [StoredTensor::i64("label", &[-1, 3]), StoredTensor::u64("seed", &[u64::MAX, 0])];
        let bytes = serialize(&tensors, "");
        let found = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let view = |name| found.tensor(name).unwrap();
        assert_eq!((view("label").dtype(), view("label").shape()), (Dtype::I64, &[2][..]));
        assert_eq!(view("label").data(), [-1i64, 3].map(i64::to_le_bytes).concat());
        assert_eq!(
            (view("seed").dtype(), view("seed").data()),
            (Dtype::U64, &[u64::MAX, 0].map(u64::to_le_bytes).concat()[..])
        );
        assert_eq!(TensorFile::from_bytes(&bytes).unwrap().tensors["label"].values, [-1.0, 3.0]);
    }

    #[test]
    fn scalars_and_empty_tensors_are_stored_in_every_precision() {
        for (shape, values) in [(vec![], vec![2.5]), (vec![3, 0], vec![]), (vec![0, 3], vec![])] {
            let tensor = HostTensor::new(shape, values);
            for precision in [Precision::F32, Precision::F16, Precision::Q8, Precision::Q4] {
                let bytes = serialize(&store("a".into(), &tensor, precision), "");
                assert_eq!(TensorFile::from_bytes(&bytes).unwrap().tensors["a"], tensor, "{precision}");
            }
        }
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
