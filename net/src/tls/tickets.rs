//! Session tickets: a client that comes again shows one, and saves a signature and the certificate.
//!
//! A ticket is sealed state, which any node with the key opens. The newest key seals, it and two older ones open, so that
//! keys can be changed daily without refusing yesterday's tickets. Each ticket has a key of its own, derived from the key
//! and 32 random bytes, so no number of tickets and nodes is too many for one key.
//!
//! ```text
//! ticket   name of the key (8) | random (32) | sealed { made, in Unix seconds (8) | state }
//! ```
//!
//! The keys come from a file that the nodes share, or are random: then they are this process's, a new one takes the first
//! place every day, and [`TicketKeySet::to_bytes`] is for the process that takes over.

use super::provider::{Suite, provider};
use super::secret::SECRET_BYTES_MAX;
use crate::clock::Clock;
use crate::secret_file::{self, SecretFileError};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustls::crypto::cipher::{AeadKey, InboundOpaqueMessage, Iv, OutboundPlainMessage};
use rustls::crypto::tls13::OkmBlock;
use rustls::server::ProducesTickets;
use rustls::{ContentType, ProtocolVersion};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use zeroize::Zeroizing;

/// Keys of a set: one seals, all open.
pub const TICKET_KEYS_MAX: usize = 3;
/// Bytes of a key.
const KEY_BYTES: usize = 32;
/// Limit of the file, in bytes.
const FILE_BYTES_MAX: u64 = 4 << 10;
/// Time for which a ticket is good, in seconds. With daily keys, a ticket's key is there for at least two days.
const LIFETIME_S: u32 = 24 * 3600;
/// Time after which random keys get a new one in front, in seconds.
const ROTATE_S: u64 = 24 * 3600;
/// Seconds by which the clocks of two nodes may differ.
const SKEW_S: u64 = 300;
const NAME_BYTES: usize = 8;
const RANDOM_BYTES: usize = 32;
const MADE_BYTES: usize = 8;
/// Limit of a ticket, in bytes. The state has the client's certificates, which servers that ask for them do not put in
/// tickets.
const TICKET_BYTES_MAX: usize = 4 << 10;
const HEADER_BYTES: usize = 5;
/// Version of [`TicketKeySet::to_bytes`].
const VERSION: u8 = 1;
const SUITE: Suite = Suite::ChaCha20;

/// One key.
#[derive(Clone)]
struct TicketKey {
    key: Zeroizing<[u8; KEY_BYTES]>,
    /// Derived from the key, and tells nothing of it.
    name: [u8; NAME_BYTES],
}

impl TicketKey {
    fn random() -> Option<Self> {
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        provider().secure_random.fill(&mut *key).ok()?;
        Some(Self::new(&key))
    }

    fn new(key: &[u8; KEY_BYTES]) -> Self {
        let mut key = Self { key: Zeroizing::new(*key), name: [0; NAME_BYTES] };
        let mut name = [0; NAME_BYTES];
        key.derive(&[b"moorline ticket name"], &mut name);
        key.name = name;
        key
    }

    fn derive(&self, info: &[&[u8]], output: &mut [u8]) {
        const { assert!(KEY_BYTES <= SECRET_BYTES_MAX) };
        let expander = SUITE.tls13().hkdf_provider.expander_for_okm(&OkmBlock::new(&*self.key));
        expander.expand_slice(info, output).expect("at most 255 times the hash");
    }

    fn keys(&self, random: &[u8]) -> (AeadKey, Iv) {
        let mut derived = Zeroizing::new([0; KEY_BYTES + 12]);
        self.derive(&[b"moorline ticket", random], &mut *derived);
        let (key, iv) = derived.split_at(KEY_BYTES);
        let key: [u8; KEY_BYTES] = key.try_into().expect("32 bytes");
        (AeadKey::from(key), Iv::from(<[u8; 12]>::try_from(iv).expect("12 bytes")))
    }
}

/// Keys, the newest first.
#[derive(Clone)]
pub struct TicketKeySet {
    keys: Vec<TicketKey>,
    /// Time at which the newest key was made, in Unix seconds, if the keys are random.
    made: Option<u64>,
}

impl fmt::Debug for TicketKeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TicketKeySet({} keys)", self.keys.len())
    }
}

/// Reason why keys of tickets are not read. Shows nothing of them.
#[derive(Debug, thiserror::Error)]
pub enum TicketKeyError {
    /// The file cannot be read, or not be trusted.
    #[error("cannot use tls.ticket_keys_file: {0}")]
    File(#[from] SecretFileError),
    /// The content of the file is not what it should be.
    #[error("cannot use tls.ticket_keys_file {}: {problem}", path.display())]
    Content {
        /// Path as it was given.
        path: PathBuf,
        /// Cause, and what to do.
        problem: String,
    },
    /// The system gives no random bytes.
    #[error("cannot make a key for TLS tickets: the system gives no random bytes")]
    Random,
    /// Bytes of another process are not keys.
    #[error("cannot take the keys of TLS tickets over: their form is not known")]
    Bytes,
}

impl TicketKeySet {
    /// Makes one random key.
    ///
    /// # Errors
    /// [`TicketKeyError::Random`].
    pub fn random(unix_now_s: u64) -> Result<Self, TicketKeyError> {
        let key = TicketKey::random().ok_or(TicketKeyError::Random)?;
        Ok(Self { keys: vec![key], made: Some(unix_now_s) })
    }

    /// Reads a file with one key a line, the newest first: 32 random bytes in Base64. Empty lines and those that begin
    /// with `#` are left out. Returns the keys, and a sentence for the log if others can read the file.
    ///
    /// # Errors
    /// [`TicketKeyError`].
    pub fn read(path: &Path) -> Result<(Self, Option<String>), TicketKeyError> {
        let file = secret_file::read(path, FILE_BYTES_MAX)?;
        let text = Zeroizing::new(file.bytes);
        let wrong = |problem: String| TicketKeyError::Content { path: path.to_owned(), problem };
        let mut keys = Vec::new();
        for (number, line) in (1..).zip(text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii)) {
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            let decoded = BASE64.decode(line).map(Zeroizing::new);
            let key = decoded.ok().and_then(|key| Some(TicketKey::new(key.as_slice().try_into().ok()?)));
            keys.push(key.ok_or_else(|| {
                wrong(format!(
                    "line {number} is not 32 bytes in Base64; make one with: head -c 32 /dev/urandom | base64"
                ))
            })?);
            if keys.len() > TICKET_KEYS_MAX {
                return Err(wrong(format!(
                    "it has more than {TICKET_KEYS_MAX} keys; remove the oldest, at the end"
                )));
            }
        }
        if keys.is_empty() {
            return Err(wrong("it has no key; make one with: head -c 32 /dev/urandom | base64".to_owned()));
        }
        Ok((Self { keys, made: None }, file.warning))
    }

    /// Returns the keys for the process that takes over.
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(2 + 8 + self.keys.len() * KEY_BYTES));
        bytes.push(VERSION);
        bytes.push(u8::from(self.made.is_some()));
        bytes.extend_from_slice(&self.made.unwrap_or(0).to_le_bytes());
        self.keys.iter().for_each(|key| bytes.extend_from_slice(&*key.key));
        bytes
    }

    /// Reads the keys that another process has written.
    ///
    /// # Errors
    /// [`TicketKeyError::Bytes`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TicketKeyError> {
        let &[VERSION, is_random @ (0 | 1), ref rest @ ..] = bytes else { return Err(TicketKeyError::Bytes) };
        let (made, rest) = rest.split_first_chunk().ok_or(TicketKeyError::Bytes)?;
        let (keys, []) = rest.as_chunks::<KEY_BYTES>() else { return Err(TicketKeyError::Bytes) };
        if keys.is_empty() || keys.len() > TICKET_KEYS_MAX {
            return Err(TicketKeyError::Bytes);
        }
        let made = (is_random == 1).then(|| u64::from_le_bytes(*made));
        Ok(Self { keys: keys.iter().map(TicketKey::new).collect(), made })
    }

    /// Returns the set with a new key in front, if its keys are random and a day old.
    pub(super) fn rotated(&self, unix_now_s: u64) -> Option<Self> {
        if self.made?.saturating_add(ROTATE_S) > unix_now_s {
            return None;
        }
        let mut keys = vec![TicketKey::random()?];
        keys.extend(self.keys.iter().take(TICKET_KEYS_MAX - 1).cloned());
        Some(Self { keys, made: Some(unix_now_s) })
    }

    pub(super) fn seal(&self, state: &[u8], unix_now_s: u64) -> Option<Vec<u8>> {
        let newest = self.keys.first()?;
        let mut random = [0; RANDOM_BYTES];
        provider().secure_random.fill(&mut random).ok()?;
        let (key, iv) = newest.keys(&random);
        let made = unix_now_s.to_be_bytes();
        let pieces: [&[u8]; 2] = [&made, state];
        let message = OutboundPlainMessage {
            typ: ContentType::ApplicationData,
            version: ProtocolVersion::TLSv1_3,
            payload: rustls::crypto::cipher::OutboundChunks::new(&pieces),
        };
        // The key is this ticket's, so its one number is 0.
        let sealed = SUITE.tls13().aead_alg.encrypter(key, iv).encrypt(message, 0).ok()?.encode();
        let ticket = [&newest.name[..], &random, &sealed[HEADER_BYTES..]].concat();
        (ticket.len() <= TICKET_BYTES_MAX).then_some(ticket)
    }

    pub(super) fn open(&self, ticket: &[u8], unix_now_s: u64) -> Option<Vec<u8>> {
        if ticket.len() > TICKET_BYTES_MAX {
            return None;
        }
        let (name, rest) = ticket.split_first_chunk::<NAME_BYTES>()?;
        let (random, sealed) = rest.split_first_chunk::<RANDOM_BYTES>()?;
        let key = self.keys.iter().find(|key| key.name == *name)?;
        let (key, iv) = key.keys(random);
        let mut sealed = sealed.to_vec();
        let message =
            InboundOpaqueMessage::new(ContentType::ApplicationData, ProtocolVersion::TLSv1_2, &mut sealed);
        let mut key = SUITE.tls13().aead_alg.decrypter(key, iv);
        let opened = key.decrypt(message, 0).ok()?;
        let (made, state) = opened.payload.split_first_chunk::<MADE_BYTES>()?;
        let made = u64::from_be_bytes(*made);
        let is_good = made <= unix_now_s + SKEW_S && unix_now_s <= made.saturating_add(LIFETIME_S.into());
        is_good.then(|| state.to_vec())
    }
}

/// The keys in force.
pub struct TicketKeys {
    set: RwLock<Arc<TicketKeySet>>,
    clock: Clock,
}

impl TicketKeys {
    /// Puts a first set in force.
    pub fn new(set: TicketKeySet, clock: Clock) -> Self {
        Self { set: RwLock::new(Arc::new(set)), clock }
    }

    /// Puts another set in force.
    pub fn put(&self, set: TicketKeySet) {
        *self.set.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(set);
    }

    /// Returns the set in force.
    pub fn set(&self) -> Arc<TicketKeySet> {
        self.set.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_at(&self, unix_now_s: u64) -> Arc<TicketKeySet> {
        let set = self.set();
        if set.rotated(unix_now_s).is_none() {
            return set;
        }
        // Another thread may have been first.
        let mut locked = self.set.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(rotated) = locked.rotated(unix_now_s) {
            *locked = Arc::new(rotated);
        }
        locked.clone()
    }
}

impl fmt::Debug for TicketKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.set().fmt(f)
    }
}

impl ProducesTickets for TicketKeys {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        LIFETIME_S
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let now = self.clock.unix_seconds();
        self.set_at(now).seal(plain, now)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        let now = self.clock.unix_seconds();
        self.set_at(now).open(cipher, now)
    }
}
