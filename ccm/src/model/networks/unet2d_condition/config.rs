//! diffusers' `config.json` of a `UNet2DConditionModel`.

use serde_json::json;

use super::super::{SpecError, blocks::TimeScaleShift, text_encoder::ClipSpec};
use super::{TextTime, UNet2DConditionSpec};
use crate::model::json::Json;
use crate::model::options::Options;

impl UNet2DConditionSpec {
    /// Parses diffusers' `config.json`. Absent options have diffusers' defaults.
    ///
    /// # Errors
    /// If an option is not supported (by name).
    pub fn from_config(config: &Json) -> Result<Self, SpecError> {
        let options = Options::new(config);
        options.one_of("time_embedding_type", &["positional"]);
        options.one_of("act_fn", &["silu", "swish"]);
        options.one_of("attention_type", &["default"]);
        for key in [
            "class_embed_type",
            "encoder_hid_dim_type",
            "encoder_hid_dim",
            "time_embedding_act_fn",
            "timestep_post_act",
            "cross_attention_norm",
            "reverse_transformer_layers_per_block",
        ] {
            options.only_null(key);
        }
        for key in [
            "center_input_sample",
            "dual_cross_attention",
            "only_cross_attention",
            "mid_block_only_cross_attention",
            "resnet_skip_time_act",
            "class_embeddings_concat",
        ] {
            options.only_false(key);
        }
        for (key, supported) in [("conv_in_kernel", 3), ("conv_out_kernel", 3)] {
            if options.count(key).is_some_and(|found| found != supported) {
                options.refuse(key, "3");
            }
        }
        if options.number("resnet_out_scale_factor").is_some_and(|factor| factor != 1.0) {
            options.refuse("resnet_out_scale_factor", "1");
        }
        // They change nothing in single precision, or only with other options.
        for key in ["upcast_attention", "addition_embed_type_num_heads", "num_train_timesteps"] {
            options.get(key);
        }
        let in_channels = options.count("in_channels").unwrap_or(4);
        if options.count("out_channels").unwrap_or(4) != in_channels {
            options.refuse("out_channels", "as many as in_channels");
        }
        let block_out_channels =
            options.counts("block_out_channels").unwrap_or_else(|| vec![320, 640, 1280, 1280]);
        let levels = block_out_channels.len();
        let per_level = |key, usual| options.count_or_counts(key, levels, usual);
        const DOWN: [&str; 2] = ["DownBlock2D", "CrossAttnDownBlock2D"];
        const UP: [&str; 2] = ["UpBlock2D", "CrossAttnUpBlock2D"];
        let attention = |key, known: &[&str], usual: [usize; 4]| -> Vec<bool> {
            let places = options.names(key, known).unwrap_or_else(|| usual.to_vec());
            places.into_iter().map(|place| place == 1).collect()
        };
        let head_dim = per_level("attention_head_dim", 8);
        let text_time = match options.text("addition_embed_type") {
            None => {
                options.get("addition_time_embed_dim");
                options.get("projection_class_embeddings_input_dim");
                None
            }
            Some("text_time") => Some(TextTime {
                time_embed_dim: options
                    .needed("addition_time_embed_dim", options.count("addition_time_embed_dim")),
                input_dim: options.needed(
                    "projection_class_embeddings_input_dim",
                    options.count("projection_class_embeddings_input_dim"),
                ),
            }),
            Some(_) => {
                options.refuse("addition_embed_type", "text_time or null");
                None
            }
        };
        let mid_block = match config.get("mid_block_type") {
            Some(Json::Null) => {
                options.get("mid_block_type");
                false
            }
            _ => {
                options.one_of("mid_block_type", &["UNetMidBlock2DCrossAttn"]);
                true
            }
        };
        let spec = Self {
            in_channels,
            sample_size: options.needed("sample_size", options.size("sample_size")),
            patch_size: options.count("patch_size").unwrap_or(1),
            tokens: options.count("tokens").unwrap_or(77),
            layers_per_block: per_level("layers_per_block", 2),
            down_attention: attention("down_block_types", &DOWN, [1, 1, 1, 0]),
            up_attention: attention("up_block_types", &UP, [0, 1, 1, 1]),
            mid_block,
            transformer_layers_per_block: per_level("transformer_layers_per_block", 1),
            // diffusers' `attention_head_dim` is the number of heads.
            num_attention_heads: match options.get("num_attention_heads") {
                Some(_) => per_level("num_attention_heads", 8),
                None => head_dim,
            },
            cross_attention_dim: options.count("cross_attention_dim").unwrap_or(1280),
            use_linear_projection: options.flag("use_linear_projection").unwrap_or(false),
            downsample_padding: options.count("downsample_padding").unwrap_or(1),
            mid_block_scale_factor: options.number("mid_block_scale_factor").unwrap_or(1.0) as f32,
            norm_num_groups: options.count("norm_num_groups").unwrap_or(32),
            norm_eps: options.number("norm_eps").unwrap_or(1e-5) as f32,
            resnet_time_scale_shift: match options.text("resnet_time_scale_shift") {
                None | Some("default") => TimeScaleShift::Default,
                Some("scale_shift") => TimeScaleShift::ScaleShift,
                Some(_) => {
                    options.refuse("resnet_time_scale_shift", "default or scale_shift");
                    TimeScaleShift::Default
                }
            },
            flip_sin_to_cos: options.flag("flip_sin_to_cos").unwrap_or(true),
            freq_shift: options.number("freq_shift").unwrap_or(0.0) as f32,
            time_embedding_dim: options.count("time_embedding_dim"),
            time_cond_proj_dim: options.count("time_cond_proj_dim"),
            text_time,
            num_class_embeds: options.count("num_class_embeds"),
            dropout: options.number("dropout").unwrap_or(0.0),
            text_encoder: options.get("text_encoder").map(ClipSpec::from_config).transpose()?,
            block_out_channels,
        };
        options.finish()?;
        Ok(spec)
    }

    /// Converts to diffusers' `config.json`, which [`UNet2DConditionSpec::from_config`] reads back.
    pub fn to_config(&self) -> serde_json::Value {
        let names = |attention: &[bool], [without, with]: [&'static str; 2]| -> Vec<&'static str> {
            attention.iter().map(|&attends| if attends { with } else { without }).collect()
        };
        let digits = |value: f32| value.to_string().parse::<f64>().unwrap_or(value.into());
        json!({
            "_class_name": "UNet2DConditionModel",
            "act_fn": "silu",
            "addition_embed_type": self.text_time.map(|_| "text_time"),
            "addition_time_embed_dim": self.text_time.map(|of| of.time_embed_dim),
            "attention_head_dim": self.num_attention_heads,
            "block_out_channels": self.block_out_channels,
            "cross_attention_dim": self.cross_attention_dim,
            "down_block_types": names(&self.down_attention, ["DownBlock2D", "CrossAttnDownBlock2D"]),
            "downsample_padding": self.downsample_padding,
            "dropout": self.dropout,
            "flip_sin_to_cos": self.flip_sin_to_cos,
            "freq_shift": digits(self.freq_shift),
            "in_channels": self.in_channels,
            "layers_per_block": self.layers_per_block,
            "mid_block_scale_factor": digits(self.mid_block_scale_factor),
            "mid_block_type": self.mid_block.then_some("UNetMidBlock2DCrossAttn"),
            "norm_eps": digits(self.norm_eps),
            "norm_num_groups": self.norm_num_groups,
            "num_class_embeds": self.num_class_embeds,
            "out_channels": self.in_channels,
            "patch_size": (self.patch_size > 1).then_some(self.patch_size),
            "projection_class_embeddings_input_dim": self.text_time.map(|of| of.input_dim),
            "resnet_time_scale_shift": match self.resnet_time_scale_shift {
                TimeScaleShift::Default => "default",
                TimeScaleShift::ScaleShift => "scale_shift",
            },
            "sample_size": self.sample_size,
            "text_encoder": self.text_encoder.as_ref().map(ClipSpec::to_config),
            "time_cond_proj_dim": self.time_cond_proj_dim,
            "time_embedding_dim": self.time_embedding_dim,
            "tokens": self.tokens,
            "transformer_layers_per_block": self.transformer_layers_per_block,
            "up_block_types": names(&self.up_attention, ["UpBlock2D", "CrossAttnUpBlock2D"]),
            "use_linear_projection": self.use_linear_projection,
        })
    }
}
