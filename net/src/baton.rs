//! The state of a loop, which another thread may run for one turn while the loop's own thread sleeps.
//!
//! A hand-over to a thread that sleeps costs a wake: a system call, and two context switches. If the state is free, the
//! sender takes the baton, runs the turn itself, and lets the loop's own thread sleep on. Under load the loop's own thread
//! is awake and holds the baton, so that everything runs side by side.
//!
//! ```text
//! sender                                     loop's own thread
//!  push(message)                              sleeps in its poll, the baton is free
//!  take_sleep()  true: it sleeps
//!  try_run()     takes the baton, runs a
//!                turn, which takes the
//!                message and sleeps again
//!                false: wakes the thread ───► hold(), a turn
//! ```
//!
//! No thread ever waits for a baton but the loop's own one: a sender that finds it taken wakes its holder. So no circle
//! of threads can form. The loom test tries all orders of steps.

#[cfg(all(loom, test))]
use loom::sync::{Mutex, MutexGuard};
use std::fmt;
#[cfg(not(all(loom, test)))]
use std::sync::{Mutex, MutexGuard};

/// A loop that can be run by another thread than its own.
pub trait Turn: Send {
    /// Runs one turn without new events, and declares the loop asleep. False: the loop's own thread is needed, because
    /// there is more to do, or something to do earlier than that thread will wake by itself.
    fn run_for_sender(&mut self) -> bool;
}

/// A loop that a sender may try to run.
pub trait TryRun: Send + Sync {
    /// Runs one turn if nobody else runs one. False: wake the loop's own thread.
    fn try_run(&self) -> bool;
}

/// A loop's state, which one thread at a time holds.
pub struct Baton<L> {
    state: Mutex<L>,
}

impl<L> fmt::Debug for Baton<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Baton")
    }
}

impl<L> Baton<L> {
    /// Returns the baton of a loop.
    pub fn new(state: L) -> Self {
        Self { state: Mutex::new(state) }
    }

    /// Holds the loop, once a sender that runs a turn of it has finished. Only the loop's own thread waits here.
    ///
    /// # Panics
    /// If a turn of this loop has panicked in another thread.
    pub fn hold(&self) -> MutexGuard<'_, L> {
        self.state.lock().expect("no turn of this loop has panicked")
    }
}

impl<L: Turn> TryRun for Baton<L> {
    fn try_run(&self) -> bool {
        self.state.try_lock().is_ok_and(|mut state| state.run_for_sender())
    }
}

#[cfg(all(loom, test))]
mod tests {
    use super::*;
    use crate::loom_event::Event;
    use crate::wake_flag::WakeFlag;
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicUsize, Ordering};
    use loom::thread;

    /// A loop that counts its messages; a count stands for the queue.
    struct Counting {
        flag: Arc<WakeFlag>,
        queued: Arc<AtomicUsize>,
        taken: usize,
    }

    impl Counting {
        /// Declares the loop asleep. False: a message waits.
        fn try_sleep(&self) -> bool {
            self.flag.fall_asleep();
            self.queued.load(Ordering::Relaxed) == self.taken
        }

        fn turn(&mut self) {
            self.flag.wake_up();
            self.taken = self.queued.load(Ordering::Relaxed);
        }
    }

    impl Turn for Counting {
        fn run_for_sender(&mut self) -> bool {
            self.turn();
            // The loop's own thread sees in its next turn that all is done.
            self.try_sleep() && self.taken < MESSAGES
        }
    }

    const MESSAGES: usize = 2;

    /// Loom reports a deadlock if any order of steps leaves the loop's own thread asleep beside a message.
    #[test]
    fn no_message_is_left_beside_a_loop_that_its_senders_run() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let (flag, queued) = (Arc::new(WakeFlag::new()), Arc::new(AtomicUsize::new(0)));
            let event = Arc::new(Event::default());
            let counting = Counting { flag: Arc::clone(&flag), queued: Arc::clone(&queued), taken: 0 };
            let baton = Arc::new(Baton::new(counting));
            let send = || {
                let (flag, queued) = (Arc::clone(&flag), Arc::clone(&queued));
                let (baton, event) = (Arc::clone(&baton), Arc::clone(&event));
                move || {
                    queued.fetch_add(1, Ordering::Relaxed);
                    if flag.take_sleep() && !baton.try_run() {
                        event.wake();
                    }
                }
            };
            let senders: Vec<_> = (0..MESSAGES).map(|_| thread::spawn(send())).collect();
            loop {
                let may_sleep = {
                    let state = baton.hold();
                    if state.taken == MESSAGES {
                        break;
                    }
                    state.try_sleep()
                };
                if may_sleep {
                    event.wait();
                }
                baton.hold().turn();
            }
            senders.into_iter().for_each(|sender| sender.join().expect("the sender ends"));
        });
    }
}
