//! A thread that serves nobody, for what a process tells others when it has begun to serve.
//!
//! For example, the new process of a hot restart writes a pid file. The file system hangs: the notifier's thread hangs with
//! it, and no client notices. The thread is there before the process serves, so that telling needs no thread either.

use crossbeam_channel::{Sender, bounded};
use moorline_net::thread;
use std::io;
use std::time::Duration;

/// Longest wait until the thread runs.
const RUNS_WITHIN: Duration = Duration::from_secs(5);
/// Jobs that wait for the thread.
const JOBS_MAX: usize = 8;

type Job = Box<dyn FnOnce() + Send>;

/// The thread. It ends when its jobs are done and the notifier is dropped.
pub(super) struct Notifier {
    name: &'static str,
    jobs: Sender<Job>,
}

impl Notifier {
    /// Starts the thread, and waits until it has done its first job: it has memory of its own by then.
    ///
    /// # Errors
    /// The system has no thread, or does not run it in time.
    pub(super) fn start(name: &'static str) -> io::Result<Self> {
        let (jobs, taken) = bounded::<Job>(JOBS_MAX);
        thread::spawn(name, move || taken.iter().for_each(|job| job()))?;
        let (running, runs) = bounded(1);
        let notifier = Self { name, jobs };
        notifier.tell(move || _ = running.send(()));
        match runs.recv_timeout(RUNS_WITHIN) {
            Ok(()) => Ok(notifier),
            Err(error) => Err(io::Error::other(format!("the thread does not run: {error}"))),
        }
    }

    /// Has the thread do a job after those that it has. Never waits.
    pub(super) fn tell(&self, job: impl FnOnce() + Send + 'static) {
        if self.jobs.try_send(Box::new(job)).is_err() {
            tracing::error!(name = self.name, "a notifier takes no more jobs");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_hangs_holds_up_nobody_and_jobs_are_done_in_order() {
        let notifier = Notifier::start("test").expect("a thread");
        let (release, hangs) = bounded::<()>(0);
        let (done, order) = bounded(2 * JOBS_MAX);
        notifier.tell(move || _ = hangs.recv());
        for number in 0..2 * JOBS_MAX {
            let done = done.clone();
            notifier.tell(move || done.send(number).expect("there is room"));
        }
        drop((release, done, notifier));
        let order: Vec<_> = order.iter().collect();
        assert!(order.len() >= JOBS_MAX - 1 && order.is_sorted(), "{order:?}");
    }
}
