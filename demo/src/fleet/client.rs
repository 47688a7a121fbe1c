//! One client: the SDK's core, its socket, and the bytes between them.

use super::Listener;
use super::token;
use crate::clock;
use bytes::{Bytes, BytesMut};
use mio::event::Event as Readiness;
use mio::net::TcpStream;
use mio::{Interest, Registry};
use moorline_proto::time::Instant;
use moorline_proto::wheel::TimerKey;
use moorline_sdk::core::{Core, Event};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;

#[derive(Debug)]
enum Line {
    None,
    Connecting(TcpStream),
    Up(TcpStream),
}

/// A login and its connection.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) core: Core,
    /// Its one entry in the fleet's wheel: not later than the core's deadline.
    pub(super) timer: Option<(TimerKey, Instant)>,
    number: u32,
    line: Line,
    /// Not yet taken by the socket; bounded by the core's windows.
    out: BytesMut,
}

impl Client {
    pub(super) fn new(number: u32, core: Core) -> Self {
        Self { core, timer: None, number, line: Line::None, out: BytesMut::new() }
    }

    /// Its socket has something to say. `buffer` is the loop's.
    pub(super) fn handle_ready(&mut self, ready: &Readiness, buffer: &mut [u8]) {
        if let Line::Connecting(_) = self.line
            && !self.is_connected(ready)
        {
            return;
        }
        if ready.is_readable() || ready.is_read_closed() {
            self.read(ready.is_read_closed(), buffer);
        }
    }

    /// After every call of the core: does what it asks for, passes on what it says, and writes.
    pub(super) fn drain(&mut self, registry: &Registry, gateway: SocketAddr, listener: &mut impl Listener) {
        loop {
            self.core.poll_transmit(&mut self.out);
            let Some(event) = self.core.poll_event() else { break };
            match event {
                Event::Connect { .. } => self.connect(registry, gateway),
                Event::Hangup => {
                    self.write().ok();
                    self.hang_up();
                }
                Event::TokenNeeded(_) => self.core.handle_token(clock::now(), None),
                Event::Message(message) => {
                    let (now, token) = (clock::now(), message.token);
                    listener.on_event(self.number, now, Event::Message(message));
                    self.core.handled(now, token);
                }
                event => listener.on_event(self.number, clock::now(), event),
            }
        }
        if self.write().is_err() {
            self.hang_up();
            self.core.handle_disconnected(clock::now());
            // At most once more: without a line nothing is written.
            self.drain(registry, gateway, listener);
        }
    }

    fn connect(&mut self, registry: &Registry, gateway: SocketAddr) {
        self.hang_up();
        let connected = TcpStream::connect(gateway).and_then(|mut socket| {
            let interest = Interest::READABLE | Interest::WRITABLE;
            registry.register(&mut socket, token::of_client(self.number), interest)?;
            Ok(socket)
        });
        match connected {
            Ok(socket) => self.line = Line::Connecting(socket),
            Err(_) => self.core.handle_disconnected(clock::now()),
        }
    }

    /// The socket that was connecting: whether it stands now.
    fn is_connected(&mut self, ready: &Readiness) -> bool {
        let Line::Connecting(socket) = &self.line else { return false };
        let has_failed = ready.is_error() || socket.take_error().ok().flatten().is_some();
        if !has_failed && !ready.is_writable() {
            return false;
        }
        let is_up = match socket.peer_addr() {
            // An event of the socket before this one.
            Err(error) if error.kind() == ErrorKind::NotConnected && !has_failed => return false,
            peer => !has_failed && peer.is_ok() && socket.set_nodelay(true).is_ok(),
        };
        match std::mem::replace(&mut self.line, Line::None) {
            Line::Connecting(socket) if is_up => {
                self.line = Line::Up(socket);
                self.core.handle_connected(clock::now());
            }
            _ => self.core.handle_disconnected(clock::now()),
        }
        is_up
    }

    /// Reads what there is; edges come once.
    fn read(&mut self, is_closed: bool, buffer: &mut [u8]) {
        loop {
            let Line::Up(socket) = &mut self.line else { return };
            match socket.read(buffer) {
                Ok(0) => break,
                Ok(len) => {
                    self.core.handle_bytes(clock::now(), Bytes::copy_from_slice(&buffer[..len]));
                    if len < buffer.len() && !is_closed {
                        return; // the socket is empty; what comes now is another edge
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        self.hang_up();
        self.core.handle_disconnected(clock::now());
    }

    fn write(&mut self) -> io::Result<()> {
        let Line::Up(socket) = &mut self.line else { return Ok(()) };
        while !self.out.is_empty() {
            match socket.write(&self.out) {
                Ok(len) => drop(self.out.split_to(len)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.out = BytesMut::new();
        Ok(())
    }

    fn hang_up(&mut self) {
        self.line = Line::None;
        self.out = BytesMut::new();
    }
}
