//! PyTorch checkpoints of torchcfm's U-Net, and the constructor arguments that describe them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn_store::pytorch::{PytorchError, PytorchReader};
use burn_store::pytorch_reader::{DType, Tensor};
use serde::Deserialize;

use crate::spec::UNetSpec;
use crate::weights::{HostTensor, TensorFile, WeightsError};

/// Why a checkpoint or a description cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The checkpoint cannot be opened.
    #[error("{path}: {source}")]
    Io {
        /// The checkpoint.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A safetensors file cannot be read, or lacks a tensor.
    #[error("{path}: {source}")]
    Weights {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: WeightsError,
    },
    /// The checkpoint is cut short or is none.
    #[error("{path}: not a whole PyTorch checkpoint: {source}")]
    Checkpoint {
        /// The checkpoint.
        path: PathBuf,
        /// What its reader says.
        source: Box<PytorchError>,
    },
    /// There is no state dict of that name.
    #[error("{path}: no state dict `{key}`; the checkpoint holds {found}")]
    Key {
        /// The checkpoint.
        path: PathBuf,
        /// The key asked for.
        key: String,
        /// What is there.
        found: String,
    },
    /// A tensor cannot be read.
    #[error("{path}: tensor `{name}`: {reason}")]
    Tensor {
        /// The checkpoint.
        path: PathBuf,
        /// Name of the tensor.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The description of the network is no such thing.
    #[error("{0}")]
    Spec(String),
}

/// Reads the tensors of a file: safetensors by that name, otherwise a checkpoint as [`read_checkpoint`].
///
/// # Errors
/// A file that is missing, cut short or neither.
pub fn read_tensors(path: &Path) -> Result<BTreeMap<String, HostTensor>, ImportError> {
    if path.extension().is_none_or(|extension| extension != "safetensors") {
        return read_checkpoint(path, None);
    }
    let bytes = std::fs::read(path).map_err(|source| ImportError::Io { path: path.into(), source })?;
    let file = TensorFile::from_bytes(&bytes)
        .map_err(|source| ImportError::Weights { path: path.into(), source })?;
    Ok(file.tensors)
}

/// How many times the size of its file a checkpoint's tensors may be: tied weights are stored once.
const MOST_SHARING: u64 = 4;

/// State dicts that torchcfm's and CCM's training scripts save, the one to prefer first.
const STATE_DICTS: [&str; 2] = ["ema_model", "net_model"];

/// Reads one state dict of a checkpoint: that under `key`; without a key `ema_model`, else `net_model`, else the
/// checkpoint itself. A prefix `module.`, which data-parallel training leaves, is taken off. Tensors of whole numbers are
/// left out.
///
/// # Errors
/// A file that is missing, cut short or no checkpoint, a key that is not there, a tensor that cannot be read, tensors that
/// would take far more memory than the file.
pub fn read_checkpoint(path: &Path, key: Option<&str>) -> Result<BTreeMap<String, HostTensor>, ImportError> {
    let file = std::fs::File::open(path).and_then(|file| file.metadata());
    let stored = file.map_err(|source| ImportError::Io { path: path.into(), source })?.len();
    let reader = PytorchReader::new(path)
        .map_err(|source| ImportError::Checkpoint { path: path.into(), source: Box::new(source) })?;
    let tensors = reader.into_tensors();
    let under = |key: &str| {
        tensors.keys().any(|name| name.strip_prefix(key).is_some_and(|rest| rest.starts_with('.')))
    };
    let key = key.or_else(|| STATE_DICTS.into_iter().find(|key| under(key)));
    if let Some(key) = key.filter(|key| !under(key)) {
        let mut found: Vec<&str> = tensors.keys().filter_map(|name| Some(name.split_once('.')?.0)).collect();
        found.sort_unstable();
        found.dedup();
        return Err(ImportError::Key { path: path.into(), key: key.into(), found: found.join(", ") });
    }
    let prefix = key.map_or(String::new(), |key| format!("{key}."));
    let selected = || tensors.iter().filter_map(|(name, tensor)| Some((name.strip_prefix(&prefix)?, tensor)));
    let fault = |name: &str, reason| ImportError::Tensor { path: path.into(), name: name.into(), reason };
    // Tensors may share what is stored, and a view may repeat one number without end.
    let mut taken = 0u64;
    let beyond = selected().find(|(_, tensor)| {
        taken = taken.saturating_add(tensor.byte_len() as u64);
        taken > MOST_SHARING * stored
    });
    if let Some((name, tensor)) = beyond {
        let (shape, bytes) = (tensor.shape(), tensor.byte_len());
        let reason =
            format!("shape {shape:?} takes {bytes} bytes, more than a file of {stored} bytes stores");
        return Err(fault(name, reason));
    }
    let read = selected().filter_map(|(name, tensor)| {
        let tensor = host_tensor(tensor).map_err(|reason| fault(name, reason)).transpose()?;
        Some(tensor.map(|tensor| (name.strip_prefix("module.").unwrap_or(name).to_owned(), tensor)))
    });
    read.collect()
}

/// A tensor's values; `None` of whole numbers, which are no weights: a batch norm of PyTorch counts its batches.
fn host_tensor(tensor: &Tensor) -> Result<Option<HostTensor>, String> {
    fn read<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f32) -> Vec<f32> {
        bytes.as_chunks::<N>().0.iter().map(|chunk| value(*chunk)).collect()
    }
    let values: fn(&[u8]) -> Vec<f32> = match tensor.dtype() {
        DType::F32 => |bytes| read(bytes, f32::from_ne_bytes),
        DType::F16 => |bytes| read(bytes, |b| half::f16::from_ne_bytes(b).to_f32()),
        DType::BF16 => |bytes| read(bytes, |b| half::bf16::from_ne_bytes(b).to_f32()),
        DType::F64 => |bytes| read(bytes, |b| f64::from_ne_bytes(b) as f32),
        _ => return Ok(None),
    };
    let bytes = tensor.read().map_err(|error| error.to_string())?;
    Ok(Some(HostTensor { shape: tensor.shape().to_vec(), values: values(&bytes) }))
}

/// Arguments of torchcfm's `UNetModelWrapper`, under its names and with its defaults.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TorchArguments {
    dim: [usize; 3],
    num_channels: usize,
    num_res_blocks: usize,
    #[serde(default)]
    channel_mult: Option<Vec<f32>>,
    #[serde(default)]
    learn_sigma: bool,
    #[serde(default)]
    class_cond: bool,
    #[serde(default)]
    num_classes: Option<usize>,
    #[serde(default)]
    attention_resolutions: Option<Resolutions>,
    #[serde(default)]
    num_heads: Option<usize>,
    #[serde(default)]
    num_head_channels: Option<i64>,
    #[serde(default)]
    num_heads_upsample: Option<i64>,
    #[serde(default)]
    use_scale_shift_norm: bool,
    #[serde(default)]
    dropout: f64,
    #[serde(default)]
    resblock_updown: bool,
    #[serde(default)]
    use_new_attention_order: bool,
    // Neither changes what the network computes.
    #[serde(default, rename = "use_checkpoint")]
    _use_checkpoint: bool,
    #[serde(default, rename = "use_fp16")]
    _use_fp16: bool,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Resolutions {
    Text(String),
    One(usize),
    Many(Vec<usize>),
}

/// Reads a network's description from JSON: a [`UNetSpec`], or the arguments of torchcfm's constructor.
///
/// # Errors
/// Text that is neither, an option that is not supported, or a spec that is out of range.
pub fn spec_from_json(text: &str) -> Result<UNetSpec, ImportError> {
    let value: serde_json::Value =
        serde_json::from_str(text).map_err(|error| ImportError::Spec(format!("not JSON: {error}")))?;
    let spec = if value.get("dim").is_some() {
        let arguments: TorchArguments = serde_json::from_value(value)
            .map_err(|error| ImportError::Spec(format!("torchcfm arguments: {error}")))?;
        arguments.into_spec()?
    } else {
        serde_json::from_value(value).map_err(|error| ImportError::Spec(format!("network: {error}")))?
    };
    spec.validate().map_err(|error| ImportError::Spec(error.to_string()))?;
    Ok(spec)
}

impl TorchArguments {
    fn into_spec(self) -> Result<UNetSpec, ImportError> {
        let [in_channels, height, width] = self.dim;
        if self.learn_sigma {
            return Err(ImportError::Spec("learn_sigma: a velocity network has no variance output".into()));
        }
        let channel_mult = match (self.channel_mult, width) {
            (Some(mult), _) => mult,
            (None, 512) => vec![0.5, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0],
            (None, 256) => vec![1.0, 1.0, 2.0, 2.0, 4.0, 4.0],
            (None, 128) => vec![1.0, 1.0, 2.0, 3.0, 4.0],
            (None, 64) => vec![1.0, 2.0, 3.0, 4.0],
            (None, 32) => vec![1.0, 2.0, 2.0, 2.0],
            (None, 28) => vec![1.0, 2.0, 2.0],
            (None, _) => {
                return Err(ImportError::Spec(format!(
                    "channel_mult: torchcfm has no default for width {width}"
                )));
            }
        };
        let attention_resolutions = match self.attention_resolutions {
            None => vec![16],
            Some(Resolutions::One(one)) => vec![one],
            Some(Resolutions::Many(many)) => many,
            Some(Resolutions::Text(text)) => {
                text.split(',').map(|part| part.trim().parse()).collect::<Result<_, _>>().map_err(|_| {
                    ImportError::Spec(format!("attention_resolutions: expected numbers, found {text:?}"))
                })?
            }
        };
        // torchcfm asks at which downsampling factor `width / resolution` attention follows.
        let levels = (0..channel_mult.len()).map(|level| 1usize << level);
        let attention_resolutions = levels
            .filter(|factor| attention_resolutions.iter().any(|&r| r > 0 && width / r == *factor))
            .map(|factor| width / factor)
            .collect();
        let given =
            |value: Option<i64>| value.filter(|value| *value != -1).map(|value| value.max(0) as usize);
        Ok(UNetSpec {
            in_channels,
            height,
            width,
            model_channels: self.num_channels,
            num_res_blocks: self.num_res_blocks,
            channel_mult,
            attention_resolutions,
            num_heads: self.num_heads.unwrap_or(1),
            num_head_channels: given(self.num_head_channels),
            num_heads_upsample: given(self.num_heads_upsample),
            use_scale_shift_norm: self.use_scale_shift_norm,
            resblock_updown: self.resblock_updown,
            use_new_attention_order: self.use_new_attention_order,
            dropout: self.dropout,
            num_classes: self.class_cond.then(|| self.num_classes.unwrap_or(1000)),
        })
    }
}
