//! A hold of each memtable of the engine, so that it is freed here.
//!
//! The engine lets go of a memtable that was written out while it has a lock that every read and write of its table needs, and
//! freeing one of 16 MiB takes a tenth of a second, since it is hundreds of thousands of pieces. Whoever has it longer frees
//! it: this thread, without any lock.

use super::journals::Journals;
use super::tables::nicely;
use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use fjall::{AbstractTree as _, Keyspace};
use std::any::Any;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// Interval of looking for new memtables; filling one takes longer.
const EVERY: Duration = Duration::from_millis(100);

pub(super) struct Memtables {
    tables: Option<Sender<Vec<Keyspace>>>,
    thread: Option<JoinHandle<()>>,
}

impl Memtables {
    /// Starts the thread, for the memtables of these tables. It looks after the list of journals too.
    pub(super) fn start(tables: Vec<Keyspace>, mut journals: Journals) -> std::io::Result<Self> {
        let (sender, changed) = bounded(1);
        let run = move || {
            let (mut tables, mut held) = (tables, Vec::<Arc<dyn Any + Send + Sync>>::new());
            let mut is_failing = false;
            loop {
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
