//! Layers between a socket and the frames: TLS, WebSocket, both, or the exchange that comes before them [P-14.1].
//!
//! A plain connection has no layer. With one, its owner reads and writes through the layer instead of the stream:
//!
//! | layer | bytes of the socket | bytes of the owner |
//! |---|---|---|
//! | [`Layer::Opening`] | PROXY header, TLS handshake, HTTP upgrade ([`Opening`]) | none yet |
//! | [`Layer::Tls`] | TLS records ([`crate::tls::Records`]) | frames |
//! | [`Layer::WebSocket`] | WebSocket messages | frames |
//! | [`Layer::Wss`] | TLS records with WebSocket messages | frames |
//!
//! A layer never waits and starts no thread; the handshake's arithmetic is done elsewhere ([`Opening::take_job`]). What
//! the socket does not take of an encrypted record is kept, at most [`RECORD_BYTES`] and what answers the peer: bytes are
//! encrypted once, in the order in which they go out.
//!
//! Run-through: 128 bytes of a frame come in one record of 150 bytes, and 20 bytes of the next one. `read` decrypts
//! the first record where the read put it, hands out its 128 bytes, and keeps the 20 bytes until more come.

mod buffers;
mod job;
mod link;
mod opening;
mod pieces;
mod pool;
#[cfg(test)]
mod tests;
mod websocket;

pub use job::{Finished, Job, JobResult};
pub use link::Driven;
pub use opening::{Done, Opening, OpeningFault, OpeningKind, Step};
pub use pool::HandshakePool;
pub use websocket::Framing;

use crate::read_block::ReadBlock;
use crate::stream::{Filled, Reading, Stream};
use crate::tls::{self, Records};
use buffers::Buffers;
use moorline_proto::time::Instant;
use moorline_proto::websocket::{Fault, TAIL_BYTES_MAX, close_code};
use std::io::{self, IoSlice};
use std::ops::Range;
use websocket::WebSocket;

/// Longest encrypted record that is written, in bytes; a peer that reads nothing makes its layer keep no more of them.
pub const RECORD_BYTES: usize = 8 << 10;
/// Plain bytes of such a record.
const RECORD_PLAIN: usize = RECORD_BYTES - 64;
/// Room for new bytes in each read, in bytes.
const READ_MIN: usize = 4 << 10;

/// A layer between a socket and the frames.
#[derive(Debug)]
pub enum Layer {
    /// The exchange before the first frame.
    Opening(Box<Opening>),
    /// Records of TLS.
    Tls(Box<Tls>),
    /// Frames of WebSocket.
    WebSocket(Framing),
    /// WebSocket over TLS.
    Wss(Box<Wss>),
}

/// TLS, from the first application record on.
#[derive(Debug)]
pub struct Tls {
    records: Records,
    buffers: Buffers,
}

const _: () = assert!(size_of::<Tls>() <= 120, "an idle connection fits into one allocation of 128 bytes");

/// WebSocket over TLS.
#[derive(Debug)]
pub struct Wss {
    tls: Tls,
    framing: Framing,
}

const _: () = assert!(size_of::<Wss>() <= 136, "an idle connection fits into one allocation of 144 bytes");
const _: () = assert!(size_of::<Layer>() == 16, "each place for a connection has room for one");

/// Reason why a layer ends its connection. The peer has been told, as far as the socket took it.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The socket is broken.
    #[error("{0}")]
    Socket(#[from] io::Error),
    /// The peer does not keep to TLS.
    #[error("{0}")]
    Tls(#[from] tls::Fault),
    /// The peer does not keep to the WebSocket protocol.
    #[error("{0}")]
    WebSocket(#[from] Fault),
}

/// A layer as bytes, for another process. Shows nothing of them in its `Debug`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct FrozenLayer {
    /// Kind of opening that this was before, as a number ([`OpeningKind::number`]).
    pub kind: u32,
    /// Number of the listener where an opening came.
    pub listener: u8,
    /// The opening has not ended.
    pub is_opening: bool,
    /// State of the record layer; empty: no TLS.
    pub records: Vec<u8>,
    /// State of the WebSocket; empty: no WebSocket.
    pub websocket: Vec<u8>,
    /// Bytes of the socket that are not read yet: the begin of a record, a message or an opening.
    pub partial: Vec<u8>,
    /// Plain bytes that are not read yet: the begin of a message in TLS, or of an HTTP request.
    pub plain: Vec<u8>,
    /// Bytes that the socket has not taken yet.
    pub pending: Vec<u8>,
}

impl std::fmt::Debug for FrozenLayer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrozenLayer").field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl Layer {
    /// Reads from the socket until there are bytes for the owner; makes no system call while the stream is not readable.
    /// Answers the peer where TLS or WebSocket asks for it. A layer that was just made has bytes to read before any come.
    ///
    /// # Errors
    /// [`LayerError`]: the connection is to be closed.
    pub fn read(
        &mut self,
        stream: &mut Stream,
        block: &mut ReadBlock,
        now: Instant,
    ) -> Result<Reading, LayerError> {
        match self {
            Self::Opening(_) => Ok(Reading::Blocked),
            Self::Tls(tls) => tls.read(stream, block, now, None),
            Self::Wss(wss) => {
                let Wss { tls, framing } = &mut **wss;
                framing.with(|websocket| tls.read(stream, block, now, Some(websocket)))
            }
            Self::WebSocket(framing) => framing.with(|websocket| websocket.read(stream, block, now)),
        }
    }

    /// Writes pieces of `length` bytes in all. Returns how many bytes the layer took; less than all: the socket takes
    /// nothing more for now. `scratch`: memory of the caller, which holds nothing between two calls.
    ///
    /// # Errors
    /// The stream is broken.
    pub fn write(
        &mut self,
        stream: &mut Stream,
        pieces: &[IoSlice<'_>],
        length: usize,
        scratch: &mut Vec<u8>,
    ) -> io::Result<usize> {
        if length == 0 || !self.flush(stream)? {
            return Ok(0);
        }
        match self {
            Self::Opening(_) => Ok(0),
            Self::Tls(tls) => tls.write(stream, pieces, length, scratch),
            Self::Wss(wss) => {
                let Wss { tls, framing } = &mut **wss;
                framing.with(|websocket| {
                    websocket
                        .write_with(pieces, length, |part, bytes| tls.write(stream, part, bytes, scratch))
                })
            }
            Self::WebSocket(framing) => framing.with(|websocket| websocket.write(stream, pieces, length)),
        }
    }

    /// Writes what the socket did not take before. False: it does not take all of it.
    ///
    /// # Errors
    /// The stream is broken.
    pub fn flush(&mut self, stream: &mut Stream) -> io::Result<bool> {
        match self {
            Self::Opening(opening) => opening.flush(stream),
            Self::Tls(tls) => tls.flush(stream),
            Self::Wss(wss) => wss.flush(stream),
            Self::WebSocket(Framing::Resting(_)) => Ok(true),
            Self::WebSocket(framing) => framing.with(|websocket| websocket.flush(stream)),
        }
    }

    /// Tells the peer, as far as the socket takes it, that nothing more comes: a WebSocket close for `code`, a close code of
    /// Moorline or 0, and the close_notify of TLS.
    pub fn shut(&mut self, stream: &mut Stream, code: u32) {
        // The socket is closed next, whatever the outcome.
        match self {
            Self::Opening(_) => {}
            Self::Tls(tls) => tls.shut(stream),
            Self::WebSocket(framing) => framing.with(|websocket| {
                websocket.put_close(Some(close_code(code)), "");
                websocket.flush(stream).ok();
            }),
            Self::Wss(wss) => {
                wss.framing.with(|websocket| websocket.put_close(Some(close_code(code)), ""));
                wss.flush(stream).ok();
                wss.tls.shut(stream);
            }
        }
    }

    /// Bytes that the socket has not taken yet.
    pub fn pending(&self) -> usize {
        match self {
            Self::Opening(opening) => opening.pending(),
            Self::Tls(tls) => tls.buffers.pending(),
            Self::Wss(wss) => wss.tls.buffers.pending() + wss.framing.busy().map_or(0, WebSocket::pending),
            Self::WebSocket(framing) => framing.busy().map_or(0, WebSocket::pending),
        }
    }

    /// Returns whether there is something to read, or the end, although the socket has nothing new.
    pub fn wants_read(&self) -> bool {
        match self {
            Self::Opening(_) => false,
            Self::Tls(tls) => tls.buffers.wants_read(),
            Self::Wss(wss) => wss.tls.buffers.wants_read(),
            Self::WebSocket(framing) => framing.busy().is_some_and(WebSocket::wants_read),
        }
    }

    /// Keeps what each use would derive anew, the keys of TLS: for a connection that is used again and again. 128 bytes.
    pub fn keep(&mut self) {
        if let Some(records) = self.records() {
            records.keep_bytes();
        }
    }

    /// Gives back what [`Self::keep`] keeps.
    pub fn cool(&mut self) {
        if let Some(records) = self.records() {
            records.cool();
        }
    }

    /// Returns whether [`Self::keep`] has an effect.
    pub const fn has_keys(&self) -> bool {
        matches!(self, Self::Tls(_) | Self::Wss(_))
    }

    /// Returns whether [`Self::cool`] gives memory back.
    pub fn is_warm(&self) -> bool {
        match self {
            Self::Opening(_) | Self::WebSocket(_) => false,
            Self::Tls(tls) => tls.records.is_warm(),
            Self::Wss(wss) => wss.tls.records.is_warm(),
        }
    }

    /// Returns the layer as bytes, for another process, and stops until [`Self::resume`]. An opening in the middle of a
    /// handshake cannot go there; what it gives makes [`Self::thaw`] return `None`.
    ///
    /// # Errors
    /// The state is retired.
    pub fn freeze(&mut self) -> Result<FrozenLayer, tls::Fault> {
        match self {
            Self::Opening(opening) => opening.freeze(),
            Self::Tls(tls) => tls.freeze(OpeningKind { has_tls: true, ..OpeningKind::default() }),
            Self::Wss(wss) => {
                let kind = OpeningKind { has_tls: true, has_websocket: true, is_proxied: false };
                let websocket = wss.framing.with(|websocket| websocket.state());
                Ok(FrozenLayer { websocket, ..wss.tls.freeze(kind)? })
            }
            Self::WebSocket(framing) => Ok(framing.with(|websocket| websocket.freeze())),
        }
    }

    /// Makes the layer again from another process's bytes; `None`: an opening that could not be handed over. It reads and
    /// writes after [`Self::resume`].
    ///
    /// # Errors
    /// A sentence: the bytes contradict each other.
    pub fn thaw(frozen: FrozenLayer) -> Result<Option<Self>, String> {
        if frozen.is_opening {
            let opening = Opening::thaw(frozen)?;
            return Ok(opening.map(|opening| Self::Opening(Box::new(opening))));
        }
        let FrozenLayer { records, websocket, partial, plain, pending, .. } = frozen;
        let websocket = if websocket.is_empty() { None } else { Some(WebSocket::of_state(&websocket)?) };
        let buffers = Buffers::of(partial, plain, pending);
        if records.is_empty() {
            let websocket = websocket.ok_or("a layer is neither TLS nor WebSocket")?;
            return Ok(Some(Self::WebSocket(websocket.with_buffers(buffers).into())));
        }
        let tls = Tls { records: Records::thaw(&records).map_err(|error| error.to_string())?, buffers };
        Ok(Some(match websocket {
            Some(websocket) => Self::Wss(Box::new(Wss { tls, framing: websocket.into() })),
            None => Self::Tls(Box::new(tls)),
        }))
    }

    /// A layer that reads and writes nothing, for a connection that is to be closed.
    pub fn closed() -> Self {
        Self::Opening(Box::new(Opening::failed()))
    }

    /// Goes on: behind a [`Self::freeze`] that led to nothing, or behind [`Self::thaw`] in the process that takes over. One of
    /// the two processes calls this, never both.
    pub fn resume(&mut self) {
        if let Some(records) = self.records() {
            // Fails only if the state is retired, and then so does everything that follows.
            records.resume().ok();
        }
    }

    fn records(&mut self) -> Option<&mut Records> {
        match self {
            Self::Opening(opening) => opening.records(),
            Self::Tls(tls) => Some(&mut tls.records),
            Self::Wss(wss) => Some(&mut wss.tls.records),
            Self::WebSocket(_) => None,
        }
    }
}

impl Wss {
    fn flush(&mut self, stream: &mut Stream) -> io::Result<bool> {
        let Self { tls, framing } = self;
        framing.with(|websocket| tls.flush_with(stream, websocket))
    }
}

impl Tls {
    const fn new(records: Records) -> Self {
        Self { records, buffers: Buffers::new() }
    }

    fn read(
        &mut self,
        stream: &mut Stream,
        block: &mut ReadBlock,
        now: Instant,
        mut websocket: Option<&mut WebSocket>,
    ) -> Result<Reading, LayerError> {
        while stream.is_readable() || self.buffers.has_come() {
            let gap = if websocket.is_some() { TAIL_BYTES_MAX } else { 0 };
            let kept = self.buffers.partial().len();
            let room = block.room_of(gap + kept + READ_MIN);
            let count = if self.buffers.take_come() {
                0
            } else {
                match stream.read_into(&mut room[gap + kept..])? {
                    Filled::Bytes(count) => count,
                    Filled::Blocked => return Ok(Reading::Blocked),
                    Filled::End => return Ok(Reading::End),
                }
            };
            room[gap..gap + kept].copy_from_slice(self.buffers.partial());
            let opened = self.open(&mut room[..gap + kept + count], gap, now, websocket.as_deref_mut());
            let is_flushed = match &mut websocket {
                Some(websocket) => self.flush_with(stream, websocket),
                None => self.flush(stream),
            };
            let (plain, has_ended) = opened?;
            is_flushed?;
            self.buffers.note_end(has_ended);
            if !plain.is_empty() {
                return Ok(Reading::Bytes(block.take(plain.end).slice(plain))); // the end comes with the next read
            }
            if self.buffers.has_ended() {
                return Ok(Reading::End);
            }
        }
        Ok(if self.buffers.has_ended() { Reading::End } else { Reading::Blocked })
    }

    /// Decrypts `read` from `gap` on. Returns where the owner's bytes are, and whether the peer sends nothing more.
    fn open(
        &mut self,
        read: &mut [u8],
        gap: usize,
        now: Instant,
        websocket: Option<&mut WebSocket>,
    ) -> Result<(Range<usize>, bool), LayerError> {
        let opened = self.records.open(&mut read[gap..], now);
        self.buffers.set_partial(&read[gap + opened.consumed..]);
        let mut plain = gap + opened.plain.start..gap + opened.plain.end;
        let mut has_ended = match opened.end {
            None => false,
            Some(tls::End::Closed) => true,
            Some(tls::End::Fault(fault)) => {
                let mut alert = Vec::new();
                self.records.alert(fault, &mut alert).ok();
                self.buffers.append(&alert);
                return Err(fault.into());
            }
        };
        if let Some(websocket) = websocket
            && !plain.is_empty()
        {
            let tail = self.buffers.plain();
            let begin = plain.start - tail.len();
            read[begin..plain.start].copy_from_slice(tail);
            let (begin, end) = (begin, plain.end);
            let messages = websocket.open(&mut read[begin..end], now)?;
            self.buffers.set_plain(&read[begin + messages.consumed..end]);
            plain = begin + messages.plain.start..begin + messages.plain.end;
            has_ended |= messages.is_left;
        }
        Ok((plain, has_ended))
    }

    fn flush(&mut self, stream: &mut Stream) -> io::Result<bool> {
        if !self.buffers.flush(stream)? {
            return Ok(false);
        }
        let mut answer = Vec::new();
        self.records.answer(&mut answer).map_err(io::Error::other)?;
        self.buffers.append(&answer);
        self.buffers.flush(stream)
    }

    /// Flushes, and then the control frames of the WebSocket above.
    fn flush_with(&mut self, stream: &mut Stream, websocket: &mut WebSocket) -> io::Result<bool> {
        if !self.flush(stream)? {
            return Ok(false);
        }
        let control = websocket.take_control();
        if control.is_empty() {
            return Ok(true);
        }
        let mut sealed = Vec::new();
        self.records.seal(&[&control], &mut sealed).map_err(io::Error::other)?;
        self.buffers.append(&sealed);
        self.buffers.flush(stream)
    }

    fn write(
        &mut self,
        stream: &mut Stream,
        pieces: &[impl pieces::AsBytes],
        length: usize,
        scratch: &mut Vec<u8>,
    ) -> io::Result<usize> {
        let (is_long, is_warm) = (length > RECORD_PLAIN, self.records.is_warm());
        if is_long {
            self.records.keep(); // one object for all records
        }
        let mut taken = 0;
        while taken < length {
            scratch.clear();
            taken += pieces::with_part(pieces, taken, RECORD_PLAIN, &[], |part, _| {
                self.records.seal(part, scratch).map_err(io::Error::other)
            })?;
            let sent = stream.write(scratch)?;
            if sent < scratch.len() {
                self.buffers.append(&scratch[sent..]);
                break;
            }
        }
        match (is_long, is_warm) {
            (false, _) => {}
            (true, true) => self.records.keep_bytes(),
            (true, false) => self.records.cool(),
        }
        Ok(taken)
    }

    fn shut(&mut self, stream: &mut Stream) {
        let mut last = Vec::new();
        if self.buffers.flush(stream).is_ok_and(|is_empty| is_empty)
            && self.records.close_notify(&mut last).is_ok()
        {
            stream.write(&last).ok(); // the socket is closed next
        }
    }

    fn freeze(&mut self, kind: OpeningKind) -> Result<FrozenLayer, tls::Fault> {
        Ok(FrozenLayer {
            kind: kind.number(),
            listener: 0,
            is_opening: false,
            records: self.records.freeze()?.as_ref().to_vec(),
            websocket: Vec::new(),
            partial: self.buffers.partial().to_vec(),
            plain: self.buffers.plain().to_vec(),
            pending: self.buffers.unsent().to_vec(),
        })
    }
}

// Memory per idle connection is what the gateway is chosen for: the owner keeps one of these for each slot while it has
// connections with a layer.
const _: () = assert!(size_of::<Option<Layer>>() <= 16 && size_of::<Tls>() <= 128);
