//! Certificates and keys of tickets, from files.

use super::pair::*;
use crate::clock::Clock;
use crate::tls::{
    CertificateFiles, CertificateSet, Certificates, HandshakeError, Protocols, Server, Suite, TicketKeySet,
    TicketKeys,
};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// A folder that is removed at the end.
pub(super) struct Folder(pub(super) PathBuf);

impl Folder {
    pub(super) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("moorline-tls-{}-{number}", std::process::id()));
        fs::create_dir(&path).expect("a new folder");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("ours");
        Self(path)
    }

    pub(super) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("ours");
        path
    }

    fn files(&self, name: &str, identity: &Identity, is_default: bool) -> CertificateFiles {
        CertificateFiles {
            chain: self.write(&format!("{name}.pem"), &identity.pem()),
            key: self.write(&format!("{name}.key"), &identity.key.serialize_pem()),
            is_default,
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

/// Time of the tests, before the end of all their certificates, in Unix seconds.
const NOW_S: u64 = 1_800_000_000;

fn problem(files: &[CertificateFiles]) -> String {
    CertificateSet::read(files, NOW_S).expect_err("refused").to_string()
}

#[test]
fn the_name_decides_and_without_a_default_a_stranger_is_refused() {
    let folder = Folder::new();
    let named = Identity::new(&["chat.example", "*.chat.example"]);
    let other = Identity::new(&["Other.Example"]);
    let mut files = vec![folder.files("named", &named, false), folder.files("other", &other, false)];
    let certificates = Arc::new(Certificates::new(CertificateSet::read(&files, NOW_S).expect("valid")));
    let server = Server::new(certificates.clone(), tickets(), Protocols::default(), None);
    let try_name = |name: &str, identity: &Identity| {
        let mut client = connect(client_of(identity), name);
        shake(&mut client, server.handshake().expect("a server"), usize::MAX)
    };
    for (name, identity) in [("chat.example", &named), ("EU.chat.example", &named), ("other.example", &other)]
    {
        let done = try_name(name, identity).expect("a handshake");
        assert_eq!(done.server_name, Some(name.to_lowercase()));
    }
    for name in ["a.b.chat.example", "example", "10.0.0.7"] {
        let mut client = connect(client_of(&named), name);
        let mut out = Vec::new();
        let error = server.handshake().expect("a server").advance(&sent_by(&mut client), &mut out);
        assert!(matches!(error, Err(HandshakeError::UnknownName(_))), "{name}: {error:?}");
        assert_eq!(out, [21, 3, 3, 0, 2, 2, 112]);
    }
    files[1].is_default = true;
    certificates.put(CertificateSet::read(&files, NOW_S).expect("valid"));
    // The client refuses it, because the name is another; the server has shown it.
    let mut client = connect(client_of(&other), "10.0.0.7");
    let mut out = Vec::new();
    server.handshake().expect("a server").advance(&sent_by(&mut client), &mut out).expect("the default");
    let about = certificates.set();
    assert_eq!(about.about()[0].names, ["*.chat.example", "chat.example"]);
    assert_eq!(about.about()[1].not_after, 67_090_118_400, "rcgen's: the year 4096");
}

#[test]
fn a_reload_is_all_or_nothing() {
    let folder = Folder::new();
    let (old, new) = (Identity::new(&["chat.example"]), Identity::new(&["chat.example"]));
    let files = [folder.files("chat", &old, false)];
    let certificates = Arc::new(Certificates::new(CertificateSet::read(&files, NOW_S).expect("valid")));
    let server = Server::new(certificates.clone(), tickets(), Protocols::default(), None);
    let is_served = |identity: &Identity| {
        let mut client = connect(client_of(identity), "chat.example");
        let mut out = Vec::new();
        server.handshake().expect("a server").advance(&sent_by(&mut client), &mut out).expect("a hello");
        give(&mut client, &out).is_ok()
    };
    // A new chain beside the old key.
    folder.write("chat.pem", &new.pem());
    let text = problem(&files);
    assert!(text.contains("chat.key") && text.contains("it is not the key of"), "{text}");
    assert!(is_served(&old) && !is_served(&new));
    let files = [folder.files("chat", &new, false)];
    certificates.put(CertificateSet::read(&files, NOW_S).expect("valid"));
    assert!(is_served(&new) && !is_served(&old));
}

#[test]
fn files_that_cannot_be_used_are_named_with_the_cause() {
    let folder = Folder::new();
    let identity = Identity::new(&["chat.example"]);
    let files = |name: &str| folder.files(name, &identity, false);
    let good = files("good");
    assert!(problem(&[]).contains("there is none"));
    assert!(problem(&[good.clone(), files("again")]).contains("another certificate is for chat.example"));
    let default = CertificateFiles { is_default: true, ..good.clone() };
    assert!(problem(&[default.clone(), default.clone()]).contains("more than one is the default"));
    let with = |chain: &Path, key: &Path| {
        problem(&[CertificateFiles { chain: chain.to_owned(), key: key.to_owned(), is_default: false }])
    };
    let text = folder.write("text", "nothing here");
    assert!(with(&text, &good.key).contains("no certificate in PEM"));
    assert!(with(&good.key, &good.key).contains("no certificate in PEM"));
    assert!(with(&good.chain, &text).contains("no private key in PEM"));
    assert!(with(&good.chain, &folder.0.join("gone")).contains("gone"));
    let broken = folder.write("broken", "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n");
    assert!(with(&broken, &good.key).contains("not valid PEM"));
    let wrong = folder.write("wrong", "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n");
    assert!(with(&wrong, &good.key).contains("not one of a server"));
    let long = folder.write("long", &identity.pem().repeat(11));
    assert!(with(&long, &good.key).contains("more than 10 certificates"));
    let nameless = folder.files("nameless", &Identity::new(&[]), false);
    assert!(problem(std::slice::from_ref(&nameless)).contains("no DNS name"));
    CertificateSet::read(&[CertificateFiles { is_default: true, ..nameless }], NOW_S)
        .expect("as the default");

    assert!(CertificateSet::read(std::slice::from_ref(&good), NOW_S).expect("valid").warnings().is_empty());
    fs::set_permissions(&good.key, fs::Permissions::from_mode(0o640)).expect("ours");
    let set = CertificateSet::read(std::slice::from_ref(&good), u64::MAX).expect("valid");
    assert!(set.warnings()[0].contains("can be read by other users"), "{:?}", set.warnings());
    assert!(set.warnings()[1].contains("has expired"), "{:?}", set.warnings());
    let not_after = set.about()[0].not_after;
    let set = CertificateSet::read(std::slice::from_ref(&good), not_after - 3 * 86_400).expect("valid");
    assert!(set.warnings()[1].contains("expires in 3 days"), "{:?}", set.warnings());
    fs::set_permissions(&good.key, fs::Permissions::from_mode(0o620)).expect("ours");
    assert!(problem(std::slice::from_ref(&good)).contains("its group can write it"));
    for secret in [format!("{set:?}"), problem(&[good])] {
        assert!(!secret.contains("PRIVATE"), "{secret}");
    }
}

#[test]
fn the_newest_key_seals_and_older_ones_open() {
    let folder = Folder::new();
    let line = |byte: u8| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, [byte; 32]);
    let read = |text: &str| TicketKeySet::read(&folder.write("keys", text));
    let set = |bytes: &[u8]| {
        let lines: Vec<_> = bytes.iter().map(|byte| line(*byte)).collect();
        read(&format!("# newest first\n\n{}\r\n", lines.join("\n"))).expect("valid").0
    };
    let ticket = set(&[1]).seal(b"state", NOW_S).expect("sealed");
    for (keys, is_open) in [(&[1][..], true), (&[2, 1], true), (&[3, 2, 1], true), (&[4, 3, 2], false)] {
        assert_eq!(set(keys).open(&ticket, NOW_S).is_some(), is_open, "{keys:?}");
    }
    assert_eq!(set(&[2, 1]).open(&ticket, NOW_S).as_deref(), Some(&b"state"[..]));
    assert!(set(&[1]).open(&set(&[2, 1]).seal(b"state", NOW_S).expect("sealed"), NOW_S).is_none());
    // A day, and clocks that differ.
    assert!(
        set(&[1]).open(&ticket, NOW_S + 86_400).is_some()
            && set(&[1]).open(&ticket, NOW_S + 86_401).is_none()
    );
    assert!(set(&[1]).open(&ticket, NOW_S - 300).is_some() && set(&[1]).open(&ticket, NOW_S - 301).is_none());
    for at in 0..ticket.len() {
        let mut changed = ticket.clone();
        changed[at] ^= 1;
        assert_eq!(set(&[1]).open(&changed, NOW_S), None, "byte {at}");
        assert_eq!(set(&[1]).open(&ticket[..at], NOW_S), None, "cut at {at}");
    }
    for (text, expected) in [
        (String::new(), "has no key"),
        (format!("{}\nAAAA\n", line(1)), "line 2 is not 32 bytes"),
        ("no base64".to_owned(), "line 1 is not 32 bytes"),
        (format!("{0}\n{0}\n{0}\n{0}\n", line(1)), "more than 3 keys"),
    ] {
        let error = read(&text).expect_err("refused").to_string();
        assert!(error.contains(expected) && !error.contains("AQEB"), "{error}");
    }
    assert_eq!(format!("{:?}", set(&[1])), "TicketKeySet(1 keys)");
}

#[test]
fn random_keys_change_daily_and_go_to_the_next_process() {
    let first = TicketKeySet::random(NOW_S).expect("random");
    assert!(first.rotated(NOW_S + 86_399).is_none());
    let ticket = first.seal(b"state", NOW_S + 80_000).expect("sealed");
    let mut set = first.rotated(NOW_S + 86_400).expect("a day");
    assert_eq!(set.open(&ticket, NOW_S + 86_400).as_deref(), Some(&b"state"[..]));
    assert!(first.open(&set.seal(b"x", NOW_S).expect("sealed"), NOW_S).is_none());
    for day in 2..10 {
        set = set.rotated(NOW_S + day * 86_400).expect("a day");
        let bytes = set.to_bytes();
        assert_eq!(bytes.len(), 10 + 32 * if day == 1 { 2 } else { 3 });
        let next = TicketKeySet::from_bytes(&bytes).expect("ours");
        assert_eq!(*next.to_bytes(), *bytes);
        assert_eq!(next.open(&ticket, NOW_S + 86_400).is_some(), day == 2);
    }
    let bytes = set.to_bytes();
    for length in 0..bytes.len() {
        let is_whole = length >= 42 && (length - 10) % 32 == 0;
        assert_eq!(TicketKeySet::from_bytes(&bytes[..length]).is_ok(), is_whole, "{length}");
    }
    assert!(TicketKeySet::from_bytes(&[&bytes[..], &[0; 32]].concat()).is_err());
    assert!(TicketKeySet::from_bytes(&[&[2], &bytes[1..]].concat()).is_err());
}

#[test]
fn a_client_resumes_at_another_node_with_the_same_keys() {
    let set = TicketKeySet::random(Clock::default().unix_seconds()).expect("random");
    let bytes = set.to_bytes();
    let node = |set| {
        let keys = Arc::new(TicketKeys::new(set, Clock::default()));
        Server::new(IDENTITY.resolver(), keys, Protocols::default(), None)
    };
    let (here, there) = (node(set), node(TicketKeySet::from_bytes(&bytes).expect("ours")));
    let stranger = node(TicketKeySet::random(0).expect("random"));
    let config = Arc::new(client_config(Suite::ChaCha20, &[]));
    for (server, is_resumed) in [(&here, false), (&there, true), (&here, true), (&stranger, false)] {
        let mut client = connect(config.clone(), "chat.example");
        let mut done = shake(&mut client, server.handshake().expect("a server"), 300).expect("a handshake");
        assert_eq!(done.is_resumed, is_resumed);
        let mut out = Vec::new();
        done.records.seal(&[b"welcome"], &mut out).expect("sealed");
        assert_eq!(give(&mut client, &out).expect("valid"), b"welcome");
    }
}
