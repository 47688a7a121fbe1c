//! Result that one thread sets and others wait for.

use crate::core::{Receipt, RequestError, SendFailure};
use bytes::Bytes;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Final result of a send.
pub(super) type SendOutcome = Outcome<Result<Receipt, SendFailure>>;
/// Result of a request.
pub(super) type RequestOutcome = Outcome<Result<Bytes, RequestError>>;

#[derive(Debug)]
pub(super) struct Outcome<T> {
    result: Mutex<Option<T>>,
    given: Condvar,
}

impl<T: Clone> Outcome<T> {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { result: Mutex::new(None), given: Condvar::new() })
    }

    /// Only the first result counts.
    pub(super) fn give(&self, result: T) {
        self.result.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(result);
        self.given.notify_all();
    }

    pub(super) fn get(&self) -> Option<T> {
        self.result.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// `None`: not given within `timeout`.
    pub(super) fn wait(&self, timeout: Duration) -> Option<T> {
        let guard = self.result.lock().unwrap_or_else(PoisonError::into_inner);
        let (guard, _) = self
            .given
            .wait_timeout_while(guard, timeout, |result| result.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        guard.clone()
    }

    /// However long it takes: whoever gives it must promise to.
    pub(super) fn wait_for_ever(&self) -> T {
        let guard = self.result.lock().unwrap_or_else(PoisonError::into_inner);
        let guard =
            self.given.wait_while(guard, |result| result.is_none()).unwrap_or_else(PoisonError::into_inner);
        guard.clone().expect("waited for it")
    }
}
