//! Arguments of the orders at the admin address: JSON bodies, and the headers of version 0.1.
//!
//! The headers are still read, with a warning, and `moorline upgrade` still sends them beside the body:
//! a gateway of 0.1 that it upgrades knows only the headers. Both go with the next version.

use super::drains::DrainWish;
use super::restarts::RestartOrder;
use crate::config::is_host_port;
use moorline_net::http::Request;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// Header that names the order. A page in a browser cannot send it to another origin.
pub const ORDER_HEADER: &str = "moorline-order";
const BINARY_HEADER: &str = "moorline-binary";
const TIMEOUT_HEADER: &str = "moorline-timeout-ms";
const DRY_RUN_HEADER: &str = "moorline-dry-run";
const GRACE_HEADER: &str = "moorline-grace-ms";
const RATE_HEADER: &str = "moorline-rate";
const REDIRECT_HEADER: &str = "moorline-redirect";
/// The highest rate of a drain, in clients per second.
const RATE_MAX: u32 = 1_000_000;

/// Body of POST `/v1/upgrade`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct UpgradeArguments {
    /// Path of the program to run; `None`: the file that the gateway was started from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub binary: Option<String>,
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
        let arguments = read(request, "upgrade", |header| {
            let number =
                |name| header(name).map(|text| text.parse().map_err(|_| format!("{name}: not a number")));
            Ok(Self {
                binary: header(BINARY_HEADER).map(str::to_owned),
                timeout_ms: number(TIMEOUT_HEADER).transpose()?,
                dry_run: header(DRY_RUN_HEADER) == Some("1"),
            })
        })?;
        let Self { binary, timeout_ms, dry_run } = arguments;
        Ok(RestartOrder {
            binary: binary.map(PathBuf::from),
            timeout: timeout_ms.map(Duration::from_millis),
            is_dry_run: dry_run,
        })
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

    pub(super) fn of(request: &Request) -> Result<DrainWish, String> {
        let arguments = read(request, "drain", |header| {
            let wrong = |name| format!("{name}: not a number");
            Ok(Self {
                grace_ms: header(GRACE_HEADER)
                    .map(str::parse)
                    .transpose()
                    .map_err(|_| wrong(GRACE_HEADER))?,
                rate: header(RATE_HEADER).map(str::parse).transpose().map_err(|_| wrong(RATE_HEADER))?,
                redirect: header(REDIRECT_HEADER).map(str::to_owned),
            })
        })?;
        let Self { grace_ms, rate, redirect } = arguments;
        if rate.is_some_and(|rate| !(1..=RATE_MAX).contains(&rate)) {
            return Err(format!("rate: expected clients per second, 1 to {RATE_MAX}"));
        }
        if redirect.as_deref().is_some_and(|redirect| !is_host_port(redirect)) {
            return Err("redirect: expected host:port".to_owned());
        }
        Ok(DrainWish { grace: grace_ms.map(Duration::from_millis), rate, redirect })
    }
}

/// Checks an undrain order, which has no arguments.
pub(super) fn check_undrain(request: &Request) -> Result<(), String> {
    read(request, "undrain", |_| Ok(NoArguments {})).map(drop)
}

/// Arguments from the JSON body, or else by `from_headers` from the headers of version 0.1.
fn read<'r, T: Default + for<'de> Deserialize<'de>>(
    request: &'r Request,
    order: &str,
    from_headers: impl FnOnce(&dyn Fn(&str) -> Option<&'r str>) -> Result<T, String>,
) -> Result<T, String> {
    if request.is_json() {
        if request.body.trim_ascii().is_empty() {
            return Ok(T::default());
        }
        return serde_json::from_slice(&request.body)
            .map_err(|error| format!("cannot decode the body of the order {order}: {error}"));
    }
    if request.header(ORDER_HEADER) != Some(order) {
        return Err(format!("the order {order} needs `content-type: application/json` and a JSON object"));
    }
    tracing::warn!(order, "`moorline-` headers of an order are deprecated; send a JSON body");
    from_headers(&|name| request.header(name))
}
