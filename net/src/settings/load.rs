//! Layers defaults, file, environment and flags into one typed value, with the origin of each part.
//!
//! Each value is applied alone on top of what stands, so a fault always belongs to one line of the file, one variable
//! or one flag. A faulty value is noted and left out, and the rest goes on: a start names every fault of every source.
//! Example: the file has `limits.body_max = "64 parsecs"` in line 3 and `[lisener]` in line 7; the error has one line
//! for each, and those of the rules that the remaining values break.

use super::key::{Key, Renamed, Retired, Shape, literal, shape_of};
use super::problem::{Loaded, Origin, Problem, SettingsError};
use super::rules::Rules;
use super::source::read;
use super::suggest;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use toml::{Table, Value};

/// Limit of the tables of one list.
const LIST_MAX: usize = 64;

/// The settings of one program: its keys, and the variables that hold them.
#[derive(Clone, Copy, Debug)]
pub struct Schema {
    /// All keys, in the order in which they are printed; those of the top of the file first.
    pub keys: &'static [Key],
    /// Old names that are still read.
    pub renamed: &'static [Renamed],
    /// Settings of earlier versions that are gone.
    pub retired: &'static [Retired],
    /// Beginning of the environment variables, two underscores at its end.
    pub env_prefix: &'static str,
}

impl Schema {
    /// Layers `sets` over `env` over `file` over the defaults, and checks the rules between values. Of `env` only names with
    /// the prefix are looked at; pass `std::env::vars()`.
    ///
    /// # Errors
    /// [`SettingsError::Read`], or [`SettingsError::Invalid`] with every fault.
    pub fn load<T: DeserializeOwned>(
        &self,
        file: Option<&Path>,
        sets: &[String],
        env: impl IntoIterator<Item = (String, String)>,
        check: impl FnOnce(&mut Rules<'_, T>),
    ) -> Result<Loaded<T>, SettingsError> {
        let text = match file {
            Some(path) => {
                read(path).map_err(|source| SettingsError::Read { path: path.to_owned(), source })?
            }
            None => String::new(),
        };
        self.load_text(file.unwrap_or(Path::new("")), &text, sets, env, check)
    }

    /// Loads as [`Self::load`] does, with the text of a file; `path` is its name in messages.
    ///
    /// # Errors
    /// [`SettingsError::Invalid`] with every fault.
    pub fn load_text<T: DeserializeOwned>(
        &self,
        path: &Path,
        text: &str,
        sets: &[String],
        env: impl IntoIterator<Item = (String, String)>,
        check: impl FnOnce(&mut Rules<'_, T>),
    ) -> Result<Loaded<T>, SettingsError> {
        let mut layers = Layers::new(*self);
        layers.add_file::<T>(path, text);
        let variables = env.into_iter().filter(|(name, _)| name.starts_with(self.env_prefix));
        for (name, text) in variables.collect::<BTreeMap<_, _>>() {
            let path = name[self.env_prefix.len()..].to_ascii_lowercase().replace("__", ".");
            layers.add::<T>(&path, Given::Text(&text), Origin::Env(name));
        }
        for set in sets {
            layers.add_set::<T>(set);
        }
        layers.finish(check)
    }

    /// Returns a sentence for each variable with the prefix of another program that no setting of that program has. It does
    /// nothing, and was perhaps meant for this program. Variables that the other program reads may be here, too: programs share files of variables.
    pub fn strays(&self, other: &Self, env: impl IntoIterator<Item = (String, String)>) -> Vec<String> {
        let stray = |name: String| {
            let rest = name.strip_prefix(other.env_prefix)?.to_owned();
            let path = rest.to_ascii_lowercase().replace("__", ".");
            if other.knows(&path) {
                return None;
            }
            Some(if self.knows(&path) {
                let prefix = self.env_prefix;
                format!("environment variable {name} does nothing here; write {prefix}{rest}")
            } else {
                format!("environment variable {name} does nothing: {}", suggest::unknown(other, &path))
            })
        };
        env.into_iter().filter_map(|(name, _)| stray(name)).collect()
    }

    /// Returns whether a path is a setting, also by an old name.
    fn knows(&self, path: &str) -> bool {
        let is_old = self.renamed.iter().any(|renamed| renamed.translate(path).is_some());
        let is_retired = self.retired.iter().any(|retired| retired.key == path);
        is_old || is_retired || Layers::new(*self).place(path).is_some()
    }

    /// Returns the defaults, without the rules between values.
    pub fn defaults<T: DeserializeOwned>(&self) -> T {
        self.default_table().try_into().expect("the table of keys matches the structs")
    }

    /// Returns the defaults of one table of a list or with a name, such as `im.webhooks.*`.
    pub fn defaults_of<T: DeserializeOwned>(&self, section: &str) -> T {
        self.element(section).try_into().expect("the table of keys matches the structs")
    }

    /// All sections, each once, in the order of the keys.
    pub(super) fn sections(&self) -> impl Iterator<Item = &'static str> {
        let mut last = None;
        self.keys.iter().map(|key| key.section).filter(move |section| last.replace(*section) != Some(section))
    }

    pub(super) fn keys_of<'a>(&self, section: &'a str) -> impl Iterator<Item = &'static Key> + use<'a> {
        self.keys.iter().filter(move |key| key.section == section)
    }

    fn element(&self, section: &str) -> Table {
        let value = |key: &Key| literal(key.default).expect("a default is a TOML literal");
        self.keys_of(section).map(|key| (key.name.to_owned(), value(key))).collect()
    }

    fn default_table(&self) -> Table {
        let mut root = Table::new();
        for section in self.sections() {
            let (path, shape) = shape_of(section);
            let (head, name) = path.rsplit_once('.').unwrap_or(("", path));
            match shape {
                Shape::One => table_mut(&mut root, path).extend(self.element(section)),
                Shape::Named => {
                    table_mut(&mut root, head).insert(name.to_owned(), Value::Table(Table::new()));
                }
                Shape::List => {
                    let list = Value::Array(vec![Value::Table(self.element(section))]);
                    table_mut(&mut root, head).insert(name.to_owned(), list);
                }
            }
        }
        root
    }
}

/// Returns the path of a value in a list: `listener.backlog` in the first table, `listener.2.backlog` in the second.
pub fn path_of(section: &str, index: usize, name: &str) -> String {
    if index == 0 { format!("{section}.{name}") } else { format!("{section}.{}.{name}", index + 1) }
}

/// Returns the table at a path, made where it is not there.
fn table_mut<'a>(root: &'a mut Table, path: &str) -> &'a mut Table {
    path.split('.').filter(|name| !name.is_empty()).fold(root, |table, name| {
        let slot = table.entry(name).or_insert_with(|| Value::Table(Table::new()));
        slot.as_table_mut().expect("a section is a table")
    })
}

/// A value of a file, or the text of a variable or flag.
pub(super) enum Given<'a> {
    Value(Value),
    Text(&'a str),
}

/// Table of a section.
enum Element {
    Only,
    Index(usize),
    Name(String),
}

/// A key of a path, and the table that it stands in.
struct Place {
    key: &'static Key,
    element: Element,
    /// Path as [`path_of`] writes it.
    full: String,
}

/// Sources on top of each other, and their faults.
pub(super) struct Layers {
    pub(super) schema: Schema,
    table: Table,
    origins: BTreeMap<String, Origin>,
    pub(super) problems: Vec<Problem>,
    warnings: Vec<String>,
    /// Old names that a source used, by the path that they mean.
    translated: BTreeMap<String, (String, Origin)>,
}

impl Layers {
    fn new(schema: Schema) -> Self {
        Self {
            schema,
            table: schema.default_table(),
            origins: BTreeMap::new(),
            problems: Vec::new(),
            warnings: Vec::new(),
            translated: BTreeMap::new(),
        }
    }

    fn add_set<T: DeserializeOwned>(&mut self, set: &str) {
        let Some((path, text)) = set.split_once('=') else {
            let example = "expected section.key=value".to_owned();
            return self.blame("", Origin::Flag(set.to_owned()), example);
        };
        let path = path.trim();
        self.add::<T>(path, Given::Text(text.trim()), Origin::Flag(path.to_owned()));
    }

    pub(super) fn blame(&mut self, key: &str, origin: Origin, message: String) {
        self.problems.push(Problem { key: key.to_owned(), origin, message });
    }

    /// Returns today's name of a path, and warns of an old one.
    pub(super) fn translate(&mut self, path: &str, origin: &Origin) -> String {
        let new = self.schema.renamed.iter().find_map(|renamed| renamed.translate(path));
        let Some(new) = new else { return path.to_owned() };
        self.warnings.push(format!(
            "{origin}: `{path}` is now called `{new}`; the next release reads the new name only"
        ));
        self.translated.insert(new.clone(), (path.to_owned(), origin.clone()));
        new
    }

    /// Applies one value.
    pub(super) fn add<T: DeserializeOwned>(&mut self, path: &str, given: Given<'_>, origin: Origin) {
        let given_path = path;
        let path = self.translate(path, &origin);
        if let Some(retired) = self.schema.retired.iter().find(|retired| retired.key == path) {
            let value = match given {
                Given::Value(value) => Some(value),
                Given::Text(text) => literal(text),
            };
            if value != literal(retired.harmless) {
                self.blame(&path, origin, format!("this setting is gone: {}", retired.advice));
            }
            return;
        }
        let Some(place) = self.place(&path) else {
            let message = suggest::unknown(&self.schema, &path);
            return self.blame("", origin, message);
        };
        if let Some((old, place_of_old)) = self.set_twice(given_path, &place.full, &origin) {
            let message = format!("`{old}` is the old name of `{path}`, and both are set; remove `{old}`");
            return self.blame("", place_of_old, message);
        }
        let kind = place.key.kind;
        let value = match given {
            Given::Value(value) => value,
            Given::Text(text) => kind.value_of(text),
        };
        let outcome = kind.check(&value).and_then(|()| self.put::<T>(&place, value));
        match outcome {
            Ok(()) => _ = self.origins.insert(place.full, origin),
            Err(message) => self.blame(&place.full, origin, message),
        }
    }

    /// Tells whether a file sets a key by its old name and by its new one: the old name and its place.
    fn set_twice(&self, given: &str, full: &str, origin: &Origin) -> Option<(String, Origin)> {
        let is_of_file = |origin: &Origin| matches!(origin, Origin::File { .. });
        if !is_of_file(origin) {
            return None;
        }
        if given != full && self.origins.get(full).is_some_and(is_of_file) {
            return self.translated.get(full).cloned();
        }
        self.translated.get(full).filter(|(_, earlier)| is_of_file(earlier) && earlier != origin).cloned()
    }

    /// Sets a value, unless the settings cannot take it.
    fn put<T: DeserializeOwned>(&mut self, place: &Place, value: Value) -> Result<(), String> {
        let shown = value.to_string();
        let slot = self.ensure(place.key.section, &place.element)?.get_mut(place.key.name);
        let before = std::mem::replace(slot.expect("a table has all keys"), value);
        if self.table.clone().try_into::<T>().is_ok() {
            return Ok(());
        }
        let table = self.ensure(place.key.section, &place.element)?;
        table.insert(place.key.name.to_owned(), before);
        Err(format!("`{shown}` is out of range; expected {}", place.key.kind))
    }

    /// Returns a table of a section, made with its defaults where it is not there.
    fn ensure(&mut self, section: &'static str, element: &Element) -> Result<&mut Table, String> {
        let defaults = || Value::Table(self.schema.element(section));
        let (path, _) = shape_of(section);
        let slot = match element {
            Element::Only => return Ok(table_mut(&mut self.table, path)),
            Element::Name(name) => {
                table_mut(&mut self.table, path).entry(name.as_str()).or_insert_with(defaults)
            }
            Element::Index(index) => {
                let (head, name) = path.rsplit_once('.').unwrap_or(("", path));
                let list = table_mut(&mut self.table, head).get_mut(name).and_then(Value::as_array_mut);
                let list = list.expect("a list of the defaults");
                let count = list.len();
                list.get_mut(*index)
                    .ok_or_else(|| format!("the settings have {count} of [[{path}]]; add one to the file"))?
            }
        };
        Ok(slot.as_table_mut().expect("a table of the defaults"))
    }

    /// Makes the table of a name that a file opens.
    pub(super) fn open(&mut self, section: &'static str, name: &str) {
        let made = self.ensure(section, &Element::Name(name.to_owned()));
        made.expect("only lists have limits");
    }

    /// Makes the tables of a list that a file opens.
    pub(super) fn open_list(&mut self, section: &'static str, count: usize) {
        let list = Value::Array(vec![Value::Table(self.schema.element(section)); count.min(LIST_MAX)]);
        let (path, _) = shape_of(section);
        let (head, name) = path.rsplit_once('.').unwrap_or(("", path));
        table_mut(&mut self.table, head).insert(name.to_owned(), list);
    }

    /// Finds the key of a path.
    fn place(&self, path: &str) -> Option<Place> {
        let (head, name) = path.rsplit_once('.').unwrap_or(("", path));
        self.schema.keys.iter().filter(|key| key.name == name).find_map(|key| {
            let (section, shape) = shape_of(key.section);
            let below = head.strip_prefix(section).and_then(|rest| rest.strip_prefix('.'));
            let element = match shape {
                Shape::One => (head == section).then_some(Element::Only),
                Shape::Named => {
                    below.filter(|name| !name.is_empty()).map(|name| Element::Name(name.to_owned()))
                }
                Shape::List if head == section => Some(Element::Index(0)),
                Shape::List => {
                    let number = below.and_then(|number| number.parse::<usize>().ok());
                    number.and_then(|number| number.checked_sub(1)).map(Element::Index)
                }
            }?;
            let full = match &element {
                Element::Index(index) => path_of(section, *index, name),
                Element::Only | Element::Name(_) => path.to_owned(),
            };
            Some(Place { key, element, full })
        })
    }

    fn finish<T: DeserializeOwned>(
        mut self,
        check: impl FnOnce(&mut Rules<'_, T>),
    ) -> Result<Loaded<T>, SettingsError> {
        let config = self.table.try_into().expect("each value was applied and read alone");
        let loaded = Loaded { config, warnings: self.warnings, origins: self.origins };
        let faulty: BTreeSet<_> = self.problems.iter().map(|problem| problem.key.clone()).collect();
        let mut rules = Rules::new(&loaded.config, &loaded.origins);
        check(&mut rules);
        let broken = rules.into_problems().into_iter().filter(|problem| !faulty.contains(&problem.key));
        self.problems.extend(broken);
        if self.problems.is_empty() { Ok(loaded) } else { Err(SettingsError::Invalid(self.problems)) }
    }
}
