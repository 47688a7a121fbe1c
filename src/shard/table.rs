//! The connections of one shard: a slab whose slots carry generations.

use super::connection::Connection;
use moorline_proto::ids::{ConnKey, ShardId};
use slab::Slab;

/// Connections by slot and generation. Looking up a stale key finds nothing.
#[derive(Debug)]
pub(super) struct Table {
    shard: ShardId,
    connections: Slab<Connection>,
    last_generation: u32,
}

impl Table {
    pub(super) const fn new(shard: ShardId) -> Self {
        Self { shard, connections: Slab::new(), last_generation: 0 }
    }

    /// Puts a connection into a free slot; `None` when the shard holds [`ConnKey::SLOTS_MAX`].
    pub(super) fn insert(&mut self, make: impl FnOnce(ConnKey) -> Connection) -> Option<ConnKey> {
        let entry = self.connections.vacant_entry();
        let slot = u32::try_from(entry.key()).ok().filter(|slot| *slot < ConnKey::SLOTS_MAX)?;
        // Generation 0 is never given, so handle 0 can mean "none" on the link.
        self.last_generation = self.last_generation.checked_add(1).unwrap_or(1);
        let key = ConnKey::new(self.shard, slot, self.last_generation);
        entry.insert(make(key));
        Some(key)
    }

    /// The last generation that was given.
    pub(super) const fn last_generation(&self) -> u32 {
        self.last_generation
    }

    /// A table with these connections in these slots.
    pub(super) fn thaw(
        shard: ShardId,
        last_generation: u32,
        connections: impl IntoIterator<Item = (usize, Connection)>,
    ) -> Self {
        Self { shard, connections: connections.into_iter().collect(), last_generation }
    }

    pub(super) fn get(&self, key: ConnKey) -> Option<&Connection> {
        let connection = self.connections.get(key.slot() as usize)?;
        (key.shard() == self.shard && connection.generation == key.generation()).then_some(connection)
    }

    pub(super) fn get_mut(&mut self, key: ConnKey) -> Option<&mut Connection> {
        let connection = self.connections.get_mut(key.slot() as usize)?;
        (key.shard() == self.shard && connection.generation == key.generation()).then_some(connection)
    }

    pub(super) fn remove(&mut self, key: ConnKey) -> Option<Connection> {
        self.get(key)?;
        let connection = self.connections.remove(key.slot() as usize);
        if self.connections.is_empty() {
            self.connections.shrink_to_fit();
        }
        Some(connection)
    }

    /// The key of a slot in use.
    pub(super) fn key_of(&self, slot: u32) -> Option<ConnKey> {
        let connection = self.connections.get(slot as usize)?;
        Some(ConnKey::new(self.shard, slot, connection.generation))
    }

    pub(super) fn keys(&self) -> Vec<ConnKey> {
        let shard = self.shard;
        let key = |(slot, connection): (usize, &Connection)| {
            let slot = u32::try_from(slot).expect("slots are bounded by SLOTS_MAX");
            ConnKey::new(shard, slot, connection.generation)
        };
        self.connections.iter().map(key).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.connections.len()
    }
}
