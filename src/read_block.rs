//! Memory that one thread reads its sockets into.
//!
//! What was read is handed out as slices of the block, so that whole frames are never copied. A block is
//! used again when all its slices are gone; until then a new one takes its place. It does no reading
//! itself: a reactor's streams and a worker's links do.

use bytes::{Bytes, BytesMut};

/// Bytes of a block.
const BLOCK_BYTES: usize = 64 << 10;
/// No read is offered less than this, in bytes.
const ROOM_MIN: usize = 4 << 10;

/// One thread's block; nothing is allocated before the first read.
#[derive(Debug, Default)]
pub struct ReadBlock {
    free: BytesMut,
}

impl ReadBlock {
    /// Initialised room for one read: 4 to 64 KiB.
    pub fn room(&mut self) -> &mut [u8] {
        if self.free.len() < ROOM_MIN {
            self.free.clear();
            if self.free.try_reclaim(BLOCK_BYTES) {
                self.free.resize(BLOCK_BYTES, 0);
            } else {
                self.free = BytesMut::zeroed(BLOCK_BYTES);
            }
        }
        &mut self.free
    }

    /// The first `len` bytes of the room, which a read has filled. Panics if the room is smaller.
    pub fn take(&mut self, len: usize) -> Bytes {
        self.free.split_to(len).freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_used_again_only_when_nobody_holds_a_part_of_it() {
        let mut block = ReadBlock::default();
        let first = block.room().as_ptr();
        block.room()[..3].copy_from_slice(b"abc");
        let held = block.take(3);
        assert_eq!(block.room().len(), BLOCK_BYTES - 3);
        drop(block.take(BLOCK_BYTES - ROOM_MIN));
        assert_eq!(block.room().len(), BLOCK_BYTES);
        assert_ne!(block.room().as_ptr(), first, "its first bytes are held");
        assert_eq!(&held[..], b"abc");
        let second = block.room().as_ptr();
        drop(block.take(BLOCK_BYTES));
        assert_eq!((block.room().len(), block.room().as_ptr()), (BLOCK_BYTES, second));
    }
}
