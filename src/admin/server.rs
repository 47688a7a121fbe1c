//! The responder's loop: accept, serve, end what is late.

use super::Bounds;
use super::connection::{Connection, Progress};
use super::routes::Routes;
use super::token::Source;
use crate::metrics::{Board, Series};
use crate::sys::clock;
use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Waker};
use moorline_proto::time::{Duration, Instant};
use slab::Slab;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub(super) const SERIES: &[Series] = &[
    Series::counter("admin_requests", "Requests answered at the admin address."),
    Series::counter("admin_refused", "Admin connections closed unanswered.").labelled("reason", "too_many"),
    Series::counter("admin_refused", "Admin connections closed unanswered.").labelled("reason", "too_slow"),
];
const ANSWERED: usize = 0;
const TOO_MANY: usize = 1;
const TOO_SLOW: usize = 2;

/// Before accepting is tried again after the system refused a descriptor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Server {
    poll: Poll,
    listener: TcpListener,
    connections: Slab<Connection>,
    routes: Routes,
    board: Arc<Board>,
    bounds: Bounds,
    accept_again_at: Option<Instant>,
    is_paused: Arc<AtomicBool>,
}

impl Server {
    pub(super) fn new(
        listener: std::net::TcpListener,
        routes: Routes,
        board: Arc<Board>,
        bounds: Bounds,
        is_paused: Arc<AtomicBool>,
    ) -> io::Result<(Self, Arc<Waker>)> {
        let poll = Poll::new()?;
        listener.set_nonblocking(true)?;
        let mut listener = TcpListener::from_std(listener);
        poll.registry().register(&mut listener, Source::Listener.token(), Interest::READABLE)?;
        let bell = Arc::new(Waker::new(poll.registry(), Source::Bell.token())?);
        let connections = Slab::with_capacity(bounds.connections);
        let server =
            Self { poll, listener, connections, routes, board, bounds, accept_again_at: None, is_paused };
        Ok((server, bell))
    }

    /// Until the bell rings.
    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(32);
        loop {
            let timeout = self.next_deadline().map(|deadline| {
                // Rounded up to what the poll can wait, so that a deadline is past when it returns.
                deadline.saturating_since(clock::now()) + Duration::from_millis(1)
            });
            if let Err(error) = self.poll.poll(&mut events, timeout)
                && error.kind() != io::ErrorKind::Interrupted
            {
                tracing::error!(%error, "the admin address ends: its poll failed");
                return;
            }
            let now = clock::now();
            for event in &events {
                match Source::from_token(event.token()) {
                    Source::Listener => self.accept(now),
                    Source::Bell => return,
                    Source::Connection(slot) => self.handle_ready(slot),
                }
            }
            self.expire(now);
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.connections.iter().map(|(_, connection)| connection.deadline).chain(self.accept_again_at).min()
    }

    fn accept(&mut self, now: Instant) {
        self.accept_again_at = None;
        if self.is_paused.load(Ordering::SeqCst) {
            self.accept_again_at = Some(now + ACCEPT_PAUSE);
            return;
        }
        loop {
            match self.listener.accept() {
                Ok((stream, _)) if self.connections.len() < self.bounds.connections => {
                    self.admit(stream, now);
                }
                Ok(_) => self.board.add(TOO_MANY, 1),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::debug!(%error, "cannot accept at the admin address");
                    self.accept_again_at = Some(now + ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    fn admit(&mut self, mut stream: mio::net::TcpStream, now: Instant) {
        let slot = self.connections.vacant_key();
        let interest = Interest::READABLE | Interest::WRITABLE;
        match self.poll.registry().register(&mut stream, Source::Connection(slot).token(), interest) {
            Ok(()) => {
                self.connections.insert(Connection::new(stream, now + self.bounds.time));
                self.handle_ready(slot);
            }
            Err(error) => tracing::debug!(%error, "cannot watch an admin connection"),
        }
    }

    fn handle_ready(&mut self, slot: usize) {
        // An event may outlive its connection within one poll; a newer tenant only looks once too often.
        let Some(connection) = self.connections.get_mut(slot) else { return };
        let board = &self.board;
        let count = || board.add(ANSWERED, 1);
        let progress = connection.handle_ready(&self.routes, self.bounds.request_bytes, count);
        if progress == Progress::Ended {
            self.connections.remove(slot);
        }
    }

    fn expire(&mut self, now: Instant) {
        let board = &self.board;
        self.connections.retain(|_, connection| {
            let is_late = connection.deadline <= now;
            if is_late && connection.is_unasked() {
                board.add(TOO_SLOW, 1);
            }
            !is_late
        });
        if self.accept_again_at.is_some_and(|at| at <= now) {
            self.accept(now);
        }
    }
}
