//! Parses network descriptions in JSON: this program's own, and the constructor arguments of torchcfm.

use serde::Deserialize;

use super::ImportError;
use crate::model::networks::Family as _;
use crate::model::{NetworkSpec, UNetSpec};

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
    // The next two options do not change the network's output.
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

/// Parses a network description: a [`UNetSpec`], or the arguments of torchcfm's constructor.
///
/// # Errors
/// If the text is neither, an option is not supported, or the spec is out of range.
pub fn spec_from_json(text: &str) -> Result<NetworkSpec, ImportError> {
    let value: serde_json::Value =
        serde_json::from_str(text).map_err(|error| ImportError::Spec(format!("not JSON: {error}")))?;
    let spec: UNetSpec = if value.get("dim").is_some() {
        let arguments: TorchArguments = serde_json::from_value(value)
            .map_err(|error| ImportError::Spec(format!("torchcfm arguments: {error}")))?;
        arguments.into_spec()?
    } else {
        serde_json::from_value(value).map_err(|error| ImportError::Spec(format!("network: {error}")))?
    };
    spec.validate().map_err(|error| ImportError::Spec(error.to_string()))?;
    Ok(spec.into())
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
        // torchcfm places attention at the downsampling factors `width / resolution`.
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
            patch_size: 1,
        })
    }
}
