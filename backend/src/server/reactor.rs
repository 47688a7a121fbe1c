//! Event loop with the sockets of all links: one thread, edge-triggered. All rules are in [`LinkHost`].
//!
//! Order of a turn: poll; read the clock once; accept at most 64 links; drain the mailbox; read ready links up to a
//! budget; handle timeouts; let the handler end its turn; write every link with new bytes once.

use super::Handler;
use super::event::{LinkId, Now};
use super::host::{LinkHost, Output};
use super::links::LinkEnd;
use crate::clock::Clock;
use crate::config::BackendConfig;
use crate::error::BackendError;
use mio::net::TcpListener;
use mio::{Events, Poll, Token, Waker};
use moorline_net::accept::{Accepted, Acceptor, Listener};
use moorline_net::mailbox::{Receiver, Sender, mailbox};
use moorline_net::read_block::ReadBlock;
use moorline_net::stream::{Reading, Stream};
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
    acceptor: Acceptor,
    address: SocketAddr,
    clock: Clock,
    host: LinkHost,
    /// Sockets by slot of [`LinkId`].
    sockets: Vec<Option<Socket>>,
    /// Slots of sockets with bytes to read.
    ready: Vec<usize>,
    block: ReadBlock,
    mailbox: Receiver<M>,
    remote: Sender<M>,
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
        let listener = TcpListener::bind(config.listen).map_err(listen_failed)?;
        let address = listener.local_addr().map_err(listen_failed)?;
        let mut acceptor = Acceptor::new(Listener::Tcp(listener), "links", "raise the open-files limit");
        acceptor.register(poll.registry(), LISTENER).map_err(failed("watch the listening socket"))?;
        let waker = Waker::new(poll.registry(), WAKER).map_err(failed("open a waker"))?;
        let (remote, mailbox) = mailbox(config.link.mailbox, waker);
        let clock = Clock::new();
        let host = LinkHost::new(&config.link, config.node.clone(), clock.read().unix_ms);
        Ok(Self {
            poll,
            acceptor,
            address,
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
    pub fn remote(&self) -> Sender<M> {
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
                LISTENER => self.acceptor.handle_edge(),
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
        let has_work = std::mem::take(&mut self.is_again) || !self.ready.is_empty();
        if has_work || !self.mailbox.try_sleep() {
            return Duration::ZERO;
        }
        let accept_at = self.acceptor.next_deadline().unwrap_or(Instant::FAR_FUTURE);
        self.host.next_deadline().min(accept_at).saturating_since(self.clock.read().instant)
    }

    fn on_readiness(&mut self, slot: usize, event: &mio::event::Event) {
        let Some(Some(socket)) = self.sockets.get_mut(slot) else { return };
        let edge = socket.stream.handle_event(event);
        if edge.is_readable {
            list(&mut self.ready, socket);
        }
        if edge.became_writable {
            self.host.handle_link_writable(socket.id);
        }
    }

    fn accept(&mut self, now: Now) {
        for _ in 0..ACCEPT_BUDGET {
            match self.acceptor.try_accept(now.instant) {
                Accepted::Stream(stream, Some(peer)) => self.open(stream, peer, now),
                Accepted::Stream(_, None) | Accepted::Gone => {}
                Accepted::Nobody => return,
            }
        }
    }

    fn open(&mut self, mut stream: Stream, peer: SocketAddr, now: Now) {
        let Some(id) = self.host.handle_link_opened(now) else {
            tracing::warn!(%peer, "closed a new link: `link.links_max` links are open");
            return;
        };
        // A whole turn is written at once, so Nagle's algorithm would only delay.
        stream.set_nodelay().ok();
        let slot = id.slot as usize;
        if let Err(cause) = stream.register(self.poll.registry(), Token(slot)) {
            tracing::warn!(%peer, %cause, "cannot watch a new link");
            return self.host.handle_link_closed(now, id, LinkEnd::Io(cause));
        }
        if self.sockets.len() <= slot {
            self.sockets.resize_with(slot + 1, || None);
        }
        self.sockets[slot] = Some(Socket { id, peer, stream });
    }

    fn read<H: Handler<Message = M>>(&mut self, slot: usize, now: Now, handler: &mut H) {
        if let Some(Some(socket)) = self.sockets.get_mut(slot) {
            socket.stream.marks().is_listed = false;
        }
        let mut budget = READ_BUDGET_BYTES;
        loop {
            let Some(Some(socket)) = self.sockets.get_mut(slot) else { return };
            if !socket.stream.is_readable() || socket.stream.marks().is_held {
                return;
            }
            if budget == 0 {
                return list(&mut self.ready, socket);
            }
            let id = socket.id;
            match socket.stream.read(&mut self.block) {
                Ok(Reading::Bytes(mut input)) => {
                    budget = budget.saturating_sub(input.len());
                    while !input.is_empty() {
                        self.host.handle_link_bytes(now, id, &mut input);
                        self.perform(now, handler);
                    }
                }
                Ok(Reading::Blocked) => return,
                Ok(Reading::End) => return self.on_end(id, LinkEnd::Closed, now, handler),
                Err(cause) => return self.on_end(id, LinkEnd::Io(cause), now, handler),
            }
        }
    }

    fn on_end<H: Handler<Message = M>>(&mut self, link: LinkId, end: LinkEnd, now: Now, handler: &mut H) {
        self.host.handle_link_closed(now, link, end);
        self.perform(now, handler);
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
                        socket.stream.marks().is_held = true;
                    }
                }
                Output::Resume(link) => {
                    if let Some(socket) = socket_of(&mut self.sockets, link) {
                        socket.stream.marks().is_held = false;
                        if socket.stream.is_readable() {
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
        let unsent = self.host.unsent(link);
        if unsent.is_empty() || !socket.stream.is_writable() {
            return self.host.handle_link_sent(now, link, 0);
        }
        match socket.stream.write(unsent) {
            Ok(count) => self.host.handle_link_sent(now, link, count),
            Err(cause) => self.host.handle_link_closed(now, link, LinkEnd::Io(cause)),
        }
    }

    fn close(&mut self, link: LinkId, end: &LinkEnd) {
        let Some(socket) = socket_of(&mut self.sockets, link) else { return };
        socket.stream.deregister(self.poll.registry()).ok();
        let peer = socket.peer;
        match end {
            LinkEnd::Closed | LinkEnd::Io(_) => tracing::info!(%peer, "link down: {end}"),
            _ => tracing::warn!(%peer, "link closed: {end}"),
        }
        self.sockets[link.slot as usize] = None;
    }
}

/// One link's socket.
#[derive(Debug)]
struct Socket {
    id: LinkId,
    peer: SocketAddr,
    /// Marked as held while the link host does not want its bytes.
    stream: Stream,
}

fn socket_of(sockets: &mut [Option<Socket>], link: LinkId) -> Option<&mut Socket> {
    sockets.get_mut(link.slot as usize)?.as_mut().filter(|socket| socket.id == link)
}

fn list(ready: &mut Vec<usize>, socket: &mut Socket) {
    let marks = socket.stream.marks();
    if !marks.is_listed && !marks.is_held {
        marks.is_listed = true;
        ready.push(socket.id.slot as usize);
    }
}

fn failed(operation: &'static str) -> impl FnOnce(io::Error) -> BackendError {
    move |cause| BackendError::Poll { operation, cause }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moorline_net::accept::DESCRIPTOR_PAUSE;

    #[test]
    fn the_link_server_sleeps_through_the_descriptor_pause() {
        let config =
            BackendConfig { listen: "127.0.0.1:0".parse().expect("an address"), ..BackendConfig::default() };
        let mut server = Server::<()>::bind(&config).expect("a free port");
        server.host.handle_timeouts(server.clock.read()); // the next is a quarter of a second away
        assert_eq!(server.timeout(), Duration::ZERO, "the queue was not looked at yet");
        server.acceptor.pause_until(server.clock.read().instant + DESCRIPTOR_PAUSE);
        let timeout = server.timeout();
        assert!(!timeout.is_zero() && timeout <= DESCRIPTOR_PAUSE, "{timeout:?}");
    }
}
