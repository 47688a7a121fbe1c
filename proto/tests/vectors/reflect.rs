//! Protobuf bodies as JSON, read from the schema itself and not through the generated code.

use prost_reflect::{DescriptorPool, DynamicMessage, Kind, Value as Field};
use serde_json::{Map, Value, json};
use std::fmt::Write;
use std::sync::OnceLock;

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("strings grow");
        text
    })
}

fn schema() -> &'static DescriptorPool {
    static SCHEMA: OnceLock<DescriptorPool> = OnceLock::new();
    SCHEMA.get_or_init(|| {
        DescriptorPool::decode(moorline_proto::message::SCHEMA).expect("proto/generate compiled it")
    })
}

/// The fields that differ from their default: 64-bit numbers as decimal text, bytes as hex text, enums by name.
pub(crate) fn body(message: &str, bytes: &[u8]) -> Value {
    let descriptor = schema().get_message_by_name(message).expect("named in the schema");
    object(&DynamicMessage::decode(descriptor, bytes).expect("decodes as the schema says"))
}

fn object(message: &DynamicMessage) -> Value {
    let fields =
        message.fields().map(|(field, value)| (field.name().to_owned(), plain(&field.kind(), value)));
    Value::Object(fields.collect::<Map<_, _>>())
}

fn plain(kind: &Kind, value: &Field) -> Value {
    match value {
        Field::Bool(value) => json!(value),
        Field::U32(value) => json!(value),
        Field::U64(value) => json!(value.to_string()),
        Field::String(value) => json!(value),
        Field::Bytes(value) => json!(hex(value)),
        Field::EnumNumber(number) => {
            let Kind::Enum(names) = kind else { panic!("enum values belong to enum fields") };
            json!(names.get_value(*number).expect("a named value").name())
        }
        Field::Message(value) => object(value),
        Field::List(values) => values.iter().map(|value| plain(kind, value)).collect(),
        other => panic!("the schema has no field of this kind: {other:?}"),
    }
}
