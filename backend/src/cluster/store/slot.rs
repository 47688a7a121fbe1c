//! A slot that this node owns: its conversations, users and outbox, as far as they were needed, and the operations that wait.
//!
//! alice writes to bob in a slot that this node has just claimed: her SEND waits in [`OwnedSlot::queue`], the conversation is
//! loaded, and the SEND gets the next number. When the slot is claimed anew, everything but the queue is forgotten.

use super::ops::Op;
use crate::cluster::cell::{
    ConfirmedRow, Content, ConversationRow, Deliver, DeviceRow, Ends, Known, Load, Loaded, Membership,
    SlotHead, UserState,
};
use crate::cluster::chain::{Chain, Link};
use crate::im::store::{ConversationId, LoginRule, UserId};
use bytes::Bytes;
use hashbrown::{HashMap, HashSet};
use moorline_proto::ids::MessageKey;
use moorline_proto::time::Instant;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Operations that wait for one slot; further ones are answered RETRY.
pub(super) const QUEUE_MAX: usize = 4096;
/// Messages of one slot that are on their way to other slots; at the limit SENDs are answered RETRY.
pub(super) const OUTBOX_MAX: usize = 65_536;

/// Messages in [`OwnedSlot::bodies`]; at the limit all are forgotten before the next transaction.
const BODIES_MAX: usize = 64;

/// Users in [`OwnedSlot::invited`]; at the limit all are forgotten before the next transaction.
const INVITED_KNOWN_MAX: usize = 4096;

/// Keys in [`OwnedSlot::pushed`]; at the limit all are forgotten before the next transaction.
const PUSHED_KNOWN_MAX: usize = 1024;

/// Rows of all slots of a node that stay in memory; each slot has its share. About half a kilobyte each.
pub(super) const ROWS_MAX: usize = 2_097_152;
/// Least share of a slot: more than what one operation needs.
pub(super) const SLOT_ROWS_MIN: usize = 4096;

/// A conversation.
#[derive(Debug)]
pub(super) struct Conversation {
    pub(super) row: ConversationRow,
    /// Ends that were given.
    pub(super) given: Ends,
    /// Ends that are durable.
    pub(super) stored: Ends,
    /// Used since the last [`OwnedSlot::trim`] that found too few unused rows.
    pub(super) is_used: bool,
}

impl Conversation {
    pub(super) const fn new(row: ConversationRow, ends: Ends) -> Self {
        Self { row, given: ends, stored: ends, is_used: true }
    }

    /// Sets a member, new or known.
    pub(super) fn set_member(&mut self, membership: Membership) {
        let members = &mut self.row.members;
        match members.binary_search_by_key(&membership.member.user, |it| it.member.user) {
            Ok(at) => members[at] = membership,
            Err(at) => members.insert(at, membership),
        }
    }
}

/// A user.
#[derive(Debug)]
pub(super) struct User {
    pub(super) uid: Arc<str>,
    pub(super) devices: Vec<DeviceRow>,
    /// Largest number of a device that is gone; 0: none is.
    pub(super) last_gone: u32,
    /// Rule for logins, as it was given.
    pub(super) rule: LoginRule,
    /// Position of the last entry that was given.
    pub(super) end: u64,
    /// Position of the last entry that is durable.
    pub(super) durable_end: u64,
    /// Last order of each conversation that was put into the stream.
    pub(super) arrived: HashMap<ConversationId, u64>,
    /// Used since the last [`OwnedSlot::trim`] that found too few unused rows.
    pub(super) is_used: bool,
}

impl User {
    pub(super) fn new(uid: Arc<str>) -> Self {
        Self {
            uid,
            devices: Vec::new(),
            last_gone: 0,
            rule: LoginRule::default(),
            end: 0,
            durable_end: 0,
            arrived: HashMap::new(),
            is_used: true,
        }
    }

    fn of(state: UserState) -> Self {
        let UserState { user: _, uid, devices, last_gone, rule, end, arrived } = state;
        let arrived = arrived.into_iter().collect();
        Self { uid, devices, last_gone, rule, end, durable_end: end, arrived, is_used: true }
    }

    /// Order of the conversation up to which everything has arrived.
    pub(super) fn arrived(&self, conversation: ConversationId) -> u64 {
        self.arrived.get(&conversation).copied().unwrap_or(0)
    }

    /// Gives the next position of the stream to a message or event.
    pub(super) fn place(&mut self, conversation: ConversationId, order: u64) -> u64 {
        self.end += 1;
        self.arrived.insert(conversation, order);
        self.end
    }
}

/// Sender's key in a conversation.
pub(super) type KeyOf = (ConversationId, UserId, MessageKey);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct OwnedSlot {
    pub(super) epoch: u64,
    /// Time since which nobody else has had the slot. `None`: it was not taken over yet.
    pub(super) since: Option<Instant>,
    /// Users that were forgotten in this epoch: a read from before that may be too old.
    forgotten: u64,
    /// The head is read, and the memory below is right.
    pub(super) is_ready: bool,
    /// Users with sessions here who were not read since the take-over: nobody in the slot is served before that, for
    /// one of them may have been banned elsewhere.
    pub(super) waking: HashSet<UserId>,
    /// A claim is under way.
    pub(super) is_claiming: bool,
    /// Reads for the queue are under way.
    pub(super) is_loading: bool,
    pub(super) queue: VecDeque<Op>,
    /// Counters of the newest user and conversation.
    pub(super) users_count: u64,
    pub(super) conversations_count: u64,
    pub(super) conversations: HashMap<ConversationId, Conversation>,
    /// Conversations by id; `None`: the conversation does not exist.
    pub(super) ids: HashMap<Arc<str>, Option<ConversationId>>,
    pub(super) users: HashMap<UserId, User>,
    /// Users by name; `None`: the user does not exist.
    pub(super) uids: HashMap<Arc<str>, Option<UserId>>,
    /// Users and conversations, by number, that do not exist.
    pub(super) absent: HashSet<u64>,
    /// Keys that operations in the queue ask for.
    pub(super) keys: HashMap<KeyOf, Option<Known>>,
    /// Messages that operations in the queue want to take back, and those that were.
    pub(super) bodies: HashMap<(ConversationId, u64), Option<Bytes>>,
    /// Users of whom operations in the queue ask whether they are invited to a group, and those who are or were.
    pub(super) invited: HashMap<(ConversationId, UserId), bool>,
    /// Digests of pushes by users and keys that operations in the queue ask for, and those that were given.
    pub(super) pushed: HashMap<(UserId, MessageKey), Option<u64>>,
    pub(super) chains: BTreeMap<(UserId, ConversationId), Chain<Deliver>>,
    /// Messages in `chains`.
    pub(super) outbox: usize,
    /// Outbox rows that the next transaction removes.
    pub(super) confirmed: Vec<ConfirmedRow>,
}

impl OwnedSlot {
    /// True if frames and calls of the slot's users are taken.
    pub(super) fn is_served(&self) -> bool {
        self.is_ready && self.waking.is_empty()
    }

    /// Has users who have sessions here read before anything else.
    pub(super) fn wake(&mut self, users: impl Iterator<Item = UserId>) {
        for user in users {
            self.waking.insert(user);
            self.queue.push_front(Op::Wake(user));
        }
    }

    /// Forgets everything but the queue: it is read again at the next epoch.
    pub(super) fn forget(&mut self) {
        let (queue, epoch) = (std::mem::take(&mut self.queue), self.epoch);
        let (is_claiming, since) = (self.is_claiming, self.since);
        *self = Self { epoch, since, is_claiming, queue, ..Self::default() };
    }

    /// Begins a new epoch at this time.
    pub(super) fn begin(&mut self, head: SlotHead, now: Instant) {
        self.forget();
        self.since.get_or_insert(now);
        (self.epoch, self.is_ready, self.is_claiming) = (head.epoch, true, false);
        (self.users_count, self.conversations_count) = (head.users, head.conversations);
        head.outbox.into_iter().for_each(|deliver| self.put_outbox(deliver));
    }

    pub(super) fn put_outbox(&mut self, deliver: Deliver) {
        let chain = self.chains.entry((deliver.user, deliver.conversation)).or_default();
        self.outbox += 1;
        chain.push(Link { seq: deliver.order, after: deliver.after, message: deliver });
    }

    /// Takes the confirmation of a member's owner.
    pub(super) fn confirm(&mut self, user: UserId, conversation: ConversationId, order: u64) {
        let Some(chain) = self.chains.get_mut(&(user, conversation)) else { return };
        let count = chain.confirm(order);
        if chain.is_empty() {
            self.chains.remove(&(user, conversation));
        }
        self.outbox -= count;
        if count > 0 {
            self.confirmed.push(ConfirmedRow { conversation, user, order });
        }
    }

    /// Forgets answers to operations of the queue, if there are too many.
    pub(super) fn forget_answers(&mut self) {
        if self.bodies.len() > BODIES_MAX {
            self.bodies.clear();
        }
        if self.invited.len() > INVITED_KNOWN_MAX {
            self.invited.clear();
        }
        if self.pushed.len() > PUSHED_KNOWN_MAX {
            self.pushed.clear();
        }
    }

    /// Forgets a user: it is read again when needed.
    pub(super) fn forget_user(&mut self, user: UserId) {
        self.forgotten += 1;
        if let Some(known) = self.users.remove(&user) {
            self.uids.remove(&known.uid);
        }
    }

    /// Read of a user that an operation has to wait for.
    pub(super) fn need_of_user(&self, user: UserId) -> Vec<Load> {
        let is_known = self.users.contains_key(&user) || self.absent.contains(&user.number());
        if is_known { Vec::new() } else { vec![Load::UserNumber(user)] }
    }

    /// A user in memory, who counts as used.
    pub(super) fn user_mut(&mut self, user: UserId) -> Option<&mut User> {
        let known = self.users.get_mut(&user)?;
        known.is_used = true;
        Some(known)
    }

    /// A conversation in memory, which counts as used.
    pub(super) fn place_mut(&mut self, conversation: ConversationId) -> Option<&mut Conversation> {
        let place = self.conversations.get_mut(&conversation)?;
        place.is_used = true;
        Some(place)
    }

    /// Rows in memory: users and conversations, and names and numbers of which none exists.
    pub(super) fn rows(&self) -> usize {
        self.ids.len() + self.uids.len() + self.absent.len()
    }

    /// Forgets an eighth of `max` if there are more rows: first what does not exist, then rows that were not used lately. Returns
    /// their number. To be called while no transaction of the cell and no read for this slot is under way: then the cell has all
    /// that is in memory, and what is needed again is read again.
    pub(super) fn trim(&mut self, max: usize) -> usize {
        let before = self.rows();
        if before <= max {
            return 0;
        }
        let Self { users, conversations, uids, ids, absent, .. } = self;
        absent.clear();
        ids.retain(|_, known| known.is_some());
        uids.retain(|_, known| known.is_some());
        let mut excess = (ids.len() + uids.len()).saturating_sub(max - max / 8);
        let mut stays = |is_used: bool| {
            let is_kept = is_used || excess == 0;
            excess -= usize::from(!is_kept);
            is_kept
        };
        users.retain(|_, user| stays(user.is_used));
        conversations.retain(|_, place| stays(place.is_used));
        if excess > 0 {
            users.values_mut().for_each(|user| user.is_used = false);
            conversations.values_mut().for_each(|place| place.is_used = false);
        }
        let names = ids.len() + uids.len();
        uids.retain(|_, user| user.is_some_and(|user| users.contains_key(&user)));
        ids.retain(|_, of| of.is_some_and(|of| conversations.contains_key(&of)));
        if ids.len() + uids.len() < names {
            self.forgotten += 1;
        }
        before - self.rows()
    }

    /// The conversation with this id, if it exists; only what was loaded is known.
    pub(super) fn conversation(&self, id: &str) -> Option<ConversationId> {
        self.ids.get(id).copied().flatten()
    }

    /// Version of the memory: what was read under another one is not learned.
    pub(super) const fn version(&self) -> (u64, u64) {
        (self.epoch, self.forgotten)
    }

    /// Takes what was read, unless it is known: what is in memory is never older. Returns a user that is new here.
    pub(super) fn learn(&mut self, load: &Load, loaded: &Loaded) -> Option<UserId> {
        match (load, loaded) {
            (Load::Conversation(id), Loaded::Conversation(None)) => {
                self.ids.entry(id.clone()).or_insert(None);
            }
            (Load::ConversationNumber(number), Loaded::Conversation(None)) => {
                self.absent.insert(number.number());
            }
            (Load::UserNumber(number), Loaded::User(None)) => _ = self.absent.insert(number.number()),
            (_, Loaded::Conversation(Some(state))) => {
                let (row, ends) = &**state;
                self.ids.entry(row.id.clone()).or_insert(Some(row.conversation));
                self.conversations
                    .entry(row.conversation)
                    .or_insert_with(|| Conversation::new(row.clone(), *ends));
            }
            (Load::User(uid), Loaded::User(None)) => _ = self.uids.entry(uid.clone()).or_insert(None),
            (_, Loaded::User(Some(state))) => {
                let user = state.user;
                self.uids.entry(state.uid.clone()).or_insert(Some(user));
                let is_new = !self.users.contains_key(&user);
                if is_new {
                    self.users.insert(user, User::of((**state).clone()));
                }
                return is_new.then_some(user);
            }
            (Load::Bodies(wanted), Loaded::Bodies(found, _)) => {
                for (of, content) in wanted {
                    if let Content::Message(seq) = content {
                        let body = found.iter().find(|(at, it, _)| (at, it) == (of, content));
                        self.bodies.entry((*of, *seq)).or_insert_with(|| body.map(|(.., body)| body.clone()));
                    }
                }
            }
            (Load::Invited(conversation, users), Loaded::Invited(found)) => {
                for user in users {
                    self.invited.entry((*conversation, *user)).or_insert_with(|| found.contains(user));
                }
            }
            (Load::Pushed(user, key), Loaded::Pushed(digest)) => {
                self.pushed.entry((*user, *key)).or_insert(*digest);
            }
            (Load::Key(conversation, sender, key), Loaded::Key(known)) => {
                self.keys.insert((*conversation, *sender, *key), *known);
            }
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests;
