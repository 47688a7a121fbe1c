//! Numbers as people read them.

use std::time::Duration;

/// `4000` as `4,000`.
pub(crate) fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Milliseconds with the digits that matter.
pub(crate) fn millis(value: f64) -> String {
    match value {
        value if value < 10.0 => format!("{value:.2}ms"),
        value if value < 100.0 => format!("{value:.1}ms"),
        value => format!("{value:.0}ms"),
    }
}

/// Size in mebibytes.
pub(crate) fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", ratio(bytes, 1 << 20))
}

/// `part` of `whole`; 0 if there is no whole.
#[allow(clippy::cast_precision_loss)] // figures for people
pub(crate) fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// Events per second.
#[allow(clippy::cast_precision_loss)] // as above
pub(crate) fn rate(events: u64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { events as f64 / time.as_secs_f64() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_and_milliseconds() {
        for (value, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(count(value), text);
        }
        assert_eq!([millis(0.456), millis(45.67), millis(456.7)], ["0.46ms", "45.7ms", "457ms"]);
        assert_eq!((ratio(1, 0), rate(3, Duration::ZERO)), (0.0, 0.0));
    }
}
