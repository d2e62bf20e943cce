//! Errors of configurations. Every message is one line with the key, what was expected and what was found. The caller
//! adds the file or flag of the configuration.

use crate::model::SpecError;

/// An invalid configuration, or an invalid change to one.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// No preset has this name.
    #[error("preset `{name}`: expected one of {}; the nearest is `{nearest}`", listed(super::PRESETS))]
    UnknownPreset {
        /// The given name.
        name: String,
        /// The preset with the most similar name.
        nearest: String,
    },
    /// No setting has this name.
    #[error("`{key}`: no such key; the nearest is `{nearest}`")]
    UnknownKey {
        /// The given key.
        key: String,
        /// The most similar dotted key.
        nearest: String,
    },
    /// A setting of an earlier version.
    #[error("`{key}`: a setting of an earlier version, to be removed: {reason}")]
    RemovedKey {
        /// The dotted key.
        key: String,
        /// Why the setting was removed.
        reason: &'static str,
    },
    /// A setting of an earlier version, in optimiser steps or as a decay per step.
    #[error("`{key}`: replaced by {}: {conversion}", listed(by))]
    ReplacedKey {
        /// The given key.
        key: String,
        /// The dotted keys that replace it; several if the given key has no section.
        by: Vec<&'static str>,
        /// How to convert the value.
        conversion: &'static str,
    },
    /// A key without a section that exists in several sections.
    #[error("`{key}`: expected its section too, one of {}", listed(candidates))]
    AmbiguousKey {
        /// The given key.
        key: String,
        /// The dotted keys that it may mean.
        candidates: Vec<String>,
    },
    /// A required setting is missing.
    #[error("`{key}`: expected a value, found none")]
    MissingKey {
        /// The dotted key.
        key: String,
    },
    /// A change that is not of the form `key=value`.
    #[error("`{text}`: expected key=value, such as distill.threshold=60")]
    NotAnOverride {
        /// The given change.
        text: String,
    },
    /// A value of the wrong type or out of range.
    #[error("{key}: expected {expected}, found {found}")]
    Value {
        /// The dotted key.
        key: String,
        /// The type or range of the setting, as text.
        expected: String,
        /// The given value.
        found: String,
    },
    /// A network that cannot be built.
    #[error("network.{0}")]
    Network(#[from] SpecError),
    /// Text that is not TOML, or a configuration that TOML cannot represent.
    #[error("{reason}")]
    Toml {
        /// The line and the reason.
        reason: String,
    },
}

/// The names in backticks, separated by commas.
fn listed(names: impl IntoIterator<Item = impl std::fmt::Display>) -> String {
    names.into_iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
