//! Lines on standard error that nobody waits for.
//!
//! A reader of standard error may stop reading: then the pipe is full, and a write would stand still for as long. A thread of
//! its own writes. Lines that find its queue full are left out, and their number is told as soon as lines are taken
//! again. Example: `moorload ... 2>&1 | less` measures as if nobody looked.

use std::fmt::Display;
use std::io::{self, Write as _};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

/// Jobs in the queue.
const JOBS_MAX: usize = 256;
/// Longest wait of [`flush`].
const FLUSH_MAX: Duration = Duration::from_secs(1);

type Job = Box<dyn FnOnce() + Send>;

static LEFT_OUT: AtomicU64 = AtomicU64::new(0);

/// The queue of the thread; `None`: the system gave no thread.
fn queue() -> Option<&'static SyncSender<Job>> {
    static QUEUE: OnceLock<Option<SyncSender<Job>>> = OnceLock::new();
    let start = || {
        let (queue, jobs) = sync_channel::<Job>(JOBS_MAX);
        let run = move || {
            for job in jobs {
                job();
                let left_out = LEFT_OUT.swap(0, Ordering::Relaxed);
                if left_out > 0 {
                    put(&format!("({left_out} lines left out: standard error was not read)\n"));
                }
            }
        };
        thread::Builder::new().name("notes".into()).spawn(run).ok().map(|_| queue)
    };
    QUEUE.get_or_init(start).as_ref()
}

/// Writes to standard error; text that cannot be written is dropped.
fn put(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Writes a line to standard error, soon and in order.
pub fn note(line: impl Display) {
    write(format!("{line}\n"));
}

/// Writes text to standard error, soon and in order.
pub fn write(text: String) {
    later(move || put(&text));
}

/// Has the thread do something with standard error, behind what was written before.
pub fn later(job: impl FnOnce() + Send + 'static) {
    match queue() {
        Some(queue) => {
            if queue.try_send(Box::new(job)).is_err() {
                LEFT_OUT.fetch_add(1, Ordering::Relaxed);
            }
        }
        None => job(),
    }
}

/// Waits until everything before is written, at most 1 s. Returns whether it is.
pub fn flush() -> bool {
    let Some(queue) = queue() else { return true };
    let (done, is_done) = sync_channel(1);
    // Nobody waits any more if the time is up.
    let job = move || _ = done.send(());
    queue.try_send(Box::new(job)).is_ok() && is_done.recv_timeout(FLUSH_MAX).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All uses share one thread, so this is one test.
    #[test]
    fn what_stands_still_costs_lines_and_no_time() {
        assert!(flush(), "nothing waits");
        let (go_on, stuck) = sync_channel::<()>(0);
        let (begin, has_begun) = sync_channel::<()>(0);
        later(move || {
            let _ = begin.send(());
            let _ = stuck.recv();
        });
        // As long as the thread has not taken this job, it has one of the places.
        has_begun.recv().expect("the thread begins it");
        let (done, written) = std::sync::mpsc::channel();
        for number in 0..2 * JOBS_MAX {
            let done = done.clone();
            later(move || _ = done.send(number));
        }
        assert!(!flush(), "the stream takes nothing");
        go_on.send(()).expect("it waits");
        drop(done);
        let written: Vec<usize> = written.iter().collect();
        assert!(written.len() >= JOBS_MAX && written.len() < 2 * JOBS_MAX, "{}", written.len());
        assert!(written.iter().copied().eq(0..written.len()), "in order, the last ones are left out");
        assert!(flush());
        assert_eq!(LEFT_OUT.load(Ordering::Relaxed), 0, "and told");
    }
}
