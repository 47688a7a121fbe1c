//! Handshakes: what they give, what they refuse, and what they bear.

use super::pair::*;
use crate::tls::{HANDSHAKE_BYTES_MAX, Handshake, HandshakeError, Progress, Protocols, Server, Suite};
use rustls::AlertDescription;
use rustls::server::WebPkiClientVerifier;
use std::sync::Arc;

#[test]
fn both_suites_echo_after_a_handshake_in_pieces_of_any_size() {
    for suite in Suite::ALL {
        for step in [1, 2, 5, 6, 100, 517, usize::MAX] {
            let mut client = connect(client_config(suite, &["moorline/1"]), "chat.example");
            let handshake = server(Protocols::required("moorline/1")).handshake().expect("a server");
            let done = shake(&mut client, handshake, step).expect("a handshake");
            assert_eq!(done.records.suite(), suite);
            assert_eq!(done.server_name.as_deref(), Some("chat.example"));
            assert_eq!(done.protocol.as_deref(), Some(&b"moorline/1"[..]));
            assert!(done.leftover.is_empty() && done.peer_names.is_empty() && !done.is_resumed);
        }
        let mut pair = Pair::new(suite);
        for length in [1, 100, 16_384, 16_385, 50_000] {
            pair.echo(&vec![7; length]);
        }
    }
}

#[test]
fn records_behind_the_handshake_are_left_as_they_came() {
    let mut client = connect(client_config(Suite::Aes256, &[]), "chat.example");
    let mut handshake = server(Protocols::default()).handshake().expect("a server");
    let mut out = Vec::new();
    let hello = sent_by(&mut client);
    assert!(matches!(handshake.advance(&hello, &mut out), Ok(Progress::More)));
    give(&mut client, &out).expect("valid");
    std::io::Write::write_all(&mut client.writer(), b"early bird").expect("memory");
    let flight = sent_by(&mut client);
    out.clear();
    let Ok(Progress::Done(done)) = handshake.advance(&flight, &mut out) else { panic!("not done") };
    let mut leftover = done.leftover;
    let mut records = done.records;
    assert_eq!(leftover.len(), 10 + 22);
    let opened = records.open(&mut leftover, moorline_proto::time::Instant::from_nanos(0));
    assert_eq!(&leftover[opened.plain], b"early bird");
    assert!(matches!(handshake.advance(b"\x17\x03\x03", &mut out), Err(HandshakeError::Ended)));
}

#[test]
fn a_handshake_without_an_answer_can_begin_anew_elsewhere() {
    let mut client = connect(client_config(Suite::ChaCha20, &[]), "chat.example");
    let server = server(Protocols::default());
    let mut first = server.handshake().expect("a server");
    let hello = sent_by(&mut client);
    let mut out = Vec::new();
    assert!(matches!(first.advance(&hello[..hello.len() - 1], &mut out), Ok(Progress::More)));
    assert!(out.is_empty());
    let raw = first.unanswered().expect("nothing was answered").to_vec();
    assert_eq!(raw, hello[..hello.len() - 1]);

    let mut second = server.handshake().expect("a server");
    assert!(matches!(second.advance(&raw, &mut out), Ok(Progress::More)));
    assert!(matches!(second.advance(&hello[raw.len()..], &mut out), Ok(Progress::More)));
    assert_eq!(second.unanswered(), None);
    give(&mut client, &out).expect("valid");
    shake(&mut client, second, usize::MAX).expect("a handshake");
}

#[test]
fn a_client_resumes_with_a_ticket() {
    let server = server(Protocols::default());
    let config = Arc::new(client_config(Suite::Aes256, &[]));
    for is_resumed in [false, true, true] {
        let mut client = connect(config.clone(), "chat.example");
        let done =
            shake(&mut client, server.handshake().expect("a server"), usize::MAX).expect("a handshake");
        assert_eq!(done.is_resumed, is_resumed);
        let mut pair =
            Pair { client, records: done.records, inbound: Vec::new(), ..Pair::new(Suite::Aes256) };
        pair.echo(b"hello");
    }
}

#[test]
fn a_client_without_the_protocol_is_told_so() {
    for offered in [&[][..], &["h2"], &["h2", "moorline/2"]] {
        let mut client = connect(client_config(Suite::Aes256, offered), "chat.example");
        let mut handshake = server(Protocols::required("moorline/1")).handshake().expect("a server");
        let mut out = Vec::new();
        let error = handshake.advance(&sent_by(&mut client), &mut out).expect_err("refused");
        assert_eq!(out, [21, 3, 3, 0, 2, 2, 120], "{error}");
        assert!(matches!(error, HandshakeError::NoProtocol));
        let told = give(&mut client, &out).expect_err("an alert");
        assert_eq!(told, rustls::Error::AlertReceived(rustls::AlertDescription::NoApplicationProtocol));
    }
    let mut client = connect(client_config(Suite::Aes256, &[]), "chat.example");
    let handshake = server(Protocols::optional("http/1.1")).handshake().expect("a server");
    assert_eq!(shake(&mut client, handshake, 100).expect("a handshake").protocol, None);
}

#[test]
fn other_languages_and_endless_clients_are_refused() {
    let refused = |bytes: &[u8]| {
        let mut handshake = server(Protocols::default()).handshake().expect("a server");
        let mut out = Vec::new();
        let error = handshake.advance(bytes, &mut out).expect_err("refused");
        (error, out)
    };
    let (error, out) = refused(b"GET / HTTP/1.1\r\n\r\n");
    assert!(matches!(error, HandshakeError::NotTls) && out == [21, 3, 3, 0, 2, 2, 10], "{error}");
    let (error, out) = refused(&[22, 3, 1, 0xff, 0xff, 1]);
    assert!(matches!(error, HandshakeError::TooLong) && out == [21, 3, 3, 0, 2, 2, 22], "{error}");
    // Parts of a message that never ends.
    let mut endless = [&[22, 3, 1, 0x40, 0, 1, 0, 0xff, 0xff][..], &vec![0; (1 << 14) - 4]].concat();
    let more = [&[22, 3, 1, 0x40, 0][..], &vec![0; 1 << 14]].concat();
    (0..4).for_each(|_| endless.extend_from_slice(&more));
    assert!(endless.len() > HANDSHAKE_BYTES_MAX);
    let (error, _) = refused(&endless);
    assert!(matches!(error, HandshakeError::TooLong | HandshakeError::Tls(_)), "{error}");
    let (error, out) = refused(&[22, 3, 1, 0, 4, 9, 0, 0, 0]);
    assert!(matches!(error, HandshakeError::Tls(_)) && out.len() == 7, "{error}");
    // A record without content, which the library does not discard.
    let (error, out) = refused(&[22, 3, 1, 0, 0]);
    assert!(matches!(error, HandshakeError::Tls(_)) && out.len() == 7, "{error}");
    // Early data, and an alert instead of a hello.
    for bytes in [&[23, 3, 3, 0, 1, 0][..], &[21, 3, 3, 0, 2, 2, 40], &[20, 3, 3, 0, 1, 1, 20, 3, 3, 0, 1, 1]]
    {
        let mut handshake = server(Protocols::default()).handshake().expect("a server");
        let outcome = handshake.advance(bytes, &mut Vec::new());
        assert!(!matches!(outcome, Ok(Progress::Done(_))));
    }
}

#[test]
fn a_client_that_goes_wrong_behind_the_answer_is_told_so() {
    type Wrong = fn(&mut Handshake, &mut Vec<u8>) -> HandshakeError;
    let wrongs: [(Wrong, rustls::AlertDescription); 5] = [
        // A record of no kind, and one that is longer than TLS allows.
        (
            |it, out| it.advance(&[99, 3, 3, 0, 1, 1], out).expect_err("no kind"),
            AlertDescription::DecodeError,
        ),
        (
            |it, out| it.advance(&[23, 3, 3, 0xff, 0xff], out).expect_err("long"),
            AlertDescription::DecodeError,
        ),
        // Its owner keeps no more.
        (|it, out| it.abort(out), AlertDescription::DecodeError),
        (
            |it, out| {
                it.advance(&[23, 3, 3, 0x40], out).expect("a begin");
                it.abort(out)
            },
            AlertDescription::DecodeError,
        ),
        // A record that no key opens.
        (
            |it, out| it.advance(&[&[23, 3, 3, 0, 40][..], &[1; 40]].concat(), out).expect_err("no key"),
            AlertDescription::BadRecordMac,
        ),
    ];
    for (number, (wrong, alert)) in wrongs.into_iter().enumerate() {
        let mut client = connect(client_config(Suite::Aes256, &[]), "chat.example");
        let mut handshake = server(Protocols::default()).handshake().expect("a server");
        let mut out = Vec::new();
        handshake.advance(&sent_by(&mut client), &mut out).expect("a hello");
        give(&mut client, &out).expect("valid");
        out.clear();
        let error = wrong(&mut handshake, &mut out);
        assert!(!out.is_empty(), "{number}: {error}");
        let told = give(&mut client, &out).expect_err("an alert");
        assert_eq!(told, rustls::Error::AlertReceived(alert), "{number}: {error}");
        assert!(matches!(handshake.advance(&[22], &mut out), Err(HandshakeError::Ended)));
    }
}

#[test]
fn tls_1_2_is_refused() {
    // A ClientHello with signature algorithms, and without the extension that names 1.3.
    let mut hello = vec![3, 3];
    hello.extend_from_slice(&[7; 32]);
    hello.extend_from_slice(&[0, 0, 4, 0xc0, 0x2b, 0xc0, 0x2f, 1, 0, 0, 8, 0, 13, 0, 4, 0, 2, 4, 3]);
    let length = u8::try_from(hello.len()).expect("short");
    let record = [&[22, 3, 1, 0, length + 4, 1, 0, 0, length][..], &hello].concat();
    let mut out = Vec::new();
    let error = server(Protocols::default()).handshake().expect("a server").advance(&record, &mut out);
    assert!(matches!(error, Err(HandshakeError::Tls(_))), "{error:?}");
    assert_eq!(out, [21, 3, 3, 0, 2, 2, 70], "protocol_version");
}

#[test]
fn a_client_certificate_is_required_where_a_verifier_is_given() {
    let node = Identity::new(&["node-1.example", "Node-2.example"]);
    let verifier = WebPkiClientVerifier::builder_with_provider(node.roots(), crate::tls::provider());
    let verifier = verifier.build().expect("a verifier");
    let server = Server::new(IDENTITY.resolver(), tickets(), Protocols::default(), Some(verifier));
    let versions = |certificate: Option<&Identity>| {
        let config = rustls::ClientConfig::builder_with_provider(crate::tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_root_certificates(IDENTITY.roots());
        match certificate {
            Some(own) => {
                config.with_client_auth_cert(vec![own.certificate.clone()], own.key_der()).expect("a pair")
            }
            None => config.with_no_client_auth(),
        }
    };
    let config = Arc::new(versions(Some(&node)));
    for _ in 0..2 {
        let mut client = connect(config.clone(), "chat.example");
        let done = shake(&mut client, server.handshake().expect("a server"), 700).expect("a handshake");
        assert_eq!(done.peer_names, ["node-1.example", "node-2.example"]);
        assert!(!done.is_resumed, "each connection shows its certificate");
    }
    for stranger in [None, Some(Identity::new(&["node-1.example"]))] {
        let mut client = connect(versions(stranger.as_ref()), "chat.example");
        let mut handshake = server.handshake().expect("a server");
        let mut out = Vec::new();
        handshake.advance(&sent_by(&mut client), &mut out).expect("a hello");
        give(&mut client, &out).expect("valid");
        out.clear();
        let error = handshake.advance(&sent_by(&mut client), &mut out).expect_err("refused");
        assert!(matches!(error, HandshakeError::Tls(_)), "{error}");
        give(&mut client, &out).expect_err("an alert");
    }
}

#[test]
fn a_ticket_does_not_stand_for_a_certificate() {
    let node = Identity::new(&["node-1.example"]);
    let verifier = WebPkiClientVerifier::builder_with_provider(node.roots(), crate::tls::provider());
    let keys = tickets();
    let plain = Server::new(IDENTITY.resolver(), keys.clone(), Protocols::default(), None);
    let mutual =
        Server::new(IDENTITY.resolver(), keys, Protocols::default(), Some(verifier.build().expect("roots")));
    let config = Arc::new(client_config(Suite::Aes256, &[]));
    let mut client = connect(config.clone(), "chat.example");
    let mut done = shake(&mut client, plain.handshake().expect("a server"), 900).expect("a handshake");
    let mut out = Vec::new();
    done.records.seal(&[b"x"], &mut out).expect("sealed");
    give(&mut client, &out).expect("the ticket is there");
    let mut client = connect(config.clone(), "chat.example");
    assert!(shake(&mut client, plain.handshake().expect("a server"), 900).expect("a handshake").is_resumed);
    let mut client = connect(config, "chat.example");
    let mut handshake = mutual.handshake().expect("a server");
    out.clear();
    handshake.advance(&sent_by(&mut client), &mut out).expect("a hello");
    give(&mut client, &out).expect("valid");
    handshake.advance(&sent_by(&mut client), &mut Vec::new()).expect_err("no certificate");
}

#[test]
fn a_hello_in_many_records_is_one_hello() {
    let mut client = connect(client_config(Suite::ChaCha20, &["moorline/1"]), "chat.example");
    let hello = sent_by(&mut client);
    let mut handshake = server(Protocols::required("moorline/1")).handshake().expect("a server");
    let mut out = Vec::new();
    for piece in hello[5..].chunks(50) {
        assert!(out.is_empty());
        let length = u8::try_from(piece.len()).expect("50");
        let record = [&[22, 3, 1, 0, length], piece].concat();
        assert!(matches!(handshake.advance(&record, &mut out), Ok(Progress::More)));
    }
    give(&mut client, &out).expect("valid");
    shake(&mut client, handshake, 10).expect("a handshake");
}

#[test]
fn no_provider_becomes_the_default_of_the_process() {
    Pair::new(Suite::Aes256).echo("x".as_bytes());
    assert!(rustls::crypto::CryptoProvider::get_default().is_none());
}

#[test]
fn the_suite_that_is_cheap_while_idle_is_preferred() {
    let both = [Suite::Aes256, Suite::ChaCha20].map(Suite::supported).to_vec();
    let provider =
        rustls::crypto::CryptoProvider { cipher_suites: both, ..(*crate::tls::provider()).clone() };
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(IDENTITY.roots())
        .with_no_client_auth();
    let mut client = connect(config, "chat.example");
    let handshake = server(Protocols::default()).handshake().expect("a server");
    let done = shake(&mut client, handshake, usize::MAX).expect("a handshake");
    assert_eq!(done.records.suite(), Suite::ChaCha20);
}
