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
use super::open::file_error;
use super::snapshot::{Snapshot, make};
use super::stream_tails::StreamTails;
use super::tables::{self, Tables};
use super::verify::{Verified, verify};
use super::whole::{self, Work};
use super::{DATABASE, Disk, DiskError, Durability, HIGH_WATER, SIDE_FILE, check, load, tail};
use super::{blame, folder as folders, generation, identity};
use crate::config::ImConfig;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::Path;

/// Looks at the list of journals before one that does not fit is refused.
const LOOKS: u32 = 3;

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

/// Names the backup for what is wrong with the copy of it: advice on the copy does not help. A cause that is not damage stays.
fn blame_backup(error: DiskError, folder: &Path, from: &Path) -> DiskError {
    let error = error.moved(folder, from);
    match error.damage() {
        Some(problem) => {
            DiskError::DamagedBackup { from: from.to_owned(), folder: folder.to_owned(), problem }
        }
        None => {
            DiskError::Unverified { folder: folder.to_owned(), cause: Box::new(error.moved(from, folder)) }
        }
    }
}

/// Looks at the files beside the database, which a picture leaves out, as a start does. Returns the mark.
///
/// # Errors
/// [`DiskError`]: a backend would refuse the store for one of them.
fn refused_at_start(folder: &Path) -> Result<Noted, DiskError> {
    whole::listed(folder)?;
    let side_file = folder.join(SIDE_FILE);
    let noted = Noted::read(&side_file).map_err(file_error("read", &side_file))?;
    if noted != Noted::Nothing {
        let mut judged = Journals::verify(folder, &folder.join(DATABASE));
        for _ in 1..LOOKS {
            // A backend that runs may have removed journals meanwhile.
            if judged.is_ok() {
                break;
            }
            judged = Journals::verify(folder, &folder.join(DATABASE));
        }
        judged?;
    }
    let high_water = folder.join(HIGH_WATER);
    HighWaterFile::read(&high_water).map_err(file_error("open", &high_water))?;
    identity::is_copy(folder).map_err(file_error("read the identity in", folder))?;
    generation::is_put_back(folder, None).map_err(file_error("read the generation in", folder))?;
    identity::check_name(folder).map_err(file_error("read or write the name in", folder))?;
    Ok(noted)
}

/// Copies a backup into a folder without a database. Of `sequences` that is there the larger maxima stay. A kill at any
/// moment leaves a folder that is refused, and into which the next restore copies anew.
fn put(from: &Path, folder: &Path) -> Result<File, DiskError> {
    whole::are_apart(from, folder)?;
    let files = whole::source(from)?;
    let database = folder.join(DATABASE);
    let is_again = match whole::work_in(folder)? {
        Some(work @ Work::Backup) => return Err(DiskError::Unfinished { folder: folder.to_owned(), work }),
        Some(Work::Restore) => true,
        None => false,
    };
    if !is_again && database.exists() {
        return Err(DiskError::Taken { folder: folder.to_owned() });
    }
    folders::prepare(folder).map_err(file_error("make or open the folder", folder))?;
    let _lock = Lock::take(folder, &database)?;
    let begun = whole::begin(folder, Work::Restore).map_err(file_error("begin to restore into", folder))?;
    let (theirs, ours) = (from.join(HIGH_WATER), folder.join(HIGH_WATER));
    let mut maxima = HighWaterFile::read(&theirs).map_err(file_error("read", &theirs))?;
    maxima.merge(&HighWaterFile::read(&ours).map_err(file_error("read", &ours))?);
    // First: what this folder alone knows must not be lost with a kill.
    maxima.replace(&ours).map_err(file_error("write", &ours))?;
    let copied = clear(folder).and_then(|()| {
        let others = files.into_iter().filter(|(name, _)| name != HIGH_WATER).collect();
        whole::copy(from, folder, &others)?;
        identity::mark_copy(folder)
    });
    copied.map_err(file_error("copy the backup to", folder))?;
    Ok(begun)
}

/// Removes what an interrupted restore left, and what belongs to the database that was here before.
fn clear(folder: &Path) -> io::Result<()> {
    let gone = |removed: io::Result<()>| match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    };
    gone(std::fs::remove_dir_all(folder.join(DATABASE)))?;
    gone(std::fs::remove_file(folder.join(SIDE_FILE)))?;
    Journals::forget(folder)
}

impl Disk {
    /// Verifies the store in a folder, which a backend may have open; nothing in it is changed.
    ///
    /// # Errors
    /// [`DiskError`]: the store cannot be read. Rows that contradict each other are in the report.
    pub fn verify(folder: &Path, config: &ImConfig) -> Result<Verified, DiskError> {
        Self::verify_in(None, folder, config)
    }

    /// Verifies the store as a part of the work that is under way in its folder.
    fn verify_in(work: Option<Work>, folder: &Path, config: &ImConfig) -> Result<Verified, DiskError> {
        whole::check(folder, work)?;
        whole::is_there(folder)?;
        let noted = refused_at_start(folder)?;
        let snapshot = Snapshot::take(folder, work)?;
        let report = open_and_verify(snapshot.path(), config);
        // The picture is gone when anybody reads this.
        let report = report.map_err(|error| error.moved(snapshot.path(), folder));
        let report = report.map_err(|error| blame::name(folder, &folder.join(DATABASE), error))?;
        let end = Noted::read(&snapshot.path().join(SIDE_FILE)).ok();
        let has_commits = end.as_ref().and_then(Noted::mark).is_some_and(|mark| mark.commits > 0);
        if noted == Noted::Damaged && has_commits {
            return Err(DiskError::SideFile { path: folder.join(SIDE_FILE) });
        }
        Ok(report)
    }

    /// Copies the store in a folder, which a backend may have open, to a new folder, and verifies the copy.
    ///
    /// # Errors
    /// [`DiskError`]: the store cannot be read, or the copy cannot be written.
    pub fn backup(folder: &Path, to: &Path, config: &ImConfig) -> Result<Verified, DiskError> {
        whole::are_apart(to, folder)?;
        if whole::work_in(to)? == Some(Work::Backup) {
            return Err(DiskError::Unfinished { folder: to.to_owned(), work: Work::Backup });
        }
        let snapshot = Snapshot::take(folder, None)?;
        make(to).map_err(file_error("make the folder", to))?;
        let begun = whole::begin(to, Work::Backup).map_err(file_error("begin the backup in", to))?;
        let copied =
            whole::files_of(snapshot.path()).and_then(|files| whole::copy(snapshot.path(), to, &files));
        copied.map_err(file_error("copy the store to", to))?;
        drop(snapshot);
        let report = open_and_verify(to, config)?;
        let finished =
            identity::mark_copy(to).and_then(|()| whole::seal(to)).and_then(|()| whole::finish(to));
        finished.map_err(file_error("finish the backup in", to))?;
        drop(begun);
        Ok(report)
    }

    /// Puts a copy into the folder of a store, verifies it, and has every conversation go on far behind every seq that
    /// may have been given since the copy was made. Without `from`: the folder holds the copy already.
    ///
    /// # Errors
    /// [`DiskError`]: there is a store in the folder, the copy is not whole, or it cannot be read or written.
    pub fn restore(from: Option<&Path>, folder: &Path, config: &ImConfig) -> Result<Verified, DiskError> {
        let Some(from) = from else {
            whole::check(folder, None)?;
            whole::is_there(folder)?;
            let lock = Lock::take(folder, &folder.join(DATABASE))?;
            identity::mark_copy(folder).map_err(file_error("mark the copy in", folder))?;
            drop(lock);
            drop(Self::open(folder, config, Durability::Disk, || ())?);
            return Self::verify(folder, config);
        };
        let begun = put(from, folder)?;
        // A kill up to here leaves a folder that nobody opens.
        let opened = Self::open_in(Some(Work::Restore), folder, config, Durability::Disk, || ()).map(drop);
        let report = opened.and_then(|()| Self::verify_in(Some(Work::Restore), folder, config));
        let report = report.map_err(|error| blame_backup(error, folder, from))?;
        whole::finish(folder).map_err(file_error("finish the restore into", folder))?;
        drop(begun);
        Ok(report)
    }
}
