//! Transactions that were answered: what is told to [`crate::im::Im`], to other nodes, and to the members' nodes.

use super::questions::{Answered, Asking, Kind};
use super::slot::Conversation;
use super::{
    AppendedAt, Asker, CONFIRMED_WAIT, CellId, ClusterStore, Done, InFlight, Op, Output, OwnedSlot, Owning,
    PEER_WAIT, PeerMessage, Place, Wanted,
};
use crate::cluster::cell::{
    Applied, Content, Deliver, EventRow, Known, MessageRow, RecipientRow, Transaction, slot_of,
};
use crate::cluster::chain::Chain;
use crate::im::store::{
    ArrivedMessage, Completion, ConversationId, Delivery, DeviceNumber, Draft, LoginRule, Origin, Outcome,
    Recipient, Refusal, Stored, Target, UserId,
};
use bytes::Bytes;
use moorline_proto::slots::{NodeId, Slot};
use std::collections::BTreeMap;

/// Author of a message that nobody is told of.
const NO_ORIGIN: Origin = (UserId::MAX, DeviceNumber(u32::MAX));

/// A message or event on its way to streams.
struct Sent<'a> {
    conversation: ConversationId,
    order: u64,
    content: Content,
    origin: Origin,
    body: &'a Bytes,
}

/// The answer to an [`super::Append`] at its owner.
pub(super) type Answer = Result<(AppendedAt, Bytes, Origin), Refusal>;

impl ClusterStore {
    /// Puts a SEND of this node's [`crate::im::Im`] on its way.
    pub(super) fn append(&mut self, place: Place, draft: Draft, recall: Option<(u64, u64)>) {
        let Draft { sender, device, target, key, id, time_ms, digest, body, is_repeat } = draft;
        let wanted = match target {
            Target::Conversation(conversation) => Some(Wanted::Number(conversation)),
            Target::User(peer) => self.known.id_of_two(sender, peer).map(|id| {
                let uids = [sender, peer].map(|user| self.known.uid(user).map(|uid| (user, uid.clone())));
                Wanted::Pair(id, uids.into_iter().flatten().collect())
            }),
        };
        let wanted = wanted.filter(|_| self.judge_author((sender, device)).is_ok());
        let Some(wanted) = wanted else { return self.answer(Asker::Here(place), Err(Refusal::Moved), &[]) };
        let slot = wanted.slot();
        let (origin, body) = ((sender, device), body.freeze());
        let now_ms = self.now_ms;
        let append =
            super::Append { wanted, origin, key, id, time_ms, digest, body, is_repeat, now_ms, recall };
        match self.table.owner(slot).node {
            Some(node) if node != self.me && !self.slots.contains_key(&slot) => {
                self.last_request += 1;
                let request = self.last_request;
                self.appends.insert(request, (place, self.now + PEER_WAIT));
                self.out.push_back(Output::Peer(node, PeerMessage::Append(request, append)));
            }
            _ => self.push(slot, Op::Append(append, Asker::Here(place))),
        }
    }

    /// Takes the answer of another node to a SEND.
    pub(super) fn on_appended(&mut self, request: u64, result: Result<AppendedAt, Refusal>) {
        let Some((place, _)) = self.appends.remove(&request) else { return };
        self.status.forwarded += u64::from(result.is_ok());
        let answer = result.map(|at| (at, Bytes::new(), NO_ORIGIN));
        self.answer(Asker::Here(place), answer, &[]);
    }

    /// Answers a SEND. `recipients` have it in their streams, on this node.
    pub(super) fn answer(&mut self, asker: Asker, answer: Answer, recipients: &[Recipient]) {
        self.status.moved += u64::from(matches!(answer, Err(Refusal::Moved)));
        match (asker, answer) {
            (Asker::Here(place), Ok((at, body, _))) => {
                let AppendedAt { conversation, known: Known { seq, id, time_ms, .. }, .. } = at;
                self.known.learn_head(conversation, &at.id, at.is_group, seq, at.members);
                let delivery = Delivery { body, recipients: 0..0, is_read_fanout: false };
                let delivery = (!at.is_repeat).then_some(delivery);
                let mut stored = Stored { conversation, seq, id, time_ms, delivery };
                if let Some(delivery) = &mut stored.delivery {
                    delivery.recipients = self.batches.add(place.ticket, recipients);
                }
                self.batches.set(place, Outcome::Appended(Ok(stored)));
            }
            (Asker::Here(place), Err(refusal)) => {
                self.batches.set(place, Outcome::Appended(Err(refusal)));
            }
            (Asker::Facts(_) | Asker::Nobody, _) => {} // no message
            (Asker::Peer(node, request), Ok((at, body, origin))) => {
                let conversation = at.conversation;
                self.known.learn_head(conversation, &at.id, at.is_group, at.known.seq, at.members);
                self.tell(Some(conversation), origin, body, recipients);
                self.out.push_back(Output::Peer(node, PeerMessage::Appended(request, Ok(at))));
            }
            (Asker::Peer(node, request), Err(refusal)) => {
                self.out.push_back(Output::Peer(node, PeerMessage::Appended(request, Err(refusal))));
            }
        }
    }

    /// Tells the [`crate::im::Im`] of this node that a message, or an event (`None`), is in streams of its users.
    pub(super) fn tell(
        &mut self,
        conversation: Option<ConversationId>,
        origin: Origin,
        body: Bytes,
        recipients: &[Recipient],
    ) {
        if body.is_empty() {
            return self.arrived.grown.extend_from_slice(recipients);
        }
        if recipients.is_empty() {
            return;
        }
        let first = self.arrived.recipients.len();
        self.arrived.recipients.extend_from_slice(recipients);
        let recipients = first..self.arrived.recipients.len();
        let delivery = Delivery { body, recipients, is_read_fanout: false };
        self.arrived.messages.push(ArrivedMessage { conversation, origin, delivery });
    }

    /// Takes the confirmation of a member's node.
    pub(super) fn on_delivered(&mut self, conversation: ConversationId, user: UserId, order: u64) {
        let slot = slot_of(conversation.number());
        if let Some(owned) = self.slots.get_mut(&slot) {
            owned.confirm(user, conversation, order);
            if !owned.confirmed.is_empty() {
                self.active.confirmed.insert(slot);
                self.clean_at.get_or_insert(self.now + CONFIRMED_WAIT);
            }
        }
    }
}

/// Effects of transactions.
pub(super) struct Outcomes<'a> {
    pub(super) store: &'a mut ClusterStore,
}

impl Outcomes<'_> {
    /// Takes the result of a transaction. `None`: its outcome is unknown.
    pub(super) fn on_commit(&mut self, cell: CellId, applied: Option<&Applied>) {
        let Some(InFlight { transaction, done, ops }) = self.store.lanes.remove(&cell) else { return };
        let Some(applied) = applied else { return self.recover(&transaction, ops) };
        self.store.status.transactions += 1;
        for (slot, epoch) in &transaction.fences {
            let is_lost = applied.lost.contains(slot);
            self.store.status.fenced += u64::from(is_lost);
            if is_lost && self.store.slots.get(slot).is_some_and(|owned| owned.epoch == *epoch) {
                self.store.drop_slot(*slot);
            }
        }
        self.perform(&transaction, done, applied);
    }

    /// The outcome is unknown: the slots are taken over anew, and everything is done again with a look at the keys.
    fn recover(&mut self, transaction: &Transaction, ops: Vec<(Slot, Op)>) {
        self.store.status.unknown += 1;
        for (slot, mut op) in ops.into_iter().rev() {
            if let Op::Append(append, _) = &mut op {
                append.is_repeat = true;
            }
            match self.store.slots.get_mut(&slot) {
                Some(owned) => {
                    owned.queue.push_front(op);
                    self.store.active.busy.insert(slot);
                }
                None => self.store.refuse(&op),
            }
        }
        let fences = transaction.fences.iter().filter(|(slot, epoch)| {
            self.store.slots.get(slot).is_some_and(|owned| owned.is_ready && owned.epoch == *epoch)
        });
        let claims: Vec<_> = fences.copied().collect();
        Owning { store: self.store }.claim(&claims);
    }

    /// Does what follows a durable transaction, or operations that needed none.
    pub(super) fn perform(&mut self, transaction: &Transaction, done: Vec<Done>, applied: &Applied) {
        for done in done {
            match done {
                Done::Stored(asker, index) => {
                    let message = &transaction.messages[index];
                    let known = applied.known.iter().find(|(at, _)| *at == index).map(|(_, known)| *known);
                    self.on_stored(asker, message, known, applied, transaction);
                }
                Done::Known(asker, conversation, result) => {
                    let answer =
                        result.and_then(|known| answer_of(&self.store.slots, conversation, known, true));
                    self.store.status.found += u64::from(answer.is_ok());
                    let answer = answer.map(|at| (at, Bytes::new(), NO_ORIGIN));
                    self.store.answer(asker, answer, &[]);
                }
                Done::Refused(asker, refusal) => self.store.answer(asker, Err(refusal), &[]),
                Done::Told(asker, kind, index) => {
                    self.on_told((asker, kind), &transaction.events[index], applied, transaction);
                }
                Done::Answered(asker, kind, slot, result) => {
                    let result = if applied.lost.contains(&slot) { Err(Refusal::Moved) } else { result };
                    Asking { store: self.store }.answer_question(asker, kind, result, None, &[]);
                }
                Done::LoggedIn(ticket, logged_in) => {
                    let slot = slot_of(logged_in.user.number());
                    let logged_in = (!applied.lost.contains(&slot)).then_some(logged_in);
                    if let Some(logged_in) = &logged_in {
                        self.store.known.learn_user(logged_in.user, logged_in.names.uid());
                        *self.store.online.entry(logged_in.user).or_default() += 1;
                    }
                    self.store.done.push_back((ticket, Completion::LoggedIn(logged_in)));
                }
                Done::Full(ticket) => self.store.done.push_back((ticket, Completion::LoggedIn(None))),
                Done::Pushed(of, user, result) => self.on_pushed((of, user), result, applied, transaction),
                Done::Denied(ticket, user, denied) => {
                    let is_lost = applied.lost.contains(&slot_of(user.number()));
                    let denied =
                        if is_lost { Completion::LoggedIn(None) } else { Completion::LoginDenied(denied) };
                    self.store.done.push_back((ticket, denied));
                }
                Done::Ruled(user, rule) => self.on_ruled(user, rule, applied),
                Done::Woken(user, rule) => {
                    let rule = rule.map(|rule| self.of_now(rule));
                    self.store.woken.push((user, rule));
                }
                Done::Removed((user, device)) => {
                    // It may have logged in again before the removal was due.
                    if !applied.lost.contains(&slot_of(user.number())) {
                        self.store.arrived.removed.push((user, device));
                    }
                }
                Done::Backlog(ticket, backlog) => {
                    self.store.done.push_back((ticket, Completion::Backlog(backlog)));
                }
                Done::Arrived(deliver, position) => {
                    let Deliver { user, conversation, content, origin, body, .. } = (*deliver).clone();
                    if !applied.lost.contains(&slot_of(user.number())) {
                        self.on_durable(user, position, transaction);
                        self.store.known.learn_delivered(&deliver);
                        let conversation = matches!(content, Content::Message(_)).then_some(conversation);
                        self.store.tell(conversation, origin, body, &[Recipient { user, position }]);
                    }
                }
                Done::Confirm(node, conversation, user, order) => {
                    if !applied.lost.contains(&slot_of(user.number())) {
                        self.confirm(node, conversation, user, order);
                    }
                }
            }
        }
    }

    /// Has sessions of a user end that a rule denies now.
    fn on_ruled(&mut self, user: UserId, rule: LoginRule, applied: &Applied) {
        if !applied.lost.contains(&slot_of(user.number())) {
            self.store.arrived.ruled.push((user, self.of_now(rule)));
        }
    }

    /// A rule without a ban that is over.
    const fn of_now(&self, rule: LoginRule) -> LoginRule {
        let is_over = rule.banned_until_s <= self.store.now_ms / 1000;
        let banned_until_s = if is_over { 0 } else { rule.banned_until_s };
        LoginRule { banned_until_s, ..rule }
    }

    /// Takes what the fence and the keys say of a message.
    fn on_stored(
        &mut self,
        asker: Asker,
        message: &MessageRow,
        known: Option<Known>,
        applied: &Applied,
        transaction: &Transaction,
    ) {
        let MessageRow { conversation, seq, order, id, time_ms, digest, .. } = *message;
        let slot = slot_of(conversation.number());
        if applied.lost.contains(&slot) {
            self.forget_streams(&message.recipients);
            return self.store.answer(asker, Err(Refusal::Moved), &[]);
        }
        if let Some(known) = known {
            self.store.status.voids += 1;
            // What it was to take back may be as it was.
            if let Some(owned) = self.store.slots.get_mut(&slot) {
                owned.bodies.clear();
            }
            self.forget_streams(&message.recipients);
            let same = if known.digest == digest { Ok(known) } else { Err(Refusal::Conflict) };
            let answer = same.and_then(|known| answer_of(&self.store.slots, conversation, known, true));
            return self.store.answer(asker, answer.map(|at| (at, Bytes::new(), message.origin)), &[]);
        }
        self.store.status.messages += 1;
        let sent = Sent {
            conversation,
            order,
            content: Content::Message(seq),
            origin: message.origin,
            body: &message.body,
        };
        let recipients = self.send(&sent, &message.recipients, applied, transaction);
        if let Some(place) = self.conversation_mut(conversation) {
            place.stored.seq = place.stored.seq.max(seq);
            place.stored.time_ms = place.stored.time_ms.max(time_ms);
            place.stored.order = place.stored.order.max(order);
            place.stored.all = place.stored.all.max(order);
        }
        let answer = answer_of(&self.store.slots, conversation, Known { seq, id, time_ms, digest }, false);
        self.store.answer(asker, answer.map(|at| (at, message.body.clone(), message.origin)), &recipients);
    }

    /// Takes what the fence says of an event.
    fn on_told(
        &mut self,
        (asker, kind): (Asker, Kind),
        event: &EventRow,
        applied: &Applied,
        transaction: &Transaction,
    ) {
        let EventRow { conversation, order, number, is_for_all, origin, body, .. } = event;
        let (conversation, order, origin) = (*conversation, *order, *origin);
        if applied.lost.contains(&slot_of(conversation.number())) {
            self.forget_streams(&event.recipients);
            return Asking { store: self.store }.answer_question(asker, kind, Err(Refusal::Moved), None, &[]);
        }
        self.store.status.events += 1;
        let content = number.map_or(Content::Own, Content::Event);
        let sent = Sent { conversation, order, content, origin, body };
        let recipients = self.send(&sent, &event.recipients, applied, transaction);
        let mut is_gone = false;
        let answer = self.conversation_mut(conversation).map(|place| {
            place.stored.order = place.stored.order.max(order);
            if *is_for_all {
                place.stored.all = place.stored.all.max(order);
            }
            place.stored.events = place.stored.events.max(number.unwrap_or(0));
            is_gone = place.row.is_dissolved;
            match kind {
                Kind::Related => place.related(origin.0, true),
                Kind::Created | Kind::Done => Answered::Conversation(place.head(), true),
            }
        });
        self.store.known.touch(conversation);
        if is_gone {
            let cell = self.store.layout.cell(slot_of(conversation.number()));
            self.store.sweeper.wake(cell, self.store.now);
        }
        let answer = answer.ok_or(Refusal::Moved);
        Asking { store: self.store }.answer_question(
            asker,
            kind,
            answer,
            Some((body.clone(), origin)),
            &recipients,
        );
    }

    fn conversation_mut(&mut self, conversation: ConversationId) -> Option<&mut Conversation> {
        let owned = self.store.slots.get_mut(&slot_of(conversation.number()))?;
        owned.place_mut(conversation)
    }

    /// Forgets the streams that counted a message or event which is not stored under this order: another one may get the order,
    /// and must not be taken for one that has arrived.
    fn forget_streams(&mut self, recipients: &[RecipientRow]) {
        for RecipientRow { user, .. } in recipients {
            if let Some(owned) = self.store.slots.get_mut(&slot_of(user.number())) {
                owned.forget_user(*user);
            }
            if self.store.online.contains_key(user) {
                self.store.push(slot_of(user.number()), Op::Wake(*user));
            }
        }
    }

    /// Takes a durable message or event to its receivers: returns those who have it in their streams, on this node; the others
    /// have it in the outbox.
    fn send(
        &mut self,
        sent: &Sent<'_>,
        receivers: &[RecipientRow],
        applied: &Applied,
        transaction: &Transaction,
    ) -> Vec<Recipient> {
        let mut recipients = Vec::new();
        for receiver in receivers {
            let user = receiver.user;
            match receiver.position.filter(|_| !applied.lost.contains(&slot_of(user.number()))) {
                Some(position) => {
                    self.store.status.direct += 1;
                    self.on_durable(user, position, transaction);
                    recipients.push(Recipient { user, position });
                }
                None => self.put_outbox(sent, receiver, transaction),
            }
        }
        recipients
    }

    /// Puts a message or event into the outbox in memory, as the transaction did in the cell.
    fn put_outbox(&mut self, sent: &Sent<'_>, receiver: &RecipientRow, transaction: &Transaction) {
        let (slot, user) = (slot_of(sent.conversation.number()), receiver.user);
        let epoch = transaction.fences.iter().find(|(known, _)| *known == slot).map(|(_, epoch)| *epoch);
        let owned =
            self.store.slots.get_mut(&slot).filter(|owned| owned.is_ready && Some(owned.epoch) == epoch);
        let Some(owned) = owned else { return };
        let Some(place) = owned.conversations.get(&sent.conversation) else { return };
        let before = if place.stored.all >= receiver.entered { place.stored.all } else { 0 };
        let waiting = owned.chains.get(&(user, sent.conversation)).map_or(0, Chain::last);
        let deliver = Deliver {
            user,
            conversation: sent.conversation,
            id: place.row.id.clone(),
            is_group: place.row.is_group,
            members: place.row.members.len(),
            visible_from: place.row.member(user).map_or(1, |it| it.member.visible_from),
            order: sent.order,
            after: before.max(waiting),
            content: sent.content,
            passage: receiver.passage,
            origin: sent.origin,
            body: sent.body.clone(),
        };
        owned.put_outbox(deliver);
        self.store.active.chained.insert(slot);
    }

    /// Notes that the stream of a user is durable up to a position.
    pub(super) fn on_durable(&mut self, user: UserId, position: u64, transaction: &Transaction) {
        let slot = slot_of(user.number());
        let owned = self.store.slots.get_mut(&slot).filter(|owned| {
            let epoch = owned.epoch;
            owned.is_ready && transaction.fences.contains(&(slot, epoch))
        });
        if let Some(known) = owned.and_then(|owned| owned.user_mut(user)) {
            known.durable_end = known.durable_end.max(position);
        }
    }

    /// Tells the sender's node that messages are in a stream.
    fn confirm(&mut self, node: NodeId, conversation: ConversationId, user: UserId, order: u64) {
        if node == self.store.me {
            self.store.on_delivered(conversation, user, order);
        } else {
            self.store.out.push_back(Output::Peer(node, PeerMessage::Delivered(conversation, user, order)));
        }
    }

    /// Adds the outbox rows of a cell that are not needed any more to its transaction.
    pub(super) fn add_confirmed(&mut self, cell: CellId, transaction: &mut Transaction) {
        let layout = self.store.layout;
        let here: Vec<_> =
            self.store.active.confirmed.iter().copied().filter(|slot| layout.cell(*slot) == cell).collect();
        for slot in here {
            self.store.active.confirmed.remove(&slot);
            if let Some(owned) = self.store.slots.get_mut(&slot).filter(|owned| owned.is_ready) {
                transaction.fence(slot, owned.epoch);
                transaction.confirmed.append(&mut owned.confirmed);
            }
        }
        if self.store.active.confirmed.is_empty() {
            self.store.clean_at = None;
        }
    }

    /// Sends the messages of outboxes whose turn it is.
    pub(super) fn send_chains(&mut self) {
        let mut own = Vec::new();
        let is_chained =
            |slot: &Slot| self.store.slots.get(slot).is_some_and(|owned| !owned.chains.is_empty());
        self.store.active.chained.retain(is_chained);
        for slot in &self.store.active.chained {
            let Some(owned) = self.store.slots.get_mut(slot).filter(|owned| owned.is_ready) else { continue };
            for ((user, _), chain) in &mut owned.chains {
                let Some(node) = self.store.table.owner(slot_of(user.number())).node else { continue };
                while let Some(link) = chain.poll(self.store.now) {
                    self.store.status.delivers += 1;
                    let deliver = link.message.clone();
                    if node == self.store.me {
                        own.push(deliver);
                    } else {
                        self.store.out.push_back(Output::Peer(node, PeerMessage::Deliver(deliver)));
                    }
                }
            }
        }
        for deliver in own {
            let slot = slot_of(deliver.user.number());
            if self.store.slots.contains_key(&slot) {
                self.store.push(slot, Op::Deliver(deliver, self.store.me));
            }
        }
    }
}

/// The answer to a SEND that is stored.
fn answer_of(
    slots: &BTreeMap<Slot, OwnedSlot>,
    conversation: ConversationId,
    known: Known,
    is_repeat: bool,
) -> Result<AppendedAt, Refusal> {
    let owned = slots.get(&slot_of(conversation.number()));
    let place = owned.and_then(|owned| owned.conversations.get(&conversation));
    let row = &place.ok_or(Refusal::Moved)?.row;
    let (id, is_group, members) = (row.id.clone(), row.is_group, row.members.len());
    Ok(AppendedAt { conversation, id, is_group, members, known, is_repeat })
}
