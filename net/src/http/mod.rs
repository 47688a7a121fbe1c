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
//! | [`Limits::connections_max`] | the stranger that has been silent longest is closed, or else the known caller that has been idle longest; if everybody is being answered, the new one is answered 503 |
//! | places of [`HEALTH_PATHS`] | 8 connections beyond the limit may ask for health and nothing else |
//! | a head that ends a line with LF alone, or has two of a header that must be there once | 400 |
//! | a `Host` that is not an IP address, `localhost` or one of [`Settings::names`] | 421 |
//! | an `Origin` of another host | 403 |
//! | [`Limits::head_bytes_max`], [`HEADERS_MAX`] | 431, by hyper, without a body |
//! | [`Limits::body_bytes_max`], 64 KiB of a stranger | 413 |
//! | a body without `Content-Length` | 411 |
//! | [`Limits::first_idle`], [`Limits::idle`] | the connection is closed |
//! | [`Limits::transfer`] | 408 while the request comes in; closed while the answer goes out |
//! | no file descriptor at accept | a pause of 100 ms, logged at powers of two |
//!
//! Each connection has at most one request in a handler, so [`Limits::connections_max`] bounds those too.

mod accept;
mod address;
mod client;
mod connection;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod head;
mod message;
mod socket;
#[cfg(test)]
mod tests;
mod tls;
mod token;

pub use address::{Address, Peer};
pub use client::{Answer, Question, ask, ask_all};
pub use head::{Head, is_host_name};
pub use hyper::{Method, StatusCode, Uri, header};
pub use message::{Request, Response};
pub use socket::Listener;
pub use token::bearer;

use std::fmt;
use std::future::Future;
use std::io;
use std::sync::Arc;
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
    /// Longest wait of a stranger for the first byte of a request.
    pub first_idle: Duration,
    /// Longest wait of a known caller for the first byte of a later request.
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
    /// A line of the head ends with LF alone, or a header that must be there once is not: 400.
    BadHead,
    /// The request is for another host: 421.
    WrongHost,
    /// A page of another origin sent the request: 403.
    ForeignOrigin,
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
    /// A silent connection was closed to make room for a new one.
    Evicted,
}

/// Paths that have places of their own, so that a crowd of visitors does not look like the end of the process.
pub const HEALTH_PATHS: [&str; 2] = ["/healthz", "/readyz"];

/// Origin of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Caller {
    /// The request carries no proof. Its connection makes room for others first.
    #[default]
    Stranger,
    /// The server knows the caller by this name.
    Known(Arc<str>),
}

/// Judges a request by its head, before its body is read. An error is the answer.
pub type Judge = Arc<dyn Fn(&Head<'_>) -> Result<Caller, Box<Response>> + Send + Sync>;

/// Parts of a server that differ between its users.
#[derive(Clone)]
pub struct Settings {
    /// Name of the thread.
    pub thread: &'static str,
    /// Limits in force.
    pub limits: Limits,
    /// Answer to a request that is refused before the handler is asked.
    pub refuse: fn(Refusal) -> Response,
    /// Host names of the server, beside its IP addresses and `localhost`.
    pub names: Vec<String>,
    /// Judge of requests.
    pub judge: Judge,
    /// True if the server accepts nobody before [`Server::set_paused`] lets it.
    pub is_paused: bool,
    /// TLS of every connection; `None`: nothing is encrypted.
    pub tls: Option<crate::tls::Server>,
}

/// A running server. Dropping it stops the thread.
#[derive(Debug)]
pub struct Server {
    address: Address,
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

impl Settings {
    /// Settings of a server that is reached by its IP addresses and knows no caller.
    pub fn new(thread: &'static str, limits: Limits, refuse: fn(Refusal) -> Response) -> Self {
        let judge: Judge = Arc::new(|_| Ok(Caller::Stranger));
        Self { thread, limits, refuse, names: Vec::new(), judge, is_paused: false, tls: None }
    }

    /// Has the server start paused: another process still serves the address.
    #[must_use]
    pub const fn paused(mut self) -> Self {
        self.is_paused = true;
        self
    }

    /// Gives the server host names.
    #[must_use]
    pub fn with_names(self, names: Vec<String>) -> Self {
        Self { names, ..self }
    }

    /// Encrypts every connection.
    #[must_use]
    pub fn with_tls(self, tls: Option<crate::tls::Server>) -> Self {
        Self { tls, ..self }
    }

    /// Has requests judged before their bodies are read.
    #[must_use]
    pub fn with_judge(
        self,
        judge: impl Fn(&Head<'_>) -> Result<Caller, Box<Response>> + Send + Sync + 'static,
    ) -> Self {
        Self { judge: Arc::new(judge), ..self }
    }
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
        listener: impl Into<Listener>,
        settings: Settings,
        handler: impl FnOnce() -> F + Send + 'static,
        on_event: impl Fn(Event) + Send + 'static,
    ) -> io::Result<Self>
    where
        F: Fn(Request) -> A + 'static,
        A: Future<Output = Response> + 'static,
    {
        let listener = listener.into();
        let address = listener.address()?;
        let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
        let listener = {
            let _entered = runtime.enter();
            socket::Accepting::new(listener)?
        };
        let (orders, taken) = mpsc::channel(ORDERS_MAX);
        let name = settings.thread;
        // Before the owner says that it is ready: a thread that begins late would take the one of another server.
        let spare = accept::spare();
        let run = move || {
            let tasks = LocalSet::new();
            let accepting = accept::Accepting::new(listener, spare, settings, handler(), on_event, taken);
            tasks.block_on(&runtime, accepting.run());
        };
        let thread = std::thread::Builder::new().name(name.into()).spawn(run)?;
        Ok(Self { address, orders, thread: Some(thread) })
    }

    /// The address where the server listens, with the actual port.
    pub const fn address(&self) -> &Address {
        &self.address
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
