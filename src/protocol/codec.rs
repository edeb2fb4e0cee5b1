//! Values to bytes and back.
//!
//! A frame is `length: u32 LE | format: u8 | postcard value`; the length counts what follows it. Whatever arrives is
//! checked against [`FRAME_BYTES_MAX`] before a byte of it is stored, and postcard never allocates more than the
//! frame holds, so a lying length costs nothing.
use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Largest frame, without its length field. Unit: bytes. Holds the largest document (1 MiB), a full append, or a
/// full listing with room to spare.
pub const FRAME_BYTES_MAX: usize = 8 << 20;
/// Format byte of this build's frames.
pub const FRAME_FORMAT: u8 = 1;

/// Why bytes are not a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Too long.
    #[error("a frame of {0} bytes is over the limit of {FRAME_BYTES_MAX}")]
    TooLong(usize),
    /// Zero length.
    #[error("an empty frame")]
    Empty,
    /// Another format byte.
    #[error("frame format {0}; this build reads {FRAME_FORMAT}")]
    Format(u8),
    /// Not a value of the expected type.
    #[error("not a valid value: {0}")]
    Malformed(postcard::Error),
    /// A value that does not end where its frame does.
    #[error("{0} bytes behind the value")]
    Trailing(usize),
}

/// Appends `value` as a frame. Fails where it would be over [`FRAME_BYTES_MAX`]; `out` is unchanged then.
pub fn encode_frame<T: Serialize>(value: &T, out: &mut BytesMut) -> Result<(), CodecError> {
    let start = out.len();
    out.put_u32_le(0);
    out.put_u8(FRAME_FORMAT);
    if let Err(error) = postcard::serialize_with_flavor(value, Appender(out)) {
        out.truncate(start);
        return Err(CodecError::Malformed(error));
    }
    let length = out.len() - start - 4;
    if length > FRAME_BYTES_MAX {
        out.truncate(start);
        return Err(CodecError::TooLong(length));
    }
    out[start..start + 4].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(())
}

/// Takes the next whole frame's content (without length and format) off the front of `buffer`; `None` until it has all
/// arrived.
pub fn take_frame(buffer: &mut BytesMut) -> Result<Option<Bytes>, CodecError> {
    if buffer.len() < 4 {
        return Ok(None);
    }
    let length = u32::from_le_bytes([buffer[0], buffer[1], buffer[2], buffer[3]]) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(CodecError::TooLong(length));
    }
    if length == 0 {
        return Err(CodecError::Empty);
    }
    if buffer.len() < 4 + length {
        buffer.reserve(4 + length - buffer.len());
        return Ok(None);
    }
    if buffer[4] != FRAME_FORMAT {
        return Err(CodecError::Format(buffer[4]));
    }
    buffer.advance(5);
    Ok(Some(buffer.split_to(length - 1).freeze()))
}

/// A frame's content as a value.
pub fn decode<T: DeserializeOwned>(content: &[u8]) -> Result<T, CodecError> {
    match postcard::take_from_bytes(content) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(CodecError::Trailing(rest.len())),
        Err(error) => Err(CodecError::Malformed(error)),
    }
}

/// A value without a frame around it: log entries, rows.
///
/// # Panics
/// Never for isx's own types: writing to memory does not fail and all sequences know their length.
pub fn encode<T: Serialize>(value: &T) -> Bytes {
    postcard::to_stdvec(value)
        .expect("plain data with known lengths")
        .into()
}

/// Lets postcard write to the end of a buffer that holds other frames already.
struct Appender<'a>(&'a mut BytesMut);

impl postcard::ser_flavors::Flavor for Appender<'_> {
    type Output = ();

    fn try_push(&mut self, data: u8) -> postcard::Result<()> {
        self.0.put_u8(data);
        Ok(())
    }

    fn try_extend(&mut self, data: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(data);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_whole_however_they_arrive() {
        let values = ["", "a", "longer than the others"].map(String::from);
        let mut wire = BytesMut::new();
        for value in &values {
            encode_frame(value, &mut wire).expect("small");
        }
        for step in [1, 2, 3, 7, wire.len()] {
            let (mut buffer, mut seen) = (BytesMut::new(), Vec::new());
            for chunk in wire.chunks(step) {
                buffer.extend_from_slice(chunk);
                while let Some(frame) = take_frame(&mut buffer).expect("well-formed") {
                    seen.push(decode::<String>(&frame).expect("a string"));
                }
            }
            assert_eq!(seen, values);
        }
    }

    #[test]
    fn lies_are_refused_before_memory_is_spent() {
        let mut huge = BytesMut::from(&[0xff, 0xff, 0xff, 0x7f, 1, 2][..]);
        assert!(matches!(take_frame(&mut huge), Err(CodecError::TooLong(_))));
        assert!(matches!(
            take_frame(&mut BytesMut::from(&[0, 0, 0, 0][..])),
            Err(CodecError::Empty)
        ));
        assert!(matches!(
            take_frame(&mut BytesMut::from(&[1, 0, 0, 0, 9][..])),
            Err(CodecError::Format(9))
        ));
        // A byte string that claims to be 4 GiB long inside a short frame.
        assert!(decode::<Vec<u8>>(&[0xff, 0xff, 0xff, 0xff, 0x0f, 1, 2]).is_err());
        assert!(matches!(decode::<u8>(&[1, 2]), Err(CodecError::Trailing(1))));
    }
}
