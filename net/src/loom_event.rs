//! An eventfd for loom's models.

use loom::sync::{Condvar, Mutex};

/// An eventfd: a wake before the wait is not lost.
#[derive(Default)]
pub(crate) struct Event {
    is_set: Mutex<bool>,
    changed: Condvar,
}

impl Event {
    pub(crate) fn wake(&self) {
        *self.is_set.lock().expect("sound") = true;
        self.changed.notify_one();
    }

    pub(crate) fn wait(&self) {
        let mut is_set = self.is_set.lock().expect("sound");
        while !*is_set {
            is_set = self.changed.wait(is_set).expect("sound");
        }
        *is_set = false;
    }
}
