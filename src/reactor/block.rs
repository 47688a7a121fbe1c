//! The bytes of one write: small ones copied together, large bodies where they are.

use crate::shard::Gather;
use bytes::Bytes;
use std::io::IoSlice;

/// Slices of one vectored write at most; the rest goes with the next write.
const SLICES_MAX: usize = 64;

/// One write's bytes, in order: pieces of the block, each but the last followed by a shared body.
#[derive(Debug, Default)]
pub(super) struct WriteBlock {
    block: Vec<u8>,
    /// Shared bodies: the offset in the block at which each comes, the body, and the bytes skipped of it.
    shared: Vec<(usize, Bytes, usize)>,
    shared_len: usize,
}

impl WriteBlock {
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self { block: Vec::with_capacity(bytes), ..Self::default() }
    }

    pub(super) fn clear(&mut self) {
        self.block.clear();
        self.shared.clear();
        self.shared_len = 0;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.block.is_empty() && self.shared.is_empty()
    }

    /// All bytes; `None`: some of them are shared.
    pub(super) fn plain(&self) -> Option<&[u8]> {
        self.shared.is_empty().then_some(&self.block[..])
    }

    /// Calls `write` with the pieces in order, at most [`SLICES_MAX`], and their length.
    pub(super) fn with_slices<T>(&self, write: impl FnOnce(&[IoSlice<'_>], usize) -> T) -> T {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let count = self.slices(&mut slices);
        let pieces = &slices[..count];
        write(pieces, pieces.iter().map(|slice| slice.len()).sum())
    }

    /// Fills `out` with the pieces in order, and returns their number.
    fn slices<'a>(&'a self, out: &mut [IoSlice<'a>; SLICES_MAX]) -> usize {
        let (mut count, mut at) = (0, 0);
        let mut put = |piece: &'a [u8]| {
            if !piece.is_empty() && count < SLICES_MAX {
                out[count] = IoSlice::new(piece);
                count += 1;
            }
        };
        for (until, body, skipped) in &self.shared {
            put(&self.block[at..*until]);
            put(&body[*skipped..]);
            at = *until;
        }
        put(&self.block[at..]);
        count
    }
}

impl Gather for WriteBlock {
    fn gathered(&self) -> usize {
        self.block.len() + self.shared_len
    }

    fn copy(&mut self, bytes: &[u8]) {
        self.block.extend_from_slice(bytes);
    }

    fn share(&mut self, body: &Bytes, skipped: usize) {
        self.shared_len += body.len() - skipped;
        self.shared.push((self.block.len(), body.clone(), skipped));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_come_in_their_order() {
        let mut block = WriteBlock::default();
        assert!(block.is_empty() && block.plain() == Some(b""));
        let body = Bytes::from_static(b"0123456789");
        block.copy(b"ab");
        assert_eq!(block.plain(), Some(&b"ab"[..]));
        block.share(&body, 4);
        block.share(&body, 0);
        block.copy(b"cd");
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let count = block.slices(&mut slices);
        let whole: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.iter().copied()).collect();
        assert_eq!((count, &whole[..]), (4, &b"ab4567890123456789cd"[..]));
        assert_eq!((block.gathered(), block.plain()), (20, None));
        block.clear();
        assert!(block.is_empty() && block.gathered() == 0);
    }
}
