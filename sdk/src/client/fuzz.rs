//! Fuzz body of the answers of dispatch servers, for the tests and for the target `dispatch_answer` of `fuzz/`.
//!
//! The first byte of an input chooses: bit 0, the rest is a list in a valid answer, or a whole answer; bit 1, gateways prove their
//! names. The second byte is the number of bytes that come at once.

use super::dispatch::exchange;
use crate::core::DispatchFault;
use crate::core::endpoint_list::{ENDPOINTS_MAX, read};
use moorline_proto::time::Duration;
use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::sync::Arc;

/// Places that the client knows from its gateway.
const KNOWN: [&str; 2] = ["gw.example:7000", "127.0.0.1:7000"];

/// A server whose answer comes in pieces.
struct Drip<'a> {
    rest: &'a [u8],
    piece: usize,
}

impl Read for Drip<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let (now, rest) = self.rest.split_at(self.piece.min(into.len()).min(self.rest.len()));
        into[..now.len()].copy_from_slice(now);
        self.rest = rest;
        Ok(now.len())
    }
}

impl Write for Drip<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads an answer: its end does not depend on how bytes come, and a list that is taken holds what the client may follow.
pub fn body(input: &[u8]) {
    let Some(([kind, piece], rest)) = input.split_first_chunk() else { return };
    let answer = if kind % 2 == 0 {
        rest.to_vec()
    } else {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", rest.len());
        [head.as_bytes(), rest].concat()
    };
    let ask = |piece| exchange(Drip { rest: &answer, piece }, "GET / HTTP/1.1\r\n\r\n");
    let whole = ask(usize::MAX);
    assert_eq!(ask(usize::from(*piece) + 1), whole, "in pieces");
    let Ok(list) = whole else { return };
    let (known, is_proved) = (KNOWN.map(Arc::from), kind & 2 != 0);
    match read(&list, &known, is_proved) {
        Ok(list) => {
            let places: BTreeSet<_> = list.places.iter().collect();
            assert!(!places.is_empty() && places.len() == list.places.len(), "each once");
            assert!(places.len() <= ENDPOINTS_MAX);
            assert!((Duration::from_secs(1)..=Duration::from_secs(3600)).contains(&list.lifetime));
            let is_known = |place: &str| KNOWN.iter().any(|known| known.eq_ignore_ascii_case(place));
            assert!(is_proved || places.iter().all(|place| is_known(place)), "plain TCP: listed ones");
        }
        Err(DispatchFault::BadAnswer { .. } | DispatchFault::NothingAllowed) => {}
        Err(other) => panic!("a list is refused as {other:?}"),
    }
}

/// Answers of honest servers, and of those that want to be followed.
#[cfg(test)]
fn seeds() -> Vec<Vec<u8>> {
    let list = |places: &str| format!("{{\"age_ms\":1,\"endpoints\":[{places}],\"lifetime_s\":60}}");
    let one = |place: &str| format!("{{\"endpoint\":\"{place}\",\"region\":\"eu\"}}");
    let both = list(&[one("tls://a.example:7443"), one("tcp://GW.example:7000")].join(","));
    let lists = [both.as_str(), &list(""), "{\"endpoints\":[{\"endpoint\":7}],\"lifetime_s\":-1}", "[[[["];
    let wholes = [
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{both}", both.len()),
        format!(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{both}\r\n0\r\n\r\n",
            both.len()
        ),
        format!("HTTP/1.0 200 OK\r\n\r\n{both}"),
        "HTTP/1.1 503 No\r\nRetry-After: 5\r\n\r\n".to_owned(),
        "HTTP/1.1 302 Found\r\nLocation: https://evil.example\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n".to_owned(),
    ];
    let seed = |kind, piece, text: &str| [&[kind, piece], text.as_bytes()].concat();
    let lists = lists.iter().flat_map(|text| [seed(1, 255, text), seed(3, 6, text)]);
    lists.chain(wholes.iter().map(|text| seed(0, 0, text))).collect()
}

#[test]
fn every_input_of_the_corpus_passes() {
    crate::corpus::replay("dispatch_answer", &seeds(), body);
}
