//! All clients on one loop: sockets, timers, and the protocol state of each.
//!
//! Owns the poll and every client. [`Fleet::turn`] waits and works; the other calls are what a client's
//! application would do. What clients say goes to a [`Listener`] at once. The fleet judges nothing.

mod alarm;
mod carrier;
mod member;
mod token;

use crate::certificate::Certificate;
use crate::client::{Client, OutboxFull, Output};
use crate::clock;
use alarm::Alarm;
use bytes::Bytes;
use member::Member;
use mio::{Events, Poll};
use moorline_proto::ids::MessageKey;
use moorline_proto::time::Instant;
use moorline_proto::wheel::Wheel;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;

/// Sockets looked at in one turn.
const READY_MAX: usize = 1_024;
/// Bytes of the one buffer that all sockets are read into.
const READ_BYTES: usize = 64 << 10;

/// Hears what clients say: every output that is not the fleet's own business.
pub(crate) trait Listener {
    /// Handles an output of `client` at `at`.
    fn handle_output(&mut self, client: u32, at: Instant, output: Output);
}

/// Hears nothing: for the end.
#[derive(Debug)]
pub(crate) struct Deaf;

impl Listener for Deaf {
    fn handle_output(&mut self, _client: u32, _at: Instant, _output: Output) {}
}

/// Addresses that clients connect to, and what they believe.
#[derive(Debug)]
struct Gateways {
    /// Clients are spread over these; one whose connection ends goes to the next one.
    addresses: Vec<SocketAddr>,
    client: Arc<ClientConfig>,
    name: ServerName<'static>,
}

/// Every client of the demo.
#[derive(Debug)]
pub(crate) struct Fleet {
    poll: Poll,
    ready: Events,
    alarm: Alarm,
    wheel: Wheel<u32>,
    fired: Vec<u32>,
    members: Vec<Member>,
    gateways: Gateways,
    buffer: Vec<u8>,
}

impl Fleet {
    /// Clients that do nothing before [`Fleet::start`].
    pub(crate) fn new(
        addresses: Vec<SocketAddr>,
        certificate: &Certificate,
        clients: impl Iterator<Item = Client>,
    ) -> io::Result<Self> {
        let (client, name) = (Arc::clone(&certificate.client), certificate.name.clone());
        let gateways = Gateways { addresses, client, name };
        let poll = Poll::new()?;
        let alarm = Alarm::new(poll.registry())?;
        Ok(Self {
            alarm,
            poll,
            ready: Events::with_capacity(READY_MAX),
            wheel: Wheel::new(clock::now()),
            fired: Vec::new(),
            members: (0..).zip(clients).map(|(number, client)| Member::new(number, client)).collect(),
            gateways,
            buffer: vec![0; READ_BYTES],
        })
    }

    /// Number of connections that stand and are encrypted.
    pub(crate) fn secure(&self) -> usize {
        self.members.iter().filter(|member| member.is_secure()).count()
    }

    /// Number of connections to the gateway of this index that stand.
    pub(crate) fn connected_to(&self, gateway: usize) -> u64 {
        let gateways = self.gateways.addresses.len();
        self.members.iter().filter(|member| member.is_at(gateway, gateways)).count() as u64
    }

    /// Has the client connect and log in, now and whenever its connection ends.
    pub(crate) fn start(&mut self, client: u32, listener: &mut impl Listener) {
        self.with(client, listener, |client| client.handle_timeout(clock::now()));
    }

    /// Has the client send a message to a seat's conversation.
    pub(crate) fn send(
        &mut self,
        client: u32,
        seat: usize,
        (key, payload): (MessageKey, Bytes),
        listener: &mut impl Listener,
    ) -> Result<(), OutboxFull> {
        self.with(client, listener, |client| client.send(clock::now(), seat, key, payload))
    }

    /// Has the client ask the backend until it answers.
    pub(crate) fn ask(
        &mut self,
        client: u32,
        method: &'static str,
        payload: Bytes,
        listener: &mut impl Listener,
    ) {
        self.with(client, listener, |client| client.request(clock::now(), method, payload));
    }

    /// Has the client pull what it does not have.
    pub(crate) fn pull_all(&mut self, client: u32, listener: &mut impl Listener) {
        self.with(client, listener, |client| client.pull_all(clock::now()));
    }

    /// Has all clients say goodbye; nothing comes after it.
    pub(crate) fn close(&mut self, listener: &mut impl Listener) {
        for client in 0..u32::try_from(self.members.len()).expect("numbered so") {
            self.with(client, listener, |client| client.close(clock::now()));
        }
    }

    /// Waits until something happens or `until` has come, and deals with it: one turn.
    pub(crate) fn turn(&mut self, until: Instant, listener: &mut impl Listener) -> io::Result<()> {
        let next = self.wheel.next_deadline().map_or(until, |next| next.min(until));
        self.alarm.set(next)?;
        match self.poll.poll(&mut self.ready, None) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            other => other?,
        }
        let ready = std::mem::replace(&mut self.ready, Events::with_capacity(0));
        for event in &ready {
            if event.token() == token::ALARM {
                self.alarm.handle_fired();
                continue;
            }
            let client = token::client(event.token());
            self.members[client as usize].handle_ready(event, &mut self.buffer);
            self.with(client, listener, |_| ());
        }
        self.ready = ready;
        self.fire(listener);
        Ok(())
    }

    fn fire(&mut self, listener: &mut impl Listener) {
        let now = clock::now();
        let mut fired = std::mem::take(&mut self.fired);
        self.wheel.advance(now, &mut fired);
        for client in fired.drain(..) {
            let member = &mut self.members[client as usize];
            member.timer = None;
            if member.client.next_deadline().is_some_and(|due| due <= now) {
                member.client.handle_timeout(now);
            }
            self.with(client, listener, |_| ());
        }
        self.fired = fired;
    }

    /// Makes one call of a client, and does all that follows from it.
    fn with<T>(
        &mut self,
        client: u32,
        listener: &mut impl Listener,
        call: impl FnOnce(&mut Client) -> T,
    ) -> T {
        let member = &mut self.members[client as usize];
        let outcome = call(&mut member.client);
        member.drain(self.poll.registry(), &self.gateways, listener);
        // An entry that is too early costs one look; it is moved only when it would be too late.
        match (member.client.next_deadline(), member.timer) {
            (Some(due), None) => member.timer = Some((self.wheel.insert(due, client), due)),
            (Some(due), Some((key, at))) if due < at => {
                self.wheel.reschedule(key, due);
                member.timer = Some((key, due));
            }
            _ => {}
        }
        outcome
    }
}
