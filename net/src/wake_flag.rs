//! The flag that tells a sender whether the receiving thread sleeps.
//!
//! A wake costs a system call, so a sender wakes the receiver only if the receiver has declared itself
//! asleep. Every change of the word is a swap, so of two changes one comes second and sees everything before
//! the other:
//!
//! ```text
//! receiver                            sender
//!  fall_asleep()  swap true            push(message)
//!  queue empty?   yes: poll            take_sleep()  swap false -> true: the receiver sleeps, wake it
//! ```
//!
//! If the receiver's swap comes second, it has seen everything before the sender's swap: the queue is not
//! empty, and the receiver does not poll. If the sender's swap comes second, it returns true and the sender
//! wakes the receiver. The loom test below tries all orders.

#[cfg(all(loom, test))]
use loom::sync::atomic::{AtomicBool, Ordering};
#[cfg(not(all(loom, test)))]
use std::sync::atomic::{AtomicBool, Ordering};

/// True if the receiver sleeps, or is about to.
#[derive(Debug)]
pub struct WakeFlag {
    is_asleep: AtomicBool,
}

impl Default for WakeFlag {
    fn default() -> Self {
        Self::new()
    }
}

impl WakeFlag {
    /// Returns the flag of a receiver that is awake.
    pub fn new() -> Self {
        Self { is_asleep: AtomicBool::new(false) }
    }

    /// Declares the receiver asleep. The receiver must look at its queue once more after this call and
    /// before it polls.
    pub fn fall_asleep(&self) {
        self.is_asleep.swap(true, Ordering::AcqRel);
    }

    /// Declares the receiver awake, after its poll.
    pub fn wake_up(&self) {
        // A swap and not a store: a store would cut the chain of swaps, and the next `fall_asleep` might not see
        // a message whose sender found the receiver awake.
        self.is_asleep.swap(false, Ordering::AcqRel);
    }

    /// Returns true to the one sender that must wake the receiver. Call it after the message is in the queue.
    pub fn take_sleep(&self) -> bool {
        self.is_asleep.swap(false, Ordering::AcqRel)
    }
}

#[cfg(all(loom, test))]
mod tests {
    use super::*;
    use crate::loom_event::Event;
    use loom::sync::Arc;
    use loom::thread;

    /// Loom reports a deadlock if any order of steps leaves the receiver asleep beside a message.
    #[test]
    fn no_message_is_left_beside_a_sleeping_receiver() {
        const MESSAGES: usize = 2;
        let mut model = loom::model::Builder::new();
        // All orders with at most three preemptions; without a bound the model does not end within minutes.
        model.preemption_bound = Some(3);
        model.check(|| {
            let flag = Arc::new(WakeFlag::new());
            // A count stands for the queue; relaxed, so that only the flag orders it.
            let queued = Arc::new(loom::sync::atomic::AtomicUsize::new(0));
            let event = Arc::new(Event::default());
            let sender = {
                let (flag, queued, event) = (Arc::clone(&flag), Arc::clone(&queued), Arc::clone(&event));
                thread::spawn(move || {
                    for _ in 0..MESSAGES {
                        queued.fetch_add(1, Ordering::Relaxed);
                        if flag.take_sleep() {
                            event.wake();
                        }
                    }
                })
            };
            let mut taken = 0;
            while taken < MESSAGES {
                flag.fall_asleep();
                if queued.load(Ordering::Relaxed) == taken {
                    event.wait();
                }
                flag.wake_up();
                taken = queued.load(Ordering::Relaxed);
            }
            sender.join().expect("the sender ends");
        });
    }
}
