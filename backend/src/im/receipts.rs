//! Read counts: how many members have read a message of a group.
//!
//! alice writes to a group, and five members read: at the next tick she gets one hint with the count 5. A hint may be lost;
//! `im.receipts` returns the names.

use super::presence::Hints;
use super::store::{ConversationId, Facts, Store, UserId};
use super::tasks::Task;
use super::{Im, delivery::EVENT};
use crate::server::{Now, PushSpec};
use moorline_proto::message::client::Push;
use moorline_proto::message::encode;
use moorline_proto::message::im::{Happened, ReadCount, ReadCounts, happened};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

/// Newest messages of a group whose senders are told.
const MESSAGES_MAX: usize = 32;
/// Groups that are remembered. At the limit all are forgotten, and come back with their next messages.
const GROUPS_MAX: usize = 100_000;
/// Groups looked at in one tick.
const GROUPS_PER_TICK: usize = 256;
/// Members of the largest group with read counts.
const MEMBERS_MAX: usize = 200;
/// Time after which an unsent count is dropped, in milliseconds.
const HINT_TTL_MS: u32 = 5_000;

/// Newest messages by group, and groups in which a member has read since the last tick.
#[derive(Debug, Default)]
pub(super) struct Receipts {
    /// Seq and sender of the newest messages of each group.
    recent: HashMap<ConversationId, VecDeque<(u64, UserId)>>,
    /// Groups whose senders are to be told.
    read: BTreeSet<ConversationId>,
}

impl Receipts {
    pub(super) fn on_message(&mut self, group: ConversationId, seq: u64, sender: UserId) {
        if self.recent.len() >= GROUPS_MAX && !self.recent.contains_key(&group) {
            self.recent.clear();
        }
        let recent = self.recent.entry(group).or_default();
        if recent.len() == MESSAGES_MAX {
            recent.pop_front();
        }
        recent.push_back((seq, sender));
    }

    pub(super) fn on_read(&mut self, conversation: ConversationId) {
        if self.recent.contains_key(&conversation) {
            self.read.insert(conversation);
        }
    }
}

impl<S: Store> Im<S> {
    /// Tells senders how many have read their messages: one hint per sender and group for all reads since the last tick.
    pub(super) fn tell_read_counts(&mut self, now: Now) {
        for _ in 0..GROUPS_PER_TICK {
            let Some(group) = self.receipts.read.pop_first() else { return };
            self.run(None, Task::ReadCounts(now, group));
        }
    }
}

impl<F: Facts> Hints<'_, F> {
    /// Tells the senders of a group's newest messages how many have read them.
    pub(super) fn tell_read_count(&mut self, now: Now, group: ConversationId) {
        if self.facts.member_count(group) > MEMBERS_MAX {
            return;
        }
        let reads: Vec<_> = self.facts.members(group, None).map(|it| (it.user, it.read)).collect();
        let mut by_sender: BTreeMap<UserId, Vec<ReadCount>> = BTreeMap::new();
        for &(seq, sender) in self.receipts.recent.get(&group).into_iter().flatten() {
            let has_read = |(user, read): &&(UserId, u64)| *user != sender && *read >= seq;
            let count = u32::try_from(reads.iter().filter(has_read).count()).unwrap_or(u32::MAX);
            if count > 0 {
                by_sender.entry(sender).or_default().push(ReadCount { seq, count });
            }
        }
        let conversation = self.facts.id(group);
        for (sender, counts) in by_sender {
            let sessions: Vec<_> = self.sessions.of(sender).map(|session| session.id).collect();
            if sessions.is_empty() {
                continue;
            }
            let what = Some(happened::What::ReadCounts(ReadCounts { counts }));
            let push = Push {
                message_id: self.ids.next_now(now),
                conversation: conversation.clone(),
                time_ms: now.unix_ms,
                happened: encode(&Happened { what }),
                ..Push::default()
            };
            let spec = PushSpec { want_ack: false, ttl_ms: HINT_TTL_MS, ..EVENT };
            self.out.push(&sessions, spec, &encode(&push));
        }
    }
}
