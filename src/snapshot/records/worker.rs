//! Records of a worker: links, questions, and the frames that wait for links.

use super::{LayerRecord, PushRefRecord, SocketRef};
use bytes::Bytes;
use moorline_proto::message::backend::ConnUp;

/// State that a worker has once.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WorkerHead {
    /// Number of the last request to shards.
    #[prost(uint32, tag = "1")]
    pub next_request: u32,
    /// Links by slot: 0 without a link, else 1 + 2 x link, and one more while the link is announced.
    #[prost(uint32, repeated, tag = "2")]
    pub slots: Vec<u32>,
    /// Values of the counters, in the order of [`Self::count_names`].
    #[prost(uint64, repeated, tag = "3")]
    pub counts: Vec<u64>,
    /// Names of the counters.
    #[prost(string, repeated, tag = "4")]
    pub count_names: Vec<String>,
    /// Overload level.
    #[prost(uint32, tag = "5")]
    pub overload: u32,
    /// Average latency of answers, in nanoseconds.
    #[prost(uint64, tag = "6")]
    pub average: u64,
    /// Slots that shards were told not to read, as a bit set by lane.
    #[prost(fixed64, repeated, tag = "7")]
    pub held: Vec<u64>,
    /// State of the random numbers.
    #[prost(fixed64, tag = "8")]
    pub random: u64,
    /// Addresses of the endpoints, in the order of the settings.
    #[prost(string, repeated, tag = "9")]
    pub endpoints: Vec<String>,
    /// Number of links to each endpoint.
    #[prost(uint32, tag = "10")]
    pub links_each: u32,
}

/// A connected link.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LinkRecord {
    /// Index among the worker's links.
    #[prost(uint32, tag = "1")]
    pub index: u32,
    /// Socket of the link.
    #[prost(message, optional, tag = "2")]
    pub socket: Option<SocketRef>,
    /// Generation of the link: number of its connection.
    #[prost(uint32, tag = "3")]
    pub generation: u32,
    /// True if the backend accepts no new work on this link.
    #[prost(bool, tag = "4")]
    pub is_draining: bool,
    /// Time of the HELLO from the backend, in nanoseconds.
    #[prost(uint64, tag = "5")]
    pub ready_at: u64,
    /// Time of the last received byte, in nanoseconds.
    #[prost(uint64, tag = "6")]
    pub heard_at: u64,
    /// Time of the last sent frame, in nanoseconds.
    #[prost(uint64, tag = "7")]
    pub sent_at: u64,
    /// Time of the last sent PING, in nanoseconds.
    #[prost(uint64, tag = "8")]
    pub pinged_at: u64,
    /// Number of failures in a row.
    #[prost(uint32, tag = "9")]
    pub attempts: u32,
    /// Number of questions that the backend accepts.
    #[prost(uint32, tag = "10")]
    pub credit: u32,
    /// Bytes that are not written yet.
    #[prost(bytes = "bytes", tag = "11")]
    pub output: Bytes,
    /// Received bytes of an incomplete frame.
    #[prost(bytes = "bytes", tag = "12")]
    pub partial: Bytes,
    /// Number of the oldest question in the table.
    #[prost(uint64, tag = "13")]
    pub base: u64,
    /// Number of the oldest HELLO that the backend verifies.
    #[prost(uint64, tag = "14")]
    pub asked_base: u64,
    /// Number of the last PING that asks what was read.
    #[prost(uint64, tag = "15")]
    pub barriers: u64,
    /// Ends of logins that the backend may not have read.
    #[prost(message, repeated, tag = "16")]
    pub ends: Vec<ParkedRecord>,
    /// True if the backend knows the outcome TOO_LARGE of a push.
    #[prost(bool, tag = "17")]
    pub knows_too_large: bool,
    /// Store of the backend; empty: it named none.
    #[prost(bytes = "bytes", tag = "18")]
    pub store: Bytes,
    /// TLS of the connection, whose key is 0; `None`: it is not encrypted. A reader that does not know this field refuses the
    /// snapshot, by [`crate::snapshot::SEALED_LINKS`].
    #[prost(message, optional, tag = "19")]
    pub layer: Option<LayerRecord>,
    /// Number of the node of a cluster at the other end, and 1 more; 0: it is of no cluster.
    #[prost(uint32, tag = "20")]
    pub cluster_node: u32,
}

/// A question on a link.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PendingRecord {
    /// Frame that waits for its answer; `None`: the question is settled or has timed out.
    #[prost(message, optional, tag = "1")]
    pub up: Option<UpRecord>,
    /// Deadline, in nanoseconds; after a timeout: time when it is forgotten; 0: settled.
    #[prost(uint64, tag = "2")]
    pub until: u64,
}

/// A client's frame for the backend.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct UpRecord {
    /// Key of the connection.
    #[prost(fixed64, tag = "1")]
    pub key: u64,
    /// Slot of the user.
    #[prost(uint32, tag = "2")]
    pub slot: u32,
    /// Command of the frame.
    #[prost(uint32, tag = "3")]
    pub command: u32,
    /// Number that the answer to the client names: cid of a SEND, number of a REQ.
    #[prost(uint32, tag = "4")]
    pub number: u32,
    /// True if the frame may have been forwarded before.
    #[prost(bool, tag = "5")]
    pub is_dup: bool,
    /// Time of the receipt, in nanoseconds.
    #[prost(fixed64, tag = "6")]
    pub taken_at: u64,
    /// Number of the body; 0: empty.
    #[prost(uint32, tag = "7")]
    pub body: u32,
}

/// A frame, a login or the end of one, which waits for a link.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ParkedRecord {
    /// Slot whose queue it waits in.
    #[prost(uint32, tag = "1")]
    pub slot: u32,
    /// A client's frame; `None`: the record is something else.
    #[prost(message, optional, tag = "2")]
    pub up: Option<UpRecord>,
    /// A login; `None`: the record is something else.
    #[prost(message, optional, tag = "3")]
    pub login: Option<LoginRecord>,
    /// Connection of a login that has ended; `None`: the record is something else.
    #[prost(fixed64, optional, tag = "4")]
    pub ended: Option<u64>,
    /// Close code of that end.
    #[prost(uint32, tag = "5")]
    pub code: u32,
}

/// A login, as it is announced to the backend.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct LoginRecord {
    /// Key of the connection.
    #[prost(fixed64, tag = "1")]
    pub handle: u64,
    /// User id.
    #[prost(string, tag = "2")]
    pub uid: String,
    /// Device id.
    #[prost(string, tag = "3")]
    pub device: String,
    /// Platform of the device.
    #[prost(int32, tag = "4")]
    pub platform: i32,
    /// Version of the login.
    #[prost(fixed64, tag = "5")]
    pub login_version: u64,
    /// Time of the token's issue, in Unix seconds; 0: not known.
    #[prost(uint64, tag = "6")]
    pub issued_at: u64,
}

/// Logins that are being announced to a link.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AnnouncementRecord {
    /// Number of the request to the shards.
    #[prost(uint32, tag = "1")]
    pub request: u32,
    /// Index of the link.
    #[prost(uint32, tag = "2")]
    pub link: u32,
    /// Slots whose logins are announced, as a bit set.
    #[prost(fixed64, tag = "3")]
    pub slots: u64,
    /// Shards that have not named all their logins: true at their number.
    #[prost(bool, repeated, tag = "4")]
    pub silent: Vec<bool>,
    /// Logins that are not announced yet.
    #[prost(message, repeated, tag = "5")]
    pub logins: Vec<LoginRecord>,
    /// Further slots, 64 in each number.
    #[prost(fixed64, repeated, tag = "6")]
    pub more_slots: Vec<u64>,
}

/// A HELLO that a backend verifies.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AskedRecord {
    /// Key of the connection.
    #[prost(fixed64, tag = "1")]
    pub key: u64,
    /// The HELLO, encoded as on the wire; empty: settled or timed out.
    #[prost(bytes = "bytes", tag = "2")]
    pub hello: Bytes,
    /// Deadline, in nanoseconds; after a timeout: time when it is forgotten; 0: settled.
    #[prost(uint64, tag = "3")]
    pub until: u64,
    /// Identity that the HELLO claims.
    #[prost(message, optional, tag = "4")]
    pub admission: Option<AdmissionRecord>,
}

/// An identity to be admitted.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AdmissionRecord {
    /// User id.
    #[prost(string, tag = "1")]
    pub uid: String,
    /// Device id.
    #[prost(string, tag = "2")]
    pub device: String,
    /// Platform of the device.
    #[prost(int32, tag = "3")]
    pub platform: i32,
    /// True if the client accepts bodies that are compressed with LZ4.
    #[prost(bool, tag = "4")]
    pub accepts_lz4: bool,
    /// Resumption token, encoded as on the wire; `None`: a new session.
    #[prost(bytes = "bytes", optional, tag = "5")]
    pub resume: Option<Bytes>,
}

/// A question of a backend to the shards.
#[derive(Clone, PartialEq, prost::Message)]
pub struct QueryRecord {
    /// Reference of the question.
    #[prost(message, optional, tag = "1")]
    pub ticket: Option<PushRefRecord>,
    /// Number of shards that have not answered.
    #[prost(uint32, tag = "2")]
    pub left: u32,
}

impl From<&ConnUp> for LoginRecord {
    fn from(login: &ConnUp) -> Self {
        let ConnUp { handle, uid, device, platform, login_version, issued_at } = login.clone();
        Self { handle, uid, device, platform, login_version, issued_at }
    }
}

impl From<&LoginRecord> for ConnUp {
    fn from(record: &LoginRecord) -> Self {
        let LoginRecord { handle, uid, device, platform, login_version, issued_at } = record.clone();
        Self { handle, uid, device, platform, login_version, issued_at }
    }
}
