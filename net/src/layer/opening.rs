//! The exchange before the first frame of a connection: a PROXY header, a TLS handshake, an HTTP upgrade.
//!
//! | stage | waits for | then |
//! |---|---|---|
//! | PROXY header | the header, at most 536 bytes | the client's address is known; the next stage of the kind |
//! | hello | bytes of the TLS handshake, which nobody has answered | a [`Job`] for a thread that does the arithmetic |
//! | dial | nothing: this end is the client and speaks first | the same |
//! | handshake | that thread, or the client's next bytes | records; the next stage of the kind |
//! | upgrade | the HTTP request, at most 8 KiB | the answer 101, and a WebSocket |
//!
//! An opening that has sent nothing can go to another process as the bytes that came; one in the middle of a handshake
//! cannot. Nothing here waits: the owner ends an opening that takes too long.
//!
//! Run-through: a client of a `wss` listener sends 517 bytes of ClientHello. `read` keeps them, `advance` asks for a thread,
//! and `take_job` gives the job. The thread's result has 1,100 bytes for the client. Its Finished makes a second job, whose
//! result has the records. The GET request that comes in them is answered, and `advance` gives the layer.

use super::buffers::Buffers;
use super::job::{Begun, Dial, Finished, Job, JobResult, Next, Work};
use super::{Framing, FrozenLayer, Layer, Tls, WebSocket, Wss};
use crate::proxy;
use crate::read_block::ReadBlock;
use crate::stream::{Filled, Stream};
use crate::tls::{self, Handshake, HandshakeError, Records};
use crate::upgrade::{self, Origins, Refusal};
use bytes::Bytes;
use moorline_proto::time::Instant;
use std::io;
use std::net::SocketAddr;

/// Bytes that are kept before they can be used, until the handshake is done. A ClientHello with a hybrid key and a ticket has 2
/// to 3 KiB, and whoever sends more must not hold more memory than the gateway allows a stranger. Behind the handshake
/// a whole record may come.
const INPUT_MAX: usize = 8 << 10;
/// Bytes of a record's header.
const HEADER_BYTES: usize = 5;

/// Parts of the exchange.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpeningKind {
    /// A PROXY header comes first.
    pub is_proxied: bool,
    /// A TLS handshake.
    pub has_tls: bool,
    /// An HTTP upgrade to a WebSocket.
    pub has_websocket: bool,
}

impl OpeningKind {
    /// Returns the kind as a number, for another process.
    pub const fn number(self) -> u32 {
        self.is_proxied as u32 | (self.has_tls as u32) << 1 | (self.has_websocket as u32) << 2
    }

    /// Returns the kind of a number; `None`: this build does not know it.
    pub const fn of_number(number: u32) -> Option<Self> {
        if number > 7 {
            return None;
        }
        let (is_proxied, has_tls, has_websocket) = (number & 1 > 0, number & 2 > 0, number & 4 > 0);
        Some(Self { is_proxied, has_tls, has_websocket })
    }

    /// Returns whether frames come at once.
    pub fn is_plain(self) -> bool {
        self == Self::default()
    }
}

/// One connection before its first frame.
#[derive(Debug)]
pub struct Opening {
    kind: OpeningKind,
    /// Number of the listener where the connection came.
    listener: u8,
    stage: Stage,
    /// Bytes of the socket that no stage has used.
    input: Vec<u8>,
    /// Limit of these bytes.
    input_max: usize,
    /// The owner has put the connection into its list of those that wait for a thread.
    pub is_listed: bool,
    /// Bytes of the TLS handshake that this process was given, as long as it has answered nothing.
    unanswered: Bytes,
    /// Bytes that the socket has not taken yet.
    output: Buffers,
}

#[derive(Debug)]
enum Stage {
    Proxy,
    /// No handshake has begun.
    Hello,
    /// This end is the client, and has said nothing.
    Dial(Dial),
    /// A thread has the handshake.
    Away,
    /// The peer's next bytes are awaited.
    Handshake(Box<Handshake>),
    /// The handshake failed; the alert is in the output.
    Failed,
    /// The HTTP request is awaited, over these records if there are any.
    Upgrade {
        tls: Option<Box<Tls>>,
        head: Vec<u8>,
    },
}

/// The next thing to do for an opening.
#[derive(Debug)]
pub enum Step {
    /// Wait for bytes of the client, or for a job's result.
    Wait,
    /// The proxy has named the client's address; `None`: the proxy itself speaks, such as for a health check.
    Proxied(Option<SocketAddr>),
    /// A thread is needed: [`Opening::take_job`].
    Job,
    /// Frames come next.
    Done(Done),
}

/// An opening that has ended well.
#[derive(Debug)]
pub struct Done {
    /// The layer; `None`: the connection is plain from here on.
    pub layer: Option<Layer>,
    /// Bytes of the socket that belong to the frames, of a plain connection.
    pub rest: Vec<u8>,
}

/// Reason why an opening ends. The peer has been told, as far as the socket took it.
#[derive(Debug, thiserror::Error)]
pub enum OpeningFault {
    /// The socket is broken.
    #[error("{0}")]
    Socket(#[from] io::Error),
    /// The client left.
    #[error("the client left")]
    Left,
    /// The PROXY header is not valid.
    #[error("PROXY header: {0}")]
    Proxy(#[from] proxy::Fault),
    /// The TLS handshake failed.
    #[error("{0}")]
    Handshake(#[from] HandshakeError),
    /// A record behind the handshake is not valid.
    #[error("{0}")]
    Tls(#[from] tls::Fault),
    /// The HTTP request is not an upgrade that this listener takes.
    #[error("WebSocket upgrade: {0}")]
    Upgrade(Refusal),
    /// Bytes came behind the HTTP request, before its answer.
    #[error("WebSocket upgrade: bytes before the answer")]
    Early,
    /// More bytes came than a stage may have.
    #[error("too many bytes before the connection is open")]
    TooLong,
}

impl Opening {
    /// A connection of which nothing has come yet. `listener`: number of the listener where it came.
    pub fn new(kind: OpeningKind, listener: u8) -> Self {
        Self {
            kind,
            listener,
            stage: if kind.is_proxied { Stage::Proxy } else { Stage::after_proxy(kind) },
            input: Vec::new(),
            input_max: INPUT_MAX,
            is_listed: false,
            unanswered: Bytes::new(),
            output: Buffers::new(),
        }
    }

    /// TLS alone, of an end that shows a certificate, so that the peer's flights may be longer than those of a client. `dial`:
    /// this end is the client; `None`: the peer speaks first.
    pub(super) fn mutual(dial: Option<Dial>) -> Self {
        let kind = OpeningKind { has_tls: true, ..OpeningKind::default() };
        let opening = Self { input_max: tls::RECORD_BYTES_MAX, ..Self::new(kind, 0) };
        match dial {
            Some(dial) => Self { stage: Stage::Dial(dial), ..opening },
            None => opening,
        }
    }

    /// An opening that has failed.
    pub(super) fn failed() -> Self {
        Self { stage: Stage::Failed, ..Self::new(OpeningKind::default(), 0) }
    }

    /// Returns what the connection has to exchange.
    pub const fn kind(&self) -> OpeningKind {
        self.kind
    }

    /// Returns the number of the listener where the connection came.
    pub const fn listener(&self) -> u8 {
        self.listener
    }

    /// Returns whether the handshake could begin.
    pub fn is_held(&self) -> bool {
        matches!(self.stage, Stage::Hello) && has_record(&self.input)
    }

    /// Returns whether no handshake has begun, so that its bytes may as well wait in the socket.
    pub const fn can_wait(&self) -> bool {
        self.kind.has_tls && matches!(self.stage, Stage::Hello) && self.input.is_empty()
    }

    /// Returns whether a PROXY header is awaited.
    pub const fn awaits_proxy(&self) -> bool {
        matches!(self.stage, Stage::Proxy)
    }

    /// Reads what the socket has. Does nothing while a thread has the handshake: the bytes wait in the socket. False: nothing
    /// new.
    ///
    /// # Errors
    /// [`OpeningFault`].
    pub fn read(&mut self, stream: &mut Stream, block: &mut ReadBlock) -> Result<bool, OpeningFault> {
        if matches!(self.stage, Stage::Away | Stage::Failed) {
            return Ok(false);
        }
        if self.input.len() >= self.input_max {
            if self.is_held() {
                return Ok(false);
            }
            self.put_alert();
            return Err(OpeningFault::TooLong);
        }
        let room = block.room();
        let most = room.len().min(self.input_max - self.input.len());
        match stream.read_into(&mut room[..most])? {
            Filled::Bytes(count) => {
                self.input.extend_from_slice(&room[..count]);
                Ok(true)
            }
            Filled::Blocked => Ok(false),
            Filled::End => Err(OpeningFault::Left),
        }
    }

    /// Uses what has come, up to the next thing that the owner has to do. `may_begin`: a handshake that nobody has answered
    /// may be answered now.
    ///
    /// # Errors
    /// [`OpeningFault`].
    pub fn advance(
        &mut self,
        origins: &Origins,
        now: Instant,
        may_begin: bool,
    ) -> Result<Step, OpeningFault> {
        match &mut self.stage {
            Stage::Proxy => {
                let Some(header) = proxy::read(&self.input)? else { return Ok(Step::Wait) };
                self.input.drain(..header.bytes);
                self.stage = Stage::after_proxy(self.kind);
                return Ok(Step::Proxied(header.client));
            }
            Stage::Hello if self.kind.is_plain_but_proxied() => {
                return Ok(Step::Done(Done { layer: None, rest: std::mem::take(&mut self.input) }));
            }
            Stage::Hello if may_begin && has_record(&self.input) => return Ok(Step::Job),
            Stage::Handshake(_) if has_record(&self.input) => return Ok(Step::Job),
            Stage::Dial(_) => return Ok(Step::Job),
            Stage::Hello | Stage::Handshake(_) | Stage::Away | Stage::Failed => return Ok(Step::Wait),
            Stage::Upgrade { .. } => {}
        }
        self.upgrade(origins, now)
    }

    /// Takes the arithmetic that [`Step::Job`] asks for.
    pub fn take_job(&mut self) -> Job {
        let input = std::mem::take(&mut self.input);
        match std::mem::replace(&mut self.stage, Stage::Away) {
            Stage::Handshake(handshake) => Job::new(Begun::Already(handshake), input),
            Stage::Dial(dial) => Job::new(Begun::Dial(dial), input),
            _ => {
                self.unanswered = input.into();
                Job::new(Begun::ByPeer(self.unanswered.clone()), Vec::new())
            }
        }
    }

    /// Puts back a job that no thread takes now.
    pub fn put_back(&mut self, job: Job) {
        let Work { handshake, mut input, .. } = *job.0;
        self.unanswered = Bytes::new();
        self.stage = match handshake {
            Begun::ByPeer(hello) => {
                input = hello.into();
                Stage::Hello
            }
            Begun::Dial(dial) => Stage::Dial(dial),
            Begun::Already(handshake) => Stage::Handshake(handshake),
            Begun::Away => Stage::Failed,
        };
        input.append(&mut self.input);
        self.input = input;
    }

    /// Takes the result of a job. Its bytes go out with the next [`Layer::flush`].
    ///
    /// # Errors
    /// The handshake failed; call [`Layer::flush`] once for the alert.
    pub fn handle_result(&mut self, result: JobResult) -> Result<(), OpeningFault> {
        let Work { outcome, output, input, .. } = *result.0;
        self.output.append(&output);
        self.stage = match outcome {
            Ok(Next::More(handshake)) => Stage::Handshake(handshake),
            Ok(Next::Done(Finished { records, .. })) => {
                // What the thread did not use comes before what has come since.
                self.input.splice(..0, input);
                self.input_max = tls::RECORD_BYTES_MAX;
                Stage::Upgrade { tls: Some(Box::new(Tls::new(records))), head: Vec::new() }
            }
            Ok(Next::Nothing) => Stage::Failed,
            Err(error) => {
                self.stage = Stage::Failed;
                return Err(error.into());
            }
        };
        Ok(())
    }

    /// Writes what waits for the socket. False: it does not take all of it.
    ///
    /// # Errors
    /// The stream is broken.
    pub fn flush(&mut self, stream: &mut Stream) -> io::Result<bool> {
        if self.output.pending() > 0 {
            self.unanswered = Bytes::new();
        }
        self.output.flush(stream)
    }

    /// Tells the peer of a handshake that more came than is kept; [`Layer::flush`] sends it.
    fn put_alert(&mut self) {
        let mut alert = Vec::new();
        match &mut self.stage {
            Stage::Handshake(handshake) => _ = handshake.abort(&mut alert),
            Stage::Hello if self.kind.has_tls => tls::refuse_hello(&mut alert),
            _ => {}
        }
        self.output.append(&alert);
    }

    pub(super) fn pending(&self) -> usize {
        self.output.pending()
    }

    pub(super) fn records(&mut self) -> Option<&mut Records> {
        match &mut self.stage {
            Stage::Upgrade { tls: Some(tls), .. } => Some(&mut tls.records),
            _ => None,
        }
    }

    /// Goes on behind the handshake: to the frames, or to the HTTP request.
    fn upgrade(&mut self, origins: &Origins, now: Instant) -> Result<Step, OpeningFault> {
        let Stage::Upgrade { tls, head } = &mut self.stage else { return Ok(Step::Wait) };
        if !self.kind.has_websocket {
            let tls = tls.take().expect("a kind without WebSocket gets here by its handshake");
            return Ok(Step::Done(self.end(Layer::Tls(tls))));
        }
        match tls {
            Some(tls) => {
                let opened = tls.records.open(&mut self.input, now);
                head.extend_from_slice(&self.input[opened.plain.clone()]);
                self.input.drain(..opened.consumed);
                match opened.end {
                    None => {}
                    Some(tls::End::Closed) => return Err(OpeningFault::Left),
                    Some(tls::End::Fault(fault)) => {
                        let mut alert = Vec::new();
                        tls.records.alert(fault, &mut alert).ok();
                        self.output.append(&alert);
                        return Err(fault.into());
                    }
                }
            }
            None => head.append(&mut self.input),
        }
        let mut answer = Vec::new();
        let length = match upgrade::read(head, origins) {
            Ok(None) => return Ok(Step::Wait),
            Ok(Some(accepted)) => {
                accepted.answer(&mut answer);
                Ok(accepted.head_bytes)
            }
            Err(refusal) => {
                refusal.answer(&mut answer);
                Err(refusal)
            }
        };
        match tls {
            Some(tls) => {
                let mut sealed = Vec::new();
                tls.records.seal(&[&answer], &mut sealed)?;
                self.output.append(&sealed);
            }
            None => self.output.append(&answer),
        }
        let rest = head.split_off(length.map_err(OpeningFault::Upgrade)?);
        let layer = match tls.take() {
            Some(tls) if rest.is_empty() => {
                Layer::Wss(Box::new(Wss { tls: *tls, framing: Framing::default() }))
            }
            // A client may not speak before it has the answer (RFC 6455, 4.1).
            Some(_) => return Err(OpeningFault::Early),
            None => {
                self.input = rest;
                Layer::WebSocket(Framing::default())
            }
        };
        Ok(Step::Done(self.end(layer)))
    }

    /// Gives the layer what has come for it and what waits for the socket.
    fn end(&mut self, layer: Layer) -> Done {
        let (came, unsent) = (std::mem::take(&mut self.input), self.output.unsent());
        let layer = match layer {
            Layer::Tls(mut tls) => {
                tls.buffers.go_on(&came, unsent);
                Layer::Tls(tls)
            }
            Layer::Wss(mut wss) => {
                wss.tls.buffers.go_on(&came, unsent);
                Layer::Wss(wss)
            }
            _ => {
                let buffers = Buffers::of(came, Vec::new(), unsent.to_vec());
                Layer::WebSocket(WebSocket::default().with_buffers(buffers).into())
            }
        };
        self.output = Buffers::new();
        Done { layer: Some(layer), rest: Vec::new() }
    }

    pub(super) fn freeze(&mut self) -> Result<FrozenLayer, tls::Fault> {
        let kind = if matches!(self.stage, Stage::Proxy) { self.kind } else { self.kind.behind_proxy() };
        let (number, listener) = (kind.number(), self.listener);
        let frozen = FrozenLayer { kind: number, listener, is_opening: true, ..FrozenLayer::default() };
        let pending = self.output.unsent().to_vec();
        Ok(match &mut self.stage {
            Stage::Proxy | Stage::Hello => FrozenLayer { partial: self.input.clone(), ..frozen },
            Stage::Away | Stage::Handshake(_) if !self.unanswered.is_empty() => {
                FrozenLayer { partial: [&self.unanswered[..], &self.input].concat(), ..frozen }
            }
            Stage::Dial(_) | Stage::Away | Stage::Handshake(_) | Stage::Failed => {
                FrozenLayer { kind: HALF_DONE, ..frozen }
            }
            Stage::Upgrade { tls: None, head } => {
                FrozenLayer { partial: [&head[..], &self.input].concat(), pending, ..frozen }
            }
            Stage::Upgrade { tls: Some(tls), head } => FrozenLayer {
                listener,
                is_opening: true,
                plain: head.clone(),
                partial: self.input.clone(),
                pending,
                ..tls.freeze(kind)?
            },
        })
    }

    pub(super) fn thaw(frozen: FrozenLayer) -> Result<Option<Self>, String> {
        let FrozenLayer { kind, listener, records, partial, plain, pending, .. } = frozen;
        if kind == HALF_DONE {
            return Ok(None);
        }
        let kind = OpeningKind::of_number(kind).ok_or("a connection that opens has an unknown kind")?;
        let mut opening = Self::new(kind, listener);
        if !records.is_empty() {
            let records = Records::thaw(&records).map_err(|error| error.to_string())?;
            opening.stage = Stage::Upgrade { tls: Some(Box::new(Tls::new(records))), head: plain };
            opening.input_max = tls::RECORD_BYTES_MAX;
        }
        (opening.input, opening.output) = (partial, Buffers::of(Vec::new(), Vec::new(), pending));
        Ok(Some(opening))
    }
}

/// Kind of a frozen opening that cannot go on.
const HALF_DONE: u32 = 8;

impl OpeningKind {
    fn behind_proxy(self) -> Self {
        Self { is_proxied: false, ..self }
    }

    fn is_plain_but_proxied(self) -> bool {
        self.behind_proxy().is_plain()
    }
}

/// Returns whether a thread can do something with the bytes: a whole record, or what is not TLS, which it refuses. So a
/// client that sends byte by byte wakes no thread for each.
fn has_record(input: &[u8]) -> bool {
    match input {
        [20..=23, _, _, high, low, ..] => {
            input.len() >= HEADER_BYTES + usize::from(u16::from_be_bytes([*high, *low]))
        }
        [20..=23, ..] | [] => false,
        [..] => true,
    }
}

impl Stage {
    fn after_proxy(kind: OpeningKind) -> Self {
        if kind.has_websocket && !kind.has_tls {
            Self::Upgrade { tls: None, head: Vec::new() }
        } else {
            Self::Hello
        }
    }
}
