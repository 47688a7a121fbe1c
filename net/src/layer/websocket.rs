//! WebSocket between a stream, or TLS, and the frames.

use super::buffers::Buffers;
use super::{FrozenLayer, LayerError, OpeningKind, READ_MIN, pieces};
use crate::read_block::ReadBlock;
use crate::stream::{Filled, Reading, Stream};
use moorline_proto::time::Instant;
use moorline_proto::websocket::{
    self, CONTROL_BYTES_MAX, End, MESSAGE_BYTES_MAX, Reader, Writer, put_close, put_pong,
};
use std::io::{self, IoSlice};
use std::ops::Range;

/// Bytes of a pong and a close at most.
const CONTROL_MAX: usize = 2 * (2 + CONTROL_BYTES_MAX);

/// Framing of one connection as it is kept: between two messages, with nothing that waits, it has no memory of its own.
#[derive(Debug)]
pub enum Framing {
    /// Between two messages.
    Resting(Reader),
    /// In a message, or with bytes that wait.
    Busy(Box<WebSocket>),
}

impl Default for Framing {
    fn default() -> Self {
        Self::Resting(Reader::default())
    }
}

impl From<WebSocket> for Framing {
    fn from(websocket: WebSocket) -> Self {
        match websocket.resting() {
            Some(reader) => Self::Resting(reader),
            None => Self::Busy(Box::new(websocket)),
        }
    }
}

impl Framing {
    /// Lets `act` on the framing.
    pub(super) fn with<T>(&mut self, act: impl FnOnce(&mut WebSocket) -> T) -> T {
        match self {
            Self::Resting(reader) => {
                let mut websocket = WebSocket::at_rest(*reader);
                let outcome = act(&mut websocket);
                *self = websocket.into();
                outcome
            }
            Self::Busy(websocket) => {
                let outcome = act(websocket);
                if let Some(reader) = websocket.resting() {
                    *self = Self::Resting(reader);
                }
                outcome
            }
        }
    }

    /// Returns the framing if bytes wait in it, or a message is under way.
    pub(super) fn busy(&self) -> Option<&WebSocket> {
        match self {
            Self::Resting(_) => None,
            Self::Busy(websocket) => Some(websocket),
        }
    }
}

/// Framing of one connection, in use.
#[derive(Debug, Default)]
pub struct WebSocket {
    reader: Reader,
    writer: Writer,
    /// Bytes of control frames that wait for the end of a message.
    control: Vec<u8>,
    buffers: Buffers,
    /// A close has been written.
    is_closed: bool,
}

/// Result of [`WebSocket::open`].
#[derive(Debug)]
pub(super) struct Messages {
    /// Place of the owner's bytes.
    pub(super) plain: Range<usize>,
    /// Bytes that are done with.
    pub(super) consumed: usize,
    /// Nothing more comes.
    pub(super) is_left: bool,
}

impl WebSocket {
    /// A WebSocket with nothing under way.
    pub(super) fn at_rest(reader: Reader) -> Self {
        Self { reader, ..Self::default() }
    }

    /// Returns the reader, if that is all there is to keep.
    pub(super) fn resting(&self) -> Option<Reader> {
        let Self { reader, writer, control, buffers, is_closed } = self;
        let is_resting = writer.is_between() && control.is_empty() && buffers.is_empty() && !is_closed;
        is_resting.then_some(*reader)
    }

    /// Removes the framing of `buffer`, and notes the answers to control frames.
    ///
    /// # Errors
    /// The client does not keep to the protocol; the close is noted.
    pub(super) fn open(&mut self, buffer: &mut [u8], now: Instant) -> Result<Messages, websocket::Fault> {
        let opened = self.reader.open(buffer, now, MESSAGE_BYTES_MAX);
        if let Some(pong) = opened.pong.filter(|_| !self.is_closed) {
            self.control.clear(); // the answer to an earlier ping may be left out (RFC 6455, 5.5.3)
            put_pong(pong.payload(), &mut self.control);
        }
        let is_left = match opened.end {
            None => false,
            Some(End::Closed(code)) => {
                self.put_close(code, "");
                true
            }
            Some(End::Fault(fault)) => {
                self.put_close(Some(fault.close_code()), fault.text());
                return Err(fault);
            }
        };
        Ok(Messages { plain: opened.plain, consumed: opened.consumed, is_left })
    }

    /// Takes the control frames that may go out now; empty: none, or a message is under way.
    pub(super) fn take_control(&mut self) -> Vec<u8> {
        if self.writer.is_between() { std::mem::take(&mut self.control) } else { Vec::new() }
    }

    /// Notes a close, once.
    pub(super) fn put_close(&mut self, code: Option<u16>, text: &str) {
        if !std::mem::replace(&mut self.is_closed, true) {
            put_close(code, text, &mut self.control);
        }
    }

    /// Writes pieces of `length` bytes by `write`, as one binary message or as the rest of the one under way. Returns how many
    /// of these bytes were taken.
    ///
    /// # Errors
    /// Those of `write`.
    pub(super) fn write_with(
        &mut self,
        pieces: &[IoSlice<'_>],
        length: usize,
        mut write: impl FnMut(&[&[u8]], usize) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let mut taken = 0;
        while taken < length && !self.is_closed {
            let next = self.writer.next(length - taken);
            let (mut sent, mut planned) = (0, 0);
            let payload = pieces::with_part(pieces, taken, next.payload, &next.header, |part, bytes| {
                planned = bytes;
                sent = write(part, bytes)?;
                Ok::<_, io::Error>(())
            })?;
            debug_assert!(planned == payload + next.header.len());
            taken += self.writer.took(sent);
            if sent < planned {
                break;
            }
        }
        Ok(taken)
    }

    /// Reads from a plain stream until there are bytes for the owner.
    pub(super) fn read(
        &mut self,
        stream: &mut Stream,
        block: &mut ReadBlock,
        now: Instant,
    ) -> Result<Reading, LayerError> {
        while stream.is_readable() || self.buffers.has_come() {
            let kept = self.buffers.partial().len();
            let room = block.room_of(kept + READ_MIN);
            let count = if self.buffers.take_come() {
                0
            } else {
                match stream.read_into(&mut room[kept..])? {
                    Filled::Bytes(count) => count,
                    Filled::Blocked => return Ok(Reading::Blocked),
                    Filled::End => return Ok(Reading::End),
                }
            };
            room[..kept].copy_from_slice(self.buffers.partial());
            let opened = self.open(&mut room[..kept + count], now);
            if let Ok(messages) = &opened {
                self.buffers.set_partial(&room[messages.consumed..kept + count]);
            }
            let is_flushed = self.flush(stream);
            let Messages { plain, is_left, .. } = opened?;
            is_flushed?;
            self.buffers.note_end(is_left);
            if !plain.is_empty() {
                return Ok(Reading::Bytes(block.take(plain.end).slice(plain)));
            }
            if self.buffers.has_ended() {
                return Ok(Reading::End);
            }
        }
        Ok(if self.buffers.has_ended() { Reading::End } else { Reading::Blocked })
    }

    /// Writes what the socket did not take before, and control frames. False: it does not take all of it.
    pub(super) fn flush(&mut self, stream: &mut Stream) -> io::Result<bool> {
        if !self.buffers.flush(stream)? {
            return Ok(false);
        }
        let control = self.take_control();
        self.buffers.append(&control);
        self.buffers.flush(stream)
    }

    pub(super) fn write(
        &mut self,
        stream: &mut Stream,
        pieces: &[IoSlice<'_>],
        length: usize,
    ) -> io::Result<usize> {
        self.write_with(pieces, length, |part, bytes| {
            let slices = pieces::slices(part);
            stream.write_vectored(&slices[..part.len()], bytes)
        })
    }

    pub(super) fn pending(&self) -> usize {
        self.buffers.pending() + self.control.len()
    }

    pub(super) fn wants_read(&self) -> bool {
        self.buffers.wants_read()
    }

    pub(super) fn with_buffers(self, buffers: Buffers) -> Self {
        Self { buffers, ..self }
    }

    /// State of reader and writer for another process, and whether a close has been written.
    pub(super) fn state(&self) -> Vec<u8> {
        [&self.reader.to_bytes()[..], &self.writer.to_bytes(), &[u8::from(self.is_closed)], &self.control]
            .concat()
    }

    pub(super) fn freeze(&self) -> FrozenLayer {
        FrozenLayer {
            kind: OpeningKind { has_websocket: true, ..OpeningKind::default() }.number(),
            websocket: self.state(),
            partial: self.buffers.partial().to_vec(),
            pending: self.buffers.unsent().to_vec(),
            ..FrozenLayer::default()
        }
    }

    /// Makes a WebSocket from [`Self::state`], without bytes that wait.
    pub(super) fn of_state(state: &[u8]) -> Result<Self, String> {
        let invalid = || "the state of a WebSocket is not valid".to_owned();
        let (reader, rest) = state.split_first_chunk().ok_or_else(invalid)?;
        let (writer, rest) = rest.split_first_chunk().ok_or_else(invalid)?;
        let (is_closed, control) = rest.split_first().ok_or_else(invalid)?;
        if control.len() > CONTROL_MAX {
            return Err(invalid());
        }
        Ok(Self {
            reader: Reader::from_bytes(reader).ok_or_else(invalid)?,
            writer: Writer::from_bytes(writer).ok_or_else(invalid)?,
            control: control.to_vec(),
            buffers: Buffers::default(),
            is_closed: *is_closed != 0,
        })
    }
}
