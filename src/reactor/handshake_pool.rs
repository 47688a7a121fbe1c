//! TLS handshakes of clients: threads do the arithmetic, and their results come to the reactor by mail.

use super::ReactorMail;
use moorline_net::layer::{HandshakePool, Job, JobResult, OpeningKind};
use moorline_net::mailbox::{SendError, Sender};
use moorline_net::tls::Server;
use moorline_proto::ids::ConnKey;
use std::sync::Arc;
use std::time::Duration;

/// Interval at which room in the mailbox of a reactor is looked for.
const REPLY_LOOK: Duration = Duration::from_millis(1);
/// Looks after which the reactor does not serve: 5 s.
const REPLY_LOOKS_MAX: usize = 5_000;

/// Servers of the TLS listeners, and the threads of their handshakes.
#[derive(Clone, Debug)]
pub struct Servers {
    /// For native clients.
    pub native: Arc<Server>,
    /// For browsers.
    pub web: Arc<Server>,
    /// The threads.
    pub pool: HandshakePool,
}

impl Servers {
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
        let server = if kind.has_websocket { &self.web } else { &self.native };
        let reply = reply.clone();
        self.pool.submit(job, Some(Arc::clone(server)), move |result| tell(&reply, key, result))
    }
}

fn tell(reply: &Sender<ReactorMail>, key: ConnKey, result: JobResult) {
    let mut mail = ReactorMail::Handshaken(key, result);
    // A connection whose result is lost ends by its deadline.
    for _ in 0..REPLY_LOOKS_MAX {
        let Err(SendError::Full(refused)) = reply.try_send(mail) else { return };
        mail = refused;
        std::thread::park_timeout(REPLY_LOOK);
    }
}
