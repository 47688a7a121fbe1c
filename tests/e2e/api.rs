//! The server API, and services behind HTTP endpoints, against a real backend behind a real gateway.

use crate::gateway::{Backend, Gateway};
use crate::process::{StoreFolder, TempFile, run};
use crate::raw::Client;
use crate::sdk::connect;
use crate::tunnel::{Authority, NAME, Tunnel};
use crate::{PATIENCE, until};
use hmac::{Hmac, Mac as _};
use moorline_proto::message::client::Code;
use moorline_proto::message::decode;
use moorline_proto::message::im::ConversationsResponse;
use moorline_sdk::core::Target;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sha2::Sha256;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub(crate) const TOKEN: &str = "a token of sixteen bytes and more";

/// A backend with the server API.
pub(crate) struct Api {
    pub(crate) backend: Backend,
    pub(crate) caller: Caller,
    _token: TempFile,
}

/// A server that calls a backend, or the nodes of a cluster in turn.
pub(crate) struct Caller {
    addresses: Vec<SocketAddr>,
    calls: AtomicUsize,
}

/// Address of the server API in a ready line.
pub(crate) fn address_in(line: &str) -> SocketAddr {
    let address = line.split("api=").nth(1).and_then(|rest| rest.split_whitespace().next());
    address.and_then(|address| address.parse().ok()).expect("an address of the API")
}

impl Api {
    pub(crate) fn start(sets: &[&str]) -> Self {
        let token = TempFile::new(TOKEN);
        let file = format!("api.token_file=\"{}\"", token.path().display());
        let (backend, line) = Backend::start_saying(
            &[&["listen=127.0.0.1:0", file.as_str(), "api.listen=127.0.0.1:0"], sets].concat(),
        );
        Self { backend, caller: Caller::new(vec![address_in(&line)]), _token: token }
    }
}

impl std::ops::Deref for Api {
    type Target = Caller;

    fn deref(&self) -> &Caller {
        &self.caller
    }
}

impl Caller {
    pub(crate) const fn new(addresses: Vec<SocketAddr>) -> Self {
        Self { addresses, calls: AtomicUsize::new(0) }
    }

    fn address(&self) -> SocketAddr {
        self.addresses[self.calls.fetch_add(1, Ordering::Relaxed) % self.addresses.len()]
    }

    /// Sessions that the backend knows.
    pub(crate) fn sessions(&self) -> u64 {
        self.status()["sessions"].as_u64().expect("a number")
    }

    /// The answer of `/v1/status`.
    pub(crate) fn status(&self) -> Value {
        let config = ureq::Agent::config_builder().timeout_global(Some(PATIENCE));
        let request = config.build().new_agent().get(format!("http://{}/v1/status", self.address()));
        let mut answer = request.header("authorization", format!("Bearer {TOKEN}")).call().expect("a status");
        serde_json::from_str(&answer.body_mut().read_to_string().expect("UTF-8")).expect("JSON")
    }

    /// Status and text of `/readyz`.
    pub(crate) fn ready(&self) -> (u16, String) {
        let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(PATIENCE));
        let request = config.build().new_agent().get(format!("http://{}/readyz", self.address()));
        let mut answer = request.call().expect("an answer");
        (answer.status().as_u16(), answer.body_mut().read_to_string().expect("UTF-8"))
    }

    /// Status and body.
    fn post_as(&self, token: &str, path: &str, body: &str) -> (u16, Value) {
        self.try_post(token, path, body).unwrap_or_else(|error| panic!("POST {path}: {error}"))
    }

    /// Status and body, unless the connection ends before.
    pub(crate) fn try_post(
        &self,
        token: &str,
        path: &str,
        body: &str,
    ) -> Result<(u16, Value), Box<ureq::Error>> {
        let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(PATIENCE));
        let request = config.build().new_agent().post(format!("http://{}{path}", self.address()));
        let mut answer = request.header("authorization", format!("Bearer {token}")).send(body)?;
        let text = answer.body_mut().read_to_string().expect("UTF-8");
        let is_later = answer.headers().contains_key("retry-after");
        assert_eq!(is_later, matches!(answer.status().as_u16(), 429 | 503), "{text}");
        Ok((answer.status().as_u16(), serde_json::from_str(&text).expect("JSON")))
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        if self.addresses.len() == 1 {
            return self.post_as(TOKEN, path, &body.to_string());
        }
        // A node that has just taken slots over is not ready for them.
        until("a call that is not put off", || {
            let answer = self.post_as(TOKEN, path, &body.to_string());
            (answer.0 != 503).then_some(answer)
        })
    }

    fn say(&self, from: &str, to: &Value, text: &str) -> (u16, Value) {
        self.post("/v1/messages", &json!({ "from": from, "to": to, "text": text }))
    }

    /// Sends any bytes and returns all bytes that come back.
    fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address()).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        stream.write_all(bytes).ok(); // it may close before it has read all
        stream.shutdown(std::net::Shutdown::Write).ok();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok();
        String::from_utf8_lossy(&answer).into_owned()
    }
}

#[test]
fn it_speaks_for_users_and_pushes_to_whoever_is_there() {
    let api = Api::start(&[]);
    let gateway = Gateway::start(&api.backend, &[]);
    check_speaking(&api, &gateway, true);
    let page = api.raw(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    assert!(page.contains("moorline_backend_stored_total 2\n") && page.ends_with("# EOF\n"), "{page}");
    assert!(page.contains("moorline_backend_repeated_total 1\n"), "{page}");
}

/// Messages, pushes, requests and a kick, as every store does them. `has_rooms`: into rooms, too.
pub(crate) fn check_speaking(api: &Caller, gateway: &Gateway, has_rooms: bool) {
    let mut ann = Client::login(gateway.listener, "ann", "d");
    let to_ann = json!({ "user": "ann" });
    let (status, said) = api.say("shop", &to_ann, "your order is here");
    assert_eq!(
        (status, &said["conversation"], &said["seq"]),
        (200, &json!("c2c:ann:shop"), &json!(1)),
        "{said}"
    );
    ann.until("the shop's word", |heard| heard.payloads() == [b"your order is here"]);
    let twice = json!({ "from": "shop", "to": to_ann, "payload": "AAEC", "type": 7, "key": "0f".repeat(16) });
    let (first, second) = (api.post("/v1/messages", &twice), api.post("/v1/messages", &twice));
    assert_eq!((&first.1["is_repeat"], &second.1["is_repeat"]), (&json!(false), &json!(true)));
    assert_eq!(first.1["message_id"], second.1["message_id"]);
    ann.until("bytes", |heard| heard.payloads().last() == Some(&&[0, 1, 2][..]));
    assert_eq!((ann.heard.pushes[1].r#type, ann.heard.pushes.len()), (7, 2));

    for (to, reached) in [
        (json!({ "users": ["ann", "nobody", "ann"] }), 1),
        (json!({ "devices": [{ "user": "ann", "device": "d" }, { "user": "ann", "device": "x" }] }), 1),
        (json!({ "inboxes": ["ann", "bob", "ann"] }), 2),
        (json!({ "everyone": true }), 0),
        (json!({ "room": "group:none" }), 0),
    ] {
        let (status, answer) = api.post("/v1/push", &json!({ "to": to, "text": "news", "type": 3 }));
        if !has_rooms && to.get("room").is_some() {
            assert_eq!((status, &answer["code"]), (501, &json!("UNSUPPORTED")), "{to}: {answer}");
            continue;
        }
        assert_eq!((status, &answer["reached"]), (200, &json!(reached)), "{to}");
    }
    ann.until("four pushes", |heard| heard.pushes.iter().filter(|push| push.r#type == 3).count() == 4);
    let keyed = |users: &[&str], text: &str| json!({ "to": { "inboxes": users }, "text": text, "type": 4, "key": "1f".repeat(16) });
    for users in [&["bob"][..], &["bob"], &["bob", "ann"]] {
        let (status, answer) = api.post("/v1/push", &keyed(users, "once"));
        assert_eq!((status, &answer["reached"]), (200, &json!(users.len())), "{answer}");
    }
    assert_eq!(api.post("/v1/push", &keyed(&["bob"], "something else")).0, 409);
    ann.until("a push with a key", |heard| heard.pushes.last().is_some_and(|push| push.r#type == 4));
    let mut late = Client::login(gateway.listener, "bob", "d");
    late.until("what waited in his inbox", |heard| heard.payloads() == [&b"news"[..], b"once"]);

    let asked = json!({ "user": "ann", "method": "im.conversations" });
    let (status, answer) = api.post("/v1/requests", &asked);
    assert_eq!(status, 200, "{answer}");
    let listed = answer["payload"].as_str().expect("Base64");
    let listed: ConversationsResponse = decode(&base64_of(listed).into()).expect("what the method answers");
    assert_eq!((listed.conversations[0].latest, listed.conversations[0].unread), (2, 2));

    let tea = json!({ "group": "tea", "members": ["ann"] });
    let asked = json!({ "user": "bob", "method": "im.group.create", "request": tea });
    assert_eq!(
        api.post("/v1/requests", &asked),
        (200, json!({ "response": { "conversation": "group:tea", "invited": [] } }))
    );
    let asked = json!({ "user": "ann", "method": "im.conversations", "request": {} });
    // In a cluster the list of a member follows the answer to who has made the group.
    until("the group in the list", || {
        let (status, answer) = api.post("/v1/requests", &asked);
        let listed = answer["response"]["conversations"].as_array().expect("conversations");
        let of = |id: &str| listed.iter().find(|it| it["id"] == id).map(|it| it["last"]["seq"].clone());
        assert_eq!((status, of("c2c:ann:shop")), (200, Some(json!("2"))));
        of("group:tea").map(|_| ())
    });

    let (status, answer) = api.post("/v1/kick", &json!({ "user": "ann" }));
    assert_eq!((status, &answer["reached"]), (200, &json!(1)));
    assert_eq!(ann.end().code(), 3531);
}

#[test]
fn what_cannot_be_has_its_status_and_its_code() {
    check_refusals(&Api::start(&[]));
}

/// Calls that every store refuses.
pub(crate) fn check_refusals(api: &Caller) {
    let bob = json!({ "user": "bob" });
    assert_eq!(api.say("shop", &json!({ "user": "ann" }), "hi").0, 200);
    for (path, body, status, code) in [
        ("/v1/messages", json!({ "from": "shop", "to": bob }), 400, "INVALID"),
        ("/v1/messages", json!({ "from": "a:b", "to": bob, "text": "x" }), 400, "INVALID"),
        (
            "/v1/push",
            json!({ "to": { "users": ["bob"] }, "text": "x", "key": "1f".repeat(16) }),
            400,
            "INVALID",
        ),
        (
            "/v1/messages",
            json!({ "from": "x", "to": { "conversation": "group:no" }, "text": "x" }),
            404,
            "NOT_FOUND",
        ),
        (
            "/v1/messages",
            json!({ "from": "x", "to": { "conversation": "c2c:ann:shop" }, "text": "x" }),
            403,
            "NOT_MEMBER",
        ),
        ("/v1/messages", json!({ "from": "x", "to": bob, "text": "x", "key": "12" }), 400, "INVALID"),
        ("/v1/messages", json!({ "from": "x", "to": bob, "text": "x".repeat(61_441) }), 413, "TOO_LARGE"),
        ("/v1/push", json!({ "to": { "everyone": false }, "text": "x" }), 400, "INVALID"),
        ("/v1/push", json!({ "to": { "users": [], "room": "r" }, "text": "x" }), 400, "INVALID"),
        ("/v1/messages", json!({ "from": "x", "to": {}, "text": "x" }), 400, "INVALID"),
        ("/v1/messages", json!(["x", { "user": "bob" }, 0, "x", null, null]), 400, "INVALID"),
        ("/v1/requests", json!({ "user": "ann", "method": "im.dance" }), 404, "UNSUPPORTED"),
        ("/v1/requests", json!({ "user": "ann", "method": "im.dance", "request": {} }), 404, "UNSUPPORTED"),
        (
            "/v1/requests",
            json!({ "user": "ann", "method": "im.pull", "request": { "frm": 1 } }),
            400,
            "INVALID",
        ),
        (
            "/v1/requests",
            json!({ "user": "ann", "method": "im.pull", "request": {}, "payload": "" }),
            400,
            "INVALID",
        ),
        ("/v1/nothing", json!({}), 404, "NOT_FOUND"),
        ("/metrics", json!({}), 405, "INVALID"),
    ] {
        let answer = api.post(path, &body);
        assert_eq!(
            (answer.0, answer.1["code"].as_str()),
            (status, Some(code)),
            "{path} {body}: {}",
            answer.1
        );
        assert!(!answer.1["reason"].as_str().expect("a reason").is_empty());
    }
    for token in ["", "wrong", "a token of sixteen bytes and morf"] {
        assert_eq!(api.post_as(token, "/v1/push", "{}").0, 401);
    }
}

fn base64_of(text: &str) -> Vec<u8> {
    let value = |letter: u8| -> u32 {
        let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let at = letters.iter().position(|it| *it == letter).expect("a letter of Base64");
        u32::try_from(at).expect("small")
    };
    let letters: Vec<u8> = text.bytes().filter(|letter| *letter != b'=').collect();
    let mut bytes = Vec::new();
    for chunk in letters.chunks(4) {
        let bits = chunk.iter().fold(0, |bits, letter| bits << 6 | value(*letter)) << (6 * (4 - chunk.len()));
        bytes.extend_from_slice(&bits.to_be_bytes()[1..chunk.len()]);
    }
    bytes
}

#[test]
fn bad_http_gets_its_answer_and_nobody_else_notices() {
    let api = Api::start(&["api.connections_max=2", "api.body_max=100B"]);
    for (bytes, status) in [
        ("\x16\x03\x01 hello\r\n\r\n", "400"),
        ("POST /v1/push HTTP/1.1\r\nhost: localhost\r\nTOKENcontent-length: 101\r\n\r\n", "413"),
        ("POST /v1/push HTTP/1.1\r\nhost: localhost\r\ncontent-length: 101\r\n\r\n", "401"),
        (
            "POST /v1/push HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
            "400",
        ),
        ("POST /v1/push HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n", "400"),
        ("POST /v1/push HTTP/1.1\r\nhost: localhost\r\nTOKENtransfer-encoding: chunked\r\n\r\n", "411"),
        ("POST /v1/push HTTP/1.1\r\nhost: localhost\r\nTOKENTOKENcontent-length: 2\r\n\r\n{}", "400"),
        ("GET /v1/status HTTP/1.1\r\nhost: localhost\nconnection: close\r\n\r\n", "400"),
        ("GET /v1/status HTTP/1.1\r\nconnection: close\r\n\r\n", "400"),
        ("GET /healthz HTTP/1.0\r\n\r\n", "200"),
        ("GET http://localhost/readyz?now HTTP/1.0\r\n\r\n", "200"),
        ("GET /v1/status HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", "401"),
        ("GET /v1/status HTTP/1.1\r\nhost: rebound.example\r\nTOKENconnection: close\r\n\r\n", "421"),
        (
            "GET /v1/status HTTP/1.1\r\nhost: localhost\r\norigin: http://evil.example\r\nTOKENconnection: close\r\n\r\n",
            "403",
        ),
    ] {
        let token = format!("authorization: Bearer {TOKEN}\r\n");
        let answer = api.raw(bytes.replace("TOKEN", &token).as_bytes());
        // A request of HTTP/1.0 is answered as one.
        assert_eq!(answer.split(' ').nth(1), Some(status), "{answer}");
    }
    let head = api.raw(b"HEAD /healthz HTTP/1.0\r\n\r\n");
    assert!(head.starts_with("HTTP/1.0 200 ") && head.ends_with("\r\n\r\n"), "{head}");
    assert!(api.raw(b"PUT /healthz HTTP/1.0\r\n\r\n").contains("\r\nallow: GET, HEAD\r\n"));
    let long = format!("GET /{} HTTP/1.1\r\n", "x".repeat(9000));
    assert!(api.raw(long.as_bytes()).starts_with("HTTP/1.1 431 "));
    let half = format!(
        "POST /v1/push HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {TOKEN}\r\ncontent-length: 50\r\n\r\n{{"
    );
    assert_eq!(api.raw(half.as_bytes()), "", "half a question");
    // More silent visitors than there are places shut out nobody.
    let silent: Vec<_> = (0..20).map(|_| TcpStream::connect(api.address()).expect("it listens")).collect();
    for _ in 0..10 {
        assert!(api.raw(b"GET /healthz HTTP/1.0\r\n\r\n").contains(" 200 "));
        assert_eq!(api.post("/v1/kick", &json!({ "user": "nobody" })).0, 200);
    }
    drop(silent);
}

/// Requests that a webhook's endpoint received.
#[derive(Default)]
struct Told {
    /// Texts by conversation, in the order in which they came; repetitions too.
    texts: Mutex<BTreeMap<String, Vec<String>>>,
    deliveries: AtomicUsize,
}

/// An endpoint that fails every third time, and checks every signature.
fn endpoint(secret: &'static str) -> (SocketAddr, Arc<Told>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let (address, told) = (listener.local_addr().expect("a port"), Arc::new(Told::default()));
    let theirs = Arc::clone(&told);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut reader = BufReader::new(stream.expect("a connection"));
            let mut headers = BTreeMap::new();
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line).unwrap_or(0) < 3 {
                    break;
                }
                if let Some((name, value)) = line.split_once(':') {
                    headers.insert(name.to_lowercase(), value.trim().to_owned());
                }
            }
            let Some(length) = headers.get("content-length").and_then(|length| length.parse().ok()) else {
                continue;
            };
            let mut body = vec![0; length];
            if reader.read_exact(&mut body).is_err() {
                continue; // the backend was killed
            }
            let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("a key");
            mac.update(headers["moorline-timestamp"].as_bytes());
            mac.update(b".");
            mac.update(&body);
            let digest = mac.finalize().into_bytes();
            let hex = digest.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
            assert_eq!(headers["moorline-signature"], format!("v1={hex}"));
            let is_refused = theirs.deliveries.fetch_add(1, Ordering::SeqCst) % 3 == 1;
            if !is_refused {
                let body: Value = serde_json::from_slice(&body).expect("JSON");
                assert_eq!(body["service"], "helpdesk");
                let mut texts = theirs.texts.lock().expect("nobody panics");
                for message in body["messages"].as_array().expect("a list") {
                    let of = texts.entry(message["conversation"].as_str().expect("an id").to_owned());
                    of.or_default().push(message["text"].as_str().expect("text").to_owned());
                }
            }
            let status = if is_refused { "500 Oops" } else { "204 No Content" };
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            reader.get_mut().write_all(answer.as_bytes()).ok();
        }
    });
    (address, told)
}

#[test]
fn a_service_gets_what_is_said_to_it_in_order_until_it_has_taken_it() {
    let (address, told) = endpoint("a secret");
    let (secret, folder) = (TempFile::new("a secret\n"), StoreFolder::new());
    let sets = [
        folder.set(),
        format!("im.webhooks.helpdesk.url=\"http://{address}/im\""),
        format!("im.webhooks.helpdesk.secret_file=\"{}\"", secret.path().display()),
    ];
    let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
    let mut backend = Backend::start_with(&[&["listen=127.0.0.1:0"], &sets[..]].concat());
    let listen = format!("listen={}", backend.address);
    let gateway = Gateway::start(&backend, &["backend.up_timeout=2s"]);
    let mut ann = Client::login(gateway.listener, "ann", "d");
    let mut said = Vec::new();
    for number in 1..=60u32 {
        let text = format!("question {number}");
        until("it is stored", || {
            let code = ann.tell(number.into(), "helpdesk", text.as_bytes()).code();
            matches!(code, Code::Ok | Code::Dup).then_some(())
        });
        said.push(text);
        if number % 20 == 10 {
            backend.process.signal(Signal::SIGKILL);
            drop(backend);
            backend = Backend::start_with(&[&[listen.as_str()], &sets[..]].concat());
        }
    }
    until("the last question is there", || {
        let texts = told.texts.lock().expect("nobody panics");
        texts.get("c2c:ann:helpdesk").is_some_and(|texts| texts.contains(&said[59])).then_some(())
    });
    let texts = told.texts.lock().expect("nobody panics").clone();
    let mut first_times: Vec<&String> = Vec::new();
    for text in &texts["c2c:ann:helpdesk"] {
        if !first_times.contains(&text) {
            first_times.push(text);
        }
    }
    assert!(first_times.iter().zip(&said).all(|(heard, said)| *heard == said), "in order: {first_times:?}");
    assert_eq!((first_times.len(), texts.len()), (60, 1), "all of them");
    println!(
        "{} texts in {} deliveries",
        texts["c2c:ann:helpdesk"].len(),
        told.deliveries.load(Ordering::SeqCst)
    );
}

/// In a group that is read by cursor, over an end of the backend.
#[test]
fn a_service_gets_what_is_said_in_a_large_group() {
    let (address, told) = endpoint("a secret");
    let (secret, folder) = (TempFile::new("a secret\n"), StoreFolder::new());
    let sets = [
        folder.set(),
        "im.fanout_members_max=1".to_owned(),
        format!("im.webhooks.helpdesk.url=\"http://{address}/im\""),
        format!("im.webhooks.helpdesk.secret_file=\"{}\"", secret.path().display()),
    ];
    let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
    let mut backend = Backend::start_with(&[&["listen=127.0.0.1:0"], &sets[..]].concat());
    let listen = format!("listen={}", backend.address);
    let gateway = Gateway::start(&backend, &["backend.up_timeout=2s"]);
    let ann = connect(gateway.listener, "ann", "d");
    ann.create_group("tea", &["helpdesk"], PATIENCE).expect("made");
    let said: Vec<String> = (1..=20).map(|number| format!("text {number}")).collect();
    for (number, text) in (1..).zip(&said) {
        let sent = ann.send(Target::group("tea"), 1, text.clone()).expect("taken");
        sent.wait_durable(PATIENCE).expect("stored");
        if number == 10 {
            backend.process.signal(Signal::SIGKILL);
            drop(backend);
            backend = Backend::start_with(&[&[listen.as_str()], &sets[..]].concat());
        }
    }
    let first_times = until("the last one is there", || {
        let texts = told.texts.lock().expect("nobody panics").get("group:tea").cloned()?;
        let mut seen = BTreeSet::new();
        let first_times: Vec<String> = texts.into_iter().filter(|text| seen.insert(text.clone())).collect();
        (first_times.last() == said.last()).then_some(first_times)
    });
    assert_eq!(first_times, said, "all of them, in order");
}

#[test]
fn what_a_service_never_takes_is_written_down_and_the_rest_follows() {
    // Nobody listens there.
    let gone = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let folder = StoreFolder::new();
    let api = Api::start(&[
        &folder.set(),
        &format!("im.webhooks.helpdesk.url=\"http://{gone}/im\""),
        "im.webhooks.helpdesk.give_up_after=\"1s\"",
        "im.durability=system",
    ]);
    let gateway = Gateway::start(&api.backend, &[]);
    let mut ann = Client::login(gateway.listener, "ann", "d");
    assert_eq!(ann.tell(1, "helpdesk", b"anybody?").code(), Code::Ok);
    let undelivered = folder.path().join("undelivered/helpdesk.jsonl");
    let line = until("it is given up", || {
        std::fs::read_to_string(&undelivered).ok().filter(|it| it.ends_with('\n'))
    });
    let line: Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!(line["messages"][0]["text"], "anybody?");
    assert!(ann.is_quiet_for(Duration::from_millis(5)), "she is not bothered");
    let page = until("it is counted", || {
        let page = api.raw(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        page.contains("moorline_backend_webhook_given_up_total{webhook=\"helpdesk\"} 1\n").then_some(page)
    });
    assert!(page.contains("moorline_backend_webhook_failing{webhook=\"helpdesk\"} 1\n"), "{page}");
    // The names of version 0.1 are there until the next release.
    assert!(page.contains("moorline_backend_service_failing{service=\"helpdesk\"} 1\n"), "{page}");
    assert!(!page.contains("moorline_backend_commits_total 0\n"), "{page}");
}

/// The whole answer to a request over TLS.
fn ask_over_tls(address: SocketAddr, authority: &Authority, request: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    let mut tunnel = Tunnel::tls(&mut stream, authority.client("http/1.1"))?;
    tunnel.write(&mut stream, request.as_bytes())?;
    let (mut answer, mut block) = (Vec::new(), [0; 4096]);
    loop {
        match tunnel.read(&mut stream, &mut block)? {
            0 => return Ok(String::from_utf8(answer).expect("text")),
            count => answer.extend_from_slice(&block[..count]),
        }
    }
}

#[test]
fn it_speaks_tls_with_a_certificate_that_a_reload_replaces() {
    let authority = Authority::new(&[NAME]);
    let path = |file: &TempFile| file.path().display().to_string();
    let files = [
        format!("api.certificate_file={}", path(&authority.certificate)),
        format!("api.key_file={}", path(&authority.key)),
        format!("api.names={NAME}"),
    ];
    let api = Api::start(&files.each_ref().map(String::as_str));
    let body = json!({ "from": "shop", "to": { "user": "ann" }, "text": "x".repeat(40_000) }).to_string();
    let post = format!(
        "POST /v1/messages HTTP/1.1\r\nHost: {NAME}\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    );
    let answer = ask_over_tls(api.address(), &authority, &post).expect("an answer, and the end in due form");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"seq\":1"), "{answer}");
    assert!(
        !api.raw(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").contains("HTTP"),
        "plain HTTP has no answer"
    );

    let new = Authority::new(&[NAME]);
    std::fs::copy(new.certificate.path(), authority.certificate.path()).expect("our file");
    std::fs::copy(new.key.path(), authority.key.path()).expect("our file");
    api.backend.process.signal(Signal::SIGHUP);
    let get = format!("GET /healthz HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n");
    let answer = until("the new certificate", || ask_over_tls(api.address(), &new, &get).ok());
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(ask_over_tls(api.address(), &authority, &get).is_err());

    let config = ["check", "--set", "api.listen=192.0.2.1:7200", "--set", "api.token_file=t"];
    let (code, _, error) = run(&[&["backend"], &config[..]].concat());
    assert!(code != Some(0) && error.contains("api.certificate_file"), "{error}");
}
