//! The clients and their sockets: connects, reads, writes, logins, acks.
//!
//! Driven by the loop in [`super`] and by the scenario, which sends through it. It judges no message.

use super::client::{Client, Input, Stage};
use crate::dialect::{Dialect, Event, Message};
use crate::exit::Failure;
use crate::record::Latencies;
use crate::socket::{self, Sources};
use bytes::Bytes;
use mio::{Interest, Registry, Token};
use moorline_proto::time::Instant;
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

/// Bytes of one read.
const READ_BYTES: usize = 64 << 10;
/// Bytes that wait for a server that does not read; over it the client is lost.
const UNSENT_BYTES_MAX: usize = 1 << 20;
/// A login takes no longer.
const LOGIN_WITHIN: Duration = Duration::from_secs(10);
/// Deliveries before an ack of its own.
const DELIVERIES_PER_ACK: u8 = 8;

/// How the fleet stands.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Logged in now.
    pub active: u32,
    /// Between connect and WELCOME now.
    pub under_way: u32,
    /// Never got in.
    pub not_in: u32,
    /// Got in, and were lost before the end.
    pub dropped: u32,
    /// Heartbeats sent.
    pub beats: u64,
    /// Heartbeats echoed.
    pub beats_back: u64,
    /// Close codes the server gave, and how often.
    pub closed: BTreeMap<u32, u32>,
    /// The last error of a connect, for the report.
    pub last_error: Option<String>,
}

/// All clients of one loop.
#[derive(Debug)]
pub struct Crew<D: Dialect, X> {
    dialect: D,
    clients: Vec<Client<D::Decoder, X>>,
    registry: Registry,
    input: Box<[u8]>,
    out: Vec<u8>,
    /// Clients lost since the loop last looked.
    pub(super) lost: Vec<u32>,
    /// Logins are judged for lateness in the order they began: all before this one are.
    judged: u32,
    pub(super) counts: Counts,
    pub(super) login: Latencies,
}

impl<D: Dialect, X: Default> Crew<D, X> {
    pub(super) fn new(dialect: D, clients: u32, registry: Registry) -> Self {
        let clients = std::iter::repeat_with(Client::default).take(clients as usize).collect();
        Self {
            dialect,
            clients,
            registry,
            input: vec![0; READ_BYTES].into_boxed_slice(),
            out: Vec::with_capacity(READ_BYTES),
            lost: Vec::new(),
            judged: 0,
            counts: Counts::default(),
            login: Latencies::default(),
        }
    }

    /// Number of clients, logged in or not.
    #[allow(clippy::cast_possible_truncation)] // made from a u32
    pub fn len(&self) -> u32 {
        self.clients.len() as u32
    }

    /// Whether there is no client.
    pub fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    /// Whether a client is logged in.
    pub fn is_active(&self, who: u32) -> bool {
        self.clients[who as usize].stage == Stage::Active
    }

    /// The scenario's part of a client.
    pub fn extra(&mut self, who: u32) -> &mut X {
        &mut self.clients[who as usize].extra
    }

    /// How the fleet stands.
    pub const fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Sends a message; its ack field is filled in here. False if the client is not logged in.
    pub fn send(&mut self, mut message: Message) -> bool {
        let who = message.from;
        if !self.is_active(who) {
            return false;
        }
        let client = &mut self.clients[who as usize];
        client.owed = 0;
        message.ack = client.heard;
        self.out.clear();
        self.dialect.message(&message, &mut self.out);
        self.write(who);
        true
    }

    /// Acknowledges what a client has handled, if anything is owed.
    pub fn ack(&mut self, who: u32) {
        let client = &mut self.clients[who as usize];
        if client.stage != Stage::Active || client.owed == 0 {
            return;
        }
        client.owed = 0;
        self.out.clear();
        self.dialect.ack(client.heard, &mut self.out);
        self.write(who);
    }

    pub(super) fn beat(&mut self, who: u32) {
        if self.is_active(who) {
            self.counts.beats += 1;
            self.out.clear();
            self.dialect.beat(&mut self.out);
            self.write(who);
        }
    }

    pub(super) fn start(&mut self, who: u32, target: SocketAddr, sources: &Sources, now: Instant) {
        self.step(who, Input::Started);
        self.clients[who as usize].since = now;
        let connected = socket::connect(target, sources.of(who)).and_then(|mut stream| {
            let both = Interest::READABLE | Interest::WRITABLE;
            self.registry.register(&mut stream, Token(who as usize), both)?;
            Ok(stream)
        });
        match connected {
            Ok(stream) => self.clients[who as usize].stream = Some(stream),
            Err(error) => self.fail(who, Some(error.to_string())),
        }
    }

    pub(super) fn handle_writable(&mut self, who: u32) {
        let client = &mut self.clients[who as usize];
        let Some(stream) = &mut client.stream else { return };
        if client.stage == Stage::Connecting {
            match stream.take_error() {
                Ok(None) if stream.peer_addr().is_err() => return, // not yet
                Ok(None) => {}
                Ok(Some(error)) | Err(error) => return self.fail(who, Some(error.to_string())),
            }
            self.step(who, Input::Connected);
            self.out.clear();
            self.dialect.hello(who, &mut self.out);
            self.write(who);
        } else if let Some(unsent) = client.unsent.take() {
            self.out.clear();
            self.out.extend_from_slice(&unsent);
            self.write(who);
        }
    }

    /// Reads until the socket is empty; a short read says that it is.
    pub(super) fn read(&mut self, who: u32, is_closed: bool, events: &mut Vec<Event>) {
        loop {
            let client = &mut self.clients[who as usize];
            let Some(stream) = &mut client.stream else { return };
            let len = match stream.read(&mut self.input) {
                Ok(0) => return self.fail(who, None),
                Ok(len) => len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return self.fail(who, Some(error.to_string())),
            };
            let mut input = Bytes::copy_from_slice(&self.input[..len]);
            if self.dialect.decode(&mut client.decoder, &mut input, events).is_err() {
                return self.fail(who, Some("the server's bytes are no frames of this protocol".into()));
            }
            if len < READ_BYTES && !is_closed {
                return;
            }
        }
    }

    /// What every scenario wants done about an event.
    pub(super) fn on_event(&mut self, who: u32, event: &Event, now: Instant) {
        match event {
            Event::Welcome => {
                self.login.record(now.saturating_since(self.clients[who as usize].since));
                self.step(who, Input::Welcomed);
            }
            Event::BeatBack => self.counts.beats_back += 1,
            Event::Delivery { seq, .. } if *seq > 0 => {
                let client = &mut self.clients[who as usize];
                client.heard = client.heard.max(*seq);
                client.owed = client.owed.saturating_add(1);
            }
            Event::Probe => {
                let client = &mut self.clients[who as usize];
                client.owed = 0;
                self.out.clear();
                self.dialect.probe_reply(client.heard, &mut self.out);
                self.write(who);
            }
            Event::Closing(code) => {
                *self.counts.closed.entry(*code).or_default() += 1;
                self.fail(who, Some(format!("the server closed with code {code}")));
            }
            Event::Delivery { .. } | Event::Answer { .. } | Event::Leave | Event::Other => {}
        }
    }

    /// After the scenario saw a delivery: ack if the sending of messages did not do it by the way.
    pub(super) fn ack_if_many(&mut self, who: u32) {
        if self.clients[who as usize].owed >= DELIVERIES_PER_ACK {
            self.ack(who);
        }
    }

    /// Gives up logins that take too long; `begun` clients have started.
    pub(super) fn expire_logins(&mut self, begun: u32, now: Instant) {
        while self.judged < begun {
            let client = &self.clients[self.judged as usize];
            if client.stage.is_under_way() {
                if now.saturating_since(client.since) < LOGIN_WITHIN {
                    return;
                }
                self.fail(self.judged, Some(format!("no answer to the login within {LOGIN_WITHIN:?}")));
            }
            self.judged += 1;
        }
    }

    fn write(&mut self, who: u32) {
        let client = &mut self.clients[who as usize];
        let Some(stream) = &mut client.stream else { return };
        if let Some(unsent) = &mut client.unsent {
            unsent.extend_from_slice(&self.out);
            if unsent.len() > UNSENT_BYTES_MAX {
                self.fail(who, Some("the server does not read".into()));
            }
            return;
        }
        let mut rest = self.out.as_slice();
        while !rest.is_empty() {
            match stream.write(rest) {
                Ok(len) => rest = &rest[len..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    client.unsent = Some(Box::new(rest.to_vec()));
                    return;
                }
                Err(error) => return self.fail(who, Some(error.to_string())),
            }
        }
    }

    fn fail(&mut self, who: u32, error: Option<String>) {
        if error.is_some() {
            self.counts.last_error = error;
        }
        if self.clients[who as usize].stage != Stage::Gone {
            self.step(who, Input::Lost);
            self.lost.push(who);
        }
        let client = &mut self.clients[who as usize];
        client.stream = None; // closes it, which also takes it out of the poll
        client.unsent = None;
    }

    fn step(&mut self, who: u32, input: Input) {
        let stage = &mut self.clients[who as usize].stage;
        let before = *stage;
        let Some(after) = before.on(input) else {
            return self.fail(who, Some(format!("{input:?} when {before:?}")));
        };
        *stage = after;
        self.counts.under_way -= u32::from(before.is_under_way());
        self.counts.under_way += u32::from(after.is_under_way());
        self.counts.active -= u32::from(before == Stage::Active);
        self.counts.active += u32::from(after == Stage::Active);
        if after == Stage::Gone {
            self.counts.dropped += u32::from(before == Stage::Active);
            self.counts.not_in += u32::from(before != Stage::Active);
        }
    }

    /// The registry, for the loop's timer.
    pub(super) const fn registry(&self) -> &Registry {
        &self.registry
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::io("poll")(error)
    }
}
