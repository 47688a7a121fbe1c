//! Rooms between shards and backends: bindings down, digests and answers up.
//!
//! The backend binds and unbinds; each shard mirrors its own sessions. A digest of one round is gathered
//! from all shards and told to each live link about the users it speaks for.

use super::Count;
use super::Worker;
use crate::handoff::{Downlink, Push, PushTicket, Target};
use crate::link::{LinkIndex, Slot};
use moorline_proto::ids::{ConnKey, Pin, ShardId};
use moorline_proto::link::{Kind, LinkError, LinkFrame};
use moorline_proto::message::backend::{Bind, Digest, Query, QueryResult, RoomDigest, Unbind};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Rooms in one DIGEST.
const DIGEST_ROOMS_MAX: usize = 1024;
/// Entries of one round that are gathered; beyond them the round is dropped, and the next one tells.
const ENTRIES_MAX: usize = 4 << 20;
/// Questions of backends that wait for shards.
const QUERIES_MAX: usize = 1024;

/// What was gathered of one round.
#[derive(Debug, Default)]
pub(super) struct Round {
    number: u32,
    entries: Vec<(u32, RoomDigest)>,
    spoken: Vec<bool>,
}

/// Questions that shards have not answered: how many pieces with `more` unset are to come.
pub(super) type Queries = BTreeMap<(u16, u32, u64), usize>;

fn name(ticket: &PushTicket) -> (u16, u32, u64) {
    (ticket.link, ticket.link_generation, ticket.correlation)
}

impl Worker {
    /// Everybody of this gateway who is bound to a room.
    pub(super) fn push_to_room(&mut self, push: &Push, room: &str) {
        self.tally[Count::RoomPushes] += 1;
        let room: Arc<str> = room.into();
        for shard in self.shard_ids() {
            let part = Push { targets: vec![Target::Room(Arc::clone(&room))], ..push.clone() };
            self.outbox.push(shard, Downlink::Push(part));
        }
    }

    fn shard_ids(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..self.outbox.shards()).filter_map(|shard| u8::try_from(shard).ok()).map(ShardId)
    }

    /// Handles by shard; those of no shard are dropped.
    fn by_shard(&self, handles: &[u64]) -> Vec<Vec<ConnKey>> {
        let mut parts: Vec<Vec<ConnKey>> = (0..self.outbox.shards()).map(|_| Vec::new()).collect();
        for key in handles.iter().map(|handle| ConnKey::from_u64(*handle)) {
            if let Some(part) = parts.get_mut(key.shard().index()) {
                part.push(key);
            }
        }
        parts
    }

    pub(super) fn on_bind(&mut self, index: LinkIndex, frame: &LinkFrame) -> Result<(), LinkError> {
        let Bind { handles, room, version, reset } = frame.message()?;
        let slots = self.slots.live_on(index).bits();
        let reset = reset.then_some((self.settings.number, slots));
        let room: Arc<str> = checked(room, Kind::Bind)?.into();
        let parts = self.by_shard(&handles);
        for (shard, keys) in self.shard_ids().zip(parts) {
            if !keys.is_empty() || reset.is_some() {
                self.outbox.push(shard, Downlink::Bind { room: Arc::clone(&room), version, keys, reset });
            }
        }
        Ok(())
    }

    pub(super) fn on_unbind(&mut self, frame: &LinkFrame) -> Result<(), LinkError> {
        let Unbind { handles, room, version } = frame.message()?;
        let room: Arc<str> = checked(room, Kind::Unbind)?.into();
        let parts = self.by_shard(&handles);
        for (shard, keys) in self.shard_ids().zip(parts) {
            if !keys.is_empty() {
                self.outbox.push(shard, Downlink::Unbind { room: Arc::clone(&room), version, keys });
            }
        }
        Ok(())
    }

    pub(super) fn on_query(&mut self, index: LinkIndex, frame: &LinkFrame) -> Result<(), LinkError> {
        let Query { uid, room } = frame.message()?;
        let ticket = PushTicket {
            worker: self.settings.number,
            link: index.0,
            link_generation: self.link(index).state.generation(),
            correlation: frame.correlation,
        };
        if self.queries.len() >= QUERIES_MAX {
            self.link(index).send(Kind::QueryResult, frame.correlation, &QueryResult::default());
            return Ok(());
        }
        let asked: Vec<ShardId> = if room.is_empty() {
            vec![self.settings.homes.first(Pin::of(&uid))]
        } else {
            self.shard_ids().collect()
        };
        self.queries.insert(name(&ticket), asked.len());
        for shard in asked {
            let (uid, room) = (uid.as_str().into(), room.as_str().into());
            self.outbox.push(shard, Downlink::Query { ticket, uid, room });
        }
        Ok(())
    }

    /// A shard's piece of an answer goes on as it is, but for `more`: others may follow.
    pub(super) fn handle_held(&mut self, ticket: PushTicket, mut held: QueryResult) {
        let Some(left) = self.queries.get_mut(&name(&ticket)) else { return };
        *left -= usize::from(!held.more);
        held.more = *left > 0;
        if !held.more {
            self.queries.remove(&name(&ticket));
        }
        if let Some(link) = self.links.get_mut(usize::from(ticket.link))
            && link.state.generation() == ticket.link_generation
            && link.state.is_open()
        {
            link.send(Kind::QueryResult, ticket.correlation, &held);
        }
    }

    /// The link is gone, and its questions with it.
    pub(super) fn forget_queries(&mut self, index: LinkIndex) {
        self.queries.retain(|(link, ..), _| *link != index.0);
    }

    pub(super) fn handle_digest(
        &mut self,
        from: ShardId,
        number: u32,
        rooms: Vec<(u32, RoomDigest)>,
        is_last: bool,
    ) {
        let shards = self.outbox.shards();
        if self.round.number != number {
            self.round = Round { number, entries: Vec::new(), spoken: vec![false; shards] };
        }
        let round = &mut self.round;
        if round.entries.len() + rooms.len() > ENTRIES_MAX {
            self.tally[Count::DigestsDropped] += 1;
            round.entries = Vec::new();
            round.spoken = Vec::new(); // never complete
            return;
        }
        round.entries.extend(rooms);
        if is_last && let Some(spoken) = round.spoken.get_mut(from.index()) {
            *spoken = true;
            if !round.spoken.contains(&false) {
                self.send_digests();
            }
        }
    }

    fn send_digests(&mut self) {
        let Round { number, entries, .. } = std::mem::take(&mut self.round);
        for index in self.indices() {
            if !self.links[index.index()].has_output_room() {
                continue; // the next round tells
            }
            let slots = self.slots.live_on(index);
            let mut sums: BTreeMap<&str, RoomDigest> = BTreeMap::new();
            let mine = entries.iter().filter(|(slot, _)| slots.contains(Slot::of(Pin(*slot << 8))));
            for (_, part) in mine {
                let sum = sums.entry(&part.room).or_default();
                sum.members += part.members;
                sum.hash ^= part.hash;
                sum.version = sum.version.max(part.version);
            }
            let with_name = |(room, sum): (&str, RoomDigest)| RoomDigest { room: room.to_owned(), ..sum };
            let mut rooms: Vec<RoomDigest> = sums.into_iter().map(with_name).collect();
            self.tally[Count::Digests] += 1;
            loop {
                let rest = rooms.split_off(rooms.len().min(DIGEST_ROOMS_MAX));
                let digest = Digest { round: number, rooms, more: !rest.is_empty() };
                self.link(index).send(Kind::Digest, 0, &digest);
                if rest.is_empty() {
                    break;
                }
                rooms = rest;
            }
        }
        self.round.number = number;
    }
}

/// A room has a name of at most 128 bytes.
fn checked(room: String, kind: Kind) -> Result<String, LinkError> {
    if (1..=ROOM_BYTES_MAX).contains(&room.len()) { Ok(room) } else { Err(LinkError::Body(kind)) }
}

/// Longest name of a room, in bytes.
const ROOM_BYTES_MAX: usize = 128;
