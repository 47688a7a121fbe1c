//! The unit on the wire: a 16-byte header and a body (`docs/protocol.md` section 1).
//!
//! [`Header`] reads and writes the 16 bytes, [`Decoder`] cuts a byte stream into [`Frame`]s without
//! copying whole ones, [`Batch`] walks the frames inside a BATCH body.

mod batch;
mod command;
pub mod compress;
mod decoder;

pub use batch::{Batch, encode_batch};
pub use command::Command;
pub use decoder::Decoder;

use crate::PROTOCOL_VERSION;
use crate::error::CloseReason;
use crate::ids::Seq;
use bytes::{BufMut, Bytes};
use core::fmt;

/// Bytes of a frame header.
pub const HEADER_BYTES: usize = 16;
/// Default limit of a body, in bytes [P-10.1].
pub const BODY_BYTES_MAX: u32 = 64 << 10;
/// No configuration may raise the body limit above this, in bytes.
pub const BODY_BYTES_CEILING: u32 = 1 << 20;
/// Limit of a HELLO body, in bytes.
pub const HELLO_BYTES_MAX: u32 = 4 << 10;
/// Limit of the body of a small command, in bytes [P-10.1].
pub const SMALL_BODY_BYTES_MAX: u32 = 256;
/// Frames in one batch.
pub const BATCH_FRAMES_MAX: usize = 128;

/// The first byte of every frame: magic nibble A, version nibble.
pub const FIRST_BYTE: u8 = 0xA0 | PROTOCOL_VERSION;
const RELIABLE_BIT: u8 = 0b100;

/// A frame's priority class [P-1.3]. Lower is more urgent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Handshake, acks, kicks.
    #[default]
    Control,
    /// Messages between two users.
    Chat,
    /// Group messages.
    Group,
    /// Broadcasts and everything that may wait.
    Bulk,
}

impl Lane {
    /// All lanes, most urgent first.
    pub const ALL: [Self; 4] = [Self::Control, Self::Chat, Self::Group, Self::Bulk];

    /// The lane with this number; numbers above 3 count as [`Lane::Bulk`].
    pub const fn from_number(number: u32) -> Self {
        match number {
            0 => Self::Control,
            1 => Self::Chat,
            2 => Self::Group,
            _ => Self::Bulk,
        }
    }
}

/// The flag byte of a header.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Flags(pub u8);

impl Flags {
    /// The sender wants an ack soon.
    pub const ACK_REQ: Self = Self(0x01);
    /// Set on a frame that was, or may have been, sent before.
    pub const DUP: Self = Self(0x02);
    /// The body is compressed on its own.
    pub const COMPRESSED: Self = Self(0x04);
    /// The body is a run of complete frames.
    pub const BATCH: Self = Self(0x08);
    /// A further fragment with the same seq follows.
    pub const MORE: Self = Self(0x10);
    /// Reserved for end-to-end sealed payloads.
    pub const SEALED: Self = Self(0x20);
    /// 24 bytes of trace and span id lead the body.
    pub const TRACE: Self = Self(0x40);
    /// Length-prefixed extensions lead the body.
    pub const EXT: Self = Self(0x80);
    /// Flags that this version understands; a frame with another one is refused [P-1.6].
    pub const SUPPORTED: Self = Self(0x01 | 0x02 | 0x04 | 0x08);

    /// True if all bits of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// All bits but those of `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Both sets of bits.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#04x}", self.0)
    }
}

/// The 16 bytes that lead a frame [P-1.2].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The command.
    pub command: Command,
    /// The flags.
    pub flags: Flags,
    /// The priority class.
    pub lane: Lane,
    /// True if the receiver acknowledges the frame by its seq [P-1.5].
    pub reliable: bool,
    /// Bytes of body that follow.
    pub body_len: u32,
    /// Number of the frame in its direction; 0: unreliable.
    pub seq: Seq,
    /// Cumulative ack of the opposite direction; 0: no ack.
    pub ack: Seq,
}

impl Header {
    /// Reads a header [P-1.1] to [P-1.6]; does not judge the body's length.
    ///
    /// # Errors
    /// `BadMagic`, `BadVersion`, `BadHeader` or `Unsupported`, in the order of the bytes.
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, CloseReason> {
        let [first, command, flags, class, ..] = *bytes;
        check_first_byte(first)?;
        let command = Command::from_byte(command).ok_or(CloseReason::Unsupported)?;
        if class & !0b111 != 0 {
            return Err(CloseReason::BadHeader);
        }
        let reliable = class & RELIABLE_BIT != 0;
        let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let header = Self {
            command,
            flags: Flags(flags),
            lane: Lane::from_number(u32::from(class & 0b11)),
            reliable,
            body_len: word(4),
            seq: word(8),
            ack: word(12),
        };
        if flags & !Flags::SUPPORTED.0 != 0 {
            return Err(CloseReason::Unsupported);
        }
        if reliable != (header.seq != 0) {
            return Err(CloseReason::BadHeader);
        }
        Ok(header)
    }

    /// The longest body that may follow, see [`Frame::body_max`].
    const fn body_max(&self, limit: u32) -> u32 {
        if self.flags.contains(Flags::BATCH) { limit } else { self.command.body_max(limit) }
    }

    /// Writes the 16 bytes.
    pub const fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let class = self.lane as u8 | if self.reliable { RELIABLE_BIT } else { 0 };
        let len = self.body_len.to_be_bytes();
        let seq = self.seq.to_be_bytes();
        let ack = self.ack.to_be_bytes();
        [
            FIRST_BYTE,
            self.command.byte(),
            self.flags.0,
            class,
            len[0],
            len[1],
            len[2],
            len[3],
            seq[0],
            seq[1],
            seq[2],
            seq[3],
            ack[0],
            ack[1],
            ack[2],
            ack[3],
        ]
    }
}

/// Judges a stream by its first byte alone, so that stray HTTP or TLS is refused at once [P-1.1].
///
/// # Errors
/// `BadMagic` or `BadVersion`.
pub const fn check_first_byte(first: u8) -> Result<(), CloseReason> {
    match (first >> 4, first & 0x0F) {
        (0xA, PROTOCOL_VERSION) => Ok(()),
        (0xA, _) => Err(CloseReason::BadVersion),
        _ => Err(CloseReason::BadMagic),
    }
}

/// A header and its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The 16 bytes in front.
    pub header: Header,
    /// The body: exactly `header.body_len` bytes.
    pub body: Bytes,
}

impl Frame {
    /// An unreliable frame on the control lane. Panics if the body is over 4 GiB.
    pub fn new(command: Command, body: Bytes) -> Self {
        let body_len = u32::try_from(body.len()).expect("bodies are bounded far below 4 GiB");
        let header = Header {
            command,
            flags: Flags::default(),
            lane: Lane::Control,
            reliable: false,
            body_len,
            seq: 0,
            ack: 0,
        };
        Self { header, body }
    }

    /// Makes the frame reliable, with this seq.
    #[must_use]
    pub const fn with_seq(mut self, seq: Seq) -> Self {
        self.header.seq = seq;
        self.header.reliable = seq != 0;
        self
    }

    /// Sets the lane.
    #[must_use]
    pub const fn with_lane(mut self, lane: Lane) -> Self {
        self.header.lane = lane;
        self
    }

    /// Sets flags.
    #[must_use]
    pub const fn with_flags(mut self, flags: Flags) -> Self {
        self.header.flags = flags;
        self
    }

    /// Sets the cumulative ack.
    #[must_use]
    pub const fn with_ack(mut self, ack: Seq) -> Self {
        self.header.ack = ack;
        self
    }

    /// Bytes on the wire.
    pub fn wire_len(&self) -> usize {
        HEADER_BYTES + self.body.len()
    }

    /// The longest body that this frame may have, compressed or plain, if `limit` is the limit of all bodies: a
    /// small command has a small body [P-10.1], but a batch is as long as any frame.
    pub const fn body_max(&self, limit: u32) -> u32 {
        self.header.body_max(limit)
    }

    /// Appends the frame's bytes.
    pub fn encode(&self, out: &mut impl BufMut) {
        out.put_slice(&self.header.to_bytes());
        out.put_slice(&self.body);
    }
}

#[cfg(test)]
mod tests;
