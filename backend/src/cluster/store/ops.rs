//! Operations at the owner of a slot: what they need in memory, and what they add to the next transaction.
//!
//! A SEND of alice to bob waits until its conversation and the members whose slots are here, too, are loaded. Then it is judged,
//! gets the next seq, and for bob the next position of bob's stream, or a place in the outbox. Nothing is numbered while a
//! transaction of the same cell is under way, so numbers that were given are right as soon as that transaction is.

use super::slot::{Conversation, OUTBOX_MAX, OwnedSlot, User};
use super::{Layout, batches::Place};
use crate::cluster::cell::{
    ArrivalRow, ConversationRow, CursorRow, Deliver, DeviceRow, Known, Load, Membership, MessageRow,
    Transaction, number_in, slot_of,
};
use crate::cluster::chain::{self, Arrival};
use crate::im::names::Names;
use crate::im::store::{
    Backlog, ConversationId, DeviceCursor, DeviceNumber, LoggedIn, Origin, Refusal, Ticket, UserId, seal,
};
use bytes::{Bytes, BytesMut};
use hashbrown::HashSet;
use moorline_proto::ids::MessageKey;
use moorline_proto::slots::{NodeId, Slot};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Conversation that a message is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// A conversation that exists.
    Number(ConversationId),
    /// The conversation of two users, by its id; it comes into being with its first message.
    Pair(Arc<str>, Vec<(UserId, Arc<str>)>),
}

impl Wanted {
    /// Returns the slot of the conversation.
    pub fn slot(&self) -> Slot {
        match self {
            Self::Number(conversation) => slot_of(conversation.number()),
            Self::Pair(id, _) => Slot::of(id),
        }
    }
}

/// A message that wants a seq.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Append {
    /// Conversation of the message.
    pub wanted: Wanted,
    /// Author of the message, with the device.
    pub origin: Origin,
    /// The client's name for it.
    pub key: MessageKey,
    /// The message id.
    pub id: u64,
    /// Time that clients are told, in Unix milliseconds.
    pub time_ms: u64,
    /// Digest of the content.
    pub digest: u64,
    /// The encoded push without its seq.
    pub body: Bytes,
    /// The message may be stored already.
    pub is_repeat: bool,
}

/// Place of an answer to an [`Append`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asker {
    /// A write of the [`crate::im::Im`] of this node.
    Here(Place),
    /// A question of another node.
    Peer(NodeId, u64),
}

/// An operation that waits for its slot.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Append(Append, Asker),
    /// Name, device and platform.
    Login(Ticket, Arc<str>, Arc<str>, u32),
    /// From this node.
    Deliver(Deliver, NodeId),
    Acked(UserId, DeviceNumber, u64),
    Backlog(Ticket, UserId),
    /// A user with sessions here, whose slot was taken over: what was stored in between is to be pushed.
    Wake(UserId),
}

/// Effect of an operation once its transaction is durable.
#[derive(Debug)]
pub(super) enum Done {
    /// A message, by its place in the transaction.
    Stored(Asker, usize),
    /// A message that was stored before.
    Known(Asker, ConversationId, Result<Known, Refusal>),
    Refused(Asker, Refusal),
    LoggedIn(Ticket, LoggedIn),
    Backlog(Ticket, Backlog),
    /// A message in a stream, at this position.
    Arrived(Box<Deliver>, u64),
    /// The sender's node may forget the messages of a conversation to a user, up to a seq.
    Confirm(NodeId, ConversationId, UserId, u64),
}

/// A transaction that is being made.
pub(super) struct Build<'a> {
    pub(super) layout: Layout,
    pub(super) slots: &'a mut BTreeMap<Slot, OwnedSlot>,
    pub(super) transaction: Transaction,
    pub(super) done: Vec<Done>,
    /// Operations in this transaction, to be done again if its outcome is unknown.
    pub(super) ops: Vec<(Slot, Op)>,
    /// DELIVERs that were not appended.
    pub(super) ignored: u64,
    keys: HashSet<(UserId, MessageKey)>,
}

impl<'a> Build<'a> {
    pub(super) fn new(layout: Layout, node: NodeId, slots: &'a mut BTreeMap<Slot, OwnedSlot>) -> Self {
        let (transaction, keys) = (Transaction::new(node), HashSet::new());
        Self { layout, slots, transaction, done: Vec::new(), ops: Vec::new(), ignored: 0, keys }
    }

    /// Reads that an operation at the head of a slot's queue has to wait for.
    pub(super) fn needs(&self, slot: Slot, op: &Op) -> Vec<Load> {
        let Some(owned) = self.slots.get(&slot) else { return Vec::new() };
        match op {
            Op::Append(append, _) => self.needs_of_append(slot, owned, append),
            Op::Login(_, uid, ..) => match owned.uids.get(uid) {
                None => vec![Load::User(uid.clone())],
                Some(_) => Vec::new(),
            },
            Op::Deliver(Deliver { user, .. }, _)
            | Op::Acked(user, ..)
            | Op::Backlog(_, user)
            | Op::Wake(user) => {
                let is_known = owned.users.contains_key(user) || owned.absent.contains(&user.number());
                if is_known { Vec::new() } else { vec![Load::UserNumber(*user)] }
            }
        }
    }

    fn needs_of_append(&self, slot: Slot, owned: &OwnedSlot, append: &Append) -> Vec<Load> {
        let found = match &append.wanted {
            Wanted::Number(number) if owned.conversations.contains_key(number) => Some(*number),
            Wanted::Number(number) if owned.absent.contains(&number.number()) => return Vec::new(),
            Wanted::Number(number) => return vec![Load::ConversationNumber(*number)],
            Wanted::Pair(id, _) if !owned.ids.contains_key(id) => {
                return vec![Load::Conversation(id.clone())];
            }
            Wanted::Pair(id, _) => owned.conversation(id),
        };
        let mut needs = Vec::new();
        let members: Vec<UserId> = match (&append.wanted, found) {
            (_, Some(conversation)) => {
                let key = (conversation, append.origin.0, append.key);
                if append.is_repeat && !owned.keys.contains_key(&key) {
                    needs.push(Load::Key(key.0, key.1, key.2));
                }
                let row = owned.conversations.get(&conversation).map(|known| &known.row);
                row.into_iter().flat_map(|row| &row.members).map(|member| member.user).collect()
            }
            (Wanted::Pair(_, members), None) => members.iter().map(|(user, _)| *user).collect(),
            (Wanted::Number(_), None) => Vec::new(),
        };
        let unknown = members.into_iter().filter(|user| {
            let theirs = slot_of(user.number());
            self.layout.cell(theirs) == self.layout.cell(slot)
                && self.slots.get(&theirs).is_some_and(|it| {
                    it.is_ready && !it.users.contains_key(user) && !it.absent.contains(&user.number())
                })
        });
        needs.extend(unknown.map(Load::UserNumber));
        needs
    }

    /// Executes an operation whose needs are in memory. False: it has to wait for this transaction.
    pub(super) fn execute(&mut self, slot: Slot, op: &Op) -> bool {
        match op {
            Op::Append(append, asker) => {
                if !self.keys.insert((append.origin.0, append.key)) {
                    return false; // the same message is in this transaction
                }
                if let Err(refusal) = self.append(slot, append, *asker) {
                    self.done.push(Done::Refused(*asker, refusal));
                }
            }
            Op::Login(ticket, uid, device, platform) => self.log_in(slot, *ticket, uid, device, *platform),
            Op::Deliver(deliver, from) => self.deliver(slot, deliver, *from),
            Op::Acked(user, device, position) => {
                let Some(owned) = self.slots.get_mut(&slot) else { return true };
                let acked = owned.users.get_mut(user).and_then(|known| known.ack(*device, *position));
                if let Some((acked, trimmed)) = acked {
                    self.transaction.fence(slot, owned.epoch);
                    let (user, device) = (*user, *device);
                    self.transaction.cursors.push(CursorRow { user, device, acked, trimmed });
                }
            }
            Op::Backlog(ticket, user) => {
                let known = self.slots.get(&slot).and_then(|owned| owned.users.get(user));
                let end = known.map_or(0, |user| user.durable_end);
                self.done.push(Done::Backlog(*ticket, Backlog { end, unconfirmed: Vec::new() }));
            }
            Op::Wake(_) => {} // the read has told it
        }
        true
    }

    fn append(&mut self, slot: Slot, append: &Append, asker: Asker) -> Result<(), Refusal> {
        let owned = self.slots.get_mut(&slot).ok_or(Refusal::Moved)?;
        if owned.outbox >= OUTBOX_MAX {
            return Err(Refusal::Moved);
        }
        let sender = append.origin.0;
        let conversation = match &append.wanted {
            Wanted::Number(number) => *number,
            Wanted::Pair(id, members) => match owned.conversation(id) {
                Some(known) => known,
                None => open_pair(owned, slot, id, members, &mut self.transaction),
            },
        };
        if let Some(Some(known)) = owned.keys.remove(&(conversation, sender, append.key)) {
            let result = if known.digest == append.digest { Ok(known) } else { Err(Refusal::Conflict) };
            self.done.push(Done::Known(asker, conversation, result));
            return Ok(());
        }
        let place = owned.conversations.get_mut(&conversation).ok_or(Refusal::NotFound)?;
        if !place.row.members.iter().any(|member| member.user == sender) {
            return Err(Refusal::NotMember);
        }
        let before = place.numbered;
        place.numbered += 1;
        let (seq, epoch) = (place.numbered, owned.epoch);
        let members: Vec<_> = place.row.members.iter().map(|member| member.user).collect();
        self.transaction.fence(slot, epoch);
        let recipients = members.into_iter().map(|user| {
            let position = self.try_direct(slot, user, conversation, before, seq);
            (user, position)
        });
        let recipients = recipients.collect();
        self.done.push(Done::Stored(asker, self.transaction.messages.len()));
        self.transaction.messages.push(MessageRow {
            conversation,
            seq,
            origin: append.origin,
            key: append.key,
            id: append.id,
            time_ms: append.time_ms,
            digest: append.digest,
            body: seal(BytesMut::from(&append.body[..]), seq),
            recipients,
        });
        Ok(())
    }

    /// Gives a message a position in the stream of a member, if the stream is here and has everything before it.
    fn try_direct(
        &mut self,
        from: Slot,
        user: UserId,
        conversation: ConversationId,
        before: u64,
        seq: u64,
    ) -> Option<u64> {
        let slot = slot_of(user.number());
        let owned = self.slots.get_mut(&slot).filter(|owned| owned.is_ready)?;
        let known = owned.users.get_mut(&user)?;
        let is_here = self.layout.cell(slot) == self.layout.cell(from);
        if !is_here || known.arrived(conversation) < before {
            return None;
        }
        self.transaction.fence(slot, owned.epoch);
        Some(known.place(conversation, seq))
    }

    fn log_in(&mut self, slot: Slot, ticket: Ticket, uid: &Arc<str>, device: &Arc<str>, platform: u32) {
        let Some(owned) = self.slots.get_mut(&slot) else { return };
        let user = owned.uids.get(uid).copied().flatten().unwrap_or_else(|| {
            owned.users_count += 1;
            let user = UserId::new(number_in(slot, owned.users_count));
            owned.uids.insert(uid.clone(), Some(user));
            owned.users.insert(user, User::new(uid.clone()));
            self.transaction.users.push((user, uid.clone()));
            self.transaction.fence(slot, owned.epoch);
            user
        });
        let Some(known) = owned.users.get_mut(&user) else { return };
        let (number, acked, is_new) = if let Some(device) = known.device(device) {
            (device.number, device.acked, false)
        } else {
            let newest = known.devices.iter().map(|device| device.number.0).max().unwrap_or(0);
            let row =
                DeviceRow { number: DeviceNumber(newest + 1), name: device.clone(), platform, acked: 0 };
            let number = row.number;
            known.devices.push(row.clone());
            self.transaction.devices.push((user, row));
            self.transaction.fence(slot, owned.epoch);
            (number, 0, true)
        };
        let cursor = DeviceCursor { device: number, acked, is_new, forgotten: None };
        let logged_in = LoggedIn { user, names: Names::new(&known.uid, device), cursor };
        self.done.push(Done::LoggedIn(ticket, logged_in));
    }

    fn deliver(&mut self, slot: Slot, deliver: &Deliver, from: NodeId) {
        let Deliver { user, conversation, seq, after, origin, .. } = *deliver;
        let Some(owned) = self.slots.get_mut(&slot) else { return };
        let Some(known) = owned.users.get_mut(&user) else { return };
        match chain::judge(known.arrived(conversation), after, seq) {
            Arrival::Next => {
                let position = known.place(conversation, seq);
                let origin = (origin.0 == user).then_some(origin.1);
                let row = ArrivalRow { user, conversation, seq, position, origin };
                self.transaction.arrivals.push(row);
                self.transaction.fence(slot, owned.epoch);
                self.done.push(Done::Arrived(Box::new(deliver.clone()), position));
            }
            Arrival::Repeated | Arrival::TooEarly => self.ignored += 1,
        }
        self.done.push(Done::Confirm(from, conversation, user, known.arrived(conversation)));
    }
}

/// Brings the conversation of two users into being.
fn open_pair(
    owned: &mut OwnedSlot,
    slot: Slot,
    id: &Arc<str>,
    members: &[(UserId, Arc<str>)],
    transaction: &mut Transaction,
) -> ConversationId {
    owned.conversations_count += 1;
    let conversation = ConversationId::new(number_in(slot, owned.conversations_count));
    let member =
        |(user, uid): &(UserId, Arc<str>)| Membership { user: *user, uid: uid.clone(), visible_from: 1 };
    let mut members: Vec<_> = members.iter().map(member).collect();
    members.sort_by_key(|member| member.user);
    members.dedup_by_key(|member| member.user);
    let row = ConversationRow { conversation, id: id.clone(), is_group: false, members };
    transaction.conversations.push(row.clone());
    owned.ids.insert(id.clone(), Some(conversation));
    owned.conversations.insert(conversation, Conversation { row, numbered: 0, stored: 0 });
    conversation
}
