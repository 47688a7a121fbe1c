//! Backup, restore and verification of a store on disk.
//!
//! ```text
//! moorline backend backup /backup/monday     a picture of the open store, copied, opened there, verified
//! moorline backend restore /backup/monday    copied into im.folder, verified; numbers jump
//! moorline backend verify                    a picture of the open store, verified, removed
//! ```

use super::high_water::HighWaterFile;
use super::journal::Follower;
use super::journals::Journals;
use super::lock::Lock;
use super::mark::{Mark, MarkFile, Noted};
use super::snapshot::{Snapshot, copy_all, make};
use super::stream_tails::StreamTails;
use super::tables::{self, Tables};
use super::verify::{Verified, verify};
use super::{DATABASE, Disk, DiskError, Durability, HIGH_WATER, SIDE_FILE, check, load, sync, tail};
use super::{blame, identity};
use crate::config::ImConfig;
use std::collections::BTreeSet;
use std::io;
use std::path::Path;

fn file_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DiskError {
    let path = path.to_owned();
    move |cause| DiskError::File { operation, path, cause }
}

/// Opens a picture or a copy, which no backend may have open, verifies it, and notes where it ends.
fn open_and_verify(folder: &Path, config: &ImConfig) -> Result<Verified, DiskError> {
    let (database, side_file) = (folder.join(DATABASE), folder.join(SIDE_FILE));
    let _lock = Lock::take(folder, &database)?;
    let noted = Noted::read(&side_file).map_err(file_error("read", &side_file))?;
    tail::mend(folder, &database, &noted, &BTreeSet::new())?;
    let tables = Tables::open(folder, &database, noted != Noted::Nothing)?;
    let found = tables.number(tables::COMMITS)?;
    if let Some(Mark { commits: known, .. }) = noted.mark().copied().filter(|mark| found < mark.commits) {
        return Err(DiskError::Lost { folder: folder.to_owned(), side_file, found, known });
    }
    let (tails, written) = StreamTails::load(&tables)?;
    let directory = load::directory(&tables, &written, config)?;
    tails.check(&directory)?;
    check::directory(&directory)?;
    let high_water_path = folder.join(HIGH_WATER);
    let (high_water, _) =
        HighWaterFile::open(&high_water_path).map_err(file_error("open", &high_water_path))?;
    let report = verify(&tables, &directory, &high_water)?;
    let end = Follower::start(&database).map_err(file_error("read the journals of", &database))?.end();
    let mark = Mark { commits: found, end: Some(end), is_sound: true };
    MarkFile::create(&side_file, mark).map_err(file_error("write", &side_file))?;
    Ok(report)
}

/// Copies a backup into a folder without a database. Of `sequences` that is there the larger maxima stay.
fn put(from: &Path, folder: &Path) -> io::Result<()> {
    let path = folder.join(HIGH_WATER);
    let (known, _) = HighWaterFile::open(&path)?;
    copy_all(from, folder)?;
    Journals::forget(folder)?;
    let (mut high_water, file) = HighWaterFile::open(&path)?;
    high_water.merge(&known);
    high_water.write(&file, &path)
}

impl Disk {
    /// Verifies the store in a folder, which a backend may have open; nothing in it is changed.
    ///
    /// # Errors
    /// [`DiskError`]: the store cannot be read. Rows that contradict each other are in the report.
    pub fn verify(folder: &Path, config: &ImConfig) -> Result<Verified, DiskError> {
        let snapshot = Snapshot::take(folder)?;
        let report = open_and_verify(snapshot.path(), config);
        report.map_err(|error| blame::name(folder, &folder.join(DATABASE), error))
    }

    /// Copies the store in a folder, which a backend may have open, to a new folder, and verifies the copy.
    ///
    /// # Errors
    /// [`DiskError`]: the store cannot be read, or the copy cannot be written.
    pub fn backup(folder: &Path, to: &Path, config: &ImConfig) -> Result<Verified, DiskError> {
        make(to).map_err(file_error("make the folder", to))?;
        let snapshot = Snapshot::take(folder)?;
        copy_all(snapshot.path(), to).map_err(file_error("copy the store to", to))?;
        drop(snapshot);
        let report = open_and_verify(to, config)?;
        identity::mark_copy(to).map_err(file_error("mark the copy in", to))?;
        sync::parent(to).map_err(file_error("sync the parent of", to))?;
        Ok(report)
    }

    /// Puts a copy into the folder of a store, verifies it, and has every conversation go on far behind every seq that
    /// may have been given since the copy was made. Without `from`: the folder holds the copy already.
    ///
    /// # Errors
    /// [`DiskError`]: there is a store in the folder, or the copy cannot be read or written.
    pub fn restore(from: Option<&Path>, folder: &Path, config: &ImConfig) -> Result<Verified, DiskError> {
        if let Some(from) = from {
            if Self::is_in(folder) {
                return Err(DiskError::Taken { folder: folder.to_owned() });
            }
            super::folder::prepare(folder).map_err(file_error("make or open the folder", folder))?;
            put(from, folder).map_err(file_error("copy the backup to", folder))?;
        }
        identity::mark_copy(folder).map_err(file_error("mark the copy in", folder))?;
        drop(Self::open(folder, config, Durability::Disk, || ())?);
        Self::verify(folder, config)
    }
}
