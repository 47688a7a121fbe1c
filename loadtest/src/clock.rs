//! The one place that reads a clock.
#![allow(clippy::disallowed_methods)] // for the generator, this is where it belongs

use moorline_proto::time::Instant;
use nix::time::{ClockId, clock_gettime};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Now, on `CLOCK_MONOTONIC`.
pub fn now() -> Instant {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("CLOCK_MONOTONIC exists on Linux");
    let since_boot = Duration::from(time);
    Instant::ZERO + since_boot
}

/// Seconds since 1970, for tokens.
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Now in words: RFC 3339, in UTC.
pub fn utc() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

/// CPU time that this process has used, user and system.
pub fn own_cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// An [`Instant`] as its number of nanoseconds: all processes of a machine share the clock.
pub mod nanos {
    use moorline_proto::time::Instant;
    use serde::{Deserialize, Deserializer, Serializer};

    /// For `serde(with)`.
    pub fn serialize<S: Serializer>(instant: &Instant, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(instant.as_nanos())
    }

    /// For `serde(with)`.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Instant, D::Error> {
        u64::deserialize(deserializer).map(Instant::from_nanos)
    }
}
