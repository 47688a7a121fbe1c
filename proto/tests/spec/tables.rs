//! The tables of commands, states, close codes and limits are the code.

use crate::document::table;
use moorline_proto::connection::{client, server};
use moorline_proto::error::{CloseReason, may_reconnect};
use moorline_proto::frame::{
    BATCH_FRAMES_MAX, BODY_BYTES_CEILING, BODY_BYTES_MAX, Command, FIRST_BYTE, Flags, HELLO_BYTES_MAX,
    SMALL_BODY_BYTES_MAX,
};
use moorline_proto::ids::{DEVICE_BYTES_MAX, UID_BYTES_MAX};
use moorline_proto::{PROTOCOL_VERSION, dedupe};
use std::collections::BTreeSet;

fn name_of(command: Command) -> String {
    match command {
        Command::App(_) => "40 to BF".to_owned(),
        Command::Ignorable(_) => "C0 to FF".to_owned(),
        named => format!("{named:?}").to_uppercase(),
    }
}

fn every_command() -> impl Iterator<Item = Command> {
    Command::NAMED.iter().copied().chain([Command::App(0x40), Command::Ignorable(0xC0)])
}

#[test]
fn commands() {
    let rows: Vec<_> =
        table(&["byte", "name"]).rows.iter().map(|row| (row[0].clone(), row[1].clone())).collect();
    let commands: Vec<_> =
        Command::NAMED.iter().map(|command| (format!("{:02X}", command.byte()), name_of(*command))).collect();
    assert_eq!(rows, commands);
    assert_eq!((FIRST_BYTE, PROTOCOL_VERSION), (0xA1, 1));
}

/// Compares the table's directions with the commands that each side takes when logged in.
#[test]
fn directions() {
    for (row, command) in table(&["byte", "name"]).rows.iter().zip(Command::NAMED) {
        let up = server::Event::Received(*command);
        let is_up = *command == Command::Hello
            || !matches!(server::State::Active.on(up), server::Transition::Close(_));
        let down = client::Event::Received(*command);
        let is_down = *command == Command::Welcome
            || !matches!(client::State::Active.on(down), client::Transition::Broken);
        let direction = match (is_up, is_down) {
            (true, true) => "both",
            (true, false) => "up",
            (false, true) => "down",
            (false, false) => "nowhere",
        };
        assert_eq!(row[2], direction, "{command:?}");
    }
}

#[test]
fn flags() {
    let rows = table(&["bit", "name"]).rows;
    let flags = [
        (Flags::ACK_REQ, "ACK_REQ"),
        (Flags::DUP, "DUP"),
        (Flags::COMPRESSED, "COMPRESSED"),
        (Flags::BATCH, "BATCH"),
        (Flags::MORE, "MORE"),
        (Flags::SEALED, "SEALED"),
        (Flags::TRACE, "TRACE"),
        (Flags::EXT, "EXT"),
    ];
    assert_eq!(rows.len(), flags.len());
    for (row, (flag, name)) in rows.iter().zip(flags) {
        assert_eq!((row[0].clone(), row[1].as_str()), (format!("{:02X}", flag.0), name));
        assert_eq!(row[2] == "reserved", !Flags::SUPPORTED.contains(flag), "{name}");
    }
}

#[test]
fn gateway_transitions() {
    let cell = |transition| match transition {
        server::Transition::To(state) => format!("{state:?}"),
        server::Transition::Ignore => "-".to_owned(),
        server::Transition::Close(reason) => reason.code().to_string(),
    };
    let row = |name: String, event: server::Event| {
        let mut row = vec![name];
        row.extend(server::State::ALL.map(|state| cell(state.on(event))));
        row
    };
    let mut expected: Vec<_> =
        every_command().map(|command| row(name_of(command), server::Event::Received(command))).collect();
    expected.push(row("login admitted".to_owned(), server::Event::Admitted));
    expected.push(row("gateway drains".to_owned(), server::Event::Draining));
    expected.push(row("socket is lost".to_owned(), server::Event::Detaching));
    expected.push(row("session is resumed".to_owned(), server::Event::Resumed));
    expected.push(row("gateway ends it".to_owned(), server::Event::Ending));
    let table = table(&["event", "AwaitHello"]);
    assert_eq!(table.head[1..], server::State::ALL.map(|state| format!("{state:?}")));
    for (row, expected) in table.rows.iter().zip(&expected) {
        assert_eq!(row, expected);
    }
    assert_eq!(table.rows.len(), expected.len());
}

#[test]
fn client_transitions() {
    let cell = |transition| match transition {
        client::Transition::To(state) => format!("{state:?}"),
        client::Transition::Ignore => "-".to_owned(),
        client::Transition::Broken => "broken".to_owned(),
    };
    let table = table(&["event", "Offline"]);
    assert_eq!(table.head[1..], client::State::ALL.map(|state| format!("{state:?}")));
    let mut seen = BTreeSet::new();
    for row in &table.rows {
        let events: Vec<client::Event> = if row[0].starts_with("TCP") {
            vec![client::Event::Connected]
        } else if row[0].starts_with("connection lost") {
            vec![client::Event::Lost]
        } else {
            let names: Vec<&str> = row[0].split(", ").collect();
            seen.extend(names.iter().map(|&name| name.to_owned()));
            let named = every_command().filter(|command| names.contains(&name_of(*command).as_str()));
            named.map(client::Event::Received).collect()
        };
        assert!(!events.is_empty(), "{} is no event", row[0]);
        for event in events {
            assert_eq!(row[1..], client::State::ALL.map(|state| cell(state.on(event))), "{event:?}");
        }
    }
    assert_eq!(seen, every_command().map(name_of).collect(), "every command has its row");
}

#[test]
fn close_codes() {
    let expected: Vec<Vec<String>> = CloseReason::ALL
        .iter()
        .map(|reason| {
            vec![reason.code().to_string(), reason.label().to_owned(), reason.text().trim().to_owned()]
        })
        .collect();
    assert_eq!(table(&["code", "label"]).rows, expected);
    for row in &table(&["codes", "meaning"]).rows {
        let Some((first, last)) = row[0].split_once(" to ") else { continue };
        for code in [first, last].map(|code| code.parse::<u32>().expect("a code")) {
            assert_eq!(may_reconnect(code), row[2].starts_with("comes back"), "{code}");
        }
    }
    assert!(may_reconnect(0) && may_reconnect(2999) && may_reconnect(5000), "any other code");
}

#[test]
fn limits() {
    let rows = table(&["limit", "value"]).rows;
    let value = |limit: &str| {
        let row = rows.iter().find(|row| row[0] == limit);
        row.unwrap_or_else(|| panic!("no row for {limit}"))[1].parse::<usize>().expect("a number")
    };
    assert_eq!(value("body"), BODY_BYTES_MAX as usize);
    assert_eq!(value("body before WELCOME"), HELLO_BYTES_MAX as usize);
    assert_eq!(value("body of a small command"), SMALL_BODY_BYTES_MAX as usize);
    assert_eq!(value("frames in a batch"), BATCH_FRAMES_MAX);
    assert_eq!(value("uid"), UID_BYTES_MAX);
    assert_eq!(value("device id"), DEVICE_BYTES_MAX);
    assert_eq!(value("cids ahead of the answers"), dedupe::WINDOW_FRAMES as usize);
    let body = rows.iter().find(|row| row[0] == "body").expect("found above");
    assert!(body[3].ends_with(&BODY_BYTES_CEILING.to_string()), "the ceiling of limits.body_max");
}
