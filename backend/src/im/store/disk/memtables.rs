//! A hold of each memtable of the engine, so that it is freed here.
//!
//! The engine lets go of a memtable that was written out while it has a lock that every read and write of its table needs, and
//! freeing one of 16 MiB takes a tenth of a second, since it is hundreds of thousands of pieces. Whoever has it longer frees
//! it: this thread, without any lock.

use super::committer::Counters;
use super::generation::Generations;
use super::journals::Journals;
use super::lock::Lock;
use super::tables::nicely;
use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use fjall::{AbstractTree as _, Keyspace};
use std::any::Any;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Interval of looking for new memtables; filling one takes longer.
const EVERY: Duration = Duration::from_millis(100);
/// Looks between two looks at the lock.
const LOCK_EVERY: u32 = 10;

/// Looks between two generations of a store that is written.
const GENERATION_EVERY: u32 = if cfg!(test) { 1 } else { 100 };

/// The lock of the store, the word that nothing more is written, and what tells the store from an old copy of it.
pub(super) struct Guard {
    pub(super) lock: Arc<Lock>,
    pub(super) is_broken: Arc<AtomicBool>,
    pub(super) generations: Generations,
    /// Commits at the start, and the counter of those since then.
    pub(super) commits: (u64, Arc<Counters>),
}

impl Guard {
    /// Has nothing more written once the lock does not hold others off.
    fn look(&self) {
        if let Some(path) = self.lock.lost()
            && !self.is_broken.swap(true, Ordering::SeqCst)
        {
            tracing::error!(
                path = %path.display(),
                "removed, moved or replaced while the backend runs, so that another process can write the same store: nothing more \
                 is written, and the store is opened anew once nobody else has it; a lock file is never stale"
            );
        }
    }

    /// Begins a new generation if anything was committed in this one, and the store is still this process's.
    fn advance(&mut self) -> io::Result<()> {
        if self.is_broken.load(Ordering::SeqCst) || self.lock.lost().is_some() {
            return Ok(());
        }
        let (found, counters) = &self.commits;
        self.generations.advance(found + counters.commits.load(Ordering::Relaxed))
    }
}

/// Logs an error, once until it is over.
fn warn_once(done: &io::Result<()>, is_failing: &mut bool, what: &str) {
    if let Err(error) = done
        && !*is_failing
    {
        tracing::warn!(%error, "cannot write down {what}");
    }
    *is_failing = done.is_err();
}

pub(super) struct Memtables {
    tables: Option<Sender<Vec<Keyspace>>>,
    thread: Option<JoinHandle<()>>,
}

impl Memtables {
    /// Starts the thread, for the memtables of these tables. It looks after the list of journals, the lock and the generations too.
    pub(super) fn start(
        tables: Vec<Keyspace>,
        mut journals: Journals,
        mut guard: Option<Guard>,
    ) -> io::Result<Self> {
        let (sender, changed) = bounded(1);
        let run = move || {
            let (mut tables, mut held) = (tables, Vec::<Arc<dyn Any + Send + Sync>>::new());
            let (mut is_seal_failing, mut is_generation_failing) = (false, false);
            let mut looks = 0_u32;
            let mut is_last = false;
            while !is_last {
                looks = looks.wrapping_add(1);
                if let Some(guard) = guard.as_ref().filter(|_| looks.is_multiple_of(LOCK_EVERY)) {
                    guard.look();
                }
                for table in &tables {
                    let active: Arc<dyn Any + Send + Sync> = table.tree.active_memtable();
                    if !held.iter().any(|known| Arc::ptr_eq(known, &active)) {
                        held.push(active);
                    }
                }
                held.retain(|memtable| Arc::strong_count(memtable) > 1);
                warn_once(&journals.look(), &mut is_seal_failing, "which journals are complete");
                match changed.recv_timeout(EVERY) {
                    Ok(all) => tables = all,
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => is_last = true,
                }
                if let Some(guard) =
                    guard.as_mut().filter(|_| is_last || looks.is_multiple_of(GENERATION_EVERY))
                {
                    warn_once(&guard.advance(), &mut is_generation_failing, "that the store went on");
                }
            }
        };
        let thread = nicely(|| std::thread::Builder::new().name("memtables".into()).spawn(run))?;
        Ok(Self { tables: Some(sender), thread: Some(thread) })
    }

    /// There are others now.
    pub(super) fn watch(&self, tables: Vec<Keyspace>) {
        if let Some(sender) = &self.tables {
            sender.send(tables).ok();
        }
    }
}

impl Drop for Memtables {
    fn drop(&mut self) {
        self.tables = None;
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}
