//! Conversations that were brought in are there, as clients of a real backend see them.

use crate::gateway::{Backend, Gateway};
use crate::process::{StoreFolder, TempFile, run};
use crate::raw::Client;
use moorline_proto::message::client::Code;
use moorline_proto::message::im::{ConversationsResponse, PullRequest, PullResponse};
use moorline_proto::message::{decode, encode};
use moorline_proto::random::Random;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Exit code, output and what was said about it.
fn import(folder: &StoreFolder, export: &str) -> (Option<i32>, String, String) {
    let export = TempFile::new(export);
    let path = export.path().display().to_string();
    run(&["backend", "import", &path, "--log-level", "error", "--set", &folder.set()])
}

/// Messages by conversation: sender, text, time.
type Said = BTreeMap<String, Vec<(String, String, u64)>>;

fn export(users: usize, messages: usize) -> (String, Said) {
    let mut random = Random::new(7);
    let (mut lines, mut said) = (String::new(), Said::new());
    let uid = |number: usize| format!("u{number}");
    let members: Vec<_> = (1..users).map(uid).collect();
    let mut put = |line: &Value| writeln!(lines, "{line}").expect("writes to memory");
    put(&json!({ "group": { "name": "all", "owner": "u0", "members": members } }));
    for number in 0..messages {
        let below =
            |random: &mut Random, count: usize| usize::try_from(random.below(count as u64)).expect("small");
        let (from, time_ms) = (below(&mut random, users), 1_700_000_000_000 + number as u64);
        let text = format!("message {number}");
        let (to, id) = if random.one_in(3) {
            (json!({ "conversation": "group:all" }), "group:all".to_owned())
        } else {
            let to = below(&mut random, users);
            let (a, b) = (uid(from.min(to)), uid(from.max(to)));
            (json!({ "user": uid(to) }), format!("c2c:{a}:{b}"))
        };
        put(&json!({ "message": { "from": uid(from), "to": to, "time_ms": time_ms, "text": text } }));
        said.entry(id).or_default().push((uid(from), text, time_ms));
    }
    (lines, said)
}

#[test]
fn every_client_sees_what_was_brought_in_and_twice_is_once() {
    let folder = StoreFolder::new();
    let (text, said) = export(9, 600);
    for (times, expected) in [(1, "messages 600  repeated 0"), (2, "messages 0  repeated 600")] {
        let (code, out, err) = import(&folder, &text);
        assert!(code == Some(0) && out.starts_with(expected), "time {times}: {out}{err}");
    }
    let backend = Backend::start_with(&["listen=127.0.0.1:0", &folder.set()]);
    let gateway = Gateway::start(&backend, &[]);
    let mut seen = Said::new();
    for user in 0..9 {
        let own = format!("u{user}");
        let mut client = Client::login(gateway.listener, &own, "d");
        let listed: ConversationsResponse =
            decode(&client.request(1, "im.conversations", encode(&())).payload).expect("a list");
        for (id, it) in (2..).zip(&listed.conversations) {
            let request = PullRequest { conversation: it.id.clone(), from: 1, ..PullRequest::default() };
            let page: PullResponse =
                decode(&client.request(id, "im.pull", encode(&request)).payload).expect("a page");
            let messages = page.messages.into_iter();
            let messages: Vec<_> = messages
                .map(|push| {
                    (push.sender, String::from_utf8(push.payload.to_vec()).expect("text"), push.time_ms)
                })
                .collect();
            assert_eq!(
                seen.entry(it.id.clone()).or_insert_with(|| messages.clone()),
                &messages,
                "every view is the same"
            );
        }
        client.until("the inbox", |heard| !heard.pushes.is_empty());
    }
    assert_eq!(seen, said);
    let mut next = Client::login(gateway.listener, "u0", "other");
    assert_eq!(next.tell(1, "u1", b"and now").code(), Code::Ok, "it goes on");
    // Nobody else may have the folder meanwhile.
    let (code, out, err) = import(&folder, &text);
    assert!(code == Some(1) && out.is_empty() && err.contains("is open in another process"), "{out}{err}");
}

#[test]
fn a_wrong_line_is_named_and_the_lines_before_it_are_stored() {
    let folder = StoreFolder::new();
    let good = r#"{"message": {"from": "ann", "to": {"user": "ben"}, "time_ms": 1, "text": "hi"}}"#;
    for (line, problem) in [
        ("{", "EOF"),
        (r#"{"dance": {}}"#, "unknown variant"),
        (
            r#"{"message": {"from": "ann", "to": {"user": "ben"}, "time_ms": 1}}"#,
            "give exactly one of `text` and `payload`",
        ),
        (
            r#"{"message": {"from": "a:b", "to": {"user": "ben"}, "time_ms": 1, "text": ""}}"#,
            "is not a valid user id",
        ),
        (
            r#"{"message": {"from": "eve", "to": {"conversation": "c2c:ann:ben"}, "time_ms": 1, "text": ""}}"#,
            "not a member",
        ),
        (
            r#"{"message": {"from": "eve", "to": {"conversation": "group:x"}, "time_ms": 1, "text": ""}}"#,
            "no conversation",
        ),
        (r#"{"read": {"user": "eve", "conversation": "c2c:ann:ben", "seq": 1}}"#, "not a member"),
        (
            r#"{"message": {"from": "ann", "to": {"user": "ben"}, "time_ms": 1700000000000000, "text": "microseconds"}}"#,
            "more than a day ahead",
        ),
        (
            &format!(
                r#"{{"message": {{"from": "ann", "to": {{"user": "ben"}}, "time_ms": 1, "text": "{}"}}}}"#,
                "x".repeat(70_000)
            ),
            "`im.payload_max` allows 61440",
        ),
    ] {
        let (code, out, err) = import(&folder, &format!("{good}\n\n{line}\n{good}\n"));
        assert!(code == Some(1) && out.is_empty() && err.contains("line 3: "), "{line}: {out}{err}");
        assert!(err.contains(problem), "{line}: {err}");
    }
    let (_, out, _) = import(&folder, good);
    assert!(out.starts_with("messages 0  repeated 1 "), "{out}");
    // Mended, they are stored in the order in which they stand.
    let group = r#"{"group": {"name": "tea", "owner": "ann", "members": []}}"#;
    let say = |from: &str, text: &str| {
        format!(
            r#"{{"message": {{"from": "{from}", "to": {{"conversation": "group:tea"}}, "time_ms": 1, "text": "{text}"}}}}"#
        )
    };
    let lines = [say("ann", "one"), say("eve", "two"), say("ann", "three")].join("\n");
    let (code, _, err) = import(&folder, &format!("{group}\n{lines}"));
    assert!(code == Some(1) && err.contains("line 3: you are not a member"), "{err}");
    let mended = group.replace("[]", "[\"eve\"]");
    let (_, out, err) = import(&folder, &format!("{mended}\n{lines}"));
    assert!(out.starts_with("messages 2  repeated 1  groups 1 "), "{out}{err}");
    let backend = Backend::start_with(&["listen=127.0.0.1:0", &folder.set()]);
    let gateway = Gateway::start(&backend, &[]);
    let mut ann = Client::login(gateway.listener, "ann", "d");
    let pull = PullRequest { conversation: "group:tea".into(), from: 1, ..PullRequest::default() };
    let page: PullResponse = decode(&ann.request(1, "im.pull", encode(&pull)).payload).expect("a page");
    let texts: Vec<_> = page.messages.iter().map(|push| &push.payload[..]).collect();
    assert_eq!(texts, [&b"one"[..], b"two", b"three"]);
    drop((gateway, backend));
    let (code, _, err) = run(&["backend", "import", "/nowhere", "--set", &folder.set()]);
    assert!(code == Some(2) && err.contains("/nowhere"), "{err}");
    let (code, _, err) = run(&["backend", "seed"]);
    assert!(code == Some(1) && err.contains("im.folder"), "{err}");
}

#[test]
fn what_is_made_up_is_the_same_each_time() {
    let folders = [StoreFolder::new(), StoreFolder::new()];
    let said: Vec<_> = folders
        .iter()
        .map(|folder| {
            let set = folder.set();
            let seed = [
                "backend",
                "seed",
                "--users",
                "50",
                "--groups",
                "5",
                "--messages",
                "3000",
                "--log-level",
                "error",
            ];
            let (code, out, err) = run(&[&seed[..], &["--set", &set]].concat());
            assert!(code == Some(0) && out.starts_with("messages 3000  repeated 0  groups 5 "), "{out}{err}");
            let backend = Backend::start_with(&["listen=127.0.0.1:0", &set]);
            let gateway = Gateway::start(&backend, &[]);
            let mut client = Client::login(gateway.listener, "user-1", "d");
            let listed = client.request(1, "im.conversations", encode(&()));
            let listed: ConversationsResponse = decode(&listed.payload).expect("a list");
            listed.conversations.into_iter().map(|it| (it.id, it.latest, it.unread)).collect::<Vec<_>>()
        })
        .collect();
    assert!(said[0].len() > 5 && said[0] == said[1], "{said:?}");
}
