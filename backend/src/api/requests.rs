//! Requests as JSON, and their answers: the JSON mapping of protobuf, with the names of the fields as they are in
//! `docs/protocol.md`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use moorline_proto::message::SCHEMA;
use prost_reflect::{
    DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions,
    prost::Message as _,
};
use serde_json::Value;
use std::sync::LazyLock;

static TYPES: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(SCHEMA).expect("a test holds it to the schema"));

/// Request and answer messages of a method, in `moorline.im.v1`.
const METHODS: [(&str, &str, &str); 23] = [
    ("im.pull", "PullRequest", "PullResponse"),
    ("im.conversations", "ConversationsRequest", "ConversationsResponse"),
    ("im.read", "ReadRequest", "ReadResponse"),
    ("im.receipts", "ReceiptsRequest", "ReceiptsResponse"),
    ("im.recall", "RecallRequest", "RecallResponse"),
    ("im.group.create", "GroupCreateRequest", "GroupCreateResponse"),
    ("im.group.join", "GroupRequest", "GroupResponse"),
    ("im.group.leave", "GroupRequest", "GroupResponse"),
    ("im.group.members", "GroupRequest", "GroupResponse"),
    ("im.group.change", "GroupChangeRequest", "GroupChangeResponse"),
    ("im.group.info", "GroupRequest", "GroupInfoResponse"),
    ("im.relation", "RelationRequest", "RelationResponse"),
    ("im.relations", "RelationsRequest", "RelationsResponse"),
    ("im.profile.set", "ProfileSetRequest", "ProfileSetResponse"),
    ("im.profile.get", "ProfileGetRequest", "ProfileGetResponse"),
    ("im.devices", "DevicesRequest", "DevicesResponse"),
    ("im.device.remove", "DeviceRemoveRequest", "DeviceRemoveResponse"),
    ("im.presence", "PresenceRequest", "PresenceResponse"),
    ("im.settings.set", "SettingsSetRequest", "SettingsSetResponse"),
    ("im.settings.get", "SettingsGetRequest", "SettingsGetResponse"),
    ("im.group.dissolve", "GroupRequest", "GroupResponse"),
    ("im.conversation.delete", "ConversationDeleteRequest", "ConversationDeleteResponse"),
    ("im.account.delete", "AccountDeleteRequest", "AccountDeleteResponse"),
];

/// Fields that hold an encoded message, and which.
const NESTED: [(&str, &str); 2] = [("last", "moorline.v1.Push"), ("happened", "moorline.im.v1.Happened")];
/// A page holds the last messages, which hold what happened.
const DEPTH_MAX: u32 = 8;

fn type_of(name: &str) -> MessageDescriptor {
    TYPES.get_message_by_name(name).unwrap_or_else(|| panic!("{name} is in the schema"))
}

fn im_type(name: &str) -> MessageDescriptor {
    type_of(&format!("moorline.im.v1.{name}"))
}

/// Encodes a request in the form that the method takes, or names the wrong field. `None`: there is not a method of this name.
pub(super) fn encode(method: &str, request: &Value) -> Option<Result<Bytes, String>> {
    let (_, takes, _) = METHODS.iter().find(|(name, ..)| *name == method)?;
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(request, &mut track);
    let message = DynamicMessage::deserialize_with_options(im_type(takes), tracked, &options);
    Some(message.map(|message| message.encode_to_vec().into()).map_err(|error| {
        let path = track.path().to_string();
        if path == "." { format!("request: {error}") } else { format!("request.{path}: {error}") }
    }))
}

/// Decodes the answer of a method. `None`: the bytes are not a valid answer.
pub(super) fn decode(method: &str, answer: &[u8]) -> Option<Value> {
    let (_, _, answers) = METHODS.iter().find(|(name, ..)| *name == method)?;
    to_json(im_type(answers), answer, 0)
}

/// A conversation event, as a webhook gets it.
pub(crate) fn happened(encoded: &[u8]) -> Option<Value> {
    to_json(im_type("Happened"), encoded, 0)
}

fn to_json(kind: MessageDescriptor, encoded: &[u8], depth: u32) -> Option<Value> {
    let options = SerializeOptions::new().use_proto_field_name(true).skip_default_fields(false);
    let message = DynamicMessage::decode(kind, encoded).ok()?;
    let mut value = message.serialize_with_options(serde_json::value::Serializer, &options).ok()?;
    open_nested(&mut value, depth);
    Some(value)
}

/// Shows what is encoded inside of a field.
fn open_nested(value: &mut Value, depth: u32) {
    match value {
        Value::Array(values) => values.iter_mut().for_each(|value| open_nested(value, depth)),
        Value::Object(fields) => {
            for (name, value) in fields {
                let nested = NESTED.iter().find(|(field, _)| field == name).zip(value.as_str());
                let opened = nested.filter(|(_, text)| !text.is_empty() && depth < DEPTH_MAX);
                let opened = opened.and_then(|((_, kind), text)| {
                    to_json(type_of(kind), &BASE64.decode(text).ok()?, depth + 1)
                });
                match opened {
                    Some(opened) => *value = opened,
                    None => open_nested(value, depth),
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moorline_proto::message::client::Push;
    use moorline_proto::message::im::{
        Conversation, ConversationsResponse, Happened, PullRequest, Recalled, happened::What,
    };
    use serde_json::json;

    #[test]
    fn each_method_takes_and_answers_what_is_in_the_schema() {
        for (method, _, answers) in METHODS {
            let empty = encode(method, &json!({})).expect("a method");
            assert_eq!(empty, Ok(Bytes::new()), "{method}");
            assert!(decode(method, b"").is_some_and(|it| it.is_object()), "{method} answers {answers}");
        }
    }

    #[test]
    fn numbers_may_be_strings_and_unknown_fields_are_errors() {
        let request = json!({ "conversation": "c2c:a:b", "from": "18446744073709551615", "to": 7 });
        let encoded = encode("im.pull", &request).expect("a method").expect("right");
        let pull: PullRequest = moorline_proto::message::decode(&encoded).expect("the same");
        assert_eq!((&*pull.conversation, pull.from, pull.to), ("c2c:a:b", u64::MAX, 7));
        for (wrong, says) in [
            (json!({ "conversaton": "x" }), "conversaton"),
            (json!({ "from": -1 }), "request.from: out of range"),
            (json!([]), "sequence"),
            (json!("x"), "string"),
        ] {
            let error = encode("im.pull", &wrong).expect("a method").expect_err("wrong");
            assert!(error.contains(says), "{wrong}: {error}");
        }
        assert_eq!(encode("im.watch", &json!({})), None);
    }

    #[test]
    fn what_is_encoded_inside_is_shown() {
        let what = What::Recalled(Recalled { seq: 3, message_id: 1 << 60, by: "ann".into() });
        let happened = moorline_proto::message::encode(&Happened { what: Some(what) });
        let push = Push { seq: 4, happened, ..Push::default() };
        let last = moorline_proto::message::encode(&push);
        let conversations = vec![Conversation { id: "c2c:a:b".into(), last, ..Conversation::default() }];
        let answer = ConversationsResponse { conversations, ..ConversationsResponse::default() };
        let shown = decode("im.conversations", &moorline_proto::message::encode(&answer)).expect("JSON");
        let last = &shown["conversations"][0]["last"];
        assert_eq!((&last["seq"], &last["payload"]), (&json!("4"), &json!("")), "{shown}");
        let id = (1u64 << 60).to_string();
        assert_eq!(last["happened"]["recalled"], json!({ "seq": "3", "message_id": id, "by": "ann" }));
    }
}
