//! Threads that perform the requests of a node in its cells.
//!
//! Node 1 commits a batch in cell 0 while it renews its lease there: each cell has a thread for writes, one for leases and
//! owners, and [`READERS`] for reads, each with a connection of its own. So a commit that waits for standbys holds up no lease.

use super::figures::NodeFigures;
use crate::cluster::cell::{CellId, CellRequest, CellResult, RequestId, UnknownOutcome};
use crate::cluster::store::Layout;
use crate::im::BackendMessage;
use crate::server::{Remote, RemoteError};
use crate::sql::{CellAddress, Connection, SqlError};
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use moorline_net::thread;
use moorline_proto::line_limit::LineLimit;
use moorline_proto::slots::Slot;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Threads for reads of each cell.
const READERS: usize = 4;
/// Requests that wait for the threads of a cell, for each kind of thread. A further one has an unknown outcome.
const REQUESTS_MAX: usize = 65_536;
/// Pause of a thread after a request that failed, so that it does not spin while a cell is away.
const AGAIN_AFTER: Duration = Duration::from_millis(100);
/// Longest wait for the end of the lease when a node ends.
const FLUSH_MAX: Duration = Duration::from_secs(1);
/// Pause before a full mailbox is tried again.
const FULL_PAUSE: Duration = Duration::from_millis(1);

type Job = (RequestId, CellRequest);

/// See the module. The threads end with it, each after its request.
#[derive(Debug)]
pub(crate) struct Cells {
    lanes: Vec<Lanes>,
    /// Closed when the leases' thread of the first cell has ended.
    done: Receiver<()>,
}

/// Queues of one cell.
#[derive(Debug)]
struct Lanes {
    writes: Sender<Job>,
    leases: Sender<Job>,
    reads: Sender<Job>,
}

/// One thread's part.
struct Worker {
    address: CellAddress,
    here: Arc<[Slot]>,
    jobs: Receiver<Job>,
    remote: Remote<BackendMessage>,
    figures: Arc<NodeFigures>,
    log: LineLimit,
    clock: crate::clock::Clock,
}

impl Cells {
    /// Starts the threads of all cells.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub(crate) fn start(
        addresses: &[CellAddress],
        remote: &Remote<BackendMessage>,
        figures: &Arc<NodeFigures>,
    ) -> io::Result<Self> {
        let layout = Layout { cells: u16::try_from(addresses.len()).unwrap_or(u16::MAX) };
        let (end, done) = bounded::<()>(0);
        let mut end = Some(end);
        let mut lanes = Vec::new();
        for (cell, address) in (0..).zip(addresses) {
            let here: Arc<[Slot]> = Slot::all().filter(|slot| layout.cell(*slot) == CellId(cell)).collect();
            let mut start = |kind: &str, threads: usize| -> io::Result<Sender<Job>> {
                let (sender, jobs) = bounded(REQUESTS_MAX);
                for number in 0..threads {
                    let worker = Worker {
                        address: address.clone(),
                        here: here.clone(),
                        jobs: jobs.clone(),
                        remote: remote.clone(),
                        figures: figures.clone(),
                        log: LineLimit::new(),
                        clock: crate::clock::Clock::new(),
                    };
                    let held = if kind == "l" { end.take() } else { None };
                    let run = move || {
                        worker.run();
                        drop(held);
                    };
                    thread::spawn(&format!("cell{cell}-{kind}{number}"), run)?;
                }
                Ok(sender)
            };
            lanes.push(Lanes { writes: start("w", 1)?, leases: start("l", 1)?, reads: start("r", READERS)? });
        }
        Ok(Self { lanes, done })
    }

    /// Hands a request to a thread. False: too many wait, and nobody will answer.
    pub(crate) fn send(&self, cell: CellId, id: RequestId, request: CellRequest) -> bool {
        let Some(lanes) = self.lanes.get(usize::from(cell.0)) else { return false };
        let lane = match &request {
            CellRequest::Commit(_) => &lanes.writes,
            CellRequest::Load(_) => &lanes.reads,
            _ => &lanes.leases,
        };
        match lane.try_send((id, request)) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        }
    }
}

impl Cells {
    /// Waits until the leases' thread of the first cell has done everything, at most [`FLUSH_MAX`].
    pub(crate) fn flush(&mut self) {
        if self.lanes.is_empty() {
            return;
        }
        let Lanes { leases, .. } = self.lanes.remove(0);
        drop(leases);
        _ = self.done.recv_timeout(FLUSH_MAX); // an error says that the thread has ended, or that time is over
    }
}

impl Worker {
    fn run(mut self) {
        let mut connection = None;
        while let Ok((id, request)) = self.jobs.recv() {
            self.figures.requests.fetch_add(1, Ordering::Relaxed);
            let result = self.perform(&mut connection, &request);
            let failed = result.is_err();
            if !self.answer(BackendMessage::Cell(id, Box::new(result))) {
                return;
            }
            if failed {
                self.figures.failures.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn perform(&mut self, connection: &mut Option<Connection>, request: &CellRequest) -> CellResult {
        let reply = match connection {
            Some(connection) => connection.perform(&self.here, request),
            None => Connection::open(&self.address)
                .and_then(|opened| connection.insert(opened).perform(&self.here, request)),
        };
        reply.map_err(|error| {
            *connection = None;
            self.note(&error);
            std::thread::park_timeout(AGAIN_AFTER);
            UnknownOutcome
        })
    }

    /// Writes one line in 10 s.
    fn note(&mut self, error: &SqlError) {
        if let Some(others) = self.log.allow(self.clock.read().instant) {
            tracing::warn!(cell = %self.address, others, "a request to a cell failed: {error}");
        }
    }

    /// Hands an answer to the node. False: the node has ended.
    fn answer(&self, mut message: BackendMessage) -> bool {
        loop {
            message = match self.remote.try_send(message) {
                Ok(()) => return true,
                Err(RemoteError::Gone(_)) => return false,
                Err(RemoteError::Full(message)) => message,
            };
            std::thread::park_timeout(FULL_PAUSE);
        }
    }
}
