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
///
/// A receiver that stops in the middle of its input gives the rest back with [`Self::hold`]; it comes again before
/// later input.
#[derive(Debug, Default)]
pub struct Decoder {
    partial: Option<Box<Partial>>,
}

/// Bytes that wait: a part of a frame, or frames that were given back.
#[derive(Debug)]
struct Partial {
    bytes: BytesMut,
    /// Number of the owner's; 0: none was set.
    mark: u32,
    /// Length of the memory that `bytes` is the rest of; 0: the memory is that of `bytes` alone.
    block: usize,
    /// Copy of the first of these bytes, for a reader elsewhere; `None`: nobody asked for one.
    copy: Option<Bytes>,
}

impl Partial {
    fn new(bytes: &[u8]) -> Self {
        Self { bytes: BytesMut::from(bytes), mark: 0, block: 0, copy: None }
    }
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

    /// Keeps the rest of the input, which may hold whole frames, for the next call of [`Self::decode`].
    pub fn hold(&mut self, input: &mut Bytes) {
        match &mut self.partial {
            _ if input.is_empty() => {}
            Some(partial) => partial.bytes.extend_from_slice(input),
            None => self.partial = Some(Box::new(Partial::new(input))),
        }
        input.clear();
    }

    /// Keeps whole frames that come before everything else that this decoder keeps: the rest of a batch.
    pub fn hold_first(&mut self, frames: &[u8]) {
        let later = self.partial.take();
        let Some(first) = (!frames.is_empty()).then(|| Box::new(Partial::new(frames))) else {
            self.partial = later;
            return;
        };
        let first = self.partial.insert(first);
        if let Some(later) = later {
            first.bytes.extend_from_slice(&later.bytes);
        }
    }

    /// A number of the owner's that stays with the unfinished frame, such as the time when it began; 0 at first.
    /// `None`: no frame is unfinished.
    pub fn mark(&mut self) -> Option<&mut u32> {
        self.partial.as_mut().map(|partial| &mut partial.mark)
    }

    /// The number that was set with [`Self::mark`]; 0: none.
    pub fn marked(&self) -> u32 {
        self.partial.as_ref().map_or(0, |partial| partial.mark)
    }

    /// Bytes of an unfinished frame, and of frames that were given back.
    pub fn partial_len(&self) -> usize {
        self.partial.as_ref().map_or(0, |partial| partial.bytes.len())
    }

    /// Memory that the unfinished frame, and the frames that were given back, take, in bytes.
    pub fn held_bytes(&self) -> usize {
        let held = |partial: &Partial| {
            let copy = partial.copy.as_ref().map_or(0, Bytes::len);
            partial.bytes.capacity().max(partial.block) + copy + size_of::<Partial>()
        };
        self.partial.as_deref().map_or(0, held)
    }

    /// The bytes of an unfinished frame, and of frames that were given back: held by a new decoder, they put it
    /// where this one is.
    pub fn partial(&self) -> &[u8] {
        self.partial.as_deref().map_or(&[], |partial| &partial.bytes)
    }

    /// Copies the bytes of [`Self::partial`], and keeps the copy up to the end of the frame, so that another reader may have
    /// them before this decoder stands still. `None`: there are fewer than `least`. A copy that has at least half of the bytes
    /// is not made anew.
    pub fn copy_partial(&mut self, least: usize) -> Option<Bytes> {
        let Partial { bytes, copy, .. } =
            self.partial.as_deref_mut().filter(|all| all.bytes.len() >= least)?;
        if copy.as_ref().is_none_or(|copy| copy.len() < bytes.len() / 2) {
            *copy = Some(Bytes::copy_from_slice(bytes));
        }
        copy.clone()
    }

    /// The copy of the first bytes of [`Self::partial`], and the bytes behind those; `None`: there is no copy.
    pub fn copied_partial(&self) -> Option<(&Bytes, &[u8])> {
        let Partial { bytes, copy, .. } = self.partial.as_deref()?;
        copy.as_ref().map(|copy| (copy, &bytes[copy.len()..]))
    }

    fn keep(&mut self, input: &mut Bytes) -> Result<Option<Frame>, CloseReason> {
        if let Some(first) = input.first() {
            check_first_byte(*first)?;
            self.partial = Some(Box::new(Partial::new(input)));
            input.clear();
        }
        Ok(None)
    }

    fn resume(
        &mut self,
        mut partial: Box<Partial>,
        input: &mut Bytes,
        body_max: u32,
    ) -> Result<Option<Frame>, CloseReason> {
        fill(&mut partial.bytes, input, HEADER_BYTES);
        let Some((head, _)) = partial.bytes.split_first_chunk::<HEADER_BYTES>() else {
            return self.keep_on(partial);
        };
        let header = checked_header(head, body_max)?;
        let wire_len = HEADER_BYTES + header.body_len as usize;
        fill(&mut partial.bytes, input, wire_len);
        if partial.bytes.len() < wire_len {
            return self.keep_on(partial);
        }
        let block = partial.block.max(partial.bytes.capacity());
        let body = partial.bytes.split_to(wire_len).freeze().slice(HEADER_BYTES..);
        if !partial.bytes.is_empty() {
            (partial.block, partial.mark, partial.copy) = (block, 0, None);
            self.partial = Some(partial);
        }
        Ok(Some(Frame { header, body }))
    }

    /// Keeps a frame that is still unfinished, in memory of its own: the frames before it may be gone.
    fn keep_on(&mut self, mut partial: Box<Partial>) -> Result<Option<Frame>, CloseReason> {
        if let Some(first) = partial.bytes.first() {
            check_first_byte(*first)?;
        }
        if partial.block > 0 {
            partial = Box::new(Partial { mark: partial.mark, ..Partial::new(&partial.bytes) });
        }
        self.partial = Some(partial);
        Ok(None)
    }
}

fn checked_header(head: &[u8; HEADER_BYTES], body_max: u32) -> Result<Header, CloseReason> {
    let header = Header::parse(head)?;
    if header.body_len > header.body_max(body_max) {
        return Err(CloseReason::TooLarge);
    }
    Ok(header)
}

/// Moves bytes from `input` until `partial` holds `wanted` bytes or the input is empty.
fn fill(partial: &mut BytesMut, input: &mut Bytes, wanted: usize) {
    let missing = wanted.saturating_sub(partial.len()).min(input.len());
    partial.extend_from_slice(&input.split_to(missing));
}
