//! One client of the fleet: its protocol state, its connection, and the bytes between them.

use super::carrier::Carrier;
use super::{Gateways, Listener, token};
use crate::client::{Client, Output};
use crate::clock;
use bytes::{Bytes, BytesMut};
use mio::event::Event as Readiness;
use mio::net::TcpStream;
use mio::{Interest, Registry};
use moorline_proto::time::Instant;
use moorline_proto::wheel::TimerKey;
use rustls::ClientConnection;
use std::io;
use std::sync::Arc;

#[derive(Debug)]
enum Connection {
    None,
    Connecting(Carrier),
    Up(Carrier),
}

/// A client and its connection.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) client: Client,
    /// Entry in the fleet's wheel: fires not later than the client's deadline. `None`: it has no deadline.
    pub(super) timer: Option<(TimerKey, Instant)>,
    number: u32,
    /// Index of the gateway of the next connect, counted on over all gateways again and again.
    next: usize,
    connection: Connection,
    /// Bytes that are not encrypted yet; bounded by the client's sends under way.
    unsent: BytesMut,
}

impl Member {
    pub(super) fn new(number: u32, client: Client) -> Self {
        let (next, unsent) = (number as usize, BytesMut::new());
        Self { client, timer: None, number, next, connection: Connection::None, unsent }
    }

    /// Handles readiness of the socket. `buffer` is the loop's.
    pub(super) fn handle_ready(&mut self, ready: &Readiness, buffer: &mut [u8]) {
        if let Connection::Connecting(carrier) = &self.connection {
            match carrier.is_connected(ready) {
                None => return, // an event of the socket before this one
                Some(is_up) => self.finish_connect(is_up),
            }
        }
        if ready.is_readable() || ready.is_read_closed() {
            self.read(buffer);
        }
    }

    /// Does what the client asks for, passes on what it says, and writes; after every call of the client.
    pub(super) fn drain(&mut self, registry: &Registry, gateways: &Gateways, listener: &mut impl Listener) {
        while let Some(output) = self.client.poll_output() {
            match output {
                Output::Connect => self.connect(registry, gateways),
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
            self.drain(registry, gateways, listener);
        }
    }

    /// Returns whether the connection stands and is encrypted.
    pub(super) fn is_secure(&self) -> bool {
        matches!(&self.connection, Connection::Up(carrier) if carrier.is_secure())
    }

    /// Returns whether the connection stands and is to the gateway of this index.
    pub(super) fn is_at(&self, gateway: usize, gateways: usize) -> bool {
        matches!(self.connection, Connection::Up(_)) && (self.next - 1) % gateways == gateway
    }

    fn connect(&mut self, registry: &Registry, gateways: &Gateways) {
        self.hang_up();
        let address = gateways.addresses[self.next % gateways.addresses.len()];
        self.next += 1;
        let connected = TcpStream::connect(address).and_then(|mut socket| {
            let interest = Interest::READABLE | Interest::WRITABLE;
            registry.register(&mut socket, token::of_client(self.number), interest)?;
            let (settings, name) = (Arc::clone(&gateways.client), gateways.name.clone());
            let tls = ClientConnection::new(settings, name).map_err(io::Error::other)?;
            Ok(Carrier::new(socket, tls))
        });
        match connected {
            Ok(carrier) => self.connection = Connection::Connecting(carrier),
            Err(_) => self.client.handle_disconnected(clock::now()),
        }
    }

    fn finish_connect(&mut self, is_up: bool) {
        match std::mem::replace(&mut self.connection, Connection::None) {
            Connection::Connecting(carrier) if is_up => {
                self.connection = Connection::Up(carrier);
                self.client.handle_connected(clock::now());
            }
            _ => self.client.handle_disconnected(clock::now()),
        }
    }

    fn read(&mut self, buffer: &mut [u8]) {
        let Connection::Up(carrier) = &mut self.connection else { return };
        let client = &mut self.client;
        let take = |bytes: &[u8]| client.handle_bytes(clock::now(), Bytes::copy_from_slice(bytes));
        if carrier.read(buffer, take).unwrap_or(false) {
            return;
        }
        self.hang_up();
        self.client.handle_disconnected(clock::now());
    }

    fn write(&mut self) -> io::Result<()> {
        let Connection::Up(carrier) = &mut self.connection else { return Ok(()) };
        carrier.write(&self.unsent)?;
        self.unsent = BytesMut::new();
        Ok(())
    }

    fn hang_up(&mut self) {
        self.connection = Connection::None;
        self.unsent = BytesMut::new();
    }
}
