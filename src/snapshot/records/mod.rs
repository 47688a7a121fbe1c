//! The records of a snapshot. Tags are never used again, and a field's meaning never changes.

mod process;
mod shard;
mod worker;

pub use process::*;
pub use shard::*;
pub use worker::*;

use bytes::Bytes;
use std::fmt;

/// What leads a snapshot.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Header {
    /// Version; [`super::Writer::finish`] sets it.
    #[prost(uint32, tag = "1")]
    pub major: u32,
    /// Version, of what older readers may skip.
    #[prost(uint32, tag = "2")]
    pub minor: u32,
    /// Features without which it must not be read, one bit each.
    #[prost(uint64, tag = "3")]
    pub critical: u64,
    /// Who wrote it.
    #[prost(string, tag = "4")]
    pub writer: String,
    /// How many processes served before the one that takes over.
    #[prost(uint64, tag = "5")]
    pub generation: u64,
    /// The gateway's own time at the freeze, in nanoseconds: it stands still until the thaw.
    #[prost(uint64, tag = "6")]
    pub frozen_at: u64,
    /// Where the sections lie.
    #[prost(message, repeated, tag = "7")]
    pub sections: Vec<SectionEntry>,
}

/// What a section holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum SectionKind {
    /// None that is known.
    Unspecified = 0,
    /// What the process has once.
    Gateway = 1,
    /// One shard, and the sockets of its connections.
    Shard = 2,
    /// One worker, and the sockets of its links.
    Worker = 3,
    /// Sockets of one shard when the new process began, so that it can watch them before anything stops.
    Sockets = 4,
}

/// Where a section lies.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct SectionEntry {
    /// What it holds.
    #[prost(enumeration = "SectionKind", tag = "1")]
    pub kind: i32,
    /// Which of its kind.
    #[prost(uint32, tag = "2")]
    pub number: u32,
    /// Bytes behind the header.
    #[prost(uint64, tag = "3")]
    pub offset: u64,
    /// Its bytes.
    #[prost(uint64, tag = "4")]
    pub length: u64,
    /// Its CRC-32C.
    #[prost(fixed32, tag = "5")]
    pub crc: u32,
}

impl fmt::Display for SectionEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the section {:?} {}", self.kind(), self.number)
    }
}

/// Tag, length, value.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Record {
    /// A reader that does not know it may skip it.
    #[prost(bool, tag = "1")]
    pub is_optional: bool,
    /// What it is.
    #[prost(oneof = "Item", tags = "2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19")]
    pub item: Option<Item>,
}

/// What a record can be.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Item {
    /// A body that later records name.
    #[prost(bytes = "bytes", tag = "2")]
    Body(Bytes),
    /// Of the process.
    #[prost(message, tag = "3")]
    Gateway(GatewayHead),
    /// An address whose rate is not earned back.
    #[prost(message, tag = "4")]
    Address(AddressRecord),
    /// Of a shard.
    #[prost(message, tag = "5")]
    Shard(Box<ShardHead>),
    /// A connection, and its session.
    #[prost(message, tag = "6")]
    Connection(Box<ConnectionRecord>),
    /// An answer that is remembered.
    #[prost(message, tag = "7")]
    Answer(AnswerRecord),
    /// A room.
    #[prost(message, tag = "8")]
    Room(RoomRecord),
    /// A push to many that waits.
    #[prost(message, tag = "9")]
    Fanout(FanoutRecord),
    /// A user that said too much.
    #[prost(message, tag = "10")]
    UserSpent(UserSpentRecord),
    /// A client that is not read for now.
    #[prost(message, tag = "11")]
    Hold(HoldRecord),
    /// Descriptors of the connections before it.
    #[prost(message, tag = "12")]
    Sockets(SocketsRecord),
    /// Of a worker.
    #[prost(message, tag = "13")]
    Worker(Box<WorkerHead>),
    /// A link.
    #[prost(message, tag = "14")]
    Link(Box<LinkRecord>),
    /// A question on the link before it, in the order of their numbers.
    #[prost(message, tag = "15")]
    Pending(PendingRecord),
    /// Something that waits for a link, in the order of its line.
    #[prost(message, tag = "16")]
    Parked(ParkedRecord),
    /// Logins that are being announced.
    #[prost(message, tag = "17")]
    Announcement(AnnouncementRecord),
    /// A HELLO that the backend of the link before it judges.
    #[prost(message, tag = "18")]
    Asked(AskedRecord),
    /// A question of a backend that shards have not answered.
    #[prost(message, tag = "19")]
    Query(QueryRecord),
}

/// An inherited descriptor, and which socket it must be.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct SocketRef {
    /// Its number, the same in both processes.
    #[prost(int32, tag = "1")]
    pub fd: i32,
    /// `SO_COOKIE`: the system's name of the socket, never used again.
    #[prost(fixed64, tag = "2")]
    pub cookie: u64,
}

impl From<(i32, u64)> for SocketRef {
    fn from((fd, cookie): (i32, u64)) -> Self {
        Self { fd, cookie }
    }
}
