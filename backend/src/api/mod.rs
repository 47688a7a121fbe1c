//! The server API: requests of an operator's own servers to the backend, as HTTP/1.1 with JSON
//! (`docs/server-api.md`), and the backend's metrics page.
//!
//! Example: a shop posts `/v1/messages`. The HTTP server's thread checks the token, makes an [`ApiCall`]
//! of the body, gives it to the backend's loop by [`Remote`], and answers when the loop has answered.

pub(crate) mod access;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod limits;
mod metrics;
mod problem;
pub(crate) mod requests;
mod routes;
pub(crate) mod tls;

use crate::config::ApiConfig;
use crate::error::BackendError;
use crate::im::{ApiAnswer, ApiCall, ApiReply, BackendMessage};
use crate::login_hook::HookFigures;
use crate::node::NodeFigures;
use crate::server::{LinkCounters, Remote};
use crate::undelivered::UndeliveredFigures;
use access::{Access, Scope};
use moorline_net::audit::{AuditLog, Entry};
use moorline_net::clock::Clock;
use moorline_net::http::{Caller, Head, Limits, Refusal, Request, Response, Server, Settings, StatusCode};
use moorline_net::log::DroppedLines;
use moorline_net::log_rate::LogRate;
use moorline_proto::message::client::Code;
use problem::Problem;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tls::ApiTls;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// Longest wait for an answer of the backend's loop.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Longest time of a handler: the loop's answer, and the work on it.
const HANDLER_MAX: Duration = Duration::from_secs(15);
/// Longest wait of a caller with a valid token for a further request on a connection.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// Longest wait for a request on another connection.
const FIRST_IDLE_MAX: Duration = Duration::from_secs(10);
/// Longest time for a request to come in, and for an answer to go out.
const TRANSFER_MAX: Duration = Duration::from_secs(10);
/// Bytes of a request's head.
const HEAD_BYTES_MAX: usize = 8 << 10;

/// Callers that the API knows; can be replaced while it runs.
pub(crate) type SharedAccess = Arc<RwLock<Arc<Access>>>;

/// The running API. Dropping it closes idle connections, waits at most 2 s for running requests, and ends
/// its thread.
#[derive(Debug)]
pub(crate) struct Api(Server);

/// Counters of other threads, for the metrics page.
#[derive(Clone, Debug)]
pub(crate) struct Counters {
    pub(crate) dropped_lines: DroppedLines,
    pub(crate) links: LinkCounters,
    pub(crate) audit: AuditLog,
    pub(crate) hook: Arc<HookFigures>,
    pub(crate) undelivered: Arc<UndeliveredFigures>,
    /// `None`: the backend is of no cluster.
    pub(crate) node: Option<Arc<NodeFigures>>,
}

/// Parts of the API that all requests share.
struct Shared {
    remote: Remote<BackendMessage>,
    access: SharedAccess,
    counters: Counters,
    clock: Clock,
    strangers: LogRate,
}

impl Api {
    /// Listens; `None`: the configuration names no address.
    pub(crate) fn start(
        config: &ApiConfig,
        remote: Remote<BackendMessage>,
        access: SharedAccess,
        tls: Option<&ApiTls>,
        counters: Counters,
    ) -> Result<Option<Self>, BackendError> {
        let Some(listen) = config.listen else { return Ok(None) };
        let failed = |cause| BackendError::Listen { key: "api.listen", address: listen.to_string(), cause };
        let listener = TcpListener::bind(listen).map_err(failed)?;
        let limits = Limits {
            connections_max: config.connections_max,
            head_bytes_max: HEAD_BYTES_MAX,
            body_bytes_max: config.body_max,
            first_idle: FIRST_IDLE_MAX,
            idle: IDLE_MAX,
            transfer: TRANSFER_MAX,
            handler: HANDLER_MAX,
        };
        let shared = Arc::new(Shared {
            remote,
            access,
            counters,
            clock: Clock::default(),
            strangers: LogRate::default(),
        });
        let judging = Arc::clone(&shared);
        let handler = move || {
            move |request: Request| {
                let shared = Arc::clone(&shared);
                async move { shared.answer(&request).await }
            }
        };
        let settings = Settings::new("api", limits, refuse)
            .with_names(config.names.clone())
            .with_tls(tls.map(ApiTls::server))
            .with_judge(move |head| judging.judge(head).map_err(|problem| Box::new(problem.into_response())));
        Server::start(listener, settings, handler, |_| ()).map(|server| Some(Self(server))).map_err(failed)
    }

    /// The address where the API listens, with the actual port.
    pub(crate) const fn address(&self) -> Option<SocketAddr> {
        self.0.address().tcp()
    }
}

fn refuse(refusal: Refusal) -> Response {
    let problem = match refusal {
        Refusal::Busy => Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "BUSY",
            "`api.connections_max` connections are open",
        ),
        Refusal::BadHead => {
            let reason = "a header is missing or doubled, or a line of the head ends with LF alone";
            Problem::invalid(reason)
        }
        Refusal::WrongHost => Problem::new(
            StatusCode::MISDIRECTED_REQUEST,
            "DENIED",
            "`Host` is not an IP address, `localhost` or one of `api.names`",
        ),
        Refusal::ForeignOrigin => {
            Problem::new(StatusCode::FORBIDDEN, "DENIED", "a page of another origin may not ask here")
        }
        Refusal::TooSlow => {
            Problem::new(StatusCode::REQUEST_TIMEOUT, "TIMEOUT", "the request did not come in within 10 s")
        }
        Refusal::NoLength => {
            Problem::new(StatusCode::LENGTH_REQUIRED, "INVALID", "a body needs a `Content-Length`")
        }
        Refusal::BodyTooLarge => {
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "TOO_LARGE", "the body is over `api.body_max`")
        }
    };
    problem.into_response()
}

impl Shared {
    async fn answer(&self, request: &Request) -> Response {
        let response = routes::answer(request, self).await.unwrap_or_else(Problem::into_response);
        if let Caller::Known(name) = &request.caller
            && let Some((action, target)) = routes::audited(request)
        {
            let (actor, action) = (format!("api:{name}"), format!("{} {action}", request.method));
            let (peer, status) = (request.peer.to_string(), response.status());
            let (peer, outcome) = (&*peer, status.as_str());
            self.counters.audit.note(&Entry {
                actor: &actor,
                peer,
                action: &action,
                target: &target,
                outcome,
            });
        }
        response
    }

    /// Judges a request before its body is read.
    fn judge(&self, head: &Head<'_>) -> Result<Caller, Problem> {
        let Some(scope) = Scope::of(head.path()) else { return Ok(Caller::Stranger) };
        let access = Arc::clone(&self.access.read().unwrap_or_else(PoisonError::into_inner));
        let problem = match access.judge(head.headers, scope, &self.clock) {
            Ok(name) => return Ok(Caller::Known(name)),
            Err(problem) => problem,
        };
        if let Some(left_out) = self.strangers.try_pass() {
            let (peer, path) = (head.peer, head.path());
            let reason = problem.reason();
            tracing::warn!(%peer, path, reason, left_out, "refused a request to the server API");
        }
        Err(problem)
    }

    /// Asks the backend's loop.
    async fn ask(&self, call: ApiCall) -> Result<ApiAnswer, Problem> {
        let (sender, answer) = oneshot::channel();
        // A request that gave up has dropped its end.
        let reply = ApiReply::new(|answer| _ = sender.send(answer));
        if self.remote.try_send(BackendMessage::Api(call, reply)).is_err() {
            let reason = "the backend's mailbox is full (`link.mailbox`)";
            return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "RETRY", reason));
        }
        let answered = timeout(ANSWER_WITHIN, answer).await;
        answered.ok().and_then(Result::ok).ok_or_else(|| {
            let reason = "the backend did not answer in time; the request may still be carried out";
            Problem::new(StatusCode::GATEWAY_TIMEOUT, "RETRY", reason)
        })
    }
}

/// The HTTP status of a result.
const fn status_of(code: Code) -> StatusCode {
    match code {
        Code::Ok | Code::Dup => StatusCode::OK,
        Code::Invalid => StatusCode::BAD_REQUEST,
        Code::Denied | Code::NotMember => StatusCode::FORBIDDEN,
        Code::NotFound | Code::Unsupported => StatusCode::NOT_FOUND,
        Code::Conflict => StatusCode::CONFLICT,
        Code::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Code::Retry => StatusCode::SERVICE_UNAVAILABLE,
    }
}
