//! Threads that do the arithmetic of TLS handshakes, so that no reactor stands still for it.
//!
//! A handshake takes 0.1 to 1 ms of a core. Ten thousand clients that come at once wait in the queue, and in their sockets when
//! the queue is full; whoever is connected does not notice.

use super::ReactorMail;
use crossbeam_channel::RecvTimeoutError;
use moorline_net::layer::{Job, OpeningKind};
use moorline_net::mailbox::{SendError, Sender};
use moorline_net::thread;
use moorline_net::tls::{Server, warm_up};
use moorline_proto::ids::ConnKey;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Longest wait until all threads run.
const BEGUN_WITHIN: Duration = Duration::from_secs(5);
/// Interval at which room in the mailbox of a reactor is looked for.
const REPLY_LOOK: Duration = Duration::from_millis(1);
/// Looks after which the reactor does not serve: 5 s.
const REPLY_LOOKS_MAX: usize = 5_000;

/// Servers of the TLS listeners.
#[derive(Debug)]
pub struct Servers {
    /// For native clients.
    pub native: Server,
    /// For browsers.
    pub web: Server,
}

/// Threads for handshakes. They end with the last copy of this handle.
#[derive(Clone, Debug)]
pub struct HandshakePool {
    tasks: crossbeam_channel::Sender<Task>,
    servers: Arc<Servers>,
}

struct Task {
    job: Job,
    servers: Arc<Servers>,
    is_web: bool,
    key: ConnKey,
    reply: Sender<ReactorMail>,
}

impl HandshakePool {
    /// Starts `threads` threads with a queue of `queue` handshakes.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn start(threads: usize, queue: usize, servers: Servers) -> io::Result<Self> {
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
                receiver.iter().for_each(run);
            };
            thread::spawn(&format!("handshake-{number}"), serve)?;
        }
        drop(begun);
        if all_begun.recv_timeout(BEGUN_WITHIN) == Err(RecvTimeoutError::Timeout) {
            return Err(io::Error::other("the threads do not run"));
        }
        Ok(Self { tasks, servers: Arc::new(servers) })
    }

    /// Gives a job to a thread, whose result goes to `reply`.
    ///
    /// # Errors
    /// The job comes back: the queue is full.
    pub(super) fn submit(
        &self,
        job: Job,
        kind: OpeningKind,
        key: ConnKey,
        reply: &Sender<ReactorMail>,
    ) -> Result<(), Job> {
        let task = Task {
            job,
            servers: Arc::clone(&self.servers),
            is_web: kind.has_websocket,
            key,
            reply: reply.clone(),
        };
        self.tasks.try_send(task).map_err(|refused| refused.into_inner().job)
    }

    /// Handshakes that wait for a thread.
    pub fn waiting(&self) -> usize {
        self.tasks.len()
    }
}

fn run(task: Task) {
    let Task { job, servers, is_web, key, reply } = task;
    let result = job.run(if is_web { &servers.web } else { &servers.native });
    let mut mail = ReactorMail::Handshaken(key, Box::new(result));
    // A connection whose result is lost ends by its deadline.
    for _ in 0..REPLY_LOOKS_MAX {
        let Err(SendError::Full(refused)) = reply.try_send(mail) else { return };
        mail = refused;
        std::thread::park_timeout(REPLY_LOOK);
    }
}
