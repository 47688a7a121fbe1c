//! The word by which one thread asks another to pause between two turns.
//!
//! ```text
//! main thread                         loop's thread
//!  request()   runs -> requested
//!                                      try_pause()  requested -> paused; waits for orders
//!  is_paused() true
//!  sends the order to resume           resume()     paused -> runs
//! ```
//!
//! The main thread may give up at any time: `withdraw()` either takes the request back before the loop has
//! seen it, or finds the loop paused and returns false; then the loop must be sent its order to resume.

#[cfg(all(loom, test))]
use loom::sync::atomic::{AtomicU8, Ordering};
#[cfg(not(all(loom, test)))]
use std::sync::atomic::{AtomicU8, Ordering};

const RUNS: u8 = 0;
const REQUESTED: u8 = 1;
const PAUSED: u8 = 2;

/// The state of one loop's thread: it runs, is asked to pause, or is paused.
#[derive(Debug)]
pub struct PauseWord {
    state: AtomicU8,
}

impl Default for PauseWord {
    fn default() -> Self {
        Self::new()
    }
}

impl PauseWord {
    /// Returns the word of a thread that runs.
    pub fn new() -> Self {
        Self { state: AtomicU8::new(RUNS) }
    }

    /// Asks the thread to pause after its turn. The caller wakes the thread.
    pub fn request(&self) {
        self.swap(RUNS, REQUESTED);
    }

    /// Takes the request back. Returns false if the thread is paused already and needs an order to resume.
    pub fn withdraw(&self) -> bool {
        self.swap(REQUESTED, RUNS) || !self.is_paused()
    }

    /// Returns whether the thread is paused.
    pub fn is_paused(&self) -> bool {
        self.state.load(Ordering::Acquire) == PAUSED
    }

    /// Pauses the calling thread if that was asked for. Returns true if the thread must now wait for orders.
    pub fn try_pause(&self) -> bool {
        self.state.load(Ordering::Relaxed) == REQUESTED && self.swap(REQUESTED, PAUSED)
    }

    /// Lets the calling thread run again.
    pub fn resume(&self) {
        self.state.store(RUNS, Ordering::Release);
    }

    fn swap(&self, from: u8, to: u8) -> bool {
        self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

#[cfg(all(loom, test))]
mod tests {
    use super::*;
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicBool;
    use loom::thread;

    /// Loom reports a data race if the main thread can read the loop's state while the loop writes it.
    #[test]
    #[allow(unsafe_code)] // loom's cell stands for the state that the loop owns
    fn a_paused_loop_touches_nothing_until_it_resumes() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let word = Arc::new(PauseWord::new());
            let state = Arc::new(UnsafeCell::new(0));
            let may_resume = Arc::new(AtomicBool::new(false));
            let looped = {
                let (word, state, may_resume) =
                    (Arc::clone(&word), Arc::clone(&state), Arc::clone(&may_resume));
                thread::spawn(move || {
                    // SAFETY: loom checks the access.
                    state.with_mut(|state| unsafe { *state += 1 });
                    if word.try_pause() {
                        while !may_resume.load(Ordering::Acquire) {
                            thread::yield_now();
                        }
                        word.resume();
                    }
                    // SAFETY: loom checks the access.
                    state.with_mut(|state| unsafe { *state += 1 });
                })
            };
            word.request();
            if word.is_paused() {
                // SAFETY: loom checks the access.
                assert_eq!(state.with(|state| unsafe { *state }), 1);
            }
            if !word.withdraw() {
                may_resume.store(true, Ordering::Release);
            }
            looped.join().expect("the loop ends: it is never left paused");
            assert!(!word.is_paused());
        });
    }
}
