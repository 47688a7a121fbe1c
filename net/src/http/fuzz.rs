//! Fuzz body of the parts of HTTP that are this project's own: line ends of heads, and where a request comes from.
//!
//! The first byte of an input chooses. Even: the rest are the bytes of a connection. Odd: the rest are lines, the first one
//! the target of the request, the others its headers.

use super::head::{LineEnds, check};
use super::{Caller, Request, Uri, bearer};
use bytes::Bytes;
use hyper::Method;
use hyper::header::{AUTHORIZATION, HOST, HeaderName, HeaderValue, ORIGIN};
use std::net::IpAddr;

/// Names of the server, beside its addresses.
const NAMES: [&str; 2] = ["gw.internal", "other"];

/// Looks at the bytes of a connection, or at a head.
pub fn body(input: &[u8]) {
    let Some((kind, rest)) = input.split_first() else { return };
    if kind % 2 == 0 {
        lines(usize::from(kind / 2), rest);
    } else {
        head(rest);
    }
}

/// However bytes are cut, the verdict is the same, and it comes with the first byte that is not valid.
fn lines(step: usize, bytes: &[u8]) {
    let is_valid = LineEnds::default().take(bytes);
    let mut cut = LineEnds::default();
    assert_eq!(bytes.chunks(1 + step % 37).all(|chunk| cut.take(chunk)), is_valid, "cut into pieces");
    let mut byte_by_byte = LineEnds::default();
    let taken = bytes.iter().take_while(|byte| byte_by_byte.take(&[**byte])).count();
    assert_eq!(taken == bytes.len(), is_valid);
    assert!(LineEnds::default().take(&bytes[..taken]), "a head is valid up to its fault");
}

/// A head that passes names this server, and its page, if it says one.
fn head(text: &[u8]) {
    let mut lines = text.split(|byte| *byte == b'\n');
    let Ok(uri) = Uri::try_from(lines.next().unwrap_or_default()) else { return };
    let Ok(request) = hyper::Request::builder().uri(uri.clone()).body(()) else { return };
    let (mut parts, ()) = request.into_parts();
    for line in lines {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let name = HeaderName::from_bytes(line[..colon].trim_ascii());
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            parts.headers.try_append(name, value).ok();
        }
    }
    let names = NAMES.map(str::to_owned);
    let is_admitted = check(&parts, &names).is_ok();
    let request = Request::new(Method::POST, uri, parts.headers.clone(), Bytes::new());
    request.is_json();
    let token = bearer(&parts.headers);
    assert_eq!(request.caller, Caller::Stranger);
    if !is_admitted {
        return;
    }
    let count = |name: &HeaderName| parts.headers.get_all(name).iter().count();
    assert!(count(&HOST) == 1 && count(&AUTHORIZATION) <= 1 && count(&ORIGIN) <= 1);
    assert!(token.is_none() || count(&AUTHORIZATION) == 1);
    let host = request.header("host").expect("it was admitted by its host");
    assert!(is_this_server(host), "{host:?} was admitted");
    if let Some(origin) = parts.headers.get(ORIGIN) {
        let origin = origin.to_str().expect("an origin that was admitted is text");
        let page = origin.split_once("://").map_or("", |(_, page)| page);
        assert!(is_this_server(page), "the page {page:?} was admitted");
    }
}

/// Returns the verdict of the same rule, written with the standard library.
fn is_this_server(host: &str) -> bool {
    let is_port = |port: &str| port.len() <= 5 && port.bytes().all(|byte| byte.is_ascii_digit());
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if is_port(port) => (name, port),
        _ => (host, ""),
    };
    let ip = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    let is_name = ["localhost", NAMES[0], NAMES[1]].iter().any(|own| own.eq_ignore_ascii_case(name));
    is_port(port) && (is_name || ip.parse::<IpAddr>().is_ok())
}

/// Connections and heads of ordinary visitors, and of those that want to be taken for them.
#[cfg(test)]
fn seeds() -> Vec<Vec<u8>> {
    let connections = [
        "GET / HTTP/1.1\r\nhost: a\r\n\r\nGET /metrics HTTP/1.1\r\nhost: a\r\n\r\n",
        "\r\n\r\nPOST /v1/kick HTTP/1.1\r\nContent-Length:  3 \r\n\r\n\n\r\rGET / HTTP/1.1\r\n\r\n",
        "POST / HTTP/1.1\r\ncontent-length: 0\r\ntransfer-encoding: chunked\r\n\r\n3\n",
        "POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\n",
        "GET / HTTP/1.1\nhost: a\r\n\r\n",
    ];
    let heads = [
        "/v1/status\nhost: 127.0.0.1:7200\nauthorization: Bearer secret",
        "/v1/drain\nhost: [::1]:80\norigin: http://[::1]",
        "/v1/kick\nhost: gw.internal\norigin: https://gw.internal:443\ncontent-type: application/json; charset=utf-8",
        "http://127.0.0.1/v1/kick\nhost: localhost",
        "/v1/kick\nhost: evil.example\norigin: http://evil.example",
        "/v1/kick\nhost: 127.0.0.1:80@evil.example",
        "/v1/kick\nhost: localhost\nhost: localhost",
    ];
    let connections = connections.iter().map(|text| [b"\x04", text.as_bytes()].concat());
    connections.chain(heads.iter().map(|text| [b"\x01", text.as_bytes()].concat())).collect()
}

#[test]
fn every_input_of_the_corpus_passes() {
    use std::fs;
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/http_head");
    let seeds = seeds();
    if std::env::var("FUZZ_SEEDS").is_ok_and(|value| value == "write") {
        fs::create_dir_all(&folder).expect("the folder");
        for (number, seed) in seeds.iter().enumerate() {
            fs::write(folder.join(format!("seed-{number:03}")), seed).expect("a file");
        }
    }
    seeds.iter().for_each(|seed| (0..=seed.len()).for_each(|cut| body(&seed[..cut])));
    let mut count = 0;
    for entry in fs::read_dir(folder).expect("the folder is committed") {
        body(&fs::read(entry.expect("an entry").path()).expect("a file"));
        count += 1;
    }
    assert!(count >= 10, "{count} inputs");
}
