//! Both carriers against peers in memory: rustls as a server, and the protocol crate's framing.

use super::*;
use moorline_proto::time::Instant;
use moorline_proto::websocket::{End, Reader, Writer, put_close};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConnection;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;

/// An authority and a server's certificate in files, gone with the test.
struct Certificates(PathBuf);

impl Certificates {
    fn new(test: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("moorload-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let mut authority = CertificateParams::new([]).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority_key = KeyPair::generate().unwrap();
        std::fs::write(folder.join("ca.pem"), authority.self_signed(&authority_key).unwrap().pem()).unwrap();
        let issuer = Issuer::new(authority, authority_key);
        let key = KeyPair::generate().unwrap();
        let server = CertificateParams::new(["gw.example".into()]).unwrap().signed_by(&key, &issuer).unwrap();
        std::fs::write(folder.join("server.pem"), server.pem()).unwrap();
        std::fs::write(folder.join("key.pem"), key.serialize_pem()).unwrap();
        Self(folder)
    }

    fn server(&self) -> Arc<rustls::ServerConfig> {
        server_config(&self.0.join("server.pem"), &self.0.join("key.pem")).unwrap()
    }

    fn rule(&self, name: &str) -> TlsRule {
        TlsRule { name: name.into(), trust: Trust::File(self.0.join("ca.pem")), resumes: true }
    }
}

impl Drop for Certificates {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

fn carrier(tls: Option<TlsRule>, host: Option<&str>) -> Carrier {
    Carrier::new(&CarryRule { tls, websocket: host.map(str::to_owned) }).unwrap()
}

/// Speaks as one client until its message is echoed: whether it resumed, and the echo.
fn echo_over_tls(
    client: u32,
    carrier: &mut Carrier,
    server: &Arc<rustls::ServerConfig>,
) -> Result<(bool, Vec<u8>), String> {
    let mut server = ServerConnection::new(Arc::clone(server)).unwrap();
    let mut wrap = carrier.wrap(client)?.unwrap();
    let (mut to_server, mut plain, mut has_resumed) = (Vec::new(), Vec::new(), None);
    wrap.begin(&mut to_server)?;
    wrap.send(b"hello", &mut to_server)?;
    for _ in 0..20 {
        let mut input = to_server.as_slice();
        while !input.is_empty() {
            server.read_tls(&mut input).unwrap();
            server.process_new_packets().map_err(|error| error.to_string())?;
        }
        to_server.clear();
        let mut heard = Vec::new();
        let _ = server.reader().read_to_end(&mut heard); // it would block at the end
        server.writer().write_all(&heard).unwrap();
        let mut to_client = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut to_client).unwrap();
        }
        for byte in to_client {
            let news = wrap.receive(&[byte], &mut plain, &mut to_server)?;
            has_resumed = news.handshake.or(has_resumed);
        }
        if plain == b"hello" {
            return Ok((has_resumed.unwrap(), plain));
        }
    }
    Err(format!("{} bytes came back", plain.len()))
}

#[test]
fn later_connections_resume_where_they_may() {
    let certificates = Certificates::new("resume");
    let server = certificates.server();
    let mut resuming = carrier(Some(certificates.rule("gw.example")), None);
    assert_eq!(echo_over_tls(1, &mut resuming, &server).unwrap(), (false, b"hello".to_vec()));
    assert_eq!(echo_over_tls(1, &mut resuming, &server).unwrap(), (true, b"hello".to_vec()));
    assert!(!echo_over_tls(2, &mut resuming, &server).unwrap().0, "a client has its own tickets only");
    let rule = TlsRule { resumes: false, ..certificates.rule("gw.example") };
    let mut anew = carrier(Some(rule), None);
    for _ in 0..2 {
        assert!(!echo_over_tls(1, &mut anew, &server).unwrap().0);
    }
}

#[test]
fn a_certificate_for_another_name_is_refused_unless_anybody_is_trusted() {
    let certificates = Certificates::new("names");
    let server = certificates.server();
    let error =
        echo_over_tls(1, &mut carrier(Some(certificates.rule("other.example")), None), &server).unwrap_err();
    assert!(error.contains("certificate"), "{error}");
    let rule = TlsRule { trust: Trust::Anybody, ..certificates.rule("other.example") };
    assert!(echo_over_tls(1, &mut carrier(Some(rule), None), &server).is_ok());
    for (name, trust) in [("a b", Trust::Anybody), ("a", Trust::File("/nowhere".into()))] {
        let tls = Some(TlsRule { name: name.into(), trust, resumes: true });
        assert!(Carrier::new(&CarryRule { tls, websocket: None }).is_err(), "{name}");
    }
    let refused = server_config(&certificates.0.join("key.pem"), &certificates.0.join("key.pem"));
    assert!(refused.unwrap_err().to_string().contains("no certificates"));
}

/// Answers an upgrade request as RFC 6455 says; the key is checked by the client itself.
fn answer(request: &[u8]) -> Vec<u8> {
    use base64::Engine as _;
    use sha1::Digest as _;
    let request = std::str::from_utf8(request).unwrap();
    assert!(request.starts_with("GET / HTTP/1.1\r\nHost: gw.example:1\r\n") && request.ends_with("\r\n\r\n"));
    let key = request.split("Sec-WebSocket-Key: ").nth(1).unwrap().split("\r\n").next().unwrap();
    let hash = sha1::Sha1::digest(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11"));
    let accept = base64::prelude::BASE64_STANDARD.encode(hash);
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Protocol: moorline.v1\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    )
    .into_bytes()
}

#[test]
fn messages_of_any_length_pass_both_ways_byte_by_byte() {
    let mut wrap = carrier(None, Some("gw.example:1")).wrap(1).unwrap().unwrap();
    let (mut out, mut plain) = (Vec::new(), Vec::new());
    wrap.begin(&mut out).unwrap();
    wrap.send(b"waits for the upgrade", &mut out).unwrap();
    let mut from_server = answer(&out);
    out.clear();
    let payloads: Vec<Vec<u8>> = [1, 125, 126, 65_535, 65_536].map(|length| vec![7; length]).to_vec();
    for payload in &payloads {
        let next = Writer::default().next(payload.len());
        from_server.extend_from_slice(&next.header);
        from_server.extend_from_slice(payload);
        from_server.extend_from_slice(&[0x89, 1, b'?']); // a ping
    }
    let upgrades =
        from_server.iter().filter(|byte| wrap.receive(&[**byte], &mut plain, &mut out).unwrap().is_upgraded);
    assert_eq!(upgrades.count(), 1);
    assert!(plain == payloads.concat());
    payloads.iter().for_each(|payload| wrap.send(payload, &mut out).unwrap());
    let mut reader = Reader::default();
    let opened = reader.open(&mut out, Instant::ZERO, u32::MAX);
    assert_eq!((opened.end, opened.consumed), (None, out.len()));
    assert!(out[opened.plain] == [&b"waits for the upgrade"[..], &payloads.concat()].concat());
}

#[test]
fn a_websocket_over_tls_begins_with_the_handshake() {
    let certificates = Certificates::new("wss");
    let mut server = ServerConnection::new(wss(&certificates)).unwrap();
    let mut wrap =
        carrier(Some(certificates.rule("gw.example")), Some("gw.example:1")).wrap(1).unwrap().unwrap();
    let (mut to_server, mut plain, mut reader, mut is_open) =
        (Vec::new(), Vec::new(), Reader::default(), false);
    let mut news = Vec::new();
    wrap.begin(&mut to_server).unwrap();
    wrap.send(b"hello", &mut to_server).unwrap();
    for _ in 0..20 {
        let mut input = to_server.as_slice();
        while !input.is_empty() {
            server.read_tls(&mut input).unwrap();
            server.process_new_packets().unwrap();
        }
        to_server.clear();
        let mut heard = Vec::new();
        let _ = server.reader().read_to_end(&mut heard); // it would block at the end
        if is_open {
            let opened = reader.open(&mut heard, Instant::ZERO, u32::MAX);
            let echo = &heard[opened.plain];
            server.writer().write_all(&Writer::default().next(echo.len()).header).unwrap();
            server.writer().write_all(echo).unwrap();
        } else if !heard.is_empty() {
            is_open = true;
            server.writer().write_all(&answer(&heard)).unwrap();
        }
        let mut to_client = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut to_client).unwrap();
        }
        news.push(wrap.receive(&to_client, &mut plain, &mut to_server).unwrap());
    }
    assert_eq!(plain, b"hello");
    let handshakes: Vec<_> = news.iter().filter_map(|news| news.handshake).collect();
    assert_eq!((handshakes, news.iter().filter(|news| news.is_upgraded).count()), (vec![false], 1));
}

/// The bare server's configuration, for the protocol of the upgrade request.
fn wss(certificates: &Certificates) -> Arc<rustls::ServerConfig> {
    let mut config = rustls::ServerConfig::clone(&certificates.server());
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

#[test]
fn an_upgrade_that_is_refused_and_a_close_are_told() {
    let receive = |wrap: &mut Wrap, bytes: &[u8]| wrap.receive(bytes, &mut Vec::new(), &mut Vec::new());
    let begun = || {
        let mut out = Vec::new();
        let mut wrap = carrier(None, Some("gw.example:1")).wrap(1).unwrap().unwrap();
        wrap.begin(&mut out).unwrap();
        (wrap, answer(&out))
    };
    let error = receive(&mut begun().0, b"HTTP/1.1 403 Forbidden\r\n\r\n").unwrap_err();
    assert!(error.contains("403 Forbidden"), "{error}");
    let (mut wrap, answer) = begun();
    let wrong = String::from_utf8(answer.clone()).unwrap().replace("Accept: ", "Accept: x");
    assert!(receive(&mut begun().0, wrong.as_bytes()).unwrap_err().contains("Sec-WebSocket-Accept"));
    assert!(receive(&mut begun().0, &[b'x'; 5_000]).unwrap_err().contains("4096 bytes"));
    receive(&mut wrap, &answer).unwrap();
    let mut close = Vec::new();
    put_close(Some(4_521), "", &mut close);
    assert!(receive(&mut wrap, &close).unwrap_err().contains("4521"));
    for bad in [&[0x81u8, 0][..], &[0xC2, 0], &[0x82, 0x80]] {
        let (mut wrap, answer) = begun();
        receive(&mut wrap, &answer).unwrap();
        assert!(receive(&mut wrap, bad).is_err(), "{bad:02x?}");
    }
    // What the client sends ends with no fault of its own.
    let mut wire = Vec::new();
    wrap.send(b"x", &mut wire).unwrap();
    assert_ne!(Reader::default().open(&mut wire, Instant::ZERO, 10).end, Some(End::Closed(None)));
}
