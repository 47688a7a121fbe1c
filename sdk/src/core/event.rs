//! Outputs of a core for its driver and, through it, the application.

use super::endpoint_list::DispatchFault;
use super::tls_fault::TlsFault;
use bytes::Bytes;
use moorline_proto::error::CloseReason;
use moorline_proto::ids::{MessageKey, ReadableId};
use moorline_proto::message::client::Code;
pub use moorline_proto::message::im::happened::What as ConversationEvent;
use moorline_proto::time::Duration;
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

/// Cursor of a client in a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConversationCursor {
    /// The place at which it began to listen; what lies before is history.
    pub start: u64,
    /// The first place that was not handled.
    pub next: u64,
    /// The message before it that was stored last.
    pub newest: Newest,
}

/// The message of a conversation that was stored last, and its time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Newest {
    /// The message's seq.
    pub place: u64,
    /// Unix milliseconds; 0: nothing is known.
    pub stored_ms: u64,
}

/// Receiver of a message.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// Another user.
    User(Arc<str>),
    /// A group, or a conversation known by its id.
    Conversation(Arc<str>),
}

impl Target {
    /// Another user.
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
    /// Conversation of the message.
    pub conversation: Arc<str>,
    /// Seq in the conversation, rising; 0: a message without a seq. The seq falls only if the backend has
    /// lost its data and counts anew.
    pub seq: u64,
    /// Sender of the message.
    pub sender: String,
    /// On which device.
    pub sender_device: String,
    /// The application's content type.
    pub kind: u32,
    /// The content.
    pub payload: Bytes,
    /// Time of storing, Unix milliseconds.
    pub time_ms: u64,
    /// Conversation event of the IM backend; kind and payload are then not set.
    pub happened: Option<Box<ConversationEvent>>,
}

impl Message {
    /// The message id as people write it.
    pub fn readable_id(&self) -> ReadableId {
        ReadableId::new(self.message_id, &self.conversation)
    }
}

/// Proof that a send is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The send.
    pub id: SendId,
    /// The message's key.
    pub key: MessageKey,
    /// True if an earlier try had stored the message already.
    pub is_repeat: bool,
    /// The backend's name of the message.
    pub message_id: u64,
    /// Conversation in which the message was stored.
    pub conversation: Arc<str>,
    /// Seq in the conversation.
    pub seq: u64,
    /// Time of storing, Unix milliseconds.
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
        /// Sum of the payloads, in bytes.
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
        /// Code of the answer.
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

/// Policy for a request that may reach the backend more than once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// Never: a connection lost meanwhile ends it with [`RequestError::Lost`].
    Once,
    /// Repeatable: sent again after a lost connection or RETRY, until the deadline.
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

/// Reason why a request has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The backend, or the gateway for it, said no.
    #[error("the request was refused: {code:?} {reason}")]
    Refused {
        /// Code of the answer.
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

/// Reason why a token is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenWhy {
    /// The core has no token yet.
    First,
    /// The last one has expired, or is about to.
    Expired,
    /// The gateway did not accept the last one.
    Refused,
}

/// Reason why a connection or a connection attempt ended.
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
        /// The close code.
        code: u32,
        /// In words.
        reason: String,
    },
    /// The gateway broke the protocol.
    Protocol(CloseReason),
    /// The gateway could not be proved, or TLS failed.
    Tls(TlsFault),
}

/// Reason why a core is closed for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClosedWhy {
    /// By `logout`.
    LoggedOut,
    /// By `close`.
    ByApplication,
    /// The gateway said CLOSE or KICK with a code or mark that forbids to come back.
    Told {
        /// The close code.
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

/// Output of a core. The driver performs [`Connect`](Self::Connect), [`Transmit`](Self::Transmit),
/// [`Hangup`](Self::Hangup) and [`TokenNeeded`](Self::TokenNeeded); the other variants are for the application, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Driver: connect now, then call `handle_connected` or `handle_disconnected`.
    Connect {
        /// Address to connect to, named by a gateway or a dispatch server; `None`: the driver's own. Without
        /// [`CoreConfig::is_proved`](super::CoreConfig::is_proved) it is one of
        /// [`CoreConfig::alternates`](super::CoreConfig::alternates).
        alternate: Option<Arc<str>>,
    },
    /// Driver: write the bytes that [`Core::poll_transmit`](super::Core::poll_transmit) gives now to the connection that
    /// stands. There may be none: the connection was lost meanwhile.
    Transmit,
    /// Driver: drop the socket (or the attempt), after the socket has taken what it can of the bytes before, and report
    /// nothing more about it.
    Hangup,
    /// Driver: ask this dispatch server for gateways, then call `handle_endpoints`; a later answer is not wanted any more.
    EndpointsNeeded {
        /// Server, one of [`CoreConfig::dispatch`](super::CoreConfig::dispatch).
        server: Arc<str>,
    },
    /// Driver: fetch a token, then call `handle_token`.
    TokenNeeded(TokenWhy),
    /// A send is durable: its one final result.
    Sent(Receipt),
    /// A send failed: its one final result.
    SendFailed {
        /// The send.
        id: SendId,
        /// The message's key.
        key: MessageKey,
        /// Reason of the failure.
        failure: SendFailure,
    },
    /// A message, once and in its conversation's order.
    Message(Message),
    /// A request's one result.
    Response {
        /// The request.
        id: RequestId,
        /// The payload of the answer, or the reason why there is no answer.
        result: Result<Bytes, RequestError>,
    },
    /// Neither a message nor a result.
    Notice(Notice),
}

impl Notice {
    /// Memory that the notice takes beside its own size, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Signal { conversation, sender, sender_device, payload } => {
                conversation.len() + sender.len() + sender_device.len() + payload.len()
            }
            Self::App { body, .. } => body.len(),
            Self::Hole { conversation, .. } | Self::New { conversation, .. } => conversation.len(),
            Self::RoomEntered { room } => room.len(),
            Self::RoomRefused { room, reason, .. } => room.len() + reason.len(),
            Self::Kicked { reason, .. }
            | Self::Disconnected { why: Lost::Told { reason, .. }, .. }
            | Self::Closed(ClosedWhy::Told { reason, .. }) => reason.len(),
            Self::NoEndpoints { why } => why.bytes(),
            Self::LoggedIn { .. }
            | Self::Disconnected { .. }
            | Self::FrameDropped { .. }
            | Self::Closed(_) => 0,
        }
    }
}

/// Events for the application beside messages and results.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Logged in.
    LoggedIn {
        /// True if the gateway still had the session.
        resumed: bool,
    },
    /// Not connected; the client comes back by itself.
    Disconnected {
        /// The reason.
        why: Lost,
        /// Wait before the next attempt.
        retry_in: Duration,
    },
    /// A dispatch server gave no list; the client goes on with the last one and with its own endpoint.
    NoEndpoints {
        /// The reason.
        why: DispatchFault,
    },
    /// Seqs of a conversation that could not be filled and were passed over.
    Hole {
        /// Conversation id.
        conversation: Arc<str>,
        /// First seq.
        from: u64,
        /// Last seq.
        to: u64,
    },
    /// There are new messages; the client pulls them by itself.
    New {
        /// Conversation id.
        conversation: Arc<str>,
        /// The newest seq.
        latest: u64,
    },
    /// The backend let this device into a room.
    RoomEntered {
        /// Name of the room.
        room: Arc<str>,
    },
    /// The backend did not admit the session; the client does not ask again.
    RoomRefused {
        /// Name of the room.
        room: Arc<str>,
        /// Code of the answer.
        code: Code,
        /// In words, may be empty.
        reason: String,
    },
    /// Signal of a member in a room of a conversation: not stored, true only now.
    Signal {
        /// Conversation id.
        conversation: Arc<str>,
        /// Uid of the sender.
        sender: String,
        /// Device of the sender.
        sender_device: String,
        /// The application's content.
        payload: Bytes,
    },
    /// A frame had a value that no valid frame has, for example a name of 1 MiB. The client dropped the frame and
    /// acknowledged it, so that it does not come again.
    FrameDropped {
        /// The command byte.
        command: u8,
        /// The value, in words.
        reason: &'static str,
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
        /// True if the client comes back by itself.
        may_reconnect: bool,
    },
    /// The last event: nothing more will happen.
    Closed(ClosedWhy),
}
