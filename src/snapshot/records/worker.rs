//! Of a worker: links, questions, what waits for them.

use super::{SocketRef, TicketRecord};
use bytes::Bytes;
use moorline_proto::message::backend::ConnUp;

/// Of a worker.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WorkerHead {
    /// The last request to shards.
    #[prost(uint32, tag = "1")]
    pub next_request: u32,
    /// By slot: 0 without a link, else 1 + 2 x link, and one more while it is announced.
    #[prost(uint32, repeated, tag = "2")]
    pub seats: Vec<u32>,
    /// By number, as the metrics have them.
    #[prost(uint64, repeated, tag = "3")]
    pub counts: Vec<u64>,
    /// The names of the counts.
    #[prost(string, repeated, tag = "4")]
    pub count_names: Vec<String>,
    /// Overload level.
    #[prost(uint32, tag = "5")]
    pub overload: u32,
    /// Of answers, in nanoseconds.
    #[prost(uint64, tag = "6")]
    pub average: u64,
    /// What shards were told to hold, by lane.
    #[prost(fixed64, repeated, tag = "7")]
    pub held: Vec<u64>,
    /// State of the dice.
    #[prost(fixed64, tag = "8")]
    pub random: u64,
    /// Endpoints, in order.
    #[prost(string, repeated, tag = "9")]
    pub endpoints: Vec<String>,
    /// Links to each.
    #[prost(uint32, tag = "10")]
    pub links_each: u32,
}

/// A link that is connected.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LinkRecord {
    /// Its place among the worker's links.
    #[prost(uint32, tag = "1")]
    pub index: u32,
    /// Its socket.
    #[prost(message, optional, tag = "2")]
    pub socket: Option<SocketRef>,
    /// Which life of it.
    #[prost(uint32, tag = "3")]
    pub generation: u32,
    /// The backend wants no new work here.
    #[prost(bool, tag = "4")]
    pub is_draining: bool,
    /// When it greeted.
    #[prost(uint64, tag = "5")]
    pub ready_at: u64,
    /// When it was last heard.
    #[prost(uint64, tag = "6")]
    pub heard_at: u64,
    /// When something was last sent.
    #[prost(uint64, tag = "7")]
    pub sent_at: u64,
    /// When it was last pinged.
    #[prost(uint64, tag = "8")]
    pub pinged_at: u64,
    /// Failures in a row.
    #[prost(uint32, tag = "9")]
    pub attempts: u32,
    /// Questions that the backend takes.
    #[prost(uint32, tag = "10")]
    pub credit: u32,
    /// Bytes that wait to be sent.
    #[prost(bytes = "bytes", tag = "11")]
    pub output: Bytes,
    /// Bytes of a frame that is not complete.
    #[prost(bytes = "bytes", tag = "12")]
    pub partial: Bytes,
    /// Number of the oldest question in the table.
    #[prost(uint64, tag = "13")]
    pub base: u64,
    /// The same of HELLOs that are judged.
    #[prost(uint64, tag = "14")]
    pub asked_base: u64,
}

/// A question on a link.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PendingRecord {
    /// Waits for its answer.
    #[prost(message, optional, tag = "1")]
    pub up: Option<UpRecord>,
    /// Until then; of one that timed out: forgotten then; 0: settled.
    #[prost(uint64, tag = "2")]
    pub until: u64,
}

/// A client's frame for the backend.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct UpRecord {
    /// Its connection.
    #[prost(fixed64, tag = "1")]
    pub key: u64,
    /// Its user's slot.
    #[prost(uint32, tag = "2")]
    pub slot: u32,
    /// Its command.
    #[prost(uint32, tag = "3")]
    pub command: u32,
    /// What the answer is told by.
    #[prost(uint32, tag = "4")]
    pub number: u32,
    /// It may have been forwarded before.
    #[prost(bool, tag = "5")]
    pub is_dup: bool,
    /// When it was taken.
    #[prost(fixed64, tag = "6")]
    pub taken_at: u64,
    /// Number of its body.
    #[prost(uint32, tag = "7")]
    pub body: u32,
}

/// Something that waits for a link.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ParkedRecord {
    /// Which line.
    #[prost(uint32, tag = "1")]
    pub slot: u32,
    /// A client's frame.
    #[prost(message, optional, tag = "2")]
    pub up: Option<UpRecord>,
    /// A login.
    #[prost(message, optional, tag = "3")]
    pub login: Option<LoginRecord>,
    /// The end of one: its connection.
    #[prost(fixed64, optional, tag = "4")]
    pub ended: Option<u64>,
    /// Its close code.
    #[prost(uint32, tag = "5")]
    pub code: u32,
}

/// A login, as the backend is told of it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct LoginRecord {
    /// Its connection.
    #[prost(fixed64, tag = "1")]
    pub handle: u64,
    /// User.
    #[prost(string, tag = "2")]
    pub uid: String,
    /// Device.
    #[prost(string, tag = "3")]
    pub device: String,
    /// Kind of device.
    #[prost(int32, tag = "4")]
    pub platform: i32,
    /// Which login.
    #[prost(fixed64, tag = "5")]
    pub login_version: u64,
}

/// Logins that are being announced.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AnnouncementRecord {
    /// Number of the request.
    #[prost(uint32, tag = "1")]
    pub request: u32,
    /// On which link.
    #[prost(uint32, tag = "2")]
    pub link: u32,
    /// Of which slots.
    #[prost(fixed64, tag = "3")]
    pub slots: u64,
    /// Shards that have not said all.
    #[prost(bool, repeated, tag = "4")]
    pub silent: Vec<bool>,
    /// What is left to be told.
    #[prost(message, repeated, tag = "5")]
    pub logins: Vec<LoginRecord>,
}

/// A HELLO that a backend judges.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AskedRecord {
    /// Its connection.
    #[prost(fixed64, tag = "1")]
    pub key: u64,
    /// The HELLO, encoded as on the wire; empty: settled or timed out.
    #[prost(bytes = "bytes", tag = "2")]
    pub hello: Bytes,
    /// Until then; of one that timed out: forgotten then; 0: settled.
    #[prost(uint64, tag = "3")]
    pub until: u64,
    /// What it claims.
    #[prost(message, optional, tag = "4")]
    pub admission: Option<AdmissionRecord>,
}

/// A user that is to be let in.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AdmissionRecord {
    /// User.
    #[prost(string, tag = "1")]
    pub uid: String,
    /// Device.
    #[prost(string, tag = "2")]
    pub device: String,
    /// Kind of device.
    #[prost(int32, tag = "3")]
    pub platform: i32,
    /// It undoes LZ4.
    #[prost(bool, tag = "4")]
    pub accepts_lz4: bool,
    /// The session to go on with, encoded as on the wire.
    #[prost(bytes = "bytes", optional, tag = "5")]
    pub resume: Option<Bytes>,
}

/// A question of a backend.
#[derive(Clone, PartialEq, prost::Message)]
pub struct QueryRecord {
    /// Its name.
    #[prost(message, optional, tag = "1")]
    pub ticket: Option<TicketRecord>,
    /// Shards that have not answered.
    #[prost(uint32, tag = "2")]
    pub left: u32,
}

impl From<&ConnUp> for LoginRecord {
    fn from(login: &ConnUp) -> Self {
        let ConnUp { handle, uid, device, platform, login_version } = login.clone();
        Self { handle, uid, device, platform, login_version }
    }
}

impl From<&LoginRecord> for ConnUp {
    fn from(record: &LoginRecord) -> Self {
        let LoginRecord { handle, uid, device, platform, login_version } = record.clone();
        Self { handle, uid, device, platform, login_version }
    }
}
