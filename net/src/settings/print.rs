//! Settings as text: a commented file of the defaults, the values in force, the reference tables.
//!
//! All three are made from a table of [`Key`]s, so they cannot disagree.

use super::key::{Key, Shape, shape_of};
use super::load::Schema;
use super::problem::Loaded;
use serde::Serialize;
use std::fmt::Write as _;
use toml::{Table, Value};

const WIDTH: usize = 100;

impl Schema {
    /// Returns a settings file that says what the defaults say, with help above every key. Tables with names of their own
    /// stand there as a comment.
    pub fn default_toml(&self) -> String {
        let mut out = String::new();
        for section in self.sections() {
            let lead = if shape_of(section).1 == Shape::Named { "# " } else { "" };
            write_head(&mut out, &format!("{lead}{}", head(section)));
            for key in self.keys_of(section) {
                write_comment(&mut out, key.help);
                _ = writeln!(out, "{lead}{} = {}", key.name, key.default);
            }
        }
        out
    }

    /// Returns the values in force, each with where it came from. The text loads again to the same values.
    pub fn effective_toml<T: Serialize>(&self, loaded: &Loaded<T>) -> String {
        let root = Table::try_from(&loaded.config).expect("settings are a table of plain values");
        let mut out = String::new();
        for section in self.sections() {
            let (path, shape) = shape_of(section);
            let at = if path.is_empty() { Some(&root) } else { table_at(&root, path) };
            match shape {
                Shape::One => {
                    write_head(&mut out, &head(section));
                    self.write_values(&mut out, loaded, section, path, at.expect("a section of the struct"));
                }
                Shape::Named => {
                    for (name, element) in at.into_iter().flatten() {
                        let element = element.as_table().expect("a table for each name");
                        write_head(&mut out, &format!("[{path}.{}]", quoted(name)));
                        self.write_values(&mut out, loaded, section, &format!("{path}.{name}"), element);
                    }
                }
                Shape::List => {
                    let list = root.get(path).and_then(Value::as_array).expect("a list of the struct");
                    for (index, element) in list.iter().enumerate() {
                        let element = element.as_table().expect("a list of tables");
                        let head = if list.len() > 1 { format!("[[{path}]]") } else { format!("[{path}]") };
                        write_head(&mut out, &head);
                        let at = if index == 0 { path.to_owned() } else { format!("{path}.{}", index + 1) };
                        self.write_values(&mut out, loaded, section, &at, element);
                    }
                }
            }
        }
        out
    }

    fn write_values<T>(
        &self,
        out: &mut String,
        loaded: &Loaded<T>,
        section: &str,
        path: &str,
        values: &Table,
    ) {
        for key in self.keys_of(section) {
            let full = if path.is_empty() { key.name.to_owned() } else { format!("{path}.{}", key.name) };
            let value = values.get(key.name).expect("the table of keys matches the structs");
            _ = writeln!(out, "{} = {value} # {}", key.name, loaded.origin(&full));
        }
    }

    /// Returns the reference tables, in Markdown.
    pub fn reference_markdown(&self) -> String {
        let mut out = String::new();
        for section in self.sections() {
            let gap = if out.is_empty() { "" } else { "\n" };
            let head = if section.is_empty() { "Top of the file".to_owned() } else { head(section) };
            _ = writeln!(out, "{gap}### {head}\n\n| key | default | expects | meaning |\n|---|---|---|---|");
            for Key { name, default, kind, help, .. } in self.keys_of(section) {
                _ = writeln!(out, "| `{name}` | `{default}` | {kind} | {help} |");
            }
        }
        out
    }
}

fn table_at<'a>(root: &'a Table, path: &str) -> Option<&'a Table> {
    path.split('.').try_fold(root, |table, name| table.get(name)?.as_table())
}

/// Returns the line that opens a section. Empty: the top of the file.
fn head(section: &'static str) -> String {
    match shape_of(section) {
        ("", _) => String::new(),
        (path, Shape::One | Shape::List) => format!("[{path}]"),
        (path, Shape::Named) => format!("[{path}.NAME]"),
    }
}

fn write_head(out: &mut String, head: &str) {
    if !head.is_empty() {
        let gap = if out.is_empty() { "" } else { "\n" };
        _ = writeln!(out, "{gap}{head}");
    }
}

/// Writes a name as a TOML key.
fn quoted(name: &str) -> String {
    let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if !name.is_empty() && name.bytes().all(is_bare) {
        name.to_owned()
    } else {
        Value::String(name.to_owned()).to_string()
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
