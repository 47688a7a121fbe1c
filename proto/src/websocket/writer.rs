//! Writing side: one binary message for the bytes that are written at once, and control frames.

use super::{BINARY, CLOSE, CONTROL_BYTES_MAX, FIN, LENGTH_16, LENGTH_64, PONG};
use bytes::BufMut;
use core::ops::Deref;

/// Longest header of a server's frame, in bytes.
const HEADER_BYTES_MAX: usize = 10;
/// Longest message that is begun, in bytes; longer writes become several.
const MESSAGE_MAX: u32 = 1 << 30;

/// State of one direction between two writes: 8 bytes, all zero between two messages.
///
/// A message that has begun must be finished with the bytes that it was begun for: a length was promised. Control
/// frames go out [between](Self::is_between) messages only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Writer {
    /// Bytes of the message's payload.
    length: u32,
    /// Bytes of header and payload that the socket has taken; 0: no message has begun.
    sent: u32,
}

/// Plan of one write: a header, and how many bytes of payload may follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Next {
    /// Bytes of the header that have not been sent; empty within a payload.
    pub header: HeaderBytes,
    /// Bytes of payload that may follow in this write.
    pub payload: usize,
}

/// A header, or the rest of one: at most 10 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeaderBytes {
    bytes: [u8; HEADER_BYTES_MAX],
    from: u8,
    to: u8,
}

impl HeaderBytes {
    /// The header of a final frame.
    fn new(opcode: u8, length: u32) -> Self {
        let mut bytes = [0; HEADER_BYTES_MAX];
        bytes[0] = FIN | opcode;
        let to = match length {
            0..126 => {
                bytes[1] = u8::try_from(length).expect("below 126");
                2
            }
            126..=0xFFFF => {
                bytes[1] = LENGTH_16;
                bytes[2..4].copy_from_slice(&u16::try_from(length).expect("16 bits").to_be_bytes());
                4
            }
            _ => {
                bytes[1] = LENGTH_64;
                bytes[2..].copy_from_slice(&u64::from(length).to_be_bytes());
                10
            }
        };
        Self { bytes, from: 0, to }
    }
}

impl Deref for HeaderBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[usize::from(self.from)..usize::from(self.to)]
    }
}

impl Writer {
    /// Plans a write of the `available` bytes that are next in the queue: a new message for all of them, or the rest of the
    /// message that has begun.
    pub fn next(&mut self, available: usize) -> Next {
        if self.sent == 0 {
            self.length = u32::try_from(available).unwrap_or(MESSAGE_MAX).min(MESSAGE_MAX);
        }
        if self.length == 0 {
            return Next { header: HeaderBytes::default(), payload: 0 };
        }
        let mut header = HeaderBytes::new(BINARY, self.length);
        let of_header = self.sent.min(header.to.into());
        let left = self.length - (self.sent - of_header);
        header.from = u8::try_from(of_header).expect("at most 10");
        Next { header, payload: available.min(left as usize) }
    }

    /// Notes that the socket took `count` bytes of what [`Self::next`] planned. Returns how many of them were payload.
    ///
    /// # Panics
    /// More bytes than were planned.
    pub fn took(&mut self, count: usize) -> usize {
        if count == 0 {
            return 0;
        }
        let header = u32::from(HeaderBytes::new(BINARY, self.length).to);
        let before = self.sent.saturating_sub(header);
        self.sent += u32::try_from(count).expect("at most the message");
        let after = self.sent.saturating_sub(header);
        assert!(after <= self.length, "the socket took more than was planned");
        if self.sent == header + self.length {
            *self = Self::default();
        }
        (after - before) as usize
    }

    /// Returns whether no message is under way, so that a control frame may be written.
    pub const fn is_between(&self) -> bool {
        self.sent == 0
    }

    /// Bytes of payload that belong to the message under way and have not been sent; 0 between messages.
    pub fn owed(&self) -> usize {
        if self.sent == 0 {
            return 0;
        }
        let header = u32::from(HeaderBytes::new(BINARY, self.length).to);
        (self.length - self.sent.saturating_sub(header)) as usize
    }

    /// Returns the state for another process, which goes on at the same byte.
    pub fn to_bytes(&self) -> [u8; 8] {
        let length = if self.sent == 0 { 0 } else { self.length };
        let (length, sent) = (length.to_le_bytes(), self.sent.to_le_bytes());
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&length);
        bytes[4..].copy_from_slice(&sent);
        bytes
    }

    /// Makes a writer from [`Self::to_bytes`]. `None`: no writer was ever in this state.
    pub fn from_bytes(bytes: &[u8; 8]) -> Option<Self> {
        let [length, sent] = [0, 4].map(|at| {
            let word = bytes[at..].first_chunk().expect("8 bytes");
            u32::from_le_bytes(*word)
        });
        let header = u32::from(HeaderBytes::new(BINARY, length).to);
        let is_begun = (1..=MESSAGE_MAX).contains(&length) && sent > 0 && sent < header + length;
        (is_begun || (length, sent) == (0, 0)).then_some(Self { length, sent })
    }
}

/// Appends a pong. A payload of more than 125 bytes is cut off.
pub fn put_pong(payload: &[u8], out: &mut impl BufMut) {
    put_control(PONG, &payload[..payload.len().min(CONTROL_BYTES_MAX)], &[], out);
}

/// Appends a close. `text` says why, for people; what does not fit into 123 bytes is cut off. `None`: a close without a code,
/// which is the answer to one.
pub fn put_close(code: Option<u16>, text: &str, out: &mut impl BufMut) {
    let Some(code) = code else { return put_control(CLOSE, &[], &[], out) };
    let mut length = text.len().min(CONTROL_BYTES_MAX - 2);
    while !text.is_char_boundary(length) {
        length -= 1;
    }
    put_control(CLOSE, &code.to_be_bytes(), &text.as_bytes()[..length], out);
}

fn put_control(opcode: u8, first: &[u8], second: &[u8], out: &mut impl BufMut) {
    let length = u32::try_from(first.len() + second.len()).expect("at most 125");
    out.put_slice(&HeaderBytes::new(opcode, length));
    out.put_slice(first);
    out.put_slice(second);
}
