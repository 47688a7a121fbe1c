//! Listening sockets: the queue of newcomers, and the pause when descriptors run out.
//!
//! An [`Acceptor`] remembers whether the queue may hold newcomers (an edge came) and until when accepting
//! pauses. Its owner calls [`Acceptor::try_accept`] at most as often as its budget for one turn allows: one
//! call takes at most one newcomer, so the budget bounds refused newcomers too.
//!
//! Run-through: the process has 1,024 descriptors and 1,030 clients come. The 1,001st `accept(2)` fails with
//! `EMFILE`. The acceptor logs the failure (at the 1st, 2nd, 4th, 8th ... time) and pauses for 100 ms instead
//! of spinning, because the newcomer stays in the queue and would fail again at once. A client leaves; after
//! the pause `try_accept` takes the next newcomer.

use crate::stream::Stream;
use mio::net::{TcpListener, UnixListener};
use mio::{Interest, Registry, Token, event::Source};
use moorline_proto::time::{Duration, Instant};
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsFd;

/// Pause after the system refused a descriptor.
pub const DESCRIPTOR_PAUSE: Duration = Duration::from_millis(100);

/// A listening socket of any kind.
#[derive(Debug)]
pub enum Listener {
    /// A TCP socket.
    Tcp(TcpListener),
    /// Unix-domain socket.
    Unix(UnixListener),
}

/// Result of one look at the queue.
#[derive(Debug)]
pub enum Accepted {
    /// A newcomer, and its address on an IP network.
    Stream(Stream, Option<SocketAddr>),
    /// A newcomer that left before it was accepted. Others may wait.
    Gone,
    /// Nobody for now: wait for [`Acceptor::next_deadline`] or for an edge.
    Nobody,
}

/// One loop's view of a listening socket.
#[derive(Debug)]
pub struct Acceptor {
    listener: Listener,
    /// Name of the listener in log lines.
    name: &'static str,
    /// Advice to the operator when descriptors run out.
    advice: &'static str,
    /// An edge came and the queue is not known to be empty.
    is_ready: bool,
    /// The socket listens.
    is_open: bool,
    /// End of the pause; `None`: accepting does not pause.
    paused_until: Option<Instant>,
    /// Times that the system refused a descriptor.
    pauses: u64,
}

impl Acceptor {
    /// Returns an acceptor that looks at its queue at once.
    pub const fn new(listener: Listener, name: &'static str, advice: &'static str) -> Self {
        Self { listener, name, advice, is_ready: true, is_open: true, paused_until: None, pauses: 0 }
    }

    /// Has `registry`'s poll tell of newcomers under `token`.
    ///
    /// # Errors
    /// The system's.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        match &mut self.listener {
            Listener::Tcp(listener) => listener.register(registry, token, Interest::READABLE),
            Listener::Unix(listener) => listener.register(registry, token, Interest::READABLE),
        }
    }

    /// Notes an edge.
    pub const fn handle_edge(&mut self) {
        self.is_ready = true;
    }

    /// Returns how often the system refused a descriptor.
    pub const fn pauses(&self) -> u64 {
        self.pauses
    }

    /// Returns whether a newcomer may be taken at `now`.
    pub fn is_ready(&self, now: Instant) -> bool {
        self.is_open && self.is_ready && self.paused_until.is_none_or(|until| until <= now)
    }

    /// Returns when to look again without an edge; `None`: when an edge comes.
    pub const fn next_deadline(&self) -> Option<Instant> {
        match self.paused_until {
            _ if !self.is_open || !self.is_ready => None,
            Some(until) => Some(until),
            None => Some(Instant::ZERO),
        }
    }

    /// Leaves newcomers in the queue until then.
    pub const fn pause_until(&mut self, until: Instant) {
        self.paused_until = Some(until);
    }

    /// Notes that the socket does not listen any more, or listens again.
    pub const fn set_open(&mut self, is_open: bool) {
        self.is_open = is_open;
        self.is_ready = is_open;
    }

    /// Stops listening, for all processes that have the socket: later connects are refused by the system.
    pub fn shut_down(&self) {
        let socket = match &self.listener {
            Listener::Tcp(listener) => listener.as_fd(),
            Listener::Unix(listener) => listener.as_fd(),
        };
        // Fails only if the socket does not listen any more.
        socket2::SockRef::from(&socket).shutdown(Shutdown::Both).ok();
    }

    /// Takes the next newcomer, if there is one and accepting does not pause.
    pub fn try_accept(&mut self, now: Instant) -> Accepted {
        if !self.is_ready(now) {
            return Accepted::Nobody;
        }
        self.paused_until = None;
        match self.listener.accept() {
            Ok((stream, from)) => Accepted::Stream(stream, from),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.is_ready = false;
                Accepted::Nobody
            }
            // The newcomer left, or a signal came: the queue may hold others.
            Err(error) if is_transient(&error) => Accepted::Gone,
            Err(error) => {
                self.on_refused(&error, now);
                Accepted::Nobody
            }
        }
    }

    fn on_refused(&mut self, error: &io::Error, now: Instant) {
        self.pauses += 1;
        if self.pauses.is_power_of_two() {
            let (listener, advice, times) = (self.name, self.advice, self.pauses);
            tracing::warn!(%error, listener, times, pause = ?DESCRIPTOR_PAUSE, "accept paused; {advice}");
        }
        self.paused_until = Some(now + DESCRIPTOR_PAUSE);
    }
}

impl Listener {
    fn accept(&self) -> io::Result<(Stream, Option<SocketAddr>)> {
        match self {
            Self::Tcp(listener) => listener.accept().map(|(socket, from)| (Stream::tcp(socket), Some(from))),
            Self::Unix(listener) => listener.accept().map(|(socket, _)| (Stream::unix(socket), None)),
        }
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionReset
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    fn acceptor() -> (Acceptor, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0".parse().expect("an address")).expect("loopback");
        let address = listener.local_addr().expect("bound");
        (Acceptor::new(Listener::Tcp(listener), "test", "close files"), address)
    }

    #[test]
    fn after_a_refused_descriptor_the_next_look_comes_after_the_pause() {
        let (mut acceptor, address) = acceptor();
        let _client = TcpStream::connect(address).expect("the system queues it");
        acceptor.on_refused(&io::Error::from_raw_os_error(24), at(0)); // EMFILE
        assert_eq!((acceptor.next_deadline(), acceptor.pauses()), (Some(at(100)), 1));
        assert!(matches!(acceptor.try_accept(at(99)), Accepted::Nobody));
        assert!(matches!(acceptor.try_accept(at(100)), Accepted::Stream(_, Some(_))));
        assert_eq!(acceptor.next_deadline(), Some(Instant::ZERO), "there may be more");
        assert!(matches!(acceptor.try_accept(at(100)), Accepted::Nobody));
        assert_eq!(acceptor.next_deadline(), None, "the queue is empty: wait for an edge");
    }

    #[test]
    fn a_closed_listener_takes_nobody() {
        let (mut acceptor, address) = acceptor();
        let _client = TcpStream::connect(address).expect("the system queues it");
        acceptor.set_open(false);
        assert!(matches!(acceptor.try_accept(at(0)), Accepted::Nobody));
        acceptor.shut_down();
        assert!(TcpStream::connect(address).is_err(), "the system refuses");
    }

    #[test]
    fn a_unix_listener_takes_newcomers_too() {
        let path = std::env::temp_dir().join(format!("moorline-accept-{}", std::process::id()));
        std::fs::remove_file(&path).ok();
        let listener = UnixListener::bind(&path).expect("a socket file");
        let mut acceptor = Acceptor::new(Listener::Unix(listener), "test", "close files");
        let _client = std::os::unix::net::UnixStream::connect(&path).expect("the system queues it");
        assert!(matches!(acceptor.try_accept(at(0)), Accepted::Stream(_, None)));
        std::fs::remove_file(&path).ok();
    }
}
