//! The whole gateway: assembly of its threads, signals, graceful shutdown, hot restart.
//!
//! ```text
//!  clients ═══► reactor 0..R ──UplinkBatch──► worker 0..W ═══► backend links
//!          ◄═══ (own shard) ◄─DownlinkBatch── (own links) ◄═══
//!                  │ ▲ Move: a login goes to the shard that owns its user
//!                  └─┘
//! ```

mod admin_sockets;
mod adopt;
mod assembly;
mod backends;
mod freezing;
mod handover;
mod launch;
mod link_tls;
mod listening;
mod notifier;
mod places;
mod reload;
mod retired_sockets;
mod signals;
mod stop;
mod threads;
mod tls;
mod trust;

pub use reload::{Reread, SetLogLevel, Sources};

use crate::config::{ByteSize, Config, SettingsError};
use crate::metrics::{CounterSet, Metric};
use crate::snapshot::SnapshotError;
use crate::sys::room;
use moorline_net::audit::AuditLog;
use moorline_net::log::LogWriter;
use std::ffi::CString;
use std::io;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// Reason why the gateway did not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// An address could not be bound.
    #[error("cannot listen on {key} = \"{address}\": {source}{}", hint_of(source))]
    Bind {
        /// Configuration key.
        key: String,
        /// Value of the key.
        address: SocketAddr,
        /// Error of the system.
        source: io::Error,
    },
    /// The open-files limit leaves no descriptor for a client.
    #[error(
        "cannot serve: the open-files limit is {limit}, and {reserved} descriptors are for everything but clients; raise \
         the hard limit (ulimit -Hn, LimitNOFILE= of systemd, --ulimit of a container)"
    )]
    OpenFiles {
        /// Hard limit of open files.
        limit: u64,
        /// Descriptors that clients do not get.
        reserved: u64,
    },
    /// A file or socket that the settings name cannot be used.
    #[error("cannot use {key} = \"{}\": {problem}", path.display())]
    Place {
        /// Configuration key.
        key: &'static str,
        /// Value of the key.
        path: PathBuf,
        /// Cause, for people.
        problem: String,
    },
    /// The admin socket could not be bound.
    #[error("cannot listen on admin.socket = \"{}\": {problem}", path.display())]
    AdminSocket {
        /// Value of the key.
        path: PathBuf,
        /// Cause, for people.
        problem: String,
    },
    /// The system has no such group.
    #[error("admin.group = \"{0}\": the system has no group of this name")]
    AdminGroup(String),
    /// The system refused a resource.
    #[error("cannot {operation}: {source}")]
    System {
        /// Operation that failed.
        operation: &'static str,
        /// Error of the system.
        source: io::Error,
    },
    /// The verifier of tokens could not be made.
    #[error(transparent)]
    Auth(#[from] crate::auth::AuthError),
    /// The reasons to believe backends cannot be read, or there is none.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The certificates or the keys of tickets are not usable.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The TLS of links is not usable.
    #[error(transparent)]
    LinkTls(#[from] LinkTlsError),
    /// A configuration problem that only shows at run time.
    #[error(transparent)]
    Config(#[from] SettingsError),
    /// The state of another process cannot be taken over.
    #[error("cannot take over: {0}")]
    Takeover(String),
    /// The snapshot of another process cannot be read.
    #[error("cannot take over: {0}")]
    Snapshot(#[from] SnapshotError),
    /// A hot restart failed after the commit, and cannot be rolled back; the clients reconnect and resume.
    #[error("hot restart: {0}")]
    Torn(String),
    /// A thread ended by itself.
    #[error("thread {0} ended unexpectedly; see the log")]
    Thread(String),
}

/// Fix of an address that cannot be bound.
fn hint_of(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::AddrInUse => "; is another process using it?",
        io::ErrorKind::AddrNotAvailable => "; no interface of this machine has this address",
        io::ErrorKind::PermissionDenied => "; ports below 1024 need root or CAP_NET_BIND_SERVICE",
        _ => "",
    }
}

impl GatewayError {
    fn system(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { operation, source }
    }
}

pub use link_tls::LinkTlsError;
pub use places::check_files;
pub use tls::TlsError;
pub use trust::TrustError;

/// Gives a process that a hot restart started the name of its program back: it was run by a descriptor, and the system
/// named it by that number.
pub fn restore_process_name() {
    if std::env::var_os(handover::VARIABLE).is_none() {
        return;
    }
    let program = std::env::args_os().next().map(PathBuf::from);
    let name = program.as_deref().and_then(Path::file_name).map(|name| CString::new(name.as_bytes()));
    if let Some(Ok(name)) = name {
        nix::sys::prctl::set_name(&name).ok(); // only its name in lists of processes
    }
}

/// Runs the guard of a hot restart, if this process was started as one; `None`: it was not.
pub fn guard_if_asked() -> Option<ExitCode> {
    handover::run_if_asked()
}

/// Returns true if this process was started only to answer the check before a hot restart.
pub fn is_only_asked() -> bool {
    std::env::var(handover::VARIABLE).is_ok_and(|value| value == handover::CHECK)
}

/// Runs a gateway until a signal ends it: TERM drains first, INT stops at once, USR2 starts a hot restart, HUP reads
/// settings and keys again.
///
/// Prints one line to standard output when it is ready:
/// `moorline ready listener=ADDRESS admin=ADDRESS socket=PATH pid=PID`; several listeners are separated by commas.
///
/// # Errors
/// [`GatewayError`].
pub fn run(config: Config, log: &LogWriter, sources: Sources) -> Result<(), GatewayError> {
    if is_only_asked() {
        places::check(&config)?;
        return say(&handover::check_line());
    }
    let config = fit_to_memory(config);
    let mut fds = handover::HandoverFds::read()?;
    let signals = signals::Signals::listen()?;
    config.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
    let previous = fds.as_mut().and_then(|fds| fds.previous.take());
    let settings = handover::RunSettings::of_this_process(&config, previous);
    let opened = audit_log(&config).and_then(|audit| Ok((audit, reload::ReadThread::start()?)));
    let (audit, reader) = match opened {
        Ok(made) => made,
        Err(error) => {
            if let Some(fds) = fds {
                fds.refuse(&error);
            }
            return Err(error);
        }
    };
    // Behind this point nothing may fail: this process serves.
    let gateway = if let Some(fds) = fds {
        signals.hear();
        handover::take_over(fds, &config)?
    } else {
        let parked = assembly::Prepared::fresh(&config)?.park(&config)?;
        signals.hear();
        parked.resume();
        parked.tell(false, launch::End::default())
    };
    gateway.metrics.watch_log(log.dropped());
    gateway.status.audit.set(audit.clone()).ok();
    gateway.status.end_by(signals::end_this_process);
    let lines = Arc::new(CounterSet::new(AUDIT_METRICS));
    gateway.metrics.carry(AUDIT_METRICS);
    gateway.metrics.add(Arc::clone(&lines));
    let reloading = reload::Reloading::new(config, sources, reader);
    let audit = stop::Audit { log: audit, lines };
    let supervisor = stop::Supervisor { gateway, reloading, settings, log: log.clone(), audit };
    supervisor.serve(&signals)
}

/// Lowers the memory watermark to a quarter of what the machine or the control group allows.
///
/// Queued bytes may reach twice the watermark, and a hot restart needs them twice.
fn fit_to_memory(mut config: Config) -> Config {
    let Some(room) = room::limit_of_memory() else { return config };
    let (wanted, most) = (config.limits.memory_watermark.as_u64(), room.limit / 4);
    if wanted > most {
        let (limit, by) = (room.limit, room.by);
        tracing::warn!(
            wanted,
            most,
            limit,
            by,
            "limits.memory_watermark lowered to a quarter of the memory that this process may use"
        );
        config.limits.memory_watermark = ByteSize::new(most);
    }
    config
}

/// Opens the audit log; a process that takes over appends to the file of the one before.
fn audit_log(config: &Config) -> Result<AuditLog, GatewayError> {
    let file = &config.audit.file;
    if file.as_os_str().is_empty() {
        return Ok(AuditLog::default());
    }
    let opened = AuditLog::start(file, config.audit.size_max.as_u64());
    opened.map_err(GatewayError::system("open the file of audit.file, or start its thread"))
}

const AUDIT_METRICS: &[Metric] =
    &[Metric::counter("audit_lines_dropped", "Lines of the audit log that were dropped.")];

/// Writes a line to standard output.
fn say(line: &str) -> Result<(), GatewayError> {
    use std::io::Write as _;
    writeln!(io::stdout(), "{line}").map_err(GatewayError::system("write to standard output"))
}
