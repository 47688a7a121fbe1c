//! Which journals of the engine are complete, and what is in them, in a file beside the database.
//!
//! The engine reads each of its journals by itself, and cuts off whatever it cannot read at the end of one, for that is how the
//! newest one looks when the process was killed. The number of commits shows whether the newest one lost more than that; an older
//! one does not change any more until it is removed, so its length and checksum are kept, and compared before the engine
//! opens it.
//!
//! The file has a line for each: name, length in bytes, CRC-32C in hexadecimal.

use super::DiskError;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

/// Beside the database.
const LIST: &str = "journals";
const EXTENSION: &str = ".jnl";
/// Bytes that are read at once.
const BLOCK: usize = 64 << 10;

/// What a complete journal is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seal {
    length: u64,
    crc: u32,
}

/// The complete ones, by number, as they were written down last.
#[derive(Debug)]
pub(super) struct Journals {
    database: PathBuf,
    list: PathBuf,
    known: BTreeMap<u64, Seal>,
}

fn number_of(name: &str) -> Option<u64> {
    name.strip_suffix(EXTENSION)?.parse().ok()
}

fn seal_of(path: &Path) -> io::Result<Seal> {
    let (mut file, mut block) = (File::open(path)?, vec![0; BLOCK]);
    let mut seal = Seal { length: 0, crc: 0 };
    loop {
        let count = file.read(&mut block)?;
        if count == 0 {
            return Ok(seal);
        }
        seal.length += count as u64;
        seal.crc = crc32c::crc32c_append(seal.crc, &block[..count]);
    }
}

fn parse(text: &str) -> Option<BTreeMap<u64, Seal>> {
    let line = |line: &str| {
        let mut words = line.split(' ');
        let number = number_of(words.next()?)?;
        let (length, crc) = (words.next()?.parse().ok()?, u32::from_str_radix(words.next()?, 16).ok()?);
        Some((number, Seal { length, crc }))
    };
    text.lines().map(line).collect()
}

impl Journals {
    /// Those of a database that is not open, compared with what is there.
    ///
    /// # Errors
    /// [`DiskError::Altered`] if one is not what it was.
    pub(super) fn verify(folder: &Path, database: &Path) -> Result<(), DiskError> {
        let list = folder.join(LIST);
        let text = match fs::read_to_string(&list) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(cause) => return Err(DiskError::File { operation: "read", path: list, cause }),
        };
        let damaged = |path: &Path, problem: String| DiskError::Altered {
            folder: folder.to_owned(),
            path: path.to_owned(),
            problem,
        };
        let known = parse(&text).ok_or_else(|| damaged(&list, "it is no list of journals".into()))?;
        let mut is_older_there = false;
        for (number, seal) in known {
            let path = database.join(format!("{number}{EXTENSION}"));
            match seal_of(&path) {
                Ok(found) if found == seal => is_older_there = true,
                Ok(found) => {
                    let problem = format!(
                        "{} bytes are there, and {} other ones were written",
                        found.length, seal.length
                    );
                    return Err(damaged(&path, problem));
                }
                // The engine removes the oldest first.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    if is_older_there {
                        return Err(damaged(&path, "it is gone".into()));
                    }
                }
                Err(cause) => return Err(DiskError::File { operation: "read", path, cause }),
            }
        }
        Ok(())
    }

    /// Those of a database that is open.
    pub(super) fn of(folder: &Path, database: &Path) -> Self {
        Self { database: database.to_owned(), list: folder.join(LIST), known: BTreeMap::new() }
    }

    /// Writes the list anew if it is not true any more.
    pub(super) fn look(&mut self) -> io::Result<()> {
        let mut numbers: Vec<u64> = fs::read_dir(&self.database)?
            .filter_map(|entry| number_of(entry.ok()?.file_name().to_str()?))
            .collect();
        numbers.sort_unstable();
        numbers.pop(); // it is being written
        if numbers.iter().eq(self.known.keys()) {
            return Ok(());
        }
        self.known.retain(|number, _| numbers.contains(number));
        for number in numbers {
            if !self.known.contains_key(&number) {
                match seal_of(&self.database.join(format!("{number}{EXTENSION}"))) {
                    Ok(seal) => _ = self.known.insert(number, seal),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {} // written out meanwhile
                    Err(error) => return Err(error),
                }
            }
        }
        let lines = self
            .known
            .iter()
            .map(|(number, seal)| format!("{number}{EXTENSION} {} {:08x}\n", seal.length, seal.crc));
        replace(&self.list, &lines.collect::<String>())
    }
}

/// Puts a file in the place of another one, wholly or not at all.
pub(super) fn replace(path: &Path, text: &str) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = File::create(&fresh)?;
    file.write_all(text.as_bytes())?;
    file.sync_data()?;
    fs::rename(&fresh, path)
}
