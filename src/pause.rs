//! Pausing a thread between two turns, so that its state can be written into a snapshot (`docs/handover.md`).
//!
//! ```text
//! main thread                         each loop's thread
//!  request(), wake ───────────────►   end of turn: waits for orders, touches no socket
//!  Order::Step, round after round ─►  takes its messages, hands over the results
//!  (a round without any result)
//!  Order::Freeze ─────────────────►   writes its state into a section
//!  resume(), or the process ends
//! ```
//!
//! Steps go to one thread after the other, so a round in which no thread had anything to do proves that no
//! message is under way. The word behind the request is [`PauseWord`], which loom checks.

use crate::snapshot::{Section, StoredBodies};
use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};
use moorline_net::pause_word::PauseWord;
use std::io;
use std::sync::Arc;

/// Sections of a thread's loops, by number.
pub type Frozen = Vec<(u32, Section)>;

/// Order to a paused thread.
#[derive(Debug)]
pub enum Order {
    /// Take all messages and hand over the results; reply whether there was, or is, anything to do.
    Step(Sender<bool>),
    /// Write the state into sections, for a reader that has these bodies already.
    Freeze(Sender<io::Result<Frozen>>, Arc<StoredBodies>),
    /// Run again. Unix nanoseconds at the gateway's own time zero, which stood still.
    Resume(u64),
}

/// Question to a thread that runs: the bodies that wait in its loops, as references, for another process to read them before
/// the pause.
#[derive(Debug)]
pub struct Question {
    /// True if that process also reads the beginnings of frames that are not whole yet.
    pub with_partials: bool,
    /// Receiver of the answer.
    pub reply: Sender<Vec<Bytes>>,
}

/// The loop's end.
#[derive(Debug)]
pub struct PausePoint {
    word: Arc<PauseWord>,
    orders: Receiver<Order>,
    questions: Receiver<Question>,
}

/// The main thread's end.
#[derive(Clone, Debug)]
pub struct PauseHandle {
    word: Arc<PauseWord>,
    orders: Sender<Order>,
    questions: Sender<Question>,
}

/// Orders that may wait for a thread: one, and a Resume behind it.
const ORDERS_MAX: usize = 4;

/// Makes both ends.
pub fn pause() -> (PauseHandle, PausePoint) {
    let (sender, orders) = bounded(ORDERS_MAX);
    let (asking, questions) = bounded(1);
    let word = Arc::new(PauseWord::new());
    let handle = PauseHandle { word: Arc::clone(&word), orders: sender, questions: asking };
    (handle, PausePoint { word, orders, questions })
}

impl PausePoint {
    /// Pauses if that was asked for. Returns true if the thread must now take orders up to [`Order::Resume`].
    pub fn try_pause(&self) -> bool {
        self.word.try_pause()
    }

    /// Returns a question that waits for this thread.
    pub fn question(&self) -> Option<Question> {
        self.questions.try_recv().ok()
    }

    /// Waits for the next order; `None`: the main thread has ended, run on.
    pub fn wait(&self) -> Option<Order> {
        let order = self.orders.recv().ok();
        if matches!(order, None | Some(Order::Resume(_))) {
            self.word.resume();
        }
        order
    }
}

impl PauseHandle {
    /// Asks the thread to pause after its turn. Wake the thread after this call.
    pub fn request(&self) {
        self.word.request();
    }

    /// Returns whether the thread is paused.
    pub fn is_paused(&self) -> bool {
        self.word.is_paused()
    }

    /// Lets the thread run again, or takes the request back.
    pub fn resume(&self, unix_base_nanos: u64) {
        if !self.word.withdraw() {
            self.order(Order::Resume(unix_base_nanos));
        }
    }

    /// Asks a thread that runs, which answers after its turn. Wake the thread after this call. Returns false if another
    /// question waits.
    pub fn ask(&self, question: Question) -> bool {
        self.questions.try_send(question).is_ok()
    }

    /// Gives an order to a paused thread. Returns false if the thread takes no order.
    pub fn order(&self, order: Order) -> bool {
        self.orders.try_send(order).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_can_be_taken_back_before_and_after_the_thread_has_paused() {
        let (handle, point) = pause();
        handle.request();
        handle.resume(1);
        assert!(!point.try_pause(), "the request was taken back");
        handle.request();
        assert!(point.try_pause() && handle.is_paused());
        handle.resume(2);
        assert!(matches!(point.wait(), Some(Order::Resume(2))));
        assert!(!handle.is_paused() && !point.try_pause());
    }
}
