//! Mutual TLS on links between real processes: who is refused and how that is told, and reloads.

use crate::gateway::{Backend, Gateway};
use crate::process::{Process, TempFile, run};
use crate::raw::Client;
use crate::series::Series;
use crate::{PATIENCE, until};
use bytes::BytesMut;
use moorline_proto::link::{self, Kind};
use moorline_proto::message::backend::LinkHello;
use moorline_proto::message::client::Code;
use nix::sys::signal::Signal;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, IsCa,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// Name that the certificates of these backends have beside their address.
const BACKEND: &str = "backend.internal";

/// A CA in memory, with its certificate in a file.
pub(crate) struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
    file: TempFile,
}

/// A certificate and its key in files.
pub(crate) struct Paper {
    certificate: TempFile,
    key: TempFile,
}

impl Ca {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("signed");
        let file = TempFile::new(issuer.pem());
        Self { issuer, file }
    }

    pub(crate) fn issue(&self, names: &[&str]) -> Paper {
        self.issue_as(names, |_| ())
    }

    fn issue_as(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Paper {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        change(&mut params);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        Paper { certificate: TempFile::new(certificate.pem()), key: TempFile::new(key.serialize_pem()) }
    }

    pub(crate) fn backend(&self) -> Paper {
        self.issue(&["127.0.0.1", BACKEND])
    }

    /// A list that revokes the certificate with this serial number.
    fn revoke(&self, serial: u64) -> TempFile {
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: date_time_ymd(2025, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2025, 1, 1),
            next_update: date_time_ymd(2099, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        TempFile::new(list.signed_by(&self.issuer).expect("signed").pem().expect("PEM"))
    }
}

impl Paper {
    /// Settings of a section.
    pub(crate) fn sets(&self, section: &str, ca: &Ca) -> Vec<String> {
        [("ca_file", &ca.file), ("certificate_file", &self.certificate), ("key_file", &self.key)]
            .iter()
            .map(|(key, file)| format!("{section}.{key}=\"{}\"", file.path().display()))
            .collect()
    }

    /// Takes the place of another one, in its files.
    fn replace(&self, other: &Self) {
        std::fs::copy(self.certificate.path(), other.certificate.path()).expect("our file");
        std::fs::copy(self.key.path(), other.key.path()).expect("our file");
    }
}

pub(crate) fn strs(sets: &[String]) -> Vec<&str> {
    sets.iter().map(String::as_str).collect()
}

pub(crate) fn backend(paper: &Paper, ca: &Ca, more: &[&str]) -> Backend {
    let sets = paper.sets("link.tls", ca);
    Backend::start_with(&[&["listen=127.0.0.1:0", "link.unproven=refuse"], &strs(&sets)[..], more].concat())
}

/// Settings of the gateway `g1`.
pub(crate) fn gateway_sets(paper: &Paper, ca: &Ca) -> Vec<String> {
    let mut sets = vec!["gateway.id=g1".to_owned(), "backend.unproven=refuse".to_owned()];
    sets.extend(paper.sets("backend.tls", ca));
    sets
}

fn gateway(address: SocketAddr, paper: &Paper, ca: &Ca, more: &[&str]) -> Gateway {
    let (sets, endpoint) = (gateway_sets(paper, ca), format!("backend.endpoints={address}"));
    Gateway::start_bare(&[&strs(&sets)[..], &[&endpoint], more].concat())
}

fn until_log(process: &Process, text: &str) {
    until(&format!("{text:?} in the log"), || process.log().contains(text).then_some(()));
}

/// Both ends know why there is no link, and a stranger is counted.
fn both_say(gateway: &Gateway, backend: &Backend, why: [&str; 2]) {
    until_log(&gateway.process, why[0]);
    until_log(&backend.process, why[1]);
    assert_eq!(gateway.get("/readyz").0, 503);
    // The status of the moment: a try may be under way.
    until("the status says why", || {
        gateway.varz().problems.iter().any(|problem| problem.contains(why[0])).then_some(())
    });
}

pub(crate) fn chat(clients: &mut [Client; 2], key: u128, body: &[u8]) {
    let before = clients[1].heard.pushes.len();
    let [alice, bob] = clients;
    assert_eq!(alice.tell(key, "bob", body).code(), Code::Ok);
    bob.until("the message", |heard| heard.pushes.len() > before);
    assert_eq!(bob.heard.pushes[before].payload, body);
}

pub(crate) fn login(gateway: &Gateway) -> [Client; 2] {
    ["alice", "bob"].map(|uid| Client::login(gateway.listener, uid, "d"))
}

/// Bytes that pass between a gateway and a backend.
struct Tap {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<u8>>>,
}

impl Tap {
    fn before(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let tap = Self { address: listener.local_addr().expect("bound"), seen: Arc::default() };
        let seen = Arc::clone(&tap.seen);
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let Ok(far) = TcpStream::connect(target) else { continue };
                for (mut from, mut to) in [(&near, &far), (&far, &near)].map(|(from, to)| {
                    (from.try_clone().expect("a socket"), to.try_clone().expect("a socket"))
                }) {
                    let seen = Arc::clone(&seen);
                    std::thread::spawn(move || {
                        let mut block = [0; 16 << 10];
                        while let Ok(count @ 1..) = from.read(&mut block) {
                            seen.lock().expect("unpoisoned").extend_from_slice(&block[..count]);
                            if to.write_all(&block[..count]).is_err() {
                                break;
                            }
                        }
                        to.shutdown(Shutdown::Both).ok();
                    });
                }
            }
        });
        tap
    }
}

#[test]
fn messages_pass_over_encrypted_links_and_nobody_on_the_way_reads_them() {
    let ca = Ca::new("own");
    let (paper, own) = (ca.backend(), ca.issue(&["g1"]));
    let backend = backend(&paper, &ca, &[]);
    let tap = Tap::before(backend.address);
    let gateway = gateway(tap.address, &own, &ca, &[]);
    gateway.until_ready();
    gateway.until_metric("links_encrypted", 1);
    [&gateway.process, &backend.process].iter().for_each(|it| crate::tls::check_hidden(it.pid()));
    let mut clients = login(&gateway);
    let text = b"nobody on the way reads this";
    let large: Vec<u8> = (0..50_000_u32).map(|number| number.to_le_bytes()[0]).collect();
    for (key, body) in [(1, &text[..]), (2, &large), (3, text)] {
        chat(&mut clients, key, body);
    }
    let seen = tap.seen.lock().expect("unpoisoned");
    assert!(seen.len() > 100_000, "it went this way: {} bytes", seen.len());
    for word in [&text[..], b"alice", b"moorline/"] {
        assert!(!seen.windows(word.len()).any(|window| window == word), "{}", String::from_utf8_lossy(word));
    }
}

#[test]
fn the_name_of_a_backend_may_be_given_and_a_secret_may_be_asked_beside_the_certificate() {
    const SECRET: &str = "a-secret-of-thirty-two-bytes-at-least";
    let ca = Ca::new("own");
    let (paper, own) = (ca.issue(&[BACKEND]), ca.issue(&["other", "G1"]));
    let secrets = TempFile::new(format!("g1 {SECRET}\n"));
    let list = format!("link.secrets_file=\"{}\"", secrets.path().display());
    let strict = backend(&paper, &ca, &[&list]);
    let name = format!("backend.tls.server_name={BACKEND}");
    let bare = gateway(strict.address, &own, &ca, &[&name]);
    both_say(&bare, &strict, ["the backend asks for a proof", "closed a connection that was not a link"]);
    let line = format!("backend.secrets_file=\"{}\"", secrets.path().display());
    let proven = gateway(strict.address, &own, &ca, &[&name, &line]);
    proven.until_ready();
    chat(&mut login(&proven), 1, b"hi");
    drop(proven);
    // A backend without secrets takes the certificate of a gateway with one.
    let open = backend(&paper, &ca, &[]);
    let gateway = gateway(open.address, &own, &ca, &[&name, &line]);
    gateway.until_ready();
}

#[test]
fn a_wrong_ca_keeps_both_ends_apart_and_both_say_why() {
    let (ca, other) = (Ca::new("own"), Ca::new("other"));
    let (paper, foreign) = (ca.backend(), other.issue(&["g1"]));
    // The gateway believes the backend, and is not believed.
    let one = backend(&paper, &ca, &[]);
    let refused = gateway(one.address, &foreign, &ca, &[]);
    both_say(
        &refused,
        &one,
        [
            "the backend refuses the certificate of this gateway",
            "the certificate of the gateway is not of a CA in ca_file",
        ],
    );
    // The other way round.
    let two = backend(&paper, &other, &[]);
    let refusing = gateway(two.address, &foreign, &other, &[]);
    both_say(&refusing, &two, ["the certificate of the backend is not of a CA in ca_file", "alert"]);
}

#[test]
fn expired_and_revoked_certificates_are_refused_at_both_ends() {
    let ca = Ca::new("own");
    let expire = |params: &mut CertificateParams| {
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
    };
    let number =
        |serial: u64| move |params: &mut CertificateParams| params.serial_number = Some(serial.into());
    let names = ["127.0.0.1"];
    let (good, own) = (ca.issue_as(&names, number(1)), ca.issue_as(&["g1"], number(2)));
    let list = ca.revoke(7);
    let [there, here] = ["link.tls", "backend.tls"]
        .map(|section| format!("{section}.crl_file=\"{}\"", list.path().display()));
    // A list of other certificates does not matter.
    let honest = backend(&good, &ca, &[&there]);
    gateway(honest.address, &own, &ca, &[&here]).until_ready();

    for (old, why) in [
        (ca.issue_as(&["g1"], expire), "the certificate of the gateway has expired"),
        (ca.issue_as(&["g1"], number(7)), "the certificate of the gateway is revoked by crl_file"),
    ] {
        let backend = backend(&good, &ca, &[&there]);
        let refused = gateway(backend.address, &old, &ca, &[]);
        both_say(&refused, &backend, ["the backend refuses the certificate of this gateway", why]);
    }
    for (old, why) in [
        (ca.issue_as(&names, expire), "the certificate of the backend has expired"),
        (ca.issue_as(&names, number(7)), "the certificate of the backend is revoked by crl_file"),
    ] {
        let backend = backend(&old, &ca, &[]);
        let refusing = gateway(backend.address, &own, &ca, &[&here]);
        both_say(&refusing, &backend, [why, "alert"]);
    }
}

/// A connection by TLS without any gateway.
fn stranger(address: SocketAddr, ca: &Ca, paper: Option<&Paper>) -> StreamOwned<ClientConnection, TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca.file.path()).expect("PEM")).expect("a root");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots);
    let mut config = match paper {
        None => builder.with_no_client_auth(),
        Some(paper) => {
            let chain = vec![CertificateDer::from_pem_file(paper.certificate.path()).expect("PEM")];
            let key = PrivateKeyDer::from_pem_file(paper.key.path()).expect("PEM");
            builder.with_client_auth_cert(chain, key).expect("a pair")
        }
    };
    config.alpn_protocols = vec![b"moorline-link/1".to_vec()];
    let stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let name = ServerName::try_from(BACKEND).expect("a name");
    StreamOwned::new(ClientConnection::new(Arc::new(config), name).expect("lawful"), stream)
}

fn hello(node: &str) -> Vec<u8> {
    let hello = LinkHello {
        version_min: 1,
        version_max: 1,
        node: node.into(),
        epoch: 1,
        nonce: vec![7; link::NONCE_BYTES].into(),
        ..LinkHello::default()
    };
    let mut out = BytesMut::new();
    link::encode(&mut out, Kind::Hello, 0, 0, &hello);
    out.to_vec()
}

#[test]
fn a_node_without_its_name_in_the_certificate_is_refused_and_so_is_who_shows_none() {
    let ca = Ca::new("own");
    let paper = ca.backend();
    let own = ca.issue(&["g1", "g3"]);
    // The gateway itself sees that its certificate is of another node.
    let sets = gateway_sets(&own, &ca);
    let mut arguments = vec!["run", "--set=auth.mode=dev", "--set=admin.address=127.0.0.1:0"];
    sets.iter().for_each(|set| arguments.extend(["--set", set.as_str()]));
    arguments.extend(["--set", "gateway.id=g2"]);
    let (code, _, said) = run(&arguments);
    assert!(code == Some(2) || code == Some(1), "{code:?} {said}");
    assert!(
        said.contains("is not for the gateway \"g2\", but for g1, g3; issue a certificate with the DNS name"),
        "{said}"
    );

    let refusing = backend(&paper, &ca, &[]);
    let mut liar = stranger(refusing.address, &ca, Some(&own));
    liar.write_all(&hello("g2")).expect("it stands");
    let mut rest = Vec::new();
    liar.read_to_end(&mut rest).expect("an end in due form");
    assert!(String::from_utf8_lossy(&rest).contains("is not for this name"), "a notice says why");
    until_log(
        &refusing.process,
        "refused the gateway \"g2\": the certificate of the gateway is not for this name",
    );
    // The same certificate may be g1.
    let mut honest = stranger(refusing.address, &ca, Some(&own));
    honest.write_all(&hello("g1")).expect("it stands");
    honest.read_exact(&mut [0; 20]).expect("HELLO of the backend");

    let refusing = backend(&paper, &ca, &[]);
    let mut nobody = stranger(refusing.address, &ca, None);
    let told =
        nobody.write_all(&hello("g1")).and_then(|()| nobody.read_exact(&mut [0; 20])).expect_err("refused");
    assert!(told.to_string().contains("ertificateRequired"), "{told}");
    until_log(&refusing.process, "the gateway shows no certificate");
}

#[test]
fn ends_of_which_one_speaks_tls_tell_each_other_by_name() {
    let ca = Ca::new("own");
    let (paper, own) = (ca.backend(), ca.issue(&["g1"]));
    let tls = backend(&paper, &ca, &[]);
    let endpoint = format!("backend.endpoints={}", tls.address);
    let plain = Gateway::start_bare(&["gateway.id=g1", &endpoint]);
    both_say(&plain, &tls, ["the peer speaks TLS and this end does not", "the gateway does not speak TLS"]);

    let bare = Backend::start();
    let sealed = gateway(bare.address, &own, &ca, &[]);
    both_say(
        &sealed,
        &bare,
        [
            "the backend closed the connection in the TLS handshake",
            "the peer speaks TLS and this end does not",
        ],
    );
    // Something else that answers.
    let other = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let lost = gateway(other.local_addr().expect("bound"), &own, &ca, &[]);
    let (mut stream, _) = other.accept().expect("the gateway comes");
    stream.write_all(b"220 mail.example ESMTP\r\n").expect("it stands");
    until_log(&lost.process, "the backend does not speak TLS");
}

fn hup(process: &Process, expected: &str) {
    let before = process.log().matches(expected).count();
    process.signal(Signal::SIGHUP);
    until(expected, || (process.log().matches(expected).count() > before).then_some(()));
}

#[test]
fn reloads_replace_certificates_and_no_link_breaks() {
    let (old, new) = (Ca::new("old"), Ca::new("new"));
    let (paper, own) = (old.backend(), old.issue(&["g1"]));
    let backend = backend(&paper, &old, &[]);
    let gateway = gateway(backend.address, &own, &old, &[]);
    gateway.until_ready();
    let mut clients = login(&gateway);
    chat(&mut clients, 1, b"before");
    // A key of another certificate changes nothing, on either side.
    let (next_paper, next_own) = (new.backend(), new.issue(&["g1"]));
    for (process, now, next) in [(&backend.process, &paper, &next_paper), (&gateway.process, &own, &next_own)]
    {
        std::fs::copy(next.certificate.path(), now.certificate.path()).expect("our file");
        hup(process, "cannot reload");
        until_log(process, "it is not the key of");
    }
    for (next, now) in [(&next_paper, &paper), (&next_own, &own)] {
        next.replace(now);
    }
    std::fs::copy(new.file.path(), old.file.path()).expect("our file");
    hup(&backend.process, "were read again");
    hup(&gateway.process, "settings and keys were read again");
    chat(&mut clients, 2, b"behind");
    assert_eq!(gateway.process.log().matches("link up").count(), 1, "{}", gateway.process.log());
    // The next link is of the new CA: only that one is believed.
    let stale = Ca::new("stale");
    let mut stranger = stranger(backend.address, &new, Some(&stale.issue(&["g1"])));
    assert!(stranger.write_all(&hello("g1")).and_then(|()| stranger.read_exact(&mut [0; 20])).is_err());
    let place = backend.kill();
    let sets = next_paper.sets("link.tls", &new);
    let listen = format!("listen={place}");
    let _next = Backend::start_with(&[&[listen.as_str(), "link.unproven=refuse"], &strs(&sets)[..]].concat());
    until("the next link", || (gateway.process.log().matches("link up").count() == 2).then_some(()));
}

#[test]
fn plain_links_become_encrypted_by_reloads_of_both_ends() {
    let ca = Ca::new("own");
    let (paper, own) = (ca.backend(), ca.issue(&["g1"]));
    let settings = TempFile::new("listen = \"127.0.0.1:0\"\n[link]\nunproven = \"loopback\"\n");
    let place = settings.path().display().to_string();
    let (backend, _) = Backend::of_command(crate::process::program(&["backend", "-c", place.as_str()]));
    let here = TempFile::new("");
    let text = |tls: &str| {
        format!(
            "[gateway]\nid = \"g1\"\n[auth]\nmode = \"dev\"\n[[listener]]\naddress = \"127.0.0.1:0\"\n[worker]\ncount = 1\n\
             [backend]\nendpoints = [\"{}\"]\n{tls}",
            backend.address
        )
    };
    std::fs::write(here.path(), text("")).expect("our file");
    let series = Series::start_file(here.path());
    let gateway = &series.gateway;
    let mut clients = login(gateway);
    chat(&mut clients, 1, b"plain");
    assert_eq!(gateway.metric("links_encrypted"), 0);
    let section = |name: &str, paper: &Paper| {
        format!(
            "[{name}]\nca_file = \"{}\"\ncertificate_file = \"{}\"\nkey_file = \"{}\"\n",
            ca.file.path().display(),
            paper.certificate.path().display(),
            paper.key.path().display()
        )
    };
    std::fs::write(settings.path(), format!("listen = \"127.0.0.1:0\"\n{}", section("link.tls", &paper)))
        .expect("our file");
    hup(&backend.process, "were read again");
    std::fs::write(here.path(), text(&section("backend.tls", &own))).expect("our file");
    let (code, _, error) = series.reload();
    assert_eq!(code, Some(0), "{error}");
    // The link of before goes on, also over a hot restart.
    series.restart();
    chat(&mut clients, 2, b"still plain");
    assert_eq!(gateway.metric("links_encrypted"), 0);
    let place = backend.kill();
    let sets = paper.sets("link.tls", &ca);
    let listen = format!("listen={place}");
    let _next = Backend::start_with(&[&[listen.as_str()], &strs(&sets)[..]].concat());
    gateway.until_metric("links_encrypted", 1);
}

#[test]
fn files_that_cannot_be_used_are_named_with_their_setting() {
    let ca = Ca::new("own");
    let own = ca.issue(&["g1"]);
    let said = |sets: &[String]| {
        let mut arguments = vec!["check", "--set", "auth.mode=dev"];
        sets.iter().for_each(|set| arguments.extend(["--set", set.as_str()]));
        let (code, _, said) = run(&arguments);
        assert_eq!(code, Some(2), "{said}");
        said
    };
    let with = |key: &str, file: &TempFile| {
        let mut sets = gateway_sets(&own, &ca);
        sets.push(format!("backend.tls.{key}=\"{}\"", file.path().display()));
        sets
    };
    let empty = TempFile::new("nothing\n");
    let place = empty.path().display().to_string();
    for (key, problem) in [
        ("ca_file", "it has no certificate in PEM"),
        ("certificate_file", "it has no certificate in PEM"),
        ("key_file", "it has no private key in PEM"),
        ("crl_file", "it has no list in PEM"),
    ] {
        let said = said(&with(key, &empty));
        let is_named = said.contains(&format!("backend.tls.{key}: ")) && said.contains(&place);
        assert!(is_named && said.contains(problem), "{key}: {said}");
    }
    let told = said(&gateway_sets(&own, &ca)[..3]);
    assert!(told.contains("backend.tls.certificate_file") && told.contains("belong together"), "{told}");
    let mode = |mode| {
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(own.key.path(), permissions).expect("our file");
    };
    mode(0o602);
    let told = said(&gateway_sets(&own, &ca));
    assert!(told.contains("backend.tls.key_file: ") && told.contains("everybody can write it"), "{told}");
    mode(0o600);
    let mut arguments = vec!["backend", "check"];
    let sets = own.sets("link.tls", &ca);
    sets.iter().for_each(|set| arguments.extend(["--set", set.as_str()]));
    assert_eq!(run(&arguments).0, Some(0));
    let (code, _, told) = run(&[&arguments[..], &["--set", "listen=unix:/run/moorline-test.sock"]].concat());
    assert!(code == Some(2) && told.contains("a Unix socket needs no TLS"), "{told}");
    let (code, _, told) = run(&["backend", "check", "--set", "listen=203.0.113.7:7100"]);
    assert!(code == Some(2) && told.contains("is public and the link is not encrypted"), "{told}");
    assert_eq!(run(&[&arguments[..], &["--set", "listen=203.0.113.7:7100"]].concat()).0, Some(0));
}
