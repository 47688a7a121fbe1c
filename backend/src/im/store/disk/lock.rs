//! One process has a store: the lock of its folder.
//!
//! The engine locks its database too, but only once it opens it, and what is [cut off](super::tail) or
//! [written anew](super::renew) before must not be under another backend.

use super::DiskError;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;
use std::time::Duration;

const LOCK: &str = "lock";
/// A process that ends may need a moment.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(100);

/// The lock, held until this is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of a folder, and makes sure that no earlier version has the database open. A missing lock file of
    /// the engine, which many copies leave out since it is empty, is made again.
    pub(super) fn take(folder: &Path, database: &Path) -> Result<Self, DiskError> {
        let file = acquire(folder, &folder.join(LOCK))?;
        if database.join("version").exists() {
            drop(acquire(folder, &database.join(LOCK))?);
        }
        Ok(Self { _file: file })
    }
}

fn acquire(folder: &Path, path: &Path) -> Result<File, DiskError> {
    let open = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path);
    let failed = |cause: io::Error| DiskError::File { operation: "lock", path: path.to_owned(), cause };
    let file = open.map_err(failed)?;
    for _ in 1..TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => std::thread::park_timeout(PAUSE),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
    }
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(DiskError::Locked { folder: folder.to_owned() }),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}
