//! Server side of WebSocket framing (RFC 6455, [P-14.3]), without sockets: [`Reader`] opens what a client sends, [`Writer`] frames
//! what the server sends.
//!
//! Moorline's frames travel as the bytes of binary messages. Where a message or a fragment ends means nothing to them:
//! payloads are passed on as they come, so that fragments need no memory. Text messages and extensions are refused.
//!
//! | limit | answer |
//! |---|---|
//! | bytes of one message, given by the owner, at most [`MESSAGE_BYTES_MAX`] | [`Fault::TooLong`], 1009 |
//! | 125 bytes of a control frame | [`Fault::BadControl`], 1002 |
//! | [`CONTROLS_PER_SECOND_MAX`] control frames in one second of the owner's clock | [`Fault::Flood`], 1008 |
//! | [`TAIL_BYTES_MAX`] bytes that the owner keeps until more come | - |
//!
//! Run-through: a read brings `82 85 mask "hello"-masked 89`. [`Reader::open`] unmasks 5 bytes where they stand, says that
//! they are bytes 6 to 11, and consumes 11 bytes. The `89` begins a ping: the owner keeps that byte and puts it in front
//! of the next read. The answer is 20 bytes: [`Writer::next`] gives the header `82 14`, the socket takes 15 bytes,
//! [`Writer::took`] notes that 7 bytes of payload belong to this message; the next write has no header.

mod reader;
#[cfg(test)]
mod tests;
mod writer;

pub use reader::{End, Fault, Opened, Pong, Reader};
pub use writer::{HeaderBytes, Next, Writer, put_close, put_pong};

/// Largest limit for the bytes of one message that a [`Reader`] can hold to.
pub const MESSAGE_BYTES_MAX: u32 = (4 << 20) - 1;
/// Bytes of a control frame's payload.
pub const CONTROL_BYTES_MAX: usize = 125;
/// Control frames that one client may send in one second of the owner's clock.
pub const CONTROLS_PER_SECOND_MAX: u8 = 8;
/// Most bytes that [`Reader::open`] leaves unconsumed: a control frame that lacks its last byte.
pub const TAIL_BYTES_MAX: usize = 2 + 4 + CONTROL_BYTES_MAX - 1;

const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
const OPCODE: u8 = 0x0F;
const MASKED: u8 = 0x80;
const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
/// Lengths in a header's second byte that say: the length stands in the next 2, or 8, bytes.
const LENGTH_16: u8 = 126;
const LENGTH_64: u8 = 127;
/// Code of a close without a reason.
const NORMAL: u16 = 1_000;

/// Returns the WebSocket close code for a close code of Moorline [P-14.4]: 4000 + (code - 3000) for 3000 to 3999. Other codes, such as
/// the application's, become 1000: the client reads them in the CLOSE or KICK frame that came before.
pub const fn close_code(code: u32) -> u16 {
    match code {
        #[allow(clippy::cast_possible_truncation)] // at most 4,999
        3_000..=3_999 => (code + 1_000) as u16,
        _ => NORMAL,
    }
}
