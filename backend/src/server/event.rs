//! Events for a handler, and the ids of gateways, links, sessions, pushes and questions.

use bytes::Bytes;
use moorline_proto::frame::Command;
use moorline_proto::message::backend::{ConnUp, Outcome};
use moorline_proto::slots::NodeId;
use moorline_proto::time::Instant;

/// Both clocks, read once per turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Monotonic time, for deadlines.
    pub instant: Instant,
    /// Unix time in milliseconds, for people.
    pub unix_ms: u64,
}

/// Id of one epoch of a gateway process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GatewayId(pub(crate) u32);

impl GatewayId {
    /// Creates an id, to drive a handler without a [`super::LinkHost`].
    pub const fn new(number: u32) -> Self {
        Self(number)
    }
}

/// Id of one TCP connection of a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

impl LinkId {
    /// Creates an id, to drive a handler without a [`super::LinkHost`].
    pub const fn new(slot: u32, generation: u32) -> Self {
        Self { slot, generation }
    }
}

/// Id of one login of one device. It stays the same when the session moves to another link.
///
/// [`Self::slot`] is small and is used again after the end of the session, so that a handler can keep its state in an
/// array. The whole id is never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

impl SessionId {
    /// Creates an id, to drive a handler without a [`super::LinkHost`].
    pub const fn new(slot: u32, generation: u32) -> Self {
        Self { slot, generation }
    }

    /// Returns the index into a handler's own table, below `link.sessions_max`.
    pub const fn slot(self) -> usize {
        self.slot as usize
    }
}

/// Id of a push; later pushes have larger numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PushId(pub(crate) u64);

impl PushId {
    /// Creates an id, for a handler that numbers its pushes itself.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Returns the number.
    pub const fn number(self) -> u64 {
        self.0
    }
}

/// Number of a group's room, chosen by the handler. A number is not used again after the room was closed or lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RoomNumber(pub(crate) u64);

impl RoomNumber {
    /// Creates a number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }
}

/// Right to answer one UP, once.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "an UP without an answer holds the link's credit"]
pub struct ReplyTo {
    pub(crate) link: LinkId,
    pub(crate) correlation: u64,
}

impl ReplyTo {
    /// Creates a right, to drive a handler without a [`super::LinkHost`].
    pub const fn new(link: LinkId, correlation: u64) -> Self {
        Self { link, correlation }
    }

    /// Returns the link that the UP came by.
    pub const fn link(&self) -> LinkId {
        self.link
    }

    /// Returns the number of the UP on its link.
    pub const fn correlation(&self) -> u64 {
        self.correlation
    }
}

/// Right to judge one login, once.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a client waits for the verdict"]
pub struct JudgeTo {
    pub(crate) link: LinkId,
    pub(crate) correlation: u64,
}

/// A client's frame.
#[derive(Debug)]
pub struct Up {
    /// Session of the client.
    pub session: SessionId,
    /// SEND, REQ or an application command.
    pub command: Command,
    /// cid of a SEND; 0: another command.
    pub seq: u32,
    /// Marks a frame that was, or may have been, forwarded before.
    pub dup: bool,
    /// Body of the frame. It shares a large read buffer: copy whatever is kept for long.
    pub body: Bytes,
    /// Right to answer; `None`: an application command, which has no answer.
    pub reply: Option<ReplyTo>,
}

/// Event for a [`super::Handler`].
#[derive(Debug)]
pub enum Event {
    /// A gateway process greeted, on its first link.
    GatewayUp {
        /// Id of the gateway.
        gateway: GatewayId,
        /// Name that the gateway gave itself.
        node: String,
        /// Epoch: larger for each later life of the process.
        epoch: u64,
    },
    /// A link was opened by a HELLO.
    LinkUp {
        /// Gateway of the link.
        gateway: GatewayId,
        /// Id of the link.
        link: LinkId,
    },
    /// A device logged in, or its session is announced again on a link.
    ConnUp {
        /// Id of the session.
        session: SessionId,
        /// Gateway of the session.
        gateway: GatewayId,
        /// Login as the gateway describes it.
        login: ConnUp,
        /// False: the session is known, and outcomes of earlier pushes may be lost.
        is_new: bool,
    },
    /// All `ConnUp` events of one ANNOUNCE frame were given.
    Announced {
        /// Link that speaks for the sessions from now on.
        link: LinkId,
        /// Number of sessions.
        sessions: usize,
        /// Announces a further ANNOUNCE frame.
        more: bool,
    },
    /// A client's frame.
    Up(Up),
    /// Outcome of a push with `want_ack`. OFFLINE from the gateway means that the connection has ended: its `ConnDown`
    /// follows.
    Pushed {
        /// Session that the push was for.
        session: SessionId,
        /// Id of the push.
        push: PushId,
        /// Outcome for this session.
        outcome: Outcome,
    },
    /// A session ended. Its id is never used again.
    ConnDown {
        /// Session that ended.
        session: SessionId,
        /// Close code; 0: the client, or its gateway, left without one.
        code: u32,
    },
    /// A link ended. Its sessions stay for `link.lease` and are usually announced on another link soon.
    LinkDown {
        /// Gateway of the link.
        gateway: GatewayId,
        /// Link that ended.
        link: LinkId,
    },
    /// The room of a group is lost: what was pushed to it lately may not have reached its members.
    RoomLost {
        /// Number of the room.
        room: RoomNumber,
    },
    /// A gateway process is gone. `ConnDown` of each of its sessions came before.
    GatewayDown {
        /// Gateway that is gone.
        gateway: GatewayId,
    },
    /// A message of another node of the cluster.
    Peer {
        /// The node.
        node: NodeId,
        /// The message.
        message: Bytes,
    },
    /// A quarter of a second has passed.
    Tick,
}
