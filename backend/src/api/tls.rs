//! TLS of the server API: one certificate, which is read again by a reload.

use crate::config::ApiConfig;
use crate::error::BackendError;
use moorline_net::clock::Clock;
use moorline_net::tls::{
    CertificateFiles, CertificateSet, Certificates, Protocols, Server, TicketKeySet, TicketKeys,
};
use std::sync::Arc;

/// Protocol inside of TLS (ALPN), which a client may leave out.
const PROTOCOL: &str = "http/1.1";
const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// The certificate in force, and the keys of session tickets.
#[derive(Clone, Debug)]
pub(crate) struct ApiTls {
    certificates: Arc<Certificates>,
    tickets: Arc<TicketKeys>,
}

impl ApiTls {
    /// Reads the files of the settings; `None`: they name none.
    ///
    /// # Errors
    /// [`BackendError`]: a file is not usable.
    pub(crate) fn read(config: &ApiConfig) -> Result<Option<Self>, BackendError> {
        if config.certificate_file.as_os_str().is_empty() {
            return Ok(None);
        }
        let certificates = Arc::new(Certificates::new(certificates(config)?));
        let clock = Clock::default();
        let keys = TicketKeySet::random(unix_now_s(&clock))?;
        Ok(Some(Self { certificates, tickets: Arc::new(TicketKeys::new(keys, clock)) }))
    }

    /// Puts another certificate in force, for the connections that begin from now on.
    pub(crate) fn put(&self, certificates: CertificateSet) {
        self.certificates.put(certificates);
    }

    pub(super) fn server(&self) -> Server {
        let protocols = Protocols::optional(PROTOCOL);
        Server::new(self.certificates.clone(), self.tickets.clone(), protocols, None)
    }
}

/// Reads the certificate that the settings name.
///
/// # Errors
/// [`BackendError`]: a file is not usable.
pub(crate) fn certificates(config: &ApiConfig) -> Result<CertificateSet, BackendError> {
    let (chain, key) = (config.certificate_file.clone(), config.key_file.clone());
    // There is one certificate, and callers may come by an address.
    let files = [CertificateFiles { chain, key, is_default: true }];
    let set = CertificateSet::read(&files, unix_now_s(&Clock::default()))?;
    set.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
    Ok(set)
}

fn unix_now_s(clock: &Clock) -> u64 {
    clock.unix_nanos() / NANOS_PER_SECOND
}
