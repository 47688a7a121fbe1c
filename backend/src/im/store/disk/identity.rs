//! Recognition of a copy: a store whose files are not those that its backend wrote.
//!
//! An old copy of the whole folder, put back by `cp`, `rsync`, `tar` or a backup tool, agrees with itself in everything,
//! and would give seqs again. But its files are new ones: the file `identity` holds the time at which itself was created and
//! its number in the file system, and a copy of the file has another. A picture of the whole disk, as virtual machines
//! take it, cannot be told from the disk: `moorline backend restore` marks such a store.
//!
//! The file `name` holds the name that gateways compare: a copy gets a name of its own.

use super::sync;
use crate::im::store::{NAME_BYTES, random_name};
use bytes::Bytes;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::UNIX_EPOCH;

const IDENTITY: &str = "identity";
const NAME: &str = "name";
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
    let path = folder.join(IDENTITY);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text != of(&path)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Notes that the store is where it belongs.
pub(super) fn settle(folder: &Path) -> io::Result<()> {
    let path = folder.join(IDENTITY);
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
    sync::replace(&folder.join(IDENTITY), COPY.as_bytes())
}

/// Returns the name of the store. A store without one, and a copy, gets a new one.
pub(super) fn name(folder: &Path, is_copy: bool) -> io::Result<Bytes> {
    let path = folder.join(NAME);
    match fs::read_to_string(&path) {
        Ok(text) if !is_copy => {
            if let Some(name) = parse(&text) {
                return Ok(name);
            }
            tracing::warn!(path = %path.display(), "not the name of a store: it gets a new one");
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(_) | Err(_) => {}
    }
    let name = random_name()?;
    sync::replace(&path, format!("{name:x}\n").as_bytes())?;
    Ok(name)
}

/// Reads the file of the name as [`name`] does. What is in it, and whether it is there, does not matter.
pub(super) fn check_name(folder: &Path) -> io::Result<()> {
    match fs::read_to_string(folder.join(NAME)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}

fn parse(text: &str) -> Option<Bytes> {
    let digits = text.strip_suffix('\n')?.as_bytes();
    let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let byte = |pair: &[u8]| Some(digit(pair[0])? << 4 | digit(pair[1])?);
    let is_whole = digits.len() == 2 * NAME_BYTES;
    is_whole.then(|| digits.chunks_exact(2).map(byte).collect::<Option<Vec<u8>>>().map(Bytes::from))?
}
