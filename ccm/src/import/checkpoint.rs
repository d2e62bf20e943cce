//! Opens a file of tensors, PyTorch's formats or safetensors. Tensors are read on demand.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use burn_store::pytorch::PytorchReader;
use burn_store::pytorch_reader::{DType, Tensor};

use super::ImportError;
use super::format::{Format, HEAD, format};
use crate::disk::DiskError;
use crate::weights::header::{Entry, read_head, too_long};
use crate::weights::{CompactTensor, HostTensor, Values, WeightsError, to_f32};

/// Limit on the total size of a checkpoint's tensors, in multiples of the file size. Tied weights are stored only
/// once.
const MOST_SHARING: u64 = 4;

/// A file of named tensors. The names in nested dictionaries are joined with dots.
pub struct Checkpoint {
    pub(super) path: PathBuf,
    pub(super) tensors: BTreeMap<String, Stored>,
    /// JSON under the metadata key `ccm` of a safetensors file of this program; empty in other files.
    pub description: String,
    bytes: u64,
}

/// A tensor of a file.
pub(super) enum Stored {
    /// A tensor of a PyTorch checkpoint, not read yet.
    PyTorch {
        /// The tensor.
        tensor: Box<Tensor>,
        /// Its dimensions.
        shape: Vec<usize>,
    },
    /// A tensor of a safetensors file, not read yet.
    Safetensors {
        /// Type, dimensions and place.
        entry: Entry,
        /// The file.
        file: Arc<Mutex<File>>,
        /// Where the values of all tensors begin in the file.
        start: u64,
    },
}

impl Stored {
    pub(super) fn shape(&self) -> &[usize] {
        match self {
            Self::PyTorch { shape, .. } | Self::Safetensors { entry: Entry { shape, .. }, .. } => shape,
        }
    }

    pub(super) fn shape_mut(&mut self) -> &mut Vec<usize> {
        match self {
            Self::PyTorch { shape, .. } | Self::Safetensors { entry: Entry { shape, .. }, .. } => shape,
        }
    }

    /// Reads the tensor.
    fn read(&self, name: &str) -> Result<HostTensor, String> {
        match self {
            Self::PyTorch { tensor, shape } => host_tensor(tensor, shape),
            Self::Safetensors { entry, file, start } => {
                let bytes = read_bytes(entry, file, *start)?;
                let values = to_f32(name, &entry.kind, &bytes).map_err(|error| error.to_string())?;
                Ok(HostTensor { shape: entry.shape.clone(), values })
            }
        }
    }
}

/// Reads the bytes of a tensor of a safetensors file, whose values begin at `start`.
fn read_bytes(entry: &Entry, file: &Mutex<File>, start: u64) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0; entry.range.len()];
    let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
    let place = SeekFrom::Start(start + entry.range.start as u64);
    let read = file.seek(place).and_then(|_| file.read_exact(&mut bytes));
    read.map_err(|error| error.to_string())?;
    Ok(bytes)
}

/// Reads the header of a safetensors file of `bytes` bytes.
fn safetensors(
    mut file: File,
    bytes: u64,
) -> Result<(BTreeMap<String, Stored>, String), Result<WeightsError, std::io::Error>> {
    let mut length = [0; 8];
    file.seek(SeekFrom::Start(0)).and_then(|_| file.read_exact(&mut length)).map_err(Err)?;
    let length = u64::from_le_bytes(length);
    let rest = bytes.saturating_sub(8);
    if length > rest {
        return Err(Ok(WeightsError::Malformed(too_long(length, rest as usize))));
    }
    let mut head = vec![0; length as usize];
    file.read_exact(&mut head).map_err(Err)?;
    let (entries, description) = read_head(&head, (rest - length) as usize).map_err(Ok)?;
    let file = Arc::new(Mutex::new(file));
    let start = 8 + length;
    let stored = |entry| Stored::Safetensors { entry, file: Arc::clone(&file), start };
    Ok((entries.into_iter().map(|(name, entry)| (name, stored(entry))).collect(), description))
}

impl Checkpoint {
    /// Opens a PyTorch checkpoint or a safetensors file. Skips integer tensors of PyTorch checkpoints, such as
    /// counters.
    ///
    /// # Errors
    /// If the file is missing, cut short, or of another format.
    pub fn open(path: &Path) -> Result<Self, ImportError> {
        let unreadable = |source| ImportError::Disk(DiskError::of(path)(source));
        let file = File::open(path).map_err(unreadable)?;
        let bytes = file.metadata().map_err(unreadable)?.len();
        let mut head = Vec::new();
        (&file).take(HEAD as u64).read_to_end(&mut head).map_err(unreadable)?;
        let format =
            format(&head, bytes).map_err(|found| ImportError::Format { path: path.into(), found })?;
        let (tensors, description) = match format {
            Format::PyTorch => {
                let reader = PytorchReader::new(path).map_err(|source| ImportError::Checkpoint {
                    path: path.into(),
                    source: Box::new(source),
                })?;
                let floats = reader.into_tensors().into_iter().filter(|(_, tensor)| is_float(tensor.dtype()));
                let stored = |tensor: Tensor| {
                    let shape = tensor.shape().to_vec();
                    Stored::PyTorch { tensor: Box::new(tensor), shape }
                };
                (floats.map(|(name, tensor)| (name, stored(tensor))).collect(), String::new())
            }
            Format::Safetensors => safetensors(file, bytes).map_err(|error| match error {
                Ok(source) => ImportError::Weights { path: path.into(), source },
                Err(source) => ImportError::Disk(DiskError::of(path)(source)),
            })?,
        };
        Ok(Self { path: path.into(), tensors, description, bytes })
    }

    /// Opens the shards of a checkpoint. Errors name `index`, the file that lists them.
    ///
    /// # Errors
    /// As [`Checkpoint::open`]; also if two shards hold the same tensor.
    pub fn open_shards(index: &Path, shards: &[PathBuf]) -> Result<Self, ImportError> {
        let mut whole =
            Self { path: index.into(), tensors: BTreeMap::new(), description: String::new(), bytes: 0 };
        for path in shards {
            let shard = Self::open(path)?;
            whole.bytes = whole.bytes.saturating_add(shard.bytes);
            for (name, tensor) in shard.tensors {
                if whole.tensors.contains_key(&name) {
                    let reason = "expected once, found in two shards".into();
                    return Err(ImportError::Tensor { path: path.clone(), name, reason });
                }
                whole.tensors.insert(name, tensor);
            }
        }
        Ok(whole)
    }

    /// The names of the tensors.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The dimensions of a tensor; empty if it is missing.
    pub(super) fn shape(&self, name: &str) -> &[usize] {
        self.tensors.get(name).map_or(&[], Stored::shape)
    }

    /// Renames the tensors. If two tensors get the same name, the second keeps its old name.
    pub(super) fn renamed(mut self, rename: impl Fn(&str) -> String) -> Self {
        for (name, tensor) in std::mem::take(&mut self.tensors) {
            let new = rename(&name);
            let taken = self.tensors.contains_key(&new);
            self.tensors.insert(if taken { name } else { new }, tensor);
        }
        self
    }

    /// Number of rows of the first tensor named `name`, with any prefix.
    pub fn rows(&self, name: &str) -> Option<usize> {
        let found = self.tensors.iter().find(|(found, _)| {
            found.strip_suffix(name).is_some_and(|prefix| prefix.is_empty() || prefix.ends_with('.'))
        });
        found.and_then(|(_, tensor)| tensor.shape().first().copied())
    }

    /// Reads a tensor in the precision in which it is stored. It stays in the checkpoint.
    ///
    /// # Errors
    /// If it is missing or cannot be read.
    pub(super) fn compact(&self, name: &str) -> Result<CompactTensor, ImportError> {
        let fault = |reason| ImportError::Tensor { path: self.path.clone(), name: name.into(), reason };
        let stored = self.tensors.get(name).ok_or_else(|| fault("it is missing".into()))?;
        match stored {
            Stored::Safetensors { entry, file, start } if entry.kind == "F16" => {
                let pairs = read_bytes(entry, file, *start).map_err(fault)?;
                let pairs = pairs.as_chunks::<2>().0.iter();
                let values = Values::F16(pairs.map(|pair| half::f16::from_le_bytes(*pair)).collect());
                Ok(CompactTensor { shape: entry.shape.clone(), values })
            }
            _ => Ok(stored.read(name).map_err(fault)?.into()),
        }
    }

    /// Removes tensors and reads them.
    ///
    /// # Errors
    /// If a tensor cannot be read, or the tensors take far more memory than the file size.
    pub(super) fn read(&mut self, names: &[String]) -> Result<Vec<HostTensor>, ImportError> {
        let path = self.path.clone();
        let fault =
            |name: &str, reason| ImportError::Tensor { path: path.clone(), name: name.into(), reason };
        // Tensors may share storage, and a view can repeat one number any number of times.
        let mut taken = 0u64;
        for name in names {
            if let Some(Stored::PyTorch { tensor, .. }) = self.tensors.get(name) {
                taken = taken.saturating_add(tensor.byte_len() as u64);
                if taken > MOST_SHARING.saturating_mul(self.bytes) {
                    let (shape, bytes, stored) = (tensor.shape(), tensor.byte_len(), self.bytes);
                    let reason = format!(
                        "shape {shape:?} takes {bytes} bytes, more than a file of {stored} bytes stores"
                    );
                    return Err(fault(name, reason));
                }
            }
        }
        let read = names.iter().map(|name| match self.tensors.remove(name) {
            Some(stored) => stored.read(name).map_err(|reason| fault(name, reason)),
            None => Err(fault(name, "expected once, found twice or not at all".into())),
        });
        read.collect()
    }
}

fn is_float(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16 | DType::F64)
}

fn host_tensor(tensor: &Tensor, shape: &[usize]) -> Result<HostTensor, String> {
    fn read<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f32) -> Vec<f32> {
        bytes.as_chunks::<N>().0.iter().map(|chunk| value(*chunk)).collect()
    }
    let values: fn(&[u8]) -> Vec<f32> = match tensor.dtype() {
        DType::F32 => |bytes| read(bytes, f32::from_ne_bytes),
        DType::F16 => |bytes| read(bytes, |b| half::f16::from_ne_bytes(b).to_f32()),
        DType::BF16 => |bytes| read(bytes, |b| half::bf16::from_ne_bytes(b).to_f32()),
        DType::F64 => |bytes| read(bytes, |b| f64::from_ne_bytes(b) as f32),
        other => return Err(format!("expected floating-point values, found {other:?}")),
    };
    let bytes = tensor.read().map_err(|error| error.to_string())?;
    Ok(HostTensor { shape: shape.to_vec(), values: values(&bytes) })
}
