//! The thread that makes batches durable: whatever waits goes into one commit, with one fsync.

use super::high_water::HighWater;
use super::tables::{COMMITS, Change, JOURNAL_BYTES_MAX, Tables};
use super::{Durability, Progress};
use crate::clock::Clock;
use crate::im::store::Committed;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use fjall::PersistMode;
use moorline_proto::time::Duration;
use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Batches that wait to be committed; with more the store is busy.
pub(super) const WAITING_MAX: usize = 64;
/// Changes in one commit, beside those of the batch that goes over it: more gain nothing and cost the last ones.
const CHANGES_MAX: usize = 4096;
/// Bytes of journals above which a commit waits for the engine to write tables out: what has to be read at the next start.
const BEHIND_BYTES: u64 = 2 * JOURNAL_BYTES_MAX;
/// Commits between two looks at the engine; then the interval and the largest number of looks.
const ENGINE_EVERY: u64 = 16;
const ENGINE_LOOK: std::time::Duration = std::time::Duration::from_millis(2);
const ENGINE_LOOKS_MAX: u32 = 5000;
/// Interval of writing the side file.
const SIDE_FILE_INTERVAL: Duration = Duration::from_secs(1);
/// Interval of writing the side file when no commit follows.
const SIDE_FILE_WAIT: std::time::Duration = std::time::Duration::from_millis(1010);
/// When there is nothing to write down.
const IDLE: std::time::Duration = std::time::Duration::from_secs(3600);

/// A batch on its way.
pub(super) struct Job {
    pub(super) changes: Vec<Change>,
    /// Outcome of the batch, once it is durable.
    pub(super) done: (Committed, Progress),
    /// Message keys that can be looked up in the tables then.
    pub(super) keys: Vec<Vec<u8>>,
    /// To be written down before it.
    pub(super) new_high_water: Vec<HighWater>,
}

/// The files beside the database.
pub(super) struct Files {
    /// The number of commits.
    pub(super) commits: File,
    /// See [`super::high_water`].
    pub(super) high_water: File,
}

/// Counters of the thread.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) commits: AtomicU64,
    /// See [`Work::wait_for_engine`].
    pub(super) stalls: AtomicU64,
}

/// Input of the thread, and its results.
pub(super) struct Committer {
    pub(super) jobs: Sender<Job>,
    pub(super) done: Receiver<Job>,
    /// A commit failed: nothing more becomes durable.
    pub(super) is_broken: Arc<AtomicBool>,
    pub(super) counters: Arc<Counters>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Committer {
    /// Starts the thread; `notify` is called when something has become durable.
    pub(super) fn start(
        tables: Tables,
        durability: Durability,
        files: Files,
        commits: u64,
        notify: impl Fn() + Send + 'static,
    ) -> std::io::Result<Self> {
        let (jobs, waiting) = bounded::<Job>(WAITING_MAX);
        let (finished, done) = bounded(2 * WAITING_MAX);
        let is_broken = Arc::new(AtomicBool::new(false));
        let broken = Arc::clone(&is_broken);
        let counters = Arc::new(Counters::default());
        let counted = Arc::clone(&counters);
        let run = move || {
            let clock = Clock::new();
            let mut work = Work {
                tables,
                durability,
                files,
                commits,
                clock,
                side_file_at: None,
                noted: commits,
                counters: counted,
            };
            // Whoever looks at what is done may be gone at the end; what waits is committed all the same.
            loop {
                let first = match waiting.recv_timeout(work.until_side_file()) {
                    Ok(first) => first,
                    Err(RecvTimeoutError::Timeout) => {
                        work.note();
                        continue;
                    }
                    Err(RecvTimeoutError::Disconnected) => break,
                };
                let mut together = vec![first];
                let mut changes = together[0].changes.len();
                while changes < CHANGES_MAX
                    && let Ok(next) = waiting.try_recv()
                {
                    changes += next.changes.len();
                    together.push(next);
                }
                if let Err(error) = work.commit(&mut together) {
                    tracing::error!(%error, "the store takes no more writes until it is opened anew, in a few seconds; is its disk full?");
                    broken.store(true, Ordering::SeqCst);
                    break;
                }
                together.into_iter().for_each(|job| _ = finished.send(job));
                notify();
                work.note();
            }
            work.write_side_file();
        };
        let thread = std::thread::Builder::new().name("committer".into()).spawn(run)?;
        Ok(Self { jobs, done, is_broken, counters, thread: Some(thread) })
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        // Without a sender the thread ends when it has committed what waits.
        self.jobs = bounded(0).0;
        self.done = crossbeam_channel::never();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

struct Work {
    tables: Tables,
    durability: Durability,
    files: Files,
    commits: u64,
    clock: Clock,
    side_file_at: Option<moorline_proto::time::Instant>,
    /// The number of commits that it has.
    noted: u64,
    counters: Arc<Counters>,
}

impl Work {
    fn commit(&mut self, jobs: &mut [Job]) -> Result<(), fjall::Error> {
        if jobs.iter().all(|job| job.changes.is_empty()) {
            return Ok(()); // acks that are written down later
        }
        let mode = match self.durability {
            Durability::Disk => PersistMode::SyncData,
            Durability::System => PersistMode::Buffer,
        };
        if self.commits.is_multiple_of(ENGINE_EVERY) {
            self.wait_for_engine()?;
        }
        let mut new_high_water = jobs.iter().flat_map(|job| &job.new_high_water).peekable();
        if new_high_water.peek().is_some() {
            new_high_water.try_for_each(|mark| mark.write(&self.files.high_water))?;
            if self.durability == Durability::Disk {
                self.files.high_water.sync_data()?;
            }
        }
        let mut batch = self.tables.db.batch().durability(Some(mode));
        for Change { table, key, value } in jobs.iter_mut().flat_map(|job| job.changes.drain(..)) {
            match value {
                Some(value) => batch.insert(&table, key, value),
                None => batch.remove(&table, key),
            }
        }
        batch.insert(&self.tables.meta, COMMITS, (self.commits + 1).to_be_bytes());
        batch.commit()?;
        self.commits += 1;
        self.counters.commits.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// The engine's threads may fall behind whoever writes: then writing waits, and all that wait for it.
    fn wait_for_engine(&self) -> Result<(), fjall::Error> {
        for look in 0..ENGINE_LOOKS_MAX {
            if self.tables.db.journal_disk_space()? <= BEHIND_BYTES {
                break;
            }
            if look == 0 {
                self.counters.stalls.fetch_add(1, Ordering::Relaxed);
                tracing::debug!("the engine is behind: a commit waits");
            }
            std::thread::park_timeout(ENGINE_LOOK);
        }
        Ok(())
    }

    /// About once a second the number of commits goes to a file of its own, so that a database that lost some is
    /// found out.
    fn note(&mut self) {
        let now = self.clock.read().instant;
        let is_due = self.side_file_at.is_none_or(|at| now >= at + SIDE_FILE_INTERVAL);
        if is_due && self.noted < self.commits {
            self.side_file_at = Some(now);
            self.write_side_file();
        }
    }

    fn until_side_file(&self) -> std::time::Duration {
        if self.noted < self.commits { SIDE_FILE_WAIT } else { IDLE }
    }

    fn write_side_file(&mut self) {
        self.noted = self.commits;
        let line = side_line(self.commits);
        let file = &mut self.files.commits;
        let written = file.rewind().and_then(|()| file.write_all(line.as_bytes()));
        if let Err(error) = written {
            tracing::warn!(%error, "cannot write down how much was committed");
        }
    }
}

/// Text of the side file for this number of commits; always of the same length.
pub(super) fn side_line(commits: u64) -> String {
    format!("{commits:020}\n")
}

/// The number that a side file has. `None`: it is damaged.
pub(super) fn read_side_line(text: &str) -> Option<u64> {
    let commits = text.trim_end().parse().ok()?;
    (text == side_line(commits)).then_some(commits)
}
