//! As much of HTTP/1.1 (RFC 9112) as the API needs: requests with a Content-Length, kept connections, answers.

use moorline_proto::time::Instant;
use serde_json::{Value, json};
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

/// Bytes of a request's head.
const HEAD_MAX: usize = 8 << 10;
const HEADERS_MAX: usize = 32;

/// What a request may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Bytes of the body.
    pub(super) body_max: usize,
    /// Until a request begins.
    pub(super) idle: Duration,
    /// Until it is complete.
    pub(super) slow: Duration,
}

/// One request.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) method: String,
    /// Without the query.
    pub(super) path: String,
    pub(super) authorization: Option<Vec<u8>>,
    pub(super) body: Vec<u8>,
    pub(super) keeps_alive: bool,
}

/// One answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    content_type: &'static str,
    body: Vec<u8>,
    retry_after_s: Option<u32>,
    allow: Option<&'static str>,
    /// To HEAD: everything but the body.
    is_head_only: bool,
}

impl Answer {
    pub(super) fn json(value: &Value) -> Self {
        Self::text("application/json", value.to_string())
    }

    pub(super) fn text(content_type: &'static str, body: String) -> Self {
        let (body, retry_after_s, allow) = (body.into_bytes(), None, None);
        Self { status: 200, content_type, body, retry_after_s, allow, is_head_only: false }
    }

    /// As it answers this request.
    pub(super) fn to(mut self, request: &Request) -> Self {
        self.is_head_only = request.method == "HEAD";
        self
    }

    /// The path takes these methods, and not the one that was asked for.
    pub(super) fn not_allowed(allow: &'static str) -> Self {
        let mut answer = Self::error(405, "INVALID", &format!("this path takes {allow}"));
        answer.allow = Some(allow);
        answer
    }

    pub(super) fn error(status: u16, code: &str, reason: &str) -> Self {
        let mut answer = Self::json(&json!({ "code": code, "reason": reason }));
        answer.status = status;
        answer.retry_after_s = (status == 503).then_some(1);
        answer
    }
}

/// Bytes of a connection that were read and are not used yet.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    bytes: Vec<u8>,
}

/// What the head says.
struct Head {
    request: Request,
    bytes: usize,
    body_bytes: usize,
    waits_for_go: bool,
}

impl Incoming {
    /// The next request; `None`: the connection is over.
    ///
    /// # Errors
    /// What to answer before closing.
    pub(super) fn read(
        &mut self,
        stream: &TcpStream,
        limits: Limits,
        now: impl Fn() -> Instant,
    ) -> Result<Option<Request>, Answer> {
        let (mut deadline, mut has_begun) = (now() + limits.idle, !self.bytes.is_empty());
        if has_begun {
            deadline = now() + limits.slow;
        }
        let mut has_said_go = false;
        loop {
            if let Some(head) = self.head(limits.body_max)? {
                let whole = head.bytes + head.body_bytes;
                if self.bytes.len() >= whole {
                    let body = self.bytes[head.bytes..whole].to_vec();
                    self.bytes.drain(..whole);
                    return Ok(Some(Request { body, ..head.request }));
                }
                if head.waits_for_go && !std::mem::replace(&mut has_said_go, true) {
                    (&*stream).write_all(b"HTTP/1.1 100 Continue\r\n\r\n").ok();
                }
            }
            match self.fill(stream, deadline, &now) {
                Ok(0) => return Ok(None),
                Ok(_) if !std::mem::replace(&mut has_begun, true) => deadline = now() + limits.slow,
                Ok(_) => {}
                Err(_) if has_begun => {
                    return Err(Answer::error(408, "TIMEOUT", "the request took too long"));
                }
                Err(_) => return Ok(None),
            }
        }
    }

    fn fill(
        &mut self,
        stream: &TcpStream,
        deadline: Instant,
        now: &impl Fn() -> Instant,
    ) -> io::Result<usize> {
        let mut chunk = [0; 8 << 10];
        loop {
            let left = deadline.saturating_since(now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            stream.set_read_timeout(Some(left))?;
            match (&*stream).read(&mut chunk) {
                Ok(count) => {
                    self.bytes.extend_from_slice(&chunk[..count]);
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// `None`: it is not complete.
    fn head(&self, body_max: usize) -> Result<Option<Head>, Answer> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut parsed = httparse::Request::new(&mut headers);
        let seen = &self.bytes[..self.bytes.len().min(HEAD_MAX)];
        let bytes = match parsed.parse(seen) {
            Ok(httparse::Status::Complete(bytes)) => bytes,
            Ok(httparse::Status::Partial) if self.bytes.len() < HEAD_MAX => return Ok(None),
            Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
                return Err(Answer::error(431, "TOO_LARGE", "the head has at most 8 KiB and 32 headers"));
            }
            Err(_) => return Err(Answer::error(400, "INVALID", "this is no HTTP/1.1 request")),
        };
        let headers = &*parsed.headers;
        let all = |name| values(headers, name);
        let is_said = |name, word: &str| {
            let holds = |value: &str| value.split(',').any(|it| it.trim().eq_ignore_ascii_case(word));
            all(name).any(|value| std::str::from_utf8(value).is_ok_and(holds))
        };
        if all("transfer-encoding").next().is_some() {
            return Err(Answer::error(411, "INVALID", "a body needs a Content-Length"));
        }
        let mut lengths = all("content-length");
        let length = lengths.next();
        if lengths.any(|other| Some(other) != length) {
            return Err(Answer::error(400, "INVALID", "two different values of Content-Length"));
        }
        let is_number = |text: &&str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let body_bytes = match length.map(|value| std::str::from_utf8(value).ok().filter(is_number)) {
            None => 0,
            Some(text) => text
                .and_then(|text| text.parse().ok())
                .ok_or_else(|| Answer::error(400, "INVALID", "Content-Length is no number"))?,
        };
        if body_bytes > body_max {
            return Err(Answer::error(413, "TOO_LARGE", "the body is over api.body_max"));
        }
        let is_old = parsed.version == Some(0);
        let target = parsed.path.unwrap_or_default();
        let request = Request {
            method: parsed.method.unwrap_or_default().to_owned(),
            path: path_of(target).to_owned(),
            authorization: all("authorization").next().map(<[u8]>::to_vec),
            body: Vec::new(),
            keeps_alive: !is_old && !is_said("connection", "close"),
        };
        let waits_for_go = body_bytes > 0 && is_said("expect", "100-continue");
        Ok(Some(Head { request, bytes, body_bytes, waits_for_go }))
    }
}

/// Without the query, and of the absolute form without the authority (RFC 9112, 3.2).
fn path_of(target: &str) -> &str {
    let target = target.split('?').next().unwrap_or_default();
    let rest = target.strip_prefix("http://").or_else(|| target.strip_prefix("https://"));
    rest.map_or(target, |rest| rest.find('/').map_or("/", |at| &rest[at..]))
}

/// The values of all headers of this name.
fn values<'a>(headers: &'a [httparse::Header<'a>], name: &'static str) -> impl Iterator<Item = &'a [u8]> {
    headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
}

/// Writes an answer, within `slow`.
pub(super) fn write(
    stream: &TcpStream,
    answer: &Answer,
    keeps_alive: bool,
    slow: Duration,
) -> io::Result<()> {
    let Answer { status, content_type, body, retry_after_s, allow, is_head_only } = answer;
    let mut wire = format!("HTTP/1.1 {status} {}\r\n", reason_of(*status)).into_bytes();
    write!(wire, "content-type: {content_type}\r\ncontent-length: {}\r\n", body.len())?;
    if let Some(seconds) = retry_after_s {
        write!(wire, "retry-after: {seconds}\r\n")?;
    }
    if let Some(allow) = allow {
        write!(wire, "allow: {allow}\r\n")?;
    }
    if *status == 401 {
        write!(wire, "www-authenticate: Bearer\r\n")?;
    }
    write!(wire, "connection: {}\r\n\r\n", if keeps_alive { "keep-alive" } else { "close" })?;
    if !is_head_only {
        wire.extend_from_slice(body);
    }
    stream.set_write_timeout(Some(slow))?;
    (&*stream).write_all(&wire)
}

const fn reason_of(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        411 => "Length Required",
        413 => "Content Too Large",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Error",
    }
}
