//! Reading side: headers off, payloads unmasked and moved together, control frames taken out.

use super::{
    BINARY, CLOSE, CONTINUATION, CONTROL_BYTES_MAX, CONTROLS_PER_SECOND_MAX, FIN, LENGTH_16, LENGTH_64,
    MASKED, MESSAGE_BYTES_MAX, OPCODE, PING, PONG, RESERVED, TEXT,
};
use crate::error::CloseReason;
use crate::time::Instant;
use core::fmt;
use core::ops::Range;

/// Bytes of a length in the state; [`MESSAGE_BYTES_MAX`] fills them.
const LENGTH_BITS: u32 = 22;
/// Bits of the second in which control frames were counted: 2 hours and 16 minutes, longer than a client may be silent.
const SECOND_BITS: u32 = 13;
/// Place of the first flag in the packed state.
const FLAGS_AT: u32 = 2 * LENGTH_BITS + SECOND_BITS;
const SECONDS: u32 = (1 << SECOND_BITS) - 1;
const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// State of one direction between two reads: 12 bytes.
///
/// Packed: the mask, then one number of 64 bits (unused, count, flags, second, message's bytes, frame's bytes left).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reader([u32; 3]);

const _: () = assert!(size_of::<Reader>() == 12 && MESSAGE_BYTES_MAX == (1 << LENGTH_BITS) - 1);

/// The state, unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct State {
    /// Key of the next 4 bytes of payload, in wire order.
    mask: [u8; 4],
    /// Bytes of the current frame that have not come yet; 0: a header is next.
    left: u32,
    /// Bytes of the message so far, with the whole current frame.
    message: u32,
    /// Second in which control frames were counted, modulo 2^13.
    second: u32,
    /// Control frames in that second.
    controls: u8,
    /// A message has begun and has not ended.
    is_message: bool,
    /// The current frame is the message's last.
    is_last: bool,
    /// Nothing more is read: the peer's close, or a fault.
    is_ended: bool,
}

/// Result of [`Reader::open`]: places in the buffer, and what has to be answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// Place of the payload bytes in the buffer. They are bytes of Moorline's frames, in order.
    pub plain: Range<usize>,
    /// Bytes of the buffer that are done with. The owner keeps the rest, at most
    /// [`TAIL_BYTES_MAX`](super::TAIL_BYTES_MAX), and gives it again in front of later bytes.
    pub consumed: usize,
    /// Payload of the last ping: the owner answers with [`put_pong`](super::put_pong).
    pub pong: Option<Pong>,
    /// Reason why nothing is read behind `plain`.
    pub end: Option<End>,
}

/// Payload of a pong.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Pong {
    bytes: [u8; CONTROL_BYTES_MAX],
    length: u8,
}

/// Reason why a reader ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The client has closed, with this code if it gave one. The owner answers with the same code, then ends the stream.
    Closed(Option<u16>),
    /// The client broke the protocol. The owner closes with [`Fault::close_code`].
    Fault(Fault),
}

/// Fault of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A reserved bit is set: no extension was agreed on.
    ReservedBits,
    /// The opcode is not defined.
    BadOpcode,
    /// A text message.
    Text,
    /// A client's frame without a mask.
    Unmasked,
    /// A control frame in fragments, or of more than 125 bytes.
    BadControl,
    /// A continuation without a message, or a new message before the last one has ended.
    BadFragment,
    /// A length in more bytes than needed, or above 2^63.
    BadLength,
    /// A message longer than the limit.
    TooLong,
    /// More control frames in one second than allowed.
    Flood,
    /// A close with half a code, or a code that must not be sent.
    BadClose,
    /// The text of a close is not UTF-8.
    BadText,
}

/// A header that has come whole.
struct Header {
    /// Bytes of the header with its mask.
    bytes: usize,
    opcode: u8,
    is_last: bool,
    length: u32,
    mask: [u8; 4],
}

impl Fault {
    /// Every fault.
    pub const ALL: [Self; 11] = [
        Self::ReservedBits,
        Self::BadOpcode,
        Self::Text,
        Self::Unmasked,
        Self::BadControl,
        Self::BadFragment,
        Self::BadLength,
        Self::TooLong,
        Self::Flood,
        Self::BadClose,
        Self::BadText,
    ];

    /// The code of the close frame that answers the fault (RFC 6455 section 7.4.1).
    pub const fn close_code(self) -> u16 {
        match self {
            Self::Text => 1_003,
            Self::BadText => 1_007,
            Self::Flood => 1_008,
            Self::TooLong => 1_009,
            _ => 1_002,
        }
    }

    /// The reason under which the gateway counts and logs the end of the connection.
    pub const fn reason(self) -> CloseReason {
        match self {
            Self::Text => CloseReason::Unsupported,
            Self::Flood => CloseReason::Throttled,
            Self::TooLong => CloseReason::TooLarge,
            _ => CloseReason::BadHeader,
        }
    }

    /// The fault in a few words; also the text of the close frame.
    pub const fn text(self) -> &'static str {
        match self {
            Self::ReservedBits => "a reserved bit is set",
            Self::BadOpcode => "the opcode is not defined",
            Self::Text => "text message; send binary messages",
            Self::Unmasked => "a frame without a mask",
            Self::BadControl => "a control frame in fragments or of more than 125 bytes",
            Self::BadFragment => "a fragment that belongs to no message, or a message inside another one",
            Self::BadLength => "a length in more bytes than needed, or above 2^63",
            Self::TooLong => "message longer than the limit",
            Self::Flood => "too many control frames",
            Self::BadClose => "a close with a code that must not be sent",
            Self::BadText => "the text of a close is not UTF-8",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bad WebSocket frame: {}", self.text())
    }
}

impl core::error::Error for Fault {}

impl Pong {
    fn new(payload: &[u8]) -> Self {
        let mut bytes = [0; CONTROL_BYTES_MAX];
        bytes[..payload.len()].copy_from_slice(payload);
        let length = u8::try_from(payload.len()).expect("a control frame has at most 125 bytes");
        Self { bytes, length }
    }

    /// The payload: at most 125 bytes.
    pub fn payload(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl fmt::Debug for Pong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pong").field(&self.payload()).finish()
    }
}

impl Reader {
    /// Opens the frames in `buffer`, in place. `message_max`: longest message in bytes, at most [`MESSAGE_BYTES_MAX`].
    ///
    /// Payloads are unmasked and moved together behind the first one, which stays where it is. A part of a payload is
    /// passed on at once; a part of a header, and of a control frame, stays unconsumed. Faults are told as early as the
    /// bytes show them; payloads before a fault are passed on. After an [`End`] everything is consumed and ignored.
    pub fn open(&mut self, buffer: &mut [u8], now: Instant, message_max: u32) -> Opened {
        let mut state = self.unpack();
        state.note_time(now);
        let mut opened = Opened::default();
        let limit = message_max.min(MESSAGE_BYTES_MAX);
        while !state.is_ended {
            if state.left > 0 {
                state.take_payload(buffer, &mut opened);
                if opened.consumed == buffer.len() {
                    break;
                }
            }
            match state.read_header(&buffer[opened.consumed..], limit) {
                Ok(None) => break,
                Ok(Some(header)) if header.opcode >= CLOSE => {
                    match state.take_control(&header, buffer, &mut opened) {
                        Ok(true) => {}
                        Ok(false) => break,
                        Err(fault) => state.end(End::Fault(fault), &mut opened),
                    }
                }
                Ok(Some(header)) => {
                    opened.consumed += header.bytes;
                    state.begin_frame(&header);
                }
                Err(fault) => state.end(End::Fault(fault), &mut opened),
            }
        }
        if state.is_ended {
            opened.consumed = buffer.len();
        }
        *self = state.pack();
        opened
    }

    /// Returns whether the peer has closed or broken the protocol: nothing more is read.
    pub const fn has_ended(&self) -> bool {
        self.unpack().is_ended
    }

    /// Returns the state for another process, which goes on at the same byte.
    pub fn to_bytes(&self) -> [u8; 12] {
        let mut bytes = [0; 12];
        for (piece, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(self.0) {
            *piece = word.to_le_bytes();
        }
        bytes
    }

    /// Makes a reader from [`Self::to_bytes`]. `None`: no reader was ever in this state.
    pub fn from_bytes(bytes: &[u8; 12]) -> Option<Self> {
        let mut words = [0; 3];
        for (word, piece) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*piece);
        }
        let state = Self(words).unpack();
        let is_whole = state.pack() == Self(words)
            && state.left <= state.message
            && state.controls <= CONTROLS_PER_SECOND_MAX
            && (state.is_message || (state.left, state.message, state.is_last) == (0, 0, false))
            && (state.left > 0 || (!state.is_last && state.mask == [0; 4]));
        is_whole.then_some(Self(words))
    }

    const fn unpack(self) -> State {
        let [mask, low, high] = self.0;
        let packed = (high as u64) << 32 | low as u64;
        State {
            mask: mask.to_le_bytes(),
            left: bits(packed, 0, LENGTH_BITS),
            message: bits(packed, LENGTH_BITS, LENGTH_BITS),
            second: bits(packed, 2 * LENGTH_BITS, SECOND_BITS),
            is_message: bits(packed, FLAGS_AT, 1) == 1,
            is_last: bits(packed, FLAGS_AT + 1, 1) == 1,
            is_ended: bits(packed, FLAGS_AT + 2, 1) == 1,
            #[allow(clippy::cast_possible_truncation)] // 4 bits
            controls: bits(packed, FLAGS_AT + 3, 4) as u8,
        }
    }
}

/// Returns `count` bits of the packed state.
#[allow(clippy::cast_possible_truncation)] // masked
const fn bits(packed: u64, from: u32, count: u32) -> u32 {
    ((packed >> from) & ((1 << count) - 1)) as u32
}

impl State {
    fn pack(&self) -> Reader {
        let packed = u64::from(self.left)
            | u64::from(self.message) << LENGTH_BITS
            | u64::from(self.second) << (2 * LENGTH_BITS)
            | u64::from(self.is_message) << FLAGS_AT
            | u64::from(self.is_last) << (FLAGS_AT + 1)
            | u64::from(self.is_ended) << (FLAGS_AT + 2)
            | u64::from(self.controls) << (FLAGS_AT + 3);
        #[allow(clippy::cast_possible_truncation)] // the two halves
        let halves = [packed as u32, (packed >> 32) as u32];
        Reader([u32::from_le_bytes(self.mask), halves[0], halves[1]])
    }

    fn note_time(&mut self, now: Instant) {
        #[allow(clippy::cast_possible_truncation)] // masked
        let second = (now.as_nanos() / NANOS_PER_SECOND) as u32 & SECONDS;
        if second != self.second {
            (self.second, self.controls) = (second, 0);
        }
    }

    /// Ends the reader; nothing of the state matters any more.
    fn end(&mut self, end: End, opened: &mut Opened) {
        *self = Self { is_ended: true, ..Self::default() };
        opened.end = Some(end);
    }

    /// Unmasks what is there of the current frame, and moves it behind the payloads before it.
    fn take_payload(&mut self, buffer: &mut [u8], opened: &mut Opened) {
        let from = opened.consumed;
        let count = (buffer.len() - from).min(self.left as usize);
        let payload = from..from + count;
        unmask(&mut buffer[payload.clone()], self.mask);
        if opened.plain.is_empty() {
            opened.plain = payload;
        } else {
            buffer.copy_within(payload, opened.plain.end);
            opened.plain.end += count;
        }
        opened.consumed += count;
        self.mask.rotate_left(count % 4);
        self.left -= u32::try_from(count).expect("at most what is left");
        self.end_frame();
    }

    fn begin_frame(&mut self, header: &Header) {
        (self.mask, self.left, self.is_last) = (header.mask, header.length, header.is_last);
        (self.message, self.is_message) = (self.message + header.length, true);
        self.end_frame();
    }

    /// Ends the frame if it is complete.
    fn end_frame(&mut self) {
        if self.left > 0 {
            return;
        }
        self.mask = [0; 4];
        if self.is_last {
            (self.message, self.is_message, self.is_last) = (0, false, false);
        }
    }

    /// Reads a header as far as it is there. `None`: more bytes are needed.
    fn read_header(&self, input: &[u8], message_max: u32) -> Result<Option<Header>, Fault> {
        let Some(&first) = input.first() else { return Ok(None) };
        let (opcode, is_last) = (first & OPCODE, first & FIN != 0);
        self.check_first(first)?;
        let Some(&second) = input.get(1) else { return Ok(None) };
        if second & MASKED == 0 {
            return Err(Fault::Unmasked);
        }
        let (length, at) = match second & !MASKED {
            short @ ..LENGTH_16 => (u64::from(short), 2),
            _ if opcode >= CLOSE => return Err(Fault::BadControl),
            LENGTH_16 => {
                let Some(bytes) = input[2..].first_chunk() else { return Ok(None) };
                (u64::from(u16::from_be_bytes(*bytes)), 4)
            }
            LENGTH_64.. => {
                let Some(bytes) = input[2..].first_chunk() else { return Ok(None) };
                (u64::from_be_bytes(*bytes), 10)
            }
        };
        let shortest = match length {
            0..126 => 2,
            126..=0xFFFF => 4,
            _ => 10,
        };
        if at != shortest || length >> 63 != 0 {
            return Err(Fault::BadLength);
        }
        let before = if opcode >= CLOSE { 0 } else { self.message };
        let room = if opcode >= CLOSE { u32::MAX } else { message_max.saturating_sub(before) };
        let length = u32::try_from(length).ok().filter(|length| *length <= room).ok_or(Fault::TooLong)?;
        let Some(mask) = input[at..].first_chunk() else { return Ok(None) };
        Ok(Some(Header { bytes: at + 4, opcode, is_last, length, mask: *mask }))
    }

    fn check_first(&self, first: u8) -> Result<(), Fault> {
        if first & RESERVED != 0 {
            return Err(Fault::ReservedBits);
        }
        match first & OPCODE {
            CONTINUATION if self.is_message => Ok(()),
            BINARY if !self.is_message => Ok(()),
            TEXT if !self.is_message => Err(Fault::Text),
            CONTINUATION | BINARY | TEXT => Err(Fault::BadFragment),
            CLOSE | PING | PONG if first & FIN != 0 => Ok(()),
            CLOSE | PING | PONG => Err(Fault::BadControl),
            _ => Err(Fault::BadOpcode),
        }
    }

    /// Takes a control frame. False: its payload is not there yet.
    fn take_control(
        &mut self,
        header: &Header,
        buffer: &mut [u8],
        opened: &mut Opened,
    ) -> Result<bool, Fault> {
        let from = opened.consumed + header.bytes;
        let Some(payload) = buffer.get_mut(from..from + header.length as usize) else { return Ok(false) };
        if self.controls == CONTROLS_PER_SECOND_MAX {
            return Err(Fault::Flood);
        }
        self.controls += 1;
        unmask(payload, header.mask);
        match header.opcode {
            CLOSE => self.end(End::Closed(code_of(payload)?), opened),
            PING => opened.pong = Some(Pong::new(payload)),
            _ => {} // a pong that nobody asked for
        }
        opened.consumed = from + header.length as usize;
        Ok(true)
    }
}

/// Reads the code in the payload of a close. `None`: the payload is empty.
fn code_of(payload: &[u8]) -> Result<Option<u16>, Fault> {
    let Some((code, text)) = payload.split_first_chunk() else {
        return if payload.is_empty() { Ok(None) } else { Err(Fault::BadClose) };
    };
    let code = u16::from_be_bytes(*code);
    if !matches!(code, 1_000..=1_003 | 1_007..=1_014 | 3_000..=4_999) {
        return Err(Fault::BadClose);
    }
    core::str::from_utf8(text).map_err(|_| Fault::BadText)?;
    Ok(Some(code))
}

/// Takes the mask off bytes that begin with its first byte.
fn unmask(bytes: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (chunks, rest) = bytes.as_chunks_mut();
    for chunk in chunks {
        *chunk = (u64::from_ne_bytes(*chunk) ^ wide).to_ne_bytes();
    }
    rest.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, key)| *byte ^= key);
}
