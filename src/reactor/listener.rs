//! Accepting: the shared listening socket, who is let in, and running out of descriptors.

use super::door::{Door, Refusal, Wait};
use mio::net::{TcpListener, TcpStream};
use moorline_proto::error::CloseReason;
use moorline_proto::frame::Command;
use moorline_proto::message::{client::Close, frame_of};
use moorline_proto::random::Random;
use moorline_proto::time::{Duration, Instant};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;

/// How long accepting rests when the system refuses a descriptor.
const PAUSE: Duration = Duration::from_millis(100);
/// While too many are not logged in, look again after this.
const HANDSHAKES_PAUSE: Duration = Duration::from_millis(10);
/// Who is refused may come back after this and up to as much again.
const RETRY_AFTER_MS: u32 = 2_000;

/// What one look at the queue gave.
#[derive(Debug)]
pub(super) enum Arrival {
    /// A connection within all limits.
    Admitted(TcpStream),
    /// One that was refused, or left before it was accepted. Others may wait.
    TurnedAway,
    /// None for now.
    Nobody,
}

/// One reactor's view of the listening socket that all reactors share.
#[derive(Debug)]
pub(super) struct Listener {
    socket: TcpListener,
    door: Arc<Door>,
    random: Random,
    /// An edge came and the queue is not known to be empty.
    is_ready: bool,
    /// It listens.
    is_open: bool,
    paused_until: Option<Instant>,
    /// Of this reactor's connections that are not logged in, those that the door knows of.
    handshakes: usize,
    /// Times that the system refused a descriptor.
    pub(super) pauses: u64,
    /// Times that newcomers waited because they came too fast.
    pub(super) rate_waits: u64,
    /// Times that newcomers waited because too many were not logged in.
    pub(super) handshake_waits: u64,
    /// Connections refused at the cap.
    pub(super) refused: u64,
    /// Connections refused because their address has too many.
    pub(super) addresses_refused: u64,
}

impl Listener {
    pub(super) const fn new(socket: TcpListener, door: Arc<Door>, seed: u64) -> Self {
        Self {
            socket,
            door,
            random: Random::new(seed),
            is_ready: true,
            is_open: true,
            paused_until: None,
            handshakes: 0,
            pauses: 0,
            rate_waits: 0,
            handshake_waits: 0,
            refused: 0,
            addresses_refused: 0,
        }
    }

    pub(super) const fn socket(&mut self) -> &mut TcpListener {
        &mut self.socket
    }

    /// A connection that another process accepted.
    pub(super) fn readmit(&self, socket: &TcpStream, now: Instant) {
        self.door.readmit(socket.as_raw_fd(), || socket.peer_addr().ok().map(|peer| peer.ip()), now);
    }

    /// A connection ends: its place is free for another.
    pub(super) fn release(&self, socket: &TcpStream, now: Instant) {
        if crate::freeze::is_shared() {
            // Another process holds it too, and its close alone would tell the peer nothing.
            socket.shutdown(std::net::Shutdown::Both).ok();
        }
        self.door.leave(socket.as_raw_fd(), now);
    }

    /// Tells the other reactors how many connections are not logged in here.
    pub(super) fn count_handshakes(&mut self, count: usize) {
        let before = std::mem::replace(&mut self.handshakes, count);
        if before != count {
            self.door.count_handshakes(before, count);
        }
    }

    /// Listens no more, for all reactors and processes that have the socket; or somebody made it listen again.
    pub(super) fn set_open(&mut self, is_open: bool) {
        self.is_open = is_open;
        self.is_ready = is_open;
        if !is_open && self.door.set_listening(false) {
            // On Linux it can listen again later.
            socket2::SockRef::from(&self.socket).shutdown(std::net::Shutdown::Both).ok();
        }
    }

    pub(super) const fn set_ready(&mut self) {
        self.is_ready = true;
    }

    /// When to look again without an edge; `None`: when one comes.
    pub(super) const fn next_deadline(&self) -> Option<Instant> {
        match self.paused_until {
            _ if !self.is_open => None,
            Some(until) if self.is_ready => Some(until),
            _ if self.is_ready => Some(Instant::ZERO),
            _ => None,
        }
    }

    /// The next newcomer. Takes one at most, so that its caller's budget holds for refused ones too.
    pub(super) fn try_accept(&mut self, now: Instant) -> Arrival {
        if !self.is_open || !self.is_ready || self.paused_until.is_some_and(|until| now < until) {
            return Arrival::Nobody;
        }
        self.paused_until = None;
        if let Err(wait) = self.door.try_open(now) {
            self.paused_until = Some(match wait {
                Wait::Rate(until) => {
                    self.rate_waits += 1;
                    until
                }
                Wait::Handshakes => {
                    self.handshake_waits += 1;
                    now + HANDSHAKES_PAUSE
                }
            });
            return Arrival::Nobody;
        }
        match self.socket.accept() {
            Ok((socket, from)) => self.judge(socket, from.ip(), now),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.is_ready = false;
                Arrival::Nobody
            }
            // The newcomer left, or a signal came: the queue may hold others.
            Err(error) if is_transient(&error) => Arrival::TurnedAway,
            Err(error) => {
                if self.pauses.is_power_of_two() || self.pauses == 0 {
                    tracing::warn!(%error, pause = ?PAUSE, times = self.pauses + 1, "accept paused; raise the open-files limit or lower limits.connections_max");
                }
                self.pauses += 1;
                self.paused_until = Some(now + PAUSE);
                Arrival::Nobody
            }
        }
    }

    /// The same for one that somebody else accepted.
    pub(super) fn judge_waiting(&mut self, socket: TcpStream, now: Instant) -> Arrival {
        match socket.peer_addr() {
            Ok(from) => self.judge(socket, from.ip(), now),
            Err(_) => Arrival::TurnedAway, // it left
        }
    }

    fn judge(&mut self, socket: TcpStream, from: IpAddr, now: Instant) -> Arrival {
        let reason = match self.door.try_enter(socket.as_raw_fd(), from, now) {
            Ok(()) => {
                self.count_handshakes(self.handshakes + 1);
                return Arrival::Admitted(socket);
            }
            Err(Refusal::Full) => {
                self.refused += 1;
                CloseReason::Busy
            }
            Err(Refusal::Address) => {
                self.addresses_refused += 1;
                CloseReason::Throttled
            }
        };
        self.refuse(socket, reason);
        Arrival::TurnedAway
    }

    /// Says why and when to come back, as far as the socket takes it at once.
    fn refuse(&mut self, mut socket: TcpStream, reason: CloseReason) {
        let spread = u32::try_from(self.random.below(u64::from(RETRY_AFTER_MS))).expect("below a u32");
        let close = Close {
            code: reason.code(),
            reason: reason.text().trim().to_owned(),
            retry_after_ms: RETRY_AFTER_MS + spread,
        };
        let mut bytes = Vec::new();
        frame_of(Command::Close, &close).encode(&mut bytes);
        // A fresh socket has room; if not, the close itself tells the client.
        socket.write_all(&bytes).ok();
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionReset
    )
}
