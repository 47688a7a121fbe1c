//! `docs/backend.md` says what the code does.

use bytes::BytesMut;
use moorline_backend::BackendConfig;
use moorline_backend::config::SCHEMA;
use moorline_proto::link::{BODY_BYTES_MAX, HEADER_BYTES, Kind, encode};
use moorline_proto::message::backend::LinkHello;
use std::fmt::Write;

const PAGE: &str = include_str!("../../docs/backend.md");
const MINIMAL: &str = include_str!("../examples/minimal.rs");

/// The cells of every table row of the page.
fn rows() -> impl Iterator<Item = Vec<&'static str>> {
    PAGE.lines()
        .filter_map(|line| line.strip_prefix("| "))
        .map(|row| row.trim_end_matches('|').split(" | ").map(str::trim).collect())
}

#[test]
fn every_kind_has_its_row() {
    let in_section = PAGE.split("\n## 3 Kinds").nth(1).expect("section 3");
    let listed: Vec<_> = in_section
        .lines()
        .take_while(|line| !line.starts_with("## "))
        .filter_map(|line| line.strip_prefix("| "))
        .filter_map(|row| u8::from_str_radix(row.get(..2)?, 16).ok().map(|byte| (byte, row)))
        .collect();
    assert_eq!(listed.len(), Kind::ALL.len());
    for ((byte, row), kind) in listed.iter().zip(Kind::ALL) {
        let name = row.split(" | ").nth(1).expect("a name").replace('_', "");
        assert_eq!((*byte, name), (kind.byte(), format!("{kind:?}").to_uppercase()));
    }
}

#[test]
fn every_setting_has_its_row_and_default() {
    let text = toml::to_string(&BackendConfig::default()).expect("serialises");
    let (mut section, mut settings) = (String::new(), Vec::new());
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = format!("{}.", name.trim_end_matches(']'));
        } else if let Some((key, value)) = line.split_once(" = ") {
            settings.push((format!("`{section}{key}`"), value.to_owned()));
        }
    }
    assert!(settings.len() > 20);
    let documented: Vec<_> = rows().filter(|row| row.len() == 3).collect();
    for (key, value) in settings {
        let row = documented.iter().find(|row| row[0] == key).unwrap_or_else(|| panic!("{key} has no row"));
        assert_eq!(row[1].trim_matches('`'), value, "{key}");
    }
}

#[test]
fn the_reference_page_has_the_tables_of_this_program() {
    let page = include_str!("../../docs/configuration.md");
    let tables = page.split("\n## Settings of the backend\n").nth(1).expect("the page has the tables");
    let tables = tables.split("\n## ").next().expect("a section").trim();
    assert_eq!(
        tables,
        SCHEMA.reference_markdown().trim(),
        "paste the output of `moorline backend config doc`"
    );
}

#[test]
fn the_dump_and_the_numbers_are_the_codes() {
    let node = "g1".to_owned();
    let hello = LinkHello { version_min: 1, version_max: 1, node, epoch: 7, ..Default::default() };
    let mut wire = BytesMut::new();
    encode(&mut wire, Kind::Hello, 0, 0, &hello);
    let dump = wire.chunks(16).zip((0..).step_by(16)).fold(String::new(), |mut dump, (line, offset)| {
        write!(dump, "{offset:06x} ").expect("writes to memory");
        line.iter().for_each(|byte| write!(dump, " {byte:02x}").expect("writes to memory"));
        dump + "\n"
    });
    assert!(PAGE.contains(&format!("```hexdump link-hello\n{dump}```")), "the dump should be:\n{dump}");
    assert!(PAGE.contains(&format!("header of {HEADER_BYTES} bytes")));
    assert_eq!(BODY_BYTES_MAX, 4_194_304);
}

#[test]
fn the_backend_in_the_page_is_the_one_that_compiles() {
    let code = PAGE.split("```rust\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a listing");
    assert!(MINIMAL.ends_with(code), "copy backend/examples/minimal.rs into docs/backend.md");
    assert!(code.lines().count() <= 45, "it is meant to be small");
}
