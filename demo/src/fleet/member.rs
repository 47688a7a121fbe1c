//! One client of the fleet: its protocol state, its socket, and the bytes between them.

use super::{Listener, token};
use crate::client::{Client, Output};
use crate::clock;
use bytes::{Bytes, BytesMut};
use mio::event::Event as Readiness;
use mio::net::TcpStream;
use mio::{Interest, Registry};
use moorline_proto::time::Instant;
use moorline_proto::wheel::TimerKey;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;

#[derive(Debug)]
enum Socket {
    None,
    Connecting(TcpStream),
    Up(TcpStream),
}

/// A client and its connection.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) client: Client,
    /// Entry in the fleet's wheel: fires not later than the client's deadline. `None`: it has no deadline.
    pub(super) timer: Option<(TimerKey, Instant)>,
    number: u32,
    socket: Socket,
    /// Bytes that the socket did not take yet; bounded by the client's sends under way.
    unsent: BytesMut,
}

impl Member {
    pub(super) fn new(number: u32, client: Client) -> Self {
        Self { client, timer: None, number, socket: Socket::None, unsent: BytesMut::new() }
    }

    /// Handles readiness of the socket. `buffer` is the loop's.
    pub(super) fn handle_ready(&mut self, ready: &Readiness, buffer: &mut [u8]) {
        if let Socket::Connecting(_) = self.socket
            && !self.is_connected(ready)
        {
            return;
        }
        if ready.is_readable() || ready.is_read_closed() {
            self.read(ready.is_read_closed(), buffer);
        }
    }

    /// Does what the client asks for, passes on what it says, and writes; after every call of the client.
    pub(super) fn drain(&mut self, registry: &Registry, gateway: SocketAddr, listener: &mut impl Listener) {
        while let Some(output) = self.client.poll_output() {
            match output {
                Output::Connect => self.connect(registry, gateway),
                Output::Write(frame) => frame.encode(&mut self.unsent),
                Output::HangUp => {
                    self.write().ok();
                    self.hang_up();
                }
                output => listener.handle_output(self.number, clock::now(), output),
            }
        }
        if self.write().is_err() {
            self.hang_up();
            self.client.handle_disconnected(clock::now());
            // At most once more: without a socket nothing is written.
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
            Ok(socket) => self.socket = Socket::Connecting(socket),
            Err(_) => self.client.handle_disconnected(clock::now()),
        }
    }

    /// Finishes a connect; true: the socket stands now.
    fn is_connected(&mut self, ready: &Readiness) -> bool {
        let Socket::Connecting(socket) = &self.socket else { return false };
        let has_failed = ready.is_error() || socket.take_error().ok().flatten().is_some();
        if !has_failed && !ready.is_writable() {
            return false;
        }
        let is_up = match socket.peer_addr() {
            // An event of the socket before this one.
            Err(error) if error.kind() == ErrorKind::NotConnected && !has_failed => return false,
            peer => !has_failed && peer.is_ok() && socket.set_nodelay(true).is_ok(),
        };
        match std::mem::replace(&mut self.socket, Socket::None) {
            Socket::Connecting(socket) if is_up => {
                self.socket = Socket::Up(socket);
                self.client.handle_connected(clock::now());
            }
            _ => self.client.handle_disconnected(clock::now()),
        }
        is_up
    }

    /// Reads until the socket is empty; edges come once.
    fn read(&mut self, is_closed: bool, buffer: &mut [u8]) {
        loop {
            let Socket::Up(socket) = &mut self.socket else { return };
            match socket.read(buffer) {
                Ok(0) => break,
                Ok(len) => {
                    self.client.handle_bytes(clock::now(), Bytes::copy_from_slice(&buffer[..len]));
                    if len < buffer.len() && !is_closed {
                        return; // the socket is empty; more bytes are another edge
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        self.socket = Socket::None;
        self.unsent = BytesMut::new();
        self.client.handle_disconnected(clock::now());
    }

    fn write(&mut self) -> io::Result<()> {
        let Socket::Up(socket) = &mut self.socket else { return Ok(()) };
        while !self.unsent.is_empty() {
            match socket.write(&self.unsent) {
                Ok(len) => drop(self.unsent.split_to(len)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.unsent = BytesMut::new();
        Ok(())
    }

    fn hang_up(&mut self) {
        self.socket = Socket::None;
        self.unsent = BytesMut::new();
    }
}
