//! Opening of the store: lock, what a failed sync left, the end of the journals, the engine, the records, the threads.

use super::committer::{Committer, Files};
use super::generation::{self, Generations};
use super::high_water::HighWaterFile;
use super::journal::Follower;
use super::journals::{self, Journals};
use super::lived::Lived;
use super::lock::Lock;
use super::mark::{Mark, MarkFile, Noted};
use super::memtables::{Guard, Memtables};
use super::stream_tails::StreamTails;
use super::tables::{self, Tables};
use super::whole::Work;
use super::{DATABASE, Disk, DiskEngine, DiskError, Durability, HIGH_WATER, SIDE_FILE};
use super::{blame, check, folder, identity, load, renew, snapshot, sync, tail, whole};
use crate::config::ImConfig;
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(super) fn file_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DiskError {
    let path = path.to_owned();
    move |cause| DiskError::File { operation, path, cause }
}

/// A database that is whole, as far as its number of commits tells.
pub(super) struct Opened {
    pub(super) lock: Lock,
    pub(super) noted: Noted,
    pub(super) tables: Tables,
    /// Commits that the database has.
    pub(super) found: u64,
    pub(super) database: PathBuf,
    pub(super) side_file: PathBuf,
}

pub(super) fn open(folder: &Path, part_of: Option<Work>) -> Result<Opened, DiskError> {
    folder::prepare(folder).map_err(file_error("make or open the folder", folder))?;
    let (database, side_file) = (folder.join(DATABASE), folder.join(SIDE_FILE));
    let lock = Lock::take(folder, &database)?;
    whole::check(folder, part_of)?;
    whole::open_as_store(folder)?;
    snapshot::remove_left(folder);
    let noted = Noted::read(&side_file).map_err(file_error("read", &side_file))?;
    whole::is_born(folder, &database, &noted)?;
    if noted.mark().is_some_and(|mark| !mark.is_sound) {
        renew::all(folder, &database)
            .map_err(file_error("write anew what a failed sync may have lost of", folder))?;
    }
    let is_whole = noted != Noted::Nothing;
    let sealed = if is_whole { Journals::verify(folder, &database)? } else { BTreeSet::new() };
    tail::mend(folder, &database, &noted, &sealed)?;
    let tables = Tables::open(folder, &database, is_whole)?;
    for changed in [&database.join(renew::TABLES), &database, folder] {
        sync::folder(changed).map_err(file_error("sync", changed))?;
    }
    let found = check::counter(tables.number(tables::COMMITS)?)?;
    match noted {
        Noted::Mark(Mark { commits: known, .. }) if found < known => {
            let folder = folder.to_owned();
            Err(DiskError::Lost { folder, side_file, found, known })
        }
        Noted::Damaged if found > 0 => Err(DiskError::SideFile { path: side_file }),
        Noted::Nothing => {
            Journals::forget(folder).map_err(file_error("remove", &folder.join(journals::LIST)))?;
            Ok(Opened { lock, noted, tables, found, database, side_file })
        }
        Noted::Mark(_) | Noted::Damaged => Ok(Opened { lock, noted, tables, found, database, side_file }),
    }
}

/// Finds what tells that the store is a copy, and not where its backend wrote it. `None`: nothing does.
fn copy_in(folder: &Path, noted: &Noted, found: u64) -> Result<Option<&'static str>, DiskError> {
    if identity::is_copy(folder).map_err(file_error("read the identity in", folder))? {
        return Ok(Some("this store is a copy of another one"));
    }
    // Whoever removed the mark knows that commits are lost.
    let commits = noted.mark().map(|_| found);
    let is_put_back = generation::is_put_back(folder, commits);
    Ok(is_put_back.map_err(file_error("read the generation in", folder))?.then_some(
        "an old copy was put back over this store, or something else changed its files, as chmod and chown do",
    ))
}

impl Disk {
    /// True if there is a store in the folder.
    pub fn is_in(folder: &Path) -> bool {
        folder.join(DATABASE).join("version").exists()
    }

    /// Opens the store in a folder, which is made if it is not there. `notify` is called by another thread when
    /// something has become durable.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn open(
        folder: &Path,
        config: &ImConfig,
        durability: Durability,
        notify: impl Fn() + Send + 'static,
    ) -> Result<Self, DiskError> {
        Self::open_in(None, folder, config, durability, notify)
    }

    /// Opens the store as a part of the work that is under way in its folder.
    pub(super) fn open_in(
        work: Option<Work>,
        folder: &Path,
        config: &ImConfig,
        durability: Durability,
        notify: impl Fn() + Send + 'static,
    ) -> Result<Self, DiskError> {
        let opened =
            open(folder, work).and_then(|opened| Self::try_open(opened, folder, config, durability, notify));
        opened.map_err(|error| blame::name(folder, &folder.join(DATABASE), error))
    }

    fn try_open(
        opened: Opened,
        folder: &Path,
        config: &ImConfig,
        durability: Durability,
        notify: impl Fn() + Send + 'static,
    ) -> Result<Self, DiskError> {
        let Opened { lock, noted, tables, found, database, side_file } = opened;
        let (mut tails, written) = StreamTails::load(&tables)?;
        let mut directory = load::directory(&tables, &written, config)?;
        tails.check(&directory)?;
        check::directory(&directory)?;
        let high_water_path = folder.join(HIGH_WATER);
        let (mut high_water, high_water_open) =
            HighWaterFile::open(&high_water_path).map_err(file_error("open", &high_water_path))?;
        let copy = copy_in(folder, &noted, found)?;
        let is_copy = copy.is_some();
        let is_foreign = match high_water.contradiction(&directory) {
            None => false,
            // Somebody removed the mark: the store shall go on.
            Some(_) if is_copy || noted == Noted::Nothing => true,
            Some((given, maximum)) => {
                let problem = format!(
                    "it is not of this store, or of an earlier time: it says that no seq above {maximum} was given where \
                     {given} was"
                );
                return Err(DiskError::Altered { folder: folder.to_owned(), path: high_water_path, problem });
            }
        };
        if is_foreign {
            tracing::warn!(
                path = %high_water_path.display(),
                "the file is not of this store: conversations go on far behind the seqs that the store knows"
            );
            high_water.distrust();
            high_water.jump(&directory);
        }
        if let Some(copy) = copy.filter(|_| !is_foreign) {
            tracing::warn!(
                folder = %folder.display(),
                "{copy}: conversations go on far behind the seqs that it knows"
            );
            high_water.jump(&directory);
        }
        if found > 0 && (is_copy || noted == Noted::Nothing) {
            let changes = high_water.begin_anew(&tables, &mut directory, &mut tails);
            tables.write(changes)?;
            let written = high_water.write(&high_water_open, &high_water_path);
            written.map_err(file_error("write", &high_water_path))?;
            if !is_copy {
                tracing::warn!(folder = %folder.display(), commits = found, "goes on without what was lost");
            }
        }
        directory.conversations.begin_after = high_water.begin_after;
        let name =
            identity::name(folder, is_copy).map_err(file_error("read or write the name in", folder))?;
        identity::settle(folder).map_err(file_error("write the identity in", folder))?;
        let journal = Follower::start(&database).map_err(file_error("read the journals of", &database))?;
        let mark = Mark { commits: found, end: Some(journal.end()), is_sound: true };
        // Syncs the folder too, and with it the other files that are new in it.
        let marks = MarkFile::create(&side_file, mark).map_err(file_error("write", &side_file))?;
        let generations =
            Generations::settle(folder, found).map_err(file_error("write the generation in", folder))?;
        let files = Files { marks: Arc::new(marks), high_water: high_water_open, high_water_path, journal };
        let committer = Committer::start(tables.clone(), durability, files, found, notify)
            .map_err(file_error("start a thread for", folder))?;
        let lock = Arc::new(lock);
        let guard = Guard {
            lock: Arc::clone(&lock),
            is_broken: Arc::clone(&committer.is_broken),
            generations,
            commits: (found, Arc::clone(&committer.counters)),
        };
        let memtables = Memtables::start(tables.busy(), Journals::of(folder, &database), Some(guard))
            .map_err(file_error("start a thread for", folder))?;
        let lived = Lived::load(&tables)?;
        let threads = (committer, memtables);
        let engine = DiskEngine::new(tables, threads, Some(lock), tails, high_water, (config, lived), name);
        Ok(Self::over(directory, engine, config))
    }
}
