//! The admin address: health, metrics, status and orders, over HTTP/1.1 (`moorline_net::http`).
//!
//! Owns one thread and at most 16 connections; asks no other thread anything: it reads the counter sets of
//! [`Registry`] and the flags of [`Status`], and leaves orders for the main thread. It has no login, so
//! it belongs on loopback. Must not touch a client's connection.
//!
//! | path | answers |
//! |---|---|
//! | `/healthz` | 200 as long as this process serves anything |
//! | `/readyz` | 200; 503 while draining or while no link to a backend is up |
//! | `/metrics` | OpenMetrics text |
//! | `/v1/varz` | [`Varz`] as JSON |
//! | `/v1/restartz` | [`Restartz`] as JSON |
//! | `/v1/drainz` | [`Drainz`] as JSON |
//! | POST `/v1/upgrade` | takes [`UpgradeArguments`]; 202 and the number that the hot restart has in `/v1/restartz` |
//! | POST `/v1/drain`, `/v1/undrain` | takes [`DrainArguments`], or nothing; 202 and the number that the order has in `/v1/drainz` |

mod drains;
mod orders;
mod restarts;
mod routes;
mod status;
#[cfg(test)]
mod tests;

pub use drains::{ClientsOrder, DrainControl, DrainWish, Drainz};
pub use orders::{DrainArguments, ORDER_HEADER, UpgradeArguments};
pub use restarts::{Restart, RestartControl, RestartOrder, Restartz, Step, UnderWay};
pub use status::{Phase, Status, Varz};

use crate::metrics::{CounterSet, Metric, Registry};
use moorline_net::http::{Event, Limits, Refusal, Request, Response, Server, Settings, StatusCode, header};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

/// Limits of the admin address.
const LIMITS: Limits = Limits {
    connections_max: 16,
    head_bytes_max: 8 << 10,
    body_bytes_max: 64 << 10,
    first_idle: Duration::from_secs(2),
    idle: Duration::from_secs(2), // this address knows no caller
    transfer: Duration::from_secs(2),
    handler: Duration::from_secs(2),
};

const REFUSED: &str = "Admin connections refused or closed before their request was complete.";
const METRICS: &[Metric] = &[
    Metric::counter("admin_requests", "Requests answered at the admin address."),
    Metric::counter("admin_refused", REFUSED).labelled("reason", "too_many"),
    Metric::counter("admin_refused", REFUSED).labelled("reason", "too_slow"),
    Metric::counter("admin_evicted", "Silent admin connections closed to make room for new ones."),
];
const ANSWERED: usize = 0;
const TOO_MANY: usize = 1;
const TOO_SLOW: usize = 2;
const EVICTED: usize = 3;

/// The running server of the admin address.
#[derive(Debug)]
pub struct Admin(Server);

impl Admin {
    /// The address where it listens, with the actual port.
    pub const fn address(&self) -> SocketAddr {
        self.0.address()
    }

    /// Accepts no more connections, or accepts again: another process may serve the address next.
    pub fn set_paused(&self, is_paused: bool) {
        self.0.set_paused(is_paused);
    }

    /// Ends the thread within about 2 s; open connections are closed.
    pub fn stop(self) {
        self.0.stop();
    }
}

/// Serves `listener` in a thread of its own. The thread's own figures are added to `registry`.
///
/// # Errors
/// The system's: no poll, no thread.
pub fn spawn(listener: TcpListener, status: Arc<Status>, registry: Arc<Registry>) -> io::Result<Admin> {
    spawn_limited(listener, status, registry, LIMITS)
}

fn spawn_limited(
    listener: TcpListener,
    status: Arc<Status>,
    registry: Arc<Registry>,
    limits: Limits,
) -> io::Result<Admin> {
    let counter_set = Arc::new(CounterSet::new(METRICS));
    registry.add(Arc::clone(&counter_set));
    let count = move |event| {
        let metric = match event {
            Event::Answered => ANSWERED,
            Event::TooMany => TOO_MANY,
            Event::TooSlow => TOO_SLOW,
            Event::Evicted => EVICTED,
        };
        counter_set.add(metric, 1);
    };
    let names = status.names.clone();
    let routes = routes::Routes::new(registry, status);
    let handler = move || {
        move |request: Request| {
            let response = routes.answer(&request);
            async { response }
        }
    };
    let settings = Settings::new("moorline-admin", limits, refuse).with_names(names);
    let server = Server::start(listener, settings, handler, count)?;
    tracing::info!(address = %server.address(), "admin address is up");
    Ok(Admin(server))
}

fn refuse(refusal: Refusal) -> Response {
    let (status, text) = match refusal {
        Refusal::Busy => (StatusCode::SERVICE_UNAVAILABLE, "16 admin connections are open\n"),
        Refusal::BadHead => {
            (StatusCode::BAD_REQUEST, "a header is missing or doubled, or a line ends with LF alone\n")
        }
        Refusal::WrongHost => {
            (StatusCode::MISDIRECTED_REQUEST, "Host is not an IP address, localhost or one of admin.names\n")
        }
        Refusal::ForeignOrigin => (StatusCode::FORBIDDEN, "a page of another origin may not ask here\n"),
        Refusal::TooSlow => (StatusCode::REQUEST_TIMEOUT, "the request did not come in within 2 s\n"),
        Refusal::NoLength => (StatusCode::LENGTH_REQUIRED, "a body needs a content-length\n"),
        Refusal::BodyTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "the body is over 64 KiB\n"),
    };
    let response = Response::new(status, routes::TEXT, text);
    if refusal == Refusal::Busy { response.with(header::RETRY_AFTER, "1") } else { response }
}
