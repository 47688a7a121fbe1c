//! The client over TLS, against the small server behind rustls.

use super::server::{PATIENCE, Server};
use super::{say, wait_for};
use moorline_sdk::Platform;
use moorline_sdk::client::{BuildError, Client, ClientBuilder, Notice};
use moorline_sdk::core::{Backoff, Lost, TlsFault};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, PublicKeyData as _, date_time_ymd,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{HandshakeKind, ServerConfig, ServerConnection};
use sha2::{Digest as _, Sha256};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// Name of the gateway in most certificates.
const NAME: &str = "gw.example";

/// An authority and the certificates that it gives.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A key, its certificate, and the pin of the key.
struct Identity {
    config: ServerConfig,
    pin: [u8; 32],
}

impl Authority {
    fn new() -> Self {
        Self::named("our authority")
    }

    fn named(name: &str) -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    fn identity(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let pin = Sha256::digest(key.subject_public_key_info()).into();
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let builder = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let mut config = builder.with_single_cert(vec![certificate.der().clone()], private).unwrap();
        config.alpn_protocols = vec![b"moorline/1".to_vec()];
        Identity { config, pin }
    }

    fn good(&self) -> Identity {
        self.identity(NAME, |_| {})
    }
}

/// Event of a connection of a [`Front`].
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    /// A handshake ended; true: it resumed an earlier session.
    Secured(bool),
    /// The client said goodbye before it went.
    Goodbye,
}

/// TLS in front of a server.
struct Front {
    address: SocketAddr,
    seen: Receiver<Seen>,
}

impl Front {
    fn start(config: ServerConfig, server: &Server) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, behind, config) = (listener.local_addr().unwrap(), server.address, Arc::new(config));
        let (sender, seen) = channel();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (config, sender) = (Arc::clone(&config), sender.clone());
                thread::spawn(move || relay(client, TcpStream::connect(behind).unwrap(), config, &sender));
            }
        });
        Self { address, seen }
    }

    fn wait_for(&self, seen: &Seen) {
        while self.seen.recv_timeout(PATIENCE).expect("it is seen") != *seen {}
    }

    /// True if the next handshake resumed an earlier session.
    fn next_handshake(&self) -> bool {
        loop {
            if let Seen::Secured(has_resumed) = self.seen.recv_timeout(PATIENCE).expect("it is seen") {
                return has_resumed;
            }
        }
    }

    fn endpoint(&self) -> String {
        format!("tls://{}", self.address)
    }
}

/// The library's side of one connection and the socket that it writes to: one record at a time.
struct Side {
    connection: ServerConnection,
    socket: TcpStream,
}

impl Side {
    fn flush(&mut self) -> Option<()> {
        while self.connection.wants_write() {
            self.connection.write_tls(&mut self.socket).ok()?;
        }
        Some(())
    }
}

fn relay(
    mut client: TcpStream,
    mut server: TcpStream,
    config: Arc<ServerConfig>,
    seen: &Sender<Seen>,
) -> Option<()> {
    let socket = client.try_clone().ok()?;
    let side = Arc::new(Mutex::new(Side { connection: ServerConnection::new(config).unwrap(), socket }));
    let (other, mut from_server) = (Arc::clone(&side), server.try_clone().ok()?);
    thread::spawn(move || {
        let mut buffer = [0; 4_096];
        while let Some(count) = from_server.read(&mut buffer).ok().filter(|count| *count > 0) {
            let mut side = other.lock().unwrap();
            side.connection.writer().write_all(&buffer[..count]).unwrap();
            if side.flush().is_none() {
                return;
            }
        }
        let mut side = other.lock().unwrap();
        side.connection.send_close_notify();
        side.flush();
        let _ = side.socket.shutdown(Shutdown::Write); // the client's goodbye is still read
    });
    let (mut buffer, mut is_open) = ([0; 4_096], false);
    while let Some(count) = client.read(&mut buffer).ok().filter(|count| *count > 0) {
        let mut side = side.lock().unwrap();
        let mut input = &buffer[..count];
        while !input.is_empty() {
            side.connection.read_tls(&mut input).unwrap();
            let processed = side.connection.process_new_packets();
            side.flush();
            if processed.is_err() {
                let _ = side.socket.shutdown(Shutdown::Both);
                return None;
            }
        }
        if !is_open && !side.connection.is_handshaking() {
            is_open = true;
            let kind = side.connection.handshake_kind();
            seen.send(Seen::Secured(kind == Some(HandshakeKind::Resumed))).ok()?;
        }
        let mut plain = Vec::new();
        let end = side.connection.reader().read_to_end(&mut plain);
        server.write_all(&plain).ok()?;
        match end {
            Ok(_) => {
                seen.send(Seen::Goodbye).ok()?;
                break;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
    }
    server.shutdown(Shutdown::Both).ok()
}

fn builder(endpoint: &str, authority: &Authority) -> ClientBuilder {
    let quick = Backoff { base: Duration::from_millis(5), cap: Duration::from_millis(50) };
    let builder = Client::builder(endpoint).user("alice").device("test", Platform::Linux).backoff(quick);
    builder.roots_pem(authority.pem.as_bytes()).server_name(NAME)
}

/// The fault that a client of this server is told.
fn fault(
    config: ServerConfig,
    change: impl FnOnce(ClientBuilder) -> ClientBuilder,
    authority: &Authority,
) -> TlsFault {
    let server = Server::start();
    let front = Front::start(config, &server);
    let client = change(builder(&front.endpoint(), authority)).build().unwrap();
    let fault = fault_told(&client);
    assert_eq!(server.state().hellos, 0, "no token goes where the gateway is not proved");
    fault
}

fn fault_told(client: &Client) -> TlsFault {
    let notice = wait_for(client, |notice| matches!(notice, Notice::Disconnected { .. }));
    match notice {
        Notice::Disconnected { why: Lost::Tls(fault), .. } => fault,
        other => panic!("{other:?}"),
    }
}

fn wait_for_login(client: &Client) {
    wait_for(client, |notice| matches!(notice, Notice::LoggedIn { .. }));
}

#[test]
fn messages_pass_and_a_connection_that_comes_back_resumes() {
    let (server, authority) = (Server::start(), Authority::new());
    let front = Front::start(authority.good().config, &server);
    let alice = builder(&front.endpoint(), &authority).build().unwrap();
    let text = "x".repeat(20_000); // more than one record
    say(&alice, "alice", &text).wait_durable(PATIENCE).expect("durable");
    assert_eq!(alice.recv_timeout(PATIENCE).expect("comes").payload, text.as_bytes());
    assert!(!front.next_handshake());
    wait_for_login(&alice);
    server.break_connection("alice");
    wait_for_login(&alice);
    assert!(front.next_handshake());
}

#[test]
fn a_client_that_leaves_says_goodbye_to_tls() {
    let (server, authority) = (Server::start(), Authority::new());
    let front = Front::start(authority.good().config, &server);
    let alice = builder(&front.endpoint(), &authority).build().unwrap();
    wait_for_login(&alice);
    drop(alice);
    front.wait_for(&Seen::Goodbye);
}

#[test]
fn each_fault_of_a_certificate_is_told_by_its_name() {
    let authority = Authority::new();
    let same = |builder: ClientBuilder| builder;
    let fault_of = |identity: Identity| fault(identity.config, same, &authority);
    for name in ["another authority", "our authority"] {
        assert_eq!(fault_of(Authority::named(name).good()), TlsFault::UnknownAuthority, "{name}");
    }
    let other = authority.identity("other.example", |_| {});
    assert_eq!(fault_of(other), TlsFault::WrongName { name: NAME.into() });
    let expired = authority.identity(NAME, |params| params.not_after = date_time_ymd(2020, 1, 1));
    assert_eq!(fault_of(expired), TlsFault::Expired);
    let early = authority.identity(NAME, |params| params.not_before = date_time_ymd(3000, 1, 1));
    assert_eq!(fault_of(early), TlsFault::NotYetValid);
}

#[test]
fn only_a_gateway_with_a_pinned_key_and_the_right_protocol_is_spoken_to() {
    let authority = Authority::new();
    let (good, other) = (authority.good(), authority.good());
    let pinned = |builder: ClientBuilder| builder.pins([[0; 32], good.pin]);
    assert_eq!(fault(other.config, pinned, &authority), TlsFault::WrongKey { sha256: other.pin });
    let same = |builder: ClientBuilder| builder;
    for protocols in [vec![], vec![b"http/1.1".to_vec()]] {
        let mut identity = authority.good();
        identity.config.alpn_protocols = protocols;
        assert_eq!(fault(identity.config, same, &authority), TlsFault::NoProtocol);
    }
    let server = Server::start();
    let front = Front::start(good.config, &server);
    let alice = builder(&front.endpoint(), &authority).pins([good.pin]).build().unwrap();
    wait_for_login(&alice);
}

/// A web server's answer to bytes that it does not understand.
#[test]
fn a_server_without_tls_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = listener.local_addr().unwrap().to_string(); // without a scheme
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    let alice = builder(&endpoint, &Authority::new()).build().unwrap();
    assert_eq!(fault_told(&alice), TlsFault::NotTls);
}

#[test]
fn a_gateway_that_stops_leads_only_to_one_that_proves_the_name() {
    let (server, authority) = (Server::start(), Authority::new());
    let (own, next) =
        (Front::start(authority.good().config, &server), Front::start(authority.good().config, &server));
    let strange = Front::start(authority.identity("evil.example", |_| {}).config, &server);
    let alice = builder(&own.endpoint(), &authority).build().unwrap();
    wait_for_login(&alice);
    assert!(!own.next_handshake());
    server.go_away("alice", &strange.address.to_string());
    let refused = wait_for(&alice, |notice| matches!(notice, Notice::Disconnected { why: Lost::Tls(_), .. }));
    let wrong = TlsFault::WrongName { name: NAME.into() };
    assert!(matches!(refused, Notice::Disconnected { why: Lost::Tls(fault), .. } if fault == wrong));
    wait_for_login(&alice);
    own.next_handshake(); // it comes back to its own endpoint
    server.go_away("alice", &next.address.to_string());
    wait_for_login(&alice);
    next.next_handshake();
}

#[test]
fn a_listed_alternate_may_prove_its_own_name() {
    let (server, authority) = (Server::start(), Authority::new());
    let own = Front::start(authority.good().config, &server);
    let next = Front::start(authority.identity("localhost", |_| {}).config, &server);
    let alternate = format!("localhost:{}", next.address.port());
    let alice =
        builder(&own.endpoint(), &authority).alternates([&*format!("tls://{alternate}")]).build().unwrap();
    wait_for_login(&alice);
    server.go_away("alice", &alternate);
    wait_for_login(&alice);
    next.next_handshake();
}

#[test]
fn plain_tcp_leaves_this_machine_only_if_the_application_says_so() {
    let build = |endpoint: &str| Client::builder(endpoint).user("alice").build();
    for endpoint in ["tcp://192.0.2.1:1", "tcp://gw.example:1", "tcp://localhost.example:1"] {
        let refused = build(endpoint).unwrap_err();
        assert!(matches!(refused, BuildError::Plain { .. }), "{refused}");
        assert!(
            refused.to_string().contains("tls://") && refused.to_string().contains("allow_plain"),
            "{refused}"
        );
    }
    assert!(Client::builder("tcp://192.0.2.1:1").user("alice").allow_plain(true).build().is_ok());
    assert!(build("tcp://[::1]:1").is_ok());
    let mixed = Client::builder("tcp://127.0.0.1:1").alternates(["tls://127.0.0.1:2"]).user("alice").build();
    assert!(matches!(mixed, Err(BuildError::Mixed { .. })), "{mixed:?}");
}

#[test]
fn bad_settings_of_tls_are_refused_with_a_reason() {
    let refused = |builder: ClientBuilder| builder.user("alice").build().unwrap_err();
    for pem in ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "no certificate"] {
        let error = refused(Client::builder("tls://gw.example:1").roots_pem(pem.as_bytes()));
        assert!(matches!(error, BuildError::Tls(_)) && error.to_string().contains("authorities"), "{error}");
    }
    let error = refused(Client::builder("tls://gw_ .example:1").roots_pem(Authority::new().pem.as_bytes()));
    assert!(matches!(error, BuildError::Endpoint { .. }), "{error}");
    let builder = Client::builder("tls://127.0.0.1:1").roots_pem(Authority::new().pem.as_bytes());
    let error = refused(builder.server_name("not a name"));
    assert!(error.to_string().contains("not a name"), "{error}");
}
