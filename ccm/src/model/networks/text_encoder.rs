//! Text encoders: CLIP's (arXiv 2103.00020) and T5's (arXiv 1910.10683). Parameters and options have the names of the library
//! transformers; CLIP's begin with `text_model.`.

use serde_json::json;

use super::{SpecError, require, require_positive, require_range};
use crate::model::graph::{
    Activation, Attention, AttentionBias, Builder, Graph, Init, PositionEmbedding, RelativeBias, Value, build,
};
use crate::model::json::Json;
use crate::model::options::Options;

/// The architecture of a text encoder.
#[derive(Debug, Clone, PartialEq)]
pub enum TextEncoderSpec {
    /// CLIP's text encoder.
    Clip(ClipSpec),
    /// T5's encoder.
    T5(T5Spec),
}

/// The architecture of CLIP's text encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipSpec {
    /// Number of different tokens.
    pub vocab_size: usize,
    /// Channels of a token's embedding.
    pub hidden_size: usize,
    /// Channels between the two layers of a feed-forward network.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of heads.
    pub num_attention_heads: usize,
    /// Number of tokens of a text.
    pub max_position_embeddings: usize,
    /// The activation.
    pub activation: Activation,
    /// Added to the variance in norms.
    pub layer_norm_eps: f32,
    /// Channels of the embedding of the whole text, if there is a projection to it.
    pub projection_dim: Option<usize>,
    /// The token whose position holds the embedding of the whole text: the first one with this id. 2, of old
    /// configurations, means the largest id.
    pub eos_token_id: usize,
}

/// Which layer of CLIP's text encoder embeds the tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClipLayer {
    /// The last layer, after the final norm (Stable Diffusion 1 and 2).
    Last,
    /// The layer before the last, without the final norm (Stable Diffusion XL and 3).
    Penultimate,
}

/// The architecture of T5's encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct T5Spec {
    /// Number of different tokens.
    pub vocab_size: usize,
    /// Channels of a token's embedding.
    pub d_model: usize,
    /// Channels of a head.
    pub d_kv: usize,
    /// Channels between the two layers of a feed-forward network.
    pub d_ff: usize,
    /// Number of layers.
    pub num_layers: usize,
    /// Number of heads.
    pub num_heads: usize,
    /// Buckets of the relative position bias.
    pub relative_attention_num_buckets: usize,
    /// The distance from which on all share a bucket.
    pub relative_attention_max_distance: usize,
    /// Added to the mean square in norms.
    pub layer_norm_epsilon: f32,
    /// The activation.
    pub activation: Activation,
    /// Whether the activation gates a second projection.
    pub is_gated: bool,
}

impl TextEncoderSpec {
    /// Parses transformers' `config.json`. Absent options have that library's defaults.
    ///
    /// # Errors
    /// If an option is not supported or out of range (by name).
    pub fn from_config(config: &Json) -> Result<Self, SpecError> {
        let options = Options::new(config);
        let spec = match options.text("model_type") {
            Some("t5") => Self::T5(T5Spec::read(&options)),
            None | Some("clip_text_model") => Self::Clip(ClipSpec::read(&options, config)),
            Some(_) => {
                options.refuse("model_type", "clip_text_model or t5");
                Self::Clip(ClipSpec::read(&options, config))
            }
        };
        // transformers stores many options that change nothing here.
        options.finish_some()?;
        spec.validate()?;
        Ok(spec)
    }

    fn validate(&self) -> Result<(), SpecError> {
        let in_range = |field, found, most| require_range(field, found, 1..=most);
        let blocks = |field, found: usize| {
            in_range(field, found, 65_536)?;
            require(found.is_multiple_of(4), field, format_args!("expected a multiple of 4, found {found}"))
        };
        match self {
            Self::Clip(spec) => {
                in_range("vocab_size", spec.vocab_size, 10_000_000)?;
                blocks("hidden_size", spec.hidden_size)?;
                blocks("intermediate_size", spec.intermediate_size)?;
                in_range("num_hidden_layers", spec.num_hidden_layers, 256)?;
                in_range("max_position_embeddings", spec.max_position_embeddings, 65_536)?;
                let heads = spec.num_attention_heads;
                require(
                    heads > 0 && spec.hidden_size % heads == 0,
                    "num_attention_heads",
                    format_args!("expected a divisor of {}, found {heads}", spec.hidden_size),
                )?;
                in_range("projection_dim", spec.projection_dim.unwrap_or(1), 65_536)?;
                require_positive("layer_norm_eps", spec.layer_norm_eps)
            }
            Self::T5(spec) => {
                in_range("vocab_size", spec.vocab_size, 10_000_000)?;
                blocks("d_model", spec.d_model)?;
                blocks("d_kv", spec.d_kv)?;
                blocks("d_ff", spec.d_ff)?;
                in_range("num_layers", spec.num_layers, 256)?;
                in_range("num_heads", spec.num_heads, 1024)?;
                let buckets = spec.relative_attention_num_buckets;
                require(
                    (4..=4096).contains(&buckets) && buckets % 4 == 0,
                    "relative_attention_num_buckets",
                    format_args!("expected a multiple of 4 up to 4096, found {buckets}"),
                )?;
                let distance = spec.relative_attention_max_distance;
                require(
                    (buckets / 4 + 1..=1_000_000).contains(&distance),
                    "relative_attention_max_distance",
                    format_args!("expected more than a quarter of the buckets, found {distance}"),
                )?;
                require_positive("layer_norm_epsilon", spec.layer_norm_epsilon)
            }
        }
    }

    /// Channels of a token's embedding.
    pub fn channels(&self) -> usize {
        match self {
            Self::Clip(spec) => spec.hidden_size,
            Self::T5(spec) => spec.d_model,
        }
    }

    /// Number of different tokens.
    pub fn vocab_size(&self) -> usize {
        match self {
            Self::Clip(spec) => spec.vocab_size,
            Self::T5(spec) => spec.vocab_size,
        }
    }
}

impl ClipSpec {
    /// As [`TextEncoderSpec::from_config`], of CLIP's text encoder.
    ///
    /// # Errors
    /// As that one; also if it is T5's.
    pub fn from_config(config: &Json) -> Result<Self, SpecError> {
        match TextEncoderSpec::from_config(config)? {
            TextEncoderSpec::Clip(spec) => Ok(spec),
            TextEncoderSpec::T5(_) => {
                let reason = "expected clip_text_model, found t5".into();
                Err(SpecError { field: "model_type".into(), reason })
            }
        }
    }

    fn read(options: &Options, config: &Json) -> Self {
        let projects = config
            .get("architectures")
            .and_then(Json::list)
            .is_some_and(|names| names.iter().any(|name| name.text() == Some("CLIPTextModelWithProjection")));
        Self {
            vocab_size: options.count("vocab_size").unwrap_or(49_408),
            hidden_size: options.count("hidden_size").unwrap_or(512),
            intermediate_size: options.count("intermediate_size").unwrap_or(2048),
            num_hidden_layers: options.count("num_hidden_layers").unwrap_or(12),
            num_attention_heads: options.count("num_attention_heads").unwrap_or(8),
            max_position_embeddings: options.count("max_position_embeddings").unwrap_or(77),
            activation: activation(options, "hidden_act", "quick_gelu"),
            layer_norm_eps: options.number("layer_norm_eps").unwrap_or(1e-5) as f32,
            projection_dim: projects.then(|| options.count("projection_dim").unwrap_or(512)),
            eos_token_id: options.count("eos_token_id").unwrap_or(49_407),
        }
    }

    /// Converts to transformers' `config.json`, which [`TextEncoderSpec::from_config`] reads back.
    pub fn to_config(&self) -> serde_json::Value {
        let class =
            ["CLIPTextModel", "CLIPTextModelWithProjection"][usize::from(self.projection_dim.is_some())];
        json!({
            "architectures": [class],
            "eos_token_id": self.eos_token_id,
            "hidden_act": match self.activation {
                Activation::QuickGelu => "quick_gelu",
                Activation::Gelu => "gelu",
                Activation::GeluTanh => "gelu_new",
                Activation::Relu => "relu",
                _ => "silu",
            },
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "layer_norm_eps": self.layer_norm_eps.to_string().parse::<f64>().unwrap_or(self.layer_norm_eps.into()),
            "max_position_embeddings": self.max_position_embeddings,
            "model_type": "clip_text_model",
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers,
            "projection_dim": self.projection_dim,
            "vocab_size": self.vocab_size,
        })
    }

    /// The position whose output is the embedding of the whole text.
    pub fn pooled_position(&self, tokens: &[u32]) -> usize {
        let found = match self.eos_token_id {
            2 => tokens.iter().max().and_then(|most| tokens.iter().position(|token| token == most)),
            eos => tokens.iter().position(|&token| token as usize == eos),
        };
        found.unwrap_or(0)
    }

    /// Builds the network. Its output embeds the tokens; [`Graph::pooled`] is the projection of every position after the
    /// last layer, with `pooled` and if there is a projection.
    pub fn graph(&self, layer: ClipLayer, pooled: bool) -> Graph {
        build(|g| self.network(g, layer, pooled))
    }

    /// The operations of [`ClipSpec::graph`]; the result embeds the tokens.
    pub(super) fn network(&self, outer: &Builder, layer: ClipLayer, pooled: bool) -> Value {
        let projection = self.projection_dim.filter(|_| pooled);
        let g = &outer.at("text_model");
        let (channels, tokens) = (self.hidden_size, self.max_position_embeddings);
        let embedded = g.token_embedding("embeddings.token_embedding", self.vocab_size, channels, tokens);
        let table = g.at("embeddings.position_embedding").param("weight", &[tokens, channels], Init::Normal);
        let positions = PositionEmbedding { table, side: tokens, top: 0, left: 0 };
        let mut h = g.add(embedded, g.position_embedding(positions, [channels, 1, tokens]));
        let mut before = h;
        let needed = match (layer, projection) {
            (ClipLayer::Penultimate, None) => self.num_hidden_layers - 1,
            _ => self.num_hidden_layers,
        };
        for layer in 0..needed {
            before = h;
            h = self.layer(&g.at(format!("encoder.layers.{layer}")), h);
        }
        if layer == ClipLayer::Penultimate && projection.is_none() {
            return h;
        }
        let last = g.layer_norm("final_layer_norm", h, self.layer_norm_eps);
        if let Some(channels) = projection {
            outer.pooled(outer.linear_without_bias("text_projection", last, channels));
        }
        if layer == ClipLayer::Last { last } else { before }
    }

    fn layer(&self, g: &Builder, x: Value) -> Value {
        let (channels, heads) = (self.hidden_size, self.num_attention_heads);
        let normed = g.layer_norm("layer_norm1", x, self.layer_norm_eps);
        let qkv = ["q_proj", "k_proj", "v_proj"]
            .map(|name| g.linear(&format!("self_attn.{name}"), normed, channels));
        let scale = 1.0 / ((channels / heads) as f32).sqrt();
        let attended = g.biased_attention(Attention { qkv, heads, scale, bias: AttentionBias::Causal });
        let x = g.add(x, g.linear("self_attn.out_proj", attended, channels));
        let normed = g.layer_norm("layer_norm2", x, self.layer_norm_eps);
        let h = g.activate(g.linear("mlp.fc1", normed, self.intermediate_size), self.activation);
        g.add(x, g.linear("mlp.fc2", h, channels))
    }
}

impl T5Spec {
    fn read(options: &Options) -> Self {
        // `gated-gelu` means the approximation; `dense_act_fn`, where it is stored, says so.
        let kind = options.text("feed_forward_proj").unwrap_or("relu");
        let is_gated = kind.starts_with("gated-");
        let usual = if kind == "gated-gelu" { "gelu_new" } else { kind.trim_start_matches("gated-") };
        Self {
            vocab_size: options.count("vocab_size").unwrap_or(32_128),
            d_model: options.count("d_model").unwrap_or(512),
            d_kv: options.count("d_kv").unwrap_or(64),
            d_ff: options.count("d_ff").unwrap_or(2048),
            num_layers: options.count("num_layers").unwrap_or(6),
            num_heads: options.count("num_heads").unwrap_or(8),
            relative_attention_num_buckets: options.count("relative_attention_num_buckets").unwrap_or(32),
            relative_attention_max_distance: options.count("relative_attention_max_distance").unwrap_or(128),
            layer_norm_epsilon: options.number("layer_norm_epsilon").unwrap_or(1e-6) as f32,
            activation: activation(options, "dense_act_fn", usual),
            is_gated,
        }
    }

    /// Builds the network for texts of this number of tokens.
    pub fn graph(&self, tokens: usize) -> Graph {
        build(|g| {
            let mut h = g.token_embedding("shared", self.vocab_size, self.d_model, tokens);
            let mut bias = None;
            let g = &g.at("encoder");
            for layer in 0..self.num_layers {
                let g = g.at(format!("block.{layer}"));
                h = self.attention(&g.at("layer.0"), h, &mut bias);
                h = self.feed_forward(&g.at("layer.1"), h);
            }
            g.rms_norm("final_layer_norm", h, 1, self.layer_norm_epsilon)
        })
    }

    /// Attention with a residual connection. The first layer's position bias serves all layers.
    fn attention(&self, g: &Builder, x: Value, bias: &mut Option<RelativeBias>) -> Value {
        let (heads, width) = (self.num_heads, self.num_heads * self.d_kv);
        let normed = g.rms_norm("layer_norm", x, 1, self.layer_norm_epsilon);
        let g = &g.at("SelfAttention");
        let qkv = ["q", "k", "v"].map(|name| g.linear_without_bias(name, normed, width));
        let output = |attended| g.linear_without_bias("o", attended, self.d_model);
        let bias = *bias.get_or_insert_with(|| {
            let buckets = self.relative_attention_num_buckets;
            let table = g.at("relative_attention_bias").param("weight", &[buckets, heads], Init::Normal);
            RelativeBias { table, buckets, max_distance: self.relative_attention_max_distance }
        });
        let bias = AttentionBias::Relative(bias);
        g.add(x, output(g.biased_attention(Attention { qkv, heads, scale: 1.0, bias })))
    }

    /// The feed-forward network with a residual connection.
    fn feed_forward(&self, g: &Builder, x: Value) -> Value {
        let normed = g.rms_norm("layer_norm", x, 1, self.layer_norm_epsilon);
        let g = &g.at("DenseReluDense");
        let project = |name: &str| g.linear_without_bias(name, normed, self.d_ff);
        let h = match self.is_gated {
            true => {
                let h = g.activate(project("wi_0"), self.activation);
                g.multiply(h, project("wi_1"))
            }
            false => g.activate(project("wi"), self.activation),
        };
        g.add(x, g.linear_without_bias("wo", h, self.d_model))
    }
}

fn activation(options: &Options, key: &'static str, usual: &str) -> Activation {
    match options.text(key).unwrap_or(usual) {
        "quick_gelu" => Activation::QuickGelu,
        "gelu" => Activation::Gelu,
        "gelu_new" | "gelu_pytorch_tanh" => Activation::GeluTanh,
        "relu" => Activation::Relu,
        "silu" | "swish" => Activation::Silu,
        _ => {
            options.refuse(key, "quick_gelu, gelu, gelu_new, relu or silu");
            Activation::Gelu
        }
    }
}
