//! One setting: where it stands, what it is called, expects, defaults to and means.

use super::units::{self, ByteSize};
use moorline_proto::link::{Endpoint, LinkAddress};
use std::fmt;
use toml::Value;

/// One setting.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// TOML table that holds it. Empty: the top of the file. `listener[]`: each table of a list. `im.webhooks.*`: each
    /// table that has a name of its own under `im.webhooks`.
    pub section: &'static str,
    /// Name in that table.
    pub name: &'static str,
    /// Form of a value.
    pub kind: Kind,
    /// Default, as it is written in TOML.
    pub default: &'static str,
    /// Meaning, in one or two sentences.
    pub help: &'static str,
}

/// Makes a row of a table of keys.
pub const fn key(
    section: &'static str,
    name: &'static str,
    kind: Kind,
    default: &'static str,
    help: &'static str,
) -> Key {
    Key { section, name, kind, default, help }
}

/// Joins the parts of a table of `N` keys in all.
pub const fn joined<const N: usize>(parts: [&[Key]; 3]) -> [Key; N] {
    let mut all = [key("", "", Kind::Text, "", ""); N];
    let (mut count, mut part) = (0, 0);
    while part < parts.len() {
        let mut next = 0;
        while next < parts[part].len() {
            all[count] = parts[part][next];
            (count, next) = (count + 1, next + 1);
        }
        part += 1;
    }
    assert!(count == N, "the parts have another length");
    all
}

/// A key or section that was renamed. The old name is read with a warning for one release.
#[derive(Clone, Copy, Debug)]
pub struct Renamed {
    /// `section.key`, or a whole section.
    pub old: &'static str,
    /// Name that took its place.
    pub new: &'static str,
}

/// A setting of an earlier version that has no successor.
#[derive(Clone, Copy, Debug)]
pub struct Retired {
    /// `section.key`.
    pub key: &'static str,
    /// Value, as it is written in TOML, that asked for nothing: it is ignored.
    pub harmless: &'static str,
    /// Advice to whoever set another value.
    pub advice: &'static str,
}

impl Renamed {
    /// Translates a path at or below the old name. `None`: another path.
    pub(super) fn translate(&self, path: &str) -> Option<String> {
        let rest = path.strip_prefix(self.old)?;
        (rest.is_empty() || rest.starts_with('.')).then(|| format!("{}{rest}", self.new))
    }
}

/// Number of tables of a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// One: `[log]`, or the top of the file.
    One,
    /// A list: `[[listener]]`.
    List,
    /// One for each name: `[im.webhooks.NAME]`.
    Named,
}

/// Splits a section of the table of keys into its path and its shape.
pub(super) fn shape_of(section: &'static str) -> (&'static str, Shape) {
    if let Some(path) = section.strip_suffix("[]") {
        (path, Shape::List)
    } else if let Some(path) = section.strip_suffix(".*") {
        (path, Shape::Named)
    } else {
        (section, Shape::One)
    }
}

/// Form of a value, and how the text of a flag or variable becomes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A whole number.
    Count,
    /// `true` or `false`.
    Switch,
    /// A size in bytes with its unit.
    Size,
    /// A duration with its unit.
    Duration,
    /// IP address and port.
    Address,
    /// IP address and port, or empty.
    OptionalAddress,
    /// A list of IP addresses with ports.
    Addresses,
    /// IP address and port, or the path of a Unix socket.
    LinkAddress,
    /// A list of addresses likewise, or host names with a port.
    Endpoints,
    /// A list of texts.
    Texts,
    /// A list of whole numbers.
    Counts,
    /// A file's path, from the working directory.
    Path,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text => f.write_str("text"),
            Self::Choice(words) => {
                for (i, word) in words.iter().enumerate() {
                    write!(f, "{}\"{word}\"", if i == 0 { "" } else { " or " })?;
                }
                Ok(())
            }
            Self::Count => f.write_str("whole number"),
            Self::Switch => f.write_str("true or false"),
            Self::Size => f.write_str("size, such as \"64KiB\""),
            Self::Duration => f.write_str("duration, such as \"30s\""),
            Self::Address => f.write_str("IP:port, such as \"127.0.0.1:7000\""),
            Self::OptionalAddress => f.write_str("IP:port, such as \"127.0.0.1:7200\", or \"\""),
            Self::Addresses => f.write_str("list of IP:port, such as [\"127.0.0.1:7100\"]"),
            Self::LinkAddress => {
                f.write_str("IP:port or unix:path, such as \"unix:/run/moorline/link.sock\"")
            }
            Self::Endpoints => {
                f.write_str("list of IP:port, name:port or unix:path, such as [\"backend.internal:7100\"]")
            }
            Self::Texts => f.write_str("list of texts, such as [\"gw2.example:7000\"]"),
            Self::Counts => f.write_str("list of whole numbers, such as [3, 1]"),
            Self::Path => f.write_str("file path"),
        }
    }
}

impl Kind {
    /// Returns the value that the text of a flag or variable means. Text needs no quotes, a list no brackets. A text that
    /// does not fit stays text, for [`Self::check`] to refuse.
    pub(super) fn value_of(self, text: &str) -> Value {
        let as_text = || Value::String(text.to_owned());
        let quoted = || literal(text).filter(Value::is_str).unwrap_or_else(as_text);
        let listed = |list: String| literal(&list).unwrap_or_else(as_text);
        let split =
            || Value::Array(text.split(',').map(|part| Value::String(part.trim().to_owned())).collect());
        match self {
            Self::Count | Self::Switch => literal(text).unwrap_or_else(as_text),
            // An address of IPv6 has brackets of its own.
            Self::Addresses | Self::Endpoints if text.starts_with('[') => literal(text).unwrap_or_else(split),
            Self::Texts | Self::Counts if text.starts_with('[') => listed(text.to_owned()),
            Self::Counts => listed(format!("[{text}]")),
            Self::Addresses | Self::Endpoints | Self::Texts => split(),
            _ => quoted(),
        }
    }

    /// Checks the form of a value.
    ///
    /// # Errors
    /// A sentence that names the value, and what is expected.
    pub(super) fn check(self, value: &Value) -> Result<(), String> {
        let refused = || format!("`{value}` is not valid; expected {self}");
        let is_address =
            |value: &Value| value.as_str().is_some_and(|text| text.parse::<std::net::SocketAddr>().is_ok());
        let is_link = |value: &Value| value.as_str().is_some_and(|text| text.parse::<LinkAddress>().is_ok());
        let is_endpoint = |value: &Value| value.as_str().is_some_and(|text| text.parse::<Endpoint>().is_ok());
        let all = |fits: &dyn Fn(&Value) -> bool| value.as_array().is_some_and(|list| list.iter().all(fits));
        let fits = match self {
            Self::Text | Self::Path => value.is_str(),
            Self::Choice(words) => value.as_str().is_some_and(|word| words.contains(&word)),
            Self::Count => value.as_integer().is_some_and(|count| count >= 0),
            Self::Switch => value.is_bool(),
            Self::Size | Self::Duration => return self.check_unit(value),
            Self::Address => is_address(value),
            Self::OptionalAddress => value.as_str() == Some("") || is_address(value),
            Self::Addresses => all(&is_address),
            Self::LinkAddress => is_link(value),
            Self::Endpoints => all(&is_endpoint),
            Self::Texts => all(&Value::is_str),
            Self::Counts => all(&|item| item.as_integer().is_some_and(|count| count >= 0)),
        };
        if fits { Ok(()) } else { Err(refused()) }
    }

    fn check_unit(self, value: &Value) -> Result<(), String> {
        let is_size = self == Self::Size;
        let Some(text) = value.as_str() else {
            let expected = if is_size { units::SIZE_EXPECTED } else { units::TIME_EXPECTED };
            return Err(format!("`{value}` is not {expected}"));
        };
        let read =
            if is_size { text.parse::<ByteSize>().map(drop) } else { units::parse_duration(text).map(drop) };
        read.map_err(|error| error.to_string())
    }
}

/// Reads a TOML value as it stands in a file.
pub(super) fn literal(text: &str) -> Option<Value> {
    let table: toml::Table = toml::from_str(&format!("value = {text}")).ok()?;
    table.get("value").filter(|_| table.len() == 1).cloned()
}
