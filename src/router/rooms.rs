//! Rooms between shards and backends: bindings down, digests and answers up. Pure.
//!
//! The backend binds and unbinds; each shard mirrors its own sessions. The digests of one round are gathered from
//! all shards; every live link is sent the digest of the users that it speaks for.

use super::counters::Count;
use super::{LinkIndex, Sides, Slots, Split};
use crate::messages::{Downlink, Push, PushRef, Target};
use crate::shard_map::ShardMap;
use crate::snapshot::{PushRefRecord, QueryRecord};
use moorline_proto::ids::{Pin, ShardId};
use moorline_proto::link::{Kind, LinkError, LinkFrame};
use moorline_proto::message::backend::{Bind, Digest, Query, QueryResult, RoomDigest, Unbind};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Rooms in one DIGEST.
const DIGEST_ROOMS_MAX: usize = 1024;
/// Entries of one round that are gathered; above this the round is dropped, and the next round repairs.
const ENTRIES_MAX: usize = 4 << 20;
/// Questions of backends that wait for shards.
const QUERIES_MAX: usize = 1024;
/// Longest name of a room, in bytes.
const ROOM_BYTES_MAX: usize = 128;

/// Entries that were gathered of one round.
#[derive(Debug, Default)]
struct Round {
    number: u32,
    entries: Vec<(u32, RoomDigest)>,
    /// By shard: whether it has sent all of its entries.
    spoken: Vec<bool>,
}

/// Digests on their way to the backends, and questions on their way to the shards.
#[derive(Debug)]
pub(super) struct Rooms {
    shard_map: ShardMap,
    round: Round,
    /// By link, generation and correlation: number of shards that have not answered.
    queries: BTreeMap<(u16, u32, u64), usize>,
}

fn name(ticket: &PushRef) -> (u16, u32, u64) {
    (ticket.link, ticket.link_generation, ticket.correlation)
}

impl Rooms {
    pub(super) fn new(shard_map: ShardMap) -> Self {
        Self { shard_map, round: Round::default(), queries: BTreeMap::new() }
    }

    /// Writes the questions down; the next digest repairs what an unfinished round would have.
    pub(super) fn freeze(&self, worker: u16) -> impl Iterator<Item = QueryRecord> {
        self.queries.iter().map(move |((link, generation, correlation), left)| {
            let (worker, link) = (worker.into(), u32::from(*link));
            let ticket = PushRefRecord { worker, link, generation: *generation, correlation: *correlation };
            QueryRecord { ticket: Some(ticket), left: u32::try_from(*left).unwrap_or(0) }
        })
    }

    /// Reads a question that [`Self::freeze`] gave.
    pub(super) fn thaw(&mut self, ticket: PushRefRecord, left: u32) {
        self.queries.insert(name(&ticket.into()), left as usize);
    }

    /// Pushes to all sessions of this gateway that are bound to a room.
    pub(super) fn push(sides: &mut Sides, push: &Push, room: &str) {
        sides.counters[Count::RoomPushes] += 1;
        let room: Arc<str> = room.into();
        sides.shards.push_to_all(|| {
            Downlink::Push(Push { targets: vec![Target::Room(Arc::clone(&room))], ..push.clone() })
        });
    }

    pub(super) fn on_bind(
        sides: &mut Sides,
        slots: &Slots,
        index: LinkIndex,
        frame: &LinkFrame,
    ) -> Result<(), LinkError> {
        let Bind { handles, room, version, reset } = frame.message()?;
        let reset = reset.then(|| (sides.number, slots.live_on(index).folded()));
        let room: Arc<str> = checked(room, Kind::Bind)?.into();
        let parts = sides.shards.by_shard(&handles);
        for (shard, keys) in sides.shards.ids().zip(parts) {
            if !keys.is_empty() || reset.is_some() {
                sides.shards.push(shard, Downlink::Bind { room: Arc::clone(&room), version, keys, reset });
            }
        }
        Ok(())
    }

    pub(super) fn on_unbind(sides: &mut Sides, frame: &LinkFrame) -> Result<(), LinkError> {
        let Unbind { handles, room, version } = frame.message()?;
        let room: Arc<str> = checked(room, Kind::Unbind)?.into();
        let parts = sides.shards.by_shard(&handles);
        for (shard, keys) in sides.shards.ids().zip(parts) {
            if !keys.is_empty() {
                sides.shards.push(shard, Downlink::Unbind { room: Arc::clone(&room), version, keys });
            }
        }
        Ok(())
    }

    pub(super) fn on_query(
        &mut self,
        sides: &mut Sides,
        index: LinkIndex,
        frame: &LinkFrame,
    ) -> Result<(), LinkError> {
        let Query { uid, room } = frame.message()?;
        if self.queries.len() >= QUERIES_MAX {
            sides.links[index].send(Kind::QueryResult, frame.correlation, &QueryResult::default());
            return Ok(());
        }
        let ticket = sides.ticket(index, frame.correlation);
        let asked: Vec<ShardId> = if room.is_empty() {
            vec![self.shard_map.first(self.shard_map.pin(&uid))]
        } else {
            sides.shards.ids().collect()
        };
        self.queries.insert(name(&ticket), asked.len());
        for shard in asked {
            let (uid, room) = (uid.as_str().into(), room.as_str().into());
            sides.shards.push(shard, Downlink::Query { ticket, uid, room });
        }
        Ok(())
    }

    /// Passes a shard's part of an answer on; `more` is set until the last shard has answered.
    pub(super) fn handle_held(&mut self, sides: &mut Sides, ticket: PushRef, mut held: QueryResult) {
        let Some(left) = self.queries.get_mut(&name(&ticket)) else { return };
        *left -= usize::from(!held.more);
        held.more = *left > 0;
        if !held.more {
            self.queries.remove(&name(&ticket));
        }
        if let Some(link) = sides.links.of(&ticket) {
            link.send(Kind::QueryResult, ticket.correlation, &held);
        }
    }

    /// Forgets the questions of a link that is gone.
    pub(super) fn on_link_closed(&mut self, index: LinkIndex) {
        self.queries.retain(|(link, ..), _| *link != index.0);
    }

    /// Gathers a shard's digests of one round; sends them when all shards have spoken.
    pub(super) fn handle_digest(
        &mut self,
        sides: &mut Sides,
        slots: &Slots,
        from: ShardId,
        digest: (u32, Vec<(u32, RoomDigest)>, bool),
    ) {
        let (number, rooms, is_last) = digest;
        if self.round.number != number {
            let spoken = vec![false; sides.shards.shards()];
            self.round = Round { number, entries: Vec::new(), spoken };
        }
        let round = &mut self.round;
        if round.entries.len() + rooms.len() > ENTRIES_MAX {
            sides.counters[Count::DigestsDropped] += 1;
            round.entries = Vec::new();
            round.spoken = Vec::new(); // never complete
            return;
        }
        round.entries.extend(rooms);
        if is_last && let Some(spoken) = round.spoken.get_mut(from.index()) {
            *spoken = true;
            if !round.spoken.contains(&false) {
                self.send_digests(sides, slots);
            }
        }
    }

    fn send_digests(&mut self, sides: &mut Sides, slots: &Slots) {
        let Round { number, entries, .. } = std::mem::take(&mut self.round);
        for index in sides.links.indices() {
            if !sides.links[index].has_output_room() {
                continue; // the next round tells
            }
            let live = slots.live_on(index);
            let mut sums: BTreeMap<&str, RoomDigest> = BTreeMap::new();
            let mine =
                entries.iter().filter(|(slot, _)| live.contains(Split::Plain.slot_of(Pin(*slot << 8))));
            for (_, part) in mine {
                let sum = sums.entry(&part.room).or_default();
                sum.members += part.members;
                sum.hash ^= part.hash;
                sum.version = sum.version.max(part.version);
            }
            let with_name = |(room, sum): (&str, RoomDigest)| RoomDigest { room: room.to_owned(), ..sum };
            let mut rooms: Vec<RoomDigest> = sums.into_iter().map(with_name).collect();
            sides.counters[Count::Digests] += 1;
            loop {
                let rest = rooms.split_off(rooms.len().min(DIGEST_ROOMS_MAX));
                let digest = Digest { round: number, rooms, more: !rest.is_empty() };
                sides.links[index].send(Kind::Digest, 0, &digest);
                if rest.is_empty() {
                    break;
                }
                rooms = rest;
            }
        }
        self.round.number = number;
    }
}

/// Checks the length of a room's name: 1 to 128 bytes.
fn checked(room: String, kind: Kind) -> Result<String, LinkError> {
    if (1..=ROOM_BYTES_MAX).contains(&room.len()) { Ok(room) } else { Err(LinkError::Body(kind)) }
}
