//! One connection: its phases, their deadlines, and the way from hyper to the handler.
//!
//! ```text
//! Waiting --first byte--> Receiving --body complete--> Handling --answer--> Sending --flushed--> Waiting
//! ```
//! Each phase has one deadline ([`Limits`]). A connection is closed at its deadline, after a 408 if its
//! request was coming in.

use super::address::Peer;
use super::head::{self, Head, LineEnds};
use super::socket::{Socket, Watched};
use super::{Caller, Event, HEADERS_MAX, HEALTH_PATHS, Limits, Refusal, Request, Response, Settings};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONNECTION, EXPECT, HeaderValue, TRANSFER_ENCODING, USER_AGENT};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;
use tokio::time::{Instant, sleep_until, timeout};

/// Longest wait for the peer's close after the last answer.
const LINGER_MAX: Duration = Duration::from_secs(1);

/// Bytes of a stranger's body.
const STRANGER_BODY_BYTES_MAX: usize = 64 << 10;
/// Bytes of the smallest buffer that hyper accepts.
const HEAD_BYTES_MIN: usize = 8 << 10;

/// Phase of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Waits for the first byte of a request.
    Waiting,
    /// Head or body come in.
    Receiving,
    /// The handler has the request.
    Handling,
    /// The answer goes out.
    Sending,
    /// Reads until the peer closes.
    Lingering,
}

/// Phase and deadline of one connection.
#[derive(Debug)]
pub(super) struct Watch {
    limits: Limits,
    phase: Cell<Phase>,
    deadline: Cell<Instant>,
    /// Begin of the current phase.
    since: Cell<Instant>,
    has_answered: Cell<bool>,
    is_closing: Cell<bool>,
    /// The last request whose head was judged has a known caller.
    is_known: Cell<bool>,
    has_bad_head: Cell<bool>,
    /// The connection has a place of the health paths.
    is_reserved: bool,
}

impl Watch {
    pub(super) fn new(limits: Limits, is_reserved: bool) -> Self {
        let now = Instant::now();
        Self {
            limits,
            phase: Cell::new(Phase::Waiting),
            deadline: Cell::new(now + limits.first_idle),
            since: Cell::new(now),
            has_answered: Cell::new(false),
            is_closing: Cell::new(false),
            is_known: Cell::new(false),
            has_bad_head: Cell::new(false),
            is_reserved,
        }
    }

    /// Begin of the wait for the next request; `None`: the connection is not between two requests.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        (self.has_answered.get() && self.phase.get() == Phase::Waiting).then(|| self.since.get())
    }

    /// True if the connection has a place of the health paths.
    pub(super) const fn is_reserved(&self) -> bool {
        self.is_reserved
    }

    /// Rank among connections that may make room for a new one: strangers first, each by the begin of its phase.
    /// `None`: a handler has its request, or it is a known caller that is not idle.
    pub(super) fn evictable(&self) -> Option<(bool, Instant)> {
        let is_known = self.is_known.get();
        match self.phase.get() {
            Phase::Handling => None,
            Phase::Receiving | Phase::Sending if is_known => None,
            Phase::Waiting => Some((is_known, self.since.get())),
            Phase::Receiving | Phase::Sending | Phase::Lingering => Some((false, self.since.get())),
        }
    }

    /// True if a head that is not valid came in: hyper has not seen it.
    pub(super) fn has_bad_head(&self) -> bool {
        self.has_bad_head.get()
    }

    /// A head that is not valid came in.
    pub(super) fn handle_bad_head(&self) {
        self.has_bad_head.set(true);
    }

    /// True if no byte of a request has come in yet.
    pub(super) fn is_unasked(&self) -> bool {
        !self.has_answered.get() && self.phase.get() == Phase::Waiting
    }

    /// Has the connection end after its next answer.
    pub(super) fn close_after_answer(&self) {
        self.is_closing.set(true);
    }

    /// Bytes were read.
    pub(super) fn handle_received(&self) {
        if self.phase.get() == Phase::Waiting {
            self.enter(Phase::Receiving, self.limits.transfer);
        }
    }

    /// Everything that was to be written is written.
    pub(super) fn handle_flushed(&self) {
        if self.phase.get() == Phase::Sending {
            self.has_answered.set(true);
            self.enter(
                Phase::Waiting,
                if self.is_known.get() { self.limits.idle } else { self.limits.first_idle },
            );
        }
    }

    fn enter(&self, phase: Phase, within: Duration) {
        let now = Instant::now();
        self.phase.set(phase);
        self.since.set(now);
        self.deadline.set(now + within);
    }
}

/// Parts of a server that its connections share.
pub(super) struct Shared<F, E> {
    pub(super) settings: Settings,
    pub(super) handler: F,
    pub(super) on_event: E,
}

/// Reason why a request gets no answer.
#[derive(Debug)]
struct Unanswered;

impl std::fmt::Display for Unanswered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the request ended before it was complete")
    }
}

impl std::error::Error for Unanswered {}

/// Serves one connection to its end.
pub(super) async fn serve<F, A, E>(socket: Socket, watch: Rc<Watch>, shared: Rc<Shared<F, E>>)
where
    F: Fn(Request) -> A + 'static,
    A: Future<Output = Response> + 'static,
    E: Fn(Event) + 'static,
{
    let socket = Rc::new(socket);
    let peer = socket.peer();
    let limits = shared.settings.limits;
    let service = service_fn(|request: hyper::Request<Incoming>| {
        let (watch, shared) = (Rc::clone(&watch), Rc::clone(&shared));
        async move {
            watch.handle_received(); // the head may have come with the request before it
            let closes = is_old_command_line(&request) || watch.is_reserved;
            let response = answer(request, peer, &watch, &shared).await?;
            (shared.on_event)(Event::Answered);
            watch.enter(Phase::Sending, limits.transfer);
            let mut response = response.into_hyper();
            if closes || watch.is_closing.get() {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<hyper::Response<Full<Bytes>>, Unanswered>(response)
        }
    });
    let (lines, watched_by) = (LineEnds::default(), Rc::clone(&watch));
    let watched = Watched { socket: Rc::clone(&socket), watch: watched_by, lines };
    let mut http = http1::Builder::new();
    http.half_close(true)
        .header_read_timeout(None)
        .max_headers(HEADERS_MAX)
        .max_buf_size(limits.head_bytes_max.max(HEAD_BYTES_MIN));
    let outcome = within_deadline(&watch, http.serve_connection(watched, service)).await;
    match (outcome, watch.phase.get()) {
        (Some(_), _) if watch.has_bad_head() => {
            socket.write_at_once(&(shared.settings.refuse)(Refusal::BadHead).to_wire());
        }
        (Some(Ok(())), _) => {}
        // hyper has answered bytes that are not HTTP, and dropped requests that were cut off.
        (Some(Err(error)), _) => tracing::debug!(%error, %peer, "an HTTP connection ended"),
        (None, Phase::Receiving) => {
            (shared.on_event)(Event::TooSlow);
            socket.write_at_once(&(shared.settings.refuse)(Refusal::TooSlow).to_wire());
        }
        (None, _) if watch.is_unasked() => (shared.on_event)(Event::TooSlow),
        (None, phase) => tracing::debug!(?phase, %peer, "an HTTP connection is closed at its deadline"),
    }
    watch.enter(Phase::Lingering, LINGER_MAX);
    socket.end_output();
    timeout(LINGER_MAX, socket.linger()).await.ok();
}

/// Answers a connection that finds no room, and closes it.
pub(super) async fn refuse(socket: Socket, response: Response) {
    socket.write_at_once(&response.to_wire());
    socket.end_output();
    timeout(LINGER_MAX, socket.linger()).await.ok();
}

/// Drives `future` until it is ready or the watch's deadline, which may move meanwhile; `None`: the
/// deadline passed.
async fn within_deadline<T>(watch: &Watch, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut sleep = pin!(sleep_until(watch.deadline.get()));
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        // Only the future moves the deadline, so looking after each of its turns is enough.
        if sleep.deadline() != watch.deadline.get() {
            sleep.as_mut().reset(watch.deadline.get());
        }
        sleep.as_mut().poll(cx).map(|()| None)
    })
    .await
}

/// Judges the head, reads the body and asks the handler.
async fn answer<F, A, E>(
    request: hyper::Request<Incoming>,
    peer: Peer,
    watch: &Watch,
    shared: &Shared<F, E>,
) -> Result<Response, Unanswered>
where
    F: Fn(Request) -> A,
    A: Future<Output = Response>,
    E: Fn(Event),
{
    let Settings { limits, refuse, names, judge, .. } = &shared.settings;
    let (head, body) = request.into_parts();
    let refused = |refusal| {
        // Its body stays unread, so the connection cannot go on.
        watch.close_after_answer();
        Ok(refuse(refusal))
    };
    watch.is_known.set(false);
    if let Err(refusal) = head::check(&head, names) {
        return refused(refusal);
    }
    if watch.is_reserved && !HEALTH_PATHS.contains(&head.uri.path()) {
        (shared.on_event)(Event::TooMany);
        return refused(Refusal::Busy);
    }
    let caller = match judge(&Head { method: &head.method, headers: &head.headers, peer, uri: &head.uri }) {
        Ok(caller) => caller,
        Err(response) => {
            watch.close_after_answer();
            return Ok(*response);
        }
    };
    watch.is_known.set(caller != Caller::Stranger);
    if head.headers.contains_key(TRANSFER_ENCODING) {
        return refused(Refusal::NoLength);
    }
    let body_bytes_max = match caller {
        Caller::Known(_) => limits.body_bytes_max,
        Caller::Stranger => limits.body_bytes_max.min(STRANGER_BODY_BYTES_MAX),
    };
    if body.size_hint().lower() > body_bytes_max as u64 {
        return refused(Refusal::BodyTooLarge);
    }
    let body = match Limited::new(body, body_bytes_max).collect().await {
        Ok(collected) => collected.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => return refused(Refusal::BodyTooLarge),
        Err(_) => return Err(Unanswered),
    };
    watch.enter(Phase::Handling, limits.handler);
    let request = Request { method: head.method, headers: head.headers, body, peer, caller, uri: head.uri };
    Ok((shared.handler)(request).await)
}

/// True if a request comes from the command line of Moorline 0.1, which reads until the server closes:
/// its request has no header but `host` and those of an order. Goes with the headers of an order.
fn is_old_command_line(request: &hyper::Request<Incoming>) -> bool {
    let headers = request.headers();
    [CONNECTION, USER_AGENT, EXPECT].iter().all(|name| !headers.contains_key(name))
}
