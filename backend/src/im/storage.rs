//! The store, with everything that it was asked and has not answered.
//!
//! alice sends `hi`: her draft becomes a [`Write`] with a [`Waiter`] for the answer; at the end of the turn
//! [`Storage::commit`] submits the batch, and [`Open`] keeps the waiters under the ticket of the batch.

use super::output::Reply;
use super::request::Then;
use super::tasks::Task;
use super::waiting::{Open, Waiter, Waiting};
use super::{BATCH_WRITES_MAX, BATCHES_AT_ONCE};
use crate::im::store::{self, Batch, Origin, Read, Store, Ticket, Write};
use crate::server::SessionId;

/// A store and its open questions.
#[derive(Debug)]
pub(super) struct Storage<S> {
    pub(super) store: S,
    /// Commands and prefetches that the store has not completed.
    pub(super) open: Open,
    /// Batch of this turn.
    pub(super) writes: Vec<Write>,
    /// Waiters for each write of the batch.
    waiters: Vec<Waiter>,
}

impl<S: Store> Storage<S> {
    pub(super) fn new(store: S) -> Self {
        Self { store, open: Open::default(), writes: Vec::new(), waiters: Vec::new() }
    }

    /// Adds a write to the batch of this turn.
    pub(super) fn write(&mut self, write: Write, waiter: Waiter) {
        self.writes.push(write);
        self.waiters.push(waiter);
    }

    /// Takes the writes of these authors out of the batch of this turn. Returns the places of their answers.
    pub(super) fn withdraw(&mut self, is_out: impl Fn(Origin) -> bool) -> Vec<(Reply, Then)> {
        let is_of = |waiter: &Waiter| match waiter {
            Waiter::Request(_, origin, _) | Waiter::Invited(origin) => is_out(*origin),
            _ => false,
        };
        let mut withdrawn = Vec::new();
        if self.waiters.iter().any(is_of) {
            let writes = std::mem::take(&mut self.writes).into_iter();
            for (write, waiter) in writes.zip(std::mem::take(&mut self.waiters)) {
                match waiter {
                    Waiter::Request(reply, origin, then) if is_out(origin) => withdrawn.push((reply, then)),
                    Waiter::Invited(origin) if is_out(origin) => {}
                    waiter => self.write(write, waiter),
                }
            }
        }
        withdrawn
    }

    /// Asks the store for something that a completion answers.
    pub(super) fn ask(&mut self, command: store::Command, waiting: Waiting) -> Ticket {
        let ticket = self.open.next_ticket();
        self.open.insert(ticket, waiting);
        let taken = self.store.submit(ticket, command);
        assert!(taken.is_ok(), "logins and reads are always taken");
        ticket
    }

    /// Asks the store for a read.
    pub(super) fn read(&mut self, read: Read, waiting: Waiting) -> Ticket {
        self.ask(store::Command::Read(read), waiting)
    }

    /// Prefetches the facts of a task. Returns the task if the facts are readable now; otherwise the task waits for
    /// the completion, as does the queue of `session`.
    pub(super) fn prefetch(&mut self, session: Option<SessionId>, task: Task) -> Option<Task> {
        let ticket = self.open.next_ticket();
        if self.store.prefetch(ticket, |set| task.plan(set)) {
            return Some(task);
        }
        self.open.insert(ticket, Waiting::Facts(session, Box::new(task)));
        None
    }

    /// Gives the store the batch of this turn, or holds a small batch while the store is busy. Returns the waiters of a
    /// batch that the store did not take: nothing of it happened.
    pub(super) fn commit(&mut self, now_ms: u64, last_id: u64) -> Vec<Waiter> {
        // A store that is busy gets more at once, with the turn in which it has made something durable.
        let is_busy = self.open.commits() >= BATCHES_AT_ONCE && !self.store.is_broken();
        let is_held = is_busy && self.writes.len() < BATCH_WRITES_MAX;
        if is_held || self.writes.is_empty() {
            return Vec::new();
        }
        let waiters = std::mem::take(&mut self.waiters);
        let writes = std::mem::take(&mut self.writes);
        self.try_commit(now_ms, last_id, writes, waiters).err().unwrap_or_default()
    }

    /// Gives the store an empty batch if it wants to make acks durable.
    pub(super) fn commit_late_writes(&mut self, now_ms: u64, last_id: u64) {
        if self.writes.is_empty() && self.store.wants_commit(now_ms) {
            self.try_commit(now_ms, last_id, Vec::new(), Vec::new()).ok();
        }
    }

    /// Gives the store a batch.
    ///
    /// # Errors
    /// The waiters: the store takes no more.
    fn try_commit(
        &mut self,
        now_ms: u64,
        last_id: u64,
        writes: Vec<Write>,
        waiters: Vec<Waiter>,
    ) -> Result<(), Vec<Waiter>> {
        let batch = Batch { now_ms, last_id, writes };
        let ticket = self.open.next_ticket();
        if self.store.submit(ticket, store::Command::Commit(batch)).is_err() {
            return Err(waiters);
        }
        self.open.insert(ticket, Waiting::Commit(waiters));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ImConfig;
    use crate::im::store::{Memory, UserId};
    use bytes::Bytes;

    const NOW: u64 = 1;

    fn storage() -> Storage<Memory> {
        Storage::new(Memory::new(&ImConfig::default()))
    }

    fn write_one(storage: &mut Storage<Memory>) {
        storage.write(
            Write::Tell { users: vec![UserId::of(0)], event: Bytes::from_static(b"event"), key: None },
            Waiter::Nobody,
        );
    }

    #[test]
    fn a_batch_goes_to_the_store_with_its_waiters_and_nothing_goes_without_a_write() {
        let mut storage = storage();
        assert!(storage.commit(NOW, 0).is_empty() && storage.open.commits() == 0);
        assert!(storage.store.submit(Ticket::FIRST, login()).is_ok());
        storage.store.poll().expect("a login");
        write_one(&mut storage);
        write_one(&mut storage);
        assert!(storage.commit(NOW, 0).is_empty(), "it was taken");
        assert_eq!((storage.open.commits(), storage.writes.len(), storage.waiters.len()), (1, 0, 0));
    }

    #[test]
    fn small_batches_wait_while_the_store_is_busy_and_full_ones_do_not() {
        let mut storage = storage();
        assert!(storage.store.submit(Ticket::FIRST, login()).is_ok());
        for _ in 0..BATCHES_AT_ONCE {
            write_one(&mut storage);
            storage.commit(NOW, 0);
        }
        // Nobody has polled, so all of them are open.
        write_one(&mut storage);
        storage.commit(NOW, 0);
        assert_eq!((storage.open.commits(), storage.writes.len()), (BATCHES_AT_ONCE, 1), "it is held");
        (1..BATCH_WRITES_MAX).for_each(|_| write_one(&mut storage));
        storage.commit(NOW, 0);
        assert_eq!((storage.open.commits(), storage.writes.len()), (BATCHES_AT_ONCE + 1, 0));
    }

    fn login() -> store::Command {
        store::Command::Login(store::Login {
            uid: "ann".into(),
            device: "d".into(),
            platform: 0,
            now_ms: 0,
            issued_s: 0,
        })
    }
}
