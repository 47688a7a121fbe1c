//! A virtual clock, byte pipes that chunk, delay and break, and applications that take their time.

use crate::gateway::{Connection, Coverage, Script};
use crate::store::{Device, State, Store};
use bytes::{Bytes, BytesMut};
use moorline_proto::message::client::Platform;
use moorline_proto::random::Random;
use moorline_proto::time::{Duration, Instant};
use moorline_sdk::core::{Core, CoreConfig, Event, Notice, SendId, Target, Token, TokenSource};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

/// Until then the applications talk, until `CALM_AT` things go wrong.
const TALK_UNTIL: Duration = Duration::from_secs(40);
const CALM_AT: Duration = Duration::from_secs(60);
const END_AT: Duration = Duration::from_secs(600);

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Timer(usize),
    Connected(usize, usize),
    Up(usize, Vec<u8>),
    Down(usize, Vec<u8>),
    Reset(usize),
    Gone(usize, usize),
    Talk(usize),
    Handled(usize, Token, String, u64),
    Notify,
}

struct Pipe {
    client: usize,
    connection: Connection,
    up_at: Instant,
    down_at: Instant,
    is_dead: bool,
}

struct Client {
    core: Core,
    device: Device,
    pipe: Option<usize>,
    talks: u64,
    open: BTreeMap<SendId, (String, Bytes)>,
    finals: BTreeMap<SendId, bool>,
    seen: BTreeMap<String, Vec<u64>>,
    armed: Option<Instant>,
}

pub(crate) struct World {
    now: Instant,
    order: u64,
    heap: BinaryHeap<Reverse<(Instant, u64, What)>>,
    clients: Vec<Client>,
    pipes: Vec<Pipe>,
    store: Store,
    script: Script,
    random: Random,
    trace: u64,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let names = [("alice", "phone"), ("alice", "desk"), ("bob", "phone"), ("carol", "phone")];
        let mut random = Random::new(seed);
        let script =
            Script { random: Random::new(random.next_u64()), is_calm: false, seen: Coverage::default() };
        let clients = names.map(|(uid, device)| {
            let config = CoreConfig::new(uid, device, Platform::Linux, TokenSource::Fixed("t".into()));
            Client {
                core: Core::new(config, random.next_u64()),
                device: (uid.into(), device.into()),
                pipe: None,
                talks: 0,
                open: BTreeMap::new(),
                finals: BTreeMap::new(),
                seen: BTreeMap::new(),
                armed: None,
            }
        });
        let devices = names.map(|(uid, device)| (uid.to_owned(), device.to_owned())).to_vec();
        let mut world = Self {
            now: Instant::ZERO,
            order: 0,
            heap: BinaryHeap::new(),
            clients: clients.into(),
            pipes: Vec::new(),
            store: Store::new(devices),
            script,
            random,
            trace: 0,
        };
        for client in 0..world.clients.len() {
            world.after(1, What::Timer(client));
            world.after(100, What::Talk(client));
        }
        world.after(10_000, What::Notify);
        world
    }

    fn after(&mut self, millis: u64, what: What) {
        self.at(self.now + Duration::from_millis(millis), what);
    }

    fn at(&mut self, at: Instant, what: What) {
        self.order += 1;
        self.heap.push(Reverse((at, self.order, what)));
    }

    /// Runs to the end; returns what occurred and a digest of everything that did.
    pub(crate) fn run(mut self) -> (Coverage, u64) {
        let mut steps_here = 0;
        while let Some(Reverse((at, _, what))) = self.heap.pop() {
            steps_here = if at == self.now { steps_here + 1 } else { 0 };
            assert!(steps_here < 10_000, "time stands still at {at:?}: {what:?}");
            self.now = at;
            self.script.is_calm = at >= Instant::ZERO + CALM_AT;
            if self.script.is_calm && self.is_done() || at > Instant::ZERO + END_AT {
                break;
            }
            let text = format!("{at:?}{what:?}");
            self.trace =
                text.bytes().fold(self.trace, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
            self.step(what);
        }
        self.check();
        (self.script.seen, self.trace)
    }

    fn step(&mut self, what: What) {
        match what {
            What::Timer(client) => {
                self.clients[client].armed = None;
                self.clients[client].core.handle_timeout(self.now);
                self.drain(client);
            }
            What::Connected(client, pipe) if self.clients[client].pipe == Some(pipe) => {
                self.clients[client].core.handle_connected(self.now);
                self.drain(client);
            }
            What::Up(pipe, bytes) if !self.pipes[pipe].is_dead => {
                let bytes = Bytes::from(bytes);
                let answer =
                    self.pipes[pipe].connection.handle_bytes(bytes, &mut self.script, &mut self.store);
                self.write_down(pipe, &answer);
                self.replace_older(pipe);
                self.push_to_others(pipe);
            }
            What::Down(pipe, bytes) if !self.pipes[pipe].is_dead => {
                let client = self.pipes[pipe].client;
                self.clients[client].core.handle_bytes(self.now, bytes.into());
                self.drain(client);
            }
            What::Reset(pipe) if !self.pipes[pipe].is_dead && !self.script.is_calm => {
                self.script.seen.resets += 1;
                self.kill(pipe);
                let client = self.pipes[pipe].client;
                let delay = self.random.below(2000);
                self.after(delay, What::Gone(client, pipe));
            }
            What::Gone(client, pipe) if self.clients[client].pipe == Some(pipe) => {
                self.clients[client].pipe = None;
                self.clients[client].core.handle_disconnected(self.now, None);
                self.drain(client);
            }
            What::Talk(client) => self.talk(client),
            What::Handled(client, token, conversation, seq) => {
                let device = self.clients[client].device.clone();
                self.store.handled.insert((device, conversation, seq));
                self.clients[client].core.handled(self.now, token);
                self.drain(client);
            }
            What::Notify => {
                for pipe in 0..self.pipes.len() {
                    let bytes = self.pipes[pipe].connection.notify(&mut self.script, &mut self.store);
                    self.write_down(pipe, &bytes);
                }
                self.after(10_000, What::Notify);
            }
            _ => {}
        }
    }

    fn talk(&mut self, client: usize) {
        if self.now >= Instant::ZERO + TALK_UNTIL {
            return;
        }
        for _ in 0..=self.random.below(3) {
            let target = match self.random.below(4) {
                0 => Target::user(if self.clients[client].device.0 == "bob" { "alice" } else { "bob" }),
                1 => Target::user(if self.clients[client].device.0 == "carol" { "bob" } else { "carol" }),
                _ => Target::group("g"),
            };
            let Client { core, device, talks, open, .. } = &mut self.clients[client];
            *talks += 1;
            let payload = Bytes::from(format!("{}/{} {talks:06}", device.0, device.1));
            let conversation = target.conversation(&device.0).to_string();
            let (id, _) = core.send(self.now, target, 1, payload.clone()).expect("has room");
            assert!(open.insert(id, (conversation, payload)).is_none());
        }
        self.drain(client);
        let pause = self.random.below(1500);
        self.after(pause, What::Talk(client));
    }

    /// The driver's duty after every call into a core.
    fn drain(&mut self, at: usize) {
        while let Some(event) = self.clients[at].core.poll_event() {
            self.on_event(at, event);
        }
        let client = &mut self.clients[at];
        if let Some(deadline) = client.core.next_deadline()
            && client.armed.is_none_or(|armed| armed > deadline)
        {
            client.armed = Some(deadline);
            self.at(deadline.max(self.now), What::Timer(at));
        }
    }

    fn on_event(&mut self, at: usize, event: Event) {
        let client = &mut self.clients[at];
        match event {
            Event::Transmit => {
                let mut out = BytesMut::new();
                client.core.poll_transmit(&mut out);
                if let Some(pipe) = client.pipe {
                    self.write_up(pipe, &out);
                }
            }
            Event::Connect { .. } => {
                assert_eq!(client.pipe, None, "one connection at a time");
                let pipe = self.pipes.len();
                client.pipe = Some(pipe);
                let (now, connection) = (self.now, Connection::new());
                self.pipes.push(Pipe { client: at, connection, up_at: now, down_at: now, is_dead: false });
                if self.script.chance(5) {
                    self.pipes[pipe].is_dead = true;
                    self.after(50, What::Gone(at, pipe));
                } else {
                    self.after(5, What::Connected(at, pipe));
                    let life = self.random.below(30_000);
                    self.after(life, What::Reset(pipe));
                }
            }
            Event::Hangup => {
                let pipe = client.pipe.take().expect("something to hang up");
                // What is under way to the gateway may still arrive, what comes back may not.
                let delay = self.random.below(300);
                self.after(delay, What::Reset(pipe));
                if self.script.is_calm {
                    self.kill(pipe);
                }
            }
            Event::Sent(receipt) => {
                let (conversation, payload) = client.open.remove(&receipt.id).expect("one final result");
                assert_eq!(*receipt.conversation, *conversation);
                assert_eq!(self.store.message(&conversation, receipt.seq).payload, payload);
                assert!(client.finals.insert(receipt.id, true).is_none());
            }
            Event::SendFailed { id, .. } => {
                client.open.remove(&id).expect("one final result");
                assert!(client.finals.insert(id, false).is_none());
            }
            Event::Message(message) => {
                let places = client.seen.entry(message.conversation.to_string()).or_default();
                assert!(
                    places.last().is_none_or(|last| *last < message.seq),
                    "order: {places:?} {message:?}"
                );
                places.push(message.seq);
                let stored = self.store.message(&message.conversation, message.seq);
                assert_eq!((stored.payload, stored.sender), (message.payload, message.sender));
                let busy = if self.random.one_in(20) { 3000 } else { self.random.below(20) };
                let name = message.conversation.to_string();
                self.after(busy, What::Handled(at, message.token, name, message.seq));
            }
            Event::Notice(Notice::Hole { .. } | Notice::Closed(_) | Notice::Kicked { .. }) => {
                panic!("{event:?}")
            }
            _ => {}
        }
    }

    fn kill(&mut self, pipe: usize) {
        self.pipes[pipe].is_dead = true;
        self.pipes[pipe].connection.end(&mut self.store);
    }

    /// A device has one login: the newest.
    fn replace_older(&mut self, newest: usize) {
        let client = self.pipes[newest].client;
        for pipe in 0..newest {
            if self.pipes[pipe].client == client && !self.pipes[pipe].is_dead {
                self.kill(pipe);
            }
        }
    }

    fn push_to_others(&mut self, from: usize) {
        for pipe in 0..self.pipes.len() {
            if pipe != from && !self.pipes[pipe].is_dead {
                let answer =
                    self.pipes[pipe].connection.handle_bytes(Bytes::new(), &mut self.script, &mut self.store);
                self.write_down(pipe, &answer);
            }
        }
    }

    fn write_up(&mut self, pipe: usize, bytes: &[u8]) {
        for chunk in self.chunks(bytes) {
            self.pipes[pipe].up_at = self.later(self.pipes[pipe].up_at);
            self.at(self.pipes[pipe].up_at, What::Up(pipe, chunk));
        }
    }

    fn write_down(&mut self, pipe: usize, bytes: &[u8]) {
        for chunk in self.chunks(bytes) {
            self.pipes[pipe].down_at = self.later(self.pipes[pipe].down_at);
            self.at(self.pipes[pipe].down_at, What::Down(pipe, chunk));
        }
    }

    fn later(&mut self, last: Instant) -> Instant {
        last.max(self.now + Duration::from_micros(self.random.below(30_000)))
    }

    fn chunks(&mut self, mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut chunks = Vec::new();
        while !bytes.is_empty() {
            let longest = if self.random.one_in(3) { 20 } else { 2000 };
            let len = 1 + self.random.below(longest);
            let (chunk, rest) = bytes.split_at(bytes.len().min(usize::try_from(len).unwrap()));
            chunks.push(chunk.to_vec());
            bytes = rest;
        }
        chunks
    }

    fn is_done(&self) -> bool {
        let is_idle = |client: &Client| client.open.is_empty() && client.core.messages_open() == 0;
        let is_acked = |device: &Device| {
            let mut stream = self.store.streams.get(device).into_iter().flatten();
            stream.all(|entry| entry.state == State::Acked)
        };
        let has_all = |client: &Client| {
            self.store.conversations.keys().all(|name| {
                let seen = client.seen.get(name).map_or(&[][..], |seen| seen);
                seen == self.store.expected(&client.device, name)
            })
        };
        self.clients.iter().all(|client| is_idle(client) && is_acked(&client.device) && has_all(client))
    }

    fn check(&self) {
        for client in &self.clients {
            let device = &client.device;
            assert!(client.open.is_empty(), "{device:?}: {:?} have no result", client.open);
            assert_eq!(client.finals.len() as u64, client.talks);
            let sent = client.finals.values().filter(|is_sent| **is_sent).count() as u64;
            assert!(sent * 10 >= client.talks * 9, "{device:?}: {sent} of {} sends succeeded", client.talks);
            for (name, places) in &self.store.conversations {
                let seen = client.seen.get(name).map_or(&[][..], |seen| seen);
                assert_eq!(seen, self.store.expected(device, name), "{device:?} in {name}");
                let own = places
                    .iter()
                    .flatten()
                    .filter(|message| (&message.sender, &message.sender_device) == (&device.0, &device.1));
                let own: Vec<&Bytes> = own.map(|message| &message.payload).collect();
                assert!(own.is_sorted(), "{device:?} in {name}: stored in another order than sent");
            }
            assert_eq!((client.core.sends_open(), client.core.messages_open()), (0, 0));
        }
        assert!(self.is_done(), "everything pushed is acked");
    }
}
