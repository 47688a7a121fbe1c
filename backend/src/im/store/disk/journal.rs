//! The engine's journal as the engine writes it: batches, one behind the other.
//!
//! A batch is a start (tag 1, number of items, number of the batch), the items (tag 2: put or remove; tag 4: clear a
//! table) and an end (tag 3, XXH3 of the items, four bytes `FJL\x03`). Behind the last batch are zeros: the engine makes
//! room in advance. The workspace pins the engine's minor version for the sake of this file.

use super::mark::End;
use super::tables::COMMITS;
use std::fs::File;
use std::io::{self, BufReader, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

pub(super) const EXTENSION: &str = ".jnl";
const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;
const MAGIC: &[u8; 4] = b"FJL\x03";
/// Bytes of a start, of an end, and of an item without its key and value.
const START_BYTES: usize = 13;
const END_BYTES: usize = 13;
const ITEM_BYTES: usize = 21;
/// Bytes that are read at once.
const BLOCK: usize = 256 << 10;
static ZEROS: [u8; BLOCK] = [0; BLOCK];
/// Limit of a search for a batch, in bytes read again for each byte that is searched. Behind a crash each byte is of one
/// or two batches; only bytes made for it are of many.
const SEARCH_READS_MAX: u64 = 16;
/// Limit of short searches, in bytes.
const SEARCH_BYTES_MIN: u64 = 1 << 20;

/// Number of a journal, by the name of its file.
pub(super) fn number_of(name: &str) -> Option<u64> {
    name.strip_suffix(EXTENSION)?.parse().ok()
}

pub(super) fn path_of(database: &Path, number: u64) -> PathBuf {
    database.join(format!("{number}{EXTENSION}"))
}

/// Numbers of the journals that are there, rising.
pub(super) fn numbers(database: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(database)? {
        numbers.extend(entry?.file_name().to_str().and_then(number_of));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// A batch that is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Batch {
    /// Byte behind it.
    pub(super) end: u64,
    /// The engine's number.
    pub(super) seqno: u64,
    /// Number of the commit. `None`: the batch counts none.
    pub(super) commits: Option<u64>,
}

/// Result of a search for a whole batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A whole batch that begins at this byte.
    Batch(u64),
    /// There is none.
    Nothing,
    /// The search came to its limit: too much looks like the beginning of a batch.
    Unclear,
}

/// One of a batch's items.
enum Item {
    Commits(u64),
    Other,
    /// The bytes are not an item.
    Nothing,
}

/// A journal that is being read.
#[derive(Debug)]
pub(super) struct Reader {
    file: BufReader<File>,
    at: u64,
    length: u64,
}

impl Reader {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        Ok(Self { file: BufReader::with_capacity(BLOCK, file), at: 0, length })
    }

    fn go_to(&mut self, at: u64) -> io::Result<()> {
        let by = i64::try_from(at).unwrap_or(i64::MAX) - i64::try_from(self.at).unwrap_or(i64::MAX);
        self.file.seek_relative(by)?;
        self.at = at;
        Ok(())
    }

    /// The next bytes; `None`: the file ends before.
    fn take<const N: usize>(&mut self) -> io::Result<Option<[u8; N]>> {
        if self.length.saturating_sub(self.at) < N as u64 {
            return Ok(None);
        }
        let mut bytes = [0; N];
        self.file.read_exact(&mut bytes)?;
        self.at += N as u64;
        Ok(Some(bytes))
    }

    /// Adds the next `count` bytes to the checksum. False: the file ends before.
    fn hash(&mut self, mut count: u64, checksum: &mut Xxh3) -> io::Result<bool> {
        if self.length.saturating_sub(self.at) < count {
            return Ok(false);
        }
        let mut block = [0; 4096];
        while count > 0 {
            let some = usize::try_from(count).unwrap_or(usize::MAX).min(block.len());
            self.file.read_exact(&mut block[..some])?;
            checksum.update(&block[..some]);
            self.at += some as u64;
            count -= some as u64;
        }
        Ok(true)
    }

    /// The batch at this byte; `None`: there is no whole one.
    pub(super) fn batch(&mut self, at: u64) -> io::Result<Option<Batch>> {
        self.go_to(at)?;
        let Some([START, rest @ ..]) = self.take::<START_BYTES>()? else { return Ok(None) };
        let (count, seqno) = rest.split_at(4);
        let count = u32::from_le_bytes(count.try_into().expect("4 bytes"));
        let seqno = u64::from_le_bytes(seqno.try_into().expect("8 bytes"));
        let (mut checksum, mut commits) = (Xxh3::new(), None);
        for _ in 0..count {
            match self.item(&mut checksum)? {
                Item::Other => commits = None,
                Item::Commits(counted) => commits = Some(counted),
                Item::Nothing => return Ok(None),
            }
        }
        let Some([END, rest @ ..]) = self.take::<END_BYTES>()? else { return Ok(None) };
        let (wanted, magic) = rest.split_at(8);
        let is_whole = wanted == checksum.digest().to_le_bytes() && magic == MAGIC;
        Ok((is_whole && count > 0).then_some(Batch { end: self.at, seqno, commits }))
    }

    fn item(&mut self, checksum: &mut Xxh3) -> io::Result<Item> {
        let other = |is_there: bool| if is_there { Item::Other } else { Item::Nothing };
        let Some([tag]) = self.take()? else { return Ok(Item::Nothing) };
        checksum.update(&[tag]);
        match tag {
            CLEAR => Ok(other(self.hash(8, checksum)?)),
            ITEM => {
                let Some(head) = self.take::<{ ITEM_BYTES - 1 }>()? else { return Ok(Item::Nothing) };
                checksum.update(&head);
                let key = u16::from_le_bytes([head[10], head[11]]);
                let value = u32::from_le_bytes([head[16], head[17], head[18], head[19]]);
                if (usize::from(key), value) != (COMMITS.len(), 8) {
                    return Ok(other(self.hash(u64::from(key) + u64::from(value), checksum)?));
                }
                let Some(bytes) = self.take::<15>()? else { return Ok(Item::Nothing) };
                checksum.update(&bytes);
                let (key, value) = bytes.split_at(COMMITS.len());
                let value = u64::from_be_bytes(value.try_into().expect("8 bytes"));
                Ok(if key == COMMITS { Item::Commits(value) } else { Item::Other })
            }
            _ => Ok(Item::Nothing),
        }
    }

    /// True if there are only zeros behind this byte.
    pub(super) fn is_empty_behind(&mut self, at: u64) -> io::Result<bool> {
        let mut block = vec![0; BLOCK];
        self.go_to(at)?;
        while self.at < self.length {
            let some = usize::try_from(self.length - self.at).unwrap_or(usize::MAX).min(block.len());
            self.file.read_exact(&mut block[..some])?;
            self.at += some as u64;
            if block[..some] != ZEROS[..some] {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The first whole batch behind this byte that `is_wanted`. Reads at most 16 times the bytes that it searches, or 1 MiB
    /// if that is more.
    pub(super) fn find_behind(&mut self, at: u64, is_wanted: impl Fn(&Batch) -> bool) -> io::Result<Found> {
        const HEAD: usize = START_BYTES;
        let searched = self.length.saturating_sub(at);
        let mut left = searched.saturating_mul(SEARCH_READS_MAX).max(SEARCH_BYTES_MIN);
        let mut from = at;
        let mut window = vec![0; BLOCK];
        loop {
            let rest = usize::try_from(self.length.saturating_sub(from)).unwrap_or(usize::MAX);
            let some = rest.min(BLOCK);
            if some < HEAD {
                return Ok(Found::Nothing);
            }
            self.file.seek(SeekFrom::Start(from))?;
            self.at = from;
            self.file.read_exact(&mut window[..some])?;
            self.at += some as u64;
            for (place, head) in window[..some].windows(HEAD).enumerate() {
                let seqno = u64::from_le_bytes(head[5..HEAD].try_into().expect("8 bytes"));
                // Judged by its number before it is read: few bytes are a start.
                let head_only = Batch { end: 0, seqno, commits: None };
                if head[0] != START || !is_wanted(&head_only) {
                    continue;
                }
                let place = from + place as u64;
                let batch = self.batch(place)?;
                if batch.is_some_and(|batch| batch.commits.is_some() && is_wanted(&batch)) {
                    return Ok(Found::Batch(place));
                }
                let Some(rest) = left.checked_sub(self.at - place) else { return Ok(Found::Unclear) };
                left = rest;
            }
            from += (some - HEAD + 1) as u64;
        }
    }
}

/// Bytes of a batch in the journal: number of items, and bytes of their keys and values.
pub(super) const fn batch_bytes(items: u64, content: u64) -> u64 {
    (START_BYTES + END_BYTES) as u64 + items * ITEM_BYTES as u64 + content
}

/// Follows the engine while it writes: knows where the last batch ends.
#[derive(Debug)]
pub(super) struct Follower {
    database: PathBuf,
    path: PathBuf,
    file: File,
    journal: u64,
    at: u64,
    seqno: u64,
}

impl Follower {
    /// Goes behind the last batch.
    pub(super) fn start(database: &Path) -> io::Result<Self> {
        let journal = numbers(database)?.pop().unwrap_or(0);
        let path = path_of(database, journal);
        let mut reader = Reader::open(&path)?;
        let (mut at, mut seqno) = (0, 0);
        while let Some(batch) = reader.batch(at)? {
            (at, seqno) = (batch.end, batch.seqno);
        }
        let file = File::open(&path)?;
        Ok(Self { database: database.to_owned(), path, file, journal, at, seqno })
    }

    /// End of the last batch.
    pub(super) const fn end(&self) -> End {
        End { journal: self.journal, offset: self.at, seqno: self.seqno }
    }

    /// Passes the batch that was just written, of `items` and `bytes` ([`batch_bytes`]); returns its end. The engine begins
    /// another journal now and then.
    pub(super) fn pass(&mut self, items: u64, bytes: u64) -> io::Result<End> {
        if let Some(seqno) = self.batch_at(self.at, items, bytes)? {
            self.at += bytes;
            return self.found(seqno);
        }
        let path = path_of(&self.database, self.journal + 1);
        let next = File::open(&path).map_err(|error| self.lost(&error))?;
        self.file.sync_data()?; // the engine did; the last batch of all was ours
        (self.file, self.path, self.journal, self.at) = (next, path, self.journal + 1, 0);
        match self.batch_at(0, items, bytes)? {
            Some(seqno) => {
                self.at = bytes;
                self.found(seqno)
            }
            None => Err(self.lost(&io::ErrorKind::InvalidData.into())),
        }
    }

    fn lost(&self, cause: &io::Error) -> io::Error {
        let problem =
            format!("the last batch is not behind byte {} of {}: {cause}", self.at, self.path.display());
        io::Error::new(cause.kind(), problem)
    }

    fn found(&mut self, seqno: u64) -> io::Result<End> {
        if self.file.metadata()?.nlink() == 0 {
            let problem = format!("{} was removed or moved while the backend runs", self.path.display());
            return Err(io::Error::new(io::ErrorKind::NotFound, problem));
        }
        self.seqno = seqno;
        Ok(self.end())
    }

    fn batch_at(&self, at: u64, items: u64, bytes: u64) -> io::Result<Option<u64>> {
        let (mut start, mut end) = ([0; START_BYTES], [0; END_BYTES]);
        let read = self
            .file
            .read_exact_at(&mut start, at)
            .and_then(|()| self.file.read_exact_at(&mut end, at + bytes - END_BYTES as u64));
        match read {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
            Ok(()) => {}
        }
        let (head, seqno) = start.split_at(5);
        let count = u32::from_le_bytes(head[1..].try_into().expect("4 bytes"));
        let is_it = head[0] == START && u64::from(count) == items && end[0] == END && end[9..] == *MAGIC;
        Ok(is_it.then(|| u64::from_le_bytes(seqno.try_into().expect("8 bytes"))))
    }

    /// The journal that is written, and its name.
    pub(super) fn current(&self) -> (&File, &Path) {
        (&self.file, &self.path)
    }
}
