//! Logins that are admitted, logins that are refused, and the fields of WELCOME.

use crate::gateway::{Backend, Gateway};
use crate::process::{TempFile, run};
use crate::raw::{Client, End, hello};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ed25519_dalek::{Signer as _, SigningKey};
use hmac::{Hmac, Mac as _};
use moorline::sys::clock;
use moorline_proto::error::CloseReason;
use moorline_proto::message::client::Hello;
use serde_json::{Value, json};
use sha2::Sha256;

const SECRET: &[u8] = b"a secret of these tests, 32 bytes";
const ED_PUBLIC: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/keys/ed25519.pub.pem");
const ED_PRIVATE: &str = include_str!("keys/ed25519.pem");
/// Bytes of a PKCS #8 Ed25519 private key before the seed.
const PKCS8_PREFIX: usize = 16;

fn with_token(token: impl Into<String>) -> Hello {
    Hello { token: token.into(), ..hello("alice", "phone") }
}

/// A token in compact form, signed by `HS256` or `EdDSA` with this file's keys.
fn signed(algorithm: &str, claims: &Value) -> String {
    let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let header = json!({ "typ": "JWT", "alg": algorithm }).to_string();
    let message = format!("{}.{}", part(header.as_bytes()), part(claims.to_string().as_bytes()));
    let signature = if algorithm == "HS256" {
        let mac = Hmac::<Sha256>::new_from_slice(SECRET).expect("a key");
        mac.chain_update(&message).finalize().into_bytes().to_vec()
    } else {
        let der = STANDARD.decode(ED_PRIVATE.lines().nth(1).expect("a body")).expect("base64");
        let key = SigningKey::from_bytes(der[PKCS8_PREFIX..].try_into().expect("a seed"));
        key.sign(message.as_bytes()).to_vec()
    };
    format!("{message}.{}", part(&signature))
}

fn in_s(seconds: i64) -> i64 {
    i64::try_from(clock::unix_seconds()).expect("this century") + seconds
}

#[test]
fn welcome_says_what_holds() {
    let gateway = Gateway::alone(&[
        "heartbeat.min=7s",
        "heartbeat.max=70s",
        "limits.body_max=8KiB",
        "limits.downlink_frames=5",
    ]);
    let clients = ["phone", "laptop"].map(|device| Client::login(gateway.listener, "alice", device));
    let [phone, laptop] = clients.map(|client| client.heard.welcome.expect("logged in"));
    assert_eq!(phone.version, 1);
    assert_eq!((phone.heartbeat_min_s, phone.heartbeat_max_s), (7, 70));
    assert_eq!((phone.uplink_window, phone.downlink_window, phone.body_max), (64, 5, 8 << 10));
    assert!(!phone.resumed && phone.cid_answered == 0 && phone.replay == 0);
    assert!(!phone.ticket.is_empty() && phone.ticket != laptop.ticket);
    assert!(phone.session.len() == 16 && phone.session != laptop.session);
    assert!(phone.epoch != 0 && phone.epoch == laptop.epoch);
    let off_ms = phone.server_time_ms.abs_diff(clock::unix_nanos() / 1_000_000);
    assert!(off_ms < 60_000, "the gateway's clock is ours, {off_ms} ms apart");
    let again = Client::login(gateway.listener, "alice", "phone").heard.welcome.expect("logged in");
    assert_ne!(again.session, phone.session);
}

#[test]
fn tokens_of_the_command_line_open_the_door() {
    let key = TempFile::new(SECRET);
    let path = key.path().display().to_string();
    let sets = ["auth.mode=jwt", "auth.audience=chat", &format!("auth.key_file={path}")];
    let gateway = Gateway::alone(&sets);
    let token = |arguments: &[&str]| {
        let (code, out, err) = run(&[&["token", "--key-file", &path], arguments].concat());
        assert_eq!(code, Some(0), "{err}");
        out.trim_end().to_owned()
    };
    let code = |token: String| Client::verdict(gateway.listener, &with_token(token));
    let refused = CloseReason::AuthFailed.code();
    assert_eq!(code(token(&["--uid", "alice", "--audience", "chat"])), 0);
    assert_eq!(code(token(&["--uid", "alice", "--audience", "chat", "--device", "phone"])), 0);
    assert_eq!(code(token(&["--uid", "alice", "--audience", "chat", "--device", "laptop"])), refused);
    assert_eq!(code(token(&["--uid", "bob", "--audience", "chat"])), refused);
    assert_eq!(code(token(&["--uid", "alice", "--audience", "mail"])), refused);
    assert_eq!(code(token(&["--uid", "alice"])), refused, "no audience");
    assert_eq!(code(String::new()), refused, "no token");
    gateway.until_closed("auth_failed", 5);
    gateway.until_metric("auth_refused_total", 5);
}

#[test]
fn the_backend_judges_when_it_is_asked() {
    let list = TempFile::new("alice secret # her own\n\nalice second\nbob other\n");
    let backend =
        Backend::start_with(&["listen=127.0.0.1:0", &format!("tokens_file={}", list.path().display())]);
    let gateway = Gateway::start(&backend, &["auth.mode=backend", "backend.up_timeout=500ms"]);
    let code = |token: &str| Client::verdict(gateway.listener, &with_token(token.to_owned()));
    assert_eq!((code("secret"), code("second")), (0, 0));
    let refused = CloseReason::AuthFailed.code();
    assert_eq!((code("other"), code("Secret"), code("")), (refused, refused, refused));
    gateway.until_metric("auth_refused_total", 3);
    let _gone = backend.kill();
    gateway.until_metric("links_up", 0);
    assert_eq!(code("secret"), CloseReason::Unavailable.code(), "nobody is let in unjudged");
}

/// (what it is, its claims, code it is closed with or 0)
fn claims() -> Vec<(&'static str, Value, u32)> {
    let (failed, expired) = (CloseReason::AuthFailed.code(), CloseReason::TokenExpired.code());
    vec![
        ("good", json!({ "sub": "alice", "exp": in_s(60) }), 0),
        ("for this device", json!({ "sub": "alice", "exp": in_s(60), "did": "phone" }), 0),
        ("a little late, within the leeway", json!({ "sub": "alice", "exp": in_s(-2) }), 0),
        ("expired", json!({ "sub": "alice", "exp": in_s(-60) }), expired),
        ("not yet", json!({ "sub": "alice", "exp": in_s(90), "nbf": in_s(60) }), failed),
        ("somebody else's", json!({ "sub": "bob", "exp": in_s(60) }), failed),
        ("another device's", json!({ "sub": "alice", "exp": in_s(60), "did": "laptop" }), failed),
        ("without an end", json!({ "sub": "alice" }), failed),
        ("without a subject", json!({ "exp": in_s(60) }), failed),
    ]
}

#[test]
fn each_claim_is_looked_at_under_both_algorithms() {
    let secret = TempFile::new(SECRET);
    let files = [secret.path().display().to_string(), ED_PUBLIC.to_owned()];
    let algorithms = ["HS256", "EdDSA"];
    for (name, file) in algorithms.into_iter().zip(files) {
        let sets = ["auth.mode=jwt", "auth.leeway=20s", &format!("auth.key_file={file}")];
        let gateway = Gateway::alone(&[&sets[..], &[&format!("auth.algorithm={name}")]].concat());
        for (what, claims, code) in claims() {
            let hello = with_token(signed(name, &claims));
            assert_eq!(Client::verdict(gateway.listener, &hello), code, "{name}: {what}");
        }
        let good = claims().swap_remove(0).1;
        for other in algorithms.into_iter().filter(|other| *other != name) {
            let forged = with_token(signed(other, &good));
            assert_eq!(Client::refused(gateway.listener, &forged).code(), 3520, "{name}: signed {other}");
        }
        let mut cut = signed(name, &good);
        cut.truncate(cut.len() - 4);
        assert_eq!(Client::refused(gateway.listener, &with_token(cut)).code(), 3520, "{name}: cut");
    }
}

#[test]
fn names_that_could_be_confused_are_refused() {
    let gateway = Gateway::alone(&[]);
    for (uid, device) in [("a:b", "d"), ("a", "d:e"), ("a\u{7}", "d"), ("a", "d\n")] {
        let End::Close(close) = Client::refused(gateway.listener, &hello(uid, device)) else {
            panic!("{uid:?}/{device:?}: closed without a word");
        };
        assert_eq!(close.code, CloseReason::AuthFailed.code(), "{uid:?}/{device:?}");
        assert!(!close.reason.is_empty());
    }
    let longest = "ü".repeat(32);
    Client::login(gateway.listener, &longest, &longest);
}

#[test]
fn dev_mode_is_for_loopback_only() {
    let (code, out, err) = run(&["run", "--set", "auth.mode=dev", "--set", "listener.address=0.0.0.0:0"]);
    assert_eq!((code, out.as_str()), (Some(2), ""), "{err}");
    assert!(
        err.contains("auth.mode") && err.contains("listener.address") && err.contains("0.0.0.0"),
        "{err}"
    );
    let gateway = Gateway::alone(&[]);
    crate::until("it says so", || gateway.process.log().contains("TOKENS ARE NOT VERIFIED").then_some(()));
}
