//! Questions to dispatch servers: one request over HTTPS, in a thread that may block until its deadline.
//!
//! Run-through: the core wants gateways, and a job asks `https://dispatch.example`. The server's certificate must be valid for
//! `dispatch.example`. The body goes to the core, which judges it; anything that is not a plain answer with status 200 is a
//! [`DispatchFault`]. Redirects are not followed.

use super::clock::Clock;
use super::endpoint::host_of;
use super::tls::{TlsSetupError, Trust};
use crate::core::{DISPATCH_ANSWER_BYTES_MAX, DispatchFault};
use httparse::{EMPTY_HEADER, Header, Response, Status};
use moorline_proto::time::Instant;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::Duration;

/// Dispatch servers of one client.
pub(super) const SERVERS_MAX: usize = 8;
/// Longest name of a region, in bytes.
const REGION_BYTES_MAX: usize = 32;
/// Longest head of an answer, in bytes.
const HEAD_BYTES_MAX: usize = 8 << 10;
/// Header lines of an answer.
const HEADERS_MAX: usize = 64;
/// Bytes of an answer on the wire, with what the pieces of a body cost.
const WIRE_BYTES_MAX: usize = HEAD_BYTES_MAX + 2 * DISPATCH_ANSWER_BYTES_MAX;
/// Addresses of a server's name that are tried.
const ADDRESSES_MAX: usize = 4;
/// Bytes read at once.
const READ_BYTES: usize = 4 << 10;

/// Address of a dispatch server as the application writes it: `https://host[:port]`, or `http://host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Server {
    is_tls: bool,
    /// `host:port`.
    place: String,
}

impl Server {
    /// Reads an address; `None`: it is not one.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (is_tls, place) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(place), _) => (true, place),
            (None, place) => (false, place?),
        };
        let place = place.strip_suffix('/').unwrap_or(place);
        let has_port = place.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let default = if is_tls { ":443" } else { ":80" };
        let place = if has_port { place.to_owned() } else { format!("{place}{default}") };
        let (host, _) = place.rsplit_once(':')?;
        let is_letter = |letter: char| letter.is_ascii_alphanumeric() || "-_.:[]".contains(letter);
        let is_bare = host.contains(':') && !host.starts_with('[');
        let is_host = !host.is_empty() && host.chars().all(is_letter) && !is_bare;
        is_host.then_some(Self { is_tls, place })
    }

    /// True if nobody on the way can read or change the answer, or there is no way.
    pub(super) fn is_safe(&self) -> bool {
        let host = host_of(&self.place);
        let is_loopback = host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
        self.is_tls || is_loopback || host.eq_ignore_ascii_case("localhost")
    }
}

/// Returns whether a region has a valid name; the empty one is any region.
pub(super) fn is_region(region: &str) -> bool {
    let is_letter = |letter: char| letter.is_ascii_alphanumeric() || "-_".contains(letter);
    region.len() <= REGION_BYTES_MAX && region.chars().all(is_letter)
}

/// Asks dispatch servers.
pub(super) struct Asker {
    /// Servers by the name that the core knows.
    servers: Vec<(Arc<str>, Server)>,
    region: String,
    /// `None`: no server needs TLS.
    tls: Option<Arc<ClientConfig>>,
    may_be_plain: bool,
    /// Time for a question and its answer.
    within: Duration,
}

impl Asker {
    pub(super) fn new(
        servers: Vec<(Arc<str>, Server)>,
        region: String,
        trust: &Trust,
        may_be_plain: bool,
        within: Duration,
    ) -> Result<Self, TlsSetupError> {
        let needs_tls = servers.iter().any(|(_, server)| server.is_tls);
        let tls = needs_tls.then(|| trust.of_web()).transpose()?;
        Ok(Self { servers, region, tls, may_be_plain, within })
    }

    /// Names of the servers.
    pub(super) fn names(&self) -> Arc<[Arc<str>]> {
        self.servers.iter().map(|(name, _)| Arc::clone(name)).collect()
    }

    /// Asks a server and waits for the answer; returns its body.
    pub(super) fn ask(&self, name: &str) -> Result<Vec<u8>, DispatchFault> {
        let deadline = Deadline { clock: Clock::new(), within: self.within };
        let unknown = || fault(&io::Error::from(io::ErrorKind::NotFound));
        let server = self
            .servers
            .iter()
            .find(|(known, _)| **known == *name)
            .map(|(_, server)| server)
            .ok_or_else(unknown)?;
        let stream = self.connect(server, &deadline).map_err(|error| fault(&error))?;
        let stream = Timed { stream, deadline };
        match self.tls.as_ref().filter(|_| server.is_tls) {
            None => exchange(stream, &self.request(server)),
            Some(config) => {
                let host = host_of(&server.place).to_owned();
                let host = ServerName::try_from(host).map_err(|error| fault(&io::Error::other(error)))?;
                let connection = ClientConnection::new(Arc::clone(config), host);
                let connection = connection.map_err(|error| fault(&io::Error::other(error)))?;
                exchange(StreamOwned::new(connection, stream), &self.request(server))
            }
        }
    }

    fn request(&self, server: &Server) -> String {
        let query = if self.region.is_empty() { String::new() } else { format!("?region={}", self.region) };
        format!(
            "GET /v1/endpoints{query} HTTP/1.1\r\nhost: {}\r\nuser-agent: moorline-sdk/{}\r\naccept: application/json\r\n\
             connection: close\r\n\r\n",
            server.place,
            env!("CARGO_PKG_VERSION")
        )
    }

    fn connect(&self, server: &Server, deadline: &Deadline) -> io::Result<TcpStream> {
        let addresses: Vec<SocketAddr> = server.place.to_socket_addrs()?.take(ADDRESSES_MAX).collect();
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for (number, address) in addresses.iter().enumerate() {
            if !server.is_tls && !self.may_be_plain && !address.ip().is_loopback() {
                return Err(io::Error::other(format!("{address} is not on this machine; use https://")));
            }
            // Each address has its share of the time that is left.
            let share = u32::try_from(addresses.len() - number).unwrap_or(1);
            match TcpStream::connect_timeout(
                address,
                (deadline.left()? / share).max(Duration::from_millis(1)),
            ) {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

/// Deadline of a question.
struct Deadline {
    /// Clock that began with the question.
    clock: Clock,
    within: Duration,
}

impl Deadline {
    /// Returns the time that is left.
    fn left(&self) -> io::Result<Duration> {
        let left = self.within.saturating_sub(self.clock.now().saturating_since(Instant::ZERO));
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}

/// A stream with one deadline for everything.
struct Timed {
    stream: TcpStream,
    deadline: Deadline,
}

impl Read for Timed {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.deadline.left()?))?;
        self.stream.read(into)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.deadline.left()?))?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

fn fault(error: &io::Error) -> DispatchFault {
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => DispatchFault::TimedOut,
        _ => DispatchFault::Unreachable { why: error.to_string().chars().take(256).collect() },
    }
}

/// Sends a request and reads the answer to its end.
pub(super) fn exchange(mut stream: impl Read + Write, request: &str) -> Result<Vec<u8>, DispatchFault> {
    let written = stream.write_all(request.as_bytes()).and_then(|()| stream.flush());
    written.map_err(|error| fault(&error))?;
    let (mut bytes, mut block) = (Vec::new(), [0; READ_BYTES]);
    loop {
        let count = match stream.read(&mut block) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read.map_err(|error| fault(&error))?,
        };
        bytes.extend_from_slice(&block[..count]);
        if let Some(body) = body_of(&bytes, count == 0)? {
            return Ok(body);
        }
        if count == 0 {
            return Err(fault(&io::ErrorKind::UnexpectedEof.into()));
        }
        if bytes.len() > WIRE_BYTES_MAX {
            return Err(DispatchFault::BadAnswer { why: "it has more than 40 KiB" });
        }
    }
}

/// Reads an answer. `None`: the rest of it has not come. `has_ended`: no more bytes come.
fn body_of(bytes: &[u8], has_ended: bool) -> Result<Option<Vec<u8>>, DispatchFault> {
    let bad = |why| Err(DispatchFault::BadAnswer { why });
    let mut headers = [EMPTY_HEADER; HEADERS_MAX];
    let mut head = Response::new(&mut headers);
    let rest = match head.parse(bytes) {
        Ok(Status::Complete(start)) if start <= HEAD_BYTES_MAX => &bytes[start..],
        Ok(Status::Partial) if bytes.len() <= HEAD_BYTES_MAX => return Ok(None),
        Ok(_) => return bad("its head has more than 8 KiB"),
        Err(_) => return bad("it is not HTTP"),
    };
    let status = head.code.unwrap_or(0);
    if status != 200 {
        let seconds = value(head.headers, "retry-after").and_then(|text| text.trim().parse().ok());
        let retry_after = Duration::from_secs(seconds.unwrap_or(0));
        return Err(DispatchFault::Refused { status, retry_after });
    }
    if let Some(coding) = value(head.headers, "transfer-encoding") {
        return if coding.trim().eq_ignore_ascii_case("chunked") {
            pieces_of(rest)
        } else {
            bad("its coding is unknown")
        };
    }
    match value(head.headers, "content-length").map(|text| text.trim().parse::<usize>()) {
        Some(Ok(length)) if length <= DISPATCH_ANSWER_BYTES_MAX => Ok(rest.get(..length).map(<[u8]>::to_vec)),
        Some(Ok(_)) => bad("it has more than 16 KiB"),
        Some(Err(_)) => bad("its length is not a number"),
        None if rest.len() > DISPATCH_ANSWER_BYTES_MAX => bad("it has more than 16 KiB"),
        None => Ok(has_ended.then(|| rest.to_vec())),
    }
}

/// Puts the pieces of a chunked body together.
fn pieces_of(mut rest: &[u8]) -> Result<Option<Vec<u8>>, DispatchFault> {
    let mut body = Vec::new();
    loop {
        let (start, size) = match httparse::parse_chunk_size(rest) {
            Ok(Status::Complete(piece)) => piece,
            Ok(Status::Partial) => return Ok(None),
            Err(_) => return Err(DispatchFault::BadAnswer { why: "its pieces have no sizes" }),
        };
        if size == 0 {
            return Ok(Some(body));
        }
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        if size > DISPATCH_ANSWER_BYTES_MAX - body.len() {
            return Err(DispatchFault::BadAnswer { why: "it has more than 16 KiB" });
        }
        // The line end behind the piece belongs to it.
        let Some(piece) = rest.get(start..start + size + 2) else { return Ok(None) };
        body.extend_from_slice(&piece[..size]);
        rest = &rest[start + size + 2..];
    }
}

fn value<'a>(headers: &[Header<'a>], name: &str) -> Option<&'a str> {
    let header = headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
    std::str::from_utf8(header.value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(answer: &str) -> Result<Option<String>, DispatchFault> {
        let body = body_of(answer.as_bytes(), true)?;
        Ok(body.map(|body| String::from_utf8(body).expect("text")))
    }

    #[test]
    fn a_body_has_a_length_or_pieces_or_ends_with_the_connection() {
        let hi = Ok(Some("hi".to_owned()));
        assert_eq!(read("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"), hi);
        assert_eq!(
            read("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nh\r\n1;x=y\r\ni\r\n0\r\n\r\n"),
            hi
        );
        assert_eq!(read("HTTP/1.0 200 OK\r\n\r\nhi"), hi);
        for half in [
            "HTTP/1.1 200",
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi",
        ] {
            assert_eq!(read(half), Ok(None), "{half}");
        }
        assert_eq!(body_of(b"HTTP/1.0 200 OK\r\n\r\nh", false), Ok(None), "more may come");
    }

    #[test]
    fn everything_else_is_a_fault_of_its_own() {
        let refused = |status, seconds| {
            Err(DispatchFault::Refused { status, retry_after: Duration::from_secs(seconds) })
        };
        assert_eq!(read("HTTP/1.1 503 No\r\nRetry-After: 5\r\n\r\n"), refused(503, 5));
        assert_eq!(read("HTTP/1.1 302 Found\r\nLocation: https://evil.example\r\n\r\n"), refused(302, 0));
        let many = "x: y\r\n".repeat(65);
        let long = format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(8 << 10));
        let large = format!("HTTP/1.0 200 OK\r\n\r\n{}", "x".repeat((16 << 10) + 1));
        for answer in [
            "SSH-2.0-x\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 16385\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4001\r\n",
            &format!("HTTP/1.1 200 OK\r\n{many}\r\n"),
            &long,
            &large,
        ] {
            let bad = matches!(read(answer), Err(DispatchFault::BadAnswer { .. }));
            assert!(bad, "{}", &answer[..answer.len().min(100)]);
        }
    }

    proptest::proptest! {
        #[test]
        fn whatever_a_server_says_is_a_bounded_body_or_a_fault(
            head in "HTTP/1.[01] 200 [ -~]{0,8}\r\n(Content-Length: [0-9]{0,6}\r\n|Transfer-Encoding: chunked\r\n)?\r\n",
            rest in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200),
            pieces in "([0-9a-f]{1,5}\r\n[a-z]{0,20}\r\n){0,5}",
            has_ended: bool,
        ) {
            for tail in [&rest[..], pieces.as_bytes()] {
                let bytes = [head.as_bytes(), tail].concat();
                if let Ok(Some(body)) = body_of(&bytes, has_ended) {
                    proptest::prop_assert!(body.len() <= DISPATCH_ANSWER_BYTES_MAX);
                }
            }
        }
    }

    #[test]
    fn a_server_is_written_with_its_scheme() {
        let parsed = |text: &str| Server::parse(text).map(|it| (it.place.clone(), it.is_safe()));
        assert_eq!(parsed("https://dispatch.example"), Some(("dispatch.example:443".into(), true)));
        assert_eq!(parsed("https://dispatch.example:7300/"), Some(("dispatch.example:7300".into(), true)));
        assert_eq!(parsed("http://127.0.0.1:7300"), Some(("127.0.0.1:7300".into(), true)));
        assert_eq!(parsed("http://[::1]:7300"), Some(("[::1]:7300".into(), true)));
        assert_eq!(parsed("http://dispatch.example"), Some(("dispatch.example:80".into(), false)));
        for text in [
            "",
            "dispatch.example",
            "https://",
            "https://a/b",
            "https://u@h",
            "https://h?x",
            "https://::1:1",
            "https://h\r\nx",
        ] {
            assert_eq!(Server::parse(text), None, "{text:?}");
        }
        assert!(is_region("") && is_region("eu-1") && !is_region("a b") && !is_region(&"x".repeat(33)));
    }
}
