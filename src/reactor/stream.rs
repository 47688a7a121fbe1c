//! The sockets of one reactor, by the slot of their connection.
//!
//! Run-through: the shard gives the fourth client the key (slot 3, generation 9). `insert` places the client's
//! stream at index 3 with tag 9. The client leaves, and the next one gets the key (slot 3, generation 10): a
//! late event for generation 9 finds no stream.

use super::block::WriteBlock;
use moorline_net::layer::Layer;
use moorline_net::stream::Stream;
use moorline_proto::ids::{ConnKey, ShardId};
use std::io;

/// Streams by slot; a stream's tag is its key's generation. 12 bytes for each connection, and 16 more once a connection
/// has a layer.
#[derive(Debug, Default)]
pub(super) struct Streams {
    slots: Vec<Option<Stream>>,
    /// Layers by slot; empty while no connection has one.
    layers: Vec<Option<Layer>>,
    open: usize,
}

/// A stream with what stands between it and the frames.
#[derive(Debug)]
pub struct Socket {
    /// The stream.
    pub stream: Stream,
    /// The layer; `None`: frames come at once.
    pub layer: Option<Layer>,
}

impl Socket {
    /// A plain socket.
    pub const fn plain(stream: Stream) -> Self {
        Self { stream, layer: None }
    }
}

impl Streams {
    /// Puts a stream at its connection's slot. Panics if the last tenant's stream is still there.
    pub(super) fn insert(&mut self, key: ConnKey, socket: Socket) {
        let Socket { mut stream, layer } = socket;
        let slot = key.slot() as usize;
        if self.slots.len() <= slot {
            self.slots.resize_with(slot + 1, || None);
        }
        let place = &mut self.slots[slot];
        assert!(place.is_none(), "a slot is released before it is given away");
        self.open += 1;
        stream.place(key.generation());
        *place = Some(stream);
        self.set_layer(key, layer);
    }

    /// Gives a connection another layer, or none.
    pub(super) fn set_layer(&mut self, key: ConnKey, layer: Option<Layer>) {
        let slot = key.slot() as usize;
        if let Some(place) = self.layers.get_mut(slot) {
            *place = layer;
        } else if layer.is_some() && self.get(key).is_some() {
            self.layers.resize_with(slot + 1, || None);
            self.layers[slot] = layer;
        }
    }

    pub(super) fn get(&self, key: ConnKey) -> Option<&Stream> {
        let stream = self.slots.get(key.slot() as usize)?.as_ref()?;
        (stream.tag() == key.generation()).then_some(stream)
    }

    pub(super) fn get_mut(&mut self, key: ConnKey) -> Option<&mut Stream> {
        let stream = self.slots.get_mut(key.slot() as usize)?.as_mut()?;
        (stream.tag() == key.generation()).then_some(stream)
    }

    /// A stream and its layer.
    pub(super) fn pair(&mut self, key: ConnKey) -> Option<(&mut Stream, Option<&mut Layer>)> {
        let slot = key.slot() as usize;
        let stream = self.slots.get_mut(slot)?.as_mut()?;
        let layer = self.layers.get_mut(slot).and_then(Option::as_mut);
        (stream.tag() == key.generation()).then_some((stream, layer))
    }

    /// Bytes that the layer of a connection has for its socket.
    pub(super) fn pending(&self, key: ConnKey) -> usize {
        self.layers.get(key.slot() as usize).and_then(Option::as_ref).map_or(0, Layer::pending)
    }

    /// The keys of all connections of this shard with a layer.
    pub(super) fn layered(&self, shard: ShardId) -> Vec<ConnKey> {
        let of = |(slot, (stream, layer)): (u32, (&Option<Stream>, &Option<Layer>))| {
            layer.as_ref()?;
            Some(ConnKey::new(shard, slot, stream.as_ref()?.tag()))
        };
        (0..).zip(self.slots.iter().zip(&self.layers)).filter_map(of).collect()
    }

    /// Takes a socket out; dropping it closes the connection.
    pub(super) fn remove(&mut self, key: ConnKey) -> Option<Socket> {
        self.get(key)?;
        let stream = self.slots[key.slot() as usize].take()?;
        let layer = self.layers.get_mut(key.slot() as usize).and_then(Option::take);
        self.open -= 1;
        if self.open == 0 {
            (self.slots, self.layers) = (Vec::new(), Vec::new());
        }
        Some(Socket { stream, layer })
    }
}

/// Writes a block once, with the large bodies in it uncopied. Returns how many bytes the stream or the layer took.
/// `scratch`: memory for encrypted records.
///
/// # Errors
/// The stream is broken.
pub(super) fn write_block(
    stream: &mut Stream,
    layer: Option<&mut Layer>,
    block: &WriteBlock,
    scratch: &mut Vec<u8>,
) -> io::Result<usize> {
    match (layer, block.plain()) {
        (None, Some(bytes)) => stream.write(bytes),
        (None, None) => block.with_slices(|slices, length| stream.write_vectored(slices, length)),
        (Some(layer), _) => block.with_slices(|slices, length| layer.write(stream, slices, length, scratch)),
    }
}

// Debug builds of mio keep a check in each socket.
#[cfg(not(debug_assertions))]
const _: () = assert!(
    size_of::<Option<Stream>>() <= 12,
    "memory per idle connection is what the gateway is chosen for"
);
