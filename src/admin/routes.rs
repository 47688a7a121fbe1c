//! From a request to its answer. Pure but for the figures that it reads.

use super::drains::{ClientsOrder, Drainz};
use super::orders::{DrainArguments, UpgradeArguments, check_undrain};
use super::restarts::UnderWay;
use super::status::{Phase, Status, Varz};
use crate::metrics::{self, Registry, names};
use moorline_net::http::{Method, Request, Response, StatusCode, header};
use serde::Serialize;
use std::sync::Arc;

pub(super) const TEXT: &str = "text/plain; charset=utf-8";
const PATHS: &str = "/healthz, /readyz, /metrics, /v1/varz, /v1/restartz, /v1/drainz and POST /v1/upgrade, /v1/drain, /v1/undrain";

/// Paths of the admin address.
#[derive(Debug)]
pub(super) struct Routes {
    registry: Arc<Registry>,
    status: Arc<Status>,
}

impl Routes {
    pub(super) const fn new(registry: Arc<Registry>, status: Arc<Status>) -> Self {
        Self { registry, status }
    }

    pub(super) fn answer(&self, request: &Request) -> Response {
        match (&request.method, request.path()) {
            (&Method::POST, "/v1/upgrade") => {
                let order = UpgradeArguments::of(request);
                taken(order.map(|order| self.status.restarts.try_order(order)))
            }
            (&Method::POST, "/v1/drain") => {
                let order = DrainArguments::of(request);
                taken(order.map(|wish| self.order_clients(ClientsOrder::Drain(wish))))
            }
            (&Method::POST, "/v1/undrain") => {
                let order = check_undrain(request);
                taken(order.map(|()| self.order_clients(ClientsOrder::Undrain)))
            }
            (&Method::GET | &Method::HEAD, path) => self.show(path),
            (method, path) => {
                let is_order = matches!(path, "/v1/upgrade" | "/v1/drain" | "/v1/undrain");
                let allow = if is_order { "POST" } else { "GET, HEAD" };
                let body = format!("{method} is not served here; use {allow}\n");
                Response::new(StatusCode::METHOD_NOT_ALLOWED, TEXT, body).with(header::ALLOW, allow)
            }
        }
    }

    fn order_clients(&self, order: ClientsOrder) -> Result<u64, UnderWay> {
        self.status.drains.try_order(order).ok_or(UnderWay)
    }

    fn show(&self, path: &str) -> Response {
        match path {
            "/healthz" => Response::new(StatusCode::OK, TEXT, "ok\n"),
            "/readyz" => {
                let phase = self.status.phase(&self.registry);
                let is_ready = phase == Phase::Ready;
                let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                Response::new(status, TEXT, format!("{phase}\n"))
            }
            "/metrics" => Response::new(StatusCode::OK, metrics::CONTENT_TYPE, self.registry.page()),
            "/v1/varz" => json(&Varz::read(&self.status, &self.registry)),
            "/v1/restartz" => json(&self.status.restarts.show()),
            "/v1/drainz" => {
                let connections = self.registry.sum(names::CONNECTIONS);
                json(&Drainz { connections, ..self.status.drains.show() })
            }
            "/" => Response::new(StatusCode::OK, TEXT, format!("moorline admin; here are {PATHS}\n")),
            _ => {
                let body = format!("no {path} here; there are {PATHS}\n");
                Response::new(StatusCode::NOT_FOUND, TEXT, body)
            }
        }
    }
}

/// Answer to an order: its number, or the reason why it is not taken.
fn taken(order: Result<Result<u64, UnderWay>, String>) -> Response {
    match order {
        Ok(Ok(number)) => Response::new(StatusCode::ACCEPTED, TEXT, format!("{number}\n")),
        Ok(Err(UnderWay)) => Response::new(StatusCode::CONFLICT, TEXT, "another order is under way\n"),
        Err(problem) => Response::new(StatusCode::BAD_REQUEST, TEXT, format!("{problem}\n")),
    }
}

fn json(value: &impl Serialize) -> Response {
    match serde_json::to_string_pretty(value) {
        Ok(json) => Response::new(StatusCode::OK, "application/json", json + "\n"),
        Err(error) => Response::new(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n")),
    }
}
