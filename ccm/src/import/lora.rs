//! Low-rank changes of a pipeline's weights (LoRA, arXiv 2106.09685): files of diffusers and of kohya's scripts.
//!
//! Such a file has, for some matrices or kernels `W` of the pipeline, a pair `A` (down) and `B` (up), and stands for `W + w
//! alpha / rank B A`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::single_file::{Taken, origins};
use super::{Checkpoint, ImportError};
use crate::model::ModelCard;
use crate::model::graph::Parameter;
use crate::model::json::Json;
use crate::model::networks::text_encoder::{ClipLayer, TextEncoderSpec};
use crate::pipeline::{Part, PipelineSpec};
use crate::weights::{CompactTensor, HostTensor, WeightsError};

/// Endings of the names of `A`, `B` and alpha, in the styles that exist.
const ENDINGS: [(&str, Role); 13] = [
    (".lora_A.weight", Role::Down),
    (".lora_B.weight", Role::Up),
    (".lora_A.default.weight", Role::Down),
    (".lora_B.default.weight", Role::Up),
    (".lora_down.weight", Role::Down),
    (".lora_up.weight", Role::Up),
    (".lora.down.weight", Role::Down),
    (".lora.up.weight", Role::Up),
    (".lora_linear_layer.down.weight", Role::Down),
    (".lora_linear_layer.up.weight", Role::Up),
    ("_lora.down.weight", Role::Down),
    ("_lora.up.weight", Role::Up),
    (".alpha", Role::Alpha),
];

/// Most values of a matrix: 4096 rows for the widest layer of the networks that there are (20 480 inputs).
const LARGEST: usize = 4096 * 20_480;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Down,
    Up,
    Alpha,
}

/// A change of one weight.
#[derive(Debug, Clone, Default)]
struct Change {
    /// `[rank, inputs]`, or `[rank, inputs, kernel, kernel]`.
    down: Option<HostTensor>,
    /// `[outputs, rank]`, or with dimensions of 1 at the end.
    up: Option<HostTensor>,
    alpha: Option<f32>,
}

/// The changes of a file.
#[derive(Debug, Clone)]
pub struct Lora {
    path: PathBuf,
    /// Multiplies every change.
    weight: f32,
    /// The origin, if the file is of this program.
    pub(super) card: Option<ModelCard>,
    /// By part of the pipeline and name of the parameter.
    changes: BTreeMap<(usize, String), Change>,
}

/// The number of a part that may be changed: the denoiser, then the text encoders.
fn number(part: Part) -> Option<usize> {
    match part {
        Part::Denoiser => Some(0),
        Part::TextEncoder(index) => Some(1 + index),
        Part::Encoder | Part::Decoder => None,
    }
}

/// Every name that files have for a weight of the pipeline, without the endings; and the part and parameter.
fn names(spec: &PipelineSpec) -> BTreeMap<String, (usize, String)> {
    let mut known = BTreeMap::new();
    let mut parts = vec![(Part::Denoiser, spec.network.graph())];
    parts.extend(spec.text_encoders.iter().enumerate().map(|(index, encoder)| {
        let graph = match encoder {
            // Files change all layers, also the last one, which a pipeline may not compute.
            TextEncoderSpec::Clip(clip) => clip.graph(ClipLayer::Last, clip.projection_dim.is_some()),
            TextEncoderSpec::T5(_) => spec.text_encoder(index),
        };
        (Part::TextEncoder(index), graph)
    }));
    for (part, graph) in parts {
        let (Some(number), text) = (number(part), text_prefixes(part)) else { continue };
        for Parameter { name, .. } in graph.parameters {
            let Some(base) = name.strip_suffix(".weight") else { continue };
            let flat = base.replace('.', "_");
            let mut all = match part {
                Part::Denoiser => vec![
                    base.to_owned(),
                    format!("unet.{base}"),
                    format!("transformer.{base}"),
                    format!("lora_unet_{flat}"),
                    format!("lora_transformer_{flat}"),
                ],
                _ => text.iter().map(|(dotted, _)| format!("{dotted}.{base}")).collect(),
            };
            all.extend(
                text.iter().flat_map(|(_, flats)| flats.iter().map(|prefix| format!("{prefix}_{flat}"))),
            );
            if part == Part::Denoiser {
                // Files of kohya's scripts for Stable Diffusion XL have the names of its own repository.
                let whole =
                    origins(spec, part, &name).into_iter().filter(|(_, taken)| *taken == Taken::Whole);
                for (origin, _) in whole {
                    if let Some(origin) = origin.strip_prefix("model.diffusion_model.") {
                        let flat = origin.trim_end_matches(".weight").replace('.', "_");
                        all.push(format!("lora_unet_{flat}"));
                    }
                }
            }
            for key in all {
                known.insert(key, (number, name.clone()));
            }
        }
    }
    known
}

/// Prefixes of a text encoder's names: with dots, and flat.
fn text_prefixes(part: Part) -> Vec<(&'static str, &'static [&'static str])> {
    match part {
        Part::TextEncoder(0) => vec![("text_encoder", &["lora_te", "lora_te1"])],
        Part::TextEncoder(1) => vec![("text_encoder_2", &["lora_te2"])],
        Part::TextEncoder(_) => vec![("text_encoder_3", &["lora_te3"])],
        _ => Vec::new(),
    }
}

impl Lora {
    /// Reads a file of changes of a pipeline, each multiplied by `weight`.
    ///
    /// # Errors
    /// If the file cannot be read, or a tensor is of another kind of change, belongs to no weight of the pipeline, lacks its
    /// counterpart or has another shape (by name).
    pub fn open(path: &Path, weight: f32, spec: &PipelineSpec) -> Result<Self, ImportError> {
        let checkpoint = Checkpoint::open(path)?;
        let fault = |name: &str, reason: &str| ImportError::Tensor {
            path: path.into(),
            name: name.into(),
            reason: reason.into(),
        };
        let known = names(spec);
        let mut changes: BTreeMap<(usize, String), Change> = BTreeMap::new();
        for name in checkpoint.names() {
            let ending = ENDINGS.iter().find_map(|(ending, role)| Some((name.strip_suffix(ending)?, *role)));
            let Some((base, role)) = ending else {
                return Err(fault(name, "expected a LoRA's: A and B, up and down, or alpha"));
            };
            // Old files name the part that computes attention.
            let base = base.replace(".processor.to_out", ".to_out.0").replace(".processor.", ".");
            let place =
                known.get(&base).ok_or_else(|| fault(name, "no weight of this pipeline has its name"))?;
            // A view can repeat one number any number of times.
            let shape = checkpoint.shape(name);
            let most = shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(size));
            if most.is_none_or(|values| values > LARGEST) {
                return Err(fault(name, &format!("expected at most {LARGEST} values, found {shape:?}")));
            }
            let tensor = checkpoint.compact(name)?.into_host();
            let change = changes.entry(place.clone()).or_default();
            match role {
                Role::Down => change.down = Some(tensor),
                Role::Up => change.up = Some(tensor),
                Role::Alpha => match tensor.values[..] {
                    [alpha] => change.alpha = Some(alpha),
                    _ => return Err(fault(name, "expected one number")),
                },
            }
        }
        if changes.is_empty() {
            return Err(fault("lora_A", "expected at least one, found none"));
        }
        let description = Json::parse(&checkpoint.description).ok();
        let card = description.and_then(|it| ModelCard::from_json(it.get("card")?).ok());
        let lora = Self { path: path.into(), weight, card, changes };
        for (place, change) in &lora.changes {
            if change.down.is_none() || change.up.is_none() {
                return Err(fault(&place.1, "expected both A and B of its LoRA, found one"));
            }
        }
        Ok(lora)
    }

    /// Adds the change of a tensor, if there is one.
    pub(super) fn apply(
        &self,
        part: Part,
        parameter: &Parameter,
        tensor: CompactTensor,
    ) -> Result<CompactTensor, ImportError> {
        let place = number(part).map(|number| (number, parameter.name.clone()));
        let change = place.and_then(|place| self.changes.get(&place));
        let Some(Change { down: Some(down), up: Some(up), alpha }) = change else { return Ok(tensor) };
        let outputs = parameter.shape[0];
        let inputs: usize = parameter.shape[1..].iter().product();
        let rank = down.shape.first().copied().unwrap_or(0);
        for (what, found, expected) in [("A", &down.shape, [rank, inputs]), ("B", &up.shape, [outputs, rank])]
        {
            let is_right = found.first() == Some(&expected[0])
                && found.iter().product::<usize>() == expected[0] * expected[1]
                && rank > 0;
            if !is_right {
                let source = WeightsError::Shape {
                    name: format!("{} (LoRA's {what})", parameter.name),
                    expected: expected.to_vec(),
                    found: found.clone(),
                };
                return Err(ImportError::Weights { path: self.path.clone(), source });
            }
        }
        let factor = self.weight * alpha.map_or(1.0, |alpha| alpha / rank as f32);
        let shape = tensor.shape.clone();
        let mut values = tensor.into_f32();
        for (row, up) in values.chunks_exact_mut(inputs).zip(up.values.chunks_exact(rank)) {
            for (down, up) in down.values.chunks_exact(inputs).zip(up) {
                let factor = factor * up;
                row.iter_mut().zip(down).for_each(|(value, down)| *value += factor * down);
            }
        }
        Ok(HostTensor { shape, values }.into())
    }
}
