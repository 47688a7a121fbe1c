//! Frames inside a BATCH body [P-1.7]: complete, at least one, at most
//! [`BATCH_FRAMES_MAX`](super::BATCH_FRAMES_MAX), never nested, and compressed only if the batch was not.

use super::{BATCH_FRAMES_MAX, Command, Decoder, Flags, Frame};
use crate::error::CloseReason;
use bytes::{Bytes, BytesMut};

/// Iterates over the frames of a BATCH body; yields `BadBatch` and ends at the first one that breaks a rule.
#[derive(Debug)]
pub struct Batch {
    rest: Bytes,
    frames_left: usize,
    is_empty: bool,
    /// The batch itself was compressed: then no frame inside may be [P-1.9].
    was_packed: bool,
}

impl Batch {
    /// Iterates over the body of a frame with the BATCH flag that was not compressed.
    pub fn new(body: Bytes) -> Self {
        Self { is_empty: body.is_empty(), rest: body, frames_left: BATCH_FRAMES_MAX, was_packed: false }
    }

    /// Iterates over the decompressed body of a frame with the flags BATCH and COMPRESSED. A compressed frame inside
    /// is a fault: a few bytes would grow twice.
    pub fn of_packed(plain_body: Bytes) -> Self {
        Self { was_packed: true, ..Self::new(plain_body) }
    }

    /// Returns whether all frames were taken.
    pub const fn is_over(&self) -> bool {
        self.rest.is_empty()
    }

    /// The frames that were not taken, as they are on the wire, for [`Decoder::hold_first`].
    ///
    /// # Errors
    /// `BadBatch` if one of them breaks a rule.
    pub fn into_rest(self) -> Result<Bytes, CloseReason> {
        let rest = self.rest.clone();
        for frame in self {
            frame?;
        }
        Ok(rest)
    }

    fn next_frame(&mut self) -> Result<Frame, CloseReason> {
        if self.frames_left == 0 {
            return Err(CloseReason::BadBatch);
        }
        self.frames_left -= 1;
        let frame = Decoder::new().decode(&mut self.rest, u32::MAX)?.ok_or(CloseReason::BadBatch)?;
        let flags = frame.header.flags;
        if flags.contains(Flags::BATCH) || (self.was_packed && flags.contains(Flags::COMPRESSED)) {
            return Err(CloseReason::BadBatch);
        }
        Ok(frame)
    }
}

impl Iterator for Batch {
    type Item = Result<Frame, CloseReason>;

    fn next(&mut self) -> Option<Self::Item> {
        if core::mem::take(&mut self.is_empty) {
            return Some(Err(CloseReason::BadBatch));
        }
        if self.rest.is_empty() {
            return None;
        }
        let frame = self.next_frame();
        if frame.is_err() {
            self.rest.clear();
        }
        Some(frame)
    }
}

/// Packs `frames` into one BATCH frame, whose command is that of the first frame.
///
/// Panics if `frames` is empty or has more than [`BATCH_FRAMES_MAX`].
pub fn encode_batch(frames: &[Frame]) -> Frame {
    assert!((1..=BATCH_FRAMES_MAX).contains(&frames.len()), "a batch holds 1 to 128 frames");
    let mut body = BytesMut::with_capacity(frames.iter().map(Frame::wire_len).sum());
    for frame in frames {
        frame.encode(&mut body);
    }
    let command: Command = frames[0].header.command;
    Frame::new(command, body.freeze()).with_flags(Flags::BATCH)
}
