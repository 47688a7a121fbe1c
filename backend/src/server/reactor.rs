//! The loop: one thread, edge-triggered, in a fixed order per turn.
//!
//! Poll; read the clock once; accept; drain the mailbox; read ready links up to a budget; give known
//! outcomes; keep house; let the handler end its turn; write every dirty link once.

use super::Handler;
use super::event::{Event, GatewayId, LinkId, Now};
use super::frames::{Identity, Turn, superseded};
use super::mailbox::{Mailbox, Remote, mailbox};
use super::outbox::Outbox;
use super::stream::{Link, LinkEnd, Phase, ReadBlock};
use crate::clock::Clock;
use crate::config::{BackendConfig, LinkConfig};
use crate::error::BackendError;
use bytes::Bytes;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};
use moorline_proto::link::{Kind, LinkDecoder};
use moorline_proto::time::Instant;
use slab::Slab;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const LISTENER: Token = Token(usize::MAX - 1);
const WAKER: Token = Token(usize::MAX);
/// How often deadlines are looked at, and how late a stop may be noticed.
const TICK: Duration = Duration::from_millis(250);
/// Links accepted in one turn.
const ACCEPT_BUDGET: usize = 64;
/// Mailbox messages handled in one turn.
const MAILBOX_BUDGET: usize = 1024;
/// Bytes read from one link in one turn before the others have theirs.
const READ_BUDGET_BYTES: usize = 256 << 10;
/// Poll events taken at once.
const EVENTS: usize = 1024;

/// A listening backend.
#[derive(Debug)]
pub struct Server<M> {
    poll: Poll,
    listener: TcpListener,
    address: SocketAddr,
    can_accept: bool,
    config: LinkConfig,
    identity: Identity,
    clock: Clock,
    links: Slab<Link>,
    next_generation: u32,
    /// Slots of links with something to read.
    ready: Vec<usize>,
    /// Slots of links that have something to read but must wait: credit or output is used up.
    paused: Vec<usize>,
    block: ReadBlock,
    out: Outbox,
    mailbox: Mailbox<M>,
    remote: Remote<M>,
    next_tick: Instant,
}

impl<M: Send + 'static> Server<M> {
    /// Opens the listening socket of `config`.
    ///
    /// # Errors
    /// [`BackendError`]: a setting out of range, or the system's refusal.
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
        let identity = Identity { node: config.node.clone(), epoch: clock.read().unix_ms };
        Ok(Self {
            poll,
            listener,
            address,
            can_accept: true,
            identity,
            clock,
            links: Slab::new(),
            next_generation: 1,
            ready: Vec::new(),
            paused: Vec::new(),
            block: ReadBlock::default(),
            out: Outbox::new(config.link.sessions_max, config.link.output_max, config.link.rooms_max),
            mailbox,
            remote,
            next_tick: Instant::ZERO,
            config: config.link.clone(),
        })
    }

    /// Where gateways connect; the real port if port 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A way into [`Handler::handle_message`] from other threads.
    pub fn remote(&self) -> Remote<M> {
        self.remote.clone()
    }

    /// Serves until `stop` is true, which is noticed within a quarter of a second, or the handler
    /// [is over](Handler::is_over).
    ///
    /// # Errors
    /// [`BackendError::Poll`]; a broken link is no error, it is logged and closed.
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
            handler.handle_message(now, message, &mut self.out);
        }
        for slot in std::mem::take(&mut self.ready) {
            self.read(slot, now, handler);
        }
        for _ in 0..self.out.undelivered.len() {
            let Some((session, push, outcome)) = self.out.undelivered.pop_front() else { break };
            handler.handle(now, Event::Pushed { session, push, outcome }, &mut self.out);
        }
        if now.instant >= self.next_tick {
            self.next_tick = now.instant + TICK;
            self.keep_house(now, handler);
        }
        handler.handle_turn_end(now, &mut self.out);
        self.flush(now, handler);
        self.resume();
        Ok(())
    }

    fn timeout(&mut self) -> Duration {
        let has_more = std::mem::take(&mut self.out.has_more);
        let has_work =
            has_more || self.can_accept || !self.ready.is_empty() || !self.out.undelivered.is_empty();
        if has_work || !self.mailbox.try_sleep() {
            return Duration::ZERO;
        }
        self.next_tick.saturating_since(self.clock.read().instant)
    }

    fn on_readiness(&mut self, slot: usize, event: &mio::event::Event) {
        let Some(link) = self.links.get_mut(slot) else { return };
        link.is_read_closed |= event.is_read_closed() || event.is_error();
        if event.is_readable() || link.is_read_closed {
            link.is_readable = true;
            list(&mut self.ready, slot, link);
        }
        if event.is_writable() {
            link.is_writable = true;
            self.out.mark_dirty(slot);
        }
    }

    fn accept(&mut self, now: Now) {
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
                        // Out of descriptors, most likely: tried again with the next tick.
                        tracing::warn!(%cause, "cannot accept a link, trying again shortly");
                    }
                }
            }
        }
    }

    fn open(&mut self, mut stream: TcpStream, peer: SocketAddr, now: Now) {
        if self.links.len() >= self.config.links_max {
            tracing::warn!(%peer, links_max = self.config.links_max, "too many links: a new one was closed");
            return;
        }
        // Whole turns are written at once, so Nagle would only delay.
        stream.set_nodelay(true).ok();
        let entry = self.links.vacant_entry();
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(cause) = self.poll.registry().register(&mut stream, Token(entry.key()), interest) {
            tracing::warn!(%peer, %cause, "cannot watch a new link");
            return;
        }
        let slot = u32::try_from(entry.key()).expect("links_max fits u32");
        let id = LinkId { slot, generation: self.next_generation };
        self.next_generation = self.next_generation.wrapping_add(1);
        self.out.open_link(id);
        entry.insert(Link {
            id,
            peer,
            stream,
            decoder: LinkDecoder::new(),
            phase: Phase::Greeting(now.instant + self.config.hello_timeout),
            heard_at: now.instant,
            sent_at: now.instant,
            over_since: None,
            is_readable: false,
            is_writable: true,
            is_read_closed: false,
            is_listed: false,
        });
    }

    fn read<H: Handler<Message = M>>(&mut self, slot: usize, now: Now, handler: &mut H) {
        let Some(link) = self.links.get_mut(slot) else { return };
        link.is_listed = false;
        let mut budget = READ_BUDGET_BYTES;
        loop {
            let Some(link) = self.links.get_mut(slot) else { return };
            if !link.is_readable {
                return;
            }
            if is_paused(&self.out, &self.config, slot) {
                link.is_listed = true; // in `paused`, until `resume`
                return self.paused.push(slot);
            }
            if budget == 0 {
                return list(&mut self.ready, slot, link);
            }
            match link.read(&mut self.block, now.instant) {
                Ok(Some(input)) => {
                    budget = budget.saturating_sub(input.len());
                    if let Err(end) = self.decode(slot, input, now, handler) {
                        return self.close(slot, &end, now, handler);
                    }
                }
                Ok(None) => return,
                Err(end) => return self.close(slot, &end, now, handler),
            }
        }
    }

    fn decode<H: Handler<Message = M>>(
        &mut self,
        slot: usize,
        mut input: Bytes,
        now: Now,
        handler: &mut H,
    ) -> Result<(), LinkEnd> {
        loop {
            let Some(link) = self.links.get_mut(slot) else { return Ok(()) };
            let Some(frame) = link.decoder.decode(&mut input)? else { return Ok(()) };
            let (id, mut phase) = (link.id, link.phase);
            if matches!(phase, Phase::Greeting(_))
                && let Some(old) = superseded(&self.out, &frame)
            {
                self.retire(old, now, handler);
            }
            self.turn_of(now, handler).handle_frame(id, &mut phase, &frame)?;
            if let Some(link) = self.links.get_mut(slot) {
                link.phase = phase;
            }
        }
    }

    /// Ends an older life of a gateway: its links, its sessions, itself.
    fn retire<H: Handler<Message = M>>(&mut self, gateway: GatewayId, now: Now, handler: &mut H) {
        let of_it = self.links.iter().filter(|(_, link)| link.phase == Phase::Open(gateway));
        for slot in of_it.map(|(slot, _)| slot).collect::<Vec<_>>() {
            self.close(slot, &LinkEnd::Refused("the gateway has begun a newer epoch"), now, handler);
        }
        self.turn_of(now, handler).on_gateway_gone(gateway);
    }

    fn close<H: Handler<Message = M>>(&mut self, slot: usize, end: &LinkEnd, now: Now, handler: &mut H) {
        let Some(mut link) = self.links.try_remove(slot) else { return };
        self.poll.registry().deregister(&mut link.stream).ok();
        self.out.close_link(link.id);
        match end {
            LinkEnd::Closed | LinkEnd::Io(_) => tracing::info!(peer = %link.peer, "link down: {end}"),
            _ => tracing::warn!(peer = %link.peer, "link closed: {end}"),
        }
        let Phase::Open(gateway) = link.phase else { return };
        let lease_until = now.instant + self.config.lease;
        self.out.routes.on_link_down(link.id, lease_until);
        if let Some(known) = self.out.routes.gateways.get_mut(&gateway) {
            known.links -= 1;
            known.lease_until = lease_until;
        }
        self.turn_of(now, handler).emit(Event::LinkDown { gateway, link: link.id });
    }

    fn keep_house<H: Handler<Message = M>>(&mut self, now: Now, handler: &mut H) {
        self.can_accept = true;
        let mut ends = Vec::new();
        for (slot, link) in &mut self.links {
            let silence = now.instant.saturating_since(link.heard_at);
            let over = link.over_since.map(|since| now.instant.saturating_since(since));
            if matches!(link.phase, Phase::Greeting(until) if until <= now.instant) {
                ends.push((slot, LinkEnd::NoHello));
            } else if over.is_some_and(|over| over >= self.config.stall_timeout) {
                ends.push((slot, LinkEnd::Stalled));
            } else if silence >= self.config.silence_timeout {
                ends.push((slot, LinkEnd::Silent));
            } else if now.instant.saturating_since(link.sent_at) >= self.config.silence_timeout / 3
                && matches!(link.phase, Phase::Open(_))
            {
                link.sent_at = now.instant;
                self.out.put(link.id, Kind::Ping, 0, 0, &());
            }
        }
        for (slot, end) in ends {
            self.close(slot, &end, now, handler);
        }
        let mut turn = self.turn_of(now, handler);
        turn.on_leases();
        turn.emit(Event::Tick);
    }

    fn flush<H: Handler<Message = M>>(&mut self, now: Now, handler: &mut H) {
        let mut dirty = std::mem::take(&mut self.out.dirty);
        for slot in dirty.drain(..) {
            let (Some(link), Some(out)) = (self.links.get_mut(slot), self.out.take_dirty(slot)) else {
                continue;
            };
            let written = link.write(&mut out.buffer, now.instant);
            let is_over = out.buffer.len() >= self.config.output_max;
            link.over_since = is_over.then_some(link.over_since.unwrap_or(now.instant));
            if let Err(end) = written {
                self.close(slot, &end, now, handler);
            }
        }
        if self.out.dirty.is_empty() {
            self.out.dirty = dirty; // keeps its allocation
        }
    }

    /// Lists paused links again that may be read now.
    fn resume(&mut self) {
        let (links, out, config, ready) = (&mut self.links, &self.out, &self.config, &mut self.ready);
        self.paused.retain(|slot| {
            let is_paused = is_paused(out, config, *slot);
            if let (Some(link), false) = (links.get_mut(*slot), is_paused) {
                link.is_listed = false;
                list(ready, *slot, link);
            }
            is_paused
        });
    }

    fn turn_of<'a, H>(&'a mut self, now: Now, handler: &'a mut H) -> Turn<'a, H> {
        Turn { now, config: &self.config, identity: &self.identity, out: &mut self.out, handler }
    }
}

fn list(ready: &mut Vec<usize>, slot: usize, link: &mut Link) {
    if !link.is_listed {
        link.is_listed = true;
        ready.push(slot);
    }
}

fn is_paused(out: &Outbox, config: &LinkConfig, slot: usize) -> bool {
    let over = |link: &super::outbox::LinkOut| {
        link.unanswered >= config.credit || link.buffer.len() >= config.output_max
    };
    out.link(slot).is_some_and(over)
}

fn failed(operation: &'static str) -> impl FnOnce(io::Error) -> BackendError {
    move |cause| BackendError::Poll { operation, cause }
}
