//! One process has a store: the lock of its folder.
//!
//! The engine locks its database too, but only once it opens it, and what is [cut off](super::tail) or
//! [written anew](super::renew) before must not be under another backend.
//!
//! A lock file can be removed, as "stale", and the next process would lock another one. So the folder itself is locked too,
//! which nobody can undo; and whoever has the store looks now and then whether its lock file is still there: a process of
//! an earlier version, and one on a file system that does not lock folders, know the file alone.

use super::DiskError;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

const LOCK: &str = "lock";
/// A process that ends may need a moment.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(100);

/// The lock, held until this is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    file: (File, PathBuf),
    folder: (File, PathBuf),
}

impl Lock {
    /// Takes the lock of a folder, and makes sure that no earlier version has the database open. A missing lock file of
    /// the engine, which many copies leave out since it is empty, is made again.
    pub(super) fn take(folder: &Path, database: &Path) -> Result<Self, DiskError> {
        let place = File::open(folder).map_err(failed(folder))?;
        match hold(&place) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(DiskError::Locked { folder: folder.to_owned() }),
            Err(TryLockError::Error(error)) => {
                tracing::debug!(%error, folder = %folder.display(), "this file system does not lock folders");
            }
        }
        let path = folder.join(LOCK);
        let file = acquire(folder, &path)?;
        if database.join("version").exists() {
            drop(acquire(folder, &database.join(LOCK))?);
        }
        Ok(Self { file: (file, path), folder: (place, folder.to_owned()) })
    }

    /// The file or folder that was removed or replaced, so that another process can take its lock. `None`: all is well.
    pub(super) fn lost(&self) -> Option<&Path> {
        let Self { file, folder } = self;
        [folder, file].into_iter().find(|(held, path)| !is_at(held, path)).map(|(_, path)| &**path)
    }
}

/// True if the path leads to this file. A system that does not answer is believed to have it.
pub(super) fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(held), Ok(found)) => (held.dev(), held.ino()) == (found.dev(), found.ino()),
        (_, Err(error)) => error.kind() != io::ErrorKind::NotFound,
        (Err(_), Ok(_)) => true,
    }
}

fn failed(path: &Path) -> impl Fn(io::Error) -> DiskError {
    |cause| DiskError::File { operation: "lock", path: path.to_owned(), cause }
}

fn hold(file: &File) -> Result<(), TryLockError> {
    for _ in 1..TRIES {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => std::thread::park_timeout(PAUSE),
            done => return done,
        }
    }
    file.try_lock()
}

fn acquire(folder: &Path, path: &Path) -> Result<File, DiskError> {
    let open = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path);
    let file = open.map_err(failed(path))?;
    match hold(&file) {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(DiskError::Locked { folder: folder.to_owned() }),
        Err(TryLockError::Error(error)) => Err(failed(path)(error)),
    }
}
