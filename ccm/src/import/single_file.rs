//! Names of tensors in the single files of Stable Diffusion's own repositories, for the names of diffusers and transformers.
//!
//! A single file holds all parts of a pipeline but no configuration and no tokenizer; these come from a folder in diffusers'
//! layout. For each tensor of a part, [`origin`] says where the file has it.

use crate::model::NetworkSpec;
use crate::pipeline::{Part, PipelineKind, PipelineSpec};

/// A tensor of a single file, and how the wanted one is taken from it.
pub(super) type Origin = (String, Taken);

/// How a tensor is taken from a stored one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// As it is; dimensions of 1 at the end may differ.
    Whole,
    /// One of three equal parts of the rows, counted from 0.
    Third(usize),
    /// The second half of the rows, then the first.
    SwappedHalves,
    /// With rows and columns exchanged.
    Transposed,
}

/// Where a single file may have the tensor `name` of a part, in the layouts of Stable Diffusion 1, 2, XL and 3.
pub(super) fn origins(spec: &PipelineSpec, part: Part, name: &str) -> Vec<Origin> {
    match part {
        Part::Denoiser => {
            let origin = match &spec.network {
                NetworkSpec::UNet2DCondition(spec) => {
                    unet(name, &spec.layers_per_block, &spec.up_attention).map(|name| (name, Taken::Whole))
                }
                NetworkSpec::Mmdit(spec) => mmdit(name, spec.num_layers),
                NetworkSpec::Adm(_) | NetworkSpec::UNet2D(_) => None,
            };
            origin.into_iter().map(|(name, taken)| (format!("model.diffusion_model.{name}"), taken)).collect()
        }
        Part::Encoder | Part::Decoder => {
            let levels = spec.reduction().ilog2() as usize + 1;
            let name = autoencoder(name, levels).into_iter();
            name.map(|name| (format!("first_stage_model.{name}"), Taken::Whole)).collect()
        }
        Part::TextEncoder(index) => text_encoder(spec.kind, name, index),
    }
}

/// Splits `blocks.3.rest` into 3 and `rest`.
fn numbered<'a>(name: &'a str, prefix: &str) -> Option<(usize, &'a str)> {
    let (number, rest) = name.strip_prefix(prefix)?.split_once('.')?;
    Some((number.parse().ok()?, rest))
}

/// Replaces the beginning of a name by that of the first pair that fits.
fn renamed(name: &str, pairs: &[(&str, &str)]) -> Option<String> {
    pairs.iter().find_map(|(from, to)| {
        let rest = name.strip_prefix(from)?;
        (rest.is_empty() || rest.starts_with('.')).then(|| format!("{to}{rest}"))
    })
}

/// A tensor of a residual block of the U-Net.
fn resnet(name: &str) -> Option<String> {
    renamed(
        name,
        &[
            ("norm1", "in_layers.0"),
            ("conv1", "in_layers.2"),
            ("time_emb_proj", "emb_layers.1"),
            ("norm2", "out_layers.0"),
            ("conv2", "out_layers.3"),
            ("conv_shortcut", "skip_connection"),
        ],
    )
}

/// A tensor of the U-Net.
fn unet(name: &str, layers_per_block: &[usize], up_attention: &[bool]) -> Option<String> {
    let outer = renamed(
        name,
        &[
            ("conv_in", "input_blocks.0.0"),
            ("time_embedding.linear_1", "time_embed.0"),
            ("time_embedding.linear_2", "time_embed.2"),
            ("time_embedding.cond_proj", "time_embed.cond_proj"),
            ("add_embedding.linear_1", "label_emb.0.0"),
            ("add_embedding.linear_2", "label_emb.0.2"),
            ("conv_norm_out", "out.0"),
            ("conv_out", "out.2"),
        ],
    );
    if outer.is_some() {
        return outer;
    }
    if let Some(rest) = name.strip_prefix("mid_block.") {
        return match (numbered(rest, "resnets."), numbered(rest, "attentions.")) {
            (Some((block, rest)), _) => Some(format!("middle_block.{}.{}", 2 * block, resnet(rest)?)),
            (_, Some((_, rest))) => Some(format!("middle_block.1.{rest}")),
            _ => None,
        };
    }
    if let Some((level, rest)) = numbered(name, "down_blocks.") {
        // Each level ends in one more block, which halves the resolution.
        let first = 1 + layers_per_block.get(..level)?.iter().map(|layers| layers + 1).sum::<usize>();
        if let Some((layer, rest)) = numbered(rest, "resnets.") {
            return Some(format!("input_blocks.{}.0.{}", first + layer, resnet(rest)?));
        }
        if let Some((layer, rest)) = numbered(rest, "attentions.") {
            return Some(format!("input_blocks.{}.1.{rest}", first + layer));
        }
        let rest = rest.strip_prefix("downsamplers.0.conv.")?;
        return Some(format!("input_blocks.{}.0.op.{rest}", first + layers_per_block.get(level)?));
    }
    let (block, rest) = numbered(name, "up_blocks.")?;
    let of_block = |block: usize| layers_per_block.iter().rev().nth(block).map(|layers| layers + 1);
    let first = (0..block).map(of_block).sum::<Option<usize>>()?;
    if let Some((layer, rest)) = numbered(rest, "resnets.") {
        return Some(format!("output_blocks.{}.0.{}", first + layer, resnet(rest)?));
    }
    if let Some((layer, rest)) = numbered(rest, "attentions.") {
        return Some(format!("output_blocks.{}.1.{rest}", first + layer));
    }
    let rest = rest.strip_prefix("upsamplers.0.conv.")?;
    let place = if *up_attention.get(block)? { 2 } else { 1 };
    Some(format!("output_blocks.{}.{place}.conv.{rest}", first + of_block(block)? - 1))
}

/// A tensor of the autoencoder, whose decoder has this number of levels.
fn autoencoder(name: &str, levels: usize) -> Option<String> {
    let outer = renamed(name, &[("quant_conv", "quant_conv"), ("post_quant_conv", "post_quant_conv")]);
    if outer.is_some() {
        return outer;
    }
    let (half, rest) = name.split_once('.')?;
    let in_resnet = |rest: &str| match renamed(rest, &[("conv_shortcut", "nin_shortcut")]) {
        Some(renamed) => renamed,
        None => rest.to_owned(),
    };
    let in_attention = |rest: &str| {
        let pairs =
            [("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")];
        renamed(rest, &pairs)
    };
    let inner = match rest {
        _ if rest.starts_with("conv_norm_out.") => rest.replacen("conv_norm_out", "norm_out", 1),
        _ if rest.starts_with("conv_in.") || rest.starts_with("conv_out.") => rest.to_owned(),
        _ => {
            if let Some(rest) = rest.strip_prefix("mid_block.") {
                match (numbered(rest, "resnets."), numbered(rest, "attentions.")) {
                    (Some((block, rest)), _) => format!("mid.block_{}.{}", block + 1, in_resnet(rest)),
                    (_, Some((_, rest))) => format!("mid.attn_1.{}", in_attention(rest)?),
                    _ => return None,
                }
            } else if let Some((level, rest)) = numbered(rest, "down_blocks.") {
                match numbered(rest, "resnets.") {
                    Some((layer, rest)) => format!("down.{level}.block.{layer}.{}", in_resnet(rest)),
                    None => format!("down.{level}.{}", renamed(rest, &[("downsamplers.0", "downsample")])?),
                }
            } else {
                // The file counts the levels of the decoder from the largest map.
                let (block, rest) = numbered(rest, "up_blocks.")?;
                let block = (levels - 1).checked_sub(block)?;
                match numbered(rest, "resnets.") {
                    Some((layer, rest)) => format!("up.{block}.block.{layer}.{}", in_resnet(rest)),
                    None => format!("up.{block}.{}", renamed(rest, &[("upsamplers.0", "upsample")])?),
                }
            }
        }
    };
    Some(format!("{half}.{inner}"))
}

/// A tensor of the multimodal transformer of this number of blocks.
fn mmdit(name: &str, layers: usize) -> Option<Origin> {
    let outer = renamed(
        name,
        &[
            ("pos_embed.pos_embed", "pos_embed"),
            ("pos_embed.proj", "x_embedder.proj"),
            ("time_text_embed.timestep_embedder.linear_1", "t_embedder.mlp.0"),
            ("time_text_embed.timestep_embedder.linear_2", "t_embedder.mlp.2"),
            ("time_text_embed.text_embedder.linear_1", "y_embedder.mlp.0"),
            ("time_text_embed.text_embedder.linear_2", "y_embedder.mlp.2"),
            ("context_embedder", "context_embedder"),
            ("proj_out", "final_layer.linear"),
        ],
    );
    if let Some(outer) = outer {
        return Some((outer, Taken::Whole));
    }
    if let Some(name) = renamed(name, &[("norm_out.linear", "final_layer.adaLN_modulation.1")]) {
        return Some((name, Taken::SwappedHalves));
    }
    let (layer, rest) = numbered(name, "transformer_blocks.")?;
    let whole = renamed(
        rest,
        &[
            ("norm1.linear", "x_block.adaLN_modulation.1"),
            ("norm1_context.linear", "context_block.adaLN_modulation.1"),
            ("attn.to_out.0", "x_block.attn.proj"),
            ("attn.to_add_out", "context_block.attn.proj"),
            ("attn.norm_q", "x_block.attn.ln_q"),
            ("attn.norm_k", "x_block.attn.ln_k"),
            ("attn.norm_added_q", "context_block.attn.ln_q"),
            ("attn.norm_added_k", "context_block.attn.ln_k"),
            ("attn2.to_out.0", "x_block.attn2.proj"),
            ("attn2.norm_q", "x_block.attn2.ln_q"),
            ("attn2.norm_k", "x_block.attn2.ln_k"),
            ("ff.net.0.proj", "x_block.mlp.fc1"),
            ("ff.net.2", "x_block.mlp.fc2"),
            ("ff_context.net.0.proj", "context_block.mlp.fc1"),
            ("ff_context.net.2", "context_block.mlp.fc2"),
        ],
    );
    if let Some(name) = whole {
        // The text's part of the last block has a scale and a shift only, in the other order.
        let is_last = layer + 1 == layers && rest.starts_with("norm1_context.");
        return Some((
            format!("joint_blocks.{layer}.{name}"),
            if is_last { Taken::SwappedHalves } else { Taken::Whole },
        ));
    }
    let projections = [
        (["attn.to_q", "attn.to_k", "attn.to_v"], "x_block.attn.qkv"),
        (["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"], "context_block.attn.qkv"),
        (["attn2.to_q", "attn2.to_k", "attn2.to_v"], "x_block.attn2.qkv"),
    ];
    projections.iter().find_map(|(parts, packed)| {
        let third = |(third, part): (usize, &&str)| {
            let name = renamed(rest, &[(part, packed)])?;
            Some((format!("joint_blocks.{layer}.{name}"), Taken::Third(third)))
        };
        parts.iter().enumerate().find_map(third)
    })
}

/// A tensor of a text encoder, counted from 0.
fn text_encoder(kind: PipelineKind, name: &str, index: usize) -> Vec<Origin> {
    let own = |prefix: &str| (format!("{prefix}.{name}"), Taken::Whole);
    let open_clip = |prefix: &str| {
        let found = open_clip_name(name);
        found.map(|(name, taken)| (format!("{prefix}.{name}"), taken))
    };
    match (kind, index) {
        // Stable Diffusion 2 has OpenCLIP's.
        (PipelineKind::StableDiffusion, _) => [own("cond_stage_model.transformer")]
            .into_iter()
            .chain(open_clip("cond_stage_model.model"))
            .collect(),
        (PipelineKind::StableDiffusionXl, 0) => vec![own("conditioner.embedders.0.transformer")],
        (PipelineKind::StableDiffusionXl, _) => {
            open_clip("conditioner.embedders.1.model").into_iter().collect()
        }
        (PipelineKind::StableDiffusion3, 0) => vec![own("text_encoders.clip_l.transformer")],
        (PipelineKind::StableDiffusion3, 1) => vec![own("text_encoders.clip_g.transformer")],
        (PipelineKind::StableDiffusion3, _) => vec![own("text_encoders.t5xxl.transformer")],
    }
}

/// A tensor of OpenCLIP's text encoder.
fn open_clip_name(name: &str) -> Option<Origin> {
    if name == "text_projection.weight" {
        return Some(("text_projection".into(), Taken::Transposed));
    }
    let name = name.strip_prefix("text_model.")?;
    let outer = renamed(
        name,
        &[
            ("embeddings.position_embedding.weight", "positional_embedding"),
            ("embeddings.token_embedding", "token_embedding"),
            ("final_layer_norm", "ln_final"),
        ],
    );
    if let Some(outer) = outer {
        return Some((outer, Taken::Whole));
    }
    let (layer, rest) = numbered(name, "encoder.layers.")?;
    let block = format!("transformer.resblocks.{layer}");
    let whole = renamed(
        rest,
        &[
            ("layer_norm1", "ln_1"),
            ("layer_norm2", "ln_2"),
            ("mlp.fc1", "mlp.c_fc"),
            ("mlp.fc2", "mlp.c_proj"),
            ("self_attn.out_proj", "attn.out_proj"),
        ],
    );
    if let Some(name) = whole {
        return Some((format!("{block}.{name}"), Taken::Whole));
    }
    let part = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
        .iter()
        .position(|part| rest.strip_prefix(part).is_some_and(|rest| rest.starts_with('.')))?;
    let kind = rest.rsplit('.').next()?;
    Some((format!("{block}.attn.in_proj_{kind}"), Taken::Third(part)))
}
