//! The way of a message or event into streams: its order, its receivers, and the lists that change with their entries.
//!
//! `hi` of alice in `group:tea` gets order 7. bob's stream is here and has everything before it: it gets a position there.
//! carol's slot is elsewhere: the message goes into the outbox.

use super::groups::Gone;
use super::ops::Build;
use crate::cluster::cell::{ConversationRow, InvitationRow, Membership, Passage, RecipientRow, slot_of};
use crate::cluster::chain::Chain;
use crate::im::store::{ConversationId, UserId};
use moorline_proto::slots::Slot;
use std::sync::Arc;

/// Users who are told of a message or event.
#[derive(Clone, Copy)]
pub(super) enum Audience<'a> {
    /// All members, and those who are gone.
    Members(&'a [Gone]),
    /// These members.
    Some(&'a [UserId]),
    /// These members of a conversation of two, whose relations have changed.
    Related(&'a [UserId]),
    /// These users, who are invited to a group.
    Invited(&'a [UserId]),
}

impl Build<'_> {
    /// Gives the next order of a conversation to a message or event. Gives positions in the streams that are here and have
    /// everything before it.
    pub(super) fn fan_out(
        &mut self,
        slot: Slot,
        conversation: ConversationId,
        audience: Audience<'_>,
    ) -> (u64, Vec<RecipientRow>) {
        let Some(owned) = self.slots.get_mut(&slot) else { return (0, Vec::new()) };
        let Some(place) = owned.conversations.get_mut(&conversation) else { return (0, Vec::new()) };
        place.is_used = true;
        self.transaction.fence(slot, owned.epoch);
        place.given.order += 1;
        let (order, before) = (place.given.order, place.given.all);
        if matches!(audience, Audience::Members(_)) {
            place.given.all = order;
        }
        let id = place.row.id.clone();
        let users = passages(&place.row, audience, order);
        let mut needed = Vec::with_capacity(users.len());
        for (user, entered, passage) in users {
            let waiting = owned.chains.get(&(user, conversation)).map_or(0, Chain::last);
            let before = if before >= entered { before } else { 0 };
            needed.push((RecipientRow { user, position: None, entered, passage }, before.max(waiting)));
        }
        let mut recipients = Vec::with_capacity(needed.len());
        for (mut recipient, before) in needed {
            recipient.position = self.try_direct(slot, recipient.user, conversation, before, order);
            if let Some(position) = recipient.position {
                self.list(recipient.user, (conversation, &id), recipient.passage, (order, position));
            }
            recipients.push(recipient);
        }
        (order, recipients)
    }

    /// Notes the effect of an entry on the lists of its user.
    pub(super) fn list(
        &mut self,
        user: UserId,
        (conversation, id): (ConversationId, &Arc<str>),
        passage: Passage,
        (order, position): (u64, u64),
    ) {
        let is_member = match passage {
            Passage::Stays => return,
            Passage::Invited => {
                return self.transaction.invitations.push(InvitationRow { user, conversation, order });
            }
            Passage::Relates(other, relation) => {
                return self.list_relation(user, (conversation, id), (other, relation), order);
            }
            Passage::Enters => true,
            Passage::Leaves => false,
        };
        self.listed.insert((user, conversation), (id.clone(), position, is_member));
    }

    /// Gives a message or event a position in the stream of a user, if the stream is here and has everything before it.
    fn try_direct(
        &mut self,
        from: Slot,
        user: UserId,
        conversation: ConversationId,
        before: u64,
        order: u64,
    ) -> Option<u64> {
        let slot = slot_of(user.number());
        let owned = self.slots.get_mut(&slot).filter(|owned| owned.is_ready)?;
        let known = owned.users.get_mut(&user)?;
        known.is_used = true;
        let is_here = self.layout.cell(slot) == self.layout.cell(from);
        if !is_here || known.arrived(conversation) < before {
            return None;
        }
        self.transaction.fence(slot, owned.epoch);
        Some(known.place(conversation, order))
    }
}

/// Users of an audience, with the order from which on each is sent everything, and the effect on each.
fn passages(row: &ConversationRow, audience: Audience<'_>, order: u64) -> Vec<(UserId, u64, Passage)> {
    let passage = |entered: u64| if entered == order { Passage::Enters } else { Passage::Stays };
    match audience {
        Audience::Members(gone) => {
            let members = row.members.iter().map(|it| (it.member.user, it.entered, passage(it.entered)));
            let gone = gone.iter().map(|(user, entered)| (*user, *entered, Passage::Leaves));
            members.chain(gone).collect()
        }
        Audience::Some(users) => {
            let entered = |user: &UserId| row.member(*user).map_or(1, |it| it.entered);
            users.iter().map(|user| (*user, entered(user), passage(entered(user)))).collect()
        }
        Audience::Invited(users) => users.iter().map(|user| (*user, order, Passage::Invited)).collect(),
        Audience::Related(users) => {
            let members = row.members.iter().filter(|it| users.contains(&it.member.user));
            let other = |user| row.members.iter().map(|it| it.member.user).find(|other| *other != user);
            let passage = |it: &Membership| {
                other(it.member.user).map_or(Passage::Stays, |other| Passage::Relates(other, it.relation))
            };
            members.map(|it| (it.member.user, it.entered, passage(it))).collect()
        }
    }
}
