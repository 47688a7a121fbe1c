//! Length and seed of tests that could run without an end.

use std::time::Duration;

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable} is a number, not {value:?}")))
}

/// `MOORLINE_SOAK_SECONDS`, or the `ordinary` time.
pub(crate) fn time(ordinary: u64) -> Duration {
    Duration::from_secs(number("MOORLINE_SOAK_SECONDS").unwrap_or(ordinary))
}

/// True if the long form of a test was asked for.
pub(crate) fn is_long() -> bool {
    time(0) >= Duration::from_secs(1000)
}

/// `MOORLINE_SOAK_SEED`, or 1.
pub(crate) fn seed() -> u64 {
    number("MOORLINE_SOAK_SEED").unwrap_or(1)
}

/// `MOORLINE_STORM_CLIENTS`, if it is set.
pub(crate) fn storm_clients() -> Option<usize> {
    number("MOORLINE_STORM_CLIENTS").map(|clients| usize::try_from(clients).expect("a number of sockets"))
}
