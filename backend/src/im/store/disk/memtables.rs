//! A hold of each memtable of the engine, so that it is freed here.
//!
//! The engine lets go of a memtable that was written out while it has a lock that every read and write of its table needs, and
//! freeing one of 16 MiB takes a tenth of a second, since it is hundreds of thousands of pieces. Whoever has it longer frees
//! it: this thread, without any lock.

use super::journals::Journals;
use super::lock::Lock;
use super::tables::nicely;
use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use fjall::{AbstractTree as _, Keyspace};
use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Interval of looking for new memtables; filling one takes longer.
const EVERY: Duration = Duration::from_millis(100);
/// Looks between two looks at the lock.
const LOCK_EVERY: u32 = 10;

/// The lock of the store, and the word that nothing more is written.
pub(super) struct Guard {
    pub(super) lock: Arc<Lock>,
    pub(super) is_broken: Arc<AtomicBool>,
}

impl Guard {
    /// Has nothing more written once the lock does not hold others off.
    fn look(&self) {
        if let Some(path) = self.lock.lost()
            && !self.is_broken.swap(true, Ordering::SeqCst)
        {
            tracing::error!(
                path = %path.display(),
                "removed or replaced while the backend runs, so that another process can write the same store: nothing more \
                 is written, and the store is opened anew once nobody else has it; a lock file is never stale"
            );
        }
    }
}

pub(super) struct Memtables {
    tables: Option<Sender<Vec<Keyspace>>>,
    thread: Option<JoinHandle<()>>,
}

impl Memtables {
    /// Starts the thread, for the memtables of these tables. It looks after the list of journals and the lock too.
    pub(super) fn start(
        tables: Vec<Keyspace>,
        mut journals: Journals,
        guard: Option<Guard>,
    ) -> std::io::Result<Self> {
        let (sender, changed) = bounded(1);
        let run = move || {
            let (mut tables, mut held) = (tables, Vec::<Arc<dyn Any + Send + Sync>>::new());
            let (mut is_failing, mut looks) = (false, 0_u32);
            loop {
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
                let looked = journals.look();
                if let Err(error) = &looked
                    && !is_failing
                {
                    tracing::warn!(%error, "cannot write down which journals are complete");
                }
                is_failing = looked.is_err();
                match changed.recv_timeout(EVERY) {
                    Ok(all) => tables = all,
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
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
