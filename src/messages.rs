//! Messages between threads: from a reactor's shard to the workers and back.
//!
//! Plain data, importing only the protocol. [`Uplink`] goes from a shard to the worker of the user's
//! pin, [`Downlink`] from a worker to the shard that a [`ConnKey`] or a user's pin names. Both travel
//! in batches: one channel send and at most one wake per loop turn and peer.

use crate::snapshot::PushRefRecord;
use bytes::Bytes;
use moorline_proto::error::CloseReason;
use moorline_proto::frame::{Command, Lane};
use moorline_proto::ids::{ConnKey, Pin, Seq, ShardId};
use moorline_proto::message::backend::{ConnUp, Outcome, QueryResult, RoomDigest};
use moorline_proto::message::client::{Hello, Resume};
use moorline_proto::time::Instant;
use std::sync::Arc;

/// Items of a batch up to which the sender may run a turn of a receiver that sleeps ([`moorline_net::baton`]). A larger
/// batch is worth a wake: then both threads run side by side.
pub const ITEMS_RUN_MAX: usize = 8;

/// Items of one turn from one shard to one worker.
#[derive(Debug)]
pub struct UplinkBatch {
    /// Sending shard.
    pub from: ShardId,
    /// In the order they happened.
    pub items: Vec<Uplink>,
}

/// From a shard to a worker.
#[derive(Debug)]
pub enum Uplink {
    /// Judge this HELLO; answered by [`Downlink::Verdict`].
    Login {
        /// The connection that waits.
        key: ConnKey,
        /// Pin of the uid it claims.
        pin: Pin,
        /// The HELLO.
        hello: Box<Hello>,
    },
    /// A client's frame for the backend. SEND and REQ are answered by [`Downlink::Answer`].
    Up {
        /// The connection it came from.
        key: ConnKey,
        /// Pin of the user.
        pin: Pin,
        /// SEND, REQ or an application command.
        command: Command,
        /// The number by which the client knows the answer: the cid of a SEND, the id of a REQ, SUB or UNSUB; 0: no
        /// answer comes.
        number: u32,
        /// The frame was, or may have been, forwarded before.
        is_dup: bool,
        /// The client frame's body.
        body: Bytes,
    },
    /// A login was admitted; `login.handle` is the connection.
    ConnUp {
        /// Pin of the user.
        pin: Pin,
        /// The login as the backend gets it.
        login: Box<ConnUp>,
    },
    /// A login ended.
    ConnDown {
        /// The connection that was.
        key: ConnKey,
        /// Pin of the user.
        pin: Pin,
        /// The close code; 0: the peer left without a word.
        code: u32,
    },
    /// Outcome of a push whose outcome is wanted.
    Pushed {
        /// The push.
        ticket: PushRef,
        /// The connection.
        key: ConnKey,
        /// The outcome.
        outcome: Outcome,
    },
    /// Digest of the rooms of this worker's users; every shard sends one in every round.
    Digest {
        /// Number of the half minute, the same for all shards.
        round: u32,
        /// By [`Pin::slot`], in no order.
        rooms: Vec<(u32, RoomDigest)>,
        /// True in the shard's last message.
        is_last: bool,
    },
    /// Answers [`Downlink::Query`].
    Held {
        /// The question's name.
        ticket: PushRef,
        /// Sessions and rooms that this shard holds.
        held: QueryResult,
    },
    /// Answers [`Downlink::Announce`], in chunks.
    Announced {
        /// The request's number.
        request: u32,
        /// Logins with their pins.
        logins: Vec<(Pin, ConnUp)>,
        /// True in the shard's last message.
        is_last: bool,
    },
}

/// Names a push toward the backend that sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PushRef {
    /// The worker whose link brought it.
    pub worker: u16,
    /// Number of the worker's link.
    pub link: u16,
    /// Generation of the link: outcomes of an earlier one are dropped.
    pub link_generation: u32,
    /// The link frame's correlation.
    pub correlation: u64,
}

impl From<PushRef> for PushRefRecord {
    fn from(ticket: PushRef) -> Self {
        let PushRef { worker, link, link_generation: generation, correlation } = ticket;
        Self { worker: worker.into(), link: link.into(), generation, correlation }
    }
}

impl From<PushRefRecord> for PushRef {
    fn from(record: PushRefRecord) -> Self {
        let PushRefRecord { worker, link, generation: link_generation, correlation } = record;
        // An impossible worker or link number names no link: the outcome is dropped as stale.
        let number = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
        Self { worker: number(worker), link: number(link), link_generation, correlation }
    }
}

/// Items of one turn from one worker to one shard.
#[derive(Debug)]
pub struct DownlinkBatch {
    /// In the order they happened.
    pub items: Vec<Downlink>,
}

/// Mailbox of a shard's reactor, as a worker sees it.
pub trait ShardSink: Send {
    /// Hands a batch over. If the reactor sleeps, wakes it or, with `may_run`, runs a turn of it in this thread. Never
    /// blocks.
    ///
    /// # Errors
    /// The batch comes back: the mailbox is full. Keep it and try next turn.
    fn try_deliver(&self, batch: DownlinkBatch, may_run: bool) -> Result<(), DownlinkBatch>;
}

/// From a worker to a shard.
#[derive(Debug)]
pub enum Downlink {
    /// Answers [`Uplink::Login`].
    Verdict {
        /// The connection that waits.
        key: ConnKey,
        /// Admitted, as this user, or why not.
        verdict: Result<Admission, CloseReason>,
    },
    /// Answers an [`Uplink::Up`].
    Answer {
        /// The connection that asked; it may be gone.
        key: ConnKey,
        /// SENDACK or RESP.
        command: Command,
        /// The cid of the SEND, else 0.
        cid: Seq,
        /// False: the answer is RETRY, so the client will ask again.
        is_final: bool,
        /// Rank of the message that a SENDACK answers, or of the work that another request made.
        rank: Rank,
        /// The whole body of that frame.
        body: Bytes,
    },
    /// A frame for one or more clients.
    Push(Push),
    /// End a login.
    Kick {
        /// Target of the order.
        target: Target,
        /// With a user or device: only logins up to this version; 0: any.
        login_version: u64,
        /// The close code to give.
        code: u32,
        /// True if the client may come back by itself.
        may_reconnect: bool,
        /// For people.
        reason: String,
    },
    /// Sessions enter a room.
    Bind {
        /// Name of the room.
        room: Arc<str>,
        /// Version of the room; it only grows.
        version: u64,
        /// Target of the order.
        keys: Vec<ConnKey>,
        /// `Some`: the keys are all sessions of `worker`'s users in `slots`; other sessions of those users leave.
        reset: Option<(u16, u64)>,
    },
    /// Sessions leave a room.
    Unbind {
        /// Name of the room.
        room: Arc<str>,
        /// Version of the room; it only grows.
        version: u64,
        /// Target of the order.
        keys: Vec<ConnKey>,
    },
    /// Question about sessions and rooms, answered by [`Uplink::Held`].
    Query {
        /// Comes back with the answer.
        ticket: PushRef,
        /// Every login of this user; empty: none.
        uid: Box<str>,
        /// Every session bound to this room; empty: none.
        room: Box<str>,
    },
    /// Clients that this shard must not read, because their frames would only wait at the worker.
    Hold {
        /// The worker whose users are meant.
        worker: u16,
        /// By the lane of a client's last uplink; bit i: users with [`Pin::slot`] i. Replaces the last one.
        slots: [u64; Lane::ALL.len()],
    },
    /// Overload level of a worker: 0 normal, 1 the last rank is shed, 2 also the second, 3 logins are refused.
    Overload {
        /// The worker.
        worker: u16,
        /// The level.
        level: u8,
    },
    /// Name every login of these pins: a link changed. Answered by [`Uplink::Announced`].
    Announce {
        /// The asking worker.
        worker: u16,
        /// Number of the request.
        request: u32,
        /// Bit i: pins with [`Pin::slot`] i, of this worker.
        slots: u64,
    },
}

/// A verified user.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Admission {
    /// Uid from the token.
    pub uid: String,
    /// Device from HELLO, or bound by the token.
    pub device: String,
    /// Platform from HELLO: a number of `client::Platform`.
    pub platform: i32,
    /// True if the client can decompress LZ4 [P-1.9].
    pub accepts_lz4: bool,
    /// Time of the token's issue, in Unix seconds; 0: not known.
    pub issued_s: u64,
    /// Expiry of the token, in Unix seconds; 0: it does not expire.
    pub expires_s: u64,
    /// The session that it wants to go on with [P-3.10]; not judged yet.
    pub resume: Option<Box<Resume>>,
}

/// Rank of a message by its kind and size, which the backend decides: the first is served before the others, and shed
/// last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// Messages between two users, and those of small groups.
    #[default]
    First,
    /// Messages of groups, and of applications.
    Second,
    /// Messages of very large groups, and what may take its time.
    Last,
}

impl Rank {
    /// All ranks, in order.
    pub const ALL: [Self; 3] = [Self::First, Self::Second, Self::Last];

    /// Rank that the backend told. A backend that does not tell one, or tells one that this build does not know, means
    /// the rank of the lane.
    pub const fn of(told: i32, lane: Lane) -> Self {
        let of_lane = match lane {
            Lane::Control | Lane::Chat => Self::First,
            Lane::Group => Self::Second,
            Lane::Bulk => Self::Last,
        };
        match told {
            1 => Self::First,
            2 => Self::Second,
            3 => Self::Last,
            _ => of_lane,
        }
    }

    /// Number by which a link and a snapshot name the rank.
    pub const fn number(self) -> u32 {
        self as u32 + 1
    }
}

/// One payload for some connections of one shard.
#[derive(Clone, Debug)]
pub struct Push {
    /// Reference for outcomes; `None`: they are not wanted.
    pub ticket: Option<PushRef>,
    /// Target of the order.
    pub targets: Vec<Target>,
    /// PUSH, NOTIFY or an application command.
    pub command: Command,
    /// Priority class.
    pub lane: Lane,
    /// Rank of the message.
    pub rank: Rank,
    /// Not to be sent after this; `Instant::FAR_FUTURE`: no limit.
    pub expires_at: Instant,
    /// Shared by all targets, never copied per target.
    pub body: Bytes,
    /// The body compressed, once for all targets that accept it, if it is worth it.
    pub packed: Option<Bytes>,
    /// Not to this one, of a room.
    pub except: Option<ConnKey>,
    /// Collapse key: the push replaces a waiting one with the same key.
    pub collapse: Option<Arc<str>>,
}

/// Target of a push or a kick.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// One connection.
    Connection(ConnKey),
    /// Every device of a user.
    User(Box<str>),
    /// One device of a user.
    Device(Box<str>, Box<str>),
    /// Everybody of this shard who is bound to a room.
    Room(Arc<str>),
}
