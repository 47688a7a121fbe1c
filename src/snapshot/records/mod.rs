//! The records of a snapshot. Tags are never used again, and a field's meaning never changes.

mod process;
mod shard;
mod worker;

pub use process::*;
pub use shard::*;
pub use worker::*;

use bytes::Bytes;
use std::fmt;

/// Head of a snapshot.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Header {
    /// Major version; [`super::Writer::finish`] sets it.
    #[prost(uint32, tag = "1")]
    pub major: u32,
    /// Minor version: additions that an older reader may skip.
    #[prost(uint32, tag = "2")]
    pub minor: u32,
    /// Features that a reader must know, one bit each.
    #[prost(uint64, tag = "3")]
    pub critical: u64,
    /// Version of the build that wrote the snapshot.
    #[prost(string, tag = "4")]
    pub writer: String,
    /// Number of processes that served before the one that takes over.
    #[prost(uint64, tag = "5")]
    pub generation: u64,
    /// The gateway's own time at the pause, in nanoseconds; this clock stands still until the threads run again.
    #[prost(uint64, tag = "6")]
    pub frozen_at: u64,
    /// Directory of the sections.
    #[prost(message, repeated, tag = "7")]
    pub sections: Vec<SectionEntry>,
}

/// Kind of a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum SectionKind {
    /// A kind that this build does not know.
    Unspecified = 0,
    /// State that the process has once.
    Gateway = 1,
    /// A shard, and the sockets of its connections.
    Shard = 2,
    /// A worker, and the sockets of its links.
    Worker = 3,
    /// Sockets of a shard when the new process started, so that it can watch them before the pause.
    Sockets = 4,
}

/// Place of a section.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct SectionEntry {
    /// Kind, a [`SectionKind`].
    #[prost(enumeration = "SectionKind", tag = "1")]
    pub kind: i32,
    /// Number of the shard or worker; 0 for a section that exists once.
    #[prost(uint32, tag = "2")]
    pub number: u32,
    /// Offset from the end of the header, in bytes.
    #[prost(uint64, tag = "3")]
    pub offset: u64,
    /// Length in bytes.
    #[prost(uint64, tag = "4")]
    pub length: u64,
    /// CRC-32C of the bytes.
    #[prost(fixed32, tag = "5")]
    pub crc: u32,
}

impl fmt::Display for SectionEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the section {:?} {}", self.kind(), self.number)
    }
}

/// A record: tag, length, value.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Record {
    /// True if a reader that does not know the record may skip it.
    #[prost(bool, tag = "1")]
    pub is_optional: bool,
    /// Content; `None`: a tag that this build does not know.
    #[prost(
        oneof = "Item",
        tags = "2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22"
    )]
    pub item: Option<Item>,
}

/// Content of a record.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Item {
    /// A body, which later records name by its number.
    #[prost(bytes = "bytes", tag = "2")]
    Body(Bytes),
    /// State of the process.
    #[prost(message, tag = "3")]
    Gateway(Box<GatewayHead>),
    /// An address whose connection rate is partly used.
    #[prost(message, tag = "4")]
    Address(AddressRecord),
    /// State of a shard.
    #[prost(message, tag = "5")]
    Shard(Box<ShardHead>),
    /// A connection with its session.
    #[prost(message, tag = "6")]
    Connection(Box<ConnectionRecord>),
    /// An answer that is kept for repeated SENDs.
    #[prost(message, tag = "7")]
    Answer(AnswerRecord),
    /// A room.
    #[prost(message, tag = "8")]
    Room(RoomRecord),
    /// A push to many receivers that is not finished.
    #[prost(message, tag = "9")]
    Fanout(FanoutRecord),
    /// A user whose rate is partly used.
    #[prost(message, tag = "10")]
    UserSpent(UserSpentRecord),
    /// A client whose reads are paused.
    #[prost(message, tag = "11")]
    Hold(HoldRecord),
    /// Descriptors of the connections before this record.
    #[prost(message, tag = "12")]
    Sockets(SocketsRecord),
    /// State of a worker.
    #[prost(message, tag = "13")]
    Worker(Box<WorkerHead>),
    /// A link.
    #[prost(message, tag = "14")]
    Link(Box<LinkRecord>),
    /// A question on the link before this record; records are in the order of their numbers.
    #[prost(message, tag = "15")]
    Pending(PendingRecord),
    /// A parked frame or login, which waits for a link; records are in the order of the queue.
    #[prost(message, tag = "16")]
    Parked(ParkedRecord),
    /// Logins that are being announced to a link.
    #[prost(message, tag = "17")]
    Announcement(AnnouncementRecord),
    /// A HELLO that the backend of the link before this record verifies.
    #[prost(message, tag = "18")]
    Asked(AskedRecord),
    /// A question of a backend that some shards have not answered.
    #[prost(message, tag = "19")]
    Query(QueryRecord),
    /// A body like [`Item::Body`], by its number from 0 in the file of stored bodies ([`super::StoredBodies`]). Written
    /// only for a reader that has said that it knows this record.
    #[prost(uint32, tag = "20")]
    Stored(u32),
    /// Layer of a connection before this record.
    #[prost(message, tag = "21")]
    Layer(Box<LayerRecord>),
    /// Connections of an address that are not logged in. Optional.
    #[prost(message, tag = "22")]
    Handshakes(HandshakesRecord),
}

/// An inherited descriptor, and the socket that it must be.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct SocketRef {
    /// Number of the descriptor, the same in both processes.
    #[prost(int32, tag = "1")]
    pub fd: i32,
    /// Cookie of the socket (`SO_COOKIE`), which the system never uses again; 0: see
    /// [`SocketsRecord::cookies`].
    #[prost(fixed64, tag = "2")]
    pub cookie: u64,
}

impl From<(i32, u64)> for SocketRef {
    fn from((fd, cookie): (i32, u64)) -> Self {
        Self { fd, cookie }
    }
}
