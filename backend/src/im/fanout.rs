//! Messages of large groups on their way to everybody who is online: in slices, beside everything else [P-11.14].
//!
//! They are in no inbox, so nothing is lost when one does not arrive: a client finds the hole by the next one, or is
//! told to pull when it logs in. A group with [`MESSAGES_MAX`] messages under way gets a NOTIFY instead of more.

use super::Im;
use super::budget::Budget;
use super::delivery::{Deliveries, notify};
use super::store::{ConversationId, Origin, Store, UserId};
use super::tasks::Task;
use crate::server::{Now, PushId, PushSpec, SessionId};
use bytes::Bytes;
use moorline_proto::frame::Command;
use moorline_proto::message::backend::Rank;
use std::collections::{BTreeMap, HashMap, VecDeque};

/// Messages of one group that are under way at once.
const MESSAGES_MAX: usize = 5;
/// Members of one group, before it is another group's turn. When nobody chats, a group of the largest size goes in one piece: the
/// gateway joins pushes to exactly the same receivers, and takes its own time over them.
const MEMBERS_PER_SLICE: usize = 16_384;
/// Groups of the last rank have one part of this many of a turn.
const LAST_PARTS: usize = 4;
/// Messages of a group between two pushes whose outcome is wanted.
const ASK_EVERY: u64 = 32;
/// Pushes that are remembered for that; of older ones the outcome comes to nothing, and devices are asked again.
const ASKED_MAX: usize = 65_536;

/// All that are under way.
#[derive(Debug, Default)]
pub(super) struct Fanouts {
    by_group: HashMap<ConversationId, Group>,
    /// Groups with something under way, in turn: those of the last rank, and the others.
    last: VecDeque<ConversationId>,
    order: VecDeque<ConversationId>,
    /// Pushes whose outcome says whether a device has the messages that they stand for.
    asked: BTreeMap<PushId, AskedPush>,
    /// Members that may still be looked at in this turn.
    members_left: usize,
    /// Share of groups of the last rank in `members_left`.
    members_of_last: usize,
    budget: Budget,
    /// Tells whether a message of the first rank passed in this turn.
    pub(super) has_chat: bool,
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
    /// Begins the fan-out of a message: its seq and its body.
    pub(super) fn push(
        &mut self,
        conversation: ConversationId,
        rank: Rank,
        (seq, body): (u64, Bytes),
        origin: Origin,
    ) {
        let group = self.by_group.entry(conversation).or_default();
        if group.round.is_empty() && group.waiting.is_empty() {
            group.rank = rank;
            queue(&mut self.order, &mut self.last, rank).push_back(conversation);
        }
        if group.round.len() + group.waiting.len() < MESSAGES_MAX {
            group.waiting.push(Fanout { body: Some(body), first: seq, seq, origin });
        } else if let Some(last) = group.waiting.last_mut().filter(|last| last.body.is_none()) {
            (last.seq, last.origin) = (seq, origin);
        } else {
            group.waiting.push(Fanout { body: None, first: seq, seq, origin });
        }
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

    /// Remembers a push whose outcome is wanted.
    pub(super) fn ask(&mut self, push: PushId, asked: AskedPush) {
        if self.asked.len() >= ASKED_MAX {
            self.asked.pop_first();
        }
        self.asked.insert(push, asked);
    }

    /// Messages that a push stands for; `None`: its outcome is not wanted.
    pub(super) fn asked(&self, push: PushId) -> Option<AskedPush> {
        self.asked.get(&push).copied()
    }
}

impl<S: Store> Im<S> {
    /// Takes fan-outs a bit further, and then pushes to everybody.
    pub(super) fn fan_out(&mut self, now: Now) {
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
        self.fanouts.members_left -= slice;
        if group.round.is_empty() {
            std::mem::swap(&mut group.round, &mut group.waiting);
            group.done = None;
            // Webhooks whose users are members get the messages of this round.
            if let (Some(first), Some(last)) = (group.round.first(), group.round.last()) {
                self.webhooks.note_messages(&self.storage.store, conversation, first.first, last.seq);
            }
        }
        if self.fan_out_slice(conversation, &mut group, slice) {
            group.round.clear();
        }
        if !group.round.is_empty() || !group.waiting.is_empty() {
            let Fanouts { order, last, .. } = &mut *self.fanouts;
            queue(order, last, group.rank).push_back(conversation);
            self.fanouts.by_group.insert(conversation, group);
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
                    // A device that is still to be told of earlier messages is told of this one with them.
                    if session.owner() == Some(fanout.origin) || session.pending.has(conversation) {
                        continue;
                    }
                    let is_behind = !session.is_up_to_date();
                    if is_behind { &mut behind } else { &mut sessions }.push(session.id);
                }
            }
            self.push_to(conversation, fanout, &sessions);
            sessions.clear();
            for id in behind.drain(..) {
                if let Some(session) = self.sessions.get_mut(id) {
                    session.pending.add(conversation, fanout.first);
                }
            }
        }
        self.scratch.target_sessions = sessions;
        is_done
    }

    fn push_to(&mut self, conversation: ConversationId, fanout: &Fanout, sessions: &[SessionId]) {
        if sessions.is_empty() {
            return;
        }
        // Acks come in order, so one of them tells of all before.
        let want_ack = fanout.body.is_some() && fanout.seq.is_multiple_of(ASK_EVERY);
        let spec = PushSpec { want_ack, ..self.spec_of(conversation) };
        let push = if let Some(body) = &fanout.body {
            self.out.push(sessions, spec, body)
        } else {
            let spec = PushSpec { command: Command::Notify, ..spec };
            self.out.push(sessions, spec, &notify(&self.storage.store, conversation, fanout.first))
        };
        if want_ack {
            self.fanouts.ask(push, AskedPush { conversation, first: fanout.first, last: fanout.seq });
        }
    }
}
