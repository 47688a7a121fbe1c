//! Of the process as a whole.

use super::SocketRef;
use bytes::Bytes;

/// Of the process.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GatewayHead {
    /// When the first of these processes began, in Unix nanoseconds: sessions last as long as it.
    #[prost(fixed64, tag = "1")]
    pub epoch: u64,
    /// Makes and judges tickets.
    #[prost(bytes = "bytes", tag = "2")]
    pub ticket_key: Bytes,
    /// Shards.
    #[prost(uint32, tag = "3")]
    pub shards: u32,
    /// Workers.
    #[prost(uint32, tag = "4")]
    pub workers: u32,
    /// The listening socket; the first of several.
    #[prost(message, optional, tag = "5")]
    pub listener: Option<SocketRef>,
    /// The admin address's.
    #[prost(message, optional, tag = "6")]
    pub admin: Option<SocketRef>,
    /// Of the pace of accepting, in nanoseconds.
    #[prost(uint64, tag = "7")]
    pub accepted_until: u64,
    /// Backend that the gateway started itself (`backend.embedded`, until 0.1). Not written any more; a
    /// gateway that reads one refuses to take over.
    #[prost(message, optional, tag = "8")]
    pub embedded: Option<EmbeddedRecord>,
    /// Restarts before this one, the newest last.
    #[prost(message, repeated, tag = "9")]
    pub history: Vec<RestartRecord>,
    /// It drains.
    #[prost(bool, tag = "10")]
    pub is_draining: bool,
    /// Its name toward backends.
    #[prost(string, tag = "11")]
    pub gateway_id: String,
    /// Numbers of the restarts before this one, as the metrics have them.
    #[prost(uint64, repeated, tag = "12")]
    pub restart_numbers: Vec<u64>,
    /// Shard counts of the gateway's life, oldest first; empty: [`Self::shards`] all the time.
    #[prost(uint32, repeated, tag = "13")]
    pub homes: Vec<u32>,
    /// All listening sockets, by number in the settings; empty: [`Self::listener`] is the only one.
    #[prost(message, repeated, tag = "14")]
    pub listeners: Vec<ListenerRecord>,
}

/// One of several listening sockets.
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
}

/// A backend that a gateway started itself. Read only to refuse it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct EmbeddedRecord {
    /// Process id.
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    /// Address at which it listens.
    #[prost(string, tag = "2")]
    pub address: String,
    /// The pipe whose end it ends with.
    #[prost(int32, tag = "3")]
    pub input_fd: i32,
    /// The pipe that ends with it.
    #[prost(int32, tag = "4")]
    pub output_fd: i32,
}

/// A restart that was tried.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RestartRecord {
    /// When, in Unix milliseconds.
    #[prost(uint64, tag = "1")]
    pub unix_ms: u64,
    /// Which generation it led to, or would have.
    #[prost(uint64, tag = "2")]
    pub generation: u64,
    /// `committed`, `rolled_back` or `dry_run`.
    #[prost(string, tag = "3")]
    pub verdict: String,
    /// Why not.
    #[prost(string, tag = "4")]
    pub problem: String,
    /// Sockets that moved.
    #[prost(uint64, tag = "5")]
    pub sockets: u64,
    /// From the freeze to the commit, or to the thaw, in nanoseconds.
    #[prost(uint64, tag = "6")]
    pub pause_nanos: u64,
    /// What was served before.
    #[prost(string, tag = "7")]
    pub from: String,
    /// What was served after, or would have been.
    #[prost(string, tag = "8")]
    pub to: String,
    /// The binary that served before.
    #[prost(string, tag = "9")]
    pub previous_binary: String,
    /// Steps and how long they took.
    #[prost(message, repeated, tag = "10")]
    pub steps: Vec<StepRecord>,
    /// Counts them.
    #[prost(uint64, tag = "11")]
    pub number: u64,
}

/// One step of a restart.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct StepRecord {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// How long it took, in nanoseconds.
    #[prost(uint64, tag = "2")]
    pub nanos: u64,
    /// What there is to say.
    #[prost(string, tag = "3")]
    pub detail: String,
}

/// The rate of an address.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct AddressRecord {
    /// Its 16 bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub name: Bytes,
    /// Up to when it is used, in nanoseconds.
    #[prost(uint64, tag = "2")]
    pub until: u64,
}
