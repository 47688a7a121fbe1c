//! Reads: for operations that wait, for prefetches, and of streams and history.
//!
//! bob's phone is behind: its next 64 entries are read from bob's cell, then their messages from the cells of their conversations,
//! and then one completion has both. A read whose connection ended is asked for again.

use super::ownership::Pending;
use super::{CellId, ClusterStore, Op};
use crate::cluster::cell::{ArrivalRow, CellRequest, Load, Loaded, slot_of};
use crate::im::store::{
    Completion, ConversationId, Entry, Need, Page, PageLimits, ReadSet, Recipient, Refusal, StreamPage,
    Ticket, UserId,
};
use bytes::Bytes;
use moorline_proto::slots::Slot;
use std::collections::{BTreeMap, HashMap};

/// Reads that are under way in several parts.
#[derive(Debug, Default)]
pub(super) struct Reads {
    /// Parts of prefetches that are missing.
    facts: HashMap<Ticket, usize>,
    streams: HashMap<Ticket, StreamRead>,
}

/// A read of a stream.
#[derive(Debug)]
pub(super) struct StreamRead {
    ticket: Ticket,
    after: u64,
    end: u64,
    into: Vec<(u64, Entry)>,
    rows: Vec<ArrivalRow>,
    bodies: HashMap<(ConversationId, u64), Bytes>,
    /// Cells whose messages are missing.
    missing: usize,
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

    /// Plans the reads of a prefetch. True: all facts are known.
    pub(super) fn prefetch_facts(&mut self, ticket: Ticket, set: &ReadSet) -> bool {
        let mut by_cell = BTreeMap::<CellId, Vec<Load>>::new();
        for need in &set.0 {
            if let Some((slot, load)) = self.load_of(need) {
                by_cell.entry(self.store.layout.cell(slot)).or_default().push(load);
            }
        }
        if by_cell.is_empty() {
            return true;
        }
        self.store.reads.facts.insert(ticket, by_cell.len());
        for (cell, loads) in by_cell {
            self.store.ask(cell, CellRequest::Load(loads.clone()), Pending::Facts(ticket, loads));
        }
        false
    }

    /// The read that a need takes. `None`: it is known, or every user's is the same.
    fn load_of(&self, need: &Need) -> Option<(Slot, Load)> {
        match need {
            Need::User(uid) | Need::NewUser(uid) | Need::Contact(uid, _) | Need::Presence(uid, _) => {
                let is_known = self.store.known.user(uid).is_some();
                (!is_known).then(|| (Slot::of(uid), Load::Name(uid.as_str().into())))
            }
            Need::Named(id, None) if self.store.known.conversation(id).is_some() => None,
            Need::Named(id, _) | Need::NamedMembers(id) => {
                Some((Slot::of(id), Load::Conversation(id.as_str().into())))
            }
            Need::Conversation(conversation, None) if self.store.known.head(*conversation).is_some() => None,
            Need::Conversation(conversation, _) | Need::Members(conversation) => {
                Some((slot_of(conversation.number()), Load::ConversationNumber(*conversation)))
            }
            Need::Relation(..) | Need::Relations(_) | Need::Devices(_) | Need::Settings(_) => None,
        }
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
        let (rows, bodies) = (Vec::new(), HashMap::new());
        let read = StreamRead { ticket, after, end, into, rows, bodies, missing: 0 };
        let pending = Pending::Stream(Box::new(read), load.clone());
        self.store.ask(self.store.layout.cell(slot), CellRequest::Load(vec![load]), pending);
    }

    /// Reads history, as a member may see it whose conversation was prefetched.
    pub(super) fn read_page(
        &mut self,
        ticket: Ticket,
        (conversation, reader): (ConversationId, UserId),
        (from, to): (u64, u64),
        limits: PageLimits,
    ) {
        let head = self.store.known.head(conversation);
        let member = head.and_then(|head| head.members.iter().find(|member| member.user == reader));
        let (Some(head), Some(member)) = (head, member) else {
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
            Pending::Facts(_, loads) | Pending::Bodies(_, loads) => {
                (loads.first().and_then(slot_of_load), loads.clone())
            }
            Pending::Stream(_, load) | Pending::Page(_, load) => (slot_of_load(load), vec![load.clone()]),
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
            Pending::Facts(ticket, _) => {
                loaded.into_iter().for_each(|loaded| self.learn_facts(loaded));
                let missing = self.store.reads.facts.entry(ticket).or_default();
                *missing = missing.saturating_sub(1);
                if *missing == 0 {
                    self.store.reads.facts.remove(&ticket);
                    self.store.done.push_back((ticket, Completion::Prefetched));
                }
            }
            Pending::Stream(read, _) => self.on_rows(*read, loaded),
            Pending::Bodies(ticket, _) => self.on_bodies(ticket, loaded),
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
            if let Some(user) = owned.learn(load, loaded)
                && let Some(known) = owned.users.get(&user)
            {
                // What was stored before this node had the user was pushed to nobody.
                self.store.arrived.grown.push(Recipient { user, position: known.end });
                self.store.known.learn_user(user, &known.uid.clone());
            }
        }
    }

    fn learn_facts(&mut self, loaded: Loaded) {
        match loaded {
            Loaded::Name(uid, Some(user)) => self.store.known.learn_user(user, &uid),
            Loaded::Conversation(Some(state)) => self.store.known.learn(&state.0, state.1),
            Loaded::Bodies(_, heads) => {
                heads.iter().for_each(|(row, latest)| self.store.known.learn(row, *latest));
            }
            _ => {}
        }
    }

    fn on_rows(&mut self, mut read: StreamRead, loaded: Vec<Loaded>) {
        let Some(Loaded::Stream(rows)) = loaded.into_iter().next() else { return };
        let mut by_cell = BTreeMap::<CellId, Vec<(ConversationId, u64)>>::new();
        for row in &rows {
            let cell = self.store.layout.cell(slot_of(row.conversation.number()));
            by_cell.entry(cell).or_default().push((row.conversation, row.seq));
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
            if let Loaded::Bodies(bodies, _) = &loaded {
                let bodies = bodies.iter();
                read.bodies.extend(bodies.map(|(of, seq, body)| ((*of, *seq), body.clone())));
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

    fn finish(&mut self, read: StreamRead) {
        let StreamRead { ticket, after, end, into: mut entries, rows, bodies, .. } = read;
        let mut is_readable = true;
        for ArrivalRow { conversation, seq, position, origin, .. } in rows {
            let Some(body) = bodies.get(&(conversation, seq)).cloned() else {
                is_readable = false;
                break;
            };
            entries.push((position, Entry::Message { conversation, seq, body, origin }));
        }
        let page = StreamPage { entries, after, end, is_readable };
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
        Load::Name(name) | Load::User(name) | Load::Conversation(name) => Some(Slot::of(name)),
        Load::UserNumber(user) | Load::Stream(user, ..) => Some(slot_of(user.number())),
        Load::ConversationNumber(of) | Load::Key(of, ..) | Load::Page(of, ..) => Some(slot_of(of.number())),
        Load::Bodies(messages) => messages.first().map(|(of, _)| slot_of(of.number())),
    }
}
