//! A hot conversation is limited and frozen by the operator, while people write to it.

use crate::api::Api;
use crate::gateway::Gateway;
use crate::process::StoreFolder;
use crate::raw::{Client, message, send_frame};
use moorline_proto::frame::Flags;
use moorline_proto::message::client::{Code, Send, SendAck, send};
use serde_json::{Value, json};

/// A message to the group.
fn to_group(key: u128) -> Send {
    Send { target: Some(send::Target::Conversation("group:tea".to_owned())), ..message(key, "", b"hot") }
}

fn tell(client: &mut Client, cid: u32) -> SendAck {
    repeat(client, cid, cid.into())
}

/// A message that may have been stored before, under another cid.
fn repeat(client: &mut Client, cid: u32, key: u128) -> SendAck {
    client.put(&send_frame(cid, &to_group(key)).with_flags(Flags::DUP));
    client.answer(cid)
}

fn limit(api: &Api, per_minute: &Value) {
    let question = json!({ "conversation": "group:tea", "per_minute": per_minute });
    assert_eq!(api.post("/v1/limit", &question), (200, json!({})));
}

#[test]
fn a_hot_group_is_limited_and_frozen_by_order_also_over_a_restart() {
    let store = StoreFolder::new();
    let api = Api::start(&[&store.set()]);
    let gateway = Gateway::start(&api.backend, &[]);
    let mut ann = Client::login(gateway.listener, "ann", "d");
    let request = json!({ "user": "ann", "method": "im.group.create", "request": { "group": "tea", "members": ["ben"] } });
    assert_eq!(api.post("/v1/requests", &request).0, 200);
    let first = tell(&mut ann, 1);
    assert_eq!(first.code(), Code::Ok);

    limit(&api, &json!(1));
    assert_eq!(tell(&mut ann, 2).code(), Code::Ok, "one passes");
    let refused = tell(&mut ann, 3);
    assert_eq!((refused.code(), refused.retry_after_ms), (Code::Retry, 2000), "{refused:?}");
    assert_eq!(api.status()["limits"]["conversations_limited"], 1);
    let said = json!({ "from": "ann", "to": { "conversation": "group:tea" }, "text": "calm down" });
    assert_eq!(api.post("/v1/messages", &said).0, 200, "the operator is not limited");
    limit(&api, &json!(0));
    let refused = tell(&mut ann, 4);
    assert_eq!(refused.code(), Code::Denied, "{refused:?}");
    assert!(refused.reason.contains("frozen"), "{refused:?}");
    let again = repeat(&mut ann, 5, 1);
    assert_eq!((again.code(), again.seq), (Code::Dup, first.seq), "what was stored is told, frozen or not");

    let place = {
        let Api { backend, .. } = api;
        backend.kill()
    };
    let api = Api::start(&[&store.set(), &format!("listen={place}")]);
    gateway.until_ready();
    assert_eq!(tell(&mut ann, 6).code(), Code::Denied, "frozen still");
    limit(&api, &json!("none"));
    for cid in 7..20 {
        assert_eq!(tell(&mut ann, cid).code(), Code::Ok);
    }
    for question in [
        json!({ "conversation": "group:tea", "per_minute": 60_001 }),
        json!({ "conversation": "group:tea", "per_minute": "few" }),
        json!({ "conversation": "group:tea" }),
    ] {
        assert_eq!(api.post("/v1/limit", &question).0, 400, "{question}");
    }
    let nowhere = json!({ "conversation": "group:coffee", "per_minute": 1 });
    assert_eq!(api.post("/v1/limit", &nowhere).0, 404);
}
