//! TLS of links: both ends show a certificate [B-5.9]. The event loop reads and writes; a thread does the arithmetic.
//!
//! Run-through: a gateway connects and sends its ClientHello. The event loop gives the bytes to the thread and goes on. The
//! result wakes it, and is written; the gateway's certificate goes the same way. The second result has the keys and the names
//! of the certificate, which the link host compares with the node in HELLO.

use super::event::LinkId;
use super::links::LinkEnd;
use crate::config::{BackendConfig, LinkConfig};
use crate::error::BackendError;
use crossbeam_channel::{Receiver, Sender, bounded};
use moorline_net::clock::Clock;
use moorline_net::layer::{HandshakePool, Job, JobResult, OpeningFault};
use moorline_net::tls::{Client, HandshakeError, Mutual, Server};
use moorline_proto::slots::NodeId;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};

/// Protocol inside of TLS (ALPN).
const PROTOCOL: &str = "moorline-link/1";
/// Threads for handshakes. Links are few, and last.
const THREADS: usize = 1;
/// Handshakes that wait for a thread; a further connection is closed.
const QUEUE: usize = 256;
/// Results that the event loop has not taken. The thread waits above this number.
const RESULTS_MAX: usize = 64;
const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// TLS for connections from now on, which a reload replaces; `None`: links are not encrypted.
pub(crate) type SharedTls = Arc<RwLock<Option<LinkTls>>>;

/// Certificates of both sides, for links that others begin and for those to other nodes.
#[derive(Clone, Debug)]
pub(crate) struct LinkTls {
    server: Arc<Server>,
    client: Arc<Client>,
}

/// Reads the files of the settings; `None`: links are not encrypted.
///
/// # Errors
/// [`BackendError::LinkTls`] and [`BackendError::LinkHandshakes`].
pub(crate) fn load(config: &LinkConfig) -> Result<Option<LinkTls>, BackendError> {
    let Some(files) = config.tls.set() else { return Ok(None) };
    let mutual = Mutual::read(files, Clock::default().unix_nanos() / NANOS_PER_SECOND)?;
    mutual.warnings().iter().for_each(|warning| tracing::warn!("link.tls: {warning}"));
    let client = Arc::new(mutual.client(PROTOCOL)?);
    Ok(Some(LinkTls { server: Arc::new(mutual.server(PROTOCOL)?), client }))
}

/// Checks the files of the settings.
///
/// # Errors
/// Those of a start.
pub fn check(config: &BackendConfig) -> Result<(), BackendError> {
    load(&config.link).map(drop)
}

/// Connection of a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Link(LinkId),
    /// To another node, with the number of the connection.
    Peer(NodeId, u64),
}

/// Result of a thread, with its connection.
type Handshaken = (Target, JobResult);

/// Handshakes of one event loop.
#[derive(Debug)]
pub(super) struct Handshakes {
    tls: SharedTls,
    /// `None`: no connection had TLS yet.
    pool: Option<HandshakePool>,
    results: (Sender<Handshaken>, Receiver<Handshaken>),
}

impl Handshakes {
    pub(super) fn new(tls: Option<LinkTls>) -> Self {
        Self { tls: Arc::new(RwLock::new(tls)), pool: None, results: bounded(RESULTS_MAX) }
    }

    /// Takes TLS from here from now on.
    pub(super) fn share(&mut self, tls: SharedTls) {
        self.tls = tls;
    }

    fn tls(&self) -> Option<LinkTls> {
        self.tls.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns what a connection to another node begins TLS with; `None`: it is not encrypted.
    pub(super) fn client(&self) -> Option<Arc<Client>> {
        self.tls().map(|tls| tls.client)
    }

    /// Returns whether a connection over TCP begins with a handshake.
    pub(super) fn are_due(&self) -> bool {
        self.tls().is_some()
    }

    /// Gives a job to the thread; `wake` is called when its result is there.
    ///
    /// # Errors
    /// The queue is full, or the system refuses a thread.
    pub(super) fn submit(
        &mut self,
        target: Target,
        job: Job,
        wake: impl FnOnce() + Send + 'static,
    ) -> Result<(), LinkEnd> {
        let server = self.tls().map(|tls| tls.server);
        let pool = match &self.pool {
            Some(pool) => pool,
            None => {
                self.pool.insert(HandshakePool::start("link-handshake", THREADS, QUEUE).map_err(LinkEnd::Io)?)
            }
        };
        let results = self.results.0.clone();
        let reply = move |result| {
            results.send((target, result)).ok(); // the event loop may have ended
            wake();
        };
        pool.submit(job, server, reply).map_err(|_| LinkEnd::Io(io::Error::from(io::ErrorKind::ResourceBusy)))
    }

    /// Returns the next result of a thread.
    pub(super) fn next(&self) -> Option<Handshaken> {
        self.results.1.try_recv().ok()
    }
}

/// Returns why a connection to another node ends whose handshake failed.
pub(super) fn end_of_dial(fault: OpeningFault) -> LinkEnd {
    match fault {
        OpeningFault::Socket(cause) => LinkEnd::Io(cause),
        OpeningFault::Handshake(error) => LinkEnd::Tls(error.explain("other node")),
        fault => LinkEnd::Tls(fault.to_string()),
    }
}

/// Returns why a connection ends whose handshake failed.
pub(super) fn end_of(fault: OpeningFault) -> LinkEnd {
    match fault {
        OpeningFault::Socket(cause) => LinkEnd::Io(cause),
        OpeningFault::Left => {
            LinkEnd::Tls("closed by the gateway in the TLS handshake; its log may say why".to_owned())
        }
        OpeningFault::Handshake(HandshakeError::NotTls) => LinkEnd::Tls(
            "the gateway does not speak TLS; set backend.tls there, or leave link.tls of this backend empty"
                .to_owned(),
        ),
        OpeningFault::Handshake(error) => LinkEnd::Tls(error.explain("gateway")),
        fault => LinkEnd::Tls(fault.to_string()),
    }
}
