//! Fuzz body of the server API: bodies of requests, and answers that become JSON.
//!
//! The first byte of an input chooses the path or the kind of answer, the rest is the body. Example: `2{"user":"ann", ...}`
//! is a body of POST `/v1/requests`.

use super::requests;
use super::routes;
use crate::im::ApiCall;
use bytes::Bytes;
use moorline_net::http::header::HeaderMap;
use moorline_net::http::{Method, Request, Uri};

/// Methods whose answers are decoded: one with nested messages, one with a list, one with maps of rights.
const ANSWERS: [&str; 4] = ["im.pull", "im.conversations", "im.group.info", "im.presence"];
/// Bytes of JSON for a byte of an encoded answer: an empty message in a list becomes all its fields by name.
const EXPANSION_MAX: usize = 1_000;

/// Decodes a body or an answer: it is refused, or what it means is within its limits.
pub fn body(input: &[u8]) {
    let Some((kind, rest)) = input.split_first() else { return };
    let request = || {
        let body = Bytes::copy_from_slice(rest);
        Request::new(Method::POST, Uri::from_static("/v1/fuzz"), HeaderMap::new(), body)
    };
    match kind % 6 {
        0 => {
            if let Ok(ApiCall::Send { send, .. }) = routes::message(&request()) {
                assert_eq!(send.key.len(), 16, "a key of another length");
                assert!(send.target.is_some() && send.payload.len() <= rest.len());
            }
        }
        1 => {
            if let Ok(ApiCall::Push { payload, .. }) = routes::push(&request()) {
                assert!(payload.len() <= rest.len());
            }
        }
        2 => {
            if let Ok((ApiCall::Request { payload, .. }, method)) = routes::asked_for(&request()) {
                assert!(payload.len() <= rest.len(), "{} bytes of {}", payload.len(), rest.len());
                // An answer that happens to be a request is refused or shown.
                method.map(|method| requests::decode(&method, &payload));
            }
        }
        3 => drop(routes::kick(&request())),
        4 => {
            let Some((method, answer)) = rest.split_first() else { return };
            shown(requests::decode(ANSWERS[usize::from(*method) % ANSWERS.len()], answer), answer);
        }
        _ => shown(requests::happened(rest), rest),
    }
}

fn shown(value: Option<serde_json::Value>, encoded: &[u8]) {
    let Some(value) = value else { return };
    let text = value.to_string();
    assert!(text.len() <= 4_096 + EXPANSION_MAX * encoded.len(), "{} bytes of {}", text.len(), encoded.len());
}

/// Bodies of an ordinary life, and answers to them.
#[cfg(test)]
fn seeds() -> Vec<Vec<u8>> {
    use moorline_proto::message::client::Push;
    use moorline_proto::message::encode;
    use moorline_proto::message::im::{
        Conversation, ConversationsResponse, Happened, PullResponse, Recalled, VoidRange, happened::What,
    };
    let bodies = [
        r#"0{"from":"ann","to":{"user":"ben"},"text":"hi"}"#,
        r#"0{"from":"ann","to":{"conversation":"group:g"},"type":7,"payload":"aGk=","key":"000102030405060708090a0b0c0d0e0f"}"#,
        r#"1{"to":{"users":["ann","ben"]},"text":"hi"}"#,
        r#"1{"to":{"devices":[{"user":"ann","device":"phone"}]},"type":1,"payload":"aGk="}"#,
        r#"1{"to":{"room":"hall"},"text":""}"#,
        r#"1{"to":{"everyone":true},"text":"hi"}"#,
        r#"2{"user":"ann","method":"im.pull","request":{"conversation":"c2c:ann:ben","from":"1","to":7}}"#,
        r#"2{"user":"ann","method":"im.group.change","request":{"conversation":"group:g","add":["ben"],"settings":{"title":"t"}}}"#,
        r#"2{"user":"ann","method":"im.read","payload":"CgE="}"#,
        r#"3{"user":"ann","device":"phone"}"#,
    ];
    // The digits of the lines above choose the kind by their value, as a byte does.
    let mut seeds: Vec<Vec<u8>> = bodies.iter().map(|body| body.as_bytes().to_vec()).collect();
    let what = What::Recalled(Recalled { seq: 3, message_id: 1 << 60, by: "ann".into() });
    let happened = encode(&Happened { what: Some(what) });
    let push = Push { seq: 4, happened: happened.clone(), ..Push::default() };
    let conversations =
        vec![Conversation { id: "c2c:a:b".into(), last: encode(&push), ..Conversation::default() }];
    let page = encode(&ConversationsResponse { conversations, more: true });
    let messages = vec![push, Push { payload: Bytes::from_static(b"hi"), ..Push::default() }];
    let voids = vec![VoidRange { from: 1, to: 2 }];
    let pull = encode(&PullResponse { messages, voids, latest: 9, ..PullResponse::default() });
    seeds.push([b"4\x01", &page[..]].concat());
    seeds.push([b"4\x00", &pull[..]].concat());
    seeds.push([b"5", &happened[..]].concat());
    seeds
}

#[test]
fn every_input_of_the_corpus_passes() {
    let seeds = seeds();
    seeds.iter().for_each(|seed| (0..=seed.len()).for_each(|cut| body(&seed[..cut])));
    crate::fuzz::corpus("backend_api", &seeds).iter().for_each(|input| body(input));
}
