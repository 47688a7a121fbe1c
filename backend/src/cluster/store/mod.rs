//! The store of one node of a cluster: [`crate::im::store::Store`] over cells and other nodes. Pure.
//!
//! ```text
//! Im --submit--> ClusterStore --own slot--> queue --Build--> one Transaction per cell --Applied--> completions, chains
//!                     |                                                                               |
//!                     +--slot of another node--> Append --------> that node's queue        DELIVER to the members' nodes
//! ```
//!
//! alice (slot of node 1) writes to bob (slot of node 2) in a conversation of node 3. Node 1's `Im` submits the SEND; node 1
//! asks node 3, which numbers and commits it with two outbox rows, answers node 1, and sends two DELIVERs. Node 1 answers alice.
//! Node 2 puts the message into bob's stream, tells its `Im` by [`crate::im::store::Completion::Arrived`], and confirms.
//!
//! The driver gives [`ClusterStore`] the time, replies of cells and messages of nodes by `handle_*`, lets its `Im` take
//! completions, and performs [`Output`]s in order. What is not built is refused with [`Refusal::Denied`]:
//! deletion of users, retention.

mod ahead;
mod batches;
mod caps;
mod commit;
mod devices;
mod facts;
mod fanout;
mod groups;
mod inboxes;
mod invitations;
mod known;
mod listing;
mod ops;
mod ownership;
mod peers;
mod prefetch;
mod presence;
mod questions;
mod reads;
mod relations;
mod slot;
mod sweeping;

pub use ops::{Append, Wanted};
pub use ownership::Home;
pub use peers::{AppendedAt, ClusterStatus, PeerMessage};
pub use questions::{Answered, HeadRow, Question};

use super::cell::{CellId, CellRequest, CellResult, Life, RequestId, Transaction, slot_of};
use super::members::Members;
use crate::config::ImConfig;
use crate::im::store::rules::{self, Rules};
use crate::im::store::{Arrived, Completion, LoginRule, Refusal, Ticket, UserId};
use batches::{Batches, Place};
use bytes::Bytes;
use caps::Caps;
use commit::Outcomes;
use inboxes::{Inboxes, Pushing};
use known::KnownFacts;
use moorline_proto::slots::{NodeId, Slot, SlotTable};
use moorline_proto::time::{Duration, Instant};
use ops::{Asker, Build, Done, Op};
use ownership::{Owning, Pending};
use presence::{Presences, Watching};
use questions::{Asking, Kind};
use reads::{Reading, Reads};
use slot::{OwnedSlot, QUEUE_MAX, ROWS_MAX, SLOT_ROWS_MIN};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use sweeping::{Sweeper, Sweeping};

/// Wait for the answer of another node; after it the SEND is answered RETRY. A batch may wait this long for a dead node.
pub const PEER_WAIT: Duration = Duration::from_secs(1);
/// Operations of one transaction.
pub const OPS_MAX: usize = 256;
/// Pause before confirmed outbox rows are removed by a transaction of their own.
const CONFIRMED_WAIT: Duration = Duration::from_millis(250);

/// Operations and reads between two looks at the number of rows in memory, at least.
const LOOK_MIN: usize = 16;

/// Cells of a cluster: slot `s` is in cell `s` modulo their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Number of cells, at least 1.
    pub cells: u16,
}

impl Layout {
    /// Returns the cell of a slot.
    pub const fn cell(self, slot: Slot) -> CellId {
        CellId(slot.number() % self.cells)
    }
}

/// Members of a group: each message writes one row for each member.
pub const GROUP_MEMBERS_MAX: usize = 1000;

/// Limits that an operator sets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) group_members: usize,
    pub(super) devices: usize,
    pub(super) recall_window_ms: u64,
    pub(super) relations: rules::relations::Limits,
    pub(super) rules: Rules,
    caps: Caps,
    /// Messages that one request empties.
    sweep_rows: usize,
    /// Rows of all slots in memory, and the least share of a slot.
    rows: (usize, usize),
}

impl Limits {
    fn of(config: &ImConfig) -> Self {
        let group_members = config.group_members_max.min(GROUP_MEMBERS_MAX);
        let recall_window_ms = u64::try_from(config.recall_window.as_millis()).unwrap_or(u64::MAX);
        let relations = rules::relations::Limits::new(config);
        let devices = config.devices_max.max(1);
        let (rules, caps) = (Rules::new(config), Caps::of(config));
        let (rows, sweep_rows) = ((ROWS_MAX, SLOT_ROWS_MIN), sweeping::ROWS);
        Self { group_members, devices, recall_window_ms, relations, rules, caps, sweep_rows, rows }
    }
}

/// One thing for the driver to do.
#[derive(Debug)]
pub enum Output {
    /// Sends a request to a cell; [`ClusterStore::handle_cell`] takes its result.
    Cell(CellId, RequestId, CellRequest),
    /// Sends a message to another node, which may get lost.
    Peer(NodeId, PeerMessage),
}

/// A transaction whose result is to come.
#[derive(Debug)]
struct InFlight {
    transaction: Arc<Transaction>,
    done: Vec<Done>,
    ops: Vec<(Slot, Op)>,
}

/// Slots with work, so that a turn looks at no other.
#[derive(Debug, Default)]
struct Active {
    /// Slots with operations in their queues.
    busy: BTreeSet<Slot>,
    /// Slots with messages in their outboxes.
    chained: BTreeSet<Slot>,
    /// Slots with outbox rows to remove.
    confirmed: BTreeSet<Slot>,
}

/// See the module.
#[derive(Debug)]
pub struct ClusterStore {
    me: NodeId,
    members: Members,
    layout: Layout,
    /// Time of the last input.
    now: Instant,
    last_id: u64,
    /// Unix time of the last batch, in milliseconds.
    now_ms: u64,
    limits: Limits,
    /// Counts changes of owners, of slots that are served, and of nodes.
    revision: u64,
    name: Bytes,
    table: SlotTable,
    slots: BTreeMap<Slot, OwnedSlot>,
    /// Cells that have not answered the last request that ended.
    away: BTreeSet<CellId>,
    active: Active,
    /// Sessions of users who have logged in here.
    online: HashMap<UserId, u32>,
    /// Users who were read, with rules that their sessions here have not met.
    woken: Vec<(UserId, Option<LoginRule>)>,
    /// Slots that are being given away.
    leaving: BTreeSet<Slot>,
    lanes: BTreeMap<CellId, InFlight>,
    known: KnownFacts,
    batches: Batches,
    reads: Reads,
    /// SENDs at other nodes, with the time at which their wait ends.
    appends: BTreeMap<u64, (Place, Instant)>,
    /// Questions at other nodes, with the time at which their wait ends.
    questions: BTreeMap<u64, (Asker, Kind, Instant)>,
    inboxes: Inboxes,
    presences: Presences,
    sweeper: Sweeper,
    /// New users for which prefetches wait.
    making: BTreeMap<u64, (Ticket, Arc<str>)>,
    /// Those that are asked for again.
    users_again: Vec<u64>,
    pending: HashMap<RequestId, (CellId, Pending)>,
    last_request: u64,
    /// Time at which confirmed outbox rows are removed. `None`: there are none.
    clean_at: Option<Instant>,
    out: VecDeque<Output>,
    done: VecDeque<(Ticket, Completion)>,
    /// Operations and reads since the last look at the number of rows.
    unlooked: usize,
    arrived: Arrived,
    status: ClusterStatus,
}

impl ClusterStore {
    /// The store of a node, whose last message id in an earlier life was `last_id`.
    pub fn new(life: Life, layout: Layout, last_id: u64) -> Self {
        Self {
            me: life.node,
            members: Members::new(life),
            layout,
            now: Instant::ZERO,
            last_id,
            now_ms: 0,
            limits: Limits::of(&ImConfig::default()),
            revision: 0,
            name: Bytes::new(),
            table: SlotTable::default(),
            slots: BTreeMap::new(),
            away: BTreeSet::new(),
            active: Active::default(),
            online: HashMap::new(),
            woken: Vec::new(),
            leaving: BTreeSet::new(),
            lanes: BTreeMap::new(),
            known: KnownFacts::default(),
            batches: Batches::default(),
            reads: Reads::default(),
            appends: BTreeMap::new(),
            questions: BTreeMap::new(),
            inboxes: Inboxes::default(),
            presences: Presences::default(),
            sweeper: Sweeper::default(),
            making: BTreeMap::new(),
            users_again: Vec::new(),
            pending: HashMap::new(),
            last_request: 0,
            clean_at: None,
            out: VecDeque::new(),
            done: VecDeque::new(),
            unlooked: 0,
            arrived: Arrived::default(),
            status: ClusterStatus::default(),
        }
    }

    /// Takes the limits of `config`; without it those of the defaults hold.
    #[must_use]
    pub fn with_limits(mut self, config: &ImConfig) -> Self {
        self.limits = Limits::of(config);
        self
    }

    /// Keeps at most about `rows` rows of each slot in memory, for tests.
    #[must_use]
    pub fn with_slot_rows(mut self, rows: usize) -> Self {
        self.limits.rows = (0, rows);
        self
    }

    /// Empties at most `rows` messages with one request, for tests.
    #[must_use]
    pub fn with_sweep_rows(mut self, rows: usize) -> Self {
        self.limits.sweep_rows = rows;
        self
    }

    /// Does what is due. Call it before each other input.
    pub fn handle_time(&mut self, now: Instant) {
        self.now = now;
        if self.members.try_renew(now) {
            Owning { store: self }.renew();
        }
        if !self.members.is_held(now) && !self.slots.is_empty() {
            Owning { store: self }.end_lease();
        }
        if self.members.is_stopping() {
            Owning { store: self }.plan();
        }
        let due = self.appends.iter().filter(|(_, (_, until))| *until <= now).map(|(request, _)| *request);
        for request in due.collect::<Vec<_>>() {
            if let Some((place, _)) = self.appends.remove(&request) {
                self.answer(Asker::Here(place), Err(Refusal::Moved), &[]);
            }
        }
        Asking { store: self }.end_questions();
        Watching { store: self }.end_waits();
        Sweeping { store: self }.sweep();
        self.work();
    }

    /// Takes the result of a request.
    pub fn handle_cell(&mut self, request: RequestId, result: CellResult) {
        self.on_cell(request, result);
        self.work();
    }

    /// Takes a message of another node.
    pub fn handle_peer(&mut self, from: NodeId, message: PeerMessage) {
        match message {
            PeerMessage::Append(request, append) => {
                let (slot, asker) = (append.wanted.slot(), Asker::Peer(from, request));
                self.push(slot, Op::Append(append, asker));
            }
            PeerMessage::Appended(request, result) => self.on_appended(request, result),
            PeerMessage::Ask(request, question) => {
                self.push(question.slot(), Op::Ask(question, Asker::Peer(from, request), None));
            }
            PeerMessage::Answered(request, result) => Asking { store: self }.on_answered(request, result),
            PeerMessage::Deliver(deliver) => {
                let slot = slot_of(deliver.user.number());
                if self.slots.contains_key(&slot) {
                    self.push(slot, Op::Deliver(deliver, from));
                }
            }
            PeerMessage::Delivered(conversation, user, order) => {
                self.on_delivered(conversation, user, order);
            }
            PeerMessage::AskOnline(request, users) => {
                Watching { store: self }.on_question(from, request, users);
            }
            PeerMessage::Online(request, online) => Watching { store: self }.on_answer(request, online),
            PeerMessage::Stopping => self.members.handle_stopping(from),
            PeerMessage::Call(..) | PeerMessage::Called(..) => {} // the driver gives them to `Calls`
            PeerMessage::Given(owners) => {
                owners.into_iter().for_each(|(slot, owner)| Owning { store: self }.learn(slot, owner));
                Owning { store: self }.plan();
            }
        }
        self.work();
    }

    /// Takes the oldest output.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    /// True if the slot of a user is this node's: its frames are taken. If not, the answer is MOVED with [`Self::table`].
    pub fn owns(&self, slot: Slot) -> bool {
        self.slots.get(&slot).is_some_and(OwnedSlot::is_served)
    }

    /// Gives the store the name of the cluster, which gateways and nodes compare.
    #[must_use]
    pub fn with_name(self, name: Bytes) -> Self {
        Self { name, ..self }
    }

    /// Slots whose frames are taken: see [`Self::owns`].
    pub fn owned(&self) -> impl Iterator<Item = Slot> {
        self.slots.iter().filter(|(_, owned)| owned.is_served()).map(|(slot, _)| *slot)
    }

    /// The nodes that live, and the lease of this one.
    pub const fn members(&self) -> &Members {
        &self.members
    }

    /// Number of changes of [`Self::table`], [`Self::owned`] and [`Self::members`].
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// Begins to give all slots to the other nodes, and claims none any more.
    pub fn begin_stop(&mut self) {
        if self.members.is_stopping() {
            return;
        }
        self.members.stop();
        // The others must know before they own the slots: they would give them back.
        self.out.extend(self.members.others().map(|node| Output::Peer(node, PeerMessage::Stopping)));
        Owning { store: self }.renew();
        Owning { store: self }.plan();
    }

    /// True when [`Self::begin_stop`] has given everything away, or there is nobody to give it to.
    pub fn is_stopped(&self) -> bool {
        let is_alone = self.members.others().next().is_none();
        self.members.is_stopping() && (is_alone || self.slots.is_empty() && self.leaving.is_empty())
    }

    /// Owners of all slots, as far as this node knows.
    pub const fn table(&self) -> &SlotTable {
        &self.table
    }

    /// Figures since the start.
    pub const fn status(&self) -> ClusterStatus {
        self.status
    }

    /// Time of the next [`Self::handle_time`].
    pub fn next_deadline(&self) -> Instant {
        let chained = self.active.chained.iter().filter_map(|slot| self.slots.get(slot));
        let chains = chained.flat_map(|owned| owned.chains.values());
        let resend = chains.filter_map(super::chain::Chain::next_deadline).min();
        let answer = self.appends.values().map(|(_, until)| *until);
        let answer = answer.chain(self.questions.values().map(|(.., until)| *until)).min();
        let lease = self.members.next_deadline(self.now);
        [resend, answer, self.clean_at, self.presences.next_deadline(), self.sweeper.next_deadline()]
            .into_iter()
            .flatten()
            .fold(lease, Instant::min)
    }

    /// Sends a request to a cell.
    fn ask(&mut self, cell: CellId, request: CellRequest, pending: Pending) {
        self.last_request += 1;
        let id = RequestId(self.last_request);
        self.pending.insert(id, (cell, pending));
        self.out.push_back(Output::Cell(cell, id, request));
    }

    /// Forgets rows of slots that have too many, in cells without a transaction under way.
    fn trim(&mut self) {
        let (all, least) = self.limits.rows;
        let max = (all / self.slots.len().max(1)).max(least);
        if self.unlooked < LOOK_MIN.max(max / 8) {
            return; // hardly more rows have come
        }
        self.unlooked = 0;
        let (lanes, layout) = (&self.lanes, self.layout);
        let is_still = |slot: &Slot| !lanes.contains_key(&layout.cell(*slot));
        let slots = self.slots.iter_mut();
        let slots = slots.filter(|(slot, owned)| owned.is_ready && !owned.is_loading && is_still(slot));
        let forgotten: usize = slots.map(|(_, owned)| owned.trim(max)).sum();
        self.status.rows_forgotten += forgotten as u64;
    }

    /// Puts an operation into the queue of its slot, or answers it: the slot is not here.
    fn push(&mut self, slot: Slot, op: Op) {
        match self.slots.get_mut(&slot) {
            Some(owned) if owned.queue.len() < QUEUE_MAX => {
                owned.queue.push_back(op);
                self.active.busy.insert(slot);
            }
            _ => self.refuse(&op),
        }
    }

    /// Answers an operation of a slot that is not here any more.
    fn refuse(&mut self, op: &Op) {
        match op {
            Op::Append(_, asker) => self.answer(*asker, Err(Refusal::Moved), &[]),
            Op::Ask(question, asker, _) => {
                Asking { store: self }.answer_question(
                    *asker,
                    question.kind(),
                    Err(Refusal::Moved),
                    None,
                    &[],
                );
            }
            Op::Login(ticket, ..) => self.done.push_back((*ticket, Completion::LoggedIn(None))),
            Op::Backlog(ticket, _) => self.done.push_back((*ticket, Completion::Backlog(<_>::default()))),
            Op::Push(push) => Pushing { store: self }.refuse(push),
            Op::Deliver(..) | Op::Acked(..) | Op::Wake(_) => {}
        }
    }

    /// Makes transactions of what waits, and sends what is to be delivered.
    fn work(&mut self) {
        if !self.members.is_held(self.now) {
            return;
        }
        Outcomes { store: self }.send_chains();
        self.trim();
        for cell in (0..self.layout.cells).map(CellId) {
            while !self.lanes.contains_key(&cell) && self.build(cell) {}
        }
    }

    /// Begins a transaction in a cell. True: there may be more to do at once.
    fn build(&mut self, cell: CellId) -> bool {
        let layout = self.layout;
        self.active.busy.retain(|slot| self.slots.get(slot).is_some_and(|owned| !owned.queue.is_empty()));
        let can_go = |slot: &Slot| {
            let owned = self.slots.get(slot);
            layout.cell(*slot) == cell && owned.is_some_and(|owned| owned.is_ready && !owned.is_loading)
        };
        let busy: Vec<Slot> = self.active.busy.iter().copied().filter(can_go).collect();
        let mut loads = Vec::new();
        for slot in &busy {
            if let Some(owned) = self.slots.get_mut(slot) {
                owned.forget_answers();
            }
        }
        let mut build = Build::new(layout, self.me, self.limits, &mut self.slots);
        for slot in busy {
            while build.ops.len() < OPS_MAX
                && let Some(mut op) = build.slots.get_mut(&slot).and_then(|owned| owned.queue.pop_front())
            {
                let needs = if build.is_repeated(&op) { Vec::new() } else { build.needs(slot, &op) };
                if needs.is_empty() && build.execute(slot, &mut op) {
                    build.ops.push((slot, op));
                    continue;
                }
                let is_loading = !needs.is_empty();
                if is_loading {
                    loads.push((slot, build.needs_ahead(slot, needs)));
                }
                if let Some(owned) = build.slots.get_mut(&slot) {
                    owned.queue.push_front(op);
                    owned.is_loading = is_loading;
                }
                break;
            }
        }
        build.finish();
        let Build { mut transaction, done, ops, ignored, .. } = build;
        self.status.ignored += ignored;
        self.unlooked += ops.len();
        for (slot, needs) in loads {
            Reading { store: self }.load_for(slot, needs);
        }
        let is_due = self.clean_at.is_some_and(|at| at <= self.now);
        if is_due || !transaction.is_empty() {
            Outcomes { store: self }.add_confirmed(cell, &mut transaction);
        }
        if transaction.is_empty() {
            let has_done = !ops.is_empty();
            Outcomes { store: self }.perform(&transaction, done, &<_>::default());
            return has_done;
        }
        transaction.last_id = self.last_id;
        let transaction = Arc::new(transaction);
        self.ask(cell, CellRequest::Commit(transaction.clone()), Pending::Commit(cell));
        self.lanes.insert(cell, InFlight { transaction, done, ops });
        false
    }
}
