//! Sockets of links to the other nodes of a cluster: this end connects, with TLS if `link.tls` is set. The other node must show
//! a certificate with its name `node-<number>`, and gets this node's.

use super::links::LinkEnd;
use super::peers::{PeerConnected, node_name};
use super::tls::end_of_dial;
use mio::event::Event;
use mio::{Registry, Token};
use moorline_net::layer::{Driven, JobResult, Layer};
use moorline_net::read_block::ReadBlock;
use moorline_net::stream::{Reading, Stream, StreamKind};
use moorline_net::tls::Client;
use moorline_net::unix_socket;
use moorline_proto::link::{LinkAddress, NONCE_BYTES};
use moorline_proto::slots::NodeId;
use moorline_proto::time::Instant;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// First of the tokens of these sockets; the number of the node follows.
const FIRST: usize = 1 << 40;

/// A connection to another node.
#[derive(Debug)]
pub(super) struct Dialled {
    /// Number of the connection in this process.
    pub(super) number: u64,
    stream: Stream,
    is_connected: bool,
    /// TLS; `None`: frames come at once.
    layer: Option<Layer>,
}

/// Next step of a connection that is being made.
#[derive(Debug)]
pub(super) enum Made {
    /// Wait for an event.
    Wait,
    /// Give the handshake's job to a thread.
    Job(moorline_net::layer::Job),
    /// Frames may be exchanged; the link host hears of it now.
    Open(PeerConnected),
    /// Frames may be exchanged as before.
    Known,
}

/// Returns the node of a token. `None`: the token is of another socket.
pub(super) fn node_of(token: Token) -> Option<NodeId> {
    let number = token.0.checked_sub(FIRST)?;
    u16::try_from(number).ok().map(NodeId)
}

impl Dialled {
    /// Begins to connect. `tls`: certificates of both sides.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn connect(
        node: NodeId,
        address: &LinkAddress,
        tls: Option<Arc<Client>>,
        registry: &Registry,
        number: u64,
    ) -> io::Result<Self> {
        let mut stream = match address {
            LinkAddress::Ip(address) => Stream::connect(*address)?,
            LinkAddress::Unix(path) => Stream::connect_unix(Path::new(path))?,
        };
        stream.register(registry, Token(FIRST + usize::from(node.0)))?;
        let is_tcp = stream.freeze() == StreamKind::Tcp;
        let layer = tls.filter(|_| is_tcp).map(|client| Layer::dialling(client, &node_name(node)));
        Ok(Self { number, stream, is_connected: false, layer })
    }

    /// Notes what the poll saw.
    pub(super) fn handle_event(&mut self, event: &Event) {
        self.stream.handle_event(event);
    }

    /// Goes on with the connection and its handshake.
    ///
    /// # Errors
    /// Reason why there is no connection.
    pub(super) fn proceed(
        &mut self,
        block: &mut ReadBlock,
        own_uids: &[u32],
        now: Instant,
    ) -> Result<Made, LinkEnd> {
        let mut is_new = false;
        if !self.is_connected {
            self.is_connected = self.stream.try_finish_connect().map_err(LinkEnd::Io)?;
            is_new = self.is_connected;
        }
        if !self.is_connected {
            return Ok(Made::Wait);
        }
        if let Some(layer) = self.layer.as_mut().filter(|layer| layer.is_opening()) {
            match layer.drive(&mut self.stream, block, now).map_err(end_of_dial)? {
                Driven::Open => is_new = true,
                Driven::Wait => return Ok(Made::Wait),
                Driven::Job(job) => return Ok(Made::Job(job)),
            }
        }
        if is_new { self.connected(own_uids).map(Made::Open).map_err(LinkEnd::Io) } else { Ok(Made::Known) }
    }

    fn connected(&self, own_uids: &[u32]) -> io::Result<PeerConnected> {
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).map_err(io::Error::from)?;
        if self.stream.freeze() != StreamKind::Tcp {
            let uid = unix_socket::peer_uid(&self.stream)?;
            if !own_uids.contains(&uid) {
                let why = format!("user id {uid} listens there, which is not in link.peer_uids");
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
            }
            return Ok(PeerConnected { nonce, is_known: true, is_loopback: false });
        }
        let is_loopback = self.stream.peer_addr()?.ip().to_canonical().is_loopback();
        Ok(PeerConnected { nonce, is_known: self.layer.is_some(), is_loopback })
    }

    /// Takes the result of a thread.
    ///
    /// # Errors
    /// Reason why the handshake failed.
    pub(super) fn handle_result(&mut self, result: JobResult) -> Result<(), LinkEnd> {
        let Some(layer) = &mut self.layer else { return Ok(()) };
        layer.handle_result(&mut self.stream, result).map_err(end_of_dial)
    }

    /// Reads once.
    ///
    /// # Errors
    /// Reason why the link ends.
    pub(super) fn read(&mut self, block: &mut ReadBlock, now: Instant) -> Result<Reading, LinkEnd> {
        match &mut self.layer {
            _ if !self.is_connected => Ok(Reading::Blocked),
            None => self.stream.read(block).map_err(LinkEnd::Io),
            Some(layer) => {
                layer.read(&mut self.stream, block, now).map_err(|error| LinkEnd::Tls(error.to_string()))
            }
        }
    }

    /// Writes encrypted bytes that the stream did not take before.
    ///
    /// # Errors
    /// The stream is broken.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        match &mut self.layer {
            Some(layer) if !layer.is_opening() && self.stream.is_writable() => {
                layer.flush(&mut self.stream).map(drop)
            }
            _ => Ok(()),
        }
    }

    /// Writes once. Returns how many bytes were taken.
    ///
    /// # Errors
    /// The stream is broken.
    pub(super) fn write(&mut self, bytes: &[u8], scratch: &mut Vec<u8>) -> io::Result<usize> {
        if !self.is_connected || !self.stream.is_writable() {
            return Ok(0);
        }
        match &mut self.layer {
            None => self.stream.write(bytes),
            Some(layer) if layer.is_opening() => Ok(0),
            Some(layer) => layer.write_bulk(&mut self.stream, bytes, scratch),
        }
    }

    /// Ends the connection.
    pub(super) fn shut(mut self, registry: &Registry) {
        if let Some(layer) = &mut self.layer {
            layer.shut(&mut self.stream, 0);
        }
        self.stream.deregister(registry).ok();
    }
}
