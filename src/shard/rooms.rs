//! Rooms: sets of sessions, to which the backend sends one payload for all [P-2.5].
//!
//! The backend decides; this is its mirror for one shard. A digest of every room goes to the backend each half
//! minute, by worker and slot, so that drift is found and repaired.
//!
//! Example: the backend binds alice's and bob's sessions to the room `live`. A PUSH to `live` is delivered to
//! both. When bob's session ends he leaves the room, and the next digest counts one member.

use super::Outputs;
use super::session::Route;
use crate::messages::Uplink;
use crate::snapshot::{Item, RoomRecord, Section};
use moorline_proto::ids::ConnKey;
use moorline_proto::message::backend::RoomDigest;
use moorline_proto::random::mix;
use moorline_proto::time::{Duration, Instant, nanos_of};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Rooms of one session at most.
const ROOMS_PER_SESSION_MAX: usize = 256;
/// Rooms of one shard at most.
const ROOMS_MAX: usize = 1 << 20;
/// Time between two digests.
const DIGEST_INTERVAL: Duration = Duration::from_secs(30);
/// Rooms in one piece of a digest at most.
const DIGEST_ROOMS_MAX: usize = 1024;

#[derive(Debug, Default)]
struct Room {
    members: BTreeMap<ConnKey, Route>,
    version: u64,
}

/// Rooms with their members, and sessions with their rooms.
#[derive(Debug, Default)]
pub(super) struct Rooms {
    by_name: HashMap<Arc<str>, Room>,
    /// Rooms of each session that is in one.
    of_session: HashMap<ConnKey, BTreeSet<Arc<str>>>,
    last_round: u32,
}

impl Rooms {
    pub(super) fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Members of a room, in the order of their keys.
    pub(super) fn members(&self, room: &str) -> Vec<ConnKey> {
        self.by_name.get(room).map_or_else(Vec::new, |room| room.members.keys().copied().collect())
    }

    /// Puts a session into a room. False: the session is in too many rooms, or there are too many.
    pub(super) fn try_bind(&mut self, room: &Arc<str>, version: u64, key: ConnKey, route: Route) -> bool {
        let of_session = self.of_session.get(&key).map_or(0, BTreeSet::len);
        let is_known = self.by_name.contains_key(room);
        if of_session >= ROOMS_PER_SESSION_MAX || (!is_known && self.by_name.len() >= ROOMS_MAX) {
            return false;
        }
        let entry = self.by_name.entry(Arc::clone(room)).or_default();
        entry.version = entry.version.max(version);
        entry.members.insert(key, route);
        self.of_session.entry(key).or_default().insert(Arc::clone(room));
        true
    }

    pub(super) fn unbind(&mut self, room: &str, version: u64, key: ConnKey) {
        if let Some(entry) = self.by_name.get_mut(room) {
            entry.version = entry.version.max(version);
            entry.members.remove(&key);
            if entry.members.is_empty() {
                self.by_name.remove(room);
            }
        }
        if let Some(rooms) = self.of_session.get_mut(&key) {
            rooms.remove(room);
            if rooms.is_empty() {
                self.of_session.remove(&key);
            }
        }
    }

    /// Removes a session that ended from all its rooms.
    pub(super) fn forget(&mut self, key: ConnKey) {
        for room in self.of_session.remove(&key).into_iter().flatten() {
            if let Some(entry) = self.by_name.get_mut(&room) {
                entry.members.remove(&key);
                if entry.members.is_empty() {
                    self.by_name.remove(&room);
                }
            }
        }
        if self.by_name.is_empty() && self.by_name.capacity() > 0 {
            (self.by_name, self.of_session) = (HashMap::new(), HashMap::new());
        }
    }

    /// Removes the members of a worker's slots that are not among `keys`.
    pub(super) fn retain(&mut self, room: &str, version: u64, keys: &[ConnKey], (worker, slots): (u16, u64)) {
        let is_meant =
            |route: &Route| u16::from(route.worker) == worker && slots >> route.pin.slot() & 1 == 1;
        let members = self.by_name.get(room).map(|room| &room.members);
        let gone = members.into_iter().flatten();
        let gone = gone.filter(|(key, route)| is_meant(route) && !keys.contains(key));
        for key in gone.map(|(key, _)| *key).collect::<Vec<_>>() {
            self.unbind(room, version, key);
        }
    }

    /// Sends each worker the digest of its rooms once in each half minute, the same one in all shards.
    pub(super) fn send_digest(&mut self, now: Instant, outputs: &mut Outputs) {
        let round = now.as_nanos() / nanos_of(DIGEST_INTERVAL);
        let round = u32::try_from(round & u64::from(u32::MAX)).unwrap_or(0);
        if std::mem::replace(&mut self.last_round, round) == round {
            return;
        }
        let parts = self.digest(outputs.uplinks.len());
        for (out, mut rooms) in outputs.uplinks.iter_mut().zip(parts) {
            while rooms.len() > DIGEST_ROOMS_MAX {
                let rest = rooms.split_off(DIGEST_ROOMS_MAX);
                out.push(Uplink::Digest { round, rooms, is_last: false });
                rooms = rest;
            }
            out.push(Uplink::Digest { round, rooms, is_last: true });
        }
    }

    /// The digests go on after this round.
    pub(super) const fn thaw(&mut self, last_round: u32) {
        self.last_round = last_round;
    }

    /// Digests of all rooms for each worker, by the slots of its users.
    fn digest(&self, workers: usize) -> Vec<Vec<(u32, RoomDigest)>> {
        let mut all: Vec<_> = (0..workers).map(|_| Vec::new()).collect();
        for (name, room) in &self.by_name {
            let mut parts: BTreeMap<(usize, u32), (u32, u64)> = BTreeMap::new();
            for (key, route) in &room.members {
                let part = parts.entry((route.index(), route.pin.slot())).or_default();
                part.0 += 1;
                part.1 ^= mix(key.as_u64());
            }
            for ((worker, slot), (members, hash)) in parts {
                let digest = RoomDigest { room: name.to_string(), members, hash, version: room.version };
                all[worker].push((slot, digest));
            }
        }
        all
    }

    /// Writes the rooms. Returns the round of the last digest.
    pub(super) fn freeze(&self, out: &mut Section) -> u32 {
        let Self { by_name, of_session: _, last_round } = self;
        for (name, Room { members, version }) in by_name {
            let members = members.keys().map(|key| key.as_u64()).collect();
            out.put(Item::Room(RoomRecord { name: name.to_string(), version: *version, members }));
        }
        *last_round
    }

    /// Panics unless both directions agree.
    pub(super) fn check(&self) {
        let pairs: usize = self.by_name.values().map(|room| room.members.len()).sum();
        assert_eq!(pairs, self.of_session.values().map(BTreeSet::len).sum::<usize>());
        assert!(self.by_name.values().all(|room| !room.members.is_empty()));
        for (key, rooms) in &self.of_session {
            assert!(rooms.iter().all(|room| self.by_name[room].members.contains_key(key)), "{key:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moorline_proto::ids::{Pin, ShardId};
    use proptest::prelude::*;

    fn key(slot: u32) -> ConnKey {
        ConnKey::new(ShardId(0), slot, 1)
    }

    proptest! {
        /// Against a set of pairs: bind, unbind, sessions that end.
        #[test]
        fn behaves_like_a_set_of_pairs(steps in proptest::collection::vec((0u8..4, 0u32..8, 0u32..6), 0..200)) {
            let (mut rooms, mut model) = (Rooms::default(), BTreeSet::new());
            for (step, slot, name) in steps {
                let room: Arc<str> = format!("r{name}").into();
                match step {
                    0 | 1 => {
                        prop_assert!(rooms.try_bind(&room, 1, key(slot), Route::of(Pin(slot << 8), 2)));
                        model.insert((name, slot));
                    }
                    2 => {
                        rooms.unbind(&room, 2, key(slot));
                        model.remove(&(name, slot));
                    }
                    _ => {
                        rooms.forget(key(slot));
                        model.retain(|(_, other)| *other != slot);
                    }
                }
                rooms.check();
                let expected: Vec<_> =
                    model.iter().filter(|(other, _)| *other == name).map(|(_, slot)| key(*slot)).collect();
                prop_assert_eq!(rooms.members(&room), expected);
            }
            let parts = rooms.digest(2).into_iter().flatten();
            let members: u32 = parts.map(|(_, digest)| digest.members).sum();
            prop_assert_eq!(members as usize, model.len());
        }
    }

    #[test]
    fn one_session_cannot_be_in_any_number_of_rooms() {
        let mut rooms = Rooms::default();
        for number in 0..ROOMS_PER_SESSION_MAX {
            assert!(rooms.try_bind(&format!("r{number}").into(), 1, key(1), Route::of(Pin(0), 1)));
        }
        assert!(!rooms.try_bind(&"one more".into(), 1, key(1), Route::of(Pin(0), 1)));
        rooms.forget(key(1));
        assert_eq!((rooms.len(), rooms.by_name.capacity()), (0, 0));
    }
}
