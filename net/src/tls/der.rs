//! The one field of a certificate that no library here tells: the time after which it is not valid (RFC 5280, 4.1).
//!
//! ```text
//! Certificate    SEQUENCE { tbs SEQUENCE { [0] version?, serial INTEGER, algorithm SEQUENCE, issuer SEQUENCE,
//!                           validity SEQUENCE { notBefore, notAfter }, ... }, ... }
//! ```

const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;

/// Returns the last second in which the certificate is valid, since 1970; `None`: not a certificate.
pub(super) fn not_after(certificate: &[u8]) -> Option<u64> {
    let (tbs, _) = take(SEQUENCE, take(SEQUENCE, certificate)?.0)?;
    let rest = take(VERSION, tbs).map_or(tbs, |(_, rest)| rest);
    let (_, rest) = take(INTEGER, rest)?;
    let (_, rest) = take(SEQUENCE, rest)?;
    let (_, rest) = take(SEQUENCE, rest)?;
    let (validity, _) = take(SEQUENCE, rest)?;
    let (_, after) = time(validity)?;
    time(after).map(|(seconds, _)| seconds)
}

/// Takes the value with this tag from the front. Returns its content and what follows.
fn take(tag: u8, bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (first, rest) = bytes.split_first()?;
    let (length, rest) = rest.split_first()?;
    let (length, rest) = match *length {
        short @ ..=0x7f => (usize::from(short), rest),
        0x81 => (usize::from(*rest.first()?), &rest[1..]),
        0x82 => (usize::from(u16::from_be_bytes([*rest.first()?, *rest.get(1)?])), &rest[2..]),
        // A certificate has less than 64 KiB.
        _ => return None,
    };
    (*first == tag && length <= rest.len()).then(|| rest.split_at(length))
}

/// Reads `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ`.
fn time(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (digits, rest, century) = match take(UTC_TIME, bytes) {
        Some((digits, rest)) => (digits, rest, None),
        None => take(GENERALIZED_TIME, bytes).map(|(digits, rest)| (digits, rest, digits.get(..2)))?,
    };
    let two = |digits: &[u8]| -> Option<u64> {
        let digits =
            str::from_utf8(digits).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
        digits.parse().ok()
    };
    let (digits, centuries) = match century {
        Some(century) => (&digits[2..], two(century)?),
        None => (digits, if two(digits.get(..2)?)? < 50 { 20 } else { 19 }),
    };
    if digits.len() != 13 || digits[12] != b'Z' {
        return None;
    }
    let part = |at: usize| two(&digits[at..at + 2]);
    let (year, month, day) = (centuries * 100 + part(0)?, part(2)?, part(4)?);
    let is_date = year >= 1970 && (1..=12).contains(&month) && (1..=31).contains(&day);
    is_date.then_some(())?;
    let seconds = part(6)? * 3600 + part(8)? * 60 + part(10)?;
    Some((days(year, month, day) * 86_400 + seconds, rest))
}

/// Days from 1970-01-01 to a date that is not before.
const fn days(year: u64, month: u64, day: u64) -> u64 {
    // The year begins in March, so that the leap day is its last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year / 4 - year / 100 + year / 400;
    year * 365 + leap_days + (153 * month + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_time_are_read() {
        let utc = |text: &str| [&[UTC_TIME, 13][..], text.as_bytes()].concat();
        let general = |text: &str| [&[GENERALIZED_TIME, 15][..], text.as_bytes()].concat();
        for (bytes, expected) in [
            (utc("700101000000Z"), Some(0)),
            (utc("260301123045Z"), Some(1_772_368_245)),
            (utc("240229000000Z"), Some(1_709_164_800)),
            (utc("491231235959Z"), Some(2_524_607_999)),
            (general("20500101000000Z"), Some(2_524_608_000)),
            (general("99991231235959Z"), Some(253_402_300_799)),
            (utc("500101000000Z"), None),
            (utc("261301000000Z"), None),
            (utc("26010100000+Z"), None),
            (utc("2601010000001"), None),
            (general("2050"), None),
        ] {
            assert_eq!(time(&bytes).map(|(seconds, _)| seconds), expected, "{bytes:?}");
        }
    }

    #[test]
    fn bytes_that_are_not_a_certificate_have_no_end() {
        for bytes in
            [&[][..], &[0x30], &[0x30, 0x81], &[0x30, 0x82, 1], &[0x30, 0x83, 0, 0, 0], &[0x30, 0x80, 0, 0]]
        {
            assert_eq!(not_after(bytes), None);
        }
        assert_eq!(not_after(&[0x30, 4, 0x30, 2, 2, 0]), None);
    }
}
