//! A settings file as a layer: its tables and values, each with its line.

use super::key::{Shape, shape_of};
use super::load::{Given, Layers};
use super::problem::Origin;
use super::suggest;
use serde::Deserialize as _;
use serde::de::DeserializeOwned;
use std::path::Path;
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Value};

/// Text of a file, for the lines of its parts.
struct Lines<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Lines<'_> {
    fn at(&self, offset: usize) -> Origin {
        let before = self.text.as_bytes().iter().take(offset);
        let line = 1 + before.filter(|byte| **byte == b'\n').count();
        Origin::File { path: self.path.to_owned(), line }
    }
}

impl Layers {
    /// Applies every value of a file, in the order of the text.
    pub(super) fn add_file<T: DeserializeOwned>(&mut self, path: &Path, text: &str) {
        let lines = Lines { path, text };
        let (document, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            let origin = lines.at(error.span().map_or(0, |span| span.start));
            self.blame("", origin, error.message().to_owned());
        }
        let syntax: Vec<Origin> = self.problems.iter().map(|problem| problem.origin.clone()).collect();
        self.walk::<T>("", document.get_ref(), false, &lines);
        // A line that cannot be read may look wrong in other ways too.
        let is_new = |(index, origin): (usize, &Origin)| index < syntax.len() || !syntax.contains(origin);
        let mut index = 0;
        self.problems.retain(|problem| {
            index += 1;
            is_new((index - 1, &problem.origin))
        });
        self.problems.sort_by_key(|problem| match &problem.origin {
            Origin::File { line, .. } => *line,
            Origin::Default | Origin::Program | Origin::Env(_) | Origin::Flag(_) => usize::MAX,
        });
    }

    /// Applies the entries of one table. `is_element`: the table is one of a list or has a name, and holds keys only.
    fn walk<T: DeserializeOwned>(
        &mut self,
        prefix: &str,
        table: &DeTable<'_>,
        is_element: bool,
        lines: &Lines<'_>,
    ) {
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(name, _)| name.span().start);
        for (name, value) in entries {
            let origin = lines.at(name.span().start);
            let path = if prefix.is_empty() {
                name.get_ref().to_string()
            } else {
                format!("{prefix}.{}", name.get_ref())
            };
            match self.container(&path).filter(|_| !is_element) {
                Some(container) => {
                    let path = self.translate(&path, &origin);
                    self.enter::<T>(&path, container, value, origin, lines);
                }
                None if !is_element && matches!(value.get_ref(), DeValue::Table(_)) => {
                    self.blame("", origin, suggest::unknown_section(&self.schema, &path));
                }
                None => match owned(value) {
                    Ok(value) => self.add::<T>(&path, Given::Value(value), origin),
                    Err(message) => self.blame(&path, origin, message),
                },
            }
        }
    }

    /// Applies a section, or the tables of a list or with names.
    fn enter<T: DeserializeOwned>(
        &mut self,
        path: &str,
        container: Container,
        value: &Spanned<DeValue<'_>>,
        origin: Origin,
        lines: &Lines<'_>,
    ) {
        match (container, value.get_ref()) {
            (Container::Section, DeValue::Table(table)) => self.walk::<T>(path, table, false, lines),
            (Container::List(section), DeValue::Table(_)) => {
                self.open_list(section, 1);
                if let DeValue::Table(table) = value.get_ref() {
                    self.walk::<T>(path, table, true, lines);
                }
            }
            (Container::List(section), DeValue::Array(items)) if !items.is_empty() => {
                self.open_list(section, items.len());
                for (number, item) in (1..).zip(items.iter()) {
                    let origin = lines.at(item.span().start);
                    self.element::<T>(section, &u32::to_string(&number), item, origin, lines);
                }
            }
            (Container::Names(section), DeValue::Table(table)) => {
                for (name, item) in table {
                    if item.get_ref().is_table() {
                        self.open(section, name.get_ref());
                    }
                    self.element::<T>(section, name.get_ref(), item, lines.at(name.span().start), lines);
                }
            }
            (Container::List(_), _) => self.blame(path, origin, format!("expected [{path}] or [[{path}]]")),
            (Container::Section | Container::Names(_), _) => {
                self.blame(path, origin, format!("expected a section [{path}]"));
            }
        }
    }

    /// Applies one table of a list or with a name.
    fn element<T: DeserializeOwned>(
        &mut self,
        section: &'static str,
        name: &str,
        value: &Spanned<DeValue<'_>>,
        origin: Origin,
        lines: &Lines<'_>,
    ) {
        let path = format!("{}.{name}", shape_of(section).0);
        let DeValue::Table(table) = value.get_ref() else {
            return self.blame(&path, origin, format!("expected a table [{path}]"));
        };
        self.walk::<T>(&path, table, true, lines);
    }

    /// Tells which kind of container a path of a file opens. `None`: a key, or unknown.
    fn container(&self, path: &str) -> Option<Container> {
        let renamed = self.schema.renamed.iter().find_map(|renamed| renamed.translate(path));
        let path = renamed.as_deref().unwrap_or(path);
        let mut found = None;
        for section in self.schema.sections() {
            let (own, shape) = shape_of(section);
            if own == path && !path.is_empty() {
                return Some(match shape {
                    Shape::One => Container::Section,
                    Shape::List => Container::List(section),
                    Shape::Named => Container::Names(section),
                });
            }
            if own.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')) {
                found = Some(Container::Section);
            }
        }
        found
    }
}

/// A path that holds tables and keys.
#[derive(Clone, Copy)]
enum Container {
    Section,
    List(&'static str),
    Names(&'static str),
}

fn owned(value: &Spanned<DeValue<'_>>) -> Result<Value, String> {
    let deserializer = toml::de::ValueDeserializer::from(value.clone());
    Value::deserialize(deserializer).map_err(|error| error.message().to_owned())
}
