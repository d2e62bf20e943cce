//! Writes a text-to-image pipeline into one file ([`crate::pipeline::Packed`]), one tensor at a time.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use pollster::block_on;
use serde_json::{Value, json};

use super::ImportError;
use super::text_to_image::{Folder, Layout, PartWeights, at_fault, fault, tokenizer_files};
use crate::disk::{self, DiskError};
use crate::model::graph::Graph;
use crate::model::{ModelCard, Role};
use crate::pipeline::{Part, Weights, part_name};
use crate::weights::{CompactTensor, Precision, StoredTensor};

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Number of tensors, without scales and tokenizers.
    pub tensors: usize,
    /// Number of parameters.
    pub parameters: usize,
    /// Bytes of the file.
    pub bytes: u64,
}

impl std::fmt::Display for Written {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let Self { tensors, parameters, bytes } = self;
        let megabytes = *bytes as f64 / 1e6;
        write!(f, "a pipeline of {tensors} tensors, {parameters} parameters, {megabytes:.2} MB")
    }
}

impl Folder {
    /// Whether the pipeline is in one file that has the autoencoder's half from pixels to latents.
    pub fn has_encoder(&self) -> bool {
        matches!(&self.weights, PartWeights::Packed { packed, .. } if packed.size_of(Part::Encoder).0 > 0)
    }
}

/// Writes a pipeline into one file, with its weights rounded to a precision unless they are stored in a smaller one. Keeps only
/// one tensor in memory. `weights` are the folder's, or these with changes. The autoencoder's half from pixels to latents is
/// written for the role of a teacher, or if there is no other role and the pipeline is a file that has it.
///
/// # Errors
/// If a file cannot be read or written, or a tensor is missing or of another shape (by name).
pub fn pack(
    folder: &Folder,
    weights: &impl Weights<Error = ImportError>,
    precision: Precision,
    role: Option<Role>,
    out: &Path,
) -> Result<Written, ImportError> {
    let Contents { mut pipeline, files } = Contents::read(folder)?;
    // Not the configuration of the folder: another denoiser may have taken the place of its own.
    let network = folder.spec.network.to_json();
    pipeline["denoiser"] = network.map_err(|error| ImportError::Spec(error.to_string()))?;
    let card = ModelCard { role: role.unwrap_or(folder.card.role), ..folder.card.clone() };
    let (card, precision_name) = (json(&card)?, json(&precision)?);
    // A page knows from the first key that this is a pipeline.
    let description = format!("{{\"pipeline\":{pipeline},\"card\":{card},\"precision\":{precision_name}}}");
    let parts = folder.spec.parts(role == Some(Role::Teacher) || role.is_none() && folder.has_encoder());
    let mut written = Written { tensors: 0, parameters: 0, bytes: 0 };
    disk::write_with(out, |file| -> Result<(), ImportError> {
        let mut writer = Writer::new(file, &parts, &files, description).map_err(DiskError::of(out))?;
        for (part, graph) in &parts {
            let mut parameters = graph.parameters.iter();
            let take = &mut |tensor: CompactTensor| {
                let Some(parameter) = parameters.next() else { panic!("more weights than parameters") };
                written.tensors += 1;
                written.parameters += parameter.shape.iter().product::<usize>();
                let name = format!("{}.{}", part_name(*part), parameter.name);
                let stored = tensor.stored(&name);
                Ok(stored
                    .into_iter()
                    .try_for_each(|stored| writer.push(stored))
                    .map_err(DiskError::of(out))?)
            };
            block_on(weights.each(*part, graph, precision, take))?;
        }
        for (name, bytes) in files {
            writer.push(StoredTensor::bytes(name, bytes)).map_err(DiskError::of(out))?;
        }
        written.bytes = writer.finish().map_err(DiskError::of(out))?;
        Ok(())
    })?;
    Ok(written)
}

fn json(value: &impl serde::Serialize) -> Result<Value, ImportError> {
    serde_json::to_value(value).map_err(|error| ImportError::Spec(error.to_string()))
}

/// What a file holds besides weights.
struct Contents {
    /// The description of the pipeline, but for its denoiser.
    pipeline: Value,
    /// The files of the tokenizers, by name in the file.
    files: Vec<(String, Vec<u8>)>,
}

impl Contents {
    fn read(folder: &Folder) -> Result<Self, ImportError> {
        if let PartWeights::Packed { path, packed } = &folder.weights {
            let mut description: Value =
                serde_json::from_str(&packed.description).map_err(|error| fault(path, &error))?;
            let mut pipeline = description["pipeline"].take();
            for key in ["text_encoders", "tokenizers"] {
                if let Some(list) = pipeline[key].as_array_mut() {
                    list.truncate(folder.spec.text_encoders.len());
                }
            }
            let files = block_on(packed.files(folder.spec.text_encoders.len()))
                .map_err(|error| at_fault(path, error))?;
            return Ok(Self { pipeline, files });
        }
        let Some(config) = &folder.config else { panic!("a pipeline in a folder has one") };
        let layout = Layout::read(config)?;
        // T5 may be left out.
        let count = folder.spec.text_encoders.len();
        let (text_encoders, tokenizers) = (&layout.text_encoders[..count], &layout.tokenizers[..count]);
        let config = |folder: &Path, name: &str| -> Result<Value, ImportError> {
            let path = folder.join(name);
            serde_json::from_str(&disk::read_text(&path)?).map_err(|error| fault(&path, &error))
        };
        let all = |folders: &[std::path::PathBuf], name: &str| -> Result<Vec<Value>, ImportError> {
            folders.iter().map(|folder| config(folder, name)).collect()
        };
        let pipeline = json!({
            "autoencoder": layout.autoencoder.as_deref().map(|part| config(part, "config.json")).transpose()?,
            "text_encoders": all(text_encoders, "config.json")?,
            "tokenizers": all(tokenizers, "tokenizer_config.json")?,
            "prediction": folder.spec.prediction.to_json(),
            "zeros_for_empty": layout.zeros_for_empty,
        });
        let mut files = Vec::new();
        for folder in tokenizers {
            let name = folder.file_name().unwrap_or_default().to_string_lossy();
            let found = tokenizer_files(folder)?;
            let found = found.by_name().into_iter();
            files.extend(found.map(|(file, text)| (format!("{name}/{file}"), text.as_bytes().to_vec())));
        }
        files.sort();
        Ok(Self { pipeline, files })
    }
}

/// Bytes in a header for a tensor besides its name: type, dimensions and positions.
const ENTRY: usize = 160;

/// Writes a safetensors file tensor by tensor. The header comes first but is known last, so room is left for it.
struct Writer<'a> {
    file: BufWriter<&'a mut File>,
    /// Bytes of the header without its length.
    room: usize,
    /// The header so far.
    header: String,
    /// Bytes of all tensors so far.
    at: u64,
    /// Tensors whose bytes are not a multiple of four. They come last, so that all others are aligned.
    last: Vec<StoredTensor>,
}

impl<'a> Writer<'a> {
    fn new(
        file: &'a mut File,
        parts: &[(Part, Graph)],
        files: &[(String, Vec<u8>)],
        description: String,
    ) -> std::io::Result<Self> {
        // The description comes first: a page reads only the start of a file to know what kind it is.
        let metadata = BTreeMap::from([("ccm", description)]);
        let header = format!("{{\"__metadata__\":{}", serde_json::to_string(&metadata)?);
        let names = parts.iter().flat_map(|(part, graph)| {
            graph.parameters.iter().map(move |of| part_name(*part).len() + 1 + of.name.len())
        });
        // Every parameter may have scales.
        let of_parts: usize = names.map(|name| 2 * (name + ENTRY)).sum();
        let of_files: usize = files.iter().map(|(name, _)| name.len() + ENTRY).sum();
        let room = (header.len() + of_parts + of_files + 1).next_multiple_of(8);
        let mut file = BufWriter::with_capacity(1 << 20, file);
        file.write_all(&vec![b' '; 8 + room])?;
        Ok(Self { file, room, header, at: 0, last: Vec::new() })
    }

    fn push(&mut self, tensor: StoredTensor) -> std::io::Result<()> {
        if tensor.values().len().is_multiple_of(4) {
            return self.write(&tensor);
        }
        self.last.push(tensor);
        Ok(())
    }

    fn write(&mut self, tensor: &StoredTensor) -> std::io::Result<()> {
        let (begin, end) = (self.at, self.at + tensor.values().len() as u64);
        let entry = json!({ "dtype": tensor.kind(), "shape": tensor.shape(), "data_offsets": [begin, end] });
        let name = serde_json::to_string(tensor.name())?;
        write!(self.header, ",{name}:{entry}").map_err(std::io::Error::other)?;
        self.at = end;
        self.file.write_all(tensor.values())
    }

    /// Writes the header. Returns the bytes of the file.
    fn finish(mut self) -> std::io::Result<u64> {
        for tensor in std::mem::take(&mut self.last) {
            self.write(&tensor)?;
        }
        self.header.push('}');
        if self.header.len() > self.room {
            return Err(std::io::Error::other("a header that is larger than expected"));
        }
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&(self.room as u64).to_le_bytes())?;
        self.file.write_all(self.header.as_bytes())?;
        self.file.flush()?;
        Ok(8 + self.room as u64 + self.at)
    }
}
