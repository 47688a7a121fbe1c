//! From a question to its answer, at the address for clients and at the one for operators.
//!
//! | path | at | answers |
//! |---|---|---|
//! | `/v1/endpoints?region=R` | clients | 200 and a list; 400: the region is not valid; 429: the address asks too often; 503: every gateway says that it takes nobody |
//! | `/healthz` | both | 200 as long as the process serves |
//! | `/readyz` | both | 200 if there is a list to give; 503 otherwise |
//! | `/metrics` | operators | OpenMetrics text |

use super::config::{DispatchConfig, is_region};
use super::figures::{
    ADDRESS_RATE, ADDRESSES, BAD_QUESTION, CLIENT_METRICS, DEGRADED, EVICTED, FRESH, NO_GATEWAY,
    STATE_METRICS, TOO_MANY, TOO_SLOW,
};
use super::{Shared, lock};
use crate::metrics::{self, CounterSet};
use moorline_net::http::{
    Caller, Event, Head, Limits, Method, Peer, Refusal, Request, Response, Server, Settings, StatusCode,
    header,
};
use moorline_net::tls;
use serde::Serialize;
use serde_json::json;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
/// Path of the list.
const ENDPOINTS: &str = "/v1/endpoints";
/// Seconds after which a client that got no list may ask again.
const RETRY_AFTER: &str = "5";
/// Longest wait for a request, between two of them, for one to come in, and for the handler, which never waits.
const PATIENCE: Duration = Duration::from_secs(5);
/// Connections of operators.
const ADMIN_CONNECTIONS: usize = 16;

/// A list, as clients get it.
#[derive(Debug, Serialize)]
struct List<'a> {
    endpoints: Vec<Entry<'a>>,
    /// Seconds for which the client may use the list.
    lifetime_s: u64,
    /// True if the region has no gateway that is known to be ready.
    degraded: bool,
    /// Age of the oldest report behind the list, in milliseconds; `None`: a gateway of the list has never answered.
    age_ms: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Entry<'a> {
    endpoint: &'a str,
    region: &'a str,
}

const fn limits(connections_max: usize) -> Limits {
    Limits {
        connections_max,
        head_bytes_max: 8 << 10,
        body_bytes_max: 0,
        first_idle: PATIENCE,
        idle: PATIENCE,
        transfer: PATIENCE,
        handler: PATIENCE,
    }
}

/// Serves clients.
///
/// # Errors
/// The system's: no thread.
pub(super) fn serve_clients(
    listener: TcpListener,
    tls: Option<tls::Server>,
    config: &DispatchConfig,
    shared: &Arc<Shared>,
) -> io::Result<Server> {
    let counters = Arc::new(CounterSet::new(CLIENT_METRICS));
    shared.registry.add(Arc::clone(&counters));
    let (judged, served) = (Arc::clone(shared), Arc::clone(shared));
    let (of_judge, of_events) = (Arc::clone(&counters), Arc::clone(&counters));
    let judge = move |head: &Head<'_>| judge(&judged, &of_judge, head);
    let settings = Settings::new("dispatch", limits(config.connections_max), refuse)
        .with_names(config.names.clone())
        .with_tls(tls)
        .with_judge(judge);
    let handler = move || {
        move |request: Request| {
            let response = answer_client(&served, &counters, &request);
            async { response }
        }
    };
    let count = move |event| match event {
        Event::Answered => {}
        Event::TooMany => of_events.add(TOO_MANY, 1),
        Event::TooSlow => of_events.add(TOO_SLOW, 1),
        Event::Evicted => of_events.add(EVICTED, 1),
    };
    Server::start(listener, settings, handler, count)
}

/// Serves operators.
///
/// # Errors
/// The system's: no thread.
pub(super) fn serve_admin(listener: TcpListener, shared: &Arc<Shared>) -> io::Result<Server> {
    let states = Arc::new(CounterSet::new(STATE_METRICS));
    shared.registry.add(Arc::clone(&states));
    let shared = Arc::clone(shared);
    let handler = move || {
        move |request: Request| {
            let response = answer_operator(&shared, &states, &request);
            async { response }
        }
    };
    let settings = Settings::new("dispatch-admin", limits(ADMIN_CONNECTIONS), refuse);
    Server::start(listener, settings, handler, |_| ())
}

/// Judges a question before it is answered: an address has its rate.
fn judge(shared: &Shared, counters: &CounterSet, head: &Head<'_>) -> Result<Caller, Box<Response>> {
    let Peer::Address(peer) = head.peer else { return Ok(Caller::Stranger) };
    if head.path() != ENDPOINTS {
        return Ok(Caller::Stranger);
    }
    let rate = lock(&shared.config).address_rate;
    let mut rates = lock(&shared.rates);
    let may_ask = rates.try_ask(peer.ip(), rate, shared.clock.now());
    counters.set(ADDRESSES, rates.len() as u64);
    if may_ask {
        return Ok(Caller::Stranger);
    }
    counters.add(ADDRESS_RATE, 1);
    let reason = "this address asks too often; ask again when the last list has ended";
    let response = problem(StatusCode::TOO_MANY_REQUESTS, "TOO_OFTEN", reason);
    Err(Box::new(response.with(header::RETRY_AFTER, RETRY_AFTER)))
}

fn answer_client(shared: &Shared, counters: &CounterSet, request: &Request) -> Response {
    match (&request.method, request.path()) {
        (&Method::GET | &Method::HEAD, ENDPOINTS) => match region_of(request.query().unwrap_or("")) {
            Ok(region) => list(shared, counters, region),
            Err(reason) => {
                counters.add(BAD_QUESTION, 1);
                problem(StatusCode::BAD_REQUEST, "INVALID", reason)
            }
        },
        _ => health(shared, request, "/v1/endpoints, /healthz, /readyz"),
    }
}

fn answer_operator(shared: &Shared, states: &CounterSet, request: &Request) -> Response {
    if request.method != Method::GET || request.path() != "/metrics" {
        return health(shared, request, "/healthz, /readyz, /metrics");
    }
    let counts = lock(&shared.table).counts(shared.clock.now());
    states.set_all(0, &counts);
    Response::new(StatusCode::OK, metrics::CONTENT_TYPE, shared.registry.page())
}

/// Answers what both addresses have.
fn health(shared: &Shared, request: &Request, paths: &str) -> Response {
    if !matches!(request.method, Method::GET | Method::HEAD) {
        let body = format!("{} is not served here; use GET, HEAD\n", request.method);
        return Response::new(StatusCode::METHOD_NOT_ALLOWED, TEXT, body).with(header::ALLOW, "GET, HEAD");
    }
    match request.path() {
        "/healthz" => Response::new(StatusCode::OK, TEXT, "ok\n"),
        "/readyz" => {
            let [ready, _, silent] = lock(&shared.table).counts(shared.clock.now());
            match (ready, silent) {
                (0, 0) => Response::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    TEXT,
                    "not ready: every gateway says that it takes nobody\n",
                ),
                (0, _) => Response::new(StatusCode::OK, TEXT, "ready, degraded: no gateway answers\n"),
                (ready, _) => Response::new(StatusCode::OK, TEXT, format!("ready: {ready} gateways\n")),
            }
        }
        path => Response::new(StatusCode::NOT_FOUND, TEXT, format!("no {path} here; there are {paths}\n")),
    }
}

/// Reads the region of a query; `None`: it names none. Other keys are for later versions.
fn region_of(query: &str) -> Result<Option<&str>, &'static str> {
    let mut regions = query.split('&').filter_map(|pair| pair.strip_prefix("region="));
    match (regions.next(), regions.next()) {
        (None | Some(""), None) => Ok(None),
        (Some(region), None) if is_region(region) => Ok(Some(region)),
        (Some(_), None) => Err("`region` is not valid: at most 32 letters, digits, `-` and `_`"),
        (_, Some(_)) => Err("`region` must be there once"),
    }
}

fn list(shared: &Shared, counters: &CounterSet, region: Option<&str>) -> Response {
    let lifetime_s = lock(&shared.config).lifetime.as_secs();
    let table = lock(&shared.table);
    let choice = table.choose(region, shared.clock.now(), &mut lock(&shared.random));
    if choice.endpoints.is_empty() {
        counters.add(NO_GATEWAY, 1);
        let reason = "every gateway says that it takes nobody; ask again";
        let response = problem(StatusCode::SERVICE_UNAVAILABLE, "RETRY", reason);
        return response.with(header::RETRY_AFTER, RETRY_AFTER);
    }
    counters.add(if choice.is_degraded { DEGRADED } else { FRESH }, 1);
    let list = List {
        endpoints: choice.endpoints.iter().map(|(endpoint, region)| Entry { endpoint, region }).collect(),
        lifetime_s,
        degraded: choice.is_degraded,
        age_ms: choice.age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
    };
    Response::new(StatusCode::OK, JSON, json!(list).to_string() + "\n")
}

fn problem(status: StatusCode, code: &str, reason: &str) -> Response {
    Response::new(status, JSON, json!({ "code": code, "reason": reason }).to_string() + "\n")
}

fn refuse(refusal: Refusal) -> Response {
    let (status, reason) = match refusal {
        Refusal::Busy => (StatusCode::SERVICE_UNAVAILABLE, "too many connections are open; ask again"),
        Refusal::BadHead => (
            StatusCode::BAD_REQUEST,
            "a header is missing or doubled, or a line of the head ends with LF alone",
        ),
        Refusal::WrongHost => {
            (StatusCode::MISDIRECTED_REQUEST, "`Host` is not an IP address, `localhost` or one of `names`")
        }
        Refusal::ForeignOrigin => (StatusCode::FORBIDDEN, "a page of another origin may not ask here"),
        Refusal::TooSlow => (StatusCode::REQUEST_TIMEOUT, "the request did not come in within 5 s"),
        Refusal::NoLength => (StatusCode::LENGTH_REQUIRED, "a question has no body"),
        Refusal::BodyTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "a question has no body"),
    };
    let code = if refusal == Refusal::Busy { "BUSY" } else { "INVALID" };
    let response = problem(status, code, reason);
    if refusal == Refusal::Busy { response.with(header::RETRY_AFTER, RETRY_AFTER) } else { response }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_names_at_most_one_region() {
        assert_eq!(region_of(""), Ok(None));
        assert_eq!(region_of("region="), Ok(None));
        assert_eq!(region_of("v=2&region=eu-1"), Ok(Some("eu-1")));
        for query in ["region=a%20b", "region=a&region=b", "region=&region=b"] {
            assert!(region_of(query).is_err(), "{query}");
        }
        assert!(region_of(&format!("region={}", "x".repeat(33))).is_err());
    }
}
