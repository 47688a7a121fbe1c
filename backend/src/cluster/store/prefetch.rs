//! Prefetches: the facts that an operation will be judged on, read from the cells that have them.
//!
//! alice wants to be bob's friend: his name and his settings are read from his cell, what both make of each other from that of
//! their conversation, and the numbers of their relations from both cells.

use super::devices::infos;
use super::ownership::Pending;
use super::questions::Asking;
use super::reads::Reading;
use super::{CellId, ClusterStore};
use crate::cluster::cell::{CellRequest, Load, Loaded, slot_of};
use crate::im::names;
use crate::im::store::{Completion, ConversationId, Need, ReadSet, Ticket, UserId};
use moorline_proto::slots::Slot;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Members that a read of a conversation has to bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    Nobody,
    One(UserId),
    All,
}

impl Whose {
    fn of(user: Option<UserId>) -> Self {
        user.map_or(Self::Nobody, Self::One)
    }
}

/// Reads of a prefetch, by cell.
#[derive(Debug, Default)]
struct Loads {
    /// Names of users.
    contacts: BTreeMap<CellId, BTreeSet<Arc<str>>>,
    /// Names of users whose devices are asked for.
    devices: BTreeMap<CellId, BTreeSet<Arc<str>>>,
    /// Ids of conversations of two users.
    pairs: BTreeMap<CellId, BTreeSet<Arc<str>>>,
    others: BTreeMap<CellId, Vec<Load>>,
}

impl Loads {
    /// Returns the reads, with one for all names of a kind.
    fn by_cell(self) -> BTreeMap<CellId, Vec<Load>> {
        let Self { contacts, devices, pairs, mut others } = self;
        for (cell, uids) in devices {
            others.entry(cell).or_default().push(Load::Devices(uids.into_iter().collect()));
        }
        for (cell, uids) in contacts {
            others.entry(cell).or_default().push(Load::Contacts(uids.into_iter().collect()));
        }
        for (cell, ids) in pairs {
            others.entry(cell).or_default().push(Load::Pairs(ids.into_iter().collect()));
        }
        others
    }
}

/// A read of a user's invitations.
#[derive(Debug)]
pub(super) struct InvitationsRead {
    user: UserId,
    /// Groups of the user's list, oldest invitation first.
    groups: Vec<ConversationId>,
    /// Groups that say so, too, with their ids.
    invited: HashMap<ConversationId, Arc<str>>,
}

impl Reading<'_> {
    /// Plans the reads of a prefetch. True: all facts are known.
    pub(super) fn prefetch_facts(&mut self, ticket: Ticket, set: &ReadSet) -> bool {
        let (mut loads, mut new) = (Loads::default(), Vec::new());
        for need in &set.0 {
            if let Need::NewUser(uid) = need {
                if self.store.known.user(uid).is_none() {
                    new.push(uid.as_str().into());
                }
            } else if let Some((slot, load)) = self.load_of(need) {
                loads.others.entry(self.store.layout.cell(slot)).or_default().push(load);
            } else {
                self.add_contacts(need, &mut loads);
            }
        }
        let by_cell = loads.by_cell();
        if by_cell.is_empty() && new.is_empty() {
            return true;
        }
        self.store.reads.facts.insert(ticket, by_cell.len() + new.len());
        for (cell, loads) in by_cell {
            self.store.ask(cell, CellRequest::Load(loads.clone()), Pending::Facts(ticket, loads));
        }
        new.into_iter().for_each(|uid| Asking { store: self.store }.make_user(ticket, uid));
        false
    }

    /// The read that a need takes. `None`: it is known, or every user's is the same.
    fn load_of(&mut self, need: &Need) -> Option<(Slot, Load)> {
        let known = &self.store.known;
        match need {
            Need::User(uid) | Need::NewUser(uid) => {
                let is_known = known.user(uid).is_some();
                (!is_known).then(|| (Slot::of(uid), Load::Name(uid.as_str().into())))
            }
            Need::Named(id, user) => self.load_of_named(id, Whose::of(*user)),
            Need::NamedMembers(id) => self.load_of_named(id, Whose::All),
            Need::Conversation(conversation, user) => self.load_of_number(*conversation, Whose::of(*user)),
            Need::Members(conversation) => self.load_of_number(*conversation, Whose::All),
            Need::Settings(user) => Some((slot_of(user.number()), Load::Settings(*user))),
            Need::Relations(user) => Some((slot_of(user.number()), Load::Relations(*user))),
            Need::Contact(..)
            | Need::Presence(..)
            | Need::Relation(..)
            | Need::Relating(..)
            | Need::Devices(_) => None,
        }
    }

    /// Adds the reads of a need that is about two users.
    fn add_contacts(&self, need: &Need, loads: &mut Loads) {
        let known = &self.store.known;
        let layout = self.store.layout;
        let cell = |name: &str| layout.cell(Slot::of(name));
        let name_of = |user: &UserId| known.uid(*user).cloned();
        let (first, second): (Arc<str>, _) = match need {
            Need::Contact(uid, user) | Need::Presence(uid, user) | Need::Relating(uid, user) => {
                (uid.as_str().into(), name_of(user))
            }
            Need::Devices(user) => {
                let uid = name_of(user);
                uid.into_iter().for_each(|uid| _ = loads.devices.entry(cell(&uid)).or_default().insert(uid));
                return;
            }
            Need::Relation(user, other) => match name_of(other) {
                Some(uid) => (uid, name_of(user)),
                None => return,
            },
            _ => return,
        };
        let Some(second) = second else { return };
        if matches!(need, Need::Relating(..)) {
            for uid in [first, second] {
                loads.others.entry(cell(&uid)).or_default().push(Load::RelationCounts(uid));
            }
            return;
        }
        loads.contacts.entry(cell(&first)).or_default().insert(first.clone());
        if matches!(need, Need::Presence(..)) {
            loads.devices.entry(cell(&first)).or_default().insert(first.clone());
        }
        if first != second {
            let mut id = String::new();
            names::write_one_to_one(&mut id, &first, &second);
            loads.pairs.entry(cell(&id)).or_default().insert(id.into());
        }
    }

    /// Returns the read of a conversation. `None`: what it has to bring is known.
    fn load_of_named(&mut self, id: &str, of: Whose) -> Option<(Slot, Load)> {
        let slot = Slot::of(id);
        let owned = self.store.slots.get(&slot).filter(|owned| owned.is_ready);
        match owned.and_then(|owned| owned.ids.get(id).copied()) {
            Some(Some(conversation)) => self.load_of_number(conversation, of),
            Some(None) => None,
            None => {
                let head = self.store.known.conversation(id).and_then(|of| self.store.known.head(of));
                let is_known = of == Whose::Nobody && head.is_some_and(|head| !head.is_stale);
                (!is_known).then(|| (slot, Load::Conversation(id.into())))
            }
        }
    }

    pub(super) fn load_of_number(&mut self, conversation: ConversationId, of: Whose) -> Option<(Slot, Load)> {
        let slot = slot_of(conversation.number());
        let ClusterStore { slots, known, .. } = &mut *self.store;
        let owned = slots.get(&slot).filter(|owned| owned.is_ready);
        if let Some(place) = owned.and_then(|owned| owned.conversations.get(&conversation)) {
            // The memory of the owner is never older than the cell.
            match of {
                Whose::Nobody => known.learn_one(&place.row, place.stored.seq, None),
                Whose::One(user) => known.learn_one(&place.row, place.stored.seq, Some(user)),
                Whose::All => known.learn(&place.row, place.stored.seq),
            }
            return None;
        }
        let is_known = of == Whose::Nobody && known.head(conversation).is_some_and(|head| !head.is_stale);
        (!is_known).then_some((slot, Load::ConversationNumber(conversation)))
    }

    /// Counts a part of a prefetch that is done.
    pub(super) fn on_part(&mut self, ticket: Ticket) {
        let missing = self.store.reads.facts.entry(ticket).or_default();
        *missing = missing.saturating_sub(1);
        if *missing == 0 {
            self.store.reads.facts.remove(&ticket);
            if let Some(InvitationsRead { user, groups, invited }) =
                self.store.reads.invitations.remove(&ticket)
            {
                let groups =
                    groups.into_iter().filter_map(|group| Some((group, invited.get(&group)?.clone())));
                self.store.known.learn_invitations(user, groups.collect());
            }
            self.store.done.push_back((ticket, Completion::Prefetched));
        }
    }

    /// Takes facts of a prefetch.
    pub(super) fn on_facts(&mut self, ticket: Ticket, loaded: Vec<Loaded>) {
        for loaded in loaded {
            match loaded {
                Loaded::Settings(user, who_may_add, groups) => {
                    self.store.known.learn_who_may_add(user, who_may_add);
                    self.ask_invited(ticket, user, groups);
                }
                Loaded::InvitedTo(_, groups) => {
                    if let Some(list) = self.store.reads.invitations.get_mut(&ticket) {
                        list.invited.extend(groups);
                    }
                }
                loaded => self.learn_facts(loaded),
            }
        }
        self.on_part(ticket);
    }

    /// Asks groups whether a user is invited, as the user's list says.
    fn ask_invited(&mut self, ticket: Ticket, user: UserId, groups: Vec<ConversationId>) {
        let mut by_cell = BTreeMap::<CellId, Vec<ConversationId>>::new();
        for group in &groups {
            let cell = self.store.layout.cell(slot_of(group.number()));
            by_cell.entry(cell).or_default().push(*group);
        }
        *self.store.reads.facts.entry(ticket).or_default() += by_cell.len();
        let list = InvitationsRead { user, groups, invited: HashMap::new() };
        self.store.reads.invitations.insert(ticket, list);
        for (cell, groups) in by_cell {
            let loads = vec![Load::InvitedTo(user, groups)];
            self.store.ask(cell, CellRequest::Load(loads.clone()), Pending::Facts(ticket, loads));
        }
    }

    pub(super) fn learn_facts(&mut self, loaded: Loaded) {
        match loaded {
            Loaded::Name(uid, Some(user)) => self.store.known.learn_user(user, &uid),
            Loaded::Contacts(contacts) => {
                for (uid, user, who_may_add) in contacts {
                    self.store.known.learn_user(user, &uid);
                    self.store.known.learn_who_may_add(user, who_may_add);
                }
            }
            Loaded::Pairs(pairs) => {
                pairs.into_iter().for_each(|(id, pair)| self.store.known.learn_pair(id, pair));
            }
            Loaded::Devices(devices) => {
                for of_user in devices.chunk_by(|(user, _), (next, _)| user == next) {
                    let devices = infos(of_user.iter().map(|(_, device)| device));
                    of_user.first().into_iter().for_each(|(user, _)| {
                        self.store.known.learn_devices(*user, devices.clone());
                    });
                }
            }
            Loaded::Relations(user, all) => self.store.known.learn_relations(user, all),
            Loaded::RelationCounts(Some((user, counts))) => self.store.known.learn_counts(user, counts),
            Loaded::Conversation(Some(state)) => self.store.known.learn(&state.0, state.1.seq),
            Loaded::Bodies(_, heads) => {
                heads.iter().for_each(|(row, ends)| self.store.known.learn(row, ends.seq));
            }
            _ => {}
        }
    }
}
