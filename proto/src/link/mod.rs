//! Frames of the gateway-backend link (`docs/backend.md`): a 20-byte header and a protobuf body.

mod address;
mod endpoint;
mod proof;
mod secrets;

pub use address::{AddressError, LinkAddress};
pub use endpoint::{Endpoint, EndpointError, HostPort};
pub use proof::{NONCE_BYTES, Nonce, PROOF_BYTES, Role, SECRET_BYTES_MIN, Secret, Transcript};
pub use secrets::{NODE_BYTES_MAX, SECRETS_PER_NODE, Secrets, SecretsError, is_node};

use alloc::boxed::Box;
use bytes::{BufMut, Bytes, BytesMut};
use core::fmt;
use prost::Message;

/// Bytes of a link header.
pub const HEADER_BYTES: usize = 20;
/// Limit of a link frame's body, in bytes; above it the link is closed.
pub const BODY_BYTES_MAX: u32 = 4 << 20;
/// Limit of a link frame's body before both ends know each other, in bytes: strangers have little memory set aside.
pub const GREETING_BYTES_MAX: u32 = 4 << 10;
/// The link version this crate speaks.
pub const LINK_VERSION: u8 = 1;
/// Idle time in seconds after which either end sends a PING.
pub const PING_INTERVAL_S: u64 = 5;

macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $name:ident = $byte:literal;)+) => {
        /// Kind of a link frame.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Kind { $($(#[doc = $doc])+ $name,)+ }

        impl Kind {
            /// Every kind.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// Reads the byte.
            pub const fn from_byte(byte: u8) -> Option<Self> {
                match byte { $($byte => Some(Self::$name),)+ _ => None }
            }

            /// The byte on the wire.
            pub const fn byte(self) -> u8 {
                match self { $(Self::$name => $byte,)+ }
            }
        }
    };
}

kinds! {
    /// First frame of both ends.
    Hello = 0x01;
    /// A connection logged in.
    ConnUp = 0x02;
    /// A connection ended.
    ConnDown = 0x03;
    /// All connections this link speaks for.
    Announce = 0x04;
    /// Check this token.
    Auth = 0x05;
    /// The verdict.
    AuthResult = 0x06;
    /// A client's frame.
    Up = 0x07;
    /// Answer to a client's frame.
    UpResult = 0x08;
    /// Payload for some targets.
    Push = 0x09;
    /// Outcomes of a push.
    PushResult = 0x0A;
    /// Sessions enter a room.
    Bind = 0x0B;
    /// Sessions leave a room.
    Unbind = 0x0C;
    /// Fingerprints of rooms' members.
    Digest = 0x0D;
    /// End a login.
    Kick = 0x0E;
    /// Question about the sessions and rooms that a gateway holds.
    Query = 0x0F;
    /// Load figures.
    Stats = 0x10;
    /// Request to send no new work on this link.
    Drain = 0x11;
    /// Only the header's credit matters.
    Credit = 0x12;
    /// Probe of an idle link.
    Ping = 0x13;
    /// Answer to a probe.
    Pong = 0x14;
    /// Answer to a question about sessions and rooms.
    QueryResult = 0x15;
    /// Proof of the backend, and demand for the gateway's.
    Challenge = 0x16;
    /// Proof of the gateway.
    Proof = 0x17;
    /// News for the log of the gateway.
    Notice = 0x18;
    /// Owners of all slots of a cluster, or the question for them.
    Slots = 0x19;
    /// Answer of a node that does not own the user's slot.
    Moved = 0x1A;
    /// End of the sessions of slots that have moved.
    Leave = 0x1B;
    /// Message of one node of a cluster to another.
    Peer = 0x1C;
}

/// Kinds of a TLS record, its first byte.
const TLS_FIRST: u8 = 20;
const TLS_LAST: u8 = 23;
/// Second byte of each TLS record.
const TLS_MAJOR: u8 = 3;

/// Reason why the rest of a link's stream cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkError {
    /// The peer speaks another link version.
    Version(u8),
    /// The frame kind is unknown.
    Kind(u8),
    /// The body is over [`BODY_BYTES_MAX`].
    TooLarge(u32),
    /// The body is over [`GREETING_BYTES_MAX`], and the link is not open.
    TooLargeYet(u32),
    /// The body does not decode as its kind's message.
    Body(Kind),
    /// The kind is not allowed now, or in this direction.
    Unexpected(Kind),
    /// The peer speaks TLS, and this end does not.
    Tls,
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => {
                write!(
                    f,
                    "the peer speaks version {version} of the link protocol, this end {LINK_VERSION}; or it is another \
                     kind of program, so check the address"
                )
            }
            Self::Kind(byte) => write!(f, "unknown link frame {byte:#04x}"),
            Self::TooLarge(len) => write!(f, "link frame of {len} bytes, limit {BODY_BYTES_MAX}"),
            Self::TooLargeYet(len) => {
                write!(f, "link frame of {len} bytes before the link is open, limit {GREETING_BYTES_MAX}")
            }
            Self::Body(kind) => write!(f, "the body of a {kind:?} link frame does not decode"),
            Self::Unexpected(kind) => write!(f, "unexpected {kind:?} link frame"),
            Self::Tls => f.write_str(
                "the peer speaks TLS and this end does not; set backend.tls of the gateway and link.tls of the backend, or \
                 none of both",
            ),
        }
    }
}

impl core::error::Error for LinkError {}

/// A frame of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkFrame {
    /// The kind.
    pub kind: Kind,
    /// Pairs an answer with its question; 0: no answer is expected.
    pub correlation: u64,
    /// Number of unanswered UPs that the sender of this frame accepts on this link; 0: no statement.
    pub credit: u32,
    /// The protobuf body.
    pub body: Bytes,
}

impl LinkFrame {
    /// Decodes the body.
    ///
    /// # Errors
    /// [`LinkError::Body`].
    pub fn message<M: Message + Default>(&self) -> Result<M, LinkError> {
        M::decode(self.body.clone()).map_err(|_| LinkError::Body(self.kind))
    }
}

/// Appends one link frame. Panics if the message is over 4 GiB.
pub fn encode<M: Message>(out: &mut BytesMut, kind: Kind, correlation: u64, credit: u32, message: &M) {
    let len = message.encoded_len();
    out.reserve(HEADER_BYTES + len);
    put_header(out, kind, correlation, credit, len);
    message.encode_raw(out);
}

/// Appends one link frame without a body.
pub fn encode_empty(out: &mut BytesMut, kind: Kind, correlation: u64, credit: u32) {
    put_header(out, kind, correlation, credit, 0);
}

fn put_header(out: &mut BytesMut, kind: Kind, correlation: u64, credit: u32, len: usize) {
    out.put_u32(u32::try_from(len).expect("link bodies are bounded far below 4 GiB"));
    out.put_u8(LINK_VERSION);
    out.put_u8(kind.byte());
    out.put_u16(0); // flags: none defined
    out.put_u64(correlation);
    out.put_u32(credit);
}

/// Cuts a link's byte stream into frames; the same contract as [`crate::frame::Decoder`].
#[derive(Debug)]
pub struct LinkDecoder {
    partial: Option<Box<BytesMut>>,
    body_max: u32,
}

impl Default for LinkDecoder {
    fn default() -> Self {
        Self::new()
    }
}

impl LinkDecoder {
    /// A decoder between frames of an open link.
    pub const fn new() -> Self {
        Self { partial: None, body_max: BODY_BYTES_MAX }
    }

    /// A decoder for a link that is not open yet: bodies are at most [`GREETING_BYTES_MAX`].
    pub const fn greeting() -> Self {
        Self { partial: None, body_max: GREETING_BYTES_MAX }
    }

    /// Accepts bodies up to [`BODY_BYTES_MAX`] from now on: the link is open.
    pub const fn open(&mut self) {
        self.body_max = BODY_BYTES_MAX;
    }

    /// The bytes of an unfinished frame: fed to a new decoder, they put it where this one is.
    pub fn partial(&self) -> &[u8] {
        self.partial.as_deref().map_or(&[], |partial| partial)
    }

    /// Takes the next frame from `input`. `Ok(None)`: the input is used up.
    ///
    /// # Errors
    /// A [`LinkError`]; the rest of the stream cannot be read.
    pub fn decode(&mut self, input: &mut Bytes) -> Result<Option<LinkFrame>, LinkError> {
        let Some(mut partial) = self.partial.take() else {
            if let Some(frame) = take_whole(input, self.body_max)? {
                return Ok(Some(frame));
            }
            if !input.is_empty() {
                self.partial = Some(Box::new(BytesMut::from(&input[..])));
                input.clear();
            }
            return Ok(None);
        };
        fill(&mut partial, input, HEADER_BYTES);
        if let Some(wire_len) = wire_len(&partial, self.body_max)? {
            fill(&mut partial, input, wire_len);
            if partial.len() == wire_len {
                return take_whole(&mut partial.freeze(), self.body_max);
            }
        }
        self.partial = Some(partial);
        Ok(None)
    }
}

fn take_whole(input: &mut Bytes, body_max: u32) -> Result<Option<LinkFrame>, LinkError> {
    let Some(wire_len) = wire_len(input, body_max)? else { return Ok(None) };
    if input.len() < wire_len {
        return Ok(None);
    }
    let frame = input.split_to(wire_len);
    let kind = Kind::from_byte(frame[5]).ok_or(LinkError::Kind(frame[5]))?;
    let mut correlation = [0; 8];
    correlation.copy_from_slice(&frame[8..16]);
    let credit = u32::from_be_bytes([frame[16], frame[17], frame[18], frame[19]]);
    let body = frame.slice(HEADER_BYTES..);
    Ok(Some(LinkFrame { kind, correlation: u64::from_be_bytes(correlation), credit, body }))
}

fn wire_len(bytes: &[u8], body_max: u32) -> Result<Option<usize>, LinkError> {
    // As a length this is above every limit. An alert is shorter than a header, so nothing else may come.
    if let [TLS_FIRST..=TLS_LAST, TLS_MAJOR, ..] = bytes {
        return Err(LinkError::Tls);
    }
    let Some((head, _)) = bytes.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let len = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
    if head[4] != LINK_VERSION {
        return Err(LinkError::Version(head[4]));
    }
    if len > body_max {
        let is_always = len > BODY_BYTES_MAX;
        return Err(if is_always { LinkError::TooLarge(len) } else { LinkError::TooLargeYet(len) });
    }
    Ok(Some(HEADER_BYTES + len as usize))
}

fn fill(partial: &mut BytesMut, input: &mut Bytes, wanted: usize) {
    let missing = wanted.saturating_sub(partial.len()).min(input.len());
    partial.extend_from_slice(&input.split_to(missing));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::backend::Up;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_chunking_gives_the_same_frames(bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..8), cut in 1usize..100) {
            let mut wire = BytesMut::new();
            for (i, body) in bodies.iter().enumerate() {
                let up = Up { handle: 5, body: body.clone().into(), ..Default::default() };
                encode(&mut wire, Kind::Up, i as u64, 3, &up);
            }
            let (wire, mut decoder, mut got) = (wire.freeze(), LinkDecoder::new(), Vec::new());
            for chunk in wire.chunks(cut) {
                let mut chunk = Bytes::copy_from_slice(chunk);
                while let Some(frame) = decoder.decode(&mut chunk).expect("valid") {
                    prop_assert_eq!(frame.correlation, got.len() as u64);
                    got.push(frame.message::<Up>().expect("an Up").body.to_vec());
                }
            }
            prop_assert_eq!(got, bodies);
        }
    }

    #[test]
    fn before_a_link_is_open_little_memory_is_set_aside() {
        let mut wire = BytesMut::new();
        put_header(&mut wire, Kind::Hello, 0, 0, GREETING_BYTES_MAX as usize + 1);
        let mut decoder = LinkDecoder::greeting();
        let too_large = Err(LinkError::TooLargeYet(GREETING_BYTES_MAX + 1));
        assert_eq!(decoder.decode(&mut wire.clone().freeze()), too_large);
        decoder.open();
        assert_eq!(decoder.decode(&mut wire.freeze()), Ok(None));
    }

    #[test]
    fn foreign_bytes_are_refused() {
        let mut http = Bytes::from_static(b"GET / HTTP/1.1\r\nHost: x\r\n");
        assert_eq!(LinkDecoder::new().decode(&mut http), Err(LinkError::Version(b'/')));
        for tls in [&[22, 3, 1, 2, 0][..], &[21, 3, 3, 0, 2, 2, 10]] {
            let mut decoder = LinkDecoder::greeting();
            assert_eq!(decoder.decode(&mut Bytes::copy_from_slice(&tls[..1])), Ok(None));
            assert_eq!(decoder.decode(&mut Bytes::copy_from_slice(&tls[1..])), Err(LinkError::Tls));
        }
    }
}
