//! One HTTP/1.1 server for the admin address and the server API, and a small client for the command line.
//!
//! The protocol is hyper's; sockets, limits and deadlines are this module's. A server is one thread with
//! a current-thread runtime of its own: it never runs in a reactor, and a handler never blocks a client's
//! connection. Example: a visitor posts `/v1/push`. The accept loop gives the connection a slot, hyper
//! reads the head, `connection` reads the body within the limits, the handler answers, and the
//! connection waits for the next request.
//!
//! | limit | what happens at the limit |
//! |---|---|
//! | [`Limits::connections_max`] | the connection that has been idle longest after an answer is closed; if there is none, the new one is answered 503 |
//! | [`Limits::head_bytes_max`], [`HEADERS_MAX`] | 431, by hyper, without a body |
//! | [`Limits::body_bytes_max`] | 413 |
//! | a body without `Content-Length` | 411 |
//! | [`Limits::first_idle`], [`Limits::idle`] | the connection is closed |
//! | [`Limits::transfer`] | 408 while the request comes in; closed while the answer goes out |
//! | no file descriptor at accept | a pause of 100 ms, logged at powers of two |
//!
//! Each connection has at most one request in a handler, so [`Limits::connections_max`] bounds those too.

mod accept;
mod client;
mod connection;
mod message;
mod socket;
#[cfg(test)]
mod tests;
mod token;

pub use client::{Answer, Question, ask};
pub use hyper::{Method, StatusCode, header};
pub use message::{Request, Response};
pub use token::has_bearer;

use std::fmt;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::runtime::Builder;
use tokio::sync::mpsc;
use tokio::task::LocalSet;

/// Header lines of a request; above this number hyper answers 431.
pub const HEADERS_MAX: usize = 64;
/// Orders from the owner of a server that it has not carried out yet.
const ORDERS_MAX: usize = 8;

/// Limits of a server, in bytes, connections and time.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Open connections.
    pub connections_max: usize,
    /// Bytes of a request's head, at least 8 KiB.
    pub head_bytes_max: usize,
    /// Bytes of a request's body.
    pub body_bytes_max: usize,
    /// Longest wait for the first byte of the first request.
    pub first_idle: Duration,
    /// Longest wait for the first byte of a later request.
    pub idle: Duration,
    /// Longest time from the first byte of a request to its last one, and from the answer to its last byte.
    pub transfer: Duration,
    /// Longest time of a handler.
    pub handler: Duration,
}

/// Reason of a refusal that happens before the handler is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// [`Limits::connections_max`] connections are open: 503.
    Busy,
    /// The request did not come in within [`Limits::transfer`]: 408.
    TooSlow,
    /// The body has no `Content-Length`: 411.
    NoLength,
    /// The body has more than [`Limits::body_bytes_max`] bytes: 413.
    BodyTooLarge,
}

/// Event that the owner of a server counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A request has its answer.
    Answered,
    /// A connection was refused because too many are open.
    TooMany,
    /// A connection was closed because its request did not come in in time.
    TooSlow,
    /// An idle connection was closed to make room for a new one.
    Evicted,
}

/// Parts of a server that differ between its users.
#[derive(Clone, Copy)]
pub struct Settings {
    /// Name of the thread.
    pub thread: &'static str,
    /// Limits in force.
    pub limits: Limits,
    /// Answer to a request that is refused before the handler is asked.
    pub refuse: fn(Refusal) -> Response,
}

/// A running server. Dropping it stops the thread.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    orders: mpsc::Sender<Order>,
    thread: Option<JoinHandle<()>>,
}

/// Order from the owner of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Pause,
    Resume,
    Stop,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("thread", &self.thread)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// Serves `listener` in a thread of its own. `handler` answers requests there; `on_event` counts
    /// there.
    ///
    /// # Errors
    /// The system's: no address, no thread.
    pub fn start<F, A>(
        listener: TcpListener,
        settings: Settings,
        handler: impl FnOnce() -> F + Send + 'static,
        on_event: impl Fn(Event) + Send + 'static,
    ) -> io::Result<Self>
    where
        F: Fn(Request) -> A + 'static,
        A: Future<Output = Response> + 'static,
    {
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
        let listener = {
            let _entered = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        let (orders, taken) = mpsc::channel(ORDERS_MAX);
        let run = move || {
            let tasks = LocalSet::new();
            let accepting = accept::Accepting::new(listener, settings, handler(), on_event, taken);
            tasks.block_on(&runtime, accepting.run());
        };
        let thread = std::thread::Builder::new().name(settings.thread.into()).spawn(run)?;
        Ok(Self { address, orders, thread: Some(thread) })
    }

    /// The address where the server listens, with the actual port.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts no more connections, or accepts again: another process may serve the address next. A
    /// paused server closes idle connections, and the others after their answer.
    pub fn set_paused(&self, is_paused: bool) {
        self.order(if is_paused { Order::Pause } else { Order::Resume });
    }

    /// Closes idle connections, waits at most 2 s for running requests, and ends the thread.
    pub fn stop(mut self) {
        self.end();
    }

    fn order(&self, order: Order) {
        // The thread has time for orders, unless it has ended.
        if self.orders.try_send(order).is_err() {
            tracing::error!(?order, "an HTTP server does not take orders any more");
        }
    }

    fn end(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.order(Order::Stop);
        if thread.join().is_err() {
            tracing::error!("the thread of an HTTP server panicked");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}
