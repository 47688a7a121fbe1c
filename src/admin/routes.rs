//! From a request's head to the whole answer. Pure but for the figures it reads.

use super::drains::{ClientsOrder, DrainWish, Drainz};
use super::restarts::{RestartOrder, UnderWay};
use super::status::{Phase, Status, Varz};
use crate::config::is_host_port;
use crate::metrics::{self, Registry, names};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Header lines of a request; over it: 431.
const HEADERS_MAX: usize = 64;
const TEXT: &str = "text/plain; charset=utf-8";
const PATHS: &str = "/healthz, /readyz, /metrics, /v1/varz, /v1/restartz, /v1/drainz and POST /v1/upgrade, /v1/drain, /v1/undrain";
/// Headers of POST /v1/upgrade. A browser sends none of them without asking first.
const BINARY: &str = "moorline-binary";
const TIMEOUT_MS: &str = "moorline-timeout-ms";
const DRY_RUN: &str = "moorline-dry-run";
/// Headers of POST /v1/drain.
const GRACE_MS: &str = "moorline-grace-ms";
const RATE: &str = "moorline-rate";
const REDIRECT: &str = "moorline-redirect";
/// What every order must carry: its own name. No page that a browser shows can send this header along.
const ORDER: &str = "moorline-order";

/// What is served.
#[derive(Debug)]
pub(super) struct Routes {
    registry: Arc<Registry>,
    status: Arc<Status>,
}

/// What a request's bytes came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// The head is not complete.
    More,
    /// The whole answer, header included.
    Done(Vec<u8>),
}

impl Routes {
    pub(super) const fn new(registry: Arc<Registry>, status: Arc<Status>) -> Self {
        Self { registry, status }
    }

    /// Looks at what has arrived of a request. `bytes_max`: of its head.
    pub(super) fn handle(&self, received: &[u8], bytes_max: usize) -> Reply {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut headers);
        match request.parse(received) {
            Ok(httparse::Status::Complete(_)) => {
                let (method, target) = (request.method.unwrap_or(""), request.path.unwrap_or(""));
                let reply = match (method, target) {
                    ("POST", "/v1/upgrade" | "/v1/drain" | "/v1/undrain") => {
                        self.take_order(target.trim_start_matches("/v1/"), request.headers)
                    }
                    _ => self.answer(method, target),
                };
                Reply::Done(reply)
            }
            Ok(httparse::Status::Partial) if received.len() < bytes_max => Reply::More,
            Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
                let text = format!("the request's head is over {bytes_max} bytes or {HEADERS_MAX} lines\n");
                Reply::Done(response("431 Request Header Fields Too Large", TEXT, &text, Body::Sent))
            }
            Err(error) => {
                let text = format!("not an HTTP/1.1 request: {error}\n");
                Reply::Done(response("400 Bad Request", TEXT, &text, Body::Sent))
            }
        }
    }

    fn take_order(&self, name: &str, headers: &[httparse::Header<'_>]) -> Vec<u8> {
        let header = |name: &str| {
            let header = headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
            header.and_then(|header| std::str::from_utf8(header.value).ok())
        };
        let refuse = |text: String| response("400 Bad Request", TEXT, &text, Body::Sent);
        if header(ORDER) != Some(name) {
            return refuse(format!("{ORDER}: {name} is missing\n"));
        }
        let millis = |name| header(name).and_then(|text| text.parse().ok()).map(Duration::from_millis);
        let number = match name {
            "upgrade" => self.status.restarts.try_order(RestartOrder {
                binary: header(BINARY).map(PathBuf::from),
                timeout: millis(TIMEOUT_MS),
                is_dry_run: header(DRY_RUN) == Some("1"),
            }),
            "drain" => {
                let (rate, redirect) = (header(RATE), header(REDIRECT));
                let wish = DrainWish {
                    grace: millis(GRACE_MS),
                    rate: rate.and_then(|text| text.parse().ok()).filter(|rate| *rate > 0),
                    redirect: redirect.filter(|name| is_host_port(name)).map(str::to_owned),
                };
                if rate.is_some() != wish.rate.is_some() || redirect.is_some() != wish.redirect.is_some() {
                    return refuse(format!("{RATE}: clients per second, from 1; {REDIRECT}: host:port\n"));
                }
                self.status.drains.try_order(ClientsOrder::Drain(wish)).ok_or(UnderWay)
            }
            _ => self.status.drains.try_order(ClientsOrder::Undrain).ok_or(UnderWay),
        };
        match number {
            Ok(number) => response("202 Accepted", TEXT, &format!("{number}\n"), Body::Sent),
            Err(UnderWay) => response("409 Conflict", TEXT, "another order is under way\n", Body::Sent),
        }
    }

    fn answer(&self, method: &str, target: &str) -> Vec<u8> {
        let body = match method {
            "GET" => Body::Sent,
            "HEAD" => Body::Left,
            _ => {
                let text = format!("{method} is not served here; use GET\n");
                return response("405 Method Not Allowed\r\nallow: GET, HEAD", TEXT, &text, Body::Sent);
            }
        };
        let path = target.split('?').next().unwrap_or(target);
        match path {
            "/healthz" => response("200 OK", TEXT, "ok\n", body),
            "/readyz" => {
                let phase = self.status.phase(&self.registry);
                let code = if phase == Phase::Ready { "200 OK" } else { "503 Service Unavailable" };
                response(code, TEXT, &format!("{phase}\n"), body)
            }
            "/metrics" => response("200 OK", metrics::CONTENT_TYPE, &self.registry.page(), body),
            "/v1/varz" => {
                let varz = Varz::read(&self.status, &self.registry);
                let json = serde_json::to_string_pretty(&varz).expect("figures and texts only");
                response("200 OK", "application/json", &format!("{json}\n"), body)
            }
            "/v1/restartz" => {
                let restarts = self.status.restarts.show();
                let json = serde_json::to_string_pretty(&restarts).expect("figures and texts only");
                response("200 OK", "application/json", &format!("{json}\n"), body)
            }
            "/v1/drainz" => {
                let connections = self.registry.sum(names::CONNECTIONS);
                let shown = Drainz { connections, ..self.status.drains.show() };
                let json = serde_json::to_string_pretty(&shown).expect("figures and texts only");
                response("200 OK", "application/json", &format!("{json}\n"), body)
            }
            "/" => response("200 OK", TEXT, &format!("moorline admin; here are {PATHS}\n"), body),
            _ => response("404 Not Found", TEXT, &format!("no {path} here; there are {PATHS}\n"), body),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Body {
    Sent,
    /// HEAD: its length is told, nothing else.
    Left,
}

fn response(code: &str, content_type: &str, text: &str, body: Body) -> Vec<u8> {
    let mut out = format!(
        "HTTP/1.1 {code}\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n\
         cache-control: no-store\r\nconnection: close\r\n\r\n",
        text.len()
    );
    if body == Body::Sent {
        out.push_str(text);
    }
    out.into_bytes()
}
