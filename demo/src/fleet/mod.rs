//! All clients on one loop: sockets, timers, and the SDK's core of each.
//!
//! Owns the poll and every client. Driven by the play: [`Fleet::turn`] waits and works, the other calls
//! are what a client's application would do. What clients say goes to a [`Listener`] at once. It judges
//! nothing.

mod alarm;
mod client;
mod token;

use crate::clock;
use alarm::Alarm;
use bytes::Bytes;
use client::Client;
use mio::{Events, Poll};
use moorline_proto::ids::MessageKey;
use moorline_proto::time::{Duration, Instant};
use moorline_proto::wheel::Wheel;
use moorline_sdk::core::{Core, Event, Repeat, RequestRefused, SendRefused, Target};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;

/// Sockets looked at in one turn.
const READY_MAX: usize = 1_024;
/// Bytes of the one buffer that all sockets are read into.
const READ_BYTES: usize = 64 << 10;
/// The application's content type of the demo's messages.
const KIND: u32 = 1;

/// Hears what clients say: every event that is not the driver's own business.
pub(crate) trait Listener {
    /// `client` said `event` at `at`.
    fn on_event(&mut self, client: u32, at: Instant, event: Event);
}

/// Hears nothing: for the end.
#[derive(Debug)]
pub(crate) struct Deaf;

impl Listener for Deaf {
    fn on_event(&mut self, _client: u32, _at: Instant, _event: Event) {}
}

/// Every client of the demo.
#[derive(Debug)]
pub(crate) struct Fleet {
    poll: Poll,
    ready: Events,
    alarm: Alarm,
    wheel: Wheel<u32>,
    fired: Vec<u32>,
    clients: Vec<Client>,
    gateway: SocketAddr,
    buffer: Vec<u8>,
}

impl Fleet {
    /// Clients that do nothing before [`Fleet::start`].
    pub(crate) fn new(gateway: SocketAddr, cores: impl Iterator<Item = Core>) -> io::Result<Self> {
        let poll = Poll::new()?;
        let alarm = Alarm::new(poll.registry())?;
        Ok(Self {
            alarm,
            poll,
            ready: Events::with_capacity(READY_MAX),
            wheel: Wheel::new(clock::now()),
            fired: Vec::new(),
            clients: (0..).zip(cores).map(|(number, core)| Client::new(number, core)).collect(),
            gateway,
            buffer: vec![0; READ_BYTES],
        })
    }

    /// The client connects and logs in, now and whenever it is not.
    pub(crate) fn start(&mut self, client: u32, listener: &mut impl Listener) {
        self.with(client, listener, |core| core.handle_timeout(clock::now()));
    }

    /// The client sends a message.
    pub(crate) fn send(
        &mut self,
        client: u32,
        (key, payload): (MessageKey, Bytes),
        target: Target,
        listener: &mut impl Listener,
    ) -> Result<(), SendRefused> {
        let send = |core: &mut Core| core.send_with_key(clock::now(), key, target, KIND, payload);
        self.with(client, listener, send).map(drop)
    }

    /// The client asks the backend, until it is answered.
    pub(crate) fn ask(
        &mut self,
        client: u32,
        method: &'static str,
        payload: Bytes,
        timeout: Duration,
        listener: &mut impl Listener,
    ) -> Result<(), RequestRefused> {
        let ask =
            |core: &mut Core| core.request(clock::now(), method, payload, Repeat::UntilAnswered, timeout);
        self.with(client, listener, ask).map(drop)
    }

    /// All clients say goodbye; nothing comes after it.
    pub(crate) fn close(&mut self, listener: &mut impl Listener) {
        for client in 0..u32::try_from(self.clients.len()).expect("numbered so") {
            self.with(client, listener, |core| core.close(clock::now()));
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
            self.clients[client as usize].handle_ready(event, &mut self.buffer);
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
            let known = &mut self.clients[client as usize];
            known.timer = None;
            if known.core.next_deadline().is_some_and(|due| due <= now) {
                known.core.handle_timeout(now);
            }
            self.with(client, listener, |_| ());
        }
        self.fired = fired;
    }

    /// One call of a client's core, and all that follows from it.
    fn with<T>(&mut self, client: u32, listener: &mut impl Listener, call: impl FnOnce(&mut Core) -> T) -> T {
        let known = &mut self.clients[client as usize];
        let outcome = call(&mut known.core);
        known.drain(self.poll.registry(), self.gateway, listener);
        // An entry that is too early costs one look; it is moved only when it would be too late.
        match (known.core.next_deadline(), known.timer) {
            (Some(due), None) => known.timer = Some((self.wheel.insert(due, client), due)),
            (Some(due), Some((key, at))) if due < at => {
                self.wheel.reschedule(key, due);
                known.timer = Some((key, due));
            }
            _ => {}
        }
        outcome
    }
}
