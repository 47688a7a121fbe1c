//! One accepted socket, shared by hyper and the task that watches its deadline.

use super::connection::Watch;
use super::head::LineEnds;
use hyper::rt::{Read, ReadBufCursor, Write};
use nix::sys::socket::{Shutdown, shutdown};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use tokio::net::TcpStream;

/// Bytes read at once.
const CHUNK_BYTES: usize = 8 << 10;
/// Bytes that a lingering close reads and drops.
const LINGER_BYTES_MAX: usize = 256 << 10;

/// A socket that ends for its peer when it is dropped, also while a process that is about to take over
/// has a copy of the descriptor.
#[derive(Debug)]
pub(super) struct Socket(TcpStream);

impl Socket {
    pub(super) const fn new(stream: TcpStream) -> Self {
        Self(stream)
    }

    pub(super) fn peer(&self) -> Option<SocketAddr> {
        self.0.peer_addr().ok()
    }

    /// Writes as much as the socket takes at once: an answer to a connection that is about to end.
    pub(super) fn write_at_once(&self, bytes: &[u8]) {
        self.0.try_write(bytes).ok();
    }

    /// Tells the peer that nothing more comes.
    pub(super) fn end_output(&self) {
        shutdown(self.0.as_raw_fd(), Shutdown::Write).ok();
    }

    /// Reads and drops until the peer closes, or has sent too much: closing over unread bytes would reset
    /// the connection and could take the answer with it. The caller sets the deadline.
    pub(super) async fn linger(&self) {
        let mut chunk = [0; CHUNK_BYTES];
        let mut left = LINGER_BYTES_MAX;
        while left > 0 {
            if self.0.readable().await.is_err() {
                return;
            }
            match self.0.try_read(&mut chunk) {
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
        shutdown(self.0.as_raw_fd(), Shutdown::Both).ok();
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
        let stream = &socket.0;
        let mut chunk = [0; CHUNK_BYTES];
        let wanted = CHUNK_BYTES.min(buffer.remaining());
        loop {
            ready!(stream.poll_read_ready(cx))?;
            match stream.try_read(&mut chunk[..wanted]) {
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
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        let stream = &self.socket.0;
        loop {
            ready!(stream.poll_write_ready(cx))?;
            match write(stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }
}

impl Write for Watched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_with(cx, |stream| stream.try_write(bytes))
    }

    /// hyper flushes when all of an answer is written.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
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
        self.poll_with(cx, |stream| stream.try_write_vectored(parts))
    }
}
