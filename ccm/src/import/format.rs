//! Detects the format of a file from its first bytes.

/// A supported format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// PyTorch's formats, zipped or not.
    PyTorch,
    /// safetensors.
    Safetensors,
}

/// Number of bytes at the start of a file that [`format`] needs.
pub(super) const HEAD: usize = 512;

/// The format of a file of `len` bytes that begins with `head`. The error names the unsupported format.
pub(super) fn format(head: &[u8], len: u64) -> Result<Format, &'static str> {
    /// Offset of the magic number of a tar archive.
    const TAR_MARK: usize = 257;
    /// Unsupported formats, by their first bytes.
    const OTHERS: [(&[u8], &str); 6] = [
        (b"\x89HDF\r\n", "HDF5 (Keras?)"),
        (b"GGUF", "GGUF"),
        (b"\x93NUMPY", "a NumPy array"),
        (b"\x1f\x8b", "gzip data; decompress it first"),
        (b"version https://git-lfs", "a Git LFS pointer; fetch the file that it points to"),
        (b"\x08", "ONNX or another protocol buffer"),
    ];
    if head.is_empty() {
        return Err("an empty file");
    }
    if head.starts_with(b"PK\x03\x04") || head.get(TAR_MARK..).is_some_and(|rest| rest.starts_with(b"ustar"))
    {
        return Ok(Format::PyTorch);
    }
    // Before the pickles: a header's length may begin with their mark.
    if let Some((header, rest)) = head.split_first_chunk::<8>()
        && u64::from_le_bytes(*header) <= len
        && rest.first() == Some(&b'{')
    {
        return Ok(Format::Safetensors);
    }
    // The pickle protocols that PyTorch has used.
    if head[0] == 0x80 && head.get(1).is_some_and(|protocol| (2..=5).contains(protocol)) {
        return Ok(Format::PyTorch);
    }
    let text = head.trim_ascii_start().to_ascii_lowercase();
    if text.starts_with(b"<!doctype") || text.starts_with(b"<html") {
        return Err("a web page; the download has failed");
    }
    match OTHERS.iter().find(|(mark, _)| head.starts_with(mark)) {
        Some((_, name)) => Err(name),
        None => Err("neither"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_told_from_the_first_bytes() {
        let tar = [&[b'a'; 257][..], b"ustar"].concat();
        let safetensors = [&2u64.to_le_bytes()[..], b"{}"].concat();
        for (head, expected) in [
            (&b"PK\x03\x04more"[..], Ok(Format::PyTorch)),
            (b"\x80\x02\x8a", Ok(Format::PyTorch)),
            (&tar, Ok(Format::PyTorch)),
            (&safetensors, Ok(Format::Safetensors)),
            (b"", Err("an empty file")),
            (
                b"version https://git-lfs.github.com/spec/v1",
                Err("a Git LFS pointer; fetch the file that it points to"),
            ),
            (b"<!DOCTYPE html>", Err("a web page; the download has failed")),
            (b"\n <HTML>", Err("a web page; the download has failed")),
            (b"GGUF\x03", Err("GGUF")),
            (b"\x08\x07\x12\x07pytorch", Err("ONNX or another protocol buffer")),
            (b"hello", Err("neither")),
        ] {
            assert_eq!(format(head, head.len() as u64), expected, "{head:?}");
        }
        // The length of the header, 640, begins with the bytes of a pickle.
        let header = [&640u64.to_le_bytes()[..], b"{", &[b' '; 638], b"}"].concat();
        assert_eq!(format(&header, 648), Ok(Format::Safetensors));
        // The header is longer than the file.
        assert_eq!(format(&safetensors, 1), Err("neither"));
    }
}
