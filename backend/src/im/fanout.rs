//! Messages of large groups on their way to everybody who is online: in slices, beside everything else [P-11.14].
//!
//! They are in no inbox, so nothing is lost when one does not arrive: a client finds the hole by the next one, or is
//! told to pull when it logs in. A group with [`MESSAGES_MAX`] messages under way gets a NOTIFY instead of more. A group that
//! talks has a [room](super::group_rooms), and its messages go there without a look at its members.

use super::budget::Budget;
use super::delivery::{Deliveries, notify};
use super::group_rooms::{GroupRooms, Way};
use super::store::{ConversationId, Origin, Store, UserId};
use super::tasks::Task;
use super::{Im, Output};
use crate::server::{Now, PushId, PushSpec, RoomNumber, SessionId};
use bytes::Bytes;
use moorline_proto::frame::Command;
use moorline_proto::message::backend::Rank;
use moorline_proto::time::Duration;
use std::collections::{BTreeMap, HashMap, VecDeque};

/// Messages of one group that are under way at once, without a room and with one.
const MESSAGES_MAX: usize = 5;
const ROOM_MESSAGES_MAX: usize = 16;
/// Online members with whom a group gets a room. With fewer, none might acknowledge that its messages arrive.
const ROOM_MEMBERS_MIN: usize = 3;
/// Members of one group, before it is another group's turn. When nobody chats, a group of the largest size goes in one piece: the
/// gateway joins pushes to exactly the same receivers, and takes its own time over them.
const MEMBERS_PER_SLICE: usize = 16_384;
/// Groups of the last rank have one part of this many of a turn.
const LAST_PARTS: usize = 4;
/// Messages of a group between two pushes whose outcome is wanted.
const ASK_EVERY: u64 = 32;
/// Pushes that are remembered for their outcomes, of those that cannot be sent too; of older ones the outcome comes to nothing,
/// and devices are asked again.
const ASKED_MAX: usize = 65_536;

/// All that are under way.
#[derive(Debug)]
pub(super) struct Fanouts {
    by_group: HashMap<ConversationId, Group>,
    /// Groups with something under way, in turn: those of the last rank, and the others.
    last: VecDeque<ConversationId>,
    order: VecDeque<ConversationId>,
    /// Pushes whose outcome says whether a device has the messages that they stand for: each one fails in a way that is told.
    asked: BTreeMap<PushId, AskedPush>,
    /// Members that may still be looked at in this turn.
    members_left: usize,
    /// Share of groups of the last rank in `members_left`.
    members_of_last: usize,
    budget: Budget,
    /// Tells whether a message of the first rank passed in this turn.
    pub(super) has_chat: bool,
    pub(super) rooms: GroupRooms,
}

#[derive(Debug, Default)]
struct Group {
    /// Going through the members now, together: so a member gets them in one write.
    round: Vec<Fanout>,
    /// Members up to this one have them.
    done: Option<UserId>,
    /// For the next round.
    waiting: Vec<Fanout>,
    /// Rank when the oldest message under way came.
    rank: Rank,
    /// The group's room that this round fills.
    filling: Option<Filling>,
}

/// A room, while a round goes through the members of its group.
#[derive(Debug)]
struct Filling {
    /// Version of the members, and the number of noted sessions, when the round began.
    begun_at: (u32, u64),
    sessions: Vec<SessionId>,
}

/// The queue of groups of a rank.
fn queue<'a>(
    order: &'a mut VecDeque<ConversationId>,
    last: &'a mut VecDeque<ConversationId>,
    rank: Rank,
) -> &'a mut VecDeque<ConversationId> {
    if rank == Rank::Last { last } else { order }
}

#[derive(Debug)]
struct Fanout {
    /// `None`: a NOTIFY that stands for the messages from `first` on.
    body: Option<Bytes>,
    first: u64,
    seq: u64,
    origin: Origin,
}

/// Messages of a large group that a push stands for: `first` to `last`, and everything before `first`.
#[derive(Clone, Copy, Debug)]
pub(super) struct AskedPush {
    pub(super) conversation: ConversationId,
    pub(super) first: u64,
    pub(super) last: u64,
}

impl Fanouts {
    /// Without fan-outs. Groups that do not talk for `room_idle` have no rooms.
    pub(super) fn new(room_idle: Duration) -> Self {
        Self {
            by_group: HashMap::new(),
            last: VecDeque::new(),
            order: VecDeque::new(),
            asked: BTreeMap::new(),
            members_left: 0,
            members_of_last: 0,
            budget: Budget::default(),
            has_chat: false,
            rooms: GroupRooms::new(room_idle),
        }
    }

    /// Begins the fan-out of a message: its seq and its body.
    pub(super) fn push(
        &mut self,
        conversation: ConversationId,
        rank: Rank,
        (seq, body): (u64, Bytes),
        origin: Origin,
    ) {
        let messages_max =
            if self.rooms.of(conversation).is_some() { ROOM_MESSAGES_MAX } else { MESSAGES_MAX };
        let group = self.queued(conversation, rank);
        if group.round.len() + group.waiting.len() < messages_max {
            group.waiting.push(Fanout { body: Some(body), first: seq, seq, origin });
        } else if let Some(last) = group.waiting.last_mut().filter(|last| last.body.is_none()) {
            (last.seq, last.origin) = (seq, origin);
        } else {
            group.waiting.push(Fanout { body: None, first: seq, seq, origin });
        }
    }

    /// Begins the fan-out of a NOTIFY that stands for messages which may not have reached everybody.
    pub(super) fn notify(&mut self, conversation: ConversationId, rank: Rank, (first, seq): (u64, u64)) {
        let group = self.queued(conversation, rank);
        group.waiting.insert(0, Fanout { body: None, first, seq, origin: super::NOBODY });
    }

    /// Puts a group into its queue, unless it is there.
    fn queued(&mut self, conversation: ConversationId, rank: Rank) -> &mut Group {
        let group = self.by_group.entry(conversation).or_default();
        if group.round.is_empty() && group.waiting.is_empty() {
            group.rank = rank;
            queue(&mut self.order, &mut self.last, rank).push_back(conversation);
        }
        group
    }

    /// True if a group could go on in another turn.
    pub(super) fn has_more(&self) -> bool {
        !self.order.is_empty() || !self.last.is_empty()
    }

    /// The group whose turn it is. Groups of the last rank have a quarter of the turn, and what the others leave.
    fn next(&mut self) -> Option<ConversationId> {
        let is_turn_of_last = self.members_left <= self.reserve();
        let next = if is_turn_of_last { self.last.pop_front() } else { self.order.pop_front() };
        next.or_else(|| self.order.pop_front()).or_else(|| self.last.pop_front())
    }

    /// Members of this turn that are kept for groups of the last rank.
    fn reserve(&self) -> usize {
        if self.last.is_empty() { 0 } else { self.members_of_last }
    }

    /// Remembers a push, for its outcome.
    pub(super) fn ask(&mut self, push: PushId, asked: AskedPush) {
        if self.asked.len() >= ASKED_MAX {
            self.asked.pop_first();
        }
        self.asked.insert(push, asked);
    }

    /// Messages that a push stands for; `None`: they are in an inbox, or the push is too long ago.
    pub(super) fn asked(&self, push: PushId) -> Option<AskedPush> {
        self.asked.get(&push).copied()
    }
}

impl<S: Store> Im<S> {
    /// Takes fan-outs a bit further, and then pushes to everybody.
    pub(super) fn fan_out(&mut self, now: Now) {
        for room in self.fanouts.rooms.handle_time(now.instant) {
            self.out.put(Output::CloseRoom { room });
        }
        let has_chat = std::mem::take(&mut self.fanouts.has_chat);
        let members = self.fanouts.budget.begin(now.instant, has_chat);
        (self.fanouts.members_left, self.fanouts.members_of_last) = (members, members / LAST_PARTS);
        while self.fanouts.members_left > 0
            && let Some(conversation) = self.fanouts.next()
        {
            self.run(None, Task::FanOut(conversation));
        }
        self.broadcasts.advance(&self.sessions, members, &mut self.out);
        let (used, goes_on) = (members - self.fanouts.members_left, self.fanouts.has_more());
        self.fanouts.budget.end(now.instant, used, goes_on);
    }
}

impl<S: Store> Deliveries<'_, S> {
    /// Takes the fan-out of one group a slice further; its members are at hand.
    pub(super) fn fan_out_group(&mut self, conversation: ConversationId) {
        let rank = self.fanouts.by_group.get(&conversation).map_or(Rank::Second, |group| group.rank);
        let reserve = if rank == Rank::Last { 0 } else { self.fanouts.reserve() };
        let slice = MEMBERS_PER_SLICE.min(self.fanouts.members_left.saturating_sub(reserve));
        if slice == 0 {
            let Fanouts { order, last, .. } = &mut *self.fanouts;
            return queue(order, last, rank).push_front(conversation);
        }
        let Some(mut group) = self.fanouts.by_group.remove(&conversation) else { return };
        if let Some(room) =
            group.round.is_empty().then(|| self.begin_round(conversation, &mut group)).flatten()
        {
            self.push_round(conversation, room, &mut group);
        } else {
            self.fanouts.members_left -= slice;
            if self.fan_out_slice(conversation, &mut group, slice) {
                self.end_filling(conversation, &mut group);
                group.round.clear();
            }
        }
        if !group.round.is_empty() || !group.waiting.is_empty() {
            let Fanouts { order, last, .. } = &mut *self.fanouts;
            queue(order, last, group.rank).push_back(conversation);
            self.fanouts.by_group.insert(conversation, group);
        }
    }

    /// Begins a round with what waits. Returns the room to which it goes; `None`: it goes by name.
    fn begin_round(&mut self, conversation: ConversationId, group: &mut Group) -> Option<RoomNumber> {
        std::mem::swap(&mut group.round, &mut group.waiting);
        (group.done, group.filling) = (None, None);
        let (first, last) = (group.round.first()?, group.round.last()?);
        // Webhooks whose users are members get the messages of this round.
        self.webhooks.note_messages(&self.storage.store, conversation, first.first, last.seq);
        let version = self.storage.store.members_version(conversation);
        match self.fanouts.rooms.way(conversation, version, last.seq) {
            Way::ByName => None,
            Way::Filling => {
                let begun_at = (version?, self.fanouts.rooms.end());
                group.filling = Some(Filling { begun_at, sessions: Vec::new() });
                None
            }
            Way::Room(room) => Some(room),
        }
    }

    /// Sends a round to the group's room, after the sessions that have to enter or leave it.
    fn push_round(&mut self, conversation: ConversationId, room: RoomNumber, group: &mut Group) {
        let first = group.round.first().map_or(0, |fanout| fanout.first);
        let first = self.fanouts.rooms.first_missed(conversation, first);
        let (mut enter, mut leave) = (Vec::new(), Vec::new());
        let looked_at = self.fanouts.rooms.look(conversation);
        let cost = looked_at.len() + group.round.len();
        self.fanouts.members_left = self.fanouts.members_left.saturating_sub(cost);
        for id in looked_at {
            let Some(session) = self.sessions.get_mut(id) else { continue };
            let Some((user, _)) = session.owner() else { continue };
            if self.storage.store.member(conversation, user).is_none() {
                continue; // since the room was filled
            }
            if session.is_listed && session.is_up_to_date() && !session.pending.has(conversation) {
                enter.push(id);
                continue;
            }
            leave.push(id);
            if session.is_listed {
                session.pending.add(conversation, first);
            }
        }
        if !enter.is_empty() || !leave.is_empty() {
            self.out.put(Output::ChangeRoom { room, enter, leave });
        }
        for fanout in group.round.drain(..) {
            let (user, _) = fanout.origin;
            let except = self.sessions.of(user).find(|it| it.owner() == Some(fanout.origin)).map(|it| it.id);
            let (spec, body) = self.content_of(conversation, &fanout);
            let push = self.out.push_to_room(room, except, spec, body);
            self.fanouts.rooms.on_sent(conversation, fanout.seq);
            self.fanouts.ask(push, AskedPush { conversation, first: fanout.first, last: fanout.seq });
        }
    }

    /// Gives the room of a group the members that a round has found.
    fn end_filling(&mut self, conversation: ConversationId, group: &mut Group) {
        let Some(Filling { begun_at, sessions }) = group.filling.take() else { return };
        if sessions.len() < ROOM_MEMBERS_MIN {
            let room = self.fanouts.rooms.abandon(conversation);
            return room.into_iter().for_each(|room| self.out.put(Output::CloseRoom { room }));
        }
        let seq = group.round.last().map_or(0, |fanout| fanout.seq);
        if let Some(room) = self.fanouts.rooms.fill(conversation, begun_at, (seq, group.rank)) {
            self.out.put(Output::FillRoom { room, sessions });
        }
    }

    /// Tells members of what the loss of a room may have hidden.
    pub(super) fn on_room_lost(&mut self, room: RoomNumber) {
        if let Some((conversation, missed, rank)) = self.fanouts.rooms.on_lost(room) {
            self.fanouts.notify(conversation, rank, missed);
        }
    }

    /// Notes a session that has caught up, or fallen behind, for the rooms of groups.
    pub(super) fn note_place(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.get_mut(id)
            && session.is_up_to_date() != session.was_up_to_date
        {
            session.was_up_to_date = !session.was_up_to_date;
            self.fanouts.rooms.note(id);
        }
    }

    /// Pushes to the next members. True: all members are done.
    fn fan_out_slice(&mut self, conversation: ConversationId, group: &mut Group, slice: usize) -> bool {
        let members = self.storage.store.members(conversation, group.done);
        let is_done = members.len() <= slice;
        let users: Vec<(UserId, u64)> =
            members.take(slice).map(|member| (member.user, member.first_visible())).collect();
        group.done = users.last().map(|(user, _)| *user).or(group.done);
        let mut sessions: Vec<SessionId> = std::mem::take(&mut self.scratch.target_sessions);
        let mut behind = Vec::new();
        for fanout in &group.round {
            for (user, visible_from) in &users {
                if *visible_from > fanout.seq {
                    continue;
                }
                for session in self.sessions.of(*user) {
                    if session.owner() == Some(fanout.origin) {
                        continue;
                    }
                    // A device that is still to be told of earlier messages is told of this one with them.
                    let is_behind = !session.is_up_to_date() || session.pending.has(conversation);
                    if is_behind { &mut behind } else { &mut sessions }.push(session.id);
                }
            }
            self.push_to(conversation, fanout, &sessions);
            sessions.clear();
            let first = self.fanouts.rooms.first_missed(conversation, fanout.first);
            for id in behind.drain(..) {
                if let Some(session) = self.sessions.get_mut(id) {
                    session.pending.add(conversation, first);
                }
            }
        }
        self.scratch.target_sessions = sessions;
        if let (Some(filling), Some(last)) = (&mut group.filling, group.round.last()) {
            for (user, visible_from) in users {
                for session in self.sessions.of(user) {
                    if visible_from > last.seq {
                        self.fanouts.rooms.note(session.id);
                    } else if session.is_up_to_date() && !session.pending.has(conversation) {
                        filling.sessions.push(session.id);
                    }
                }
            }
        }
        is_done
    }

    fn push_to(&mut self, conversation: ConversationId, fanout: &Fanout, sessions: &[SessionId]) {
        if sessions.is_empty() {
            return;
        }
        let (spec, body) = self.content_of(conversation, fanout);
        let push = self.out.push_behind(self.fanouts.rooms.of(conversation), sessions, spec, &body);
        self.fanouts.rooms.on_sent(conversation, fanout.seq);
        self.fanouts.ask(push, AskedPush { conversation, first: fanout.first, last: fanout.seq });
    }

    /// Content for the members: a PUSH, or a NOTIFY.
    fn content_of(&self, conversation: ConversationId, fanout: &Fanout) -> (PushSpec, Bytes) {
        let spec = self.spec_of(conversation);
        match &fanout.body {
            // Acks come in order, so one of them tells of all before.
            Some(body) => (PushSpec { want_ack: fanout.seq.is_multiple_of(ASK_EVERY), ..spec }, body.clone()),
            None => (
                PushSpec { command: Command::Notify, want_ack: false, ..spec },
                notify(&self.storage.store, conversation, fanout.first),
            ),
        }
    }
}
