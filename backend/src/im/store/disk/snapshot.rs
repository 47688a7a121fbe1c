//! A consistent picture of a database that a backend may have open and write: for backups and for verification.
//!
//! Tables of the engine never change once they are written, so they are linked and not copied, which takes milliseconds.
//! The order makes the picture consistent: tables first, then the journals. A journal that is there at the end has
//! everything that came after the tables were linked, unless one was removed in between; then the picture is taken anew.
//! An unfinished commit at the end of the newest journal is cut off, as after a kill ([`super::tail`]).

use super::lock::is_at;
use super::mark::{Mark, MarkFile, Noted};
use super::open::file_error;
use super::renew::TABLES;
use super::whole::Work;
use super::zeros::last_used;
use super::{DATABASE, DiskError, HIGH_WATER, SIDE_FILE, blame, journal, whole};
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

/// Pictures that are begun before the backend is too busy for one.
const TRIES: usize = 50;
/// Looks at one table whose list of files changes.
const TABLE_TRIES: usize = 100;
const CURRENT: &str = "current";

/// Name of a folder with a picture, before the number of its process and another number.
const PREFIX: &str = "snapshot-";
/// Pictures that processes left behind, of which one start removes no more.
const LEFT_MAX: usize = 64;

/// A folder with the picture, removed when this is dropped.
#[derive(Debug)]
pub(super) struct Snapshot {
    place: PathBuf,
    store: PathBuf,
    /// Locked, so that others see that the picture is in use; gone with the process.
    _lock: File,
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.place).ok();
    }
}

impl Snapshot {
    /// Takes a picture of the store in `folder`, in a new folder inside it.
    pub(super) fn take(folder: &Path, part_of: Option<Work>) -> Result<Self, DiskError> {
        whole::check(folder, part_of)?;
        whole::is_there(folder)?;
        remove_left(folder);
        let failed = |cause| file_error("take a snapshot in", folder)(cause);
        let snapshot = Self::make(folder).map_err(failed)?;
        for _ in 0..TRIES {
            make(&snapshot.store).map_err(failed)?;
            if take(folder, &snapshot.store).map_err(failed)? {
                return Ok(snapshot);
            }
            fs::remove_dir_all(&snapshot.store).map_err(failed)?;
        }
        if let Some(path) = blame::without_pointer(&folder.join(DATABASE)).into_iter().next() {
            return Err(DiskError::Gone { folder: folder.to_owned(), path });
        }
        Err(failed(io::Error::other("the database changes too fast; try again when it has less to do")))
    }

    fn make(folder: &Path) -> io::Result<Self> {
        for number in 0..TRIES {
            let place = folder.join(format!("{PREFIX}{}-{number}", std::process::id()));
            match make(&place) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                made => made?,
            }
            // Another process may take it for one that was left, before it is locked.
            let lock = match File::open(&place) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened?,
            };
            if !matches!(lock.try_lock(), Err(TryLockError::WouldBlock)) && is_at(&lock, &place) {
                return Ok(Self { store: place.join("store"), place, _lock: lock });
            }
        }
        Err(io::Error::other("too many snapshots are there"))
    }

    pub(super) fn path(&self) -> &Path {
        &self.store
    }
}

/// Removes the pictures of processes that ended without doing so: their links keep tables on the disk.
pub(super) fn remove_left(folder: &Path) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let named = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let process = process_of(&name)?;
        entry.file_type().is_ok_and(|kind| kind.is_dir()).then(|| (entry.path(), process))
    });
    for (path, process) in named.take(LEFT_MAX) {
        let Ok(place) = File::open(&path) else { continue };
        let is_left = match (place.try_lock(), process) {
            (Err(TryLockError::WouldBlock), _) => false,
            (Ok(()), (_, true)) => true,
            // Nobody locks it, or nobody can.
            (_, (number, _)) => !Path::new("/proc").join(number).exists(),
        };
        if is_left {
            match fs::remove_dir_all(&path) {
                Ok(()) => {
                    tracing::info!(path = %path.display(), "removed what an interrupted backup or verify left");
                }
                Err(error) => {
                    tracing::warn!(%error, path = %path.display(), "cannot remove what an interrupted backup left");
                }
            }
        }
    }
}

/// The process of a picture by the name of its folder, and whether it locks the folder: earlier versions do not.
fn process_of(name: &str) -> Option<(String, bool)> {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let rest = name.strip_prefix(PREFIX)?;
    match rest.split_once('-') {
        Some((process, number)) => {
            (is_number(process) && is_number(number)).then(|| (process.to_owned(), true))
        }
        None => is_number(rest).then(|| (rest.to_owned(), false)),
    }
}

pub(super) fn make(folder: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(folder)
}

fn names(folder: &Path) -> io::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(folder)? {
        names.extend(entry?.file_name().into_string());
    }
    Ok(names)
}

/// Takes the picture. False: the database changed too much meanwhile.
fn take(folder: &Path, to: &Path) -> io::Result<bool> {
    let (from, database) = (folder.join(DATABASE), to.join(DATABASE));
    make(&database)?;
    make(&database.join(TABLES))?;
    let journals = journal::numbers(&from)?;
    let tables = names(&from.join(TABLES))?;
    let mark = Noted::read(&folder.join(SIDE_FILE))?;
    for table in &tables {
        let (from, to) = (from.join(TABLES).join(table), database.join(TABLES).join(table));
        if from.is_dir() && !link_table(&from, &to)? {
            return Ok(false);
        }
    }
    fs::copy(from.join("version"), database.join("version"))?;
    File::create(database.join("lock"))?;
    for number in journal::numbers(&from)? {
        match copy_journal(&journal::path_of(&from, number), &journal::path_of(&database, number)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            copied => copied?,
        }
    }
    let now = journal::numbers(&from)?;
    if journals.iter().any(|number| !now.contains(number)) || names(&from.join(TABLES))? != tables {
        return Ok(false);
    }
    if folder.join(HIGH_WATER).exists() {
        fs::copy(folder.join(HIGH_WATER), to.join(HIGH_WATER))?;
    }
    if let Noted::Mark(mark) = mark {
        MarkFile::create(&to.join(SIDE_FILE), Mark { is_sound: true, ..mark })?;
    }
    Ok(true)
}

/// Links the files of one table. False: they change all the time.
fn link_table(from: &Path, to: &Path) -> io::Result<bool> {
    for _ in 0..TABLE_TRIES {
        make(to)?;
        match try_link_table(from, to) {
            Ok(true) => return Ok(true),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::remove_dir_all(to)?,
        }
    }
    Ok(false)
}

fn try_link_table(from: &Path, to: &Path) -> io::Result<bool> {
    let current = fs::read(from.join(CURRENT))?;
    for name in names(from)? {
        let (source, place) = (from.join(&name), to.join(&name));
        if source.is_dir() {
            make(&place)?;
            for name in names(&source)? {
                fs::hard_link(source.join(&name), place.join(&name))?;
            }
        } else if name.starts_with('v') {
            fs::hard_link(source, place)?;
        }
    }
    fs::write(to.join(CURRENT), &current)?;
    Ok(fs::read(from.join(CURRENT))? == current)
}

/// Copies a journal without the zeros at its end: the engine makes room in advance.
fn copy_journal(from: &Path, to: &Path) -> io::Result<()> {
    let (mut from, mut to) = (File::open(from)?, File::create(to)?);
    let (mut block, mut zeros) = (vec![0; 256 << 10], 0);
    loop {
        let count = from.read(&mut block)?;
        if count == 0 {
            return Ok(());
        }
        match last_used(&block[..count]) {
            None => zeros += count as u64,
            Some(last) => {
                io::copy(&mut io::repeat(0).take(zeros), &mut to)?;
                to.write_all(&block[..=last])?;
                zeros = (count - last - 1) as u64;
            }
        }
    }
}
