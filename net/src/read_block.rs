//! Memory that one thread reads its sockets into.
//!
//! A read is handed out as a slice of the block, so that whole frames are never copied. A block is used
//! again when all its slices are gone; until then a new block takes its place.
//!
//! Run-through: a socket holds 100 bytes. `room()` gives 64 KiB, the read fills 100 of them, `take(100)`
//! hands them out; the next read gets the 65,436 bytes behind them. Below 4 KiB of room the block is
//! reclaimed if no slice of it is left, and replaced if the outbox of a slow link still holds one.

use bytes::{Bytes, BytesMut};

/// Bytes of a block. Below glibc's mmap threshold, so that the allocator recycles blocks.
const BLOCK_BYTES: usize = 64 << 10;
/// No read is offered less room than this, in bytes.
const ROOM_MIN: usize = 4 << 10;

/// One thread's block; nothing is allocated before the first read.
#[derive(Debug)]
pub struct ReadBlock {
    free: BytesMut,
    /// Bytes of a whole block.
    size: usize,
}

impl Default for ReadBlock {
    /// Returns a block of 64 KiB.
    fn default() -> Self {
        Self::with_size(BLOCK_BYTES)
    }
}

impl ReadBlock {
    /// Returns a block of `size` bytes: at least 4 KiB.
    pub fn with_size(size: usize) -> Self {
        Self { free: BytesMut::new(), size: size.max(ROOM_MIN) }
    }

    /// Returns initialised room for one read: at least 4 KiB.
    pub fn room(&mut self) -> &mut [u8] {
        self.room_of(ROOM_MIN)
    }

    /// Returns initialised room of at least `least` bytes, which is at most the size of the block.
    pub fn room_of(&mut self, least: usize) -> &mut [u8] {
        debug_assert!(least <= self.size, "a block has {} bytes", self.size);
        if self.free.len() < least {
            self.free.clear();
            if self.free.try_reclaim(self.size) {
                self.free.resize(self.size, 0);
            } else {
                self.free = BytesMut::zeroed(self.size);
            }
        }
        &mut self.free
    }

    /// Hands out the first `len` bytes of the room, which a read has filled. Panics if the room is smaller.
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
