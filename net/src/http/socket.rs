//! Listening and accepted sockets of both kinds; an accepted one is shared by hyper and the task that watches its deadline.

use super::address::{Address, Peer};
use super::connection::Watch;
use super::head::LineEnds;
use super::tls::Tls;
use hyper::rt::{Read, ReadBufCursor, Write};
use nix::sys::socket::{Shutdown, shutdown};
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// Bytes read at once.
const CHUNK_BYTES: usize = 8 << 10;
/// Bytes that a lingering close reads and drops.
const LINGER_BYTES_MAX: usize = 256 << 10;

/// Listening socket of a server.
#[derive(Debug)]
pub enum Listener {
    /// At an IP address.
    Tcp(std::net::TcpListener),
    /// At a path.
    Unix(std::os::unix::net::UnixListener),
}

impl From<std::net::TcpListener> for Listener {
    fn from(listener: std::net::TcpListener) -> Self {
        Self::Tcp(listener)
    }
}

impl From<std::os::unix::net::UnixListener> for Listener {
    fn from(listener: std::os::unix::net::UnixListener) -> Self {
        Self::Unix(listener)
    }
}

impl Listener {
    pub(super) fn address(&self) -> io::Result<Address> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(Address::Tcp),
            Self::Unix(listener) => {
                let path = listener.local_addr()?.as_pathname().map(std::path::Path::to_path_buf);
                path.map(Address::Unix).ok_or_else(|| io::Error::other("the socket has no path"))
            }
        }
    }
}

/// Listening socket inside of a runtime.
#[derive(Debug)]
pub(super) enum Accepting {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Accepting {
    /// Call inside of the runtime.
    pub(super) fn new(listener: Listener) -> io::Result<Self> {
        match listener {
            Listener::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                TcpListener::from_std(listener).map(Self::Tcp)
            }
            Listener::Unix(listener) => {
                listener.set_nonblocking(true)?;
                UnixListener::from_std(listener).map(Self::Unix)
            }
        }
    }

    pub(super) fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Socket>> {
        match self {
            Self::Tcp(listener) => {
                listener.poll_accept(cx).map_ok(|(stream, _)| Socket::plain(Stream::Tcp(stream)))
            }
            Self::Unix(listener) => {
                listener.poll_accept(cx).map_ok(|(stream, _)| Socket::plain(Stream::Unix(stream)))
            }
        }
    }
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Calls the same method of either kind.
macro_rules! either {
    ($stream:expr, $inner:ident => $call:expr) => {
        match $stream {
            Stream::Tcp($inner) => $call,
            Stream::Unix($inner) => $call,
        }
    };
}

/// A socket that ends for its peer when it is dropped, also while a process that is about to take over
/// has a copy of the descriptor.
#[derive(Debug)]
pub(super) struct Socket {
    stream: Stream,
    /// `None`: the connection is not encrypted.
    tls: Option<Tls>,
}

/// The bytes of a socket, under TLS.
struct Raw<'a>(&'a Stream);

impl io::Read for Raw<'_> {
    fn read(&mut self, chunk: &mut [u8]) -> io::Result<usize> {
        either!(self.0, stream => stream.try_read(chunk))
    }
}

impl io::Write for Raw<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        either!(self.0, stream => stream.try_write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Socket {
    const fn plain(stream: Stream) -> Self {
        Self { stream, tls: None }
    }

    /// The connection, encrypted from here on.
    pub(super) fn with_tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Writes what TLS has not written yet.
    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(tls) = &self.tls else { return Poll::Ready(Ok(())) };
        while !tls.flush(&mut Raw(&self.stream))? {
            ready!(either!(&self.stream, stream => stream.poll_write_ready(cx)))?;
        }
        Poll::Ready(Ok(()))
    }

    pub(super) fn peer(&self) -> Peer {
        match &self.stream {
            Stream::Tcp(stream) => stream.peer_addr().map_or(Peer::Unknown, Peer::Address),
            Stream::Unix(stream) => stream.peer_cred().map_or(Peer::Unknown, |peer| Peer::User {
                uid: peer.uid(),
                gid: peer.gid(),
                pid: peer.pid(),
            }),
        }
    }

    fn raw_fd(&self) -> RawFd {
        either!(&self.stream, stream => stream.as_raw_fd())
    }

    fn try_read(&self, chunk: &mut [u8]) -> io::Result<usize> {
        match &self.tls {
            None => either!(&self.stream, stream => stream.try_read(chunk)),
            Some(tls) => tls.read(&mut Raw(&self.stream), chunk),
        }
    }

    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match &self.tls {
            None => either!(&self.stream, stream => stream.try_write(bytes)),
            Some(_) => self.try_write_vectored(&[IoSlice::new(bytes)]),
        }
    }

    fn try_write_vectored(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match &self.tls {
            None => either!(&self.stream, stream => stream.try_write_vectored(parts)),
            Some(tls) => tls.write(&mut Raw(&self.stream), parts),
        }
    }

    /// Writes as much as the socket takes at once: an answer to a connection that is about to end.
    pub(super) fn write_at_once(&self, bytes: &[u8]) {
        self.try_write(bytes).ok();
    }

    /// Tells the peer that nothing more comes.
    pub(super) fn end_output(&self) {
        if let Some(tls) = &self.tls {
            tls.end(&mut Raw(&self.stream));
        }
        shutdown(self.raw_fd(), Shutdown::Write).ok();
    }

    /// Reads and drops until the peer closes, or has sent too much: closing over unread bytes would reset
    /// the connection and could take the answer with it. The caller sets the deadline.
    pub(super) async fn linger(&self) {
        let mut chunk = [0; CHUNK_BYTES];
        let mut left = LINGER_BYTES_MAX;
        while left > 0 {
            if either!(&self.stream, stream => stream.readable().await).is_err() {
                return;
            }
            match self.try_read(&mut chunk) {
                Ok(0) => return,
                Ok(count) => left = left.saturating_sub(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Some(tls) = &self.tls {
            tls.end(&mut Raw(&self.stream));
        }
        shutdown(self.raw_fd(), Shutdown::Both).ok();
    }
}

/// A socket as hyper reads and writes it; tells [`Watch`] what happens.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) socket: Rc<Socket>,
    pub(super) watch: Rc<Watch>,
    pub(super) lines: LineEnds,
}

impl Read for Watched {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { socket, watch, lines } = self.get_mut();
        let mut chunk = [0; CHUNK_BYTES];
        let wanted = CHUNK_BYTES.min(buffer.remaining());
        loop {
            ready!(either!(&socket.stream, stream => stream.poll_read_ready(cx)))?;
            match socket.try_read(&mut chunk[..wanted]) {
                Ok(count) => {
                    if count > 0 {
                        watch.handle_received();
                    }
                    if !lines.take(&chunk[..count]) {
                        watch.handle_bad_head();
                        return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
                    }
                    buffer.put_slice(&chunk[..count]);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl Watched {
    fn poll_with(
        &self,
        cx: &mut Context<'_>,
        write: impl Fn(&Socket) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(either!(&self.socket.stream, stream => stream.poll_write_ready(cx)))?;
            match write(&self.socket) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }
}

impl Write for Watched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_with(cx, |socket| socket.try_write(bytes))
    }

    /// hyper flushes when all of an answer is written.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.socket.poll_flush(cx))?;
        self.watch.handle_flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The answer to a bad head comes from elsewhere.
        if !self.watch.has_bad_head() {
            self.socket.end_output();
        }
        Poll::Ready(Ok(()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_with(cx, |socket| socket.try_write_vectored(parts))
    }
}
