//! The HTTP request that makes a connection a WebSocket (RFC 6455 section 4), without sockets.
//!
//! [`read`] looks at the first bytes of a connection: it needs more, it accepts, or it refuses with an answer that says
//! what is wrong. Extensions are never agreed on.
//!
//! | rule | answer |
//! |---|---|
//! | a head of at most [`HEAD_BYTES_MAX`] bytes and [`HEADERS_MAX`] lines | 431 |
//! | HTTP, lines that end with CRLF, no body | 400 |
//! | `GET` | 405 |
//! | HTTP/1.1 | 505 |
//! | `Host`, once | 400 |
//! | `Connection: upgrade` and `Upgrade: websocket` | 426 |
//! | `Sec-WebSocket-Version: 13` | 426 |
//! | `Sec-WebSocket-Key` of 16 bytes, once | 400 |
//! | `Origin`, if there is one, in the list of [`Origins`] | 403 |
//! | `Sec-WebSocket-Protocol` offers [`PROTOCOL`] | 400 |
//!
//! A browser always sends `Origin`; a request without one is an application's, and is accepted. Example: a page of
//! `https://chat.example` connects. `Origin: https://chat.example` is in the list, and the answer is 101.

mod origins;
#[cfg(test)]
mod tests;

pub use origins::{ORIGINS_MAX, OriginError, Origins};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use httparse::{Error, Request, Status};
use sha1::{Digest as _, Sha1};

/// Longest head of a request, in bytes.
pub const HEAD_BYTES_MAX: usize = 8 << 10;
/// Header lines of a request.
pub const HEADERS_MAX: usize = 64;
/// Subprotocol that a client must offer.
pub const PROTOCOL: &str = "moorline.v1";

/// Text that RFC 6455 puts behind the key before it is hashed.
const KEY_SUFFIX: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const KEY_BYTES: usize = 16;
/// Characters of a key, and of its hash, in base64.
const KEY_CHARS: usize = 24;
const ACCEPT_CHARS: usize = 28;

/// A request that becomes a WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Bytes of the request's head; WebSocket frames begin behind it.
    pub head_bytes: usize,
    accept: [u8; ACCEPT_CHARS],
}

/// Reason why a request does not become a WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The bytes are not the head of an HTTP/1 request.
    #[error("the head of the request is not valid HTTP/1.1")]
    BadHead,
    /// A request with a body.
    #[error("the request has a body; send none")]
    Body,
    /// More than [`HEAD_BYTES_MAX`] bytes or [`HEADERS_MAX`] lines.
    #[error("the head of the request has more than {HEAD_BYTES_MAX} bytes or {HEADERS_MAX} lines")]
    TooLarge,
    /// Another method than GET.
    #[error("the method is not GET")]
    BadMethod,
    /// HTTP/1.0.
    #[error("the version of HTTP is not 1.1")]
    BadHttpVersion,
    /// A header that must be there once is missing or there twice.
    #[error("the request has no `Host`, or more than one")]
    BadHost,
    /// An ordinary request.
    #[error("this address speaks WebSocket; send `Connection: upgrade` and `Upgrade: websocket`")]
    NoUpgrade,
    /// Another version than 13.
    #[error("the version of WebSocket is not 13")]
    BadVersion,
    /// The key is missing, there twice, or has not 16 bytes.
    #[error("the request has no `Sec-WebSocket-Key` of 16 bytes in base64, or more than one")]
    BadKey,
    /// A page of an origin that is not in the list.
    #[error("pages of this origin are not allowed here; the operator can add the origin")]
    ForeignOrigin,
    /// [`PROTOCOL`] is not offered.
    #[error("`Sec-WebSocket-Protocol` does not offer {PROTOCOL}")]
    NoProtocol,
}

/// Reads the request at the beginning of a connection. `Ok(None)`: more bytes are needed, at most [`HEAD_BYTES_MAX`]
/// in all.
///
/// # Errors
/// [`Refusal`]: send its [answer](Refusal::answer) and end the connection. Bytes that are not HTTP are refused at once.
pub fn read(input: &[u8], origins: &Origins) -> Result<Option<Accepted>, Refusal> {
    let head = &input[..input.len().min(HEAD_BYTES_MAX)];
    // What comes behind the first fault has no say, or the verdict would depend on how the bytes come.
    let (head, is_bare) = first_bare_line(head).map_or((head, false), |line_end| (&head[..line_end], true));
    let mut lines = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = Request::new(&mut lines);
    let head_bytes = match request.parse(head) {
        Ok(Status::Complete(bytes)) if is_bare && bytes == head.len() => return Err(Refusal::BadHead),
        Ok(Status::Complete(bytes)) => bytes,
        Ok(Status::Partial) if is_bare => return Err(Refusal::BadHead),
        Ok(Status::Partial) if head.len() == HEAD_BYTES_MAX => return Err(Refusal::TooLarge),
        Ok(Status::Partial) => return Ok(None),
        Err(Error::TooManyHeaders) => return Err(Refusal::TooLarge),
        Err(_) => return Err(Refusal::BadHead),
    };
    let accept = judge(&request, origins)?;
    Ok(Some(Accepted { head_bytes, accept }))
}

/// Judges a whole head; the hash of its key.
fn judge(request: &Request<'_, '_>, origins: &Origins) -> Result<[u8; ACCEPT_CHARS], Refusal> {
    if request.version != Some(1) {
        return Err(Refusal::BadHttpVersion);
    }
    if request.method != Some("GET") {
        return Err(Refusal::BadMethod);
    }
    let has_body = |name| values(request, name).any(|value| value != b"0");
    if has_body("content-length") || has_body("transfer-encoding") {
        return Err(Refusal::Body);
    }
    once(request, "host").filter(|host| !host.is_empty()).ok_or(Refusal::BadHost)?;
    if !lists(request, "connection", "upgrade") || !lists(request, "upgrade", "websocket") {
        return Err(Refusal::NoUpgrade);
    }
    if once(request, "sec-websocket-version") != Some(b"13") {
        return Err(Refusal::BadVersion);
    }
    let key = once(request, "sec-websocket-key").filter(|key| is_key(key)).ok_or(Refusal::BadKey)?;
    let mut pages = values(request, "origin");
    match (pages.next(), pages.next()) {
        (None, _) => {}
        (Some(page), None) if origins.contains(page) => {}
        _ => return Err(Refusal::ForeignOrigin),
    }
    // Names of subprotocols are compared as they are written (RFC 6455 section 4.1).
    let offers =
        |value: &[u8]| value.split(|byte| *byte == b',').any(|item| item.trim_ascii() == PROTOCOL.as_bytes());
    if !values(request, "sec-websocket-protocol").any(offers) {
        return Err(Refusal::NoProtocol);
    }
    Ok(accept_of(key))
}

/// The values of a header, without white space around them.
fn values<'a>(request: &'a Request<'_, '_>, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    let lines = request.headers.iter().filter(move |line| line.name.eq_ignore_ascii_case(name));
    lines.map(|line| line.value.trim_ascii())
}

/// The value of a header that must be there once.
fn once<'a>(request: &'a Request<'_, '_>, name: &'a str) -> Option<&'a [u8]> {
    let mut values = values(request, name);
    values.next().filter(|_| values.next().is_none())
}

/// Returns whether a header's list has this word, in any letter case.
fn lists(request: &Request<'_, '_>, name: &str, word: &str) -> bool {
    let is_word = |item: &[u8]| item.trim_ascii().eq_ignore_ascii_case(word.as_bytes());
    values(request, name).any(|value| value.split(|byte| *byte == b',').any(is_word))
}

fn is_key(key: &[u8]) -> bool {
    let mut bytes = [0; KEY_CHARS];
    key.len() == KEY_CHARS && STANDARD.decode_slice(key, &mut bytes) == Ok(KEY_BYTES)
}

fn accept_of(key: &[u8]) -> [u8; ACCEPT_CHARS] {
    let hash = Sha1::new().chain_update(key).chain_update(KEY_SUFFIX).finalize();
    let mut accept = [0; ACCEPT_CHARS];
    STANDARD.encode_slice(hash, &mut accept).expect("20 bytes become 28 characters");
    accept
}

/// Returns the place behind the first line that ends with LF alone: a proxy in front may see other lines in such a head.
fn first_bare_line(head: &[u8]) -> Option<usize> {
    let is_bare = |at: &usize| head[*at] == b'\n' && (*at == 0 || head[at - 1] != b'\r');
    (0..head.len()).find(is_bare).map(|at| at + 1)
}

impl Accepted {
    /// Appends the answer, 101.
    pub fn answer(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n",
        );
        out.extend_from_slice(b"Sec-WebSocket-Accept: ");
        out.extend_from_slice(&self.accept);
        out.extend_from_slice(b"\r\nSec-WebSocket-Protocol: ");
        out.extend_from_slice(PROTOCOL.as_bytes());
        out.extend_from_slice(b"\r\n\r\n");
    }
}

impl Refusal {
    /// Every refusal.
    pub const ALL: [Self; 11] = [
        Self::BadHead,
        Self::Body,
        Self::TooLarge,
        Self::BadMethod,
        Self::BadHttpVersion,
        Self::BadHost,
        Self::NoUpgrade,
        Self::BadVersion,
        Self::BadKey,
        Self::ForeignOrigin,
        Self::NoProtocol,
    ];

    /// Status line of the answer behind the version, and a header of its own.
    const fn status(self) -> (&'static str, &'static str) {
        match self {
            Self::BadHead | Self::Body | Self::BadHost | Self::BadKey | Self::NoProtocol => {
                ("400 Bad Request", "")
            }
            Self::ForeignOrigin => ("403 Forbidden", ""),
            Self::BadMethod => ("405 Method Not Allowed", "Allow: GET\r\n"),
            Self::NoUpgrade => ("426 Upgrade Required", "Upgrade: websocket\r\n"),
            Self::BadVersion => {
                ("426 Upgrade Required", "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n")
            }
            Self::TooLarge => ("431 Request Header Fields Too Large", ""),
            Self::BadHttpVersion => ("505 HTTP Version Not Supported", ""),
        }
    }

    /// The label in metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::BadHead => "bad_head",
            Self::Body => "body",
            Self::TooLarge => "too_large",
            Self::BadMethod => "bad_method",
            Self::BadHttpVersion => "bad_http_version",
            Self::BadHost => "bad_host",
            Self::NoUpgrade => "no_upgrade",
            Self::BadVersion => "bad_version",
            Self::BadKey => "bad_key",
            Self::ForeignOrigin => "foreign_origin",
            Self::NoProtocol => "no_protocol",
        }
    }

    /// Appends the answer: a status, and the reason as text. It repeats nothing of the request.
    pub fn answer(self, out: &mut Vec<u8>) {
        let (status, header) = self.status();
        let text = format!("{self}\n");
        let length = text.len();
        let answer = format!(
            "HTTP/1.1 {status}\r\nConnection: close\r\n{header}Content-Type: text/plain; charset=utf-8\r\n\
             Content-Length: {length}\r\n\r\n{text}"
        );
        out.extend_from_slice(answer.as_bytes());
    }
}
