//! The link between real processes: secrets, Unix sockets, strangers at both ends, and two gateways of one name.

use crate::gateway::{Backend, Gateway, field};
use crate::process::{Process, Stopped, TempFile, program, run};
use crate::raw::Client;
use crate::until;
use bytes::{Bytes, BytesMut};
use moorline_proto::link::{Kind, LinkDecoder, LinkFrame, NONCE_BYTES, encode};
use moorline_proto::message::backend::{ConnUp, LinkHello, LinkNotice, Notice};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

const SECRET: &str = "a-secret-of-this-test-0123456789ABCDEF";
const OTHER: &str = "another-secret-of-the-test-0123456789";

/// A list of secrets that nobody else can read.
fn secrets(lines: &str) -> TempFile {
    let file = TempFile::new(lines);
    std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o600)).expect("our file");
    file
}

/// A backend that believes nobody without a proof.
fn strict_backend(file: &TempFile) -> Backend {
    let secrets = format!("link.secrets_file=\"{}\"", file.path().display());
    Backend::start_with(&["listen=127.0.0.1:0", "link.unproven=refuse", &secrets])
}

/// A gateway that believes no backend without a proof.
fn strict_gateway(backend: SocketAddr, node: &str, file: &TempFile) -> Gateway {
    Gateway::start_bare(&[
        &format!("gateway.id={node}"),
        "backend.unproven=refuse",
        &format!("backend.secrets_file=\"{}\"", file.path().display()),
        &format!("backend.endpoints={backend}"),
    ])
}

/// Alice writes to bob through these gateways.
fn chat(alice: &Gateway, bob: &Gateway, number: u64) {
    let mut bob = Client::login(bob.listener, "bob", &format!("phone-{number}"));
    let mut alice = Client::login(alice.listener, "alice", &format!("phone-{number}"));
    // The backend reads the links in any order: it may know alice before it knows bob.
    let mut key = u128::from(number) * 1_000_000;
    let answer = until("bob is known", || {
        key += 1;
        let answer = alice.tell(key, "bob", b"hi");
        (answer.code() == moorline_proto::message::client::Code::Ok).then_some(answer)
    });
    bob.until("the message", |heard| heard.pushes.iter().any(|push| push.message_id == answer.message_id));
}

fn until_log(process: &Process, what: &str) {
    until(&format!("the log says {what:?}"), || process.log().contains(what).then_some(()));
}

/// A stranger at a link port.
struct Stranger(TcpStream, LinkDecoder, Bytes);

impl Stranger {
    fn at(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
        Self(stream, LinkDecoder::new(), Bytes::new())
    }

    fn say(&mut self, kind: Kind, body: &impl prost::Message) {
        let mut wire = BytesMut::new();
        encode(&mut wire, kind, 0, 0, body);
        self.0.write_all(&wire).ok();
    }

    /// The next frame; `None`: the other end has closed.
    fn next(&mut self) -> Option<LinkFrame> {
        loop {
            if let Some(frame) = self.1.decode(&mut self.2).expect("valid frames") {
                return Some(frame);
            }
            let mut block = vec![0; 4096];
            match self.0.read(&mut block) {
                Ok(count @ 1..) => self.2 = Bytes::copy_from_slice(&block[..count]),
                Ok(0) | Err(_) => return None,
            }
        }
    }
}

fn hello(node: &str, epoch: u64, has_nonce: bool) -> LinkHello {
    let nonce = if has_nonce { vec![1; NONCE_BYTES].into() } else { Bytes::new() };
    LinkHello { version_min: 1, version_max: 1, node: node.into(), epoch, nonce, ..LinkHello::default() }
}

#[test]
fn gateways_with_a_secret_chat_and_strangers_get_nothing() {
    let both = secrets(&format!("# two gateways\ng1 {SECRET}\ng2 {OTHER}\n"));
    let backend = strict_backend(&both);
    let (one, two) =
        (strict_gateway(backend.address, "g1", &both), strict_gateway(backend.address, "g2", &both));
    one.until_ready();
    two.until_ready();
    chat(&one, &two, 1);
    // Of an unknown name; of a known one without a nonce; of a known one that cannot prove anything; a huge epoch.
    for (hello, proves) in [
        (hello("spy", 1, true), false),
        (hello("g1", 1, false), false),
        (hello("g1", 1, true), true),
        (hello("g1", u64::MAX, true), false),
    ] {
        let mut stranger = Stranger::at(backend.address);
        stranger.say(Kind::Hello, &hello);
        if proves {
            assert_eq!(stranger.next().map(|frame| frame.kind), Some(Kind::Challenge));
            let login = ConnUp { handle: 1, uid: "bob".into(), device: "spy".into(), ..ConnUp::default() };
            stranger.say(Kind::ConnUp, &login);
        }
        while let Some(frame) = stranger.next() {
            assert_eq!(frame.kind, Kind::Notice, "nothing but the reason");
            let notice: LinkNotice = frame.message().expect("a notice");
            assert_eq!(notice.notice(), Notice::Refused);
        }
    }
    chat(&one, &two, 2);
    until_log(&backend.process, "closed a connection that was not a link");
    let lines = backend.process.log();
    assert!(
        lines.matches("closed a connection that was not a link").count() == 1,
        "one line in 10 s: {lines}"
    );
    assert!(!lines.contains(SECRET), "{lines}");
}

#[test]
fn a_wrong_secret_keeps_a_gateway_out_and_both_logs_say_why() {
    let (right, wrong) = (secrets(&format!("g1 {SECRET}")), secrets(&format!("g1 {OTHER}")));
    let backend = strict_backend(&right);
    let gateway = strict_gateway(backend.address, "g1", &wrong);
    until_log(&gateway.process, "does not know a secret of this gateway");
    assert_eq!(gateway.get("/readyz").0, 503);
    let nobody = strict_gateway(backend.address, "g9", &secrets(&format!("g9 {SECRET}")));
    until_log(&nobody.process, "the node has no secret in the backend's link.secrets_file");
    until_log(&backend.process, "closed a connection that was not a link");
    assert_eq!(nobody.get("/readyz").0, 503);
}

#[test]
fn who_listens_at_the_backends_port_is_not_believed() {
    let impostor = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let file = secrets(&format!("g1 {SECRET}"));
    let gateway = strict_gateway(impostor.local_addr().expect("bound"), "g1", &file);
    // It answers HELLO as a backend without secrets does, and waits for the gateway to go on.
    let (stream, _) = impostor.accept().expect("the gateway comes");
    let mut impostor_end = Stranger(stream, LinkDecoder::new(), Bytes::new());
    assert_eq!(impostor_end.next().map(|frame| frame.kind), Some(Kind::Hello));
    impostor_end.say(Kind::Hello, &hello("b", 1, false));
    assert!(impostor_end.next().is_none(), "the gateway says no more");
    until_log(&gateway.process, "nothing proves that this is a backend");
    assert_eq!(gateway.get("/readyz").0, 503);
}

#[test]
fn secrets_are_replaced_by_reloads_and_no_link_breaks() {
    let write = |file: &TempFile, text: &str| std::fs::write(file.path(), text).expect("written");
    let (here, there) = (secrets(&format!("g1 {SECRET}")), secrets(&format!("g1 {SECRET}")));
    let backend = strict_backend(&there);
    let hup = |process: &Process, expected: &str| {
        let before = process.log().matches(expected).count();
        process.signal(nix::sys::signal::Signal::SIGHUP);
        until(expected, || (process.log().matches(expected).count() > before).then_some(()));
    };
    let one = strict_gateway(backend.address, "g1", &here);
    one.until_ready();
    let mut bob = Client::login(one.listener, "bob", "tablet");
    // The running backend hears of a second gateway, and of no gateway in a file that is not valid.
    write(&there, &format!("g1 {OTHER}\ng2 short\n"));
    hup(&backend.process, "cannot reload the settings");
    write(&there, &format!("g1 {OTHER}\ng2 {OTHER}\n"));
    hup(&backend.process, "were read again");
    let two = strict_gateway(backend.address, "g2", &secrets(&format!("g2 {OTHER}")));
    two.until_ready();
    write(&here, "g9 no-line-for-g1-but-long-enough-000000000\n");
    hup(&one.process, "has no line for the gateway");
    write(&here, &format!("g1 {OTHER}\n"));
    hup(&one.process, "settings and keys were read again");
    chat(&one, &two, 1);
    assert_eq!(one.process.log().matches("link up").count(), 1, "{}", one.process.log());
    // The next link of the running gateway is proven by the new secret.
    let place = backend.kill();
    let secrets = format!("link.secrets_file=\"{}\"", there.path().display());
    let _next = Backend::start_with(&[&format!("listen={place}"), "link.unproven=refuse", &secrets]);
    one.until_ready();
    chat(&one, &two, 2);
    bob.until("the message", |heard| !heard.pushes.is_empty());
}

#[test]
fn a_unix_socket_needs_no_secret_on_one_machine() {
    let file = TempFile::new("");
    let path = file.path().with_extension("sock");
    let address = format!("unix:{}", path.display());
    let (process, line) = Process::start_command(
        "backend",
        program(&["backend", "--set", &format!("listen={address}"), "--set", "link.unproven=refuse"]),
    );
    assert_eq!(field::<String>(&line, "link="), address);
    let sets = ["backend.unproven=refuse", &format!("backend.endpoints={address}")];
    let gateway = Gateway::start_bare(&sets);
    gateway.until_ready();
    chat(&gateway, &gateway, 1);
    assert_eq!(path.metadata().expect("the socket").permissions().mode() & 0o777, 0o600);
    // A backend whose user is not named is not believed, and neither is a gateway.
    let other = Gateway::start_bare(&[sets[0], sets[1], "backend.peer_uids=[4294967294]"]);
    until_log(&other.process, "which is not in backend.peer_uids");
    assert_eq!(other.get("/readyz").0, 503);
    drop(process);
}

#[test]
fn a_copied_settings_file_deafens_no_client() {
    let file = secrets(&format!("g1 {SECRET}"));
    let backend = strict_backend(&file);
    let mut first = strict_gateway(backend.address, "g1", &file);
    first.until_ready();
    let mut bob = Client::login(first.listener, "bob", "phone");
    let copy = strict_gateway(backend.address, "g1", &file);
    until_log(&copy.process, "another process of this name has links and answers");
    until_log(&first.process, "another process asked to be the gateway g1");
    until_log(&backend.process, "two processes have the same gateway.id");
    assert!(backend.process.log().contains("node=\"g1\""), "{}", backend.process.log());
    assert_eq!(copy.get("/readyz").0, 503);
    let mut alice = Client::login(first.listener, "alice", "phone");
    alice.tell(1, "bob", b"hi");
    bob.until("the message", |heard| heard.pushes.len() == 1);
    first.process.kill();
    copy.until_ready();
    chat(&copy, &copy, 2);
}

#[test]
fn a_gateway_that_crashed_and_one_that_stands_still_are_followed_by_the_next() {
    let file = secrets(&format!("g1 {SECRET}"));
    let backend = strict_backend(&file);
    let mut first = strict_gateway(backend.address, "g1", &file);
    first.until_ready();
    first.process.kill();
    let second = strict_gateway(backend.address, "g1", &file);
    second.until_ready();
    let stopped = Stopped::stop(second.process.pid());
    let third = strict_gateway(backend.address, "g1", &file);
    third.until_ready();
    stopped.go_on();
    until_log(&second.process, "a newer process of this name has links");
    chat(&third, &third, 1);
}

#[test]
fn without_a_reason_to_believe_anybody_nothing_starts() {
    let file = TempFile::new(format!("g1 {SECRET}"));
    let secrets = |mode, key: &str| {
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).expect("our file");
        format!("{key}=\"{}\"", file.path().display())
    };
    let backend = ["backend", "--set", "listen=127.0.0.1:0", "--set", "link.unproven=refuse", "--set"];
    let gateway = [
        "run",
        "--set=auth.mode=dev",
        "--set=gateway.id=g2",
        "--set=backend.unproven=refuse",
        "--set=listener.address=127.0.0.1:0",
        "--set=admin.address=127.0.0.1:0",
    ];
    let said = |arguments: &[&str]| {
        let (code, _, said) = run(arguments);
        assert_eq!(code, Some(2), "{said}");
        assert!(!said.contains(SECRET), "{said}");
        said
    };
    assert!(said(&backend[..5]).contains("nothing proves who connects to listen"));
    assert!(said(&gateway).contains("nothing proves that a backend listens at"));
    let writable = said(&[&backend[..], &[&secrets(0o602, "link.secrets_file")]].concat());
    assert!(writable.contains("everybody can write it"), "{writable}");
    let no_line = said(&[&gateway[..], &["--set", &secrets(0o600, "backend.secrets_file")]].concat());
    assert!(no_line.contains("has no line for the gateway \"g2\""), "{no_line}");
    std::fs::write(file.path(), format!("g1 {SECRET}\ng2 short\n")).expect("written");
    for arguments in [
        [&["check"][..], &gateway[1..], &["--set", &secrets(0o600, "backend.secrets_file")]].concat(),
        [&["backend", "check"][..], &backend[1..], &[&secrets(0o600, "link.secrets_file")]].concat(),
    ] {
        let said = said(&arguments);
        assert!(
            said.contains("line 2: the secret has fewer than 32 bytes") && !said.contains("short\""),
            "{said}"
        );
    }
}
