//! Wholeness of a folder: a backup or a restore that was interrupted must not pass for a store with little in it.
//!
//! Before the first file is written, the folder gets the file `unfinished`, which says what is under way. Once everything is
//! written and verified, it is removed. A backup has the file `backup` too: names and lengths of its files, and a checksum of that list.
//! Each step is synced before the next one.
//!
//! Example: a restore is killed half way. `unfinished` is there and says `restore`, so a backend refuses the folder, and
//! the next restore begins anew. A backup is copied by a tool that stops early: the list names the file that is missing.

use super::journals::{Journals, is_empty};
use super::mark::Noted;
use super::open::file_error;
use super::renew::TABLES;
use super::snapshot::make;
use super::{DATABASE, DiskError, HIGH_WATER, SIDE_FILE, journal, sync};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};

/// Work on a folder that is under way, or was interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// The folder is to become a backup.
    Backup,
    /// A backup is copied into the folder of a store.
    Restore,
}

const UNFINISHED: &str = "unfinished";
const BACKUP: &str = "backup";
const TITLE: &str = "files of a backup\n";
/// Folder with what webhooks did not take.
const UNDELIVERED: &str = "undelivered";
/// Names that are copied of a store. Left behind: locks, pictures of other processes, and files of others.
const OWN: [&str; 6] = [SIDE_FILE, DATABASE, "identity", "name", HIGH_WATER, UNDELIVERED];
/// Files that a store cannot be without.
const NEEDED: [&str; 3] = [SIDE_FILE, "database/version", TABLE_OF_TABLES];
/// Pointer of the table in which the engine has the names of the others.
const TABLE_OF_TABLES: &str = "database/keyspaces/0/current";
/// Lock of the engine, which is empty and made again.
const ENGINE_LOCK: &str = "database/lock";
/// Folders in each other that are looked through.
const DEPTH_MAX: usize = 8;

/// Names and lengths of files; folders end with `/`. A folder comes before what is in it.
pub(super) type Files = BTreeMap<String, u64>;

/// Work that is under way in a folder, or was interrupted there.
pub(super) fn work_in(folder: &Path) -> Result<Option<Work>, DiskError> {
    let path = folder.join(UNFINISHED);
    match fs::read_to_string(&path) {
        Ok(text) if text.trim_end() == BACKUP => Ok(Some(Work::Backup)),
        // There was no room for the word.
        Ok(_) => Ok(Some(Work::Restore)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(file_error("read", &path)(error)),
    }
}

/// Refuses a folder in which something is unfinished, except the work of which the caller is a part.
pub(super) fn check(folder: &Path, part_of: Option<Work>) -> Result<(), DiskError> {
    match work_in(folder)? {
        None => Ok(()),
        Some(work) if part_of == Some(work) => Ok(()),
        Some(work) => Err(DiskError::Unfinished { folder: folder.to_owned(), work }),
    }
}

/// Follows the links of a path, of which the last part need not be there. `None`: its parent is not there either.
fn resolved(path: &Path) -> Option<PathBuf> {
    fs::canonicalize(path).ok().or_else(|| {
        let parent = path.parent()?;
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        Some(fs::canonicalize(parent).ok()?.join(path.file_name()?))
    })
}

/// Refuses a backup inside a store, and a store inside a backup. The same folder is refused by others, by what is in it.
pub(super) fn are_apart(backup: &Path, folder: &Path) -> Result<(), DiskError> {
    match (resolved(backup), resolved(folder)) {
        (Some(backup), Some(folder))
            if backup != folder && (backup.starts_with(&folder) || folder.starts_with(&backup)) =>
        {
            Err(DiskError::Nested { backup, folder })
        }
        _ => Ok(()),
    }
}

/// Notes that work on a folder begins. The file counts without its content too. It is locked until what this returns is dropped,
/// so that a second work of this kind does not begin anew under the first.
///
/// # Errors
/// `WouldBlock`: other work is under way. Others: the system's.
pub(super) fn begin(folder: &Path, work: Work) -> io::Result<File> {
    let path = folder.join(UNFINISHED);
    let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(&path)?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => {
            return Err(io::Error::new(ErrorKind::WouldBlock, "another one is under way"));
        }
        // Some file systems lock nothing.
        Ok(()) | Err(TryLockError::Error(_)) => {}
    }
    file.set_len(0)?;
    let word = if work == Work::Backup { BACKUP } else { "restore" };
    file.write_all(format!("{word}\n").as_bytes())?;
    sync::data(&file, &path)?;
    sync::folder(folder)?;
    sync::parent(folder)?;
    Ok(file)
}

/// Notes that the work is done. Everything that belongs to it is synced.
pub(super) fn finish(folder: &Path) -> io::Result<()> {
    fs::remove_file(folder.join(UNFINISHED))?;
    sync::folder(folder)
}

/// The store's own files in a folder.
pub(super) fn files_of(folder: &Path) -> io::Result<Files> {
    let mut files = Files::new();
    for name in OWN {
        match fs::metadata(folder.join(name)) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            _ => note(folder, name.to_owned(), DEPTH_MAX, &mut files)?,
        }
    }
    files.remove(ENGINE_LOCK);
    Ok(files)
}

fn note(folder: &Path, name: String, depth: usize, files: &mut Files) -> io::Result<()> {
    let path = folder.join(&name);
    let wrong = |problem: &str| {
        let problem = format!("{} {problem}", path.display());
        io::Error::new(ErrorKind::InvalidData, problem)
    };
    let found = fs::metadata(&path)?;
    if found.is_file() {
        files.insert(name, found.len());
    } else if found.is_dir() && depth > 0 {
        for entry in fs::read_dir(&path)? {
            let inner = entry?.file_name();
            let inner = inner.to_str().filter(|inner| !inner.contains('\n'));
            let inner = inner.ok_or_else(|| wrong("has a file with a strange name"))?;
            note(folder, format!("{name}/{inner}"), depth - 1, files)?;
        }
        files.insert(format!("{name}/"), 0);
    } else {
        return Err(wrong("is no file of a store"));
    }
    Ok(())
}

/// Copies files, and syncs the copies and their folders.
pub(super) fn copy(from: &Path, to: &Path, files: &Files) -> io::Result<()> {
    let named = |cause: io::Error, name: &str| io::Error::new(cause.kind(), format!("{name}: {cause}"));
    for name in files.keys() {
        let place = to.join(name);
        let copied = match name.strip_suffix('/') {
            Some(inner) => match make(&to.join(inner)) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists && inner == UNDELIVERED => Ok(()),
                made => made,
            },
            None if name.starts_with(UNDELIVERED) && place.exists() => Ok(()),
            None => fs::copy(from.join(name), &place).and_then(|_| sync::data(&File::open(&place)?, &place)),
        };
        copied.map_err(|cause| named(cause, name))?;
    }
    for name in files.keys().filter_map(|name| name.strip_suffix('/')) {
        sync::folder(&to.join(name)).map_err(|cause| named(cause, name))?;
    }
    sync::folder(to)
}

fn list(files: &Files) -> String {
    let lines = files.iter().fold(String::new(), |lines, (name, length)| format!("{lines}{length} {name}\n"));
    format!("{TITLE}{lines}{:08x}\n", crc32c::crc32c(lines.as_bytes()))
}

fn parse(text: &str) -> Option<Files> {
    let mut files = Files::new();
    for line in text.strip_prefix(TITLE)?.lines() {
        if let Some((length, name)) = line.split_once(' ') {
            files.insert(name.to_owned(), length.parse().ok()?);
        }
    }
    (list(&files) == text).then_some(files)
}

/// Lists the files of a backup, which nobody changes any more.
pub(super) fn seal(folder: &Path) -> io::Result<()> {
    sync::replace(&folder.join(BACKUP), list(&files_of(folder)?).as_bytes())
}

/// Compares a folder with its list. `None`: it has none.
pub(super) fn listed(folder: &Path) -> Result<Option<Files>, DiskError> {
    let path = folder.join(BACKUP);
    let files = match fs::read(&path) {
        Ok(bytes) => String::from_utf8(bytes).ok().and_then(|text| parse(&text)),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(file_error("read", &path)(error)),
    };
    let not = |problem: String| DiskError::NotBackup { folder: folder.to_owned(), problem };
    let files = files.ok_or_else(|| not(format!("its list of files, `{BACKUP}`, is damaged")))?;
    for (name, length) in &files {
        let found = fs::metadata(folder.join(name)).map_err(|error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => not(format!("{name} is missing")),
            _ => file_error("read", &folder.join(name))(error),
        })?;
        if found.is_file() && found.len() != *length {
            return Err(not(format!("{name} has {} bytes, and {length} were written", found.len())));
        }
    }
    Ok(Some(files))
}

/// The files of a folder that is to be restored: a whole backup, or a store that no backend had open when it was copied.
///
/// # Errors
/// [`DiskError`]: it is neither; the error says what is missing.
pub(super) fn source(from: &Path) -> Result<Files, DiskError> {
    fs::read_dir(from).map_err(file_error("read the backup", from))?;
    check(from, None)?;
    if let Some(files) = listed(from)? {
        return Ok(files);
    }
    let not = |problem: String| DiskError::NotBackup { folder: from.to_owned(), problem };
    if let Some(name) = NEEDED.iter().find(|name| !from.join(name).is_file()) {
        return Err(not(format!("{name} is missing")));
    }
    let database = from.join(DATABASE);
    if journal::numbers(&database).map_err(file_error("read", &database))?.is_empty() {
        return Err(not("the journals, database/*.jnl, are missing".into()));
    }
    let side_file = from.join(SIDE_FILE);
    match Noted::read(&side_file).map_err(file_error("read", &side_file))?.mark() {
        None => return Err(not(format!("{SIDE_FILE} is damaged"))),
        Some(mark) if mark.commits == 0 => {
            return Err(not("it is an empty store, in which nothing was ever stored".into()));
        }
        Some(_) => {}
    }
    Journals::verify(from, &database)?;
    tracing::warn!(
        folder = %from.display(),
        "no list of files: an earlier version or another tool made this copy, and it is taken if it opens and agrees with itself"
    );
    files_of(from).map_err(file_error("read the backup", from))
}

/// A backup that is opened as a store is one from now on: its list is compared, and removed.
pub(super) fn open_as_store(folder: &Path) -> Result<(), DiskError> {
    if listed(folder)?.is_some() {
        let path = folder.join(BACKUP);
        let removed = fs::remove_file(&path).and_then(|()| sync::folder(folder));
        removed.map_err(file_error("remove", &path))?;
    }
    Ok(())
}

/// Makes sure that the engine finds a database or nothing. One without its file `version` was either damaged, or a kill
/// interrupted its making: then nothing is in it, and it is made again.
pub(super) fn is_born(folder: &Path, database: &Path, noted: &Noted) -> Result<(), DiskError> {
    let version = database.join("version");
    let current = folder.join(TABLE_OF_TABLES);
    if version.exists() && !current.exists() && *noted != Noted::Nothing {
        // The engine would begin with an empty one.
        return Err(DiskError::Gone { folder: folder.to_owned(), path: current });
    }
    if version.exists() || !database.exists() {
        return Ok(());
    }
    let has_nothing = || -> io::Result<bool> {
        let tables = match fs::read_dir(database.join(TABLES)) {
            Ok(mut tables) => tables.next().is_some(),
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        let journals = journal::numbers(database)?;
        let mut journals = journals.iter().map(|number| is_empty(&journal::path_of(database, *number)));
        Ok(!tables && journals.try_fold(true, |all, one| one.map(|one| all && one))?)
    };
    let failed = |cause| file_error("read", database)(cause);
    if *noted != Noted::Nothing || !has_nothing().map_err(failed)? {
        return Err(DiskError::Gone { folder: folder.to_owned(), path: version });
    }
    tracing::info!(database = %database.display(), "its making was interrupted, and nothing is in it: it is made again");
    fs::remove_dir_all(database).map_err(file_error("remove", database))
}

/// A store without a file that it cannot be without.
pub(super) fn is_there(folder: &Path) -> Result<(), DiskError> {
    let database = folder.join(DATABASE);
    if !database.is_dir() {
        return Err(DiskError::NoStore { folder: folder.to_owned() });
    }
    let version: PathBuf = database.join("version");
    if !version.exists() {
        return Err(DiskError::Gone { folder: folder.to_owned(), path: version });
    }
    Ok(())
}
