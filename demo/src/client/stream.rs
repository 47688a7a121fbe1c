//! The places of one conversation as one device gets them: in order, each once.
//!
//! Every conversation of the demo begins in an empty store, so its first place is 1 and a hole is known from
//! the first message on. A hole that lasts is pulled; if the backend then says that the place holds nothing,
//! the place is vacant: proof that a message is missing.

use moorline_proto::message::client::Push;
use moorline_proto::message::im::PullResponse;
use moorline_proto::time::{Duration, Instant};
use std::collections::BTreeMap;

/// Wait for a hole to close by itself, and between pulls without progress.
const HOLE_WAIT: Duration = Duration::from_secs(1);
/// Messages behind a hole that are kept; later ones are pulled again.
const HELD_MAX: usize = 4096;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Pull {
    #[default]
    Idle,
    /// To be asked at this time.
    Waiting(Instant),
    Asked,
}

/// One conversation at one device.
#[derive(Debug)]
pub(super) struct Stream {
    /// The first place that has not come.
    next: u64,
    /// Places from `next` on; `None`: this device's own message, or a vacant place.
    held: BTreeMap<u64, Option<Push>>,
    /// The newest place that is known to exist.
    latest: u64,
    pull: Pull,
    /// The next pull asks for everything up to the newest place, known or not.
    wants_newest: bool,
}

impl Default for Stream {
    fn default() -> Self {
        Self { next: 1, held: BTreeMap::new(), latest: 0, pull: Pull::Idle, wants_newest: false }
    }
}

impl Stream {
    /// A place and what it holds for this device.
    pub(super) fn handle_place(&mut self, now: Instant, seq: u64, push: Option<Push>) {
        self.latest = self.latest.max(seq);
        self.hold(seq, push);
        self.settle(now);
    }

    /// Places up to `latest` exist.
    pub(super) fn handle_latest(&mut self, now: Instant, latest: u64) {
        self.latest = self.latest.max(latest);
        self.settle(now);
    }

    /// Everything up to the newest place is to be pulled.
    pub(super) fn want_newest(&mut self, now: Instant) {
        self.wants_newest = true;
        if self.pull != Pull::Asked {
            self.pull = Pull::Waiting(now);
        }
    }

    /// The next message in order.
    pub(super) fn poll_message(&mut self) -> Option<Push> {
        while let Some(item) = self.held.remove(&self.next) {
            self.next += 1;
            if item.is_some() {
                return item;
            }
        }
        None
    }

    /// The places to pull now: from, and to (0: the newest).
    pub(super) fn poll_pull(&mut self, now: Instant) -> Option<(u64, u64)> {
        if !matches!(self.pull, Pull::Waiting(at) if at <= now) {
            return None;
        }
        self.pull = Pull::Asked;
        if self.wants_newest {
            return Some((self.next, 0));
        }
        Some((self.next, self.hole_end()))
    }

    /// The answer to a pull up to `to`; `None`: it was refused. Returns the vacant places.
    pub(super) fn handle_page(
        &mut self,
        now: Instant,
        to: u64,
        page: Option<PullResponse>,
        is_own: impl Fn(&Push) -> bool,
    ) -> Vec<(u64, u64)> {
        self.pull = Pull::Idle;
        self.wants_newest &= to != 0;
        let (before, mut vacant) = (self.next, Vec::new());
        // A refusal to read a place is an answer too.
        let page = page.unwrap_or(PullResponse { latest: to, ..PullResponse::default() });
        self.latest = self.latest.max(page.latest);
        let last = if to == 0 { page.latest } else { to };
        for push in page.messages {
            let (seq, own) = (push.seq, is_own(&push));
            self.hold(seq, (!own).then_some(push));
        }
        if page.more {
            self.wants_newest |= to == 0;
            self.pull = Pull::Waiting(now);
        } else if page.latest >= last {
            for seq in before..=last.min(self.latest) {
                if seq >= self.next && !self.held.contains_key(&seq) {
                    self.held.insert(seq, None);
                    vacant.push((seq, seq));
                }
            }
        }
        if !page.more {
            self.settle(now);
        }
        vacant
    }

    pub(super) const fn deadline(&self) -> Option<Instant> {
        match self.pull {
            Pull::Waiting(at) => Some(at),
            Pull::Idle | Pull::Asked => None,
        }
    }

    fn hold(&mut self, seq: u64, item: Option<Push>) {
        if seq >= self.next && (self.held.len() < HELD_MAX || seq == self.next) {
            self.held.entry(seq).or_insert(item);
        }
    }

    /// Starts or ends the wait for a hole.
    fn settle(&mut self, now: Instant) {
        let mut first_missing = self.next;
        while self.held.contains_key(&first_missing) {
            first_missing += 1;
        }
        let has_hole = first_missing <= self.latest;
        let is_moving = first_missing > self.next;
        match self.pull {
            Pull::Idle if has_hole => self.pull = Pull::Waiting(now + HOLE_WAIT),
            Pull::Waiting(_) if !has_hole && !self.wants_newest => self.pull = Pull::Idle,
            Pull::Waiting(_) if is_moving && !self.wants_newest => self.pull = Pull::Waiting(now + HOLE_WAIT),
            Pull::Idle | Pull::Waiting(_) | Pull::Asked => {}
        }
    }

    fn hole_end(&self) -> u64 {
        self.held.keys().next().map_or(self.latest, |first| first - 1)
    }
}
