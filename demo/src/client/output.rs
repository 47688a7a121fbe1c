//! Names of a login, and the outputs of a client.

use super::outbox::Target;
use bytes::Bytes;
use moorline_proto::error::CloseReason;
use moorline_proto::frame::Frame;
use moorline_proto::ids::MessageKey;
use moorline_proto::message::client::Push;
use std::fmt;
use std::sync::Arc;

/// Name of one login, and the conversations that it takes part in.
#[derive(Debug)]
pub(crate) struct Login {
    pub(crate) uid: Arc<str>,
    pub(crate) device: &'static str,
    /// By seat: the conversation's id, and how to address it.
    pub(crate) seats: Vec<(Arc<str>, Target)>,
}

/// A send that is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Receipt {
    pub(crate) key: MessageKey,
    /// An earlier try of the same message was stored already.
    pub(crate) is_repeat: bool,
    pub(crate) conversation: String,
    /// Place in the conversation.
    pub(crate) seq: u64,
}

/// Cause of a connection's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Dropped {
    /// The socket ended or failed without a word.
    Socket,
    /// The connect failed.
    Connect,
    /// The gateway said CLOSE or KICK.
    Told { code: u32, reason: String },
    /// The gateway broke the protocol.
    Protocol(CloseReason),
    /// The gateway did not do this in time.
    Late(&'static str),
}

impl Dropped {
    /// Returns true if slowness alone explains it: then it says nothing against the gateway.
    pub(crate) fn is_slowness(&self) -> bool {
        match self {
            Self::Late(_) | Self::Connect => true,
            Self::Told { code, .. } => matches!(
                CloseReason::from_code(*code),
                Some(
                    CloseReason::Busy
                        | CloseReason::Slow
                        | CloseReason::AckTimeout
                        | CloseReason::HeartbeatTimeout
                        | CloseReason::HandshakeTimeout
                        | CloseReason::Unavailable
                        | CloseReason::Throttled
                )
            ),
            Self::Socket | Self::Protocol(_) => false,
        }
    }
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket => write!(f, "the socket ended"),
            Self::Connect => write!(f, "the connect failed"),
            Self::Told { code, reason } => write!(f, "the gateway says {code} {reason}"),
            Self::Protocol(reason) => write!(f, "the gateway broke the protocol: {reason}"),
            Self::Late(what) => write!(f, "no {what} in time"),
        }
    }
}

/// One thing to do or to hear, in the order of causes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Output {
    /// Connect to the gateway; answered by [`Client::handle_connected`] or [`Client::handle_disconnected`].
    Connect,
    /// Write this frame to the connection.
    Write(Frame),
    /// Close the connection.
    HangUp,
    /// The login stands.
    LoggedIn,
    /// The connection or the attempt is over; the client tries again.
    Disconnected(Dropped),
    /// The client was told to stay away.
    Closed(Dropped),
    /// The next message of a seat's conversation.
    Message { seat: usize, push: Push },
    /// The backend says that these places hold nothing for this device.
    Vacant { seat: usize, from: u64, to: u64 },
    /// A send is durable.
    Stored(Receipt),
    /// A send was refused for good.
    Failed { key: MessageKey, why: String },
    /// Answer to [`Client::request`].
    Response(Result<Bytes, String>),
}
