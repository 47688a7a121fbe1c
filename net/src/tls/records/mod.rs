//! Records of application data (RFC 8446, 5): opened in place, sealed behind one another.
//!
//! | what comes | what happens |
//! |---|---|
//! | application data | its plain text is moved behind that of the record before |
//! | KeyUpdate, alone in its record | the read key changes; if the peer wants it, an answer is due |
//! | `close_notify` | the peer's direction has ended; what follows is ignored |
//! | `user_canceled` | nothing: `close_notify` follows |
//! | any other alert | the connection is over |
//! | session tickets, whole in their record, at a client's end | nothing: a client here makes no use of them |
//! | a record without content, a KeyUpdate, tickets, `user_canceled` | at most 8 a second, then the connection is over |
//! | anything else | the connection is over |
//!
//! A length beyond the limit and a kind that is not valid are faults as soon as the header is there, so the caller never
//! buffers more than one record ([`RECORD_BYTES_MAX`]). A client's end is the same with the secrets exchanged, and bears
//! tickets.
//!
//! Run-through: the buffer has two records of 30 and 40 bytes of text and the first 9 bytes of a third one. `open` returns
//! `plain = 5..75` and `consumed = 114`; the caller keeps the 9 bytes and offers them again with those that follow.

#[cfg(any(test, fuzzing))]
pub(super) mod forge;
mod freeze;
mod key;

pub use freeze::{FROZEN_BYTES_MAX, Frozen, ThawError};

use super::fault::{Alert, Fault};
use super::provider::Suite;
use super::secret::Secret;
use key::{Keep, Key, Slot};
use moorline_proto::time::Instant;
use rustls::ContentType;
use rustls::crypto::cipher::OutboundChunks;
use std::fmt;
use std::ops::Range;

/// Bytes of a record's header.
pub(super) const HEADER_BYTES: usize = 5;
/// Content of one record, in bytes.
const CONTENT_BYTES_MAX: usize = 1 << 14;
/// Limit of the cipher text behind a record's header, in bytes.
pub(super) const CIPHER_BYTES_MAX: usize = CONTENT_BYTES_MAX + 256;
/// A whole record with its header, in bytes: the most that waits for the rest of a record.
pub const RECORD_BYTES_MAX: usize = HEADER_BYTES + CIPHER_BYTES_MAX;
/// Own records under one key. AES-GCM bears 2^24.5 records of 2^14 bytes (RFC 8446, 5.5).
const UPDATE_AFTER: u32 = 1 << 23;
/// Records without content, KeyUpdates and warnings of a peer that are accepted within a second.
const EMPTY_PER_SECOND_MAX: u8 = 8;

const KEY_UPDATE: [u8; 4] = [24, 0, 0, 1];
const UPDATE_NOT_REQUESTED: u8 = 0;
const UPDATE_REQUESTED: u8 = 1;
const WARNING: u8 = 1;
const FATAL: u8 = 2;

/// Record layer of one connection.
pub struct Records {
    read: Secret,
    write: Secret,
    /// Memory of a connection in use; `None`: its keys are made for each use.
    warm: Option<Box<Warm>>,
    /// Number of the next record to open: a peer that changes no key in 2^32 records is at its end.
    read_seq: u32,
    state: State,
}

const _: () =
    assert!(size_of::<Warm>() <= 120, "what a busy connection keeps fits into one allocation of 128 bytes");
const _: () =
    assert!(size_of::<Records>() <= 112, "with 8 bytes beside it, it fits into one allocation of 128 bytes");

#[derive(Default)]
struct Warm {
    keep: Keep,
    open: Slot,
    seal: Slot,
    /// Second of the last empty record, modulo 2^16.
    empty_second: u16,
    /// Empty records in that second.
    empty_count: u8,
}

/// Flags, and in the lower three bytes the number of the next record to seal: at most [`UPDATE_AFTER`] and the few records
/// that end a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
struct State(u32);

struct Flags;

impl Flags {
    const CHACHA20: u8 = 1;
    /// The peer wants a KeyUpdate.
    const ANSWER_DUE: u8 = 2;
    /// The peer has sent `close_notify`.
    const READ_CLOSED: u8 = 4;
    /// This end has sent an alert.
    const WRITE_CLOSED: u8 = 8;
    /// The peer has made a fault.
    const BROKEN: u8 = 16;
    /// Another process may own the keys.
    const FROZEN: u8 = 32;
    /// The secrets are gone.
    const RETIRED: u8 = 64;
    /// This end is the client's.
    const CLIENT: u8 = 128;
}

impl State {
    const SEQ_MAX: u32 = (1 << 24) - 1;

    const fn has(self, bits: u8) -> bool {
        self.flags() & bits != 0
    }

    const fn set(&mut self, bit: u8, is_set: bool) {
        let bit = (bit as u32) << 24;
        self.0 = if is_set { self.0 | bit } else { self.0 & !bit };
    }

    const fn flags(self) -> u8 {
        (self.0 >> 24) as u8
    }

    const fn write_seq(self) -> u32 {
        self.0 & Self::SEQ_MAX
    }

    /// Sets the number of the next record to seal. False: it is too large, and nothing is changed.
    const fn try_set_write_seq(&mut self, seq: u32) -> bool {
        if seq > Self::SEQ_MAX {
            return false;
        }
        self.0 = self.0 & !Self::SEQ_MAX | seq;
        true
    }
}

/// Outcome of one call of [`Records::open`].
#[must_use = "the end of the connection is told here only"]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Place of the plain text in the buffer.
    pub plain: Range<usize>,
    /// Bytes of cipher text that are done with. The caller keeps the rest, which is less than one record.
    pub consumed: usize,
    /// The peer waits for a KeyUpdate: [`Records::answer`], unless something is sealed anyway.
    pub is_answer_due: bool,
    /// The connection is over behind the plain text.
    pub end: Option<End>,
}

/// End of the peer's direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The peer sends nothing more, and has said so.
    Closed,
    /// The connection cannot go on. [`Records::alert`] makes the record that tells the peer.
    Fault(Fault),
}

impl Warm {
    const fn open(&mut self) -> &mut Slot {
        &mut self.open
    }

    const fn seal(&mut self) -> &mut Slot {
        &mut self.seal
    }
}

/// Returns the key of a direction: what was kept of it, or derived anew.
fn take(
    warm: &mut Option<Box<Warm>>,
    slot: fn(&mut Warm) -> &mut Slot,
    suite: Suite,
    secret: &mut Secret,
) -> Key {
    match warm {
        Some(warm) => {
            let keep = warm.keep;
            slot(warm).take(keep, suite, secret)
        }
        None => Slot::Empty.take(Keep::Nothing, suite, secret),
    }
}

/// Content of one record.
enum Content {
    Text(usize),
    Nothing,
    Closed,
}

impl Records {
    pub(super) fn new(suite: Suite, read: Secret, write: Secret, write_seq: u32) -> Self {
        let mut state = State(0);
        state.set(Flags::CHACHA20, suite == Suite::ChaCha20);
        let is_possible = state.try_set_write_seq(write_seq);
        debug_assert!(is_possible, "the library has sealed a handshake");
        Self { read, write, warm: None, read_seq: 0, state }
    }

    /// Makes this a client's end, or a server's.
    pub(super) fn of_client(mut self, is_client: bool) -> Self {
        self.state.set(Flags::CLIENT, is_client);
        self
    }

    /// Returns the cipher suite.
    pub const fn suite(&self) -> Suite {
        if self.state.has(Flags::CHACHA20) { Suite::ChaCha20 } else { Suite::Aes256 }
    }

    /// Decrypts, in place, all whole records of `buffer`, and moves their plain text together. Each call gets the bytes
    /// that the last one has not consumed, and those that came since. After the end of the connection, whatever comes is
    /// consumed.
    pub fn open(&mut self, buffer: &mut [u8], now: Instant) -> Opened {
        let mut opened = Opened { plain: 0..0, consumed: 0, is_answer_due: false, end: None };
        let outcome = self.open_into(&mut opened, buffer, now);
        opened.is_answer_due = self.state.has(Flags::ANSWER_DUE);
        if let Err(fault) = outcome {
            if fault != Fault::NotOwner {
                self.state.set(Flags::BROKEN, true);
            }
            opened.end = Some(End::Fault(fault));
        }
        opened
    }

    fn open_into(&mut self, opened: &mut Opened, buffer: &mut [u8], now: Instant) -> Result<(), Fault> {
        self.check_owner()?;
        if self.state.has(Flags::BROKEN) {
            opened.consumed = buffer.len();
            return Err(Fault::Closed);
        }
        if self.state.has(Flags::READ_CLOSED) {
            (opened.consumed, opened.end) = (buffer.len(), Some(End::Closed));
        }
        let mut key = None;
        while let Some(length) = whole_record(&buffer[opened.consumed..])? {
            let start = opened.consumed + HEADER_BYTES;
            let content = self.open_one(&mut key, &mut buffer[start..start + length], now)?;
            opened.consumed = start + length;
            match content {
                Content::Text(length) if opened.plain.is_empty() => opened.plain = start..start + length,
                Content::Text(length) => {
                    buffer.copy_within(start..start + length, opened.plain.end);
                    opened.plain.end += length;
                }
                Content::Nothing => {}
                Content::Closed => {
                    self.state.set(Flags::READ_CLOSED, true);
                    (opened.consumed, opened.end) = (buffer.len(), Some(End::Closed));
                }
            }
        }
        if let (Some(warm), Some(key)) = (&mut self.warm, key) {
            warm.open.give_back(warm.keep, key);
        }
        Ok(())
    }

    /// Decrypts one record. Its text stands at the beginning of `cipher` then.
    fn open_one(&mut self, key: &mut Option<Key>, cipher: &mut [u8], now: Instant) -> Result<Content, Fault> {
        let next_seq = self.read_seq.checked_add(1).ok_or(Fault::Exhausted)?;
        let suite = self.suite();
        let ready = key.get_or_insert_with(|| take(&mut self.warm, Warm::open, suite, &mut self.read));
        let (kind, length) = ready.open(self.read_seq, cipher)?;
        self.read_seq = next_seq;
        match (kind, &cipher[..length]) {
            (ContentType::ApplicationData, []) | (ContentType::Alert, [_, Alert::USER_CANCELED_CODE]) => {}
            (ContentType::ApplicationData, text) => {
                if let Some(warm) = &mut self.warm
                    && warm.empty_count > 0
                    && warm.empty_second != second(now)
                {
                    warm.empty_count = 0;
                }
                return Ok(Content::Text(text.len()));
            }
            (ContentType::Alert, [_, Alert::CLOSE_NOTIFY_CODE]) => return Ok(Content::Closed),
            (ContentType::Alert, [_, code]) => return Err(Fault::Alert(Alert(*code))),
            (ContentType::Alert, []) => return Err(Fault::Unexpected),
            (ContentType::Alert, _) => return Err(Fault::Malformed),
            (ContentType::Handshake, messages) if self.state.has(Flags::CLIENT) && are_tickets(messages) => {}
            (ContentType::Handshake, message) => {
                let is_answer_due = key_update(message)?;
                self.read.update(suite);
                self.read_seq = 0;
                *key = None;
                if let Some(warm) = &mut self.warm {
                    warm.open = Slot::Empty;
                }
                if is_answer_due {
                    self.state.set(Flags::ANSWER_DUE, true);
                }
            }
            _ => return Err(Fault::Unexpected),
        }
        self.count_empty(now)?;
        Ok(Content::Nothing)
    }

    fn count_empty(&mut self, now: Instant) -> Result<(), Fault> {
        let warm = self.warm.get_or_insert_default();
        if warm.empty_second != second(now) {
            (warm.empty_second, warm.empty_count) = (second(now), 0);
        }
        warm.empty_count += 1;
        if warm.empty_count > EMPTY_PER_SECOND_MAX { Err(Fault::Flood) } else { Ok(()) }
    }

    /// Appends the records of the text in `pieces`, each full but the last one. Before them goes what the peer waits for,
    /// and an own KeyUpdate after 2^23 records.
    ///
    /// # Errors
    /// [`Fault::NotOwner`] and [`Fault::Closed`]: nothing is appended. [`Fault::Provider`]: the connection is over.
    pub fn seal(&mut self, pieces: &[&[u8]], out: &mut Vec<u8>) -> Result<(), Fault> {
        self.check_writable()?;
        let mut rest = OutboundChunks::new(pieces);
        while !rest.is_empty() {
            self.answer(out)?;
            let (text, behind) = rest.split_at(CONTENT_BYTES_MAX);
            self.seal_one(ContentType::ApplicationData, &text, out)?;
            rest = behind;
        }
        Ok(())
    }

    /// Appends the KeyUpdate that the peer waits for, or that this end owes after 2^23 records; nothing if none is due.
    ///
    /// # Errors
    /// Those of [`Self::seal`].
    pub fn answer(&mut self, out: &mut Vec<u8>) -> Result<(), Fault> {
        if self.state.has(Flags::ANSWER_DUE) || self.state.write_seq() >= UPDATE_AFTER {
            self.update(UPDATE_NOT_REQUESTED, out)?;
        }
        Ok(())
    }

    /// Appends a KeyUpdate that asks the peer for one.
    ///
    /// # Errors
    /// Those of [`Self::seal`].
    pub fn request_update(&mut self, out: &mut Vec<u8>) -> Result<(), Fault> {
        self.update(UPDATE_REQUESTED, out)
    }

    fn update(&mut self, request: u8, out: &mut Vec<u8>) -> Result<(), Fault> {
        self.check_writable()?;
        let [kind, high, middle, low] = KEY_UPDATE;
        self.seal_one(ContentType::Handshake, &[kind, high, middle, low, request].as_slice().into(), out)?;
        let suite = self.suite();
        self.write.update(suite);
        self.state.try_set_write_seq(0);
        if let Some(warm) = &mut self.warm {
            warm.seal = Slot::Empty;
        }
        self.state.set(Flags::ANSWER_DUE, false);
        Ok(())
    }

    /// Appends `close_notify`, once: this end writes nothing more.
    ///
    /// # Errors
    /// [`Fault::NotOwner`] and [`Fault::Provider`].
    pub fn close_notify(&mut self, out: &mut Vec<u8>) -> Result<(), Fault> {
        self.last_words(WARNING, Alert::CLOSE_NOTIFY, out)
    }

    /// Appends the alert for a fault of the peer, if there is one, and nothing may follow it.
    ///
    /// # Errors
    /// [`Fault::NotOwner`] and [`Fault::Provider`].
    pub fn alert(&mut self, fault: Fault, out: &mut Vec<u8>) -> Result<(), Fault> {
        match fault.alert() {
            Some(alert) => self.last_words(FATAL, alert, out),
            None => self.check_owner(),
        }
    }

    fn last_words(&mut self, level: u8, alert: Alert, out: &mut Vec<u8>) -> Result<(), Fault> {
        self.check_owner()?;
        if self.state.has(Flags::WRITE_CLOSED) {
            return Ok(());
        }
        self.seal_one(ContentType::Alert, &[level, alert.0].as_slice().into(), out)?;
        self.state.set(Flags::WRITE_CLOSED, true);
        Ok(())
    }

    fn seal_one(
        &mut self,
        kind: ContentType,
        text: &OutboundChunks<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        let suite = self.suite();
        let seq = self.state.write_seq();
        // Counted before it is sealed: whatever happens, this number is not used again.
        if !self.state.try_set_write_seq(seq + 1) {
            return Err(Fault::Exhausted);
        }
        #[cfg(test)]
        forge::note_sealed(self.write.bytes(suite), seq);
        let key = take(&mut self.warm, Warm::seal, suite, &mut self.write);
        let sealed = key.seal(seq, kind, text, out);
        if let Some(warm) = &mut self.warm {
            warm.seal.give_back(warm.keep, key);
        }
        if sealed.is_err() {
            self.state.set(Flags::WRITE_CLOSED, true);
        }
        sealed
    }

    fn check_owner(&self) -> Result<(), Fault> {
        let is_free = self.state.has(Flags::FROZEN | Flags::RETIRED);
        if is_free { Err(Fault::NotOwner) } else { Ok(()) }
    }

    fn check_writable(&self) -> Result<(), Fault> {
        self.check_owner()?;
        let is_over = self.state.has(Flags::WRITE_CLOSED | Flags::BROKEN);
        if is_over { Err(Fault::Closed) } else { Ok(()) }
    }

    /// Keeps the keys ready from now on, in some 1.4 KiB: for a connection that is hardly ever silent.
    pub fn keep(&mut self) {
        self.warm.get_or_insert_default().keep = Keep::Object;
    }

    /// Keeps the bytes of the keys from now on, in 128 bytes: for a connection that is used every second or so. Otherwise each
    /// use derives its key.
    pub fn keep_bytes(&mut self) {
        let warm = self.warm.get_or_insert_default();
        if warm.keep == Keep::Object {
            (warm.open, warm.seal) = (Slot::Empty, Slot::Empty);
        }
        warm.keep = Keep::Bytes;
    }

    /// Gives the memory of the keys back, until [`Self::keep`] or [`Self::keep_bytes`].
    pub fn cool(&mut self) {
        match &mut self.warm {
            // Counted on, or a peer could send more of them with pauses.
            Some(warm) if warm.empty_count > 0 => {
                (warm.keep, warm.open, warm.seal) = (Keep::Nothing, Slot::Empty, Slot::Empty);
            }
            warm => *warm = None,
        }
    }

    /// Returns whether keys are kept.
    pub fn is_warm(&self) -> bool {
        matches!(&self.warm, Some(warm) if warm.keep != Keep::Nothing)
    }

    /// Makes every later record an error and overwrites the secrets: another process owns the connection.
    pub fn retire(&mut self) {
        self.warm = None;
        self.read.zeroize();
        self.write.zeroize();
        self.state.set(Flags::RETIRED, true);
    }

    /// Takes the connection back after [`Self::freeze`], or over after [`Self::thaw`]. Exactly one of the processes that
    /// have the state may call this.
    ///
    /// # Errors
    /// [`Fault::NotOwner`]: the state is retired.
    pub fn resume(&mut self) -> Result<(), Fault> {
        self.state.set(Flags::FROZEN, false);
        self.check_owner()
    }
}

impl fmt::Debug for Records {
    /// Writes everything but the secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Records")
            .field("suite", &self.suite())
            .field("read_seq", &self.read_seq)
            .field("write_seq", &self.state.write_seq())
            .field("flags", &format_args!("{:#b}", self.state.flags()))
            .finish_non_exhaustive()
    }
}

/// Returns what the first record has behind its header, in bytes; `None`: it is not whole yet.
fn whole_record(buffer: &[u8]) -> Result<Option<usize>, Fault> {
    if buffer.first().is_some_and(|kind| *kind != u8::from(ContentType::ApplicationData)) {
        return Err(Fault::Unexpected);
    }
    let &[_, major, minor, high, low, ref rest @ ..] = buffer else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > CIPHER_BYTES_MAX {
        return Err(Fault::Oversized);
    }
    // The header is authenticated with the record, and the library puts the only valid version there by itself.
    if (major, minor) != (3, 3) {
        return Err(Fault::Undecryptable);
    }
    Ok((rest.len() >= length).then_some(length))
}

/// Returns whether the messages are session tickets, each of them whole.
fn are_tickets(mut messages: &[u8]) -> bool {
    const TICKET: u8 = 4;
    let is_empty = messages.is_empty();
    while let [TICKET, high, middle, low, rest @ ..] = messages {
        let length = u32::from_be_bytes([0, *high, *middle, *low]) as usize;
        let Some(behind) = rest.get(length..) else { return false };
        messages = behind;
    }
    !is_empty && messages.is_empty()
}

/// Reads a KeyUpdate that is alone in its record. Returns whether the peer wants one.
fn key_update(message: &[u8]) -> Result<bool, Fault> {
    match message {
        [24, 0, 0, 1, UPDATE_NOT_REQUESTED] => Ok(false),
        [24, 0, 0, 1, UPDATE_REQUESTED] => Ok(true),
        [24, 0, 0, 1, _] => Err(Fault::IllegalUpdate),
        [24, 0, 0, 1, ..] | [] => Err(Fault::Unexpected),
        [24, ..] => Err(Fault::Malformed),
        _ => Err(Fault::Unexpected),
    }
}

#[allow(clippy::cast_possible_truncation)] // modulo 18 hours on purpose
const fn second(now: Instant) -> u16 {
    (now.as_nanos() / 1_000_000_000) as u16
}
