//! Dispatch: which gateways a client should try, by its region and by the room that gateways have (`docs/dispatch.md`).
//!
//! A process of its own, which no message passes. Example: a client asks `GET /v1/endpoints?region=eu` and gets two endpoints, the
//! emptier gateway more often first. Three threads: one asks gateways (`poll`), one serves clients, one serves the page for
//! operators; they share one table (`table`), which is locked for microseconds.

pub mod config;
mod figures;
mod poll;
mod rates;
mod routes;
pub mod table;

use crate::metrics::{CounterSet, Registry};
use config::DispatchConfig;
use figures::POLL_METRICS;
use moorline_net::clock::Clock;
use moorline_net::http::{Address, Server};
use moorline_net::log::DroppedLines;
use moorline_net::settings::changed_keys;
use moorline_net::thread;
use moorline_net::tls::{
    self, CertificateFiles, CertificateSet, Certificates, Protocols, TicketKeySet, TicketKeys,
};
use moorline_proto::random::Random;
use moorline_proto::time::Duration;
use rates::Rates;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use table::{Report, Table};

/// Protocol inside of TLS (ALPN), which a client may leave out.
const PROTOCOL: &str = "http/1.1";

/// Reason why dispatch cannot start or take other settings.
#[derive(Debug, thiserror::Error)]
pub enum DispatchError {
    /// An address cannot be served.
    #[error("cannot listen at {address} (`{key}`): {cause}")]
    Listen {
        /// Setting with the address.
        key: &'static str,
        /// Address of the setting.
        address: SocketAddr,
        /// Cause of the failure.
        cause: io::Error,
    },
    /// The certificate or its key cannot be used.
    #[error(transparent)]
    Certificate(#[from] tls::CertificateError),
    /// The system gives no random bytes for the keys of session tickets.
    #[error("cannot make keys for TLS: {0}")]
    Tickets(#[from] tls::TicketKeyError),
    /// The system gives no thread or no random bytes.
    #[error("cannot start dispatch: {0}")]
    System(#[from] io::Error),
}

/// Parts that all threads share.
#[derive(Debug)]
struct Shared {
    clock: Clock,
    table: Mutex<Table>,
    config: Mutex<DispatchConfig>,
    rates: Mutex<Rates>,
    random: Mutex<Random>,
    registry: Arc<Registry>,
    /// Written by the thread that asks gateways.
    polls: Arc<CounterSet>,
    is_ending: AtomicBool,
}

/// A running dispatch process.
#[derive(Debug)]
pub struct Dispatch {
    shared: Arc<Shared>,
    certificates: Option<Arc<Certificates>>,
    clients: Server,
    admin: Server,
    poller: Option<JoinHandle<()>>,
}

/// Settings that a reload has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// Settings that are in force.
    pub taken: Vec<String>,
    /// Settings that need a restart.
    pub kept: Vec<String>,
}

/// Locks a value that each change leaves whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Gateways to ask, the longest wait for an answer, and the time between two rounds.
    fn to_poll(&self) -> (Vec<Address>, Duration, Duration) {
        let config = lock(&self.config);
        let (timeout, interval) = (config.poll_timeout, config.poll_interval);
        drop(config);
        (lock(&self.table).places(), timeout, interval)
    }

    fn on_report(&self, admin: &Address, report: Report) {
        lock(&self.table).on_report(admin, self.clock.now(), report);
    }

    fn on_round(&self, asked: usize, failures: usize) {
        self.polls.add(figures::POLLS, asked as u64);
        self.polls.add(figures::POLLS_FAILED, failures as u64);
    }
}

/// Reads the certificate that the settings name; `None`: they name none.
///
/// # Errors
/// [`DispatchError::Certificate`].
pub fn read_certificates(config: &DispatchConfig) -> Result<Option<CertificateSet>, DispatchError> {
    if !config.has_tls() {
        return Ok(None);
    }
    let (chain, key) = (config.certificate_file.clone(), config.key_file.clone());
    let files = [CertificateFiles { chain, key, is_default: true }];
    let set = CertificateSet::read(&files, Clock::default().unix_seconds())?;
    set.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
    Ok(Some(set))
}

impl Dispatch {
    /// Listens, and begins to ask gateways.
    ///
    /// # Errors
    /// [`DispatchError`].
    pub fn start(config: &DispatchConfig, dropped_lines: DroppedLines) -> Result<Self, DispatchError> {
        let clock = Clock::default();
        let certificates = read_certificates(config)?.map(|set| Arc::new(Certificates::new(set)));
        let tls = match &certificates {
            Some(certificates) => {
                let keys = TicketKeySet::random(clock.unix_seconds())?;
                let tickets = Arc::new(TicketKeys::new(keys, clock.clone()));
                Some(tls::Server::new(certificates.clone(), tickets, Protocols::optional(PROTOCOL), None))
            }
            None => None,
        };
        let listen = |key, address: SocketAddr| {
            TcpListener::bind(address).map_err(|cause| DispatchError::Listen { key, address, cause })
        };
        let (clients, admin) = (listen("listen", config.listen)?, listen("admin", config.admin)?);
        let registry = Arc::new(Registry::new());
        registry.watch_log(dropped_lines);
        let polls = Arc::new(CounterSet::new(POLL_METRICS));
        registry.add(Arc::clone(&polls));
        let seed = getrandom::u64().map_err(io::Error::from)?;
        let shared = Arc::new(Shared {
            clock,
            table: Mutex::new(Table::new(config)),
            config: Mutex::new(config.clone()),
            rates: Mutex::default(),
            random: Mutex::new(Random::new(seed)),
            registry,
            polls,
            is_ending: AtomicBool::new(false),
        });
        let clients = routes::serve_clients(clients, tls, config, &shared)?;
        let admin = routes::serve_admin(admin, &shared)?;
        let polled = Arc::clone(&shared);
        let poller = Some(thread::spawn("poll", move || poll::run(&polled))?);
        Ok(Self { shared, certificates, clients, admin, poller })
    }

    /// Addresses for clients and for operators, with the actual ports.
    pub const fn addresses(&self) -> (&Address, &Address) {
        (self.clients.address(), self.admin.address())
    }

    /// Takes other settings: gateways, times, rates and the certificate. Addresses, names and the number of connections
    /// need a restart. Reports of gateways that stay are kept.
    ///
    /// # Errors
    /// [`DispatchError`]: nothing has changed.
    pub fn reload(&self, new: &DispatchConfig) -> Result<Reloaded, DispatchError> {
        let mut config = lock(&self.shared.config);
        let mut next = new.clone();
        (next.listen, next.admin, next.connections_max) =
            (config.listen, config.admin, config.connections_max);
        next.names.clone_from(&config.names);
        if next.has_tls() != config.has_tls() {
            next.certificate_file.clone_from(&config.certificate_file);
            next.key_file.clone_from(&config.key_file);
        }
        // The only step that can fail is first.
        if let (Some(certificates), Some(set)) = (&self.certificates, read_certificates(&next)?) {
            certificates.put(set);
        }
        let reloaded = Reloaded { taken: changed_keys(&*config, &next), kept: changed_keys(&next, new) };
        let mut table = lock(&self.shared.table);
        *table = table.with(&next);
        *config = next;
        drop((table, config));
        self.poller.iter().for_each(|poller| poller.thread().unpark());
        Ok(reloaded)
    }

    /// Ends the threads: open questions have 2 s.
    pub fn stop(mut self) {
        self.shared.is_ending.store(true, Ordering::Relaxed);
        if let Some(poller) = self.poller.take() {
            poller.thread().unpark();
            if poller.join().is_err() {
                tracing::error!("the thread that asks gateways panicked");
            }
        }
        self.clients.stop();
        self.admin.stop();
    }
}
