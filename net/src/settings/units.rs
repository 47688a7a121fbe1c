//! Values with units: `"64KiB"`, `"1.5s"`, `"7d"`, `"20k/s"`, read and written.
//!
//! A number without its unit is refused, never guessed. `net/vectors/units.tsv` lists texts and what they mean. The load
//! generator reads the same grammar with code of its own and is held to the same list: an instrument must not
//! share bugs with what it measures, and people must not learn two grammars.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::time::Duration;

/// A size in bytes, written `"64KiB"` (B, KiB, MiB, GiB).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

const SIZE_UNITS: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];
const TIME_UNITS: [(&str, u64); 7] = [
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];
/// Units in which durations are written: minutes and hours would make `300s` and `90m` hard to compare.
const WRITTEN_TIME_UNITS: [(&str, u64); 5] =
    [TIME_UNITS[0], TIME_UNITS[3], TIME_UNITS[4], TIME_UNITS[5], TIME_UNITS[6]];

/// Form of a text with a unit.
pub(super) const SIZE_EXPECTED: &str = "a size: a number with B, KiB, MiB or GiB, such as \"64KiB\"";
/// See [`SIZE_EXPECTED`].
pub(super) const TIME_EXPECTED: &str = "a duration: a number with ns, us, ms, s, m, h or d, such as \"30s\"";
const RATE_EXPECTED: &str = "a rate: a number above 0 per second, such as \"500/s\" or \"20k/s\"";

/// Events per second above which a rate is a mistake.
const RATE_MAX: f64 = 1e8;

/// Reason why a text is not a size, a duration or a rate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// The text is not a number followed by a known unit, or not a whole number of the smallest unit.
    #[error("{text:?} is not {expected}")]
    Malformed {
        /// Text that was given.
        text: String,
        /// Accepted form.
        expected: &'static str,
    },
    /// The number does not fit.
    #[error("{text:?} is too large")]
    TooLarge {
        /// Text that was given.
        text: String,
    },
}

impl ByteSize {
    /// `bytes` bytes.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Returns the number of bytes.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// Returns the number of bytes; saturates on a machine with small addresses.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }

    /// Returns the number of bytes, saturating at 4 GiB - 1: for limits of frames, which validation keeps far below.
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
        f.write_str(&format(self.0, &SIZE_UNITS, "0B"))
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

/// Reads `"240s"`, `"50ms"`, `"1.5h"`.
///
/// # Errors
/// [`UnitError`].
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    parse(text, &TIME_UNITS, TIME_EXPECTED).map(Duration::from_nanos)
}

/// Writes a duration as [`parse_duration`] reads it, in the largest of days, seconds and smaller units that is exact.
pub fn format_duration(duration: Duration) -> String {
    let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    format(nanos, &WRITTEN_TIME_UNITS, "0s")
}

/// Reads `"500/s"`, `"20k/s"` or `"1.5m"` as events per second.
///
/// # Errors
/// [`UnitError::Malformed`].
pub fn parse_rate(text: &str) -> Result<f64, UnitError> {
    let malformed = || UnitError::Malformed { text: text.to_owned(), expected: RATE_EXPECTED };
    let lower = text.strip_suffix("/s").unwrap_or(text).trim().to_ascii_lowercase();
    let (number, scale) = match lower.strip_suffix(['k', 'm']) {
        Some(number) if lower.ends_with('k') => (number, 1e3),
        Some(number) => (number, 1e6),
        None => (lower.as_str(), 1.0),
    };
    let is_plain = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let rate = number.parse::<f64>().ok().filter(|_| is_plain).map(|number| number * scale);
    rate.filter(|rate| *rate > 0.0 && *rate <= RATE_MAX).ok_or_else(malformed)
}

/// For `#[serde(with = "units::duration")]`: a duration as text with its unit.
pub mod duration {
    use super::{Deserializer, Duration, Serializer, TIME_EXPECTED, TIME_UNITS, UnitVisitor};

    /// Reads it.
    ///
    /// # Errors
    /// Those of the deserializer, or a text that is not a duration.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let nanos =
            deserializer.deserialize_any(UnitVisitor { units: &TIME_UNITS, expected: TIME_EXPECTED })?;
        Ok(Duration::from_nanos(nanos))
    }

    /// Writes it.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&super::format_duration(*duration))
    }
}

/// For `#[serde(with = "units::bytes")]`: a `usize` of bytes as text with its unit.
pub mod bytes {
    use super::{ByteSize, Deserialize as _, Deserializer, Serializer, de};

    /// Reads it.
    ///
    /// # Errors
    /// Those of the deserializer, a text that is not a size, or one that does not fit.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
        let size = ByteSize::deserialize(deserializer)?;
        usize::try_from(size.as_u64()).map_err(|_| de::Error::custom(format!("\"{size}\" is too large")))
    }

    /// Writes it.
    ///
    /// # Errors
    /// Those of the serializer.
    #[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
    pub fn serialize<S: Serializer>(bytes: &usize, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&ByteSize::new(*bytes as u64))
    }
}

/// For `#[serde(with = "units::optional_address")]`: an address, or `""` for none.
pub mod optional_address {
    use super::{Deserialize as _, Deserializer, Serializer, de};
    use std::net::SocketAddr;

    /// Reads it.
    ///
    /// # Errors
    /// Those of the deserializer, or a text that is neither empty nor an address.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let parse = |text: String| text.parse().map(Some).map_err(de::Error::custom);
        if text.is_empty() { Ok(None) } else { parse(text) }
    }

    /// Writes it.
    ///
    /// # Errors
    /// Those of the serializer.
    #[allow(clippy::ref_option)] // serde's signature
    pub fn serialize<S: Serializer>(address: &Option<SocketAddr>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&address.map(|address| address.to_string()).unwrap_or_default())
    }
}

/// For `#[serde(with = "units::text")]`: a value as the text that its `Display` writes and its `FromStr` reads.
pub mod text {
    use super::{Deserialize as _, Deserializer, Serializer, de};
    use std::fmt::Display;
    use std::str::FromStr;

    /// Reads it.
    ///
    /// # Errors
    /// Those of the deserializer, or a text that is not such a value.
    pub fn deserialize<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(
        deserializer: D,
    ) -> Result<T, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }

    /// Writes it.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer, T: Display>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }
}

/// For `#[serde(with = "units::texts")]`: a list of values as texts.
pub mod texts {
    use super::{Deserialize as _, Deserializer, Serializer, de};
    use std::fmt::Display;
    use std::str::FromStr;

    /// Reads it.
    ///
    /// # Errors
    /// Those of the deserializer, or a text that is not such a value.
    pub fn deserialize<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(
        deserializer: D,
    ) -> Result<Vec<T>, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        texts.iter().map(|text| text.parse().map_err(de::Error::custom)).collect()
    }

    /// Writes it.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer, T: Display>(values: &[T], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(values.iter().map(ToString::to_string))
    }
}

struct UnitVisitor {
    units: &'static [(&'static str, u64)],
    expected: &'static str,
}

impl de::Visitor<'_> for UnitVisitor {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<u64, E> {
        parse(text, self.units, self.expected).map_err(E::custom)
    }
}

/// Reads a decimal number, spaces, and a unit; the product must be whole.
fn parse(text: &str, units: &[(&str, u64)], expected: &'static str) -> Result<u64, UnitError> {
    let malformed = || UnitError::Malformed { text: text.to_owned(), expected };
    let split = text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(malformed)?;
    let (number, unit) = text.split_at(split);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit).ok_or_else(malformed)?;
    let number = number.trim_end_matches(' ');
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let is_digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !is_digits(whole) || !is_digits(fraction) || fraction.len() > FRACTION_DIGITS_MAX {
        return Err(malformed());
    }
    let too_large = || UnitError::TooLarge { text: text.to_owned() };
    let whole =
        whole.parse::<u64>().ok().and_then(|whole| whole.checked_mul(*factor)).ok_or_else(too_large)?;
    let divisor = (0..fraction.len()).fold(1, |divisor: u128, _| divisor * 10);
    let parts = fraction.parse::<u128>().map_err(|_| malformed())? * u128::from(*factor);
    if !parts.is_multiple_of(divisor) {
        return Err(malformed());
    }
    let rest = u64::try_from(parts / divisor).map_err(|_| too_large())?;
    whole.checked_add(rest).ok_or_else(too_large)
}

/// Digits after the decimal point: a day has 14 digits of nanoseconds.
const FRACTION_DIGITS_MAX: usize = 14;

/// Writes a value with the largest unit (units fall) that loses nothing.
fn format(value: u64, units: &[(&str, u64)], zero: &str) -> String {
    let exact = units.iter().find(|(_, factor)| value >= *factor && value.is_multiple_of(*factor));
    exact.map_or_else(|| zero.to_owned(), |(name, factor)| format!("{}{name}", value / factor))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Texts, what kind of value each is read as, and its value: nanoseconds, bytes or events per second; `-`: refused.
    const VECTORS: &str = include_str!("../../vectors/units.tsv");

    #[test]
    fn texts_mean_what_the_list_says() {
        for line in VECTORS.lines().filter(|line| !line.starts_with('#')) {
            let [kind, text, value] = line.split('\t').collect::<Vec<_>>()[..] else { panic!("{line:?}") };
            let read = match kind {
                "duration" => parse_duration(text).map(|it| it.as_nanos().to_string()).ok(),
                "size" => text.parse::<ByteSize>().map(|it| it.as_u64().to_string()).ok(),
                "rate" => parse_rate(text).map(|it| it.to_string()).ok(),
                _ => panic!("{line:?} has no kind"),
            };
            assert_eq!(read.as_deref().unwrap_or("-"), value, "{line:?}");
        }
    }

    #[test]
    fn values_are_written_with_the_largest_unit_that_loses_nothing() {
        let written =
            [0, 300, 7 * 86_400, 90_000].map(|seconds| format_duration(Duration::from_secs(seconds)));
        assert_eq!(written, ["0s", "300s", "7d", "90000s"]);
        assert_eq!(format_duration(Duration::from_micros(1_500)), "1500us");
        let written = [0, 1_536, 1 << 30].map(|bytes| ByteSize::new(bytes).to_string());
        assert_eq!(written, ["0B", "1536B", "1GiB"]);
    }

    #[test]
    fn what_is_written_is_read_back() {
        for shift in 0..64 {
            for value in [1 << shift, (1 << shift) - 1, 1000 << (shift / 2), u64::MAX >> shift] {
                assert_eq!(ByteSize(value).to_string().parse(), Ok(ByteSize(value)));
                let duration = Duration::from_nanos(value);
                assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
            }
        }
    }

    #[test]
    fn too_much_is_told_from_nonsense() {
        assert!(matches!("99999999999GiB".parse::<ByteSize>(), Err(UnitError::TooLarge { .. })));
        assert!(matches!(parse_duration("999999999d"), Err(UnitError::TooLarge { .. })));
        assert!(matches!(parse_duration("5"), Err(UnitError::Malformed { .. })));
    }
}
