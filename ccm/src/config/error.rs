//! What can be wrong with a configuration. Every message is one line that names the key, what was expected
//! and what was found; the caller adds the file or flag that the text came from.

use crate::model::SpecError;

/// What is wrong with a configuration, or with a change to one.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// No preset has this name.
    #[error("preset `{name}`: expected one of {}; the nearest is `{nearest}`", listed(super::PRESETS))]
    UnknownPreset {
        /// The name that was asked for.
        name: String,
        /// The preset whose name is most like it.
        nearest: String,
    },
    /// No setting has this name.
    #[error("`{key}`: no such key; the nearest is `{nearest}`")]
    UnknownKey {
        /// The key as it was given.
        key: String,
        /// The dotted key most like it.
        nearest: String,
    },
    /// A setting of an earlier version.
    #[error("`{key}`: a setting of an earlier version, to be removed: {reason}")]
    RemovedKey {
        /// The dotted key.
        key: String,
        /// Why there is no such setting any more.
        reason: &'static str,
    },
    /// A setting of an earlier version that counted optimiser steps or was a decay a step.
    #[error("`{key}`: replaced by {}: {conversion}", listed(by))]
    ReplacedKey {
        /// The key as it was given.
        key: String,
        /// The dotted keys that replace it; more than one where the section is missing.
        by: Vec<&'static str>,
        /// How to convert its value.
        conversion: &'static str,
    },
    /// A key without its section that stands in more than one.
    #[error("`{key}`: expected its section too, one of {}", listed(candidates))]
    AmbiguousKey {
        /// The key as it was given.
        key: String,
        /// Every dotted key that it could be.
        candidates: Vec<String>,
    },
    /// A setting that is neither given nor optional.
    #[error("`{key}`: expected a value, found none")]
    MissingKey {
        /// The dotted key.
        key: String,
    },
    /// A change that is not of the form `key=value`.
    #[error("`{text}`: expected key=value, such as distill.threshold=60")]
    NotAnOverride {
        /// The change as it was given.
        text: String,
    },
    /// A value of the wrong type or out of its range.
    #[error("{key}: expected {expected}, found {found}")]
    Value {
        /// The dotted key.
        key: String,
        /// The type or range of the setting, in words.
        expected: String,
        /// The value as it was given.
        found: String,
    },
    /// A network that cannot be built.
    #[error("network.{0}")]
    Network(#[from] SpecError),
    /// Text that is not TOML, or a configuration that TOML cannot hold.
    #[error("{reason}")]
    Toml {
        /// Where, and why.
        reason: String,
    },
}

/// The names in backticks, separated by commas.
fn listed(names: impl IntoIterator<Item = impl std::fmt::Display>) -> String {
    names.into_iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
