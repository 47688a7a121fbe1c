//! A bounded channel into a thread that sleeps in a poll, with a coalesced waker.
//!
//! Run-through: reactor A hands 40 batches to worker 1 in one turn. Worker 1 sleeps, so the first
//! `try_send` writes its eventfd once; the 39 others cost one atomic swap each, because the
//! [`WakeFlag`] is taken already. The worker declares itself asleep just before it polls, and looks at the
//! channel once more after that, so no message is left behind.

use crate::baton::TryRun;
use crate::wake_flag::WakeFlag;
use crossbeam_channel as channel;
use mio::Waker;
use std::sync::{Arc, OnceLock, Weak};
use std::{fmt, io};

/// The sending half; one clone per peer.
#[derive(Debug)]
pub struct Sender<T> {
    queue: channel::Sender<T>,
    bell: Arc<Bell>,
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), bell: Arc::clone(&self.bell) }
    }
}

/// The receiving half, owned by the thread that polls the waker.
#[derive(Debug)]
pub struct Receiver<T> {
    queue: channel::Receiver<T>,
    bell: Arc<Bell>,
}

struct Bell {
    waker: Waker,
    flag: WakeFlag,
    /// The receiving loop; not set: only its own thread runs it.
    event_loop: OnceLock<Weak<dyn TryRun>>,
}

impl fmt::Debug for Bell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bell").field("waker", &self.waker).field("flag", &self.flag).finish_non_exhaustive()
    }
}

impl Bell {
    fn ring(&self) {
        // The write fails only when the eventfd's counter is full, and then the receiver is awake anyway.
        self.waker.wake().ok();
    }

    fn try_run(&self) -> bool {
        let event_loop = self.event_loop.get().and_then(Weak::upgrade);
        event_loop.is_some_and(|event_loop| event_loop.try_run())
    }
}

/// Reason why a message was not taken; the message comes back to the sender.
#[derive(Debug, PartialEq, Eq)]
pub enum SendError<T> {
    /// The mailbox holds as many messages as it may: keep this one and try again next turn.
    Full(T),
    /// The receiving thread has ended.
    Gone(T),
}

/// Makes a mailbox of at most `capacity` messages whose receiver polls `waker`.
pub fn mailbox<T>(capacity: usize, waker: Waker) -> (Sender<T>, Receiver<T>) {
    let (sender, receiver) = channel::bounded(capacity);
    let bell = Arc::new(Bell { waker, flag: WakeFlag::new(), event_loop: OnceLock::new() });
    (Sender { queue: sender, bell: Arc::clone(&bell) }, Receiver { queue: receiver, bell })
}

impl<T> Sender<T> {
    /// Hands `message` over and wakes the receiver if it sleeps. Never blocks.
    ///
    /// # Errors
    /// [`SendError`] with the message inside.
    pub fn try_send(&self, message: T) -> Result<(), SendError<T>> {
        self.push(message)?;
        if self.bell.flag.take_sleep() {
            self.bell.ring();
        }
        Ok(())
    }

    /// Hands `message` over like [`Self::try_send`]. If the receiver sleeps, this thread runs a turn of it, so call this at the
    /// end of a turn with little to do ([`crate::baton`]).
    ///
    /// # Errors
    /// [`SendError`] with the message inside.
    pub fn try_send_and_run(&self, message: T) -> Result<(), SendError<T>> {
        self.push(message)?;
        if self.bell.flag.take_sleep() && !self.bell.try_run() {
            self.bell.ring();
        }
        Ok(())
    }

    fn push(&self, message: T) -> Result<(), SendError<T>> {
        self.queue.try_send(message).map_err(|refused| match refused {
            channel::TrySendError::Full(message) => SendError::Full(message),
            channel::TrySendError::Disconnected(message) => SendError::Gone(message),
        })
    }

    /// Returns the number of waiting messages.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Returns whether no message waits.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Wakes the receiver without a message.
    ///
    /// # Errors
    /// The system's.
    pub fn wake(&self) -> io::Result<()> {
        self.bell.waker.wake()
    }
}

impl<T> Receiver<T> {
    /// Returns the next message, if one waits.
    pub fn try_recv(&self) -> Option<T> {
        self.queue.try_recv().ok()
    }

    /// Returns whether no message waits.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Declares the receiver asleep. Returns false if a message waits: then poll without waiting.
    #[must_use]
    pub fn try_sleep(&self) -> bool {
        self.bell.flag.fall_asleep();
        self.queue.is_empty()
    }

    /// Declares the receiver awake, after its poll.
    pub fn awake(&self) {
        self.bell.flag.wake_up();
    }

    /// Names the loop that receives, once, so that senders may run it.
    pub fn set_event_loop(&self, event_loop: Weak<dyn TryRun>) {
        self.bell.event_loop.set(event_loop).ok(); // it is named once
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mio::{Events, Poll, Token};
    use std::time::Duration;

    #[test]
    fn every_message_arrives_across_sleeps() {
        const MESSAGES: u32 = 20_000;
        let mut poll = Poll::new().expect("epoll");
        let waker = Waker::new(poll.registry(), Token(0)).expect("eventfd");
        let (sender, receiver) = mailbox(64, waker);
        let producer = std::thread::spawn(move || {
            for i in 0..MESSAGES {
                let mut message = i;
                while let Err(SendError::Full(back)) = sender.try_send(message) {
                    message = back;
                    std::thread::yield_now();
                }
            }
        });
        let (mut events, mut expected) = (Events::with_capacity(4), 0);
        while expected < MESSAGES {
            let timeout = if receiver.try_sleep() { Duration::from_secs(10) } else { Duration::ZERO };
            poll.poll(&mut events, Some(timeout)).expect("poll");
            receiver.awake();
            let before = expected;
            while let Some(got) = receiver.try_recv() {
                assert_eq!(got, expected);
                expected += 1;
            }
            // A wake may come for what was taken before it; without one, it slept to the end.
            let is_woken = !events.is_empty();
            assert!(expected > before || timeout.is_zero() || is_woken, "slept ten seconds for nothing");
        }
        producer.join().expect("producer");
    }

    #[test]
    fn a_full_mailbox_gives_the_message_back() {
        let poll = Poll::new().expect("epoll");
        let waker = Waker::new(poll.registry(), Token(0)).expect("eventfd");
        let (sender, receiver) = mailbox(1, waker);
        sender.try_send(1).expect("room");
        assert!(matches!(sender.try_send(2), Err(SendError::Full(2))));
        drop(receiver);
        assert!(matches!(sender.try_send(3), Err(SendError::Gone(3))));
    }
}
