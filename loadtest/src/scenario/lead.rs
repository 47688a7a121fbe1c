//! The first bytes of every message: of which run it is, who sent it, which one it is, when it left and
//! when it was meant to.
//!
//! `CLOCK_MONOTONIC` is the same in all processes of a machine, so the receiver alone can tell latencies.

use bytes::{BufMut, Bytes, BytesMut};
use moorline_proto::time::Instant;

/// Bytes of a lead; no message with deliveries is shorter.
pub const LEAD_BYTES: u32 = 28;

/// First bytes of a payload: run, sender, number, times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lead {
    /// Number of the run: messages that an earlier run left in an inbox are ignored.
    pub(super) run: u32,
    /// The sender, as a number of the fleet.
    pub(super) from: u32,
    /// Number among this sender's messages, from 1.
    pub(super) number: u32,
    pub(super) sent_at: Instant,
    pub(super) intended: Instant,
}

impl Lead {
    /// Payload of this many bytes that begins with this lead.
    pub(super) fn payload(self, payload_bytes: u32) -> Bytes {
        let len = payload_bytes.max(LEAD_BYTES) as usize;
        let mut payload = BytesMut::with_capacity(len);
        payload.put_u32(self.run);
        payload.put_u32(self.from);
        payload.put_u32(self.number);
        payload.put_u64(self.sent_at.as_nanos());
        payload.put_u64(self.intended.as_nanos());
        payload.resize(len, b'm');
        payload.freeze()
    }

    /// Lead of a payload; `None`: the payload is too short.
    pub(super) fn of(payload: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_be_bytes(*payload.get(at..)?.first_chunk()?));
        let long = |at: usize| Some(u64::from_be_bytes(*payload.get(at..)?.first_chunk()?));
        Some(Self {
            run: word(0)?,
            from: word(4)?,
            number: word(8)?,
            sent_at: Instant::from_nanos(long(12)?),
            intended: Instant::from_nanos(long(20)?),
        })
    }
}

/// A number for one run of a scenario.
pub(super) fn new_run() -> u32 {
    getrandom::u32().expect("the kernel has random bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lead_comes_back() {
        let at = |nanos| Instant::from_nanos(nanos);
        let lead = Lead { run: 5, from: 7, number: 9, sent_at: at(1 << 40 | 3), intended: at(1 << 40 | 1) };
        for bytes in [0, LEAD_BYTES, 128] {
            let payload = lead.payload(bytes);
            assert_eq!(payload.len(), bytes.max(LEAD_BYTES) as usize);
            assert_eq!(Lead::of(&payload), Some(lead));
        }
        assert_eq!(Lead::of(b"short"), None);
    }
}
