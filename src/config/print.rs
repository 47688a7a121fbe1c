//! Settings as text: a commented file of the defaults, the effective values, the reference page.
//!
//! All three are made from a table of [`Key`]s, so they cannot disagree.

use super::keys::Key;
use super::load::{Loaded, path_of};
use serde::Serialize;
use std::fmt::Write as _;

const WIDTH: usize = 100;

/// A settings file that says what the defaults say, with help above every key.
pub fn default_toml(keys: &[Key]) -> String {
    let mut out = String::new();
    for_each_section(keys, &mut out, |out, key| {
        write_comment(out, key.help);
        _ = writeln!(out, "{} = {}", key.name, key.default);
    });
    out
}

/// The values in force, each with where it came from. Loads again to the same values.
pub fn effective_toml<T: Serialize>(keys: &[Key], loaded: &Loaded<T>) -> String {
    let table = toml::Table::try_from(&loaded.config).expect("settings are a table of plain values");
    let mut out = String::new();
    for keys in keys.chunk_by(|one, next| one.section == next.section) {
        let section = keys[0].section;
        let one = std::slice::from_ref(&table[section]);
        let entries = table[section].as_array().map_or(one, Vec::as_slice);
        for (index, entry) in entries.iter().enumerate() {
            let gap = if out.is_empty() { "" } else { "\n" };
            let header = if entries.len() > 1 { format!("[[{section}]]") } else { format!("[{section}]") };
            _ = writeln!(out, "{gap}{header}");
            for Key { name, .. } in keys {
                let origin = loaded.origin(&path_of(section, index, name));
                _ = writeln!(out, "{name} = {} # {origin}", entry[name]);
            }
        }
    }
    out
}

/// The reference tables of `docs/configuration.md`.
pub fn reference_markdown(keys: &[Key]) -> String {
    let mut out = String::new();
    let mut section = "";
    for key in keys {
        if key.section != section {
            section = key.section;
            let gap = if out.is_empty() { "" } else { "\n" };
            _ = writeln!(
                out,
                "{gap}### [{section}]\n\n| key | default | expects | meaning |\n|---|---|---|---|"
            );
        }
        let Key { name, default, kind, help, .. } = key;
        _ = writeln!(out, "| `{name}` | `{default}` | {kind} | {help} |");
    }
    out
}

fn for_each_section(keys: &[Key], out: &mut String, mut line: impl FnMut(&mut String, &Key)) {
    let mut section = "";
    for key in keys {
        if key.section != section {
            section = key.section;
            let gap = if out.is_empty() { "" } else { "\n" };
            _ = writeln!(out, "{gap}[{section}]");
        }
        line(out, key);
    }
}

fn write_comment(out: &mut String, text: &str) {
    let mut line = String::from("#");
    for word in text.split_whitespace() {
        if line.len() + 1 + word.len() > WIDTH {
            _ = writeln!(out, "{line}");
            line.truncate(1);
        }
        line.push(' ');
        line.push_str(word);
    }
    _ = writeln!(out, "{line}");
}
