//! The uplink dedupe window: which cids were taken, which were answered (`docs/protocol.md` section 5).

use crate::ids::Seq;

/// How far a cid may run ahead of the answered base.
pub const WINDOW_FRAMES: u32 = 64;

/// What a cid is, to its receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The next one: take it.
    Next,
    /// Inside the window, after a hole: hold it.
    Early,
    /// Taken, not yet answered: the answer will come.
    Pending,
    /// Answered before: answer again, or let the durable key decide.
    Answered,
    /// Over the window: close.
    Beyond,
}

/// The receiver's state of one session; 16 bytes, `Copy`.
///
/// `base`: every cid up to it is answered. `taken`: every cid up to it was taken, in order.
/// `answered`: bit i is cid base + 1 + i.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dedupe {
    base: Seq,
    taken: Seq,
    answered: u64,
}

impl Dedupe {
    /// Nothing taken.
    pub const fn new() -> Self {
        Self { base: 0, taken: 0, answered: 0 }
    }
    /// What `cid` is; changes nothing.
    pub const fn check(&self, cid: Seq) -> Verdict {
        let _ = cid;
        todo!()
    }
    /// Takes the next cid. Panics unless `check(cid)` is `Next`.
    pub fn take(&mut self, cid: Seq) {
        let _ = cid;
        todo!()
    }
    /// A taken cid has its answer; an answer given twice changes nothing. False if `cid` was never taken.
    pub fn answer(&mut self, cid: Seq) -> bool {
        let _ = cid;
        todo!()
    }
    /// Every cid up to here is answered.
    pub const fn base(&self) -> Seq {
        self.base
    }
    /// Every cid up to here was taken: the cumulative ack.
    pub const fn taken(&self) -> Seq {
        self.taken
    }
}
