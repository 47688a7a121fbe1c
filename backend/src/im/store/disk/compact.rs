//! Compaction of a store that nobody has open: what was deleted leaves the disk.
//!
//! The engine keeps what was removed or replaced: in older tables until it merges them, which may take as long as it likes, and
//! in the journal until 64 MiB more are written. Example: ann recalls a message; its content is in a table of last week and in
//! the journal. [`Disk::compact`] writes every table anew without it, and empties the journal.

use super::mark::{Mark, MarkFile};
use super::open::{self, Opened, file_error};
use super::tables::Tables;
use super::{Disk, DiskError, Durability, Verified, journal, sync};
use crate::config::ImConfig;
use fjall::{AbstractTree as _, Keyspace};
use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::time::Duration;

/// Pause between two looks at a table that is being written out, and their number.
const LOOK: Duration = Duration::from_millis(10);
const LOOKS_MAX: u32 = 60_000;

impl Disk {
    /// Writes all tables of the store in a folder anew, without what was deleted, and empties its journals; then verifies the
    /// store. No backend may have it open. A kill at any moment loses nothing.
    ///
    /// # Errors
    /// [`DiskError`]: the store cannot be opened, or the disk has no room for the largest table once more.
    pub fn compact(folder: &Path, config: &ImConfig) -> Result<Verified, DiskError> {
        // Looks at everything as a backend does before anything is written anew.
        drop(Self::open(folder, config, Durability::Disk, || ())?);
        let Opened { lock, tables, found, database, side_file, .. } = open::open(folder, None)?;
        for table in tables.every() {
            write_out(table)?;
            table.major_compact().map_err(DiskError::engine("compact a table"))?;
        }
        drop(tables);
        // All that the journals hold is in synced tables now, so the mark needs no place in them.
        let mark = Mark { commits: found, end: None, is_sound: true };
        MarkFile::create(&side_file, mark).map_err(file_error("write", &side_file))?;
        for number in journal::numbers(&database).map_err(file_error("read", &database))? {
            let path = journal::path_of(&database, number);
            empty(&path).map_err(file_error("empty", &path))?;
        }
        drop(lock);
        Self::verify(folder, config)
    }
}

/// Writes what is in memory of a table to the disk.
fn write_out(table: &Keyspace) -> Result<(), DiskError> {
    table.rotate_memtable().map_err(DiskError::engine("write out a table"))?;
    for _ in 0..LOOKS_MAX {
        if table.tree.sealed_memtable_count() == 0 {
            return Ok(());
        }
        std::thread::park_timeout(LOOK);
    }
    let cause =
        io::Error::new(io::ErrorKind::TimedOut, "the engine does not write it out; is the disk full?");
    Err(DiskError::engine("write out a table")(cause.into()))
}

fn empty(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    file.set_len(0)?;
    sync::data(&file, path)
}

impl Tables {
    /// All tables, those of keys too.
    fn every(&self) -> impl Iterator<Item = &Keyspace> {
        self.lasting().into_iter().chain(self.keys.iter().map(|(_, table)| table))
    }

    /// All tables but those of keys, which come and go by days.
    pub(super) const fn lasting(&self) -> [&Keyspace; 16] {
        let Self {
            meta,
            users,
            devices,
            confirmed,
            profiles,
            relations,
            inboxes,
            conversations,
            members,
            messages,
            uncounted,
            ends,
            touched,
            streams,
            events,
            erasures,
            keys: _,
            db: _,
        } = self;
        [
            meta,
            users,
            devices,
            confirmed,
            profiles,
            relations,
            inboxes,
            conversations,
            members,
            messages,
            uncounted,
            ends,
            touched,
            streams,
            events,
            erasures,
        ]
    }
}
