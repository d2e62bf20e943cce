//! Descriptions of other programs' networks: built in for published networks, or read from JSON.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{ImportError, spec_from_json};
use crate::disk;
use crate::model::json::Json;
use crate::model::prediction::{Edm, Schedule};
use crate::model::{NetworkSpec, Prediction, Role, UNetSpec};

/// A network and its prediction.
#[derive(Debug, Clone, PartialEq)]
pub struct Description {
    /// The architecture.
    pub spec: NetworkSpec,
    /// The prediction.
    pub prediction: Prediction,
}

/// Names of published networks whose files hold only weights.
pub const PUBLISHED: [&str; 2] = ["openai-imagenet64", "openai-lsun256"];

/// A published network of openai/consistency_models, one of [`PUBLISHED`]. The prediction is EDM's for a teacher, a
/// consistency model's for a student.
pub fn published(name: &str, role: Role) -> Option<Description> {
    // The rows of these networks' `qkv` are `[3, heads, head_channels]`.
    let common = UNetSpec {
        in_channels: 3,
        height: 64,
        width: 64,
        model_channels: 192,
        num_res_blocks: 3,
        channel_mult: vec![1.0, 2.0, 3.0, 4.0],
        attention_resolutions: vec![32, 16, 8],
        num_heads: 4,
        num_head_channels: Some(64),
        num_heads_upsample: None,
        use_scale_shift_norm: true,
        resblock_updown: true,
        use_new_attention_order: true,
        dropout: 0.0,
        num_classes: Some(1000),
        patch_size: 1,
    };
    let spec = match name {
        "openai-imagenet64" => common,
        "openai-lsun256" => UNetSpec {
            height: 256,
            width: 256,
            model_channels: 256,
            num_res_blocks: 2,
            channel_mult: vec![1.0, 1.0, 2.0, 2.0, 4.0, 4.0],
            use_scale_shift_norm: false,
            num_classes: None,
            ..common
        },
        _ => return None,
    };
    let edm = Edm { boundary: role == Role::Student, ..Edm::default() };
    Some(Description { spec: spec.into(), prediction: Prediction::Edm(edm) })
}

/// The prediction with a given name and its published settings. Names: `velocity`, `noise`, `data`, `v`, `edm`.
///
/// # Errors
/// If the name is unknown.
pub fn prediction(name: &str, role: Role) -> Result<Prediction, ImportError> {
    Ok(match name {
        "velocity" => Prediction::Velocity,
        "noise" => Prediction::Noise(Schedule::default()),
        "data" => Prediction::Data(Schedule::default()),
        "v" => Prediction::V(Schedule::default()),
        "edm" => Prediction::Edm(Edm { boundary: role == Role::Student, ..Edm::default() }),
        other => {
            return Err(ImportError::Spec(format!(
                "expected velocity, noise, data, v or edm, found `{other}`"
            )));
        }
    })
}

/// Parses a description in JSON. It is either a network ([`spec_from_json`]), which then predicts the velocity, or an
/// object with the network under `network` and either EDM's `sigma_data`, `sigma_min`, `sigma_max`, `rho` and
/// `time_scale`, or a `prediction` in the format of model files.
///
/// # Errors
/// If the text is neither, or a number is out of range.
pub fn description_from_json(text: &str, role: Role) -> Result<Description, ImportError> {
    let fault = |what: String| ImportError::Spec(what);
    let value: Value = serde_json::from_str(text).map_err(|error| fault(format!("not JSON: {error}")))?;
    let Some(network) = value.get("network") else {
        return Ok(Description { spec: spec_from_json(text)?, prediction: Prediction::Velocity });
    };
    let spec = spec_from_json(&network.to_string())?;
    let number = |key: &str, usual: f64| match value.get(key) {
        None => Ok(usual),
        Some(found) => {
            found.as_f64().ok_or_else(|| fault(format!("{key}: expected a number, found {found}")))
        }
    };
    let prediction = match value.get("prediction") {
        Some(prediction) => {
            let prediction =
                Json::parse(&prediction.to_string()).map_err(|error| fault(error.to_string()))?;
            Prediction::from_json(&prediction).map_err(|error| fault(format!("prediction: {error}")))?
        }
        None if value.get("sigma_data").is_some() => {
            let usual = Edm::default();
            Prediction::Edm(Edm {
                sigma_data: number("sigma_data", usual.sigma_data)?,
                sigma_min: number("sigma_min", usual.sigma_min)?,
                sigma_max: number("sigma_max", usual.sigma_max)?,
                rho: number("rho", usual.rho)?,
                time_scale: number("time_scale", usual.time_scale)?,
                boundary: role == Role::Student,
            })
        }
        None => Prediction::Velocity,
    };
    prediction.validate().map_err(|reason| fault(format!("prediction: {reason}")))?;
    Ok(Description { spec, prediction })
}

/// Finds the checkpoint (a PyTorch file) and the description (a JSON file with a `network`) in a folder.
///
/// # Errors
/// If the folder does not hold exactly one of each.
pub fn described_folder(folder: &Path) -> Result<(PathBuf, PathBuf), ImportError> {
    let fault = |what: &str| ImportError::Spec(format!("{}: {what}", folder.display()));
    let entries = std::fs::read_dir(folder).map_err(|_| fault("the folder cannot be read"))?;
    let mut files: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    files.sort();
    let of = |ends: &[&str]| -> Vec<PathBuf> {
        let has = |path: &&PathBuf| {
            path.extension().and_then(|end| end.to_str()).is_some_and(|end| ends.contains(&end))
        };
        files.iter().filter(has).cloned().collect()
    };
    let describes = |path: &PathBuf| {
        let text = disk::read_text(path).ok()?;
        serde_json::from_str::<Value>(&text).ok()?.get("network").map(|_| ())
    };
    let descriptions: Vec<PathBuf> =
        of(&["json"]).into_iter().filter(|path| describes(path).is_some()).collect();
    let checkpoints = of(&["pt", "pth", "ckpt"]);
    match (&checkpoints[..], &descriptions[..]) {
        ([checkpoint], [description]) => Ok((checkpoint.clone(), description.clone())),
        _ => Err(fault(&format!(
            "expected a pipeline of diffusers (model_index.json), or one checkpoint (.pt, .pth, .ckpt) and one .json with \
             its `network`; found {} and {}",
            checkpoints.len(),
            descriptions.len()
        ))),
    }
}
