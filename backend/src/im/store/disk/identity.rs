//! Recognition of a copy: a store whose files are not those that its backend wrote.
//!
//! An old copy of the whole folder, put back by `cp`, `rsync`, `tar` or a backup tool, agrees with itself in everything,
//! and would give seqs again. But its files are new ones: the file `identity` holds the time at which itself was created and
//! its number in the file system, and a copy of the file has another. A picture of the whole disk, as virtual machines
//! take it, cannot be told from the disk: `moorline backend restore` marks such a store.

use super::sync;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::UNIX_EPOCH;

const NAME: &str = "identity";
/// Content of a store that is a copy, wherever it is.
const COPY: &str = "copy\n";

fn of(path: &Path) -> io::Result<String> {
    let found = fs::metadata(path)?;
    let born = found.created().ok().and_then(|born| born.duration_since(UNIX_EPOCH).ok());
    // The time alone, where there is one: some file systems number their files anew.
    Ok(match born {
        Some(born) => format!("created {}\n", born.as_nanos()),
        None => format!("file {}\n", found.ino()),
    })
}

/// True if the folder is a copy. A store of an earlier version has no such file, and is taken for what it says.
pub(super) fn is_copy(folder: &Path) -> io::Result<bool> {
    let path = folder.join(NAME);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text != of(&path)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Notes that the store is where it belongs.
pub(super) fn settle(folder: &Path) -> io::Result<()> {
    let path = folder.join(NAME);
    if path.exists() && !is_copy(folder)? {
        return Ok(());
    }
    fs::remove_file(&path).ok();
    let file = File::create(&path)?;
    fs::write(&path, of(&path)?)?;
    sync::data(&file, &path)?;
    sync::folder(folder)
}

/// Marks a store as a copy.
pub(super) fn mark_copy(folder: &Path) -> io::Result<()> {
    sync::replace(&folder.join(NAME), COPY.as_bytes())
}
