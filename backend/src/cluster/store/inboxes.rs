//! Pushes of the server API into inboxes of users whose slots are this node's.
//!
//! A shop has news for alice and bob: each gets an entry with the text itself in a transaction of the own cell, and the push is answered
//! when both are durable. Entries of pushes count as those of a conversation that nobody has ([`pushes_to`]), with an order for each
//! user: so after an unknown outcome the read of the user tells whether the entry is there. With a key of the caller's, the row of the
//! key does, also after the end of the call: a repetition finds it, at whichever node.

use super::commit::Outcomes;
use super::ops::{Build, Done, Op};
use super::slot::OwnedSlot;
use super::{ClusterStore, Place};
use crate::cluster::cell::{Applied, ArrivalRow, Content, Load, PushedRow, Transaction, number_in, slot_of};
use crate::im::store::{API_DEVICE, ConversationId, Delivery, Outcome, Recipient, Refusal, TellKey, UserId};
use bytes::Bytes;
use moorline_proto::slots::Slot;
use std::collections::BTreeMap;

/// A push to one user.
#[derive(Clone, Debug)]
pub(super) struct Push {
    pub(super) user: UserId,
    /// The encoded push.
    event: Bytes,
    /// Number of the push to all its users.
    of: u64,
    key: Option<TellKey>,
    /// Order of the entry in a transaction whose outcome is unknown. `None`: there was none.
    tried: Option<u64>,
}

/// A push to several users.
#[derive(Debug)]
struct Open {
    place: Place,
    event: Bytes,
    /// Users without an outcome.
    missing: usize,
    recipients: Vec<Recipient>,
    refusal: Option<Refusal>,
}

/// Pushes whose users have not all got them, by number.
#[derive(Debug, Default)]
pub(super) struct Inboxes {
    open: BTreeMap<u64, Open>,
    last: u64,
}

/// The conversation that pushes to a user count as: no conversation has this number.
fn pushes_to(user: UserId) -> ConversationId {
    ConversationId::new(number_in(slot_of(user.number()), 0))
}

/// The pushes of a node.
pub(super) struct Pushing<'a> {
    pub(super) store: &'a mut ClusterStore,
}

impl Pushing<'_> {
    /// Puts a push on its way. Nothing is done if the slot of a user is elsewhere.
    pub(super) fn push(&mut self, place: Place, users: &[UserId], event: &Bytes, key: Option<TellKey>) {
        let is_here = |user: &UserId| self.store.slots.contains_key(&slot_of(user.number()));
        if !users.iter().all(is_here) {
            return self.store.batches.set(place, Outcome::Done(Err(Refusal::Moved)));
        }
        self.store.inboxes.last += 1;
        let (of, missing) = (self.store.inboxes.last, users.len());
        let open = Open { place, event: event.clone(), missing, recipients: Vec::new(), refusal: None };
        self.store.inboxes.open.insert(of, open);
        for user in users {
            let push = Push { user: *user, event: event.clone(), of, key, tried: None };
            self.store.push(slot_of(user.number()), Op::Push(push));
        }
        self.end(of);
    }

    /// Answers a push to a user whose slot is not here any more.
    pub(super) fn refuse(&mut self, push: &Push) {
        self.on_pushed(push.of, Err(Refusal::Moved));
    }

    /// Takes the outcome of a push for one user. `None`: it was there, and the read of the user has told so.
    fn on_pushed(&mut self, of: u64, result: Result<Option<Recipient>, Refusal>) {
        let Some(open) = self.store.inboxes.open.get_mut(&of) else { return };
        open.missing = open.missing.saturating_sub(1);
        match result {
            Ok(recipient) => open.recipients.extend(recipient),
            Err(refusal) => open.refusal = Some(refusal),
        }
        self.end(of);
    }

    /// Answers a push that is done.
    fn end(&mut self, of: u64) {
        if self.store.inboxes.open.get(&of).is_none_or(|open| open.missing > 0) {
            return;
        }
        let Some(open) = self.store.inboxes.open.remove(&of) else { return };
        let Open { place, event, recipients, refusal, .. } = open;
        let outcome = if let Some(refusal) = refusal {
            // Who has it is told all the same.
            self.store.tell(None, (UserId::MAX, API_DEVICE), event, &recipients);
            Err(refusal)
        } else {
            let recipients = self.store.batches.add(place.ticket, &recipients);
            Ok(Some(Delivery { body: event, recipients, is_read_fanout: false }))
        };
        self.store.batches.set(place, Outcome::Done(outcome));
    }
}

impl Outcomes<'_> {
    /// Takes what the fence says of a push for one user.
    pub(super) fn on_pushed(
        &mut self,
        (of, user): (u64, UserId),
        result: Result<Option<u64>, Refusal>,
        applied: &Applied,
        transaction: &Transaction,
    ) {
        let is_lost = applied.lost.contains(&slot_of(user.number()));
        let result = if is_lost { Err(Refusal::Moved) } else { result };
        if let Ok(Some(position)) = result {
            self.on_durable(user, position, transaction);
        }
        let result = result.map(|it| it.map(|position| Recipient { user, position }));
        Pushing { store: self.store }.on_pushed(of, result);
    }
}

impl Build<'_> {
    /// Reads that a push has to wait for.
    pub(super) fn needs_of_push(owned: &OwnedSlot, Push { user, key, .. }: &Push) -> Vec<Load> {
        let mut needs = owned.need_of_user(*user);
        let key = key.map(|key| key.key).filter(|key| !owned.pushed.contains_key(&(*user, *key)));
        needs.extend(key.map(|key| Load::Pushed(*user, key)));
        needs
    }

    /// Adds a push to the stream of its user, unless it is there: under its key, or since a transaction of unknown outcome.
    pub(super) fn push_to(&mut self, slot: Slot, push: &mut Push) {
        let Push { user, of, key, .. } = *push;
        let conversation = pushes_to(user);
        let Some(owned) = self.slots.get_mut(&slot) else { return };
        let epoch = owned.epoch;
        let first = key.and_then(|TellKey { key, .. }| owned.pushed.get(&(user, key)).copied().flatten());
        if let Some(first) = first {
            let is_same = key.is_some_and(|key| key.digest == first);
            let result = if is_same { Ok(None) } else { Err(Refusal::Conflict) };
            return self.done.push(Done::Pushed(of, user, result));
        }
        let Some(known) = owned.user_mut(user) else {
            return self.done.push(Done::Pushed(of, user, Err(Refusal::Moved)));
        };
        let arrived = known.arrived(conversation);
        if push.tried.is_some_and(|order| order <= arrived) {
            return self.done.push(Done::Pushed(of, user, Ok(None)));
        }
        let order = arrived + 1;
        push.tried = Some(order);
        let position = known.place(conversation, order);
        if let Some(TellKey { key, digest, .. }) = key {
            owned.pushed.insert((user, key), Some(digest));
            self.transaction.pushed.push(PushedRow { user, key, digest, position });
        }
        let (content, origin, body) = (Content::Own, None, push.event.clone());
        self.transaction.arrivals.push(ArrivalRow {
            user,
            conversation,
            order,
            content,
            position,
            origin,
            body,
        });
        self.transaction.fence(slot, epoch);
        self.done.push(Done::Pushed(of, user, Ok(Some(position))));
    }
}
