//! The client's end, with a certificate of its own: against the server's end, against rustls, and against OpenSSL.

use super::files::Folder;
use super::pair::Identity;
use crate::tls::{
    Client, End, Established, Handshake, HandshakeError, Mutual, MutualFiles, Progress, Records, Server,
};
use moorline_proto::time::Instant;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

const PROTOCOL: &str = "link/1";
const SERVER: &str = "server.example";
/// Midnight of 2026-01-01.
const UNIX_NOW_S: u64 = 1_767_225_600;
const NOW: Instant = Instant::from_nanos(5_000_000_000);

/// Wait for one line or one packet.
const WAIT: Duration = Duration::from_secs(30);

/// Files of both ends under one CA.
pub(crate) struct Ends {
    folder: Folder,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Ends {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name.push(DnType::CommonName, "the CA of a test");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        Self { folder: Folder::new(), issuer: CertifiedIssuer::self_signed(params, key).expect("signed") }
    }

    fn files(&self, name: &str) -> MutualFiles {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("names");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        MutualFiles {
            ca: self.folder.write("ca.pem", &self.issuer.pem()),
            certificate: self.folder.write(&format!("{name}.pem"), &certificate.pem()),
            key: self.folder.write(&format!("{name}.key"), &key.serialize_pem()),
            ..MutualFiles::default()
        }
    }

    pub(crate) fn client(&self) -> Client {
        self.read("node-1").client(PROTOCOL).expect("lawful")
    }

    pub(crate) fn server(&self) -> Server {
        self.read(SERVER).server(PROTOCOL).expect("lawful")
    }

    fn read(&self, name: &str) -> Mutual {
        Mutual::read(&self.files(name), UNIX_NOW_S).expect("valid files")
    }

    /// A client's handshake with the server.
    pub(crate) fn dial(&self) -> Handshake {
        self.client().handshake(SERVER).expect("a name")
    }

    /// A server of the library, which gives tickets.
    fn library(&self, tickets: usize) -> ServerConnection {
        let files = self.files(SERVER);
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).expect("a root");
        let provider = crate::tls::provider();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_client_cert_verifier(verifier.build().expect("a verifier"))
            .with_single_cert(
                vec![CertificateDer::from_pem_file(files.certificate).expect("PEM")],
                PrivateKeyDer::from_pem_file(files.key).expect("PEM"),
            )
            .expect("a pair");
        config.alpn_protocols = vec![PROTOCOL.into()];
        config.send_tls13_tickets = tickets;
        ServerConnection::new(Arc::new(config)).expect("a server")
    }
}

/// Exchanges flights in pieces of `step` bytes until both ends are done.
fn shake(
    mut client: Handshake,
    mut server: Handshake,
    step: usize,
) -> Result<(Established, Established), HandshakeError> {
    let (mut to_server, mut ours, mut theirs) = (Vec::new(), None, None);
    assert!(matches!(client.advance(&[], &mut to_server), Ok(Progress::More)));
    for _ in 0..4 {
        let mut to_client = Vec::new();
        for piece in std::mem::take(&mut to_server).chunks(step) {
            if let Progress::Done(done) = server.advance(piece, &mut to_client)? {
                theirs = Some(*done);
            }
        }
        for piece in to_client.chunks(step) {
            if let Progress::Done(done) = client.advance(piece, &mut to_server)? {
                ours = Some(*done);
            }
        }
        if theirs.is_some() {
            break;
        }
    }
    Ok((ours.expect("done"), theirs.expect("done")))
}

fn opened(records: &mut Records, mut bytes: Vec<u8>) -> Vec<u8> {
    let opened = records.open(&mut bytes, NOW);
    assert_eq!((opened.end, opened.consumed), (None, bytes.len()));
    bytes[opened.plain].to_vec()
}

fn sealed(records: &mut Records, text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    records.seal(&[text], &mut out).expect("owner");
    out
}

/// Takes the state to another process.
fn handed_over(records: &mut Records) -> Records {
    let frozen = records.freeze().expect("owner");
    records.retire();
    let mut thawed = Records::thaw(frozen.as_ref()).expect("valid");
    assert_eq!(thawed.freeze().expect("owner").as_ref(), frozen.as_ref());
    thawed.resume().expect("thawed");
    thawed
}

#[test]
fn both_ends_show_certificates_and_talk_over_handovers_and_key_updates() {
    let ends = Ends::new();
    for step in [1, 7, 300, usize::MAX] {
        let (ours, theirs) =
            shake(ends.dial(), ends.server().handshake().expect("a server"), step).expect("a handshake");
        assert_eq!((ours.peer_names, theirs.peer_names), (vec![SERVER.into()], vec!["node-1".into()]));
        assert_eq!((ours.protocol, ours.is_resumed), (Some(PROTOCOL.into()), false));
        let (mut client, mut server) = (ours.records, theirs.records);
        for round in 0..6_u8 {
            let mut update = Vec::new();
            if round % 2 == 0 { &mut client } else { &mut server }
                .request_update(&mut update)
                .expect("owner");
            let (from, to) =
                if round % 2 == 0 { (&mut client, &mut server) } else { (&mut server, &mut client) };
            assert!(opened(to, update).is_empty());
            let text = vec![round; 20_000];
            assert_eq!(opened(to, sealed(from, &text)), text);
            assert_eq!(opened(from, sealed(to, &text)), text, "behind the answer to the update");
            (client, server) = (handed_over(&mut client), handed_over(&mut server));
        }
        let mut last = Vec::new();
        client.close_notify(&mut last).expect("owner");
        assert_eq!(server.open(&mut last, NOW).end, Some(End::Closed));
    }
}

#[test]
fn a_client_bears_the_tickets_of_a_library_and_its_key_updates() {
    let ends = Ends::new();
    let mut server = ends.library(4);
    let mut client = ends.dial();
    let mut out = Vec::new();
    client.advance(&[], &mut out).expect("a hello");
    let write = |server: &mut ServerConnection| {
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).expect("memory");
        }
        bytes
    };
    let give = |server: &mut ServerConnection, mut bytes: &[u8]| {
        while !bytes.is_empty() {
            server.read_tls(&mut bytes).expect("memory");
            server.process_new_packets().expect("lawful");
        }
    };
    give(&mut server, &out);
    out.clear();
    let Ok(Progress::Done(done)) = client.advance(&write(&mut server), &mut out) else { panic!("not done") };
    give(&mut server, &out);
    let mut records = done.records;
    assert!(done.leftover.is_empty());
    // The tickets come in one record.
    assert!(opened(&mut records, write(&mut server)).is_empty());
    for round in 0..6_u8 {
        records = handed_over(&mut records);
        server.writer().write_all(&[round; 3_000]).expect("memory");
        server.refresh_traffic_keys().expect("a KeyUpdate");
        let came = write(&mut server);
        assert_eq!(opened(&mut records, came), [round; 3_000]);
        let mut sent = Vec::new();
        if round % 2 == 0 {
            records.request_update(&mut sent).expect("owner");
        }
        records.seal(&[b"answer"], &mut sent).expect("owner");
        give(&mut server, &sent);
        let mut text = [0; 6];
        server.reader().read_exact(&mut text).expect("the text");
        assert_eq!(&text, b"answer");
    }
    // A server's end bears no ticket, and a client's end only whole ones.
    for (message, is_borne) in
        [(&[4, 0, 0, 1, 9][..], true), (&[4, 0, 0, 2, 9], false), (&[20, 0, 0, 0], false)]
    {
        let (ours, theirs) =
            shake(ends.dial(), ends.server().handshake().expect("a server"), 900).expect("a handshake");
        let (mut client, mut server) = (ours.records, theirs.records);
        let mut ticket = server.seal_raw(22, message);
        assert_eq!(client.open(&mut ticket, NOW).end.is_none(), is_borne, "{message:?}");
        let mut ticket = client.seal_raw(22, message);
        assert!(server.open(&mut ticket, NOW).end.is_some());
    }
}

#[test]
fn a_server_of_another_ca_or_name_is_refused_and_told() {
    let (ends, others) = (Ends::new(), Ends::new());
    let cases = [
        (others.server(), SERVER, "is not of a CA in ca_file"),
        (ends.server(), "other.example", "has not the name that is dialled"),
        (ends.server(), "10.0.0.1", "has not the name that is dialled"),
    ];
    for (server, name, why) in cases {
        let mut client = ends.client().handshake(name).expect("a name");
        let (mut hello, mut flight, mut told) = (Vec::new(), Vec::new(), Vec::new());
        client.advance(&[], &mut hello).expect("a hello");
        let mut server = server.handshake().expect("a server");
        server.advance(&hello, &mut flight).expect("a hello");
        let error = client.advance(&flight, &mut told).expect_err("refused");
        assert!(error.explain("server").contains(&format!("the certificate of the server {why}")), "{error}");
        let error = server.advance(&told, &mut Vec::new()).expect_err("an alert");
        assert!(error.to_string().contains("alert"), "{error}");
    }
    assert!(ends.client().handshake("not a name").is_err());
    // A server that does not choose the protocol is another one.
    let other = ends.read(SERVER).server("other/1").expect("lawful");
    let mut client = ends.dial();
    let (mut hello, mut told) = (Vec::new(), Vec::new());
    client.advance(&[], &mut hello).expect("a hello");
    other.handshake().expect("a server").advance(&hello, &mut told).expect_err("another protocol");
    client.advance(&told, &mut Vec::new()).expect_err("an alert");
}

#[test]
fn files_of_an_end_are_refused_by_name() {
    let ends = Ends::new();
    let files = ends.files("node-1");
    let other = Identity::new(&["node-1"]);
    let text = ends.folder.write("other.pem", "no PEM\n");
    let stray = ends.folder.write("stray.key", &other.key.serialize_pem());
    let list = ends.folder.write("crl.pem", "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n");
    for (files, key, why) in [
        (MutualFiles { ca: text.clone(), ..files.clone() }, "ca_file", "no certificate"),
        (MutualFiles { certificate: text.clone(), ..files.clone() }, "certificate_file", "no certificate"),
        (MutualFiles { key: stray, ..files.clone() }, "key_file", "not the key of"),
        (MutualFiles { crl: text, ..files.clone() }, "crl_file", "no list"),
        (MutualFiles { crl: list, ..files.clone() }, "crl_file", "not a complete list"),
    ] {
        let error = Mutual::read(&files, UNIX_NOW_S).expect_err("refused");
        assert!(error.key == key && error.to_string().contains(why), "{error}");
    }
    let mutual = Mutual::read(&files, UNIX_NOW_S).expect("valid");
    assert!(mutual.is_for("Node-1") && !mutual.is_for("node-2") && mutual.not_after() > UNIX_NOW_S);
}

/// A child that is ended with the test.
struct Ended(Child);

impl Ended {
    /// Starts a server of OpenSSL.
    fn start(files: &MutualFiles) -> (SocketAddr, Self) {
        // Was free a moment ago.
        let free = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a port");
        let child = Command::new("openssl")
            .args(["s_server", "-accept", &free.to_string(), "-tls1_3", "-alpn", PROTOCOL, "-naccept", "1"])
            .args(["-Verify", "1", "-verify_return_error", "-num_tickets", "3"])
            .args([std::ffi::OsStr::new("-CAfile"), files.ca.as_os_str()])
            .args([std::ffi::OsStr::new("-cert"), files.certificate.as_os_str()])
            .args([std::ffi::OsStr::new("-key"), files.key.as_os_str()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl is there");
        (free, Self(child))
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn openssl_is_a_server() {
    if Command::new("openssl").arg("version").stdout(Stdio::null()).status().is_err() {
        eprintln!("NOT RUN: there is no program `openssl`");
        return;
    }
    let ends = Ends::new();
    let (free, mut child) = Ended::start(&ends.files(SERVER));
    let child = &mut child.0;
    let mut input = child.stdin.take().expect("piped");
    let (sender, lines) = channel();
    let stdout = BufReader::new(child.stdout.take().expect("piped"));
    thread::spawn(move || stdout.lines().map_while(Result::ok).for_each(|line| _ = sender.send(line)));
    let expect = |part: &str| {
        while !lines.recv_timeout(WAIT).unwrap_or_else(|_| panic!("no line with {part:?}")).contains(part) {}
    };
    expect("ACCEPT");
    let mut socket = TcpStream::connect(free).expect("it listens");
    socket.set_read_timeout(Some(WAIT)).expect("a timeout");
    let (mut handshake, mut out, mut room) = (ends.dial(), Vec::new(), [0; 4096]);
    handshake.advance(&[], &mut out).expect("a hello");
    let done = loop {
        socket.write_all(&out).expect("written");
        out.clear();
        let count = socket.read(&mut room).expect("bytes");
        if let Progress::Done(done) = handshake.advance(&room[..count], &mut out).expect("lawful") {
            break done;
        }
    };
    socket.write_all(&out).expect("written");
    let (mut records, mut tail) = (done.records, done.leftover);
    let mut until = |socket: &mut TcpStream, records: &mut Records, wanted: Option<&str>| {
        let mut text = Vec::new();
        loop {
            let opened = records.open(&mut tail, NOW);
            assert_eq!(opened.end, None);
            text.extend_from_slice(&tail[opened.plain]);
            tail.drain(..opened.consumed);
            match wanted {
                Some(wanted) if text == wanted.as_bytes() => return,
                None if opened.is_answer_due => return,
                _ => {}
            }
            let count = socket.read(&mut room).expect("bytes");
            assert!(count > 0, "the server left: {}", String::from_utf8_lossy(&text));
            tail.extend_from_slice(&room[..count]);
        }
    };
    for round in 0..3 {
        // The server changes its key, and wants the client to. It takes what it reads at once for one command.
        input.write_all(b"K\n").expect("it reads");
        until(&mut socket, &mut records, None);
        records = handed_over(&mut records);
        input.write_all(format!("from the server {round}\n").as_bytes()).expect("it reads");
        until(&mut socket, &mut records, Some(&format!("from the server {round}\n")));
        let mut sent = Vec::new();
        records.request_update(&mut sent).expect("owner");
        records.seal(&[format!("from the client {round}\n").as_bytes()], &mut sent).expect("owner");
        socket.write_all(&sent).expect("written");
        expect(&format!("from the client {round}"));
    }
    let mut last = Vec::new();
    records.close_notify(&mut last).expect("owner");
    socket.write_all(&last).expect("written");
}
