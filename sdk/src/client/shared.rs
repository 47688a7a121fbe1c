//! State shared by the application's threads and the client's own thread: the core and its waiting callers.

use super::Notice;
use super::clock::Clock;
use super::keeper::Keeper;
use super::outcome::{Outcome, RequestOutcome, SendOutcome};
use super::pending::Pending;
use crate::core::{
    ClosedWhy, Core, Message, Receipt, RequestError, RequestId, SendFailure, SendId, SendRefused, Target,
    Token,
};
use crate::store::Unsent;
use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, TrySendError};
use moorline_proto::ids::MessageKey;
use moorline_proto::time::Instant;
use std::collections::{HashMap, VecDeque};
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The core and those who wait for it.
#[derive(Debug)]
pub(super) struct Hub {
    pub(super) core: Core,
    pub(super) sends: HashMap<SendId, Arc<SendOutcome>>,
    pub(super) requests: HashMap<RequestId, Arc<RequestOutcome>>,
    /// Writes to the application's store; `None`: there is none.
    pub(super) keeper: Option<Arc<Keeper>>,
    /// Names of sends in the store.
    pub(super) numbers: HashMap<SendId, u64>,
}

impl Hub {
    /// A message that an earlier life has put into the store.
    pub(super) fn send_again(
        &mut self,
        now: Instant,
        number: u64,
        unsent: Unsent,
    ) -> Result<Pending, SendRefused> {
        let Unsent { key, target, kind, payload } = unsent;
        let id = self.core.restore_send(now, key, target, kind, payload)?;
        Ok(self.wait_for(id, Some(number), key))
    }

    fn wait_for(&mut self, id: SendId, number: Option<u64>, key: MessageKey) -> Pending {
        if let Some(number) = number {
            self.numbers.insert(id, number);
        }
        let outcome = Outcome::new();
        self.sends.insert(id, Arc::clone(&outcome));
        Pending { id, key, outcome }
    }

    /// A send has its final result.
    pub(super) fn on_sent(&mut self, id: SendId, result: Result<Receipt, SendFailure>) {
        let number = self.numbers.remove(&id);
        // What was only cut short by the end of the client is sent by its next life.
        if result != Err(SendFailure::Closed)
            && let (Some(number), Some(keeper)) = (number, &self.keeper)
        {
            keeper.done(number);
        }
        if let Ok(receipt) = &result {
            self.note_place(&receipt.conversation);
        }
        if let Some(outcome) = self.sends.remove(&id) {
            outcome.give(result);
        }
    }

    /// The application has something of this conversation safe.
    pub(super) fn note_place(&self, conversation: &str) {
        if let (Some(keeper), Some(cursor)) = (&self.keeper, self.core.cursor(conversation)) {
            keeper.place(conversation, cursor);
        }
    }
}

#[derive(Debug)]
pub(super) struct Shared {
    hub: Mutex<Hub>,
    pub(super) keeper: Option<Arc<Keeper>>,
    waker: mio::Waker,
    is_woken: AtomicBool,
    pub(super) clock: Clock,
    pub(super) closed: Arc<Outcome<ClosedWhy>>,
}

impl Shared {
    pub(super) fn new(core: Core, keeper: Option<Arc<Keeper>>, waker: mio::Waker) -> Self {
        let (sends, requests, numbers) = (HashMap::new(), HashMap::new(), HashMap::new());
        let hub = Hub { core, sends, requests, keeper: keeper.clone(), numbers };
        Self {
            hub: Mutex::new(hub),
            keeper,
            waker,
            is_woken: AtomicBool::new(false),
            clock: Clock::new(),
            closed: Outcome::new(),
        }
    }

    /// Takes a message, into the store first if there is one. The hub is free while the store is written.
    pub(super) fn send(
        &self,
        key: Option<MessageKey>,
        target: Target,
        kind: u32,
        payload: Bytes,
    ) -> Result<Pending, SendRefused> {
        let key = key.unwrap_or_else(|| self.hub().0.core.fresh_key());
        let mut number = None;
        let mut writing = self.keeper.as_ref().map(|keeper| keeper.begin());
        if let Some(writing) = &mut writing {
            // What the core will not take need not be stored.
            self.hub().0.core.check_send(key, target.clone(), kind, payload.clone())?;
            let unsent = Unsent { key, target: target.clone(), kind, payload: payload.clone() };
            number = Some(writing.put(unsent).map_err(|error| SendRefused::Store(error.kind()))?);
        }
        let (mut hub, now) = self.hub();
        let sent = hub.core.send_with_key(now, key, target, kind, payload);
        drop(writing);
        if let (Err(_), Some(number), Some(keeper)) = (&sent, number, &self.keeper) {
            keeper.done(number);
        }
        let pending = hub.wait_for(sent?, number, key);
        drop(hub);
        self.wake();
        Ok(pending)
    }

    /// The core, and the time to tell it.
    pub(super) fn hub(&self) -> (MutexGuard<'_, Hub>, Instant) {
        let hub = self.hub.lock().unwrap_or_else(PoisonError::into_inner);
        (hub, self.clock.now()) // in this order, so that the core's time never goes back
    }

    /// Calls the client's thread to drain the core.
    pub(super) fn wake(&self) {
        if !self.is_woken.swap(true, Ordering::AcqRel) {
            // It fails only if the poll is gone, and then nobody is there to be woken.
            let _ = self.waker.wake();
        }
    }

    /// True once nothing more will happen.
    pub(super) fn has_ended(&self) -> bool {
        self.closed.get().is_some()
    }

    /// The client's thread has heard; before it looks at the core.
    pub(super) fn on_woken(&self) {
        self.is_woken.store(false, Ordering::Release);
    }

    /// Nothing more will happen: everybody who waits is told.
    pub(super) fn end(&self, why: ClosedWhy) {
        let (mut hub, now) = self.hub();
        hub.core.close(now);
        for (_, outcome) in hub.sends.drain() {
            outcome.give(Err(SendFailure::Closed));
        }
        for (_, outcome) in hub.requests.drain() {
            outcome.give(Err(RequestError::Closed));
        }
        self.closed.give(why);
    }
}

/// A received message. **Dropping it acks it**: keep it until the message is safe with you. It is
/// not acked while a thread panics, so that it comes again after the next login.
#[derive(Debug)]
pub struct Incoming {
    message: Message,
    shared: Arc<Shared>,
}

impl Incoming {
    pub(super) fn new(message: Message, shared: Arc<Shared>) -> Self {
        Self { message, shared }
    }
}

impl Deref for Incoming {
    type Target = Message;
    fn deref(&self) -> &Message {
        &self.message
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let token: Token = self.message.token;
        let (mut hub, now) = self.shared.hub();
        hub.core.handled(now, token);
        if self.message.seq != 0 {
            hub.note_place(&self.message.conversation);
        }
        drop(hub);
        self.shared.wake();
    }
}

/// Bytes of the notices that wait for their reader.
const NOTICE_BYTES_MAX: usize = 2 << 20;

/// Notices that nobody reads make room for newer ones.
#[derive(Debug)]
pub(super) struct Notices {
    sender: Sender<Notice>,
    receiver: Receiver<Notice>,
    /// Bytes of the notices put last, oldest first. As many of them wait as the receiver says.
    sizes: VecDeque<usize>,
}

impl Notices {
    pub(super) const fn new(sender: Sender<Notice>, receiver: Receiver<Notice>) -> Self {
        Self { sender, receiver, sizes: VecDeque::new() }
    }

    pub(super) fn put(&mut self, notice: Notice) {
        let bytes = notice.bytes();
        let read = self.sizes.len().saturating_sub(self.receiver.len());
        self.sizes.drain(..read);
        while self.sizes.iter().sum::<usize>() + bytes > NOTICE_BYTES_MAX && self.sizes.pop_front().is_some()
        {
            let _ = self.receiver.try_recv();
        }
        self.sizes.push_back(bytes);
        let mut notice = notice;
        while let Err(TrySendError::Full(back)) = self.sender.try_send(notice) {
            let _ = self.receiver.try_recv();
            notice = back;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_that_nobody_reads_are_bounded_in_number_and_bytes() {
        let (sender, receiver) = crossbeam_channel::bounded(16);
        let mut notices = Notices::new(sender, receiver.clone());
        let app = |command: u8, bytes| Notice::App { command, body: Bytes::from(vec![0; bytes]) };
        (0..100).for_each(|number| notices.put(app(number, 1)));
        assert_eq!(receiver.len(), 16);
        (0..100).for_each(|number| notices.put(app(number, 300 << 10)));
        assert_eq!(receiver.len(), 6, "of 2 MiB");
        let kept: Vec<Notice> = receiver.try_iter().collect();
        assert_eq!(kept.last(), Some(&app(99, 300 << 10)), "the newest are kept");
        (0..8).for_each(|number| notices.put(app(number, 1)));
        assert_eq!(receiver.len(), 8, "what was read makes room");
    }
}
