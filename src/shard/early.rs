//! SENDs of one session that came before their turn.
//!
//! Example: alice's SEND 3 arrives while 2 is missing. It waits here; when 2 has come, both are forwarded in order.
//! If 2 does not come within [`HOLE_MAX`], the connection is closed: what waits takes memory and helps nobody.

use bytes::Bytes;
use moorline_proto::ids::Seq;
use moorline_proto::time::{Duration, Instant};
use std::collections::BTreeMap;

/// Longest time for which a cid may be missing [P-10.1].
pub(super) const HOLE_MAX: Duration = Duration::from_secs(5);
/// Memory of one SEND that waits, beside its body.
const SEND_BYTES: usize = 64;

/// SENDs that wait for an earlier one; there is at least one.
#[derive(Debug)]
pub(super) struct Early {
    /// Bodies by cid, at most a dedupe window.
    sends: BTreeMap<Seq, Bytes>,
    /// Memory that they take.
    bytes: usize,
    /// Time since which the next cid is missing.
    since: Instant,
}

impl Early {
    /// No SEND waits; the next cid is missing from `now` on.
    pub(super) const fn new(now: Instant) -> Self {
        Self { sends: BTreeMap::new(), bytes: 0, since: now }
    }

    /// Keeps a SEND, in memory of its own: the block that it came in may be large. Of a cid that comes twice the last
    /// one counts.
    pub(super) fn insert(&mut self, cid: Seq, body: &Bytes) {
        self.bytes += SEND_BYTES + body.len();
        if let Some(older) = self.sends.insert(cid, Bytes::copy_from_slice(body)) {
            self.bytes -= SEND_BYTES + older.len();
        }
    }

    /// Takes the SEND with this cid.
    pub(super) fn take(&mut self, cid: Seq) -> Option<Bytes> {
        let body = self.sends.remove(&cid)?;
        self.bytes -= SEND_BYTES + body.len();
        Some(body)
    }

    /// Another cid is missing from `now` on, or the client could not send until now.
    pub(super) const fn restart(&mut self, now: Instant) {
        self.since = now;
    }

    /// Time at which the missing cid must have come.
    pub(super) fn deadline(&self) -> Instant {
        self.since + HOLE_MAX
    }

    /// Memory that the SENDs take, in bytes.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sends.is_empty()
    }

    /// Cids and bodies, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Seq, &Bytes)> {
        self.sends.iter().map(|(cid, body)| (*cid, body))
    }
}
