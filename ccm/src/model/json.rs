//! A JSON parser (RFC 8259).
//!
//! It parses the descriptions in model files, also in web pages: `serde_json` would add 50 kB to the WebAssembly
//! module. Descriptions are written with `serde_json`, which pages do not need.

/// A JSON value.
#[derive(Debug, Clone, PartialEq)]
pub enum Json {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number, as its source text.
    Number(String),
    /// A string.
    Text(String),
    /// An array.
    List(Vec<Json>),
    /// An object: its entries in source order.
    Object(Vec<(String, Json)>),
}

/// The error for text that is not valid JSON.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("byte {at}: expected {expected}")]
pub struct JsonError {
    /// Position in bytes, from 0.
    pub at: usize,
    /// What the parser expected there.
    pub expected: &'static str,
}

/// Maximum nesting of arrays and objects.
const DEEPEST: usize = 64;

impl Json {
    /// Parses one value that spans the whole text.
    ///
    /// # Errors
    /// If the text is not valid JSON, or is nested more than 64 levels deep.
    pub fn parse(text: &str) -> Result<Self, JsonError> {
        let mut reader = Reader { text, at: 0 };
        let value = reader.value(0)?;
        if reader.at < text.len() { reader.fail("the end") } else { Ok(value) }
    }

    /// The entry of an object with the given key; the first if there are several.
    pub fn get(&self, key: &str) -> Option<&Json> {
        self.entries()?.iter().find(|(found, _)| found == key).map(|(_, value)| value)
    }

    /// The entries, if this is an object.
    pub fn entries(&self) -> Option<&[(String, Json)]> {
        if let Self::Object(entries) = self { Some(entries) } else { None }
    }

    /// The values, if this is an array.
    pub fn list(&self) -> Option<&[Json]> {
        if let Self::List(values) = self { Some(values) } else { None }
    }

    /// The text, if this is a string.
    pub fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    /// The value, if this is `true` or `false`.
    pub fn flag(&self) -> Option<bool> {
        if let Self::Bool(value) = self { Some(*value) } else { None }
    }

    /// The value, if this is a whole number of at least 0.
    pub fn whole(&self) -> Option<u64> {
        if let Self::Number(text) = self { text.parse().ok() } else { None }
    }

    /// As [`Json::whole`], as a `usize`.
    pub fn count(&self) -> Option<usize> {
        self.whole().and_then(|value| usize::try_from(value).ok())
    }

    /// The value, if this is a finite number.
    pub fn number(&self) -> Option<f64> {
        if let Self::Number(text) = self { decimal(text).filter(|value| value.is_finite()) } else { None }
    }
}

#[cfg(not(target_arch = "wasm32"))]
fn decimal(text: &str) -> Option<f64> {
    text.parse().ok()
}

/// Parses a number without the standard library, whose tables add 10 kB to the WebAssembly module. With more than
/// fifteen digits, the last digit may differ.
#[cfg(target_arch = "wasm32")]
fn decimal(text: &str) -> Option<f64> {
    approximate(text)
}

#[cfg(any(test, target_arch = "wasm32"))]
fn approximate(text: &str) -> Option<f64> {
    let (digits, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let digits = whole.bytes().chain(fraction.bytes()).filter(u8::is_ascii_digit);
    let magnitude = digits.fold(0.0, |sum, digit| sum * 10.0 + f64::from(digit - b'0'));
    let exponent: i32 = exponent.trim_start_matches('+').parse().ok()?;
    let exponent = exponent.saturating_sub(fraction.len() as i32);
    let mut scale = 1.0;
    for _ in 0..exponent.unsigned_abs().min(400) {
        scale *= 10.0;
    }
    let value = if exponent < 0 { magnitude / scale } else { magnitude * scale };
    Some(if whole.starts_with('-') { -value } else { value })
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl Reader<'_> {
    fn fail<T>(&self, expected: &'static str) -> Result<T, JsonError> {
        Err(JsonError { at: self.at, expected })
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn skip(&mut self, mut skipped: impl FnMut(u8) -> bool) {
        while self.peek().is_some_and(&mut skipped) {
            self.at += 1;
        }
    }

    fn space(&mut self) {
        self.skip(|byte| matches!(byte, b' ' | b'\n' | b'\r' | b'\t'));
    }

    /// Skips `byte` if it is next. Returns whether it was.
    fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn word(&mut self, word: &'static str, value: Json) -> Result<Json, JsonError> {
        if !self.text[self.at..].starts_with(word) {
            return self.fail("a value");
        }
        self.at += word.len();
        Ok(value)
    }

    /// Parses a value and the white space around it.
    fn value(&mut self, depth: usize) -> Result<Json, JsonError> {
        self.space();
        if depth > DEEPEST {
            return self.fail("at most 64 levels");
        }
        let value = match self.peek() {
            Some(b'n') => self.word("null", Json::Null)?,
            Some(b't') => self.word("true", Json::Bool(true))?,
            Some(b'f') => self.word("false", Json::Bool(false))?,
            Some(b'"') => Json::Text(self.string()?),
            Some(b'-' | b'0'..=b'9') => self.number()?,
            Some(b'[') => {
                let mut values = Vec::new();
                self.items(b']', |reader| {
                    values.push(reader.value(depth + 1)?);
                    Ok(())
                })?;
                Json::List(values)
            }
            Some(b'{') => {
                let mut entries: Vec<(String, Json)> = Vec::new();
                self.items(b'}', |reader| {
                    let key = reader.string()?;
                    reader.space();
                    if !reader.take(b':') {
                        return reader.fail("`:`");
                    }
                    entries.push((key, reader.value(depth + 1)?));
                    Ok(())
                })?;
                Json::Object(entries)
            }
            _ => return self.fail("a value"),
        };
        self.space();
        Ok(value)
    }

    /// Parses comma-separated items up to the closing bracket. The opening bracket is next.
    fn items(
        &mut self,
        end: u8,
        mut item: impl FnMut(&mut Self) -> Result<(), JsonError>,
    ) -> Result<(), JsonError> {
        self.at += 1;
        self.space();
        if self.take(end) {
            return Ok(());
        }
        loop {
            self.space();
            item(self)?;
            if self.take(end) {
                return Ok(());
            }
            if !self.take(b',') {
                return self.fail("`,` or the closing bracket");
            }
        }
    }

    fn digits(&mut self) -> Result<(), JsonError> {
        let start = self.at;
        self.skip(|byte| byte.is_ascii_digit());
        if self.at == start { self.fail("a digit") } else { Ok(()) }
    }

    fn number(&mut self) -> Result<Json, JsonError> {
        let start = self.at;
        self.take(b'-');
        if !self.take(b'0') {
            self.digits()?;
        }
        if self.take(b'.') {
            self.digits()?;
        }
        if self.take(b'e') || self.take(b'E') {
            let _ = self.take(b'+') || self.take(b'-');
            self.digits()?;
        }
        Ok(Json::Number(self.text[start..self.at].to_owned()))
    }

    fn string(&mut self) -> Result<String, JsonError> {
        if !self.take(b'"') {
            return self.fail("a string");
        }
        let mut text = String::new();
        loop {
            let start = self.at;
            self.skip(|byte| byte >= b' ' && byte != b'"' && byte != b'\\');
            text.push_str(&self.text[start..self.at]);
            if self.take(b'"') {
                return Ok(text);
            }
            if !self.take(b'\\') {
                return self.fail("the end of the string");
            }
            text.push(self.escaped()?);
        }
    }

    /// Parses the character after a backslash.
    fn escaped(&mut self) -> Result<char, JsonError> {
        let Some(kind) = self.peek() else { return self.fail("an escaped character") };
        self.at += 1;
        Ok(match kind {
            b'"' | b'\\' | b'/' => char::from(kind),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let first = self.hexadecimal()?;
                let code = if (0xd800..0xdc00).contains(&first) {
                    if !(self.take(b'\\') && self.take(b'u')) {
                        return self.fail("the second half of a surrogate pair");
                    }
                    let second = self.hexadecimal()?;
                    if !(0xdc00..0xe000).contains(&second) {
                        return self.fail("the second half of a surrogate pair");
                    }
                    0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00)
                } else {
                    first
                };
                match char::from_u32(code) {
                    Some(character) => character,
                    None => return self.fail("a character"),
                }
            }
            _ => return self.fail("an escaped character"),
        })
    }

    fn hexadecimal(&mut self) -> Result<u32, JsonError> {
        let digits = self.text.get(self.at..self.at + 4);
        let digits = digits.filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let Some(code) = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok()) else {
            return self.fail("four hexadecimal digits");
        };
        self.at += 4;
        Ok(code)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::Value;

    use super::*;

    fn same(ours: &Json, theirs: &Value) -> bool {
        match (ours, theirs) {
            (Json::Null, Value::Null) => true,
            (Json::Bool(a), Value::Bool(b)) => a == b,
            (Json::Number(_), Value::Number(b)) => {
                // serde_json rounds long numbers less exactly.
                let close = |a: f64, b: f64| a == b || (a / b - 1.0).abs() < 1e-15;
                b.as_u64().is_none_or(|b| ours.whole() == Some(b))
                    && ours.number().zip(b.as_f64()).is_some_and(|(a, b)| close(a, b))
            }
            (Json::Text(a), Value::String(b)) => a == b,
            (Json::List(a), Value::Array(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
            }
            (Json::Object(a), Value::Object(b)) => {
                a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
            }
            _ => false,
        }
    }

    /// Whether an object contains a key twice; serde_json keeps the last one.
    fn repeats(value: &Json) -> bool {
        let keys = value.entries().unwrap_or_default().iter().map(|(key, _)| key);
        let distinct: std::collections::BTreeSet<&String> = keys.clone().collect();
        distinct.len() < keys.count()
            || value.entries().unwrap_or_default().iter().any(|(_, value)| repeats(value))
            || value.list().unwrap_or_default().iter().any(repeats)
    }

    const TEXTS: [&str; 9] = [
        r#"{"a": [1, -2.5e3, 0.1, 18446744073709551615], "b": {"c": null, "d": [true, false, []]}, "": "x"}"#,
        r#"  [ ] "#,
        r#""\"\\\/\b\f\n\r\t\u0041\u00e9\ud83d\ude00 é 😀""#,
        "1e-7",
        "-0",
        "[0.30000000000000004, 1E+2, 123456789012345678]",
        "{}",
        "null",
        "[[[[[[1]]]]]]",
    ];

    #[test]
    fn values_are_those_of_serde_json() {
        for text in TEXTS {
            let (ours, theirs) = (Json::parse(text).unwrap(), serde_json::from_str(text).unwrap());
            assert!(same(&ours, &theirs), "{text}: {ours:?}");
        }
    }

    /// For every text with one byte removed, doubled or replaced: this parser rejects it exactly if serde_json does.
    #[test]
    fn text_that_is_not_json_is_refused() {
        let mut refused = 0;
        for text in TEXTS {
            for at in 0..text.len() {
                for change in
                    [&b""[..], b"\"", b"\\", b"}", b"]", b",", b":", b"0", b"e", b".", b"-", b"u", b"\x01"]
                {
                    let bytes = [&text.as_bytes()[..at], change, &text.as_bytes()[at + 1..]].concat();
                    let Ok(text) = String::from_utf8(bytes) else { continue };
                    let (ours, theirs) = (Json::parse(&text), serde_json::from_str::<Value>(&text));
                    match (&ours, &theirs) {
                        (Ok(ours), Ok(theirs)) => assert!(repeats(ours) || same(ours, theirs), "{text}"),
                        (Err(_), Err(_)) => refused += 1,
                        // serde_json rejects numbers that are too large for it.
                        (Ok(_), Err(error)) => {
                            assert!(error.to_string().contains("out of range"), "{text}: {error}");
                        }
                        (Err(error), Ok(_)) => panic!("{text}: {error}"),
                    }
                }
            }
        }
        assert!(refused > 1000, "{refused}");
        assert!(Json::parse(&"[".repeat(100_000)).is_err());
    }

    #[test]
    fn numbers_in_a_page_differ_in_the_last_digit_at_most() {
        for text in ["0", "1", "0.5", "1e-5", "0.0001", "80", "0.002", "0.9999", "-7.25e2", "1e-6", "0.008"] {
            assert_eq!(approximate(text), text.parse().ok(), "{text}");
        }
        for text in ["0.99500000000000001", "3.141592653589793238", "1e-300", "1.797693134862315e300"] {
            let (found, expected): (f64, f64) = (approximate(text).unwrap(), text.parse().unwrap());
            assert!((found / expected - 1.0).abs() < 1e-12, "{text}: {found}");
        }
    }
}
