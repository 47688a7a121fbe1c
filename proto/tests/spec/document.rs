//! Reads the specification: rules, tables, dumps.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

pub(crate) fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

pub(crate) fn path() -> PathBuf {
    workspace().join("docs/protocol.md")
}

pub(crate) fn text() -> String {
    fs::read_to_string(path()).expect("docs/protocol.md")
}

/// A table: the line above it, and its rows without the head.
pub(crate) struct Table {
    /// The line of text before it.
    pub(crate) above: String,
    pub(crate) head: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
}

fn cells(line: &str) -> Vec<String> {
    line.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect()
}

pub(crate) fn tables() -> Vec<Table> {
    let text = text();
    let mut tables: Vec<Table> = Vec::new();
    let (mut above, mut is_inside) = (String::new(), false);
    for line in text.lines() {
        if !line.starts_with('|') {
            is_inside = false;
            if !line.is_empty() {
                line.clone_into(&mut above);
            }
        } else if !is_inside {
            is_inside = true;
            tables.push(Table { above: above.clone(), head: cells(line), rows: Vec::new() });
        } else if !line.starts_with("|--") {
            tables.last_mut().expect("inside a table").rows.push(cells(line));
        }
    }
    tables
}

/// The only table whose head begins with these cells.
pub(crate) fn table(head: &[&str]) -> Table {
    let mut found: Vec<Table> =
        tables().into_iter().filter(|table| table.head.starts_with(&owned(head))).collect();
    assert_eq!(found.len(), 1, "tables with the head {head:?}");
    found.remove(0)
}

fn owned(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|&cell| cell.to_owned()).collect()
}

/// Rule ids that a text names in square brackets.
pub(crate) fn cited(text: &str) -> BTreeSet<String> {
    let id = |rest: &str| {
        let (id, _) = rest.split_once(']')?;
        let (section, rule) = id.split_once('.')?;
        let is_id = section.parse::<u8>().is_ok() && rule.parse::<u8>().is_ok();
        is_id.then(|| id.to_owned())
    };
    text.split("[P-").skip(1).filter_map(id).collect()
}

/// Rule ids in the order of the document.
pub(crate) fn rules() -> Vec<String> {
    let text = text();
    let definitions = text.lines().filter(|line| line.starts_with("**[P-"));
    definitions
        .map(|line| cited(line.split("**").nth(1).expect("bold")).pop_first().expect("an id"))
        .collect()
}
