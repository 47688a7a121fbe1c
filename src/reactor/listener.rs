//! Accepting: the shared listening socket, the connection cap, and running out of descriptors.

use mio::net::{TcpListener, TcpStream};
use moorline_proto::error::CloseReason;
use moorline_proto::frame::Command;
use moorline_proto::message::{client::Close, frame_of};
use moorline_proto::time::{Duration, Instant};
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How long accepting rests when the system refuses a descriptor.
const PAUSE: Duration = Duration::from_millis(100);
/// A client refused at the cap may come back after this and up to as much again, by its own jitter.
const RETRY_AFTER_MS: u32 = 2_000;

/// Counts the open client connections of all reactors against the cap.
#[derive(Debug)]
pub struct Gate {
    open: AtomicUsize,
    max: usize,
}

impl Gate {
    /// Lets at most `max` connections in.
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { open: AtomicUsize::new(0), max })
    }

    fn try_enter(&self) -> bool {
        let entered = self.open.fetch_add(1, Ordering::Relaxed) < self.max;
        if !entered {
            self.leave();
        }
        entered
    }

    /// A connection ended.
    pub(super) fn leave(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What one look at the queue gave.
#[derive(Debug)]
pub(super) enum Arrival {
    /// A connection under the cap.
    Admitted(TcpStream),
    /// One that was refused at the cap, or left before it was accepted. Others may wait.
    TurnedAway,
    /// None for now.
    Nobody,
}

/// One reactor's view of the listening socket that all reactors share.
#[derive(Debug)]
pub(super) struct Listener {
    socket: TcpListener,
    gate: Arc<Gate>,
    /// An edge came and the queue is not known to be empty.
    is_ready: bool,
    paused_until: Option<Instant>,
    /// Times that the system refused a descriptor.
    pub(super) pauses: u64,
    /// Connections refused at the cap.
    pub(super) refused: u64,
}

impl Listener {
    pub(super) const fn new(socket: TcpListener, gate: Arc<Gate>) -> Self {
        Self { socket, gate, is_ready: true, paused_until: None, pauses: 0, refused: 0 }
    }

    pub(super) const fn socket(&mut self) -> &mut TcpListener {
        &mut self.socket
    }

    pub(super) fn gate(&self) -> &Gate {
        &self.gate
    }

    pub(super) const fn set_ready(&mut self) {
        self.is_ready = true;
    }

    /// When to look again without an edge; `None`: when one comes.
    pub(super) const fn next_deadline(&self) -> Option<Instant> {
        match self.paused_until {
            Some(until) if self.is_ready => Some(until),
            _ if self.is_ready => Some(Instant::ZERO),
            _ => None,
        }
    }

    /// The next newcomer. Takes one at most, so that its caller's budget holds for refused ones too.
    pub(super) fn try_accept(&mut self, now: Instant) -> Arrival {
        if !self.is_ready || self.paused_until.is_some_and(|until| now < until) {
            return Arrival::Nobody;
        }
        self.paused_until = None;
        match self.socket.accept() {
            Ok((socket, _)) if self.gate.try_enter() => Arrival::Admitted(socket),
            Ok((socket, _)) => {
                self.refuse(socket);
                Arrival::TurnedAway
            }
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

    /// Over the cap: says when to come back, as far as the socket takes it at once.
    fn refuse(&mut self, mut socket: TcpStream) {
        self.refused += 1;
        let busy = CloseReason::Busy;
        let close = Close {
            code: busy.code(),
            reason: busy.text().trim().to_owned(),
            retry_after_ms: RETRY_AFTER_MS,
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
