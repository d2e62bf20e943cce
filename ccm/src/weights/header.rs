//! Parses the header of a safetensors file: the length of the JSON in eight bytes, then the JSON, before the tensors'
//! values. Format: <https://huggingface.co/docs/safetensors>.
//!
//! The crate `safetensors` writes the files. This parser replaces it for reading because it adds less to the
//! WebAssembly module and names the tensor in its errors.

use super::WeightsError;
use crate::model::json::Json;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// A tensor of a file, after all checks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Type of the values: `F32`, `I8` and so on.
    pub(crate) kind: String,
    /// Dimensions.
    pub(crate) shape: Vec<usize>,
    /// Where its values are among those of the file, in bytes. Their number is the product of the dimensions.
    pub(crate) range: Range<usize>,
}

/// Parses a file. Returns the tensors by name, the text under the metadata key, and the bytes of all values.
///
/// # Errors
/// If the file is cut short, or as [`read_head`].
#[inline]
pub(super) fn read(bytes: &[u8]) -> Result<(BTreeMap<String, Entry>, String, &[u8]), WeightsError> {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        let found = bytes.len();
        return malformed(format!("expected a header of at least 8 bytes, found {found} bytes"));
    };
    let length = u64::from_le_bytes(*length);
    let Some((head, values)) = usize::try_from(length).ok().and_then(|length| rest.split_at_checked(length))
    else {
        return malformed(too_long(length, rest.len()));
    };
    let (tensors, description) = read_head(head, values.len())?;
    Ok((tensors, description, values))
}

fn malformed<T>(message: String) -> Result<T, WeightsError> {
    Err(WeightsError::Malformed(message))
}

/// The message about a header that claims more than the file holds.
pub(crate) fn too_long(claimed: u64, rest: usize) -> String {
    format!("the header claims {claimed} bytes, the file holds {rest} after it")
}

/// Parses a header of a file with `len` bytes of values. Returns the tensors by name, and the text under the metadata key.
///
/// # Errors
/// If the header is not valid JSON of this format or does not cover the values to the last byte, or a type is unknown.
#[inline]
pub(crate) fn read_head(head: &[u8], len: usize) -> Result<(BTreeMap<String, Entry>, String), WeightsError> {
    let head = str::from_utf8(head).map_err(|error| error.to_string());
    let head = head.and_then(Head::read);
    let head = match head {
        Ok(head) => head,
        Err(error) => return malformed(error),
    };
    let claimed = head.tensors.iter().map(|(_, stored)| stored.data_offsets[1]).max().unwrap_or(0);
    if claimed != len {
        return malformed(format!("the header claims {claimed} bytes of tensors, the file holds {len}"));
    }
    let mut places = BTreeSet::new();
    let mut tensors = BTreeMap::new();
    for (name, Stored { dtype: kind, shape, data_offsets: [start, end] }) in head.tensors {
        if start > end || end > len {
            return malformed(format!("tensor `{name}` claims bytes {start} to {end}"));
        }
        let Some(size) = size_of(&kind) else { return Err(WeightsError::Kind { name, found: kind }) };
        let expected = shape.iter().try_fold(size, |product, &dimension| product.checked_mul(dimension));
        if expected != Some(end - start) {
            return malformed(format!(
                "tensor `{name}`: {} bytes are not {shape:?} values of {kind}",
                end - start
            ));
        }
        if !places.insert((start, end)) && start < end {
            return malformed(format!("tensor `{name}` stands where another does"));
        }
        if tensors.insert(name.clone(), Entry { kind, shape, range: start..end }).is_some() {
            return malformed(format!("tensor `{name}` is there twice"));
        }
    }
    let mut last = 0;
    for (start, end) in places {
        if start != last {
            return malformed(format!("byte {last} of the values belongs to no tensor or to two"));
        }
        last = end;
    }
    Ok((tensors, head.description))
}

/// Bytes per value of a type.
#[inline]
fn size_of(kind: &str) -> Option<usize> {
    match kind {
        "I8" | "U8" | "BOOL" => Some(1),
        "F16" | "BF16" | "I16" | "U16" => Some(2),
        "F32" | "I32" | "U32" => Some(4),
        "F64" | "I64" | "U64" => Some(8),
        #[cfg(not(target_arch = "wasm32"))]
        "F8_E4M3" | "F8_E5M2" => Some(1),
        _ => None,
    }
}

/// A tensor's entry in the JSON.
struct Stored {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

impl Stored {
    #[inline]
    fn read(value: &Json) -> Result<Self, String> {
        let field = |name| value.get(name).ok_or_else(|| format!("missing field `{name}`"));
        let counts = |name: &'static str| {
            let counts = field(name)?.list().and_then(|list| list.iter().map(Json::count).collect());
            counts.ok_or_else(|| format!("`{name}`: expected whole numbers"))
        };
        let dtype = field("dtype")?.text().ok_or("`dtype`: expected text")?.to_owned();
        let (shape, offsets): (Vec<usize>, Vec<usize>) = (counts("shape")?, counts("data_offsets")?);
        let [start, end] = offsets[..] else { return Err("`data_offsets`: expected two numbers".into()) };
        Ok(Self { dtype, shape, data_offsets: [start, end] })
    }
}

/// The JSON object: an entry for each tensor, and one for the metadata.
#[derive(Default)]
struct Head {
    tensors: Vec<(String, Stored)>,
    description: String,
}

impl Head {
    #[inline]
    fn read(text: &str) -> Result<Self, String> {
        let mut head = Self::default();
        let Json::Object(entries) = Json::parse(text).map_err(|error| error.to_string())? else {
            return Err("expected an object of tensors".into());
        };
        for (key, value) in entries {
            if key == "__metadata__" {
                head.description = value.get("ccm").and_then(Json::text).unwrap_or_default().to_owned();
            } else {
                let stored = Stored::read(&value).map_err(|error| format!("tensor `{key}`: {error}"))?;
                head.tensors.push((key, stored));
            }
        }
        Ok(head)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn file(head: &str, values: usize) -> Vec<u8> {
        [&(head.len() as u64).to_le_bytes(), head.as_bytes(), &vec![0; values]].concat()
    }

    #[test]
    fn a_head_that_does_not_describe_its_file_is_an_error() {
        let cases = [
            ("[]", 0, "an object of tensors"),
            (r#"{"a": 7}"#, 0, "tensor `a`"),
            (r#"{"a": {"dtype": "F32", "shape": [2]}}"#, 8, "tensor `a`: missing field `data_offsets`"),
            (r#"{"a": {"dtype": "F9", "shape": [2], "data_offsets": [0, 8]}}"#, 8, "tensor `a`"),
            (
                r#"{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}"#,
                8,
                "8 bytes are not [3] values",
            ),
            (r#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}"#, 0, "bytes 8 to 0"),
            (
                r#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}"#,
                9,
                "claims 8 bytes of tensors",
            ),
            (r#"{"a": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}}"#, 2, "byte 0"),
            (
                r#"{"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]},
                    "b": {"dtype": "U8", "shape": [2], "data_offsets": [1, 3]}}"#,
                3,
                "byte 2",
            ),
            (
                r#"{"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]},
                    "b": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}"#,
                2,
                "`b` stands where another does",
            ),
            (
                r#"{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
                    "a": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}}"#,
                2,
                "`a` is there twice",
            ),
            (
                r#"{"a": {"dtype": "F64", "shape": [4294967296, 4294967296], "data_offsets": [0, 0]}}"#,
                0,
                "`a`",
            ),
        ];
        for (head, values, expected) in cases {
            let error = read(&file(head, values)).err().unwrap().to_string();
            assert!(error.contains(expected), "{head}: {error}");
        }
    }

    #[test]
    fn an_empty_file_has_no_tensors_and_an_empty_tensor_has_no_bytes() {
        assert!(read(&file("{}", 0)).unwrap().0.is_empty());
        let head = r#"{"__metadata__": {"ccm": "x", "other": "y"},
                       "a": {"dtype": "F32", "shape": [0, 3], "data_offsets": [0, 0]},
                       "b": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}} "#;
        let bytes = file(head, 4);
        let (tensors, description, values) = read(&bytes).unwrap();
        assert_eq!((description.as_str(), values.len()), ("x", 4));
        assert_eq!((tensors["a"].range.clone(), tensors["b"].range.clone()), (0..0, 0..4));
    }
}
