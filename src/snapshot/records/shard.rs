//! Of a shard: connections, sessions, what is under way toward them.

use bytes::Bytes;

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
    /// Clients are asked to leave.
    #[prost(message, optional, tag = "17")]
    pub drain: Option<DrainRecord>,
    /// Connections that follow, for whoever makes room for them.
    #[prost(uint32, tag = "18")]
    pub connections: u32,
}

/// Clients are being asked to leave.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DrainRecord {
    /// From being asked until who stays is closed, in nanoseconds.
    #[prost(uint64, tag = "1")]
    pub grace: u64,
    /// Clients asked per second; none: all at once.
    #[prost(uint32, optional, tag = "2")]
    pub rate: Option<u32>,
    /// Where they shall go.
    #[prost(string, repeated, tag = "3")]
    pub alternates: Vec<String>,
    /// Since when.
    #[prost(uint64, tag = "4")]
    pub began: u64,
    /// So many were asked.
    #[prost(uint64, tag = "5")]
    pub asked: u64,
    /// Who is there then is closed.
    #[prost(uint64, optional, tag = "6")]
    pub ends: Option<u64>,
    /// Connections to be asked, the next one last.
    #[prost(fixed64, repeated, tag = "7")]
    pub unasked: Vec<u64>,
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
    #[prost(message, optional, tag = "10")]
    pub session: Option<SessionRecord>,
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
    /// User: text, which is read without a copy.
    #[prost(bytes = "bytes", tag = "1")]
    pub uid: Bytes,
    /// Device.
    #[prost(bytes = "bytes", tag = "2")]
    pub device: Bytes,
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
    /// The worker that speaks for its user.
    #[prost(uint32, optional, tag = "14")]
    pub worker: Option<u32>,
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
    /// Which worker.
    #[prost(uint32, optional, tag = "5")]
    pub worker: Option<u32>,
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
