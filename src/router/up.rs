//! A client's frame on its way to a backend.

use super::Slot;
use bytes::Bytes;
use moorline_proto::frame::Command;
use moorline_proto::ids::ConnKey;
use moorline_proto::time::Instant;

/// A client's frame on its way to the backend.
#[derive(Debug)]
pub struct Up {
    /// The connection it came from.
    pub key: ConnKey,
    /// Its user's slot.
    pub slot: Slot,
    /// SEND, REQ, SUB, UNSUB or an application command.
    pub command: Command,
    /// What the answer is told by: a SEND's cid, an id, or 0 if there is none.
    pub number: u32,
    /// It was, or may have been, forwarded before.
    pub is_dup: bool,
    /// When the worker took it.
    pub taken_at: Instant,
    /// The client frame's body.
    pub body: Bytes,
}

impl Up {
    /// Whether the backend answers it.
    pub const fn is_question(&self) -> bool {
        !matches!(self.command, Command::App(_))
    }
}
