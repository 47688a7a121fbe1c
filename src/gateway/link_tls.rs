//! TLS of the links to backends: the files of `backend.tls`, and the threads for handshakes.
//!
//! Run-through: the operator has renewed the certificate of the gateway `g1`, and calls `moorline reload`. The files are read
//! and compared, also with the name `g1`; then the next link that is made shows the new certificate. Links stay.

use super::GatewayError;
use crate::config::Config;
use crate::worker::LinkTls;
use moorline_net::hidden_memory::hide_memory;
use moorline_net::layer::HandshakePool;
use moorline_net::tls::{HandshakeError, Mutual, MutualError};
use std::path::PathBuf;
use std::sync::Arc;

/// Protocol inside of TLS (ALPN) [B-5.9].
const PROTOCOL: &str = "moorline-link/1";
/// Threads for the handshakes of links. Links are few, and last.
const THREADS: usize = 1;
/// Handshakes that wait for a thread; a further link is tried again later.
const QUEUE: usize = 1024;

/// Reason why the TLS of links is not usable. Shows no key.
#[derive(Debug, thiserror::Error)]
pub enum LinkTlsError {
    /// A file.
    #[error("backend.tls.{0}")]
    Files(#[from] MutualError),
    /// The certificate is for another node.
    #[error(
        "backend.tls.certificate_file: {} is not for the gateway {node:?}, but for {}; issue a certificate with the DNS \
         name (subjectAltName) {node}, or set gateway.id to its name",
        path.display(),
        names_of(names)
    )]
    Name {
        /// Path as it was given.
        path: PathBuf,
        /// Name of this gateway.
        node: String,
        /// Names in the certificate.
        names: Vec<String>,
    },
    /// The library refuses its configuration.
    #[error("backend.tls: {0}")]
    Library(#[from] HandshakeError),
}

fn names_of(names: &[String]) -> String {
    if names.is_empty() { "no name".to_owned() } else { names.join(", ") }
}

/// Certificates of both sides that were read and checked.
pub(super) struct Fresh(Mutual);

impl Fresh {
    /// Reads the files of the settings for the gateway `node`; `None`: links are not encrypted.
    ///
    /// # Errors
    /// [`LinkTlsError`].
    pub(super) fn read(config: &Config, node: &str, unix_now_s: u64) -> Result<Option<Self>, LinkTlsError> {
        let Some(files) = config.backend.tls.files.set() else { return Ok(None) };
        let mutual = Mutual::read(files, unix_now_s)?;
        if !mutual.is_for(node) {
            let names = mutual.names().to_vec();
            return Err(LinkTlsError::Name { path: files.certificate.clone(), node: node.to_owned(), names });
        }
        mutual.warnings().iter().for_each(|warning| tracing::warn!("backend.tls: {warning}"));
        Ok(Some(Self(mutual)))
    }

    /// Makes what workers need. `earlier`: the TLS in force, whose threads go on.
    ///
    /// # Errors
    /// [`GatewayError`]: the system refuses a thread.
    pub(super) fn start(self, config: &Config, earlier: Option<LinkTls>) -> Result<LinkTls, GatewayError> {
        let client = Arc::new(self.0.client(PROTOCOL).map_err(LinkTlsError::from)?);
        hide_memory();
        let pool = match earlier {
            Some(tls) => tls.pool,
            None => HandshakePool::start("link-handshake", THREADS, QUEUE)
                .map_err(GatewayError::system("start a thread for TLS handshakes"))?,
        };
        Ok(LinkTls { client, server_name: config.backend.tls.server_name.clone(), pool })
    }
}
