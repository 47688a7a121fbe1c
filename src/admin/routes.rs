//! From a request to its answer. Pure but for the figures that it reads.

use super::drains::{ClientsOrder, Drainz};
use super::orders::{DrainArguments, UpgradeArguments, check_reload, check_stop, check_undrain};
use super::restarts::Refused;
use super::roles::{Role, Roles};
use super::status::{Phase, Status, Varz};
use crate::metrics::{self, Registry, names};
use moorline_net::http::{Method, Request, Response, StatusCode, header};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(super) const TEXT: &str = "text/plain; charset=utf-8";
/// Paths at the admin address.
const OPEN_PATHS: &str = "/healthz, /readyz, /metrics";
/// Paths at the admin socket.
const PATHS: &str = "/healthz, /readyz, /metrics, /v1/varz, /v1/restartz, /v1/drainz, /v1/reloadz and POST /v1/upgrade, /v1/reload, /v1/drain, /v1/undrain, /v1/stop";

/// Paths that a socket of the settings before still answers.
const VERDICTS: [&str; 3] = ["/healthz", "/v1/restartz", "/v1/drainz"];

/// Place where a server listens.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// At the admin address, where nobody is known; the path is that of the socket, if there is one.
    Address(Option<PathBuf>),
    /// At the admin socket.
    Socket(Roles),
    /// At the admin socket of the settings before, for those who wait for a verdict there; the path is that of the socket of
    /// today, if there is one.
    Retired(Roles, Option<PathBuf>),
}

/// Paths of one server.
#[derive(Debug)]
pub(super) struct Routes {
    pub(super) registry: Arc<Registry>,
    pub(super) status: Arc<Status>,
    pub(super) place: Place,
}

/// Purpose of a request.
enum Wanted {
    Show,
    Order(Order),
    /// A path that does not exist, or a method that it does not have; the method that it has.
    Nothing(&'static str),
}

#[derive(Clone, Copy, Debug)]
enum Order {
    Upgrade,
    Reload,
    Drain,
    Undrain,
    Stop,
}

impl Order {
    const fn role(self) -> Role {
        match self {
            Self::Upgrade | Self::Reload | Self::Stop => Role::Operator,
            Self::Drain | Self::Undrain => Role::Group,
        }
    }
}

impl Routes {
    pub(super) fn answer(&self, request: &Request) -> Response {
        let path = request.path();
        let order = match path {
            "/v1/upgrade" => Some(Order::Upgrade),
            "/v1/reload" => Some(Order::Reload),
            "/v1/drain" => Some(Order::Drain),
            "/v1/undrain" => Some(Order::Undrain),
            "/v1/stop" => Some(Order::Stop),
            _ => None,
        };
        let wanted = match (&request.method, order) {
            (&Method::POST, Some(order)) => Wanted::Order(order),
            (_, Some(_)) => Wanted::Nothing("POST"),
            (&Method::GET | &Method::HEAD, None) => Wanted::Show,
            (_, None) => Wanted::Nothing("GET, HEAD"),
        };
        let needed = match wanted {
            Wanted::Order(order) => order.role(),
            Wanted::Show | Wanted::Nothing(_) if path.starts_with("/v1/") => Role::Group,
            Wanted::Show | Wanted::Nothing(_) => Role::Anybody,
        };
        let role = match &self.place {
            Place::Address(_) => Role::Anybody,
            Place::Socket(roles) | Place::Retired(roles, _) => roles.of(request.peer),
        };
        if role < needed {
            return self.forbid(request, needed);
        }
        if let Place::Retired(_, now) = &self.place
            && !VERDICTS.contains(&path)
        {
            return moved(now.as_deref());
        }
        match wanted {
            Wanted::Show => self.show(path),
            Wanted::Order(order) => self.take(order, request),
            Wanted::Nothing(allow) => {
                let body = format!("{} is not served here; use {allow}\n", request.method);
                Response::new(StatusCode::METHOD_NOT_ALLOWED, TEXT, body).with(header::ALLOW, allow)
            }
        }
    }

    fn forbid(&self, request: &Request, needed: Role) -> Response {
        let path = request.path();
        let body = match &self.place {
            Place::Address(Some(socket)) => {
                let socket = socket.display();
                format!(
                    "{path} is served at the Unix socket {socket} only, for example by `moorline status --admin {socket}`; \
                     here are {OPEN_PATHS}\n"
                )
            }
            Place::Address(None) => {
                format!(
                    "{path} is served at the admin socket only, and this gateway has none; here are {OPEN_PATHS}\n"
                )
            }
            Place::Socket(_) | Place::Retired(..) if needed == Role::Operator => {
                format!("{path} is for root and the gateway's own user, and this is {}\n", request.peer)
            }
            Place::Socket(_) | Place::Retired(..) => format!(
                "{path} is for root, the gateway's own user and the group admin.group, and this is {}\n",
                request.peer
            ),
        };
        Response::new(StatusCode::FORBIDDEN, TEXT, body)
    }

    fn take(&self, order: Order, request: &Request) -> Response {
        let taken = match order {
            Order::Upgrade => {
                UpgradeArguments::of(request).map(|order| self.status.restarts.try_order(order))
            }
            Order::Reload => check_reload(request).map(|()| self.status.reloads.try_order()),
            Order::Drain => DrainArguments::of(request, &self.status.alternates)
                .map(|wish| self.order_clients(ClientsOrder::Drain(wish))),
            Order::Undrain => check_undrain(request).map(|()| self.order_clients(ClientsOrder::Undrain)),
            Order::Stop => check_stop(request).and_then(|()| self.status.stop()).map(Ok),
        };
        let (peer, number) = (request.peer, taken.as_ref().ok().and_then(|taken| taken.as_ref().ok()));
        tracing::info!(?order, %peer, number, "order");
        let answer = answer(taken);
        self.status.note_order(&peer.to_string(), request.path(), answer.status().as_str());
        answer
    }

    /// Lines about faults of backends. Names of machines are for those who may read the status.
    fn warnings(&self) -> String {
        let problems = self.status.problems();
        match &self.place {
            Place::Socket(_) | Place::Retired(..) => Varz::warnings(&problems),
            Place::Address(_) if problems.is_empty() => String::new(),
            Place::Address(_) => {
                format!("warning: faults of backends: {}; `moorline status` names them\n", problems.len())
            }
        }
    }

    fn order_clients(&self, order: ClientsOrder) -> Result<u64, Refused> {
        self.status.drains.try_order(order)
    }

    fn show(&self, path: &str) -> Response {
        let paths = match self.place {
            Place::Address(_) => OPEN_PATHS,
            Place::Socket(_) | Place::Retired(..) => PATHS,
        };
        match path {
            "/healthz" => Response::new(StatusCode::OK, TEXT, "ok\n"),
            "/readyz" => {
                let phase = self.status.phase(&self.registry);
                let is_ready = phase == Phase::Ready;
                let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                Response::new(status, TEXT, format!("{phase}\n{}", self.warnings()))
            }
            "/metrics" => Response::new(StatusCode::OK, metrics::CONTENT_TYPE, self.registry.page()),
            "/v1/varz" => json(&Varz::read(&self.status, &self.registry)),
            "/v1/restartz" => json(&self.status.restarts.show()),
            "/v1/reloadz" => json(&self.status.reloads.show()),
            "/v1/drainz" => {
                let connections = self.registry.sum(names::CONNECTIONS);
                let epoch = self.status.restarts.show().epoch;
                json(&Drainz { connections, epoch, ..self.status.drains.show() })
            }
            "/" => Response::new(StatusCode::OK, TEXT, format!("moorline admin; here are {paths}\n")),
            _ => Response::new(StatusCode::NOT_FOUND, TEXT, format!("no {path} here; there are {paths}\n")),
        }
    }
}

/// Answer to an order: its number, or the reason why it is not taken.
fn answer(order: Result<Result<u64, Refused>, String>) -> Response {
    match order {
        Ok(Ok(number)) => Response::new(StatusCode::ACCEPTED, TEXT, format!("{number}\n")),
        Ok(Err(Refused::UnderWay)) => {
            Response::new(StatusCode::CONFLICT, TEXT, "another order is under way\n")
                .with(header::RETRY_AFTER, "1")
        }
        Ok(Err(Refused::Ending)) => Response::new(StatusCode::GONE, TEXT, "the gateway ends\n"),
        Err(problem) => Response::new(StatusCode::BAD_REQUEST, TEXT, format!("{problem}\n")),
    }
}

/// Answer of a socket that the settings have given up.
fn moved(now: Option<&Path>) -> Response {
    let text = match now {
        Some(path) => format!("the admin socket is {} now\n", path.display()),
        None => "the gateway's settings of today have no admin socket\n".to_owned(),
    };
    Response::new(StatusCode::GONE, TEXT, text)
}

fn json(value: &impl Serialize) -> Response {
    match serde_json::to_string_pretty(value) {
        Ok(json) => Response::new(StatusCode::OK, "application/json", json + "\n"),
        Err(error) => Response::new(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n")),
    }
}
