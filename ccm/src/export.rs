//! Exports models in diffusers' layout: a folder with a `UNet2DModel`, a script that samples it, and a scheduler and a
//! pipeline if diffusers has suitable ones.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::model::networks::blocks::TimeScaleShift;
use crate::model::networks::unet2d::{DownBlock, Resample, UNet2DSpec, UpBlock};
use crate::model::prediction::{Betas, Edm, Schedule, Spacing};
use crate::model::{NetworkSpec, Path, Prediction, UNetSpec};
use crate::sampler::schedule::Solver;
use crate::weights::{HostTensor, Model, StoredTensor, WeightsError, serialize};

/// Why a model cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// diffusers does not support this network.
    #[error("{option}: {reason}")]
    Network {
        /// The unsupported option of the network.
        option: &'static str,
        /// What diffusers expects.
        reason: String,
    },
    /// The model cannot be sampled with this number of steps.
    #[error("steps: {0}")]
    Steps(String),
    /// The converted network is invalid.
    #[error(transparent)]
    Weights(#[from] WeightsError),
}

/// A file to write: its path in the folder, and its contents.
pub type File = (&'static str, Vec<u8>);

/// The files of a model in diffusers' layout. `sample.py` uses `steps` evaluations: Euler steps of a teacher, or jumps
/// of a student.
///
/// # Errors
/// If diffusers does not support the network, or the model's schedule has fewer steps.
pub fn diffusers(model: &Model, steps: usize) -> Result<Vec<File>, ExportError> {
    let model = to_unet2d(model)?;
    let NetworkSpec::UNet2D(spec) = &model.spec else {
        return Err(ExportError::Network { option: "network", reason: "expected a UNet2DModel".into() });
    };
    let names = model.spec.tensors();
    let tensors: Vec<StoredTensor> = names
        .into_iter()
        .zip(&model.tensors)
        .map(|(spec, tensor)| StoredTensor::f32(spec.name, tensor))
        .collect();
    let mut files = vec![
        ("unet/config.json", text(&spec.to_config())),
        ("unet/diffusion_pytorch_model.safetensors", serialize(&tensors, "")),
        ("sample.py", script(&model, steps)?.into_bytes()),
    ];
    if let Some((class, scheduler)) = scheduler(&model.prediction) {
        files.push(("scheduler/scheduler_config.json", text(&scheduler)));
        // The DDIM and DDPM pipelines do not pass labels.
        let conditional = spec.num_class_embeds.is_some();
        let pipeline = match class {
            "DDIMScheduler" if !conditional => Some("DDIMPipeline"),
            "FlowMatchEulerDiscreteScheduler" if !conditional => Some("DDPMPipeline"),
            "CMStochasticIterativeScheduler" => Some("ConsistencyModelPipeline"),
            _ => None,
        };
        if let Some(pipeline) = pipeline {
            let index = json!({
                "_class_name": pipeline,
                "scheduler": ["diffusers", class],
                "unet": ["diffusers", "UNet2DModel"],
            });
            files.push(("model_index.json", text(&index)));
        }
    }
    Ok(files)
}

fn text(value: &Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}

/// The scheduler class and configuration for a prediction; `None` if diffusers has none.
fn scheduler(prediction: &Prediction) -> Option<(&'static str, Value)> {
    let ddim = |kind: &str, schedule: &Schedule| {
        let mut config = json!({
            "_class_name": "DDIMScheduler",
            "clip_sample": false,
            "num_train_timesteps": schedule.steps,
            "prediction_type": kind,
            "rescale_betas_zero_snr": schedule.zero_terminal_snr,
            "set_alpha_to_one": true,
            "timestep_spacing": match schedule.spacing {
                Spacing::Trailing => "trailing",
                Spacing::Leading(_) => "leading",
                Spacing::Linspace => "linspace",
            },
        });
        if let Spacing::Leading(offset) = schedule.spacing {
            config["steps_offset"] = offset.into();
        }
        let mut named = |name: &str, ends: Option<(f64, f64)>| {
            config["beta_schedule"] = name.into();
            if let Some((start, end)) = ends {
                (config["beta_start"], config["beta_end"]) = (start.into(), end.into());
            }
        };
        match &schedule.betas {
            Betas::Linear(start, end) => named("linear", Some((*start, *end))),
            Betas::ScaledLinear(start, end) => named("scaled_linear", Some((*start, *end))),
            Betas::Cosine => named("squaredcos_cap_v2", None),
            Betas::Table(betas) => config["trained_betas"] = betas.clone().into(),
        }
        ("DDIMScheduler", config)
    };
    let edm = |class: &'static str, edm: &Edm| {
        let Edm { sigma_data, sigma_min, sigma_max, rho, .. } = edm;
        let config = json!({
            "_class_name": class,
            "sigma_data": sigma_data,
            "sigma_min": sigma_min,
            "sigma_max": sigma_max,
            "rho": rho,
        });
        (class, config)
    };
    match prediction {
        Prediction::Noise(schedule) => Some(ddim("epsilon", schedule)),
        Prediction::Data(schedule) => Some(ddim("sample", schedule)),
        Prediction::V(schedule) => Some(ddim("v_prediction", schedule)),
        Prediction::NoiseMinusData { shift } => {
            let class = "FlowMatchEulerDiscreteScheduler";
            Some((class, json!({ "_class_name": class, "num_train_timesteps": 1000, "shift": shift })))
        }
        Prediction::Edm(of) if of.boundary && of.time_scale == 250.0 => {
            let (class, mut config) = edm("CMStochasticIterativeScheduler", of);
            (config["clip_denoised"], config["num_train_timesteps"]) = (false.into(), 40.into());
            Some((class, config))
        }
        Prediction::Edm(of) if !of.boundary && of.time_scale == 0.25 => Some(edm("EDMEulerScheduler", of)),
        Prediction::Velocity
        | Prediction::PreconditionedVelocity { .. }
        | Prediction::StraightData
        | Prediction::Edm(_) => None,
    }
}

/// A script that samples the model without a scheduler. It contains the coefficients of every step.
fn script(model: &Model, steps: usize) -> Result<String, ExportError> {
    let (path, solver) = (Path::new(&model.prediction), Solver::of(&model.card));
    let steps = solver.steps(&path, solver.grid(&path), steps).map_err(ExportError::Steps)?;
    let mut rows = String::new();
    for step in &steps {
        let of = path.coefficients(f64::from(step.t));
        let row = [of.a, of.b, of.c_in, of.tau, step.x.x.into(), step.x.v.into(), step.fresh.into()];
        let row = row.map(|number: f64| format!("{number:?}")).join(", ");
        let _ = writeln!(rows, "    ({row}),");
    }
    let start = path.start_scale(f64::from(steps[0].t));
    Ok(format!(
        r#""""Samples this model with diffusers' UNet2DModel.

    python sample.py NOISE.safetensors IMAGES.safetensors

NOISE.safetensors holds unit noise `x`, [N, C, H, W], and the labels `label`, [N], of a model with classes. The images are
written as `images`, mostly in [-1, 1].
"""
import sys
from pathlib import Path

import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file, save_file

# Standard deviation of the noise at the first time, on the straight path x = t data + (1 - t) noise.
START = {start:?}
# For each evaluation of the network F: the velocity is a x + b F(c_in x, tau), and x becomes
# keep x + follow velocity + fresh noise.
STEPS = [
    # a, b, c_in, tau, keep, follow, fresh
{rows}]

torch.set_grad_enabled(False)
unet = UNet2DModel.from_pretrained(Path(__file__).parent / "unet").eval()
inputs = load_file(sys.argv[1])
label = inputs["label"].long() if "label" in inputs else None
x = START * inputs["x"]
for a, b, c_in, tau, keep, follow, fresh in STEPS:
    time = torch.full((len(x),), tau)
    velocity = a * x + b * unet(c_in * x, time, class_labels=label).sample
    x = keep * x + follow * velocity + fresh * torch.randn_like(x)
save_file({{"images": x.contiguous()}}, sys.argv[2])
"#
    ))
}

/// Converts a model to a `UNet2DModel`.
///
/// # Errors
/// If an option of ADM's U-Net has no equivalent in `UNet2DModel` (by name).
pub fn to_unet2d(model: &Model) -> Result<Model, ExportError> {
    let NetworkSpec::Adm(adm) = &model.spec else { return Ok(model.clone()) };
    let spec = NetworkSpec::from(unet2d_of(adm)?);
    // Both networks have the same layers in the same order, except that ADM packs queries, keys and values into one
    // layer.
    let mut values = Vec::with_capacity(model.tensors.len());
    for (parameter, tensor) in model.spec.tensors().iter().zip(&model.tensors) {
        if parameter.name.ends_with(".qkv.weight") || parameter.name.ends_with(".qkv.bias") {
            let heads = heads(adm, tensor.shape[0] / 3)?;
            let parts = (0..3).map(|part| part_of_qkv(tensor, part, heads, adm.use_new_attention_order));
            values.push(parts.collect());
        } else {
            values.push(vec![tensor.clone()]);
        }
    }
    // Reorders three weights followed by three biases into three pairs.
    let mut ordered = Vec::new();
    let mut groups = values.into_iter();
    while let Some(group) = groups.next() {
        match group.len() {
            3 => {
                let biases = groups.next().unwrap_or_default();
                ordered.extend(group.into_iter().zip(biases).flat_map(|(weight, bias)| [weight, bias]));
            }
            _ => ordered.extend(group),
        }
    }
    let named = spec.tensors().into_iter().zip(ordered).map(|(spec, tensor)| {
        // `Conv1d` kernels have one more dimension than linear weights.
        let linear = spec.shape.len() == 2 && tensor.shape.len() == 3;
        let shape = if linear { tensor.shape[..2].to_vec() } else { tensor.shape };
        (spec.name, HostTensor { shape, values: tensor.values })
    });
    Ok(Model::new(spec, model.prediction.clone(), model.card.clone(), named.collect())?)
}

/// The rows of queries (0), keys (1) or values (2) in a packed weight or bias.
fn part_of_qkv(packed: &HostTensor, part: usize, heads: usize, parts_first: bool) -> HostTensor {
    let rows = packed.shape[0];
    let (row, of_head) = (packed.values.len() / rows, rows / 3 / heads);
    let belongs = |index: usize| match parts_first {
        true => index / (of_head * heads) == part,
        false => index / of_head % 3 == part,
    };
    let kept = packed.values.chunks_exact(row).enumerate().filter(|(index, _)| belongs(*index));
    let values = kept.flat_map(|(_, row)| row.iter().copied()).collect();
    let shape = [&[rows / 3], &packed.shape[1..]].concat();
    HostTensor { shape, values }
}

/// Number of heads of an attention layer.
fn heads(spec: &UNetSpec, channels: usize) -> Result<usize, ExportError> {
    Ok(channels / head_channels(spec)?)
}

/// Channels per head, which must be the same in all attention layers.
fn head_channels(spec: &UNetSpec) -> Result<usize, ExportError> {
    if let Some(width) = spec.num_head_channels {
        return Ok(width);
    }
    let refuse = |option, reason: &str| Err(ExportError::Network { option, reason: reason.into() });
    if spec.num_heads_upsample.is_some_and(|heads| heads != spec.num_heads) {
        return refuse("num_heads_upsample", "expected num_heads, as diffusers has one setting for both");
    }
    let last = spec.channel_mult.len() - 1;
    let attends = |level: usize| level == last || attends(spec, level);
    let mut widths: Vec<usize> = (0..=last)
        .filter(|&level| attends(level))
        .map(|level| spec.level_channels(level) / spec.num_heads)
        .collect();
    widths.dedup();
    match widths[..] {
        [width] => Ok(width),
        _ => refuse(
            "num_heads",
            "diffusers needs the same number of channels per head in every attention layer",
        ),
    }
}

fn attends(spec: &UNetSpec, level: usize) -> bool {
    spec.attention_resolutions.contains(&(spec.width >> level))
}

fn unet2d_of(spec: &UNetSpec) -> Result<UNet2DSpec, ExportError> {
    let levels = spec.channel_mult.len();
    let down = |level| match (attends(spec, level), spec.resblock_updown) {
        (true, _) => DownBlock::AttnDownBlock2D,
        (false, true) => DownBlock::ResnetDownsampleBlock2D,
        (false, false) => DownBlock::DownBlock2D,
    };
    let up = |level| match (attends(spec, level), spec.resblock_updown) {
        (true, _) => UpBlock::AttnUpBlock2D,
        (false, true) => UpBlock::ResnetUpsampleBlock2D,
        (false, false) => UpBlock::UpBlock2D,
    };
    let resample = if spec.resblock_updown { Resample::Resnet } else { Resample::Conv };
    let channels: Vec<usize> = (0..levels).map(|level| spec.level_channels(level)).collect();
    if channels[0] != spec.model_channels {
        let reason = format!("expected 1 in the first level, found {}", spec.channel_mult[0]);
        return Err(ExportError::Network { option: "channel_mult", reason });
    }
    if spec.patch_size != 1 {
        let reason = format!("expected 1, found {}", spec.patch_size);
        return Err(ExportError::Network { option: "patch_size", reason });
    }
    Ok(UNet2DSpec {
        in_channels: spec.in_channels,
        sample_size: [spec.height, spec.width],
        block_out_channels: channels,
        layers_per_block: spec.num_res_blocks,
        down_block_types: (0..levels).map(down).collect(),
        up_block_types: (0..levels).rev().map(up).collect(),
        downsample_type: resample,
        upsample_type: resample,
        mid_block: true,
        add_attention: true,
        mid_block_scale_factor: 1.0,
        downsample_padding: 1,
        attention_head_dim: Some(head_channels(spec)?),
        norm_num_groups: 32,
        attn_norm_num_groups: Some(32),
        norm_eps: 1e-5,
        resnet_time_scale_shift: match spec.use_scale_shift_norm {
            true => TimeScaleShift::ScaleShift,
            false => TimeScaleShift::Default,
        },
        flip_sin_to_cos: true,
        freq_shift: 0.0,
        time_embedding_dim: Some(4 * spec.model_channels),
        num_class_embeds: spec.num_classes,
        dropout: spec.dropout,
    })
}
