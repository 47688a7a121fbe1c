//! First bytes of a connection, and the framing around Moorline's frames: PROXY headers, upgrade requests, WebSocket frames.

use moorline_net::proxy;
use moorline_net::upgrade::{self, HEAD_BYTES_MAX, Origins};
use moorline_proto::time::Instant;
use moorline_proto::websocket::{End, Opened, Reader, TAIL_BYTES_MAX};

/// Longest message, small enough to be hit.
const MESSAGE_MAX: u32 = 1_024;

/// Payload, last ping and end that a reader makes of chunks, and its state after them.
fn opened<'a>(
    mut reader: Reader,
    chunks: impl Iterator<Item = &'a [u8]>,
) -> (Vec<u8>, Option<Vec<u8>>, Option<End>, Reader) {
    let (mut plain, mut ping, mut end, mut tail) = (Vec::new(), None, None, Vec::new());
    for chunk in chunks {
        tail.extend_from_slice(chunk);
        let Opened { plain: range, consumed, pong, end: ended } =
            reader.open(&mut tail, Instant::ZERO, MESSAGE_MAX);
        plain.extend_from_slice(&tail[range]);
        tail.drain(..consumed);
        assert!(tail.len() <= TAIL_BYTES_MAX);
        ping = pong.map(|pong| pong.payload().to_vec()).or(ping);
        end = end.or(ended);
        reader = Reader::from_bytes(&reader.to_bytes()).expect("a state that was");
    }
    (plain, ping, end, reader)
}

/// However bytes are cut, the same payload comes out, and never more than came in. The first byte chooses the cut; an odd
/// one: the next 12 are a state that another process has written.
pub(crate) fn websocket(input: &[u8]) {
    let Some((kind, mut rest)) = input.split_first() else { return };
    let mut reader = Reader::default();
    if kind % 2 == 1 {
        let Some((state, behind)) = rest.split_first_chunk() else { return };
        let Some(thawed) = Reader::from_bytes(state) else { return };
        (reader, rest) = (thawed, behind);
    }
    if rest.is_empty() {
        return; // nothing can be cut
    }
    let whole = opened(reader, std::iter::once(rest));
    assert!(whole.0.len() <= rest.len());
    assert_eq!(opened(reader, rest.chunks(1 + usize::from(kind / 2) % 37)), whole);
}

/// However bytes come, the verdict is the same; the client is told by a valid header only.
pub(crate) fn proxy_v2(input: &[u8]) {
    let whole = proxy::read(input);
    let first = (0..=input.len()).map(|cut| proxy::read(&input[..cut])).find(|verdict| *verdict != Ok(None));
    assert_eq!(first.unwrap_or(Ok(None)), whole, "byte by byte");
    if let Ok(Some(header)) = whole {
        assert!(header.bytes <= input.len().min(proxy::HEADER_BYTES_MAX));
        assert!(header.client.is_none_or(|client| client.ip() == client.ip().to_canonical()));
    }
    let text = String::from_utf8_lossy(input);
    if let Ok(trusted) = proxy::Trusted::parse(&[&text]) {
        let host = text.split('/').next().and_then(|address| address.parse().ok());
        assert!(trusted.contains(host.expect("a network begins with an address")));
    }
}

/// However bytes come, the verdict is the same; an accepted request names a page of the list or none.
pub(crate) fn upgrade_head(input: &[u8]) {
    let origins = Origins::parse(&["https://chat.example"]).expect("an origin");
    let whole = upgrade::read(input, &origins);
    for cut in [input.len() / 3, input.len() / 2, input.len() * 2 / 3] {
        let early = upgrade::read(&input[..cut], &origins);
        assert!(early == Ok(None) || early == whole, "{early:?} after {cut} bytes, {whole:?} after all");
    }
    if let Ok(text) = str::from_utf8(input) {
        let is_one = text == "*" || text.to_ascii_lowercase().starts_with("http");
        assert!(is_one || Origins::parse(&[text]).is_err());
    }
    let Ok(Some(accepted)) = whole else { return };
    assert!(accepted.head_bytes <= input.len().min(HEAD_BYTES_MAX));
    let head = String::from_utf8_lossy(&input[..accepted.head_bytes]).to_ascii_lowercase();
    assert!(head.ends_with("\r\n\r\n") && head.contains("moorline.v1"));
    assert!(!head.contains("\norigin:") || head.contains("https://chat.example"));
    let mut answer = Vec::new();
    accepted.answer(&mut answer);
    assert!(answer.starts_with(b"HTTP/1.1 101 "));
}

/// A client's frame.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [7, 77, 177, 250];
    let length = u8::try_from(payload.len()).expect("a short payload");
    let head = if length < 126 { vec![first, 0x80 | length] } else { vec![first, 0xFE, 0, length] };
    let payload: Vec<u8> = payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key).collect();
    [&head[..], &mask, &payload].concat()
}

/// Connections of well-behaved clients, of others, and one in the middle of a message.
pub(crate) fn websocket_seeds() -> Vec<Vec<u8>> {
    let connections = [
        [frame(0x82, b"hello"), frame(0x89, b"ping"), frame(0x82, b", world")].concat(),
        [frame(0x02, b"one "), frame(0x8A, b""), frame(0, b""), frame(0x80, b"message")].concat(),
        [frame(0x82, &[5; 200]), frame(0x88, &[&4_500u16.to_be_bytes()[..], b"bye"].concat())].concat(),
        [frame(0x02, &[5; 100]), frame(0x82, b"not a fragment")].concat(),
        frame(0x89, b"").repeat(9),
        frame(0x81, b"text"),
        [&b"\x82\xFF\0\0\0\0\0\x01\0\0abcd"[..], &[0; 50]].concat(),
    ];
    let mut seeds: Vec<_> = connections.iter().map(|bytes| [&[6][..], bytes].concat()).collect();
    let mut reader = Reader::default();
    let mut begun = frame(0x02, &[9; 100]);
    reader.open(&mut begun[..50], Instant::ZERO, MESSAGE_MAX);
    seeds.push([&[7][..], &reader.to_bytes(), &begun[50..], &frame(0x80, b"end")].concat());
    seeds
}

/// Headers of balancers with and without extensions, and what is not one.
pub(crate) fn proxy_v2_seeds() -> Vec<Vec<u8>> {
    let header = |command: u8, family: u8, rest: &[u8]| {
        let length = u16::try_from(rest.len()).expect("a short header").to_be_bytes();
        [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[command, family], &length, rest].concat()
    };
    let v4 = [192, 0, 2, 7, 10, 0, 0, 1, 0x82, 0x35, 1, 0xBB];
    let mut summed = header(0x21, 0x11, &[&v4[..], &[3, 0, 4, 0, 0, 0, 0], &[4, 0, 2, 9, 9]].concat());
    let sum = crc32c::crc32c(&summed).to_be_bytes();
    summed[31..35].copy_from_slice(&sum);
    vec![
        header(0x21, 0x11, &v4),
        header(0x21, 0x21, &[1; 36]),
        header(0x21, 0x31, &[b'u'; 216]),
        header(0x20, 0, &[]),
        header(0x21, 0, b"anything"),
        summed,
        b"PROXY TCP4 192.0.2.7 10.0.0.1 33333 443\r\n".to_vec(),
        b"10.0.0.0/8".to_vec(),
        b"::ffff:10.0.0.0/104".to_vec(),
    ]
}

/// Requests of pages and applications, and what is not one.
pub(crate) fn upgrade_head_seeds() -> Vec<Vec<u8>> {
    let head = |lines: &str| {
        let common = "Host: gw\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                      Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        format!("GET / HTTP/1.1\r\n{common}{lines}\r\n").into_bytes()
    };
    vec![
        head("Sec-WebSocket-Protocol: moorline.v1\r\n"),
        head("Origin: https://chat.example\r\nSec-WebSocket-Protocol: other, moorline.v1\r\n"),
        head("Origin: https://evil.example\r\nSec-WebSocket-Protocol: moorline.v1\r\n"),
        head("Sec-WebSocket-Protocol: other\r\nContent-Length: 0\r\n"),
        b"GET /healthz HTTP/1.1\r\nHost: gw\r\n\r\n".to_vec(),
        b"POST / HTTP/1.0\n\n".to_vec(),
        b"https://chat.example:8443".to_vec(),
        b"http://[::1]:80".to_vec(),
    ]
}
