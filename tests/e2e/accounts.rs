//! Keys that are replaced while the gateway serves, tokens that are revoked, users that are banned, and what the
//! server API gives to each of its callers.

use crate::gateway::{Backend, Gateway, field};
use crate::process::{StoreFolder, TempFile, run};
use crate::raw::{Client, hello};
use crate::{PATIENCE, until};
use bytes::Bytes;
use moorline::sys::clock;
use moorline_proto::frame::Command;
use moorline_proto::message::client::{Code, Hello, Req};
use moorline_proto::message::frame_of;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

pub(crate) const OLD: &str = "the old secret of these tests, 32 bytes";
const NEW: &str = "the new secret of these tests, 32 bytes";

/// A token of the command line, signed now.
pub(crate) fn token(secret: &str, uid: &str, ttl: &str) -> String {
    let file = TempFile::new(secret);
    let path = file.path().display().to_string();
    let (code, out, err) = run(&["token", "--key-file", &path, "--uid", uid, "--ttl", ttl]);
    assert_eq!(code, Some(0), "{err}");
    out.trim_end().to_owned()
}

pub(crate) fn hello_with(uid: &str, token: &str) -> Hello {
    Hello { token: token.into(), ..hello(uid, "phone") }
}

/// 0: the login stood until a request was answered; else the code of the end.
fn verdict(address: SocketAddr, uid: &str, token: &str) -> u32 {
    try_verdict(address, uid, token).expect("not put off")
}

/// Verdict as of [`verdict`]. `None`: the request was put off.
pub(crate) fn try_verdict(address: SocketAddr, uid: &str, token: &str) -> Option<u32> {
    let mut client = Client::greet(address, &hello_with(uid, token));
    let mut has_asked = false;
    let deadline = clock::now() + PATIENCE;
    while client.heard.responses.is_empty() && client.heard.end.is_none() {
        let left = deadline.saturating_since(clock::now());
        assert!(!left.is_zero(), "neither answered nor ended: {:?}", client.heard);
        if client.heard.welcome.is_some() && !std::mem::replace(&mut has_asked, true) {
            let request = Req { id: 1, method: "im.devices".into(), ..Req::default() };
            client.try_put(&frame_of(Command::Req, &request));
        }
        client.listen(left);
    }
    match client.heard.responses.first() {
        Some(answer) if answer.code() == Code::Ok => Some(0),
        Some(answer) if answer.code() == Code::Retry => None,
        _ => Some(client.end().code()),
    }
}

struct Rig {
    backend: Backend,
    gateway: Gateway,
    api: SocketAddr,
    /// The API's token and the key of logins.
    files: [TempFile; 2],
}

const TOKEN: &str = "a token of sixteen bytes and more";

impl Rig {
    fn new(store: &StoreFolder, sets: &[&str]) -> Self {
        let (token, key) = (TempFile::new(TOKEN), TempFile::new(OLD));
        let file = format!("api.token_file=\"{}\"", token.path().display());
        let folder = store.set();
        let all = [&["listen=127.0.0.1:0", "api.listen=127.0.0.1:0", &file, &folder], sets].concat();
        let (backend, line) = Backend::start_saying(&all);
        let key_file = format!("auth.key_file=\"{}\"", key.path().display());
        let gateway = Gateway::start(&backend, &["auth.mode=jwt", &key_file]);
        Self { backend, gateway, api: field(&line, "api="), files: [token, key] }
    }

    fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        post(self.api, TOKEN, path, body)
    }
}

fn post(api: SocketAddr, token: &str, path: &str, body: &Value) -> (u16, Value) {
    let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(PATIENCE));
    let request = config.build().new_agent().post(format!("http://{api}{path}"));
    let answer = request.header("authorization", format!("Bearer {token}")).send(body.to_string());
    let mut answer = answer.unwrap_or_else(|error| panic!("POST {path}: {error}"));
    let text = answer.body_mut().read_to_string().expect("UTF-8");
    (answer.status().as_u16(), serde_json::from_str(&text).expect("JSON"))
}

#[test]
fn revoked_tokens_and_banned_users_stay_out_also_after_restarts() {
    let store = StoreFolder::new();
    let rig = Rig::new(&store, &[]);
    let alice = token(OLD, "alice", "1h");
    let mut live = Client::greet(rig.gateway.listener, &hello_with("alice", &alice));
    live.until("WELCOME", |heard| heard.welcome.is_some());
    assert_eq!(verdict(rig.gateway.listener, "alice", &alice), 0);
    let ahead = clock::unix_seconds() + 2;
    let (status, answer) = rig.post("/v1/revoke", &json!({ "user": "alice", "before": ahead }));
    assert_eq!(status, 200, "{answer}");
    assert_eq!(verdict(rig.gateway.listener, "alice", &alice), 3521, "the same token");
    let fresh = until("a token that was issued later", || {
        (clock::unix_seconds() >= ahead).then(|| token(OLD, "alice", "1h"))
    });
    assert_eq!(verdict(rig.gateway.listener, "alice", &fresh), 0);

    let bob = token(OLD, "bob", "1h");
    let mut live = Client::greet(rig.gateway.listener, &hello_with("bob", &bob));
    live.until("WELCOME", |heard| heard.welcome.is_some());
    assert_eq!(live.request(1, "im.devices", Bytes::new()).code(), Code::Ok);
    assert_eq!(rig.post("/v1/ban", &json!({ "user": "bob" })), (200, json!({ "reached": 1 })));
    assert_eq!(live.end().code(), 3531);
    // Another gateway, and then another backend on the same store.
    let Rig { backend, gateway, files, .. } = rig;
    drop(gateway);
    let key_file = format!("auth.key_file=\"{}\"", files[1].path().display());
    let gateway = Gateway::start(&backend, &["auth.mode=jwt", &key_file]);
    assert_eq!(verdict(gateway.listener, "bob", &bob), 3531);
    assert_eq!(verdict(gateway.listener, "bob", &token(OLD, "bob", "1h")), 3531, "however new the token is");
    let place = backend.kill();
    let file = format!("api.token_file=\"{}\"", files[0].path().display());
    let listen = format!("listen={place}");
    let (_backend, line) = Backend::start_saying(&[&listen, "api.listen=127.0.0.1:0", &file, &store.set()]);
    gateway.until_ready();
    assert_eq!(verdict(gateway.listener, "bob", &bob), 3531);
    assert_eq!(verdict(gateway.listener, "alice", &alice), 3521);
    assert_eq!(verdict(gateway.listener, "alice", &fresh), 0);
    let api: SocketAddr = field(&line, "api=");
    assert_eq!(post(api, TOKEN, "/v1/unban", &json!({ "user": "bob" })).0, 200);
    assert_eq!(verdict(gateway.listener, "bob", &bob), 0);
}

#[test]
fn a_session_that_stands_ends_when_its_token_is_revoked() {
    let store = StoreFolder::new();
    let rig = Rig::new(&store, &[]);
    let mut live = Client::greet(rig.gateway.listener, &hello_with("alice", &token(OLD, "alice", "1h")));
    live.until("WELCOME", |heard| heard.welcome.is_some());
    assert_eq!(live.request(1, "im.devices", Bytes::new()).code(), Code::Ok);
    assert_eq!(rig.post("/v1/revoke", &json!({ "user": "alice" })), (200, json!({ "reached": 1 })));
    assert_eq!(live.end().code(), 3521);
}

#[test]
fn hup_replaces_keys_and_limits_and_a_faulty_file_changes_nothing() {
    let key = TempFile::new(OLD);
    let settings = TempFile::new("");
    let write = |text: &str| std::fs::write(settings.path(), text).expect("written");
    let with = |more: &str| {
        write(&format!(
            "[auth]\nkey_file = \"{}\"\n[listener]\naddress = \"127.0.0.1:0\"\n[admin]\naddress = \"127.0.0.1:0\"\n{more}",
            key.path().display()
        ));
    };
    with("");
    let mut command = crate::process::program(&["run", "-c"]);
    command.arg(settings.path());
    let gateway = Gateway::of_command(command);
    let reload = |expected: &str| {
        let before = gateway.process.log().matches(expected).count();
        gateway.process.signal(Signal::SIGHUP);
        until(expected, || (gateway.process.log().matches(expected).count() > before).then_some(()));
    };
    let admits =
        |secret: &str| Client::verdict(gateway.listener, &hello_with("alice", &token(secret, "alice", "1h")));
    let mut live = Client::greet(gateway.listener, &hello_with("bob", &token(OLD, "bob", "1h")));
    live.until("WELCOME", |heard| heard.welcome.is_some());
    assert_eq!((admits(OLD), admits(NEW)), (0, 3520));
    let told = "refused a login uid=\"alice\" reason=\"auth_failed\" others=0";
    until("the refusal is told", || gateway.process.log().contains(told).then_some(()));
    std::fs::write(key.path(), "too short").expect("written");
    reload("cannot reload the settings; nothing has changed");
    assert_eq!((admits(OLD), admits(NEW)), (0, 3520));
    std::fs::write(key.path(), NEW).expect("written");
    with("[limits]\nuser_rat = 1");
    reload("did you mean `user_rate`?");
    assert_eq!((admits(OLD), admits(NEW)), (0, 3520), "all or nothing");
    with("[limits]\nuser_rate = 1\nbody_max = \"128KiB\"\n[log]\nlevel = \"debug\"");
    reload("settings and keys were read again");
    for words in [["limits.user_rate", "log.level"], ["need `moorline upgrade`", "limits.body_max"]] {
        until(words[0], || {
            let log = gateway.process.log();
            words.iter().all(|word| log.contains(word)).then_some(())
        });
    }
    assert_eq!((admits(OLD), admits(NEW)), (3520, 0));
    live.beat(30); // sessions stay
    until("the level is debug", || gateway.process.log().contains("DEBUG").then_some(()));
    // The user's rate of 1 a second holds for those who are logged in.
    for cid in 1..=8 {
        live.put(&crate::raw::send_frame(cid, &crate::raw::message(cid.into(), "x", b"x")));
    }
    live.until("a THROTTLE", |heard| heard.throttles > 0);
}

#[test]
fn each_caller_of_the_api_has_its_own_rights_and_changes_are_written_down() {
    const TOKENS: &str = "[[token]]\nname = 'shop'\ntoken = 'shop-0123456789abcdef'\nscopes = ['messages']\n\
                          [[token]]\nname = 'ops'\ntoken = 'ops-0123456789abcdef'\nscopes = ['revoke', 'kick']\nrate = 1000\n";
    let access = TempFile::new(TOKENS);
    let audit = TempFile::new("");
    let (backend, line) = Backend::start_saying(&[
        "listen=127.0.0.1:0",
        "api.listen=127.0.0.1:0",
        &format!("api.access_file=\"{}\"", access.path().display()),
        &format!("audit.file=\"{}\"", audit.path().display()),
    ]);
    let api: SocketAddr = field(&line, "api=");
    let (shop, ops) = ("shop-0123456789abcdef", "ops-0123456789abcdef");
    let says = json!({ "from": "shop", "to": { "user": "ann" }, "text": "a text that nobody writes down" });
    assert_eq!(post(api, shop, "/v1/messages", &says).0, 200);
    assert_eq!(post(api, shop, "/v1/kick", &json!({ "user": "ann" })).0, 403);
    assert_eq!(post(api, ops, "/v1/messages", &says).0, 403);
    assert_eq!(post(api, ops, "/v1/kick", &json!({ "user": "ann" })).0, 200);
    assert_eq!(post(api, ops, "/v1/ban", &json!({ "user": "ann", "until": 99_999_999_999u64 })).0, 200);
    assert_eq!(post(api, ops, "/v1/ban", &json!({ "user": "a:b" })).0, 400);
    // Another token takes the place of both; the old ones are refused from then on.
    std::fs::write(access.path(), "[[token]]\nname = 'broken'").expect("written");
    backend.process.signal(Signal::SIGHUP);
    until("the faulty file is refused", || {
        backend.process.log().contains("cannot reload the settings").then_some(())
    });
    assert_eq!(post(api, ops, "/v1/unban", &json!({ "user": "ann" })).0, 200);
    let new = "[[token]]\nname = 'new'\ntoken = 'new-0123456789abcdef'\nscopes = ['all']\n";
    std::fs::write(access.path(), new).expect("written");
    backend.process.signal(Signal::SIGHUP);
    until("the new token holds", || {
        (post(api, "new-0123456789abcdef", "/v1/kick", &json!({ "user": "x" })).0 == 200).then_some(())
    });
    assert_eq!(post(api, ops, "/v1/unban", &json!({ "user": "ann" })).0, 401);
    let written = until("all lines", || {
        let text = std::fs::read_to_string(audit.path()).expect("text");
        (text.contains("api:new") && text.contains("signal HUP")).then_some(text)
    });
    let lines: Vec<Value> = written.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let told: Vec<_> = lines
        .iter()
        .map(|line| ["actor", "action", "target", "outcome"].map(|name| line[name].as_str().expect("text")))
        .collect();
    assert_eq!(told[0], ["api:ops", "POST /v1/kick", "ann", "200"]);
    assert_eq!(told[1], ["api:ops", "POST /v1/ban", "ann", "200"]);
    assert_eq!(told[2], ["api:ops", "POST /v1/ban", "a:b", "400"]);
    assert!(told.contains(&["signal HUP", "reload", "", "refused"]), "{told:?}");
    assert!(!written.contains("0123456789abcdef") && !written.contains("nobody writes down"), "{written}");
}

/// A single sign-on that answers as `judge` says: status and body for a question.
fn single_sign_on(
    judge: impl Fn(&Value) -> (u16, String) + Send + 'static,
) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let (address, asked) = (listener.local_addr().expect("bound"), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&asked);
    let serve = move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.expect("accepted"));
            let (mut length, mut line) = (0, String::new());
            while stream.read_line(&mut line).is_ok_and(|bytes| bytes > 2) {
                let lower = line.to_ascii_lowercase();
                if let Some(value) = lower.strip_prefix("content-length:") {
                    length = value.trim().parse().expect("a number");
                }
                line.clear();
            }
            let mut body = vec![0; length];
            if stream.read_exact(&mut body).is_err() || body.is_empty() {
                continue;
            }
            count.fetch_add(1, Ordering::SeqCst);
            let (status, text) = judge(&serde_json::from_slice(&body).expect("JSON"));
            let length = text.len();
            let answer =
                format!("HTTP/1.1 {status} x\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{text}");
            stream.get_mut().write_all(answer.as_bytes()).ok();
        }
    };
    std::thread::spawn(serve);
    (address, asked)
}

#[test]
fn a_single_sign_on_judges_logins_with_a_cache_and_is_left_alone_when_it_fails() {
    let (sso, asked) = single_sign_on(|question| match question["token"].as_str() {
        Some("good") => (200, json!({ "admit": true, "issued_at": 5 }).to_string()),
        Some("other") => (200, json!({ "admit": true, "uid": "a.smith" }).to_string()),
        Some("bad") => (200, json!({ "admit": false, "reason": "left the company" }).to_string()),
        Some("forbidden") => (403, String::new()),
        _ => (500, String::new()),
    });
    let token = TempFile::new(TOKEN);
    let (backend, line) = Backend::start_saying(&[
        "listen=127.0.0.1:0",
        "api.listen=127.0.0.1:0",
        &format!("api.token_file=\"{}\"", token.path().display()),
        &format!("login_hook.url=http://{sso}/login"),
        "login_hook.failures_max=2",
        "login_hook.pause=5m",
        "login_hook.cache_time=1h",
    ]);
    let api: SocketAddr = field(&line, "api=");
    let gateway = Gateway::start(&backend, &["auth.mode=backend"]);
    let code = |token: &str| verdict(gateway.listener, "alice", token);
    let questions = || asked.load(Ordering::SeqCst);
    assert_eq!((code("good"), code("good"), questions()), (0, 0, 1), "the second from the cache");
    assert_eq!((code("bad"), code("bad"), code("forbidden"), questions()), (3520, 3520, 3520, 3));
    assert_eq!((code("other"), questions()), (0, 4));
    // A revocation holds for what the cache admits.
    assert_eq!(post(api, TOKEN, "/v1/revoke", &json!({ "user": "alice", "before": 6 })).0, 200);
    assert_eq!((code("good"), questions()), (3521, 4));
    assert_eq!((code("broken"), code("broken"), questions()), (3006, 3006, 6));
    assert_eq!((code("broken"), questions()), (3006, 6), "the breaker is open");
    assert_eq!((code("bad"), questions()), (3520, 6), "what is known is still known");
}

#[test]
fn an_operator_reloads_by_the_socket_and_the_audit_log_tells_who() {
    let (key, audit) = (TempFile::new(OLD), TempFile::new(""));
    let key_file = format!("auth.key_file=\"{}\"", key.path().display());
    let audit_file = format!("audit.file=\"{}\"", audit.path().display());
    let gateway = Gateway::alone(&["auth.mode=jwt", &key_file, &audit_file]);
    let reload = || run(&["reload", "--admin", &gateway.admin.to_string()]);
    let (code, out, err) = reload();
    assert_eq!((code, out.contains("no setting has changed")), (Some(0), true), "{out}{err}");
    std::fs::write(key.path(), NEW).expect("written");
    assert_eq!(reload().0, Some(0));
    assert_eq!(
        Client::verdict(gateway.listener, &hello_with("alice", &token(NEW, "alice", "1h"))),
        0,
        "the new key holds"
    );
    std::fs::write(key.path(), "").expect("written");
    let (code, _, err) = reload();
    assert!(
        code == Some(1) && err.contains("nothing has changed") && err.contains("at least 32 bytes"),
        "{err}"
    );
    let told = until("three reloads", || {
        let text = std::fs::read_to_string(audit.path()).expect("text");
        (text.matches("\"action\":\"reload\"").count() == 3).then_some(text)
    });
    let order = told.lines().find(|line| line.contains("/v1/reload")).expect("the order");
    assert!(
        order.contains("admin socket") && order.contains(&format!("uid {}", nix::unistd::getuid())),
        "{order}"
    );
}
