//! The client's one socket: connecting, writing what is owed, reading what came.

use super::token::Source;
use bytes::{Buf, BytesMut};
use mio::net::TcpStream;
use mio::{Interest, Registry};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

#[derive(Debug)]
pub(super) struct Socket {
    stream: TcpStream,
    pub(super) attempt: usize,
    pub(super) is_connected: bool,
    is_writable: bool,
    /// Written so far by the core, not yet by the kernel.
    pub(super) out: BytesMut,
}

/// What a read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    Bytes(usize),
    NothingYet,
    End,
}

impl Socket {
    pub(super) fn connect(address: SocketAddr, attempt: usize, registry: &Registry) -> io::Result<Self> {
        let mut stream = TcpStream::connect(address)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        registry.register(&mut stream, Source::Socket(attempt).into(), interest)?;
        Ok(Self { stream, attempt, is_connected: false, is_writable: false, out: BytesMut::new() })
    }

    /// After the socket became writable: whether it stands now.
    pub(super) fn try_finish_connect(&mut self) -> io::Result<bool> {
        if let Some(error) = self.stream.take_error()? {
            return Err(error);
        }
        match self.stream.peer_addr() {
            Ok(_) => {
                self.stream.set_nodelay(true)?;
                self.is_connected = true;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(super) fn on_writable(&mut self) {
        self.is_writable = true;
    }

    /// Writes until everything is out or the kernel takes no more.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        while self.is_connected && self.is_writable && !self.out.is_empty() {
            match self.stream.write(&self.out) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => self.out.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.is_writable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if self.out.is_empty() {
            self.out = BytesMut::new(); // an idle connection holds no buffer
        }
        Ok(())
    }

    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Reading {
        loop {
            match self.stream.read(buffer) {
                Ok(0) => return Reading::End,
                Ok(count) => return Reading::Bytes(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Reading::NothingYet,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Reading::End,
            }
        }
    }

    /// No more will be written. What is owed to the peer gets `linger` to leave, if any.
    pub(super) fn finish(mut self, registry: &Registry, linger: Duration) {
        let _ = registry.deregister(&mut self.stream);
        let mut stream = std::net::TcpStream::from(OwnedFd::from(self.stream));
        // An error means that the peer is gone: nothing is owed any more.
        if self.is_connected && !self.out.is_empty() && !linger.is_zero() {
            let is_ready =
                stream.set_nonblocking(false).and_then(|()| stream.set_write_timeout(Some(linger)));
            let _ = is_ready.and_then(|()| stream.write_all(&self.out));
        }
        let _ = stream.shutdown(Shutdown::Write);
    }
}
