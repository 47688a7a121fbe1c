//! Event loop with the sockets of all links: one thread, edge-triggered. All rules are in [`LinkHost`].
//!
//! Order of a turn: poll; read the clock once; accept at most 64 links; drain the mailbox; read ready links up to a
//! budget; handle timeouts; let the handler end its turn; write every link with new bytes once.

use super::Handler;
use super::counters::LinkCounters;
use super::dial;
use super::dialling::Dialling;
use super::event::{LinkId, Now};
use super::greeting::{Peer, Visitor};
use super::host::{LinkHost, Output};
use super::links::LinkEnd;
use super::peers::PeerLinks;
use super::socket::{Origin, Socket, list, origin_of, socket_of};
use super::tls::{self, Handshakes, SharedTls, Target};
use crate::clock::Clock;
use crate::config::{BackendConfig, LinkConfig};
use crate::error::BackendError;
use crate::live::SharedSecrets;
use mio::{Events, Poll, Token, Waker};
use moorline_net::accept::{Accepted, Acceptor, Listener};
use moorline_net::layer::{Driven, Layer};
use moorline_net::mailbox::{Receiver, Sender, mailbox};
use moorline_net::read_block::ReadBlock;
use moorline_net::stream::{Reading, Stream};
use moorline_net::unix_socket::{self, SocketFile};
use moorline_proto::line_limit::LineLimit;
use moorline_proto::link::{LinkAddress, NONCE_BYTES};
use moorline_proto::time::Instant;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{fmt, io};

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
/// Descriptors that links must leave to the store, the log and everything else.
const RESERVED_FILES: usize = 256;

/// A listening backend.
#[derive(Debug)]
pub struct Server<M> {
    pub(super) poll: Poll,
    acceptor: Acceptor,
    address: LinkAddress,
    /// File of the Unix socket, which is removed at the end; `None`: an IP address.
    _file: Option<SocketFile>,
    clock: Clock,
    pub(super) host: LinkHost,
    pub(super) peers: PeerLinks,
    /// Secrets of gateways that a reload has read.
    secrets: SharedSecrets,
    pub(super) handshakes: Handshakes,
    counters: LinkCounters,
    /// Log lines about connections that were no links.
    strangers: LineLimit,
    /// Sockets by slot of [`LinkId`].
    sockets: Vec<Option<Socket>>,
    /// Slots of sockets with bytes to read.
    ready: Vec<usize>,
    pub(super) block: ReadBlock,
    /// Memory for encrypted records, which holds nothing between two writes.
    pub(super) scratch: Vec<u8>,
    /// Connections to the other nodes of a cluster.
    pub(super) dialling: Dialling,
    /// User ids that are believed at a Unix socket.
    pub(super) peer_uids: Vec<u32>,
    mailbox: Receiver<M>,
    pub(super) remote: Sender<M>,
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
        let secrets = crate::secrets::load(config)?;
        let handshakes = Handshakes::new(tls::load(&config.link)?);
        let poll = Poll::new().map_err(failed("open a poll"))?;
        let listen_failed = |cause| {
            let address = config.listen.to_string();
            BackendError::Listen { key: "listen", address, cause }
        };
        let mut link = link_config(config)?;
        let (listener, address, file) = listen(&config.listen, &mut link.peer_uids).map_err(listen_failed)?;
        let mut acceptor = Acceptor::new(listener, "links", "raise the open-files limit");
        acceptor.register(poll.registry(), LISTENER).map_err(failed("watch the listening socket"))?;
        let waker = Waker::new(poll.registry(), WAKER).map_err(failed("open a waker"))?;
        let (remote, mailbox) = mailbox(config.link.mailbox, waker);
        let clock = Clock::new();
        let mut host = LinkHost::new(&link, config.node.clone(), clock.read().unix_ms);
        let mut peers = PeerLinks::new(&link, clock.read().unix_ms);
        peers.handle_secrets(secrets.clone());
        host.handle_secrets(secrets);
        Ok(Self {
            poll,
            acceptor,
            address,
            _file: file,
            clock,
            host,
            peers,
            secrets: SharedSecrets::default(),
            handshakes,
            counters: LinkCounters::default(),
            strangers: LineLimit::new(),
            sockets: Vec::new(),
            ready: Vec::new(),
            block: ReadBlock::default(),
            scratch: Vec::new(),
            dialling: Dialling::default(),
            peer_uids: own_uids(&link.peer_uids),
            mailbox,
            remote,
            is_again: false,
        })
    }

    /// Takes other secrets of gateways, and other certificates, from here, whenever a connection is made.
    pub(crate) fn with_shared(mut self, secrets: SharedSecrets, tls: SharedTls) -> Self {
        self.handshakes.share(tls);
        Self { secrets, ..self }
    }

    /// Returns the address that gateways connect to, with the real port if port 0 was configured.
    pub const fn address(&self) -> &LinkAddress {
        &self.address
    }

    /// Returns the counters of the link port, for another thread.
    pub fn counters(&self) -> LinkCounters {
        self.counters.clone()
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
        self.peers.handle_store(handler.store_name());
        self.host.handle_store(handler.store_name());
        let mut events = Events::with_capacity(EVENTS);
        while !handler.is_over(self.clock.read()) {
            if stop.load(Ordering::Relaxed) && handler.try_stop(self.clock.read()) {
                break;
            }
            self.turn(&mut events, handler)?;
        }
        Ok(())
    }

    fn turn<H: Handler<Message = M>>(
        &mut self,
        events: &mut Events,
        handler: &mut H,
    ) -> Result<(), BackendError> {
        let timeout = self.timeout(handler.next_deadline());
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
                token => match dial::node_of(token) {
                    Some(node) => self.on_peer_event(now, node, event),
                    None => self.on_readiness(token.0, event),
                },
            }
        }
        self.accept(now, handler);
        self.take_handshakes(now, handler);
        for _ in 0..MAILBOX_BUDGET {
            let Some(message) = self.mailbox.try_recv() else { break };
            handler.handle_message(now, message, self.host.outbox());
        }
        self.take_cluster(now, handler);
        self.perform(now, handler);
        for slot in std::mem::take(&mut self.ready) {
            self.read(slot, now, handler);
        }
        if now.instant >= self.host.next_deadline() {
            self.host.handle_timeouts(now);
            self.perform(now, handler);
            self.host.count(now, &self.counters);
            self.counters.set_peers(self.peers.open(), self.peers.lost());
        }
        handler.handle_turn_end(now, self.host.outbox());
        self.take_cluster(now, handler);
        self.perform(now, handler);
        self.host.handle_turn_end(now);
        self.perform(now, handler);
        self.end_turn_of_peers(now);
        Ok(())
    }

    fn timeout(&mut self, wanted: Instant) -> Duration {
        let has_work = std::mem::take(&mut self.is_again) || !self.ready.is_empty();
        if has_work || !self.mailbox.try_sleep() {
            return Duration::ZERO;
        }
        let accept_at = self.acceptor.next_deadline().unwrap_or(Instant::FAR_FUTURE);
        self.host
            .next_deadline()
            .min(accept_at)
            .min(wanted)
            .min(self.peers.next_deadline())
            .saturating_since(self.clock.read().instant)
    }

    fn on_readiness(&mut self, slot: usize, event: &mio::event::Event) {
        let Some(Some(socket)) = self.sockets.get_mut(slot) else { return };
        let edge = socket.stream.handle_event(event);
        if edge.is_readable {
            list(&mut self.ready, socket);
        }
        if edge.became_writable {
            socket.flush().ok(); // a broken stream shows in the next write or read
            self.host.handle_link_writable(socket.id);
        }
    }

    fn accept<H: Handler<Message = M>>(&mut self, now: Now, handler: &mut H) {
        for _ in 0..ACCEPT_BUDGET {
            match self.acceptor.try_accept(now.instant) {
                Accepted::Stream(stream, peer) => self.open(stream, peer, now, handler),
                Accepted::Gone => {}
                Accepted::Nobody => return,
            }
        }
    }

    fn open<H: Handler<Message = M>>(
        &mut self,
        mut stream: Stream,
        address: Option<SocketAddr>,
        now: Now,
        handler: &mut H,
    ) {
        let mut nonce = [0; NONCE_BYTES];
        let found = origin_of(&stream, address).and_then(|origin| {
            getrandom::fill(&mut nonce).map_err(io::Error::from)?;
            Ok(origin)
        });
        let origin = match found {
            Ok(origin) => origin,
            Err(cause) => return self.note_stranger(&"a connection", &cause, now),
        };
        if let Some(secrets) = self.secrets.lock().unwrap_or_else(PoisonError::into_inner).take() {
            self.peers.handle_secrets(secrets.clone());
            self.host.handle_secrets(secrets);
        }
        let has_tls = matches!(origin, Origin::Ip(_)) && self.handshakes.are_due();
        let peer = if has_tls { Peer::nobody() } else { origin.peer() };
        let Some(id) = self.host.handle_link_opened(now, Visitor { peer, nonce }) else {
            self.counters.count_stranger(false, true);
            return self.note_stranger(&origin, &"the user id is not in link.peer_uids", now);
        };
        self.perform(now, handler); // the newcomer may have taken the place of another visitor
        // A whole turn is written at once, so Nagle's algorithm would only delay.
        stream.set_nodelay().ok();
        let slot = id.slot as usize;
        if let Err(cause) = stream.register(self.poll.registry(), Token(slot)) {
            return self.host.handle_link_closed(now, id, LinkEnd::Io(cause));
        }
        if self.sockets.len() <= slot {
            self.sockets.resize_with(slot + 1, || None);
        }
        self.sockets[slot] = Some(Socket { id, origin, stream, layer: has_tls.then(Layer::awaiting) });
    }

    /// Goes on with the handshake of a link. True: frames may come.
    fn shake<H: Handler<Message = M>>(&mut self, slot: usize, now: Now, handler: &mut H) -> bool {
        let Some(Some(socket)) = self.sockets.get_mut(slot) else { return false };
        let id = socket.id;
        let submitted = match socket.shake(&mut self.block, now.instant) {
            Ok(Driven::Open) => return true,
            Ok(Driven::Wait) => return false,
            Ok(Driven::Job(job)) => {
                let remote = self.remote.clone();
                self.handshakes.submit(Target::Link(id), job, move || _ = remote.wake())
            }
            Err(end) => Err(end),
        };
        if let Err(end) = submitted {
            self.on_end(id, end, now, handler);
        }
        false
    }

    /// Takes the results of the thread for handshakes.
    fn take_handshakes<H: Handler<Message = M>>(&mut self, now: Now, handler: &mut H) {
        while let Some((target, result)) = self.handshakes.next() {
            let link = match target {
                Target::Link(link) => link,
                Target::Peer(node, number) => {
                    self.on_peer_handshake(now, node, number, result);
                    continue;
                }
            };
            let Some(socket) = socket_of(&mut self.sockets, link) else { continue };
            let names = result.finished().map(|done| done.peer_names.clone());
            if let Err(end) = socket.handle_result(result) {
                self.on_end(link, end, now, handler);
                continue;
            }
            list(&mut self.ready, socket);
            if let Some(names) = names {
                self.host.handle_link_certified(link, names.into());
            }
        }
    }

    /// Writes one line in 10 s about connections that were no links.
    fn note_stranger(&mut self, who: &dyn fmt::Display, why: &dyn fmt::Display, now: Now) {
        if let Some(others) = self.strangers.allow(now.instant) {
            tracing::warn!(peer = %who, others, "closed a connection that was not a link: {why}");
        }
    }

    fn read<H: Handler<Message = M>>(&mut self, slot: usize, now: Now, handler: &mut H) {
        if let Some(Some(socket)) = self.sockets.get_mut(slot) {
            socket.stream.marks().is_listed = false;
        }
        if !self.shake(slot, now, handler) {
            return;
        }
        let mut budget = READ_BUDGET_BYTES;
        loop {
            let Some(Some(socket)) = self.sockets.get_mut(slot) else { return };
            if !socket.wants_read() || socket.stream.marks().is_held {
                return;
            }
            if budget == 0 {
                return list(&mut self.ready, socket);
            }
            let id = socket.id;
            match socket.read(&mut self.block, now.instant) {
                Ok(Reading::Bytes(mut input)) => {
                    budget = budget.saturating_sub(input.len());
                    while !input.is_empty() {
                        self.host.handle_link_bytes(now, id, &mut input);
                        self.perform(now, handler);
                    }
                }
                Ok(Reading::Blocked) => return,
                Ok(Reading::End) => return self.on_end(id, LinkEnd::Closed, now, handler),
                Err(end) => return self.on_end(id, end, now, handler),
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
                Output::Close { link, end, was_open, farewell } => {
                    if let Some(socket) = socket_of(&mut self.sockets, link).filter(|_| !farewell.is_empty())
                    {
                        // What the socket does not take now is lost: the gateway sees the end all the same.
                        socket.write(&farewell, &mut self.scratch).ok();
                    }
                    self.close(link, &end, was_open, now);
                }
                Output::Pause(link) => {
                    if let Some(socket) = socket_of(&mut self.sockets, link) {
                        socket.stream.marks().is_held = true;
                    }
                }
                Output::Resume(link) => {
                    if let Some(socket) = socket_of(&mut self.sockets, link) {
                        socket.stream.marks().is_held = false;
                        if socket.wants_read() {
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
        match socket.write(unsent, &mut self.scratch) {
            Ok(count) => self.host.handle_link_sent(now, link, count),
            Err(cause) => self.host.handle_link_closed(now, link, LinkEnd::Io(cause)),
        }
    }

    fn close(&mut self, link: LinkId, end: &LinkEnd, was_open: bool, now: Now) {
        let Some(socket) = socket_of(&mut self.sockets, link) else { return };
        socket.shut(&mut self.block);
        socket.stream.deregister(self.poll.registry()).ok();
        let origin = socket.origin;
        self.sockets[link.slot as usize] = None;
        if !was_open {
            let is_refused = matches!(end, LinkEnd::Refused { .. });
            self.counters.count_stranger(matches!(end, LinkEnd::Evicted), is_refused);
            return self.note_stranger(&origin, end, now);
        }
        match end {
            LinkEnd::Closed | LinkEnd::Io(_) => tracing::info!(peer = %origin, "link down: {end}"),
            _ => tracing::warn!(peer = %origin, "link closed: {end}"),
        }
    }
}

/// Returns the user ids that are believed at the Unix socket of another node.
fn own_uids(configured: &[u32]) -> Vec<u32> {
    if configured.is_empty() { vec![unix_socket::own_uid()] } else { configured.to_vec() }
}

/// Listens. Empty `peer_uids` become the one of this process.
fn listen(
    address: &LinkAddress,
    peer_uids: &mut Vec<u32>,
) -> io::Result<(Listener, LinkAddress, Option<SocketFile>)> {
    let path = match address {
        LinkAddress::Ip(address) => {
            let listener = mio::net::TcpListener::bind(*address)?;
            let bound = listener.local_addr()?;
            return Ok((Listener::Tcp(listener), bound.into(), None));
        }
        LinkAddress::Unix(path) => path,
    };
    let own = unix_socket::own_uid();
    if peer_uids.is_empty() {
        peer_uids.push(own);
    }
    let is_own = peer_uids.iter().all(|uid| *uid == own);
    let mode = if is_own { unix_socket::OWNER_ONLY } else { unix_socket::EVERYBODY };
    let (listener, file) = unix_socket::listen(Path::new(path), mode)?;
    Ok((Listener::Unix(mio::net::UnixListener::from_std(listener)), address.clone(), Some(file)))
}

/// Returns the settings of links, with as many links as the open-files limit allows beside the store.
///
/// # Errors
/// The limit leaves no room for a link.
fn link_config(config: &BackendConfig) -> Result<LinkConfig, BackendError> {
    let mut link = config.link.clone();
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let limit = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let others = RESERVED_FILES + link.visitors_max + config.api.connections_max;
    let room = limit.saturating_sub(others);
    if room == 0 {
        let reason = format!(
            "the open-files limit is {limit}, and {others} descriptors are for the store, link.visitors_max and \
             api.connections_max; raise the hard limit (ulimit -Hn), or lower these settings"
        );
        return Err(BackendError::InvalidConfig { key: "link.links_max", reason });
    }
    if link.links_max > room {
        tracing::warn!(
            links_max = link.links_max,
            room,
            "link.links_max lowered to what the open-files limit leaves beside the store; raise it (ulimit -n)"
        );
        link.links_max = room;
    }
    Ok(link)
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
        let mut config =
            BackendConfig { listen: "127.0.0.1:0".parse().expect("an address"), ..BackendConfig::default() };
        config.link.unproven = crate::config::Unproven::Loopback;
        let mut server = Server::<()>::bind(&config).expect("a free port");
        server.host.handle_timeouts(server.clock.read()); // the next is a quarter of a second away
        assert_eq!(server.timeout(Instant::FAR_FUTURE), Duration::ZERO, "the queue was not looked at yet");
        server.acceptor.pause_until(server.clock.read().instant + DESCRIPTOR_PAUSE);
        let timeout = server.timeout(Instant::FAR_FUTURE);
        assert!(!timeout.is_zero() && timeout <= DESCRIPTOR_PAUSE, "{timeout:?}");
    }
}
