//! The simulated world: nodes, cells and a network under one clock, and the faults that befall them.
//!
//! One seed decides everything. Faults come until [`CHAOS_MS`]; then everything heals, and the run goes on until each SEND is
//! answered and nothing moves any more.

use crate::calls::Callers;
use crate::cells::Cells;
use crate::coverage::Coverage;
use crate::gateway::{Gateway, ToGateway, ToNode};
use crate::mirror::Mirror;
use crate::postgres::Postgres;
use moorline_backend::cluster::calls::{Calls, Output as CallOutput};
use moorline_backend::cluster::cell::{
    CellId, CellReply, CellRequest, CellResult, ConversationRow, Life, Membership, RequestId, UnknownOutcome,
    number_in, slot_of,
};
use moorline_backend::cluster::store::{ClusterStore, Layout, Output, PeerMessage};
use moorline_backend::config::{ImConfig, WhoMayWrite};
use moorline_backend::im::store::{ConversationId, GroupSettings, Member, Relation, Role, UserId};
use moorline_backend::im::{Im, Output as ImOutput};
use moorline_backend::server::{Event as LinkEvent, Now};
use moorline_proto::random::Random;
use moorline_proto::slots::{NodeId, Slot};
use moorline_proto::time::{Duration, Instant};
use std::collections::BTreeMap;

/// Time of faults, in milliseconds.
pub(crate) const CHAOS_MS: u64 = 8_000;
/// End of the run at the latest, in milliseconds.
const END_MS: u64 = 90_000;
/// Unix time at the beginning, in milliseconds.
const UNIX_MS: u64 = 1_800_000_000_000;
/// Nodes of the cluster.
const NODES: usize = 3;
/// Time between two ticks of a node, in milliseconds.
const TICK_MS: u64 = 100;
/// Name of the group.
pub(crate) const GROUP: &str = "group:tea";
/// User whom only friends add to groups, all the time.
pub(crate) const PRIVATE: &str = "user3";

/// One node: a process that may end and begin again.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    /// `None`: the process has ended.
    im: Option<Im<ClusterStore>>,
    calls: Calls,
    life: u64,
    /// Inputs that wait until the process goes on. `None`: it runs.
    held: Option<Vec<Event>>,
    /// Inputs after a pause that are taken with this clock, and their number.
    stale: Option<(Now, u32)>,
    /// Difference of the wall clock from the truth, in milliseconds.
    skew_ms: i64,
    /// Speed of the monotonic clock, in parts of a million.
    speed_ppm: u64,
    zero_ms: u64,
    told_version: u64,
}

/// Something that happens.
pub(crate) enum Event {
    Tick(usize, u64),
    /// A process that stood still goes on.
    Resume(usize, u64),
    GatewayTick,
    Fault,
    Start(usize),
    /// Node, its life, cell, request; false: the node has given up waiting.
    Cell(usize, u64, CellId, RequestId, CellRequest, bool),
    CellDone(usize, u64, RequestId, CellResult),
    Peer(usize, usize, PeerMessage),
    ToNode(usize, u64, ToNode),
    ToGateway(usize, u64, ToGateway),
    /// A device does what is due.
    Device(usize),
    /// Callers of the server API do what is due.
    Callers,
}

pub(crate) struct World {
    pub(crate) random: Random,
    pub(crate) now_ms: u64,
    events: BTreeMap<(u64, u64), Event>,
    last_event: u64,
    pub(crate) cells: Cells,
    /// Real cells that get the same requests. `None`: there are none.
    pub(crate) mirror: Option<Mirror>,
    layout: Layout,
    pub(crate) config: ImConfig,
    pub(crate) nodes: Vec<Node>,
    pub(crate) gateway: Gateway,
    pub(crate) callers: Callers,
    pub(crate) coverage: Coverage,
    /// Time before which nothing arrives on the way from the gateway to a node, and back: links keep the order.
    links: BTreeMap<(usize, bool), u64>,
}

impl Node {
    fn now(&self, now_ms: u64) -> Now {
        let local_us = self.zero_ms * 1000 + now_ms * self.speed_ppm / 1000;
        let unix_ms = (UNIX_MS + now_ms).saturating_add_signed(self.skew_ms);
        Now { instant: Instant::ZERO + Duration::from_micros(local_us), unix_ms }
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.im.is_some()
    }

    pub(crate) const fn life(&self) -> u64 {
        self.life
    }

    pub(crate) const fn is_running(&self) -> bool {
        self.im.is_some() && self.held.is_none()
    }

    pub(crate) fn store(&self) -> Option<&ClusterStore> {
        self.im.as_ref().map(Im::store)
    }
}

impl World {
    /// With a server, each reply of a cell is compared with that of PostgreSQL.
    pub(crate) fn new(seed: u64, server: Option<&Postgres>) -> Self {
        let mut random = Random::new(seed);
        let layout = Layout { cells: 1 + u16::from(random.one_in(2)) };
        let nodes = (0..NODES).map(|number| {
            let hour = 3_600_000;
            let skew_ms = i64::try_from(random.below(2 * hour)).expect("small") - 3_600_000;
            let id = NodeId(u16::try_from(number).expect("few") + 1);
            let (speed_ppm, zero_ms) = (995_000 + random.below(10_000), random.below(1_000_000));
            let (im, calls, life, held, stale, told_version) = (None, Calls::default(), 0, None, None, 0);
            Node { id, im, calls, life, held, stale, skew_ms, speed_ppm, zero_ms, told_version }
        });
        let nodes: Vec<_> = nodes.collect();
        let gateway = Gateway::new(&mut random);
        let callers = Callers::new(&mut random);
        let who_may_write = if random.one_in(4) { WhoMayWrite::Friends } else { WhoMayWrite::Anyone };
        let config = ImConfig { who_may_write, ..ImConfig::default() };
        let mut world = Self {
            random,
            now_ms: 0,
            events: BTreeMap::new(),
            last_event: 0,
            cells: Cells::default(),
            mirror: server.map(|server| Mirror::new(server, layout, seed)),
            layout,
            config,
            nodes,
            gateway,
            callers,
            coverage: Coverage::default(),
            links: BTreeMap::new(),
        };
        world.seed_tables();
        for node in 0..NODES {
            // Some nodes join when the others own everything.
            let at = if node == 0 { 0 } else { world.random.below(4000) };
            world.at(at, Event::Start(node));
        }
        for device in 0..world.gateway.devices.len() {
            world.at(200, Event::Device(device));
        }
        world.at(100, Event::GatewayTick);
        world.at(1500, Event::Fault);
        world.at(300, Event::Callers);
        world
    }

    /// The first half of the users is known, and in a group; the others become known by their logins.
    fn seed_tables(&mut self) {
        let uids = Gateway::uids();
        let mut members = Vec::new();
        for uid in &uids[..=uids.len() / 2] {
            let user = UserId::new(number_in(Slot::of(uid), 1));
            self.cells.seed_user(user, uid);
            self.mirror.iter_mut().for_each(|mirror| mirror.seed_user(user, uid));
            if uid == PRIVATE {
                self.cells.seed_friends_only(user);
                self.mirror.iter_mut().for_each(|mirror| mirror.seed_friends_only(user));
            }
            let role = if members.is_empty() { Role::Owner } else { Role::Member };
            let member = Member::new(user, role, 1);
            let relation = Relation::default();
            members.push(Membership { member, uid: uid.as_str().into(), entered: 1, relation });
        }
        let creator = members.first().map(|it: &Membership| it.member.user);
        members.sort_by_key(|it| it.member.user);
        let conversation = ConversationId::new(number_in(Slot::of(GROUP), 1));
        let row = ConversationRow {
            conversation,
            id: GROUP.into(),
            is_group: true,
            creator,
            settings: GroupSettings::default(),
            is_dissolved: false,
            members,
        };
        self.mirror.iter_mut().for_each(|mirror| mirror.seed(&row));
        self.cells.seed(row);
    }

    pub(crate) fn at(&mut self, ms: u64, event: Event) {
        self.last_event += 1;
        self.events.insert((ms.max(self.now_ms), self.last_event), event);
    }

    pub(crate) fn is_chaos(&self) -> bool {
        self.now_ms < CHAOS_MS
    }

    fn latency(&mut self) -> u64 {
        if self.random.one_in(20) { 20 + self.random.below(200) } else { 1 + self.random.below(8) }
    }

    /// Sends over a link between gateway and node, in order.
    pub(crate) fn send(&mut self, node: usize, to_node: bool, event: Event) {
        let at = self.now_ms + self.latency();
        let last = self.links.entry((node, to_node)).or_default();
        *last = at.max(*last);
        let at = *last;
        self.at(at, event);
    }

    /// Runs to the end.
    pub(crate) fn run(&mut self) {
        while let Some(((ms, _), event)) = self.events.pop_first() {
            self.now_ms = ms;
            assert!(
                ms < END_MS,
                "the cluster comes to rest: {:?}, outbox {:?}, {}",
                self.missing(),
                self.cells.outbox,
                self.gateway.describe(),
            );
            let is_tick = matches!(event, Event::GatewayTick);
            self.handle(event);
            let is_done = is_tick
                && !self.is_chaos()
                && self.gateway.is_done()
                && self.callers.is_done()
                && self.cells.outbox.is_empty();
            if is_done && self.missing().is_none() {
                break;
            }
        }
        for node in 0..NODES {
            self.end_life(node);
        }
    }

    fn handle(&mut self, event: Event) {
        let node = match &event {
            Event::Tick(node, _)
            | Event::CellDone(node, ..)
            | Event::Peer(_, node, _)
            | Event::ToNode(node, ..) => Some(*node),
            _ => None,
        };
        if let Some(held) = node.and_then(|node| self.nodes[node].held.as_mut()) {
            return held.push(event);
        }
        match event {
            Event::Tick(node, life) => {
                if self.nodes[node].life == life {
                    self.tick(node);
                }
            }
            Event::Resume(node, life) => {
                if self.nodes[node].life == life {
                    let held = self.nodes[node].held.take();
                    held.into_iter().flatten().for_each(|event| self.handle(event));
                }
            }
            Event::GatewayTick => self.gateway_tick(),
            Event::Fault => self.fault(),
            Event::Start(node) => self.start(node),
            Event::Cell(node, life, cell, request, body, is_awaited) => {
                self.perform(node, life, cell, request, &body, is_awaited);
            }
            Event::CellDone(node, life, request, result) => {
                if self.nodes[node].life == life {
                    self.input(node, |im, _| im.store_mut().handle_cell(request, result));
                }
            }
            Event::Peer(from, to, message) => {
                let from = self.nodes[from].id;
                self.input_all(to, |im, calls, _| match message {
                    PeerMessage::Call(..) | PeerMessage::Called(..) => {
                        calls.handle_peer(im.store(), from, message);
                    }
                    message => im.store_mut().handle_peer(from, message),
                });
            }
            Event::ToNode(node, life, message) => {
                if self.nodes[node].life == life {
                    self.on_link(node, message);
                }
            }
            Event::ToGateway(node, life, message) => self.on_gateway(node, life, message),
            Event::Device(device) => self.on_device(device),
            Event::Callers => {
                self.calls_due();
                let at = self.now_ms + 60;
                self.at(at, Event::Callers);
            }
        }
    }

    /// Gives a node an input, and performs what it puts out.
    pub(crate) fn input(&mut self, node: usize, input: impl FnOnce(&mut Im<ClusterStore>, Now)) {
        self.input_all(node, |im, _, now| input(im, now));
    }

    /// Does what [`Self::input`] does, with the calls of the node.
    pub(crate) fn input_all(
        &mut self,
        node: usize,
        input: impl FnOnce(&mut Im<ClusterStore>, &mut Calls, Now),
    ) {
        let now_ms = self.now_ms;
        let Some(it) = self.nodes.get_mut(node).filter(|it| it.im.is_some()) else { return };
        let mut now = it.now(now_ms);
        if let Some((stale, left)) = &mut it.stale {
            now = *stale;
            *left -= 1;
            self.coverage.stale_inputs += 1;
            if *left == 0 {
                it.stale = None;
            }
        }
        let Node { im: Some(im), calls, .. } = it else { return };
        im.store_mut().handle_time(now.instant);
        calls.handle_time(now.instant);
        input(im, calls, now);
        im.handle_committed();
        let (mut of_im, mut of_store) = (Vec::new(), Vec::new());
        loop {
            im.handle_turn_end(now);
            let mut comes_back = false;
            while let Some(output) = im.poll_output() {
                match output {
                    ImOutput::TurnAgain => comes_back = true,
                    ImOutput::AnswerApi { reply, answer } => reply.give(answer),
                    output => of_im.push(output),
                }
            }
            while let Some(output) = calls.poll_output() {
                match output {
                    CallOutput::Do(call, reply) => {
                        im.handle_api(now, call, reply);
                        comes_back = true;
                    }
                    CallOutput::Peer(to, message) => of_store.push(Output::Peer(to, message)),
                }
            }
            while let Some(output) = im.store_mut().poll_output() {
                of_store.push(output);
            }
            if !comes_back {
                break;
            }
        }
        let life = it.life;
        of_store.into_iter().for_each(|output| self.on_store_output(node, life, output));
        of_im.into_iter().for_each(|output| self.on_im_output(node, life, output));
    }

    fn on_store_output(&mut self, node: usize, life: u64, output: Output) {
        match output {
            Output::Cell(cell, request, body) => self.ask_cell(node, life, cell, request, body),
            Output::Peer(to, message) => {
                let is_deliver = matches!(message, PeerMessage::Deliver(_));
                let to = usize::from(to.0) - 1;
                if self.is_chaos() && self.random.one_in(20) {
                    self.coverage.lost_peers += 1;
                    self.coverage.lost_delivers += u64::from(is_deliver);
                    return;
                }
                if is_deliver && self.is_chaos() && self.random.one_in(10) {
                    self.coverage.repeated_delivers += 1;
                    let at = self.now_ms + 20 * self.latency();
                    self.at(at, Event::Peer(node, to, message.clone()));
                }
                let at = self.now_ms + self.latency();
                self.at(at, Event::Peer(node, to, message));
            }
        }
    }

    /// Sends a request to a cell; some connections end before the answer comes.
    fn ask_cell(&mut self, node: usize, life: u64, cell: CellId, request: RequestId, body: CellRequest) {
        let (there, back) = (self.now_ms + self.latency(), self.latency());
        if !self.is_chaos() || !self.random.one_in(25) {
            return self.at(there, Event::Cell(node, life, cell, request, body, true));
        }
        let lost = Event::CellDone(node, life, request, Err(UnknownOutcome));
        match self.random.below(3) {
            0 => {
                self.coverage.unknown_undone += 1;
                self.at(there + back, lost);
            }
            1 => {
                self.coverage.unknown_done += 1;
                self.at(there, Event::Cell(node, life, cell, request, body, false));
                self.at(there + back, lost);
            }
            _ => {
                // The database is still at it when the node hears that its connection has ended.
                let late = there + back + self.random.below(60);
                self.at(there + back, lost);
                self.at(late, Event::Cell(node, life, cell, request, body, false));
            }
        }
    }

    fn perform(
        &mut self,
        node: usize,
        life: u64,
        cell: CellId,
        request: RequestId,
        body: &CellRequest,
        is_awaited: bool,
    ) {
        let layout = self.layout;
        let reply = self.cells.perform(self.now_ms, |slot| layout.cell(slot) == cell, body);
        self.mirror.iter_mut().for_each(|mirror| mirror.perform(cell, body, &reply));
        if is_awaited {
            let at = self.now_ms + self.latency();
            return self.at(at, Event::CellDone(node, life, request, Ok(reply)));
        }
        if let CellReply::Applied(applied) = &reply {
            let is_fenced = !applied.lost.is_empty();
            self.coverage.late_fenced += u64::from(is_fenced);
            self.coverage.late_commits += u64::from(!is_fenced);
        }
    }

    fn tick(&mut self, node: usize) {
        if !self.nodes[node].is_alive() {
            return;
        }
        self.input(node, |im, now| im.handle(now, LinkEvent::Tick));
        let life = self.nodes[node].life;
        if let Some(store) = self.nodes[node].store().filter(|store| store.is_stopped()) {
            let release = store.members().release();
            self.cells.perform(self.now_ms, |_| false, &release);
            self.coverage.stops += 1;
            return self.end_for_a_while(node);
        }
        let version = self.nodes[node].store().map(|store| store.table().version());
        if version.is_some_and(|version| version > self.nodes[node].told_version) {
            self.tell_slots(node, life);
        }
        let at = self.now_ms + TICK_MS;
        self.at(at, Event::Tick(node, life));
    }

    /// Tells the gateway the table of slots.
    pub(crate) fn tell_slots(&mut self, node: usize, life: u64) {
        let Some(table) = self.nodes[node].store().map(|store| store.table().clone()) else { return };
        self.nodes[node].told_version = table.version();
        self.send(node, false, Event::ToGateway(node, life, ToGateway::Slots(Box::new(table))));
    }

    fn start(&mut self, node: usize) {
        if self.nodes[node].is_alive() {
            return;
        }
        let (layout, config) = (self.layout, self.config.clone());
        let it = &mut self.nodes[node];
        let last_id = self.cells.last_id(it.id);
        self.mirror.iter_mut().for_each(|mirror| mirror.check_last_id(it.id, last_id));
        let life = Life { node: it.id, number: it.life, address: "".into(), is_stopping: false };
        let mut store = ClusterStore::new(life, layout, last_id).with_limits(&config).with_sweep_rows(2);
        // The first node forgets what it can at any time, the second one at times, the third one never.
        if let Some(rows) = [0, 2].get(node) {
            store = store.with_slot_rows(*rows);
        }
        (it.im, it.told_version) = (Some(Im::new(config, it.id.0, store)), 0);
        it.life += 1;
        self.tick(node);
    }

    fn end_life(&mut self, node: usize) {
        if let Some(im) = self.nodes[node].im.take() {
            self.coverage.add_status(im.store().status());
            let calls = std::mem::take(&mut self.nodes[node].calls);
            self.coverage.add_calls(calls.status());
            self.nodes[node].stale = None;
            self.nodes[node].held = None;
            self.nodes[node].life += 1;
        }
    }

    /// Ends a process, which begins again later.
    fn end_for_a_while(&mut self, node: usize) {
        self.end_life(node);
        let at = self.now_ms + 100 + self.random.below(3000);
        self.at(at, Event::Start(node));
        let (at, life) = (self.now_ms + self.latency(), 0);
        self.at(at, Event::ToGateway(node, life, ToGateway::LinkDown));
    }

    fn fault(&mut self) {
        if !self.is_chaos() {
            return (0..NODES).for_each(|node| self.start(node));
        }
        let node = usize::try_from(self.random.below(NODES as u64)).expect("few");
        match self.random.below(8) {
            0 if self.nodes[node].is_alive() => {
                self.coverage.kills += 1;
                self.end_for_a_while(node);
            }
            5 if self.nodes[node].is_running() && self.random.one_in(3) => {
                self.input(node, |im, _| im.store_mut().begin_stop());
            }
            1 if self.nodes[node].is_running() => {
                let for_ms = if self.random.one_in(3) { 6000 } else { self.random.below(1000) };
                self.coverage.pauses += 1;
                self.coverage.long_pauses += u64::from(for_ms == 6000);
                let now_ms = self.now_ms;
                let it = &mut self.nodes[node];
                it.held = Some(Vec::new());
                let resume = Event::Resume(node, it.life);
                // A process may be stopped between its look at the clock and what it does then.
                it.stale = Some((it.now(now_ms), 1 + u32::try_from(self.random.below(12)).expect("few")));
                self.at(now_ms + for_ms, resume);
            }
            2..=4 => {
                let slots = self.used_slots();
                let slot = slots[usize::try_from(self.random.below(slots.len() as u64)).expect("few")];
                self.steal(slot, node);
            }
            _ => {}
        }
        let at = self.now_ms + 100 + self.random.below(500);
        self.at(at, Event::Fault);
    }

    /// Gives a slot to a node, unless it has it.
    pub(crate) fn steal(&mut self, slot: Slot, node: usize) {
        let thief = self.nodes[node].id;
        if self.cells.owner(slot).node != Some(thief) {
            self.coverage.stolen += 1;
            self.cells.steal(slot, thief);
            self.mirror.iter_mut().for_each(|mirror| mirror.steal(slot, thief));
        }
    }

    /// Slots that hold something.
    fn used_slots(&self) -> Vec<Slot> {
        let users = self.cells.users.keys().map(|user| slot_of(user.number()));
        users.chain(self.cells.conversations.keys().map(|of| slot_of(of.number()))).collect()
    }
}
