//! Requests that become a WebSocket, and those that get an answer which says why not.

use super::*;
use proptest::prelude::*;

/// A browser's request, with lines taken out, changed or added.
struct Asks(Vec<(&'static str, String)>);

impl Asks {
    fn new() -> Self {
        let lines = [
            ("Host", "gw.example:7443"),
            ("Connection", "keep-alive, Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("Sec-WebSocket-Protocol", "other, moorline.v1"),
            ("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits"),
            ("Origin", "https://chat.example"),
        ];
        Self(lines.map(|(name, value)| (name, value.to_owned())).to_vec())
    }

    fn without(mut self, name: &str) -> Self {
        self.0.retain(|(line, _)| *line != name);
        self
    }

    fn with(mut self, name: &'static str, value: &str) -> Self {
        self.0.push((name, value.to_owned()));
        self
    }

    fn set(self, name: &'static str, value: &str) -> Self {
        self.without(name).with(name, value)
    }

    fn head(&self, line: &str) -> Vec<u8> {
        let lines = self.0.iter().map(|(name, value)| format!("{name}: {value}\r\n"));
        format!("{line}\r\n{}\r\n", lines.collect::<String>()).into_bytes()
    }

    fn verdict(&self) -> Result<(), Refusal> {
        verdict(&self.head("GET /chat?x=1 HTTP/1.1"))
    }
}

fn origins() -> Origins {
    Origins::parse(&["https://Chat.example:443", "https://other.example:8443", "http://localhost:8080"])
        .expect("origins")
}

/// Reads a whole head, and byte by byte: the same must come out, at the last byte of the head at the latest.
fn verdict(head: &[u8]) -> Result<(), Refusal> {
    let whole = read(head, &origins());
    let first =
        (0..=head.len()).map(|cut| read(&head[..cut], &origins())).find(|verdict| *verdict != Ok(None));
    assert_eq!(first.unwrap_or(Ok(None)), whole, "byte by byte");
    whole.map(|accepted| assert_eq!(accepted.expect("whole").head_bytes, head.len()))
}

#[test]
fn a_request_of_a_page_becomes_a_websocket() {
    let head = Asks::new().head("GET / HTTP/1.1");
    let behind = [&head[..], b"\x82\x80"].concat();
    let accepted = read(&behind, &origins()).expect("valid").expect("whole");
    let mut answer = Vec::new();
    accepted.answer(&mut answer);
    assert_eq!(accepted.head_bytes, head.len(), "frames may follow");
    // The key and its hash are those of RFC 6455 section 1.3.
    let expected = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: moorline.v1\r\n\r\n";
    assert_eq!(String::from_utf8(answer).expect("text"), expected);
}

#[test]
fn names_and_words_may_be_written_in_any_case_and_lists_in_several_lines() {
    let asks = Asks::new().set("Connection", "UPGRADE").set("Upgrade", "h2c, WebSocket");
    assert_eq!(asks.verdict(), Ok(()));
    let several =
        Asks::new().set("Sec-WebSocket-Protocol", "a").with("sec-websocket-protocol", "moorline.v1");
    assert_eq!(several.verdict(), Ok(()));
    assert_eq!(Asks::new().with("Content-Length", "0").verdict(), Ok(()));
}

#[test]
fn only_pages_of_listed_origins_connect_and_applications_do() {
    for origin in ["https://chat.example", "https://other.example:8443", "http://localhost:8080"] {
        assert_eq!(Asks::new().set("Origin", origin).verdict(), Ok(()), "{origin}");
    }
    assert_eq!(Asks::new().without("Origin").verdict(), Ok(()), "not a browser");
    for origin in [
        "https://evil.example",
        "http://chat.example",
        "https://chat.example:8443",
        "https://chat.example.evil.example",
        "https://evil.example/https://chat.example",
        "null",
        "",
    ] {
        assert_eq!(Asks::new().set("Origin", origin).verdict(), Err(Refusal::ForeignOrigin), "{origin}");
    }
    let twice = Asks::new().with("Origin", "https://chat.example");
    assert_eq!(twice.verdict(), Err(Refusal::ForeignOrigin));
    let head = Asks::new().set("Origin", "null").head("GET / HTTP/1.1");
    assert!(read(&head, &Origins::parse(&["*"]).expect("any")).is_ok());
    assert_eq!(read(&head, &Origins::default()), Err(Refusal::ForeignOrigin), "no list, no page");
}

#[test]
fn each_refusal_says_why() {
    let new = Asks::new;
    let many = (0..HEADERS_MAX).fold(new(), |asks, _| asks.with("X", "y"));
    let rows: Vec<(Vec<u8>, Refusal, &str)> = vec![
        (b"\xC1\x01\0\0".to_vec(), Refusal::BadHead, "400"),
        (b"\x16\x03\x01\x02\0".to_vec(), Refusal::BadHead, "400"),
        (b"GET / HTTP/1.1\nHost: a\n\n".to_vec(), Refusal::BadHead, "400"),
        (new().head("GET  / HTTP/1.1"), Refusal::BadHead, "400"),
        (new().with("A B", "c").head("GET / HTTP/1.1"), Refusal::BadHead, "400"),
        (new().with("Content-Length", "5").head("GET / HTTP/1.1"), Refusal::Body, "400"),
        (new().with("Transfer-Encoding", "chunked").head("GET / HTTP/1.1"), Refusal::Body, "400"),
        (new().head("POST / HTTP/1.1"), Refusal::BadMethod, "405"),
        (new().head("GET / HTTP/1.0"), Refusal::BadHttpVersion, "505"),
        (new().without("Host").head("GET / HTTP/1.1"), Refusal::BadHost, "400"),
        (new().with("host", "b").head("GET / HTTP/1.1"), Refusal::BadHost, "400"),
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), Refusal::NoUpgrade, "426"),
        (new().set("Connection", "close").head("GET / HTTP/1.1"), Refusal::NoUpgrade, "426"),
        (new().set("Upgrade", "websockets").head("GET / HTTP/1.1"), Refusal::NoUpgrade, "426"),
        (new().set("Sec-WebSocket-Version", "8").head("GET / HTTP/1.1"), Refusal::BadVersion, "426"),
        (new().without("Sec-WebSocket-Version").head("GET / HTTP/1.1"), Refusal::BadVersion, "426"),
        (new().without("Sec-WebSocket-Key").head("GET / HTTP/1.1"), Refusal::BadKey, "400"),
        (new().set("Sec-WebSocket-Key", "AAAA").head("GET / HTTP/1.1"), Refusal::BadKey, "400"),
        (new().set("Sec-WebSocket-Key", &"A".repeat(24)).head("GET / HTTP/1.1"), Refusal::BadKey, "400"),
        (
            new().with("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA==").head("GET / HTTP/1.1"),
            Refusal::BadKey,
            "400",
        ),
        (new().set("Origin", "https://evil.example").head("GET / HTTP/1.1"), Refusal::ForeignOrigin, "403"),
        (
            new().set("Sec-WebSocket-Protocol", "moorline.v2").head("GET / HTTP/1.1"),
            Refusal::NoProtocol,
            "400",
        ),
        (new().without("Sec-WebSocket-Protocol").head("GET / HTTP/1.1"), Refusal::NoProtocol, "400"),
        (many.head("GET / HTTP/1.1"), Refusal::TooLarge, "431"),
    ];
    for (head, refusal, status) in &rows {
        assert_eq!(verdict(head), Err(*refusal), "{}", String::from_utf8_lossy(head));
        let mut answer = Vec::new();
        refusal.answer(&mut answer);
        let answer = String::from_utf8(answer).expect("text");
        let (head, text) = answer.split_once("\r\n\r\n").expect("a head and a text");
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert!(head.contains(&format!("Content-Length: {}", text.len())), "{answer}");
        assert_eq!(text, format!("{refusal}\n"));
    }
    for refusal in Refusal::ALL {
        assert!(rows.iter().any(|(_, told, _)| *told == refusal), "{refusal:?}");
    }
}

#[test]
fn a_head_that_does_not_end_is_refused_at_its_limit() {
    let long = Asks::new().set("Sec-WebSocket-Key", &"A".repeat(HEAD_BYTES_MAX)).head("GET / HTTP/1.1");
    assert_eq!(read(&long[..HEAD_BYTES_MAX - 1], &origins()), Ok(None));
    assert_eq!(read(&long[..HEAD_BYTES_MAX], &origins()), Err(Refusal::TooLarge));
    assert_eq!(read(&long, &origins()), Err(Refusal::TooLarge));
    let room = HEAD_BYTES_MAX - Asks::new().with("X", "").head("GET / HTTP/1.1").len();
    let longest = Asks::new().with("X", &"x".repeat(room)).head("GET / HTTP/1.1");
    assert_eq!((longest.len(), read(&longest, &origins()).is_ok()), (HEAD_BYTES_MAX, true));
}

#[test]
fn the_first_fault_of_a_head_decides_also_when_others_are_behind_it() {
    let origins = Origins::default();
    let many = "A: b\r\n".repeat(HEADERS_MAX + 1);
    let bare = format!("GET / HTTP/1.1\r\nHost: a\n{many}\r\n");
    let full = format!("GET / HTTP/1.1\r\n{many}Host: a\n\r\n");
    let long = format!("GET / HTTP/1.1\nA: {}", "b".repeat(HEAD_BYTES_MAX));
    for (head, expected) in [(&bare, Refusal::BadHead), (&full, Refusal::TooLarge), (&long, Refusal::BadHead)]
    {
        for cut in 0..=head.len() {
            let verdict = read(&head.as_bytes()[..cut], &origins);
            assert!(verdict == Ok(None) || verdict == Err(expected), "{verdict:?} after {cut} bytes");
        }
        assert_eq!(read(head.as_bytes(), &origins), Err(expected));
    }
}

#[test]
fn mistyped_origins_are_refused_with_what_to_write() {
    let told = |text: &str| Origins::parse(&[text]).expect_err(text);
    for text in [
        "",
        "chat.example",
        "https://",
        "https://chat.example/",
        "https://chat.example/path",
        "https://*.chat.example",
        "https://chat.example:",
        "https://chat.example:0",
        "https://chat.example:65536",
        "https://user@chat.example",
        "https://[::1",
        "wss://chat.example",
        "null",
    ] {
        assert_eq!(told(text), OriginError::Form { text: text.to_owned() });
    }
    assert!(told("http://chat.example").to_string().contains("without TLS"));
    let good =
        ["https://[2001:db8::1]:8443", "https://192.0.2.7", "http://[::1]:80", "http://127.0.0.1", "*"];
    assert!(Origins::parse(&good).is_ok());
    let many = vec!["*"; ORIGINS_MAX + 1];
    assert_eq!(Origins::parse(&many), Err(OriginError::TooMany { count: ORIGINS_MAX + 1 }));
}

proptest! {
    #[test]
    fn a_changed_head_reads_the_same_byte_by_byte(at in 0usize..330, byte in any::<u8>(), is_cut in any::<bool>()) {
        let mut head = Asks::new().head("GET / HTTP/1.1");
        let at = at.min(head.len() - 1);
        if is_cut {
            head.remove(at);
        } else {
            head[at] = byte;
        }
        let whole = read(&head, &origins());
        let first = (0..=head.len()).map(|cut| read(&head[..cut], &origins())).find(|verdict| *verdict != Ok(None));
        prop_assert_eq!(first.unwrap_or(Ok(None)), whole);
    }
}
