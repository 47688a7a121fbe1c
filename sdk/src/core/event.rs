//! What a core tells its driver and, through it, the application.

use bytes::Bytes;
use moorline_proto::error::CloseReason;
use moorline_proto::ids::{MessageKey, ReadableId};
use moorline_proto::message::client::Code;
pub use moorline_proto::message::im::happened::What as Happened;
use moorline_proto::time::Instant;
use std::fmt;
use std::sync::Arc;

/// The core's own name of one send, rising; returned at once by `send`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SendId(pub u64);

/// The core's name of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u32);

/// Names one delivered message until [`Core::handled`](super::Core::handled) gives it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// Where a client stands in a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The place at which it began to listen; what lies before is history.
    pub start: u64,
    /// The first place that was not handled.
    pub next: u64,
    /// The message before it that was stored last.
    pub newest: Newest,
}

/// Which message of a conversation was stored last, and when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Newest {
    /// Its place.
    pub place: u64,
    /// Unix milliseconds; 0: nothing is known.
    pub stored_ms: u64,
}

/// Whom a message is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// One other user.
    User(Arc<str>),
    /// A group, or a conversation known by its id.
    Conversation(Arc<str>),
}

impl Target {
    /// One other user.
    pub fn user(uid: &str) -> Self {
        Self::User(uid.into())
    }

    /// A group by its name.
    pub fn group(name: &str) -> Self {
        Self::Conversation(format!("group:{name}").into())
    }

    /// The id of the conversation that a message of `me` to this target belongs to.
    pub fn conversation(&self, me: &str) -> Arc<str> {
        match self {
            Self::Conversation(id) => Arc::clone(id),
            Self::User(other) if me <= &**other => format!("c2c:{me}:{other}").into(),
            Self::User(other) => format!("c2c:{other}:{me}").into(),
        }
    }
}

/// A message as the application sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Give it back to `handled` when the message is safe with you.
    pub token: Token,
    /// The backend's name of the message.
    pub message_id: u64,
    /// Where it was said.
    pub conversation: Arc<str>,
    /// Its place there, rising; 0 in a conversation without places. It falls only if the backend has
    /// lost its data and counts anew.
    pub seq: u64,
    /// Who said it.
    pub sender: String,
    /// On which device.
    pub sender_device: String,
    /// The application's content type.
    pub kind: u32,
    /// The content.
    pub payload: Bytes,
    /// When it was stored, Unix milliseconds.
    pub time_ms: u64,
    /// Of the IM backend: nothing was said, this happened; kind and payload are not set.
    pub happened: Option<Box<Happened>>,
}

impl Message {
    /// Its id as people write it down.
    pub fn readable_id(&self) -> ReadableId {
        ReadableId::new(self.message_id, &self.conversation)
    }
}

/// Proof that a send is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Which send.
    pub id: SendId,
    /// Its key.
    pub key: MessageKey,
    /// Whether an earlier try had stored it already.
    pub is_repeat: bool,
    /// The backend's name of the message.
    pub message_id: u64,
    /// Where it was stored.
    pub conversation: Arc<str>,
    /// Its place there.
    pub seq: u64,
    /// When it was stored, Unix milliseconds.
    pub time_ms: u64,
}

/// A send was not taken at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendRefused {
    /// Too many sends have no result yet.
    #[error("cannot send: the outbox holds {sends} messages and {bytes} bytes; wait for results first")]
    OutboxFull {
        /// Sends without a result.
        sends: usize,
        /// Their payload bytes.
        bytes: usize,
    },
    /// The message cannot fit a frame.
    #[error("cannot send: the message takes {bytes} bytes, the limit is {bytes_max}; make it smaller")]
    TooLarge {
        /// Bytes of the encoded message.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// The core is closed for good.
    #[error("cannot send: the client is closed; make a new one")]
    Closed,
    /// The client's store cannot be written.
    #[error("cannot send: the store cannot be written ({0}); free space on its disk")]
    Store(std::io::ErrorKind),
}

/// A send's final result when it is not a receipt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendFailure {
    /// The backend said no; it is not stored.
    #[error("the message was refused: {code:?} {reason}")]
    Refused {
        /// Why.
        code: Code,
        /// In words, may be empty.
        reason: String,
    },
    /// The backend said "later" for too long. It may yet have been stored: send it again with the same key.
    #[error("the message was put off for longer than allowed; send it again with the same key")]
    PutOff,
    /// No answer to any try. It may have been stored: send it again with the same key.
    #[error("the message was never answered; send it again with the same key")]
    Unanswered,
    /// The core was closed first. It may have been stored.
    #[error("the client was closed before the message was answered")]
    Closed,
}

/// Whether a request may reach the backend more than once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// Never: a connection lost meanwhile ends it with [`RequestError::Lost`].
    Once,
    /// It may: it is asked again after a lost connection or RETRY, until its deadline.
    UntilAnswered,
}

/// A request was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestRefused {
    /// Too many requests are open.
    #[error("cannot ask: {open} requests are open; wait for answers first")]
    TooMany {
        /// Open requests.
        open: usize,
    },
    /// The request cannot fit a frame.
    #[error("cannot ask: the request takes {bytes} bytes, the limit is {bytes_max}; make it smaller")]
    TooLarge {
        /// Bytes of payload.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// The core is closed for good.
    #[error("cannot ask: the client is closed; make a new one")]
    Closed,
}

/// Why a request has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The backend, or the gateway for it, said no.
    #[error("the request was refused: {code:?} {reason}")]
    Refused {
        /// Why.
        code: Code,
        /// In words, may be empty.
        reason: String,
    },
    /// No answer in the time it was given.
    #[error("the request was not answered in time")]
    TimedOut,
    /// The connection was lost while it was asked; it may have been done.
    #[error("the connection was lost before the request was answered")]
    Lost,
    /// The core was closed first.
    #[error("the client was closed before the request was answered")]
    Closed,
}

/// Why a token is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenWhy {
    /// There is none yet.
    First,
    /// The gateway said that the last one has expired.
    Expired,
}

/// Why a connection, or the attempt to have one, ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lost {
    /// No connection, in the driver's view or because of `connect_timeout`.
    ConnectFailed,
    /// The token provider had none.
    NoToken,
    /// The gateway did not say WELCOME in time.
    HandshakeTimeout,
    /// The socket is gone.
    SocketGone,
    /// The gateway gave no sign of life.
    HeartbeatTimeout,
    /// A send had no answer however often it was tried.
    SendUnanswered,
    /// The gateway asked to leave.
    GoAway,
    /// The gateway said CLOSE or KICK.
    Told {
        /// Its close code.
        code: u32,
        /// In words.
        reason: String,
    },
    /// The gateway broke the protocol.
    Protocol(CloseReason),
}

/// Why a core is closed for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClosedWhy {
    /// By `logout`.
    LoggedOut,
    /// By `close`.
    ByApplication,
    /// The gateway said CLOSE or KICK with a code or mark that forbids to come back.
    Told {
        /// Its close code.
        code: u32,
        /// In words.
        reason: String,
    },
}

impl fmt::Display for ClosedWhy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LoggedOut => f.write_str("logged out"),
            Self::ByApplication => f.write_str("closed by the application"),
            Self::Told { code, reason } => write!(f, "closed by the gateway: {code} {reason}"),
        }
    }
}

/// What happened, or what the driver must do.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Driver: connect now, then call `handle_connected` or `handle_disconnected`.
    Connect {
        /// Where to try first, if the gateway named another place.
        alternate: Option<Arc<str>>,
    },
    /// Driver: write what `poll_transmit` gave so far as far as it goes, drop the socket (or the
    /// attempt), and report nothing more about it.
    Hangup,
    /// Driver: fetch a token, then call `handle_token`.
    TokenNeeded(TokenWhy),
    /// Logged in.
    LoggedIn {
        /// Whether the gateway still had the session.
        resumed: bool,
    },
    /// Not connected; the core comes back by itself.
    Disconnected {
        /// Why.
        why: Lost,
        /// When it will try next.
        retry_at: Instant,
    },
    /// A send is durable: its one final result.
    Sent(Receipt),
    /// A send failed: its one final result.
    SendFailed {
        /// Which send.
        id: SendId,
        /// Its key.
        key: MessageKey,
        /// Why.
        failure: SendFailure,
    },
    /// A message, once and in its conversation's order.
    Message(Message),
    /// Places of a conversation that could not be filled and were passed over.
    Hole {
        /// Where.
        conversation: Arc<str>,
        /// First place.
        from: u64,
        /// Last place.
        to: u64,
    },
    /// A request's one result.
    Response {
        /// Which request.
        id: RequestId,
        /// The payload of the answer, or why there is none.
        result: Result<Bytes, RequestError>,
    },
    /// There is something new; the core pulls it by itself.
    Notify {
        /// Where.
        conversation: Arc<str>,
        /// The newest place.
        latest: u64,
    },
    /// The backend let this device into a room.
    RoomEntered {
        /// Which.
        room: Arc<str>,
    },
    /// It did not; the core does not ask again.
    RoomRefused {
        /// Which.
        room: Arc<str>,
        /// Why.
        code: Code,
        /// In words, may be empty.
        reason: String,
    },
    /// Somebody in a room of a conversation signals something: not stored, true only now.
    Signal {
        /// Where.
        conversation: Arc<str>,
        /// Who.
        sender: String,
        /// On which device.
        sender_device: String,
        /// What.
        payload: Bytes,
    },
    /// A frame of another application command, 0x41 to 0xBF.
    App {
        /// The command byte.
        command: u8,
        /// The body.
        body: Bytes,
    },
    /// The backend ended this login.
    Kicked {
        /// The close code.
        code: u32,
        /// In words.
        reason: String,
        /// Whether the core will come back by itself.
        may_reconnect: bool,
    },
    /// The last event: nothing more will happen.
    Closed(ClosedWhy),
}

/// Events on their way out.
pub(super) type Events = std::collections::VecDeque<Event>;
