//! Messages of large groups on their way to everybody who is online: in slices, beside everything else [P-11.14].
//!
//! They are in no inbox, so nothing is lost when one does not arrive: a client finds the hole by the next one, or is
//! told to pull when it logs in. A group with [`MESSAGES_MAX`] messages under way gets a NOTIFY instead of more.

use super::Im;
use super::delivery::{Deliveries, notify, spec_of};
use super::store::{ConversationId, Origin, Store, UserId};
use super::tasks::Task;
use crate::server::{PushId, PushSpec, SessionId};
use bytes::Bytes;
use moorline_proto::frame::Command;
use std::collections::{BTreeMap, HashMap, VecDeque};

/// Messages of one group that are under way at once.
const MESSAGES_MAX: usize = 5;
/// Members looked at in one turn of the loop, all groups together.
const MEMBERS_PER_TURN: usize = 32_768;
/// Members of one group, before it is another group's turn. A group of the largest size in one piece: the gateway joins pushes to
/// exactly the same receivers, and takes its own time over them.
const MEMBERS_PER_SLICE: usize = 16_384;
/// Messages of a group between two pushes whose outcome is wanted.
const ASK_EVERY: u64 = 32;
/// Pushes that are remembered for that; of older ones the outcome comes to nothing, and devices are asked again.
const ASKED_MAX: usize = 65_536;

/// All that are under way.
#[derive(Debug, Default)]
pub(super) struct Fanouts {
    by_group: HashMap<ConversationId, Group>,
    /// Groups with something under way, in turn.
    order: VecDeque<ConversationId>,
    /// Pushes whose outcome says whether a device has the messages that they stand for.
    asked: BTreeMap<PushId, AskedPush>,
    /// Members that may still be looked at in this turn.
    members_left: usize,
}

#[derive(Debug, Default)]
struct Group {
    /// Going through the members now, together: so a member gets them in one write.
    round: Vec<Fanout>,
    /// Members up to this one have them.
    done: Option<UserId>,
    /// For the next round.
    waiting: Vec<Fanout>,
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
    pub(super) fn push(&mut self, conversation: ConversationId, seq: u64, body: Bytes, origin: Origin) {
        let group = self.by_group.entry(conversation).or_default();
        if group.round.is_empty() && group.waiting.is_empty() {
            self.order.push_back(conversation);
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
        !self.order.is_empty()
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
    /// Takes fan-outs a bit further.
    pub(super) fn fan_out(&mut self) {
        self.fanouts.members_left = MEMBERS_PER_TURN;
        while self.fanouts.members_left > 0
            && let Some(conversation) = self.fanouts.order.pop_front()
        {
            self.run(None, Task::FanOut(conversation));
        }
    }
}

impl<S: Store> Deliveries<'_, S> {
    /// Takes the fan-out of one group a slice further; its members are at hand.
    pub(super) fn fan_out_group(&mut self, conversation: ConversationId) {
        let slice = MEMBERS_PER_SLICE.min(self.fanouts.members_left);
        if slice == 0 {
            return self.fanouts.order.push_front(conversation);
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
            self.fanouts.by_group.insert(conversation, group);
            self.fanouts.order.push_back(conversation);
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
                    if session.owner == Some(fanout.origin) || session.pending.has(conversation) {
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
        let spec = PushSpec { want_ack, ..spec_of(&self.storage.store, conversation) };
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
