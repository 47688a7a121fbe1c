//! Suggestion for a name that no setting has.

use super::key::{Shape, shape_of};
use super::load::Schema;

/// Names that differ by more changes than this are not meant.
const CHANGES_MAX: usize = 2;

/// Returns what is wrong with a path that is not a key, and what may have been meant.
pub(super) fn unknown(schema: &Schema, path: &str) -> String {
    let (head, name) = path.rsplit_once('.').unwrap_or(("", path));
    let is_section =
        |path: &str| schema.sections().any(|section| !path.is_empty() && shape_of(section).0 == path);
    if is_section(path) {
        let keys = schema.keys.iter().filter(|key| shape_of(key.section).0 == path);
        let names: Vec<_> = keys.map(|key| key.name).collect();
        return format!("`{path}` is a section; set one of its keys: {}", names.join(", "));
    }
    let Some(section) = section_of(schema, head) else {
        return unknown_section(schema, if head.is_empty() { path } else { head });
    };
    let names: Vec<_> = schema.keys_of(section).map(|key| key.name).collect();
    let place = if section.is_empty() { "at the top of the file".to_owned() } else { format!("in [{head}]") };
    if names.contains(&name) {
        // The key is there: the number of its table is not.
        return format!("unknown key `{name}` {place}; the tables of a list are numbered from 1");
    }
    format!("unknown key `{name}` {place}; {}", meant(name, &names, |name| format!("`{name}`")))
}

/// Returns what is wrong with a section that there is not.
pub(super) fn unknown_section(schema: &Schema, path: &str) -> String {
    let sections: Vec<_> =
        schema.sections().map(|section| shape_of(section).0).filter(|path| !path.is_empty()).collect();
    format!("unknown section [{path}]; {}", meant(path, &sections, |name| format!("[{name}]")))
}

/// The section of the table of keys that a concrete path stands in.
fn section_of(schema: &Schema, head: &str) -> Option<&'static str> {
    schema.sections().find(|section| {
        let (own, shape) = shape_of(section);
        let below = head.strip_prefix(own).and_then(|rest| rest.strip_prefix('.'));
        match shape {
            Shape::One => own == head,
            Shape::List => own == head || below.is_some_and(|index| index.parse::<usize>().is_ok()),
            Shape::Named => below.is_some(),
        }
    })
}

fn meant(given: &str, known: &[&str], show: fn(&str) -> String) -> String {
    let near = known.iter().map(|name| (changes(given, name), *name)).min();
    match near {
        Some((changes, name)) if changes <= CHANGES_MAX => format!("did you mean {}?", show(name)),
        _ => format!("there are {}", known.join(", ")),
    }
}

/// Letters to insert, remove or replace until both are the same.
fn changes(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
