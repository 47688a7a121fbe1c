//! Operations at the owner of a slot: what they need in memory, and what they add to the next transaction.
//!
//! A SEND of alice to bob waits until its conversation and the members whose slots are here, too, are loaded. Then it is judged,
//! gets the next seq, and for bob the next position of bob's stream, or a place in the outbox. Nothing is numbered while a
//! transaction of the same cell is under way, so numbers that were given are right as soon as that transaction is.

use super::devices::NewLogin;
use super::fanout::Audience;
use super::inboxes::Push;
use super::questions::{Answered, Kind, Question};
use super::slot::{Conversation, OUTBOX_MAX, OwnedSlot};
use super::{Layout, Limits, batches::Place};
use crate::cluster::cell::{
    ArrivalRow, Content, ConversationRow, Deliver, EmptiedRow, Ends, Known, ListedRow, Load, Membership,
    MessageRow, Transaction, number_in, slot_of,
};
use crate::cluster::chain::{self, Arrival};
use crate::im::store::rules::recalls;
use crate::im::store::{
    Backlog, ConversationId, DeviceNumber, GroupSettings, LoggedIn, LoginDenied, LoginRule, Member, Origin,
    Refusal, Relation, Role, Ticket, UserId, rules, seal_at,
};
use bytes::{Bytes, BytesMut};
use hashbrown::HashSet;
use moorline_proto::ids::MessageKey;
use moorline_proto::slots::{NodeId, Slot};
use std::collections::{BTreeMap, BTreeSet};
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
    /// Time of the sender's node, in Unix milliseconds.
    pub now_ms: u64,
    /// Seq and id of a message that this one takes back. `None`: this one says something.
    pub recall: Option<(u64, u64)>,
}

/// Place of an answer to an [`Append`] or a [`Question`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asker {
    /// A write of the [`crate::im::Im`] of this node.
    Here(Place),
    /// A prefetch of this node, which waits for a new user; by a number of the asker's.
    Facts(u64),
    /// A question of another node.
    Peer(NodeId, u64),
    /// Nobody waits for it.
    Nobody,
}

/// An operation that waits for its slot.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Append(Append, Asker),
    /// With the order of its event in a transaction whose outcome is unknown.
    Ask(Box<Question>, Asker, Option<u64>),
    Login(Ticket, NewLogin),
    /// From this node.
    Deliver(Deliver, NodeId),
    /// Position, and the Unix time in milliseconds at which the device went; 0: it is there.
    Acked(UserId, DeviceNumber, u64, u64),
    Backlog(Ticket, UserId),
    /// Push of the server API.
    Push(Push),
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
    /// An event, by its place in the transaction, and the answer to its question.
    Told(Asker, Kind, usize),
    /// The answer to a question without an event, at this slot.
    Answered(Asker, Kind, Slot, Result<Answered, Refusal>),
    LoggedIn(Ticket, LoggedIn),
    /// A login of a user for whom there is no room.
    Full(Ticket),
    /// A login that the rule of its user denies.
    Denied(Ticket, UserId, LoginDenied),
    /// The new rule for logins of a user.
    Ruled(UserId, LoginRule),
    /// A user with sessions here was read, and the rule that these may not have met.
    Woken(UserId, Option<LoginRule>),
    Backlog(Ticket, Backlog),
    /// The end of a device.
    Removed(Origin),
    /// A message in a stream, at this position.
    Arrived(Box<Deliver>, u64),
    /// A push into an inbox: its number, the user, the position. `None`: it was there.
    Pushed(u64, UserId, Result<Option<u64>, Refusal>),
    /// The sender's node may forget what a conversation had for a user, up to an order.
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
    pub(super) limits: Limits,
    keys: HashSet<(UserId, MessageKey)>,
    /// New conversations.
    pub(super) opened: BTreeSet<ConversationId>,
    /// Conversations whose settings, creator or end have changed.
    pub(super) changed: BTreeSet<ConversationId>,
    /// Members that have come, gone, or changed.
    pub(super) touched: BTreeSet<(ConversationId, UserId)>,
    /// Invitations to groups, and their ends (false).
    pub(super) invited: BTreeMap<(ConversationId, UserId), bool>,
    /// Changes of lists of conversations.
    pub(super) listed: BTreeMap<(UserId, ConversationId), (Arc<str>, u64, bool)>,
}

impl<'a> Build<'a> {
    pub(super) fn new(
        layout: Layout,
        node: NodeId,
        limits: Limits,
        slots: &'a mut BTreeMap<Slot, OwnedSlot>,
    ) -> Self {
        Self {
            layout,
            slots,
            transaction: Transaction::new(node),
            done: Vec::new(),
            ops: Vec::new(),
            ignored: 0,
            limits,
            keys: HashSet::new(),
            opened: BTreeSet::new(),
            changed: BTreeSet::new(),
            touched: BTreeSet::new(),
            invited: BTreeMap::new(),
            listed: BTreeMap::new(),
        }
    }

    /// Adds what has changed in conversations and lists, as it is now.
    pub(super) fn finish(&mut self) {
        let slots = &*self.slots;
        let place = |of: ConversationId| slots.get(&slot_of(of.number()))?.conversations.get(&of);
        let transaction = &mut self.transaction;
        let opened = self.opened.iter().filter_map(|of| Some(place(*of)?.row.clone()));
        transaction.conversations.extend(opened);
        let changed = self.changed.difference(&self.opened).filter_map(|of| {
            let row = &place(*of)?.row;
            Some(ConversationRow { members: Vec::new(), ..row.clone() })
        });
        transaction.groups.extend(changed);
        for (of, user) in self.touched.iter().filter(|(of, _)| !self.opened.contains(of)) {
            match place(*of).map(|place| place.row.member(*user)) {
                Some(Some(member)) => transaction.members.push((*of, member.clone())),
                Some(None) => transaction.parted.push((*of, *user)),
                None => {}
            }
        }
        let invited = std::mem::take(&mut self.invited).into_iter();
        transaction.invited.extend(invited.map(|((of, user), is_invited)| (of, user, is_invited)));
        let listed = std::mem::take(&mut self.listed).into_iter();
        let listed = listed.map(|((user, conversation), (id, position, is_member))| ListedRow {
            user,
            conversation,
            id,
            position,
            is_member,
        });
        transaction.listed.extend(listed);
    }

    /// True if the same message is in this transaction: whatever is read now does not know of it.
    pub(super) fn is_repeated(&self, op: &Op) -> bool {
        matches!(op, Op::Append(append, _) if self.keys.contains(&(append.origin.0, append.key)))
    }

    /// Reads that an operation at the head of a slot's queue has to wait for.
    pub(super) fn needs(&self, slot: Slot, op: &Op) -> Vec<Load> {
        let Some(owned) = self.slots.get(&slot) else { return Vec::new() };
        match op {
            Op::Append(append, _) => self.needs_of_append(slot, owned, append),
            Op::Ask(question, ..) => self.needs_of_question(slot, owned, question),
            Op::Login(_, NewLogin { uid, .. }) => match owned.uids.get(uid) {
                None => vec![Load::User(uid.clone())],
                Some(_) => Vec::new(),
            },
            Op::Deliver(Deliver { user, .. }, _)
            | Op::Acked(user, ..)
            | Op::Backlog(_, user)
            | Op::Wake(user) => owned.need_of_user(*user),
            Op::Push(push) => Self::needs_of_push(owned, push),
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
                // What was stored before a block is answered as it is stored.
                let row = owned.conversations.get(&conversation).map(|known| &known.row);
                let is_refused =
                    row.is_some_and(|row| self.limits.judge_say(Ok(row), append.origin).is_err());
                if (append.is_repeat || is_refused) && !owned.keys.contains_key(&key) {
                    needs.push(Load::Key(key.0, key.1, key.2));
                }
                if let Some((seq, _)) = append.recall
                    && !owned.bodies.contains_key(&(conversation, seq))
                {
                    needs.push(Load::Bodies(vec![(conversation, Content::Message(seq))]));
                }
                let row = owned.conversations.get(&conversation).map(|known| &known.row);
                row.into_iter().flat_map(|row| &row.members).map(|it| it.member.user).collect()
            }
            (Wanted::Pair(_, members), None) => members.iter().map(|(user, _)| *user).collect(),
            (Wanted::Number(_), None) => Vec::new(),
        };
        needs.extend(self.needs_of_users(slot, &members));
        needs
    }

    /// Users whose streams are here and in the same cell, and who are not in memory.
    pub(super) fn needs_of_users(&self, slot: Slot, users: &[UserId]) -> Vec<Load> {
        let unknown = users.iter().filter(|user| {
            let theirs = slot_of(user.number());
            self.layout.cell(theirs) == self.layout.cell(slot)
                && self.slots.get(&theirs).is_some_and(|it| {
                    it.is_ready && !it.users.contains_key(*user) && !it.absent.contains(&user.number())
                })
        });
        unknown.map(|user| Load::UserNumber(*user)).collect()
    }

    /// Executes an operation whose needs are in memory. False: it has to wait for this transaction.
    pub(super) fn execute(&mut self, slot: Slot, op: &mut Op) -> bool {
        match op {
            Op::Append(append, asker) => {
                if !self.keys.insert((append.origin.0, append.key)) {
                    return false; // the same message is in this transaction
                }
                if let Err(refusal) = self.append(slot, append, *asker) {
                    self.done.push(Done::Refused(*asker, refusal));
                }
            }
            // Invitations to a group that ends in this transaction are not those to the next one of its name.
            Op::Ask(question, ..) if question.creates().is_some_and(|id| self.has_just_ended(slot, id)) => {
                return false;
            }
            Op::Ask(question, ..) if self.is_of_new_device(question) => return false,
            Op::Ask(question, asker, tried) => *tried = self.ask(slot, question, *asker, *tried),
            Op::Login(ticket, login) => return self.log_in(slot, *ticket, login),
            Op::Deliver(deliver, from) => self.deliver(slot, deliver, *from),
            Op::Acked(user, device, position, gone_ms) => {
                self.on_acked(slot, (*user, *device), *position, *gone_ms);
            }
            Op::Backlog(ticket, user) => {
                let known = self.slots.get(&slot).and_then(|owned| owned.users.get(user));
                let end = known.map_or(0, |user| user.durable_end);
                self.done.push(Done::Backlog(*ticket, Backlog { end, unconfirmed: Vec::new() }));
            }
            Op::Push(push) => self.push_to(slot, push),
            Op::Wake(user) => {
                // The read has told what was stored; who was banned elsewhere is to leave before anybody is served.
                let known = self.slots.get(&slot).and_then(|owned| owned.users.get(user));
                let rule = known.map(|user| user.rule).filter(|rule| *rule != LoginRule::default());
                self.done.push(Done::Woken(*user, rule));
            }
        }
        true
    }

    fn append(&mut self, slot: Slot, append: &Append, asker: Asker) -> Result<(), Refusal> {
        let is_new = |owned: &OwnedSlot| matches!(&append.wanted, Wanted::Pair(id, _) if owned.conversation(id).is_none());
        let has_room =
            if self.slots.get(&slot).is_some_and(is_new) { self.judge_conversation() } else { Ok(()) };
        let owned = self.slots.get_mut(&slot).ok_or(Refusal::Moved)?;
        if owned.outbox >= OUTBOX_MAX {
            return Err(Refusal::Moved);
        }
        let sender = append.origin.0;
        let conversation = match &append.wanted {
            Wanted::Number(number) => *number,
            Wanted::Pair(id, members) => {
                let known = owned.conversation(id);
                if known.is_none() {
                    self.limits.judge_say(Err(members.len()), append.origin)?;
                    has_room?;
                }
                known.unwrap_or_else(|| open_pair(owned, slot, id, members, &mut self.opened))
            }
        };
        if let Some(Some(known)) = owned.keys.remove(&(conversation, sender, append.key)) {
            let result = if known.digest == append.digest { Ok(known) } else { Err(Refusal::Conflict) };
            self.done.push(Done::Known(asker, conversation, result));
            return Ok(());
        }
        let place = owned.conversations.get_mut(&conversation).ok_or(Refusal::NotFound)?;
        place.is_used = true;
        let member = place.row.member(sender).ok_or(Refusal::NotMember)?.member;
        if append.recall.is_some() {
            self.recall(slot, conversation, append)?;
        } else {
            self.limits.judge_say(Ok(&place.row), append.origin)?;
            rules::judge_speaker(&member, place.row.settings.is_silent, append.now_ms)?;
        }
        let place = self.slots.get_mut(&slot).and_then(|it| it.place_mut(conversation));
        let place = place.ok_or(Refusal::Moved)?;
        if place.given.seq == 0 && !place.row.is_group {
            // The members may have heard of their relation before. They are told of the conversation with its first message.
            for it in &mut place.row.members {
                it.entered = place.given.order + 1;
                self.touched.insert((conversation, it.member.user));
            }
        }
        place.given.seq += 1;
        // Clients tell a repetition from a new count of seqs by its time, which must not fall [P-6.11].
        place.given.time_ms = place.given.time_ms.max(append.time_ms);
        let Ends { seq, time_ms, .. } = place.given;
        let (order, recipients) = self.fan_out(slot, conversation, Audience::Members(&[]));
        // Who answers has read what was said before.
        let is_counted = append.recall.is_none();
        if is_counted {
            self.read(slot, conversation, sender, seq);
        }
        self.done.push(Done::Stored(asker, self.transaction.messages.len()));
        self.transaction.messages.push(MessageRow {
            conversation,
            seq,
            order,
            origin: append.origin,
            key: append.key,
            id: append.id,
            time_ms,
            digest: append.digest,
            body: seal_at(
                BytesMut::from(&append.body[..]),
                seq,
                (time_ms > append.time_ms).then_some(time_ms),
            ),
            is_counted,
            recipients,
        });
        Ok(())
    }

    /// Empties the message that another one, which gets the next seq, takes back.
    fn recall(&mut self, slot: Slot, conversation: ConversationId, append: &Append) -> Result<(), Refusal> {
        let Some((seq, message_id)) = append.recall else { return Ok(()) };
        let owned = self.slots.get_mut(&slot).ok_or(Refusal::Moved)?;
        let body = owned.bodies.remove(&(conversation, seq)).flatten();
        let place = owned.conversations.get(&conversation).ok_or(Refusal::NotFound)?;
        let it = place.row.member(append.origin.0).ok_or(Refusal::NotMember)?;
        let is_there = seq >= it.member.first_visible() && seq <= place.stored.seq;
        let body = body.filter(|_| is_there).ok_or(Refusal::NotFound)?;
        let wish = recalls::Wish {
            by: &it.uid,
            role: it.member.role(),
            seq,
            message_id,
            is_under_way: false,
            now_ms: append.now_ms,
            window_ms: self.limits.recall_window_ms,
        };
        let judged = recalls::judge(&body, &wish);
        // The next one finds it as it is when this transaction is durable.
        let after = judged.as_ref().unwrap_or(&body).clone();
        let by = place.given.seq + 1;
        owned.bodies.insert((conversation, seq), Some(after));
        self.transaction.emptied.push(EmptiedRow { conversation, seq, by, body: judged? });
        Ok(())
    }

    /// Sets the read mark of a member. False: it does not move.
    pub(super) fn read(&mut self, slot: Slot, conversation: ConversationId, user: UserId, seq: u64) -> bool {
        let owned = self.slots.get_mut(&slot);
        let Some(place) = owned.and_then(|owned| owned.place_mut(conversation)) else {
            return false;
        };
        let seq = seq.min(place.given.seq);
        let members = &mut place.row.members;
        let Ok(at) = members.binary_search_by_key(&user, |it| it.member.user) else { return false };
        let has_moved = members[at].member.read < seq;
        if has_moved {
            members[at].member.read = seq;
            self.touched.insert((conversation, user));
        }
        has_moved
    }

    fn deliver(&mut self, slot: Slot, deliver: &Deliver, from: NodeId) {
        let Deliver { user, conversation, order, after, content, passage, origin, .. } = *deliver;
        let Some(owned) = self.slots.get_mut(&slot) else { return };
        let Some(known) = owned.users.get_mut(&user) else { return };
        known.is_used = true;
        match chain::judge(known.arrived(conversation), after, order) {
            Arrival::Next => {
                let position = known.place(conversation, order);
                let origin = (origin.0 == user).then_some(origin.1);
                let body = if content == Content::Own { deliver.body.clone() } else { Bytes::new() };
                let row = ArrivalRow { user, conversation, order, content, position, origin, body };
                self.transaction.arrivals.push(row);
                self.transaction.fence(slot, owned.epoch);
                let arrived = known.arrived(conversation);
                self.list(user, (conversation, &deliver.id), passage, (order, position));
                self.done.push(Done::Arrived(Box::new(deliver.clone()), position));
                self.done.push(Done::Confirm(from, conversation, user, arrived));
            }
            Arrival::Repeated | Arrival::TooEarly => {
                self.ignored += 1;
                self.done.push(Done::Confirm(from, conversation, user, known.arrived(conversation)));
            }
        }
    }
}

/// Brings the conversation of two users into being.
pub(super) fn open_pair(
    owned: &mut OwnedSlot,
    slot: Slot,
    id: &Arc<str>,
    members: &[(UserId, Arc<str>)],
    opened: &mut BTreeSet<ConversationId>,
) -> ConversationId {
    owned.conversations_count += 1;
    let conversation = ConversationId::new(number_in(slot, owned.conversations_count));
    let member = |(user, uid): &(UserId, Arc<str>)| {
        let member = Member::new(*user, Role::Member, 1);
        Membership { member, uid: uid.clone(), entered: 1, relation: Relation::default() }
    };
    let mut members: Vec<_> = members.iter().map(member).collect();
    members.sort_by_key(|it| it.member.user);
    members.dedup_by_key(|it| it.member.user);
    let row = ConversationRow {
        conversation,
        id: id.clone(),
        is_group: false,
        creator: None,
        settings: GroupSettings::default(),
        is_dissolved: false,
        members,
    };
    open(owned, row, opened);
    conversation
}

/// Brings a conversation into being.
pub(super) fn open(owned: &mut OwnedSlot, row: ConversationRow, opened: &mut BTreeSet<ConversationId>) {
    opened.insert(row.conversation);
    owned.ids.insert(row.id.clone(), Some(row.conversation));
    owned.absent.remove(&row.conversation.number());
    owned.conversations.insert(row.conversation, Conversation::new(row, Ends::default()));
}
