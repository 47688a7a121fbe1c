//! The field tables of sections 4 and 11 are the schema.

use crate::document::{Table, table, tables};
use prost_reflect::{DescriptorPool, FieldDescriptor, Kind, MessageDescriptor};

fn schema() -> DescriptorPool {
    DescriptorPool::decode(moorline_proto::message::SCHEMA).expect("proto/generate compiled it")
}

/// Messages that clients and backends exchange; those of the link have no tables in the document.
fn documented_messages(schema: &DescriptorPool) -> impl Iterator<Item = MessageDescriptor> {
    let is_documented = |message: &MessageDescriptor| message.package_name() != "moorline.link.v1";
    schema.all_messages().filter(move |message| is_documented(message) && message.fields().len() > 0)
}

fn type_of(field: &FieldDescriptor, home: &MessageDescriptor) -> String {
    let name = match field.kind() {
        Kind::Bool => "bool".to_owned(),
        Kind::Uint32 => "uint32".to_owned(),
        Kind::Uint64 => "uint64".to_owned(),
        Kind::Fixed64 => "fixed64".to_owned(),
        Kind::String => "string".to_owned(),
        Kind::Bytes => "bytes".to_owned(),
        Kind::Enum(kind) => kind.name().to_owned(),
        Kind::Message(kind) if kind.package_name() == home.package_name() => kind.name().to_owned(),
        Kind::Message(kind) => kind.full_name().to_owned(),
        other => panic!("the document has no name for {other:?}"),
    };
    if field.is_list() { format!("repeated {name}") } else { name }
}

#[test]
fn field_tables_are_the_schema() {
    let documented: Vec<Table> =
        tables().into_iter().filter(|table| table.head.get(1).is_some_and(|head| head == "field")).collect();
    let documented: Vec<&Table> = documented.iter().filter(|table| table.head[0] == "number").collect();
    let mut messages = 0;
    for message in documented_messages(&schema()) {
        let is_its = |table: &&&Table| {
            let name: String = table.above.chars().take_while(|letter| letter.is_alphabetic()).collect();
            name == message.name()
        };
        let found = documented.iter().find(is_its);
        let found = found.unwrap_or_else(|| panic!("no table of {} fields", message.name()));
        let rows: Vec<[String; 3]> =
            found.rows.iter().map(|row| [row[0].clone(), row[1].clone(), row[2].clone()]).collect();
        let fields: Vec<[String; 3]> = message
            .fields()
            .map(|field| [field.number().to_string(), field.name().to_owned(), type_of(&field, &message)])
            .collect();
        assert_eq!(rows, fields, "the table of {}", message.name());
        messages += 1;
    }
    assert_eq!(documented.len(), messages, "a table of no message");
}

#[test]
fn result_codes_are_the_schema() {
    let rows: Vec<_> =
        table(&["number", "code"]).rows.iter().map(|row| (row[0].clone(), row[1].clone())).collect();
    let codes = schema().get_enum_by_name("moorline.v1.Code").expect("in the schema");
    let codes: Vec<_> =
        codes.values().map(|code| (code.number().to_string(), code.name().to_owned())).collect();
    assert_eq!(rows, codes);
}
