//! One request to an HTTP server, for command lines: blocking, with one deadline, over a connection of
//! its own.

use super::address::Address;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, USER_AGENT};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::{Method, StatusCode};
use std::future::{Future as _, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

/// Bytes of an answer's body.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Bytes read at once.
const CHUNK_BYTES: usize = 8 << 10;

/// A request.
#[derive(Clone, Debug)]
pub struct Question<'a> {
    /// Method of the request.
    pub method: Method,
    /// Path, and query if there is one.
    pub path: &'a str,
    /// Headers beside `host`, `user-agent`, `connection` and the type of the body.
    pub headers: Vec<(&'static str, String)>,
    /// Body as JSON; `None`: no body.
    pub json: Option<String>,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Status of the answer.
    pub status: StatusCode,
    /// Body of the answer.
    pub body: String,
}

impl<'a> Question<'a> {
    /// A GET of `path`.
    pub const fn get(path: &'a str) -> Self {
        Self { method: Method::GET, path, headers: Vec::new(), json: None }
    }
}

/// Asks the server at `address` and waits at most `within` for the whole answer.
///
/// # Errors
/// The connection's, `TimedOut`, or `InvalidData`: the answer is not HTTP, not text, or over 1 MiB.
pub fn ask(address: &Address, question: &Question<'_>, within: Duration) -> io::Result<Answer> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    runtime.block_on(async {
        let answer = timeout(within, ask_now(address, question)).await;
        answer.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {within:?}")))?
    })
}

/// Asks several servers for a path each, at most `at_once` at the same time, and waits at most `within` for each of them. The
/// answers have the order of the questions.
///
/// # Errors
/// The system gives no poll. Each answer has errors of its own, as [`ask`] has them.
pub fn ask_all(
    questions: &[(Address, &'static str)],
    within: Duration,
    at_once: usize,
) -> io::Result<Vec<io::Result<Answer>>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let mut answers = Vec::with_capacity(questions.len());
    for group in questions.chunks(at_once.max(1)) {
        runtime.block_on(async {
            let ask = |(address, path): &(Address, &'static str)| {
                let (address, question) = (address.clone(), Question::get(path));
                tokio::spawn(async move { timeout(within, ask_now(&address, &question)).await })
            };
            for asked in group.iter().map(ask).collect::<Vec<_>>() {
                let late =
                    |_| Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {within:?}")));
                answers.push(
                    asked.await.map_err(io::Error::other).and_then(|answer| answer.unwrap_or_else(late)),
                );
            }
        });
    }
    Ok(answers)
}

async fn ask_now(address: &Address, question: &Question<'_>) -> io::Result<Answer> {
    match address {
        Address::Tcp(tcp) => ask_over(TcpStream::connect(tcp).await?, &tcp.to_string(), question).await,
        Address::Unix(path) => ask_over(UnixStream::connect(path).await?, "localhost", question).await,
    }
}

async fn ask_over<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    host: &str,
    question: &Question<'_>,
) -> io::Result<Answer> {
    let invalid = |error: &dyn ToString| io::Error::new(io::ErrorKind::InvalidData, error.to_string());
    let (mut sender, connection) = http1::handshake(Plain(stream)).await.map_err(|error| invalid(&error))?;
    let mut request = hyper::Request::builder()
        .method(&question.method)
        .uri(question.path)
        .header(HOST, host)
        .header(USER_AGENT, concat!("moorline/", env!("CARGO_PKG_VERSION")))
        .header(CONNECTION, "close");
    for (name, value) in &question.headers {
        request = request.header(*name, value);
    }
    if question.json.is_some() {
        request = request.header(CONTENT_TYPE, "application/json");
    }
    let body = Full::new(Bytes::from(question.json.clone().unwrap_or_default()));
    let request = request.body(body).map_err(|error| invalid(&error))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|error| invalid(&error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| invalid(&error))?.to_bytes();
        let body = String::from_utf8(body.into()).map_err(|error| invalid(&error))?;
        Ok(Answer { status, body })
    };
    // The exchange goes on only while somebody drives the connection; how that ends shows in the exchange.
    let (mut exchange, mut connection, mut has_ended) = (pin!(exchange), pin!(connection), false);
    poll_fn(|cx| {
        has_ended = has_ended || connection.as_mut().poll(cx).is_ready();
        exchange.as_mut().poll(cx)
    })
    .await
}

/// A socket as hyper reads and writes it.
struct Plain<S>(S);

impl<S: AsyncRead + Unpin> Read for Plain<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut chunk = [0; CHUNK_BYTES];
        let wanted = CHUNK_BYTES.min(buffer.remaining());
        let mut read = ReadBuf::new(&mut chunk[..wanted]);
        ready!(Pin::new(&mut self.0).poll_read(cx, &mut read))?;
        buffer.put_slice(read.filled());
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> Write for Plain<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
