//! Records of the process as a whole.

use super::SocketRef;
use bytes::Bytes;

/// State that the process has once.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GatewayHead {
    /// Start of the first process of this series, in Unix nanoseconds; resumption tokens of another epoch are refused.
    #[prost(fixed64, tag = "1")]
    pub epoch: u64,
    /// Key that signs and verifies resumption tokens, 32 bytes.
    #[prost(bytes = "bytes", tag = "2")]
    pub ticket_key: Bytes,
    /// Number of shards.
    #[prost(uint32, tag = "3")]
    pub shards: u32,
    /// Number of workers.
    #[prost(uint32, tag = "4")]
    pub workers: u32,
    /// The listening socket; the first of several.
    #[prost(message, optional, tag = "5")]
    pub listener: Option<SocketRef>,
    /// Socket of the admin address; `None`: it is not enabled.
    #[prost(message, optional, tag = "6")]
    pub admin: Option<SocketRef>,
    /// Time up to which the accept rate is used, in nanoseconds.
    #[prost(uint64, tag = "7")]
    pub accepted_until: u64,
    /// Backend that the gateway started itself (`backend.embedded`, until 0.1). Not written any more; a
    /// gateway that reads one refuses to take over.
    #[prost(message, optional, tag = "8")]
    pub embedded: Option<EmbeddedRecord>,
    /// Restarts before this one, the newest last.
    #[prost(message, repeated, tag = "9")]
    pub history: Vec<RestartRecord>,
    /// True while the clients are asked to leave.
    #[prost(bool, tag = "10")]
    pub is_draining: bool,
    /// Name of the gateway towards backends.
    #[prost(string, tag = "11")]
    pub gateway_id: String,
    /// Counters of the restarts before this one, in the order of the metrics.
    #[prost(uint64, repeated, tag = "12")]
    pub restart_numbers: Vec<u64>,
    /// Shard counts of this series of processes, oldest first; empty: always [`Self::shards`].
    #[prost(uint32, repeated, tag = "13")]
    pub shard_map: Vec<u32>,
    /// All listening sockets, by number in the settings; empty: [`Self::listener`] is the only one.
    #[prost(message, repeated, tag = "14")]
    pub listeners: Vec<ListenerRecord>,
    /// Unix socket for orders; `None`: not served, or written by a version that had none.
    #[prost(message, optional, tag = "15")]
    pub admin_socket: Option<SocketRef>,
    /// Key of the hash that decides between users, 16 bytes; empty: the version that wrote the snapshot had none.
    #[prost(bytes = "bytes", tag = "16")]
    pub user_key: Bytes,
    /// Part of the users' pins that comes from the keyed hash, a [`PinsRecord`].
    #[prost(enumeration = "PinsRecord", tag = "17")]
    pub pins: i32,
    /// Counters that a process begins at zero, as its series has counted so far.
    #[prost(message, repeated, tag = "18")]
    pub counted: Vec<CountedRecord>,
    /// Keys that seal TLS session tickets; empty: no TLS.
    #[prost(bytes = "bytes", tag = "19")]
    pub tls_ticket_keys: Bytes,
    /// Unix sockets for orders that the settings have given up, and that still answer for some seconds.
    #[prost(message, repeated, tag = "20")]
    pub retired_sockets: Vec<RetiredRecord>,
    /// File of [`Self::admin_socket`]; `None`: written by a version that did not tell it.
    #[prost(message, optional, tag = "21")]
    pub admin_socket_file: Option<FileRecord>,
}

/// File that a Unix socket was bound to.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct FileRecord {
    /// Device of the file.
    #[prost(uint64, tag = "1")]
    pub device: u64,
    /// Number of the file on its device.
    #[prost(uint64, tag = "2")]
    pub number: u64,
}

/// An admin socket that the settings have given up.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct RetiredRecord {
    /// The socket.
    #[prost(message, optional, tag = "1")]
    pub socket: Option<SocketRef>,
    /// Time up to which it answers, in nanoseconds of `CLOCK_MONOTONIC`.
    #[prost(uint64, tag = "2")]
    pub until_nanos: u64,
    /// File that it was bound to; `None`: the path had another one, or none.
    #[prost(message, optional, tag = "3")]
    pub file: Option<FileRecord>,
}

/// Value of a counter.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct CountedRecord {
    /// Name of the metric.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Value of its label; empty: it has none.
    #[prost(string, tag = "2")]
    pub label: String,
    /// Number; of processor time in microseconds.
    #[prost(uint64, tag = "3")]
    pub value: u64,
}

/// Part of the users' pins that comes from the keyed hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum PinsRecord {
    /// None: the first process of the series had no key.
    Plain = 0,
    /// All bits of a pin.
    Keyed = 1,
    /// All bits but those of the slot.
    KeyedButSlot = 2,
    /// All bits but those of the slot of a cluster.
    Cluster = 3,
}

/// A listening socket.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ListenerRecord {
    /// The socket.
    #[prost(message, optional, tag = "1")]
    pub socket: Option<SocketRef>,
    /// Name in the settings of the process that wrote the snapshot, or the number from 1.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Time up to which the accept rate is used, in nanoseconds.
    #[prost(uint64, tag = "3")]
    pub accepted_until: u64,
    /// Exchange before the first frame, as bits: 1 PROXY header, 2 TLS, 4 WebSocket.
    #[prost(uint32, tag = "4")]
    pub kind: u32,
}

/// A backend that a gateway started itself; read only to refuse it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct EmbeddedRecord {
    /// Process id.
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    /// Address at which the backend listens.
    #[prost(string, tag = "2")]
    pub address: String,
    /// Pipe to the backend, which ends when the pipe is closed.
    #[prost(int32, tag = "3")]
    pub input_fd: i32,
    /// Pipe from the backend.
    #[prost(int32, tag = "4")]
    pub output_fd: i32,
}

/// A hot restart, successful or not.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RestartRecord {
    /// Begin, in Unix milliseconds.
    #[prost(uint64, tag = "1")]
    pub unix_ms: u64,
    /// Generation that the restart led to, or would have led to.
    #[prost(uint64, tag = "2")]
    pub generation: u64,
    /// `committed`, `rolled_back` or `dry_run`.
    #[prost(string, tag = "3")]
    pub verdict: String,
    /// Cause of a rollback; empty: none.
    #[prost(string, tag = "4")]
    pub problem: String,
    /// Number of sockets that moved.
    #[prost(uint64, tag = "5")]
    pub sockets: u64,
    /// Time from the pause to the commit, or to the rollback, in nanoseconds.
    #[prost(uint64, tag = "6")]
    pub pause_nanos: u64,
    /// Version and file of the process before the restart.
    #[prost(string, tag = "7")]
    pub from: String,
    /// Version and file of the process after the restart.
    #[prost(string, tag = "8")]
    pub to: String,
    /// File of the process before the restart.
    #[prost(string, tag = "9")]
    pub previous_binary: String,
    /// Steps with their times.
    #[prost(message, repeated, tag = "10")]
    pub steps: Vec<StepRecord>,
    /// Number of the restart, counted from 1 over all processes of the series.
    #[prost(uint64, tag = "11")]
    pub number: u64,
    /// Process that serves after the restart; 0: not noted.
    #[prost(uint32, tag = "12")]
    pub pid: u32,
}

/// A step of a restart.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct StepRecord {
    /// Name of the step.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Duration in nanoseconds.
    #[prost(uint64, tag = "2")]
    pub nanos: u64,
    /// Figures of the step, for people.
    #[prost(string, tag = "3")]
    pub detail: String,
}

/// Used connection rate of a client address.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct AddressRecord {
    /// Address, as 16 bytes (IPv6).
    #[prost(bytes = "bytes", tag = "1")]
    pub name: Bytes,
    /// Time up to which the rate is used, in nanoseconds.
    #[prost(uint64, tag = "2")]
    pub until: u64,
    /// Descriptors of its connections. A connection without one counts for the address of its peer, which may be a proxy.
    #[prost(int32, repeated, tag = "3")]
    pub sockets: Vec<i32>,
}
