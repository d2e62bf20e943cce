//! Imports a pipeline in diffusers' layout: a folder with a network's `config.json` and weights, and a scheduler.

use std::path::{Path, PathBuf};

use super::{Checkpoint, ImportError};
use crate::disk;
use crate::model::json::Json;
use crate::model::prediction::{Betas, Edm, Schedule, Spacing};
use crate::model::{ModelCard, NetworkSpec, Prediction, Role, UNet2DSpec};
use crate::weights::Model;

/// File name of the weights, without extension.
const STEM: &str = "diffusion_pytorch_model";

/// An imported pipeline.
#[derive(Debug)]
pub struct Pipeline {
    /// The denoiser.
    pub model: Model,
    /// Messages about settings of the scheduler that are not applied.
    pub notes: Vec<String>,
}

/// Whether a folder has diffusers' layout of a pipeline or a network.
pub fn is_pipeline(folder: &Path) -> bool {
    ["model_index.json", "unet/config.json", "transformer/config.json"]
        .iter()
        .any(|file| folder.join(file).exists())
        || parsed(&folder.join("config.json")).is_ok_and(|config| config.get("_class_name").is_some())
}

/// Reads a pipeline of a `UNet2DModel`. Without `role`, the scheduler of a consistency model makes the model a
/// student, any other scheduler a teacher.
///
/// # Errors
/// If the network is of another class, an option is not supported (by name), or files are missing or do not match.
pub fn read(folder: &Path, role: Option<Role>) -> Result<Pipeline, ImportError> {
    let part = |name: &str| match folder.join(name) {
        part if part.is_dir() => part,
        // Old pipelines keep all files in one folder.
        _ => folder.to_owned(),
    };
    if folder.join("transformer").is_dir() {
        return Err(unsupported(&folder.join("transformer/config.json"), "a transformer"));
    }
    let index = folder.join("model_index.json");
    if index.exists() {
        check_components(&index)?;
    }
    let unet = part("unet");
    let spec = read_spec(&unet.join("config.json"))?;

    let path = part("scheduler").join("scheduler_config.json");
    let Scheduler { prediction, role: usual, notes } = scheduler(&path)?;
    let checkpoint = weights(&unet, STEM)?;
    let source = checkpoint.path.clone();
    let found = checkpoint.renamed(current_name).select(&spec.tensors(), None)?;
    let name = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let card = ModelCard {
        role: role.unwrap_or(usual),
        source: name.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
        version: env!("CARGO_PKG_VERSION").into(),
        ..ModelCard::default()
    };
    let prediction = match prediction {
        Prediction::Edm(edm) => {
            Prediction::Edm(Edm { boundary: card.role == Role::Student && edm.boundary, ..edm })
        }
        other => other,
    };
    let model = Model::new(spec, prediction, card, found.tensors);
    Ok(Pipeline {
        model: model.map_err(|error| ImportError::Weights { path: source, source: error })?,
        notes,
    })
}

/// Reads the `config.json` of a network.
///
/// # Errors
/// If the network is of another class, or an option is not supported or out of range (by name).
pub fn read_spec(path: &Path) -> Result<NetworkSpec, ImportError> {
    let spec: NetworkSpec = network(path)?.into();
    spec.validate().map_err(|error| ImportError::Spec(format!("{}: {error}", path.display())))?;
    Ok(spec)
}

/// Checks that a pipeline has no other parts than a network and a scheduler: with an autoencoder, the network's images
/// would not be pixels.
fn check_components(index: &Path) -> Result<(), ImportError> {
    let config = parsed(index)?;
    let is_part =
        |value: &Json| matches!(value, Json::List(names) if names.iter().any(|name| name.text().is_some()));
    let parts = config.entries().into_iter().flatten().filter(|(_, value)| is_part(value));
    match parts.map(|(name, _)| name).find(|name| !["unet", "scheduler"].contains(&name.as_str())) {
        Some(other) => {
            let expected = "a pipeline of pixels with a unet and a scheduler only";
            Err(ImportError::Spec(format!("{}: expected {expected}, found {other}", index.display())))
        }
        None => Ok(()),
    }
}

fn unsupported(path: &Path, found: &str) -> ImportError {
    ImportError::Spec(format!("{}: expected a UNet2DModel, found {found}", path.display()))
}

/// Converts a tensor name of old diffusers versions, which named attention differently, to today's name.
pub(super) fn current_name(name: &str) -> String {
    const OLD: [(&str, &str); 4] =
        [(".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0.")];
    OLD.iter().fold(name.to_owned(), |name, (old, new)| name.replace(old, new))
}

/// Parses the JSON object in a file.
pub(super) fn parsed(path: &Path) -> Result<Json, ImportError> {
    let fault = |what: String| ImportError::Spec(format!("{}: {what}", path.display()));
    let json = Json::parse(&disk::read_text(path)?).map_err(|error| fault(format!("not JSON: {error}")))?;
    if json.entries().is_none() { Err(fault("expected a JSON object".into())) } else { Ok(json) }
}

/// Parses the network in a `config.json`.
fn network(path: &Path) -> Result<UNet2DSpec, ImportError> {
    let fault = |what: String| ImportError::Spec(format!("{}: {what}", path.display()));
    let config = parsed(path)?;
    match config.get("_class_name").map(Json::text) {
        None | Some(Some("UNet2DModel")) => {}
        Some(class) => return Err(unsupported(path, class.unwrap_or("another class"))),
    }
    UNet2DSpec::from_config(&config).map_err(|error| fault(error.to_string()))
}

/// Properties of the model that its scheduler defines.
pub(super) struct Scheduler {
    pub(super) prediction: Prediction,
    pub(super) role: Role,
    pub(super) notes: Vec<String>,
}

/// Reads a `scheduler_config.json`.
pub(super) fn scheduler(path: &Path) -> Result<Scheduler, ImportError> {
    let fault = |what: String| ImportError::Spec(format!("{}: {what}", path.display()));
    let config = parsed(path)?;
    let number = |key: &str, default: f64| match config.get(key) {
        None | Some(Json::Null) => Ok(default),
        Some(value) => value.number().ok_or_else(|| fault(format!("{key}: expected a number"))),
    };
    let text = |key: &str| config.get(key).and_then(Json::text);
    let flag = |key: &str| config.get(key).and_then(Json::flag);
    let class = text("_class_name").unwrap_or("DDIMScheduler");
    let edm = |boundary: bool, time_scale: f64| -> Result<Prediction, ImportError> {
        let usual = Edm::default();
        Ok(Prediction::Edm(Edm {
            sigma_data: number("sigma_data", usual.sigma_data)?,
            sigma_min: number("sigma_min", usual.sigma_min)?,
            sigma_max: number("sigma_max", usual.sigma_max)?,
            rho: number("rho", usual.rho)?,
            time_scale,
            boundary,
        }))
    };
    let mut notes = Vec::new();
    for key in ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_dynamic_shifting"] {
        if flag(key) == Some(true) {
            notes.push(format!("{}: {key} is not applied; --times selects other times", path.display()));
        }
    }
    if text("sigma_schedule").is_some_and(|name| name != "karras") || number("shift_terminal", 0.0)? != 0.0 {
        notes.push(format!(
            "{}: sigma_schedule and shift_terminal are not applied; --times selects other times",
            path.display()
        ));
    }
    let (prediction, role) = match class {
        "CMStochasticIterativeScheduler" => (edm(true, 250.0)?, Role::Student),
        "EDMEulerScheduler" | "EDMDPMSolverMultistepScheduler" => {
            match text("prediction_type").unwrap_or("epsilon") {
                "epsilon" => (edm(false, 0.25)?, Role::Teacher),
                other => return Err(fault(format!("prediction_type: expected epsilon, found {other}"))),
            }
        }
        "FlowMatchEulerDiscreteScheduler" => match number("num_train_timesteps", 1000.0)? {
            1000.0 => (Prediction::NoiseMinusData { shift: number("shift", 1.0)? }, Role::Teacher),
            other => return Err(fault(format!("num_train_timesteps: expected 1000, found {other}"))),
        },
        "DDPMScheduler"
        | "DDIMScheduler"
        | "PNDMScheduler"
        | "DPMSolverMultistepScheduler"
        | "DPMSolverSinglestepScheduler"
        | "EulerDiscreteScheduler"
        | "EulerAncestralDiscreteScheduler"
        | "HeunDiscreteScheduler"
        | "LMSDiscreteScheduler"
        | "UniPCMultistepScheduler"
        | "DEISMultistepScheduler" => {
            let steps = number("num_train_timesteps", 1000.0)? as usize;
            let ends = (number("beta_start", 1e-4)?, number("beta_end", 0.02)?);
            let betas = match (config.get("trained_betas"), text("beta_schedule").unwrap_or("linear")) {
                (Some(Json::List(betas)), _) => {
                    let betas: Option<Vec<f64>> = betas.iter().map(Json::number).collect();
                    Betas::Table(betas.ok_or_else(|| fault("trained_betas: expected numbers".into()))?)
                }
                (_, "linear") => Betas::Linear(ends.0, ends.1),
                (_, "scaled_linear") => Betas::ScaledLinear(ends.0, ends.1),
                (_, "squaredcos_cap_v2") => Betas::Cosine,
                (_, other) => {
                    let expected = "linear, scaled_linear or squaredcos_cap_v2";
                    return Err(fault(format!("beta_schedule: expected {expected}, found {other}")));
                }
            };
            let spacing = match text("timestep_spacing") {
                None | Some("trailing") => Spacing::Trailing,
                Some("leading") => Spacing::Leading(number("steps_offset", 0.0)? as usize),
                Some("linspace") => Spacing::Linspace,
                Some(other) => {
                    let expected = "trailing, leading or linspace";
                    return Err(fault(format!("timestep_spacing: expected {expected}, found {other}")));
                }
            };
            let zero_terminal_snr = flag("rescale_betas_zero_snr").unwrap_or(false);
            // diffusers' default of these classes.
            let clips = ["DDPMScheduler", "DDIMScheduler"].contains(&class);
            for (key, usual) in [("clip_sample", clips), ("thresholding", false)] {
                if flag(key).unwrap_or(usual) {
                    notes.push(format!("{}: {key} is not applied in sampling", path.display()));
                }
            }
            if flag("set_alpha_to_one") == Some(false) {
                notes.push(format!(
                    "{}: sampling ends at alpha = 1, whatever set_alpha_to_one says",
                    path.display()
                ));
            }
            let schedule = Schedule { betas, steps, zero_terminal_snr, spacing };
            let prediction = match text("prediction_type").unwrap_or("epsilon") {
                "epsilon" => Prediction::Noise(schedule),
                "sample" => Prediction::Data(schedule),
                "v_prediction" => Prediction::V(schedule),
                other => {
                    let expected = "epsilon, sample or v_prediction";
                    return Err(fault(format!("prediction_type: expected {expected}, found {other}")));
                }
            };
            (prediction, Role::Teacher)
        }
        other => return Err(fault(format!("_class_name: a {other} is not supported"))),
    };
    prediction.validate().map_err(|error| fault(error.to_string()))?;
    Ok(Scheduler { prediction, role, notes })
}

/// Opens the weights in a folder as [`find_weights`], which must be there.
pub(super) fn weights(folder: &Path, stem: &str) -> Result<Checkpoint, ImportError> {
    let missing = || {
        let folder = folder.display();
        ImportError::Spec(format!("{folder}: expected {stem}.safetensors or .bin, found neither"))
    };
    find_weights(folder, stem)?.ok_or_else(missing)
}

/// Opens the weights in a folder, whose names begin with `stem`: shards, one file, or a half-precision variant;
/// safetensors before PyTorch's. `None` if there are none.
pub(super) fn find_weights(folder: &Path, stem: &str) -> Result<Option<Checkpoint>, ImportError> {
    for (end, variant_end) in [("safetensors", "fp16.safetensors"), ("bin", "fp16.bin")] {
        for index in [format!("{stem}.{end}.index.json"), format!("{stem}.{end}.index.fp16.json")] {
            let index = folder.join(index);
            if index.exists() {
                return sharded(folder, &index).map(Some);
            }
        }
        for name in [format!("{stem}.{end}"), format!("{stem}.{variant_end}")] {
            let file = folder.join(name);
            if file.exists() {
                return Checkpoint::open(&file).map(Some);
            }
        }
    }
    Ok(None)
}

/// Opens the shards that an index file lists.
fn sharded(folder: &Path, index: &Path) -> Result<Checkpoint, ImportError> {
    let fault = |what: String| ImportError::Spec(format!("{}: {what}", index.display()));
    let map = parsed(index)?;
    let Some(weight_map) = map.get("weight_map").and_then(Json::entries) else {
        return Err(fault("weight_map: expected a map from tensors to files".into()));
    };
    let mut files: Vec<&str> = weight_map.iter().filter_map(|(_, file)| file.text()).collect();
    files.sort_unstable();
    files.dedup();
    // Accept only file names, so that no path leads out of the folder.
    if let Some(file) = files.iter().find(|file| Path::new(file).file_name() != Some(file.as_ref())) {
        return Err(fault(format!("weight_map: expected names of files, found {file:?}")));
    }
    let paths: Vec<PathBuf> = files.iter().map(|file| folder.join(file)).collect();
    Checkpoint::open_shards(index, &paths)
}
