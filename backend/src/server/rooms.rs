//! Members of rooms. This table is the authority; gateways mirror it. Pure.
//!
//! Every 30 s a gateway sends, on each link, a digest of the rooms of that link's sessions. A room that differs in two
//! digests in a row, without a change in between, is sent in full. Example: the gateway lost bob's binding to `hall`;
//! after its second digest it gets BIND {`hall`, all handles, `reset`}.

use super::event::{GatewayId, LinkId, SessionId};
use moorline_proto::message::backend::{Digest, RoomDigest};
use moorline_proto::random::mix;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Rooms of one session; gateways have the same limit.
pub(super) const ROOMS_PER_SESSION_MAX: usize = 256;
/// Longest name of a room, in bytes.
const ROOM_BYTES_MAX: usize = 128;
/// Rooms gathered of one digest; a longer digest is compared piece by piece.
const DIGEST_ROOMS_MAX: usize = 1 << 20;

#[derive(Debug, Default)]
struct Room {
    members: BTreeSet<SessionId>,
    /// Number of members on each gateway.
    gateways: BTreeMap<GatewayId, u32>,
    version: u64,
}

/// Difference that one digest showed, with the version of the room at that time.
#[derive(Debug, PartialEq, Eq)]
struct Suspect {
    version: u64,
}

/// Outcome of a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bound {
    /// The session is in the room since now; the version is for the gateway.
    Now(u64),
    /// The session was in the room.
    Already,
    /// The session is in as many rooms as it may be.
    SessionFull,
    /// There are too many rooms, or the name is too long.
    Refused,
}

/// All rooms.
#[derive(Debug)]
pub(super) struct Rooms {
    by_name: HashMap<Arc<str>, Room>,
    of_session: HashMap<SessionId, BTreeSet<Arc<str>>>,
    suspects: BTreeMap<(LinkId, Arc<str>), Suspect>,
    /// Pieces of digests whose last piece has not come yet.
    digests: BTreeMap<LinkId, Vec<RoomDigest>>,
    /// Rooms that were announced in full again because a gateway held other members.
    pub(super) repairs: u64,
    /// Frames to rooms that were dropped: a gateway had no link, or its link's output was full.
    pub(super) pushes_dropped: u64,
    /// Sessions with bindings that no link could carry; the next link of the session gets them.
    unsent: BTreeSet<SessionId>,
    last_version: u64,
    capacity: usize,
}

impl Rooms {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            by_name: HashMap::new(),
            of_session: HashMap::new(),
            suspects: BTreeMap::new(),
            digests: BTreeMap::new(),
            repairs: 0,
            pushes_dropped: 0,
            unsent: BTreeSet::new(),
            last_version: 0,
            capacity,
        }
    }

    /// Number of rooms.
    pub(super) fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Puts a session into a room. Returns the version for the gateway; `None`: a limit is reached. A second time changes
    /// nothing.
    pub(super) fn try_bind(&mut self, room: &str, session: SessionId, gateway: GatewayId) -> Option<u64> {
        match self.bind(room, session, gateway) {
            Bound::Already => self.by_name.get(room).map(|entry| entry.version),
            Bound::Now(version) => Some(version),
            Bound::SessionFull | Bound::Refused => None,
        }
    }

    /// Puts a session into a room.
    pub(super) fn bind(&mut self, room: &str, session: SessionId, gateway: GatewayId) -> Bound {
        if !(1..=ROOM_BYTES_MAX).contains(&room.len()) {
            return Bound::Refused;
        }
        let known = self.by_name.get_key_value(room).map(|(name, entry)| (Arc::clone(name), entry));
        if known.as_ref().is_some_and(|(_, entry)| entry.members.contains(&session)) {
            return Bound::Already;
        }
        if self.of_session.get(&session).map_or(0, BTreeSet::len) >= ROOMS_PER_SESSION_MAX {
            return Bound::SessionFull;
        }
        if known.is_none() && self.by_name.len() >= self.capacity {
            return Bound::Refused;
        }
        let name = known.map_or_else(|| room.into(), |(name, _)| name);
        let entry = self.by_name.entry(Arc::clone(&name)).or_default();
        entry.members.insert(session);
        *entry.gateways.entry(gateway).or_default() += 1;
        self.of_session.entry(session).or_default().insert(name);
        self.last_version += 1; // the versions of a room rise even if it was empty for a time
        entry.version = self.last_version;
        Bound::Now(entry.version)
    }

    /// Removes a session from a room. Returns the version for the gateway; `None`: the session was not in the room.
    pub(super) fn unbind(&mut self, room: &str, session: SessionId, gateway: GatewayId) -> Option<u64> {
        let rooms = self.of_session.get_mut(&session)?;
        if !rooms.remove(room) {
            return None;
        }
        if rooms.is_empty() {
            self.of_session.remove(&session);
        }
        self.last_version += 1;
        self.take_out(room, session, gateway);
        Some(self.last_version)
    }

    fn take_out(&mut self, room: &str, session: SessionId, gateway: GatewayId) {
        let Some(entry) = self.by_name.get_mut(room) else { return };
        entry.version = self.last_version;
        if entry.members.remove(&session)
            && let Some(count) = entry.gateways.get_mut(&gateway)
        {
            *count -= 1;
            if *count == 0 {
                entry.gateways.remove(&gateway);
            }
        }
        if entry.members.is_empty() {
            self.by_name.remove(room);
        }
    }

    /// Removes a session that ended from all rooms. Its gateway has done so already.
    pub(super) fn forget(&mut self, session: SessionId, gateway: GatewayId) {
        self.unsent.remove(&session);
        for room in self.of_session.remove(&session).into_iter().flatten() {
            self.last_version += 1; // a digest may be from before this change
            self.take_out(&room, session, gateway);
        }
    }

    pub(super) fn is_bound(&self, room: &str, session: SessionId) -> bool {
        self.of_session.get(&session).is_some_and(|rooms| rooms.contains(room))
    }

    /// Returns the rooms of a session, each with its version.
    pub(super) fn of(&self, session: SessionId) -> Vec<(Arc<str>, u64)> {
        let rooms = self.of_session.get(&session).into_iter().flatten();
        rooms.map(|room| (Arc::clone(room), self.by_name.get(room).map_or(0, |it| it.version))).collect()
    }

    /// Notes that a binding of the session changed while no link spoke for it.
    pub(super) fn mark_unsent(&mut self, session: SessionId) {
        self.unsent.insert(session);
    }

    /// Returns whether there is a noted change, and forgets it.
    pub(super) fn take_unsent(&mut self, session: SessionId) -> bool {
        self.unsent.remove(&session)
    }

    /// Returns the gateways with a member of the room.
    pub(super) fn gateways(&self, room: &str) -> Vec<GatewayId> {
        self.by_name.get(room).map_or_else(Vec::new, |room| room.gateways.keys().copied().collect())
    }

    /// Returns whether a room has a member on a gateway.
    pub(super) fn is_on(&self, room: &str, gateway: GatewayId) -> bool {
        self.by_name.get(room).is_some_and(|room| room.gateways.contains_key(&gateway))
    }

    /// Returns the members of a room, in order.
    pub(super) fn members(&self, room: &str) -> impl Iterator<Item = SessionId> + '_ {
        self.by_name.get(room).into_iter().flat_map(|room| room.members.iter().copied())
    }

    /// Adds a piece of a link's digest. Returns the whole digest after its last piece.
    pub(super) fn gather(&mut self, link: LinkId, digest: Digest) -> Option<Vec<RoomDigest>> {
        let pieces = self.digests.entry(link).or_default();
        pieces.extend(digest.rooms);
        if digest.more && pieces.len() < DIGEST_ROOMS_MAX {
            return None;
        }
        self.digests.remove(&link)
    }

    /// Forgets the digests of a link that ended.
    pub(super) fn on_link_down(&mut self, link: LinkId) {
        self.digests.remove(&link);
        self.suspects.retain(|(of, _), _| *of != link);
    }

    /// Panics if rooms and sessions disagree, or a session that has ended is in a room.
    pub(super) fn check(&self, gateway_of: impl Fn(SessionId) -> Option<GatewayId>) {
        for (name, room) in &self.by_name {
            assert!(!room.members.is_empty(), "room {name} is empty");
            let mut gateways: BTreeMap<GatewayId, u32> = BTreeMap::new();
            for session in &room.members {
                assert!(self.is_bound(name, *session), "{session:?} is half in {name}");
                *gateways.entry(gateway_of(*session).expect("a member is logged in")).or_default() += 1;
            }
            assert_eq!(gateways, room.gateways, "gateways of {name}");
        }
        let bindings: usize = self.of_session.values().map(BTreeSet::len).sum();
        assert_eq!(bindings, self.by_name.values().map(|room| room.members.len()).sum::<usize>());
    }

    /// Compares the digest of a link with the rooms of its sessions. Returns the rooms to send in full, with version and
    /// all handles. `handle_of` gives the handle of a session if this link speaks for it.
    pub(super) fn compare(
        &mut self,
        link: LinkId,
        digest: &[RoomDigest],
        handle_of: impl Fn(SessionId) -> Option<u64>,
    ) -> Vec<(Arc<str>, u64, Vec<u64>)> {
        let mut here: BTreeMap<Arc<str>, Vec<u64>> = BTreeMap::new();
        for (session, rooms) in &self.of_session {
            if let Some(handle) = handle_of(*session) {
                rooms.iter().for_each(|room| here.entry(Arc::clone(room)).or_default().push(handle));
            }
        }
        let mut there: BTreeMap<Arc<str>, (u32, u64)> =
            digest.iter().map(|it| (it.room.as_str().into(), (it.members, it.hash))).collect();
        let names: BTreeSet<Arc<str>> = here.keys().chain(there.keys()).cloned().collect();
        // A room that is gone at both ends does not differ.
        self.suspects.retain(|(of, name), _| *of != link || names.contains(name));
        let mut repairs = Vec::new();
        for name in names {
            let handles = here.remove(&name).unwrap_or_default();
            let members = u32::try_from(handles.len()).unwrap_or(u32::MAX);
            let hash = handles.iter().fold(0, |hash, handle| hash ^ mix(*handle));
            let suspect = (link, Arc::clone(&name));
            if there.remove(&name).unwrap_or_default() == (members, hash) {
                self.suspects.remove(&suspect);
                continue;
            }
            let version = self.by_name.get(&name).map_or(0, |room| room.version);
            if self.suspects.remove(&suspect) == Some(Suspect { version }) {
                self.repairs += 1;
                repairs.push((name, version.max(self.last_version), handles));
            } else {
                self.suspects.insert(suspect, Suspect { version });
            }
        }
        repairs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: LinkId = LinkId::new(1, 1);
    const GATEWAY: GatewayId = GatewayId::new(0);

    fn session(slot: u32) -> SessionId {
        SessionId::new(slot, 1)
    }

    fn digest(handles: &[u64]) -> Vec<RoomDigest> {
        let hash = handles.iter().fold(0, |hash, handle| hash ^ mix(*handle));
        let members = u32::try_from(handles.len()).expect("few");
        vec![RoomDigest { room: "hall".into(), members, hash, version: 1 }]
    }

    #[allow(clippy::unnecessary_wraps)] // the type that `compare` takes
    fn handle_of(session: SessionId) -> Option<u64> {
        Some(100 + session.slot() as u64)
    }

    #[test]
    fn what_differs_twice_without_a_change_is_told_anew() {
        let mut rooms = Rooms::new(10);
        (1..=2).for_each(|slot| _ = rooms.try_bind("hall", session(slot), GATEWAY).expect("room"));
        assert!(rooms.compare(LINK, &digest(&[101, 102]), handle_of).is_empty());
        assert!(rooms.compare(LINK, &digest(&[101]), handle_of).is_empty(), "it may be on its way");
        rooms.try_bind("hall", session(3), GATEWAY).expect("room");
        assert!(rooms.compare(LINK, &digest(&[101]), handle_of).is_empty(), "it changed meanwhile");
        let repairs = rooms.compare(LINK, &digest(&[101]), handle_of);
        let [(room, 3, handles)] = &repairs[..] else { panic!("{repairs:?}") };
        let mut handles = handles.clone();
        handles.sort_unstable();
        assert_eq!((&**room, handles), ("hall", vec![101, 102, 103]));
        assert!(rooms.compare(LINK, &digest(&[101, 102, 103]), handle_of).is_empty());
    }

    #[test]
    fn a_room_that_nobody_here_knows_is_emptied() {
        let mut rooms = Rooms::new(10);
        assert!(rooms.compare(LINK, &digest(&[7]), handle_of).is_empty());
        let repairs = rooms.compare(LINK, &digest(&[7]), handle_of);
        assert!(matches!(&repairs[..], [(_, _, handles)] if handles.is_empty()), "{repairs:?}");
        rooms.on_link_down(LINK);
        assert!(rooms.compare(LINK, &digest(&[7]), handle_of).is_empty(), "another link begins anew");
    }

    #[test]
    fn two_differences_with_a_round_of_peace_between_are_no_reason() {
        let mut rooms = Rooms::new(10);
        for round in 0..5 {
            assert!(rooms.compare(LINK, &digest(&[7]), handle_of).is_empty(), "round {round}");
            assert!(rooms.compare(LINK, &[], handle_of).is_empty());
            assert!(rooms.suspects.is_empty(), "nothing is kept of a room that is gone at both ends");
        }
    }

    #[test]
    fn a_session_that_ends_is_a_change_of_its_rooms() {
        let mut rooms = Rooms::new(10);
        (1..=3).for_each(|slot| _ = rooms.try_bind("hall", session(slot), GATEWAY).expect("room"));
        assert!(rooms.compare(LINK, &digest(&[101]), handle_of).is_empty());
        rooms.forget(session(3), GATEWAY);
        assert!(rooms.compare(LINK, &digest(&[101]), handle_of).is_empty(), "it changed meanwhile");
        assert_eq!(rooms.compare(LINK, &digest(&[101]), handle_of).len(), 1);
    }

    #[test]
    fn entering_again_changes_nothing_even_at_the_limit() {
        let mut rooms = Rooms::new(1000);
        let all: Vec<_> = (0..ROOMS_PER_SESSION_MAX)
            .map(|room| rooms.try_bind(&room.to_string(), session(1), GATEWAY).expect("room"))
            .collect();
        assert!(rooms.try_bind("another", session(1), GATEWAY).is_none());
        assert_eq!(rooms.try_bind("0", session(1), GATEWAY), Some(all[0]), "with the version it had");
        assert_eq!(rooms.by_name["0"].gateways[&GATEWAY], 1);
    }

    #[test]
    fn sessions_leave_when_they_end_and_limits_hold() {
        let mut rooms = Rooms::new(2);
        assert!(rooms.try_bind("a", session(1), GATEWAY).is_some());
        assert!(rooms.try_bind("b", session(1), GATEWAY).is_some());
        assert!(rooms.try_bind("c", session(1), GATEWAY).is_none(), "two rooms at most");
        assert!(rooms.try_bind("", session(1), GATEWAY).is_none());
        assert_eq!((rooms.gateways("a"), rooms.is_bound("a", session(1))), (vec![GATEWAY], true));
        assert!(rooms.unbind("a", session(1), GATEWAY).is_some());
        assert!(rooms.unbind("a", session(1), GATEWAY).is_none());
        rooms.forget(session(1), GATEWAY);
        assert!(rooms.gateways("b").is_empty() && rooms.by_name.is_empty() && rooms.of_session.is_empty());
    }
}
