//! Reasons to believe that an endpoint is a backend: the secret of this gateway, or the user id at a Unix socket.

use crate::config::{Config, Unproven};
use crate::router::{self, Trust};
use crate::worker::SharedTrust;
use moorline_net::secret_file::{self, SecretFileError};
use moorline_net::unix_socket;
use moorline_proto::link::{Endpoint, Secrets, SecretsError};
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

/// Longest file, in bytes: the list of a backend may serve here, too.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Reason why this gateway would believe anybody, or nobody. Shows no secret.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The file cannot be read or trusted.
    #[error("backend.secrets_file: {0}")]
    File(SecretFileError),
    /// The file is not text.
    #[error("backend.secrets_file: {} is not text", .0.display())]
    NotText(PathBuf),
    /// A line is not valid.
    #[error("backend.secrets_file: {}: {error}", path.display())]
    Line {
        /// Path as it was given.
        path: PathBuf,
        /// Line, and what is wrong with it.
        error: SecretsError,
    },
    /// The file has no line for this gateway.
    #[error(
        "backend.secrets_file: {} has no line for the gateway {node:?}; add a line `{node} SECRET`, or set gateway.id",
        path.display()
    )]
    NoLine {
        /// Path as it was given.
        path: PathBuf,
        /// Name of this gateway.
        node: String,
    },
    /// An endpoint would be believed without any reason.
    #[error(
        "backend.secrets_file: nothing proves that a backend listens at backend.endpoints = \"{0}\"; name a file with a \
         line `node secret`, or use a Unix socket (\"unix:/run/moorline/link.sock\"), or for development run \
         `moorline dev`; for backends of an earlier version see docs/backend.md, section 5"
    )]
    NoReason(Endpoint),
}

/// Reads the secrets of the gateway `node`. Warns if others can read the file.
///
/// # Errors
/// [`TrustError`].
pub(super) fn load(config: &Config, node: &str) -> Result<Trust, TrustError> {
    let backend = &config.backend;
    let unproven = match backend.unproven {
        Unproven::Refuse => router::Unproven::Refuse,
        Unproven::Loopback => router::Unproven::Loopback,
        Unproven::Private => router::Unproven::Private,
    };
    let path = &backend.secrets_file;
    let secrets = if path.as_os_str().is_empty() { Secrets::default() } else { read(path)? };
    let trust = Trust { secrets: secrets.of(node).to_vec(), unproven };
    if !path.as_os_str().is_empty() && trust.secrets.is_empty() {
        return Err(TrustError::NoLine { path: path.clone(), node: node.to_owned() });
    }
    let is_network = |endpoint: &&Endpoint| endpoint.port().is_some();
    let mut endpoints = backend.endpoints.iter().filter(is_network);
    if let Some(endpoint) = endpoints.find(|endpoint| !trust.has_reason(endpoint)) {
        return Err(TrustError::NoReason(endpoint.clone()));
    }
    Ok(trust)
}

/// Reads the secrets likewise, for workers that take other ones after a reload.
///
/// # Errors
/// [`TrustError`].
pub(super) fn shared(config: &Config, node: &str) -> Result<SharedTrust, TrustError> {
    Ok(Arc::new(RwLock::new(load(config, node)?)))
}

/// Checks what `load` reads, for a process that does not begin. A name that is made at the start is not looked up.
///
/// # Errors
/// [`TrustError`].
pub fn check(config: &Config) -> Result<(), TrustError> {
    match load(config, &config.gateway.id) {
        Err(TrustError::NoLine { .. }) if config.gateway.id.is_empty() => Ok(()),
        checked => checked.map(drop),
    }
}

/// Returns the user ids that a backend at a Unix socket may have.
pub(super) fn peer_uids(config: &Config) -> Vec<u32> {
    match &config.backend.peer_uids[..] {
        [] => vec![unix_socket::own_uid()],
        uids => uids.to_vec(),
    }
}

fn read(path: &Path) -> Result<Secrets, TrustError> {
    let file = secret_file::read(path, FILE_BYTES_MAX).map_err(TrustError::File)?;
    if let Some(warning) = &file.warning {
        tracing::warn!("backend.secrets_file: {warning}");
    }
    let text = str::from_utf8(&file.bytes).map_err(|_| TrustError::NotText(path.to_owned()))?;
    Secrets::parse(text).map_err(|error| TrustError::Line { path: path.to_owned(), error })
}
