//! TensorBoard's event files: records with checksums around protocol buffers, as in TensorFlow's `record_writer.cc`, `event.proto`
//! and `summary.proto`.

/// A value with its name.
pub enum Value<'a> {
    /// A number.
    Scalar(f32),
    /// A PNG file.
    Image {
        /// Width and height in pixels.
        size: [u32; 2],
        /// 1 (grey) or 3 (RGB).
        channels: u32,
        /// The file.
        png: &'a [u8],
    },
}

/// The first record of a file.
pub fn version(seconds: f64) -> Vec<u8> {
    record(&event(seconds, 0, &field(3, b"brain.Event:2")))
}

/// A record that says that training goes on from `step`: events of later steps in earlier files are void.
pub fn start(seconds: f64, step: u64) -> Vec<u8> {
    /// `SessionLog.SessionStatus.START`.
    const START: u64 = 1;
    record(&event(seconds, step, &field(7, &number(1, START))))
}

/// A record of values at a step.
pub fn values(seconds: f64, step: u64, values: &[(String, Value)]) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, value) in values {
        let mut of_tag = field(1, tag.as_bytes());
        match value {
            Value::Scalar(value) => {
                of_tag.push(2 << 3 | 5);
                of_tag.extend(value.to_le_bytes());
            }
            Value::Image { size: [width, height], channels, png } => {
                let fields = [
                    number(1, u64::from(*height)),
                    number(2, u64::from(*width)),
                    number(3, u64::from(*channels)),
                    field(4, png),
                ];
                of_tag.extend(field(4, &fields.concat()));
            }
        }
        summary.extend(field(1, &of_tag));
    }
    record(&event(seconds, step, &field(5, &summary)))
}

/// An `Event` with a time, a step and one more field.
fn event(seconds: f64, step: u64, content: &[u8]) -> Vec<u8> {
    let mut event = vec![1 << 3 | 1];
    event.extend(seconds.to_le_bytes());
    // Fields that are 0 are left out.
    if step > 0 {
        event.extend(number(2, step));
    }
    event.extend(content);
    event
}

/// A field of bytes.
fn field(tag: u8, bytes: &[u8]) -> Vec<u8> {
    let mut field = vec![tag << 3 | 2];
    field.extend(varint(bytes.len() as u64));
    field.extend(bytes);
    field
}

/// A field of an integer.
fn number(tag: u8, value: u64) -> Vec<u8> {
    let mut field = vec![tag << 3];
    field.extend(varint(value));
    field
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// A record: the length, its checksum, the bytes, their checksum.
fn record(bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() as u64).to_le_bytes();
    [&length[..], &masked(&length), bytes, &masked(bytes)].concat()
}

/// The masked CRC-32C of a record.
fn masked(bytes: &[u8]) -> [u8; 4] {
    let checksum = crc32c::crc32c(bytes);
    checksum.rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes are those that TensorBoard's own writer makes (`tests/references/events.py`).
    #[test]
    fn records_have_the_bytes_of_tensorboard() {
        let hex = |bytes: Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(hex(version(1.5)), VERSION);
        assert_eq!(hex(start(1.5, 300)), START);
        let scalar = ("teacher/loss".to_owned(), Value::Scalar(0.25));
        let image = ("samples".to_owned(), Value::Image { size: [2, 3], channels: 3, png: b"png" });
        assert_eq!(hex(values(2.5, 300, &[scalar, image])), VALUES);
    }

    const VERSION: &str = "1800000000000000a37f4b2209000000000000f83f1a0d627261696e2e4576656e743a322a28646c";
    const START: &str = "100000000000000095fbfe1809000000000000f83f10ac023a020801713b788a";
    const VALUES: &str = "3b000000000000001a23ac5c09000000000000044010ac022a2d0a130a0c746561636865722f6c6f7373150000803e0a160a0773616d706c6573220b0803100218032203706e677d53c147";
}
