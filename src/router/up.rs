//! A client's frame on its way to a backend.

use super::Slot;
use bytes::Bytes;
use moorline_proto::frame::Command;
use moorline_proto::ids::ConnKey;
use moorline_proto::time::Instant;

/// A client's frame on its way to the backend.
#[derive(Debug)]
pub(super) struct Up {
    /// The connection it came from.
    pub(super) key: ConnKey,
    /// Slot of the user.
    pub(super) slot: Slot,
    /// SEND, REQ, SUB, UNSUB or an application command.
    pub(super) command: Command,
    /// Number that names the answer: a SEND's cid, a request's id; 0: no answer.
    pub(super) number: u32,
    /// True if the frame was, or may have been, forwarded before.
    pub(super) is_dup: bool,
    /// Time at which the worker took it.
    pub(super) taken_at: Instant,
    /// The client frame's body.
    pub(super) body: Bytes,
}

/// Bytes of a body up to which a frame that waits is copied: as a slice it would keep the whole block in memory that its
/// client was read into.
const COPIED_MAX: usize = 16 << 10;

impl Up {
    /// Copies a small body out of the block that its client was read into.
    pub(super) fn own_body(&mut self) {
        if self.body.len() <= COPIED_MAX {
            self.body = Bytes::copy_from_slice(&self.body);
        }
    }

    /// True if the backend answers it.
    pub(super) const fn is_question(&self) -> bool {
        !matches!(self.command, Command::App(_))
    }
}
