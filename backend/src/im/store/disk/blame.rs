//! Name of the damaged file, for a database that the engine refuses without saying which file is at fault.
//!
//! Each table of the engine has a folder with a pointer (`current`: number and checksum of the newest list), lists (`v7`)
//! and data (`tables/12`); a list holds the checksum of each file of data. Example: the engine says `ChecksumMismatch`; the
//! list `keyspaces/3/v7` has another checksum for `keyspaces/3/tables/12` than the file, so that file is named. All files are
//! read, so this is done only when the engine has refused.

use super::DiskError;
use super::renew::TABLES;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

/// Bytes of `current`: number of the list, its checksum, kind of checksum.
const CURRENT_BYTES: usize = 8 + 16 + 1;

/// Puts the name of the damaged file into an error of the engine, if there is one.
pub(super) fn name(folder: &Path, database: &Path, error: DiskError) -> DiskError {
    let is_engine = match &error {
        DiskError::Open { .. } | DiskError::Engine { .. } => true,
        DiskError::Damaged { what, .. } => *what == super::tables::WHOLE,
        _ => false,
    };
    match is_engine.then(|| damaged(database)).flatten() {
        Some((path, problem)) => {
            let problem = format!("{problem} ({error})");
            DiskError::Altered { folder: folder.to_owned(), path, problem }
        }
        None => error,
    }
}

/// The first file that is not what it should be, and what is wrong with it.
pub(super) fn damaged(database: &Path) -> Option<(PathBuf, String)> {
    let mut tables: Vec<PathBuf> = match fs::read_dir(database.join(TABLES)) {
        Ok(entries) => entries.filter_map(|entry| Some(entry.ok()?.path())).collect(),
        Err(error) => return Some((database.join(TABLES), error.to_string())),
    };
    tables.sort_by_key(|path| (path.as_os_str().len(), path.clone()));
    tables.iter().filter(|table| table.join("current").exists()).find_map(|table| of_table(table))
}

/// Pointers that are missing: the engine takes a table without one for a table that is not made yet, and removes it.
pub(super) fn without_pointer(database: &Path) -> Vec<PathBuf> {
    let tables = fs::read_dir(database.join(TABLES)).into_iter().flatten();
    let pointers = tables.filter_map(|entry| Some(entry.ok()?.path())).filter(|table| table.is_dir());
    let mut missing: Vec<_> =
        pointers.map(|table| table.join("current")).filter(|current| !current.exists()).collect();
    missing.sort();
    missing
}

/// A table is gone, and these pointers were missing before the engine looked.
pub(super) fn gone(folder: &Path, database: &Path, pointers: &[PathBuf], table: &str) -> DiskError {
    let folder = folder.to_owned();
    match pointers.first() {
        Some(path) => DiskError::Gone { folder, path: path.clone() },
        None => DiskError::Altered {
            folder,
            path: database.join(format!("keyspaces, table {table}")),
            problem: "it is gone".into(),
        },
    }
}

fn of_table(table: &Path) -> Option<(PathBuf, String)> {
    let current = table.join("current");
    let bytes = match fs::read(&current) {
        Ok(bytes) => bytes,
        Err(error) => return Some((current, error.to_string())),
    };
    let Ok(bytes) = <[u8; CURRENT_BYTES]>::try_from(&bytes[..]) else {
        return Some((current, format!("it has {} bytes, and {CURRENT_BYTES} were written", bytes.len())));
    };
    let number = u64::from_le_bytes(bytes[..8].try_into().ok()?);
    let wanted = u128::from_le_bytes(bytes[8..24].try_into().ok()?);
    let list = table.join(format!("v{number}"));
    if !list.exists() {
        return Some((list, "it is gone, or `current` beside it is damaged".into()));
    }
    if let Some(problem) = differs(&list, wanted) {
        return Some((list, problem));
    }
    let files = match files_of(&list) {
        Ok(files) => files,
        Err(error) => return Some((list, error.to_string())),
    };
    files.into_iter().find_map(|(number, wanted)| {
        let file = table.join("tables").join(number.to_string());
        differs(&file, wanted).map(|problem| (file, problem))
    })
}

/// Compares the checksum of a whole file.
fn differs(path: &Path, wanted: u128) -> Option<String> {
    let checksum = |path: &Path| -> io::Result<u128> {
        let (mut file, mut checksum) = (BufReader::with_capacity(256 << 10, File::open(path)?), Xxh3::new());
        loop {
            let block = file.fill_buf()?;
            if block.is_empty() {
                return Ok(checksum.digest128());
            }
            checksum.update(block);
            let count = block.len();
            file.consume(count);
        }
    };
    match checksum(path) {
        Ok(found) if found == wanted => None,
        Ok(_) => Some("its checksum is not the one that was written".into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some("it is gone".into()),
        Err(error) => Some(format!("it cannot be read: {error}")),
    }
}

/// Numbers and checksums of the files that a list names.
fn files_of(list: &Path) -> io::Result<Vec<(u64, u128)>> {
    let wrong = |problem: &str| io::Error::new(io::ErrorKind::InvalidData, problem);
    let archive = sfa::Reader::new(list).map_err(|error| wrong(&format!("it is no list: {error:?}")))?;
    let section = archive.toc().section(b"tables").ok_or_else(|| wrong("it names no tables"))?;
    let mut reader = section.buf_reader(list)?;
    let mut files = Vec::new();
    let mut levels = [0; 1];
    reader.read_exact(&mut levels)?;
    for _ in 0..levels[0] {
        let mut runs = [0; 1];
        reader.read_exact(&mut runs)?;
        for _ in 0..runs[0] {
            let mut count = [0; 4];
            reader.read_exact(&mut count)?;
            for _ in 0..u32::from_le_bytes(count) {
                // Number, kind of checksum, checksum, sequence number.
                let mut file = [0; 8 + 1 + 16 + 8];
                reader.read_exact(&mut file)?;
                let (number, rest) = file.split_at(8);
                let number = u64::from_le_bytes(number.try_into().expect("8 bytes"));
                files.push((number, u128::from_le_bytes(rest[1..17].try_into().expect("16 bytes"))));
            }
        }
    }
    Ok(files)
}
