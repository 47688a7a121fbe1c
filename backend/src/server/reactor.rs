//! Event loop with the sockets of all links: one thread, edge-triggered. All rules are in [`LinkHost`].
//!
//! Order of a turn: poll; read the clock once; accept; drain the mailbox; read ready links up to a budget; handle
//! timeouts; let the handler end its turn; write every link with new bytes once.

use super::Handler;
use super::event::{LinkId, Now};
use super::host::{LinkHost, Output, TICK};
use super::links::LinkEnd;
use super::mailbox::{Mailbox, Remote, mailbox};
use super::stream::{ReadBlock, Socket};
use crate::clock::Clock;
use crate::config::BackendConfig;
use crate::error::BackendError;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};
use moorline_proto::time::Instant;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const LISTENER: Token = Token(usize::MAX - 1);
const WAKER: Token = Token(usize::MAX);
/// Links accepted in one turn.
const ACCEPT_BUDGET: usize = 64;
/// Mailbox messages handled in one turn.
const MAILBOX_BUDGET: usize = 1024;
/// Bytes read from one link in one turn, so that every link has its share.
const READ_BUDGET_BYTES: usize = 256 << 10;
/// Poll events taken in one turn.
const EVENTS: usize = 1024;

/// A listening backend.
#[derive(Debug)]
pub struct Server<M> {
    poll: Poll,
    listener: TcpListener,
    address: SocketAddr,
    can_accept: bool,
    /// Time of the next try after a failed accept; `None`: the last one did not fail.
    accept_again_at: Option<Instant>,
    clock: Clock,
    host: LinkHost,
    /// Sockets by slot of [`LinkId`].
    sockets: Vec<Option<Socket>>,
    /// Slots of sockets with bytes to read.
    ready: Vec<usize>,
    block: ReadBlock,
    mailbox: Mailbox<M>,
    remote: Remote<M>,
    /// The handler asked for another turn at once.
    is_again: bool,
}

impl<M: Send + 'static> Server<M> {
    /// Opens the listening socket of `config`.
    ///
    /// # Errors
    /// [`BackendError`]: a setting is out of range, or the system refuses.
    pub fn bind(config: &BackendConfig) -> Result<Self, BackendError> {
        config.validate()?;
        let poll = Poll::new().map_err(failed("open a poll"))?;
        let listen_failed = |cause| BackendError::Listen { key: "listen", address: config.listen, cause };
        let mut listener = TcpListener::bind(config.listen).map_err(listen_failed)?;
        let address = listener.local_addr().map_err(listen_failed)?;
        poll.registry()
            .register(&mut listener, LISTENER, Interest::READABLE)
            .map_err(failed("watch the listening socket"))?;
        let waker = Waker::new(poll.registry(), WAKER).map_err(failed("open a waker"))?;
        let (remote, mailbox) = mailbox(config.link.mailbox, waker);
        let clock = Clock::new();
        let host = LinkHost::new(&config.link, config.node.clone(), clock.read().unix_ms);
        Ok(Self {
            poll,
            listener,
            address,
            can_accept: true,
            accept_again_at: None,
            clock,
            host,
            sockets: Vec::new(),
            ready: Vec::new(),
            block: ReadBlock::default(),
            mailbox,
            remote,
            is_again: false,
        })
    }

    /// Returns the address that gateways connect to, with the real port if port 0 was configured.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns a handle through which other threads reach [`Handler::handle_message`].
    pub fn remote(&self) -> Remote<M> {
        self.remote.clone()
    }

    /// Serves until `stop` is true, which is noticed within 250 ms, or until the handler [is over](Handler::is_over).
    ///
    /// # Errors
    /// [`BackendError::Poll`]. A broken link is logged and closed; it is not an error.
    pub fn run<H>(mut self, handler: &mut H, stop: &AtomicBool) -> Result<(), BackendError>
    where
        H: Handler<Message = M>,
    {
        let mut events = Events::with_capacity(EVENTS);
        while !stop.load(Ordering::Relaxed) && !handler.is_over(self.clock.read()) {
            self.turn(&mut events, handler)?;
        }
        Ok(())
    }

    fn turn<H: Handler<Message = M>>(
        &mut self,
        events: &mut Events,
        handler: &mut H,
    ) -> Result<(), BackendError> {
        let timeout = self.timeout();
        if let Err(cause) = self.poll.poll(events, Some(timeout))
            && cause.kind() != io::ErrorKind::Interrupted
        {
            return Err(failed("poll")(cause));
        }
        self.mailbox.awake();
        let now = self.clock.read();
        for event in &*events {
            match event.token() {
                LISTENER => self.can_accept = true,
                WAKER => {}
                Token(slot) => self.on_readiness(slot, event),
            }
        }
        self.accept(now);
        for _ in 0..MAILBOX_BUDGET {
            let Some(message) = self.mailbox.try_recv() else { break };
            handler.handle_message(now, message, self.host.outbox());
        }
        self.perform(now, handler);
        for slot in std::mem::take(&mut self.ready) {
            self.read(slot, now, handler);
        }
        if now.instant >= self.host.next_deadline() {
            self.host.handle_timeouts(now);
            self.perform(now, handler);
        }
        handler.handle_turn_end(now, self.host.outbox());
        self.perform(now, handler);
        self.host.handle_turn_end(now);
        self.perform(now, handler);
        Ok(())
    }

    fn timeout(&mut self) -> Duration {
        let has_work = std::mem::take(&mut self.is_again) || self.can_accept || !self.ready.is_empty();
        if has_work || !self.mailbox.try_sleep() {
            return Duration::ZERO;
        }
        let again_at = self.accept_again_at.unwrap_or(Instant::FAR_FUTURE);
        self.host.next_deadline().min(again_at).saturating_since(self.clock.read().instant)
    }

    fn on_readiness(&mut self, slot: usize, event: &mio::event::Event) {
        let Some(Some(socket)) = self.sockets.get_mut(slot) else { return };
        socket.is_read_closed |= event.is_read_closed() || event.is_error();
        if event.is_readable() || socket.is_read_closed {
            socket.is_readable = true;
            list(&mut self.ready, socket);
        }
        if event.is_writable() {
            socket.is_writable = true;
            self.host.handle_link_writable(socket.id);
        }
    }

    fn accept(&mut self, now: Now) {
        if self.accept_again_at.is_some_and(|at| at <= now.instant) {
            (self.can_accept, self.accept_again_at) = (true, None);
        }
        for _ in 0..ACCEPT_BUDGET {
            if !self.can_accept {
                return;
            }
            match self.listener.accept() {
                Ok((stream, peer)) => self.open(stream, peer, now),
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) => {
                    self.can_accept = false;
                    if cause.kind() != io::ErrorKind::WouldBlock {
                        // The process is out of descriptors, most likely.
                        self.accept_again_at = Some(now.instant + TICK);
                        tracing::warn!(%cause, "cannot accept a link; the next try is in 250 ms");
                    }
                }
            }
        }
    }

    fn open(&mut self, mut stream: TcpStream, peer: SocketAddr, now: Now) {
        let Some(id) = self.host.handle_link_opened(now) else {
            tracing::warn!(%peer, "closed a new link: `link.links_max` links are open");
            return;
        };
        // A whole turn is written at once, so Nagle's algorithm would only delay.
        stream.set_nodelay(true).ok();
        let slot = id.slot as usize;
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(cause) = self.poll.registry().register(&mut stream, Token(slot), interest) {
            tracing::warn!(%peer, %cause, "cannot watch a new link");
            return self.host.handle_link_closed(now, id, LinkEnd::Io(cause));
        }
        if self.sockets.len() <= slot {
            self.sockets.resize_with(slot + 1, || None);
        }
        self.sockets[slot] = Some(Socket {
            id,
            peer,
            stream,
            is_readable: false,
            is_writable: true,
            is_read_closed: false,
            is_listed: false,
            is_paused: false,
        });
    }

    fn read<H: Handler<Message = M>>(&mut self, slot: usize, now: Now, handler: &mut H) {
        if let Some(Some(socket)) = self.sockets.get_mut(slot) {
            socket.is_listed = false;
        }
        let mut budget = READ_BUDGET_BYTES;
        loop {
            let Some(Some(socket)) = self.sockets.get_mut(slot) else { return };
            if !socket.is_readable || socket.is_paused {
                return;
            }
            if budget == 0 {
                return list(&mut self.ready, socket);
            }
            let id = socket.id;
            match socket.read(&mut self.block) {
                Ok(Some(mut input)) => {
                    budget = budget.saturating_sub(input.len());
                    while !input.is_empty() {
                        self.host.handle_link_bytes(now, id, &mut input);
                        self.perform(now, handler);
                    }
                }
                Ok(None) => return,
                Err(end) => {
                    self.host.handle_link_closed(now, id, end);
                    return self.perform(now, handler);
                }
            }
        }
    }

    /// Does what the link host asks for, in its order.
    fn perform<H: Handler<Message = M>>(&mut self, now: Now, handler: &mut H) {
        while let Some(output) = self.host.poll_output() {
            match output {
                Output::Event(event) => handler.handle(now, event, self.host.outbox()),
                Output::Auth { question, judge } => {
                    handler.handle_auth(now, question, judge, self.host.outbox());
                }
                Output::Write(link) => self.write(link, now),
                Output::Close { link, end } => self.close(link, &end),
                Output::Pause(link) => {
                    if let Some(socket) = socket_of(&mut self.sockets, link) {
                        socket.is_paused = true;
                    }
                }
                Output::Resume(link) => {
                    if let Some(socket) = socket_of(&mut self.sockets, link) {
                        socket.is_paused = false;
                        if socket.is_readable {
                            list(&mut self.ready, socket);
                        }
                    }
                }
                Output::Again => self.is_again = true,
            }
        }
    }

    fn write(&mut self, link: LinkId, now: Now) {
        let Some(socket) = socket_of(&mut self.sockets, link) else { return };
        match socket.write(self.host.unsent(link)) {
            Ok(count) => self.host.handle_link_sent(now, link, count),
            Err(end) => self.host.handle_link_closed(now, link, end),
        }
    }

    fn close(&mut self, link: LinkId, end: &LinkEnd) {
        let Some(socket) = socket_of(&mut self.sockets, link) else { return };
        self.poll.registry().deregister(&mut socket.stream).ok();
        let peer = socket.peer;
        match end {
            LinkEnd::Closed | LinkEnd::Io(_) => tracing::info!(%peer, "link down: {end}"),
            _ => tracing::warn!(%peer, "link closed: {end}"),
        }
        self.sockets[link.slot as usize] = None;
    }
}

fn socket_of(sockets: &mut [Option<Socket>], link: LinkId) -> Option<&mut Socket> {
    sockets.get_mut(link.slot as usize)?.as_mut().filter(|socket| socket.id == link)
}

fn list(ready: &mut Vec<usize>, socket: &mut Socket) {
    if !socket.is_listed && !socket.is_paused {
        socket.is_listed = true;
        ready.push(socket.id.slot as usize);
    }
}

fn failed(operation: &'static str) -> impl FnOnce(io::Error) -> BackendError {
    move |cause| BackendError::Poll { operation, cause }
}
