//! Bodies compressed one by one [P-1.9]: four bytes of plain length, then an LZ4 block.
//!
//! Stateless: each body is decompressed on its own, so a broadcast is compressed once for all receivers.
//! The plain length comes first, so a receiver judges it before it reserves memory.

use super::{Flags, Frame};
use crate::error::CloseReason;
use alloc::vec;
use alloc::vec::Vec;
use bytes::Bytes;
use lz4_flex::block;

/// Bit of `accept` in HELLO and WELCOME: the sender can decompress LZ4 blocks.
pub const ACCEPT_LZ4: u32 = 1;
/// Bytes of the plain length.
const LENGTH_BYTES: usize = 4;
/// A compressed body must save at least 1/8, or decompressing costs more than it saves.
const GAIN_PART: usize = 8;

/// The compressed form of a body; `None` if that would not be smaller by an eighth.
pub fn try_compress(body: &[u8]) -> Option<Bytes> {
    let plain = u32::try_from(body.len()).ok()?;
    let mut out = vec![0; LENGTH_BYTES + block::get_maximum_output_size(body.len())];
    out[..LENGTH_BYTES].copy_from_slice(&plain.to_be_bytes());
    let written = block::compress_into(body, &mut out[LENGTH_BYTES..]).ok()?;
    out.truncate(LENGTH_BYTES + written);
    let is_worth = out.len() < body.len() - body.len() / GAIN_PART;
    is_worth.then(|| {
        out.shrink_to_fit();
        out.into()
    })
}

/// Plain bytes that cost a receiver about as much work as a frame.
const PLAIN_BYTES_PER_FRAME: u32 = 1 << 10;

/// Length of the plain body that a compressed body announces, in bytes; nothing is decompressed.
///
/// # Errors
/// `BadMessage` if the body is too short to announce a length.
pub fn plain_len(body: &[u8]) -> Result<u32, CloseReason> {
    body.first_chunk().map(|head| u32::from_be_bytes(*head)).ok_or(CloseReason::BadMessage)
}

/// The plain form of a compressed body.
///
/// # Errors
/// `TooLarge` if the announced length is over `plain_max` bytes; `BadMessage` if the block is damaged or has another length.
pub fn decompress(body: &[u8], plain_max: u32) -> Result<Bytes, CloseReason> {
    let plain = plain_len(body)?;
    let packed = &body[LENGTH_BYTES..];
    if plain > plain_max {
        return Err(CloseReason::TooLarge);
    }
    let mut out: Vec<u8> = vec![0; plain as usize];
    let written = block::decompress_into(packed, &mut out).map_err(|_| CloseReason::BadMessage)?;
    if written != out.len() {
        return Err(CloseReason::BadMessage);
    }
    Ok(out.into())
}

impl Frame {
    /// Work of decompressing the body, in frames: one for each KiB that the body announces; 0: the body is plain. To
    /// be paid before [`Self::into_plain`] is called [P-10.2].
    ///
    /// # Errors
    /// The close reason of [`plain_len`]: the announced length is missing or above the limit.
    pub fn unpack_cost(&self) -> Result<u32, CloseReason> {
        if !self.header.flags.contains(Flags::COMPRESSED) {
            return Ok(0);
        }
        plain_len(&self.body).map(|plain| plain.div_ceil(PLAIN_BYTES_PER_FRAME))
    }

    /// The frame with a plain body; a frame without the flag COMPRESSED comes back unchanged. A small command has a
    /// small plain body too.
    ///
    /// # Errors
    /// As [`decompress`].
    pub fn into_plain(mut self, plain_max: u32) -> Result<Self, CloseReason> {
        if !self.header.flags.contains(Flags::COMPRESSED) {
            return Ok(self);
        }
        self.body = decompress(&self.body, self.body_max(plain_max))?;
        self.header.flags = self.header.flags.without(Flags::COMPRESSED);
        self.header.body_len = u32::try_from(self.body.len()).map_err(|_| CloseReason::TooLarge)?;
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Command;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_was_compressed_comes_back(unit in proptest::collection::vec(any::<u8>(), 1..40), times in 1usize..200) {
            let body = unit.repeat(times);
            if let Some(packed) = try_compress(&body) {
                prop_assert!(packed.len() < body.len());
                let plain = decompress(&packed, u32::MAX);
                prop_assert_eq!(plain.as_deref(), Ok(&body[..]));
                let limit = u32::try_from(body.len()).expect("small");
                prop_assert_eq!(decompress(&packed, limit - 1), Err(CloseReason::TooLarge));
                for cut in 0..packed.len().min(40) {
                    prop_assert!(decompress(&packed[..cut], limit).is_err());
                }
            }
        }

        #[test]
        fn noise_is_refused_or_undone_within_the_limit(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(plain) = decompress(&body, 4096) {
                prop_assert!(plain.len() <= 4096);
            }
        }
    }

    #[test]
    fn a_frame_tells_what_decompressing_costs_before_it_is_done() {
        let packed = try_compress(&vec![0; 64 << 10]).expect("zeros");
        let frame = |command, flags| Frame::new(command, packed.clone()).with_flags(flags);
        assert_eq!(frame(Command::Send, Flags::default()).unpack_cost(), Ok(0));
        assert_eq!(frame(Command::Send, Flags::COMPRESSED).unpack_cost(), Ok(64));
        let claim = Frame::new(Command::Send, Bytes::from_static(&[0xFF; 4])).with_flags(Flags::COMPRESSED);
        assert_eq!(claim.unpack_cost(), Ok(1 << 22), "judged before it is believed");
        let cut = Frame::new(Command::Send, Bytes::from_static(&[0; 3])).with_flags(Flags::COMPRESSED);
        assert_eq!(cut.unpack_cost(), Err(CloseReason::BadMessage));
        for command in [Command::Ack, Command::Ping, Command::Sub, Command::Close] {
            let small = frame(command, Flags::COMPRESSED).into_plain(64 << 10);
            assert_eq!(small, Err(CloseReason::TooLarge), "{command:?}");
        }
        assert!(frame(Command::Ack, Flags::COMPRESSED.with(Flags::BATCH)).into_plain(64 << 10).is_ok());
    }

    #[test]
    fn what_does_not_shrink_stays_plain() {
        assert_eq!(try_compress(b""), None);
        assert_eq!(try_compress(b"abcdefghijklmnop"), None);
        let frame = Frame::new(Command::Push, Bytes::from_static(b"plain"));
        assert_eq!(frame.clone().into_plain(5), Ok(frame));
    }
}
