//! Writes to the application's store, off the client's thread and outside of the hub's lock: a slow disk holds up the
//! `send` that waits for it, and no deadline.
//!
//! A send is written by the thread that sends, before the core takes it. Its end, and the cursors of conversations, are
//! written later by the keeper's own thread; of a conversation only the newest cursor is.

use super::outcome::Outcome;
use crate::core::ConversationCursor;
use crate::store::{FileStore, Unsent};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Changes that are not written yet. As many as there are sends under way and conversations.
#[derive(Debug, Default)]
struct Changes {
    done: Vec<u64>,
    places: BTreeMap<String, ConversationCursor>,
    is_over: bool,
    /// The thread writes nothing any more.
    has_ended: bool,
}

/// The store, and what is to be written to it.
#[derive(Debug)]
pub(super) struct Keeper {
    store: Mutex<FileStore>,
    changes: Mutex<Changes>,
    changed: Condvar,
    /// Given when the thread has ended and no longer holds the store.
    ended: Arc<Outcome<()>>,
}

/// The store, for one send: the core takes sends in the order in which they are written.
#[derive(Debug)]
pub(super) struct Writing<'a>(MutexGuard<'a, FileStore>);

impl Writing<'_> {
    /// Writes a send; returns its number in the store.
    pub(super) fn put(&mut self, unsent: Unsent) -> io::Result<u64> {
        self.0.put(unsent)
    }
}

impl Keeper {
    /// Starts the keeper's thread.
    pub(super) fn start(store: FileStore) -> io::Result<Arc<Self>> {
        let keeper = Arc::new(Self {
            store: Mutex::new(store),
            changes: Mutex::default(),
            changed: Condvar::new(),
            ended: Outcome::new(),
        });
        let (own, ended) = (Arc::clone(&keeper), Arc::clone(&keeper.ended));
        let run = move || {
            own.run();
            drop(own); // whoever waits for the end may open the store again
            ended.give(());
        };
        std::thread::Builder::new().name("moorline-store".into()).spawn(run)?;
        Ok(keeper)
    }

    /// Takes the store for a send. Waits while another write is under way.
    pub(super) fn begin(&self) -> Writing<'_> {
        Writing(self.store.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes that a send has its result.
    pub(super) fn done(&self, number: u64) {
        self.change(|changes| changes.done.push(number));
    }

    /// Notes where the application is in a conversation.
    pub(super) fn place(&self, conversation: &str, cursor: ConversationCursor) {
        self.change(|changes| _ = changes.places.insert(conversation.to_owned(), cursor));
    }

    /// Ends the thread when everything is written. Returns whether that was within `timeout`.
    pub(super) fn finish(&self, timeout: Duration) -> bool {
        self.change(|changes| changes.is_over = true);
        self.ended.wait(timeout).is_some()
    }

    fn change(&self, change: impl FnOnce(&mut Changes)) {
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut changes);
        if changes.has_ended {
            // A message that the application keeps longer than its client.
            let changes = std::mem::replace(&mut *changes, Changes { has_ended: true, ..Changes::default() });
            return self.write(changes);
        }
        drop(changes);
        self.changed.notify_one();
    }

    fn write(&self, Changes { done, places, .. }: Changes) {
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        done.into_iter().for_each(|number| store.done(number));
        places.into_iter().for_each(|(conversation, cursor)| store.place(&conversation, cursor));
    }

    fn run(&self) {
        loop {
            let changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
            let is_idle = |it: &mut Changes| it.done.is_empty() && it.places.is_empty() && !it.is_over;
            let mut changes =
                self.changed.wait_while(changes, is_idle).unwrap_or_else(PoisonError::into_inner);
            if changes.done.is_empty() && changes.places.is_empty() {
                changes.has_ended = true; // over, and everything is written
                return;
            }
            let (done, places) = (std::mem::take(&mut changes.done), std::mem::take(&mut changes.places));
            drop(changes);
            self.write(Changes { done, places, ..Changes::default() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{Newest, Target};
    use bytes::Bytes;
    use moorline_proto::ids::MessageKey;

    #[test]
    fn a_slow_disk_holds_up_the_send_and_nothing_else() {
        let path = std::env::temp_dir().join(format!("moorline-keeper-{}", std::process::id()));
        std::fs::remove_file(&path).ok();
        let keeper = Keeper::start(FileStore::open(&path).expect("new")).expect("a thread");
        let unsent =
            Unsent { key: MessageKey([1; 16]), target: Target::user("bob"), kind: 1, payload: Bytes::new() };
        let mut writing = keeper.begin();
        let first = writing.put(unsent.clone()).expect("written");
        writing.put(unsent).expect("written");
        // While this write is under way, everything else returns at once, and is written afterwards.
        keeper.done(first);
        for next in 1..100 {
            let newest = Newest { place: next, stored_ms: 0 };
            keeper.place("c2c:alice:bob", ConversationCursor { start: 1, next, newest });
        }
        assert!(!keeper.finish(Duration::from_millis(1)));
        drop(writing);
        assert!(keeper.finish(Duration::from_secs(60)));
        let newest = Newest { place: 7, stored_ms: 0 };
        keeper.place("group:tea", ConversationCursor { start: 1, next: 7, newest });
        keeper.place("group:tea", ConversationCursor { start: 1, next: 8, newest });
        drop(keeper);
        let store = FileStore::open(&path).expect("the thread does not have it any more");
        let places: Vec<_> = store.places().map(|(name, cursor)| (name.to_owned(), cursor.next)).collect();
        assert_eq!(store.unsent().count(), 1);
        assert_eq!(places, [("c2c:alice:bob".to_owned(), 99), ("group:tea".to_owned(), 8)]);
        std::fs::remove_file(&path).expect("ours");
    }
}
