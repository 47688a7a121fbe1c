//! Lateness of a due thread on this machine: the allowance of every bound on time.
//!
//! A test machine may have twenty runnable threads on two cores. A thread of this module asks to be woken after
//! 5 ms, again and again, and notes how much later it ran. A bound on a time that the product needs is then
//! `limit + hops * lateness`: strict on an idle machine, and never about the machine alone.

use moorline::sys::clock;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Time between two looks.
const EVERY: Duration = Duration::from_millis(5);

/// A thread that measures until [`Lateness::finish`].
pub(crate) struct Lateness {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Duration>>,
}

impl Lateness {
    pub(crate) fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut seen = Vec::new();
            while !is_over.load(Ordering::SeqCst) {
                let asked = clock::now();
                std::thread::park_timeout(EVERY);
                seen.push(clock::now().saturating_since(asked).saturating_sub(EVERY));
            }
            seen
        });
        Self { stop, thread }
    }

    /// Returns the longest lateness seen.
    pub(crate) fn finish(self) -> Duration {
        self.stop.store(true, Ordering::SeqCst);
        let seen = self.thread.join().expect("it only measures");
        let worst = seen.into_iter().max().unwrap_or_default();
        println!("this machine ran a thread up to {worst:?} late");
        worst
    }
}
