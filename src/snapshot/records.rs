//! The records of a snapshot. Tags are never used again, and a field's meaning never changes.

use bytes::Bytes;
use moorline_proto::message::backend::ConnUp;
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

/// Of the process.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GatewayHead {
    /// When the first of these processes began, in Unix nanoseconds: sessions last as long as it.
    #[prost(fixed64, tag = "1")]
    pub epoch: u64,
    /// Makes and judges tickets.
    #[prost(bytes = "bytes", tag = "2")]
    pub ticket_key: Bytes,
    /// Shards, which stay as many.
    #[prost(uint32, tag = "3")]
    pub shards: u32,
    /// Workers.
    #[prost(uint32, tag = "4")]
    pub workers: u32,
    /// The listening socket.
    #[prost(message, optional, tag = "5")]
    pub listener: Option<SocketRef>,
    /// The admin address's.
    #[prost(message, optional, tag = "6")]
    pub admin: Option<SocketRef>,
    /// Of the pace of accepting, in nanoseconds.
    #[prost(uint64, tag = "7")]
    pub accepted_until: u64,
    /// The embedded backend, if there is one.
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
}

/// A backend that belongs to the gateway.
#[derive(Clone, PartialEq, prost::Message)]
pub struct EmbeddedRecord {
    /// Its process.
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    /// Where it listens.
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

/// Of a shard.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ShardHead {
    /// The last generation that was given to a connection.
    #[prost(uint32, tag = "1")]
    pub last_generation: u32,
    /// The newest login.
    #[prost(fixed64, tag = "2")]
    pub last_login_version: u64,
    /// No more logins.
    #[prost(bool, tag = "3")]
    pub is_draining: bool,
    /// By number, as the metrics have them.
    #[prost(uint64, repeated, tag = "4")]
    pub counts: Vec<u64>,
    /// The names of the counts.
    #[prost(string, repeated, tag = "5")]
    pub count_names: Vec<String>,
    /// Ended connections by close code, two numbers each.
    #[prost(uint64, repeated, tag = "6")]
    pub closes: Vec<u64>,
    /// Connections ended by the peer.
    #[prost(uint64, tag = "7")]
    pub closed_by_peer: u64,
    /// The half minute of the last digest.
    #[prost(uint32, tag = "8")]
    pub last_round: u32,
    /// Memory is looked at then.
    #[prost(uint64, tag = "9")]
    pub next_trim: u64,
    /// Connections whose deadline has come.
    #[prost(fixed64, repeated, tag = "10")]
    pub due: Vec<u64>,
    /// Sessions without a socket, oldest first: seat and since when, two numbers each.
    #[prost(fixed64, repeated, tag = "11")]
    pub kept: Vec<u64>,
    /// By worker, then by lane: slots whose clients are held.
    #[prost(fixed64, repeated, tag = "12")]
    pub full: Vec<u64>,
    /// By worker: overload level.
    #[prost(uint32, repeated, tag = "13")]
    pub overload: Vec<u32>,
    /// When the last answer was remembered.
    #[prost(uint64, tag = "14")]
    pub stored_at: u64,
    /// State of the dice.
    #[prost(fixed64, tag = "15")]
    pub random: u64,
    /// Until when somebody chats.
    #[prost(uint64, tag = "16")]
    pub chat_until: u64,
}

/// A connection. Its session goes with it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ConnectionRecord {
    /// Slot and generation.
    #[prost(fixed64, tag = "1")]
    pub key: u64,
    /// A [`StateRecord`].
    #[prost(enumeration = "StateRecord", tag = "2")]
    pub state: i32,
    /// The interval that the client promised, in seconds.
    #[prost(uint32, tag = "3")]
    pub heartbeat_s: u32,
    /// When it was heard, in ticks of 2^24 ns modulo 2^32.
    #[prost(fixed32, tag = "4")]
    pub heard: u32,
    /// Of the frames that it may send, in thousandths.
    #[prost(uint32, tag = "5")]
    pub spent: u32,
    /// Its timer, in nanoseconds.
    #[prost(fixed64, tag = "6")]
    pub timer: u64,
    /// Bytes of a frame that is not complete.
    #[prost(bytes = "bytes", tag = "7")]
    pub partial: Bytes,
    /// Frames on their way out.
    #[prost(message, repeated, tag = "8")]
    pub outbound: Vec<FrameRecord>,
    /// Bytes of the first that the client's system has.
    #[prost(uint32, tag = "9")]
    pub head_sent: u32,
    /// Its session.
    #[prost(message, optional, boxed, tag = "10")]
    pub session: Option<Box<SessionRecord>>,
}

/// The state of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum StateRecord {
    /// None that is known.
    Unspecified = 0,
    /// Only HELLO is heard.
    AwaitHello = 1,
    /// HELLO is judged.
    Authenticating = 2,
    /// Logged in.
    Active = 3,
    /// Asked to leave.
    Leaving = 4,
    /// Without a socket.
    Detached = 5,
    /// Says its last word.
    Closing = 6,
}

/// A frame.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct FrameRecord {
    /// The 16 bytes that lead it.
    #[prost(bytes = "bytes", tag = "1")]
    pub head: Bytes,
    /// Number of its body.
    #[prost(uint32, tag = "2")]
    pub body: u32,
}

/// A session.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SessionRecord {
    /// User.
    #[prost(string, tag = "1")]
    pub uid: String,
    /// Device.
    #[prost(string, tag = "2")]
    pub device: String,
    /// Kind of device.
    #[prost(uint32, tag = "3")]
    pub platform: u32,
    /// Questions that the backend has not answered.
    #[prost(uint32, tag = "4")]
    pub unanswered: u32,
    /// Which login.
    #[prost(fixed64, tag = "5")]
    pub login_version: u64,
    /// Uplink: every cid up to it is answered.
    #[prost(uint32, tag = "6")]
    pub base: u32,
    /// Uplink: every cid up to it was taken.
    #[prost(uint32, tag = "7")]
    pub taken: u32,
    /// Uplink: bit i is cid base + 1 + i.
    #[prost(fixed64, tag = "8")]
    pub answered: u64,
    /// Downlink: number of the next reliable frame.
    #[prost(uint32, tag = "9")]
    pub next_seq: u32,
    /// How often it was resumed.
    #[prost(uint32, tag = "10")]
    pub serial: u32,
    /// Its client undoes LZ4.
    #[prost(bool, tag = "11")]
    pub accepts_lz4: bool,
    /// Reliable frames toward it.
    #[prost(message, optional, boxed, tag = "12")]
    pub flight: Option<Box<FlightRecord>>,
    /// SENDs that came before their turn.
    #[prost(message, repeated, tag = "13")]
    pub early: Vec<EarlyRecord>,
}

/// A SEND that came before its turn.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct EarlyRecord {
    /// Its number.
    #[prost(uint32, tag = "1")]
    pub cid: u32,
    /// Number of its body.
    #[prost(uint32, tag = "2")]
    pub body: u32,
}

/// Reliable frames toward a session.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FlightRecord {
    /// Smoothed round trip in microseconds; 0: unknown.
    #[prost(uint32, tag = "1")]
    pub srtt_micros: u32,
    /// In flight, oldest first.
    #[prost(message, repeated, tag = "2")]
    pub in_flight: Vec<InFlightRecord>,
    /// What waits, lane by lane.
    #[prost(message, repeated, tag = "3")]
    pub waiting: Vec<ParcelRecord>,
    /// Since when something waits on the lanes that may.
    #[prost(uint64, optional, tag = "4")]
    pub waiting_since: Option<u64>,
    /// When the oldest ack fell due.
    #[prost(uint64, optional, tag = "5")]
    pub overdue: Option<u64>,
    /// What was done about it.
    #[prost(uint32, tag = "6")]
    pub steps: u32,
}

/// A frame in flight.
#[derive(Clone, PartialEq, prost::Message)]
pub struct InFlightRecord {
    /// Its number.
    #[prost(uint32, tag = "1")]
    pub seq: u32,
    /// When it was sent.
    #[prost(fixed64, tag = "2")]
    pub sent_at: u64,
    /// How often again.
    #[prost(uint32, tag = "3")]
    pub resent: u32,
    /// Bytes that count.
    #[prost(uint32, tag = "4")]
    pub bytes: u32,
    /// What it is.
    #[prost(message, optional, tag = "5")]
    pub parcel: Option<ParcelRecord>,
}

/// A push toward one session.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ParcelRecord {
    /// Who wants to know what becomes of it.
    #[prost(message, optional, tag = "1")]
    pub ticket: Option<TicketRecord>,
    /// PUSH, NOTIFY or an application command.
    #[prost(uint32, tag = "2")]
    pub command: u32,
    /// Priority class.
    #[prost(uint32, tag = "3")]
    pub lane: u32,
    /// Not to be sent after it; `u64::MAX`: no limit.
    #[prost(fixed64, tag = "4")]
    pub expires_at: u64,
    /// Number of its body.
    #[prost(uint32, tag = "5")]
    pub body: u32,
    /// Number of the compressed one.
    #[prost(uint32, tag = "6")]
    pub packed: u32,
    /// It takes the place of another with the same key.
    #[prost(string, optional, tag = "7")]
    pub collapse: Option<String>,
    /// Pushes that it stands for.
    #[prost(message, repeated, tag = "8")]
    pub also: Vec<TicketRecord>,
}

/// Names a push toward its backend.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct TicketRecord {
    /// The worker whose link brought it.
    #[prost(uint32, tag = "1")]
    pub worker: u32,
    /// That link.
    #[prost(uint32, tag = "2")]
    pub link: u32,
    /// Which life of it.
    #[prost(uint32, tag = "3")]
    pub generation: u32,
    /// The link frame's correlation.
    #[prost(uint64, tag = "4")]
    pub correlation: u64,
}

/// An answer that is remembered.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct AnswerRecord {
    /// Login version of its session.
    #[prost(fixed64, tag = "1")]
    pub session: u64,
    /// Number of the SEND.
    #[prost(uint32, tag = "2")]
    pub cid: u32,
    /// The SENDACK's body.
    #[prost(bytes = "bytes", tag = "3")]
    pub bytes: Bytes,
}

/// A room.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RoomRecord {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its version.
    #[prost(uint64, tag = "2")]
    pub version: u64,
    /// Who is in it.
    #[prost(fixed64, repeated, tag = "3")]
    pub members: Vec<u64>,
}

/// Pushes for the same receivers.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FanoutRecord {
    /// In order.
    #[prost(message, repeated, tag = "1")]
    pub pushes: Vec<ParcelRecord>,
    /// Receivers to be served, the next one last.
    #[prost(fixed64, repeated, tag = "2")]
    pub keys: Vec<u64>,
    /// Some were served.
    #[prost(bool, tag = "3")]
    pub is_begun: bool,
}

/// A user that said too much.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct UserSpentRecord {
    /// Pin.
    #[prost(uint32, tag = "1")]
    pub who: u32,
    /// In thousandths.
    #[prost(uint32, tag = "2")]
    pub spent: u32,
    /// As of then, in ticks.
    #[prost(fixed32, tag = "3")]
    pub since: u32,
    /// It was told.
    #[prost(bool, tag = "4")]
    pub was_told: bool,
}

/// A client that is not read for now.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct HoldRecord {
    /// Which.
    #[prost(fixed64, tag = "1")]
    pub key: u64,
    /// Until then.
    #[prost(uint64, optional, tag = "2")]
    pub until: Option<u64>,
    /// Until its worker has room for this user's.
    #[prost(uint32, optional, tag = "3")]
    pub pin: Option<u32>,
    /// On this lane.
    #[prost(uint32, tag = "4")]
    pub lane: u32,
}

/// Descriptors of connections, in the order of `keys`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SocketsRecord {
    /// Which connections.
    #[prost(fixed64, repeated, tag = "1")]
    pub keys: Vec<u64>,
    /// Their descriptors.
    #[prost(int32, repeated, tag = "2")]
    pub fds: Vec<i32>,
    /// Their cookies; 0: the socket that the new process watches under this key since it began.
    #[prost(fixed64, repeated, tag = "3")]
    pub cookies: Vec<u64>,
}

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

impl From<(i32, u64)> for SocketRef {
    fn from((fd, cookie): (i32, u64)) -> Self {
        Self { fd, cookie }
    }
}
