//! The mark: the last commit that is on the disk, and where it ends in the engine's journal.
//!
//! The mark is written after the sync of a commit and before its acknowledgement, unsynced, and synced beside a later
//! commit, every 10 ms at most. After `kill -9` it names the last acknowledged commit; after a power cut that one or one
//! of the 10 ms before it.
//! Example: commit 41 ends at byte 9,000 of journal 3, and the mark says so; commit 42 is half written when the power
//! goes. At the next start everything up to byte 9,000 must be there; what follows may be incomplete, and is cut off
//! ([`super::tail`]).
//!
//! The file `commits` has two slots of 512 bytes, used in turn, so that a mark that is half written leaves the one
//! before it. A slot is one line: commits, journal, end in bytes, the engine's number of the commit, and whether the
//! last syncs succeeded; then a CRC-32C. A file of an earlier version has the number of commits only.

use super::sync;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Bytes of a slot: a disk writes one sector of them wholly or not at all.
const SLOT: usize = 512;

/// Place behind a commit in the journals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct End {
    /// Number of the journal.
    pub(super) journal: u64,
    /// Bytes of the journal up to the end of the commit.
    pub(super) offset: u64,
    /// The engine's number of the commit.
    pub(super) seqno: u64,
}

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// Number of commits.
    pub(super) commits: u64,
    /// End of the last one in the journal. `None`: an earlier version wrote the mark.
    pub(super) end: Option<End>,
    /// False: a sync failed, so that what is read back may not be on the disk.
    pub(super) is_sound: bool,
}

/// Contents of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Noted {
    /// A mark.
    Mark(Mark),
    /// No file: the store is new, or goes on with the rest.
    Nothing,
    /// The file is damaged.
    Damaged,
}

impl Noted {
    pub(super) fn mark(&self) -> Option<&Mark> {
        match self {
            Self::Mark(mark) => Some(mark),
            Self::Nothing | Self::Damaged => None,
        }
    }

    /// Reads the file.
    pub(super) fn read(path: &Path) -> io::Result<Self> {
        match std::fs::read(path) {
            Ok(bytes) => Ok(parse(&bytes).map_or(Self::Damaged, Self::Mark)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::Nothing),
            Err(error) => Err(error),
        }
    }
}

fn line(mark: &Mark) -> String {
    let End { journal, offset, seqno } = mark.end.filter(|end| end.offset > 0).unwrap_or_default();
    let state = if mark.is_sound { "synced" } else { "failed" };
    format!("{:020} {journal:020} {offset:020} {seqno:020} {state}", mark.commits)
}

fn slot(mark: &Mark) -> [u8; SLOT] {
    let line = line(mark);
    let mut slot = [b' '; SLOT];
    let text = format!("{line} {:08x}", crc32c::crc32c(line.as_bytes()));
    slot[..text.len()].copy_from_slice(text.as_bytes());
    slot[SLOT - 1] = b'\n';
    slot
}

fn parse_slot(slot: &[u8]) -> Option<Mark> {
    let mut words = std::str::from_utf8(slot).ok()?.split_ascii_whitespace();
    let mut number = || words.next()?.parse::<u64>().ok();
    let (commits, journal, offset, seqno) = (number()?, number()?, number()?, number()?);
    let is_sound = match words.next()? {
        "synced" => true,
        "failed" => false,
        _ => return None,
    };
    let end = (offset > 0).then_some(End { journal, offset, seqno });
    let mark = Mark { commits, end, is_sound };
    (slot == self::slot(&mark)).then_some(mark)
}

fn parse(bytes: &[u8]) -> Option<Mark> {
    if bytes.len() == 21 {
        let text = std::str::from_utf8(bytes).ok()?;
        let commits = text.trim_end().parse().ok()?;
        return (text == format!("{commits:020}\n")).then_some(Mark { commits, end: None, is_sound: true });
    }
    let marks = bytes.chunks(SLOT).take(2).filter_map(parse_slot);
    marks.max_by_key(|mark| (mark.commits, !mark.is_sound))
}

/// The file, open.
#[derive(Debug)]
pub(super) struct MarkFile {
    file: File,
    path: PathBuf,
    last: Mutex<Mark>,
}

impl MarkFile {
    /// Puts a new file in the place of the one that is there.
    pub(super) fn create(path: &Path, mark: Mark) -> io::Result<Self> {
        sync::replace(path, &[slot(&mark), slot(&mark)].concat())?;
        let file = OpenOptions::new().write(true).open(path)?;
        Ok(Self { file, path: path.to_owned(), last: Mutex::new(mark) })
    }

    /// Writes a mark, unsynced. After a failed sync no other mark is written.
    pub(super) fn write(&self, mark: Mark) -> io::Result<()> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if !last.is_sound {
            return Err(io::Error::other("a sync has failed"));
        }
        let at = (mark.commits % 2) * SLOT as u64;
        self.file.write_all_at(&slot(&mark), at)?;
        *last = mark;
        Ok(())
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        sync::data(&self.file, &self.path)
    }

    /// Name of the file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Notes that a sync failed: what is read back may not be on the disk. The bytes are there already, so this needs no
    /// room; it survives the process, as what is read back does.
    pub(super) fn distrust(&self) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.is_sound = false;
        let slots = [slot(&last), slot(&last)].concat();
        if let Err(error) = self.file.write_all_at(&slots, 0) {
            tracing::error!(%error, path = %self.path.display(), "cannot note that a sync failed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARK: Mark =
        Mark { commits: 41, end: Some(End { journal: 3, offset: 9_000, seqno: 77 }), is_sound: true };

    #[test]
    fn a_mark_is_read_as_it_was_written() {
        for mark in [MARK, Mark { end: None, ..MARK }, Mark { is_sound: false, ..MARK }] {
            assert_eq!(parse(&[slot(&mark), slot(&mark)].concat()), Some(mark));
        }
        let old = Mark { commits: 7, end: None, is_sound: true };
        assert_eq!(parse(b"00000000000000000007\n"), Some(old), "as earlier versions wrote it");
    }

    #[test]
    fn a_damaged_slot_leaves_the_mark_before() {
        let before = Mark { commits: 40, ..MARK };
        let whole = [slot(&before), slot(&MARK)].concat();
        assert_eq!(parse(&whole), Some(MARK));
        for at in SLOT..2 * SLOT {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            assert_eq!(parse(&damaged), Some(before), "byte {at}");
        }
        assert_eq!(parse(&whole[..SLOT]), Some(before));
        for nothing in [&b""[..], b"20\n", b"twenty", &[0; 2 * SLOT]] {
            assert_eq!(parse(nothing), None);
        }
    }
}
