//! A configuration as a map from dotted keys to TOML values: lists the keys, resolves abbreviated keys and checks the
//! types of values. The keys come from the smallest preset, which has every required setting. Only the optional keys
//! are listed here.

use super::{Config, ConfigError, PRESET_TEXTS};
use std::collections::BTreeMap;
use toml::{Table, Value};

/// The optional settings.
pub(super) const OPTIONAL: [&str; 55] = [
    "data.captions",
    "data.count",
    "data.image_size",
    "data.shuffle_buffer",
    "data.source",
    "data.streamed",
    "distill.autoguidance",
    "distill.autoguidance_until",
    "distill.coupling_images",
    "distill.discriminator_encoder",
    "distill.discriminator_noise_power",
    "distill.discriminator_translation",
    "distill.fixed_precision",
    "distill.guidance",
    "distill.guidance_channels",
    "distill.kdc_peak",
    "distill.lora_alpha",
    "distill.lora_rank",
    "distill.lora_targets",
    "distill.lpips_heads",
    "distill.lpips_trunk",
    "distill.micro_batch",
    "distill.model",
    "distill.step_shift",
    "distill.weaker_model",
    "finish.micro_batch",
    "network.num_classes",
    "network.num_head_channels",
    "network.num_heads_upsample",
    "network.patch_size",
    "path.beta_end",
    "path.beta_start",
    "path.betas",
    "path.log_sigma_deviation",
    "path.log_sigma_mean",
    "path.predicts",
    "path.schedule",
    "path.schedule_steps",
    "path.sigma_data",
    "path.sigma_max",
    "path.sigma_min",
    "run.bf16_convolutions",
    "run.eight_bit_optimizer",
    "run.mixed_precision",
    "run.overlap_exchange",
    "run.tensorboard",
    "run.threads",
    "teacher.caption_dropout",
    "teacher.config",
    "teacher.coupling_images",
    "teacher.micro_batch",
    "teacher.model",
    "teacher.train_text_encoder",
    "teacher.training",
    "teacher.weaker_kimg",
];

/// Removed settings of earlier versions, with the reasons.
const REMOVED: [(&str, &str); 1] = [("distill.middle_ema", "nothing read this average of the weights")];

/// A setting of an earlier version, in optimiser steps or as a decay per step.
pub(super) struct Replaced {
    /// The dotted key of earlier versions.
    pub(super) key: &'static str,
    /// The dotted key that replaces it.
    pub(super) by: &'static str,
    /// How to convert the value.
    conversion: &'static str,
}

const STEPS: &str = "thousands of images, that is steps * batch / 1000";
const INTERVAL: &str = "thousands of images, that is steps * batch / 1000 with the batch of the stage";
const DECAY: &str =
    "a half-life in thousands of images, that is -0.000693147 * batch / ln(decay), or 0 for a decay of 0";

/// Settings of earlier versions that are now in thousands of images.
pub(super) const REPLACED: [Replaced; 12] = [
    Replaced { key: "run.sample_every", by: "run.sample_every_kimg", conversion: INTERVAL },
    Replaced { key: "run.checkpoint_every", by: "run.checkpoint_every_kimg", conversion: INTERVAL },
    Replaced { key: "run.log_every", by: "run.log_every_kimg", conversion: INTERVAL },
    Replaced { key: "teacher.steps", by: "teacher.kimg", conversion: STEPS },
    Replaced { key: "teacher.warmup_steps", by: "teacher.warmup_kimg", conversion: STEPS },
    Replaced { key: "teacher.ema", by: "teacher.ema_halflife_kimg", conversion: DECAY },
    Replaced { key: "distill.steps", by: "distill.kimg", conversion: STEPS },
    Replaced { key: "distill.warmup_steps", by: "distill.warmup_kimg", conversion: STEPS },
    Replaced { key: "distill.adversarial_from", by: "distill.adversarial_from_kimg", conversion: STEPS },
    Replaced {
        key: "distill.adversarial_warmup_steps",
        by: "distill.adversarial_warmup_kimg",
        conversion: STEPS,
    },
    Replaced { key: "distill.target_ema", by: "distill.target_halflife_kimg", conversion: DECAY },
    Replaced { key: "distill.sample_ema", by: "distill.sample_halflife_kimg", conversion: DECAY },
];

/// The error for a replaced key, with or without its section; `None` for other keys.
fn replaced(key: &str) -> Option<ConfigError> {
    let matching = || REPLACED.iter().filter(|old| old.key == key || leaf(old.key) == key);
    let conversion = matching().next()?.conversion;
    let by = matching().map(|old| old.by).collect();
    Some(ConfigError::ReplacedKey { key: key.to_owned(), by, conversion })
}

/// Settings by dotted key, such as `distill.threshold`.
pub(super) type Entries = BTreeMap<String, Value>;

/// Whether the setting is optional.
pub(super) fn is_optional(key: &str) -> bool {
    OPTIONAL.contains(&key)
}

/// Whether the setting is in the section `finish`, which configurations of earlier versions do not have.
pub(super) fn is_finish_key(key: &str) -> bool {
    key.starts_with("finish.")
}

/// The sections whose values come from the pipeline, if the images have captions.
pub(super) const PIPELINE_SECTIONS: [&str; 2] = ["network", "path"];

/// Whether the setting is in one of the [`PIPELINE_SECTIONS`].
pub(super) fn is_pipeline_key(key: &str) -> bool {
    key.split_once('.').is_some_and(|(section, _)| PIPELINE_SECTIONS.contains(&section))
}

/// Adds valid sections in the place of those whose values come from the pipeline, if the images have captions.
///
/// # Errors
/// A setting of these sections; without captions, a missing section `network`.
pub(super) fn add_pipeline_sections(entries: &mut Entries, known: &Known) -> Result<(), ConfigError> {
    match entries.get("data.captions") {
        Some(Value::Boolean(true)) => {}
        Some(value) if !entries.keys().any(|key| key.starts_with("network.")) => {
            let expected = "true, as there is no section `network`".to_owned();
            let (key, found) = ("data.captions".to_owned(), shown(value));
            return Err(ConfigError::Value { key, expected, found });
        }
        _ => return Ok(()),
    }
    if let Some((key, value)) = entries.iter().find(|(key, _)| is_pipeline_key(key)) {
        let expected = "none, as data.captions is true and the pipeline decides".to_owned();
        return Err(ConfigError::Value { key: key.clone(), expected, found: shown(value) });
    }
    let missing = known.fitting.iter().filter(|(key, _)| is_pipeline_key(key));
    let missing: Vec<_> = missing.map(|(key, value)| (key.clone(), value.clone())).collect();
    entries.extend(missing);
    Ok(())
}

/// Parses a TOML document. The error names the line.
pub(super) fn parse(text: &str) -> Result<Entries, ConfigError> {
    let table: Table = text.parse().map_err(|error: toml::de::Error| {
        let end = error.span().map_or(0, |span| span.start);
        let line = 1 + text.bytes().take(end).filter(|byte| *byte == b'\n').count();
        ConfigError::Toml { reason: format!("line {line}: {}", one_line(error.message())) }
    })?;
    let mut entries = Entries::new();
    for (section, value) in table {
        match value {
            Value::Table(settings) => {
                entries.extend(settings.into_iter().map(|(key, value)| (format!("{section}.{key}"), value)));
            }
            value => {
                entries.insert(section, value);
            }
        }
    }
    Ok(entries)
}

/// The entries of a configuration. Converts it to text and parses the text: in text, an `f32` has its shortest digits.
pub(super) fn entries_of(config: &Config) -> Result<Entries, ConfigError> {
    parse(&config.to_toml()?)
}

/// Builds a configuration from its entries.
pub(super) fn assemble(entries: Entries) -> Result<Config, ConfigError> {
    deserialize(entries).map_err(|error| ConfigError::Toml { reason: one_line(error.message()) })
}

fn deserialize(entries: Entries) -> Result<Config, toml::de::Error> {
    let mut table = Table::new();
    for (key, value) in entries {
        let (section, name) = key.split_once('.').unwrap_or((&key, ""));
        let settings = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
        if let Value::Table(settings) = settings {
            settings.insert(name.to_owned(), value);
        }
    }
    table.try_into()
}

/// The keys of all settings, and a valid configuration to check single values in: the smallest preset.
pub(super) struct Known {
    /// Every dotted key, sorted.
    pub(super) keys: Vec<String>,
    fitting: Entries,
}

impl Known {
    pub(super) fn new() -> Result<Self, ConfigError> {
        let fitting = entries_of(&assemble(parse(PRESET_TEXTS[0])?)?)?;
        let mut keys: Vec<_> = fitting.keys().cloned().chain(OPTIONAL.map(str::to_owned)).collect();
        keys.sort();
        keys.dedup();
        Ok(Self { keys, fitting })
    }

    fn iter(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().map(String::as_str)
    }

    /// Finds a dotted key by its full name.
    pub(super) fn find(&self, key: &str) -> Result<&str, ConfigError> {
        if let Some((_, reason)) = REMOVED.iter().find(|(removed, _)| *removed == key) {
            return Err(ConfigError::RemovedKey { key: key.to_owned(), reason });
        }
        if let Some(error) = replaced(key) {
            return Err(error);
        }
        self.iter().find(|candidate| *candidate == key).ok_or_else(|| ConfigError::UnknownKey {
            key: one_line(key),
            nearest: nearest(key, self.iter()).to_owned(),
        })
    }

    /// Finds a dotted key by its full name, or by its last part if only one key has it.
    pub(super) fn resolve(&self, key: &str) -> Result<&str, ConfigError> {
        let candidates: Vec<&str> = self.iter().filter(|candidate| leaf(candidate) == key).collect();
        match candidates[..] {
            [] => self.find(key),
            [only] => Ok(only),
            _ => Err(ConfigError::AmbiguousKey {
                key: key.to_owned(),
                candidates: candidates.into_iter().map(str::to_owned).collect(),
            }),
        }
    }

    /// Checks that the value has the type of its key: deserializes a valid configuration with only this value changed.
    pub(super) fn check(&self, key: &str, value: &Value) -> Result<(), ConfigError> {
        let mut entries = self.fitting.clone();
        entries.insert(key.to_owned(), value.clone());
        deserialize(entries).map(|_| ()).map_err(|error| ConfigError::Value {
            key: key.to_owned(),
            expected: expectation(error.message()),
            found: shown(value),
        })
    }
}

fn leaf(key: &str) -> &str {
    key.rsplit_once('.').map_or(key, |(_, leaf)| leaf)
}

/// The candidate most similar to `name`. A name without a section is also compared with the last parts of candidates.
pub(super) fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> &'a str {
    let likeness = |candidate: &str| {
        let whole = strsim::normalized_damerau_levenshtein(name, candidate);
        if name.contains('.') {
            whole
        } else {
            whole.max(strsim::normalized_damerau_levenshtein(name, leaf(candidate)))
        }
    };
    #[expect(clippy::expect_used, reason = "callers pass the list of keys or of presets")]
    candidates.into_iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b))).expect("at least one candidate")
}

/// The type that serde expected, in words that do not require Rust.
fn expectation(message: &str) -> String {
    match message.rsplit_once("expected ").map_or(message, |(_, expected)| expected) {
        "f32" | "f64" => "a number".into(),
        "usize" | "u64" => "a whole number, 0 or more".into(),
        "a boolean" => "true or false".into(),
        "a sequence" => "a list, such as [1, 2]".into(),
        other => one_line(other),
    }
}

/// Formats a value on one line.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{text:?}"),
        Value::Float(number) => number.to_string(),
        Value::Array(values) => format!("[{}]", values.iter().map(shown).collect::<Vec<_>>().join(", ")),
        other => one_line(&other.to_string()),
    }
}

/// Replaces each run of white space, including line ends, by one space.
pub(super) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
