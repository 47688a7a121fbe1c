//! Validated settings of the gateway: what `moorline.toml`, `MOORLINE__*` and `--set` say together.
//!
//! Owns the table of all keys ([`SCHEMA`]: default, form, help) and the rules between values; the loader is
//! [`moorline_net::settings`]. Driven once at start by the command line; everybody else reads the finished [`Config`].
//! Opens no socket and reads no secret: secrets are files that their owner reads.

mod keys;
pub mod log_level;
mod reload;
#[cfg(test)]
mod tests;
mod validate;

pub use keys::{EMBEDDED_ADVICE, ENV_PREFIX, SCHEMA};
pub use moorline_net::settings::units::{ByteSize, UnitError, format_duration, parse_duration};
pub use moorline_net::settings::{Loaded, SettingsError};
pub use validate::is_host_port;

use moorline_net::settings::units;
use moorline_net::tls::MutualFiles;
use moorline_proto::link::Endpoint;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

/// All settings. Their meaning, defaults and limits: `docs/configuration.md`, made from [`SCHEMA`].
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Process id of this process.
    pub gateway: GatewayConfig,
    /// Listeners for clients: at least one, in order.
    #[serde(rename = "listener")]
    pub listeners: Vec<ListenerConfig>,
    /// Certificates and handshakes.
    pub tls: TlsConfig,
    /// Rules for browsers.
    pub websocket: WebSocketConfig,
    /// The threads that own client sockets.
    pub reactor: ReactorConfig,
    /// The threads that own backend links.
    pub worker: WorkerConfig,
    /// Authentication of logins.
    pub auth: AuthConfig,
    /// Time for which sessions outlive their connections.
    pub session: SessionConfig,
    /// Interval that a client may promise.
    pub heartbeat: HeartbeatConfig,
    /// End of the process.
    pub drain: DrainConfig,
    /// Hot restarts.
    pub handover: HandoverConfig,
    /// Limits of the process and of one connection.
    pub limits: LimitsConfig,
    /// Backends that answer.
    pub backend: BackendConfig,
    /// Conditions for shedding load.
    pub overload: OverloadConfig,
    /// Health, metrics, status.
    pub admin: AdminConfig,
    /// Log level and format.
    pub log: LogConfig,
    /// The audit log.
    pub audit: AuditConfig,
}

/// `[gateway]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct GatewayConfig {
    /// Name toward backends; empty: host name and process id ([`Config::gateway_id`]).
    pub id: String,
    /// Other gateways, `host:port`, for clients.
    pub alternates: Vec<String>,
}

/// `[listener]`, or one of several `[[listener]]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ListenerConfig {
    /// Address to bind. Port 0: any free port.
    pub address: SocketAddr,
    /// Connections that the system holds before they are accepted.
    pub backlog: u32,
    /// Order in which SENDs may come.
    pub uplink: Uplink,
    /// Connections accepted per second at this listener; 0: no limit.
    pub accept_rate: u32,
    /// Connections of the whole process that are not logged in, above which newcomers wait.
    pub handshakes_max: usize,
    /// Those of one address, while more than half of the places are taken; 0: no limit.
    pub address_handshakes: usize,
    /// Connections of one address to the whole process, above which a newcomer is refused; 0: no limit.
    pub address_connections: usize,
    /// Connections per second of one address, above which a newcomer is refused; 0: no limit.
    pub address_rate: u32,
    /// Protocol that clients speak.
    pub kind: ListenerKind,
    /// Name; empty: the number, from 1 ([`Config::listener_name`]).
    pub name: String,
    /// Permission to be off loopback without encryption.
    pub plain: Plain,
    /// Networks whose connections begin with a PROXY header; empty: no connection does.
    pub proxy_trusted: Vec<String>,
}

/// Protocol that clients speak at a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ListenerKind {
    /// Frames over plain TCP.
    Tcp,
    /// Frames over TLS.
    Tls,
    /// Frames in the binary messages of a WebSocket.
    Ws,
    /// Frames in the binary messages of a WebSocket over TLS.
    Wss,
}

impl ListenerKind {
    /// Returns whether the connection is encrypted.
    pub const fn has_tls(self) -> bool {
        matches!(self, Self::Tls | Self::Wss)
    }

    /// Returns whether the frames come in WebSocket messages.
    pub const fn has_websocket(self) -> bool {
        matches!(self, Self::Ws | Self::Wss)
    }
}

/// Permission of a listener to be off loopback without encryption.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Plain {
    /// Only on loopback, or behind a proxy that names the clients.
    Refused,
    /// Everywhere: somebody else encrypts, or nobody does.
    Accepted,
}

/// `[tls]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// Files with a certificate and its issuers (PEM).
    pub certificates: Vec<PathBuf>,
    /// Files with the private key of each certificate (PEM).
    pub keys: Vec<PathBuf>,
    /// The certificate for a client that names no server, or one that no certificate has; empty: it is refused.
    pub default: PathBuf,
    /// File with the keys that seal session tickets; empty: a key of the process and its successors.
    pub ticket_keys_file: PathBuf,
    /// Threads for handshakes; 0: half the cores ([`Config::handshake_threads`]).
    pub handshake_threads: usize,
    /// Handshakes that wait for a thread.
    pub handshake_queue: usize,
}

/// `[websocket]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct WebSocketConfig {
    /// Origins of the pages that may connect.
    pub origins: Vec<String>,
}

/// Order in which SENDs may come [P-5.4].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Uplink {
    /// 64 under way, in any order.
    Window,
    /// One after the other.
    Strict,
}

/// `[session]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SessionConfig {
    /// Time that a detached session waits for its client; 0: it ends at once.
    #[serde(with = "units::duration")]
    pub keep: Duration,
    /// Sessions that wait so, in the whole process.
    pub kept_max: usize,
    /// Lifetime of a ticket after the login.
    #[serde(with = "units::duration")]
    pub ticket_ttl: Duration,
    /// Phones and tablets of one user; 0: no limit of their own.
    pub mobile_max: usize,
    /// Desktops of one user.
    pub desktop_max: usize,
    /// Browsers of one user.
    pub web_max: usize,
}

/// `[overload]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct OverloadConfig {
    /// A slower average answer of the backend counts as overload.
    #[serde(with = "units::duration")]
    pub latency: Duration,
    /// More frames that wait for a link count as overload.
    pub queue_frames: usize,
    /// Calm time before the next milder level.
    #[serde(with = "units::duration")]
    pub hold: Duration,
}

/// `[reactor]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ReactorConfig {
    /// Threads; 0: the cores that the workers leave ([`Config::reactors`]).
    pub count: usize,
    /// Bytes one connection may be read for in one turn.
    pub read_budget: ByteSize,
    /// Connections taken in one turn.
    pub accept_budget: usize,
}

/// `[worker]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerConfig {
    /// Threads; 0: half the cores ([`Config::workers`]).
    pub count: usize,
    /// Batches that may wait in one mailbox.
    pub queue_batches: usize,
}

/// `[auth]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AuthConfig {
    /// True if tokens are verified.
    pub mode: AuthMode,
    /// The one signature algorithm accepted.
    pub algorithm: Algorithm,
    /// The verification key; required in mode `jwt`.
    pub key_file: PathBuf,
    /// The `aud` a token must have; empty: not looked at.
    pub audience: String,
    /// Largest difference between clocks.
    #[serde(with = "units::duration")]
    pub leeway: Duration,
    /// Longest lifetime of a token; 0: no limit.
    #[serde(with = "units::duration")]
    pub ttl_max: Duration,
    /// Time that a session may outlive its token; 0: no limit.
    #[serde(with = "units::duration")]
    pub session_max: Duration,
}

/// True if tokens are verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AuthMode {
    /// By signature, expiry and subject.
    Jwt,
    /// Not at all: every well-formed HELLO is let in. Loopback listeners only.
    Dev,
    /// By the backend.
    Backend,
}

/// A token's signature algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum Algorithm {
    /// HMAC with SHA-256; `key_file` holds the shared secret.
    HS256,
    /// Ed25519; `key_file` holds the public key as PEM.
    EdDSA,
}

/// `[heartbeat]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct HeartbeatConfig {
    /// Shortest interval a client may promise.
    #[serde(with = "units::duration")]
    pub min: Duration,
    /// Longest interval.
    #[serde(with = "units::duration")]
    pub max: Duration,
}

/// `[drain]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DrainConfig {
    /// From TERM until what is still connected is closed.
    #[serde(with = "units::duration")]
    pub grace: Duration,
}

/// `[handover]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct HandoverConfig {
    /// From the order up to the commit.
    #[serde(with = "units::duration")]
    pub timeout: Duration,
    /// Time in which all threads must have paused.
    #[serde(with = "units::duration")]
    pub quiesce_timeout: Duration,
    /// Longest time for which all threads stand still.
    #[serde(with = "units::duration")]
    pub pause_max: Duration,
    /// Names the process that serves; empty: none.
    pub pid_file: String,
}

/// `[limits]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LimitsConfig {
    /// Client connections of the process; 0: from the file descriptor limit.
    pub connections_max: usize,
    /// A client frame's body.
    pub body_max: ByteSize,
    /// The body of HELLO.
    pub hello_max: ByteSize,
    /// From accept to a complete HELLO.
    #[serde(with = "units::duration")]
    pub handshake_timeout: Duration,
    /// From the first byte of a frame to the last.
    #[serde(with = "units::duration")]
    pub frame_timeout: Duration,
    /// Reliable frames sent to one connection and not acknowledged.
    pub downlink_frames: usize,
    /// Bytes of the frames.
    pub downlink_bytes: ByteSize,
    /// Bytes queued for one connection; over it the connection is closed as slow.
    pub queue_bytes: ByteSize,
    /// Frames queued for one connection.
    pub queue_frames: usize,
    /// Bytes queued for one connection; over it pushes that may wait become NOTIFYs.
    pub collapse_bytes: ByteSize,
    /// Longest wait of a push for company; 0: pushes do not wait.
    #[serde(with = "units::duration")]
    pub batch_age: Duration,
    /// Pushes that end such a wait.
    pub batch_frames: usize,
    /// Reaction to an overdue ack.
    pub retransmit: Retransmit,
    /// Frames per second of one connection; 0: no limit.
    pub frame_rate: usize,
    /// Uplink frames per second of one user; 0: no limit.
    pub user_rate: usize,
    /// Bytes queued for all clients above which limits shrink.
    pub memory_watermark: ByteSize,
    /// Shortest body that is compressed; 0: none.
    pub compress_min: ByteSize,
}

/// Reaction to an overdue ack [P-6.5].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Retransmit {
    /// Ask, send again only what TCP has delivered, close.
    Probe,
    /// Send again a bounded number of times, close.
    Classic,
}

/// `[backend]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BackendConfig {
    /// Places of backends.
    #[serde(with = "units::texts")]
    pub endpoints: Vec<Endpoint>,
    /// A line `node secret` for this gateway; empty: it has no secret.
    pub secrets_file: PathBuf,
    /// Backends that are believed without a proof, over TCP.
    pub unproven: Unproven,
    /// User ids that a backend at a Unix socket may have; empty: the one of this process.
    pub peer_uids: Vec<u32>,
    /// Links of every worker to every endpoint.
    pub links_per_worker: usize,
    /// From UP to its answer; after it the client is told to retry.
    #[serde(with = "units::duration")]
    pub up_timeout: Duration,
    /// Frames of one worker that may wait for a link.
    pub parked_frames: usize,
    /// Bytes of the frames.
    pub parked_bytes: ByteSize,
    /// Bytes of the frames of one link that the backend has not answered.
    pub pending_bytes: ByteSize,
    /// First pause before a broken link is opened again.
    #[serde(with = "units::duration")]
    pub reconnect_min: Duration,
    /// Longest pause.
    #[serde(with = "units::duration")]
    pub reconnect_max: Duration,
    /// Rule that spreads users over endpoints.
    pub balance: Balance,
    /// With [`Balance::Weighted`]: one for each endpoint.
    pub weights: Vec<u32>,
    /// TLS of links over TCP.
    pub tls: LinkTlsConfig,
}

/// `[backend.tls]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct LinkTlsConfig {
    /// Files of this gateway.
    #[serde(flatten)]
    pub files: MutualFiles,
    /// Name in the certificates of backends; empty: the host of the endpoint.
    pub server_name: String,
}

/// Backends that are believed without a proof, over TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unproven {
    /// No backend.
    Refuse,
    /// Those of this machine.
    Loopback,
    /// All endpoints, as in earlier versions.
    Private,
}

/// Rule that spreads users over endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// Evenly over links, away from slow ones.
    LeastLoaded,
    /// Consistent hashing: a user has the same endpoint from every gateway.
    Hash,
    /// By weight.
    Weighted,
    /// To the node of a cluster that owns the user's slot.
    Cluster,
}

/// `[admin]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AdminConfig {
    /// Port 0: any free one.
    pub address: SocketAddr,
    /// True if it is served at all.
    pub enabled: bool,
    /// Host names by which it is asked, beside IP addresses and `localhost`.
    pub names: Vec<String>,
    /// Path of the Unix socket for orders and status; empty: `admin::default_socket`.
    pub socket: PathBuf,
    /// Group whose members may read, drain and undrain at the socket; empty: nobody but root and the gateway's user.
    pub group: String,
}

/// `[audit]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AuditConfig {
    /// The file; empty: there is none.
    pub file: PathBuf,
    /// Bytes of the file, and again of the one before it.
    pub size_max: ByteSize,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LogConfig {
    /// A level, or tracing directives such as `info,moorline::router=debug`.
    pub level: String,
    /// For people or for machines.
    pub format: LogFormat,
}

/// Format of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One line of text.
    Text,
    /// One JSON object per line.
    Json,
}

/// Most reactors: a shard's number has eight bits.
pub const REACTORS_MAX: usize = 256;
/// Most workers: the pin's upper half chooses among them, and 256 is far past any use.
pub const WORKERS_MAX: usize = 256;
/// Most listeners.
pub const LISTENERS_MAX: usize = 16;
/// Most threads for handshakes.
pub const HANDSHAKE_THREADS_MAX: usize = 64;

impl Default for Config {
    /// The defaults of [`SCHEMA`], without validation across keys.
    fn default() -> Self {
        SCHEMA.defaults()
    }
}

impl Config {
    /// Reads and validates: `sets` ("section.key=value") over `env` over `file` over the defaults.
    ///
    /// Of `env` only names with [`ENV_PREFIX`] are looked at; pass `std::env::vars()`.
    ///
    /// # Errors
    /// [`SettingsError`], naming the file and line, the variable or the flag.
    pub fn load(
        file: Option<&Path>,
        sets: &[String],
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, SettingsError> {
        Self::load_with_origins(file, sets, env).map(|loaded| loaded.config)
    }

    /// Loads the settings like [`Self::load`], with the origin of each value.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_with_origins(
        file: Option<&Path>,
        sets: &[String],
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Loaded<Self>, SettingsError> {
        SCHEMA.load(file, sets, env, validate::check)
    }

    /// Warnings about lawful settings: for the log at start, and for `moorline check`.
    pub fn warnings(&self) -> Vec<String> {
        validate::warnings(self)
    }

    /// Returns a listener's name, or its number from 1 if it has none.
    pub fn listener_name(&self, index: usize) -> String {
        let name = self.listeners.get(index).map_or("", |listener| listener.name.as_str());
        if name.is_empty() { (index + 1).to_string() } else { name.to_owned() }
    }

    /// `gateway.id`, or the host's name with the process id.
    pub fn gateway_id(&self) -> String {
        if !self.gateway.id.is_empty() {
            return self.gateway.id.clone();
        }
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host = if host.trim().is_empty() { "gateway" } else { host.trim() };
        format!("{host}-{}", std::process::id())
    }

    /// `reactor.count`, or the cores that the workers leave; 1 to [`REACTORS_MAX`].
    ///
    /// More threads than cores cost a context switch per message and gain nothing (`docs/benchmarks.md`).
    pub fn reactors(&self) -> usize {
        let rest = || cores().saturating_sub(self.workers());
        let count = if self.reactor.count == 0 { rest() } else { self.reactor.count };
        count.clamp(1, REACTORS_MAX)
    }

    /// `worker.count`, or half the cores; 1 to [`WORKERS_MAX`].
    pub fn workers(&self) -> usize {
        let count = if self.worker.count == 0 { cores() / 2 } else { self.worker.count };
        count.clamp(1, WORKERS_MAX)
    }

    /// `tls.handshake_threads`, or half the cores; 1 to [`HANDSHAKE_THREADS_MAX`].
    pub fn handshake_threads(&self) -> usize {
        let count = self.tls.handshake_threads;
        let count = if count == 0 { cores() / 2 } else { count };
        count.clamp(1, HANDSHAKE_THREADS_MAX)
    }
}

fn cores() -> usize {
    // The standard library reads five files each time, and a hot restart stands still meanwhile.
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| std::thread::available_parallelism().map_or(1, NonZeroUsize::get))
}
