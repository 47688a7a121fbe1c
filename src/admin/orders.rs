//! Arguments of the orders at the admin socket: JSON bodies.
//!
//! `moorline upgrade` also writes the headers of version 0.1: a gateway of 0.1 that it upgrades knows only those. They go
//! with the next version.

use super::drains::DrainWish;
use super::restarts::{RestartOrder, Target};
use moorline_net::http::Request;
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

/// Header that names the order for a gateway of version 0.1.
pub const ORDER_HEADER: &str = "moorline-order";
const BINARY_HEADER: &str = "moorline-binary";
const TIMEOUT_HEADER: &str = "moorline-timeout-ms";
const DRY_RUN_HEADER: &str = "moorline-dry-run";
const GRACE_HEADER: &str = "moorline-grace-ms";
const RATE_HEADER: &str = "moorline-rate";
const REDIRECT_HEADER: &str = "moorline-redirect";
/// Time of an upgrade, as `handover.timeout`.
const TIMEOUT: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(600);
/// The longest grace of a drain, as `drain.grace`.
const GRACE_MAX: Duration = Duration::from_secs(3600);
/// The highest rate of a drain, in clients per second.
const RATE_MAX: u32 = 1_000_000;

/// Body of POST `/v1/upgrade`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct UpgradeArguments {
    /// Path of the program to run; `None`: the path that the gateway was started by, as it is now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub binary: Option<String>,
    /// Run the program that served before, whatever its path names by now. Not with `binary`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub previous: bool,
    /// Milliseconds up to the commit; `None`: `handover.timeout`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Check and warm up a process, and hand nothing over.
    pub dry_run: bool,
}

/// Body of POST `/v1/drain`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct DrainArguments {
    /// Milliseconds until a client that stayed is closed; `None`: `drain.grace`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace_ms: Option<u64>,
    /// Clients asked per second, 1 to 1,000,000; `None`: all at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<u32>,
    /// Address that the clients shall use, host:port; `None`: `gateway.alternates`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redirect: Option<String>,
}

/// Body of an order without arguments.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct NoArguments {}

impl UpgradeArguments {
    /// The headers that a gateway of version 0.1 reads.
    pub fn old_headers(&self) -> Vec<(&'static str, String)> {
        let mut headers = vec![(ORDER_HEADER, "upgrade".to_owned())];
        headers.extend(self.binary.clone().map(|binary| (BINARY_HEADER, binary)));
        headers.extend(self.timeout_ms.map(|millis| (TIMEOUT_HEADER, millis.to_string())));
        headers.extend(self.dry_run.then(|| (DRY_RUN_HEADER, "1".to_owned())));
        headers
    }

    pub(super) fn of(request: &Request) -> Result<RestartOrder, String> {
        let Self { binary, previous, timeout_ms, dry_run } = read(request, "upgrade")?;
        let timeout = timeout_ms.map(Duration::from_millis);
        if timeout.is_some_and(|timeout| !TIMEOUT.contains(&timeout)) {
            return Err("timeout_ms: expected 1000 to 600000".to_owned());
        }
        if binary.as_deref().is_some_and(|binary| !binary.starts_with('/')) {
            return Err("binary: expected an absolute path".to_owned());
        }
        let target = match (binary, previous) {
            (Some(_), true) => return Err("binary: not together with previous".to_owned()),
            (Some(binary), false) => Target::File(PathBuf::from(binary)),
            (None, true) => Target::Previous,
            (None, false) => Target::Again,
        };
        Ok(RestartOrder { target, timeout, is_dry_run: dry_run })
    }
}

impl DrainArguments {
    /// The headers that a gateway of version 0.1 reads.
    pub fn old_headers(&self) -> Vec<(&'static str, String)> {
        let mut headers = vec![(ORDER_HEADER, "drain".to_owned())];
        headers.extend(self.grace_ms.map(|millis| (GRACE_HEADER, millis.to_string())));
        headers.extend(self.rate.map(|rate| (RATE_HEADER, rate.to_string())));
        headers.extend(self.redirect.clone().map(|redirect| (REDIRECT_HEADER, redirect)));
        headers
    }

    /// `alternates`: the addresses that clients may be sent to.
    pub(super) fn of(request: &Request, alternates: &[String]) -> Result<DrainWish, String> {
        let Self { grace_ms, rate, redirect } = read(request, "drain")?;
        let grace = grace_ms.map(Duration::from_millis);
        if grace.is_some_and(|grace| grace > GRACE_MAX) {
            return Err("grace_ms: expected at most 3600000".to_owned());
        }
        if rate.is_some_and(|rate| !(1..=RATE_MAX).contains(&rate)) {
            return Err(format!("rate: expected clients per second, 1 to {RATE_MAX}"));
        }
        if let Some(redirect) = &redirect
            && !alternates.contains(redirect)
        {
            // Clients send their tokens there.
            return Err(format!(
                "redirect: {redirect:?} is not in gateway.alternates, which has {alternates:?}; add it there and upgrade"
            ));
        }
        Ok(DrainWish { grace, rate, redirect })
    }
}

/// Checks a reload order, which has no arguments.
pub(super) fn check_reload(request: &Request) -> Result<(), String> {
    read::<NoArguments>(request, "reload").map(drop)
}

/// Checks an undrain order, which has no arguments.
pub(super) fn check_undrain(request: &Request) -> Result<(), String> {
    read::<NoArguments>(request, "undrain").map(drop)
}

/// Checks an order to end, which has no arguments.
pub(super) fn check_stop(request: &Request) -> Result<(), String> {
    read::<NoArguments>(request, "stop").map(drop)
}

/// Reads the JSON body; an empty body has no arguments.
fn read<T: Default + for<'de> Deserialize<'de>>(request: &Request, order: &str) -> Result<T, String> {
    if !request.is_json() {
        return Err(format!("the order {order} needs `content-type: application/json` and a JSON object"));
    }
    if request.body.trim_ascii().is_empty() {
        return Ok(T::default());
    }
    // A struct would be read from an array, too: an order by position.
    if request.body.trim_ascii_start().first() != Some(&b'{') {
        return Err(format!("cannot decode the body of the order {order}: it is not a JSON object"));
    }
    serde_json::from_slice(&request.body)
        .map_err(|error| format!("cannot decode the body of the order {order}: {error}"))
}
