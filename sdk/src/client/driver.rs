//! The client's own thread: one mio loop that drives the core's one socket.
//!
//! The thread holds the hub's lock only while it talks to the core, never while it does IO. Work that may block is in other
//! threads (`jobs`, `keeper`).

use super::alarm::Alarm;
use super::clock::{Clock, SleepWatch};
use super::jobs::{Done, Jobs};
use super::jwt::expiry_of;
use super::outcome::Outcome;
use super::shared::{Hub, Notices, Shared};
use super::socket::Socket;
use super::tls::Tls;
use super::token::Source;
use crate::core::{ClosedWhy, DispatchFault, Event, Message, Notice, TlsFault, TokenWhy};
use bytes::{Bytes, BytesMut};
use crossbeam_channel::Sender;
use mio::event::Event as Readiness;
use mio::{Events, Poll};
use moorline_net::read_block::ReadBlock;
use moorline_net::stream::Reading;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Readiness events per turn: there are three sources.
const EVENTS_MAX: usize = 8;

/// Waits from which the alarm is set: a device that sleeps within a shorter one is late by at most this.
const ALARM_MIN: Duration = Duration::from_secs(1);

/// Bytes of the block that the socket is read into.
const READ_BYTES: usize = 32 << 10;

pub(super) struct Driver {
    pub(super) shared: Arc<Shared>,
    pub(super) poll: Poll,
    /// `host:port`.
    pub(super) endpoint: String,
    /// Address that the current attempt goes to, as a gateway or a dispatch server has named it; `None`: the endpoint.
    pub(super) alternate: Option<String>,
    /// `None`: plain TCP.
    pub(super) tls: Option<Tls>,
    /// Plain TCP may leave this machine.
    pub(super) may_be_plain: bool,
    pub(super) jobs: Jobs,
    pub(super) alarm: Alarm,
    pub(super) sleep: SleepWatch,
    /// Name that the attempt to connect waits for; `None`: it waits for none.
    pub(super) wanted: Option<String>,
    pub(super) messages: Sender<Message>,
    pub(super) notices: Notices,
    pub(super) linger: Duration,
    pub(super) socket: Option<Socket>,
    pub(super) attempts: usize,
    pub(super) is_closing: bool,
    pub(super) closed: Option<ClosedWhy>,
}

impl Driver {
    /// Runs until the core is closed for good.
    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(EVENTS_MAX);
        let mut block = ReadBlock::with_size(READ_BYTES);
        self.on_time();
        while self.closed.is_none() {
            let timeout = self.timeout();
            if let Err(error) = self.poll.poll(&mut events, timeout)
                && error.kind() != std::io::ErrorKind::Interrupted
            {
                tracing::error!(%error, "the client's poll failed");
                break;
            }
            for event in &events {
                match Source::from(event.token()) {
                    Source::Waker => self.shared.on_woken(),
                    Source::Alarm => {} // the deadline is looked at below
                    Source::Socket(attempt) => {
                        self.on_readiness(attempt, event, &mut block);
                        self.on_readable(attempt, &mut block);
                    }
                }
            }
            self.on_done();
            self.on_sleep();
            self.on_time();
        }
        self.hang_up();
    }

    /// Takes the results of work in other threads.
    fn on_done(&mut self) {
        while let Some(done) = self.jobs.poll() {
            match done {
                Done::Resolved { name, addresses } => {
                    if self.wanted.take_if(|wanted| *wanted == name).is_some() {
                        self.connect_to(addresses.and_then(|addresses| choose(&addresses, self.attempts)));
                    }
                }
                Done::Token(token) => self.on_token(token),
                Done::Endpoints(Ok(body)) => self.on_endpoints(Ok(&body)),
                Done::Endpoints(Err(fault)) => self.on_endpoints(Err(fault)),
            }
            self.drain();
        }
    }

    fn on_sleep(&mut self) {
        if self.sleep.has_slept(self.shared.clock.asleep()) {
            let (mut hub, now) = self.shared.hub();
            hub.core.network_changed(now, None);
            drop(hub);
            self.drain();
        }
    }

    fn timeout(&mut self) -> Option<Duration> {
        let (hub, now) = self.shared.hub();
        let deadline = hub.core.next_deadline();
        drop(hub);
        let wait = deadline.map(|at| at.saturating_since(now));
        // The poll's own time stands still while the device sleeps.
        let is_long = wait.is_some_and(|wait| wait >= ALARM_MIN);
        if let Err(error) = self.alarm.set(deadline.filter(|_| is_long), &self.shared.clock) {
            tracing::debug!(%error, "cannot set the alarm");
        }
        // A poll ends up to a millisecond early; rounding up spares the empty turn.
        wait.map(|wait| if wait.is_zero() { wait } else { wait + Duration::from_millis(1) })
    }

    fn on_time(&mut self) {
        let (mut hub, now) = self.shared.hub();
        if hub.core.next_deadline().is_some_and(|at| at <= now) {
            hub.core.handle_timeout(now);
        }
        drop(hub);
        self.drain();
    }

    fn current(&mut self, attempt: usize) -> Option<&mut Socket> {
        self.socket.as_mut().filter(|socket| socket.attempt == attempt)
    }

    fn on_readiness(&mut self, attempt: usize, event: &Readiness, block: &mut ReadBlock) {
        let Some(socket) = self.current(attempt) else { return };
        let edge = socket.handle_event(event);
        if socket.is_connected {
            if edge.became_writable {
                self.drain();
            }
            return;
        }
        match socket.try_finish_connect(block) {
            Ok(true) => {
                let (mut hub, now) = self.shared.hub();
                hub.core.handle_connected(now);
                drop(hub);
                self.drain();
            }
            Ok(false) => {}
            Err(error) => self.on_gone(&error),
        }
    }

    fn on_readable(&mut self, attempt: usize, block: &mut ReadBlock) {
        while let Some(socket) = self.current(attempt).filter(|socket| socket.is_connected) {
            match socket.read(block) {
                Ok(Reading::Blocked) => return,
                Ok(Reading::End) => return self.on_gone(&std::io::ErrorKind::UnexpectedEof.into()),
                Err(error) => return self.on_gone(&error),
                Ok(Reading::Bytes(read)) => {
                    // A copy: a message that the application keeps must not keep 64 KiB with it.
                    let bytes = Bytes::copy_from_slice(&read);
                    drop(read);
                    let (mut hub, now) = self.shared.hub();
                    hub.core.handle_bytes(now, bytes);
                }
            }
            self.on_time(); // drains before the next read: the core may have hung up
        }
    }

    fn on_gone(&mut self, error: &std::io::Error) {
        tracing::debug!(%error, endpoint = %self.endpoint, "connection lost");
        self.hang_up();
        self.tell_gone(error);
        self.drain();
    }

    fn tell_gone(&self, error: &std::io::Error) {
        let fault = error.get_ref().and_then(|error| error.downcast_ref::<TlsFault>()).cloned();
        let (mut hub, now) = self.shared.hub();
        hub.core.handle_disconnected(now, fault);
    }

    /// Takes everything out of the core and does it, until there is nothing more.
    fn drain(&mut self) {
        loop {
            let mut out = BytesMut::new();
            let mut left = Vec::new();
            let (mut hub, _) = self.shared.hub();
            while let Some(event) = hub.core.poll_event() {
                if event == Event::Transmit {
                    // No frame is queued behind a Hangup, so all bytes of a round are for the socket that stands.
                    hub.core.poll_transmit(&mut out);
                } else if let Some(event) = settle(&mut hub, event) {
                    left.push(event);
                }
            }
            drop(hub);
            let mut broken = None;
            if let Some(socket) = &mut self.socket {
                socket.out.unsplit(out);
                broken = socket.flush().err().map(|error| (socket.attempt, error));
            }
            self.is_closing |= left.iter().any(|event| matches!(event, Event::Notice(Notice::Closed(_))));
            let is_drained = left.is_empty();
            left.into_iter().for_each(|event| self.on_event(event));
            if let Some((attempt, error)) = broken
                && self.current(attempt).is_some()
            {
                return self.on_gone(&error); // it drains again
            }
            if is_drained {
                return;
            }
        }
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Connect { alternate } => self.connect(alternate.as_deref()),
            Event::Hangup => self.hang_up(),
            Event::TokenNeeded(why) => self.fetch_token(why),
            Event::EndpointsNeeded { server } => {
                if let Err(error) = self.jobs.ask_dispatch(server) {
                    self.on_endpoints(Err(DispatchFault::Unreachable { why: error.to_string() }));
                }
            }
            // The receiver lives as long as the client; the core bounds what is out.
            Event::Message(message) => drop(self.messages.send(message)),
            Event::Notice(notice) => {
                if let Notice::Closed(why) = &notice {
                    self.closed = Some(why.clone());
                }
                self.notices.put(notice);
            }
            Event::Transmit | Event::Sent(_) | Event::SendFailed { .. } | Event::Response { .. } => {}
        }
    }

    fn fetch_token(&mut self, why: TokenWhy) {
        if let Err(error) = self.jobs.ask_for_token(why) {
            tracing::debug!(%error, "cannot ask for a token");
            self.on_token(None);
        }
    }

    fn on_token(&mut self, token: Option<String>) {
        let unix = Clock::unix();
        let (mut hub, now) = self.shared.hub();
        let expiry = token.as_deref().and_then(expiry_of);
        let until = expiry.map(|expiry| now + expiry.saturating_sub(unix));
        hub.core.handle_token(now, token.map(Into::into), until);
    }

    fn on_endpoints(&self, answer: Result<&[u8], DispatchFault>) {
        let (mut hub, now) = self.shared.hub();
        hub.core.handle_endpoints(now, answer);
    }

    fn connect(&mut self, alternate: Option<&str>) {
        self.attempts += 1;
        self.alternate = alternate.map(str::to_owned);
        let name = alternate.unwrap_or(&self.endpoint).to_owned();
        if let Ok(address) = name.parse() {
            return self.connect_to(Ok(address));
        }
        match self.jobs.resolve(&name) {
            Ok(()) => self.wanted = Some(name),
            Err(error) => self.connect_to(Err(error)),
        }
    }

    fn connect_to(&mut self, address: std::io::Result<SocketAddr>) {
        match address.and_then(|address| self.open(address)) {
            Ok(socket) => self.socket = Some(socket),
            Err(error) => {
                tracing::debug!(%error, endpoint = %self.endpoint, "cannot connect");
                self.tell_gone(&error);
            }
        }
    }

    fn open(&self, address: SocketAddr) -> std::io::Result<Socket> {
        if self.tls.is_none() && !self.may_be_plain && !address.ip().is_loopback() {
            let why = format!("{address} is not on this machine, and plain TCP is not allowed to leave it");
            return Err(std::io::Error::other(why)); // whatever `localhost` means here
        }
        let begun = self.tls.as_ref().map(|tls| tls.connection(self.alternate.as_deref()));
        let secured = begun.transpose().map_err(std::io::Error::other)?;
        Socket::connect(address, self.attempts, secured, self.poll.registry())
    }

    /// The very last bytes (acks, goodbye) get `linger` to leave.
    fn hang_up(&mut self) {
        self.wanted = None;
        let linger = if self.is_closing { self.linger } else { Duration::ZERO };
        if let Some(socket) = self.socket.take() {
            socket.finish(self.poll.registry(), linger);
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.shared.end(self.closed.take().unwrap_or(ClosedWhy::ByApplication));
    }
}

/// Hands results to those who wait; returns what is for the driver.
fn settle(hub: &mut Hub, event: Event) -> Option<Event> {
    fn give<T: Clone>(outcome: Option<Arc<Outcome<T>>>, result: T) {
        if let Some(outcome) = outcome {
            outcome.give(result);
        }
    }
    match event {
        Event::Sent(receipt) => hub.on_sent(receipt.id, Ok(receipt)),
        Event::SendFailed { id, failure, .. } => hub.on_sent(id, Err(failure)),
        Event::Response { id, result } => give(hub.requests.remove(&id), result),
        event => return Some(event),
    }
    None
}

/// Chooses one of a name's addresses; another one at each attempt.
fn choose(addresses: &[SocketAddr], attempt: usize) -> std::io::Result<SocketAddr> {
    let unknown = || std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address");
    addresses.get(attempt % addresses.len().max(1)).copied().ok_or_else(unknown)
}
