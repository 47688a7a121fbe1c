//! The file: a line that says what it is, then records, each with its length and a checksum.

use super::StoreError;
use prost::Message as _;
use std::fs::Permissions;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// The first bytes of every store, with its version.
pub(super) const MAGIC: &[u8] = b"moorline store 1\n";
/// Length of a record, its complement, and CRC-32C, little-endian.
pub(super) const HEAD_BYTES: usize = 12;
/// No record is longer.
const RECORD_BYTES_MAX: usize = 4 << 20;
/// A smaller file is never written anew.
const SMALL_BYTES: u64 = 256 << 10;
/// Records that may be past for each that is not.
const PAST_PER_RECORD: usize = 4;

/// Rights of the file: messages are for nobody but the user.
const MODE: u32 = 0o600;

/// A change.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Record {
    #[prost(oneof = "record::What", tags = "1, 2, 3, 4")]
    pub(super) what: Option<record::What>,
}

pub(super) mod record {
    use bytes::Bytes;

    #[derive(Clone, PartialEq, prost::Oneof)]
    pub(in crate::store) enum What {
        /// User and device.
        #[prost(string, tag = "1")]
        Owner(String),
        #[prost(message, tag = "2")]
        Unsent(Unsent),
        /// A number that has its result.
        #[prost(uint64, tag = "3")]
        Done(u64),
        #[prost(message, tag = "4")]
        Place(Place),
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(in crate::store) struct Unsent {
        #[prost(uint64, tag = "1")]
        pub(in crate::store) number: u64,
        #[prost(bytes = "bytes", tag = "2")]
        pub(in crate::store) key: Bytes,
        #[prost(string, tag = "3")]
        pub(in crate::store) user: String,
        #[prost(string, tag = "4")]
        pub(in crate::store) conversation: String,
        #[prost(uint32, tag = "5")]
        pub(in crate::store) kind: u32,
        #[prost(bytes = "bytes", tag = "6")]
        pub(in crate::store) payload: Bytes,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(in crate::store) struct Place {
        #[prost(string, tag = "1")]
        pub(in crate::store) conversation: String,
        #[prost(uint64, tag = "2")]
        pub(in crate::store) next: u64,
        #[prost(uint64, tag = "3")]
        pub(in crate::store) start: u64,
        #[prost(uint64, tag = "4")]
        pub(in crate::store) newest: u64,
        #[prost(uint64, tag = "5")]
        pub(in crate::store) stored_ms: u64,
    }
}

/// The open file; nobody else has it open.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    bytes: u64,
    records: usize,
    /// Changes that must not be lost are synced at once.
    pub(super) is_synced: bool,
}

impl Journal {
    /// With all its records.
    pub(super) fn open(path: &Path) -> Result<(Self, Vec<Record>), StoreError> {
        let failed = |operation| {
            let path = path.to_owned();
            move |cause| StoreError::File { operation, path, cause }
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(MODE)
            .open(path)
            .map_err(failed("open"))?;
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => StoreError::InUse { path: path.to_owned() },
            TryLockError::Error(cause) => failed("lock")(cause),
        })?;
        keep_to_owner(path, &file);
        let mut held = Vec::new();
        file.read_to_end(&mut held).map_err(failed("read"))?;
        let (records, end) = read(&held).map_err(|at| StoreError::Damaged { path: path.to_owned(), at })?;
        // What was cut off is overwritten.
        file.set_len(end).and_then(|()| file.seek(SeekFrom::Start(end))).map_err(failed("write"))?;
        let count = records.len();
        let mut journal = Self { path: path.to_owned(), file, bytes: end, records: count, is_synced: false };
        if end == 0 {
            journal.file.write_all(MAGIC).map_err(failed("write"))?;
            journal.bytes = MAGIC.len() as u64;
        }
        Ok((journal, records))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn append(&mut self, record: &Record, matters: bool) -> io::Result<()> {
        let framed = frame(record);
        if framed.len() > HEAD_BYTES + RECORD_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "a record has at most 4 MiB"));
        }
        if let Err(error) = self.file.write_all(&framed) {
            // Half of a record may not stay in the middle of the file.
            self.file.set_len(self.bytes)?;
            self.file.seek(SeekFrom::Start(self.bytes))?;
            return Err(error);
        }
        self.bytes += framed.len() as u64;
        self.records += 1;
        if matters && self.is_synced { self.file.sync_data() } else { Ok(()) }
    }

    /// True if `live` records could replace the whole journal.
    pub(super) fn is_mostly_past(&self, live: usize) -> bool {
        self.bytes > SMALL_BYTES && self.records > PAST_PER_RECORD * (live + 1)
    }

    /// Replaces all records by these. A new file takes the place of the old one, so one of both is always whole.
    pub(super) fn rewrite(&mut self, records: impl Iterator<Item = Record>) -> io::Result<()> {
        let mut path = self.path.clone().into_os_string();
        path.push(".new");
        let mut written = MAGIC.to_vec();
        let mut count = 0;
        for record in records {
            written.extend(frame(&record));
            count += 1;
        }
        let mut file = OpenOptions::new().write(true).create(true).truncate(false).mode(MODE).open(&path)?;
        file.try_lock().map_err(|_| io::Error::other("another client writes it anew"))?;
        keep_to_owner(Path::new(&path), &file);
        file.set_len(0)?; // left over by an earlier life
        file.write_all(&written)?;
        file.sync_data()?;
        std::fs::rename(&path, &self.path)?;
        (self.file, self.bytes, self.records) = (file, written.len() as u64, count);
        Ok(())
    }
}

/// Takes the rights of others from a file: an earlier version made it with those of the umask.
fn keep_to_owner(path: &Path, file: &File) {
    let is_open = file.metadata().is_ok_and(|known| known.permissions().mode() & 0o077 != 0);
    if is_open && let Err(error) = file.set_permissions(Permissions::from_mode(MODE)) {
        tracing::warn!(%error, path = %path.display(), "others may read the store, and that cannot be changed");
    }
}

/// Encodes a record behind its head.
pub(super) fn frame(record: &Record) -> Vec<u8> {
    let body = record.encode_to_vec();
    let mut framed = Vec::with_capacity(HEAD_BYTES + body.len());
    framed.extend_from_slice(&head(&body));
    framed.extend_from_slice(&body);
    framed
}

/// Returns the head of a record: its length, the complement, and the checksum.
pub(super) fn head(body: &[u8]) -> [u8; HEAD_BYTES] {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let mut head = [0; HEAD_BYTES];
    head[..4].copy_from_slice(&length.to_le_bytes());
    head[4..8].copy_from_slice(&(!length).to_le_bytes());
    head[8..].copy_from_slice(&crc32c::crc32c(body).to_le_bytes());
    head
}

/// All whole records, and where they end; or where the damage is.
pub(super) fn read(held: &[u8]) -> Result<(Vec<Record>, u64), u64> {
    if held.len() < MAGIC.len() {
        return if MAGIC.starts_with(held) { Ok((Vec::new(), 0)) } else { Err(0) };
    }
    if !held.starts_with(MAGIC) {
        return Err(0);
    }
    let (mut records, mut at) = (Vec::new(), MAGIC.len());
    while let Some(head) = held.get(at..at + HEAD_BYTES) {
        let number =
            |from: usize| u32::from_le_bytes([head[from], head[from + 1], head[from + 2], head[from + 3]]);
        if number(0) != !number(4) || number(0) as usize > RECORD_BYTES_MAX {
            // A machine that ended may leave zeros behind what was written.
            let is_blank = held[at..].iter().all(|byte| *byte == 0);
            return if is_blank { Ok((records, at as u64)) } else { Err(at as u64) };
        }
        let (length, sum, start) = (number(0) as usize, number(8), at + HEAD_BYTES);
        let Some(body) = held.get(start..start + length) else { break }; // cut off
        if crc32c::crc32c(body) != sum {
            // The last record may have been written in any order when the machine ended.
            return if start + length == held.len() { Ok((records, at as u64)) } else { Err(at as u64) };
        }
        records.push(Record::decode(body).map_err(|_| at as u64)?);
        at = start + length;
    }
    Ok((records, at as u64))
}
