//! Lists of conversations: a user's list is in the user's cell, each conversation in its own.
//!
//! alice asks for her list: her cell names the 64 conversations that she has been in for the shortest time; their cells say how
//! far each goes, what she has read, and its newest message. The list is cut after some bytes, or goes on with the next 64.

use super::CellId;
use super::ownership::Pending;
use super::reads::Reading;
use crate::cluster::cell::{CellRequest, ListedState, Load, Loaded, slot_of};
use crate::im::store::rules::relations::Both;
use crate::im::store::rules::{Contact, Wish};
use crate::im::store::{Completion, ConversationId, Listed, Listing, Refusal, Ticket, UserId};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Conversations that are read at once.
const LISTED_MAX: usize = 64;
/// Bytes that an entry has at least, beside its newest message.
const LISTED_BYTES: usize = 16;

/// A list that is being read.
#[derive(Debug)]
pub(super) struct ListRead {
    user: UserId,
    listing: Listing,
    /// Bytes that may follow.
    left: usize,
    /// Conversations of this piece, newest membership first.
    order: Vec<ConversationId>,
    states: HashMap<ConversationId, ListedState>,
    /// Cells whose conversations are missing.
    missing: usize,
    /// Further conversations follow those in `order`.
    has_more: bool,
}

impl Reading<'_> {
    /// Reads the list of a user whose slot is this node's.
    pub(super) fn read_listing(&mut self, ticket: Ticket, user: UserId, after: String, bytes: usize) {
        let read = ListRead {
            user,
            listing: Listing::default(),
            left: bytes,
            order: Vec::new(),
            states: HashMap::new(),
            missing: 0,
            has_more: false,
        };
        self.store.reads.listings.insert(ticket, read);
        self.ask_listing(ticket, user, after.into());
    }

    fn ask_listing(&mut self, ticket: Ticket, user: UserId, after: Arc<str>) {
        let load = Load::Listing(user, after, LISTED_MAX + 1);
        let cell = self.store.layout.cell(slot_of(user.number()));
        self.store.ask(cell, CellRequest::Load(vec![load.clone()]), Pending::Listing(ticket, load));
    }

    pub(super) fn on_listing(&mut self, ticket: Ticket, loaded: Vec<Loaded>) {
        let Some(mut read) = self.store.reads.listings.remove(&ticket) else { return };
        let Some(Loaded::Listing(Some(mut order))) = loaded.into_iter().next() else {
            return self.store.done.push_back((ticket, Completion::Listing(Err(Refusal::NotFound))));
        };
        read.has_more = order.len() > LISTED_MAX;
        order.truncate(LISTED_MAX);
        let mut by_cell = BTreeMap::<CellId, Vec<ConversationId>>::new();
        for conversation in &order {
            let cell = self.store.layout.cell(slot_of(conversation.number()));
            by_cell.entry(cell).or_default().push(*conversation);
        }
        (read.order, read.missing) = (order, by_cell.len());
        let user = read.user;
        self.store.reads.listings.insert(ticket, read);
        if by_cell.is_empty() {
            return self.finish_listing(ticket);
        }
        for (cell, conversations) in by_cell {
            let loads = vec![Load::Listed(user, conversations)];
            self.store.ask(cell, CellRequest::Load(loads.clone()), Pending::Listed(ticket, loads));
        }
    }

    pub(super) fn on_listed(&mut self, ticket: Ticket, loaded: Vec<Loaded>) {
        let Some(read) = self.store.reads.listings.get_mut(&ticket) else { return };
        for loaded in loaded {
            if let Loaded::Listed(states) = loaded {
                read.states.extend(states.into_iter().map(|state| (state.conversation, state)));
            }
        }
        read.missing -= 1;
        if read.missing == 0 {
            self.finish_listing(ticket);
        }
    }

    /// Takes a piece of the list.
    fn finish_listing(&mut self, ticket: Ticket) {
        let Some(mut read) = self.store.reads.listings.remove(&ticket) else { return };
        let (user, mut last) = (read.user, None);
        for conversation in std::mem::take(&mut read.order) {
            // A membership that has just ended is in the list until the user's stream has heard of it.
            let Some(state) = read.states.remove(&conversation) else { continue };
            if read.left == 0 {
                read.listing.more = true;
                break;
            }
            last = Some(state.id.clone());
            if state.own.cleared > 0 && state.own.cleared >= state.latest {
                continue; // hidden
            }
            let bytes = LISTED_BYTES + state.last.as_ref().map_or(0, bytes::Bytes::len);
            read.left = read.left.saturating_sub(bytes);
            let entry = self.listed(state);
            read.listing.entries.push(entry);
        }
        if let Some(last) = last.filter(|_| read.has_more && !read.listing.more) {
            self.store.reads.listings.insert(ticket, read);
            return self.ask_listing(ticket, user, last);
        }
        self.store.done.push_back((ticket, Completion::Listing(Ok(read.listing))));
    }

    fn listed(&self, state: ListedState) -> Listed {
        let ListedState { conversation: _, id, latest, members, own, peer, relations, unread, last } = state;
        let Both { own: mine, theirs } = relations;
        let contact = Contact { own: mine, theirs, ..Contact::default() };
        let may_know = self.store.limits.rules.judge(Wish::Say, contact).is_ok();
        let peer_read = peer.filter(|_| may_know).map_or(0, |peer| peer.read);
        Listed { id: id.to_string(), latest, members, unread, read: own.read, peer_read, last }
    }
}
