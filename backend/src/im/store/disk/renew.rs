//! Writing anew whatever a failed sync may have left in memory only.
//!
//! After a failed sync the system takes the pages for written, though the disk has not got them: they are read back, sync
//! after sync succeeds, and a power cut takes them and all that was written behind them. So a store whose
//! [mark](super::mark) says that a sync failed is not opened before everything that counts on it is in new files, synced:
//! the journals, the pointers of the engine's tables, the files beside the database. The engine's tables need it not: a
//! table whose own sync failed is not pointed to. Without room or a disk that takes it, the store stays closed.

use super::{HIGH_WATER, journal, journals, sync, zeros};
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::Path;

/// Folder of the engine with a folder for each table.
pub(super) const TABLES: &str = "keyspaces";
/// File of a table's folder that points to its newest list.
const CURRENT: &str = "current";
/// Bytes that are copied at once.
const BLOCK: usize = 256 << 10;

/// Writes anew what is in the folder of a store that nobody has open.
pub(super) fn all(folder: &Path, database: &Path) -> io::Result<()> {
    let fresh = folder.join("renewed.new");
    let mut files = 0;
    for number in journal::numbers(database)? {
        one(&journal::path_of(database, number), &fresh)?;
        files += 1;
    }
    let tables = database.join(TABLES);
    for entry in fs::read_dir(&tables)? {
        let table = entry?.path();
        if table.is_dir() {
            if table.join(CURRENT).exists() {
                one(&table.join(CURRENT), &fresh)?;
            }
            sync::folder(&table)?;
            files += 1;
        }
    }
    for name in [HIGH_WATER, journals::LIST] {
        if folder.join(name).exists() {
            one(&folder.join(name), &fresh)?;
        }
    }
    for changed in [&tables, database, folder] {
        sync::folder(changed)?;
    }
    sync::parent(folder)?;
    tracing::warn!(folder = %folder.display(), files, "a sync had failed: what it may have lost is written anew");
    Ok(())
}

/// Puts a copy of a file in its place, without the zeros at its end.
fn one(path: &Path, fresh: &Path) -> io::Result<()> {
    let mut from = File::open(path)?;
    let mut to = File::create(fresh)?;
    let (mut block, mut zeros) = (vec![0; BLOCK], 0u64);
    loop {
        let count = from.read(&mut block)?;
        if count == 0 {
            break;
        }
        let Some(last) = zeros::last_used(&block[..count]) else {
            zeros += count as u64;
            continue;
        };
        io::copy(&mut io::repeat(0).take(zeros), &mut to)?;
        to.write_all(&block[..=last])?;
        zeros = (count - last - 1) as u64;
    }
    if path.extension().is_none_or(|extension| extension != "jnl") {
        io::copy(&mut io::repeat(0).take(zeros), &mut to)?;
    }
    to.flush()?;
    sync::data(&to, path)?;
    fs::rename(fresh, path)
}
