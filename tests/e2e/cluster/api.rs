//! The server API at any node: calls go to the node of their user, also while one dies.

use super::{Cluster, PEOPLE};
use crate::accounts::{OLD, hello_with, token, try_verdict};
use crate::api::{Caller, TOKEN, address_in, check_refusals, check_speaking};
use crate::process::TempFile;
use crate::raw::Client as Raw;
use crate::sdk::connect;
use crate::{PATIENCE, until};
use bytes::Bytes;
use moorline::sys::clock;
use moorline_proto::message::client::Code;
use moorline_sdk::client::Client;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Codes with which logins end.
const REVOKED: u32 = 3521;
const BANNED: u32 = 3531;

/// Pause of a caller between two messages.
const PAUSE: Duration = Duration::from_millis(20);

/// Three nodes with the server API, and its token's file. `None`: PostgreSQL is not installed, which is told.
pub(super) fn start(test: &str, of_gateway: &[&str]) -> Option<(Cluster, TempFile)> {
    start_with(test, &[], of_gateway)
}

/// Does what [`start`] does; the nodes have these settings, too.
fn start_with(test: &str, of_nodes: &[&str], of_gateway: &[&str]) -> Option<(Cluster, TempFile)> {
    let token = TempFile::new(TOKEN);
    let file = format!("api.token_file=\"{}\"", token.path().display());
    let settings = [&["api.listen=127.0.0.1:0", &*file], of_nodes].concat();
    let cluster = Cluster::start_all_with(test, &settings, of_gateway)?;
    // A client of these tests does not come back when its slot moves in the middle of its login.
    until("slots that stay", || {
        let state = cluster.status();
        let owned = state["nodes"].as_array().expect("a list").iter().filter_map(|it| it["slots"].as_u64());
        (owned.min() > Some(250)).then_some(())
    });
    Some((cluster, token))
}

/// A caller of these nodes in turn.
pub(super) fn caller(cluster: &Cluster, nodes: &[u16]) -> Caller {
    Caller::new(nodes.iter().map(|node| address_in(&cluster.lines[node])).collect())
}

#[test]
fn any_node_answers_the_calls_that_one_process_answers() {
    let Some((cluster, _token)) = start("any_node_answers_the_calls_that_one_process_answers", &[]) else {
        return;
    };
    let api = caller(&cluster, &[1, 2, 3]);
    check_speaking(&api, cluster.gateway(0), false);
    check_refusals(&api);
    for (path, body) in [
        ("/v1/users/delete", json!({ "user": "ann" })),
        ("/v1/retention", json!({ "conversation": "group:tea", "keep": 60 })),
        ("/v1/limit", json!({ "conversation": "group:tea", "per_minute": 0 })),
        ("/v1/requests", json!({ "user": "ann", "method": "im.account.delete", "request": {} })),
    ] {
        let (status, answer) = api.post(path, &body);
        assert_eq!((status, &answer["code"]), (501, &json!("UNSUPPORTED")), "{path}: {answer}");
        assert!(answer["reason"].as_str().expect("a reason").contains("a node of a cluster"), "{answer}");
    }
    // Presence is known to the nodes of the users who are asked for.
    let people: Vec<_> = (0..6).map(|number| format!("user{number}")).collect();
    let clients: Vec<_> = people.iter().map(|uid| connect(cluster.gateway(0).listener, uid, "d")).collect();
    let asked = json!({ "user": "shop", "method": "im.presence", "request": { "users": people } });
    until("everybody's presence", || {
        let (status, answer) = api.post("/v1/requests", &asked);
        assert_eq!(status, 200, "{answer}");
        let presences = answer["response"]["presences"].as_array().expect("a list");
        let online = presences.iter().filter(|it| it["platforms"] != json!([]));
        (online.count() == people.len()).then_some(())
    });
    let ended = json!({ "conversation": "group:tea" });
    assert_eq!(api.post("/v1/groups/dissolve", &ended), (200, json!({})));
    assert_eq!(api.post("/v1/groups/dissolve", &ended).0, 404);
    drop(clients);
}

/// Makes a call until it is done: what is put off, what has no answer, and a node that has gone are tried again. Returns the
/// number of tries.
fn insist(api: &Caller, path: &str, body: &Value) -> (Value, usize) {
    let mut tries = 0;
    let answer = until("the call", || {
        tries += 1;
        let (status, answer) = api.try_post(TOKEN, path, &body.to_string()).ok()?;
        assert!(matches!(status, 200 | 503 | 504), "{path} {body}: {status} {answer}");
        (status == 200).then_some(answer)
    });
    (answer, tries)
}

/// A message that a call has stored: conversation, seq, number.
type Place = (String, u64, usize);

/// Uid of a person.
fn uid(own: usize) -> String {
    format!("user{own}")
}

/// Call with which a person says a number to the others in turn.
fn message(number: usize) -> Value {
    let (own, round) = (number / 100_000, number % 100_000);
    let to = (own + 1 + round % (PEOPLE - 1)) % PEOPLE;
    let key = format!("{:032x}", number + 1);
    json!({ "from": uid(own), "to": { "user": uid(to) }, "text": number.to_string(), "key": key })
}

fn place_of(answer: &Value, number: usize) -> Place {
    let conversation = answer["conversation"].as_str().expect("an id").to_owned();
    (conversation, answer["seq"].as_u64().expect("a seq"), number)
}

/// Sends for a person until it is over. Returns the messages, and the number of those that took more than one try.
fn send_on(api: &Caller, own: usize, is_over: &AtomicBool) -> (Vec<Place>, usize) {
    let (mut stored, mut repeated, mut round) = (Vec::new(), 0, 0);
    while !is_over.load(Ordering::Relaxed) || round < 5 {
        let number = own * 100_000 + round;
        let (answer, tries) = insist(api, "/v1/messages", &message(number));
        repeated += usize::from(tries > 1);
        stored.push(place_of(&answer, number));
        round += 1;
        std::thread::park_timeout(PAUSE);
    }
    (stored, repeated)
}

/// A person has each message of the own conversations, once and in order.
fn check(own: usize, client: &Client, stored: &[Place]) {
    let is_own = |conversation: &str| conversation.split(':').any(|name| name == uid(own));
    let theirs: BTreeSet<usize> =
        stored.iter().filter(|(conversation, ..)| is_own(conversation)).map(|(.., number)| *number).collect();
    let mut got: Vec<Place> = Vec::new();
    until("all messages", || {
        while let Ok(message) = client.recv_timeout(Duration::from_millis(20)) {
            let text = String::from_utf8(message.payload.to_vec()).expect("text");
            got.push((message.conversation.to_string(), message.seq, text.parse().expect("a number")));
        }
        (got.len() >= theirs.len()).then_some(())
    });
    let numbers: BTreeSet<usize> = got.iter().map(|(.., number)| *number).collect();
    assert_eq!((&numbers, got.len()), (&theirs, theirs.len()), "{}", uid(own));
    for (at, (conversation, seq, _)) in got.iter().enumerate() {
        assert!(!got[..at].iter().any(|(other, later, _)| other == conversation && later > seq));
    }
}

#[test]
fn calls_are_done_once_while_a_node_is_killed() {
    let Some((mut cluster, _token)) = start("calls_are_done_once_while_a_node_is_killed", &[]) else {
        return;
    };
    let clients: Vec<_> =
        (0..PEOPLE).map(|own| connect(cluster.gateway(0).listener, &uid(own), "d")).collect();
    for client in &clients {
        until("a login", || client.conversations(PATIENCE).ok());
    }
    let (all, is_over) = (caller(&cluster, &[1, 2, 3]), AtomicBool::new(false));
    let (stored, repeated) = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..PEOPLE)
            .map(|own| {
                let (all, is_over) = (&all, &is_over);
                scope.spawn(move || send_on(all, own, is_over))
            })
            .collect();
        cluster.nodes.remove(&2).expect("it runs").kill();
        cluster.until_owned(&[1, 3]);
        is_over.store(true, Ordering::Relaxed);
        let (mut stored, mut repeated) = (Vec::new(), 0);
        for caller in callers {
            let (theirs, tries) = caller.join().expect("no call was refused");
            stored.extend(theirs);
            repeated += tries;
        }
        (stored, repeated)
    });
    assert!(repeated > 0, "some calls met the dead node");
    let places: BTreeSet<_> = stored.iter().map(|(conversation, seq, _)| (conversation, seq)).collect();
    assert_eq!(places.len(), stored.len(), "each message has a place of its own");
    // The same keys again, at the nodes that are left: nothing is stored anew.
    let left = caller(&cluster, &[1, 3]);
    for place in stored.iter().take(200) {
        let (answer, _) = insist(&left, "/v1/messages", &message(place.2));
        assert_eq!((&place_of(&answer, place.2), &answer["is_repeat"]), (place, &json!(true)));
    }
    clients.iter().enumerate().for_each(|(own, client)| check(own, client, &stored));
    // Kicks reach sessions that were announced to other nodes.
    for (own, client) in clients.iter().enumerate() {
        let (answer, tries) = insist(&left, "/v1/kick", &json!({ "user": uid(own) }));
        assert!(tries > 1 || answer["reached"] == json!(1), "{}: {answer}", uid(own));
        until("the end of the login", || client.conversations(PATIENCE).is_err().then_some(()));
    }
}

#[test]
fn pushes_into_inboxes_reach_each_device_while_a_node_is_killed() {
    let test = "pushes_into_inboxes_reach_each_device_while_a_node_is_killed";
    let Some((mut cluster, _token)) = start(test, &[]) else { return };
    let all = caller(&cluster, &[1, 2, 3]);
    // Enough for several parts at each node; most of them have never logged in.
    let people: Vec<_> = (0..300).map(uid).collect();
    let news = |number: usize| {
        let key = format!("{:032x}", number + 1);
        json!({ "to": { "inboxes": people }, "text": number.to_string(), "type": 3, "key": key })
    };
    let gateway = cluster.gateway(0).listener;
    let mut clients: Vec<_> = (0..PEOPLE).map(|own| connect(gateway, &uid(own), "d")).collect();
    // A push of which a part is put off is made again, and comes to each once.
    let mut tries = 0;
    for number in 0..3 {
        if number == 2 {
            cluster.nodes.remove(&2).expect("it runs").kill();
        }
        let (answer, of_this) = insist(&all, "/v1/push", &news(number));
        assert_eq!(answer["reached"], json!(people.len()));
        tries += of_this;
    }
    println!("{tries} calls for 3 pushes");
    let other =
        json!({ "to": { "inboxes": ["user0"] }, "text": "other", "type": 3, "key": format!("{:032x}", 1) });
    let living = caller(&cluster, &[1, 3]);
    assert_eq!(living.post("/v1/push", &other).0, 409, "the key is that of another content");
    clients.extend((PEOPLE..people.len()).step_by(29).map(|own| connect(gateway, &uid(own), "d")));
    for client in &clients {
        let mut got: Vec<Vec<u8>> = Vec::new();
        until("the news", || {
            while let Ok(message) = client.recv_timeout(Duration::from_millis(20)) {
                got.push(message.payload.to_vec());
            }
            got.iter().any(|text| text == b"2").then_some(())
        });
        assert_eq!(got, [b"0", b"1", b"2"], "each once, in order");
    }
}

/// Verdict on a login, once the gateway has found the node of its user.
fn verdict(cluster: &Cluster, own: usize, token: &str) -> u32 {
    until("a verdict", || {
        let verdict = try_verdict(cluster.gateway(0).listener, &uid(own), token);
        verdict.filter(|code| [0, REVOKED, BANNED].contains(code))
    })
}

#[test]
fn revoked_tokens_and_banned_users_stay_out_whichever_node_dies() {
    let key = TempFile::new(OLD);
    let key_file = format!("auth.key_file=\"{}\"", key.path().display());
    let test = "revoked_tokens_and_banned_users_stay_out_whichever_node_dies";
    let Some((mut cluster, _token)) = start(test, &["auth.mode=jwt", &key_file]) else { return };
    let tokens: Vec<_> = (0..PEOPLE).map(|own| token(OLD, &uid(own), "1h")).collect();
    let mut live = Vec::new();
    for (own, token) in tokens.iter().enumerate() {
        let mut client = Raw::greet(cluster.gateway(0).listener, &hello_with(&uid(own), token));
        client.until("WELCOME", |heard| heard.welcome.is_some());
        let mut number = 0;
        until("the backend's answer", || {
            number += 1;
            (client.request(number, "im.devices", Bytes::new()).code() == Code::Ok).then_some(())
        });
        live.push(client);
    }
    // Every second user is banned, and the tokens of the others are revoked; the last of each while a node dies.
    let all = caller(&cluster, &[1, 2, 3]);
    let ahead = clock::unix_seconds() + 2;
    let bar = |own: usize| {
        let (path, body) = match own % 2 {
            0 => ("/v1/ban", json!({ "user": uid(own) })),
            _ => ("/v1/revoke", json!({ "user": uid(own), "before": ahead })),
        };
        insist(&all, path, &body)
    };
    let code = |own: usize| [BANNED, REVOKED][own % 2];
    for (own, client) in live.iter_mut().enumerate().take(PEOPLE - 2) {
        // A slot that has just moved is told of the session later, and the session ends then.
        bar(own);
        assert_eq!(client.end().code(), code(own), "{}", uid(own));
    }
    let address = cluster.nodes.remove(&2).expect("it runs").kill();
    (PEOPLE - 2..PEOPLE).for_each(|own| _ = bar(own));
    let check = |cluster: &Cluster| {
        for (own, token) in tokens.iter().enumerate() {
            assert_eq!(verdict(cluster, own, token), code(own), "{}", uid(own));
        }
    };
    check(&cluster);
    cluster.until_owned(&[1, 3]);
    check(&cluster);
    cluster.start_node(2, &address.to_string());
    cluster.until_owned(&[1, 2, 3]);
    check(&cluster);
    until("tokens that are issued later", || (clock::unix_seconds() >= ahead).then_some(()));
    let all = caller(&cluster, &[1, 2, 3]);
    for own in 0..PEOPLE {
        let fresh = token(OLD, &uid(own), "1h");
        if code(own) == BANNED {
            assert_eq!(verdict(&cluster, own, &fresh), BANNED, "however new the token is");
            insist(&all, "/v1/unban", &json!({ "user": uid(own) }));
        }
        assert_eq!(verdict(&cluster, own, &fresh), 0, "{}", uid(own));
    }
    // A user may be barred before the first login.
    insist(&all, "/v1/ban", &json!({ "user": "nobody" }));
    let nobody = token(OLD, "nobody", "1h");
    let verdict = until("a verdict", || try_verdict(cluster.gateway(0).listener, "nobody", &nobody));
    assert_eq!(verdict, BANNED);
}

#[test]
fn users_come_to_be_up_to_the_shares_of_the_nodes() {
    let test = "users_come_to_be_up_to_the_shares_of_the_nodes";
    let of_nodes = ["im.users_max=30", "im.users_reserved=0"];
    let Some((cluster, _token)) = start_with(test, &of_nodes, &[]) else { return };
    let api = caller(&cluster, &[1, 2, 3]);
    let make = |number: usize| {
        let body = json!({ "user": format!("new{number}"), "method": "im.devices", "request": {} });
        let (status, answer) = api.post("/v1/requests", &body);
        assert!(matches!(status, 200 | 403), "{status} {answer}");
        status == 200
    };
    let made: Vec<usize> = (0..120).filter(|number| make(*number)).collect();
    println!("{} users of 30", made.len());
    // Each node's share is rounded up, and slots may move meanwhile, with more or fewer users than their share.
    assert!((25..=40).contains(&made.len()), "{} of 30: {made:?}", made.len());
    assert!(made.iter().all(|number| make(*number)), "who is there stays");
}
