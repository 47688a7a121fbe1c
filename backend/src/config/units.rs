//! Sizes and durations with their unit in the text: `"64KiB"`, `"30s"`.

use serde::{Deserialize, Deserializer, Serializer, de};

const SIZES: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];
const TIMES_MS: [(&str, u64); 5] =
    [("ms", 1), ("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)];

/// The number before the first unit that fits, times that unit.
fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (number, unit) = units.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)))?;
    number.trim().parse::<u64>().ok()?.checked_mul(*unit)
}

/// In the largest unit that divides it.
fn format(value: u64, units: &[(&'static str, u64)]) -> String {
    let fits = |unit: u64| value.is_multiple_of(unit) && value >= unit;
    let best = units.iter().filter(|(_, unit)| fits(*unit)).max_by_key(|(_, unit)| *unit);
    let (name, unit) = best.or(units.iter().min_by_key(|(_, unit)| *unit)).expect("units are listed");
    format!("{}{name}", value / unit)
}

/// A number without its unit is none of these, and said to be so.
fn text_of<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Value {
        Text(String),
        Number(i64),
    }
    Value::deserialize(from)
        .map(|value| match value {
            Value::Text(text) => text,
            Value::Number(number) => number.to_string(),
        })
        .map_err(|_| de::Error::custom("expected a number with its unit, in quotes"))
}

pub(super) mod bytes {
    use super::{Deserializer, SIZES, Serializer, de, format, parse, text_of};

    #[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
    pub(crate) fn serialize<S: Serializer>(value: &usize, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&format(*value as u64, &SIZES))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<usize, D::Error> {
        let text = text_of(from)?;
        let value = parse(&text, &SIZES).and_then(|value| usize::try_from(value).ok());
        value.ok_or_else(|| de::Error::custom(format!("`{text}` is no size; write one like \"64KiB\"")))
    }
}

pub(super) mod duration {
    use super::{Deserializer, Serializer, TIMES_MS, de, format, parse, text_of};
    use std::time::Duration;

    pub(crate) fn serialize<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&format(u64::try_from(value.as_millis()).unwrap_or(u64::MAX), &TIMES_MS))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let text = text_of(from)?;
        let millis = parse(&text, &TIMES_MS);
        millis
            .map(Duration::from_millis)
            .ok_or_else(|| de::Error::custom(format!("`{text}` is no duration; write one like \"30s\"")))
    }
}
