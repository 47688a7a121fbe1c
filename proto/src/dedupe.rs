//! The uplink dedupe window: the cids that were taken and that were answered (`docs/protocol.md` section 5).
//!
//! Two numbers and a bitmap, whatever the session's length [P-5.4]. Frames that are `Early`, results
//! and timers belong to the owner.

use crate::ids::Seq;

/// Number of cids that may run ahead of the answered base.
pub const WINDOW_FRAMES: u32 = 64;

/// Position of a cid relative to the window.
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
    /// Above the window: close.
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

    /// Position of `cid`; changes nothing. Zero is not a valid cid and counts as `Beyond`.
    pub const fn check(&self, cid: Seq) -> Verdict {
        if cid == 0 {
            return Verdict::Beyond;
        }
        if cid <= self.base {
            return Verdict::Answered;
        }
        let bit = cid - self.base - 1;
        if bit >= WINDOW_FRAMES {
            return Verdict::Beyond;
        }
        if cid <= self.taken {
            return if self.answered >> bit & 1 == 1 { Verdict::Answered } else { Verdict::Pending };
        }
        if cid == self.taken + 1 { Verdict::Next } else { Verdict::Early }
    }

    /// Takes the next cid. Panics unless `check(cid)` is `Next`.
    pub fn take(&mut self, cid: Seq) {
        assert!(matches!(self.check(cid), Verdict::Next), "cids are taken in order: ask first");
        self.taken = cid;
    }

    /// A taken cid has its answer; an answer given twice changes nothing [P-5.10]. False if `cid` was never taken.
    pub fn answer(&mut self, cid: Seq) -> bool {
        if cid == 0 || cid > self.taken {
            return false;
        }
        if cid > self.base {
            self.answered |= 1 << (cid - self.base - 1);
            let done = self.answered.trailing_ones();
            self.base += done;
            self.answered = self.answered.checked_shr(done).unwrap_or(0);
        }
        true
    }

    /// Base, taken and answered bits, for [`Self::restore`] in another process.
    pub const fn parts(&self) -> (Seq, Seq, u64) {
        let Self { base, taken, answered } = *self;
        (base, taken, answered)
    }

    /// A window with these values; `None` if no window can have them.
    pub const fn restore((base, taken, answered): (Seq, Seq, u64)) -> Option<Self> {
        // The next cid is never answered, or it would be the base; a cid that was not taken is not answered.
        let is_sound = taken >= base
            && taken - base <= WINDOW_FRAMES
            && answered & 1 == 0
            && (taken - base == WINDOW_FRAMES || answered >> (taken - base) == 0);
        if is_sound { Some(Self { base, taken, answered }) } else { None }
    }

    /// The highest cid up to which every cid is answered.
    pub const fn base(&self) -> Seq {
        self.base
    }

    /// The highest cid up to which every cid was taken: the cumulative ack.
    pub const fn taken(&self) -> Seq {
        self.taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// Model of the window, with sets.
    #[derive(Default)]
    struct Model {
        taken: BTreeSet<Seq>,
        answered: BTreeSet<Seq>,
    }

    impl Model {
        fn base(&self) -> Seq {
            let mut base = 0;
            while self.answered.contains(&(base + 1)) {
                base += 1;
            }
            base
        }

        fn check(&self, cid: Seq) -> Verdict {
            let next = self.taken.last().map_or(1, |last| last + 1);
            match cid {
                _ if self.answered.contains(&cid) => Verdict::Answered,
                _ if self.taken.contains(&cid) => Verdict::Pending,
                0 => Verdict::Beyond,
                _ if cid > self.base() + WINDOW_FRAMES => Verdict::Beyond,
                _ if cid == next => Verdict::Next,
                _ => Verdict::Early,
            }
        }
    }

    proptest! {
        #[test]
        fn behaves_like_two_sets(steps in proptest::collection::vec((any::<bool>(), 0u32..70), 1..400)) {
            let (mut dedupe, mut model) = (Dedupe::new(), Model::default());
            for (is_answer, ahead) in steps {
                // Mostly around the window, sometimes before and behind it.
                let cid = (model.base() + ahead).saturating_sub(3);
                if is_answer {
                    let was_taken = model.taken.contains(&cid);
                    prop_assert_eq!(dedupe.answer(cid), was_taken);
                    if was_taken {
                        model.answered.insert(cid);
                    }
                } else {
                    // Take everything in order up to this cid, as a stream of frames would.
                    for cid in dedupe.taken() + 1..=cid {
                        prop_assert_eq!(dedupe.check(cid), model.check(cid));
                        if dedupe.check(cid) == Verdict::Next {
                            dedupe.take(cid);
                            model.taken.insert(cid);
                        }
                    }
                }
                for cid in model.base().saturating_sub(2)..model.base() + WINDOW_FRAMES + 3 {
                    prop_assert_eq!(dedupe.check(cid), model.check(cid), "cid {}", cid);
                }
                prop_assert_eq!(dedupe.base(), model.base());
                prop_assert_eq!(dedupe.taken(), model.taken.last().copied().unwrap_or(0));
            }
        }
    }

    #[test]
    fn the_window_fills_and_opens_again() {
        let mut dedupe = Dedupe::new();
        assert_eq!(size_of::<Dedupe>(), 16);
        assert_eq!(dedupe.check(0), Verdict::Beyond);
        assert_eq!(dedupe.check(2), Verdict::Early);
        (1..=WINDOW_FRAMES).for_each(|cid| dedupe.take(cid));
        assert_eq!(dedupe.check(WINDOW_FRAMES + 1), Verdict::Beyond);
        (2..=WINDOW_FRAMES).for_each(|cid| assert!(dedupe.answer(cid)));
        assert_eq!(
            (dedupe.base(), dedupe.check(1), dedupe.check(2)),
            (0, Verdict::Pending, Verdict::Answered)
        );
        assert!(dedupe.answer(1) && dedupe.answer(1));
        assert_eq!((dedupe.base(), dedupe.check(WINDOW_FRAMES + 1)), (WINDOW_FRAMES, Verdict::Next));
    }

    #[test]
    fn the_last_number_of_all_is_still_a_number() {
        let mut dedupe = Dedupe { base: u32::MAX - 1, taken: u32::MAX - 1, answered: 0 };
        assert_eq!(dedupe.check(u32::MAX), Verdict::Next);
        dedupe.take(u32::MAX);
        assert!(dedupe.answer(u32::MAX));
        assert_eq!(dedupe.check(u32::MAX), Verdict::Answered);
    }

    #[test]
    #[should_panic(expected = "in order")]
    fn taking_out_of_order_is_our_fault() {
        Dedupe::new().take(2);
    }
}
