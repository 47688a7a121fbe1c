//! A bounded channel into a thread that sleeps in `epoll_wait`, with a coalesced waker.
//!
//! The sender pays for an eventfd write only when the receiver is asleep; under load a wake costs one
//! atomic swap. The receiver declares itself asleep just before it polls, and looks once more at the
//! channel after that, so no message is left behind.

use crossbeam_channel as channel;
use mio::Waker;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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

#[derive(Debug)]
struct Bell {
    waker: Waker,
    is_asleep: AtomicBool,
}

/// Why a message was not taken; it comes back to the sender.
#[derive(Debug)]
pub enum SendError<T> {
    /// The mailbox holds `capacity` messages: keep it and try next turn.
    Full(T),
    /// The receiving thread is gone: the process is ending.
    Gone(T),
}

/// A mailbox of at most `capacity` messages whose receiver polls `waker`.
pub fn mailbox<T>(capacity: usize, waker: Waker) -> (Sender<T>, Receiver<T>) {
    let (sender, receiver) = channel::bounded(capacity);
    let bell = Arc::new(Bell { waker, is_asleep: AtomicBool::new(false) });
    (Sender { queue: sender, bell: Arc::clone(&bell) }, Receiver { queue: receiver, bell })
}

impl<T> Sender<T> {
    /// Hands `message` over and wakes the receiver if it sleeps. Never blocks.
    ///
    /// # Errors
    /// [`SendError`] with the message inside.
    pub fn try_send(&self, message: T) -> Result<(), SendError<T>> {
        self.queue.try_send(message).map_err(|refused| match refused {
            channel::TrySendError::Full(message) => SendError::Full(message),
            channel::TrySendError::Disconnected(message) => SendError::Gone(message),
        })?;
        if self.bell.is_asleep.swap(false, Ordering::SeqCst) {
            // Only fails when the eventfd's counter is full, and then the receiver is awake anyway.
            self.bell.waker.wake().ok();
        }
        Ok(())
    }

    /// Messages that wait.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether none waits.
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
    /// The next message, if one waits.
    pub fn try_recv(&self) -> Option<T> {
        self.queue.try_recv().ok()
    }

    /// Declares the receiver asleep. False: a message waits, poll without waiting.
    #[must_use]
    pub fn try_sleep(&self) -> bool {
        self.bell.is_asleep.store(true, Ordering::SeqCst);
        self.queue.is_empty()
    }

    /// Declares the receiver awake, after its poll.
    pub fn awake(&self) {
        self.bell.is_asleep.store(false, Ordering::SeqCst);
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
