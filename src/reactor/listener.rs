//! Accepting: the listening sockets that all reactors share, and who is let in.
//!
//! Run-through: a client connects. `try_accept` asks the [`Door`] whether the process may take a newcomer now
//! (accept rate, connections that are not logged in); if not, accepting pauses and the client waits in the
//! system's queue. Else the client is accepted, and the door judges its address: a client over a limit is sent
//! CLOSE with a code and a random time to come back, and everybody else is admitted.

use super::door::{Door, Refusal, Wait};
use super::openings::OpeningRules;
use super::token::Source;
use mio::Registry;
use mio::net::TcpListener;
use moorline_net::accept::{self, Accepted, Acceptor};
use moorline_net::layer::OpeningKind;
use moorline_net::stream::Stream;
use moorline_proto::error::CloseReason;
use moorline_proto::frame::Command;
use moorline_proto::message::{client::Close, frame_of};
use moorline_proto::random::Random;
use moorline_proto::time::{Duration, Instant};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::Arc;

/// Pause before the next look while too many connections are not logged in.
const HANDSHAKES_PAUSE: Duration = Duration::from_millis(10);
/// A refused client may come back after this and up to as much again.
const RETRY_AFTER_MS: u32 = 2_000;
/// Advice for the log when descriptors run out.
const ADVICE: &str = "raise the open-files limit or lower limits.connections_max";

/// Result of one look at the queue.
#[derive(Debug)]
pub(super) enum Arrival {
    /// A connection within all limits of the process and of its address.
    Admitted(Newcomer),
    /// A connection that the process has no place for: it takes the place of another one, or is refused.
    Full(Newcomer),
    /// A connection may wait at this listener, and too many are not logged in.
    NoPlace(usize),
    /// A connection that was refused, or that left before it was accepted. Others may wait.
    TurnedAway,
    /// No connection for now.
    Nobody,
}

/// An accepted connection.
#[derive(Debug)]
pub(super) struct Newcomer {
    pub(super) stream: Stream,
    /// Number of the listener where it came.
    pub(super) listener: usize,
    pub(super) from: IpAddr,
    /// Exchange before its first frame.
    pub(super) kind: OpeningKind,
}

/// One reactor's view of the listening sockets that all reactors share, by listener number.
#[derive(Debug)]
pub(super) struct Listeners {
    acceptors: Vec<Acceptor>,
    door: Arc<Door>,
    openings: OpeningRules,
    random: Random,
    /// Listener that is looked at first, so that a crowd at one does not starve the others.
    first: usize,
    /// Connections of this reactor that are not logged in, as last told to the door.
    handshakes: usize,
    /// Connections admitted, by listener.
    pub(super) admitted: Vec<u64>,
    /// Times that newcomers waited because connections came too fast.
    pub(super) rate_waits: u64,
    /// Times that newcomers waited because too many connections were not logged in.
    pub(super) handshake_waits: u64,
    /// Connections refused because their address has its share of those that are not logged in.
    pub(super) handshakes_refused: u64,
    /// Connections refused at the connection cap.
    pub(super) refused: u64,
    /// Connections refused because their address has too many.
    pub(super) addresses_refused: u64,
    /// Connections refused because they do not come from a trusted proxy.
    pub(super) proxies_refused: u64,
}

impl Listeners {
    pub(super) fn new(sockets: Vec<TcpListener>, door: Arc<Door>, openings: OpeningRules, seed: u64) -> Self {
        let acceptor = |socket| Acceptor::new(accept::Listener::Tcp(socket), "clients", ADVICE);
        let acceptors: Vec<_> = sockets.into_iter().map(acceptor).collect();
        Self {
            admitted: vec![0; acceptors.len()],
            acceptors,
            door,
            openings,
            random: Random::new(seed),
            first: 0,
            handshakes: 0,
            rate_waits: 0,
            handshake_waits: 0,
            handshakes_refused: 0,
            refused: 0,
            addresses_refused: 0,
            proxies_refused: 0,
        }
    }

    pub(super) fn register(&mut self, registry: &Registry) -> io::Result<()> {
        for (listener, acceptor) in (0..).zip(&mut self.acceptors) {
            acceptor.register(registry, Source::Listener(listener).into())?;
        }
        Ok(())
    }

    /// Counts a connection that another process accepted.
    /// `before`: its descriptor there. `is_named`: its address is known.
    pub(super) fn readmit(&self, before: RawFd, stream: &Stream, is_named: bool, now: Instant) {
        let from = || if is_named { address_of(stream) } else { None };
        self.door.readmit(before, stream.as_raw_fd(), from, now);
    }

    /// Frees the place of a connection that ends. Call it before the descriptor closes.
    pub(super) fn release(&self, stream: &Stream, now: Instant) {
        if self.door.is_shared() {
            // Another process has the socket too, and the peer would not notice this process's close alone.
            stream.shutdown_both();
        }
        self.door.leave(stream.as_raw_fd(), now);
    }

    /// Returns whether a process that may take over has the sockets too.
    pub(super) fn is_handing_over(&self) -> bool {
        self.door.is_handing_over()
    }

    /// Tells the other reactors how many connections of this one are not logged in.
    pub(super) fn count_handshakes(&mut self, count: usize) {
        let before = std::mem::replace(&mut self.handshakes, count);
        if before != count {
            self.door.count_handshakes(before, count);
        }
    }

    /// Notes how much of the process's caps is used.
    pub(super) fn note_caps(&self, now: Instant) {
        self.door.note_caps(now);
    }

    /// Stops listening, for all reactors and processes that have the sockets; or notes that they listen again.
    pub(super) fn set_open(&mut self, is_open: bool) {
        for (listener, acceptor) in (0..).zip(&mut self.acceptors) {
            acceptor.set_open(is_open);
            if !is_open && self.door.set_listening(listener, false) {
                // On Linux the socket can listen again later.
                acceptor.shut_down();
            }
        }
    }

    /// Notes that newcomers may wait at a listener.
    pub(super) fn handle_edge(&mut self, listener: u8) {
        if let Some(acceptor) = self.acceptors.get_mut(usize::from(listener)) {
            acceptor.handle_edge();
        }
    }

    /// Returns how often the system refused a descriptor.
    pub(super) fn pauses(&self) -> u64 {
        self.acceptors.iter().map(Acceptor::pauses).sum()
    }

    /// Returns when to look again without an edge; `None`: when an edge comes.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.acceptors.iter().filter_map(Acceptor::next_deadline).min()
    }

    /// Takes at most one newcomer, so that the caller's budget bounds refused newcomers too. Listeners have
    /// their turn one after the other.
    pub(super) fn try_accept(&mut self, now: Instant) -> Arrival {
        let count = self.acceptors.len();
        for listener in (self.first..count).chain(0..self.first) {
            match self.try_accept_at(listener, now, false) {
                Arrival::Nobody => {}
                arrival => {
                    self.first = (listener + 1) % count;
                    return arrival;
                }
            }
        }
        Arrival::Nobody
    }

    /// Takes a newcomer at a listener, though too many connections are not logged in: it takes another one's place.
    pub(super) fn try_accept_over(&mut self, listener: usize, now: Instant) -> Arrival {
        self.try_accept_at(listener, now, true)
    }

    fn try_accept_at(&mut self, listener: usize, now: Instant, is_over: bool) -> Arrival {
        let (acceptor, number) = (&mut self.acceptors[listener], number(listener));
        if !acceptor.is_ready(now) {
            return Arrival::Nobody;
        }
        if let Err(wait) = self.door.try_open(number, is_over, now) {
            return match wait {
                Wait::Rate(until) => {
                    self.rate_waits += 1;
                    acceptor.pause_until(until);
                    Arrival::Nobody
                }
                Wait::Handshakes => Arrival::NoPlace(listener),
            };
        }
        match acceptor.try_accept(now) {
            Accepted::Stream(stream, Some(from)) => {
                let kind = self.openings.kinds[listener];
                self.judge(listener, kind, stream, from.ip(), now)
            }
            Accepted::Stream(stream, None) => {
                let kind = self.openings.kinds[listener];
                self.judge_waiting(stream, kind, listener, now)
            }
            Accepted::Gone => Arrival::TurnedAway,
            Accepted::Nobody => Arrival::Nobody,
        }
    }

    /// Leaves newcomers of a listener in the queue for a moment: too many connections are not logged in.
    pub(super) fn wait_for_place(&mut self, listener: usize, now: Instant) {
        self.handshake_waits += 1;
        self.acceptors[listener].pause_until(now + HANDSHAKES_PAUSE);
    }

    /// Places without a login that one address may have in this reactor, one of `reactors`; `None`: no limit for now.
    pub(super) fn share(&self, listener: usize, reactors: usize) -> Option<usize> {
        self.door.share(number(listener)).map(|share| share.div_ceil(reactors))
    }

    /// Refuses a newcomer whose address has its share.
    pub(super) fn turn_away(&mut self, stream: Stream, kind: OpeningKind, now: Instant) {
        self.handshakes_refused += 1;
        self.count_handshakes(self.handshakes.saturating_sub(1));
        self.door.leave(stream.as_raw_fd(), now);
        self.refuse(stream, kind, CloseReason::Throttled);
    }

    /// Judges a connection that somebody else accepted, by the limits of this listener.
    pub(super) fn judge_waiting(
        &mut self,
        stream: Stream,
        kind: OpeningKind,
        listener: usize,
        now: Instant,
    ) -> Arrival {
        match address_of(&stream) {
            Some(from) => self.judge(listener, kind, stream, from, now),
            None => Arrival::TurnedAway, // it left
        }
    }

    fn judge(
        &mut self,
        listener: usize,
        kind: OpeningKind,
        stream: Stream,
        from: IpAddr,
        now: Instant,
    ) -> Arrival {
        if !self.openings.admits(listener, from) {
            self.proxies_refused += 1;
            return Arrival::TurnedAway;
        }
        let known = (!kind.is_proxied).then_some(from);
        let reason = match self.door.try_enter(number(listener), stream.as_raw_fd(), known, now) {
            Ok(()) => {
                self.admitted[listener] += 1;
                self.count_handshakes(self.handshakes + 1);
                return Arrival::Admitted(Newcomer { stream, listener, from, kind });
            }
            Err(Refusal::Full) => return Arrival::Full(Newcomer { stream, listener, from, kind }),
            Err(Refusal::Address) => {
                self.addresses_refused += 1;
                CloseReason::Throttled
            }
        };
        self.refuse(stream, kind, reason);
        Arrival::TurnedAway
    }

    /// Applies the limits of a listener to the address that a proxy has named. False: it has too many connections, or they come
    /// too fast.
    pub(super) fn judge_client(
        &mut self,
        listener: usize,
        stream: &Stream,
        client: IpAddr,
        now: Instant,
    ) -> bool {
        let listener = listener.min(self.acceptors.len() - 1);
        let is_within = self.door.try_name(number(listener), stream.as_raw_fd(), client, now);
        self.addresses_refused += u64::from(!is_within);
        is_within
    }

    /// Judges a connection once more: a place may have become free.
    pub(super) fn judge_again(&mut self, newcomer: Newcomer, now: Instant) -> Arrival {
        let Newcomer { stream, listener, from, kind } = newcomer;
        self.judge(listener, kind, stream, from, now)
    }

    /// Refuses a connection that the process has no place for.
    pub(super) fn refuse_full(&mut self, newcomer: Newcomer) {
        self.refused += 1;
        self.refuse(newcomer.stream, newcomer.kind, CloseReason::Busy);
    }

    /// Tells a client why it is refused and when to come back, as far as the stream takes it at once. A client that has to open
    /// the connection by TLS or a WebSocket first sees the end only.
    fn refuse(&mut self, mut stream: Stream, kind: OpeningKind, reason: CloseReason) {
        if !kind.is_plain() {
            return;
        }
        let spread = u32::try_from(self.random.below(u64::from(RETRY_AFTER_MS))).expect("below a u32");
        let close = Close {
            code: reason.code(),
            reason: reason.text().trim().to_owned(),
            retry_after_ms: RETRY_AFTER_MS + spread,
        };
        let mut bytes = Vec::new();
        frame_of(Command::Close, &close).encode(&mut bytes);
        // A fresh socket has room; if not, the close itself tells the client.
        stream.write(&bytes).ok();
    }
}

fn number(listener: usize) -> u8 {
    u8::try_from(listener).expect("settings have at most 16 listeners")
}

pub(super) fn address_of(stream: &Stream) -> Option<IpAddr> {
    stream.peer_addr().ok().map(|peer| peer.ip())
}
