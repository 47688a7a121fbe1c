//! Records of a shard: connections, sessions, and the frames under way to them.

use bytes::Bytes;
use moorline_net::layer::FrozenLayer;

/// State that a shard has once.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ShardHead {
    /// Last generation that was given to a connection.
    #[prost(uint32, tag = "1")]
    pub last_generation: u32,
    /// Version of the newest login.
    #[prost(fixed64, tag = "2")]
    pub last_login_version: u64,
    /// True if logins are refused, because the gateway drains.
    #[prost(bool, tag = "3")]
    pub is_draining: bool,
    /// Values of the counters, in the order of [`Self::count_names`].
    #[prost(uint64, repeated, tag = "4")]
    pub counts: Vec<u64>,
    /// Names of the counters.
    #[prost(string, repeated, tag = "5")]
    pub count_names: Vec<String>,
    /// Ended connections by close code: pairs of code and count.
    #[prost(uint64, repeated, tag = "6")]
    pub closes: Vec<u64>,
    /// Number of connections that the peer ended.
    #[prost(uint64, tag = "7")]
    pub closed_by_peer: u64,
    /// Half minute of the last room digest.
    #[prost(uint32, tag = "8")]
    pub last_round: u32,
    /// Time of the next release of unused memory, in nanoseconds.
    #[prost(uint64, tag = "9")]
    pub next_trim: u64,
    /// Connections whose timer has fired and is not handled yet.
    #[prost(fixed64, repeated, tag = "10")]
    pub due: Vec<u64>,
    /// Detached sessions, oldest first: pairs of key and time of the detachment in nanoseconds.
    #[prost(fixed64, repeated, tag = "11")]
    pub kept: Vec<u64>,
    /// Slots whose clients are not read, as a bit set by worker, then by lane.
    #[prost(fixed64, repeated, tag = "12")]
    pub full: Vec<u64>,
    /// Overload level, by worker.
    #[prost(uint32, repeated, tag = "13")]
    pub overload: Vec<u32>,
    /// Time when the last answer was kept, in nanoseconds.
    #[prost(uint64, tag = "14")]
    pub stored_at: u64,
    /// State of the random numbers.
    #[prost(fixed64, tag = "15")]
    pub random: u64,
    /// End of the chat traffic, in nanoseconds; fan-outs are paced until then.
    #[prost(uint64, tag = "16")]
    pub chat_until: u64,
    /// Drain that is under way; `None`: the shard does not drain.
    #[prost(message, optional, tag = "17")]
    pub drain: Option<DrainRecord>,
    /// Number of the connection records that follow, for the reservation of memory.
    #[prost(uint32, tag = "18")]
    pub connections: u32,
}

/// A drain that is under way.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DrainRecord {
    /// Time from the request to leave until a client is closed, in nanoseconds.
    #[prost(uint64, tag = "1")]
    pub grace: u64,
    /// Clients that are asked per second; `None`: all at once.
    #[prost(uint32, optional, tag = "2")]
    pub rate: Option<u32>,
    /// Addresses of other gateways, which GOAWAY names.
    #[prost(string, repeated, tag = "3")]
    pub alternates: Vec<String>,
    /// Begin, in nanoseconds.
    #[prost(uint64, tag = "4")]
    pub began: u64,
    /// Number of clients that were asked.
    #[prost(uint64, tag = "5")]
    pub asked: u64,
    /// Time when the clients that are left are closed, in nanoseconds; `None`: some are not asked yet.
    #[prost(uint64, optional, tag = "6")]
    pub ends: Option<u64>,
    /// Connections that are not asked yet, the next one last.
    #[prost(fixed64, repeated, tag = "7")]
    pub unasked: Vec<u64>,
}

/// A connection with its session.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ConnectionRecord {
    /// Key of the connection: slot and generation.
    #[prost(fixed64, tag = "1")]
    pub key: u64,
    /// State, a [`StateRecord`].
    #[prost(enumeration = "StateRecord", tag = "2")]
    pub state: i32,
    /// Heartbeat interval of the client, in seconds.
    #[prost(uint32, tag = "3")]
    pub heartbeat_s: u32,
    /// Time of the last received byte, in ticks of 2^24 ns modulo 2^32.
    #[prost(fixed32, tag = "4")]
    pub heard: u32,
    /// Used part of the frame rate, in thousandths of a frame.
    #[prost(uint32, tag = "5")]
    pub spent: u32,
    /// Time of the timer, in nanoseconds.
    #[prost(fixed64, tag = "6")]
    pub timer: u64,
    /// Received bytes of an incomplete frame.
    #[prost(bytes = "bytes", tag = "7")]
    pub partial: Bytes,
    /// Frames that are not written yet, or not completely.
    #[prost(message, repeated, tag = "8")]
    pub outbound: Vec<FrameRecord>,
    /// Written bytes of the first of those frames.
    #[prost(uint32, tag = "9")]
    pub head_sent: u32,
    /// Session; `None`: the connection is not logged in.
    #[prost(message, optional, tag = "10")]
    pub session: Option<SessionRecord>,
    /// Number of the body with the bytes before [`Self::partial`]; 0: there are none. Written only for a reader that has that
    /// body before the snapshot, and has said that it knows this field.
    #[prost(uint32, tag = "11")]
    pub partial_head: u32,
}

/// State of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum StateRecord {
    /// A state that this build does not know.
    Unspecified = 0,
    /// Accepted; only HELLO is handled.
    AwaitHello = 1,
    /// HELLO is being verified.
    Authenticating = 2,
    /// Logged in.
    Active = 3,
    /// Logged in, and asked to leave.
    Leaving = 4,
    /// Logged in, without a socket.
    Detached = 5,
    /// CLOSE is being written.
    Closing = 6,
}

/// A frame that is being written.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct FrameRecord {
    /// Header of the frame, 16 bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub head: Bytes,
    /// Number of the body; 0: empty.
    #[prost(uint32, tag = "2")]
    pub body: u32,
}

/// A session.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SessionRecord {
    /// User id: text, which is read without a copy.
    #[prost(bytes = "bytes", tag = "1")]
    pub uid: Bytes,
    /// Device id: text, which is read without a copy.
    #[prost(bytes = "bytes", tag = "2")]
    pub device: Bytes,
    /// Platform of the device.
    #[prost(uint32, tag = "3")]
    pub platform: u32,
    /// Number of questions that the backend has not answered.
    #[prost(uint32, tag = "4")]
    pub unanswered: u32,
    /// Version of the login.
    #[prost(fixed64, tag = "5")]
    pub login_version: u64,
    /// Uplink: highest cid up to which every SEND is answered.
    #[prost(uint32, tag = "6")]
    pub base: u32,
    /// Uplink: highest cid up to which every SEND was forwarded.
    #[prost(uint32, tag = "7")]
    pub taken: u32,
    /// Uplink: answered cids beyond `base`; bit i is cid base + 1 + i.
    #[prost(fixed64, tag = "8")]
    pub answered: u64,
    /// Downlink: number of the next reliable frame.
    #[prost(uint32, tag = "9")]
    pub next_seq: u32,
    /// Number of resumptions of the session.
    #[prost(uint32, tag = "10")]
    pub serial: u32,
    /// True if the client accepts bodies that are compressed with LZ4.
    #[prost(bool, tag = "11")]
    pub accepts_lz4: bool,
    /// Reliable frames to the client; `None`: no frame was ever sent or waits.
    #[prost(message, optional, boxed, tag = "12")]
    pub flight: Option<Box<FlightRecord>>,
    /// SENDs that arrived out of order, before a missing cid.
    #[prost(message, repeated, tag = "13")]
    pub early: Vec<EarlyRecord>,
    /// Worker that routes the user's frames; `None`: the one that the user id determines.
    #[prost(uint32, optional, tag = "14")]
    pub worker: Option<u32>,
    /// Time of the token's issue, in Unix seconds; 0: not known.
    #[prost(uint32, tag = "15")]
    pub issued_s: u32,
    /// Expiry of the token, in Unix seconds; 0: it does not expire.
    #[prost(uint32, tag = "16")]
    pub expires_s: u32,
    /// Round trip in microseconds, while nothing is under way; 0: unknown.
    #[prost(uint32, tag = "17")]
    pub trip_micros: u32,
}

/// A SEND that arrived out of order.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct EarlyRecord {
    /// Number of the SEND.
    #[prost(uint32, tag = "1")]
    pub cid: u32,
    /// Number of the body; 0: empty.
    #[prost(uint32, tag = "2")]
    pub body: u32,
}

/// Reliable frames to a client.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FlightRecord {
    /// Smoothed round trip in microseconds; 0: unknown.
    #[prost(uint32, tag = "1")]
    pub srtt_micros: u32,
    /// Frames that are sent and not acknowledged, oldest first.
    #[prost(message, repeated, tag = "2")]
    pub in_flight: Vec<InFlightRecord>,
    /// Frames that wait for the window, by lane.
    #[prost(message, repeated, tag = "3")]
    pub waiting: Vec<ParcelRecord>,
    /// Time since which a frame waits on a lane that may send, in nanoseconds; `None`: no frame waits.
    #[prost(uint64, optional, tag = "4")]
    pub waiting_since: Option<u64>,
    /// Time when the oldest ack was found overdue, in nanoseconds; `None`: it is not.
    #[prost(uint64, optional, tag = "5")]
    pub overdue: Option<u64>,
    /// Number of steps taken since that time: ask, send again, close.
    #[prost(uint32, tag = "6")]
    pub steps: u32,
}

/// A frame that is sent and not acknowledged.
#[derive(Clone, PartialEq, prost::Message)]
pub struct InFlightRecord {
    /// Number of the frame.
    #[prost(uint32, tag = "1")]
    pub seq: u32,
    /// Time of the first transmission, in nanoseconds.
    #[prost(fixed64, tag = "2")]
    pub sent_at: u64,
    /// Number of retransmissions.
    #[prost(uint32, tag = "3")]
    pub resent: u32,
    /// Bytes that count against the window.
    #[prost(uint32, tag = "4")]
    pub bytes: u32,
    /// Content of the frame.
    #[prost(message, optional, tag = "5")]
    pub parcel: Option<ParcelRecord>,
}

/// A push to one session.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ParcelRecord {
    /// Reference of the push, to which its outcome is reported; `None`: no outcome is reported.
    #[prost(message, optional, tag = "1")]
    pub ticket: Option<PushRefRecord>,
    /// Command: PUSH, NOTIFY or an application command.
    #[prost(uint32, tag = "2")]
    pub command: u32,
    /// Priority class.
    #[prost(uint32, tag = "3")]
    pub lane: u32,
    /// Time after which the push is not sent, in nanoseconds; `u64::MAX`: no limit.
    #[prost(fixed64, tag = "4")]
    pub expires_at: u64,
    /// Number of the body; 0: empty.
    #[prost(uint32, tag = "5")]
    pub body: u32,
    /// Number of the compressed body; 0: the body is not compressed.
    #[prost(uint32, tag = "6")]
    pub packed: u32,
    /// Collapse key: the push replaces a waiting one with the same key; `None`: it replaces none.
    #[prost(string, optional, tag = "7")]
    pub collapse: Option<String>,
    /// References of the pushes that this one has replaced.
    #[prost(message, repeated, tag = "8")]
    pub also: Vec<PushRefRecord>,
}

/// Reference of a push or a question of a backend.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct PushRefRecord {
    /// Worker whose link received it.
    #[prost(uint32, tag = "1")]
    pub worker: u32,
    /// Index of the link.
    #[prost(uint32, tag = "2")]
    pub link: u32,
    /// Generation of the link: number of its connection.
    #[prost(uint32, tag = "3")]
    pub generation: u32,
    /// Correlation of the frame on the link.
    #[prost(uint64, tag = "4")]
    pub correlation: u64,
}

/// An answer that is kept for repeated SENDs.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct AnswerRecord {
    /// Login version of the session.
    #[prost(fixed64, tag = "1")]
    pub session: u64,
    /// Number of the SEND.
    #[prost(uint32, tag = "2")]
    pub cid: u32,
    /// Body of the SENDACK.
    #[prost(bytes = "bytes", tag = "3")]
    pub bytes: Bytes,
}

/// A room.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RoomRecord {
    /// Name of the room.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Version of the member list.
    #[prost(uint64, tag = "2")]
    pub version: u64,
    /// Keys of the connections of the members.
    #[prost(fixed64, repeated, tag = "3")]
    pub members: Vec<u64>,
}

/// Pushes to the same receivers.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FanoutRecord {
    /// Pushes, in the order of delivery.
    #[prost(message, repeated, tag = "1")]
    pub pushes: Vec<ParcelRecord>,
    /// Receivers that are not served yet, the next one last.
    #[prost(fixed64, repeated, tag = "2")]
    pub keys: Vec<u64>,
    /// True if some receivers are served.
    #[prost(bool, tag = "3")]
    pub is_begun: bool,
    /// Rank of the pushes, from 1; 0: that of their lane.
    #[prost(uint32, tag = "4")]
    pub rank: u32,
}

/// A user whose rate is partly used.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct UserSpentRecord {
    /// Pin of the user: hash of the user id. Not written any more.
    #[prost(uint32, tag = "1")]
    pub who: u32,
    /// Used part of the rate, in thousandths of a frame.
    #[prost(uint32, tag = "2")]
    pub spent: u32,
    /// Time of that value, in ticks of 2^24 ns modulo 2^32.
    #[prost(fixed32, tag = "3")]
    pub since: u32,
    /// True if the user was told to send less (THROTTLE).
    #[prost(bool, tag = "4")]
    pub was_told: bool,
    /// Number of the user: keyed hash of the user id; `None`: the record knows the pin only.
    #[prost(fixed64, optional, tag = "5")]
    pub number: Option<u64>,
}

/// A client whose reads are paused.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct HoldRecord {
    /// Key of the connection.
    #[prost(fixed64, tag = "1")]
    pub key: u64,
    /// End of a pause for the rate limit, in nanoseconds; `None`: the pause has another cause.
    #[prost(uint64, optional, tag = "2")]
    pub until: Option<u64>,
    /// Pin of the user, whose worker has no room; `None`: the pause has another cause.
    #[prost(uint32, optional, tag = "3")]
    pub pin: Option<u32>,
    /// Lane on which the worker has no room.
    #[prost(uint32, tag = "4")]
    pub lane: u32,
    /// Number of that worker; `None`: the one that the pin determines.
    #[prost(uint32, optional, tag = "5")]
    pub worker: Option<u32>,
}

/// Descriptors of connections, in the order of `keys`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SocketsRecord {
    /// Keys of the connections.
    #[prost(fixed64, repeated, tag = "1")]
    pub keys: Vec<u64>,
    /// Descriptors of the sockets.
    #[prost(int32, repeated, tag = "2")]
    pub fds: Vec<i32>,
    /// Cookies; 0: the socket that the new process watches under this key since it started.
    #[prost(fixed64, repeated, tag = "3")]
    pub cookies: Vec<u64>,
}

/// Connections of one address that are not logged in. A proxy may have named the address. Optional: a reader that does not
/// know it takes the address of the peer.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HandshakesRecord {
    /// Address, as 16 bytes (IPv6).
    #[prost(bytes = "bytes", tag = "1")]
    pub name: Bytes,
    /// Keys of the connections, oldest first.
    #[prost(fixed64, repeated, tag = "2")]
    pub keys: Vec<u64>,
}

/// A layer between the socket of a connection and its frames: TLS, WebSocket, or the exchange before the first frame.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LayerRecord {
    /// Key of the connection, whose socket an earlier record names.
    #[prost(fixed64, tag = "1")]
    pub key: u64,
    /// Kind, as bits: 1 PROXY header, 2 TLS, 4 WebSocket; 8: a handshake that cannot be handed over.
    #[prost(uint32, tag = "2")]
    pub kind: u32,
    /// The exchange before the first frame has not ended.
    #[prost(bool, tag = "3")]
    pub is_opening: bool,
    /// Number of the listener where an opening came, from 0.
    #[prost(uint32, tag = "4")]
    pub listener: u32,
    /// State of the TLS record layer, with its secrets.
    #[prost(bytes = "bytes", tag = "5")]
    pub records: Bytes,
    /// State of the WebSocket.
    #[prost(bytes = "bytes", tag = "6")]
    pub websocket: Bytes,
    /// Bytes of the socket that are not read yet.
    #[prost(bytes = "bytes", tag = "7")]
    pub partial: Bytes,
    /// Decrypted bytes that are not read yet.
    #[prost(bytes = "bytes", tag = "8")]
    pub plain: Bytes,
    /// Bytes that the socket has not taken yet.
    #[prost(bytes = "bytes", tag = "9")]
    pub pending: Bytes,
}

impl LayerRecord {
    /// Record of the connection with this key.
    pub fn new(key: u64, frozen: FrozenLayer) -> Self {
        let FrozenLayer { kind, listener, is_opening, records, websocket, partial, plain, pending } = frozen;
        Self {
            key,
            kind,
            is_opening,
            listener: listener.into(),
            records: records.into(),
            websocket: websocket.into(),
            partial: partial.into(),
            plain: plain.into(),
            pending: pending.into(),
        }
    }
}

impl TryFrom<LayerRecord> for FrozenLayer {
    type Error = String;

    fn try_from(record: LayerRecord) -> Result<Self, String> {
        let LayerRecord { key: _, kind, is_opening, listener, records, websocket, partial, plain, pending } =
            record;
        Ok(Self {
            kind,
            listener: u8::try_from(listener).map_err(|_| "a listener above 255")?,
            is_opening,
            records: records.into(),
            websocket: websocket.into(),
            partial: partial.into(),
            plain: plain.into(),
            pending: pending.into(),
        })
    }
}
