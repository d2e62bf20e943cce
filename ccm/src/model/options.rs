//! Reads options of a JSON object by name. Options that are never read are reported as not supported.
//!
//! A wrong value does not stop the reading: it counts as absent, and [`Options::finish`] returns the error.

use std::cell::RefCell;

use super::json::Json;
use super::networks::SpecError;

/// The options of an object. Null options, and keys that begin with `_`, count as absent.
pub struct Options<'a> {
    object: &'a Json,
    read: RefCell<Vec<&'static str>>,
    /// The first error.
    error: RefCell<Option<SpecError>>,
}

impl<'a> Options<'a> {
    /// The options of an object; a value that is not an object has no options.
    pub fn new(object: &'a Json) -> Self {
        Self { object, read: RefCell::default(), error: RefCell::default() }
    }

    /// Whether a key exists, even if its value is null.
    pub fn has(&self, key: &str) -> bool {
        self.object.get(key).is_some()
    }

    /// The value of an option; `None` if it is absent.
    #[inline(never)]
    pub fn get(&self, key: &'static str) -> Option<&'a Json> {
        self.read.borrow_mut().push(key);
        self.object.get(key).filter(|value| !matches!(value, Json::Null))
    }

    /// Records that the value of an option is not what was expected.
    pub fn refuse(&self, key: &'static str, expected: &str) {
        self.refuse_value(key, expected, self.object.get(key));
    }

    #[inline(never)]
    fn refuse_value(&self, key: &'static str, expected: &str, found: Option<&Json>) {
        let found = match found {
            None => "none",
            Some(Json::Null) => "null",
            Some(Json::Bool(true)) => "true",
            Some(Json::Bool(false)) => "false",
            Some(Json::Number(text) | Json::Text(text)) => text,
            Some(Json::List(_)) => "a list",
            Some(Json::Object(_)) => "an object",
        };
        let reason = format!("expected {expected}, found {found}");
        self.error.borrow_mut().get_or_insert(SpecError { field: key.into(), reason });
    }

    fn read<T>(
        &self,
        key: &'static str,
        expected: &str,
        convert: impl Fn(&'a Json) -> Option<T>,
    ) -> Option<T> {
        let value = self.get(key)?;
        let converted = convert(value);
        if converted.is_none() {
            self.refuse(key, expected);
        }
        converted
    }

    /// A whole number, 0 or more.
    #[inline(never)]
    pub fn count(&self, key: &'static str) -> Option<usize> {
        self.read(key, "a whole number", Json::count)
    }

    /// A whole number of up to 64 bits.
    #[inline(never)]
    pub fn whole(&self, key: &'static str) -> Option<u64> {
        self.read(key, "a whole number", Json::whole)
    }

    /// A number.
    #[inline(never)]
    pub fn number(&self, key: &'static str) -> Option<f64> {
        self.read(key, "a number", Json::number)
    }

    /// True or false.
    #[inline(never)]
    pub fn flag(&self, key: &'static str) -> Option<bool> {
        self.read(key, "true or false", Json::flag)
    }

    /// Text.
    #[inline(never)]
    pub fn text(&self, key: &'static str) -> Option<&'a str> {
        self.read(key, "text", Json::text)
    }

    fn list<T>(
        &self,
        key: &'static str,
        expected: &str,
        convert: impl Fn(&'a Json) -> Option<T>,
    ) -> Option<Vec<T>> {
        let list = self.read(key, expected, Json::list)?;
        let values: Option<Vec<T>> = list.iter().map(&convert).collect();
        if values.is_none() {
            self.refuse_value(key, expected, list.iter().find(|value| convert(value).is_none()));
        }
        values
    }

    /// A list of whole numbers, 0 or more.
    #[inline(never)]
    pub fn counts(&self, key: &'static str) -> Option<Vec<usize>> {
        self.list(key, "whole numbers", Json::count)
    }

    /// A list of numbers.
    #[inline(never)]
    pub fn numbers(&self, key: &'static str) -> Option<Vec<f64>> {
        self.list(key, "numbers", Json::number)
    }

    /// A list of texts.
    #[inline(never)]
    pub fn texts(&self, key: &'static str) -> Option<Vec<&'a str>> {
        self.list(key, "a list of texts", Json::text)
    }

    /// Records an error unless an option is absent or one of the supported texts.
    pub fn one_of(&self, key: &'static str, supported: &[&str]) {
        if self.text(key).is_some_and(|found| !supported.contains(&found)) {
            self.refuse(key, supported.first().unwrap_or(&"null"));
        }
    }

    /// Records an error unless an option is absent.
    pub fn only_null(&self, key: &'static str) {
        if self.get(key).is_some() {
            self.refuse(key, "null");
        }
    }

    /// Records an error unless an option is absent or false.
    pub fn only_false(&self, key: &'static str) {
        if self.get(key).is_some_and(|value| !matches!(value, Json::Bool(false))) {
            self.refuse(key, "false");
        }
    }

    /// A whole number that holds for all `levels`, or a list of one for each.
    pub fn count_or_counts(&self, key: &'static str, levels: usize, usual: usize) -> Vec<usize> {
        match self.get(key) {
            None => vec![usual; levels],
            Some(Json::List(_)) => self.counts(key).unwrap_or_default(),
            Some(_) => vec![self.count(key).unwrap_or(usual); levels],
        }
    }

    /// Height and width: two whole numbers, or one for both.
    pub fn size(&self, key: &'static str) -> Option<[usize; 2]> {
        match self.get(key)? {
            Json::List(_) => {
                let size = self.counts(key)?;
                let found = size.as_slice().try_into().ok();
                if found.is_none() {
                    self.refuse(key, "height and width");
                }
                found
            }
            _ => self.count(key).map(|side| [side, side]),
        }
    }

    /// A list of names; returns the index of each in `known`.
    #[inline(never)]
    pub fn names(&self, key: &'static str, known: &[&str]) -> Option<Vec<usize>> {
        self.list(key, "supported names", |value| {
            let name = value.text()?;
            // Early versions of diffusers add this prefix.
            let name = name.strip_prefix("UNetRes").unwrap_or(name);
            known.iter().position(|known| *known == name)
        })
    }

    /// The value of a required option. An absent one is recorded as an error.
    pub fn needed<T: Default>(&self, key: &'static str, value: Option<T>) -> T {
        value.unwrap_or_else(|| {
            self.refuse(key, "a value");
            T::default()
        })
    }

    /// Finishes the reading.
    ///
    /// # Errors
    /// The first wrong value, or an option that was not read.
    pub fn finish(self) -> Result<(), SpecError> {
        let mut entries = self.object.entries().unwrap_or_default().iter();
        let read = self.read.into_inner();
        let left = entries.find(|(key, value)| {
            !matches!(value, Json::Null) && !key.starts_with('_') && !read.contains(&key.as_str())
        });
        let left = left
            .map(|(key, _)| SpecError { field: key.clone(), reason: "this option is not supported".into() });
        self.error.into_inner().or(left).map_or(Ok(()), Err)
    }

    /// Finishes the reading of an object that may contain other options.
    ///
    /// # Errors
    /// The first wrong value.
    pub fn finish_some(self) -> Result<(), SpecError> {
        self.error.into_inner().map_or(Ok(()), Err)
    }
}
