//! List of the engine's complete journals and their checksums, in a file beside the database.
//!
//! The engine reads each of its journals by itself, and cuts off whatever it cannot read at the end of one, for that is how the
//! newest one looks when the process was killed. The number of commits shows whether the newest one lost more than that; an older
//! one does not change any more until it is removed, so its length and checksum are kept, and compared before the engine
//! opens it.
//!
//! The file has a title, and a line for each journal: name, length in bytes without the zeros at its end, CRC-32C of that length in hexadecimal.

use super::journal::{EXTENSION, number_of, path_of};
use super::{DiskError, journal, sync, zeros};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

/// Beside the database.
pub(super) const LIST: &str = "journals";
/// Title line: an empty file is not an empty list.
const TITLE: &str = "complete journals\n";
/// Bytes that are read at once.
const BLOCK: usize = 64 << 10;

/// Length and checksum of a complete journal, without the zeros at its end: the engine makes room in advance, and gives it back when it
/// reads the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seal {
    length: u64,
    crc: u32,
}

/// The complete ones, by number.
#[derive(Debug)]
pub(super) struct Journals {
    database: PathBuf,
    list: PathBuf,
    /// Journals as last written; those of an earlier process do not count.
    known: Option<BTreeMap<u64, Seal>>,
}

fn seal_of(path: &Path) -> io::Result<Seal> {
    static ZEROS: [u8; BLOCK] = [0; BLOCK];
    let (mut file, mut block) = (File::open(path)?, vec![0; BLOCK]);
    let (mut seal, mut zeros) = (Seal { length: 0, crc: 0 }, 0);
    loop {
        let count = file.read(&mut block)?;
        if count == 0 {
            return Ok(seal);
        }
        let Some(last) = zeros::last_used(&block[..count]) else {
            zeros += count;
            continue;
        };
        seal.length += (zeros + last + 1) as u64;
        while zeros > 0 {
            let some = zeros.min(BLOCK);
            seal.crc = crc32c::crc32c_append(seal.crc, &ZEROS[..some]);
            zeros -= some;
        }
        seal.crc = crc32c::crc32c_append(seal.crc, &block[..=last]);
        zeros = count - last - 1;
    }
}

/// True if a journal holds nothing but room.
pub(super) fn is_empty(path: &Path) -> io::Result<bool> {
    Ok(seal_of(path)?.length == 0)
}

fn parse(text: &str) -> Option<BTreeMap<u64, Seal>> {
    let line = |line: &str| {
        let mut words = line.split(' ');
        let number = number_of(words.next()?)?;
        let (length, crc) = (words.next()?.parse().ok()?, u32::from_str_radix(words.next()?, 16).ok()?);
        Some((number, Seal { length, crc }))
    };
    text.strip_prefix(TITLE)?.lines().map(line).collect()
}

impl Journals {
    /// Numbers of those of a database that is not open, compared with what is there.
    ///
    /// # Errors
    /// [`DiskError::Altered`] if one is not what it was.
    pub(super) fn verify(folder: &Path, database: &Path) -> Result<BTreeSet<u64>, DiskError> {
        let list = folder.join(LIST);
        let text = match fs::read_to_string(&list) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
            Err(cause) => return Err(DiskError::File { operation: "read", path: list, cause }),
        };
        let damaged = |path: &Path, problem: String| DiskError::Altered {
            folder: folder.to_owned(),
            path: path.to_owned(),
            problem,
        };
        let known = parse(&text).ok_or_else(|| damaged(&list, "it is no list of journals".into()))?;
        // The newest one is never complete.
        let numbers = journal::numbers(database);
        let newest = numbers.map_err(|cause| DiskError::File {
            operation: "read",
            path: database.to_owned(),
            cause,
        })?;
        let newest = newest.last().copied().unwrap_or(0);
        if let Some((listed, _)) = known.last_key_value().filter(|(listed, _)| **listed > newest) {
            let problem = format!(
                "it is not of this store: it names {listed}{EXTENSION}, and the newest journal is {newest}{EXTENSION}"
            );
            return Err(damaged(&list, problem));
        }
        let mut whole = BTreeSet::new();
        for (number, seal) in known {
            let path = path_of(database, number);
            match seal_of(&path) {
                Ok(found) if found == seal => _ = whole.insert(number),
                Ok(found) => {
                    let problem = format!(
                        "{} bytes are there, and {} other ones were written",
                        found.length, seal.length
                    );
                    return Err(damaged(&path, problem));
                }
                // The engine removes the oldest first.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    if !whole.is_empty() {
                        return Err(damaged(&path, "it is gone".into()));
                    }
                }
                Err(cause) => return Err(DiskError::File { operation: "read", path, cause }),
            }
        }
        Ok(whole)
    }

    /// The list is of another database, or nobody knows.
    pub(super) fn forget(folder: &Path) -> io::Result<()> {
        match fs::remove_file(folder.join(LIST)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Those of a database that is open.
    pub(super) fn of(folder: &Path, database: &Path) -> Self {
        Self { database: database.to_owned(), list: folder.join(LIST), known: None }
    }

    /// Writes the list anew if it is not true any more.
    pub(super) fn look(&mut self) -> io::Result<()> {
        let mut numbers = journal::numbers(&self.database)?;
        numbers.pop(); // it is being written
        if self.known.as_ref().is_some_and(|known| numbers.iter().eq(known.keys())) {
            return Ok(());
        }
        let mut sealed = BTreeMap::new();
        for number in numbers {
            let seal = self.known.as_ref().and_then(|known| known.get(&number).copied());
            let read = || seal_of(&path_of(&self.database, number));
            match seal.map_or_else(read, Ok) {
                Ok(seal) => _ = sealed.insert(number, seal),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {} // written out meanwhile
                Err(error) => return Err(error),
            }
        }
        let line =
            |(number, seal): (&u64, &Seal)| format!("{number}{EXTENSION} {} {:08x}\n", seal.length, seal.crc);
        let lines = sealed.iter().map(line).collect::<String>();
        sync::replace(&self.list, format!("{TITLE}{lines}").as_bytes())?;
        self.known = Some(sealed);
        Ok(())
    }
}
