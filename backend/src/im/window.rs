//! Window of a device: pushed and acknowledged positions in its user's stream.
//!
//! Pure. `acked <= pushed` always; everything in between is in flight, in stream order.

use crate::server::PushId;
use moorline_proto::time::Instant;
use std::collections::VecDeque;

/// True if pushes go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    /// Yes, while the window has room.
    Open,
    /// Not before an ack, a new `ConnUp`, or this time.
    Stalled(Instant),
}

#[derive(Debug)]
pub(super) struct Window {
    acked: u64,
    /// `None`: nothing is in flight and the flow is open, as for nearly all devices at any time.
    busy: Option<Box<Busy>>,
}

#[derive(Debug)]
struct Busy {
    pushed: u64,
    in_flight: VecDeque<InFlight>,
    bytes: usize,
    flow: Flow,
}

#[derive(Debug)]
struct InFlight {
    /// `None`: nothing was sent, the device wrote this itself.
    push: Option<PushId>,
    position: u64,
    bytes: usize,
    is_acked: bool,
}

impl Window {
    pub(super) fn new(acked: u64) -> Self {
        Self { acked, busy: None }
    }

    pub(super) fn acked(&self) -> u64 {
        self.acked
    }

    pub(super) fn pushed(&self) -> u64 {
        self.busy.as_ref().map_or(self.acked, |busy| busy.pushed)
    }

    /// Number of further entries that may go out now, if their bytes fit.
    pub(super) fn room(&self, pushes_max: usize) -> usize {
        let Some(busy) = &self.busy else { return pushes_max };
        if busy.flow == Flow::Open { pushes_max.saturating_sub(busy.in_flight.len()) } else { 0 }
    }

    /// True if this many more bytes may be in flight. A single push always may.
    pub(super) fn fits(&self, bytes: usize, bytes_max: usize) -> bool {
        self.busy.as_ref().is_none_or(|busy| busy.bytes == 0 || busy.bytes + bytes <= bytes_max)
    }

    /// Everything unacked is to be pushed again.
    pub(super) fn restart(&mut self) {
        self.busy = None;
    }

    /// The stream is known to hold nothing up to `position` that is not in flight.
    pub(super) fn skip_to(&mut self, position: u64) {
        let pushed = self.pushed().max(position);
        if let Some(busy) = &mut self.busy {
            busy.pushed = pushed;
        }
        if self.busy.as_ref().is_none_or(|busy| busy.in_flight.is_empty()) {
            self.acked = pushed;
        }
    }

    /// The entry at `position` is the device's own message: nothing to send. True: `acked` moved.
    pub(super) fn on_own(&mut self, position: u64) -> bool {
        if let Some(busy) = &mut self.busy {
            busy.pushed = position;
        }
        let Some(busy) = self.busy.as_mut().filter(|busy| !busy.in_flight.is_empty()) else {
            return std::mem::replace(&mut self.acked, position) < position;
        };
        busy.in_flight.push_back(InFlight { push: None, position, bytes: 0, is_acked: true });
        self.settle()
    }

    pub(super) fn on_push(&mut self, push: PushId, position: u64, bytes: usize) {
        let busy = self.busy();
        busy.pushed = position;
        busy.bytes += bytes;
        busy.in_flight.push_back(InFlight { push: Some(push), position, bytes, is_acked: false });
    }

    /// The device has it. True: `acked` moved.
    pub(super) fn on_acked(&mut self, push: PushId) -> bool {
        let Some(busy) = &mut self.busy else { return false };
        busy.flow = Flow::Open;
        if let Some(index) = busy.find(push) {
            busy.in_flight[index].is_acked = true;
        }
        self.settle()
    }

    /// Takes back a push that did not reach the device, and all pushes behind it. True: it was in flight.
    pub(super) fn on_failed(&mut self, push: PushId, retry_at: Instant) -> bool {
        let Some(busy) = &mut self.busy else { return false };
        let Some(index) = busy.find(push) else { return false };
        for dropped in busy.in_flight.drain(index..) {
            busy.bytes -= dropped.bytes;
        }
        busy.pushed = busy.in_flight.back().map_or(self.acked, |last| last.position);
        busy.flow = Flow::Stalled(retry_at);
        true
    }

    /// Stops the flow until the next tick: the next entry cannot be read now.
    pub(super) fn stall(&mut self) {
        self.stall_until(Instant::ZERO);
    }

    /// Stops the flow until `retry_at`.
    pub(super) fn stall_until(&mut self, retry_at: Instant) {
        self.busy().flow = Flow::Stalled(retry_at);
    }

    /// Opens the flow if its time has come. False: it stays stalled, or was not.
    pub(super) fn try_retry(&mut self, now: Instant) -> bool {
        let is_due = |busy: &&mut Box<Busy>| matches!(busy.flow, Flow::Stalled(at) if at <= now);
        let Some(busy) = self.busy.as_mut().filter(is_due) else { return false };
        busy.flow = Flow::Open;
        self.settle();
        true
    }

    /// True if the device was pushed entries that it has not acknowledged.
    pub(super) fn is_unacked(&self) -> bool {
        let is_open = |it: &InFlight| it.push.is_some() && !it.is_acked;
        let busy = self.busy.as_ref();
        busy.is_some_and(|busy| busy.flow != Flow::Open || busy.in_flight.iter().any(is_open))
    }

    pub(super) fn is_stalled(&self) -> bool {
        self.busy.as_ref().is_some_and(|busy| busy.flow != Flow::Open)
    }

    fn busy(&mut self) -> &mut Busy {
        let pushed = self.acked;
        let idle = || Box::new(Busy { pushed, in_flight: VecDeque::new(), bytes: 0, flow: Flow::Open });
        self.busy.get_or_insert_with(idle)
    }

    /// Takes out what is acked in order, and gives the memory back when nothing is left. True: `acked` moved.
    fn settle(&mut self) -> bool {
        let before = self.acked;
        let Some(busy) = &mut self.busy else { return false };
        while let Some(first) = busy.in_flight.front()
            && first.is_acked
        {
            self.acked = first.position;
            busy.bytes -= first.bytes;
            busy.in_flight.pop_front();
        }
        if busy.in_flight.is_empty() && busy.flow == Flow::Open {
            self.acked = self.acked.max(busy.pushed); // behind the last push there was nothing
            self.busy = None;
        }
        self.acked > before
    }
}

impl Busy {
    /// Acks come in order, so this nearly always finds the first.
    fn find(&self, push: PushId) -> Option<usize> {
        self.in_flight.iter().position(|it| it.push == Some(push))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acks_settle_in_order_and_failures_rewind() {
        let mut window = Window::new(3);
        for i in 4..8 {
            window.on_push(PushId(i), i, 10);
        }
        assert!(!window.on_acked(PushId(5)), "4 is open still");
        assert!(window.on_acked(PushId(4)));
        assert_eq!((window.acked(), window.pushed(), window.room(10)), (5, 7, 8));
        assert_eq!([window.fits(10, 30), window.fits(11, 30)], [true, false], "20 bytes are in flight");
        let later = Instant::from_nanos(9);
        assert!(window.on_failed(PushId(7), later));
        assert_eq!((window.pushed(), window.room(10), window.is_stalled()), (6, 0, true));
        assert!(!window.try_retry(Instant::ZERO) && window.try_retry(later));
        window.on_push(PushId(9), 7, 10);
        assert!(!window.on_own(8));
        assert!(window.on_acked(PushId(6)) && window.on_acked(PushId(9)));
        assert_eq!((window.acked(), window.pushed()), (8, 8));
        assert!(window.busy.is_none(), "an idle window has no memory of its own");
    }

    #[test]
    fn a_restart_forgets_what_is_in_flight() {
        let mut window = Window::new(0);
        window.on_push(PushId(1), 1, 10);
        window.restart();
        assert_eq!((window.pushed(), window.room(1), window.fits(9, 1)), (0, 1, true));
        assert!(!window.on_acked(PushId(1)));
    }
}
