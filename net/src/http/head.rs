//! Rules for the head of a request that hyper does not have: line ends, and where the request comes from.
//!
//! A page in a browser may reach a server on loopback or in a private network: by a name that resolves to its
//! address (DNS rebinding), or from another origin. The `Host` header of the first names the page's own host,
//! the `Origin` header of the second the page. Example: a page of `http://evil.example` posts to
//! `http://127.0.0.1:7200/v1/kick`. The browser adds `Origin: http://evil.example`, and the answer is 403.

use super::Refusal;
use super::address::Peer;
use hyper::header::{AUTHORIZATION, HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN};
use hyper::http::request::Parts;
use hyper::{Method, Uri, Version};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of a header line that are kept, to read `Content-Length`: 20 digits and white space fit.
const LINE_BYTES_KEPT: usize = 64;
const CONTENT_LENGTH: &[u8] = b"content-length:";
const TRANSFER_ENCODING: &[u8] = b"transfer-encoding:";

/// A request whose body is not read yet.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// Method of the request.
    pub method: &'a Method,
    /// Headers of the request.
    pub headers: &'a HeaderMap,
    /// Visitor, as the system names it.
    pub peer: Peer,
    pub(super) uri: &'a Uri,
}

impl Head<'_> {
    /// The path without query and authority.
    pub fn path(&self) -> &str {
        self.uri.path()
    }
}

/// Checks where a request comes from. `names`: host names that the server has beside its IP addresses.
///
/// # Errors
/// [`Refusal::BadHead`]: a header that must be there once is not. [`Refusal::WrongHost`]: the request is for
/// another host. [`Refusal::ForeignOrigin`]: a page of another origin sent it.
pub(super) fn check(head: &Parts, names: &[String]) -> Result<(), Refusal> {
    let host = only(&head.headers, &HOST)?;
    only(&head.headers, &AUTHORIZATION)?;
    // HTTP/1.0 knows no Host; no browser speaks it.
    if host.is_none() && head.version != Version::HTTP_10 {
        return Err(Refusal::BadHead);
    }
    let host = host.map(|host| host.to_str().map_err(|_| Refusal::WrongHost)).transpose()?;
    let of_uri = head.uri.authority().map(hyper::http::uri::Authority::as_str);
    if ![host, of_uri].into_iter().flatten().all(|host| is_own(host, names)) {
        return Err(Refusal::WrongHost);
    }
    match only(&head.headers, &ORIGIN)?.map(HeaderValue::to_str) {
        None => Ok(()),
        Some(Ok(origin)) if host.is_some_and(|host| is_origin_of(origin, host)) => Ok(()),
        Some(_) => Err(Refusal::ForeignOrigin),
    }
}

/// The value of a header that may be there once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a HeaderValue>, Refusal> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() { Err(Refusal::BadHead) } else { Ok(first) }
}

/// True if a page of `origin` was served by `host`: the browser leaves out the port of its scheme.
fn is_origin_of(origin: &str, host: &str) -> bool {
    let same = |scheme: &str, port: &str| {
        let of_page = origin.strip_prefix(scheme);
        let host = host.strip_suffix(port).unwrap_or(host);
        of_page.is_some_and(|page| page.strip_suffix(port).unwrap_or(page).eq_ignore_ascii_case(host))
    };
    same("http://", ":80") || same("https://", ":443")
}

/// True if `host`, with or without a port, is an IP address, `localhost` or one of `names`.
fn is_own(host: &str, names: &[String]) -> bool {
    if let Some(rest) = host.strip_prefix('[') {
        let Some((ip, port)) = rest.split_once(']') else { return false };
        return ip.parse::<Ipv6Addr>().is_ok() && is_port(port);
    }
    let (name, port) = host.find(':').map_or((host, ""), |at| host.split_at(at));
    is_port(port)
        && (name.parse::<Ipv4Addr>().is_ok()
            || name.eq_ignore_ascii_case("localhost")
            || names.iter().any(|own| own.eq_ignore_ascii_case(name)))
}

/// True for nothing, and for a colon with a port.
fn is_port(text: &str) -> bool {
    let digits = text.strip_prefix(':').unwrap_or(text);
    let has_colon = text.len() > digits.len();
    text.is_empty() || has_colon && digits.len() <= 5 && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// True if a server may be told this name in its settings: without a port, not an IP address.
pub fn is_host_name(name: &str) -> bool {
    let is_part = |part: &str| {
        (1..=63).contains(&part.len())
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    name.len() <= 253 && name.split('.').all(is_part) && name.parse::<IpAddr>().is_err()
}

/// Follows the bytes of a connection, and finds heads that end a line with LF alone: a proxy in front may see
/// other lines in such a head than hyper does.
///
/// Bodies are skipped by their `Content-Length`. A head whose length is not one plain number is refused here; one
/// with `Transfer-Encoding` ends the scan, because its connection ends with the answer 411.
#[derive(Debug, Default)]
pub(super) struct LineEnds {
    state: State,
    /// First bytes of the current line.
    line: Vec<u8>,
    /// Bytes of the current line, without those of its end.
    line_bytes: u64,
    has_cr: bool,
    has_request_line: bool,
    length: Option<u64>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Head,
    /// Bytes of the body that are still to come.
    Body(u64),
    /// Nothing more is looked at.
    Over,
}

impl LineEnds {
    /// Takes bytes that were read. False: a head is not valid.
    pub(super) fn take(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            match self.state {
                State::Over => return true,
                State::Body(left) => {
                    let skipped = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    bytes = &bytes[skipped..];
                    let left = left - skipped as u64;
                    self.state = if left == 0 { State::Head } else { State::Body(left) };
                }
                State::Head => {
                    let byte = bytes[0];
                    bytes = &bytes[1..];
                    if !self.take_byte(byte) {
                        return false;
                    }
                }
            }
        }
        true
    }

    fn take_byte(&mut self, byte: u8) -> bool {
        let had_cr = std::mem::replace(&mut self.has_cr, byte == b'\r');
        match byte {
            b'\n' => had_cr && self.end_line(),
            b'\r' => !had_cr,
            _ if had_cr => false,
            _ => {
                self.line_bytes += 1;
                if self.line.len() < LINE_BYTES_KEPT {
                    self.line.push(byte.to_ascii_lowercase());
                }
                true
            }
        }
    }

    fn end_line(&mut self) -> bool {
        let (line, bytes) = (std::mem::take(&mut self.line), std::mem::take(&mut self.line_bytes));
        if bytes == 0 {
            if self.has_request_line {
                self.has_request_line = false;
                let length = self.length.take().unwrap_or(0);
                self.state = if length == 0 { State::Head } else { State::Body(length) };
            }
            return true; // empty lines before a request are allowed (RFC 9112, 2.2)
        }
        if !std::mem::replace(&mut self.has_request_line, true) {
            return true;
        }
        if line.starts_with(TRANSFER_ENCODING) {
            self.state = State::Over;
        } else if let Some(value) = line.strip_prefix(CONTENT_LENGTH) {
            let digits = value.trim_ascii();
            let is_number = bytes <= LINE_BYTES_KEPT as u64
                && !digits.is_empty()
                && digits.iter().all(u8::is_ascii_digit)
                && self.length.is_none();
            let number = str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
            self.length = number.filter(|_| is_number);
            return self.length.is_some();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_localhost_and_own_names_are_this_server() {
        let names = ["gw.internal".to_owned()];
        for own in [
            "127.0.0.1",
            "127.0.0.1:7200",
            "[::1]:80",
            "[fe80::1]",
            "LocalHost:1",
            "GW.internal",
            "gw.internal:7200",
            "10.0.0.1:",
        ] {
            assert!(is_own(own, &names), "{own}");
        }
        for foreign in [
            "",
            "evil.example",
            "evil.example:7200",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "localhost.",
            "gw.internal.evil.example",
            "user@127.0.0.1",
            "127.0.0.1:80@evil.example",
            "127.0.0.1:x",
            "127.1",
            "0x7f.0.0.1",
            "[::1",
            "[::1]evil.example",
            "[127.0.0.1]",
            "::1",
            "127.0.0.1:123456",
        ] {
            assert!(!is_own(foreign, &names), "{foreign}");
        }
        assert!(is_host_name("gw.internal") && is_host_name("a_b-c"));
        for wrong in ["", "a..b", "127.0.0.1", "a:1", "*.example", &"x".repeat(64)] {
            assert!(!is_host_name(wrong), "{wrong}");
        }
    }

    #[test]
    fn an_origin_is_that_of_the_host_or_foreign() {
        assert!(is_origin_of("http://127.0.0.1:7200", "127.0.0.1:7200"));
        assert!(is_origin_of("http://localhost", "localhost:80") && is_origin_of("https://a", "a:443"));
        for (origin, host) in [
            ("null", "127.0.0.1"),
            ("http://evil.example", "127.0.0.1"),
            ("http://127.0.0.1:3000", "127.0.0.1:7200"),
            ("http://127.0.0.1", "127.0.0.1:7200"),
            ("file://", ""),
            ("127.0.0.1:7200", "127.0.0.1:7200"),
        ] {
            assert!(!is_origin_of(origin, host), "{origin} {host}");
        }
    }

    /// All of it at once, and byte by byte.
    fn takes(bytes: &[u8]) -> bool {
        let whole = LineEnds::default().take(bytes);
        let mut lines = LineEnds::default();
        let by_byte = bytes.iter().all(|byte| lines.take(&[*byte]));
        assert_eq!(whole, by_byte, "{}", String::from_utf8_lossy(bytes));
        whole
    }

    #[test]
    fn lines_of_heads_end_with_cr_and_lf_and_bodies_are_free() {
        for good in [
            &b"GET / HTTP/1.1\r\nhost: a\r\n\r\nGET / HTTP/1.1\r\n\r\n"[..],
            b"\r\n\r\nPOST / HTTP/1.1\r\nContent-Length:  3 \r\n\r\n\n\r\rGET / HTTP/1.1\r\n\r\n",
            b"POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3\n",
            b"GET / HT",
        ] {
            assert!(takes(good), "{}", String::from_utf8_lossy(good));
        }
        for bad in [
            &b"GET / HTTP/1.1\nhost: a\r\n\r\n"[..],
            b"GET / HTTP/1.1\r\nhost: a\n\r\n",
            b"GET / HTTP/1.1\r\nhost: a\r\n\n",
            b"GET / HTTP/1.1\r\nhost: a\rb: c\r\n\r\n",
            b"GET / HTTP/1.1\r\nhost: a\r\r\n",
            b"\nGET / HTTP/1.1\r\n",
            b"POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\n",
            b"POST / HTTP/1.1\r\ncontent-length: +1\r\n\r\n",
            b"POST / HTTP/1.1\r\ncontent-length: 1, 1\r\n\r\n",
            b"POST / HTTP/1.1\r\ncontent-length:\r\n\r\n",
            b"POST / HTTP/1.1\r\ncontent-length: 3\r\n\r\nabcGET /\n",
        ] {
            assert!(!takes(bad), "{}", String::from_utf8_lossy(bad));
        }
    }
}
