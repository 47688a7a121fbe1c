//! Rooms of large groups that talk: their messages go once to each gateway, instead of by a list of sessions [B-6.9].
//!
//! The first message of a group goes to each online member by name. If a second one follows within `im.room_idle`, its
//! receivers become the members of a room, and what comes after goes to the room. A login costs nothing here: it is
//! noted in one list for all rooms, and a room looks at what is new there before its next message.
//!
//! A room holds only sessions that are to have each message at once. Who is behind is told of the messages when it has caught
//! up, as without a room. When somebody joins or leaves, the next message goes by name, and the room is filled anew.
//!
//! Every 32nd message has the outcome of each member. If [`UNANSWERED_MAX`] messages have gone without one, the gateways are
//! behind, and messages go by name, which holds the group back.

use super::store::ConversationId;
use crate::server::{RoomNumber, SessionId};
use moorline_proto::message::backend::Rank;
use moorline_proto::time::{Duration, Instant};
use std::collections::{HashMap, VecDeque};

/// Groups of which something is kept here.
const GROUPS_MAX: usize = 4_096;
/// Sessions that are noted; a room that has not looked for longer is filled anew.
const NOTED_MAX: usize = 65_536;
/// Noted sessions that a room looks at; of more it is filled anew.
const LOOKS_MAX: u64 = 2_048;
/// Messages that may have gone to a room since the last one that some member has acknowledged.
const UNANSWERED_MAX: u64 = 128;
/// Messages that clients to which the group is new begin with, when a room is lost.
const MISSED_MAX: u64 = 1_024;
/// Time without a room after one was lost.
const LOST_PAUSE: Duration = Duration::from_secs(5);
/// Time between two looks for rooms that nobody needs.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Way of a group's next messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// The list of the sessions.
    ByName,
    /// The list of the sessions, which become the members of the room.
    Filling,
    /// The room.
    Room(RoomNumber),
}

#[derive(Debug)]
struct Group {
    /// `None`: the group has no room.
    room: Option<Room>,
    /// Time of its last message.
    used: Instant,
    /// No room before this time.
    not_before: Instant,
}

#[derive(Debug)]
struct Room {
    number: RoomNumber,
    /// Version of the group's members.
    version: u32,
    /// Noted sessions up to this one were looked at.
    seen: u64,
    /// The last seq before the room, and the last one that went to it.
    before: u64,
    sent: u64,
    /// The last seq that some member has acknowledged.
    acked: u64,
    rank: Rank,
}

impl Room {
    /// The first message that a member may not have. Clients pull from the last message that they have, and those that know
    /// nothing of the group begin with this one.
    fn first_missed(&self) -> u64 {
        (self.before + 1).max(self.sent.saturating_sub(MISSED_MAX))
    }
}

/// All groups that talk.
#[derive(Debug)]
pub(super) struct GroupRooms {
    idle: Duration,
    now: Instant,
    next_look: Instant,
    groups: HashMap<ConversationId, Group>,
    by_number: HashMap<RoomNumber, ConversationId>,
    /// Sessions that may have to enter or leave rooms, the newest last.
    noted: VecDeque<SessionId>,
    /// Number of sessions that were ever noted.
    end: u64,
    last_number: u64,
}

impl GroupRooms {
    pub(super) fn new(idle: Duration) -> Self {
        Self {
            idle,
            now: Instant::ZERO,
            next_look: Instant::ZERO,
            groups: HashMap::new(),
            by_number: HashMap::new(),
            noted: VecDeque::new(),
            end: 0,
            last_number: 0,
        }
    }

    /// Room of the group; `None`: it has none.
    pub(super) fn of(&self, group: ConversationId) -> Option<RoomNumber> {
        self.groups.get(&group)?.room.as_ref().map(|room| room.number)
    }

    /// Notes a session whose place in rooms may have changed.
    pub(super) fn note(&mut self, session: SessionId) {
        if self.groups.is_empty() {
            return;
        }
        if self.noted.len() >= NOTED_MAX {
            self.noted.pop_front();
        }
        self.noted.push_back(session);
        self.end += 1;
    }

    /// Decides how a group's messages up to `seq` go. `version`: of its members; `None`: the store tells none.
    pub(super) fn way(&mut self, group: ConversationId, version: Option<u32>, seq: u64) -> Way {
        let (now, idle) = (self.now, self.idle);
        let Some(version) = version.filter(|_| idle > Duration::ZERO) else { return Way::ByName };
        let begin = self.end - self.noted.len() as u64;
        if self.groups.len() >= GROUPS_MAX && !self.groups.contains_key(&group) {
            return Way::ByName;
        }
        let known =
            self.groups.entry(group).or_insert(Group { room: None, used: Instant::ZERO, not_before: now });
        let is_first = known.used == Instant::ZERO || now >= known.used + idle;
        known.used = now;
        match &known.room {
            None if is_first || now < known.not_before => Way::ByName,
            None => Way::Filling,
            Some(room) if room.version != version => Way::Filling,
            Some(room) if room.seen < begin || self.end - room.seen > LOOKS_MAX => Way::Filling,
            Some(room) if seq > room.acked + UNANSWERED_MAX => Way::ByName,
            Some(room) => Way::Room(room.number),
        }
    }

    /// Begin of a filling: sessions that are noted later are looked at after it.
    pub(super) const fn end(&self) -> u64 {
        self.end
    }

    /// Takes a group's room as filled, with what held when the filling began. Returns its number.
    pub(super) fn fill(
        &mut self,
        group: ConversationId,
        (version, seen): (u32, u64),
        (seq, rank): (u64, Rank),
    ) -> Option<RoomNumber> {
        let known = self.groups.get_mut(&group)?;
        let room = known.room.get_or_insert_with(|| {
            self.last_number += 1;
            let number = RoomNumber::new(self.last_number);
            Room { number, version, seen, before: seq, sent: seq, acked: seq, rank }
        });
        (room.version, room.seen, room.rank) = (version, seen, rank);
        self.by_number.insert(room.number, group);
        Some(room.number)
    }

    /// Leaves a group without a room for a time: nearly nobody is online. Returns the room that it had.
    pub(super) fn abandon(&mut self, group: ConversationId) -> Option<RoomNumber> {
        let known = self.groups.get_mut(&group)?;
        known.not_before = self.now + LOST_PAUSE;
        let number = known.room.take()?.number;
        self.by_number.remove(&number);
        Some(number)
    }

    /// Sessions that were noted since the room's last look.
    pub(super) fn look(&mut self, group: ConversationId) -> Vec<SessionId> {
        let begin = self.end - self.noted.len() as u64;
        let Some(room) = self.groups.get_mut(&group).and_then(|group| group.room.as_mut()) else {
            return Vec::new();
        };
        let first = usize::try_from(room.seen.saturating_sub(begin)).unwrap_or(usize::MAX);
        room.seen = self.end;
        let mut new: Vec<SessionId> = self.noted.iter().skip(first).copied().collect();
        new.sort_unstable();
        new.dedup();
        new
    }

    /// The first message of which a session is to be told, that has not got the one at `first`: a NOTIFY may overtake what went to
    /// the room.
    pub(super) fn first_missed(&self, group: ConversationId, first: u64) -> u64 {
        let room = self.groups.get(&group).and_then(|group| group.room.as_ref());
        room.map_or(first, |room| room.first_missed().min(first))
    }

    /// Notes that messages up to `seq` went to the room, or by name behind it.
    pub(super) fn on_sent(&mut self, group: ConversationId, seq: u64) {
        if let Some(room) = self.groups.get_mut(&group).and_then(|group| group.room.as_mut()) {
            room.sent = room.sent.max(seq);
        }
    }

    /// Notes that a member has acknowledged a group's messages up to `seq`.
    pub(super) fn on_acked(&mut self, group: ConversationId, seq: u64) {
        if let Some(room) = self.groups.get_mut(&group).and_then(|group| group.room.as_mut()) {
            room.acked = room.acked.max(seq);
        }
    }

    /// Forgets a lost room. Returns its group, the messages that may not have reached everybody, and the group's rank.
    pub(super) fn on_lost(&mut self, number: RoomNumber) -> Option<(ConversationId, (u64, u64), Rank)> {
        let group = self.by_number.remove(&number)?;
        let known = self.groups.get_mut(&group)?;
        known.not_before = self.now + LOST_PAUSE;
        let room = known.room.take_if(|room| room.number == number)?;
        (room.sent > room.before).then_some((group, (room.first_missed(), room.sent), room.rank))
    }

    /// Takes the time. Returns rooms to close: their groups have not talked for `im.room_idle`.
    pub(super) fn handle_time(&mut self, now: Instant) -> Vec<RoomNumber> {
        self.now = now;
        if now < self.next_look {
            return Vec::new();
        }
        self.next_look = now + LOOK_INTERVAL;
        let (idle, mut unused) = (self.idle, Vec::new());
        self.groups.retain(|_, group| {
            let is_used = now < group.used + idle;
            if !is_used {
                unused.extend(group.room.as_ref().map(|room| room.number));
            }
            is_used
        });
        for number in &unused {
            self.by_number.remove(number);
        }
        if self.groups.is_empty() {
            self.noted = VecDeque::new();
        }
        unused
    }
}
