//! Reasons to believe that an endpoint is a backend: its certificate, the secret of this gateway, or the user id at a Unix
//! socket.

use super::GatewayError;
use super::link_tls::Fresh;
use crate::config::{Config, Unproven};
use crate::router::{self, Trust};
use crate::worker::{Credentials, LinkTls, SharedCredentials};
use moorline_net::clock::Clock;
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
        "backend.secrets_file: nothing proves that a backend listens at backend.endpoints = \"{0}\"; set backend.tls, or \
         name a file with a line `node secret`, or use a Unix socket (\"unix:/run/moorline/link.sock\"), or for development run \
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
    let has_tls = backend.tls.files.set().is_some();
    let is_network = |endpoint: &&Endpoint| endpoint.port().is_some() && !has_tls;
    let mut endpoints = backend.endpoints.iter().filter(is_network);
    if let Some(endpoint) = endpoints.find(|endpoint| !trust.has_reason(endpoint)) {
        return Err(TrustError::NoReason(endpoint.clone()));
    }
    Ok(trust)
}

/// Reads secrets and certificates, for links that are made from now on. `earlier`: the TLS in force, whose threads go on.
///
/// # Errors
/// [`GatewayError`]: a file is not usable, or the system refuses a thread.
pub(super) fn credentials(
    config: &Config,
    node: &str,
    clock: &Clock,
    earlier: Option<&Credentials>,
) -> Result<Credentials, GatewayError> {
    let trust = load(config, node)?;
    let fresh = Fresh::read(config, node, unix_now_s(clock))?;
    let running: Option<LinkTls> = earlier.and_then(|earlier| earlier.tls.clone());
    let tls = fresh.map(|fresh| fresh.start(config, running)).transpose()?;
    let had_tls = tls.is_some() || earlier.is_some_and(|earlier| earlier.had_tls);
    Ok(Credentials { trust, tls, had_tls })
}

/// Reads them likewise, for workers that take other ones after a reload.
///
/// # Errors
/// Those of [`credentials`].
pub(super) fn shared(config: &Config, node: &str, clock: &Clock) -> Result<SharedCredentials, GatewayError> {
    Ok(Arc::new(RwLock::new(credentials(config, node, clock, None)?)))
}

fn unix_now_s(clock: &Clock) -> u64 {
    clock.unix_nanos() / 1_000_000_000
}

/// Checks what `load` reads, for a process that does not begin. A name that is made at the start is not looked up.
///
/// # Errors
/// [`GatewayError`]: a file is not usable.
pub(super) fn check(config: &Config) -> Result<(), GatewayError> {
    match load(config, &config.gateway.id) {
        Err(TrustError::NoLine { .. }) if config.gateway.id.is_empty() => {}
        checked => drop(checked?),
    }
    Fresh::read(config, &config.gateway.id, unix_now_s(&Clock::default()))?;
    Ok(())
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
