//! The client's own thread: one mio loop that drives the core's one socket.
//!
//! It holds the hub's lock only while it talks to the core, never while it does IO or calls the
//! application's token provider (which may block: nothing else can happen without a token).

use super::TokenProvider;
use super::outcome::Outcome;
use super::shared::{Hub, Notices, Shared};
use super::socket::Socket;
use super::token::Source;
use crate::core::{ClosedWhy, Event, Message, Notice, TokenWhy};
use bytes::{Bytes, BytesMut};
use crossbeam_channel::Sender;
use mio::event::Event as Readiness;
use mio::{Events, Poll};
use moorline_net::read_block::ReadBlock;
use moorline_net::stream::Reading;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

/// Readiness events per turn: there are two sources.
const EVENTS_MAX: usize = 8;

/// Bytes of the block that the socket is read into.
const READ_BYTES: usize = 32 << 10;

pub(super) struct Driver {
    pub(super) shared: Arc<Shared>,
    pub(super) poll: Poll,
    pub(super) endpoint: String,
    pub(super) provider: Option<TokenProvider>,
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
                    Source::Socket(attempt) => {
                        self.on_readiness(attempt, event);
                        self.on_readable(attempt, &mut block);
                    }
                }
            }
            self.on_time();
        }
        self.hang_up();
    }

    fn timeout(&self) -> Option<Duration> {
        let (hub, now) = self.shared.hub();
        let wait = hub.core.next_deadline().map(|at| at.saturating_since(now));
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

    fn on_readiness(&mut self, attempt: usize, event: &Readiness) {
        let Some(socket) = self.current(attempt) else { return };
        let edge = socket.handle_event(event);
        if socket.is_connected {
            if edge.became_writable {
                self.drain();
            }
            return;
        }
        match socket.try_finish_connect() {
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
        let (mut hub, now) = self.shared.hub();
        hub.core.handle_disconnected(now);
        drop(hub);
        self.drain();
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
        let token = self.provider.as_mut().and_then(|provider| provider(why));
        let (mut hub, now) = self.shared.hub();
        hub.core.handle_token(now, token.map(Into::into));
    }

    fn connect(&mut self, alternate: Option<&str>) {
        self.attempts += 1;
        let endpoint = alternate.unwrap_or(&self.endpoint);
        let socket = resolve(endpoint, self.attempts)
            .and_then(|address| Socket::connect(address, self.attempts, self.poll.registry()));
        match socket {
            Ok(socket) => self.socket = Some(socket),
            Err(error) => {
                tracing::debug!(%error, endpoint, "cannot connect");
                let (mut hub, now) = self.shared.hub();
                hub.core.handle_disconnected(now);
            }
        }
    }

    /// The very last bytes (acks, goodbye) get `linger` to leave.
    fn hang_up(&mut self) {
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

/// Chooses one of the endpoint's addresses; another one at each attempt.
fn resolve(endpoint: &str, attempt: usize) -> std::io::Result<SocketAddr> {
    let addresses: Vec<SocketAddr> =
        endpoint.strip_prefix("tcp://").unwrap_or(endpoint).to_socket_addrs()?.collect();
    let unknown = || std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address");
    addresses.get(attempt % addresses.len().max(1)).copied().ok_or_else(unknown)
}
