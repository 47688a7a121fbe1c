//! Messages from other threads into the loop: a bounded channel and a coalesced waker.

use crossbeam_channel as channel;
use mio::Waker;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Reaches the handler's thread from any other. Cheap to clone.
#[derive(Debug)]
pub struct Remote<M> {
    queue: channel::Sender<M>,
    bell: Arc<Bell>,
}

impl<M> Clone for Remote<M> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), bell: Arc::clone(&self.bell) }
    }
}

/// Why a message was not taken; it comes back.
#[derive(Debug, PartialEq, Eq)]
pub enum RemoteError<M> {
    /// The mailbox holds `link.mailbox` messages: keep it and try again.
    Full(M),
    /// The loop has ended.
    Gone(M),
}

#[derive(Debug)]
struct Bell {
    waker: Waker,
    is_asleep: AtomicBool,
}

impl<M> Remote<M> {
    /// Hands a message to [`super::Handler::handle_message`]. Never blocks.
    ///
    /// # Errors
    /// [`RemoteError`] with the message inside.
    pub fn try_send(&self, message: M) -> Result<(), RemoteError<M>> {
        self.queue.try_send(message).map_err(|refused| match refused {
            channel::TrySendError::Full(message) => RemoteError::Full(message),
            channel::TrySendError::Disconnected(message) => RemoteError::Gone(message),
        })?;
        if self.bell.is_asleep.swap(false, Ordering::SeqCst) {
            // Fails only when the counter behind it is full, and then the loop is awake anyway.
            self.bell.waker.wake().ok();
        }
        Ok(())
    }
}

#[derive(Debug)]
pub(super) struct Mailbox<M> {
    queue: channel::Receiver<M>,
    bell: Arc<Bell>,
}

pub(super) fn mailbox<M>(capacity: usize, waker: Waker) -> (Remote<M>, Mailbox<M>) {
    let (sender, receiver) = channel::bounded(capacity);
    let bell = Arc::new(Bell { waker, is_asleep: AtomicBool::new(false) });
    (Remote { queue: sender, bell: Arc::clone(&bell) }, Mailbox { queue: receiver, bell })
}

impl<M> Mailbox<M> {
    pub(super) fn try_recv(&self) -> Option<M> {
        self.queue.try_recv().ok()
    }

    /// Declares the loop asleep. False: a message waits, poll without waiting.
    pub(super) fn try_sleep(&self) -> bool {
        self.bell.is_asleep.store(true, Ordering::SeqCst);
        self.queue.is_empty()
    }

    pub(super) fn awake(&self) {
        self.bell.is_asleep.store(false, Ordering::SeqCst);
    }
}
