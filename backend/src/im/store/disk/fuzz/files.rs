//! Fuzz body of the files beside the database, and of the end of the engine's journals.
//!
//! The first byte of an input chooses the file. For example, `0` and 1,024 bytes are the two slots of a mark; `4`, a mark of
//! 12 bytes and then pieces are journals: raw bytes, zeros, whole batches and the begin of the next journal. Each file is refused
//! with an error, or what it says holds: what is kept of a journal is its beginning, up to the mark at least, and a second
//! look changes nothing.

use super::super::high_water::HighWaterFile;
use super::super::journal::{self, Follower};
use super::super::journals::{Journals, LIST};
use super::super::mark::{End, Mark, MarkFile, Noted};
use super::super::tables::COMMITS;
use super::super::{DATABASE, DiskError, HIGH_WATER, SIDE_FILE, identity, scratch, tail};
use crate::im::store::ConversationId;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::xxh3_64;

/// Journals of one input.
const JOURNALS_MAX: usize = 3;
/// Name of the identity's file.
const IDENTITY: &str = "identity";

/// A folder that many inputs use, one after the other.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let folder = scratch::path("fuzz-files");
        fs::remove_dir_all(&folder).ok();
        fs::create_dir_all(folder.join(DATABASE)).expect("a writable temporary folder");
        Self(folder)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, bytes).expect("writable");
        path
    }

    fn database(&self) -> PathBuf {
        self.0.join(DATABASE)
    }

    fn clear_journals(&self) {
        (0..JOURNALS_MAX as u64)
            .for_each(|number| _ = fs::remove_file(journal::path_of(&self.database(), number)));
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

/// Reads a file that says what the input says.
pub fn body(input: &[u8]) {
    thread_local! {
        static FOLDER: RefCell<Option<Folder>> = const { RefCell::new(None) };
    }
    let Some((kind, rest)) = input.split_first() else { return };
    let folder = FOLDER.with_borrow_mut(Option::take).unwrap_or_else(Folder::new);
    match kind % 6 {
        0 => marks(&folder, rest),
        1 => lists(&folder, rest),
        2 => identities(&folder, rest),
        3 => maxima(&folder, rest),
        _ => journals(&folder, rest),
    }
    FOLDER.with_borrow_mut(|kept| *kept = Some(folder));
}

fn is_refused(error: &dyn std::error::Error) {
    assert!(!error.to_string().is_empty());
}

/// A mark that is read is written as it was, and read again.
fn marks(folder: &Folder, bytes: &[u8]) {
    let path = folder.write(SIDE_FILE, bytes);
    let Noted::Mark(mark) = Noted::read(&path).expect("readable") else { return };
    let file = MarkFile::create(&path, mark).expect("writable");
    assert_eq!(Noted::read(&path).expect("readable"), Noted::Mark(mark));
    let next = Mark { commits: mark.commits.wrapping_add(1), ..mark };
    assert_eq!(file.write(next).is_ok(), mark.is_sound, "after a failed sync no other mark is written");
    if mark.is_sound && mark.commits < u64::MAX {
        assert_eq!(Noted::read(&path).expect("readable"), Noted::Mark(next));
    }
    file.distrust();
    assert!(Noted::read(&path).expect("readable").mark().is_some_and(|mark| !mark.is_sound));
}

/// A list of complete journals, beside one that holds the text of the list.
fn lists(folder: &Folder, bytes: &[u8]) {
    folder.write(LIST, bytes);
    fs::write(journal::path_of(&folder.database(), 0), bytes).expect("writable");
    match Journals::verify(&folder.0, &folder.database()) {
        Ok(whole) => assert!(whole.iter().all(|number| *number == 0), "{whole:?} are not there"),
        Err(error) => is_refused(&error),
    }
    Journals::forget(&folder.0).expect("removed");
    folder.clear_journals();
}

/// Judges an identity: a store that was settled is not a copy, whatever the file said.
fn identities(folder: &Folder, bytes: &[u8]) {
    folder.write(IDENTITY, bytes);
    match identity::is_copy(&folder.0) {
        Ok(is_copy) => {
            assert!(is_copy, "the time of a file's creation was guessed");
            identity::settle(&folder.0).expect("writable");
            assert!(!identity::is_copy(&folder.0).expect("readable"));
            identity::mark_copy(&folder.0).expect("writable");
            assert!(identity::is_copy(&folder.0).expect("readable"));
        }
        Err(error) => is_refused(&error),
    }
}

/// Maxima that are read have a next seq, and are written as they were.
fn maxima(folder: &Folder, bytes: &[u8]) {
    let path = folder.write(HIGH_WATER, bytes);
    let (mut read, file) = match HighWaterFile::open(&path) {
        Ok(read) => read,
        Err(error) => return is_refused(&error),
    };
    let first = ConversationId::of(u32::try_from(bytes.len() % 4096).expect("small"));
    let seq = read.maximum(first).unwrap_or(0) + 1;
    let raised = read.raise(first, seq).expect("above the maximum");
    raised.write(&file).expect("writable");
    assert!(read.maximum(first).is_some_and(|maximum| maximum >= seq));
    read.write(&file, &path).expect("writable");
    if let Ok((again, _)) = HighWaterFile::open(&path) {
        assert_eq!((again.maximum(first), again.begin_after), (read.maximum(first), read.begin_after));
    }
}

/// Judges journals: their beginning is kept, with everything that the mark names, and a second look changes nothing.
fn journals(folder: &Folder, input: &[u8]) {
    let Some((head, pieces)) = input.split_first_chunk() else { return };
    let noted = noted_of(*head);
    let files = files_of(pieces);
    let database = folder.database();
    for (number, file) in (0..).zip(&files) {
        fs::write(journal::path_of(&database, number), file).expect("writable");
    }
    let mend = || tail::mend(&folder.0, &database, &noted, &BTreeSet::new());
    match mend() {
        Ok(()) => {
            let kept = kept(&database, &files);
            if let Some(end) = noted.mark().and_then(|mark| mark.end) {
                let length = usize::try_from(end.journal).ok().and_then(|number| kept.get(number)).copied();
                assert!(length.is_some_and(|length| length as u64 >= end.offset), "{end:?} of {kept:?}");
            }
            mend().expect("what was mended is whole");
            assert_eq!(self::kept(&database, &files), kept, "a second look");
            let end = Follower::start(&database).expect("readable").end();
            assert_eq!(end.journal + 1, files.len() as u64);
            assert!(end.offset <= kept[files.len() - 1] as u64);
        }
        Err(error @ (DiskError::Altered { .. } | DiskError::Lost { .. })) => {
            is_refused(&error);
            let lengths: Vec<_> = files.iter().map(Vec::len).collect();
            assert_eq!(kept(&database, &files), lengths, "a store that is refused was changed");
        }
        Err(other) => panic!("{other}"),
    }
    folder.clear_journals();
}

/// Lengths of the journals; each is the beginning of what was written.
fn kept(database: &Path, files: &[Vec<u8>]) -> Vec<usize> {
    let one = |(number, file): (u64, &Vec<u8>)| {
        let now = fs::read(journal::path_of(database, number)).expect("readable");
        assert!(file.starts_with(&now), "journal {number} has other bytes");
        now.len()
    };
    (0..).zip(files).map(one).collect()
}

/// A mark: whether there is one and is sound; journal, offset, commits and seqno.
fn noted_of(head: [u8; 7]) -> Noted {
    let [kind, journal, low, high, commits, seqno, _] = head;
    let offset = u64::from(u16::from_le_bytes([low, high]));
    let end = End { journal: u64::from(journal % 4), offset, seqno: seqno.into() };
    match kind % 4 {
        0 => Noted::Nothing,
        1 => Noted::Mark(Mark { commits: commits.into(), end: None, is_sound: true }),
        _ => Noted::Mark(Mark {
            commits: commits.into(),
            end: (offset > 0).then_some(end),
            is_sound: kind & 4 == 0,
        }),
    }
}

/// Journals of pieces: a kind, a length, and as many bytes at most.
fn files_of(mut pieces: &[u8]) -> Vec<Vec<u8>> {
    let (mut files, mut seqno, mut commits) = (vec![Vec::new()], 0, 0);
    while let Some(([kind, length], rest)) = pieces.split_first_chunk() {
        let (bytes, rest) = rest.split_at(rest.len().min(usize::from(*length)));
        pieces = rest;
        let count = files.len();
        let file = files.last_mut().expect("one at least");
        match kind % 8 {
            0 => file.extend_from_slice(bytes),
            1 => file.resize(file.len() + 16 * bytes.len(), 0),
            2 if count < JOURNALS_MAX => files.push(bytes.to_vec()),
            // The end of the last piece is missing, or is there twice.
            3 => file.truncate(file.len().saturating_sub(usize::from(*length))),
            _ => {
                (seqno, commits) = (seqno + u64::from(kind / 32), commits + 1);
                file.extend(batch(seqno, (kind & 8 == 0).then_some(commits), bytes));
            }
        }
    }
    files
}

/// A whole batch as the engine writes it: one item with this value, and the number of the commit.
pub(in crate::im::store::disk) fn batch(seqno: u64, commits: Option<u64>, value: &[u8]) -> Vec<u8> {
    let item = |key: &[u8], value: &[u8]| {
        let mut item = vec![2];
        item.extend([0; 10]);
        item.extend(u16::try_from(key.len()).expect("short").to_le_bytes());
        item.extend([0; 4]);
        item.extend(u32::try_from(value.len()).expect("short").to_le_bytes());
        [&item[..], key, value].concat()
    };
    let count = commits.map(|commits| item(COMMITS, &commits.to_be_bytes()));
    let items = [item(b"k", value), count.clone().unwrap_or_default()].concat();
    let mut bytes = vec![1];
    bytes.extend((1 + u32::from(count.is_some())).to_le_bytes());
    bytes.extend(seqno.to_le_bytes());
    bytes.extend_from_slice(&items);
    bytes.push(3);
    bytes.extend(xxh3_64(&items).to_le_bytes());
    bytes.extend(b"FJL\x03");
    bytes
}

/// Files of an ordinary life, and damaged ones.
#[cfg(test)]
fn seeds() -> Vec<Vec<u8>> {
    let folder = Folder::new();
    let mark = Mark { commits: 41, end: Some(End { journal: 3, offset: 9_000, seqno: 77 }), is_sound: true };
    let path = folder.0.join(SIDE_FILE);
    let mut seeds = Vec::new();
    for mark in [mark, Mark { end: None, ..mark }, Mark { is_sound: false, ..mark }] {
        MarkFile::create(&path, mark).expect("writable");
        seeds.push([&[0], &fs::read(&path).expect("readable")[..]].concat());
    }
    seeds.push([&[0], &b"00000000000000000007\n"[..]].concat());
    for list in
        ["complete journals\n", "complete journals\n0.jnl 34 00000000\n7.jnl 12 89abcdef\n", "0.jnl 1 2\n"]
    {
        seeds.push([&[1], list.as_bytes()].concat());
    }
    for identity in ["copy\n", "created 1700000000000000000\n", "file 7\n"] {
        seeds.push([&[2], identity.as_bytes()].concat());
    }
    for numbers in [&[0_u64, 10_000, 30_000][..], &[1 << 32, 1 << 40], &[0, u64::MAX]] {
        let bytes = numbers.iter().flat_map(|number| number.to_be_bytes());
        seeds.push([3].into_iter().chain(bytes).collect());
    }
    // Two commits of 83 bytes, the mark behind the first, the second, or a third that is not there.
    let commits = [&[4 + 32, 3][..], b"one", &[4 + 32, 3], b"two"].concat();
    let length = batch(1, Some(1), b"one").len();
    for (offset, last) in [(length, 1), (2 * length, 2), (3 * length, 3)] {
        let [low, high] = u16::try_from(offset).expect("short").to_le_bytes();
        let head = [4, 2, 0, low, high, last, last, 0];
        seeds.push([&head[..], &commits].concat());
        seeds.push([&head[..], &commits, &[1, 8, 0, 0, 0, 0, 0, 0, 0, 0]].concat());
        seeds.push([&head[..], &commits, &[0, 5, 1, 1, 0, 0, 0]].concat());
        seeds.push([&head[..], &commits, &[3, 9], &commits].concat());
        seeds.push([&head[..], &commits, &[2, 0], &commits].concat());
    }
    seeds
}

#[test]
fn every_input_of_the_corpus_passes() {
    let seeds = seeds();
    seeds.iter().for_each(|seed| (0..=seed.len()).for_each(|cut| body(&seed[..cut])));
    crate::fuzz::corpus("backend_files", &seeds).iter().for_each(|input| body(input));
}
