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

/// The plain form of a compressed body.
///
/// # Errors
/// `TooLarge` if the announced length is over `plain_max` bytes; `BadMessage` if the block is damaged or has another length.
pub fn decompress(body: &[u8], plain_max: u32) -> Result<Bytes, CloseReason> {
    let Some((head, packed)) = body.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(CloseReason::BadMessage);
    };
    let plain = u32::from_be_bytes(*head);
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
    /// The frame with a plain body; a frame without the flag COMPRESSED comes back unchanged.
    ///
    /// # Errors
    /// As [`decompress`].
    pub fn into_plain(mut self, plain_max: u32) -> Result<Self, CloseReason> {
        if !self.header.flags.contains(Flags::COMPRESSED) {
            return Ok(self);
        }
        self.body = decompress(&self.body, plain_max)?;
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
    fn what_does_not_shrink_stays_plain() {
        assert_eq!(try_compress(b""), None);
        assert_eq!(try_compress(b"abcdefghijklmnop"), None);
        let frame = Frame::new(Command::Push, Bytes::from_static(b"plain"));
        assert_eq!(frame.clone().into_plain(5), Ok(frame));
    }
}
