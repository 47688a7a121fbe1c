//! Values with units: `"64KiB"` and `"240s"`, read and written.
//!
//! Pure functions and one newtype. A number without its unit is refused, never guessed.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::time::Duration;

/// A size in bytes, written `"64KiB"` (B, KiB, MiB, GiB).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

const SIZE_UNITS: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];
const TIME_UNITS: [(&str, u64); 6] = [
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// Why a text is no size or duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a whole number followed by a known unit.
    #[error("{text:?} is not {expected}")]
    Malformed {
        /// What was written.
        text: String,
        /// What is accepted.
        expected: &'static str,
    },
    /// The number does not fit.
    #[error("{text:?} is too large")]
    TooLarge {
        /// What was written.
        text: String,
    },
}

const SIZE_EXPECTED: &str = "a size: a whole number with B, KiB, MiB or GiB, such as \"64KiB\"";
const TIME_EXPECTED: &str = "a duration: a whole number with ns, us, ms, s, m or h, such as \"30s\"";

impl ByteSize {
    /// `bytes` bytes.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// In bytes.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// In bytes; saturates on a machine with small addresses.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }

    /// In bytes, saturating at 4 GiB - 1: for limits of frames, which validation keeps far below.
    pub fn as_u32(self) -> u32 {
        u32::try_from(self.0).unwrap_or(u32::MAX)
    }
}

impl std::str::FromStr for ByteSize {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        parse(text, &SIZE_UNITS, SIZE_EXPECTED).map(Self)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format(self.0, &SIZE_UNITS))
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UnitVisitor { units: &SIZE_UNITS, expected: SIZE_EXPECTED }).map(Self)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Reads `"240s"`, `"50ms"`.
///
/// # Errors
/// [`UnitError`].
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    parse(text, &TIME_UNITS, TIME_EXPECTED).map(Duration::from_nanos)
}

/// Writes a duration as [`parse_duration`] reads it, in seconds or the smaller unit that is exact.
pub fn format_duration(duration: Duration) -> String {
    let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    format(nanos, &TIME_UNITS[2..])
}

/// For `#[serde(with = "units::duration")]`.
pub(crate) mod duration {
    use super::{Deserializer, Duration, Serializer, TIME_EXPECTED, TIME_UNITS, UnitVisitor};

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let visitor = UnitVisitor { units: &TIME_UNITS, expected: TIME_EXPECTED };
        deserializer.deserialize_any(visitor).map(Duration::from_nanos)
    }

    pub(crate) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&super::format_duration(*duration))
    }
}

struct UnitVisitor {
    units: &'static [(&'static str, u64)],
    expected: &'static str,
}

impl serde::de::Visitor<'_> for UnitVisitor {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<u64, E> {
        parse(text, self.units, self.expected).map_err(E::custom)
    }
}

fn parse(text: &str, units: &[(&str, u64)], expected: &'static str) -> Result<u64, UnitError> {
    let malformed = || UnitError::Malformed { text: text.to_owned(), expected };
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim_start()).ok_or_else(malformed)?;
    if number.is_empty() {
        return Err(malformed());
    }
    let number: Option<u64> = number.parse().ok();
    let product = number.and_then(|number| number.checked_mul(*factor));
    product.ok_or_else(|| UnitError::TooLarge { text: text.to_owned() })
}

/// With the largest unit (units fall) that loses nothing.
fn format(value: u64, units: &[(&str, u64)]) -> String {
    let exact = units.iter().find(|(_, factor)| value >= *factor && value.is_multiple_of(*factor));
    match exact {
        Some((name, factor)) => format!("{}{name}", value / factor),
        None => format!("0{}", if units[0].0 == "GiB" { "B" } else { "s" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_and_durations_read_as_written() {
        assert_eq!("64KiB".parse(), Ok(ByteSize(65_536)));
        assert_eq!("1 MiB".parse(), Ok(ByteSize(1 << 20)));
        assert_eq!("0B".parse(), Ok(ByteSize(0)));
        assert_eq!(parse_duration("240s"), Ok(Duration::from_secs(240)));
        assert_eq!(parse_duration("50ms"), Ok(Duration::from_millis(50)));
        assert_eq!(parse_duration("2h"), Ok(Duration::from_secs(7200)));
        assert_eq!(format_duration(Duration::from_secs(300)), "300s");
        assert_eq!(format_duration(Duration::ZERO), "0s");
        assert_eq!(ByteSize(0).to_string(), "0B");
        assert_eq!(ByteSize(1536).to_string(), "1536B");
    }

    #[test]
    fn a_missing_or_foreign_unit_is_refused() {
        for text in ["", "64", "KiB", "64KB", "-1s", "1.5KiB", "64kib", "1 0B"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
        for text in ["", "5", "s", "5 sec", "1.5s", "-3s"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        assert!(matches!("99999999999GiB".parse::<ByteSize>(), Err(UnitError::TooLarge { .. })));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(value in any::<u64>(), shift in 0u32..40) {
            let value = value >> shift << (shift / 2);
            prop_assert_eq!(ByteSize(value).to_string().parse(), Ok(ByteSize(value)));
            let duration = Duration::from_nanos(value);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }
    }
}
