//! Threads that do the arithmetic of TLS handshakes, so that no event loop stands still for it.
//!
//! A handshake takes 0.1 to 1 ms of a core. Ten thousand clients that come at once wait in the queue, and in their sockets when
//! the queue is full; whoever is connected does not notice.

use super::{Job, JobResult};
use crate::thread;
use crate::tls::{Server, warm_up};
use crossbeam_channel::RecvTimeoutError;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Longest wait until all threads run.
const BEGUN_WITHIN: Duration = Duration::from_secs(5);

/// Threads for handshakes. They end with the last copy of this handle.
#[derive(Clone, Debug)]
pub struct HandshakePool {
    tasks: crossbeam_channel::Sender<Task>,
}

struct Task {
    job: Job,
    server: Option<Arc<Server>>,
    reply: Box<dyn FnOnce(JobResult) + Send>,
}

impl HandshakePool {
    /// Starts `threads` threads, whose names begin with `name`, with a queue of `queue` handshakes.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn start(name: &str, threads: usize, queue: usize) -> io::Result<Self> {
        let (tasks, receiver) = crossbeam_channel::bounded::<Task>(queue);
        // Closed when every thread has what it needs.
        let (begun, all_begun) = crossbeam_channel::bounded::<()>(0);
        for number in 0..threads {
            let receiver = receiver.clone();
            let begun = begun.clone();
            let serve = move || {
                // Behind the commit of a hot restart nothing may be refused to this thread.
                warm_up();
                drop(begun);
                receiver.iter().for_each(Task::run);
            };
            thread::spawn(&format!("{name}-{number}"), serve)?;
        }
        drop(begun);
        if all_begun.recv_timeout(BEGUN_WITHIN) == Err(RecvTimeoutError::Timeout) {
            return Err(io::Error::other("the threads do not run"));
        }
        Ok(Self { tasks })
    }

    /// Gives a job to a thread, which calls `reply` with the result. `server`: for an opening that a peer began.
    ///
    /// # Errors
    /// The job comes back: the queue is full.
    pub fn submit(
        &self,
        job: Job,
        server: Option<Arc<Server>>,
        reply: impl FnOnce(JobResult) + Send + 'static,
    ) -> Result<(), Job> {
        let task = Task { job, server, reply: Box::new(reply) };
        self.tasks.try_send(task).map_err(|refused| refused.into_inner().job)
    }

    /// Returns whether there is no room for a job now.
    pub fn is_full(&self) -> bool {
        self.tasks.is_full()
    }

    /// Handshakes that wait for a thread.
    pub fn waiting(&self) -> usize {
        self.tasks.len()
    }
}

impl Task {
    fn run(self) {
        let Self { job, server, reply } = self;
        reply(job.run(server.as_deref()));
    }
}
