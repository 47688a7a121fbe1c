//! The server API: what an operator's own servers ask of the backend, as HTTP/1.1 with JSON (`docs/server-api.md`), and
//! its metrics.
//!
//! A thread per connection, a bounded number of them; each question goes to the backend's loop and waits for its answer.

mod http;
mod metrics;
pub(crate) mod requests;
mod routes;

use crate::clock::Clock;
use crate::config::ApiConfig;
use crate::error::BackendError;
use crate::im::{ApiAnswer, ApiCall, ApiReply, BackendMessage};
use crate::server::Remote;
use crossbeam_channel::bounded;
use http::{Answer, Incoming, Limits};
use moorline_net::log::DroppedLines;
use moorline_proto::message::client::Code;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// How long the backend's loop may take for an answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How long a connection may say nothing between two questions.
const IDLE: Duration = Duration::from_secs(60);
/// How long a question may take to come in, and an answer to leave.
const SLOW: Duration = Duration::from_secs(10);
/// Shortest token, in bytes.
const TOKEN_BYTES_MIN: usize = 16;
/// Before accepting is tried again after the system refused a descriptor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The running API. Dropping it ends its thread; connections end with their next question.
#[derive(Debug)]
pub(crate) struct Api {
    address: SocketAddr,
    is_ending: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

/// What every connection needs.
struct Shared {
    remote: Remote<BackendMessage>,
    dropped_lines: DroppedLines,
    token: Vec<u8>,
    body_max: usize,
    is_ending: Arc<AtomicBool>,
    open: AtomicUsize,
}

impl Api {
    /// Listens, if the configuration says where.
    pub(crate) fn start(
        config: &ApiConfig,
        remote: Remote<BackendMessage>,
        dropped_lines: DroppedLines,
    ) -> Result<Option<Self>, BackendError> {
        let Some(listen) = config.listen else { return Ok(None) };
        let token = read_token(&config.token_file)?;
        let failed = |cause| BackendError::Listen { key: "api.listen", address: listen, cause };
        let listener = TcpListener::bind(listen).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let is_ending = Arc::new(AtomicBool::new(false));
        let shared = Arc::new(Shared {
            remote,
            dropped_lines,
            token,
            body_max: config.body_max,
            is_ending: Arc::clone(&is_ending),
            open: AtomicUsize::new(0),
        });
        let connections_max = config.connections_max;
        let run = move || accept(&listener, &shared, connections_max);
        let thread = thread::Builder::new().name("api".into()).spawn(run).map_err(failed)?;
        Ok(Some(Self { address, is_ending, thread: Some(thread) }))
    }

    /// Where it listens; the real port if port 0 was asked for.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.is_ending.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        TcpStream::connect_timeout(&self.address, Duration::from_secs(1)).ok();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn read_token(path: &Path) -> Result<Vec<u8>, BackendError> {
    let wrong = |reason: String| BackendError::InvalidConfig { key: "api.token_file", reason };
    let text = std::fs::read_to_string(path)
        .map_err(|cause| wrong(format!("cannot read {}: {cause}", path.display())))?;
    let token = text.trim().as_bytes().to_vec();
    if token.len() < TOKEN_BYTES_MIN {
        return Err(wrong(format!("{} has to hold at least {TOKEN_BYTES_MIN} bytes", path.display())));
    }
    Ok(token)
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>, connections_max: usize) {
    loop {
        let accepted = listener.accept();
        if shared.is_ending.load(Ordering::SeqCst) {
            return;
        }
        match accepted {
            Ok((stream, _)) if shared.open.load(Ordering::SeqCst) >= connections_max => {
                let busy = Answer::error(503, "BUSY", "api.connections_max connections are open");
                http::write(&stream, &busy, false, SLOW).ok();
            }
            Ok((stream, _)) => {
                shared.open.fetch_add(1, Ordering::SeqCst);
                let theirs = Arc::clone(shared);
                let run = move || {
                    serve(&stream, &theirs);
                    theirs.open.fetch_sub(1, Ordering::SeqCst);
                };
                if let Err(cause) = thread::Builder::new().name("api-connection".into()).spawn(run) {
                    shared.open.fetch_sub(1, Ordering::SeqCst);
                    tracing::warn!(%cause, "cannot serve a connection of the server API");
                }
            }
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            Err(cause) => {
                tracing::warn!(%cause, "cannot accept at the server API, trying again shortly");
                thread::park_timeout(ACCEPT_PAUSE);
            }
        }
    }
}

/// Question by question, until one side has had enough.
fn serve(stream: &TcpStream, shared: &Shared) {
    let clock = Clock::new();
    let mut incoming = Incoming::default();
    // Who has asked nothing yet is nobody yet.
    let mut limits = Limits { body_max: shared.body_max, idle: SLOW, slow: SLOW };
    loop {
        let request = match incoming.read(stream, limits, || clock.read().instant) {
            Ok(Some(request)) => request,
            Ok(None) => return,
            Err(answer) => {
                http::write(stream, &answer, false, SLOW).ok();
                return;
            }
        };
        limits.idle = IDLE;
        let keeps = request.keeps_alive && !shared.is_ending.load(Ordering::SeqCst);
        let answer = routes::answer(&request, &shared.token, &shared.dropped_lines, |call| ask(shared, call))
            .to(&request);
        if answer.status == 401 {
            let peer = stream.peer_addr().ok();
            tracing::warn!(?peer, path = request.path, "a question to the server API without its token");
        }
        if http::write(stream, &answer, keeps, SLOW).is_err() || !keeps {
            return;
        }
    }
}

/// Asks the backend's loop.
fn ask(shared: &Shared, call: ApiCall) -> Result<ApiAnswer, Answer> {
    let (sender, answers) = bounded(1);
    if shared.remote.try_send(BackendMessage::Api(call, ApiReply::new(sender))).is_err() {
        return Err(Answer::error(503, "RETRY", "link.mailbox questions wait already"));
    }
    answers.recv_timeout(ANSWER_WITHIN).map_err(|_| {
        Answer::error(504, "RETRY", "the backend did not answer in time; what was asked may yet be done")
    })
}

/// The HTTP status of a result.
const fn status_of(code: Code) -> u16 {
    match code {
        Code::Ok | Code::Dup => 200,
        Code::Invalid => 400,
        Code::Denied | Code::NotMember => 403,
        Code::NotFound | Code::Unsupported => 404,
        Code::Conflict => 409,
        Code::TooLarge => 413,
        Code::Retry => 503,
    }
}
