//! Snapshot format: the state of a gateway, for the process that takes over (`docs/handover.md`).
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
//! Bodies that the reader got before the snapshot are only named ([`StoredBodies`], docs/adr/0026).
//!
//! Bodies that many frames share are written once and named by number. For example, a push to 500 sessions is one
//! `Body` record, and 500 connections name it by number 1. Pure; every reader is bounded by the bytes that are there.

mod records;
mod stored;

pub use records::*;
pub use stored::{StoredBodies, read_stored};

use bytes::{Buf, BufMut, Bytes};
use prost::Message;
use std::collections::HashMap;
use std::sync::Arc;

const MAGIC: &[u8; 8] = b"MOORSNAP";
const LEAD_BYTES: usize = MAGIC.len() + 4 + 4;
/// Limit of the header, in bytes: a directory of some hundred sections is far below it.
const HEADER_BYTES_MAX: usize = 1 << 20;
/// Version that is written. An older reader must refuse a newer major version.
pub const VERSION: (u32, u32) = (1, 2);
/// Oldest major version that is read.
pub const MAJOR_MIN: u32 = 1;
/// Bit of [`Header::critical`]: there were fewer shards or workers once, so users may be at another one than their pin
/// determines.
pub const GROWN: u64 = 1;
/// Bit of [`Header::critical`]: some of the users' pins come from a hash with a key.
pub const KEYED: u64 = 2;
/// Bit of [`Header::critical`]: some connections have a layer: TLS, WebSocket, or an exchange before the first frame.
pub const LAYERED: u64 = 4;
/// Bit of [`Header::critical`]: some links have TLS.
pub const SEALED_LINKS: u64 = 8;
/// Bits of [`Header::critical`] that this build knows.
pub const CRITICAL_KNOWN: u64 = GROWN | KEYED | LAYERED | SEALED_LINKS;

/// Reason to refuse a snapshot; no socket has been touched then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// The first bytes are not those of a snapshot.
    #[error("the file is not a snapshot of a gateway")]
    Magic,
    /// Bytes are missing.
    #[error("the snapshot is cut off: {wanted} bytes were announced, {there} are there")]
    CutOff {
        /// Announced number of bytes.
        wanted: u64,
        /// Number of bytes that are there.
        there: u64,
    },
    /// A checksum is wrong.
    #[error("{what} of the snapshot is damaged: the checksum is wrong")]
    Checksum {
        /// The header, or a section.
        what: String,
    },
    /// The version is not read here.
    #[error("the snapshot has version {0}.{1}, and versions {MAJOR_MIN} to {newest} are read here", newest = VERSION.0)]
    Version(u32, u32),
    /// The snapshot needs features that this build does not have.
    #[error("the snapshot needs features that this build does not know (bits {0:#x})")]
    Critical(u64),
    /// A record is unknown, and not marked as optional.
    #[error("{section} has a record that this build does not know")]
    Unknown {
        /// Name of the section.
        section: String,
    },
    /// A value contradicts another one.
    #[error("{section}: {problem}")]
    Contradiction {
        /// Name of the section.
        section: String,
        /// Contradiction, for people.
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

    /// Returns the magic number with the header, and then the bytes of each section.
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

/// Bytes of the length before each record.
const RECORD_LENGTH_BYTES: usize = 4;

/// A section that is being written.
#[derive(Debug, Default)]
pub struct Section {
    bytes: Vec<u8>,
    /// Numbers of the written bodies, by address and length in memory.
    bodies: HashMap<(usize, usize), u32>,
    /// Bodies that the reader has already.
    stored: Arc<StoredBodies>,
}

impl Section {
    /// Makes a section of these bytes, for tests.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self { bytes, ..Self::default() }
    }

    /// Makes an empty section for a reader that has these bodies already.
    pub fn with_stored(stored: Arc<StoredBodies>) -> Self {
        Self { stored, ..Self::default() }
    }

    /// Returns the encoded records.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Returns the length in bytes.
    pub const fn len(&self) -> usize {
        self.bytes.len()
    }

    /// True if nothing is written yet.
    pub const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Appends a record.
    pub fn put(&mut self, item: Item) {
        self.put_record(&Record { item: Some(item), is_optional: false });
    }

    /// Appends a record that a reader may leave out if it does not know it.
    pub fn put_optional(&mut self, item: Item) {
        self.put_record(&Record { item: Some(item), is_optional: true });
    }

    fn put_record(&mut self, record: &Record) {
        // The length comes first and is known last, so it is a varint of a fixed number of bytes.
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

    /// Reserves memory for at least `bytes` more bytes.
    pub fn reserve(&mut self, bytes: usize) {
        self.bytes.reserve(bytes);
    }

    /// Appends records that name no body.
    pub fn append(&mut self, other: &Self) {
        assert!(other.bodies.is_empty(), "bodies are numbered by section");
        self.bytes.extend_from_slice(&other.bytes);
    }

    /// Returns whether the reader has a body already.
    pub fn has_stored(&self, body: &Bytes) -> bool {
        self.stored.number(body).is_some()
    }

    /// Returns the number of a body, for the record that names it, and writes the body if it is new; 0: empty.
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
        self.put(match self.stored.number(body) {
            Some(number) => Item::Stored(number),
            None => Item::Body(body.clone()),
        });
        next
    }
}

/// A snapshot with a valid header and valid checksums.
#[derive(Debug)]
pub struct Snapshot {
    /// Header with the directory.
    pub header: Header,
    bytes: Bytes,
    begin: usize,
    /// Bodies that came before the snapshot.
    stored: Arc<[Bytes]>,
}

impl Snapshot {
    /// Reads the header and compares every checksum; no record is read yet.
    ///
    /// # Errors
    /// [`SnapshotError`].
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
        let snapshot = Self { header, bytes, begin, stored: Arc::default() };
        for entry in &snapshot.header.sections {
            let section = snapshot.bytes_of(entry)?;
            if crc32c::crc32c(&section) != entry.crc {
                return Err(SnapshotError::Checksum { what: entry.to_string() });
            }
        }
        Ok(snapshot)
    }

    /// Gives the snapshot the bodies that came before it.
    #[must_use]
    pub fn with_stored(self, stored: Arc<[Bytes]>) -> Self {
        Self { stored, ..self }
    }

    fn bytes_of(&self, entry: &SectionEntry) -> Result<Bytes, SnapshotError> {
        let there = self.bytes.len() as u64;
        let begin = (self.begin as u64).checked_add(entry.offset);
        let end = begin.and_then(|begin| begin.checked_add(entry.length));
        match (begin, end) {
            (Some(begin), Some(end)) if end <= there => {
                let index = |at: u64| usize::try_from(at).expect("not above the number of bytes");
                Ok(self.bytes.slice(index(begin)..index(end)))
            }
            (_, end) => Err(SnapshotError::CutOff { wanted: end.unwrap_or(u64::MAX), there }),
        }
    }

    /// Returns the sections of a kind, ordered by number.
    ///
    /// # Errors
    /// [`SnapshotError::CutOff`].
    pub fn sections(&self, kind: SectionKind) -> Result<Vec<(u32, Records)>, SnapshotError> {
        let mut found = Vec::new();
        for entry in self.header.sections.iter().filter(|entry| entry.kind() == kind) {
            let (name, bytes) = (entry.to_string(), self.bytes_of(entry)?);
            let (length, stored) = (bytes.len(), Arc::clone(&self.stored));
            found.push((entry.number, Records { name, length, bytes, bodies: Vec::new(), stored }));
        }
        found.sort_by_key(|(number, _)| *number);
        Ok(found)
    }
}

/// Reader of the records of a section.
#[derive(Debug)]
pub struct Records {
    name: String,
    length: usize,
    bytes: Bytes,
    bodies: Vec<Bytes>,
    stored: Arc<[Bytes]>,
}

impl Records {
    /// Returns the length of the whole section in bytes.
    pub const fn len(&self) -> usize {
        self.length
    }

    /// True if the section has no record.
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Returns the next record, and keeps the bodies before it; `None`: the end of the section.
    ///
    /// # Errors
    /// [`SnapshotError`].
    #[allow(clippy::should_implement_trait)] // an iterator could not lend its bodies
    pub fn next(&mut self) -> Result<Option<Item>, SnapshotError> {
        while self.bytes.has_remaining() {
            let record = Record::decode_length_delimited(&mut self.bytes)
                .map_err(|error| self.contradiction(error.to_string()))?;
            match record.item {
                // A copy: a slice would keep the memory of the whole snapshot.
                Some(Item::Body(body)) => self.bodies.push(Bytes::copy_from_slice(&body)),
                Some(Item::Stored(number)) => {
                    let body = self.stored.get(number as usize).cloned();
                    let body =
                        body.ok_or_else(|| self.contradiction(format!("there is no stored body {number}")))?;
                    self.bodies.push(body);
                }
                Some(item) => return Ok(Some(item)),
                None if record.is_optional => {}
                None => return Err(SnapshotError::Unknown { section: self.name.clone() }),
            }
        }
        Ok(None)
    }

    /// Returns the body with this number; 0: the empty body.
    ///
    /// # Errors
    /// [`SnapshotError::Contradiction`]: no record before this one has that body.
    pub fn body(&self, number: u32) -> Result<Bytes, SnapshotError> {
        match number.checked_sub(1) {
            None => Ok(Bytes::new()),
            Some(index) => {
                let body = self.bodies.get(index as usize).cloned();
                body.ok_or_else(|| self.contradiction(format!("there is no body {number}")))
            }
        }
    }

    /// Makes the error for a contradiction in this section.
    pub fn contradiction(&self, problem: impl Into<String>) -> SnapshotError {
        SnapshotError::Contradiction { section: self.name.clone(), problem: problem.into() }
    }
}

#[cfg(test)]
mod tests;
