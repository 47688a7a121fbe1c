//! Errors that end a backend, or keep it from starting.
//!
//! Example: a second backend on the same address ends with [`BackendError::Listen`], whose text names the setting.

use std::io;
use std::path::PathBuf;

/// Reason why a backend cannot start or continue. A broken link is not among these: it is logged and closed.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The listening socket could not be opened.
    #[error("cannot listen on {address}: {cause}; free the address or set another `{key}`")]
    Listen {
        /// Setting with the address.
        key: &'static str,
        /// Configured address.
        address: String,
        /// Error of the system.
        cause: io::Error,
    },
    /// Polling the sockets failed.
    #[error("cannot {operation}: {cause}")]
    Poll {
        /// Operation that failed.
        operation: &'static str,
        /// Error of the system.
        cause: io::Error,
    },
    /// A file could not be read.
    #[error("cannot read {what} {}: {cause}", path.display())]
    ReadConfig {
        /// Kind of the file.
        what: &'static str,
        /// Path of the file.
        path: PathBuf,
        /// Error of the system.
        cause: io::Error,
    },
    /// A file with secrets cannot be read, or others can write it.
    #[error("`{key}`: {cause}")]
    SecretFile {
        /// Setting with the path.
        key: &'static str,
        /// Cause, and the fix.
        cause: moorline_net::secret_file::SecretFileError,
    },
    /// The certificate of the server API is not usable.
    #[error("`api.certificate_file`: {0}")]
    Certificate(#[from] moorline_net::tls::CertificateError),
    /// The system gives no random bytes for TLS.
    #[error("`api.certificate_file`: {0}")]
    Tickets(#[from] moorline_net::tls::TicketKeyError),
    /// A file for the TLS of links is not usable.
    #[error("`link.tls.{}`: {}", .0.key, .0.cause)]
    LinkTls(#[from] moorline_net::tls::MutualError),
    /// The TLS library refuses the settings of links.
    #[error("`link.tls`: {0}")]
    LinkHandshakes(#[from] moorline_net::tls::HandshakeError),
    /// Settings are not valid.
    #[error(transparent)]
    Settings(#[from] moorline_net::settings::SettingsError),
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] crate::im::store::DiskError),
    /// A cell of the cluster is not reachable, or not of this cluster.
    #[error(transparent)]
    Cell(#[from] crate::sql::admin::CellError),
    /// A setting is out of its range.
    #[error("`{key}` in the backend's configuration: {reason}")]
    InvalidConfig {
        /// Setting, with its section.
        key: &'static str,
        /// Cause, and a value that is accepted.
        reason: String,
    },
}
