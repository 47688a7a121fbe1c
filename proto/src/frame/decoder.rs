//! Cuts a byte stream into frames.

use super::{Frame, HEADER_BYTES, Header, check_first_byte};
use crate::error::CloseReason;
use alloc::boxed::Box;
use bytes::{Bytes, BytesMut};

/// The incremental decoder of one byte stream.
///
/// Between frames it owns nothing (8 bytes of null pointer). A frame that lies whole in the input is
/// handed out as a slice of it; only a frame that spans reads is gathered in a buffer of its own,
/// which grows with the bytes that really came, never by what a header claims [P-1.8].
#[derive(Debug, Default)]
pub struct Decoder {
    partial: Option<Box<BytesMut>>,
}

impl Decoder {
    /// A decoder between frames.
    pub const fn new() -> Self {
        Self { partial: None }
    }

    /// Takes the next frame from `input`. `Ok(None)`: the input is used up.
    ///
    /// # Errors
    /// The reason to close with, as early as the bytes show it: a wrong first byte after one byte,
    /// a bad header or a body over `body_max` bytes after 16 [P-1.4]. The stream cannot be read on.
    pub fn decode(&mut self, input: &mut Bytes, body_max: u32) -> Result<Option<Frame>, CloseReason> {
        if let Some(partial) = self.partial.take() {
            return self.resume(partial, input, body_max);
        }
        let Some((head, _)) = input.split_first_chunk::<HEADER_BYTES>() else {
            return self.keep(input);
        };
        let header = checked_header(head, body_max)?;
        let wire_len = HEADER_BYTES + header.body_len as usize;
        if input.len() < wire_len {
            return self.keep(input);
        }
        let body = input.split_to(wire_len).slice(HEADER_BYTES..);
        Ok(Some(Frame { header, body }))
    }

    /// Bytes of an unfinished frame.
    pub fn partial_len(&self) -> usize {
        self.partial.as_ref().map_or(0, |partial| partial.len())
    }

    /// The bytes of an unfinished frame: fed to a new decoder, they put it where this one is.
    pub fn partial(&self) -> &[u8] {
        self.partial.as_deref().map_or(&[], |partial| partial)
    }

    fn keep(&mut self, input: &mut Bytes) -> Result<Option<Frame>, CloseReason> {
        if let Some(first) = input.first() {
            check_first_byte(*first)?;
            self.partial = Some(Box::new(BytesMut::from(&input[..])));
            input.clear();
        }
        Ok(None)
    }

    fn resume(
        &mut self,
        mut partial: Box<BytesMut>,
        input: &mut Bytes,
        body_max: u32,
    ) -> Result<Option<Frame>, CloseReason> {
        fill(&mut partial, input, HEADER_BYTES);
        let Some((head, _)) = partial.split_first_chunk::<HEADER_BYTES>() else {
            self.partial = Some(partial);
            return Ok(None);
        };
        let header = checked_header(head, body_max)?;
        let wire_len = HEADER_BYTES + header.body_len as usize;
        fill(&mut partial, input, wire_len);
        if partial.len() < wire_len {
            self.partial = Some(partial);
            return Ok(None);
        }
        let body = partial.freeze().slice(HEADER_BYTES..);
        Ok(Some(Frame { header, body }))
    }
}

fn checked_header(head: &[u8; HEADER_BYTES], body_max: u32) -> Result<Header, CloseReason> {
    let header = Header::parse(head)?;
    if header.body_len > body_max {
        return Err(CloseReason::TooLarge);
    }
    Ok(header)
}

/// Moves bytes from `input` until `partial` holds `wanted` bytes or the input is empty.
fn fill(partial: &mut BytesMut, input: &mut Bytes, wanted: usize) {
    let missing = wanted.saturating_sub(partial.len()).min(input.len());
    partial.extend_from_slice(&input.split_to(missing));
}
