//! Mean and covariance in a file: NumPy's `.npz` with arrays `mu` and `sigma`, the format of pytorch-fid. Files written
//! here also name the extractor, in `features`.

use std::io::{Cursor, Read, Write};

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::MetricsError;
use super::frechet::Gaussian;

/// Largest number of features that is accepted; the covariance then takes 2 GB.
const MOST_FEATURES: usize = 16_384;

/// Limit for the header of an array and for a name, in bytes.
const MOST_TEXT: u64 = 1 << 16;

/// Bytes before the header text, in version 1 of the format.
const HEADER: usize = 10;

/// Statistics of a set of images.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    /// Mean and covariance.
    pub gaussian: Gaussian,
    /// Name of the extractor; `None` for files of other programs.
    pub features: Option<String>,
}

impl Statistics {
    /// Serializes the statistics as `.npz`.
    ///
    /// # Errors
    /// [`MetricsError::File`] if zip compression fails, which does not happen in practice.
    pub fn to_bytes(&self) -> Result<Vec<u8>, MetricsError> {
        let Gaussian { mean, covariance } = &self.gaussian;
        let width = mean.len();
        let numbers =
            |values: &[f64]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        let mut arrays = vec![
            ("mu", array("<f8", &format!("({width},)"), &numbers(mean))),
            ("sigma", array("<f8", &format!("({width}, {width})"), &numbers(covariance))),
        ];
        if let Some(features) = &self.features {
            arrays.push((
                "features",
                array(&format!("|S{}", features.len().max(1)), "()", features.as_bytes()),
            ));
        }
        let fault = |error: &dyn std::fmt::Display| MetricsError::File(format!("statistics: {error}"));
        let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
        for (name, bytes) in arrays {
            let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
            archive.start_file(format!("{name}.npy"), options).map_err(|error| fault(&error))?;
            archive.write_all(&bytes).map_err(|error| fault(&error))?;
        }
        Ok(archive.finish().map_err(|error| fault(&error))?.into_inner())
    }

    /// Reads the bytes of a `.npz`. Sizes are checked before use.
    ///
    /// # Errors
    /// [`MetricsError`] if the file is not an archive, or if `mu` and `sigma` are not `[n]` and `[n, n]` finite
    /// floating-point values.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, MetricsError> {
        let mut archive = ZipArchive::new(Cursor::new(bytes))
            .map_err(|error| MetricsError::File(format!("expected NumPy's .npz: {error}")))?;
        let mu = Array::read(&mut archive, "mu", 1, MOST_FEATURES)?;
        let width = mu.shape[0];
        let sigma = Array::read(&mut archive, "sigma", 2, width * width)?;
        if sigma.shape != [width, width] {
            return Err(MetricsError::File(format!(
                "`sigma`: expected shape [{width}, {width}], found {:?}",
                sigma.shape
            )));
        }
        let gaussian = Gaussian { mean: mu.numbers()?, covariance: sigma.numbers()? };
        if !gaussian.is_finite() {
            return Err(MetricsError::NotFinite("`mu` and `sigma`"));
        }
        let mut features = None;
        if archive.index_for_name("features.npy").is_some() {
            let text = Array::read(&mut archive, "features", 0, 0)?.values;
            features = Some(String::from_utf8_lossy(&text).trim_end_matches('\0').to_owned());
        }
        Ok(Self { gaussian, features })
    }
}

/// Serializes an array in NumPy's format: a header padded to a multiple of 64 bytes, then the values.
fn array(kind: &str, shape: &str, values: &[u8]) -> Vec<u8> {
    let text = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}");
    let len = (HEADER + text.len() + 1).next_multiple_of(64) - HEADER;
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((len as u16).to_le_bytes());
    bytes.extend(format!("{text:<width$}\n", width = len - 1).bytes());
    bytes.extend(values);
    bytes
}

/// An array read from a file.
struct Array {
    name: &'static str,
    kind: String,
    shape: Vec<usize>,
    values: Vec<u8>,
}

impl Array {
    fn read(
        archive: &mut ZipArchive<Cursor<&[u8]>>,
        name: &'static str,
        rank: usize,
        most_numbers: usize,
    ) -> Result<Self, MetricsError> {
        let most_bytes = most_numbers as u64 * 8 + MOST_TEXT;
        let fault = |what: &dyn std::fmt::Display| MetricsError::File(format!("`{name}`: {what}"));
        let file = archive.by_name(&format!("{name}.npy")).map_err(|error| fault(&error))?;
        let mut bytes = Vec::new();
        file.take(most_bytes).read_to_end(&mut bytes).map_err(|error| fault(&error))?;
        let malformed = || fault(&"expected a NumPy array");
        // The length of the header has two bytes in version 1 and four in later versions.
        let (start, len) = match (bytes.get(..8), bytes.get(8..12)) {
            (Some([0x93, b'N', b'U', b'M', b'P', b'Y', 1, _]), Some(&[a, b, ..])) => {
                (HEADER, usize::from(u16::from_le_bytes([a, b])))
            }
            (Some([0x93, b'N', b'U', b'M', b'P', b'Y', 2 | 3, _]), Some(&[a, b, c, d])) => {
                (HEADER + 2, u32::from_le_bytes([a, b, c, d]) as usize)
            }
            _ => return Err(malformed()),
        };
        let header = bytes.get(start..).and_then(|rest| rest.get(..len)).ok_or_else(malformed)?;
        let header = String::from_utf8_lossy(header).into_owned();
        let after = |key: &str| header.split_once(&format!("'{key}':")).map(|(_, rest)| rest.trim_start());
        let kind = after("descr").and_then(|rest| rest.split('\'').nth(1)).ok_or_else(malformed)?.to_owned();
        let shape =
            after("shape").and_then(|rest| rest.strip_prefix('(')).and_then(|rest| rest.split_once(')'));
        let (shape, _) = shape.ok_or_else(malformed)?;
        let sizes = shape.split(',').map(str::trim).filter(|size| !size.is_empty());
        let shape: Vec<usize> = sizes.map(str::parse).collect::<Result<_, _>>().map_err(|_| malformed())?;
        if shape.len() != rank || shape.iter().any(|size| !(1..=MOST_FEATURES).contains(size)) {
            return Err(fault(&format!("expected {rank} sizes of 1 to {MOST_FEATURES}, found {shape:?}")));
        }
        if rank > 1
            && after("fortran_order").is_some_and(|rest| rest.starts_with("True"))
            && shape[0] != shape[1]
        {
            return Err(fault(&"expected row-major order"));
        }
        Ok(Self { name, kind, shape, values: bytes.split_off(start + len) })
    }

    /// The values as `f64`. A covariance is symmetric, so row-major and column-major order are equal.
    fn numbers(&self) -> Result<Vec<f64>, MetricsError> {
        let count: usize = self.shape.iter().product();
        let (values, size) = match self.kind.as_str() {
            "<f8" => {
                let values = self.values.as_chunks::<8>().0;
                (values.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect::<Vec<_>>(), 8)
            }
            "<f4" => {
                let values = self.values.as_chunks::<4>().0;
                (values.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect(), 4)
            }
            other => {
                let text = format!("`{}`: expected values `<f8` or `<f4`, found `{other}`", self.name);
                return Err(MetricsError::File(text));
            }
        };
        if self.values.len() != count * size {
            let (name, found) = (self.name, self.values.len());
            return Err(MetricsError::File(format!(
                "`{name}`: expected {} bytes, found {found}",
                count * size
            )));
        }
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn statistics() -> Statistics {
        let gaussian = Gaussian { mean: vec![1.0, -2.5], covariance: vec![1.0, 0.25, 0.25, 3.0] };
        Statistics { gaussian, features: Some("a classifier".into()) }
    }

    #[test]
    fn statistics_are_restored_from_their_file() {
        assert_eq!(Statistics::from_bytes(&statistics().to_bytes().unwrap()).unwrap(), statistics());
        let nameless = Statistics { features: None, ..statistics() };
        assert_eq!(Statistics::from_bytes(&nameless.to_bytes().unwrap()).unwrap(), nameless);
    }

    #[test]
    fn an_array_has_the_layout_of_numpy() {
        let bytes = array("<f8", "(2,)", &[0; 16]);
        assert_eq!(&bytes[..10], b"\x93NUMPY\x01\x00\x76\x00");
        assert_eq!(bytes.len(), 128 + 16);
        assert_eq!(bytes[127], b'\n');
    }

    #[test]
    fn truncated_and_inconsistent_files_are_errors() {
        let bytes = statistics().to_bytes().unwrap();
        for len in 0..bytes.len() {
            assert!(Statistics::from_bytes(&bytes[..len]).is_err(), "cut to {len} bytes");
        }
        let lopsided = Gaussian { mean: vec![1.0; 3], covariance: vec![0.0; 4] };
        let lopsided = Statistics { gaussian: lopsided, features: None };
        let error =
            |bad: Statistics| Statistics::from_bytes(&bad.to_bytes().unwrap()).unwrap_err().to_string();
        let message = error(lopsided);
        assert!(message.contains("sigma"), "{message}");
        let mut infinite = statistics();
        infinite.gaussian.mean[1] = f64::INFINITY;
        let message = error(infinite);
        assert!(message.contains("`mu` and `sigma`: expected finite numbers"), "{message}");
    }
}
