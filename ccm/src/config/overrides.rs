//! Changes to a configuration in the form `key=value`, as on the command line.

use super::keys::{self, Known};
use super::{Config, ConfigError};
use toml::Value;

/// The value that removes an optional setting.
const ABSENT: &str = "none";

impl Config {
    /// Applies changes such as `distill.threshold=60`, in order. Does not check ranges; [`Config::validate`] does.
    ///
    /// The section may be omitted if only one section has the key. A value is parsed as TOML. If the result does not
    /// have the key's type, the value is a plain string, so strings need no quotes. The value `none` removes an
    /// optional setting; `"none"`, with quotes, is a string.
    ///
    /// # Errors
    /// A change without `=`, an unknown or ambiguous key, or a value of the wrong type.
    pub fn with_overrides(self, overrides: &[String]) -> Result<Self, ConfigError> {
        if overrides.is_empty() {
            return Ok(self);
        }
        let known = Known::new()?;
        let mut entries = keys::entries_of(&self)?;
        for text in overrides {
            let (key, value) = text
                .split_once('=')
                .ok_or_else(|| ConfigError::NotAnOverride { text: keys::one_line(text) })?;
            let (key, value) = (known.resolve(key.trim())?, value.trim());
            if value == ABSENT && keys::is_optional(key) {
                entries.remove(key);
            } else {
                entries.insert(key.to_owned(), fitting(&known, key, value)?);
            }
        }
        keys::add_pipeline_sections(&mut entries, &known)?;
        keys::assemble(entries)
    }
}

/// The text as a TOML value, or as a string if the TOML value does not have the key's type.
fn fitting(known: &Known, key: &str, text: &str) -> Result<Value, ConfigError> {
    let string = Value::String(text.to_owned());
    let Ok(value) = text.parse::<Value>() else {
        return known.check(key, &string).map(|()| string);
    };
    match known.check(key, &value) {
        Ok(()) => Ok(value),
        Err(error) => known.check(key, &string).map(|()| string).map_err(|_| error),
    }
}
