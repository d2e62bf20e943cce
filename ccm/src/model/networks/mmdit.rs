//! diffusers' `SD3Transformer2DModel`: the multimodal diffusion transformer of Stable Diffusion 3 and 3.5 (arXiv
//! 2403.03206). Image and text have weights of their own and attend to each other. Parameters and options have
//! diffusers' names.

use serde_json::json;

use super::{Family, SpecError, TextShape, require, require_range};
use crate::model::graph::{
    Activation, Builder, Graph, Init, PositionEmbedding, TimestepEmbedding, Value, build,
};
use crate::model::json::Json;
use crate::model::options::Options;

/// Epsilon of every norm.
const EPSILON: f32 = 1e-6;

/// The architecture of an `SD3Transformer2DModel`.
#[derive(Debug, Clone, PartialEq)]
pub struct MmditSpec {
    /// Channels of the latents and of the output.
    pub in_channels: usize,
    /// Height and width of the latents.
    pub sample_size: [usize; 2],
    /// The `sample_size` of the original configuration, to which the initial position embedding is scaled.
    pub base_size: usize,
    /// Number of tokens of a text. diffusers does not store it: it is the text encoders'.
    pub tokens: usize,
    /// Side of the patches of latents that become a position.
    pub patch_size: usize,
    /// Number of blocks.
    pub num_layers: usize,
    /// Channels of a head.
    pub attention_head_dim: usize,
    /// Number of heads.
    pub num_attention_heads: usize,
    /// Channels of a token's embedding.
    pub joint_attention_dim: usize,
    /// Channels of the embedding of the whole text.
    pub pooled_projection_dim: usize,
    /// Side of the square of positions that have an embedding.
    pub pos_embed_max_size: usize,
    /// The blocks whose image part has a second attention, over the image alone.
    pub dual_attention_layers: Vec<usize>,
    /// Whether queries and keys have an RMS norm.
    pub qk_norm: bool,
}

impl Family for MmditSpec {
    fn validate(&self) -> Result<(), SpecError> {
        for (field, found, most) in [
            ("in_channels", self.in_channels, 256),
            ("tokens", self.tokens, 4096),
            ("patch_size", self.patch_size, 16),
            ("num_layers", self.num_layers, 256),
            ("attention_head_dim", self.attention_head_dim, 1024),
            ("num_attention_heads", self.num_attention_heads, 256),
            ("joint_attention_dim", self.joint_attention_dim, 65_536),
            ("pooled_projection_dim", self.pooled_projection_dim, 65_536),
            ("pos_embed_max_size", self.pos_embed_max_size, 1024),
            ("base_size", self.base_size, 4096),
        ] {
            require_range(field, found, 1..=most)?;
        }
        for (field, found) in [
            ("attention_head_dim", self.attention_head_dim),
            ("joint_attention_dim", self.joint_attention_dim),
        ] {
            require(found.is_multiple_of(4), field, format_args!("expected a multiple of 4, found {found}"))?;
        }
        for size in self.sample_size {
            let most = self.pos_embed_max_size * self.patch_size;
            require(
                (1..=most).contains(&size) && size % self.patch_size == 0,
                "sample_size",
                format_args!("expected a multiple of {} up to {most}, found {size}", self.patch_size),
            )?;
        }
        let layers = self.num_layers;
        require(
            self.dual_attention_layers.iter().all(|&layer| layer < layers),
            "dual_attention_layers",
            format_args!("expected numbers below {layers}"),
        )
    }

    fn graph(&self) -> Graph {
        build(|g| self.network(g))
    }

    fn image(&self) -> [usize; 3] {
        [self.in_channels, self.sample_size[0], self.sample_size[1]]
    }

    fn num_classes(&self) -> Option<usize> {
        None
    }

    fn text(&self) -> Option<TextShape> {
        Some(TextShape {
            tokens: self.tokens,
            channels: self.joint_attention_dim,
            pooled: self.pooled_projection_dim,
            sizes: false,
        })
    }

    fn patch_size(&self) -> usize {
        self.patch_size
    }
}

impl MmditSpec {
    /// Parses diffusers' `config.json`. Absent options have diffusers' defaults.
    ///
    /// # Errors
    /// If an option is not supported (by name).
    pub fn from_config(config: &Json) -> Result<Self, SpecError> {
        let options = Options::new(config);
        let in_channels = options.count("in_channels").unwrap_or(16);
        if options.count("out_channels").unwrap_or(in_channels) != in_channels {
            options.refuse("out_channels", "as many as in_channels");
        }
        options.one_of("qk_norm", &["rms_norm"]);
        let sample_size = options.size("sample_size").unwrap_or([128; 2]);
        let heads = options.count("num_attention_heads").unwrap_or(18);
        let of_head = options.count("attention_head_dim").unwrap_or(64);
        if options.count("caption_projection_dim").unwrap_or(1152) != heads * of_head {
            options.refuse("caption_projection_dim", "num_attention_heads times attention_head_dim");
        }
        let spec = Self {
            in_channels,
            sample_size,
            base_size: options.count("base_size").unwrap_or(sample_size[0]),
            tokens: options.count("tokens").unwrap_or(333),
            patch_size: options.count("patch_size").unwrap_or(2),
            num_layers: options.count("num_layers").unwrap_or(18),
            attention_head_dim: of_head,
            num_attention_heads: heads,
            joint_attention_dim: options.count("joint_attention_dim").unwrap_or(4096),
            pooled_projection_dim: options.count("pooled_projection_dim").unwrap_or(2048),
            pos_embed_max_size: options.count("pos_embed_max_size").unwrap_or(96),
            dual_attention_layers: options.counts("dual_attention_layers").unwrap_or_default(),
            qk_norm: options.text("qk_norm").is_some(),
        };
        options.finish()?;
        Ok(spec)
    }

    /// Converts to diffusers' `config.json`, which [`MmditSpec::from_config`] reads back.
    pub fn to_config(&self) -> serde_json::Value {
        json!({
            "_class_name": "SD3Transformer2DModel",
            "attention_head_dim": self.attention_head_dim,
            "base_size": self.base_size,
            "caption_projection_dim": self.channels(),
            "dual_attention_layers": self.dual_attention_layers,
            "in_channels": self.in_channels,
            "joint_attention_dim": self.joint_attention_dim,
            "num_attention_heads": self.num_attention_heads,
            "num_layers": self.num_layers,
            "out_channels": self.in_channels,
            "patch_size": self.patch_size,
            "pooled_projection_dim": self.pooled_projection_dim,
            "pos_embed_max_size": self.pos_embed_max_size,
            "qk_norm": self.qk_norm.then_some("rms_norm"),
            "sample_size": self.sample_size,
            "tokens": self.tokens,
        })
    }

    /// Channels of a position.
    fn channels(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }

    fn network(&self, g: &Builder) -> Value {
        let (channels, patch) = (self.channels(), self.patch_size);
        let [height, width] = self.sample_size.map(|size| size / patch);
        let patches = self.in_channels * patch * patch;
        let mut image = self.patch_embedding(&g.at("pos_embed"), g.image([patches, height, width]));
        let mlp = |name: &str, x: Value| {
            let g = g.at(format!("time_text_embed.{name}"));
            g.linear("linear_2", g.silu(g.linear("linear_1", x, channels)), channels)
        };
        let time = TimestepEmbedding { channels: 256, cosines_first: true, freq_shift: 0.0 };
        let time = mlp("timestep_embedder", g.timestep_embedding(time));
        let pooled = mlp("text_embedder", g.pooled_text(self.pooled_projection_dim));
        // Every norm applies SiLU to the embedding first; it is computed once.
        let embed = g.silu(g.add(time, pooled));
        let text = g.text(self.joint_attention_dim, self.tokens);
        let mut text = Some(g.linear("context_embedder", text, channels));
        for layer in 0..self.num_layers {
            let g = g.at(format!("transformer_blocks.{layer}"));
            (image, text) = self.block(&g, image, text, embed, layer);
            g.feature(image);
        }
        let [scale, shift] = g.chunk(g.linear("norm_out.linear", embed, 2 * channels));
        let image = g.modulate(g.plain_layer_norm(image, EPSILON), [scale, shift]);
        g.patch_channels(g.linear("proj_out", image, patches), patch)
    }

    /// `PatchEmbed`, cropped in the middle.
    fn patch_embedding(&self, g: &Builder, x: Value) -> Value {
        let (channels, side) = (self.channels(), self.pos_embed_max_size);
        let [height, width] = self.sample_size.map(|size| size / self.patch_size);
        let init = Init::Sincos { base_size: self.base_size / self.patch_size };
        let table = g.param("pos_embed", &[1, side * side, channels], init);
        let [top, left] = [height, width].map(|size| (side - size) / 2);
        let h = g.patch_conv("proj", x, channels, self.patch_size);
        let positions = PositionEmbedding { table, side, top, left };
        g.add(h, g.position_embedding(positions, [channels, height, width]))
    }

    /// `JointTransformerBlock`. The last block has no text after it.
    fn block(
        &self,
        g: &Builder,
        image: Value,
        text: Option<Value>,
        embed: Value,
        layer: usize,
    ) -> (Value, Option<Value>) {
        let channels = self.channels();
        let is_last = layer + 1 == self.num_layers;
        let Some(text) = text else { return (image, None) };
        let normed = |x: Value, modulation| g.modulate(g.plain_layer_norm(x, EPSILON), modulation);
        let gated = |x: Value, gate: Value, h: Value| g.add(x, g.multiply(h, gate));

        let dual = self.dual_attention_layers.contains(&layer);
        let parts = if dual { 9 } else { 6 };
        let modulation = g.linear("norm1.linear", embed, parts * channels);
        let ([shift, scale, gate, shift_mlp, scale_mlp, gate_mlp], second) = match dual {
            false => (g.chunk(modulation), None),
            true => {
                let [a, b, c, d, e, f, shift, scale, gate] = g.chunk(modulation);
                ([a, b, c, d, e, f], Some([shift, scale, gate]))
            }
        };
        let of_image = normed(image, [scale, shift]);
        let text_parts = if is_last { 2 } else { 6 };
        let modulation = g.linear("norm1_context.linear", embed, text_parts * channels);
        let (of_text, text_gates) = match is_last {
            true => {
                let [scale, shift] = g.chunk(modulation);
                (normed(text, [scale, shift]), None)
            }
            false => {
                let [shift, scale, gate, shift_mlp, scale_mlp, gate_mlp] = g.chunk(modulation);
                (normed(text, [scale, shift]), Some([gate, shift_mlp, scale_mlp, gate_mlp]))
            }
        };
        let (attended, text_attended) = self.joint_attention(&g.at("attn"), of_image, of_text, is_last);
        let mut h = gated(image, gate, attended);
        if let Some([shift, scale, gate]) = second {
            let attended = self.self_attention(&g.at("attn2"), normed(image, [scale, shift]));
            h = gated(h, gate, attended);
        }
        let image = gated(h, gate_mlp, feed_forward(&g.at("ff"), normed(h, [scale_mlp, shift_mlp])));
        let text = text_gates.zip(text_attended).map(|([gate, shift_mlp, scale_mlp, gate_mlp], attended)| {
            let h = gated(text, gate, attended);
            gated(h, gate_mlp, feed_forward(&g.at("ff_context"), normed(h, [scale_mlp, shift_mlp])))
        });
        (image, text)
    }

    /// Attention over image and text together. The last block has no output for the text.
    fn joint_attention(
        &self,
        g: &Builder,
        image: Value,
        text: Value,
        is_last: bool,
    ) -> (Value, Option<Value>) {
        let (channels, heads) = (self.channels(), self.num_attention_heads);
        let of_image = self.projections(g, image, ["to_q", "to_k", "to_v"], ["norm_q", "norm_k"]);
        let names = ["add_q_proj", "add_k_proj", "add_v_proj"];
        let of_text = self.projections(g, text, names, ["norm_added_q", "norm_added_k"]);
        let qkv = std::array::from_fn(|part| g.join(of_image[part], of_text[part]));
        let attended = g.attention(qkv, heads);
        let of_text = (!is_last).then(|| {
            let part = g.part(attended, g.shape(image).positions(), text);
            g.linear("to_add_out", part, channels)
        });
        (g.linear("to_out.0", g.part(attended, 0, image), channels), of_text)
    }

    fn self_attention(&self, g: &Builder, x: Value) -> Value {
        let qkv = self.projections(g, x, ["to_q", "to_k", "to_v"], ["norm_q", "norm_k"]);
        g.linear("to_out.0", g.attention(qkv, self.num_attention_heads), self.channels())
    }

    /// Queries, keys and values.
    fn projections(&self, g: &Builder, x: Value, names: [&str; 3], norms: [&str; 2]) -> [Value; 3] {
        let [q, k, v] = names.map(|name| g.linear(name, x, self.channels()));
        if !self.qk_norm {
            return [q, k, v];
        }
        let norm = |name: &str, x: Value| g.rms_norm(name, x, self.num_attention_heads, EPSILON);
        [norm(norms[0], q), norm(norms[1], k), v]
    }
}

/// `FeedForward` with the approximation of GELU.
fn feed_forward(g: &Builder, x: Value) -> Value {
    let channels = g.channels(x);
    let h = g.activate(g.linear("net.0.proj", x, 4 * channels), Activation::GeluTanh);
    g.linear("net.2", h, channels)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// The parameters that diffusers counts: the table of positions is not one of them there.
    fn parameters(config: &str) -> usize {
        let spec = MmditSpec::from_config(&Json::parse(config).unwrap()).unwrap();
        spec.validate().unwrap();
        let parameters = spec.graph().parameters.into_iter();
        let trained = parameters.filter(|parameter| parameter.name != "pos_embed.pos_embed");
        trained.map(|parameter| parameter.shape.iter().product::<usize>()).sum()
    }

    #[test]
    fn published_networks_have_their_number_of_parameters() {
        // As diffusers 0.42.1 counts them.
        let sd3 = r#"{"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536,
            "pos_embed_max_size": 192}"#;
        assert_eq!(parameters(sd3), 2_028_328_000);
        let sd35 = r#"{"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536,
            "pos_embed_max_size": 384, "qk_norm": "rms_norm",
            "dual_attention_layers": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]}"#;
        assert_eq!(parameters(sd35), 2_243_171_520);
    }
}
