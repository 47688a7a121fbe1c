//! The lease, and slots that come and go.
//!
//! Node 2 dies. Its lease ends after 5 s by the clock of the first cell; node 1 reads that with its next renewal, claims node
//! 2's slots that rendezvous hashing gives to node 1, and reads each slot's head with the claim.

use super::commit::Outcomes;
use super::reads::{Reading, StreamRead};
use super::sweeping::Sweeping;
use super::{CellId, ClusterStore, Output, OwnedSlot, PeerMessage};
use crate::cluster::cell::{CellReply, CellRequest, CellResult, Load, RequestId, SlotHead, slot_of};
use crate::cluster::owners::{self, Step};
use crate::im::store::{API_DEVICE, LoginRule, Origin, Refusal, Ticket, UserId};
use moorline_proto::slots::{NodeId, Owner, Slot};
use moorline_proto::time::{Duration, Instant};
use std::collections::{BTreeMap, BTreeSet};

/// Purpose of a request.
#[derive(Debug)]
pub(super) enum Pending {
    /// A renewal that was asked for at this time.
    Renew(Instant),
    Owners,
    Claim(Vec<Slot>),
    HandOver(Vec<Slot>),
    Commit(CellId),
    /// Reads for the queue of a slot, with the versions at that time of all slots that they concern.
    Ops(Slot, Vec<(Slot, (u64, u64))>, Vec<Load>),
    /// Facts of a prefetch.
    Facts(Ticket, Vec<Load>),
    Stream(Box<StreamRead>, Load),
    Bodies(Ticket, Vec<Load>),
    Page(Box<super::reads::PageRead>, Load),
    PageHead(Box<super::reads::PageAsk>, Load),
    Profiles(Ticket, Vec<Load>),
    Listing(Ticket, Load),
    Listed(Ticket, Vec<Load>),
    /// Removal of messages.
    Sweep(CellId),
}

/// Time after a take-over in which gateways announce the sessions of a slot.
const SESSIONS_WAIT: Duration = Duration::from_secs(2);

/// Node that does what is asked for a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Home {
    /// This node.
    Here,
    /// Another node that lives.
    At(NodeId),
    /// Nobody now: the slot moves, or its cell does not answer.
    Nowhere,
}

/// Slots of a node that come and go.
pub(super) struct Owning<'a> {
    pub(super) store: &'a mut ClusterStore,
}

impl ClusterStore {
    /// Node of a slot. `is_of_sessions`: not before gateways had the time to announce the sessions of the slot's users there.
    pub fn home(&self, slot: Slot, is_of_sessions: bool) -> Home {
        if !self.members.is_held(self.now) {
            return Home::Nowhere;
        }
        let is_answering = !self.away.contains(&self.layout.cell(slot));
        match (self.slots.get(&slot), self.table.owner(slot).node) {
            (Some(owned), _) => {
                let is_known = owned.since.is_some_and(|since| since + SESSIONS_WAIT <= self.now);
                let can_do = owned.is_served() && (is_known || !is_of_sessions);
                if can_do && is_answering { Home::Here } else { Home::Nowhere }
            }
            (None, Some(node)) if self.members.others().any(|other| other == node) => Home::At(node),
            (None, _) => Home::Nowhere,
        }
    }

    /// Forgets a slot, and answers what waits for it.
    pub(super) fn drop_slot(&mut self, slot: Slot) {
        let Some(owned) = self.slots.remove(&slot) else { return };
        self.revision += 1;
        owned.queue.iter().for_each(|op| self.refuse(op));
    }

    /// Takes the rules of users who were read, for the sessions that are here. Once nothing is left, the slots of these
    /// users are served.
    pub(super) fn take_barred(&mut self) -> Vec<(UserId, LoginRule)> {
        let ruled: Vec<_> =
            self.woken.iter_mut().filter_map(|(user, rule)| Some((*user, rule.take()?))).collect();
        if !ruled.is_empty() {
            return ruled;
        }
        for (user, _) in std::mem::take(&mut self.woken) {
            let owned = self.slots.get_mut(&slot_of(user.number()));
            if owned.is_some_and(|owned| owned.waking.remove(&user) && owned.waking.is_empty()) {
                self.revision += 1;
            }
        }
        ruled
    }

    /// Judges whether the author of a write may be heard here: nobody else's word on the author counts while the
    /// slot is another node's, or was for a moment.
    pub(super) fn judge_author(&self, (user, device): Origin) -> Result<(), Refusal> {
        let is_served = device == API_DEVICE || self.owns(slot_of(user.number()));
        if is_served { Ok(()) } else { Err(Refusal::Moved) }
    }

    /// Takes the result of a request.
    pub(super) fn on_cell(&mut self, request: RequestId, result: CellResult) {
        let Some((cell, pending)) = self.pending.remove(&request) else { return };
        if result.is_ok() {
            self.away.remove(&cell);
        } else {
            self.away.insert(cell);
        }
        match (pending, result) {
            (Pending::Renew(asked), Ok(CellReply::Renewed(living))) => {
                self.revision += u64::from(self.members.handle_renewed(asked, living));
                Owning { store: self }.plan();
            }
            (Pending::Owners, Ok(CellReply::Owners(owners))) => {
                owners.into_iter().for_each(|(slot, owner)| Owning { store: self }.learn(slot, owner));
                Owning { store: self }.plan();
            }
            (Pending::Renew(_) | Pending::Owners, Err(_)) => {} // the next one follows
            (Pending::Claim(slots), result) => Owning { store: self }.on_claimed(&slots, result),
            (Pending::HandOver(slots), result) => Owning { store: self }.on_handed_over(&slots, result),
            (Pending::Commit(cell), Ok(CellReply::Applied(applied))) => {
                Outcomes { store: self }.on_commit(cell, Some(&applied));
            }
            (Pending::Sweep(cell), Ok(CellReply::Swept(removed))) => {
                Sweeping { store: self }.on_swept(cell, removed);
            }
            (Pending::Sweep(cell), Err(_)) => Sweeping { store: self }.on_swept(cell, None),
            (Pending::Commit(cell), Err(_)) => Outcomes { store: self }.on_commit(cell, None),
            (pending, Ok(CellReply::Loaded(loaded))) => Reading { store: self }.on_loaded(pending, loaded),
            (pending, Err(_)) => Reading { store: self }.load_again(pending),
            (pending, reply) => unreachable!("the cell answered {pending:?} with {reply:?}"),
        }
    }
}

impl Owning<'_> {
    pub(super) fn renew(&mut self) {
        self.store.ask(CellId(0), self.store.members.renewal(), Pending::Renew(self.store.now));
        for cell in 0..self.store.layout.cells {
            self.store.ask(CellId(cell), CellRequest::Owners, Pending::Owners);
        }
    }

    /// The lease has ended: other nodes may own everything by now.
    pub(super) fn end_lease(&mut self) {
        self.store.members.handle_lease_ended();
        self.store.revision += 1;
        let slots: Vec<_> = self.store.slots.keys().copied().collect();
        self.store.status.leases_ended += slots.len() as u64;
        slots.into_iter().for_each(|slot| self.store.drop_slot(slot));
    }

    /// Takes the owner of a slot.
    pub(super) fn learn(&mut self, slot: Slot, owner: Owner) {
        self.store.revision += u64::from(self.store.table.learn(slot, owner));
        let owner = self.store.table.owner(slot);
        let is_mine = owner.node == Some(self.store.me);
        let Some(owned) = self.store.slots.get(&slot) else { return };
        // What came back from another node is claimed anew, but not by a node that is to end.
        let is_kept = is_mine && !self.store.members.is_stopping();
        // A slot that is being claimed is judged by the answer to the claim.
        if owner.epoch > owned.epoch && !is_kept && !owned.is_claiming {
            self.store.drop_slot(slot);
        }
    }

    /// Claims what has no living owner, and gives away what another node should own.
    pub(super) fn plan(&mut self) {
        if !self.store.members.may_plan(self.store.now) {
            return;
        }
        let slots = &self.store.slots;
        let holds = |slot| slots.get(&slot).filter(|owned| owned.is_ready).map(|owned| owned.epoch);
        let steps = owners::plan(self.store.me, self.store.members.preferences(), &self.store.table, holds);
        let (mut claims, mut hand_overs) = (Vec::new(), BTreeMap::<CellId, Vec<_>>::new());
        for step in steps {
            match step {
                Step::Claim { slot, seen } => {
                    let is_open = self.store.slots.get(&slot).is_some_and(|owned| owned.is_claiming);
                    if !is_open && !self.store.members.is_stopping() && !self.store.leaving.contains(&slot) {
                        claims.push((slot, seen));
                    }
                }
                Step::HandOver { slot, epoch, to } => {
                    let is_busy = |lane: &super::InFlight| lane.transaction.fences.contains(&(slot, epoch));
                    let is_loaded = self.store.slots.get(&slot).is_some_and(|owned| owned.queue.is_empty());
                    if is_loaded && !self.store.lanes.values().any(is_busy) {
                        hand_overs.entry(self.store.layout.cell(slot)).or_default().push((slot, epoch, to));
                    }
                }
            }
        }
        self.claim(&claims);
        for (cell, steps) in hand_overs {
            let slots: Vec<_> = steps.iter().map(|(slot, ..)| *slot).collect();
            for slot in &slots {
                self.store.drop_slot(*slot);
                self.store.leaving.insert(*slot);
            }
            self.store.ask(cell, CellRequest::HandOver(self.store.me, steps), Pending::HandOver(slots));
        }
    }

    /// Claims slots at these epochs; what was known of them is forgotten.
    pub(super) fn claim(&mut self, claims: &[(Slot, u64)]) {
        let mut by_cell = BTreeMap::<CellId, Vec<(Slot, u64)>>::new();
        for (slot, seen) in claims {
            let owned: &mut OwnedSlot = self.store.slots.entry(*slot).or_default();
            owned.forget();
            self.store.revision += 1;
            (owned.epoch, owned.is_claiming) = (*seen, true);
            by_cell.entry(self.store.layout.cell(*slot)).or_default().push((*slot, *seen));
        }
        for (cell, claims) in by_cell {
            let slots = claims.iter().map(|(slot, _)| *slot).collect();
            self.store.ask(cell, CellRequest::Claim(self.store.me, claims), Pending::Claim(slots));
        }
    }

    fn on_claimed(&mut self, slots: &[Slot], result: CellResult) {
        for slot in slots {
            if let Some(owned) = self.store.slots.get_mut(slot) {
                owned.is_claiming = false;
            }
        }
        let Ok(CellReply::Claimed(heads, refused)) = result else {
            // The table says who owns them; what is this node's without its memory is claimed again.
            let cell = slots.first().map(|slot| self.store.layout.cell(*slot));
            return cell
                .into_iter()
                .for_each(|cell| self.store.ask(cell, CellRequest::Owners, Pending::Owners));
        };
        let mut begun = BTreeSet::new();
        for head in heads {
            let SlotHead { slot, epoch, .. } = head;
            self.store.table.learn(slot, Owner { node: Some(self.store.me), epoch });
            // A lease that ended in the meantime has dropped the slot.
            if let Some(owned) =
                self.store.slots.get_mut(&slot).filter(|owned| !owned.is_ready && owned.epoch < epoch)
            {
                self.store.status.claimed += 1;
                self.store.revision += 1;
                owned.begin(head, self.store.now);
                self.store.active.busy.insert(slot);
                self.store.active.chained.insert(slot);
                begun.insert(slot);
            }
        }
        // Sessions of this node stay while a slot is elsewhere for a moment: they are told what was stored there.
        let mut online = BTreeMap::<Slot, Vec<_>>::new();
        for (user, slot) in self.store.online.keys().map(|user| (*user, slot_of(user.number()))) {
            if begun.contains(&slot) {
                online.entry(slot).or_default().push(user);
            }
        }
        for (slot, mut users) in online {
            users.sort_unstable();
            self.store.slots.get_mut(&slot).into_iter().for_each(|owned| owned.wake(users.iter().copied()));
        }
        for (slot, owner) in refused {
            self.learn(slot, owner);
        }
        self.plan();
    }

    fn on_handed_over(&mut self, slots: &[Slot], result: CellResult) {
        slots.iter().for_each(|slot| _ = self.store.leaving.remove(slot));
        let Ok(CellReply::Owners(owners)) = result else { return };
        let mut given = BTreeMap::<_, Vec<_>>::new();
        for (slot, owner) in owners {
            self.learn(slot, owner);
            if let Some(node) = owner.node.filter(|node| *node != self.store.me) {
                self.store.status.handed_over += 1;
                given.entry(node).or_default().push((slot, owner));
            }
        }
        for (node, slots) in given {
            self.store.out.push_back(Output::Peer(node, PeerMessage::Given(slots)));
        }
    }
}
