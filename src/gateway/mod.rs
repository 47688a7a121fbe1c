//! The whole gateway: assembly of its threads, signals, the orderly end.
//!
//! ```text
//!  clients ═══► reactor 0..R ──UplinkBatch──► worker 0..W ═══► backend links
//!          ◄═══ (own shard) ◄─DownlinkBatch── (own links) ◄═══
//!                  │ ▲ Move: a login goes to its user's home shard
//!                  └─┘
//! ```

mod assembly;
mod embedded;
mod stop;

use crate::config::{Config, ConfigError};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Why the gateway did not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// An address could not be bound.
    #[error("cannot listen on {key} = \"{address}\": {source}; is another process using it?")]
    Bind {
        /// Configuration key.
        key: &'static str,
        /// Its value.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The system refused what the gateway is made of.
    #[error("cannot {operation}: {source}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The verifier of tokens could not be made.
    #[error(transparent)]
    Auth(#[from] crate::auth::AuthError),
    /// The embedded backend did not come up.
    #[error("the embedded backend {binary} did not start: {problem}")]
    Backend {
        /// What was started.
        binary: PathBuf,
        /// What went wrong.
        problem: String,
    },
    /// A configuration problem that only shows at run time.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A thread ended by itself.
    #[error("thread {0} ended unexpectedly; see the log")]
    Thread(String),
}

impl GatewayError {
    fn system(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { operation, source }
    }
}

/// Runs a gateway until a signal ends it: TERM drains first, INT stops at once.
///
/// Prints one line to standard output when it is ready:
/// `moorline ready listener=ADDRESS admin=ADDRESS pid=PID`.
///
/// # Errors
/// [`GatewayError`].
pub fn run(mut config: Config) -> Result<(), GatewayError> {
    let signals = stop::Signals::listen()?;
    config.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
    let embedded = if config.backend.embedded { Some(embedded::Backend::start(&mut config)?) } else { None };
    let gateway = assembly::Gateway::start(&config)?;
    gateway.announce_ready();
    let outcome = stop::serve(&gateway, &signals, config.drain.grace);
    gateway.join();
    drop(embedded);
    outcome
}
