//! The form in which a record layer goes to another process.
//!
//! | offset | bytes | holds |
//! |---|---|---|
//! | 0 | 1 | version: 1 |
//! | 1 | 1 | length of everything, in bytes: 84 or 116 |
//! | 2 | 1 | suite: 1 AES-256, 2 ChaCha20 |
//! | 3 | 1 | bits: 1 a KeyUpdate is owed, 2 the peer has closed, 4 this end has closed, 8 the peer has made a fault, 16 this is a client's end |
//! | 4 | 8 | number of the next record to open |
//! | 12 | 8 | number of the next record to seal |
//! | 20 | 32 or 48 | secret of the records to open |
//! | | as many | secret of the records to seal |
//!
//! Numbers are little-endian. The allowance of empty records is not part of it: the new process begins a new second.

use super::super::fault::Fault;
use super::super::provider::Suite;
use super::super::secret::{SECRET_BYTES_MAX, Secret};
use super::{Flags, Records, UPDATE_AFTER};
use std::fmt;
use zeroize::Zeroize as _;

const VERSION: u8 = 1;
const SECRETS_AT: usize = 20;
/// Limit of a frozen record layer, in bytes.
pub const FROZEN_BYTES_MAX: usize = SECRETS_AT + 2 * SECRET_BYTES_MAX;
/// Records that may stand beyond the last own KeyUpdate: the alert that ends a connection, with room.
const BEYOND_MAX: u32 = 16;

/// Bits of a frozen state, beside those of [`Flags`].
const BITS: [(u8, u8); 5] = [
    (1, Flags::ANSWER_DUE),
    (2, Flags::READ_CLOSED),
    (4, Flags::WRITE_CLOSED),
    (8, Flags::BROKEN),
    (16, Flags::CLIENT),
];

/// A frozen record layer: secrets, so its memory is overwritten when it is dropped.
pub struct Frozen {
    bytes: [u8; FROZEN_BYTES_MAX],
    length: usize,
}

impl AsRef<[u8]> for Frozen {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

impl fmt::Debug for Frozen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Frozen({} bytes)", self.length)
    }
}

/// Reason why bytes are not a frozen record layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ThawError {
    /// Another form.
    #[error("cannot take a TLS connection over: version {0} of its state is unknown")]
    Version(u8),
    /// The length is not that of the suite.
    #[error("cannot take a TLS connection over: its state has {0} bytes, which fits no suite")]
    Length(usize),
    /// A field has a value that no process writes.
    #[error("cannot take a TLS connection over: {0} in its state is not valid")]
    Value(&'static str),
}

impl Records {
    /// Returns the state for another process, and stops: until [`Self::resume`] nothing is opened or sealed here.
    ///
    /// # Errors
    /// [`Fault::NotOwner`]: the state is retired.
    pub fn freeze(&mut self) -> Result<Frozen, Fault> {
        if self.state.has(Flags::RETIRED) {
            return Err(Fault::NotOwner);
        }
        self.cool();
        self.state.set(Flags::FROZEN, true);
        let suite = self.suite();
        let secret = suite.secret_bytes();
        let length = SECRETS_AT + 2 * secret;
        let mut bytes = [0; FROZEN_BYTES_MAX];
        bytes[0] = VERSION;
        bytes[1] = u8::try_from(length).expect("at most 116");
        bytes[2] = match suite {
            Suite::Aes256 => 1,
            Suite::ChaCha20 => 2,
        };
        bytes[3] = BITS.iter().filter(|(_, flag)| self.state.has(*flag)).map(|(bit, _)| bit).sum();
        bytes[4..12].copy_from_slice(&u64::from(self.read_seq).to_le_bytes());
        bytes[12..20].copy_from_slice(&u64::from(self.state.write_seq()).to_le_bytes());
        bytes[SECRETS_AT..SECRETS_AT + secret].copy_from_slice(self.read.bytes(suite));
        bytes[SECRETS_AT + secret..length].copy_from_slice(self.write.bytes(suite));
        let frozen = Frozen { bytes, length };
        bytes.zeroize();
        Ok(frozen)
    }

    /// Makes the state that another process has frozen. Nothing is opened or sealed before [`Self::resume`].
    ///
    /// # Errors
    /// [`ThawError`].
    pub fn thaw(bytes: &[u8]) -> Result<Self, ThawError> {
        let &[version, length, suite, bits, ..] = bytes else { return Err(ThawError::Length(bytes.len())) };
        if version != VERSION {
            return Err(ThawError::Version(version));
        }
        let suite = match suite {
            1 => Suite::Aes256,
            2 => Suite::ChaCha20,
            _ => return Err(ThawError::Value("the suite")),
        };
        if bytes.len() != SECRETS_AT + 2 * suite.secret_bytes() || usize::from(length) != bytes.len() {
            return Err(ThawError::Length(bytes.len()));
        }
        if bits >= 1 << BITS.len() {
            return Err(ThawError::Value("a flag"));
        }
        let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let write_seq = u32::try_from(number(12)).ok().filter(|seq| *seq <= UPDATE_AFTER + BEYOND_MAX);
        let write_seq = write_seq.ok_or(ThawError::Value("the number of the next record"))?;
        let (read, write) = bytes[SECRETS_AT..].split_at(suite.secret_bytes());
        if read == write {
            return Err(ThawError::Value("a secret, which both directions share,"));
        }
        let secret = |bytes| Secret::new(suite, bytes).expect("half of the rest");
        let mut records = Self::new(suite, secret(read), secret(write), write_seq);
        records.read_seq = u32::try_from(number(4))
            .map_err(|_| ThawError::Value("the number of the next record to open"))?;
        for (bit, flag) in BITS {
            records.state.set(flag, bits & bit != 0);
        }
        records.state.set(Flags::FROZEN, true);
        Ok(records)
    }
}
