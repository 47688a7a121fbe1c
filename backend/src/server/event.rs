//! What a handler is told, and the names it uses for gateways, links, sessions and pushes.

use bytes::Bytes;
use moorline_proto::frame::Command;
use moorline_proto::message::backend::{ConnUp, Outcome};
use moorline_proto::time::Instant;

/// Both clocks, read once per loop turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Monotonic, for deadlines.
    pub instant: Instant,
    /// Unix time in milliseconds, for people.
    pub unix_ms: u64,
}

/// One life of one gateway process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GatewayId(pub(crate) u32);

impl GatewayId {
    /// Gateways are named by a [`super::Server`]; this is for driving a handler without one.
    pub const fn new(number: u32) -> Self {
        Self(number)
    }
}

/// One TCP connection of a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

impl LinkId {
    /// Links are named by a [`super::Server`]; this is for driving a handler without one.
    pub const fn new(slot: u32, generation: u32) -> Self {
        Self { slot, generation }
    }
}

/// One login of one device. Stays the same when it moves to another link.
///
/// [`Self::slot`] is small and used again after the session ended, so that a handler can keep its own
/// state in an array; the whole id is never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

impl SessionId {
    /// Sessions are named by a [`super::Server`]; this is for driving a handler without one.
    pub const fn new(slot: u32, generation: u32) -> Self {
        Self { slot, generation }
    }

    /// Index into a handler's own table; below `link.sessions_max`.
    pub const fn slot(self) -> usize {
        self.slot as usize
    }
}

/// Names a push; later pushes have larger numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PushId(pub(crate) u64);

impl PushId {
    /// Pushes are named by an [`super::Outbox`]; this is for driving a handler without one.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn number(self) -> u64 {
        self.0
    }
}

/// The right to answer one UP, once.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "an UP without an answer holds the link's credit"]
pub struct ReplyTo {
    pub(crate) link: LinkId,
    pub(crate) correlation: u64,
}

impl ReplyTo {
    /// Questions come from a [`super::Server`]; this is for driving a handler without one.
    pub const fn new(link: LinkId, correlation: u64) -> Self {
        Self { link, correlation }
    }

    /// The link that the question came by.
    pub const fn link(&self) -> LinkId {
        self.link
    }

    /// The question's number on its link.
    pub const fn correlation(&self) -> u64 {
        self.correlation
    }
}

/// The right to judge one login, once.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a client waits for the verdict"]
pub struct JudgeTo {
    pub(crate) link: LinkId,
    pub(crate) correlation: u64,
}

/// A client's frame.
#[derive(Debug)]
pub struct Up {
    /// Who says it.
    pub session: SessionId,
    /// SEND, REQ or an application command.
    pub command: Command,
    /// The cid of a SEND, else 0.
    pub seq: u32,
    /// It was, or may have been, forwarded before.
    pub dup: bool,
    /// The frame's body. It shares a large read buffer: copy what is kept for long.
    pub body: Bytes,
    /// Where the answer goes; `None` for application commands.
    pub reply: Option<ReplyTo>,
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// A gateway process came, by its first link.
    GatewayUp {
        /// Its name here.
        gateway: GatewayId,
        /// Its own name.
        node: String,
        /// Its life.
        epoch: u64,
    },
    /// A link said HELLO.
    LinkUp {
        /// Whose.
        gateway: GatewayId,
        /// Which.
        link: LinkId,
    },
    /// A device logged in, or its session is announced again on a link.
    ConnUp {
        /// Its name here.
        session: SessionId,
        /// Whose it is.
        gateway: GatewayId,
        /// As the gateway says.
        login: ConnUp,
        /// False: known already; outcomes of earlier pushes may be lost.
        is_new: bool,
    },
    /// All `ConnUp` of one ANNOUNCE frame were given.
    Announced {
        /// Which link now speaks for them.
        link: LinkId,
        /// How many.
        sessions: usize,
        /// A further frame follows.
        more: bool,
    },
    /// A client's frame.
    Up(Up),
    /// What became of a push that wanted to know. OFFLINE from the gateway means that the connection
    /// is gone: its `ConnDown` follows.
    Pushed {
        /// Who.
        session: SessionId,
        /// Which.
        push: PushId,
        /// What.
        outcome: Outcome,
    },
    /// A session ended; its id is gone.
    ConnDown {
        /// Who.
        session: SessionId,
        /// The close code; 0: it left without a word, or its gateway did.
        code: u32,
    },
    /// A link ended. Its sessions stay for the lease and are usually announced on another soon.
    LinkDown {
        /// Whose.
        gateway: GatewayId,
        /// Which.
        link: LinkId,
    },
    /// A gateway process is gone, after `ConnDown` of each of its sessions.
    GatewayDown {
        /// Which.
        gateway: GatewayId,
    },
    /// Time passes: about four times a second.
    Tick,
}
