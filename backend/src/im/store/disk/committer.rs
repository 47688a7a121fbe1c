//! The thread that makes batches durable: whatever waits goes into one commit, with one fsync.

use super::high_water::HighWater;
use super::journal::{Follower, batch_bytes};
use super::mark::{Mark, MarkFile};
use super::tables::{COMMITS, Change, JOURNAL_BYTES_MAX, Tables};
use super::{Durability, Progress, sync};
use crate::im::store::Committed;
use crossbeam_channel::{Receiver, Sender, bounded};
use fjall::PersistMode;
use moorline_net::clock::Clock;
use moorline_proto::time::{Duration, Instant};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Batches that wait to be committed; with more the store is busy.
pub(super) const WAITING_MAX: usize = 64;
/// Changes in one commit, beside those of the batch that goes over it: more gain nothing and cost the last ones.
const CHANGES_MAX: usize = 4096;
/// Bytes of journals above which a commit waits for the engine to write tables out: what has to be read at the next start.
const BEHIND_BYTES: u64 = 2 * JOURNAL_BYTES_MAX;
/// Least time between two syncs of the mark: at 5,000 messages a second each commit is small, and a second sync would double
/// its cost. Tests of failed syncs have one with each commit.
const MARK_SYNC_EVERY: Duration = Duration::from_millis(if cfg!(test) { 0 } else { 10 });
/// Commits between two looks at the engine; then the interval and the largest number of looks.
const ENGINE_EVERY: u64 = 16;
const ENGINE_LOOK: Duration = Duration::from_millis(2);
const ENGINE_LOOKS_MAX: u32 = 5000;
/// A batch on its way.
pub(super) struct Job {
    pub(super) changes: Vec<Change>,
    /// Outcome of the batch, once it is durable.
    pub(super) done: (Committed, Progress),
    /// Message keys that can be looked up in the tables then.
    pub(super) keys: Vec<Vec<u8>>,
    /// To be written down before it.
    pub(super) new_high_water: Vec<HighWater>,
    /// Folder with a new entry, to be synced before it; `None`: no table was made.
    pub(super) new_in: Option<PathBuf>,
}

/// The files that a commit writes beside the database, and the engine's journal.
pub(super) struct Files {
    pub(super) marks: Arc<MarkFile>,
    /// See [`super::high_water`].
    pub(super) high_water: File,
    pub(super) high_water_path: PathBuf,
    pub(super) journal: Follower,
}

/// Reason why a commit failed.
#[derive(Debug, thiserror::Error)]
enum CommitError {
    #[error("cannot write a batch: {0}")]
    Engine(#[from] fjall::Error),
    #[error("cannot write {}: {cause}", path.display())]
    Write { path: PathBuf, cause: io::Error },
    #[error("cannot sync {}: {cause}", path.display())]
    Sync { path: PathBuf, cause: io::Error },
    #[error("cannot find a batch that was written: {0}")]
    Journal(io::Error),
}

impl CommitError {
    /// Nothing was written, because there is no room: no sync has failed.
    fn is_want_of_room(&self) -> bool {
        let cause = match self {
            Self::Engine(fjall::Error::Io(cause)) | Self::Write { cause, .. } => cause,
            Self::Engine(_) | Self::Sync { .. } | Self::Journal(_) => return false,
        };
        matches!(cause.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge)
    }
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
    pub(super) marks: Arc<MarkFile>,
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
        let marks = Arc::clone(&files.marks);
        let mark_syncs = match durability {
            Durability::Disk => Some(MarkSyncs::start(Arc::clone(&marks))?),
            Durability::System => None,
        };
        let run = move || {
            let mut work = Work { tables, durability, files, mark_syncs, commits, counters: counted };
            // Whoever looks at what is done may be gone at the end; what waits is committed all the same.
            while let Ok(first) = waiting.recv() {
                let mut together = vec![first];
                let mut changes = together[0].changes.len();
                while changes < CHANGES_MAX
                    && let Ok(next) = waiting.try_recv()
                {
                    changes += next.changes.len();
                    together.push(next);
                }
                if broken.load(Ordering::SeqCst) {
                    break; // the folder may be another process's
                }
                if let Err(error) = work.commit(&mut together) {
                    work.on_failed(&error);
                    broken.store(true, Ordering::SeqCst);
                    break;
                }
                together.into_iter().for_each(|job| _ = finished.send(job));
                notify();
            }
        };
        let thread = std::thread::Builder::new().name("committer".into()).spawn(run)?;
        Ok(Self { jobs, done, is_broken, counters, marks, thread: Some(thread) })
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

/// Syncs the mark of an earlier commit while a commit is synced: two threads wait for the disk at once.
struct MarkSyncs {
    wanted: Sender<()>,
    done: Receiver<io::Result<()>>,
    clock: Clock,
    /// Time of the latest sync; `None`: there was none.
    latest: Option<Instant>,
}

impl MarkSyncs {
    fn start(marks: Arc<MarkFile>) -> io::Result<Self> {
        let ((wanted, asked), (finished, done)) = (bounded(1), bounded(1));
        let run = move || {
            while asked.recv().is_ok() {
                finished.send(marks.sync()).ok();
            }
        };
        std::thread::Builder::new().name("marks".into()).spawn(run)?;
        Ok(Self { wanted, done, clock: Clock::default(), latest: None })
    }

    /// Begins a sync, unless the latest one was just now. True: [`Self::wait`] for it.
    fn begin(&mut self) -> bool {
        let now = self.clock.now();
        let is_due = self.latest.is_none_or(|latest| now.saturating_since(latest) >= MARK_SYNC_EVERY);
        if is_due {
            self.latest = Some(now);
            self.wanted.send(()).ok();
        }
        is_due
    }

    fn wait(&self) -> io::Result<()> {
        self.done.recv().unwrap_or_else(|_| Err(io::Error::other("its thread is gone")))
    }
}

struct Work {
    tables: Tables,
    durability: Durability,
    files: Files,
    /// `None`: nothing is synced.
    mark_syncs: Option<MarkSyncs>,
    commits: u64,
    counters: Arc<Counters>,
}

impl Work {
    fn commit(&mut self, jobs: &mut [Job]) -> Result<(), CommitError> {
        if jobs.iter().all(|job| job.changes.is_empty()) {
            return Ok(()); // acks that are written down later
        }
        if self.commits.is_multiple_of(ENGINE_EVERY) {
            self.wait_for_engine()?;
        }
        self.write_high_water(jobs)?;
        self.sync_new_tables(jobs)?;
        let is_syncing = self.mark_syncs.as_mut().is_some_and(MarkSyncs::begin);
        let synced = self.write_batch(jobs);
        // Its answer is taken whatever became of the batch.
        let mark_synced = self.mark_syncs.as_ref().filter(|_| is_syncing).map_or(Ok(()), MarkSyncs::wait);
        let mark = synced?;
        let path = || self.files.marks.path().to_owned();
        mark_synced.map_err(|cause| CommitError::Sync { path: path(), cause })?;
        self.files.marks.write(mark).map_err(|cause| CommitError::Write { path: path(), cause })?;
        self.commits = mark.commits;
        self.counters.commits.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn write_high_water(&self, jobs: &[Job]) -> Result<(), CommitError> {
        let Files { high_water, high_water_path: path, .. } = &self.files;
        let mut marks = jobs.iter().flat_map(|job| &job.new_high_water).peekable();
        if marks.peek().is_none() {
            return Ok(());
        }
        let written = marks.try_for_each(|mark| mark.write(high_water));
        written.map_err(|cause| CommitError::Write { path: path.clone(), cause })?;
        match self.durability {
            Durability::Disk => {
                sync::data(high_water, path).map_err(|cause| CommitError::Sync { path: path.clone(), cause })
            }
            Durability::System => Ok(()),
        }
    }

    /// Syncs the folder of tables that were made for these jobs: after a power cut their rows would have no table.
    fn sync_new_tables(&self, jobs: &[Job]) -> Result<(), CommitError> {
        let folder = jobs.iter().find_map(|job| job.new_in.as_deref());
        match folder.filter(|_| self.durability == Durability::Disk) {
            Some(path) => {
                sync::folder(path).map_err(|cause| CommitError::Sync { path: path.to_owned(), cause })
            }
            None => Ok(()),
        }
    }

    /// Writes everything as one batch, and syncs it here and not in the engine: a failed write and a failed sync have
    /// different consequences.
    fn write_batch(&mut self, jobs: &mut [Job]) -> Result<Mark, CommitError> {
        let mut batch = self.tables.db.batch().durability(Some(PersistMode::Buffer));
        let (mut items, mut bytes) = (1, COMMITS.len() + 8);
        for Change { table, key, value } in jobs.iter_mut().flat_map(|job| job.changes.drain(..)) {
            items += 1;
            bytes += key.len() + value.as_ref().map_or(0, |value| value.len());
            match value {
                Some(value) => batch.insert(&table, key, value),
                None => batch.remove(&table, key),
            }
        }
        let commits = self.commits + 1;
        batch.insert(&self.tables.meta, COMMITS, commits.to_be_bytes());
        batch.commit()?;
        let end = self.files.journal.pass(items, batch_bytes(items, bytes as u64));
        let end = Some(end.map_err(CommitError::Journal)?);
        let (journal, path) = self.files.journal.current();
        if self.durability == Durability::Disk {
            sync::data(journal, path).map_err(|cause| CommitError::Sync { path: path.to_owned(), cause })?;
        }
        Ok(Mark { commits, end, is_sound: true })
    }

    fn on_failed(&self, error: &CommitError) {
        if error.is_want_of_room() {
            tracing::error!(
                %error,
                "the store takes no more writes until there is room on its disk; it is opened anew every few seconds"
            );
            return;
        }
        self.files.marks.distrust();
        tracing::error!(
            %error,
            "the store takes no more writes: its disk has failed; what may be lost is written anew before anything else is \
             acknowledged"
        );
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
}
