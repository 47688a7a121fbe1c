//! The form in which a gateway's state goes to the process that takes over (`docs/handover.md`).
//!
//! ```text
//! "MOORSNAP" | header length u32 | header CRC-32C u32 | header | section | section | ...
//! ```
//!
//! Numbers are big-endian. The header is a protobuf message with a directory: kind, number, offset, length
//! and CRC-32C of each section. A section is a run of length-delimited [`Record`]s: tag, length, value. Tags
//! are never used again; a reader skips records that are marked as optional and that it does not know, and
//! refuses a snapshot with an unknown one that is not, or with a [`Header::critical`] bit that it does not know.
//!
//! Bodies that many frames share are written once and named by number. Pure; every reader of it is bounded
//! by the bytes that are there.

mod records;

pub use records::*;

use bytes::{Buf, BufMut, Bytes};
use prost::Message;
use std::collections::HashMap;

const MAGIC: &[u8; 8] = b"MOORSNAP";
const LEAD_BYTES: usize = MAGIC.len() + 4 + 4;
/// Bytes of header: a directory of some hundred sections is far below it.
const HEADER_BYTES_MAX: usize = 1 << 20;
/// The version that is written. A new major version is one that an older reader must not take.
pub const VERSION: (u32, u32) = (1, 1);
/// The oldest major version that is read.
pub const MAJOR_MIN: u32 = 1;
/// Bit of [`Header::critical`]: users may be at another shard or worker than their pin says, because there were fewer
/// once.
pub const GROWN: u64 = 1;
/// Bits of [`Header::critical`] that this build knows.
pub const CRITICAL_KNOWN: u64 = GROWN;

/// Why a snapshot is not taken. It is refused before anything was touched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// It does not begin like one.
    #[error("it is no snapshot of a gateway")]
    Magic,
    /// Bytes are missing.
    #[error("it is cut off: {wanted} bytes were promised, {there} are there")]
    CutOff {
        /// Bytes that should be there.
        wanted: u64,
        /// Bytes that are.
        there: u64,
    },
    /// A checksum is wrong.
    #[error("{what} is damaged: its checksum is wrong")]
    Checksum {
        /// The header, or a section.
        what: String,
    },
    /// It was written in a version that is not read here.
    #[error("it has version {0}.{1}, and versions {MAJOR_MIN} to {newest} are read here", newest = VERSION.0)]
    Version(u32, u32),
    /// It needs something that this build does not have.
    #[error("it needs features that this build does not know (bits {0:#x})")]
    Critical(u64),
    /// A record that this build does not know, and must.
    #[error("{section} has a record that this build does not know")]
    Unknown {
        /// Which section.
        section: String,
    },
    /// A value contradicts another one.
    #[error("{section}: {problem}")]
    Contradiction {
        /// Which section.
        section: String,
        /// What is wrong.
        problem: String,
    },
}

/// A snapshot that is being written.
#[derive(Debug, Default)]
pub struct Writer {
    sections: Vec<(SectionKind, u32, Vec<u8>)>,
}

impl Writer {
    /// Adds a section.
    pub fn add(&mut self, kind: SectionKind, number: u32, section: Section) {
        self.sections.push((kind, number, section.bytes));
    }

    /// The bytes that lead, and then each section's.
    pub fn finish(self, mut header: Header) -> Vec<Vec<u8>> {
        (header.major, header.minor) = VERSION;
        let mut offset = 0;
        header.sections = Vec::with_capacity(self.sections.len());
        for (kind, number, bytes) in &self.sections {
            let (length, crc) = (bytes.len() as u64, crc32c::crc32c(bytes));
            header.sections.push(SectionEntry { kind: (*kind).into(), number: *number, offset, length, crc });
            offset += length;
        }
        let encoded = header.encode_to_vec();
        let mut lead = Vec::with_capacity(LEAD_BYTES + encoded.len());
        lead.extend_from_slice(MAGIC);
        lead.put_u32(u32::try_from(encoded.len()).expect("a directory is small"));
        lead.put_u32(crc32c::crc32c(&encoded));
        lead.extend_from_slice(&encoded);
        std::iter::once(lead).chain(self.sections.into_iter().map(|(_, _, bytes)| bytes)).collect()
    }
}

/// Bytes of the length before a record.
const RECORD_LENGTH_BYTES: usize = 4;

/// One section that is being written.
#[derive(Debug, Default)]
pub struct Section {
    bytes: Vec<u8>,
    /// Bodies that were written, by where they lie in memory.
    bodies: HashMap<(usize, usize), u32>,
}

impl Section {
    /// A section of these bytes, for tests.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self { bytes, bodies: HashMap::new() }
    }

    /// Its records.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Its length in bytes.
    pub const fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing was written.
    pub const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Appends a record.
    pub fn put(&mut self, item: Item) {
        let record = Record { item: Some(item), is_optional: false };
        // The length comes first and is known last: it has its room, as a varint of always as many bytes.
        let begin = self.bytes.len() + RECORD_LENGTH_BYTES;
        self.bytes.resize(begin, 0);
        record.encode_raw(&mut self.bytes);
        let mut length = self.bytes.len() - begin;
        for (place, byte) in self.bytes[begin - RECORD_LENGTH_BYTES..begin].iter_mut().enumerate() {
            let is_last = place + 1 == RECORD_LENGTH_BYTES;
            *byte = u8::try_from(length & 0x7F).expect("7 bits") | if is_last { 0 } else { 0x80 };
            length >>= 7;
        }
        assert_eq!(length, 0, "a record is far below 256 MiB");
    }

    /// Makes room for so many bytes.
    pub fn reserve(&mut self, bytes: usize) {
        self.bytes.reserve(bytes);
    }

    /// Appends records that name no body.
    pub fn append(&mut self, other: &Self) {
        assert!(other.bodies.is_empty(), "bodies are numbered by section");
        self.bytes.extend_from_slice(&other.bytes);
    }

    /// The number of a body, which is written before the record that names it; 0: empty.
    pub fn body(&mut self, body: &Bytes) -> u32 {
        if body.is_empty() {
            return 0;
        }
        let next = u32::try_from(self.bodies.len() + 1).expect("fewer bodies than bytes of memory");
        let place = (body.as_ptr() as usize, body.len());
        if let Some(known) = self.bodies.get(&place) {
            return *known;
        }
        self.bodies.insert(place, next);
        self.put(Item::Body(body.clone()));
        next
    }
}

/// A snapshot whose header was read and whose sections were compared with their checksums.
#[derive(Debug)]
pub struct Snapshot {
    /// What it says of itself.
    pub header: Header,
    bytes: Bytes,
    begin: usize,
}

impl Snapshot {
    /// Reads the header and compares every checksum.
    ///
    /// # Errors
    /// [`SnapshotError`]; nothing was interpreted then.
    pub fn open(bytes: Bytes) -> Result<Self, SnapshotError> {
        let there = bytes.len() as u64;
        let cut_off = |wanted: u64| SnapshotError::CutOff { wanted, there };
        if bytes.len() < LEAD_BYTES {
            return Err(if bytes.starts_with(MAGIC) {
                cut_off(LEAD_BYTES as u64)
            } else {
                SnapshotError::Magic
            });
        }
        let mut lead = bytes.slice(..LEAD_BYTES);
        if lead.split_to(MAGIC.len()) != MAGIC[..] {
            return Err(SnapshotError::Magic);
        }
        let (length, crc) = (lead.get_u32() as usize, lead.get_u32());
        let begin = LEAD_BYTES + length;
        if length > HEADER_BYTES_MAX || bytes.len() < begin {
            return Err(cut_off(begin as u64));
        }
        let encoded = bytes.slice(LEAD_BYTES..begin);
        let damaged = || SnapshotError::Checksum { what: "the header".into() };
        if crc32c::crc32c(&encoded) != crc {
            return Err(damaged());
        }
        let header = Header::decode(encoded).map_err(|_| damaged())?;
        if header.major > VERSION.0 || header.major < MAJOR_MIN {
            return Err(SnapshotError::Version(header.major, header.minor));
        }
        if header.critical & !CRITICAL_KNOWN != 0 {
            return Err(SnapshotError::Critical(header.critical & !CRITICAL_KNOWN));
        }
        let snapshot = Self { header, bytes, begin };
        for entry in &snapshot.header.sections {
            let section = snapshot.bytes_of(entry)?;
            if crc32c::crc32c(&section) != entry.crc {
                return Err(SnapshotError::Checksum { what: entry.to_string() });
            }
        }
        Ok(snapshot)
    }

    fn bytes_of(&self, entry: &SectionEntry) -> Result<Bytes, SnapshotError> {
        let there = self.bytes.len() as u64;
        let begin = (self.begin as u64).checked_add(entry.offset);
        let end = begin.and_then(|begin| begin.checked_add(entry.length));
        match (begin, end) {
            (Some(begin), Some(end)) if end <= there => {
                let index = |at: u64| usize::try_from(at).expect("not above the length of what is there");
                Ok(self.bytes.slice(index(begin)..index(end)))
            }
            (_, end) => Err(SnapshotError::CutOff { wanted: end.unwrap_or(u64::MAX), there }),
        }
    }

    /// The sections of a kind, by number.
    ///
    /// # Errors
    /// [`SnapshotError::CutOff`].
    pub fn sections(&self, kind: SectionKind) -> Result<Vec<(u32, Records)>, SnapshotError> {
        let mut found = Vec::new();
        for entry in self.header.sections.iter().filter(|entry| entry.kind() == kind) {
            let (name, bytes) = (entry.to_string(), self.bytes_of(entry)?);
            found.push((entry.number, Records { name, length: bytes.len(), bytes, bodies: Vec::new() }));
        }
        found.sort_by_key(|(number, _)| *number);
        Ok(found)
    }
}

/// Reads the records of a section.
#[derive(Debug)]
pub struct Records {
    name: String,
    length: usize,
    bytes: Bytes,
    bodies: Vec<Bytes>,
}

impl Records {
    /// Bytes of the whole section.
    pub const fn len(&self) -> usize {
        self.length
    }

    /// Whether there is no record in it.
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The next record that is no body; `None`: that was all.
    ///
    /// # Errors
    /// [`SnapshotError`].
    #[allow(clippy::should_implement_trait)] // an iterator could not lend its bodies
    pub fn next(&mut self) -> Result<Option<Item>, SnapshotError> {
        while self.bytes.has_remaining() {
            let record = Record::decode_length_delimited(&mut self.bytes)
                .map_err(|error| self.contradiction(error.to_string()))?;
            match record.item {
                // Its own memory: a piece of the snapshot would keep all of it.
                Some(Item::Body(body)) => self.bodies.push(Bytes::copy_from_slice(&body)),
                Some(item) => return Ok(Some(item)),
                None if record.is_optional => {}
                None => return Err(SnapshotError::Unknown { section: self.name.clone() }),
            }
        }
        Ok(None)
    }

    /// The body of a number.
    ///
    /// # Errors
    /// [`SnapshotError::Contradiction`]: there is none.
    pub fn body(&self, number: u32) -> Result<Bytes, SnapshotError> {
        match number.checked_sub(1) {
            None => Ok(Bytes::new()),
            Some(index) => {
                let body = self.bodies.get(index as usize).cloned();
                body.ok_or_else(|| self.contradiction(format!("there is no body {number}")))
            }
        }
    }

    /// Something in this section is wrong.
    pub fn contradiction(&self, problem: impl Into<String>) -> SnapshotError {
        SnapshotError::Contradiction { section: self.name.clone(), problem: problem.into() }
    }
}

#[cfg(test)]
mod tests;
