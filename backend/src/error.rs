//! Why a backend cannot start or go on.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Why a backend cannot start or go on. A broken link is not among these: it is logged and closed.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The listening socket could not be opened.
    #[error("cannot listen on {address}: {cause}; free the address or set another `{key}`")]
    Listen {
        /// The setting.
        key: &'static str,
        /// The configured address.
        address: SocketAddr,
        /// The system's word.
        cause: io::Error,
    },
    /// Polling the sockets failed.
    #[error("cannot {operation}: {cause}")]
    Poll {
        /// What was tried.
        operation: &'static str,
        /// The system's word.
        cause: io::Error,
    },
    /// A file could not be read.
    #[error("cannot read {what} {}: {cause}", path.display())]
    ReadConfig {
        /// Which.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's word.
        cause: io::Error,
    },
    /// The configuration is no TOML or has an unknown key or a value of the wrong kind.
    #[error("in the backend's configuration: {0}")]
    ParseConfig(#[from] toml::de::Error),
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] crate::im::store::DiskError),
    /// A setting is out of its range.
    #[error("`{key}` in the backend's configuration: {reason}")]
    InvalidConfig {
        /// The setting, with its section.
        key: &'static str,
        /// What is wrong and what would do.
        reason: String,
    },
}
