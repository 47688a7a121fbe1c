//! Syncs of files and folders, in one place: a failed one has consequences ([`super::renew`]), and tests can make one fail.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

/// Syncs the content of a file. `path` names the file to tests that let its sync fail.
pub(super) fn data(file: &File, path: &Path) -> io::Result<()> {
    #[cfg(test)]
    faults::meet(path)?;
    let _ = path;
    file.sync_data()
}

/// Syncs the content of a file, and its times too.
pub(super) fn all(file: &File, path: &Path) -> io::Result<()> {
    #[cfg(test)]
    faults::meet(path)?;
    let _ = path;
    file.sync_all()
}

/// Syncs the entries of a folder: a new, renamed or removed file is so on the disk only then.
pub(super) fn folder(path: &Path) -> io::Result<()> {
    #[cfg(test)]
    faults::meet(path)?;
    File::open(path)?.sync_all()
}

/// Syncs the entries of the folder in which `path` is.
pub(super) fn parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => folder(Path::new(".")),
        Some(parent) => folder(parent),
        None => Ok(()),
    }
}

/// Puts a file in the place of another one, wholly or not at all, and on the disk when it returns.
pub(super) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = File::create(&fresh)?;
    file.write_all(content)?;
    data(&file, path)?;
    fs::rename(&fresh, path)?;
    parent(path)
}

/// Failing syncs for tests: the disk says that it does not take the content.
#[cfg(test)]
pub(super) mod faults {
    use std::io;
    use std::path::{Path, PathBuf};
    use std::sync::{Mutex, MutexGuard};

    static FAILING: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

    fn failing() -> MutexGuard<'static, Vec<PathBuf>> {
        FAILING.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The next sync of `path` fails.
    pub(in super::super) fn fail_next(path: &Path) {
        failing().push(path.to_owned());
    }

    pub(super) fn meet(path: &Path) -> io::Result<()> {
        let mut failing = failing();
        match failing.iter().position(|known| known == path) {
            None => Ok(()),
            Some(at) => {
                failing.swap_remove(at);
                Err(io::Error::from_raw_os_error(5)) // EIO
            }
        }
    }
}
