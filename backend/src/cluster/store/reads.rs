//! Reads: for operations that wait, for prefetches, and of streams and history.
//!
//! bob's phone is behind: its next 64 entries are read from bob's cell, then their messages from the cells of their conversations,
//! and then one completion has both. A read whose connection ended is asked for again.

use super::listing::ListRead;
use super::ownership::Pending;
use super::prefetch::{InvitationsRead, Whose};
use super::{CellId, ClusterStore, Op};
use crate::cluster::cell::{CellRequest, Content, EVENTS_MAX, EntryRow, Load, Loaded, slot_of};
use crate::im::store::{
    Completion, ConversationId, Entry, Page, PageLimits, Recipient, Refusal, StreamPage, Ticket, UserId,
};
use bytes::Bytes;
use moorline_proto::slots::Slot;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Reads that are under way in several parts.
#[derive(Debug, Default)]
pub(super) struct Reads {
    /// Parts of prefetches that are missing.
    pub(super) facts: HashMap<Ticket, usize>,
    pub(super) invitations: HashMap<Ticket, InvitationsRead>,
    streams: HashMap<Ticket, StreamRead>,
    pub(super) listings: HashMap<Ticket, ListRead>,
    profiles: HashMap<Ticket, ProfileRead>,
}

/// A read of a stream.
#[derive(Debug)]
pub(super) struct StreamRead {
    ticket: Ticket,
    user: UserId,
    after: u64,
    end: u64,
    limit: usize,
    into: Vec<(u64, Entry)>,
    rows: Vec<EntryRow>,
    bodies: HashMap<(ConversationId, Content), Bytes>,
    /// Number of the newest event of each conversation.
    events: HashMap<ConversationId, u64>,
    /// Cells whose messages are missing.
    missing: usize,
}

/// A read of profiles.
#[derive(Debug)]
struct ProfileRead {
    /// Names in the order in which they were asked for.
    uids: Vec<Arc<str>>,
    found: HashMap<Arc<str>, Bytes>,
    /// Cells whose profiles are missing.
    missing: usize,
}

/// A wish for history.
#[derive(Debug)]
pub(super) struct PageAsk {
    pub(super) ticket: Ticket,
    pub(super) conversation: ConversationId,
    pub(super) reader: UserId,
    pub(super) range: (u64, u64),
    pub(super) limits: PageLimits,
}

/// A read of history.
#[derive(Debug)]
pub(super) struct PageRead {
    ticket: Ticket,
    from: u64,
    first: u64,
    to: u64,
    latest: u64,
    limits: PageLimits,
}

/// The reads of a node.
pub(super) struct Reading<'a> {
    pub(super) store: &'a mut ClusterStore,
}

impl Reading<'_> {
    /// Loads what the queue of a slot waits for.
    pub(super) fn load_for(&mut self, slot: Slot, needs: Vec<Load>) {
        let versions = self
            .store
            .slots
            .iter()
            .filter(|(_, owned)| owned.is_ready)
            .map(|(slot, it)| (*slot, it.version()));
        let concerned = |(of, _): &(Slot, (u64, u64))| {
            *of == slot
                || needs
                    .iter()
                    .any(|load| matches!(load, Load::UserNumber(user) if slot_of(user.number()) == *of))
        };
        let versions = versions.filter(concerned).collect();
        let pending = Pending::Ops(slot, versions, needs.clone());
        self.store.ask(self.store.layout.cell(slot), CellRequest::Load(needs), pending);
    }

    /// Reads a stream of a user whose slot is this node's.
    pub(super) fn read_stream(
        &mut self,
        ticket: Ticket,
        user: UserId,
        (after, limit): (u64, usize),
        into: Vec<(u64, Entry)>,
    ) {
        let slot = slot_of(user.number());
        let known = self.store.slots.get(&slot).and_then(|owned| owned.users.get(&user));
        let Some(end) = known.map(|user| user.durable_end) else {
            // It is read again when its entries are asked for the next time.
            self.store.push(slot, Op::Wake(user));
            let page = StreamPage { entries: into, after, end: 0, is_readable: false };
            return self.store.done.push_back((ticket, Completion::Stream(page)));
        };
        let load = Load::Stream(user, after, end, limit);
        let (rows, bodies, events) = (Vec::new(), HashMap::new(), HashMap::new());
        let read = StreamRead { ticket, user, after, end, limit, into, rows, bodies, events, missing: 0 };
        let pending = Pending::Stream(Box::new(read), load.clone());
        self.store.ask(self.store.layout.cell(slot), CellRequest::Load(vec![load]), pending);
    }

    /// Reads profiles by the names of their users.
    pub(super) fn read_profiles(&mut self, ticket: Ticket, uids: Vec<String>) {
        let uids: Vec<Arc<str>> = uids.into_iter().map(Into::into).collect();
        let mut by_cell = BTreeMap::<CellId, Vec<Arc<str>>>::new();
        for uid in &uids {
            by_cell.entry(self.store.layout.cell(Slot::of(uid))).or_default().push(uid.clone());
        }
        if by_cell.is_empty() {
            return self.store.done.push_back((ticket, Completion::Profiles(Vec::new())));
        }
        let read = ProfileRead { uids, found: HashMap::new(), missing: by_cell.len() };
        self.store.reads.profiles.insert(ticket, read);
        for (cell, uids) in by_cell {
            let loads = vec![Load::Profiles(uids)];
            self.store.ask(cell, CellRequest::Load(loads.clone()), Pending::Profiles(ticket, loads));
        }
    }

    fn on_profiles(&mut self, ticket: Ticket, loaded: Vec<Loaded>) {
        let Some(mut read) = self.store.reads.profiles.remove(&ticket) else { return };
        for loaded in loaded {
            if let Loaded::Profiles(profiles) = loaded {
                read.found.extend(profiles);
            }
        }
        read.missing -= 1;
        if read.missing > 0 {
            self.store.reads.profiles.insert(ticket, read);
            return;
        }
        let profiles = read.uids.iter().filter_map(|uid| read.found.get(uid).cloned()).collect();
        self.store.done.push_back((ticket, Completion::Profiles(profiles)));
    }

    /// Reads history, as a member may see it.
    pub(super) fn read_page(&mut self, ask: PageAsk) {
        let missing = self.load_of_number(ask.conversation, Whose::One(ask.reader));
        match missing {
            Some((slot, load)) if self.store.known.member(ask.conversation, ask.reader).is_none() => {
                let cell = self.store.layout.cell(slot);
                let pending = Pending::PageHead(Box::new(ask), load.clone());
                self.store.ask(cell, CellRequest::Load(vec![load]), pending);
            }
            _ => self.read_known_page(&ask),
        }
    }

    /// Reads history of a conversation that is known.
    fn read_known_page(&mut self, ask: &PageAsk) {
        let PageAsk { ticket, conversation, reader, range: (from, to), limits } = *ask;
        let head = self.store.known.head(conversation);
        let (Some(head), Some(member)) = (head, self.store.known.member(conversation, reader)) else {
            return self.store.done.push_back((ticket, Completion::Page(Err(Refusal::NotMember))));
        };
        let (from, latest) = (from.max(1), head.latest);
        let (first, to) = (from.max(member.first_visible()), to.min(latest));
        let read = PageRead { ticket, from, first, to, latest, limits };
        let load = Load::Page(conversation, first, to, limits.messages + 1);
        let cell = self.store.layout.cell(slot_of(conversation.number()));
        self.store.ask(cell, CellRequest::Load(vec![load.clone()]), Pending::Page(Box::new(read), load));
    }

    /// Asks again for a read whose connection ended.
    pub(super) fn load_again(&mut self, pending: Pending) {
        let (slot, loads) = match &pending {
            Pending::Ops(slot, _, loads) => (Some(*slot), loads.clone()),
            Pending::Facts(_, loads)
            | Pending::Bodies(_, loads)
            | Pending::Profiles(_, loads)
            | Pending::Listed(_, loads) => (loads.first().and_then(slot_of_load), loads.clone()),
            Pending::Stream(_, load)
            | Pending::Page(_, load)
            | Pending::PageHead(_, load)
            | Pending::Listing(_, load) => (slot_of_load(load), vec![load.clone()]),
            pending => unreachable!("{pending:?} is not a read"),
        };
        if let Some(slot) = slot {
            self.store.ask(self.store.layout.cell(slot), CellRequest::Load(loads), pending);
        }
    }

    /// Takes what was read.
    pub(super) fn on_loaded(&mut self, pending: Pending, loaded: Vec<Loaded>) {
        match pending {
            Pending::Ops(slot, versions, loads) => self.on_ops_loaded(slot, &versions, &loads, &loaded),
            Pending::Facts(ticket, _) => self.on_facts(ticket, loaded),
            Pending::Profiles(ticket, _) => self.on_profiles(ticket, loaded),
            Pending::Listing(ticket, _) => self.on_listing(ticket, loaded),
            Pending::Listed(ticket, _) => self.on_listed(ticket, loaded),
            Pending::Stream(read, _) => self.on_rows(*read, loaded),
            Pending::Bodies(ticket, _) => self.on_bodies(ticket, loaded),
            Pending::PageHead(ask, _) => {
                loaded.into_iter().for_each(|loaded| self.learn_facts(loaded));
                self.read_known_page(&ask);
            }
            Pending::Page(read, _) => {
                let page = read.page(loaded);
                self.store.done.push_back((read.ticket, Completion::Page(Ok(page))));
            }
            pending => unreachable!("{pending:?} is not a read"),
        }
    }

    fn on_ops_loaded(
        &mut self,
        slot: Slot,
        versions: &[(Slot, (u64, u64))],
        loads: &[Load],
        loaded: &[Loaded],
    ) {
        let is_current =
            |owned: &super::OwnedSlot, of: Slot| owned.is_ready && versions.contains(&(of, owned.version()));
        let asked = versions.iter().find(|(of, _)| *of == slot).map(|(_, (epoch, _))| *epoch);
        if let Some(owned) = self.store.slots.get_mut(&slot).filter(|owned| Some(owned.epoch) == asked) {
            owned.is_loading = false;
        }
        for (load, loaded) in loads.iter().zip(loaded) {
            let of = match load {
                Load::UserNumber(user) => slot_of(user.number()),
                _ => slot,
            };
            let Some(owned) = self.store.slots.get_mut(&of).filter(|owned| is_current(owned, of)) else {
                continue;
            };
            (self.store.status.rows_read, self.store.unlooked) =
                (self.store.status.rows_read + 1, self.store.unlooked + 1);
            if let Some(user) = owned.learn(load, loaded)
                && let Some(known) = owned.users.get(&user)
            {
                // What was stored before this node had the user was pushed to nobody.
                self.store.arrived.grown.push(Recipient { user, position: known.end });
                self.store.known.learn_user(user, &known.uid.clone());
            }
        }
    }

    fn on_rows(&mut self, mut read: StreamRead, loaded: Vec<Loaded>) {
        let Some(Loaded::Stream(rows)) = loaded.into_iter().next() else { return };
        let mut by_cell = BTreeMap::<CellId, Vec<(ConversationId, Content)>>::new();
        for row in rows.iter().filter(|row| row.content != Content::Own) {
            let cell = self.store.layout.cell(slot_of(row.conversation.number()));
            by_cell.entry(cell).or_default().push((row.conversation, row.content));
        }
        (read.rows, read.missing) = (rows, by_cell.len());
        if by_cell.is_empty() {
            return self.finish(read);
        }
        let ticket = read.ticket;
        self.store.reads.streams.insert(ticket, read);
        for (cell, messages) in by_cell {
            let loads = vec![Load::Bodies(messages)];
            self.store.ask(cell, CellRequest::Load(loads.clone()), Pending::Bodies(ticket, loads));
        }
    }

    fn on_bodies(&mut self, ticket: Ticket, loaded: Vec<Loaded>) {
        let Some(mut read) = self.store.reads.streams.remove(&ticket) else { return };
        for loaded in loaded {
            if let Loaded::Bodies(bodies, heads) = &loaded {
                let bodies = bodies.iter();
                read.bodies.extend(bodies.map(|(of, content, body)| ((*of, *content), body.clone())));
                read.events.extend(heads.iter().map(|(row, ends)| (row.conversation, ends.events)));
            }
            self.learn_facts(loaded);
        }
        read.missing -= 1;
        if read.missing == 0 {
            self.finish(read);
        } else {
            self.store.reads.streams.insert(ticket, read);
        }
    }

    fn finish(&mut self, mut read: StreamRead) {
        let mut last = None;
        for EntryRow { position, conversation, content, origin, body } in std::mem::take(&mut read.rows) {
            let found = read.bodies.get(&(conversation, content)).cloned();
            let entry = match (content, found) {
                (Content::Own, _) => Entry::Event { body, origin },
                (Content::Message(seq), Some(body)) => Entry::Message { conversation, seq, body, origin },
                // It is stored before its entry, so it was removed: a void, as a pull shows it.
                (Content::Message(_), None) => {
                    last = Some(position);
                    continue;
                }
                (Content::Event(_), Some(body)) => Entry::Event { body, origin },
                (Content::Event(number), None) => {
                    last = Some(position);
                    let newest = read.events.get(&conversation).copied().unwrap_or(0);
                    if number + EVENTS_MAX > newest {
                        continue; // a later one says everything that it said
                    }
                    Entry::EventsDropped
                }
            };
            last = Some(position);
            match read.into.last_mut() {
                // One word is enough for all of them.
                Some((at, Entry::EventsDropped)) if entry == Entry::EventsDropped => *at = position,
                _ => read.into.push((position, entry)),
            }
        }
        let StreamRead { ticket, after, end, .. } = read;
        if let Some(last) = last.filter(|last| read.into.is_empty() && *last < end) {
            // Everything so far was out of date: the stream goes on behind it.
            let user = read.user;
            let load = Load::Stream(user, last, end, read.limit);
            let pending = Pending::Stream(Box::new(read), load.clone());
            let cell = self.store.layout.cell(slot_of(user.number()));
            return self.store.ask(cell, CellRequest::Load(vec![load]), pending);
        }
        let page = StreamPage { entries: read.into, after, end, is_readable: true };
        self.store.done.push_back((ticket, Completion::Stream(page)));
    }
}

impl PageRead {
    fn page(&self, loaded: Vec<Loaded>) -> Page {
        let rows = match loaded.into_iter().next() {
            Some(Loaded::Page(rows)) => rows,
            _ => Vec::new(),
        };
        let mut page = Page { latest: self.latest, ..Page::default() };
        if self.from < self.first && self.from <= self.to {
            page.voids.push((self.from, self.to.min(self.first - 1)));
        }
        let (mut bytes, mut next) = (0, self.first);
        for (seq, body) in rows {
            bytes += body.len();
            let is_full = page.messages.len() >= self.limits.messages || bytes > self.limits.bytes;
            if is_full && !page.messages.is_empty() {
                page.more = true;
                return page;
            }
            if next < seq {
                page.voids.push((next, seq - 1));
            }
            page.messages.push(body);
            next = seq + 1;
        }
        if next <= self.to {
            page.voids.push((next, self.to));
        }
        page
    }
}

/// Slot of the object that a read is of.
fn slot_of_load(load: &Load) -> Option<Slot> {
    match load {
        Load::Name(name) | Load::User(name) | Load::Conversation(name) | Load::RelationCounts(name) => {
            Some(Slot::of(name))
        }
        Load::UserNumber(user)
        | Load::Stream(user, ..)
        | Load::Pushed(user, _)
        | Load::Listing(user, ..)
        | Load::Relations(user)
        | Load::Settings(user) => Some(slot_of(user.number())),
        Load::ConversationNumber(of) | Load::Key(of, ..) | Load::Page(of, ..) | Load::Invited(of, _) => {
            Some(slot_of(of.number()))
        }
        Load::Profiles(names) | Load::Contacts(names) | Load::Pairs(names) | Load::Devices(names) => {
            names.first().map(|name| Slot::of(name))
        }
        Load::Listed(_, conversations) | Load::InvitedTo(_, conversations) => {
            conversations.first().map(|of| slot_of(of.number()))
        }
        Load::Bodies(messages) => messages.first().map(|(of, _)| slot_of(of.number())),
    }
}
