//! Administration: health and metrics at the admin address, status and orders at the admin socket, over HTTP/1.1
//! (`moorline_net::http`).
//!
//! Being able to reach the admin address grants nothing but health and metrics. Everything else is served at a Unix
//! socket and judged by the credentials of the process that connected (`roles`). Each of the two owns a thread and at
//! most 16 connections; it asks no other thread anything: it reads the counter sets of [`Registry`] and the flags of
//! [`Status`], and leaves orders for the main thread. Must not touch a client's connection.
//!
//! | path | for | answers |
//! |---|---|---|
//! | `/healthz` | anybody | 200 as long as this process serves anything |
//! | `/readyz` | anybody | 200; 503 while draining or while no link to a backend is up |
//! | `/metrics` | anybody | OpenMetrics text |
//! | `/v1/varz` | group | [`Varz`] as JSON |
//! | `/v1/restartz` | group | [`Restartz`] as JSON |
//! | `/v1/drainz` | group | [`Drainz`] as JSON |
//! | POST `/v1/drain`, `/v1/undrain` | group | takes [`DrainArguments`], or nothing; 202 and the number that the order has in `/v1/drainz` |
//! | `/v1/reloadz` | group | [`Reloadz`] as JSON |
//! | POST `/v1/reload` | operator | takes nothing; 202 and the number that the reload has in `/v1/reloadz` |
//! | POST `/v1/upgrade` | operator | takes [`UpgradeArguments`]; 202 and the number that the hot restart has in `/v1/restartz` |
//!
//! Operators are root and the gateway's own user; the group is `admin.group`. Who may not is answered 403.

mod drains;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod orders;
mod place;
mod reloads;
mod restarts;
mod roles;
mod routes;
mod status;
#[cfg(test)]
mod tests;

pub use drains::{ClientsOrder, DrainControl, DrainWish, Drainz, Gate};
pub use orders::{DrainArguments, ORDER_HEADER, UpgradeArguments};
pub(crate) use place::judge as judge_socket;
pub use place::{default_socket, likely_sockets};
pub use reloads::{ReloadControl, Reloadz};
pub use restarts::{Refused, Restart, RestartControl, RestartOrder, Restartz, Step, Target};
pub use status::{Phase, Problems, Status, Varz};

use crate::metrics::{CounterSet, Metric, Registry};
use moorline_net::http::{
    Address, Event, Limits, Listener, Refusal, Request, Response, Server, Settings, StatusCode, header,
};
use nix::unistd::Gid;
use roles::Roles;
use routes::Place;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
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

/// Sockets of the administration.
#[derive(Debug)]
pub struct Listeners {
    /// At the admin address.
    pub address: TcpListener,
    /// At the admin socket, with the id of the group that may read and drain; `None`: no orders are taken.
    pub socket: Option<(UnixListener, Option<Gid>)>,
}

/// The running servers of the admin address and the admin socket.
#[derive(Debug)]
pub struct Admin {
    address: Server,
    socket: Option<Server>,
}

impl Admin {
    /// The address where it listens, with the actual port.
    pub fn address(&self) -> SocketAddr {
        self.address.address().tcp().expect("a TCP listener has a TCP address")
    }

    /// Path of the admin socket; `None`: there is none.
    pub fn socket(&self) -> Option<&Address> {
        self.socket.as_ref().map(Server::address)
    }

    /// Accepts no more connections, or accepts again: another process may serve the address next.
    pub fn set_paused(&self, is_paused: bool) {
        self.servers().for_each(|server| server.set_paused(is_paused));
    }

    /// Ends the threads within about 2 s; open connections are closed.
    pub fn stop(self) {
        let Self { address, socket } = self;
        address.stop();
        socket.into_iter().for_each(Server::stop);
    }

    fn servers(&self) -> impl Iterator<Item = &Server> {
        std::iter::once(&self.address).chain(&self.socket)
    }
}

/// Starts the threads of both sockets, which accept nobody before [`Admin::set_paused`] lets them. The threads' own
/// figures are added to `registry`.
///
/// # Errors
/// The system's: no poll, no thread.
pub fn spawn(listeners: Listeners, status: &Arc<Status>, registry: &Arc<Registry>) -> io::Result<Admin> {
    spawn_limited(listeners, status, registry, LIMITS)
}

/// Starts the thread of an admin socket that the settings have given up, paused. `now`: path of the socket of today, if there is
/// one.
///
/// # Errors
/// The system's: no poll, no thread.
pub fn spawn_retired(
    (listener, group): (UnixListener, Option<Gid>),
    now: Option<&Path>,
    status: &Arc<Status>,
    registry: &Arc<Registry>,
) -> io::Result<Server> {
    let place = Place::Retired(Roles::new(group), now.map(Path::to_path_buf));
    start(listener.into(), "admin-retired", place, status, registry, LIMITS)
}

fn spawn_limited(
    Listeners { address, socket }: Listeners,
    status: &Arc<Status>,
    registry: &Arc<Registry>,
    limits: Limits,
) -> io::Result<Admin> {
    let start = |listener, thread, place| start(listener, thread, place, status, registry, limits);
    let socket = match socket {
        Some((socket, group)) => {
            Some(start(socket.into(), "admin-socket", Place::Socket(Roles::new(group)))?)
        }
        None => None,
    };
    let path = socket.as_ref().map(|server| PathBuf::from(server.address().to_string()));
    let address = start(address.into(), "moorline-admin", Place::Address(path.clone()))?;
    let (shown, path) = (address.address(), path.as_deref().map(Path::display));
    tracing::info!(address = %shown, socket = path.map(tracing::field::display), "admin address is up");
    Ok(Admin { address, socket })
}

/// Starts the thread of one socket, paused.
fn start(
    listener: Listener,
    thread: &'static str,
    place: Place,
    status: &Arc<Status>,
    registry: &Arc<Registry>,
    limits: Limits,
) -> io::Result<Server> {
    let counter_set = Arc::new(CounterSet::new(METRICS));
    registry.carry(METRICS);
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
    let routes = routes::Routes { registry: Arc::clone(registry), status: Arc::clone(status), place };
    let handler = move || {
        move |request: Request| {
            let response = routes.answer(&request);
            async { response }
        }
    };
    let settings = Settings::new(thread, limits, refuse).with_names(status.names.clone()).paused();
    Server::start(listener, settings, handler, count)
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
