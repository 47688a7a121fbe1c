//! The sockets of one reactor, by the slot of their connection.
//!
//! Run-through: the shard gives the fourth client the key (slot 3, generation 9). `insert` places the client's
//! stream at index 3 with tag 9. The client leaves, and the next one gets the key (slot 3, generation 10): a
//! late event for generation 9 finds no stream.

use super::block::WriteBlock;
use moorline_net::stream::Stream;
use moorline_proto::ids::ConnKey;
use std::io;

/// Streams by slot; a stream's tag is its key's generation. 12 bytes for each connection.
#[derive(Debug, Default)]
pub(super) struct Streams {
    slots: Vec<Option<Stream>>,
    open: usize,
}

impl Streams {
    /// Puts a stream at its connection's slot. Panics if the last tenant's stream is still there.
    pub(super) fn insert(&mut self, key: ConnKey, mut stream: Stream) {
        let slot = key.slot() as usize;
        if self.slots.len() <= slot {
            self.slots.resize_with(slot + 1, || None);
        }
        let place = &mut self.slots[slot];
        assert!(place.is_none(), "a slot is released before it is given away");
        self.open += 1;
        stream.place(key.generation());
        *place = Some(stream);
    }

    pub(super) fn get(&self, key: ConnKey) -> Option<&Stream> {
        let stream = self.slots.get(key.slot() as usize)?.as_ref()?;
        (stream.tag() == key.generation()).then_some(stream)
    }

    pub(super) fn get_mut(&mut self, key: ConnKey) -> Option<&mut Stream> {
        let stream = self.slots.get_mut(key.slot() as usize)?.as_mut()?;
        (stream.tag() == key.generation()).then_some(stream)
    }

    /// Takes a stream out; dropping it closes the socket.
    pub(super) fn remove(&mut self, key: ConnKey) -> Option<Stream> {
        self.get(key)?;
        let stream = self.slots[key.slot() as usize].take();
        self.open -= 1;
        if self.open == 0 {
            self.slots = Vec::new();
        }
        stream
    }
}

/// Writes a block once, with the large bodies in it uncopied. Returns how many bytes the stream took.
///
/// # Errors
/// The stream is broken.
pub(super) fn write_block(stream: &mut Stream, block: &WriteBlock) -> io::Result<usize> {
    match block.plain() {
        Some(bytes) => stream.write(bytes),
        None => block.with_slices(|slices, length| stream.write_vectored(slices, length)),
    }
}

// Debug builds of mio keep a check in each socket.
#[cfg(not(debug_assertions))]
const _: () = assert!(
    size_of::<Option<Stream>>() <= 12,
    "memory per idle connection is what the gateway is chosen for"
);
