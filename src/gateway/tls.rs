//! TLS of the listeners: certificates, ticket keys, and the threads for handshakes.
//!
//! Run-through: the operator's ACME client has replaced `chain.pem` and `key.pem`, and calls `moorline reload`. Both are
//! read and compared; then the next handshake gets the new certificate. A key that does not belong to the certificate
//! changes nothing. Connections stay in either case.

use super::GatewayError;
use super::listening;
use crate::config::{Config, TlsConfig};
use crate::metrics::{CounterSet, Metric, Registry};
use crate::reactor::{OpeningRules, Servers};
use moorline_net::clock::Clock;
use moorline_net::hidden_memory::hide_memory;
use moorline_net::layer::HandshakePool;
use moorline_net::proxy::{NetworkError, Trusted};
use moorline_net::tls::{
    CertificateError, CertificateFiles, CertificateSet, Certificates, Protocols, Server, TicketKeyError,
    TicketKeySet, TicketKeys,
};
use moorline_net::upgrade::{OriginError, Origins};
use std::sync::Arc;

/// Protocol inside of TLS that native clients must offer (ALPN) [P-14.2].
const NATIVE: &str = "moorline/1";
/// Protocol of browsers before the upgrade.
const WEB: &str = "http/1.1";
const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// Reason why a listener's rules or its TLS are not usable. Shows no key.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate, or its key.
    #[error("tls.certificates: {0}")]
    Certificates(#[from] CertificateError),
    /// The keys of tickets.
    #[error(transparent)]
    Tickets(#[from] TicketKeyError),
    /// A network of proxies.
    #[error("listener.proxy_trusted: {0}")]
    Proxies(#[from] NetworkError),
    /// The list of pages.
    #[error("websocket.origins: {0}")]
    Origins(#[from] OriginError),
}

/// Certificates and ticket keys in force.
#[derive(Debug)]
pub(super) struct Identity {
    certificates: Arc<Certificates>,
    tickets: Arc<TicketKeys>,
    /// Ends of the certificates, for the metrics page.
    ends: Arc<CounterSet>,
}

/// Certificates and ticket keys that were read and checked.
pub(super) struct Fresh {
    certificates: CertificateSet,
    /// `None`: the keys in force stay.
    tickets: Option<TicketKeySet>,
}

impl Fresh {
    /// Reads the files of the settings; `None`: no listener has TLS.
    ///
    /// # Errors
    /// [`TlsError`].
    pub(super) fn read(config: &Config, unix_now_s: u64) -> Result<Option<Self>, TlsError> {
        if !config.listeners.iter().any(|listener| listener.kind.has_tls()) {
            return Ok(None);
        }
        let TlsConfig { certificates, keys, default, ticket_keys_file, .. } = &config.tls;
        let files: Vec<_> = certificates
            .iter()
            .zip(keys)
            .map(|(chain, key)| CertificateFiles {
                chain: chain.clone(),
                key: key.clone(),
                is_default: chain == default,
            })
            .collect();
        let certificates = CertificateSet::read(&files, unix_now_s)?;
        certificates.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
        let tickets = if ticket_keys_file.as_os_str().is_empty() {
            None
        } else {
            let (keys, warning) = TicketKeySet::read(ticket_keys_file)?;
            warning.iter().for_each(|warning| tracing::warn!("{warning}"));
            Some(keys)
        };
        Ok(Some(Self { certificates, tickets }))
    }
}

/// Checks the files of the settings.
///
/// # Errors
/// [`TlsError`].
pub(super) fn check(config: &Config) -> Result<(), TlsError> {
    Fresh::read(config, unix_now_s(&Clock::default())).map(drop)
}

impl Identity {
    /// Reads the files of the settings; `None`: no listener has TLS. `inherited`: the ticket keys of the process before, or
    /// nothing.
    ///
    /// # Errors
    /// [`TlsError`].
    pub(super) fn load(
        config: &Config,
        clock: &Clock,
        inherited: &[u8],
        metrics: &Registry,
    ) -> Result<Option<Self>, TlsError> {
        let now = unix_now_s(clock);
        let Some(Fresh { certificates, tickets }) = Fresh::read(config, now)? else { return Ok(None) };
        hide_memory();
        let tickets = match tickets {
            Some(tickets) => tickets,
            None if inherited.is_empty() => TicketKeySet::random(now)?,
            None => TicketKeySet::from_bytes(inherited)?,
        };
        let ends = Arc::new(CounterSet::new(vec![Metric::gauge(
            "tls_certificate_end_seconds",
            "Unix time at which the first of the TLS certificates ends.",
        )]));
        metrics.add(Arc::clone(&ends));
        let identity = Self {
            certificates: Arc::new(Certificates::new(certificates)),
            tickets: Arc::new(TicketKeys::new(tickets, clock.clone())),
            ends,
        };
        identity.publish();
        Ok(Some(identity))
    }

    /// Puts other files in force, for the handshakes that begin from now on.
    pub(super) fn put(&self, fresh: Fresh) {
        let Fresh { certificates, tickets } = fresh;
        self.certificates.put(certificates);
        tickets.into_iter().for_each(|keys| self.tickets.put(keys));
        self.publish();
    }

    /// The ticket keys, for the process that takes over.
    pub(super) fn ticket_keys(&self) -> Vec<u8> {
        self.tickets.set().to_bytes().to_vec()
    }

    fn publish(&self) {
        let set = self.certificates.set();
        let first = set.about().iter().map(|about| about.not_after).min();
        self.ends.set(0, first.unwrap_or_default());
    }

    fn server(&self, protocols: Protocols) -> Server {
        Server::new(self.certificates.clone(), self.tickets.clone(), protocols, None)
    }
}

/// Returns what connections exchange before their first frame, and starts the threads for handshakes.
pub(super) fn opening_rules(
    config: &Config,
    identity: Option<&Identity>,
) -> Result<OpeningRules, GatewayError> {
    let listeners = &config.listeners;
    let proxies = listeners.iter().map(|listener| Trusted::parse(&listener.proxy_trusted));
    let start = |identity: &Identity| {
        let (threads, queue) = (config.handshake_threads(), config.tls.handshake_queue);
        Ok(Servers {
            native: Arc::new(identity.server(Protocols::required(NATIVE))),
            web: Arc::new(identity.server(Protocols::optional(WEB))),
            pool: HandshakePool::start("handshake", threads, queue)?,
        })
    };
    Ok(OpeningRules {
        kinds: (0..listeners.len()).map(|index| listening::kind_of(config, index)).collect(),
        proxies: proxies.collect::<Result<_, _>>().map_err(TlsError::from)?,
        origins: Arc::new(Origins::parse(&config.websocket.origins).map_err(TlsError::from)?),
        servers: identity
            .map(start)
            .transpose()
            .map_err(GatewayError::system("start a thread for TLS handshakes"))?,
    })
}

fn unix_now_s(clock: &Clock) -> u64 {
    clock.unix_nanos() / NANOS_PER_SECOND
}
