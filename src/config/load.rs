//! Layers defaults, file, environment and flags into one typed value, with the origin of each part.
//!
//! Every value is applied alone on top of what stands, so an error always belongs to one line of the
//! file, one variable or one flag. Generic over the settings, so each program brings its own table.

use super::keys::{Key, Kind};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

/// Limit of a settings file, in bytes; over it the file is refused unread.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The table of defaults.
    Default,
    /// A line of the settings file.
    File {
        /// As given.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// An environment variable, by its name.
    Env(String),
    /// `--set` with this key.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Env(name) => write!(f, "environment variable {name}"),
            Self::Flag(key) => write!(f, "--set {key}"),
        }
    }
}

/// One thing wrong with one value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// `section.key`, or empty when the text has no such place.
    pub key: String,
    /// Where it stands.
    pub origin: Origin,
    /// What is wrong and what is expected.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, origin, message } = self;
        let is_named = key.is_empty() || *origin == Origin::Flag(key.clone());
        if is_named { write!(f, "{origin}: {message}") } else { write!(f, "{origin}: {key}: {message}") }
    }
}

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read settings file {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A source does not parse, names an unknown key, or has a value of the wrong kind.
    #[error("{0}")]
    Source(Problem),
    /// Values that are fine alone break a rule; all that do.
    #[error("{}", join(.0))]
    Invalid(Vec<Problem>),
}

fn join(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n")
}

/// Settings and where each came from.
#[derive(Clone, Debug)]
pub struct Loaded<T> {
    /// The settings.
    pub config: T,
    origins: BTreeMap<String, Origin>,
}

impl<T> Loaded<T> {
    /// Where the value of `key` ("section.key") came from.
    pub fn origin(&self, key: &str) -> Origin {
        self.origins.get(key).cloned().unwrap_or(Origin::Default)
    }
}

/// A setting of an earlier version.
#[derive(Clone, Copy, Debug)]
pub struct Retired {
    /// Section of the setting.
    pub section: &'static str,
    /// Name in the section.
    pub name: &'static str,
    /// Value, as a TOML literal, that asked for nothing and is ignored.
    pub harmless: &'static str,
    /// Advice to whoever set another value.
    pub advice: &'static str,
}

/// Which settings there are and which variables hold them.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// All keys.
    pub keys: &'static [Key],
    /// Settings of earlier versions.
    pub retired: &'static [Retired],
    /// Sections of which a file may have several, as `[[section]]`: their value is a list of tables.
    pub lists: &'static [&'static str],
    /// Of the environment variables, two underscores at its end.
    pub env_prefix: &'static str,
}

impl Source {
    /// Layers `sets` over `env` over `file` over the defaults.
    ///
    /// # Errors
    /// [`ConfigError::Read`] and [`ConfigError::Source`].
    pub fn load<T: DeserializeOwned + Serialize>(
        &self,
        file: Option<&Path>,
        sets: &[String],
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Loaded<T>, ConfigError> {
        let mut layers =
            Layers { source: *self, table: default_table(self.keys, self.lists), origins: BTreeMap::new() };
        if let Some(path) = file {
            layers.add_file::<T>(path)?;
        }
        let mut variables: Vec<_> =
            env.into_iter().filter(|(name, _)| name.starts_with(self.env_prefix)).collect();
        variables.sort();
        for (name, text) in variables {
            let path = name[self.env_prefix.len()..].to_ascii_lowercase().replace("__", ".");
            layers.add_text::<T>(&path, &text, Origin::Env(name)).map_err(ConfigError::Source)?;
        }
        for set in sets {
            layers.add_set::<T>(set).map_err(ConfigError::Source)?;
        }
        let config = layers.table.try_into().expect("each value was applied and read alone");
        Ok(Loaded { config, origins: layers.origins })
    }
}

/// The defaults of `keys` as a value.
pub(super) fn defaults<T: DeserializeOwned>(keys: &[Key], lists: &[&str]) -> T {
    default_table(keys, lists).try_into().expect("the table of keys matches the structs")
}

/// Path of a value: `section.name`, and `section.2.name` in the second entry of a list.
pub(super) fn path_of(section: &str, index: usize, name: &str) -> String {
    if index == 0 { format!("{section}.{name}") } else { format!("{section}.{}.{name}", index + 1) }
}

fn default_table(keys: &[Key], lists: &[&str]) -> Table {
    let mut table = Table::new();
    for key in keys {
        let value = literal(key.default).expect("a default is a TOML literal");
        let section = table.entry(key.section).or_insert_with(|| Value::Table(Table::new()));
        let section = section.as_table_mut().expect("a section is a table");
        section.insert(key.name.to_owned(), value);
    }
    for list in lists {
        let entry = table.remove(*list).expect("a list has keys");
        table.insert((*list).to_owned(), Value::Array(vec![entry]));
    }
    table
}

fn literal(text: &str) -> Option<Value> {
    let table: Table = toml::from_str(&format!("value = {text}")).ok()?;
    table.get("value").filter(|_| table.len() == 1).cloned()
}

/// Place of a value.
#[derive(Clone, Copy)]
struct Place<'a> {
    section: &'a str,
    /// Entry of a list, from 0; 0 in a section that is not a list.
    index: usize,
    name: &'a str,
}

struct Layers {
    source: Source,
    table: Table,
    origins: BTreeMap<String, Origin>,
}

impl Layers {
    fn add_file<T: DeserializeOwned>(&mut self, path: &Path) -> Result<(), ConfigError> {
        let text = read(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let at = |offset: usize| Origin::File {
            path: path.to_owned(),
            line: 1 + text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count(),
        };
        let document = DeTable::parse(&text).map_err(|error| {
            let origin = at(error.span().map_or(0, |span| span.start));
            problem("", origin, error.message().to_owned())
        })?;
        for (section, content) in document.get_ref() {
            let origin = at(section.span().start);
            let section = section.get_ref().as_ref();
            let tables = self.tables(section, content.get_ref());
            let tables = tables.map_err(|message| problem(section, origin.clone(), message))?;
            if let Some(message) = self.unknown_section(section) {
                return Err(problem("", origin, message));
            }
            for (index, entries) in tables.into_iter().enumerate() {
                for (name, value) in entries {
                    let origin = at(name.span().start);
                    let value = owned(value).map_err(|m| problem(section, origin.clone(), m))?;
                    let place = Place { section, index, name: name.get_ref() };
                    self.add::<T>(place, value, origin).map_err(ConfigError::Source)?;
                }
            }
        }
        Ok(())
    }

    /// The tables of a section: one, or those of a list, for which room is made.
    fn tables<'a, 'b>(
        &mut self,
        section: &str,
        content: &'b DeValue<'a>,
    ) -> Result<Vec<&'b DeTable<'a>>, String> {
        let is_list = self.source.lists.contains(&section);
        let tables: Option<Vec<_>> = match content {
            DeValue::Table(entries) => Some(vec![entries]),
            DeValue::Array(list) if is_list => {
                let table = |value: &'b Spanned<DeValue<'a>>| match value.get_ref() {
                    DeValue::Table(entries) => Some(entries),
                    _ => None,
                };
                list.iter().map(table).collect()
            }
            _ => None,
        };
        let expected = if is_list { "[section] or [[section]]" } else { "a [section]" };
        let tables = tables.filter(|tables| !tables.is_empty());
        let tables = tables
            .ok_or_else(|| self.unknown_section(section).unwrap_or_else(|| format!("expected {expected}")))?;
        if let Some(Value::Array(list)) = self.table.get_mut(section)
            && let Some(default) = list.first().cloned()
        {
            list.resize(tables.len(), default);
        }
        Ok(tables)
    }

    fn add_set<T: DeserializeOwned>(&mut self, set: &str) -> Result<(), Problem> {
        let Some((path, text)) = set.split_once('=') else {
            let message = "expected section.key=value".to_owned();
            return Err(Problem { key: String::new(), origin: Origin::Flag(set.to_owned()), message });
        };
        let path = path.trim();
        self.add_text::<T>(path, text.trim(), Origin::Flag(path.to_owned()))
    }

    fn add_text<T: DeserializeOwned>(
        &mut self,
        path: &str,
        text: &str,
        origin: Origin,
    ) -> Result<(), Problem> {
        let (section, name) = path.split_once('.').unwrap_or((path, ""));
        let mut place = Place { section, index: 0, name };
        if self.source.lists.contains(&section)
            && let Some((number, name)) = name.split_once('.')
            && let Some(index) = number.parse().ok().and_then(|number: usize| number.checked_sub(1))
        {
            place = Place { section, index, name };
        }
        let value = match self.find(section, place.name) {
            Some(key) => value_of(key.kind, text),
            // Refused by name just below, unless the setting is retired and asks for nothing.
            None => literal(text).unwrap_or_else(|| Value::String(text.to_owned())),
        };
        self.add::<T>(place, value, origin)
    }

    fn add<T: DeserializeOwned>(
        &mut self,
        place: Place<'_>,
        value: Value,
        origin: Origin,
    ) -> Result<(), Problem> {
        let Place { section, index, name } = place;
        let mut retired = self.source.retired.iter();
        if let Some(retired) = retired.find(|retired| retired.section == section && retired.name == name) {
            if literal(retired.harmless).as_ref() == Some(&value) {
                return Ok(());
            }
            let message = format!("this setting is gone: {}", retired.advice);
            return Err(Problem { key: format!("{section}.{name}"), origin, message });
        }
        let Some(key) = self.find(section, name) else {
            let message = self.unknown_section(section).unwrap_or_else(|| self.unknown_key(section, name));
            return Err(Problem { key: String::new(), origin, message });
        };
        let path = path_of(section, index, name);
        let entry = match self.table.get_mut(section).expect("every section has its defaults in the table") {
            Value::Array(list) => {
                let count = list.len();
                list.get_mut(index).ok_or_else(|| {
                    let message = format!("the settings have {count} of [[{section}]]; add one to the file");
                    Problem { key: String::new(), origin: origin.clone(), message }
                })?
            }
            entry => entry,
        };
        *entry.get_mut(name).expect("every key has its default in the table") = value;
        if let Err(error) = self.table.clone().try_into::<T>() {
            let reason = error.message().lines().next().unwrap_or("unreadable").to_owned();
            let message = format!("{reason}; expected {}", key.kind);
            return Err(Problem { key: path, origin, message });
        }
        self.origins.insert(path, origin);
        Ok(())
    }

    fn find(&self, section: &str, name: &str) -> Option<&'static Key> {
        self.source.keys.iter().find(|key| key.section == section && key.name == name)
    }

    fn unknown_section(&self, section: &str) -> Option<String> {
        if self.source.keys.iter().any(|key| key.section == section) {
            return None;
        }
        let mut sections: Vec<_> = self.source.keys.iter().map(|key| key.section).collect();
        sections.dedup();
        Some(format!("unknown section {section:?}; there are {}", sections.join(", ")))
    }

    fn unknown_key(&self, section: &str, name: &str) -> String {
        let known: Vec<_> =
            self.source.keys.iter().filter(|key| key.section == section).map(|key| key.name).collect();
        format!("unknown key {name:?} in section {section:?}; there are {}", known.join(", "))
    }
}

fn problem(key: &str, origin: Origin, message: String) -> ConfigError {
    ConfigError::Source(Problem { key: key.to_owned(), origin, message })
}

fn read(path: &Path) -> std::io::Result<String> {
    if std::fs::metadata(path)?.len() > FILE_BYTES_MAX {
        return Err(std::io::Error::other("it is over 1 MiB, no settings file is"));
    }
    std::fs::read_to_string(path)
}

/// The text of a flag or variable, as this kind of key takes it. What does not fit stays text, and
/// is refused with the kind's expectation.
fn value_of(kind: Kind, text: &str) -> Value {
    let as_text = || Value::String(text.to_owned());
    match kind {
        Kind::Count | Kind::Switch => literal(text).unwrap_or_else(as_text),
        Kind::Counts if !text.starts_with('[') => literal(&format!("[{text}]")).unwrap_or_else(as_text),
        Kind::Addresses | Kind::Texts | Kind::Counts if text.starts_with('[') => {
            literal(text).unwrap_or_else(as_text)
        }
        Kind::Addresses | Kind::Texts | Kind::Counts => {
            Value::Array(text.split(',').map(|part| Value::String(part.trim().to_owned())).collect())
        }
        Kind::Text | Kind::Choice(_) | Kind::Size | Kind::Duration | Kind::Address | Kind::Path => as_text(),
    }
}

fn owned(value: &Spanned<DeValue<'_>>) -> Result<Value, String> {
    use serde::Deserialize;
    let deserializer = toml::de::ValueDeserializer::from(value.clone());
    Value::deserialize(deserializer).map_err(|error| error.message().to_owned())
}
