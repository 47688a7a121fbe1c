//! A gateway with its clients: frames follow the real rule for SLOTS and MOVED, and clients repeat what is not answered.
//!
//! A device has at most one SEND to one conversation under way, as the gateway and the client library see to it.

use crate::calls::{INBOX, LIVE};
use crate::presences::Watching;
use crate::requests::{MADE, Requests};
use crate::world::{CHAOS_MS, Event, GROUP, World};
use bytes::Bytes;
use moorline_backend::im::Output as ImOutput;
use moorline_backend::server::{Event as LinkEvent, GatewayId, LinkId, PushId, ReplyTo, SessionId, Up};
use moorline_proto::frame::Command;
use moorline_proto::message::backend::{ConnUp, Outcome};
use moorline_proto::message::client::{Code, Push, Req, Resp, Send, SendAck, send};
use moorline_proto::message::{decode, encode};
use moorline_proto::random::Random;
use moorline_proto::slots::{Moved, NodeRoutes, Route, Slot, SlotTable};
use moorline_proto::time::{Duration, Instant};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Users; the last ones become known by their logins.
const USERS: usize = 6;
/// Devices of each user.
const DEVICES: usize = 2;
/// SENDs of each device.
const SENDS: u64 = 6;
/// Time after which a SEND without an answer is repeated, in milliseconds.
const ANSWER_MS: u64 = 2500;

/// From the gateway to a node.
pub(crate) enum ToNode {
    ConnUp(usize, SessionId),
    ConnDown(SessionId),
    /// Device, session, correlation, true for DUP, body.
    Up(usize, SessionId, u64, bool, Send),
    /// Device, session, correlation, true for DUP, request.
    Req(usize, SessionId, u64, bool, Req),
    Acked(SessionId, PushId),
}

/// From a node to the gateway.
pub(crate) enum ToGateway {
    Slots(Box<SlotTable>),
    /// Device and the question; `None`: the login.
    Moved(usize, SessionId, Moved),
    Answer(u64, Code, Box<SendAck>),
    AnswerReq(u64, Code, Box<Resp>),
    Push(Vec<SessionId>, PushId, Push),
    Kick(SessionId),
    LinkDown,
}

/// A SEND under way.
#[derive(Debug)]
struct Flight {
    number: u64,
    correlation: u64,
    sent_ms: u64,
    /// Time at which it is sent again. `None`: it waits for an answer.
    again_ms: Option<u64>,
    tries: u32,
    moves: u8,
}

/// A device of a user.
pub(crate) struct Device {
    pub(crate) uid: String,
    pub(crate) name: String,
    pub(crate) slot: Slot,
    /// Node and session. `None`: it is to be announced.
    session: Option<(usize, SessionId)>,
    announce_ms: u64,
    generation: u32,
    waiting: BTreeMap<String, VecDeque<(u64, u64)>>,
    flights: BTreeMap<String, Flight>,
    pub(crate) requests: Requests,
    /// First receipts, in order: conversation, seq, number of the message.
    pub(crate) received: Vec<(String, u64, u64)>,
    /// Ids of pushes of the server API that came from the inbox.
    pub(crate) pushed: BTreeSet<u64>,
    /// Own messages as answered: target, number, conversation, seq.
    pub(crate) told: Vec<(String, u64, String, u64)>,
    /// Own messages that were refused for good: a try before may have been stored.
    pub(crate) refused: BTreeSet<u64>,
    /// Presence of others. `None`: the device has not asked.
    pub(crate) watching: Option<Watching>,
}

pub(crate) struct Gateway {
    routes: NodeRoutes,
    pub(crate) devices: Vec<Device>,
    correlations: BTreeMap<u64, (usize, String)>,
    last_correlation: u64,
    /// Frames of users who may not log in, which have to be refused, with the user.
    to_refuse: BTreeMap<u64, String>,
    /// Users of whom one has ever wanted to block the other.
    pub(crate) blocked: BTreeSet<BTreeSet<String>>,
}

impl Gateway {
    /// A user may log in again.
    pub(crate) fn on_lifted(&mut self, uid: &str) {
        self.to_refuse.retain(|_, barred| barred != uid);
    }

    pub(crate) fn new(random: &mut Random) -> Self {
        let (mut devices, mut number) = (Vec::new(), 0);
        for user in 0..USERS {
            for device in 0..DEVICES {
                let uid = format!("user{user}");
                let mut waiting = BTreeMap::<String, VecDeque<(u64, u64)>>::new();
                for _ in 0..SENDS {
                    number += 1;
                    let to = usize::try_from(random.below(USERS as u64 + 6)).expect("few");
                    let target = match to {
                        to if to < USERS => format!("user{to}"),
                        to if to % 3 == 0 => MADE.to_owned(),
                        _ => GROUP.to_owned(),
                    };
                    let at = 500 + random.below(CHAOS_MS - 1000);
                    waiting.entry(target).or_default().push_back((at, number));
                }
                for queue in waiting.values_mut() {
                    queue.make_contiguous().sort_unstable();
                }
                let requests = Requests::new(random, user, device);
                devices.push(Device {
                    slot: Slot::of(&uid),
                    uid,
                    name: format!("device{device}"),
                    session: None,
                    announce_ms: 0,
                    generation: 0,
                    waiting,
                    flights: BTreeMap::new(),
                    requests,
                    received: Vec::new(),
                    pushed: BTreeSet::new(),
                    told: Vec::new(),
                    refused: BTreeSet::new(),
                    watching: None,
                });
            }
        }
        let (routes, correlations, to_refuse) = (NodeRoutes::default(), BTreeMap::new(), BTreeMap::new());
        let blocked = BTreeSet::new();
        Self { routes, devices, correlations, last_correlation: 0, to_refuse, blocked }
    }

    pub(crate) fn uids() -> Vec<String> {
        (0..USERS).map(|user| format!("user{user}")).collect()
    }

    /// Number of users that are known from the beginning.
    pub(crate) const fn seeded() -> usize {
        USERS / 2 + 1
    }

    /// Gives a question of a device its number.
    pub(crate) fn next_correlation(&mut self, device: usize) -> u64 {
        self.last_correlation += 1;
        self.correlations.insert(self.last_correlation, (device, String::new()));
        self.last_correlation
    }

    /// True if each SEND and request is answered.
    pub(crate) fn is_done(&self) -> bool {
        self.devices.iter().all(|it| {
            let is_sent = it.flights.is_empty() && it.waiting.values().all(VecDeque::is_empty);
            it.session.is_some() && is_sent && it.requests.is_done()
        })
    }

    pub(crate) fn describe(&self) -> String {
        let open = self.devices.iter().map(|it| (&it.uid, &it.name, it.session, &it.flights, &it.requests));
        format!("{:?}", open.collect::<Vec<_>>())
    }
}

impl Device {
    pub(crate) const fn session(&self) -> Option<(usize, SessionId)> {
        self.session
    }

    /// Platform as the device names it: each device of a user has another one.
    pub(crate) fn platform(&self) -> u32 {
        1 + u32::from(self.name.ends_with('1'))
    }
}

impl World {
    fn instant(&self) -> Instant {
        Instant::ZERO + Duration::from_millis(self.now_ms)
    }

    pub(crate) fn gateway_tick(&mut self) {
        let now = self.instant();
        if self.gateway.routes.try_ask(now)
            && let Some(node) = (0..self.nodes.len()).find(|node| self.nodes[*node].is_running())
        {
            let life = self.nodes[node].life();
            self.tell_slots(node, life);
        }
        let at = self.now_ms + 100;
        self.at(at, Event::GatewayTick);
    }

    /// A device announces itself, sends what is due, and repeats what has no answer.
    pub(crate) fn on_device(&mut self, device: usize) {
        self.announce(device);
        if self.gateway.devices[device].session.is_some() {
            self.send_due(device);
            self.request_due(device);
        }
        let at = self.now_ms + 80;
        self.at(at, Event::Device(device));
    }

    fn announce(&mut self, device: usize) {
        let (now, now_ms) = (self.instant(), self.now_ms);
        let it = &mut self.gateway.devices[device];
        if it.session.is_some() || it.announce_ms > now_ms {
            return;
        }
        it.announce_ms = now_ms + 100;
        let Route::To(node) = self.gateway.routes.route(now, it.slot) else { return };
        let node = usize::from(node.0) - 1;
        if !self.nodes[node].is_alive() {
            return;
        }
        it.generation += 1;
        let generation = it.generation;
        let session = SessionId::new(u32::try_from(device).expect("few"), generation);
        it.session = Some((node, session));
        // Frames without an answer go with DUP: the node that had them may have stored them.
        for flight in it.flights.values_mut() {
            flight.again_ms = Some(now_ms);
        }
        it.requests.repeat(now_ms);
        self.coverage.moved_sessions += u64::from(generation > 1);
        self.tell_node(node, ToNode::ConnUp(device, session));
    }

    pub(crate) fn tell_node(&mut self, node: usize, message: ToNode) {
        let life = self.nodes[node].life();
        self.send(node, true, Event::ToNode(node, life, message));
    }

    /// Ends the session of a device at its node; it is announced anew.
    fn end_session(&mut self, device: usize) {
        let it = &mut self.gateway.devices[device];
        if let Some((node, session)) = it.session.take() {
            self.tell_node(node, ToNode::ConnDown(session));
        }
    }

    fn send_due(&mut self, device: usize) {
        let (now_ms, chaos) = (self.now_ms, self.is_chaos());
        let it = &mut self.gateway.devices[device];
        let Some((node, session)) = it.session else { return };
        let mut ups = Vec::new();
        for (target, queue) in &mut it.waiting {
            if !it.flights.contains_key(target)
                && queue.front().is_some_and(|(at, _)| *at <= now_ms)
                && let Some((_, number)) = queue.pop_front()
            {
                let (correlation, sent_ms, again_ms) = (0, now_ms, Some(now_ms));
                let flight = Flight { number, correlation, sent_ms, again_ms, tries: 0, moves: 0 };
                it.flights.insert(target.clone(), flight);
            }
        }
        for (target, flight) in &mut it.flights {
            let is_late = flight.again_ms.is_none() && flight.sent_ms + ANSWER_MS <= now_ms;
            if is_late || flight.again_ms.is_some_and(|at| at <= now_ms) {
                self.gateway.last_correlation += 1;
                flight.correlation = self.gateway.last_correlation;
                (flight.sent_ms, flight.again_ms) = (now_ms, None);
                flight.tries += 1;
                self.gateway.correlations.insert(flight.correlation, (device, target.clone()));
                ups.push((target.clone(), flight.number, flight.correlation, flight.tries));
            }
        }
        for (target, number, correlation, tries) in ups {
            let is_lie = tries > 1 && chaos && self.random.one_in(10);
            let is_dup = tries > 1 && !is_lie;
            self.coverage.sends += u64::from(tries == 1);
            self.coverage.repeats += u64::from(is_dup);
            self.coverage.liars += u64::from(is_lie);
            let mut key = vec![0; 16];
            key[..8].copy_from_slice(&number.to_le_bytes());
            let to = if target.starts_with("group:") {
                send::Target::Conversation(target)
            } else {
                send::Target::User(target)
            };
            let payload = number.to_le_bytes().to_vec().into();
            let send = Send { key: key.into(), target: Some(to), r#type: 1, payload };
            self.tell_node(node, ToNode::Up(device, session, correlation, is_dup, send));
        }
    }

    /// A node reads a frame of the gateway.
    pub(crate) fn on_link(&mut self, node: usize, message: ToNode) {
        let moved = |world: &Self, device: usize| {
            let slot = world.gateway.devices[device].slot;
            let store = world.nodes[node].store()?;
            (!store.owns(slot)).then(|| Moved { slot, owner: store.table().owner(slot) })
        };
        match message {
            ToNode::ConnUp(device, session) => {
                if let Some(moved) = moved(self, device) {
                    return self.answer(node, ToGateway::Moved(device, session, moved));
                }
                let it = &self.gateway.devices[device];
                let (uid, name) = (it.uid.clone(), it.name.clone());
                let login_version = u64::from(it.generation);
                let platform = it.platform().cast_signed();
                let login = ConnUp { uid, device: name, platform, login_version, ..Default::default() };
                let gateway = GatewayId::new(0);
                let event = LinkEvent::ConnUp { session, gateway, login, is_new: true };
                self.input(node, |im, now| im.handle(now, event));
                if self.is_chaos() && self.random.one_in(40) {
                    // The login is under way, and its slot goes elsewhere.
                    let slot = self.gateway.devices[device].slot;
                    let other = (node + 1) % self.nodes.len();
                    self.steal(slot, other);
                }
            }
            ToNode::ConnDown(session) => {
                self.input(node, |im, now| im.handle(now, LinkEvent::ConnDown { session, code: 0 }));
            }
            ToNode::Up(device, session, correlation, dup, send) => {
                if let Some(moved) = moved(self, device) {
                    return self.answer(node, ToGateway::Moved(device, session, moved));
                }
                self.up(node, session, (correlation, dup), (Command::Send, encode(&send)));
            }
            ToNode::Req(device, session, correlation, dup, req) => {
                if let Some(moved) = moved(self, device) {
                    return self.answer(node, ToGateway::Moved(device, session, moved));
                }
                self.up(node, session, (correlation, dup), (Command::Req, encode(&req)));
            }
            ToNode::Acked(session, push) => {
                let outcome = Outcome::Acked;
                self.input(node, |im, now| im.handle(now, LinkEvent::Pushed { session, push, outcome }));
            }
        }
    }

    fn up(
        &mut self,
        node: usize,
        session: SessionId,
        (correlation, dup): (u64, bool),
        (command, body): (Command, Bytes),
    ) {
        if self.is_barred_at(node, session) {
            self.coverage.barred_frames += 1;
            let uid = self.gateway.devices[session.slot()].uid.clone();
            self.gateway.to_refuse.insert(correlation, uid);
        }
        let reply = Some(ReplyTo::new(LinkId::new(0, 1), correlation));
        let up = Up { session, command, seq: 1, dup, body, reply };
        self.input(node, |im, now| im.handle(now, LinkEvent::Up(up)));
    }

    /// True for a session of a user who may not log in, at the node that has the slot now, since whenever.
    fn is_barred_at(&self, node: usize, session: SessionId) -> bool {
        let it = &self.gateway.devices[session.slot()];
        let owner = self.cells.owner(it.slot);
        let is_owner = owner.node == Some(self.nodes[node].id);
        let is_served = self.nodes[node]
            .store()
            .is_some_and(|store| store.owns(it.slot) && store.table().owner(it.slot) == owner);
        is_owner && is_served && it.session == Some((node, session)) && self.callers.barred.contains(&it.uid)
    }

    /// Sees that a frame which was to be refused was not answered otherwise.
    fn check_refused(&mut self, correlation: u64, code: Code) {
        let uid = self.gateway.to_refuse.remove(&correlation);
        let is_done = matches!(code, Code::Ok | Code::Dup);
        assert!(uid.is_none() || !is_done, "{uid:?} has a session in spite of a ban");
    }

    fn answer(&mut self, node: usize, message: ToGateway) {
        let life = self.nodes[node].life();
        self.send(node, false, Event::ToGateway(node, life, message));
    }

    pub(crate) fn on_im_output(&mut self, node: usize, life: u64, output: ImOutput) {
        let message = match output {
            ImOutput::AnswerSend { reply, code, answer, .. } => {
                self.check_refused(reply.correlation(), code);
                ToGateway::Answer(reply.correlation(), code, Box::new(answer))
            }
            ImOutput::Push { push, sessions, room: _, spec, body } => {
                assert_eq!(spec.command, Command::Push, "small conversations are pushed");
                let barred = sessions.iter().find(|session| self.is_barred_at(node, **session));
                assert_eq!(barred, None, "a push in spite of a ban");
                ToGateway::Push(sessions, push, decode(&body).expect("a Push"))
            }
            ImOutput::AnswerReq { reply, code, answer } => {
                self.check_refused(reply.correlation(), code);
                ToGateway::AnswerReq(reply.correlation(), code, Box::new(answer))
            }
            ImOutput::Kick { session, .. } => {
                self.coverage.barred_kicks += u64::from(self.is_barred_at(node, session));
                ToGateway::Kick(session)
            }
            ImOutput::LeaveRoom { .. } => return, // nobody is in a room
            output => unreachable!("nobody asks for {output:?}"),
        };
        self.send(node, false, Event::ToGateway(node, life, message));
    }

    /// The gateway reads a frame of a node.
    pub(crate) fn on_gateway(&mut self, node: usize, life: u64, message: ToGateway) {
        if matches!(message, ToGateway::LinkDown) {
            for it in &mut self.gateway.devices {
                it.session = it.session.filter(|(at, _)| *at != node);
            }
            return;
        }
        if self.nodes[node].life() != life {
            return; // the link has ended
        }
        match message {
            ToGateway::Slots(table) => {
                self.gateway.routes.handle_slots(&table);
                self.move_sessions();
            }
            ToGateway::Moved(device, session, moved) => self.on_moved(device, session, moved),
            ToGateway::Answer(correlation, code, answer) => self.on_answer(correlation, code, *answer),
            ToGateway::AnswerReq(correlation, code, resp) => {
                if let Some((device, _)) = self.gateway.correlations.remove(&correlation) {
                    self.on_request_answer(device, correlation, code, &resp);
                }
            }
            ToGateway::Push(sessions, push, body) => {
                for session in sessions {
                    self.on_push(node, session, push, &body);
                }
            }
            ToGateway::Kick(session) => {
                self.coverage.refused_logins += 1;
                let it = &mut self.gateway.devices[session.slot()];
                if it.session == Some((node, session)) {
                    it.session = None;
                    it.announce_ms = self.now_ms + 100;
                    self.tell_node(node, ToNode::ConnDown(session));
                }
            }
            ToGateway::LinkDown => {}
        }
    }

    /// Announces the sessions of slots that another node owns now.
    fn move_sessions(&mut self) {
        while let Some(slot) = self.gateway.routes.poll_moved() {
            let owner = self.gateway.routes.table().owner(slot).node.map(|node| usize::from(node.0) - 1);
            for device in 0..self.gateway.devices.len() {
                let it = &self.gateway.devices[device];
                if it.slot == slot && it.session.is_some_and(|(node, _)| Some(node) != owner) {
                    self.end_session(device);
                    self.announce(device);
                }
            }
        }
    }

    fn on_moved(&mut self, device: usize, session: SessionId, moved: Moved) {
        self.coverage.moved_frames += 1;
        let (now, now_ms) = (self.instant(), self.now_ms);
        let moves = self.gateway.devices[device].flights.values().map(|flight| flight.moves).max();
        let route = self.gateway.routes.handle_moved(now, moved, moves.unwrap_or(0));
        self.move_sessions();
        let it = &mut self.gateway.devices[device];
        if it.session.is_none_or(|(_, current)| current != session) {
            return; // announced elsewhere already
        }
        it.requests.repeat(now_ms);
        for flight in it.flights.values_mut() {
            flight.moves = if route == Route::Retry { 0 } else { flight.moves + 1 };
        }
        it.announce_ms = match route {
            Route::To(_) => now_ms,
            Route::Wait(_) | Route::Retry => now_ms + 100,
        };
        self.end_session(device);
        self.announce(device);
    }

    fn on_answer(&mut self, correlation: u64, code: Code, answer: SendAck) {
        let Some((device, target)) = self.gateway.correlations.remove(&correlation) else { return };
        let now_ms = self.now_ms;
        let it = &mut self.gateway.devices[device];
        let is_current = it.flights.get(&target).is_some_and(|flight| flight.correlation == correlation);
        if !is_current {
            return; // an answer to an earlier try
        }
        let is_blocked = code == Code::Denied && answer.reason.contains("blocked");
        let is_strange = code == Code::Denied && answer.reason.contains("not friends");
        self.coverage.sends_blocked += u64::from(is_blocked);
        self.coverage.sends_of_strangers += u64::from(is_strange);
        // A group may be silent, or gone.
        let is_final = code != Code::Retry && target.starts_with("group:") || is_blocked || is_strange;
        match code {
            Code::Ok | Code::Dup => {
                self.coverage.dups += u64::from(code == Code::Dup);
                let flight = it.flights.remove(&target).expect("it is current");
                it.requests.messages.push((answer.conversation.clone(), answer.seq, answer.message_id));
                it.told.push((target, flight.number, answer.conversation, answer.seq));
                self.send_due(device);
            }
            // The peer has not logged in yet, or the session was refused.
            Code::Retry | Code::NotFound | Code::Denied if !is_final => {
                self.coverage.retries += u64::from(code == Code::Retry);
                let wait_ms = 50 + self.random.below(200);
                if let Some(flight) = it.flights.get_mut(&target) {
                    flight.again_ms = Some(now_ms + wait_ms);
                }
            }
            // The sender is not in the group, or not any more.
            Code::NotMember | Code::NotFound | Code::Denied => {
                self.coverage.sends_refused += 1;
                let flight = it.flights.remove(&target).expect("it is current");
                it.refused.insert(flight.number);
                self.send_due(device);
            }
            code => panic!("{target}: {code:?} {}", answer.reason),
        }
    }

    fn on_push(&mut self, node: usize, session: SessionId, push: PushId, body: &Push) {
        let it = &mut self.gateway.devices[session.slot()];
        if it.session != Some((node, session)) {
            return; // of a session that has ended
        }
        if body.r#type == LIVE && body.seq == 0 {
            return self.coverage.live_pushes += 1; // it wants no ack
        }
        if body.r#type == INBOX && body.seq == 0 {
            let is_new = self.gateway.devices[session.slot()].pushed.insert(body.message_id);
            self.coverage.repeated_inbox_pushes += u64::from(!is_new);
            return self.tell_node(node, ToNode::Acked(session, push));
        }
        if self.on_event(session.slot(), body) {
            return self.tell_node(node, ToNode::Acked(session, push));
        }
        // A message that was taken back is empty, and so is that which says so.
        let number = match body.payload.get(..8) {
            Some(number) => u64::from_le_bytes(number.try_into().expect("8 bytes")),
            None => self.cells.number_of(&body.conversation, body.seq),
        };
        let it = &mut self.gateway.devices[session.slot()];
        self.coverage.pushes += 1;
        it.requests.messages.push((body.conversation.clone(), body.seq, body.message_id));
        if it.received.iter().any(|(_, _, known)| *known == number) {
            self.coverage.repeated_pushes += 1;
        } else {
            it.received.push((body.conversation.clone(), body.seq, number));
        }
        self.tell_node(node, ToNode::Acked(session, push));
    }
}
