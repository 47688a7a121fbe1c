//! Numbers as people write them: "1m" connections, "20k/s", "500ms", and back.
//!
//! The grammar is that of the settings of all programs, and the code is not: an instrument must not share bugs with what
//! it measures. `net/vectors/units.tsv` lists texts and what they mean; both are held to it.

use std::time::Duration;

/// Reads "10k", "1.5m" or "300" as a count of things.
pub fn parse_count(text: &str) -> Result<u32, String> {
    let value = parse_scaled(text)?;
    if value < 1.0 || value > f64::from(u32::MAX) || value.fract() != 0.0 {
        return Err(format!("{text:?} is not a count: write a whole number such as 500, 10k or 1m"));
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // checked above
    Ok(value as u32)
}

/// Reads "20k/s" or "20k" as events per second.
pub fn parse_rate(text: &str) -> Result<f64, String> {
    let value = parse_scaled(text.strip_suffix("/s").unwrap_or(text))?;
    if value > 0.0 && value <= 1e8 {
        Ok(value)
    } else {
        Err(format!("{text:?} is not a rate: write events per second such as 500/s or 20k/s"))
    }
}

/// Reads "10k", "1.5m" or "0.3" as a number.
pub fn parse_number(text: &str) -> Result<f64, String> {
    parse_scaled(text)
}

/// Reads "256B", "64KiB" or "1.5MiB"; `None`: the text is not a size.
pub fn parse_bytes(text: &str) -> Option<f64> {
    scaled(text, &[("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)]).map(|bytes| bytes as f64)
}

/// Reads "30%" or "0.3" as a part from 0 to 1.
pub fn parse_part(text: &str) -> Result<f64, String> {
    let part = match text.strip_suffix('%') {
        Some(percent) => percent.parse().map(|it: f64| it / 100.0),
        None => text.parse(),
    };
    let part = part.ok().filter(|part| (0.0..=1.0).contains(part));
    part.ok_or_else(|| format!("{text:?} is no part of a whole: write 30% or 0.3"))
}

/// Reads "500us", "1.5ms", "10s", "2m", "1h" or "7d".
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let nanos = scaled(
        text,
        &[
            ("ns", 1),
            ("us", 1_000),
            ("ms", 1_000_000),
            ("s", 1_000_000_000),
            ("m", 60_000_000_000),
            ("h", 3_600_000_000_000),
            ("d", 86_400_000_000_000),
        ],
    );
    let refuse = || format!("{text:?} is not a time: write it with its unit, such as 500ms, 10s or 2m");
    nanos.map(Duration::from_nanos).ok_or_else(refuse)
}

/// Digits of a number with a unit, before and after the point together: more do not fit into 64 bits anyway.
const DIGITS_MAX: usize = 30;

/// Multiplies a decimal number by its unit, which follows, perhaps behind spaces. `None`: no such unit, or not a whole
/// number of the smallest unit.
fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (number, unit) = text.split_at(text.find(|c: char| c != '.' && !c.is_ascii_digit())?);
    let factor =
        units.iter().find_map(|(name, factor)| (*name == unit.trim_start_matches(' ')).then_some(*factor))?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let is_number = !whole.is_empty() && !fraction.is_empty() && !fraction.contains('.');
    let digits = format!("{whole}{fraction}");
    if !is_number || digits.len() > DIGITS_MAX {
        return None;
    }
    let parts = digits.parse::<u128>().ok()?.checked_mul(factor.into())?;
    let per_unit = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let value = parts.is_multiple_of(per_unit).then_some(parts / per_unit)?;
    u64::try_from(value).ok()
}

fn parse_scaled(text: &str) -> Result<f64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let (number, scale) = match lower.strip_suffix(['k', 'm']) {
        Some(number) if lower.ends_with('k') => (number, 1e3),
        Some(number) => (number, 1e6),
        None => (lower.as_str(), 1.0),
    };
    let is_plain = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let value = number.parse::<f64>().ok().filter(|_| is_plain);
    value.map(|value| value * scale).ok_or_else(|| format!("{text:?} is not a number"))
}

/// 1234567 as "1,234,567".
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Three significant digits with the unit that fits: "1.10 ms".
pub fn latency(nanos: u64) -> String {
    let value = nanos as f64;
    match nanos {
        0..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => format!("{}us", three_digits(value / 1e3)),
        1_000_000..1_000_000_000 => format!("{}ms", three_digits(value / 1e6)),
        _ => format!("{}s", three_digits(value / 1e9)),
    }
}

/// "512 B", "3.25 MiB".
pub fn bytes(value: u64) -> String {
    let size = value as f64;
    match value {
        0..1_024 => format!("{value} B"),
        1_024..1_048_576 => format!("{} KiB", three_digits(size / 1_024.0)),
        _ => format!("{} MiB", three_digits(size / 1_048_576.0)),
    }
}

/// A figure with three significant digits.
pub fn three_digits(value: f64) -> String {
    match value.abs() {
        size if size < 9.995 => format!("{value:.2}"),
        size if size < 99.95 => format!("{value:.1}"),
        size if size < 99_999.5 => format!("{value:.0}"),
        _ => format!("{value:.3e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shared with the settings of the programs.
    const VECTORS: &str = include_str!("../../net/vectors/units.tsv");

    #[test]
    fn texts_mean_what_they_mean_in_settings() {
        for line in VECTORS.lines().filter(|line| !line.starts_with('#')) {
            let [kind, text, value] = line.split('\t').collect::<Vec<_>>()[..] else { panic!("{line:?}") };
            let read = match kind {
                "duration" => parse_duration(text).map(|it| it.as_nanos().to_string()).ok(),
                "size" => parse_bytes(text).map(|it| it.to_string()),
                "rate" => parse_rate(text).map(|it| it.to_string()).ok(),
                _ => panic!("{line:?} has no kind"),
            };
            assert_eq!(read.as_deref().unwrap_or("-"), value, "{line:?}");
        }
    }

    #[test]
    fn people_write_numbers_like_this() {
        assert_eq!(parse_count("300"), Ok(300));
        assert_eq!(parse_count("1.5k"), Ok(1_500));
        assert_eq!(parse_count("1M"), Ok(1_000_000));
        assert_eq!(parse_rate("20k/s"), Ok(20_000.0));
        assert_eq!(parse_rate("0.5"), Ok(0.5));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
    }

    #[test]
    fn nonsense_is_refused_with_advice() {
        for text in ["", "k", "-1", "0", "1.5", "nan", "9g", "10000m"] {
            assert!(parse_count(text).is_err(), "{text:?}");
        }
        for text in ["0", "-5/s", "x/s", "inf"] {
            assert!(parse_rate(text).is_err(), "{text:?}");
        }
        for text in ["10", "s", "10 parsecs", "-1s", "1e9h"] {
            assert!(parse_duration(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn figures_are_short() {
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(count(999), "999");
        assert_eq!(latency(1_100_000), "1.10ms");
        assert_eq!(latency(61_300), "61.3us");
        assert_eq!(bytes(3_407_872), "3.25 MiB");
    }
}
