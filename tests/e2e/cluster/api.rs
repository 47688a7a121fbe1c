//! The server API at any node: calls go to the node of their user, also while one dies.

use super::{Cluster, PEOPLE};
use crate::api::{Caller, TOKEN, address_in, check_refusals, check_speaking};
use crate::process::TempFile;
use crate::sdk::connect;
use crate::{PATIENCE, until};
use moorline_sdk::client::Client;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Three nodes with the server API, and its token's file. `None`: PostgreSQL is not installed, which is told.
fn start(test: &str) -> Option<(Cluster, TempFile)> {
    let token = TempFile::new(TOKEN);
    let file = format!("api.token_file=\"{}\"", token.path().display());
    let cluster = Cluster::start_with(test, &["api.listen=127.0.0.1:0", &file])?;
    Some((cluster, token))
}

/// A caller of these nodes in turn.
fn caller(cluster: &Cluster, nodes: &[u16]) -> Caller {
    Caller::new(nodes.iter().map(|node| address_in(&cluster.lines[node])).collect())
}

#[test]
fn any_node_answers_the_calls_that_one_process_answers() {
    let Some((cluster, _token)) = start("any_node_answers_the_calls_that_one_process_answers") else {
        return;
    };
    let api = caller(&cluster, &[1, 2, 3]);
    check_speaking(&api, cluster.gateway(0), false);
    check_refusals(&api);
    for (path, body) in [
        ("/v1/revoke", json!({ "user": "ann" })),
        ("/v1/ban", json!({ "user": "ann" })),
        ("/v1/users/delete", json!({ "user": "ann" })),
        ("/v1/retention", json!({ "conversation": "group:tea", "keep": 60 })),
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
    let Some((mut cluster, _token)) = start("calls_are_done_once_while_a_node_is_killed") else { return };
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
        let (answer, _) = insist(&left, "/v1/kick", &json!({ "user": uid(own) }));
        assert_eq!(answer["reached"], json!(1), "{}", uid(own));
        until("the end of the login", || client.conversations(PATIENCE).is_err().then_some(()));
    }
}
